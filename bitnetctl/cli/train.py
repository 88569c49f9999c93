"""`bitnetctl train`: one run."""

import contextlib
from pathlib import Path
from typing import Annotated

import typer

from bitnetctl.cli import options
from bitnetctl.cli.options import parse_on_divergence, print_json, print_lines, print_message, stdout
from bitnetctl.cli.training import note_long_warm_ups, note_other_runs, reporting
from bitnetctl.config import build_config, parse_arm, parse_config
from bitnetctl.config.load import config_text
from bitnetctl.errors import BitnetctlError, ConfigError, ExitCode, PluginError, StoppedBySignal
from bitnetctl.plugins import registry
from bitnetctl.records import RunPaths, read_manifest
from bitnetctl.records.status import final_row
from bitnetctl.signals import StopRequest
from bitnetctl.sweeps.executors.slurm import requeue_job, slurm_job
from bitnetctl.trainer.resolved import ResolvedRun, resolve
from bitnetctl.units import duration, gibibytes


def train(
    context: typer.Context,
    recipe: options.Recipe = "origin",
    size: options.Size = None,
    steps: options.Steps = None,
    seed: options.Seed = None,
    overrides: options.Set = None,
    arms: options.Arm = None,
    name: Annotated[str | None, typer.Option("--name", help="Name of the run; unset: made from the config.")] = None,
    runs_dir: options.RunsDir = Path("runs"),
    device: options.Device = "auto",
    engine: options.Engine = "auto",
    precision: options.Precision = "auto",
    eval_every: options.EvalEvery = None,
    checkpoint_every: options.CheckpointEvery = None,
    on_divergence: options.OnDivergence = "stop",
    samples: options.Samples = None,
    extend: Annotated[
        str | None,
        typer.Option(
            "--extend",
            parser=options.user_text,
            metavar="RUN",
            help="Train a finished run on, up to --steps, as a run of its own.",
        ),
    ] = None,
    resume: Annotated[
        str,
        typer.Option(
            "--resume",
            parser=options.user_text,
            metavar="auto|never|FOLDER",
            help="auto, never, or the folder of a checkpoint.",
        ),
    ] = "auto",
    requeue: options.Requeue = False,
    dry_run: options.DryRun = False,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> int:
    """Train one model on text; the same command again finds the finished run or resumes where it stopped."""
    # handle signals before the slow imports
    stop: StopRequest = context.obj
    with stop:
        from bitnetctl import api

        source = None
        if extend is not None:
            from bitnetctl.trainer.extend import extended_config

            source = RunPaths.of(extend, runs_dir)
            config = extended_config(source, _steps_to(context, source, steps))
        else:
            config = registry.normalize(
                build_config(
                    recipe,
                    size=size,
                    steps=steps,
                    seed=seed,
                    eval_every_steps=eval_every,
                    overrides=overrides or (),
                    interventions=parse_arm(options.chosen_arm(arms)),
                )
            )
        run = resolve(config, runs_dir, name)
        if dry_run:
            if run.problem is not None:
                raise PluginError(run.problem)
            code = _dry_run(run, device, as_json)
            note_long_warm_ups([run])
            return code
        note_other_runs([run])
        when_diverged = parse_on_divergence(on_divergence)
        job = slurm_job() if requeue else None
        manifest = run.ended()
        if manifest is not None:
            print_message(_already_ended(run, manifest.status, when_diverged))
        else:
            if source is not None:
                from bitnetctl.trainer.extend import begin_extension

                begin_extension(run, source)
            elif (other := _other_length(run)) is not None:
                print_message(other)
            with reporting(
                stop,
                [run],
                quiet=quiet,
                runs_dir=runs_dir,
                device=device,
                engine=engine,
                precision=precision,
                checkpoint_every=checkpoint_every,
                on_divergence=when_diverged,
                samples=samples,
                resume=resume if resume in ("auto", "never") else Path(resume),
            ) as (train_options, reporter):
                try:
                    api.train_to_csv(config, train_options, name=name, on_event=reporter.event)
                except StoppedBySignal as error:
                    reporter.log(str(error))
            manifest = run.ended()
            if manifest is None:
                if job is not None:
                    print_message(requeue_job(job))
                return ExitCode.STOPPED
    csv = run.paths.csv
    if as_json:
        print_json({"run": run.name, "status": manifest.status, "csv": str(csv), "final": final_row(csv)})
    else:
        print_lines(csv)
    return ExitCode.REFUTED if manifest.status == "diverged" else ExitCode.SUPPORTED


# what --extend takes from the run that it extends
_OF_THE_CONFIG = ("recipe", "size", "seed", "overrides", "arms", "eval_every")


def _steps_to(context: typer.Context, source: RunPaths, steps: int | None) -> int:
    """Return the steps of a run that extends another; raises ConfigError without them, and for a changed config."""
    if given := options.given_options(context, _OF_THE_CONFIG):
        raise ConfigError(f"--extend keeps the config of {source.name}; leave out {given[0]}, --steps alone changes")
    if steps is None:
        raise ConfigError(f"--extend {source.name}: say with --steps up to which step to train it")
    return steps


def _other_length(run: ResolvedRun) -> str | None:
    """Return a line for a new run that another one equals but for the number of steps, None if there is none."""
    if run.paths.folder.exists() or not run.paths.runs_dir.is_dir():
        return None
    config = run.config
    for folder in sorted(run.paths.runs_dir.glob(f"h{config.model.hidden_size}-*-s{config.seed}-*/")):
        with contextlib.suppress(BitnetctlError):
            other = parse_config(manifest.requested()) if (manifest := read_manifest(folder)) else config
            if other.steps != config.steps and other.model_copy(update={"steps": config.steps}).hash == config.hash:
                hint = f"; --extend {folder.name} would train that one on" if other.steps < config.steps else ""
                return (
                    f"{run.name}: a new run, since the schedule follows the steps; {folder.name} has "
                    f"{other.steps:,}{hint}"
                )
    return None


def _already_ended(run: ResolvedRun, status: str, when_diverged: str) -> str:
    hint = ""
    if status == "diverged" and when_diverged == "rollback":
        hint = f"; remove {run.paths.folder} and {run.paths.csv} to train it anew"
    return f"{run.name}: already {status}, nothing to train{hint}"


def _dry_run(run: ResolvedRun, device_name: str, as_json: bool) -> int:
    """Print the config, parameters, estimated memory and time."""
    from bitnetctl.engine.cost import estimate, known_vocabulary
    from bitnetctl.engine.select import choose, uncaptured_engine
    from bitnetctl.hardware import memory_available, resolve_device
    from bitnetctl.report.terminal import key_value_table

    device = resolve_device(device_name)
    vocab_size = known_vocabulary(run.effective)
    execution = choose(run.effective, vocab_size, device, custom=run.custom_quantizers)
    engine = execution.engine if run.capturable_step else uncaptured_engine(execution.engine)
    cost = estimate(run.effective, vocab_size, device, 1, execution.precision, engine)
    if as_json:
        print_json(
            {
                "run": run.name,
                "config": run.config.model_dump(mode="json"),
                "effective_config": run.effective.model_dump(mode="json"),
                "vocab_size": vocab_size,
                "parameters": cost.parameters,
                "memory_bytes": cost.memory_bytes,
                "seconds": round(cost.total_seconds, 1),
            }
        )
        return ExitCode.SUPPORTED
    free = memory_available(device)
    estimates = {
        "parameters": f"{cost.parameters:,} (vocabulary {vocab_size:,})",
        "memory": f"about {gibibytes(cost.memory_bytes)} of {gibibytes(free)} free",
        "time": f"about {duration(cost.total_seconds)} on {device} ({cost.step_seconds * 1000:.1f} ms a step)",
    }
    stdout().print(key_value_table(run.name, estimates))
    typer.echo(config_text(run.effective))
    return ExitCode.SUPPORTED
