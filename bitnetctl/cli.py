"""Parse, call, exit code. Torch and all that needs it are imported by the commands that train, not before."""

import json
import math
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from bitnetctl import __version__
from bitnetctl.errors import BitnetctlError, ConfigError, ExitCode

if TYPE_CHECKING:
    from bitnetctl.config import RunConfig
    from bitnetctl.sweep import Options

app = typer.Typer(
    name="bitnetctl",
    help="Train small ternary (BitNet b1.58) language models, watch them for collapse, try cures, judge claims.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
config_app = typer.Typer(help="Show what decides a run.", no_args_is_help=True)
app.add_typer(config_app, name="config")
_GROUPS = ("config",)

RecipeOption = Annotated[str, typer.Option("--recipe", "-r", help="Built-in recipe or FILE.toml.")]
SizeOption = Annotated[int | None, typer.Option("--size", help="hidden_size; unset: the recipe's.")]
SeedOption = Annotated[int | None, typer.Option("--seed", help="Initialisation and shuffled order.")]
StepsOption = Annotated[int | None, typer.Option("--steps", help="Training steps; unset: the recipe's.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="SECTION.FIELD=VALUE", help="Override a field of the config.")
]
RunsDirOption = Annotated[Path, typer.Option("--runs-dir", envvar="BITNETCTL_RUNS_DIR", help="Folder of the runs.")]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object to stdout and nothing else there.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Show what would be done and start nothing.")]


def main() -> None:
    """Run the command line and exit with the code of its outcome."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run the command line with `arguments`; errors end in one line on stderr. Returns the exit code."""
    # must be set before torch is loaded: by default its idle threads spin for milliseconds, and two processes that
    # share a processor then train five times slower than they need to
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    try:
        return int(app(arguments, prog_name="bitnetctl", standalone_mode=False) or 0)
    except typer.Abort:
        return _fail("interrupted", ExitCode.INTERRUPTED)
    except typer.TyperException as error:
        if not arguments or arguments[-1] in _GROUPS:
            typer.echo(error.format_message(), err=True)
            return ExitCode.USAGE
        return _fail(f"{error.format_message()} (see bitnetctl --help)", ExitCode.USAGE)
    except BitnetctlError as error:
        return _fail(str(error), error.exit_code)
    except BrokenPipeError:
        # the reader of stdout has left; nothing more may be written there, not even when Python exits
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.INTERNAL
    except Exception as error:
        if os.environ.get("BITNETCTL_TRACEBACK"):
            raise
        hint = "BITNETCTL_TRACEBACK=1 shows where; please report it"
        return _fail(f"internal error: {type(error).__name__}: {error} ({hint})", ExitCode.INTERNAL)


def _fail(message: str, code: int) -> int:
    _stderr().print(f"error: {' '.join(message.split())}", markup=False, highlight=False, soft_wrap=True)
    return int(code)


def _stderr() -> Console:
    return Console(stderr=True)


def _stdout() -> Console:
    return Console()


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"bitnetctl {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Options of every command."""


@app.command()
def train(
    recipe: RecipeOption = "origin",
    size: SizeOption = None,
    steps: StepsOption = None,
    seed: SeedOption = None,
    overrides: SetOption = None,
    name: Annotated[str | None, typer.Option("--name", help="Name of the run; unset: made from the config.")] = None,
    runs_dir: RunsDirOption = Path("runs"),
    device: DeviceOption = "auto",
    eval_every: Annotated[
        int | None, typer.Option("--eval-every", help="Steps between evaluations; unset: a twentieth.")
    ] = None,
    checkpoint_every: Annotated[
        int | None,
        typer.Option("--checkpoint-every", min=1, help="Steps between checkpoints; unset: every evaluation."),
    ] = None,
    resume: Annotated[str, typer.Option("--resume", help="auto, never, or the folder of a checkpoint.")] = "auto",
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> int:
    """Train one model on text; the same command again finds the finished run or goes on where it stopped."""
    from bitnetctl.config import build_config
    from bitnetctl.records import RunPaths
    from bitnetctl.runs import ended

    config = build_config(
        recipe, size=size, steps=steps, seed=seed, eval_every_steps=eval_every, overrides=overrides or ()
    )
    name = name or config.run_name
    paths = RunPaths(runs_dir, name)
    if dry_run:
        return _dry_run([config], [name], device, as_json)

    manifest = ended(config, runs_dir, name)
    if manifest is None:
        from bitnetctl import sweep

        options = sweep.Options(
            runs_dir=runs_dir,
            device=device,
            checkpoint_every=checkpoint_every,
            resume=resume if resume in ("auto", "never") else Path(resume),  # type: ignore[arg-type]
        )
        if not _train([config], [name], options):
            return ExitCode.STOPPED
        manifest = ended(config, runs_dir, name)
        assert manifest is not None
    else:
        _stderr().print(f"{name}: already {manifest.status}, nothing to train", highlight=False)
    if as_json:
        _print_json({"run": name, "status": manifest.status, "csv": str(paths.csv), "final": _final_row(paths.csv)})
    else:
        _stdout().print(str(paths.csv), highlight=False, soft_wrap=True)
    return ExitCode.REFUTED if manifest.status == "diverged" else ExitCode.SUPPORTED


@app.command()
def verify(
    sizes: Annotated[
        str | None, typer.Option("--sizes", help="Hidden sizes, such as 256,512; unset: the recipe's.")
    ] = None,
    steps: StepsOption = None,
    recipe: RecipeOption = "origin",
    seed: SeedOption = None,
    overrides: SetOption = None,
    runs_dir: RunsDirOption = Path("runs"),
    device: DeviceOption = "auto",
    no_train: Annotated[bool, typer.Option("--no-train", help="Judge what is there; train nothing.")] = False,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> int:
    """Train what is missing and judge the final number of unique predictions by the founding document's thresholds."""
    from bitnetctl import verdict
    from bitnetctl.config import build_config
    from bitnetctl.records import RunPaths, read
    from bitnetctl.runs import ended

    wanted = _parse_sizes(sizes) if sizes is not None else [None]
    configs = [build_config(recipe, size=size, steps=steps, seed=seed, overrides=overrides or ()) for size in wanted]
    if dry_run:
        return _dry_run(configs, [config.run_name for config in configs], device, as_json)
    missing = [config for config in configs if ended(config, runs_dir) is None]
    if missing and not no_train:
        from bitnetctl import sweep

        options = sweep.Options(runs_dir=runs_dir, device=device, keep_weights=False)
        if not _train(missing, [config.run_name for config in missing], options):
            return ExitCode.STOPPED

    thresholds = verdict.Thresholds()
    rows = []
    for config in configs:
        paths = RunPaths(runs_dir, config.run_name)
        if paths.csv.exists():
            judged = verdict.judge(read(paths.csv), config.steps, thresholds)
        else:
            judged = verdict.Verdict(outcome=verdict.Outcome.INCONCLUSIVE, reason="no run; train it first")
        rows.append((config, judged))
    outcome = verdict.overall([judged.outcome for _, judged in rows])
    if as_json:
        _print_json(
            {
                "verdict": outcome.value,
                "runs": [
                    {
                        "run": config.run_name,
                        "size": config.model.hidden_size,
                        "verdict": judged.outcome.value,
                        "reason": judged.reason,
                        "final_step": judged.final_step,
                        "final_unique": judged.final_unique,
                        "ceiling": judged.ceiling,
                    }
                    for config, judged in rows
                ],
            }
        )
    else:
        from bitnetctl import report

        _stdout().print(report.verdict_table(rows))
        _stdout().print(f"verdict: {outcome.value}", highlight=False)
    return outcome.exit_code


@config_app.command("show")
def config_show(
    recipe: RecipeOption = "origin",
    size: SizeOption = None,
    steps: StepsOption = None,
    seed: SeedOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print a config as it would run."""
    from bitnetctl.config import build_config

    config = build_config(recipe, size=size, steps=steps, seed=seed, overrides=overrides or ())
    if as_json:
        _print_json(config.model_dump(mode="json"))
    else:
        typer.echo(_config_text(config))


@config_app.command("schema")
def config_schema() -> None:
    """Print the JSON schema of a config."""
    from bitnetctl.config import RunConfig

    _print_json(RunConfig.model_json_schema())


def _train(configs: "list[RunConfig]", names: list[str], options: "Options") -> bool:
    """Train under the eyes of a reporter; False if a signal stopped it."""
    from bitnetctl import sweep
    from bitnetctl.console import make_reporter
    from bitnetctl.events import Stopped
    from bitnetctl.signals import StopRequest

    with StopRequest() as stop, make_reporter(_stderr()) as reporter:
        options = replace(options, should_stop=stop, progress=reporter.work, notice=reporter.notice)
        for event in sweep.train_runs(configs, options, names=names):
            reporter.event(event)
            if isinstance(event, Stopped):
                reporter.notice("the same command goes on from there")
                return False
    return True


def _dry_run(configs: "list[RunConfig]", names: list[str], device_name: str, as_json: bool) -> int:
    """Show configs, parameters, estimated memory and time."""
    from bitnetctl.console import facts_table
    from bitnetctl.data import vocab_size_of
    from bitnetctl.estimate import estimate
    from bitnetctl.machine import memory_available, resolve_device

    device = resolve_device(device_name)
    described = []
    for config, name in zip(configs, names, strict=True):
        vocab_size = vocab_size_of(config.data)
        if vocab_size is None:
            raise ConfigError(f"the vocabulary of {config.data.tokenizer} is not known without fetching it")
        described.append((config, name, vocab_size, estimate(config, vocab_size, device)))
    if as_json:
        _print_json(
            [
                {
                    "run": name,
                    "config": config.model_dump(mode="json"),
                    "vocab_size": vocab_size,
                    "parameters": cost.parameters,
                    "memory_bytes": cost.memory_bytes,
                    "seconds": round(cost.total_seconds, 1),
                }
                for config, name, vocab_size, cost in described
            ]
        )
        return ExitCode.SUPPORTED
    console = _stdout()
    for config, name, vocab_size, cost in described:
        facts = {
            "parameters": f"{cost.parameters:,} (vocabulary {vocab_size:,})",
            "memory": f"about {cost.memory_bytes / 2**30:.2f} GiB of {memory_available(device) / 2**30:.1f} GiB free",
            "time": f"about {_duration(cost.total_seconds)} on {device} ({cost.step_seconds * 1000:.1f} ms a step)",
        }
        console.print(facts_table(name, facts))
        typer.echo(_config_text(config))
    return ExitCode.SUPPORTED


def _config_text(config: "RunConfig") -> str:
    """Return a config as TOML-like lines; what is unset reads `none`."""
    tree = config.model_dump(mode="json")
    lines = [f"{key} = {_value_text(value)}" for key, value in tree.items() if not isinstance(value, dict)]
    for section, fields in tree.items():
        if isinstance(fields, dict):
            lines += ["", f"[{section}]"]
            lines += [f"{key} = {_value_text(value)}" for key, value in fields.items() if value is not None]
    return "\n".join(lines)


def _value_text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _final_row(csv: Path) -> dict[str, Any]:
    """Return the last row of a CSV as JSON values: null is unknown, non-finite figures are text."""
    from bitnetctl.records import NAMES, read

    records = read(csv)
    last = {name: records.value(name, len(records.frame) - 1) for name in NAMES}
    return {name: value if value is None or math.isfinite(value) else str(value) for name, value in last.items()}


def _parse_sizes(text: str) -> list[int]:
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"--sizes {text!r}: expected whole numbers such as 256,512") from None
    if len(set(sizes)) != len(sizes):
        raise ConfigError(f"--sizes {text!r}: a size is named twice")
    return sizes


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, allow_nan=False))
