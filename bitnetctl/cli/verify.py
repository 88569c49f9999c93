"""`bitnetctl verify`: train what is missing, then judge."""

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bitnetctl.cli import options
from bitnetctl.cli.options import parse_pack, print_json, print_message, stdout
from bitnetctl.cli.training import show_plan, train_missing
from bitnetctl.errors import ExitCode
from bitnetctl.signals import StopRequest
from bitnetctl.sweeps.executors.slurm import requeue_job, slurm_job

if TYPE_CHECKING:
    from bitnetctl.config import RunConfig
    from bitnetctl.records import Run
    from bitnetctl.verdict import Combined, Criteria, Outcome

FileOption = Path | None


def verify(
    paths: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PATHS]", help="CSVs, folders or a bundle: judge these, train nothing."),
    ] = None,
    sizes: options.Sizes = None,
    steps: options.Steps = None,
    recipe: options.Recipe = "origin",
    arm: options.Arm = "",
    seeds: options.Seeds = None,
    overrides: options.Set = None,
    no_baseline: Annotated[bool, typer.Option("--no-baseline", help="With -i: leave out the arm without any.")] = False,
    criteria: Annotated[
        list[str] | None,
        typer.Option("--criteria", metavar="NAME|FILE", help="Built in or FILE.toml; unset: all built in."),
    ] = None,
    runs_dir: options.RunsDir = Path("runs"),
    device: options.Device = "auto",
    engine: options.Engine = "auto",
    precision: options.Precision = "auto",
    pack: options.Pack = "auto",
    no_train: Annotated[bool, typer.Option("--no-train", help="Judge what is there; train nothing.")] = False,
    report: Annotated[FileOption, typer.Option("--report", metavar="FILE.md", help="Write the hand-off.")] = None,
    bundle: Annotated[FileOption, typer.Option("--bundle", metavar="FILE.zip", help="Pack all to send back.")] = None,
    junit: Annotated[FileOption, typer.Option("--junit", metavar="FILE.xml", help="Write JUnit XML.")] = None,
    requeue: options.Requeue = False,
    dry_run: options.DryRun = False,
    as_json: options.Json = False,
) -> int:
    """Train what is missing, then judge the claim that this set-up does not collapse."""
    from bitnetctl.sweeps.plan import parse_numbers, parse_seeds
    from bitnetctl.trainer.resolved import resolve
    from bitnetctl.verdict import UNKNOWN_ARM, criteria_names, load_criteria

    judged_by = [load_criteria(name) for name in criteria or criteria_names()]
    wanted_sizes = None if sizes is None else parse_numbers(sizes, "--sizes", "whole numbers such as 256,512")
    wanted_seeds = None if seeds is None else parse_seeds(seeds)
    if paths:
        with _given_runs(paths) as runs:
            decides = _normal_arm(arm)
            present = [run.arm or UNKNOWN_ARM for run in runs]
            arms = list(dict.fromkeys([*present, *(decides or ())]))
            return _judge_and_show(
                runs,
                judged_by,
                _Request(arms=arms, decides=decides, sizes=wanted_sizes, seeds=wanted_seeds, steps=steps),
                _Outputs(report=report, bundle=bundle, junit=junit, as_json=as_json),
            )

    configs = _configs(recipe, steps, wanted_sizes, wanted_seeds, overrides or (), arm, baseline=not no_baseline)
    planned = [resolve(config, runs_dir) for config in configs]
    if dry_run:
        return show_plan(planned, device, parse_pack(pack), as_json)
    if not no_train:
        job = slurm_job() if requeue else None
        with StopRequest() as stop:
            if train_missing(
                planned,
                stop,
                pack=parse_pack(pack),
                runs_dir=runs_dir,
                device=device,
                engine=engine,
                precision=precision,
                keep_weights=False,
            ):
                if job is not None:
                    print_message(requeue_job(job))
                return ExitCode.STOPPED
    requested = _Request(
        arms=list(dict.fromkeys(config.arm for config in configs)),
        decides=[configs[-1].arm],
        sizes=list(dict.fromkeys(config.model.hidden_size for config in configs)),
        seeds=list(dict.fromkeys(config.seed for config in configs)),
        steps=configs[0].steps,
    )
    return _judge_and_show(
        _trained_runs(configs, runs_dir),
        judged_by,
        requested,
        _Outputs(report=report, bundle=bundle, junit=junit, as_json=as_json),
    )


@dataclass(frozen=True, kw_only=True)
class _Request:
    """What is to be judged; None is whatever the runs hold. `decides` are the arms that the exit code follows."""

    arms: Sequence[str] | None
    decides: Sequence[str] | None
    sizes: Sequence[int] | None
    seeds: Sequence[int] | None
    steps: int | None


@dataclass(frozen=True, kw_only=True)
class _Outputs:
    report: Path | None
    bundle: Path | None
    junit: Path | None
    as_json: bool


def _configs(
    recipe: str,
    steps: int | None,
    sizes: Sequence[int] | None,
    seeds: Sequence[int] | None,
    overrides: Sequence[str],
    arm: str,
    *,
    baseline: bool,
) -> "list[RunConfig]":
    """Return the runs of the baseline and, last, of the requested arm."""
    from bitnetctl.sweeps.plan import make_plan

    tree: dict[str, Any] = {"recipe": recipe, "steps": steps, "overrides": overrides, "arms": (arm,)}
    tree["baseline"] = baseline
    if sizes is not None:
        tree["sizes"] = sizes
    if seeds is not None:
        tree["seeds"] = seeds
    configs = make_plan(tree, "verify").configs()
    return sorted(configs, key=lambda config: config.arm != "baseline")


def _normal_arm(arm: str) -> list[str] | None:
    """Return the requested arm as runs name it, None without one."""
    if not arm:
        return None
    from bitnetctl.config import RunConfig, parse_arm
    from bitnetctl.plugins import registry

    return [registry.normalize(RunConfig(interventions=parse_arm(arm))).arm]


@contextlib.contextmanager
def _given_runs(paths: Sequence[str]) -> "Iterator[list[Run]]":
    """Yield the runs of CSVs, folders and bundles; what a bundle holds lives as long as this."""
    from bitnetctl.records import load_begun_runs
    from bitnetctl.records.bundle import read_bundle
    from bitnetctl.records.find import find_csvs

    bundles = [path for path in paths if path.lower().endswith(".zip")]
    others = [path for path in paths if path not in bundles]
    with tempfile.TemporaryDirectory(prefix="bitnetctl-") as folder:
        csvs = find_csvs(others)
        for index, path in enumerate(bundles):
            csvs += read_bundle(Path(path), Path(folder) / str(index))
        yield _with_notes(load_begun_runs(csvs))


def _trained_runs(configs: "Sequence[RunConfig]", runs_dir: Path) -> "list[Run]":
    """Return the runs of the configs that have rows, and their full-precision twins where they are there."""
    from bitnetctl.config import InterventionSpec
    from bitnetctl.records import RunPaths, load_begun_runs

    twins = [
        config.model_copy(update={"interventions": (*config.interventions, InterventionSpec(name="full-precision"))})
        for config in configs
        if all(spec.name != "full-precision" for spec in config.interventions)
    ]
    paths = [RunPaths(runs_dir, config.run_name).csv for config in (*configs, *twins)]
    return _with_notes(load_begun_runs(path for path in dict.fromkeys(paths) if path.exists()))


def _with_notes(loaded: "tuple[list[Run], list[str]]") -> "list[Run]":
    """Print the notes of loading and return the runs."""
    for note in loaded[1]:
        print_message(note)
    return loaded[0]


def _judge_and_show(
    runs: "Sequence[Run]", criteria: "Sequence[Criteria]", requested: _Request, outputs: _Outputs
) -> int:
    from bitnetctl import api, report
    from bitnetctl.files import write_atomic
    from bitnetctl.records.bundle import write_bundle
    from bitnetctl.verdict import UNKNOWN_ARM, combine, strictest

    arms = requested.arms or list(dict.fromkeys(run.arm or UNKNOWN_ARM for run in runs))
    by_criteria = [
        api.judge(runs, one, arms=arms, sizes=requested.sizes, seeds=requested.seeds, steps=requested.steps)
        for one in criteria
    ]
    judged = {arm: combine([verdicts[arm] for verdicts in by_criteria]) for arm in arms}
    outcome = strictest(judged[arm].outcome for arm in requested.decides or arms)
    tree = _json(judged, outcome, requested.decides or arms)
    if outputs.report is not None:
        write_atomic(outputs.report, report.handoff(runs, judged, outcome).encode())
    if outputs.junit is not None:
        every = [verdict for combined in judged.values() for verdict in combined.verdicts]
        write_atomic(outputs.junit, report.junit_xml(every).encode())
    if outputs.bundle is not None:
        write_bundle(outputs.bundle, runs, [(one.name, one.model_dump_json(indent=2)) for one in criteria], tree)
    if outputs.as_json:
        print_json(tree)
    else:
        _show(runs, judged, outcome, requested.decides or arms)
    for path in (outputs.report, outputs.junit, outputs.bundle):
        if path is not None:
            print_message(f"written: {path}")
    return outcome.exit_code


def _json(judged: "dict[str, Combined]", outcome: "Outcome", decides: Sequence[str]) -> dict[str, Any]:
    return {
        "verdict": outcome.value,
        "decided_by": list(decides),
        "arms": {arm: {"verdict": combined.outcome.value} for arm, combined in judged.items()},
        "disagreements": {arm: combined.disagreement for arm, combined in judged.items() if combined.disagreement},
        "verdicts": [verdict.to_json() for combined in judged.values() for verdict in combined.verdicts],
    }


def _show(runs: "Sequence[Run]", judged: "dict[str, Combined]", outcome: "Outcome", decides: Sequence[str]) -> None:
    from bitnetctl import report
    from bitnetctl.report.escape import printable
    from bitnetctl.verdict import UNKNOWN_ARM

    console = stdout()

    def line(text: str, style: str = "") -> None:
        console.print(printable(text), style=style, markup=False, highlight=False, soft_wrap=True)

    for arm, combined in judged.items():
        of_arm = [run for run in runs if (run.arm or UNKNOWN_ARM) == arm]
        if of_arm:
            console.print(report.trajectory_table(arm, of_arm))
        for verdict in combined.verdicts:
            console.print()
            console.print(report.checks_table(verdict))
            for note in verdict.notes:
                line(f"note: {note}", "dim")
        if combined.disagreement:
            line(combined.disagreement)
        console.print()
    if len(judged) > 1:
        for arm, combined in judged.items():
            line(f"{arm}: {combined.outcome.value}")
    deciding = "" if len(judged) == len(decides) else f" ({', '.join(decides)})"
    line(f"next: {report.NEXT_STEPS[outcome]}")
    line(f"verdict{deciding}: {outcome.value}", "bold")
