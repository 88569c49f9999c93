"""Tests of the median and the mean over pairs, and distribution-free bounds of the median.

Order statistics and signs take infinite values, which stand for failed runs.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from bitnetctl.verdict.rule import UNDECIDABLE, Levels, PValues, at_least, mean_test


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """One value for every seed, and how many were planned; the others are lost.

    The values of `paired` and `interaction` are improvements beyond the margin, those of `equivalent` differences. One
    is infinite where a run failed. Where a seed was repeated, or its value cannot be told, `values` has the least that
    it can be and `of_repeats` the greatest. `failed` counts the seeds with a failed run, by the arms compared;
    `unknown` is why a finished run has no value, where that loses a pair.
    """

    values: tuple[float, ...]
    planned: int
    of_repeats: tuple[float, ...] = ()
    seeds: tuple[int | None, ...] = ()
    failed: tuple[int, ...] = ()
    unknown: str = ""

    @property
    def greatest(self) -> tuple[float, ...]:
        """The greatest value of every seed, the only one where none was repeated."""
        return self.of_repeats or self.values

    @property
    def wins(self) -> int:
        return sum(value > 0 for value in self.values)

    @property
    def losses(self) -> int:
        return sum(value < 0 for value in self.greatest)

    def inside(self, within: float) -> int:
        """Return how many are between -within and within."""
        return sum(-within < least and most < within for least, most in zip(self.values, self.greatest, strict=True))

    @property
    def complete(self) -> bool:
        """Whether every planned pair is there, and no other."""
        return len(self.values) == self.planned > 0

    def by_seed(self) -> tuple[Mapping[str, float], Mapping[str, float]]:
        """Return the value of every seed, and the greatest of those that are not told apart."""
        least, most = (dict(zip(map(str, self.seeds), values, strict=True)) for values in (self.values, self.greatest))
        return least, {name: value for name, value in most.items() if value != least[name]}


def sign_test(pairs: Pairs) -> PValues:
    """Return the exact one-sided p-values of the sign test: the median pair is above 0, or below.

    A pair that is lost or equal helps neither side. It holds for any noise, failures included.
    """
    return PValues(_sign_p(pairs.wins, pairs), _against_p(pairs.losses, pairs))


def _sign_p(count: int, pairs: Pairs) -> float:
    return at_least(count, pairs.planned, 0.5) if pairs.complete else 1.0


def _against_p(count: int, pairs: Pairs) -> float:
    return at_least(count, max(pairs.planned, len(pairs.values)), 0.5)


def two_sign_tests(pairs: Pairs, within: float) -> PValues:
    """Return exact p-values about the median of the differences: it lies between -within and within, or not.

    Support takes both one-sided tests, so that the p-value is the larger one. Refutation takes either of the opposite
    ones: differences of which half are far above and half far below reject each as often as it may, so that both share
    the level and the p-value is twice the smaller one.
    """
    below = sum(value < within for value in pairs.greatest)
    above = sum(value > -within for value in pairs.values)
    too_high = sum(value > within for value in pairs.values)
    too_low = sum(value < -within for value in pairs.greatest)
    return PValues(
        max(_sign_p(below, pairs), _sign_p(above, pairs)),
        min(1.0, 2 * min(_against_p(too_high, pairs), _against_p(too_low, pairs))),
    )


def student_test(pairs: Pairs) -> PValues:
    """Return the one-sided p-values of Student's test of the mean; 1 where a run failed."""
    if not pairs.complete:
        return UNDECIDABLE
    return PValues(_student_p(pairs.values), _student_p([-value for value in pairs.greatest]))


def two_student_tests(pairs: Pairs, within: float) -> PValues:
    """Return the p-values of Student's tests of a mean between -within and within, combined as by `two_sign_tests`."""
    if not pairs.complete:
        return UNDECIDABLE
    low, high = pairs.values, pairs.greatest
    inside = (_student_p([within - value for value in high]), _student_p([within + value for value in low]))
    outside = (_student_p([value - within for value in low]), _student_p([-within - value for value in high]))
    return PValues(max(inside), min(1.0, 2 * min(outside)))


def _student_p(values: Sequence[float]) -> float:
    """Return the p-value of a mean of at most 0."""
    count = len(values)
    # of equal values the spread is unknown, not 0
    if count < 2 or not all(map(math.isfinite, values)) or min(values) == max(values):
        return 1.0
    from scipy.special import stdtr

    mean = fmean(values)
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    return float(stdtr(count - 1, -mean / (spread / math.sqrt(count))))


def bet_on_mean(pairs: Pairs, limits: tuple[float, float]) -> PValues:
    """Return p-values of the mean for any noise within the limits; 1 if a value is outside, as that of a failure is."""
    low, high = limits
    if not _within_limits(pairs, limits):
        return UNDECIDABLE
    return PValues(mean_test(pairs.values, 0.0, low), mean_test(pairs.greatest, 0.0, high))


def two_bets_on_mean(pairs: Pairs, limits: tuple[float, float], within: float) -> PValues:
    """Return those of a mean between -within and within, combined as by `two_sign_tests`."""
    low, high = limits
    if not _within_limits(pairs, limits):
        return UNDECIDABLE
    inside = (mean_test(pairs.greatest, within, high), mean_test(pairs.values, -within, low))
    outside = (mean_test(pairs.values, within, low), mean_test(pairs.greatest, -within, high))
    return PValues(max(inside), min(1.0, 2 * min(outside)))


def _within_limits(pairs: Pairs, limits: tuple[float, float]) -> bool:
    low, high = limits
    return pairs.complete and all(low <= value <= high for value in (*pairs.values, *pairs.greatest))


def median_bounds(pairs: Pairs, levels: Levels) -> tuple[float | None, float | None]:
    """Return one-sided bounds of the median, the lower at the level of support, the upper at that of refutation.

    They are order statistics and hold for any noise: the median is below the k-th smallest of n values with a
    probability of at most P(fewer than k of n coins show heads). None where so few pairs allow no bound, or some are
    lost. The lower bound is above 0 where the sign test supports, the upper one below 0 where it refutes.
    """
    return (
        median_bound(pairs, levels.supporting, "low"),
        median_bound(pairs, levels.refuting, "high"),
    )


def median_bound(pairs: Pairs, level: float, side: str) -> float | None:
    """Return a one-sided bound of the median at a level, `low` or `high`; None where there is none."""
    count = len(pairs.values)
    if not pairs.complete:
        return None
    rank = next((k for k in range(count // 2 + 1, 0, -1) if at_least(count - k + 1, count, 0.5) < level), None)
    if rank is None:
        return None
    return sorted(pairs.values)[rank - 1] if side == "low" else sorted(pairs.greatest)[count - rank]
