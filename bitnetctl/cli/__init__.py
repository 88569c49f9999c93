"""Parse, call, exit code. Torch and all that needs it are imported by the commands that train, not before."""

import errno
import os
import sys
from pathlib import Path
from typing import Annotated

import platformdirs
import typer

from bitnetctl import __version__
from bitnetctl.cli import analyze, config, interventions, sweep, train, verify
from bitnetctl.cli.options import discard, print_message
from bitnetctl.errors import BitnetctlError, ExitCode, StoppedBySignal
from bitnetctl.signals import StopRequest, ignore_stops

app = typer.Typer(
    name="bitnetctl",
    help="Train small ternary (BitNet b1.58) language models, watch them for collapse, try cures, judge claims.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("train")(train.train)
app.command("sweep")(sweep.sweep)
app.command("verify")(verify.verify)
app.command("analyze")(analyze.analyze)
app.add_typer(interventions.app, name="interventions")
app.add_typer(config.app, name="config")
_GROUPS = ("config", "interventions")
_TRAINING = ("train", "sweep")


def main(stop: StopRequest | None = None) -> None:
    """Run the command line and exit with the code of its outcome."""
    code = run(sys.argv[1:], stop)
    if code == ExitCode.STOPPED:
        # a scheduler may repeat itself, and Python takes a moment to leave
        ignore_stops()
    if sys.stdout is not None:
        try:
            sys.stdout.flush()
        except OSError:
            discard(sys.stdout)
    sys.exit(code)


def run(arguments: list[str], stop: StopRequest | None = None) -> int:
    """Run the command line with `arguments`; errors end in one line on stderr. Returns the exit code.

    A `stop` that is active already is that of a training; with any other command it ends.
    """
    # must be set before torch is loaded: by default its idle threads spin for many milliseconds, and two processes that
    # share a CPU then train up to twenty times slower than they need to
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    # beside the tokens: torch would keep compiled kernels in a temporary folder, which many clusters empty after a job
    cache = Path(platformdirs.user_cache_dir("bitnetctl"))
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache / "inductor"))
    os.environ.setdefault("TRITON_CACHE_DIR", str(cache / "triton"))
    try:
        code = int(app(arguments, prog_name="bitnetctl", standalone_mode=False, obj=stop or StopRequest()) or 0)
        # typer makes this of a KeyboardInterrupt
        return _fail("interrupted", code) if code == ExitCode.INTERRUPTED else code
    except (typer.Abort, KeyboardInterrupt):
        return _fail("interrupted", ExitCode.INTERRUPTED)
    except typer.TyperException as error:
        if not arguments or arguments[-1] in _GROUPS:
            typer.echo(error.format_message(), err=True)
            return ExitCode.USAGE
        return _fail(f"{error.format_message()} (see bitnetctl --help)", ExitCode.USAGE)
    except StoppedBySignal as error:
        print_message(error)
        return error.exit_code
    except BitnetctlError as error:
        return _fail(str(error), error.exit_code)
    except SystemExit as error:
        # typer ends a broken pipe this way; nothing else may end the process, least of all as a success
        return ExitCode.INTERNAL if error.code == 1 else _fail(f"internal error: {error!r}", ExitCode.INTERNAL)
    except BrokenPipeError:
        # the reader of stdout has left; nothing more may be written there, not even when Python exits
        discard(sys.stdout)
        return ExitCode.INTERNAL
    except Exception as error:
        # files that cannot be written have their own error
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            discard(sys.stdout)
            return _fail(f"stdout: cannot write: {error.strerror}", ExitCode.USAGE)
        if os.environ.get("BITNETCTL_TRACEBACK"):
            raise
        hint = "BITNETCTL_TRACEBACK=1 shows where; please report it"
        return _fail(f"internal error: {type(error).__name__}: {error} ({hint})", ExitCode.INTERNAL)


def _fail(message: str, code: int) -> int:
    print_message(f"error: {' '.join(message.split())}")
    return int(code)


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"bitnetctl {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Options of every command."""
    stop: StopRequest = context.obj
    if context.invoked_subcommand not in _TRAINING:
        stop.end()
        if stop():
            raise StoppedBySignal(f"stopped by {stop.signal_name} before it began; the same command starts again")
