"""Intervals and tests for a handful of seeds: known values, their limits, and their error rates on null data."""

import math
import statistics

import numpy as np
import pytest
from hypothesis import given, strategies as st

from bitnetctl.analysis.stats import (
    detectable_factor,
    difference,
    holm,
    mean_bound,
    mean_bounds,
    rate_lower,
    rate_upper,
    seeds_needed,
    sign_test_floor,
    sign_test_p,
    student_interval,
)

NAN, INF = math.nan, math.inf
ANY = st.lists(st.none() | st.floats(), max_size=8)


# pairs


@pytest.mark.parametrize(
    ("value", "other", "higher", "lower"),
    [
        (1.0, 0.5, 0.5, 0.5),
        (NAN, 1.0, -INF, INF),
        (2.0, NAN, INF, -INF),
        (INF, NAN, 0.0, 0.0),
        (None, 1.0, None, None),
        (3.0, None, None, None),
    ],
)
def test_a_failed_run_is_infinitely_worse(
    value: float | None, other: float | None, higher: float | None, lower: float | None
) -> None:
    assert (difference(value, other, "higher"), difference(value, other, "lower")) == (higher, lower)


# the sign test


def test_the_sign_test_is_the_binomial_one() -> None:
    # 2 (1 + 10) / 2^10, and all ten
    assert sign_test_p(9, 1) == 22 / 1024
    assert sign_test_p(0, 10) == 2 / 1024
    assert sign_test_p(3, 3) == 1.0
    assert sign_test_p(0, 0) == 1.0


@given(better=st.integers(0, 40), worse=st.integers(0, 40))
def test_the_sign_test_has_two_sides(better: int, worse: int) -> None:
    p = sign_test_p(better, worse)
    assert p == sign_test_p(worse, better)
    assert sign_test_floor(better + worse) <= p <= 1.0


@pytest.mark.parametrize(("tests", "seeds"), [(1, 6), (2, 7), (3, 7), (4, 8), (6, 8), (8, 9), (24, 10)])
def test_seeds_that_a_number_of_tests_needs(tests: int, seeds: int) -> None:
    assert seeds_needed(tests) == seeds
    assert tests * sign_test_floor(seeds) <= 0.05 < tests * sign_test_floor(seeds - 1)


def test_the_floor_of_very_many_seeds_is_not_lost() -> None:
    assert sign_test_floor(1) == 1.0
    assert sign_test_floor(0) == 1.0
    assert sign_test_floor(6) == 0.03125
    assert 0 <= sign_test_p(3000, 0) < 1e-300


# intervals


def test_the_student_interval_is_that_of_the_tables() -> None:
    # t(0.975, 3) = 3.1824463
    mean, spread = statistics.fmean([1, 2, 4, 6]), statistics.stdev([1, 2, 4, 6])
    interval = student_interval([1, 2, None, 4, 6])
    assert interval is not None
    assert interval == pytest.approx((mean - 3.1824463 * spread / 2, mean + 3.1824463 * spread / 2))


@pytest.mark.parametrize("values", [[], [1.0], [None, 1.0], [2.0, 2.0], [1.0, NAN], [1.0, 2.0, -INF]])
def test_an_interval_needs_a_finite_spread(values: list[float | None]) -> None:
    assert student_interval(values) is None


def test_huge_values_do_not_overflow() -> None:
    values = [1e308, 1.7e308, -1e308, 1.2e308]
    interval, low = student_interval([value / 10 for value in values]), mean_bound(values, "low")
    assert interval is not None
    assert interval[0] < statistics.fmean(value / 10 for value in values) < interval[1]
    assert low is not None


@pytest.mark.parametrize("values", [[], [1.0], [None, 1.0], [None, None]])
def test_too_few_samples_are_unknown(values: list[float | None]) -> None:
    assert mean_bound(values, "low") is None
    assert mean_bound(values, "high") is None


@given(values=ANY)
def test_bounds_accept_any_values(values: list[float | None]) -> None:
    low, high = mean_bound(values, "low"), mean_bound(values, "high")
    if low is not None and high is not None:
        assert low <= high
        known = [value for value in values if value is not None]
        if not all(map(math.isfinite, known)):
            assert (low, high) == (-INF, INF)


def test_the_t_bound_is_that_of_the_tables() -> None:
    # t(0.95, 2)
    mean, spread = statistics.fmean([1, 2, 4]), statistics.stdev([1, 2, 4])
    reach = 2.91998558 * spread / math.sqrt(3)
    assert mean_bound([1, 2, 4], "low") == pytest.approx(mean - reach)
    assert mean_bound([1, 2, 4], "high") == pytest.approx(mean + reach)


# multiple tests


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == [0.03, 0.06, 0.06]
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_what_was_not_tested_counts_for_nothing() -> None:
    assert holm([0.01, None, 0.04]) == [0.02, None, 0.04]


@given(p_values=st.lists(st.floats(0, 1), max_size=8))
def test_holm_lies_between_raw_and_bonferroni(p_values: list[float]) -> None:
    for raw, adjusted in zip(p_values, holm(p_values), strict=True):
        assert adjusted is not None
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


def test_a_detectable_effect_needs_enough_seeds_and_grows_with_power_and_tests() -> None:
    # 2^(1-5) = 0.0625
    assert detectable_factor(5) == INF
    assert detectable_factor(5, alpha=0.1) != INF
    assert detectable_factor(6, alpha=0.05 / 3) == INF
    factors = [detectable_factor(10, alpha, power) for alpha, power in ((0.05, 0.5), (0.05, 0.8), (0.05 / 3, 0.8))]
    assert factors == sorted(factors)
    assert detectable_factor(20) < detectable_factor(10)


@pytest.mark.parametrize(("seeds", "tests"), [(6, 1), (8, 3), (12, 24)])
def test_an_effect_of_that_size_is_found_four_times_in_five(seeds: int, tests: int) -> None:
    generator, trials = np.random.default_rng(seeds), 20_000
    spread = generator.standard_normal((trials, seeds)).std(axis=1, ddof=1)
    effect = detectable_factor(seeds, 0.05 / tests) * spread
    better = (generator.standard_normal((trials, seeds)) + effect[:, None] > 0).sum(axis=1)
    found = [sign_test_p(count, seeds - count) <= 0.05 / tests for count in better.tolist()]
    assert np.mean(found) == pytest.approx(0.8, abs=0.012)


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
