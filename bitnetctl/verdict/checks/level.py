"""Checks of values: `probe` (is the probe large enough) and `level` (a measure against two thresholds)."""

import math
from typing import Literal

from bitnetctl.config import PositiveInt
from bitnetctl.records import Run
from bitnetctl.verdict.checks.base import Check, CheckContext, Finding, ThresholdCheck, inconclusive
from bitnetctl.verdict.limits import constant_value, last_median, limits
from bitnetctl.verdict.outcome import Outcome, number_text

_TOLERANCE = 1e-6
"""Relative rounding error by which a value may lie outside its range."""


class ProbeCheck(Check):
    """A probe too small to tell healthy from collapsed makes the verdict invalid; an unknown one is inconclusive."""

    kind: Literal["probe"] = "probe"
    min_positions: PositiveInt = 1024
    min_bigram_unique: PositiveInt = 1

    def judge_setup(self, run: Run) -> Finding:
        """Compare the least value of each column with its minimum."""
        sizes = []
        for column, least in (("ProbePositions", self.min_positions), ("BigramUnique", self.min_bigram_unique)):
            size = constant_value(run, column)
            if size is None or not math.isfinite(size):
                return inconclusive(f"{column} is unknown")
            sizes.append(f"{column} {number_text(size)}")
            if size < least:
                reason = f"{column} {number_text(size)} is less than {least:,}: too small a probe to tell"
                return Finding(Outcome.INVALID, reason, size)
        return Finding(Outcome.SUPPORTED, ", ".join(sizes))


class LevelCheck(ThresholdCheck):
    """A measure against two thresholds, at the end or at the end of stage 1 (`at = "boundary"`).

    A supporting threshold that cannot be reached makes the verdict invalid.
    """

    kind: Literal["level"] = "level"
    at: Literal["end", "boundary"] = "end"

    def judge_setup(self, run: Run) -> Finding | None:
        """Judge whether the supporting threshold can be reached in this run; None where it can or that is unknown."""
        possible = limits(run, self.measure)
        if possible.undefined is not None:
            return Finding(Outcome.INVALID, possible.undefined)
        best = possible.high if self.higher_is_better else possible.low
        if best is not None and self.outcome(best) is not Outcome.SUPPORTED:
            side = "most" if self.higher_is_better else "least"
            reason = f"{self.measure} {self.supports} of at {side} {number_text(best)} ({possible.why}) cannot be met"
            return Finding(Outcome.INVALID, reason, last_median(run, self.measure, self.last, self.at))
        return None if possible.damaged is None else inconclusive(possible.damaged)

    def judge(self, run: Run, context: CheckContext) -> Finding:
        """Compare the median of the last evaluations with both thresholds."""
        value = last_median(run, self.measure, self.last, self.at)
        name = self.measure if self.at == "end" else f"{self.measure} at the boundary"
        if value is None:
            evaluations = f" in the last {self.last} evaluations" if self.last > 1 else ""
            return inconclusive(f"{name} is unknown{evaluations}")
        possible = limits(run, self.measure)
        slack = _TOLERANCE * max(1.0, abs(value))
        above = possible.high is not None and value > possible.high + slack
        below = possible.low is not None and value < possible.low - slack
        if above or below:
            return inconclusive(f"{name} {number_text(value)} is impossible: the file is damaged", value)
        return self.compare(value, name)
