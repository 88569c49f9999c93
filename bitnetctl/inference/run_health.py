"""The health of a run when its weights were saved, as far as its CSV tells."""

from dataclasses import dataclass
from typing import Any

from bitnetctl.inference.trained import TrainedRun
from bitnetctl.records.collapse import CollapseTracker, Health
from bitnetctl.records.follow import RowFollower
from bitnetctl.records.metrics import json_value
from bitnetctl.records.schema import Row

_WORDS = {Health.HEALTHY: "healthy", Health.UNKNOWN: "health unknown"}


@dataclass(frozen=True, kw_only=True)
class HealthAtStep:
    """The last evaluation up to the step of a run's weights, and the collapses up to there."""

    run: TrainedRun
    row: Row
    collapse: CollapseTracker

    @property
    def line(self) -> str:
        """What the run is, on one line: name, step, arm, held-out loss, collapsed or not."""
        parts = [self.run.name, f"step {self.run.step:,}", self.run.config.arm]
        loss = self.row.get("HeldOutLoss")
        if loss is not None:
            parts.append(f"held-out loss {loss:.4g}")
        return " · ".join([*parts, self._health()])

    def to_json(self) -> dict[str, Any]:
        """Return the same as a tree of strict JSON."""
        return {
            "run": self.run.name,
            "step": self.run.step,
            "arm": self.run.config.arm,
            "quantization": self.run.quant_lambda,
            "context_length": self.run.context_length,
            "held_out_loss": json_value(self.row.get("HeldOutLoss")),
            "health": self.collapse.health.value,
            "health_since": self.collapse.since,
            "diverged_at": self.run.manifest.diverged_at,
        }

    def _health(self) -> str:
        health, diverged_at = self.collapse.health, self.run.manifest.diverged_at
        text = _WORDS.get(health, health.value)
        if self.collapse.since is not None:
            text += f" since step {self.collapse.since:,}"
        if health in (Health.COLLAPSED, Health.POSSIBLE) and self.collapse.reason is not None:
            text += f": {self.collapse.reason}"
        return text if diverged_at is None else f"{text}; diverged at step {diverged_at:,}"


def health_at_step(run: TrainedRun) -> HealthAtStep:
    """Return the health of a run at the step of its weights; without a CSV it is unknown."""
    tracker = CollapseTracker(run.config.schedule.warmup_steps)
    last: Row = {}
    for row in RowFollower(run.paths.csv).new_rows()[0]:
        if (row["Step"] or 0) <= run.step:
            tracker.add_row(row)
            last = row
    return HealthAtStep(run=run, row=last, collapse=tracker)
