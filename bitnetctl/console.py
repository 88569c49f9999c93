"""What a person sees while runs train: a live view in a terminal, plain lines elsewhere. All of it on stderr."""

import contextlib
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from bitnetctl.analysis import collapse, known
from bitnetctl.config import RunConfig
from bitnetctl.errors import BitnetctlError
from bitnetctl.events import Diverged, Evaluated, Event, Failed, Finished, Progress, SetBack, Started, Stopped
from bitnetctl.records import Row, read_manifest

_SPARKS = "▁▂▃▄▅▆▇█"
_REPEAT_SECONDS = 2.0
_STATES = ("training", "failed", "diverged", "stopped", "elsewhere", "finished", "waiting")


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


def make_reporter(console: Console, configs: Sequence[RunConfig] = (), runs_dir: Path | None = None) -> Reporter:
    """Return a live view where `console` is a terminal that can move its cursor, else plain lines.

    With `configs` the view covers all runs of a sweep, those that other processes train in `runs_dir` included.
    """
    if console.is_terminal and not console.is_dumb_terminal:
        return LiveReporter(console, configs, runs_dir)
    return PlainReporter(console)


class _RunView:
    """What is known of one run in training."""

    def __init__(self, name: str, config: RunConfig) -> None:
        self.name = name
        self.config = config
        self.row: Row = {}
        self.history: list[float] = []
        self.state = "waiting"
        self.step = 0
        self.loss: float | None = None
        self.collapsed_since: int | None = None

    @property
    def label(self) -> str:
        """Size, arm and seed."""
        return f"h{self.config.model.hidden_size} s{self.config.seed} {self.config.arm}"

    @property
    def style(self) -> str:
        """Colour of the run."""
        if self.state in ("diverged", "failed"):
            return "red"
        return "yellow" if self.collapsed_since is not None else "dim" if self.state == "waiting" else ""

    def update(self, row: Row) -> str | None:
        """Take a new row; return a warning when a collapse begins."""
        self.row = row
        unique = known(row, "UniquePredictions")
        if unique is not None:
            self.history.append(unique)
        step = self.step = int(row["Step"] or 0)
        self.loss = row.get("Loss")
        reason = collapse(row) if step > self.config.schedule.warmup_steps else None
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
        self._pack: list[_RunView] = []
        self._work_shown = time.monotonic()

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
                self._pack = [_RunView(*run) for run in zip(event.names, event.configs, strict=True)]
                for view in self._pack:
                    view.state = "training"
                for text in started_lines(event):
                    self.notice(text)
            case Evaluated():
                view = self._pack[event.run]
                warning = view.update(event.row)
                self.notice(f"{view.name}  {row_line(event.row, view.config.steps)}")
                if warning:
                    self.notice(f"warning: {warning}")
            case SetBack():
                self._pack[event.run].state = "waiting"
            case Diverged() | Failed() | Stopped() | Finished():
                for text in ended_lines(event, self._pack):
                    self.notice(text)

    def notice(self, text: str) -> None:
        """Print one line."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def work(self, what: str, done: int, total: int | None) -> None:
        """Print a line every two seconds."""
        now = time.monotonic()
        if now - self._work_shown >= _REPEAT_SECONDS:
            self._work_shown = now
            self.notice(_work_line(what, done, total))


class LiveReporter:
    """A view of the runs in training that rewrites itself, with lasting lines above it."""

    def __init__(self, console: Console, configs: Sequence[RunConfig] = (), runs_dir: Path | None = None) -> None:
        self._console = console
        self._runs_dir = runs_dir
        self._runs = {config.run_name: _RunView(config.run_name, config) for config in configs}
        self._is_sweep = len(self._runs) > 1
        self._pack: list[_RunView] = []
        self._start_step = self._step = 0
        self._begun = time.monotonic()
        self._folder_read = 0.0
        self._memory_bytes = 0
        self._work: str | None = None
        self._live = Live(console=console, refresh_per_second=4, transient=True, get_renderable=self._render)

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
                self._begun, self._start_step = time.monotonic(), event.start_step
                self._step = event.start_step
                self._leave_pack()
                for name, config in zip(event.names, event.configs, strict=True):
                    view = self._runs.setdefault(name, _RunView(name, config))
                    view.state, view.step = "training", event.start_step
                    self._pack.append(view)
                for text in started_lines(event):
                    self.notice(text)
            case Progress():
                self._step, self._memory_bytes = event.step, event.memory_bytes
                for view, loss in zip(self._pack, event.losses, strict=True):
                    if view.state == "training":
                        view.step, view.loss = event.step, loss
            case Evaluated():
                view = self._pack[event.run]
                warning = view.update(event.row)
                if warning:
                    self._console.print(f"[yellow]⚠ {escape(warning)}[/]", highlight=False)
            case SetBack():
                view = self._pack[event.run]
                view.state, view.step = "waiting", event.step
            case Diverged() | Failed() | Stopped() | Finished():
                for text in ended_lines(event, self._pack):
                    self.notice(text)
                if isinstance(event, Failed) and event.name in self._runs:
                    self._runs[event.name].state = "failed"
                if not isinstance(event, Diverged):
                    self._leave_pack()

    def notice(self, text: str) -> None:
        """Print one line above the view."""
        self._console.print(text, markup=False, highlight=False)

    def work(self, what: str, done: int, total: int | None) -> None:
        """Show the preparation in the view."""
        self._work = _work_line(what, done, total)

    def _leave_pack(self) -> None:
        """Let go of the pack; runs of one that broke up wait for their turn again."""
        for view in self._pack:
            if view.state == "training":
                view.state = "waiting"
        self._pack = []

    def _render(self) -> Group:
        lines: list[RenderableType] = [Text(self._work, style="dim")] if self._work and not self._pack else []
        if self._pack:
            lines.append(self._headline())
        if self._is_sweep:
            self._read_folder()
            lines += [self._counts(), self._run_table()]
        elif self._pack:
            lines.append(self._solo_table(self._pack[0]))
        return Group(*lines)

    def _headline(self) -> Table:
        config = self._pack[0].config
        steps = config.steps
        elapsed = time.monotonic() - self._begun
        done = self._step - self._start_step
        left = elapsed / done * (steps - self._step) if done else None
        stage = 1 if self._step <= config.boundary_step else 2
        grid = Table.grid(padding=(0, 1), expand=True)
        grid.add_column(ratio=1)
        grid.add_column(no_wrap=True)
        grid.add_row(
            ProgressBar(total=steps, completed=self._step),
            f"{self._step:,}/{steps:,} · stage {stage} · {_clock(elapsed)} < {_clock(left)} · "
            f"{_memory(self._memory_bytes)}",
        )
        return grid

    def _solo_table(self, view: _RunView) -> Table:
        row = view.row
        cells = {
            "loss": _figure(view.loss, ".3f"),
            "held-out": _figure(row.get("HeldOutLoss"), ".3f"),
            "unique": _figure(row.get("UniquePredictions"), ",.0f"),
            "history": sparkline(view.history),
            "LR": _figure(row.get("LR"), ".2e"),
            "WD": _figure(row.get("WD"), "g"),
            "tok/s": _figure(row.get("TokensPerSecond"), ",.0f"),
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
        """Return as many runs as the terminal is high, those in training first, then the latest that ended."""
        room = max(3, self._console.height - 5)
        ordered = sorted(self._runs.values(), key=lambda view: _STATES.index(view.state))
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", expand=True)
        table.add_column("run", ratio=1, no_wrap=True, overflow="ellipsis")
        for name in ("step", "loss", "unique"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("history", no_wrap=True, min_width=8)
        table.add_column("state", no_wrap=True)
        for view in ordered[:room]:
            table.add_row(
                view.label,
                f"{view.step:,}",
                _figure(view.loss, ".3f"),
                _figure(view.row.get("UniquePredictions"), ",.0f"),
                sparkline(view.history, width=8),
                view.state,
                style=view.style,
            )
        if len(ordered) > room:
            table.add_row(f"… and {len(ordered) - room} more")
        return table

    def _read_folder(self) -> None:
        """Take over the state of runs that other processes train."""
        now = time.monotonic()
        if self._runs_dir is None or now - self._folder_read < _REPEAT_SECONDS:
            return
        self._folder_read = now
        for view in self._runs.values():
            if view.state in ("waiting", "elsewhere"):
                with contextlib.suppress(BitnetctlError):
                    manifest = read_manifest(self._runs_dir / view.name)
                    if manifest is not None:
                        view.step = manifest.steps_done
                        view.state = "elsewhere" if manifest.status == "running" else manifest.status


def started_lines(event: Started) -> list[str]:
    """Say what begins."""
    where = f"{event.num_parameters:,} parameters on {event.device}"
    resumed = f", resumed after step {event.start_step:,}" if event.start_step else ""
    if len(event.names) == 1:
        return [f"{event.names[0]}: {event.configs[0].steps:,} steps, {where}{resumed}"]
    return [f"pack of {len(event.names)}: {event.configs[0].steps:,} steps, {where} each{resumed}"]


def ended_lines(event: Diverged | Failed | Stopped | Finished, pack: list[_RunView]) -> list[str]:
    """Say how a run or a pack ended; marks the views."""
    match event:
        case Diverged():
            pack[event.run].state = "diverged"
            return [f"{pack[event.run].name}: diverged at step {event.step:,}; it is not trained any further"]
        case Failed():
            return [f"{event.name}: failed: {event.message}"]
        case Stopped() | Finished():
            ended = [view for view in pack if view.state == "training"]
            for view in ended:
                view.state, view.step = "stopped" if isinstance(event, Stopped) else "finished", event.step
            if isinstance(event, Stopped):
                return [f"{view.name}: stopped at step {event.step:,}, checkpoint saved" for view in ended]
            return [f"{view.name}: {_outcome(view)}" for view in ended]


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
    if not row:
        # nothing was left to train
        return "finished"
    return (
        f"finished, held-out loss {_figure(row.get('HeldOutLoss'), '.3f')}, "
        f"{_figure(row.get('UniquePredictions'), '.0f')} unique predictions"
    )


def _figure(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _work_line(what: str, done: int, total: int | None) -> str:
    if total is not None:
        return f"{what}: {done:,} of {total:,}"
    return f"{what}: {done:,}" if done else what


def _memory(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count else "–"


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return "–:––"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
