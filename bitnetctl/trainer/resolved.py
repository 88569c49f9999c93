"""A run with what is derived from its config and its command: effective config, hash, paths. No torch here."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bitnetctl.config import RunConfig
from bitnetctl.errors import RecordError
from bitnetctl.plugins import registry
from bitnetctl.records import Manifest, PlannedRuns, RunPaths
from bitnetctl.records.status import ended


@dataclass(frozen=True, kw_only=True)
class ResolvedRun:
    """A run with what is derived from its config, once: a sweep may have thousands of runs.

    `config` is the run as requested, `effective` after its interventions. `capturable_step` says whether no hook
    needs the host between the forward pass and the update, so that a step can be captured as a CUDA graph. `planned`
    goes into its manifest.
    """

    config: RunConfig
    effective: RunConfig
    config_hash: str
    paths: RunPaths
    capturable_step: bool
    planned: PlannedRuns

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
    """Resolve a run that is planned alone.

    Raises ConfigError for interventions that cannot be used and for names that cannot be files.
    """
    composition = registry.compose(config.interventions)
    return ResolvedRun(
        config=config,
        effective=composition.configure(config),
        config_hash=config.hash,
        paths=RunPaths(runs_dir, name or config.run_name),
        capturable_step=composition.capturable_step,
        planned=PlannedRuns(seeds=[config.seed], arms=[config.arm]),
    )


def resolve_all(configs: Sequence[RunConfig], runs_dir: Path) -> list[ResolvedRun]:
    """Resolve the runs of one command, each with what the command plans: call it before any run is left out.

    Raises ConfigError as `resolve` does.
    """
    arms = list(dict.fromkeys(config.arm for config in configs))
    # the hash leaves out the recipe, a label without effect
    but_for_seed = [config.model_copy(update={"seed": 0}).hash for config in configs]
    seeds: dict[str, set[int]] = {}
    for key, config in zip(but_for_seed, configs, strict=True):
        seeds.setdefault(key, set()).add(config.seed)
    planned = {key: PlannedRuns(seeds=sorted(of_config), arms=arms) for key, of_config in seeds.items()}
    return [
        replace(resolve(config, runs_dir), planned=planned[key])
        for key, config in zip(but_for_seed, configs, strict=True)
    ]
