"""Which runs are on disk already; no torch here."""

from pathlib import Path

from bitnetctl.config import RunConfig
from bitnetctl.errors import ConfigError
from bitnetctl.records import Manifest, RunPaths, read_manifest
from bitnetctl.records.manifest import check_figures


def ended(config: RunConfig, runs_dir: Path, name: str | None = None) -> Manifest | None:
    """Return the manifest of this very config if its run ended, finished or diverged; None if it is to be trained.

    Raises ConfigError where the name is taken by another config, RecordError for a damaged manifest or CSV.
    """
    paths = RunPaths(runs_dir, name or config.run_name)
    manifest = read_manifest(paths.folder)
    if manifest is None:
        return None
    if manifest.config_hash != config.hash:
        raise ConfigError(
            f"{paths.folder} holds another run (config {manifest.config_hash[:12]}, not {config.hash[:12]}); "
            "choose another --name"
        )
    if manifest.status not in ("finished", "diverged") or not paths.csv.exists():
        return None
    check_figures(paths.csv, manifest)
    return manifest
