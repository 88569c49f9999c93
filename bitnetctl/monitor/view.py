"""State of a run in training, from its events, or from its files if another process trains it."""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeAlias

from bitnetctl.config import BASELINE, RunConfig
from bitnetctl.records import Row, finite_value
from bitnetctl.records.collapse import CollapseTracker, Health
from bitnetctl.records.metrics import skill

State: TypeAlias = Literal["waiting", "training", "elsewhere", "stopped", "finished", "diverged", "failed"]
ENDED = ("finished", "diverged", "failed")


@dataclass
class RunView:
    """State of one run; `config` is its effective config.

    `history` holds step and finite held-out loss of every evaluation, those before a resume included.
    """

    name: str
    config: RunConfig
    state: State = "waiting"
    step: int = 0
    loss: float | None = None
    row: Row = field(default_factory=dict)
    history: list[tuple[int, float]] = field(default_factory=list)
    diverged_at: int | None = None
    collapse: CollapseTracker = field(init=False)

    def __post_init__(self) -> None:
        self.collapse = CollapseTracker(self.config.schedule.warmup_steps)

    @property
    def size(self) -> int:
        """hidden_size."""
        return self.config.model.hidden_size

    @property
    def done_fraction(self) -> float:
        """Fraction of its steps that need no more work."""
        return 1.0 if self.state in ENDED else min(1.0, self.step / self.config.steps)

    @property
    def skill(self) -> float | None:
        """Skill at its last evaluation; None is unknown."""
        row = self.row
        return skill(*(finite_value(row, name) for name in ("HeldOutLoss", "UnigramLoss", "BigramLoss")))

    def restart(self, rows: Iterable[Row] = ()) -> None:
        """Forget all evaluations but `rows`."""
        self.row, self.history, self.diverged_at = {}, [], None
        self.collapse = CollapseTracker(self.config.schedule.warmup_steps)
        for row in rows:
            self.update(row)

    def update(self, row: Row) -> Health | None:
        """Add an evaluation; return the health that begins with it, if one does."""
        before, since = self.collapse.health, self.collapse.since
        self.row, self.step, self.loss = row, int(row["Step"] or 0), row.get("Loss")
        held_out = finite_value(row, "HeldOutLoss")
        if held_out is not None:
            self.history.append((self.step, held_out))
        self.collapse.add_row(row)
        after = self.collapse.health
        return after if (after, self.collapse.since) != (before, since) and after is not before else None

    def diverge(self, step: int) -> None:
        """Record that it diverged."""
        self.state, self.diverged_at = "diverged", step
        self.collapse.end_diverged(step)

    def held_out_at(self, step: int) -> float | None:
        """Return the held-out loss of the evaluation at a step; None without one."""
        index = bisect_left(self.history, (step,))
        return self.history[index][1] if index < len(self.history) and self.history[index][0] == step else None

    def flag(self, *, short: bool = False) -> str:
        """Return its state in a word, with a mark and a step where something is wrong; `short` without the step."""

        def at(text: str, step: int | None) -> str:
            return text if short or step is None else f"{text} @{step:,}"

        if self.state == "diverged":
            return at("✗ diverged", self.diverged_at)
        if self.state in ("failed", "waiting"):
            return "✗ failed" if self.state == "failed" else "waiting"
        collapse = self.collapse
        words = {Health.COLLAPSED: "⚠ collapsed", Health.POSSIBLE: "? collapse", Health.RECOVERED: "recovered"}
        if collapse.health in words:
            return at(words[collapse.health], collapse.since)
        if self.state != "training":
            return self.state
        if collapse.health is Health.HEALTHY:
            return "ok"
        return "warm-up" if self.step <= self.config.schedule.warmup_steps else "training"

    @property
    def style(self) -> str:
        """Rich style of its line."""
        if self.state in ("diverged", "failed"):
            return "red"
        if self.collapse.health is Health.COLLAPSED:
            return "yellow"
        return "dim" if self.state in ("waiting", "finished", "elsewhere") else ""


class ArmMean(NamedTuple):
    """Mean held-out loss of an arm, and the mean difference from the baseline over pairs of size and seed."""

    arm: str
    mean: float
    difference: float | None


def arm_means(views: Sequence[RunView], step: int) -> list[ArmMean]:
    """Return the mean of every arm over the runs with an evaluation at a step, the baseline first."""
    values: dict[str, dict[tuple[int, int], float]] = {}
    for view in views:
        value = view.held_out_at(step)
        if value is not None:
            values.setdefault(view.config.arm, {})[view.size, view.config.seed] = value
    baseline = values.get(BASELINE, {})
    means = []
    for arm, of_arm in sorted(values.items(), key=lambda item: item[0] != BASELINE):
        paired = [value - baseline[pair] for pair, value in of_arm.items() if pair in baseline]
        difference = sum(paired) / len(paired) if paired and arm != BASELINE else None
        means.append(ArmMean(arm, sum(of_arm.values()) / len(of_arm), difference))
    return means
