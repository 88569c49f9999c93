"""Checks of a measure over the two stages of training: `recovery`, `lasting` and `steady`; larger values are better.

Each compares medians over stated parts of a stage, or shares of its steps, so that neither one evaluation nor how many
there are decides (`stages.py`).
"""

import math
from abc import abstractmethod
from collections.abc import Sequence
from statistics import median
from typing import Annotated, Literal, Self, cast

from pydantic import Field, model_validator

from bitnetctl.config import Fraction, Positive, PositiveInt
from bitnetctl.records import Run
from bitnetctl.verdict.checks.base import CheckContext, Finding, MeasuredCheck, Otherwise, inconclusive
from bitnetctl.verdict.checks.stages import Stage, alternating_extremes, split_at
from bitnetctl.verdict.limits import value_at
from bitnetctl.verdict.outcome import Outcome, number_text

Factor = Annotated[float, Field(gt=1.0)]
Floor = Annotated[float, Field(ge=0.0)]
Values = Sequence[float | None]

STAGE_1_END = 0.2
"""The share of stage 1 whose median says whether stage 1 collapsed."""
QUARTER = 0.25
"""The share of stage 2 over which a level is a median; also that in which a recovery may still be under way."""
BOUNDARIES = 9
"""Boundaries at which a run is judged whose boundary is known only to lie in an interval: both ends and between."""


class TrajectoryCheck(MeasuredCheck):
    """A check of a measure in stage 1, without the untrained model at step 1, and in stage 2.

    Where a log tells the boundary only to an interval, the outcome must be the same all over it.
    """

    def judge(self, run: Run, context: CheckContext) -> Finding:
        """Split the evaluations at the boundary of the stages and judge both parts."""
        if run.boundary_interval is None:
            return inconclusive(
                "the boundary of the stages is unknown: WD is constant, the planned steps are unknown",
                brief="the boundary of the stages is unknown",
            )
        low, high = run.boundary_interval
        steps = run.steps.tolist()
        values = [value_at(run, self.measure, index) for index in range(len(steps))]
        boundaries = sorted({low + (high - low) * part // (BOUNDARIES - 1) for part in range(BOUNDARIES)})
        findings = {boundary: self.judge_stages(*split_at(steps, values, boundary)) for boundary in boundaries}
        outcomes: dict[Outcome, int] = {}
        for boundary, finding in findings.items():
            outcomes.setdefault(finding.outcome, boundary)
        if len(outcomes) == 1:
            return findings[low]
        where = ", ".join(f"{outcome} if at {boundary:,}" for outcome, boundary in outcomes.items())
        return inconclusive(
            f"stage 1 ends somewhere in steps {low:,} to {high:,}, and {self.label} depends on where: {where}",
            brief=f"{self.label} depends on where stage 1 ends",
        )

    @abstractmethod
    def judge_stages(self, first: Stage, second: Stage) -> Finding:
        """Judge the values of both stages."""

    def unusable(self, values: Values, where: str) -> Finding | None:
        """Return an inconclusive finding where values are unknown or absent, a refuting one where one is not finite."""
        missing = values.count(None)
        if missing or not values:
            reason = f"{self.measure} is unknown in {missing:,} of {len(values):,} rows of {where}"
            return inconclusive(reason, brief=f"{self.measure} unknown in {where}")
        broken = next((value for value in values if value is not None and not math.isfinite(value)), None)
        if broken is None:
            return None
        return Finding(Outcome.REFUTED, f"{self.measure} is {broken} in {where}", broken, f"{self.measure} not finite")


class RecoveryCheck(TrajectoryCheck):
    """The median of the first `within` of stage 2 must be at least `factor` times that of the last fifth of stage 1.

    It applies where the latter is below `collapsed_below`; a run that stage 1 did not collapse has nothing to recover
    from. A recovery in the first half of `within` is seen.
    """

    kind: Literal["recovery"] = "recovery"
    collapsed_below: Positive
    within: Fraction
    factor: Factor = 2.0
    otherwise: Otherwise = "inconclusive"

    def judge_stages(self, first: Stage, second: Stage) -> Finding:
        """Compare the medians on both sides of the boundary."""
        closing, opening = first.closing(STAGE_1_END), second.opening(self.within)
        if not closing or not opening or None in (*closing, *opening):
            unknown = f"{self.measure} around the boundary is unknown"
            return inconclusive(unknown, brief=unknown)
        broken = self.unusable([*closing, *opening], "the rows around the boundary")
        if broken is not None:
            return broken
        before, after = (median(cast(Sequence[float], values)) for values in (closing, opening))
        if not before < self.collapsed_below:
            reason = (
                f"{self.measure} {number_text(before)} before step {first.end:,}, not below "
                f"{number_text(self.collapsed_below)}: nothing to recover from"
            )
            return Finding(Outcome.SUPPORTED, reason, after, "no collapse in stage 1")
        change = f"{self.measure} {number_text(before)} → {number_text(after)} at step {first.end:,} (medians)"
        if after >= self.factor * before and after > before:
            return Finding(Outcome.SUPPORTED, f"{change}: recovered", after, "recovered at the boundary")
        reason = f"{change}: no recovery, less than {self.factor:g} times"
        return Finding(Outcome(self.otherwise), reason, after, "no recovery at the boundary")


class LastingCheck(TrajectoryCheck):
    """Stage 2 must stay where it recovered to: a level is the median of a quarter of stage 2.

    The level at the end must be at least `final_share` of the best, both up to `healthy_above`; so a level of
    `final_share` × `healthy_above` is high enough. Inconclusive are a run that is below `collapsed_below` for more than
    `collapsed_share` of the steps after the first quarter, and one whose last evaluation, up to what is high enough, is
    more than `peak_factor` times the median of those before it in the last quarter.
    """

    kind: Literal["lasting"] = "lasting"
    collapsed_below: Positive
    healthy_above: Positive
    final_share: Fraction = 0.5
    collapsed_share: Fraction = 0.1
    peak_factor: Factor = 1.5
    otherwise: Otherwise = "refuted"

    def judge_stages(self, first: Stage, second: Stage) -> Finding:
        """Compare the level at the end with the best and with the last evaluation, and measure the collapsed share."""
        unusable = self.unusable(second.values, "stage 2")
        if unusable is not None:
            return unusable
        levels = second.levels(QUARTER)
        final, best = levels[-1], max(levels)
        reason = f"{self.measure} {number_text(final)} in the last quarter of stage 2, at best {number_text(best)}"
        if min(final, self.healthy_above) < self.final_share * min(best, self.healthy_above):
            return Finding(Outcome(self.otherwise), f"temporary recovery: {reason}", final, "temporary recovery")
        lasting = Finding(Outcome.SUPPORTED, reason, final, "no relapse in stage 2")
        return self._collapsed(second, final) or self._peak(second, final) or lasting

    def _collapsed(self, second: Stage, final: float) -> Finding | None:
        share = second.share_below(self.collapsed_below, after=QUARTER)
        if share <= self.collapsed_share:
            return None
        threshold = number_text(self.collapsed_below)
        reason = f"{self.measure} below {threshold} for {share:.0%} of stage 2 after its first quarter"
        return inconclusive(reason, final, f"{self.measure} too often below {threshold} in stage 2")

    def _peak(self, second: Stage, final: float) -> Finding | None:
        *earlier, last = cast(Sequence[float], second.closing(QUARTER))
        if not earlier or min(last, self.final_share * self.healthy_above) <= self.peak_factor * median(earlier):
            return None
        peak = f"{self.measure} {number_text(last)} after {number_text(median(earlier))}"
        return inconclusive(f"a peak at the end: {peak} in the last quarter of stage 2", final, "a peak at the end")


class SteadyCheck(TrajectoryCheck):
    """Stage 2, smoothed and clipped to `floor` … `healthy_above`, must not swing up and down.

    `reversals` of direction between extremes an `erratic_factor` apart are erratic; as many between extremes more than
    a `normal_factor` apart are inconclusive.
    """

    kind: Literal["steady"] = "steady"
    healthy_above: Positive
    floor: Floor = 0.0
    normal_factor: Factor = 1.5
    erratic_factor: Factor = 2.0
    reversals: PositiveInt = 3
    otherwise: Otherwise = "refuted"

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.normal_factor > self.erratic_factor:
            raise ValueError(
                f"normal_factor {self.normal_factor:g} is more than erratic_factor {self.erratic_factor:g}"
            )
        if self.floor >= self.healthy_above:
            raise ValueError(f"floor {self.floor:g} is not less than healthy_above {self.healthy_above:g}")
        return self

    def judge_stages(self, first: Stage, second: Stage) -> Finding:
        """Count the reversals within stage 2."""
        unusable = self.unusable(second.values, "stage 2")
        if unusable is not None:
            return unusable
        values = [min(max(value, self.floor), self.healthy_above) for value in second.smoothed()]
        for factor, word, outcome in (
            (self.erratic_factor, "erratic", Outcome(self.otherwise)),
            (self.normal_factor, "unsteady", Outcome.INCONCLUSIVE),
        ):
            extremes = alternating_extremes(values, factor)
            count = max(0, len(extremes) - 2)
            path = "→".join(number_text(value) for value in extremes[:12]) or "flat"
            if count >= self.reversals:
                reason = f"{word}: {count} reversals by a factor of {factor:g} or more in stage 2 ({path})"
                return Finding(outcome, reason, count, f"{word} in stage 2")
        return Finding(Outcome.SUPPORTED, f"{count} reversals in stage 2 ({path})", count, "steady in stage 2")
