"""What is known of a run in training, and the lines that say it."""

from bitnetctl.config import RunConfig
from bitnetctl.records import Row, collapse, known
from bitnetctl.trainer.events import Diverged, Failed, Finished, Started, Stopped

_SPARKS = "▁▂▃▄▅▆▇█"
_REPEAT_SECONDS = 2.0


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
