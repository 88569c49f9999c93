"""The process ends, with the code of its command, whatever runs beside it."""

import subprocess
import sys

import pytest

from bitnetctl import cli

_PROGRAM = """
import sys, threading, time
from bitnetctl import cli
cli._SECONDS_FOR_THREADS = 0.1
threading.Thread(target=time.sleep, args=(1000,)).start()
sys.argv = ["bitnetctl", "config", "show", "--recipe", "nowhere"]
cli.main()
"""


def test_a_thread_that_goes_on_does_not_keep_the_process() -> None:
    """As a plug-in or a library may start one; the exit code and the output stay those of the command."""
    done = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "nowhere" in done.stderr


@pytest.mark.parametrize("columns", ["0", "-5", "abc", ""])
def test_a_width_that_is_none_hides_nothing(
    columns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A terminal of unknown width says 0."""
    monkeypatch.setenv("COLUMNS", columns)
    assert cli.run(["interventions", "list"], None) == 0
    assert "decoupled-decay" in capsys.readouterr().out
