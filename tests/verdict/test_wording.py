"""Every sentence of a verdict, against the case that it must not overstate."""

import re
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given, strategies as st
from synthetic import healthy_run

from bitnetctl.analysis.stats import rate_lower, rate_upper
from bitnetctl.verdict import Outcome, judge, load_criteria, wording
from bitnetctl.verdict.outcome import Verdict
from bitnetctl.verdict.rule import PValues, Tally, failure_rate_test

SUPPORTED, REFUTED, INCONCLUSIVE, INVALID = Outcome


def rates(text: str) -> list[float]:
    return [float(number) / 100 for number in re.findall(r"([0-9.]+) %", text)]


@given(st.floats(0, 1), st.sampled_from([0.05, 0.1, 0.5]))
def test_a_rate_is_never_shown_as_a_certainty_or_as_the_limit_that_it_is_not(rate: float, limit: float) -> None:
    (shown,) = rates(wording.percent(rate, limit))
    assert shown == pytest.approx(rate, abs=0.005 + 1e-9)
    for other in (0.0, 1.0, limit):
        if abs(rate - other) > 1e-9:
            assert shown != other


@pytest.mark.parametrize(
    ("rate", "text"), [(0.4507, "45 %"), (0, "0 %"), (1, "100 %"), (0.996, "99.6 %"), (0.9996, "99.96 %")]
)
def test_rates(rate: float, text: str) -> None:
    assert wording.percent(rate) == text


@pytest.mark.parametrize("limit", [0.1, 0.5])
def test_what_is_said_of_a_failure_rate_is_what_the_counts_allow(limit: float) -> None:
    """`less than` stands only beside a bound below the limit, `more than` only beside one above."""
    for total, level in product(range(1, 31), (0.05, 0.0125)):
        for unhealthy in range(total + 1):
            for undecided in range(min(3, total - unhealthy) + 1):
                tally = Tally(healthy=total - unhealthy - undecided, unhealthy=unhealthy, undecided=undecided)
                upper = rate_upper(unhealthy + undecided, total, 1 - level)
                lower = rate_lower(unhealthy, total, 1 - level)
                assert upper is not None
                assert lower is not None
                p = failure_rate_test(tally, limit)
                if p.supporting < level:
                    text = wording.rate_supported(tally, upper, level, limit)
                    bound, _, said = rates(text)
                    assert bound < said == limit
                    assert ("as failed" in text) == (undecided > 0)
                elif p.refuting < level:
                    bound, _, said = rates(wording.rate_refuted(tally, lower, level, limit))
                    assert bound > said == limit
                else:
                    text = wording.rate_open(tally, lower, upper, limit, support=7, refute=0)
                    low, high, said = rates(text)
                    assert low <= said <= high
                    assert "less than" in text
                    assert "does not decide" in text


def test_none_failed_is_not_said_of_undecided_seeds_without_them() -> None:
    assert wording.tally_text(Tally(healthy=4, undecided=2)) == "none of 6 seeds failed and 2 are undecided"
    assert wording.tally_text(Tally(undecided=1)) == "none of 1 seed failed and 1 is undecided"
    assert wording.tally_text(Tally(healthy=3, unhealthy=3)) == "3 of 6 seeds failed"
    assert wording.tally_text(Tally(absent=2)) == "none of 2 planned seeds is judged"
    some = Tally(healthy=2, unhealthy=1, undecided=2, absent=1)
    assert wording.tally_text(some) == "1 of 5 seeds failed and 2 are undecided, 1 more is not judged"
    left = wording.rate_left_open(Tally(undecided=6), 1.0, 0.05)
    assert left == (
        "none of 6 seeds failed and 6 are undecided, which leaves open a failure rate of up to 100 % "
        "(one-sided 95 % bound)"
    )
    assert wording.rate_left_open(Tally(unhealthy=5, absent=1), 1.0, 0.025, "42 %") == (
        "5 of 5 seeds failed, 1 more is not judged, which leaves open a failure rate of at least 42 %, up to 100 % "
        "(one-sided 97.5 % bound)"
    )
    assert wording.rate_shown(Tally(unhealthy=6), 0.541, 0.025) == (
        "6 of 6 seeds failed, a failure rate of at least 54 % (one-sided 97.5 % bound)"
    )


def test_further_seeds_are_only_promised_for_the_outcome_that_they_can_reach() -> None:
    text = wording.rate_open(Tally(healthy=4, unhealthy=2), 0.06, 0.78, 0.5, support=11, refute=20)
    assert text.endswith(
        "fix the number of seeds before looking: 11 could support it, if all further ones are healthy, 20 could refute "
        "it, if all further ones fail"
    )
    waiting = wording.rate_open(Tally(unhealthy=5, absent=1), 0.42, 1, 0.5, support=20, refute=6)
    assert "6 could refute it, if all missing, unfinished and further ones fail" in waiting
    assert "refute" not in wording.rate_open(Tally(healthy=4, unhealthy=2), 0.06, 0.78, 0.5, support=11, refute=0)
    assert "fix" not in wording.rate_open(Tally(healthy=4, unhealthy=2), 0.06, 0.78, 0.5, support=0, refute=0)


def test_a_mean_is_said_to_be_beyond_a_threshold_only_where_it_was_told_from_chance() -> None:
    claims = ("> 0.5", "< 0.1")

    def said(outcome: Outcome, p: PValues, *, count: int = 6, unlimited: tuple[str, ...] = ()) -> str:
        return wording.mean_claim("skill", outcome, 0.7, count, 6, claims, p, unlimited)

    supported = said(SUPPORTED, PValues(0.01, 1.0))
    assert supported == "skill: mean 0.7 over 6 seeds: the mean is > 0.5 (p = 0.01, for any noise within the range)"
    assert "the mean is < 0.1 (p = 0.02" in said(REFUTED, PValues(1.0, 0.02))
    open_mean = said(INCONCLUSIVE, PValues(0.2, 1.0))
    assert "the mean is" not in open_mean
    assert "can be told from chance" in open_mean
    assert "the mean is" not in said(INCONCLUSIVE, PValues(1.0, 1.0), unlimited=("support",))
    assert said(INCONCLUSIVE, PValues(1.0, 1.0), count=5) == (
        "skill: known for 5 of 6 planned seeds, so nothing is said about the mean"
    )


def test_in_a_few_words_nothing_is_beyond_a_threshold_that_was_not_told_from_chance() -> None:
    claims = ("> 0.5", "< 0.1")
    briefly = [wording.mean_briefly("skill", outcome, 0.7, claims) for outcome in (SUPPORTED, REFUTED, INCONCLUSIVE)]
    assert briefly == ["mean skill > 0.5", "mean skill < 0.1", "mean skill 0.7, not told from chance"]
    assert wording.mean_briefly("skill", INCONCLUSIVE, None, claims) == "mean skill unknown"
    pairs = [wording.pairs_briefly("lower", outcome, 5, 6) for outcome in (SUPPORTED, REFUTED, INCONCLUSIVE)]
    assert pairs == ["lower in 5 of 6 pairs", "lower in 5 of 6 pairs", "lower in 5 of 6 pairs, not told from chance"]


def test_p_values_are_never_shown_as_zero() -> None:
    assert [wording.p_text(p) for p in (0.03125, 0.5, 1e-9, 0.0)] == [
        "p = 0.0312",
        "p = 0.5",
        "p < 0.0001",
        "p < 0.0001",
    ]


def test_several_looks_never_promise_the_error_rate_of_one() -> None:
    assert "up to 15 % instead of 5 %" in wording.looks(None, (3, 6, 9), 0.05)
    assert "up to 100 %" in wording.looks(256, range(30), 0.05)


def test_long_lists_are_cut_and_say_so() -> None:
    seeds = [f"seed {seed}" for seed in range(12)]
    text = wording.absent([("missing", seeds)], 20)
    assert text.startswith("not judged 12 of 20 planned seeds, so that nothing can be supported: missing seed 0, ")
    assert text.endswith("seed 7 and 4 more")


def test_beside_every_support_stands_what_it_leaves_open(tmp_path: Path) -> None:
    for criteria in (load_criteria("origin"), load_criteria("sound")):
        runs = [healthy_run(tmp_path, seed) for seed in range(5)]
        verdict = judge(runs, criteria)
        assert verdict.outcome is SUPPORTED
        assert "leaves open a failure rate of up to 45 %" in verdict.failure_rate
        promised = "no error rate is promised" in verdict.failure_rate
        assert promised == (criteria.seeds.rule == "every")


def test_a_verdict_without_runs_says_nothing_about_rates() -> None:
    verdict: Verdict = judge([], load_criteria("sound"))
    assert (verdict.failure_rate, verdict.account) == ("", "arm unknown: no run")
