"""`bitnetctl sweep`: many runs."""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from bitnetctl.cli import options
from bitnetctl.cli.options import parse_on_divergence, parse_pack, print_json, print_message, stdout
from bitnetctl.cli.searching import refuse_options, run_search
from bitnetctl.cli.training import note_long_warm_ups, show_plan, train_missing
from bitnetctl.config import RunConfig, refuse_contradiction
from bitnetctl.errors import ConfigError, ExitCode, RecordError, WorkersError
from bitnetctl.records import read_manifest
from bitnetctl.records.status import final_row
from bitnetctl.signals import StopRequest
from bitnetctl.sweeps.plan import load_plan, make_plan, parse_grid, plan_configs, varied_fields
from bitnetctl.trainer.resolved import ResolvedRun, resolve_all

_EVAL_EVERY = "probe.eval_every_steps"


def sweep(
    context: typer.Context,
    plan: Annotated[
        str | None,
        typer.Option(
            "--plan",
            parser=options.user_text,
            metavar="NAME|FILE",
            help="Built-in plan or FILE.toml; other options change it.",
        ),
    ] = None,
    search: Annotated[
        str | None,
        typer.Option(
            "--search",
            parser=options.user_text,
            metavar="NAME|FILE",
            help="Find settings by successive halving: built-in search or FILE.toml.",
        ),
    ] = None,
    recipe: options.OptionalRecipe = None,
    sizes: options.Sizes = None,
    arms: options.Arms = None,
    seeds: options.Seeds = None,
    seed: options.EachSeed = None,
    steps: options.Steps = None,
    overrides: options.Set = None,
    grid: Annotated[
        list[str] | None,
        typer.Option(
            "--grid", metavar="SECTION.FIELD=VALUES", help="Train with each of several values; may be repeated."
        ),
    ] = None,
    no_baseline: Annotated[bool, typer.Option("--no-baseline", help="Do not add the baseline.")] = False,
    pack: options.Pack = "auto",
    runs_dir: options.RunsDir = Path("runs"),
    device: Annotated[
        str, typer.Option("--device", help="auto, cpu, cuda, or a list such as cuda:0,cuda:1: one worker process each.")
    ] = "auto",
    engine: options.Engine = "auto",
    precision: options.Precision = "auto",
    eval_every: options.EvalEvery = None,
    checkpoint_every: options.CheckpointEvery = None,
    on_divergence: options.OnDivergence = "stop",
    keep_weights: options.KeepWeights = False,
    samples: options.Samples = None,
    configs_file: Annotated[
        Path | None, typer.Option("--configs", parser=options.user_path, hidden=True, help="Runs for a worker.")
    ] = None,
    requeue: options.Requeue = False,
    dry_run: options.DryRun = False,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> int:
    """Train a grid or a plan, many runs as one program; may be started twice on one folder, and again after a stop."""
    # handle signals before the slow imports
    stop: StopRequest = context.obj
    with stop:
        training: dict[str, Any] = {
            "pack": parse_pack(pack),
            "requeue": requeue,
            "runs_dir": runs_dir,
            "quiet": quiet,
            "device": device,
            "engine": engine,
            "precision": precision,
            "checkpoint_every": checkpoint_every,
            "on_divergence": parse_on_divergence(on_divergence),
            "keep_weights": keep_weights,
            "samples": samples,
        }
        for text in overrides or ():
            refuse_contradiction(text, {_EVAL_EVERY: eval_every})
        evaluations = [] if eval_every is None else [f"{_EVAL_EVERY}={eval_every}"]
        every_run = {
            "recipe": recipe,
            "seeds": options.chosen_seeds(seeds, seed),
            "overrides": [*(overrides or ()), *evaluations],
        }
        if search is not None:
            refuse_options(plan=plan, sizes=sizes, intervention=arms, steps=steps, grid=grid, no_baseline=no_baseline)
            return run_search(search, _given(every_run), stop, dry_run=dry_run, as_json=as_json, **training)
        workers = 1
        if configs_file is not None:
            from bitnetctl.sweeps.executors.local import read_work

            runs, workers = read_work(configs_file, runs_dir)
        else:
            of_grid = parse_grid(grid) if grid else None
            if eval_every is not None:
                _refuse_beside_grid(eval_every, plan, of_grid or {})
            configs = _plan_configs(
                plan,
                arms,
                baseline=not no_baseline,
                sizes=options.chosen_sizes(sizes),
                steps=steps,
                grid=of_grid,
                **every_run,
            )
            runs = resolve_all(configs, runs_dir)
        if dry_run:
            code = show_plan(runs, device, training["pack"], as_json)
            note_long_warm_ups(runs)
            return code
        # of the runs of a worker its parent has said it
        if configs_file is None:
            note_long_warm_ups(runs)
        try:
            stopped = train_missing(runs, stop, workers=workers, **training)
        except WorkersError:
            _show(runs, as_json)
            raise
        if stopped:
            # the terminal may be gone; the runs are saved and the exit code says so
            with contextlib.suppress(OSError, SystemExit):
                _show(runs, as_json)
            return ExitCode.STOPPED
    code = _show(runs, as_json)
    # how the runs ended is for the parent to say, which sees them too: a worker has failed where it could not go on
    return ExitCode.SUPPORTED if configs_file is not None else code


def _show(runs: Sequence[ResolvedRun], as_json: bool) -> ExitCode:
    """Print the state of every run; return the exit code that follows from them."""
    varied = varied_fields([run.config for run in runs])
    rows = [_row(run) | ({"varied": fields} if fields else {}) for run, fields in zip(runs, varied, strict=True)]
    if as_json:
        print_json({"runs": rows})
    else:
        from bitnetctl.report import sweep_table

        stdout().print(sweep_table(rows))
    statuses = {row["status"] for row in rows}
    # failed, damaged or missing, or `running` because its worker died
    if any(row["status"] not in ("finished", "diverged") and not row["is_fault_of_plugin"] for row in rows):
        return ExitCode.INTERNAL
    if "failed" in statuses:
        for message in dict.fromkeys(row["message"] for row in rows if row["is_fault_of_plugin"]):
            print_message(f"error: {message}")
        return ExitCode.USAGE
    return ExitCode.REFUTED if "diverged" in statuses else ExitCode.SUPPORTED


def _row(run: ResolvedRun) -> dict[str, Any]:
    row = {"run": run.name, "size": run.config.model.hidden_size, "arm": run.config.arm, "seed": run.config.seed}
    try:
        final = None if run.ended() is None else final_row(run.paths.csv)
        manifest = read_manifest(run.paths.folder)
    except RecordError as error:
        return {**row, "status": "damaged", "message": str(error), "is_fault_of_plugin": False, "final": None}
    status, message = ("missing", None) if manifest is None else (manifest.status, manifest.message)
    at_fault = manifest is not None and manifest.is_fault_of_plugin
    return {**row, "status": status, "message": message, "is_fault_of_plugin": at_fault, "final": final}


def _refuse_beside_grid(eval_every: int, plan: str | None, grid: Mapping[str, Any]) -> None:
    """Raise ConfigError for --eval-every where a grid, given or that of the plan, has values of the same field."""
    for source, fields in (("--grid", grid), (f"the grid of plan {plan}:", load_plan(plan, {}).grid if plan else {})):
        if _EVAL_EVERY in fields:
            raise ConfigError(f"--eval-every {eval_every}: no effect beside {source} {_EVAL_EVERY}; take one of them")


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _plan_configs(plan: str | None, arms: Sequence[str] | None, *, baseline: bool, **given: Any) -> list[RunConfig]:
    """Return the runs of a plan with the fields `given` that are not None, or of these alone."""
    changes = _given(given)
    if arms:
        changes |= {"arms": tuple(arms), "factors": {}, "baseline": True}
    if not baseline:
        changes["baseline"] = False
    configs = plan_configs(plan, changes) if plan is not None else make_plan(changes).configs()
    if not configs:
        raise ConfigError("the sweep has no runs; give an arm with -i, or leave out --no-baseline")
    return configs
