"""A run with what is derived from its config and its command: effective config, hash, paths. No torch here."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from bitnetctl.config import RunConfig
from bitnetctl.errors import ConfigError, PluginError, RecordError
from bitnetctl.plugins import registry
from bitnetctl.plugins.composition import QuantizerKey, custom_quantizers
from bitnetctl.records import Manifest, PlannedRuns, RunPaths
from bitnetctl.records.recorded import RunsFolder
from bitnetctl.records.status import ended

if TYPE_CHECKING:
    from bitnetctl.model.parts import Quantized


@dataclass(frozen=True, kw_only=True)
class ResolvedRun:
    """A run with what is derived from its config, once: a sweep may have thousands of runs.

    `config` is the run as requested, `effective` after its interventions. `capturable_step` says whether no hook
    needs the host between the forward pass and the update, so that a step can be captured as a CUDA graph;
    `optimizer_plugin` is the intervention that makes its optimizer; runs of one pack have the same `quantizer_key`.
    `planned` goes into its manifest. `problem` is the error of a plug-in that keeps it from being trained.
    `other_settings` is (name, text): a run that differs in the settings of its plug-ins only, and how, where this one
    is not there yet.
    """

    config: RunConfig
    effective: RunConfig
    config_hash: str
    paths: RunPaths
    capturable_step: bool
    optimizer_plugin: str | None
    planned: PlannedRuns
    problem: str | None = None
    other_settings: tuple[str, str] | None = None
    quantizer_key: QuantizerKey = ()

    @property
    def custom_quantizers(self) -> "frozenset[Quantized]":
        """What its interventions quantize in a way of their own."""
        return custom_quantizers(self.quantizer_key)

    @property
    def name(self) -> str:
        """Name of its CSV and folder."""
        return self.paths.name

    def ended(self) -> Manifest | None:
        """Return its manifest if it has finished or diverged, None if it is to be trained.

        Raises ConfigError where its name is taken by another config, RecordError for a damaged manifest or CSV.
        """
        return ended(self.paths, self.config_hash, self.config)

    def has_ended(self) -> bool:
        """Whether it has finished or diverged; one with damaged files has not."""
        try:
            return self.ended() is not None
        except RecordError:
            return False


def resolve(
    config: RunConfig, runs_dir: Path, name: str | None = None, *, folder: RunsFolder | None = None
) -> ResolvedRun:
    """Resolve a run that is planned alone; `folder` is `runs_dir`, if it is listed already.

    Raises ConfigError for interventions that cannot be used and for names that cannot be files; an error in the code
    of a plug-in is the run's `problem`.
    """
    effective, capturable_step, optimizer_plugin, problem = config, False, None, None
    quantizer_key: QuantizerKey = ()
    try:
        composition = registry.compose(config.interventions)
        optimizer_plugin = composition.optimizer_plugin
        effective, capturable_step = composition.configure(config), composition.capturable_step
        quantizer_key = composition.quantizer_key
    except PluginError as error:
        problem = str(error)
    found = (folder or RunsFolder(runs_dir)).find(config, name)
    return ResolvedRun(
        config=config,
        effective=effective,
        config_hash=found.config_hash,
        paths=found.paths,
        capturable_step=capturable_step,
        optimizer_plugin=optimizer_plugin,
        planned=PlannedRuns(seeds=[config.seed], arms=[config.arm]),
        problem=problem,
        other_settings=(found.other, found.differing) if found.other and found.differing else None,
        quantizer_key=quantizer_key,
    )


def resolve_all(configs: Sequence[RunConfig], runs_dir: Path) -> list[ResolvedRun]:
    """Resolve the runs of one command, each with what the command plans: call it before any run is left out.

    Raises ConfigError as `resolve` does.
    """
    registry.refuse_shared_names(spec for config in configs for spec in config.interventions)
    arms = list(dict.fromkeys(config.arm for config in configs))
    # the hash leaves out the recipe, a label without effect
    but_for_seed = [config.but_for_seed.hash for config in configs]
    seeds: dict[str, set[int]] = {}
    for key, config in zip(but_for_seed, configs, strict=True):
        seeds.setdefault(key, set()).add(config.seed)
    folder = RunsFolder(runs_dir)
    planned = {key: PlannedRuns(seeds=sorted(of_config), arms=arms) for key, of_config in seeds.items()}
    return [
        replace(resolve(config, runs_dir, folder=folder), planned=planned[key])
        for key, config in zip(but_for_seed, configs, strict=True)
    ]


def long_warm_ups(
    runs: Sequence[ResolvedRun], names: Sequence[str] | None = None, remedy: str = "lower schedule.warmup_steps"
) -> list[str]:
    """Return a note for each warm-up of more than half of the steps, and these steps, of runs that have not ended.

    `names` says what each run is called in it, by default its name; several runs may have one.
    """
    long: dict[tuple[int, int], list[str]] = {}
    for run, name in zip(runs, names or [run.name for run in runs], strict=True):
        warmup, steps = run.effective.schedule.warmup_steps, run.effective.steps
        # the files of thousands of runs are looked at only where there is something to say
        if 2 * warmup > steps and not run.has_ended():
            long.setdefault((warmup, steps), []).append(name)
    notes: list[str] = []
    for (warmup, steps), of_both in long.items():
        first, *others = dict.fromkeys(of_both)
        whose = f"{first} and {len(others):,} more warm" if others else f"{first} warms"
        notes.append(f"note: {whose} up for {warmup:,} of {steps:,} steps; {remedy}")
    return notes


def other_code(run: ResolvedRun) -> list[str]:
    """Return the plug-ins of a run that has ended whose code is not what it was trained with, as far as is known."""
    if not run.config.interventions or run.problem is not None:
        return []
    try:
        manifest = run.ended()
    except ConfigError:
        return []
    now = {plugin.name: plugin.source_sha256 for plugin in registry.plugin_infos(run.config.interventions)}
    plugins = manifest.plugins if manifest is not None else []
    return [one.name for one in plugins if one.source_sha256 is not None and one.source_sha256 != now.get(one.name)]
