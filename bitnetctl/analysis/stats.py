"""Confidence intervals and tests for few seeds; no torch here.

None is unknown, for example for too few samples. A value that is not finite stands for a failed run
and is not left out: it counts as worse than every finite value. scipy is imported inside functions, because loading it
takes longer than a verdict.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, overload

if TYPE_CHECKING:
    from bitnetctl.records.schema import Floats


Better = Literal["higher", "lower"]

RESAMPLES = 99_999
"""Most sign assignments that the permutation test uses: all of them up to 16 pairs, a random sample beyond."""

_BATCH_VALUES = 1 << 20
"""Values resampled at once (some 64 MiB of memory); it does not change the result."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean and its two-sided confidence interval.

    `degenerate` is "constant" where all values are equal (the interval is one point and says nothing about the spread),
    "failures" where a value is not finite (the mean and the interval are unbounded), "bootstrap" where the resamples
    give no interval (it is unbounded).
    """

    mean: float
    low: float
    high: float
    degenerate: Literal["constant", "failures", "bootstrap"] | None = None


@dataclass(frozen=True, kw_only=True)
class PairedEffect:
    """Mean of paired differences, its BCa interval, the p-value of the sign-flip test and the smallest possible one."""

    pairs: int
    mean: float
    low: float | None
    high: float | None
    p: float | None
    p_floor: float
    degenerate: str | None = None


def paired_differences(treated: Sequence[float | None], control: Sequence[float | None], better: Better) -> list[float]:
    """Return treated - control for every pair, negated where lower is better; pairs with an unknown value are left out.

    A failed run is infinitely worse than a finished one; two failed runs are equal.
    """
    sign = 1.0 if better == "higher" else -1.0
    differences = []
    for one, other in zip(treated, control, strict=True):
        if one is None or other is None:
            continue
        if math.isfinite(one) and math.isfinite(other):
            differences.append(sign * one - sign * other)
        elif math.isfinite(one) or math.isfinite(other):
            differences.append(math.inf if math.isfinite(one) else -math.inf)
        else:
            differences.append(0.0)
    return differences


def bca_interval(values: Sequence[float | None], confidence: float = 0.95, seed: int = 0) -> Interval | None:
    """Return the mean and its BCa (bias-corrected and accelerated) bootstrap interval, Efron 1987.

    For pairs, `values` are their differences. None for fewer than two known values. The interval is too narrow for
    fewer than about ten values, so that verdicts use `mean_bound`.
    """
    import numpy as np
    from scipy.stats import bootstrap

    sample = _array(values)
    if len(sample) < 2:
        return None
    if not np.isfinite(sample).all():
        mean = float(sample[~np.isfinite(sample)][0])
        return Interval(mean=mean, low=-math.inf, high=math.inf, degenerate="failures")
    scale = float(np.abs(sample).max()) or 1.0
    scaled = sample / scale
    mean = float(scaled.mean()) * scale
    if (scaled == scaled[0]).all():
        point = float(sample[0])
        return Interval(mean=point, low=point, high=point, degenerate="constant")
    with warnings.catch_warnings():
        # a degenerate bootstrap warns and gives NaN, which is handled below
        warnings.simplefilter("ignore")
        result = bootstrap(
            (scaled,),
            np.mean,
            confidence_level=confidence,
            method="BCa",
            vectorized=True,
            batch=_batch(len(sample)),
            rng=np.random.default_rng(seed),
        ).confidence_interval
    low, high = float(result.low) * scale, float(result.high) * scale
    if math.isnan(low) or math.isnan(high):
        return Interval(mean=mean, low=-math.inf, high=math.inf, degenerate="bootstrap")
    return Interval(mean=mean, low=low, high=high)


def paired_effect(differences: Sequence[float | None], confidence: float = 0.95) -> PairedEffect | None:
    """Return mean, BCa interval and sign-flip p-value of paired differences; None without pairs.

    One pair has a mean only.
    """
    known = [difference for difference in differences if difference is not None]
    floor = sign_flip_floor(len(known))
    if floor is None:
        return None
    interval = bca_interval(known, confidence)
    return PairedEffect(
        pairs=len(known),
        mean=interval.mean if interval else known[0],
        low=interval.low if interval else None,
        high=interval.high if interval else None,
        p=sign_flip_p(known),
        p_floor=floor,
        degenerate=interval.degenerate if interval else "single pair",
    )


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


def sign_flip_p(differences: Sequence[float | None], seed: int = 0) -> float | None:
    """Return the two-sided p-value of the sign-flip permutation test of a zero mean difference.

    None for fewer than two known differences. Exact up to 16 pairs, with 99,999 random sign assignments beyond. Where
    a difference is not finite (a failed run; NaN counts as -infinity), all are replaced by their signed ranks, so that
    a failure has the largest weight and not an infinite one.
    """
    import numpy as np
    from scipy.stats import permutation_test

    sample = _array(differences)
    if len(sample) < 2:
        return None
    if not np.isfinite(sample).all():
        sample = _signed_ranks(np.where(np.isnan(sample), -np.inf, sample))
    if not sample.any():
        return 1.0
    # the test does not depend on the scale, and a sum of huge values would overflow
    sample = sample / np.abs(sample).max()
    result = permutation_test(
        (sample,),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=_batch(len(sample)),
        alternative="two-sided",
        rng=np.random.default_rng(seed),
    )
    return min(1.0, float(result.pvalue))


def sign_flip_floor(pairs: int) -> float | None:
    """Return the smallest p-value that the two-sided sign-flip test can give, 2^(1-n); None without pairs."""
    return 2.0 ** (1 - pairs) if pairs >= 1 else None


@overload
def holm(p_values: Sequence[float]) -> list[float]: ...
@overload
def holm(p_values: Sequence[float | None]) -> list[float | None]: ...
def holm(p_values: Sequence[float | None]) -> list[Any]:
    """Return p-values adjusted for multiple tests by the step-down method of Holm (1979), in the given order.

    An unknown p-value stays unknown and still counts as one of the tests.
    """
    known = sorted((value, index) for index, value in enumerate(p_values) if value is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    running = 0.0
    for rank, (value, index) in enumerate(known):
        running = max(running, min(1.0, (len(p_values) - rank) * value))
        adjusted[index] = running
    return adjusted


def rate_upper(failures: int, runs: int, confidence: float = 0.95) -> float | None:
    """Return the one-sided upper Clopper-Pearson bound on a failure rate; None without runs.

    It is the rate at which `failures` or fewer of `runs` have the probability 1 - confidence; for 0 of n it is
    1 - (1 - confidence)^(1/n): 63 % at n = 3, 45 % at 5, 26 % at 10.
    """
    _check_counts(failures, runs)
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


def smallest_effect(pairs: int, stdev: float, alpha: float = 0.05, power: float = 0.8) -> float | None:
    """Return the minimum detectable effect of n = `pairs` pairs; None where the standard deviation is not finite.

    (t(1 - alpha/2, n-1) + t(power, n-1)) s / sqrt(n), where s (`stdev`) is the standard deviation of the paired
    differences. Infinite where 2^(1-n) > alpha, since the sign-flip test then detects no effect, however large.
    """
    if pairs < 1 or not math.isfinite(stdev) or stdev < 0:
        return None
    if 2.0 ** (1 - pairs) > alpha:
        return math.inf
    from scipy.special import stdtrit

    quantiles = float(stdtrit(pairs - 1, 1 - alpha / 2)) + float(stdtrit(pairs - 1, power))
    return quantiles * stdev / math.sqrt(pairs)


def _check_counts(failures: int, runs: int) -> None:
    if not 0 <= failures <= runs:
        raise ValueError(f"{failures} failures of {runs} runs")


def _batch(values: int) -> int:
    return max(1, _BATCH_VALUES // values)


def _array(values: Sequence[float | None]) -> "Floats":
    import numpy as np

    return np.array([value for value in values if value is not None], dtype=np.float64)


def _signed_ranks(differences: "Floats") -> "Floats":
    """Return the mid-ranks of the absolute differences, with the sign of the difference; 0 stays 0."""
    import numpy as np
    from scipy.stats import rankdata

    ranks: Floats = np.sign(differences) * rankdata(np.abs(differences))
    return ranks


def p_equals(p: float) -> str:
    """Format a p-value, as `p = 0.034`."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
