"""A live view of runs in training, for a terminal."""

import threading
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Self

from rich.console import Console, Group
from rich.control import Control
from rich.live import Live
from rich.segment import ControlType
from rich.text import Text

from bitnetctl.config import RunConfig
from bitnetctl.monitor.board import Board
from bitnetctl.monitor.curves import Curves
from bitnetctl.monitor.lines import Line
from bitnetctl.monitor.screen import frame
from bitnetctl.monitor.text import ascii_text, preparation_line
from bitnetctl.trainer.events import Event

_LEAST_SECONDS = 0.25
"""Least time between two frames."""

_COST_FRACTION = 0.005
"""Fraction of one CPU's time that frames, and as much again that reading the folder may take."""

_READ_SECONDS = 0.02
_LEAST_READ_SECONDS = 2.0


class LiveReporter:
    """A view of the runs in training that redraws itself, with permanent lines above it.

    `runs` are the effective configs of all runs of a sweep by name, including those that other processes train in
    `runs_dir`; `ended` names those that have ended before.
    """

    def __init__(
        self,
        console: Console,
        runs: Mapping[str, RunConfig] | None = None,
        runs_dir: Path | None = None,
        ended: Collection[str] = (),
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self._console = console
        self._should_stop = should_stop
        # looked up at each call, so that a test can move the clock
        self._board = Board(lambda: time.monotonic(), runs, runs_dir, ended, most_single_runs=1)
        self._curves = Curves(color=console.color_system is not None and not console.no_color)
        self._ascii = console.options.ascii_only
        self._lock = threading.Lock()
        self._frame: list[Text] = []
        self._drawn_width = console.width
        self._read_after = 0.0
        self._live = Live(console=console, auto_refresh=False, transient=True, get_renderable=self._render)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._redraw, name="live view", daemon=True)

    def __enter__(self) -> Self:
        self._live.start(refresh=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        self._thread.join()
        self._live.stop()

    def event(self, event: Event) -> None:
        """Update the view; print what is to stay above it."""
        with self._lock:
            lines = self._board.apply(event)
        # not while the lock is held: printing takes that of the view, under which a frame takes this one
        for line in lines:
            self._print(line)

    def log(self, text: str) -> None:
        """Print one line above the view."""
        self._console.print(self._shown(text), markup=False, highlight=False)

    def preparation(self, what: str, done: int, total: int | None) -> None:
        """Show what is being done before the first step in the view."""
        with self._lock:
            self._board.prepare(preparation_line(what, done, total))

    def _print(self, line: Line) -> None:
        match line.kind:
            case "evaluation":
                pass
            case "collapse":
                self._console.print(Text(self._shown(f"⚠ {line.text}"), style="yellow"))
            case "failure":
                self._console.print(Text(self._shown(line.text), style="red"))
            case _:
                self.log(line.text)

    def _shown(self, text: str) -> str:
        return ascii_text(text) if self._ascii else text

    def _redraw(self) -> None:
        """Draw frames until the end, as often as their cost allows."""
        pause = _LEAST_SECONDS
        while not self._done.wait(pause):
            before = time.thread_time()
            self._undo_reflow()
            self._live.refresh()
            self._read_folder()
            pause = max(_LEAST_SECONDS, (time.thread_time() - before) / _COST_FRACTION)

    def _render(self) -> Group:
        with self._lock:
            size = self._console.size
            lines = frame(self._board, size.width, size.height, self._curves, self._should_stop())
        if self._ascii:
            for line in lines:
                line.plain = ascii_text(line.plain)
        self._frame, self._drawn_width = lines, size.width
        return Group(*lines)

    def _read_folder(self) -> None:
        """Read what other processes write, for a small fraction of the time."""
        now = time.monotonic()
        if now < self._read_after:
            return
        before = time.thread_time()
        with self._lock:
            self._board.read_folder(_READ_SECONDS)
        spent = time.thread_time() - before
        self._read_after = now + max(_LEAST_READ_SECONDS, spent / _COST_FRACTION)

    def _undo_reflow(self) -> None:
        """Clear the further lines that the last frame takes since the terminal became narrower.

        Terminals wrap what no longer fits; the view goes up as many lines only as it has drawn.
        """
        width = self._console.size.width
        if width >= self._drawn_width or width <= 0:
            return
        further = sum((max(1, line.cell_len) - 1) // width for line in self._frame)
        up = ((ControlType.ERASE_IN_LINE, 2), (ControlType.CURSOR_UP, 1))
        self._console.control(Control(ControlType.CARRIAGE_RETURN, *up * further))
        self._drawn_width = width
