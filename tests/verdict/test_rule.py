"""The rule over seeds against values worked out by hand: binomial p-values, bounds, Holm's levels, bets on a mean."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from math import comb
from pathlib import Path

import pytest
from hypothesis import given, strategies as st
from synthetic import healthy_run

from bitnetctl.analysis.stats import holm, rate_lower, rate_upper
from bitnetctl.records import Run
from bitnetctl.verdict import JudgeOptions, Outcome, Verdict, judge, judge_arms, load_criteria, parse_criteria
from bitnetctl.verdict.rule import (
    PValues,
    Tally,
    all_of,
    failure_rate_test,
    holm_levels,
    mean_test,
    seeds_to_decide,
)

SOUND = load_criteria("sound")
SUPPORTED, REFUTED, INCONCLUSIVE, INVALID = Outcome


def binomial(successes: range, trials: int, rate: float) -> float:
    return sum(comb(trials, k) * rate**k * (1 - rate) ** (trials - k) for k in successes)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.8])
def test_the_p_values_are_binomial_tails(rate: float) -> None:
    for total in range(1, 12):
        for bad in range(total + 1):
            p = failure_rate_test(Tally(healthy=total - bad, unhealthy=bad), rate)
            assert p.supporting == pytest.approx(binomial(range(bad + 1), total, rate))
            assert p.refuting == pytest.approx(binomial(range(bad, total + 1), total, rate))


def test_undecided_and_absent_seeds_help_neither_side() -> None:
    p = failure_rate_test(Tally(healthy=6, unhealthy=1, undecided=1), 0.5)
    assert p.supporting == pytest.approx(binomial(range(3), 8, 0.5))
    assert p.refuting == pytest.approx(binomial(range(1, 9), 8, 0.5))
    absent = failure_rate_test(Tally(healthy=9, absent=1), 0.5)
    assert absent.supporting == 1.0
    assert failure_rate_test(Tally(unhealthy=9, absent=1), 0.5).refuting == pytest.approx(11 / 1024)
    assert failure_rate_test(Tally(), 0.5) == PValues(1.0, 1.0)


@given(
    counts=st.tuples(*[st.integers(0, 12)] * 4),
    rate=st.sampled_from([0.05, 0.1, 0.5, 0.9]),
    late=st.tuples(*[st.integers(0, 4)] * 3),
)
def test_a_decision_before_all_planned_runs_have_ended_stands_whatever_they_do(
    counts: tuple[int, int, int, int], rate: float, late: tuple[int, int, int]
) -> None:
    """So that looking early at a planned number of seeds costs nothing."""
    healthy, unhealthy, undecided, _ = counts
    early = Tally(healthy=healthy, unhealthy=unhealthy, undecided=undecided, absent=sum(late))
    end = Tally(healthy=healthy + late[0], unhealthy=unhealthy + late[1], undecided=undecided + late[2])
    before, after = failure_rate_test(early, rate), failure_rate_test(end, rate)
    assert after.refuting <= before.refuting + 1e-12
    assert after.supporting <= before.supporting + 1e-12


def test_the_rule_is_the_clopper_pearson_bound() -> None:
    for total, limit in product(range(1, 30), (0.1, 0.5)):
        for bad in range(total + 1):
            p = failure_rate_test(Tally(healthy=total - bad, unhealthy=bad), limit)
            upper, lower = rate_upper(bad, total), rate_lower(bad, total)
            assert upper is not None
            assert lower is not None
            assert (p.supporting < 0.05) == (upper < limit)
            assert (p.refuting < 0.05) == (lower > limit)


@pytest.mark.parametrize(
    ("tally", "limit", "level", "expected"),
    [
        (Tally(healthy=3), 0.5, 0.05, (5, 13)),
        (Tally(unhealthy=1, healthy=4), 0.5, 0.05, (8, 16)),
        (Tally(unhealthy=5, absent=1), 0.5, 0.025, (20, 6)),
        (Tally(absent=2), 0.5, 0.05, (5, 5)),
        (Tally(), 0.5, 0.05, (5, 5)),
        (Tally(), 0.5, 0.025, (6, 6)),
        (Tally(), 0.1, 0.05, (29, 2)),
    ],
)
def test_the_seeds_that_could_decide(tally: Tally, limit: float, level: float, expected: tuple[int, int]) -> None:
    assert seeds_to_decide(tally, limit, level) == expected


def test_holm_by_hand() -> None:
    assert holm_levels([0.03], 0.05, 1) == [0.05]
    assert holm_levels([0.03, 0.001], 0.05, 2) == [0.05, 0.025]
    # 0.03 is above 0.025, so the procedure stops at the smallest
    assert holm_levels([0.04, 0.03], 0.05, 2) == [0.025, 0.025]
    assert holm_levels([0.001, 0.04, 0.02], 0.06, 3) == [0.02, 0.06, 0.03]
    # arms that were left out count as the largest p-values
    assert holm_levels([0.001], 0.05, 5) == [0.01]
    assert holm_levels([], 0.05, 0) == []


@given(st.lists(st.floats(0, 1), max_size=8), st.integers(0, 12))
def test_holm_decides_as_its_adjusted_p_values(p_values: list[float], tests: int) -> None:
    # arms that were left out have no p-value, which is as if it were 1
    left_out = [1.0] * (tests - len(p_values))
    adjusted = [p for p in holm([*p_values, *left_out]) if p is not None]
    for p, level, p_holm in zip(p_values, holm_levels(p_values, 0.05, tests), adjusted, strict=False):
        assert (p < level) == (p_holm < 0.05)


def test_all_of_several_statements() -> None:
    parts = [PValues(0.01, 0.2), PValues(0.03, 0.02)]
    assert all_of(parts) == PValues(0.03, 0.04)
    assert all_of([]) == PValues(1.0, 1.0)


def test_a_bet_on_a_mean_by_hand() -> None:
    # every value is the best possible: each bet c multiplies its stake by 1 + c
    expected = sum((1 + c) ** 6 for c in (0.25, 0.5, 0.75, 1.0)) / 4
    assert mean_test([1.0] * 6, 0.5, 0.0) == pytest.approx(1 / expected)
    # mirrored, for a mean below the threshold
    assert mean_test([0.0] * 6, 0.5, 1.0) == pytest.approx(1 / expected)
    # one value at the limit costs the boldest bet everything, and the others most of it
    assert mean_test([1.0] * 6 + [0.0], 0.5, 0.0) == pytest.approx(
        4 / sum((1 + c) ** 6 * (1 - c) for c in (0.25, 0.5, 0.75, 1.0))
    )
    assert mean_test([0.5] * 9, 0.5, 0.0) == 1.0
    assert mean_test([0.0, 0.0], 0.5, 0.0) == 1.0
    assert mean_test([], 0.5, 0.0) == mean_test([1.0], 0.5, 0.5) == 1.0
    assert 0 < mean_test([1e300] * 4, 0.5, 0.0) < 1e-300 or mean_test([1e300] * 4, 0.5, 0.0) == 0.0
    assert mean_test([0.9, 0.1, 0.8, 0.7], 0.5, 0.0) == pytest.approx(mean_test([0.1, 0.7, 0.8, 0.9], 0.5, 0.0))


@given(st.integers(1, 6), st.floats(0.05, 0.95))
def test_the_expected_gain_of_a_bet_is_at_most_1_under_the_hypothesis(count: int, threshold: float) -> None:
    """The worst case within the range: values at 0 or 1 only, with the mean at the threshold. All outcomes, exactly."""
    total = 0.0
    for ones in range(count + 1):
        probability = comb(count, ones) * threshold**ones * (1 - threshold) ** (count - ones)
        p = mean_test([1.0] * ones + [0.0] * (count - ones), threshold, 0.0)
        total += probability * (p <= 0.05)
    assert total <= 0.05


# arms


def arms_of(folder: Path, **arms: dict[str, int]) -> dict[str, Verdict]:
    """Judge arms by how many healthy and bad seeds they have."""
    runs: list[Run] = []
    for number, (arm, counts) in enumerate(arms.items()):
        names = [name for name, count in counts.items() for _ in range(count)]
        for seed, name in enumerate(names):
            loss = {"healthy": 4.7, "bad": 7.0}[name] + seed / 1000 + number / 100
            runs.append(healthy_run(folder, seed, arm=arm, HeldOutLoss=loss))
    return judge_arms(runs, SOUND)


def test_arms_that_are_decided_together_share_the_error_rate(tmp_path: Path) -> None:
    five = arms_of(tmp_path, baseline={"bad": 5}, cure={"healthy": 5})
    assert {arm: verdict.outcome for arm, verdict in five.items()} == dict.fromkeys(five, INCONCLUSIVE)
    assert "6 could support it" in five["cure"].reasons[0]
    six = arms_of(tmp_path, baseline={"bad": 6}, cure={"healthy": 6})
    assert (six["baseline"].outcome, six["cure"].outcome) == (REFUTED, SUPPORTED)
    assert "up to 46 % stays open (one-sided 97.5 % bound)" in six["cure"].reasons[0]
    assert "2 arms were trained together and share an error rate of 5 % (Holm)" in " ".join(six["cure"].notes)
    assert six["cure"].rule["arms"] == 2
    # the second arm to be decided is held to the whole error rate
    unequal = arms_of(tmp_path, other={"healthy": 5}, cure={"healthy": 6})
    assert (unequal["other"].outcome, unequal["cure"].outcome) == (SUPPORTED, SUPPORTED)
    assert "one-sided 95 % bound" in unequal["other"].reasons[0]


def test_an_arm_is_supported_at_all_of_its_sizes_and_refuted_at_one(tmp_path: Path) -> None:
    small = [healthy_run(tmp_path, seed) for seed in range(5)]
    large = [healthy_run(tmp_path, seed, size=512, HeldOutLoss=4.6 + seed / 1000) for seed in range(5)]
    assert judge([*small, *large], SOUND).outcome is SUPPORTED
    assert judge([*small, *large[:4]], SOUND).sizes == {256: SUPPORTED, 512: INCONCLUSIVE}
    bad = [healthy_run(tmp_path, seed, size=768, HeldOutLoss=7 + seed / 100) for seed in range(6)]
    # two chances to refute share the error rate: five failed seeds of one of two sizes are too few
    assert judge([*small, *bad[:5]], SOUND).outcome is INCONCLUSIVE
    assert judge([*small, *bad], SOUND).sizes == {256: SUPPORTED, 768: REFUTED}


# claims about the mean


def mean_criteria(**level: object) -> dict[str, object]:
    return {
        "seeds": {"rule": "rate", "max_failure_rate": 0.9},
        "checks": [
            {"kind": "finite", "columns": ["Loss"]},
            {"kind": "finished"},
            {"kind": "level", "claim": "mean", "measure": "TopShare", "supported_below": 0.5, "refuted_above": 0.6}
            | level,
        ],
    }


def by_mean(folder: Path, shares: Sequence[float | None], **level: object) -> Verdict:
    runs = [healthy_run(folder, seed, TopShare=share) for seed, share in enumerate(shares)]
    return judge(runs, parse_criteria(mean_criteria(**level)), JudgeOptions())


def test_a_claim_about_the_mean_is_decided_by_the_mean(tmp_path: Path) -> None:
    good = by_mean(tmp_path, [0.05] * 9)
    assert good.outcome is SUPPORTED
    assert "the mean is < 0.5 (p = " in " ".join(good.reasons)
    bad = by_mean(tmp_path, [0.97] * 14)
    assert bad.outcome is REFUTED
    assert "the mean is > 0.6" in " ".join(bad.reasons)
    # no run failed, so that there is no least failure rate to show
    assert bad.failure_rate.startswith("none of 14 seeds failed, which leaves open a failure rate of up to ")
    # one run far beyond the threshold does not fail: only the mean is claimed
    assert by_mean(tmp_path, [0.05] * 12 + [0.9]).outcome is SUPPORTED
    open_mean = by_mean(tmp_path, [0.05] * 4)
    assert open_mean.outcome is INCONCLUSIVE
    assert "can be told from chance" in " ".join(open_mean.reasons)


def test_a_value_beyond_the_limit_by_rounding_is_no_evidence(tmp_path: Path) -> None:
    """Its p-value was NaN, which the largest of several p-values may pass over."""
    assert mean_test([1.0000005] * 5, 0.25, 1.0) == mean_test([1.0] * 5, 0.25, 1.0) == 1.0
    assert mean_test([0.2, 1.0000005], 0.25, 1.0) == pytest.approx(mean_test([0.2, 1.0], 0.25, 1.0))
    # no value can be on the bad side of such a threshold
    assert mean_test([5.0, 6.0, 7.0], 0.5, 1.0) == 1.0
    assert by_mean(tmp_path, [1.0000005] * 5).outcome is INCONCLUSIVE


def test_a_claim_about_the_mean_needs_every_value_and_a_range(tmp_path: Path) -> None:
    unknown = by_mean(tmp_path, [0.05] * 11 + [None])
    assert unknown.outcome is INCONCLUSIVE
    assert "known for 11 of 12 planned seeds" in " ".join(unknown.reasons)
    loss = {"measure": "HeldOutLoss", "supported_below": 6.0, "refuted_above": 7.0}
    unlimited = by_mean(tmp_path, [0.05] * 12, **loss)
    assert unlimited.outcome is INCONCLUSIVE
    assert "the measure has no limit on the side that could support a mean; give `range`" in " ".join(unlimited.reasons)
    assert by_mean(tmp_path, [0.05] * 12, **loss, range=[0, 7.5]).outcome is SUPPORTED
    outside = by_mean(tmp_path, [0.05] * 12, **loss, range=[5, 7.5])
    assert outside.outcome is INVALID
    assert "HeldOutLoss 4.7 is outside of the declared range" in " ".join(outside.reasons)


def test_a_mean_over_seeds_takes_every_seed_once(tmp_path: Path) -> None:
    """Fourteen runs of thirteen seeds, of fourteen planned ones: as many values as seeds, and no sample of them."""
    runs = [healthy_run(tmp_path, seed, TopShare=0.97) for seed in range(13)]
    again = replace(healthy_run(tmp_path / "again", 20, TopShare=0.97), seed=0)
    criteria = parse_criteria(mean_criteria())
    assert judge([*runs, healthy_run(tmp_path, 13, TopShare=0.97)], criteria).outcome is REFUTED
    repeated = judge([*runs, again], criteria, JudgeOptions(seeds=range(14)))
    assert repeated.outcome is INCONCLUSIVE
    assert any("a seed has several runs, so nothing is said about the mean" in reason for reason in repeated.reasons)
