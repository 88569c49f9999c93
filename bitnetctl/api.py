"""The Python API behind `import bitnetctl`, for notebooks and scripts; the commands call it too.

Nothing here loads torch before something trains, or pandas before a run is read.
"""

import json
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bitnetctl.analysis.study import Study, study
from bitnetctl.config import RunConfig, build_config, parse_arm
from bitnetctl.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    PluginError,
    RecordError,
    StoppedBySignal,
    StorageError,
)
from bitnetctl.plugins.registry import normalize, normalize_if_usable
from bitnetctl.records import Run, load_begun_runs, load_run
from bitnetctl.records.distinct import distinct_runs
from bitnetctl.records.find import find_csvs
from bitnetctl.records.inventory import Inventory, take_inventory
from bitnetctl.records.logs.columns import check_map
from bitnetctl.records.status import refuse_case_collisions
from bitnetctl.sweeps.plan import Plan, load_plan, plan_configs
from bitnetctl.trainer.events import Event, Started, Stopped
from bitnetctl.trainer.options import TrainOptions
from bitnetctl.trainer.resolved import long_warm_ups, resolve, resolve_all
from bitnetctl.units import shortened
from bitnetctl.verdict import Criteria, JudgeOptions, Outcome, Verdict, judge_arms, load_criteria

if TYPE_CHECKING:
    from bitnetctl.inference.trained import TrainedRun

__all__ = [
    "Criteria",
    "Outcome",
    "Plan",
    "Run",
    "RunConfig",
    "Study",
    "TrainOptions",
    "Verdict",
    "analyze",
    "judge",
    "load_plan",
    "load_recipe",
    "load_runs",
    "open_run",
    "sweep",
    "train",
]

OnEvent = Callable[[Event], None]


def _ignore(event: Event) -> None:
    """The default `on_event`."""


def load_recipe(
    name: str = "origin",
    *,
    arm: str = "",
    size: int | None = None,
    steps: int | None = None,
    seed: int | None = None,
    overrides: Mapping[str, object] | None = None,
) -> RunConfig:
    """Return the config of a run from a built-in recipe or a `FILE.toml`.

    `arm` composes interventions as `-i` does, such as `"reduced-lr:peak=5e-4+no-decay"`; `size` is `hidden_size`;
    `overrides` sets fields by dotted name, such as `{"optimizer.name": "adam"}`. Raises ConfigError.
    """
    texts = [f"{field}={'none' if value is None else json.dumps(value)}" for field, value in (overrides or {}).items()]
    return normalize(
        build_config(name, size=size, steps=steps, seed=seed, overrides=texts, interventions=parse_arm(arm))
    )


def train(
    config: RunConfig, options: TrainOptions | None = None, *, name: str | None = None, on_event: OnEvent = _ignore
) -> Run:
    """Train one run, unless it has ended already, and return it; one that was stopped is resumed.

    `name` names its files, by default made from the config. A run that diverges is returned too, with
    `Run.diverged_at` set. Raises ConfigError or DataError before anything is created, StoppedBySignal where
    `options.should_stop` stopped it.
    """
    return load_run(train_to_csv(config, options or TrainOptions(), name=name, on_event=on_event))


def train_to_csv(config: RunConfig, options: TrainOptions, *, name: str | None, on_event: OnEvent) -> Path:
    """Train as `train` does and return the path of the CSV without reading it: pandas alone takes a second to load."""
    from bitnetctl.trainer.factory import train_runs

    run = resolve(normalize(config), options.runs_dir, name)
    refuse_case_collisions([run.name], options.runs_dir)
    if run.ended() is None:
        notes = long_warm_ups([run])
        for event in train_runs([run], options):
            # not before, so that what keeps a run from starting is one line; a run that is rolled back starts again
            while notes and isinstance(event, Started):
                options.log(notes.pop())
            on_event(event)
            if isinstance(event, Stopped):
                raise StoppedBySignal(f"{run.name}: the same command resumes from step {event.step:,}")
    return run.paths.csv


def sweep(
    plan: Plan | str | Iterable[RunConfig],
    options: TrainOptions | None = None,
    *,
    pack: int | None = None,
    on_event: OnEvent = _ignore,
) -> list[Run]:
    """Train the runs of a plan (a Plan, built-in name or `FILE.toml`) or of configs; return those that have rows.

    Runs that have ended are not trained again. Runs of one shape train as one program, at most `pack` together (None:
    as many as fit in memory). `options.device` may be a list such as `cuda:0,cuda:1`, a worker process for each. A run
    that fails does not stop the others, and the next call tries it again; a run without rows is warned of.
    Raises ConfigError or DataError before anything is created, StoppedBySignal where `options.should_stop` stopped it.
    """
    from bitnetctl.sweeps.executor import sweep_missing

    options = options or TrainOptions()
    if isinstance(plan, str):
        configs = plan_configs(plan, {})
    else:
        configs = plan.configs() if isinstance(plan, Plan) else [normalize_if_usable(config) for config in plan]
    runs = resolve_all(configs, options.runs_dir)
    missing = [run for run in runs if not run.has_ended()]
    for note in long_warm_ups(missing):
        options.log(note)
    if missing and sweep_missing(missing, options, pack=pack, on_event=on_event):
        raise StoppedBySignal("the sweep was stopped; called again, it resumes")
    begun = [run.paths.csv for run in runs if run.paths.csv.exists()]
    return _load(begun, [f"{run.name}: no rows" for run in runs if run.paths.csv not in begun])


def open_run(
    run: str | Path, *, runs_dir: str | Path = "runs", device: str = "cpu", step: int | None = None
) -> "TrainedRun":
    """Open a trained run, by its name in `runs_dir` or its folder or CSV, to use its weights.

    It is that of `step`, by default of the newest checkpoint: `TrainedRun.logits` maps token ids [B, T] to logits
    [B, T, V], `tokenizer` is of the library tokenizers, `weights` and `quantized` return tensors by their names in
    `transformers`. Raises ConfigError, CheckpointError or DataError that says what is missing and what to do.
    """
    from bitnetctl.inference import trained

    return trained.open_run(str(run), Path(runs_dir), device=device, step=step)


def load_runs(paths: str | Path | Iterable[str | Path], *, columns: Mapping[str, str] | None = None) -> list[Run]:
    """Read the CSVs given by files, folders and glob patterns, each with its `run.json` if there is one.

    Logs of other programs are recognised by their content; `columns` are the names in them by column, such as
    `{"Loss": "train/loss"}`. A run that has no rows yet is left out with a warning. Raises ConfigError for a path
    without CSVs, RecordError that names file and line for a damaged one.
    """
    names = [paths] if isinstance(paths, str | Path) else paths
    return _load(find_csvs([str(name) for name in names]), columns=check_map(columns or {}))


def analyze(runs: Sequence[Run], *, baseline: str | None = None, notes: Sequence[str] = ()) -> Study:
    """Analyze a set of runs: collapses, paired effects of arms, factors, agreement of metrics.

    `baseline` names the arm that the others are compared with, by default the one that all others contain. Several
    files of one run count once, with a note.
    """
    kept, doubles = distinct_runs(runs)
    copies = [f"{one.run.source}: left out, {one.reason}" for one in doubles]
    return study(kept, baseline=baseline, notes=[*notes, *copies])


def with_texts(runs: Sequence[Run], *, log: Callable[[str], None] = lambda line: None) -> list[Run]:
    """Return the runs, each that keeps weights and has not written text yet with what it writes, kept in its folder.

    `log` takes a line on the runs that cannot write, by the reason, and on text that cannot be kept in its folder.
    """
    from bitnetctl.inference.text_samples import text_of
    from bitnetctl.inference.trained import open_run
    from bitnetctl.records.samples import write_samples

    written: list[Run] = []
    reasons: dict[str, list[str]] = {}
    for run in runs:
        if run.samples is None:
            try:
                if run.manifest is None or run.external is not None:
                    raise ConfigError(f"run {run.name}: another program trained it, so its weights are not here")
                trained = open_run(str(run.path))
                samples = text_of(trained)
            except (ConfigError, CheckpointError, DataError, PluginError, RecordError, StorageError) as error:
                reasons.setdefault(str(error).removeprefix(f"run {run.name}: "), []).append(run.name)
            else:
                run = replace(run, samples=samples)
                try:
                    write_samples(trained.paths.samples, samples)
                except StorageError as error:
                    log(f"text of {run.name} is not kept: {error}")
        written.append(run)
    for reason, names in reasons.items():
        log(f"no text of {shortened(names, 2)}: {reason}")
    return written


def judge(
    runs: Sequence[Run],
    criteria: Criteria | str | Path = "sound",
    *,
    arms: Sequence[str] | None = None,
    sizes: Sequence[int] | None = None,
    seeds: Sequence[int] | None = None,
    steps: int | None = None,
    distinct_seeds: bool = False,
    strict: bool = False,
    inventory: Inventory | None = None,
) -> dict[str, Verdict]:
    """Judge the claim that training does not collapse, for each of `arms` (None: every arm among the runs).

    `criteria` is the name of a built-in set (origin, sound), a `FILE.toml`, or a loaded one. `sizes`, `seeds` and
    `steps` are those requested. Runs that were planned with these and are not among them, by their manifests and the
    files beside them, are counted: one that is missing or left out makes support impossible. Runs of unknown seed are
    one seed, unless `distinct_seeds`; with `strict`, runs of an arm may not differ in engine, precision, versions and
    device. `inventory` is what `take_inventory` found, if it is known already. Raises ConfigError.
    """
    loaded = criteria if isinstance(criteria, Criteria) else load_criteria(criteria)
    options = JudgeOptions(
        sizes=sizes, seeds=seeds, requested_steps=steps, distinct_seeds=distinct_seeds, strict=strict
    )
    found = take_inventory(runs) if inventory is None else inventory
    return judge_arms(runs, loaded, options, arms=arms, inventory=found)


def _load(csvs: Iterable[Path], notes: Sequence[str] = (), *, columns: Mapping[str, str] | None = None) -> list[Run]:
    runs, skipped = load_begun_runs(csvs, columns=columns)
    for note in (*notes, *skipped):
        warnings.warn(note, stacklevel=3)
    return runs
