"""Confidence intervals and tests for few seeds; no torch here.

None is unknown, for example for too few samples. A value that is not finite stands for a failed run
and is not left out: it counts as worse than every finite value. scipy is imported inside functions, because loading it
takes longer than a verdict.
"""

import functools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from bitnetctl.records.schema import Floats


Better = Literal["higher", "lower"]

SIGNIFICANT = 0.05
"""Largest adjusted p-value at which a difference is told from chance."""

_QUANTILES = 400
"""Points at which the sampling distribution of a standard deviation is averaged."""


def difference(value: float | None, other: float | None, better: Better) -> float | None:
    """Return value - other; None where one is unknown.

    A value that is not finite, of a failed run, is infinitely worse than a finite one; two of them are equal.
    """
    if value is None or other is None:
        return None
    if math.isfinite(value) and math.isfinite(other):
        return value - other
    if math.isfinite(value) == math.isfinite(other):
        return 0.0
    best = math.inf if better == "higher" else -math.inf
    return best if math.isfinite(value) else -best


def mean(values: Sequence[float]) -> float:
    """Return the mean, also where the sum would overflow; raises ZeroDivisionError without values."""
    total = sum(values)
    return total / len(values) if math.isfinite(total) else sum(value / len(values) for value in values)


def sign_test_p(better: int, worse: int) -> float:
    """Return the two-sided p-value of the exact sign test, from the numbers of seeds with an arm better and worse.

    The null hypothesis is that a seed is as likely to be better as to be worse, whatever the law of the differences;
    it is true of an arm that changes nothing. Seeds without a difference are left out. It is a test of the median seed
    and not of the mean. Twice the binomial tail P(X >= max(better, worse)) at a rate of 1/2.
    """
    seeds = better + worse
    tail = sum(math.comb(seeds, count) for count in range(max(better, worse), seeds + 1))
    return min(1.0, 2 * tail / (1 << seeds))


def sign_test_floor(seeds: int) -> float:
    """Return the smallest p-value that the sign test can give, 2^(1-n)."""
    return min(1.0, 2 / (1 << seeds))


def seeds_needed(tests: int) -> int:
    """Return how many seeds the sign test needs to reach SIGNIFICANT as the smallest of so many p-values, by Holm."""
    return math.ceil(1 + math.log2(tests / SIGNIFICANT))


def student_interval(values: Sequence[float | None]) -> tuple[float, float] | None:
    """Return the two-sided 95 % Student-t confidence interval of the mean, mean ± t(n-1) s / sqrt(n).

    None for fewer than two known values, where one is not finite, and where all are equal: their spread is unknown,
    not zero.
    """
    import numpy as np

    sample = _array(values)
    if len(sample) < 2 or not np.isfinite(sample).all() or (sample == sample[0]).all():
        return None
    scale = float(np.abs(sample).max())
    scaled_1N = sample[None, :] / scale
    sides: tuple[Literal["low", "high"], ...] = ("low", "high")
    low, high = (float(mean_bounds(scaled_1N, side, 0.975)[0]) * scale for side in sides)
    return low, high


def mean_bound(values: Sequence[float | None], side: Literal["low", "high"], confidence: float = 0.95) -> float | None:
    """Return the one-sided Student-t confidence bound of the mean; None for fewer than two known values.

    The low one is mean - t(confidence, n-1) s / sqrt(n). Its error rate is 1 - confidence for normal values at any n;
    a bootstrap of three to five seeds errs two to three times as often. It is infinite where a value is not finite.
    """
    import numpy as np

    sample = _array(values)
    if len(sample) < 2:
        return None
    if not np.isfinite(sample).all():
        return -math.inf if side == "low" else math.inf
    scale = float(np.abs(sample).max()) or 1.0
    return float(mean_bounds(sample[None, :] / scale, side, confidence)[0]) * scale


def mean_bounds(samples_SN: "Floats", side: Literal["low", "high"], confidence: float) -> "Floats":
    """Return `mean_bound` of every row: (S, N) -> (S,), S samples of N values."""
    from scipy.special import stdtrit

    count = samples_SN.shape[1]
    margin = float(stdtrit(count - 1, confidence)) * samples_SN.std(axis=1, ddof=1) / math.sqrt(count)
    bounds: Floats = samples_SN.mean(axis=1) + (margin if side == "high" else -margin)
    return bounds


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return p-values adjusted for multiple tests by the step-down method of Holm (1979), in the given order.

    None, where there was no test, stays None and counts for nothing.
    """
    tests = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    running = 0.0
    for rank, (p, index) in enumerate(tests):
        running = max(running, min(1.0, (len(tests) - rank) * p))
        adjusted[index] = running
    return adjusted


def is_significant(p_holm: float | None) -> bool:
    """Whether an adjusted p-value tells a difference from chance."""
    return p_holm is not None and p_holm < SIGNIFICANT


def rate_upper(failures: int, runs: int, confidence: float = 0.95) -> float | None:
    """Return the one-sided upper Clopper-Pearson bound on a failure rate; None without runs.

    It is the rate at which `failures` or fewer of `runs` have the probability 1 - confidence; for 0 of n it is
    1 - (1 - confidence)^(1/n): 63 % at n = 3, 45 % at 5, 26 % at 10.
    """
    if not 0 <= failures <= runs:
        raise ValueError(f"{failures} failures of {runs} runs")
    if runs == 0:
        return None
    if failures == runs:
        return 1.0
    from scipy.special import betaincinv

    return float(betaincinv(failures + 1, runs - failures, confidence))


def rate_lower(failures: int, runs: int, confidence: float = 0.95) -> float | None:
    """Return the one-sided lower Clopper-Pearson bound on a failure rate; None without runs."""
    upper = rate_upper(runs - failures, runs, confidence)
    return None if upper is None else 1.0 - upper


@functools.lru_cache(maxsize=256)
def detectable_factor(seeds: int, alpha: float = SIGNIFICANT, power: float = 0.8) -> float:
    """Return the mean difference, in estimated standard deviations, that the sign test at `alpha` finds with `power`.

    For normal differences: n seeds estimate the standard deviation, and n new ones with the mean difference
    f s are tested. A seed is better with probability Phi(f s / sigma), and at least c of n, the fewest that the test
    takes, are with a probability that is averaged over the law of s. Infinite where no c is enough: 2^(1-n) > alpha.
    """
    needed = next(
        (count for count in range(seeds // 2 + 1, seeds + 1) if sign_test_p(count, seeds - count) <= alpha), None
    )
    if needed is None:
        return math.inf
    import numpy as np
    from scipy.special import betainc, gammaincinv, ndtr

    middles = (np.arange(_QUANTILES) + 0.5) / _QUANTILES
    spreads = np.sqrt(gammaincinv((seeds - 1) / 2, middles) * 2 / (seeds - 1))

    def found(factor: float) -> float:
        return float(betainc(needed, seeds - needed + 1, ndtr(factor * spreads)).mean())

    low, high = 0.0, 1.0
    while found(high) < power:
        high *= 2
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if found(middle) < power else (low, middle)
    return high


def _array(values: Sequence[float | None]) -> "Floats":
    import numpy as np

    return np.array([value for value in values if value is not None], dtype=np.float64)
