"""The command line: parse it, run a command, turn errors into exit codes. Torch is imported only where it is needed."""

import atexit
import contextlib
import errno
import os
import sys
import threading
import time
import traceback
from typing import Annotated, NoReturn

import typer

from bitnetctl import __version__
from bitnetctl.cli import (
    analyze,
    config,
    eval as evaluating,
    export,
    generate,
    importing,
    interventions,
    library,
    power,
    sweep,
    train,
    verify,
)
from bitnetctl.cli.options import print_message
from bitnetctl.errors import (
    BitnetctlError,
    ExitCode,
    StoppedBySignal,
    StorageError,
    is_incomplete,
    is_out_of_memory,
    one_line,
)
from bitnetctl.files import cache_folder
from bitnetctl.signals import StopRequest, ignore_stops
from bitnetctl.streams import prepare_streams, redirect_to_null

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
app.command("eval")(evaluating.evaluate)
app.command("power")(power.power)
app.command("generate")(generate.generate)
app.command("export")(export.export)
app.command("import")(importing.import_)
app.add_typer(interventions.app, name="interventions")
app.add_typer(library.recipes, name="recipes")
app.add_typer(library.plans, name="plans")
app.add_typer(library.searches, name="searches")
app.add_typer(library.criteria, name="criteria")
app.add_typer(library.claims, name="claims")
app.add_typer(config.app, name="config")
_GROUPS = ("claims", "config", "criteria", "interventions", "plans", "recipes", "searches")
_TRAINING = ("train", "sweep")
_SECONDS_FOR_THREADS = 2.0


def main(stop: StopRequest | None = None) -> NoReturn:
    """Run the command line and exit with the code of its outcome."""
    prepare_streams()
    code = run(sys.argv[1:], stop)
    if code == ExitCode.STOPPED:
        # a scheduler may send the signal again while Python exits
        ignore_stops()
    try:
        sys.stdout.flush()
    except (OSError, ValueError) as error:
        code = _failed(error)
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.flush()
    _end(code)


def _end(code: int) -> NoReturn:
    """End the process, also where a thread that a plug-in or a library started would keep it for ever."""
    others = [one for one in threading.enumerate() if one is not threading.main_thread() and not one.daemon]
    deadline = time.monotonic() + _SECONDS_FOR_THREADS
    for one in others:
        one.join(max(0.0, deadline - time.monotonic()))
    if any(one.is_alive() for one in others):
        # what Python does at exit, but for waiting
        atexit._run_exitfuncs()
        os._exit(code)
    sys.exit(code)


def run(arguments: list[str], stop: StopRequest | None = None) -> int:
    """Run the command line with `arguments` and return the exit code; an error is one line on stderr.

    `stop` may be active already; `train` and `sweep` keep it, other commands restore the previous signal handlers.
    """
    _set_defaults()
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
        command = getattr(getattr(error, "ctx", None), "command_path", "bitnetctl")
        return _fail(f"{error.format_message()} (see {command} --help)", ExitCode.USAGE)
    except StoppedBySignal as error:
        print_message(error)
        return error.exit_code
    except BitnetctlError as error:
        return _fail(str(error), error.exit_code)
    except SystemExit as error:
        # typer exits with 1 for a broken pipe; any other SystemExit is a bug, also one with code 0
        if isinstance(error.__context__, OSError) and error.__context__.errno == errno.EPIPE:
            return _failed(error.__context__)
        return _fail(f"internal error: {error!r}", ExitCode.INTERNAL)
    except Exception as error:
        return _failed(error)


def _set_defaults() -> None:
    """Set environment variables that must be there before torch is loaded."""
    # 0 stands for a terminal whose width is unknown, in which rich would print nothing
    if not os.environ.get("COLUMNS", "1").strip().isdigit() or int(os.environ.get("COLUMNS", "1")) < 1:
        os.environ.pop("COLUMNS", None)
    # by default its idle threads spin for many milliseconds, and two processes that share a CPU then train up to twenty
    # times slower than they need to
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    # beside the tokens: torch would keep compiled kernels in a temporary folder, which many clusters empty after a job,
    # and asks for the name of the user, who may have none
    with contextlib.suppress(BitnetctlError):
        cache = cache_folder()
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache / "inductor"))
        os.environ.setdefault("TRITON_CACHE_DIR", str(cache / "triton"))


def _failed(error: Exception) -> int:
    """Return the exit code for an error that no command expects, after one line on stderr that says what it is."""
    # Windows has no error of its own for a pipe that nobody reads
    windows = (
        sys.platform == "win32" and isinstance(error, OSError) and (error.errno, error.filename) == (errno.EINVAL, None)
    )
    if isinstance(error, BrokenPipeError) or windows:
        # nobody reads stdout any more, so Python must not flush it at exit
        redirect_to_null(sys.stdout)
        return ExitCode.OUTPUT_CLOSED
    if os.environ.get("BITNETCTL_TRACEBACK"):
        with contextlib.suppress(OSError, ValueError):
            traceback.print_exception(error)
    if is_out_of_memory(error):
        what = f": {one_line(error)}" if str(error) else ""
        return _fail(f"out of memory{what}; lower --pack, --size or data.batch_size", ExitCode.USAGE)
    if is_incomplete(error):
        return _fail(f"cannot load a library: {one_line(error)}; is the installation complete?", ExitCode.USAGE)
    if isinstance(error, OSError) and error.errno is not None:
        # without a name it is a failed write to stdout; of files, most raise StorageError
        if error.filename is None:
            redirect_to_null(sys.stdout)
            return _fail(f"stdout: cannot write: {error.strerror}", ExitCode.USAGE)
        if StorageError("", error.errno).exit_code == ExitCode.USAGE:
            return _fail(f"{error.filename}: {error.strerror}", ExitCode.USAGE)
    hint = "BITNETCTL_TRACEBACK=1 shows where; please report it"
    return _fail(f"internal error: {type(error).__name__}: {error} ({hint})", ExitCode.INTERNAL)


def _fail(message: str, code: int) -> int:
    print_message(f"error: {one_line(message, None)}")
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
