"""The power of claims about pairs: against sums over all outcomes, and against the tests that judge."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm, t as student_t

from bitnetctl.errors import ConfigError
from bitnetctl.verdict import Criteria, parse_criteria
from bitnetctl.verdict.checks.pair_tests import Pairs
from bitnetctl.verdict.criteria import SeedRule
from bitnetctl.verdict.power import Effect, power, seeds_needed, worth_planning

PAIRED = {"kind": "paired", "measure": "HeldOutLoss", "better": "lower", "margin": 0.1}
EQUIVALENT = {"kind": "equivalent", "measure": "HeldOutLoss", "within": 0.1}
INTERACTION = {**PAIRED, "kind": "interaction", "modifier": "full-precision"}


def criteria(*checks: dict[str, Any], **rule: Any) -> Criteria:
    tree = {"seeds": {"rule": "rate", **rule}, "checks": [{"kind": "finite"}, {"kind": "finished"}, *checks]}
    return parse_criteria(tree)


def power_of(check: dict[str, Any], seeds: int, effect: Effect, **options: Any) -> float:
    chosen = criteria(check)
    return power(chosen.comparisons, seeds, effect, chosen.seeds, **options).value


def by_outcomes(check: dict[str, Any], seeds: int, values: dict[float, float], level: float) -> float:
    """Sum the probability of every outcome that supports; `values` are those of a pair and their probabilities."""
    [judge] = criteria(check).comparisons
    total = 0.0
    for outcome in itertools.product(values, repeat=seeds):
        if judge.test(Pairs(values=outcome, planned=seeds)).supporting < level:
            total += math.prod(values[value] for value in outcome)
    return total


@pytest.mark.parametrize("seeds", [4, 5, 8, 9])
@pytest.mark.parametrize("check", [PAIRED, INTERACTION])
def test_the_power_of_a_sign_test_is_the_sum_over_all_outcomes(check: dict[str, Any], seeds: int) -> None:
    wins = float(norm.cdf(1.2))
    expected = by_outcomes(check, seeds, {1.0: wins, -1.0: 1 - wins}, 0.05)
    assert power_of(check, seeds, Effect(effect=1.2)) == pytest.approx(expected)
    assert power_of(check, seeds, Effect(effect=0.1 + 1.2 * 0.02, sd=0.02)) == pytest.approx(expected)
    assert (expected == 0) is (seeds == 4)


@pytest.mark.parametrize(("seeds", "difference"), [(5, 0.0), (7, 0.03), (8, -0.05)])
def test_the_power_of_both_sign_tests_is_the_sum_over_all_outcomes(seeds: int, difference: float) -> None:
    effect = Effect(effect=difference, sd=0.06)
    low, high = float(norm.cdf((-0.1 - difference) / 0.06)), float(norm.sf((0.1 - difference) / 0.06))
    expected = by_outcomes(EQUIVALENT, seeds, {0.0: 1 - low - high, 1.0: high, -1.0: low}, 0.05)
    assert power_of(EQUIVALENT, seeds, effect) == pytest.approx(expected)


def test_heavy_tails_have_the_same_quartiles() -> None:
    quartile = float(norm.ppf(0.75))
    at_quartile = [power_of(PAIRED, 8, Effect(effect=quartile, noise=noise)) for noise in ("normal", "heavy")]
    assert at_quartile[0] == pytest.approx(at_quartile[1])
    wins = float(student_t.cdf(2 * student_t.ppf(0.75, 3) / quartile, 3))
    expected = 8 * wins**7 * (1 - wins) + wins**8
    assert power_of(PAIRED, 8, Effect(effect=2, noise="heavy")) == pytest.approx(expected)


def test_the_power_of_a_claim_about_the_mean_is_how_often_its_tests_support() -> None:
    mean = PAIRED | {"claim": "mean"}
    [judge] = criteria(mean).comparisons
    generator = np.random.default_rng(0)
    draws = 1.5 + generator.standard_normal((2000, 8))
    found = np.mean([judge.test(Pairs(values=tuple(row), planned=8)).supporting < 0.05 for row in draws.tolist()])
    chosen = criteria(mean)
    simulated = power(chosen.comparisons, 8, Effect(effect=1.5), chosen.seeds)
    assert 0 < simulated.standard_error < 0.01
    assert simulated.value == pytest.approx(float(found), abs=4 * math.sqrt(2) * simulated.standard_error)
    # the same seed, the same figure
    assert simulated == power(chosen.comparisons, 8, Effect(effect=1.5), chosen.seeds)
    assert simulated.value < power_of(PAIRED, 8, Effect(effect=1.5)) + 4 * simulated.standard_error


def test_a_bet_within_a_range_needs_more_seeds_than_signs() -> None:
    bet = criteria(PAIRED | {"claim": "mean", "range": [-1, 1]})
    effect = Effect(effect=0.5, sd=0.1)
    by_bet = seeds_needed(bet.comparisons, effect, bet.seeds)
    by_signs = seeds_needed(criteria(PAIRED).comparisons, effect, bet.seeds)
    assert by_bet is not None
    assert by_signs is not None
    assert by_bet > by_signs


@pytest.mark.parametrize(
    ("check", "effect", "options", "needed"),
    [
        (PAIRED, Effect(effect=1.5), {}, 8),
        (PAIRED, Effect(effect=1.5), {"arms": 2}, 9),
        (PAIRED, Effect(effect=10), {}, 5),
        (PAIRED, Effect(effect=10), {"arms": 8}, 8),
        (EQUIVALENT, Effect(effect=0.0, sd=0.05), {}, 8),
        (EQUIVALENT, Effect(effect=0.0, sd=0.01), {}, 5),
        # what is not true is never shown
        (PAIRED, Effect(effect=0.0), {}, None),
        (EQUIVALENT, Effect(effect=0.1, sd=0.05), {}, None),
    ],
)
def test_seeds_needed(check: dict[str, Any], effect: Effect, options: dict[str, Any], needed: int | None) -> None:
    chosen = criteria(check)
    found = seeds_needed(chosen.comparisons, effect, chosen.seeds, **options)
    assert found == needed
    if found is not None:
        assert power_of(check, found, effect, **options) >= 0.8
        assert power_of(check, found - 1, effect, **options) < 0.8


def test_the_failure_rate_counts_too() -> None:
    strict = criteria(PAIRED, max_failure_rate=0.1)
    # 29 healthy seeds rule out a rate of 10 %
    assert seeds_needed(strict.comparisons, Effect(effect=10), strict.seeds) == 29
    assert power(strict.comparisons, 28, Effect(effect=10), strict.seeds).value == 0


def test_several_claims_have_at_least_the_power_that_is_said() -> None:
    both = criteria(PAIRED, EQUIVALENT | {"measure": "TopShare"})
    effect = Effect(effect=0.05, sd=0.02)
    each = [power([check], 11, effect, both.seeds).value for check in both.comparisons]
    assert power(both.comparisons, 11, effect, both.seeds).value == pytest.approx(max(0.0, sum(each) - 1))


def test_every_size_has_to_be_supported() -> None:
    both = criteria(PAIRED)
    effect = Effect(effect=2.0)
    one, four = (power(both.comparisons, 9, effect, both.seeds, sizes=sizes).value for sizes in (1, 4))
    assert four == pytest.approx(1 - 4 * (1 - one))
    assert 0 < four < one**4 < one
    fewer, more = (seeds_needed(both.comparisons, effect, both.seeds, sizes=sizes) or 0 for sizes in (1, 4))
    assert 0 < fewer < more


def test_numbers_worth_planning_have_more_power_than_any_smaller_one() -> None:
    chosen = criteria(PAIRED)
    assert worth_planning(chosen.comparisons, Effect(effect=1.0), chosen.seeds, up_to=13) == [5, 8, 11, 13]
    many = worth_planning(chosen.comparisons, Effect(effect=0.3), chosen.seeds, up_to=200)
    assert (len(many), many[0]) == (10, 5)


def test_a_limit_in_units_needs_the_spread_in_units() -> None:
    for check in (EQUIVALENT, PAIRED | {"claim": "mean", "range": [-1, 1]}):
        with pytest.raises(ConfigError, match=r"give the standard deviation of the pairs in it \(--sd\)"):
            power_of(check, 8, Effect(effect=0.0))


def test_the_rule_of_a_level_of_its_own() -> None:
    assert power(criteria(PAIRED).comparisons, 5, Effect(effect=50), SeedRule(rule="rate", confidence=0.99)).value == 0
