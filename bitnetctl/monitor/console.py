"""Reporters of a training: a live view in a terminal, plain lines elsewhere."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from rich.console import Console

from bitnetctl.config import RunConfig
from bitnetctl.monitor.live import LiveReporter
from bitnetctl.monitor.view import REPEAT_SECONDS, RunView, ended_lines, preparation_line, row_line, started_line
from bitnetctl.trainer.events import Diverged, Evaluated, Event, Failed, Finished, RolledBack, Started, Stopped


class PlainReporter:
    """One line for each evaluation and log message; nothing is redrawn."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._pack: list[RunView] = []
        self._preparation_shown_at = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def event(self, event: Event) -> None:
        """Print a line for each event but `Progress`, `Saved` and `RolledBack`."""
        match event:
            case Started():
                self._pack = [RunView(*run) for run in zip(event.names, event.configs, strict=True)]
                for view in self._pack:
                    view.state = "training"
                self.log(started_line(event))
            case Evaluated():
                view = self._pack[event.run]
                warning = view.update(event.row)
                self.log(f"{view.name}  {row_line(event.row, view.config.steps)}")
                if warning:
                    self.log(f"warning: {warning}")
            case RolledBack():
                self._pack[event.run].state = "waiting"
            case Diverged() | Failed() | Stopped() | Finished():
                for text in ended_lines(event, self._pack):
                    self.log(text)

    def log(self, text: str) -> None:
        """Print one line."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def preparation(self, what: str, done: int, total: int | None) -> None:
        """Print the progress of preparing text, at most every two seconds."""
        now = time.monotonic()
        if now - self._preparation_shown_at >= REPEAT_SECONDS:
            self._preparation_shown_at = now
            self.log(preparation_line(what, done, total))


Reporter = LiveReporter | PlainReporter


def make_reporter(console: Console, configs: Sequence[RunConfig] = (), runs_dir: Path | None = None) -> Reporter:
    """Return a live view where `console` is a terminal that can move its cursor, else plain lines.

    With `configs` the view covers all runs of a sweep, including those that other processes train in `runs_dir`.
    """
    if console.is_terminal and not console.is_dumb_terminal:
        return LiveReporter(console, configs, runs_dir)
    return PlainReporter(console)
