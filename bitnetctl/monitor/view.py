"""State of a run in training, and the lines of text that report it."""

from dataclasses import dataclass, field

from bitnetctl.config import RunConfig
from bitnetctl.records import Row, collapse_reason, finite_value
from bitnetctl.report.columns import format_value
from bitnetctl.trainer.events import Diverged, Failed, Finished, Started, Stopped

_SPARKS = "▁▂▃▄▅▆▇█"
REPEAT_SECONDS = 2.0
"""Least time between two lines on the preparation, and between two reads of the runs folder."""


@dataclass
class RunView:
    """State of one run, from its events, or from its manifest if another process trains it."""

    name: str
    config: RunConfig
    row: Row = field(default_factory=dict)
    history: list[float] = field(default_factory=list)
    state: str = "waiting"
    step: int = 0
    loss: float | None = None
    collapsed_since: int | None = None

    @property
    def label(self) -> str:
        """Size, arm and seed."""
        return f"h{self.config.model.hidden_size} s{self.config.seed} {self.config.arm}"

    @property
    def style(self) -> str:
        """Rich style of its line."""
        if self.state in ("diverged", "failed"):
            return "red"
        return "yellow" if self.collapsed_since is not None else "dim" if self.state == "waiting" else ""

    def update(self, row: Row) -> str | None:
        """Update the view with an evaluation; return a warning if a collapse begins with it."""
        self.row = row
        unique = finite_value(row, "UniquePredictions")
        if unique is not None:
            self.history.append(unique)
        step = self.step = int(row["Step"] or 0)
        self.loss = row.get("Loss")
        reason = collapse_reason(row) if step > self.config.schedule.warmup_steps else None
        if reason is None:
            self.collapsed_since = None
            return None
        if self.collapsed_since is None:
            self.collapsed_since = step
            return f"{self.name}: collapse since step {step:,}: {reason}"
        return None


def started_line(event: Started) -> str:
    """Return the line for a run or pack that starts."""
    where = f"{event.num_parameters:,} parameters on {event.device}"
    resumed = f", resumed after step {event.start_step:,}" if event.start_step else ""
    if len(event.names) == 1:
        return f"{event.names[0]}: {event.configs[0].steps:,} steps, {where}{resumed}"
    return f"pack of {len(event.names)}: {event.configs[0].steps:,} steps, {where} each{resumed}"


def ended_lines(event: Diverged | Failed | Stopped | Finished, pack: list[RunView]) -> list[str]:
    """Set the state of the runs that ended, and return a line for each."""
    match event:
        case Diverged():
            pack[event.run].state = "diverged"
            return [f"{pack[event.run].name}: diverged at step {event.step:,}; it is not trained any further"]
        case Failed():
            for view in pack:
                if view.name == event.name:
                    view.state = "failed"
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
        f"loss {format_value(row.get('Loss'), '.4f')}",
        f"held-out {format_value(row.get('HeldOutLoss'), '.4f')}",
        f"unique {format_value(row.get('UniquePredictions'), '.0f')}/{format_value(row.get('ProbePositions'), '.0f')}",
        f"lr {format_value(row.get('LR'), '.3e')}",
        f"wd {format_value(row.get('WD'), 'g')}",
        f"{format_value(row.get('TokensPerSecond'), '.0f')} tok/s",
    ]
    return "  ".join(parts)


def sparkline(values: list[float], width: int = 16) -> str:
    """Return the last `width` values as block characters, on a scale from 0 to their maximum."""
    recent = values[-width:]
    top = max(recent, default=0.0) or 1.0
    return "".join(_SPARKS[min(int(value / top * len(_SPARKS)), len(_SPARKS) - 1)] for value in recent)


def _outcome(view: RunView) -> str:
    row = view.row
    if not row:
        # no evaluation since the run was resumed: nothing was left to train
        return "finished"
    return (
        f"finished, held-out loss {format_value(row.get('HeldOutLoss'), '.3f')}, "
        f"{format_value(row.get('UniquePredictions'), '.0f')} unique predictions"
    )


def preparation_line(what: str, done: int, total: int | None) -> str:
    """Return the progress of preparing text as one line; `total` is None where it is unknown."""
    if total is not None:
        return f"{what}: {done:,} of {total:,}"
    return f"{what}: {done:,}" if done else what


def format_memory(count: int) -> str:
    """Format bytes; 0 is unknown."""
    return f"{count / 2**30:.1f} GiB" if count else "–"


def format_clock(seconds: float | None) -> str:
    """Format seconds as h:mm:ss or m:ss; None is unknown."""
    if seconds is None:
        return "–:––"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
