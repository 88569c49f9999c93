"""Checks `equivalent`: an arm differs from another by less than a stated amount."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from synthetic import healthy_run, quick, simple_run

from bitnetctl.errors import ConfigError
from bitnetctl.records import Run, load_run
from bitnetctl.verdict import Criteria, Outcome, Verdict, judge_arms, parse_criteria
from bitnetctl.verdict.checks.pair_tests import (
    Pairs,
    median_bound,
    two_bets_on_mean,
    two_sign_tests,
    two_student_tests,
)
from bitnetctl.verdict.rule import PValues, at_least

SUPPORTED, REFUTED, INCONCLUSIVE, INVALID = Outcome


def criteria(**fields: Any) -> Criteria:
    check = {"kind": "equivalent", "measure": "HeldOutLoss", "within": 0.1} | fields
    return parse_criteria(
        {
            "seeds": {"rule": "rate"},
            "checks": [{"kind": "finite", "columns": ["Loss"]}, {"kind": "finished"}, check],
        }
    )


def pairs_of(folder: Path, differences: Sequence[float | None], arm: str = "cure") -> list[Run]:
    """Write pairs whose held-out loss differs by so much; None is a lost pair.

    A failed baseline is inf, a failed arm -inf, nan is both.
    """
    runs = []
    for seed, difference in enumerate(differences):
        theirs, ours = 5.0 + seed / 1000, 5.0 + seed / 1000
        own_loss = other_loss = "6.0"
        if difference is not None and math.isfinite(difference):
            ours = theirs + difference
        elif difference is not None:
            own_loss = "nan" if difference != math.inf else own_loss
            other_loss = "nan" if difference != -math.inf else other_loss
        if difference is not None:
            runs.append(healthy_run(folder, seed, HeldOutLoss=theirs, Loss=other_loss))
        runs.append(healthy_run(folder, seed, arm=arm, HeldOutLoss=ours, Loss=own_loss + "1" * (own_loss != "nan")))
    return runs


def judged(runs: list[Run], **fields: Any) -> Verdict:
    return judge_arms(runs, criteria(**fields))["cure"]


def claim(verdict: Verdict) -> str:
    (reason,) = (result.reason for result in verdict.results if result.check.startswith("equivalent"))
    return reason


def figures(verdict: Verdict) -> dict[str, Any]:
    [of_check] = verdict.statistics[0]["pairs"].values()
    return dict(of_check)


def pairs(*differences: float, planned: int | None = None) -> Pairs:
    return Pairs(values=differences, planned=len(differences) if planned is None else planned)


def test_small_differences_of_both_signs_are_equivalent(tmp_path: Path) -> None:
    verdict = judged(pairs_of(tmp_path, [0.03, -0.05, 0.01, -0.02, 0.04]))
    assert verdict.outcome is SUPPORTED
    assert claim(verdict) == (
        "HeldOutLoss is within 0.1 of baseline in 5 of 5 planned pairs, median difference 0.01: the median pair "
        "differs by less than 0.1 (p = 0.0312 by both one-sided tests, below 0.05)"
    )
    assert figures(verdict)["values"] == {
        "0": pytest.approx(0.03),
        "1": pytest.approx(-0.05),
        "2": pytest.approx(0.01),
        "3": pytest.approx(-0.02),
        "4": pytest.approx(0.04),
    }
    # the most extreme of five pairs bounds the median at 1/32
    assert figures(verdict)["bound_of_median"] == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("differences", "outcome"),
    [
        ([0.05] * 4, INCONCLUSIVE),
        ([0.05] * 7 + [0.3], SUPPORTED),
        ([0.05] * 6 + [0.3] * 2, INCONCLUSIVE),
        # one outlier to either side leaves each one-sided test one loss
        ([0.05] * 6 + [0.3, -0.3], SUPPORTED),
        ([0.3] * 7, REFUTED),
        ([-0.3] * 7, REFUTED),
        # half far above and half far below: the median may be anywhere
        ([0.3, -0.3] * 6, INCONCLUSIVE),
        # as much as the limit helps neither side, whatever the rounding
        ([0.1] * 8, INCONCLUSIVE),
        ([-0.1] * 8, INCONCLUSIVE),
        # a lost pair makes support impossible
        ([0.05] * 7 + [None], INCONCLUSIVE),
    ],
)
def test_both_gates(tmp_path: Path, differences: Sequence[float | None], outcome: Outcome) -> None:
    assert judged(pairs_of(tmp_path, differences)).outcome is outcome


def test_refutation_shares_the_level_of_both_sides(tmp_path: Path) -> None:
    # all six beyond: 1/64 for one side, 1/32 for either, and half of 5 % beside the failure rate
    assert judged(pairs_of(tmp_path / "six", [0.3] * 6)).outcome is INCONCLUSIVE
    assert figures(judged(pairs_of(tmp_path / "seven", [0.3] * 7)))["p_of_refutation"] == pytest.approx(1 / 64)


def test_an_open_result_is_never_called_equal(tmp_path: Path) -> None:
    text = claim(judged(pairs_of(tmp_path, [0.05, 0.2, -0.2, 0.01, 0.3, 0.02])))
    assert "neither a difference of less than 0.1 is shown (p = " in text
    assert text.endswith("which is no evidence of equality")


def test_two_failed_runs_are_equal_and_one_is_beyond_any_limit(tmp_path: Path) -> None:
    both = judged(pairs_of(tmp_path / "both", [0.01] * 6 + [math.nan] * 2))
    assert "is within 0.1 of baseline in 8 of 8 planned pairs" in claim(both)
    assert claim(both).endswith("; 2 of the arm's and 2 of baseline's runs failed")
    one = judged(pairs_of(tmp_path / "one", [0.01] * 6 + [math.inf] * 2))
    assert "in 6 of 8 planned pairs" in claim(one)
    assert one.outcome is INCONCLUSIVE
    assert figures(one)["values"]["7"] == math.inf
    assert one.to_json()["statistics"][0]["pairs"]["equivalent HeldOutLoss"]["values"]["7"] == "inf"
    assert judged(pairs_of(tmp_path / "all", [-math.inf] * 8)).outcome is REFUTED


def test_a_claim_about_the_mean_needs_tests_of_the_mean(tmp_path: Path) -> None:
    near = [0.01, -0.02, 0.03, 0.0, -0.01, 0.02]
    assert judged(pairs_of(tmp_path / "near", near), claim="mean").outcome is SUPPORTED
    rare = pairs_of(tmp_path / "rare", [*near, 0.01, -3.0])
    assert judged(rare).outcome is SUPPORTED
    assert judged(rare, claim="mean").outcome is INCONCLUSIVE
    many = [0.001 * (seed % 3) for seed in range(16)]
    by_bet = judged(pairs_of(tmp_path / "many", many), claim="mean", range=[-0.2, 0.2])
    assert by_bet.outcome is SUPPORTED
    assert "the mean pair, for any noise within the range, differs by less than 0.1 (p < 0.0001" in claim(by_bet)


def test_the_tests_by_hand() -> None:
    def signs(*differences: float, planned: int | None = None) -> list[float]:
        p = two_sign_tests(pairs(*differences, planned=planned), 1.0)
        return [p.supporting * 8, p.refuting * 8]

    assert signs(0, 0.5, -0.5) == pytest.approx([1, 8])
    assert signs(0, 2, -2) == pytest.approx([4, 8])
    assert signs(2, 2, 2) == pytest.approx([8, 2])
    assert signs(-2, -math.inf, -2) == pytest.approx([8, 2])
    assert signs(2, 2, planned=3) == pytest.approx([8, 8])
    # as wide as both Student bounds of the mean
    differences = (0.1, -0.3, 0.4, 0.0)
    p = two_student_tests(pairs(*differences), 0.5)
    assert 0 < p.supporting < 0.1 < p.refuting
    mirrored = two_student_tests(pairs(*(-value for value in differences)), 0.5)
    assert (p.supporting, p.refuting) == pytest.approx((mirrored.supporting, mirrored.refuting))
    assert two_bets_on_mean(pairs(0.0, 3.0), (-2.0, 2.0), 1.0) == PValues(1.0, 1.0)
    far = two_bets_on_mean(pairs(*[1.9] * 20), (-2.0, 2.0), 1.0)
    assert far.refuting < 0.05 < far.supporting


def test_the_bound_of_the_median_agrees_with_the_sign_test() -> None:
    values = (3.0, 1.0, -math.inf, 2.0, 5.0, 4.0, 7.0, 6.0)
    # p = 9/256 that at most one of eight is below the median
    assert median_bound(pairs(*values), 0.05, "low") == 1.0
    assert median_bound(pairs(*values), 0.05, "high") == 6.0
    assert at_least(7, 8, 0.5) < 0.05 < at_least(6, 8, 0.5)
    assert median_bound(pairs(*values), 0.01, "low") == -math.inf
    assert median_bound(pairs(*values), 1 / 256, "low") is None
    assert median_bound(pairs(*values, planned=9), 0.05, "low") is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"within": 0}, "within: "),
        ({"range": [-1, 1]}, 'range is for claim = "mean"'),
        ({"claim": "mean", "range": [-0.05, 1]}, "range: -0.05 to 1 must hold -0.1 and 0.1 inside"),
        ({"better": "lower"}, "unknown field 'better'"),
        ({"measure": "WD"}, "WD is set by the arm and measures nothing"),
    ],
)
def test_a_mistake_is_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        criteria(**fields)
    assert message in str(caught.value)


def test_runs_of_other_settings_are_not_equivalent(tmp_path: Path) -> None:
    runs = []
    for seed in range(5):
        for arm, batch in (("", 16), ("decoupled-decay", 8)):
            config = quick(arm, seed=seed, data__batch_size=batch)
            runs.append(load_run(simple_run(tmp_path, config)))
    assert judge_arms(runs, criteria())["decoupled-decay"].outcome is INVALID
