"""A live view of runs in training, for a terminal."""

import contextlib
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from bitnetctl.config import RunConfig
from bitnetctl.errors import BitnetctlError
from bitnetctl.monitor.view import (
    REPEAT_SECONDS,
    RunView,
    ended_lines,
    format_clock,
    format_memory,
    preparation_line,
    sparkline,
    started_line,
)
from bitnetctl.records import read_manifest
from bitnetctl.report.columns import format_value
from bitnetctl.trainer.events import (
    Diverged,
    Evaluated,
    Event,
    Failed,
    Finished,
    Progress,
    RolledBack,
    Started,
    Stopped,
)

_STATES = ("training", "failed", "diverged", "stopped", "elsewhere", "finished", "waiting")


class LiveReporter:
    """A view of the runs in training that redraws itself, with permanent lines above it."""

    def __init__(self, console: Console, configs: Sequence[RunConfig] = (), runs_dir: Path | None = None) -> None:
        self._console = console
        self._runs_dir = runs_dir
        self._runs = {config.run_name: RunView(config.run_name, config) for config in configs}
        self._is_sweep = len(self._runs) > 1
        self._pack: list[RunView] = []
        self._start_step = self._step = 0
        self._started_at = time.monotonic()
        self._folder_read_at = 0.0
        self._memory_bytes = 0
        self._preparation: str | None = None
        self._live = Live(console=console, refresh_per_second=4, transient=True, get_renderable=self._render)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._live.stop()

    def event(self, event: Event) -> None:
        """Update the view."""
        match event:
            case Started():
                self._start(event)
            case Progress():
                self._progress(event)
            case Evaluated():
                warning = self._pack[event.run].update(event.row)
                if warning:
                    self._console.print(f"[yellow]⚠ {escape(warning)}[/]", highlight=False)
            case RolledBack():
                view = self._pack[event.run]
                view.state, view.step = "waiting", event.step
            case Diverged() | Failed() | Stopped() | Finished():
                self._end(event)

    def log(self, text: str) -> None:
        """Print one line above the view."""
        self._console.print(text, markup=False, highlight=False)

    def preparation(self, what: str, done: int, total: int | None) -> None:
        """Show the progress of preparing text in the view."""
        self._preparation = preparation_line(what, done, total)

    def _start(self, event: Started) -> None:
        self._preparation = None
        self._started_at = time.monotonic()
        self._start_step = self._step = event.start_step
        self._leave_pack()
        for name, config in zip(event.names, event.configs, strict=True):
            view = self._runs.setdefault(name, RunView(name, config))
            view.state, view.step = "training", event.start_step
            self._pack.append(view)
        self.log(started_line(event))

    def _progress(self, event: Progress) -> None:
        self._step, self._memory_bytes = event.step, event.memory_bytes
        for view, loss in zip(self._pack, event.losses, strict=True):
            if view.state == "training":
                view.step, view.loss = event.step, loss

    def _end(self, event: Diverged | Failed | Stopped | Finished) -> None:
        for text in ended_lines(event, self._pack):
            self.log(text)
        if isinstance(event, Failed) and event.name in self._runs:
            self._runs[event.name].state = "failed"
        # a pack continues without a run that diverged or failed
        if not isinstance(event, Diverged) and not (
            isinstance(event, Failed) and any(view.state == "training" for view in self._pack)
        ):
            self._leave_pack()

    def _leave_pack(self) -> None:
        """Forget the pack; its runs that have not ended are `waiting` again."""
        for view in self._pack:
            if view.state == "training":
                view.state = "waiting"
        self._pack = []

    def _render(self) -> Group:
        lines: list[RenderableType] = []
        if self._pack:
            lines.append(self._headline())
        elif self._preparation:
            lines.append(Text(self._preparation, style="dim"))
        if self._is_sweep:
            self._read_folder()
            lines += [self._counts(), self._run_table()]
        elif self._pack:
            lines.append(self._single_run_table(self._pack[0]))
        return Group(*lines)

    def _headline(self) -> Table:
        config = self._pack[0].config
        steps = config.steps
        elapsed = time.monotonic() - self._started_at
        done = self._step - self._start_step
        left = elapsed / done * (steps - self._step) if done else None
        stage = 1 if self._step <= config.boundary_step else 2
        grid = Table.grid(padding=(0, 1), expand=True)
        grid.add_column(ratio=1)
        grid.add_column(no_wrap=True)
        grid.add_row(
            ProgressBar(total=steps, completed=self._step),
            f"{self._step:,}/{steps:,} · stage {stage} · {format_clock(elapsed)} < {format_clock(left)} · "
            f"{format_memory(self._memory_bytes)}",
        )
        return grid

    def _single_run_table(self, view: RunView) -> Table:
        row = view.row
        cells = {
            "loss": format_value(view.loss, ".3f"),
            "held-out": format_value(row.get("HeldOutLoss"), ".3f"),
            "unique": format_value(row.get("UniquePredictions"), ",.0f"),
            "history": sparkline(view.history),
            "LR": format_value(row.get("LR"), ".2e"),
            "WD": format_value(row.get("WD"), "g"),
            "tok/s": format_value(row.get("TokensPerSecond"), ",.0f"),
        }
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        for name in cells:
            table.add_column(name, justify="left" if name == "history" else "right", no_wrap=True)
        table.add_row(*cells.values(), style=view.style)
        return table

    def _counts(self) -> Text:
        counts = Counter(view.state for view in self._runs.values())
        parts = [f"{counts[state]} {state}" for state in _STATES if counts[state]]
        return Text(f"{len(self._runs)} runs: {', '.join(parts)}", style="bold")

    def _run_table(self) -> Table:
        """Return a table of as many runs as the terminal has room for, in the order of `_STATES`."""
        most_rows = max(3, self._console.height - 5)
        ordered = sorted(self._runs.values(), key=lambda view: _STATES.index(view.state))
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", expand=True)
        table.add_column("run", ratio=1, no_wrap=True, overflow="ellipsis")
        for name in ("step", "loss", "unique"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("history", no_wrap=True, min_width=8)
        table.add_column("state", no_wrap=True)
        for view in ordered[:most_rows]:
            table.add_row(
                view.label,
                f"{view.step:,}",
                format_value(view.loss, ".3f"),
                format_value(view.row.get("UniquePredictions"), ",.0f"),
                sparkline(view.history, width=8),
                view.state,
                style=view.style,
            )
        if len(ordered) > most_rows:
            table.add_row(f"… and {len(ordered) - most_rows} more")
        return table

    def _read_folder(self) -> None:
        """Read the state of runs that other processes train."""
        now = time.monotonic()
        if self._runs_dir is None or now - self._folder_read_at < REPEAT_SECONDS:
            return
        self._folder_read_at = now
        for view in self._runs.values():
            if view.state in ("waiting", "elsewhere"):
                with contextlib.suppress(BitnetctlError):
                    manifest = read_manifest(self._runs_dir / view.name)
                    if manifest is not None:
                        view.step = manifest.steps_done
                        view.state = "elsewhere" if manifest.status == "running" else manifest.status
