"""Checks of a measure over the two stages of training: `recovery`, `lasting` and `steady`."""

from collections.abc import Sequence
from statistics import median
from typing import Annotated, Literal

from pydantic import Field

from bitnetctl.config import Fraction, Positive, PositiveInt
from bitnetctl.records import Run
from bitnetctl.verdict.checks.base import CheckContext, Finding, MeasuredCheck, Otherwise, inconclusive
from bitnetctl.verdict.limits import value_at
from bitnetctl.verdict.outcome import Outcome, number_text

Factor = Annotated[float, Field(gt=1.0)]
Values = Sequence[float | None]


class TrajectoryCheck(MeasuredCheck):
    """A check of a measure in stage 1, without the untrained model at step 1, and in stage 2."""

    def judge(self, run: Run, context: CheckContext) -> Finding:
        """Split the evaluations at the boundary of the stages and judge both parts."""
        boundary = run.boundary_step
        if boundary is None:
            return inconclusive("the boundary of the stages is unknown: WD is constant, the planned steps are unknown")
        rows = [(step, value_at(run, self.measure, index)) for index, step in enumerate(run.steps.tolist())]
        first = [value for step, value in rows if 1 < step <= boundary]
        second = [value for step, value in rows if step > boundary]
        return self.judge_stages(first, second, boundary)

    def judge_stages(self, first: Values, second: Values, boundary: int) -> Finding:
        """Judge the values of stage 1 (up to step `boundary`) and of stage 2."""
        raise NotImplementedError

    def gaps(self, second: Values) -> Finding | None:
        """Return an inconclusive finding where stage 2 has no evaluations or an unknown value."""
        missing = second.count(None)
        if second and not missing:
            return None
        return inconclusive(f"{self.measure} is unknown in {missing:,} of {len(second):,} rows of stage 2")


class RecoveryCheck(TrajectoryCheck):
    """The first evaluation of stage 2 must be at least `factor` times the last of stage 1, where that is below
    `collapsed_below`; a run that stage 1 did not collapse has nothing to recover from."""

    kind: Literal["recovery"] = "recovery"
    collapsed_below: Positive
    factor: Factor = 2.0
    otherwise: Otherwise = "inconclusive"

    def judge_stages(self, first: Values, second: Values, boundary: int) -> Finding:
        """Compare the evaluations on both sides of the boundary."""
        if not first or not second or first[-1] is None or second[0] is None:
            return inconclusive(f"{self.measure} around step {boundary:,} is unknown")
        before, after = first[-1], second[0]
        change = f"{self.measure} {number_text(before)} → {number_text(after)} at step {boundary:,}"
        if not before < self.collapsed_below:
            reason = f"{self.measure} {number_text(before)} at step {boundary:,}: nothing to recover from"
            return Finding(Outcome.SUPPORTED, reason, after)
        if after >= self.factor * before and after > before:
            return Finding(Outcome.SUPPORTED, f"{change}: recovered", after)
        return Finding(Outcome(self.otherwise), f"{change}: no recovery, less than {self.factor:g} times", after)


class LastingCheck(TrajectoryCheck):
    """The last evaluation must be at least `share` of the median of stage 2."""

    kind: Literal["lasting"] = "lasting"
    share: Fraction = 0.5
    otherwise: Otherwise = "refuted"

    def judge_stages(self, first: Values, second: Values, boundary: int) -> Finding:
        """Compare the last evaluation with the median of stage 2."""
        known = [value for value in second if value is not None]
        gaps = self.gaps(second)
        if gaps is not None:
            return gaps
        final, middle = known[-1], median(known)
        reason = f"{self.measure} {number_text(final)} at the end, median {number_text(middle)} in stage 2"
        if final < self.share * middle:
            return Finding(Outcome(self.otherwise), f"temporary recovery: {reason}", final)
        return Finding(Outcome.SUPPORTED, reason, final)


class SteadyCheck(TrajectoryCheck):
    """Stage 2 must have fewer than `reversals` reversals of direction between extremes a `factor` apart."""

    kind: Literal["steady"] = "steady"
    factor: Factor = 2.0
    reversals: PositiveInt = 3
    otherwise: Otherwise = "refuted"

    def judge_stages(self, first: Values, second: Values, boundary: int) -> Finding:
        """Count the reversals within stage 2; an unknown value could only hide some."""
        extremes = alternating_extremes([value for value in second if value is not None], self.factor)
        count = max(0, len(extremes) - 2)
        path = "→".join(number_text(value) for value in extremes[:12]) or "flat"
        if count >= self.reversals:
            reason = f"erratic: {count} reversals by a factor of {self.factor:g} or more in stage 2 ({path})"
            return Finding(Outcome(self.otherwise), reason, count)
        reason = f"{count} reversals in stage 2 ({path})"
        return self.gaps(second) or Finding(Outcome.SUPPORTED, reason, count)


def alternating_extremes(values: Sequence[float], factor: float) -> list[float]:
    """Return successive extremes, alternately low and high, that differ by at least `factor`; empty if none do.

    2, 10, 3, 15, 2 with a factor of 2 gives all five, hence three reversals.
    """

    def differ(low: float, high: float) -> bool:
        return high > low and high >= factor * low

    if not values:
        return []
    # the first direction is known once minimum and maximum so far differ by the factor
    low = high = values[0]
    extremes: list[float] = []
    for value in values[1:]:
        if not extremes:
            low, high = min(low, value), max(high, value)
            if differ(low, high):
                extremes = [low, high] if value == high else [high, low]
            continue
        last = extremes[-1]
        rising = last > extremes[-2]
        if value > last if rising else value < last:
            extremes[-1] = value
        elif differ(*((value, last) if rising else (last, value))):
            extremes.append(value)
    return extremes
