"""Intervals and tests for a handful of seeds: known values, their limits, and their error rates on null data."""

import itertools
import math
import statistics

import numpy as np
import pytest
from hypothesis import given, strategies as st

from bitnetctl.analysis.stats import (
    bca_interval,
    holm,
    mean_bound,
    mean_bounds,
    paired_differences,
    paired_effect,
    rate_lower,
    rate_upper,
    sign_flip_floor,
    sign_flip_p,
    smallest_effect,
)

NAN, INF = math.nan, math.inf
ANY = st.lists(st.none() | st.floats(), max_size=8)


# pairs


def test_differences_are_improvements_and_failures_are_worst() -> None:
    treated, control = [1.0, NAN, 2.0, INF, None, 3.0], [0.5, 1.0, NAN, NAN, 1.0, None]
    assert paired_differences(treated, control, "higher") == [0.5, -INF, INF, 0.0]
    assert paired_differences(treated, control, "lower") == [-0.5, -INF, INF, 0.0]


def test_unequal_numbers_of_values_are_refused() -> None:
    with pytest.raises(ValueError, match="argument 2"):
        paired_differences([1.0], [1.0, 2.0], "higher")


# the sign-flip test


def brute_force(differences: list[float]) -> float:
    """Return the fraction of all sign assignments whose mean is as extreme: the smaller tail, doubled."""
    means = [
        math.fsum(sign * abs(value) for sign, value in zip(signs, differences, strict=True))
        for signs in itertools.product((1, -1), repeat=len(differences))
    ]
    seen, slack = math.fsum(differences), 1e-9
    tails = sum(mean >= seen - slack for mean in means), sum(mean <= seen + slack for mean in means)
    return min(1.0, 2 * min(tails) / len(means))


@pytest.mark.parametrize("differences", [[1, 2, 3], [1, -2, 3, 4], [0.5, 0.25, -1, 3, 0], [3, 1, 4, 1, 5, 9, -2, 6]])
def test_the_sign_flip_test_is_exact(differences: list[float]) -> None:
    assert sign_flip_p(differences) == pytest.approx(brute_force(differences))


@pytest.mark.parametrize("count", range(2, 13))
def test_the_smallest_p_value_is_reached(count: int) -> None:
    floor = 2.0 ** (1 - count)
    assert sign_flip_floor(count) == floor
    assert sign_flip_p([0.1 * index + 1 for index in range(count)]) == pytest.approx(floor)


def test_the_floor_for_a_few_pairs() -> None:
    assert (sign_flip_floor(5), sign_flip_floor(6)) == (0.0625, 0.03125)
    assert sign_flip_floor(0) is None


def test_a_failure_has_the_largest_rank() -> None:
    assert sign_flip_p([1.0, 2.0, -INF]) == brute_force([1, 2, -3])
    assert sign_flip_p([1.0, 2.0, NAN]) == brute_force([1, 2, -3])
    assert sign_flip_p([1.0, 2.0, 3.0, INF]) == sign_flip_p([1.0, 2.0, 3.0, 4.0])
    assert sign_flip_p([INF, -INF]) == 1.0


def test_no_difference_is_no_evidence() -> None:
    assert sign_flip_p([0.0, 0.0, 0.0]) == 1.0
    assert sign_flip_p([0.0, NAN, 0.0]) == 1.0


@pytest.mark.parametrize("values", [[], [1.0], [None, 1.0], [None, None]])
def test_too_few_samples_are_unknown(values: list[float | None]) -> None:
    assert sign_flip_p(values) is None
    assert bca_interval(values) is None
    assert mean_bound(values, "low") is None
    assert mean_bound(values, "high") is None


def test_the_sample_of_many_pairs_is_reproducible() -> None:
    differences = [math.sin(index) + 0.3 for index in range(20)]
    first = sign_flip_p(differences)
    assert first == sign_flip_p(differences)
    assert first is not None
    assert 0 < first < 1


# intervals


def test_the_bca_interval_contains_the_mean_and_is_reproducible() -> None:
    values = [0.1, 0.4, 0.2, 0.9, 0.3, 0.5]
    interval = bca_interval(values)
    assert interval is not None
    assert interval == bca_interval(values)
    assert interval != bca_interval(values, seed=1)
    assert interval.mean == pytest.approx(statistics.fmean(values))
    assert min(values) < interval.low < interval.mean < interval.high < max(values)
    assert interval.degenerate is None
    narrow = bca_interval(values, confidence=0.5)
    assert narrow is not None
    assert interval.low < narrow.low < narrow.high < interval.high


def test_the_bca_interval_leans_with_the_skew() -> None:
    interval = bca_interval([0.0, 0.0, 0.1, 0.1, 0.2, 3.0])
    assert interval is not None
    assert interval.high - interval.mean > 2 * (interval.mean - interval.low)


def test_degenerate_samples_are_marked() -> None:
    constant = bca_interval([2.0, 2.0, 2.0])
    assert constant is not None
    assert (constant.low, constant.high, constant.degenerate) == (2.0, 2.0, "constant")
    failed = bca_interval([1.0, 2.0, NAN])
    assert failed is not None
    assert (failed.low, failed.high, failed.degenerate) == (-INF, INF, "failures")
    zero = bca_interval([0.0, 0.0])
    assert zero is not None
    assert zero.degenerate == "constant"


def test_huge_values_do_not_overflow() -> None:
    values = [1e308, 1.7e308, -1e308, 1.2e308]
    interval, low = bca_interval(values), mean_bound(values, "low")
    assert interval is not None
    assert interval.low <= interval.mean <= interval.high
    assert low is not None
    assert low < interval.mean


@given(values=ANY)
def test_intervals_accept_any_values(values: list[float | None]) -> None:
    low, high = mean_bound(values, "low"), mean_bound(values, "high")
    if low is not None and high is not None:
        assert low <= high
        known = [value for value in values if value is not None]
        if not all(map(math.isfinite, known)):
            assert (low, high) == (-INF, INF)
    p = sign_flip_p(values)
    assert p is None or 0 < p <= 1


def test_the_t_bound_is_that_of_the_tables() -> None:
    # t(0.95, 2)
    mean, spread = statistics.fmean([1, 2, 4]), statistics.stdev([1, 2, 4])
    reach = 2.91998558 * spread / math.sqrt(3)
    assert mean_bound([1, 2, 4], "low") == pytest.approx(mean - reach)
    assert mean_bound([1, 2, 4], "high") == pytest.approx(mean + reach)


# pairs, all together


def test_a_paired_effect_has_what_its_pairs_allow() -> None:
    assert paired_effect([]) is None
    assert paired_effect([None]) is None
    one = paired_effect([0.5])
    assert one is not None
    assert (one.mean, one.low, one.high, one.p, one.p_floor) == (0.5, None, None, None, 1.0)
    five = paired_effect([0.5, 0.6, 0.4, 0.5, 0.7, None])
    assert five is not None
    assert (five.pairs, five.p, five.p_floor) == (5, 0.0625, 0.0625)
    assert five.low is not None
    assert five.high is not None
    assert 0.4 <= five.low < five.mean < five.high <= 0.7


# multiple tests


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == [0.03, 0.06, 0.06]
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_an_unknown_p_value_still_counts() -> None:
    assert holm([0.01, None, 0.04]) == [0.03, None, 0.08]


@given(p_values=st.lists(st.floats(0, 1), max_size=8))
def test_holm_lies_between_raw_and_bonferroni(p_values: list[float]) -> None:
    for raw, adjusted in zip(p_values, holm(p_values), strict=True):
        assert raw <= adjusted <= min(1.0, len(p_values) * raw)


# rates


@pytest.mark.parametrize(("runs", "percent"), [(1, 95), (3, 63), (5, 45), (10, 26)])
def test_the_rate_bound_without_failures_is_high_for_few_seeds(runs: int, percent: int) -> None:
    bound = rate_upper(0, runs)
    assert bound == pytest.approx(1 - 0.05 ** (1 / runs))
    assert round(100 * (bound or 0)) == percent


def binomial_cdf(successes: int, runs: int, rate: float) -> float:
    return sum(math.comb(runs, k) * rate**k * (1 - rate) ** (runs - k) for k in range(successes + 1))


@pytest.mark.parametrize(("failures", "runs"), [(1, 3), (2, 5), (4, 10), (9, 10)])
def test_rate_bounds_are_clopper_pearson(failures: int, runs: int) -> None:
    upper, lower = rate_upper(failures, runs), rate_lower(failures, runs)
    assert upper is not None
    assert lower is not None
    assert binomial_cdf(failures, runs, upper) == pytest.approx(0.05)
    assert 1 - binomial_cdf(failures - 1, runs, lower) == pytest.approx(0.05)


def test_rate_bounds_at_the_ends() -> None:
    assert (rate_upper(3, 3), rate_lower(0, 3)) == (1.0, 0.0)
    assert (rate_upper(0, 0), rate_lower(0, 0)) == (None, None)
    for failures, runs in ((4, 3), (-1, 3)):
        with pytest.raises(ValueError, match="failures"):
            rate_upper(failures, runs)


# detectable effects


def test_the_smallest_effect() -> None:
    # t(0.975, 5) = 2.570582, t(0.8, 5) = 0.919544
    assert smallest_effect(6, 0.2) == pytest.approx((2.570582 + 0.919544) * 0.2 / math.sqrt(6), rel=1e-5)
    assert smallest_effect(5, 0.2) == INF
    assert smallest_effect(5, 0.2, alpha=0.1) != INF
    assert smallest_effect(0, 0.2) is None
    assert smallest_effect(6, NAN) is None
    assert smallest_effect(6, -1.0) is None
    assert smallest_effect(6, 0.0) == 0.0


def test_an_effect_of_that_size_is_detected_four_times_in_five() -> None:
    generator = np.random.default_rng(0)
    effect = smallest_effect(8, 1.0)
    assert effect is not None
    samples = generator.standard_normal((4_000, 8)) + effect
    reach = 2.364624 * samples.std(axis=1, ddof=1) / math.sqrt(8)
    assert np.mean(np.abs(samples.mean(axis=1)) > reach) == pytest.approx(0.8, abs=0.03)


# calibration: error rates on null data are at most the nominal ones


def margin(rate: float, trials: int) -> float:
    """Return what an observed rate exceeds with a probability of about 1 in 1,000."""
    return rate + 3.1 * math.sqrt(rate * (1 - rate) / trials)


@pytest.mark.parametrize("seeds", [3, 5, 6, 10])
@pytest.mark.parametrize("law", ["normal", "uniform", "heavy"])
def test_the_bound_has_its_nominal_error_rate(seeds: int, law: str) -> None:
    generator, trials = np.random.default_rng(seeds), 20_000
    draws = {
        "normal": generator.standard_normal((trials, seeds)),
        "uniform": generator.uniform(-1, 1, (trials, seeds)),
        "heavy": generator.standard_t(3, (trials, seeds)),
    }[law]
    for side, sign in (("low", 1), ("high", -1)):
        false = np.mean(sign * mean_bounds(draws, side, 0.95) > 0)  # type: ignore[arg-type]
        # the spread of a few uniform values is underestimated
        assert false < margin(0.065 if law == "uniform" else 0.05, trials)


@pytest.mark.parametrize("seeds", [5, 6, 8])
def test_the_sign_flip_test_keeps_its_error_rate(seeds: int) -> None:
    generator, trials = np.random.default_rng(seeds), 1_000
    samples = generator.standard_t(3, (trials, seeds))
    p_values = [sign_flip_p(list(sample)) for sample in samples]
    for alpha in (0.05, 0.1, 0.3):
        assert np.mean([p is not None and p <= alpha for p in p_values]) < margin(alpha, trials)
