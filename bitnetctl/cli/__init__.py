"""The command line: parse it, run a command, turn errors into exit codes. Torch is imported only where it is needed."""

import errno
import os
import sys
from pathlib import Path
from typing import Annotated

import platformdirs
import typer

from bitnetctl import __version__
from bitnetctl.cli import analyze, config, interventions, sweep, train, verify
from bitnetctl.cli.options import print_message, redirect_to_null
from bitnetctl.errors import BitnetctlError, ExitCode, StoppedBySignal
from bitnetctl.signals import StopRequest, ignore_stops

app = typer.Typer(
    name="bitnetctl",
    help="Train small ternary (BitNet b1.58) language models, detect collapse, test interventions, judge claims.",
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
        # a scheduler may send the signal again while Python exits
        ignore_stops()
    if sys.stdout is not None:
        try:
            sys.stdout.flush()
        except OSError:
            redirect_to_null(sys.stdout)
    sys.exit(code)


def run(arguments: list[str], stop: StopRequest | None = None) -> int:
    """Run the command line with `arguments` and return the exit code; an error is one line on stderr.

    `stop` may be active already; `train` and `sweep` keep it, other commands restore the previous signal handlers.
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
        # typer turns a KeyboardInterrupt into this code
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
        # typer exits with 1 for a broken pipe; any other SystemExit is a bug, also one with code 0
        return ExitCode.INTERNAL if error.code == 1 else _fail(f"internal error: {error!r}", ExitCode.INTERNAL)
    except BrokenPipeError:
        # nobody reads stdout any more, so Python must not flush it at exit
        redirect_to_null(sys.stdout)
        return ExitCode.INTERNAL
    except Exception as error:
        # writing to stdout failed; other files raise StorageError
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            redirect_to_null(sys.stdout)
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
