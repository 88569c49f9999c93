"""The live view of a whole sweep, in which runs fail, diverge, finish and resume."""

import contextlib
import io
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from calling import Done
from rich.console import Console

from bitnetctl.config import RunConfig
from bitnetctl.errors import ExitCode
from bitnetctl.monitor import console as monitor_console
from bitnetctl.monitor.live import LiveReporter

Sweep = Callable[..., Done]
DIVERGES = "reduced-lr:factor=1e30"
pytestmark = pytest.mark.usefixtures("wide_terminal", "known_speed")


@pytest.fixture
def reporters(monkeypatch: pytest.MonkeyPatch) -> list[LiveReporter]:
    """Live views on a terminal in memory, one for each command."""
    made: list[LiveReporter] = []

    @contextlib.contextmanager
    def make(ignored: Console, runs: Mapping[str, RunConfig], runs_dir: Path, **options: Any) -> Iterator[LiveReporter]:
        assert not options.pop("quiet")
        console = Console(file=io.StringIO(), width=80, height=24, force_terminal=True, color_system="standard")
        with LiveReporter(console, runs, runs_dir, **options) as reporter:
            made.append(reporter)
            yield reporter

    monkeypatch.setattr(monitor_console, "make_reporter", make)
    return made


@pytest.mark.usefixtures("third_party")
def test_the_live_view_follows_a_whole_sweep(sweep_command: Sweep, reporters: list[LiveReporter]) -> None:
    done = sweep_command("-i", "fails", "-i", DIVERGES, "-i", "no-decay", "--pack", "4", "--json")
    assert done.code == ExitCode.USAGE
    (reporter,) = reporters
    assert reporter._board.counts() == {"failed": 1, "diverged": 1, "finished": 2}
    done_seconds, seconds = reporter._board.work()
    assert done_seconds == pytest.approx(seconds)
    assert reporter._frame[1].plain.endswith("2 done · 1 diverged · 1 failed · 0 training · 0 waiting")


def test_runs_that_are_there_already_count_as_done(sweep_command: Sweep, reporters: list[LiveReporter]) -> None:
    assert sweep_command("--seeds", "1").code == ExitCode.SUPPORTED
    assert sweep_command("--seeds", "3").code == ExitCode.SUPPORTED
    first = reporters[1]._board
    assert first.counts() == {"finished": 3}
    # what was there already was no work of this command
    assert set(first._planned) == {name for name, view in first.runs.items() if view.config.seed > 0}
