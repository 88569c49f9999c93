"""Reporters of a training: a live view in a terminal, plain lines elsewhere, or only what needs attention."""

import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Self

from rich.console import Console

from bitnetctl.config import RunConfig
from bitnetctl.monitor.board import Board
from bitnetctl.monitor.lines import Line
from bitnetctl.monitor.live import LiveReporter
from bitnetctl.monitor.text import ascii_text, preparation_line
from bitnetctl.trainer.events import Event

_REPEAT_SECONDS = 2.0
"""Least time between two lines on the preparation."""

_MOST_SINGLE_RUNS = 8
"""Runs of a pack that get lines of their own; a larger pack has one line an evaluation: 64 runs would have 1,344."""


class PlainReporter:
    """Lines one below the other; nothing is redrawn.

    A run has a line for each evaluation; the runs of a large pack have one line together, with the means of the arms
    and the worst run.
    """

    def __init__(
        self, console: Console, runs: Mapping[str, RunConfig] | None = None, runs_dir: Path | None = None
    ) -> None:
        self._console = console
        self._ascii = console.options.ascii_only
        self._board = Board(lambda: time.monotonic(), runs, runs_dir, most_single_runs=_MOST_SINGLE_RUNS)
        self._preparation_shown_at = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def event(self, event: Event) -> None:
        """Print a line for each event but `Progress`, `Saved` and `RolledBack`."""
        for line in self._board.apply(event):
            self._show(line)

    def log(self, text: str) -> None:
        """Print one line."""
        shown = ascii_text(text) if self._ascii else text
        self._console.print(shown, markup=False, highlight=False, soft_wrap=True)

    def preparation(self, what: str, done: int, total: int | None) -> None:
        """Print what is being done before the first step, at most every two seconds."""
        now = time.monotonic()
        if now - self._preparation_shown_at >= _REPEAT_SECONDS:
            self._preparation_shown_at = now
            self.log(preparation_line(what, done, total))

    def _show(self, line: Line) -> None:
        self.log(f"warning: {line.text}" if line.kind == "collapse" else line.text)


class QuietReporter(PlainReporter):
    """Warnings, failures and the end only."""

    def preparation(self, what: str, done: int, total: int | None) -> None:
        """Print nothing."""

    def _show(self, line: Line) -> None:
        if line.kind in ("collapse", "failure", "stopped") or (line.kind == "finished" and not self._board.is_sweep):
            super()._show(line)


Reporter = LiveReporter | PlainReporter


def make_reporter(
    console: Console,
    runs: Mapping[str, RunConfig] | None = None,
    runs_dir: Path | None = None,
    *,
    ended: Collection[str] = (),
    should_stop: Callable[[], bool] = lambda: False,
    quiet: bool = False,
) -> Reporter:
    """Return a live view where `console` is a terminal that can move its cursor, else plain lines.

    `runs` are the effective configs of the runs by name; with several, the view covers all runs of a sweep, including
    those that other processes train in `runs_dir`. `ended` names those that have ended before. With `quiet` only
    warnings, failures and the end are printed.
    """
    if quiet:
        return QuietReporter(console, runs, runs_dir)
    if console.is_terminal and not console.is_dumb_terminal:
        return LiveReporter(console, runs, runs_dir, ended, should_stop)
    return PlainReporter(console, runs, runs_dir)
