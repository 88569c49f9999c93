"""Status of runs on disk, and conflicts of their names; no torch here."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bitnetctl.config import RunConfig, parse_config
from bitnetctl.errors import ConfigError
from bitnetctl.records.checksum import check_csv
from bitnetctl.records.manifest import Manifest, read_manifest
from bitnetctl.records.metrics import json_value
from bitnetctl.records.paths import RunPaths
from bitnetctl.records.reader import read
from bitnetctl.records.recorded import completed, differences
from bitnetctl.records.schema import NAMES
from bitnetctl.units import listed


def final_row(csv: Path) -> dict[str, Any]:
    """Return the last row of a CSV as JSON values: None is unknown, NaN and infinity are text; raises RecordError."""
    records = read(csv)
    return {name: json_value(records.value(name, -1)) for name in NAMES}


def refuse_case_collisions(names: Iterable[str], runs_dir: Path) -> None:
    """Raise ConfigError where names of runs differ from each other, or from existing ones, in letter case only.

    On a file system that ignores case, one of the runs would overwrite the other.
    """
    entries = [entry.name for entry in runs_dir.iterdir()] if runs_dir.is_dir() else []
    existing = {entry[:-4] if entry.lower().endswith(".csv") else entry for entry in entries}
    by_folded_name = {name.casefold(): name for name in sorted(existing)}
    for name in names:
        # a run that exists already does not conflict with itself
        other = name if name in existing else by_folded_name.setdefault(name.casefold(), name)
        if other != name:
            raise ConfigError(
                f"run {name!r} differs from {other!r} in {runs_dir} in letter case only; choose another --name"
            )


def ended(paths: RunPaths, config_hash: str, config: RunConfig) -> Manifest | None:
    """Return the manifest of a run of this config if it finished or diverged; None if it is still to be trained.

    Raises ConfigError where a run of another config has the name, RecordError for a damaged manifest or CSV.
    """
    manifest = read_manifest(paths.folder)
    if manifest is None:
        return None
    if manifest.config_hash != config_hash:
        raise ConfigError(f"{paths.folder} holds another run ({_differing(manifest, config)}); choose another --name")
    if manifest.status not in ("finished", "diverged") or not paths.csv.exists():
        return None
    check_csv(paths.csv, manifest)
    return manifest


def _differing(manifest: Manifest, config: RunConfig) -> str:
    """Return the fields in which a config differs from that of a manifest, or their hashes where it cannot be read."""
    try:
        recorded = completed(parse_config(manifest.requested()), [one.model_dump() for one in manifest.plugins])
    except ConfigError:
        return f"config {manifest.config_hash[:12]}, not {config.hash[:12]}"
    return listed(differences(recorded, config) or [f"config {manifest.config_hash[:12]}"])
