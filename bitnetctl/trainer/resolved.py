"""A run with what is derived from its config: effective config, hash, paths. No torch here."""

from dataclasses import dataclass
from pathlib import Path

from bitnetctl.config import RunConfig
from bitnetctl.errors import RecordError
from bitnetctl.plugins import registry
from bitnetctl.records import Manifest, RunPaths
from bitnetctl.records.status import ended


@dataclass(frozen=True, kw_only=True)
class ResolvedRun:
    """A run with what is derived from its config, once: a sweep may have thousands of runs.

    `config` is the run as requested, `effective` after its interventions. `capturable_step` says whether no hook
    needs the host between the forward pass and the update, so that a step can be captured as a CUDA graph.
    """

    config: RunConfig
    effective: RunConfig
    config_hash: str
    paths: RunPaths
    capturable_step: bool

    @property
    def name(self) -> str:
        """Name of its CSV and folder."""
        return self.paths.name

    def ended(self) -> Manifest | None:
        """Return its manifest if it has finished or diverged, None if it is to be trained.

        Raises ConfigError where its name is taken by another config, RecordError for a damaged manifest or CSV.
        """
        return ended(self.paths, self.config_hash)

    def has_ended(self) -> bool:
        """Whether it has finished or diverged; one with damaged files has not."""
        try:
            return self.ended() is not None
        except RecordError:
            return False


def resolve(config: RunConfig, runs_dir: Path, name: str | None = None) -> ResolvedRun:
    """Resolve a run; raises ConfigError for interventions that cannot be used and for names that cannot be files."""
    composition = registry.compose(config.interventions)
    return ResolvedRun(
        config=config,
        effective=composition.configure(config),
        config_hash=config.hash,
        paths=RunPaths(runs_dir, name or config.run_name),
        capturable_step=composition.capturable_step,
    )
