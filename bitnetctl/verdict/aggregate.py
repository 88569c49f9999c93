"""What of a run becomes its one value of a measure: the end, the time average, or the share of the steps.

Time average and share are integrals over the steps (start, end] of the run or of a stage by the trapezoidal rule:
linear between evaluations, constant before the first one, which follows the untrained model at step 1 that does not
count. The share integrates 1 where an evaluation is beyond the threshold and 0 elsewhere, so that a crossing between
two evaluations counts as half way.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from bitnetctl.records import Run
from bitnetctl.verdict.limits import Limits, last_median, last_values, limits, value_at
from bitnetctl.verdict.outcome import number_text

if TYPE_CHECKING:
    from bitnetctl.records.schema import Floats

Over = Literal["end", "area", "share"]
Stage = Literal["run", 1, 2]


@dataclass(frozen=True, kw_only=True)
class Aggregate:
    """How the evaluations of a run or of a stage become one value.

    `end` is the median of the `last` evaluations, `area` the time average, `share` the fraction of the steps at which
    the measure is above `above`, or below `below`.
    """

    over: Over = "end"
    last: int = 1
    stage: Stage = "run"
    above: float | None = None
    below: float | None = None

    def value(self, run: Run, measure: str) -> float | None:
        """Return the value of a measure: None is unknown, one that is not finite where any evaluation is not finite.

        It is unknown, too, where the boundary of the stages is needed and known only to lie between two evaluations.
        """
        if self.over == "end":
            return last_median(run, measure, self.last, self.stage)
        values = self.evaluations(run, measure)
        if not values:
            return None
        broken = next((value for value in values if not math.isfinite(value)), None)
        return self._integral(run, values) if broken is None else broken

    def evaluations(self, run: Run, measure: str) -> list[float]:
        """Return the values that count, those next to an end that lies between two evaluations too.

        Empty where one is unknown or there is none; with `end` those that are known.
        """
        if self.over == "end":
            return last_values(run, measure, self.last, self.stage)
        values = [value_at(run, measure, index) for index in self._indices(run)]
        known = [value for value in values if value is not None]
        return known if len(known) == len(values) else []

    def why_unknown(self, run: Run) -> str:
        """Return why a value is unknown where the stages are the reason, else an empty text."""
        interval = run.boundary_interval
        if self.stage == "run" or (self.over == "end" and interval is not None):
            return ""
        if interval is None:
            return "the boundary of the stages is unknown"
        low, high = interval
        return f"stage 1 ends somewhere in steps {low:,} to {high:,}" if low != high else ""

    def limits(self, run: Run, measure: str) -> Limits:
        """Return the range that the value can reach in a run."""
        possible = limits(run, measure)
        if self.over != "share" or possible.undefined is not None or possible.damaged is not None:
            return possible
        nearest, farthest = (possible.high, possible.low) if self.above is not None else (possible.low, possible.high)
        if nearest is not None and not self._fulfils(nearest):
            return Limits(0, 0, f"{measure} is never {self.condition}: {possible.why}")
        if farthest is not None and self._fulfils(farthest):
            return Limits(1, 1, f"{measure} is always {self.condition}: {possible.why}")
        return Limits(0, 1, "a share")

    def _fulfils(self, value: float) -> bool:
        return value > self.above if self.above is not None else self.below is not None and value < self.below

    @property
    def condition(self) -> str:
        """The condition of a share as text, such as `> 50`."""
        return f"> {number_text(self.above)}" if self.above is not None else f"< {number_text(self.below or 0.0)}"

    @property
    def part(self) -> str:
        """The part of the training that counts."""
        return "the run" if self.stage == "run" else f"stage {self.stage}"

    def name(self, measure: str) -> str:
        """Name the value, such as `HeldOutLoss averaged over stage 2`."""
        match self.over:
            case "area":
                return f"{measure} averaged over {self.part}"
            case "share":
                return f"share of {self.part} with {measure} {self.condition}"
        return f"{measure} at the boundary" if self.stage == 1 else measure

    def _bounds(self, run: Run) -> tuple[int, int] | None:
        """Return start and end in steps; None where the boundary is unknown or an interval, or nothing is logged."""
        if self.stage == "run":
            return 0, run.final_step
        low, high = run.boundary_interval or (0, -1)
        if low != high or not 0 < low < run.final_step:
            return None
        return (0, low) if self.stage == 1 else (low, run.final_step)

    def _indices(self, run: Run) -> list[int]:
        """Return the evaluations from the last one up to the start to the first one from the end on, without step 1."""
        bounds = self._bounds(run)
        if bounds is None:
            return []
        start, end = bounds
        trained = int(run.steps.searchsorted(1, "right"))
        first, last = int(run.steps.searchsorted(start, "right")) - 1, int(run.steps.searchsorted(end, "left"))
        return list(range(max(trained, first), min(len(run.steps), last + 1)))

    def _integral(self, run: Run, values: list[float]) -> float | None:
        import numpy as np

        bounds = self._bounds(run)
        if bounds is None:
            return None
        steps = run.steps[self._indices(run)]
        if self.over == "share":
            values = [float(self._fulfils(value)) for value in values]
        inside = steps[(steps > bounds[0]) & (steps < bounds[1])]
        points: Floats = np.concatenate(([bounds[0]], inside, [bounds[1]])).astype(np.float64)
        heights = np.interp(points, steps, values)
        # scaled: a sum of large values can overflow
        scale = float(np.abs(heights).max()) or 1.0
        sums = np.diff(points) * (heights[:-1] / scale + heights[1:] / scale)
        return float(sums.sum()) / (2 * (bounds[1] - bounds[0])) * scale
