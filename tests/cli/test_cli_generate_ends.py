"""How `bitnetctl generate` ends: Ctrl-C, Ctrl-D, a reader that leaves; a conversation at a real terminal."""

import contextlib
import io
import os
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest
from calling import training

from bitnetctl import cli
from bitnetctl.errors import ExitCode

pytestmark = pytest.mark.usefixtures("plain_environment")
WITHOUT_END = ["-n", "1000000", "--ignore-eos"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_text: Path, shared_cache: Path) -> Path:
    """The folder of a run."""
    folder = tmp_path_factory.mktemp("ends")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(shared_cache))
        patch.chdir(folder)
        assert cli.run(training(tiny_text, "--name", "one", "--quiet")) == ExitCode.SUPPORTED
    return folder / "runs" / "one"


class Leaving(io.StringIO):
    """A stdout that raises an error at its hundredth write."""

    def __init__(self, error: type[BaseException]) -> None:
        super().__init__()
        self._error, self._writes = error, 0

    def write(self, text: str) -> int:
        self._writes += 1
        if self._writes == 100:
            raise self._error
        return super().write(text)


def end_with(error: type[BaseException], *arguments: str | Path) -> tuple[int, str, str]:
    out, err = Leaving(error), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.run(["generate", *map(str, arguments), *WITHOUT_END])
    return code, out.getvalue(), err.getvalue()


def test_what_was_printed_stays_after_an_interrupt(run: Path) -> None:
    code, out, err = end_with(KeyboardInterrupt, run, "-p", "We")
    assert (code, err) == (ExitCode.INTERRUPTED, "error: interrupted\n")
    assert out.startswith("We")
    assert out.endswith("\n")


def test_a_reader_that_leaves_ends_it_quietly(run: Path) -> None:
    code, _, err = end_with(BrokenPipeError, run, "-p", "We")
    assert (code, err) == (ExitCode.OUTPUT_CLOSED, "")


@pytest.mark.skipif(sys.platform == "win32", reason="a terminal of POSIX")
def test_a_conversation_at_a_terminal(run: Path) -> None:
    import pty

    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "dumb", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", CONTROLLED, str(run), *WITHOUT_END],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment,
        start_new_session=True,
    )
    os.close(theirs)
    try:
        assert "Ctrl-D ends, Ctrl-C ends a continuation" in until(ours, "> ")
        for text in ("We", "Gofi"):
            os.write(ours, f"{text}\n".encode())
            # the echo of the terminal, and text after it
            assert text in until(ours, f"{text}\r\n")
            assert len(until(ours, "")) > 0
            os.write(ours, b"\x03")
            assert until(ours, "\r\n(ended)\r\n> ").endswith("\r\n(ended)\r\n> ")
        said = ""
        # Python misses a signal in the moment between the prompt and waiting for the first key
        while "interrupted" not in said and process.poll() is None:
            os.write(ours, b"\x03")
            said += until(ours, "interrupted", 2.0)
        assert said.endswith("\r\nerror: interrupted")
        assert process.wait(30) == ExitCode.INTERRUPTED
    finally:
        process.kill()
        process.wait()
        os.close(ours)


# a new session has no terminal of its own until it opens one: without it, Ctrl-C sends no signal
CONTROLLED = """
import fcntl, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from bitnetctl.__main__ import main
sys.argv[1:1] = ["generate"]
main()
"""


def until(terminal: int, end: str, seconds: float = 60.0) -> str:
    """Return what a terminal shows up to `end`, or the next it shows for an empty one."""
    shown, deadline = b"", time.monotonic() + seconds
    while not (shown and shown.decode(errors="replace").endswith(end)) and time.monotonic() < deadline:
        if select.select([terminal], [], [], 0.1)[0]:
            shown += os.read(terminal, 1 if end else 64)
    return shown.decode(errors="replace")
