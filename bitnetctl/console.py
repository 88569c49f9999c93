"""What a person sees while runs train: a live view in a terminal, plain lines elsewhere. All of it on stderr."""

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from bitnetctl import analysis
from bitnetctl.config import RunConfig
from bitnetctl.events import Diverged, Evaluated, Event, Finished, Progress, Started, Stopped
from bitnetctl.records import Row

_SPARKS = "▁▂▃▄▅▆▇█"
_REPEAT_SECONDS = 2.0


class Reporter(Protocol):
    """Follows the events of a training."""

    def event(self, event: Event) -> None:
        """Show what happened."""

    def notice(self, text: str) -> None:
        """Show one line that stays."""

    def work(self, what: str, done: int, total: int | None) -> None:
        """Show how far a long preparation is."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def make_reporter(console: Console) -> Reporter:
    """Return a live view where `console` is a terminal that can move its cursor, else plain lines."""
    return LiveReporter(console) if console.is_terminal and not console.is_dumb_terminal else PlainReporter(console)


class _RunView:
    """What is known of one run in training."""

    def __init__(self, name: str, config: RunConfig) -> None:
        self.name = name
        self.config = config
        self.row: Row = {}
        self.history: list[float] = []
        self.state = "training"
        self.collapsed_since: int | None = None

    def update(self, row: Row) -> str | None:
        """Take a new row; return a warning when a collapse begins."""
        self.row = row
        unique = analysis.known(row, "UniquePredictions")
        if unique is not None:
            self.history.append(unique)
        step = int(row["Step"] or 0)
        reason = analysis.collapse(row) if step > self.config.schedule.warmup_steps else None
        if reason is None:
            self.collapsed_since = None
            return None
        if self.collapsed_since is None:
            self.collapsed_since = step
            return f"{self.name}: collapse since step {step:,}: {reason}"
        return None


class PlainReporter:
    """One line for each evaluation and notice; nothing rewrites itself."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._runs: list[_RunView] = []
        self._work_shown = 0.0
        self._started = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def event(self, event: Event) -> None:
        """Print a line where there is something to say."""
        match event:
            case Started():
                self._runs = [_RunView(*run) for run in zip(event.names, event.configs, strict=True)]
                for text in started_lines(event):
                    self.notice(text)
            case Evaluated():
                view = self._runs[event.run]
                warning = view.update(event.row)
                self.notice(f"{view.name}  {row_line(event.row, view.config.steps)}")
                if warning:
                    self.notice(f"warning: {warning}")
            case Diverged() | Stopped() | Finished():
                for text in ended_lines(event, self._runs):
                    self.notice(text)

    def notice(self, text: str) -> None:
        """Print one line."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def work(self, what: str, done: int, total: int | None) -> None:
        """Print a line every two seconds."""
        now = time.monotonic()
        if now - max(self._work_shown, self._started) >= _REPEAT_SECONDS:
            self._work_shown = now
            self.notice(f"{what}: {_amount(done, total)}")


class LiveReporter:
    """A view of the pack in training that rewrites itself, with lasting lines above it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._runs: list[_RunView] = []
        self._started: Started | None = None
        self._begun = 0.0
        self._step = 0
        self._losses: list[float] = []
        self._memory_bytes = 0
        self._work: str | None = None
        self._live = Live(console=console, refresh_per_second=8, transient=True, get_renderable=self._render)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def event(self, event: Event) -> None:
        """Take what happened into the view."""
        match event:
            case Started():
                self._work = None
                self._started = event
                self._begun, self._step = time.monotonic(), event.start_step
                self._runs = [_RunView(*run) for run in zip(event.names, event.configs, strict=True)]
                for text in started_lines(event):
                    self.notice(text)
            case Progress():
                self._step, self._losses = event.step, list(event.losses)
                self._memory_bytes = event.memory_bytes
            case Evaluated():
                view = self._runs[event.run]
                warning = view.update(event.row)
                if warning:
                    self._console.print(f"[yellow]⚠ {escape(warning)}[/]", highlight=False)
            case Diverged() | Stopped() | Finished():
                for text in ended_lines(event, self._runs):
                    self.notice(text)
                if not isinstance(event, Diverged):
                    self._started = None

    def notice(self, text: str) -> None:
        """Print one line above the view."""
        self._console.print(text, markup=False, highlight=False)

    def work(self, what: str, done: int, total: int | None) -> None:
        """Show the preparation in the view."""
        self._work = f"{what}: {_amount(done, total)}"

    def _render(self) -> Group:
        if self._started is None:
            return Group(Text(self._work, style="dim")) if self._work else Group()
        return Group(self._headline(), *self._figures())

    def _headline(self) -> Table:
        assert self._started is not None
        steps = self._runs[0].config.steps
        elapsed = time.monotonic() - self._begun
        done = self._step - self._started.start_step
        left = elapsed / done * (steps - self._step) if done else None
        stage = 1 if self._step <= self._runs[0].config.boundary_step else 2
        grid = Table.grid(padding=(0, 1), expand=True)
        grid.add_column(ratio=1)
        grid.add_column(no_wrap=True)
        grid.add_row(
            ProgressBar(total=steps, completed=self._step),
            f"{self._step:,}/{steps:,} · stage {stage} · {_clock(elapsed)} < {_clock(left)} · "
            f"{_memory(self._memory_bytes)}",
        )
        return grid

    def _figures(self) -> list[Table]:
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        for name in ("loss", "held-out", "unique", "history", "LR", "WD", "tok/s"):
            table.add_column(name, justify="left" if name == "history" else "right", no_wrap=True)
        if len(self._runs) > 1:
            table.add_column("run", overflow="ellipsis", no_wrap=True)
        for run, view in enumerate(self._runs):
            row = view.row
            loss = self._losses[run] if run < len(self._losses) else row.get("Loss")
            style = "red" if view.state == "diverged" else "yellow" if view.collapsed_since is not None else ""
            cells = [
                _figure(loss, ".3f"),
                _figure(row.get("HeldOutLoss"), ".3f"),
                _figure(row.get("UniquePredictions"), ",.0f"),
                sparkline(view.history),
                _figure(row.get("LR"), ".2e"),
                _figure(row.get("WD"), "g"),
                _figure(row.get("TokensPerSecond"), ",.0f"),
            ]
            table.add_row(*cells, *([view.name] if len(self._runs) > 1 else []), style=style)
        return [table]


def started_lines(event: Started) -> list[str]:
    """Say what begins."""
    where = f"{event.num_parameters:,} parameters on {event.device}"
    resumed = f", resumed after step {event.start_step:,}" if event.start_step else ""
    if len(event.names) == 1:
        return [f"{event.names[0]}: {event.configs[0].steps:,} steps, {where}{resumed}"]
    return [f"pack of {len(event.names)}: {event.configs[0].steps:,} steps, {where} each{resumed}"]


def ended_lines(event: Diverged | Stopped | Finished, runs: list[_RunView]) -> list[str]:
    """Say how a run or a pack ended; marks the views."""
    match event:
        case Diverged():
            runs[event.run].state = "diverged"
            return [f"{runs[event.run].name}: diverged at step {event.step:,}; it is not trained any further"]
        case Stopped():
            return [f"{view.name}: stopped at step {event.step:,}, checkpoint saved" for view in runs]
        case Finished():
            return [f"{view.name}: {_outcome(view)}" for view in runs if view.state != "diverged"]


def row_line(row: Row, steps: int) -> str:
    """Return an evaluation as one line of text."""
    parts = [
        f"step {int(row['Step'] or 0):>{len(str(steps))}}/{steps}",
        f"loss {_figure(row.get('Loss'), '.4f')}",
        f"held-out {_figure(row.get('HeldOutLoss'), '.4f')}",
        f"unique {_figure(row.get('UniquePredictions'), '.0f')}/{_figure(row.get('ProbePositions'), '.0f')}",
        f"lr {_figure(row.get('LR'), '.3e')}",
        f"wd {_figure(row.get('WD'), 'g')}",
        f"{_figure(row.get('TokensPerSecond'), '.0f')} tok/s",
    ]
    return "  ".join(parts)


def sparkline(values: list[float], width: int = 16) -> str:
    """Return the last values as blocks, on a scale from 0 to their maximum."""
    recent = values[-width:]
    top = max(recent, default=0.0) or 1.0
    return "".join(_SPARKS[min(int(value / top * len(_SPARKS)), len(_SPARKS) - 1)] for value in recent)


def facts_table(title: str, facts: Mapping[str, str]) -> Table:
    """Return names and values in two columns."""
    table = Table(title=title, title_justify="left", box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, value in facts.items():
        table.add_row(name, escape(value))
    return table


def _outcome(view: _RunView) -> str:
    row = view.row
    return (
        f"finished, held-out loss {_figure(row.get('HeldOutLoss'), '.3f')}, "
        f"{_figure(row.get('UniquePredictions'), '.0f')} unique predictions"
    )


def _figure(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _amount(done: int, total: int | None) -> str:
    return f"{done:,}" if total is None else f"{done:,} of {total:,}"


def _memory(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count else "–"


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return "–:––"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
