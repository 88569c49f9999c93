"""`bitnetctl train`: one run."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bitnetctl.cli.options import (
    ArmOption,
    CheckpointEveryOption,
    DeviceOption,
    DryRunOption,
    EngineOption,
    EvalEveryOption,
    JsonOption,
    OnDivergenceOption,
    PrecisionOption,
    RecipeOption,
    RequeueOption,
    RunsDirOption,
    SeedOption,
    SetOption,
    SizeOption,
    StepsOption,
    duration,
    gibibytes,
    parse_on_divergence,
    print_json,
    print_message,
    stderr,
    stdout,
)
from bitnetctl.config.load import config_text
from bitnetctl.errors import ExitCode
from bitnetctl.signals import StopRequest
from bitnetctl.sweeps.executors.slurm import requeue_job, slurm_job

if TYPE_CHECKING:
    from bitnetctl.config import RunConfig

from bitnetctl.cli.training import follow, stopping
from bitnetctl.records.status import final_row


def train(
    context: typer.Context,
    recipe: RecipeOption = "origin",
    size: SizeOption = None,
    steps: StepsOption = None,
    seed: SeedOption = None,
    overrides: SetOption = None,
    arm: ArmOption = "",
    name: Annotated[str | None, typer.Option("--name", help="Name of the run; unset: made from the config.")] = None,
    runs_dir: RunsDirOption = Path("runs"),
    device: DeviceOption = "auto",
    engine: EngineOption = "auto",
    precision: PrecisionOption = "auto",
    eval_every: EvalEveryOption = None,
    checkpoint_every: CheckpointEveryOption = None,
    on_divergence: OnDivergenceOption = "stop",
    resume: Annotated[str, typer.Option("--resume", help="auto, never, or the folder of a checkpoint.")] = "auto",
    requeue: RequeueOption = False,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> int:
    """Train one model on text; the same command again finds the finished run or goes on where it stopped."""
    # before what takes long to import
    stop: StopRequest = context.obj
    with stop:
        from bitnetctl.config import build_config, parse_arm
        from bitnetctl.plugins import registry
        from bitnetctl.records import RunPaths
        from bitnetctl.records.status import ended, refuse_case_twins

        config = registry.normalize(
            build_config(
                recipe,
                size=size,
                steps=steps,
                seed=seed,
                eval_every_steps=eval_every,
                overrides=overrides or (),
                interventions=parse_arm(arm) or None,
            )
        )
        name = name or config.run_name
        paths = RunPaths(runs_dir, name)
        if dry_run:
            return _dry_run(config, name, device, as_json)

        when_diverged = parse_on_divergence(on_divergence)
        job = slurm_job() if requeue else None
        refuse_case_twins([name], runs_dir)
        manifest = ended(config, runs_dir, name)
        if manifest is None:
            from bitnetctl.monitor.console import make_reporter
            from bitnetctl.trainer import session

            with make_reporter(stderr()) as reporter:
                options = session.Options(
                    runs_dir=runs_dir,
                    device=device,
                    engine=engine,
                    precision=precision,
                    checkpoint_every=checkpoint_every,
                    on_divergence=when_diverged,
                    resume=resume if resume in ("auto", "never") else Path(resume),  # type: ignore[arg-type]
                    should_stop=stop,
                    progress=stopping(reporter.work, stop),
                    log=reporter.log,
                )
                stopped = follow(session.train_runs([config], options, names=[name]), reporter)
            if stopped:
                if job is not None:
                    print_message(requeue_job(job))
                return ExitCode.STOPPED
            manifest = ended(config, runs_dir, name)
            assert manifest is not None
        else:
            hint = f"; remove {paths.folder} and {paths.csv} to train it anew" if when_diverged == "rollback" else ""
            said = f"{name}: already {manifest.status}, nothing to train{hint if manifest.status == 'diverged' else ''}"
            print_message(said)
    if as_json:
        print_json({"run": name, "status": manifest.status, "csv": str(paths.csv), "final": final_row(paths.csv)})
    else:
        stdout().print(str(paths.csv), highlight=False, soft_wrap=True)
    return ExitCode.REFUTED if manifest.status == "diverged" else ExitCode.SUPPORTED


def _dry_run(config: "RunConfig", name: str, device_name: str, as_json: bool) -> int:
    """Show the config, parameters, estimated memory and time."""
    from bitnetctl.engine.cost import estimate, known_vocabulary
    from bitnetctl.hardware import memory_available, resolve_device
    from bitnetctl.plugins.registry import effective_config
    from bitnetctl.report.terminal import key_value_table

    device = resolve_device(device_name)
    effective = effective_config(config)
    vocab_size = known_vocabulary(effective)
    cost = estimate(effective, vocab_size, device)
    if as_json:
        print_json(
            {
                "run": name,
                "config": config.model_dump(mode="json"),
                "effective_config": effective.model_dump(mode="json"),
                "vocab_size": vocab_size,
                "parameters": cost.parameters,
                "memory_bytes": cost.memory_bytes,
                "seconds": round(cost.total_seconds, 1),
            }
        )
        return ExitCode.SUPPORTED
    free = memory_available(device)
    facts = {
        "parameters": f"{cost.parameters:,} (vocabulary {vocab_size:,})",
        "memory": f"about {gibibytes(cost.memory_bytes)} of {gibibytes(free)} free",
        "time": f"about {duration(cost.total_seconds)} on {device} ({cost.step_seconds * 1000:.1f} ms a step)",
    }
    stdout().print(key_value_table(name, facts))
    typer.echo(config_text(effective))
    return ExitCode.SUPPORTED
