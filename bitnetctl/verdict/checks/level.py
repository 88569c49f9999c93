"""Checks of values: `probe` (is the probe large enough) and `level` (a measure against two thresholds)."""

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Literal, Self

from pydantic import model_validator

from bitnetctl.config import PositiveInt
from bitnetctl.records import Run
from bitnetctl.verdict import wording
from bitnetctl.verdict.aggregate import Aggregate
from bitnetctl.verdict.checks.aggregated import AggregatedCheck
from bitnetctl.verdict.checks.base import Check, CheckContext, Finding, Seeds, ThresholdCheck, inconclusive
from bitnetctl.verdict.limits import constant_value, limits
from bitnetctl.verdict.outcome import Outcome, number_text
from bitnetctl.verdict.rule import UNDECIDABLE, Levels, PValues, Statement, mean_test

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
                return inconclusive(f"{column} is unknown", brief=f"{column} unknown")
            sizes.append(f"{column} {number_text(size)}")
            if size < least:
                reason = f"{column} {number_text(size)} is less than {least:,}: too small a probe to tell"
                return Finding(Outcome.INVALID, reason, size, f"a probe of fewer than {least:,} {column} cannot tell")
        return Finding(Outcome.SUPPORTED, ", ".join(sizes), brief="the probe is large enough")


class LevelCheck(AggregatedCheck, ThresholdCheck):
    """A measure against two thresholds, at the end, at the end of stage 1 (`at = "boundary"`), or over the steps.

    A supporting threshold that cannot be reached makes the verdict invalid. With `claim = "mean"` the thresholds are
    not for each run but for the mean over seeds, which is tested for any noise within the range of the measure; `range`
    gives it where the measure has none.
    """

    kind: Literal["level"] = "level"
    at: Literal["end", "boundary"] = "end"
    claim: Literal["runs", "mean"] = "runs"
    range: tuple[float, float] | None = None

    @model_validator(mode="after")
    def _check_range(self) -> Self:
        if self.range is not None:
            if self.claim != "mean":
                raise ValueError('range is for claim = "mean"')
            low, high = sorted((self.supporting, self.refuting))
            if not (math.isfinite(sum(self.range)) and self.range[0] < low and high < self.range[1]):
                raise ValueError(f"range: {self.range[0]:g} to {self.range[1]:g} must hold both thresholds inside")
        return self

    @model_validator(mode="after")
    def _check_place(self) -> Self:
        if self.at == "boundary" and (self.over != "end" or self.stage != "run"):
            raise ValueError('at = "boundary" is the end of stage 1: give neither over nor stage')
        return self

    @cached_property
    def aggregate(self) -> Aggregate:
        return super().aggregate if self.at == "end" else Aggregate(last=self.last, stage=1)

    @property
    def about_arm(self) -> bool:
        return self.claim == "mean"

    def judge_setup(self, run: Run) -> Finding | None:
        """Judge whether the supporting threshold can be reached in this run; None where it can or that is unknown."""
        possible = self.aggregate.limits(run, self.measure)
        if possible.undefined is not None:
            return Finding(Outcome.INVALID, possible.undefined, brief=f"{self.measure} has no scale on this probe")
        best = possible.high if self.higher_is_better else possible.low
        if best is not None and self.outcome(best) is not Outcome.SUPPORTED:
            side, name = "most" if self.higher_is_better else "least", self.aggregate.name(self.measure)
            name = self.measure if self.over == "end" else name
            reason = f"{name} {self.supports} of at {side} {number_text(best)} ({possible.why}) cannot be met"
            return Finding(Outcome.INVALID, reason, self.value_of(run), f"{name} {self.supports} is out of reach")
        if possible.damaged is None:
            return None
        return inconclusive(possible.damaged, brief=f"{self.measure} is damaged")

    def judge(self, run: Run, context: CheckContext) -> Finding:
        """Compare the value of the run with both thresholds, if they are for each run."""
        value, name = self.value_of(run), self.aggregate.name(self.measure)
        if value is None:
            return self._unknown(run, name)
        possible = limits(run, self.measure)
        for one in self.aggregate.evaluations(run, self.measure):
            slack = _TOLERANCE * max(1.0, abs(one))
            above = possible.high is not None and one > possible.high + slack
            below = possible.low is not None and one < possible.low - slack
            if math.isfinite(one) and (above or below):
                reason = f"{self.measure} {number_text(one)} is impossible: the file is damaged"
                return inconclusive(reason, value, f"{self.measure} is damaged")
        low, high = self.range or (-math.inf, math.inf)
        if self.claim == "runs" or not math.isfinite(value):
            return self.compare(value, name)
        if not low <= value <= high:
            outside = "is outside of the declared range"
            return Finding(Outcome.INVALID, f"{name} {number_text(value)} {outside}", value, f"{name} {outside}")
        reason = f"{name} {number_text(value)} is one value of the mean"
        return Finding(Outcome.SUPPORTED, reason, value, f"{name} known")

    def _unknown(self, run: Run, name: str) -> Finding:
        why = self.aggregate.why_unknown(run)
        if why:
            return inconclusive(f"{name} is unknown: {why}", brief=f"{name} unknown")
        evaluations = f" in the last {self.last} evaluations" if self.last > 1 else ""
        return inconclusive(f"{name} is unknown{evaluations}", brief=f"{name} unknown")

    def judge_seeds(self, seeds: Seeds, context: CheckContext) -> Statement:
        """Test the mean over the planned seeds against both thresholds; an unknown value leaves it open."""
        known = [one.value(self.label) for one in seeds.checked]
        values = [value for value in known if value is not None and math.isfinite(value)]
        supporting_limit, refuting_limit = self._limits([one.run for one in seeds.checked])
        mean = sum(value / len(values) for value in values) if values else None
        p = UNDECIDABLE
        low, high = self.range or (-math.inf, math.inf)
        is_complete = len(values) == seeds.planned and not seeds.repeated
        if is_complete and all(low <= value <= high for value in values):
            p = PValues(
                _mean_p(values, self.supporting, supporting_limit), _mean_p(values, self.refuting, refuting_limit)
            )
        unlimited = [
            what for what, limit in (("support", supporting_limit), ("refute", refuting_limit)) if limit is None
        ]

        def describe(outcome: Outcome, levels: Levels) -> str:
            if seeds.repeated:
                return wording.mean_of_repeats(self.label)
            return wording.mean_claim(
                self.label, outcome, mean, len(values), seeds.planned, (self.supports, self.refutes), p, unlimited
            )

        def summarize(outcome: Outcome) -> str:
            return wording.mean_briefly(self.short, outcome, mean, (self.supports, self.refutes))

        return Statement(check=self.label, p=p, describe=describe, value=mean, summarize=summarize, **self.condition)

    def _limits(self, runs: Sequence[Run]) -> tuple[float | None, float | None]:
        """Return the values that none can pass, on the bad side of the supporting threshold and on the good side."""
        low, high = self.range or (None, None)
        if self.range is None:
            possible = [self.aggregate.limits(run, self.measure) for run in runs]
            lows, highs = [one.low for one in possible], [one.high for one in possible]
            low = min((value for value in lows if value is not None), default=None) if None not in lows else None
            high = max((value for value in highs if value is not None), default=None) if None not in highs else None
        return (low, high) if self.higher_is_better else (high, low)


def _mean_p(values: Sequence[float], threshold: float, limit: float | None) -> float:
    return 1.0 if limit is None else mean_test(values, threshold, limit)
