"""0, 1, 4 and 5 are verdicts: no fault of Python, a library or the machine may end in one of them."""

import errno
import io
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
from calling import Done, call, training

from bitnetctl.errors import ExitCode, is_incomplete, is_out_of_memory
from bitnetctl.signals import StopRequest

pytestmark = pytest.mark.usefixtures("plain_environment")
COMMAND = [sys.executable, "-m", "bitnetctl"]

# what replaces a module, as Python finds it before the real one
BROKEN = {
    "missing": ("typer", "raise ModuleNotFoundError('No module named typer', name='typer')", ExitCode.USAGE),
    "a library": ("typer", "raise OSError('libx.so.1: cannot open shared object file')", ExitCode.USAGE),
    "syntax": ("typer", "def", ExitCode.USAGE),
    "memory": ("typer", "raise MemoryError", ExitCode.USAGE),
    "recursion": ("typer", "raise RecursionError", ExitCode.INTERNAL),
    "exit": ("typer", "raise SystemExit(0)", ExitCode.INTERNAL),
    "interrupt": ("typer", "raise KeyboardInterrupt", ExitCode.INTERRUPTED),
    "torch missing": ("torch", "raise ModuleNotFoundError('No module named torch', name='torch')", ExitCode.USAGE),
    "torch broken": ("torch", "raise OSError('libgomp.so.1: cannot open shared object file')", ExitCode.USAGE),
    "numpy broken": ("numpy", "raise ImportError('importing the C-extensions failed')", ExitCode.USAGE),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_library(tmp_path: Path, name: str) -> None:
    module, code, expected = BROKEN[name]
    (tmp_path / f"{module}.py").write_text(code, encoding="utf-8")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    # each loads numpy and torch
    command = [*COMMAND, "train", "--recipe", "quick", "--device", "cpu", "--dry-run"]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert (done.returncode, done.stdout) == (expected, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_warnings_that_are_errors_and_a_python_without_assertions() -> None:
    for flags in (["-W", "error"], ["-OO"]):
        command = [sys.executable, *flags, "-m", "bitnetctl", "config", "show"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (ExitCode.SUPPORTED, "")


@pytest.mark.skipif(sys.platform == "win32", reason="a shell of POSIX")
@pytest.mark.parametrize("arguments", ["--help", "config schema", "config show --json", "interventions list --json"])
def test_a_reader_that_leaves_ends_a_command_quietly(arguments: str) -> None:
    # a pipe whose reader is gone before anything is written
    script = f"{{ sleep 0.1; {shlex.join(COMMAND)} {arguments}; echo $? >&2; }} | true"
    done = subprocess.run(["/bin/sh", "-c", script], capture_output=True, text=True, check=False)
    assert done.stderr == f"{int(ExitCode.OUTPUT_CLOSED)}\n"


def test_an_output_that_fails_at_the_end_is_no_success(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from bitnetctl import cli

    class Full(io.StringIO):
        """A stream that keeps what is written until it is flushed."""

        def flush(self) -> NoReturn:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cli, "run", lambda arguments, stop: 0)
    monkeypatch.setattr(sys, "stdout", Full())
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == ExitCode.USAGE


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyboardInterrupt(), ExitCode.INTERRUPTED, "error: interrupted\n"),
        (ValueError("two\nlines"), ExitCode.INTERNAL, "error: internal error: ValueError: two lines\n"),
    ],
)
def test_an_error_outside_of_any_command(
    error: BaseException, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from bitnetctl import __main__, cli

    def fail(stop: StopRequest) -> NoReturn:
        stop.end()
        raise error

    monkeypatch.setattr(cli, "main", fail)
    monkeypatch.setattr("bitnetctl.streams.prepare_streams", lambda: None)
    with pytest.raises(SystemExit) as caught:
        __main__.main()
    assert (caught.value.code, capsys.readouterr().err) == (code, said)


FAULTS: dict[str, tuple[Callable[[], BaseException], int, str]] = {
    "memory": (MemoryError, ExitCode.USAGE, "error: out of memory; "),
    "memory of torch": (
        lambda: RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes"),
        ExitCode.USAGE,
        "error: out of memory: DefaultCPUAllocator",
    ),
    "C++": (lambda: RuntimeError("std::bad_alloc"), ExitCode.USAGE, "error: out of memory"),
    "fork": (lambda: OSError(errno.ENOMEM, "Cannot allocate memory"), ExitCode.USAGE, "error: out of memory"),
    "recursion": (lambda: RecursionError("too deep"), ExitCode.INTERNAL, "error: internal error: RecursionError"),
    "files": (
        lambda: OSError(errno.EMFILE, "Too many open files", "x.csv"),
        ExitCode.USAGE,
        "error: x.csv: Too many open files",
    ),
    "stdout": (lambda: OSError(errno.EIO, "Input/output error"), ExitCode.USAGE, "error: stdout: cannot write: Input"),
    "disk": (lambda: OSError(errno.EIO, "Input/output error", "x"), ExitCode.INTERNAL, "error: internal error: OSErr"),
    "own import": (
        lambda: ImportError("cannot import name", name="bitnetctl.x"),
        ExitCode.INTERNAL,
        "error: internal error: ImportError",
    ),
    "exit": (lambda: SystemExit(1), ExitCode.INTERNAL, "error: internal error: SystemExit(1)"),
}


@pytest.mark.parametrize("traceback", [False, True])
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_within_a_command(
    tmp_path: Path, tiny_text: Path, name: str, traceback: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, code, message = FAULTS[name]

    def fail(*arguments: object, **named: object) -> NoReturn:
        raise make()

    monkeypatch.setattr("bitnetctl.data.prepare", fail)
    if traceback:
        monkeypatch.setenv("BITNETCTL_TRACEBACK", "1")
    done = call(*training(tiny_text, "--runs-dir", tmp_path / "runs"))
    assert (done.code, done.out) == (code, "")
    assert done.err.splitlines()[-1].startswith(message)
    assert traceback or done.err.count("\n") == 1


def test_which_errors_are_what() -> None:
    assert not is_out_of_memory(RuntimeError("shapes differ"))
    assert not is_incomplete(OSError(errno.ENOENT, "No such file"))
    assert not is_incomplete(ValueError("shared object"))


def test_a_runs_folder_that_is_a_file_is_refused_at_once(tmp_path: Path, tiny_text: Path) -> None:
    path = tmp_path / "f"
    path.touch()
    refused = Done(ExitCode.USAGE, "", f"error: --runs-dir {path}: is a file, not a folder\n")
    for command in (training(tiny_text), ["sweep"], ["verify", "--no-train"]):
        assert call(*command, "--runs-dir", path) == refused
