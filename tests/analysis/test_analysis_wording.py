"""Every sentence of the analysis, against the case that it must not overstate."""

import ast
import inspect
from typing import Any

import pytest

from bitnetctl.analysis import wording

EFFECT: dict[str, Any] = {
    "better": 6,
    "worse": 0,
    "equal": 0,
    "failed": 0,
    "baseline_failed": 0,
    "pairs": 6,
    "mean": -0.5,
    "mean_of_finite": -0.5,
    "interval": (-0.6, -0.4),
    "p_holm": 0.03,
    "tests": 1,
}


def effect(**changes: Any) -> str:
    return wording.effect("loss", **EFFECT | changes)


def test_an_effect_leads_with_the_seeds() -> None:
    assert effect() == (
        "loss: better in 6 of 6 seeds; mean difference −0.500 (95 % Student interval −0.600 to −0.400); p = 0.030 over "
        "1 test (sign test, Holm)."
    )


def test_a_mean_of_one_good_baseline_does_not_lead() -> None:
    text = effect(
        better=1, worse=5, baseline_failed=1, mean=float("-inf"), mean_of_finite=0.382, interval=None, p_holm=0.2
    )
    assert text.startswith("loss: worse in 5 of 6 seeds, better in 1; the baseline failed in 1 of 6 pairs; no mean ")
    assert "∞" not in text
    assert text.endswith("not told from chance.")


def test_failures_of_both_sides_are_named() -> None:
    assert wording.failures(2, 1, 6) == "the arm failed in 2 of 6 pairs, the baseline failed in 1 of 6 pairs"
    assert wording.failures(0, 0, 6) == ""


@pytest.mark.parametrize("p_holm", [0.05, 0.2, 1.0])
def test_a_p_at_the_level_is_not_told_from_chance(p_holm: float) -> None:
    assert effect(p_holm=p_holm).endswith("not told from chance.")


def test_an_untested_effect_says_so() -> None:
    text = effect(better=1, p_holm=None, interval=None)
    assert text.endswith("; not tested.")
    assert "interval" not in text
    assert effect(better=0, mean=None) == "loss: no seed to compare."


@pytest.mark.parametrize(
    ("counts", "text"),
    [
        ((5, 1, 0), "better in 5 of 6 seeds, worse in 1"),
        ((1, 5, 0), "worse in 5 of 6 seeds, better in 1"),
        ((0, 0, 3), "equal in 3 of 3 seeds"),
        ((1, 0, 5), "equal in 5 of 6 seeds, better in 1"),
        ((1, 0, 0), "better in 1 of 1 seed"),
        ((0, 0, 0), "no seed to compare"),
    ],
)
def test_the_most_frequent_count_leads(counts: tuple[int, int, int], text: str) -> None:
    assert wording.counts(*counts) == text


def test_the_hints_say_what_is_tested_and_over_how_many() -> None:
    effects, factors = wording.effects_hint(24), wording.factors_hint(9)
    assert "95 % Student interval is that of the mean difference" in effects
    assert "far fewer where a rare seed collapses" in effects
    assert "as likely to be better as to be worse" in effects
    assert "it says nothing of the mean" in effects
    assert "over the 24 p-values" in effects
    assert "the hypothesis is that the factor changes nothing" in factors
    assert "over the 9 p-values" in factors
    assert "24 p-values" in wording.effects_line(24)
    assert wording.effects_line(0).endswith("with one seed there is no test and no interval")


def test_the_smallest_p_is_marked_only_where_it_is_below_one() -> None:
    assert wording.is_floor(0.25, 0.25)
    assert not wording.is_floor(0.5, 0.25)
    assert not wording.is_floor(1.0, 1.0)
    assert not wording.is_floor(None, 0.25)
    assert not wording.is_floor(0.25, None)


def test_a_term_goes_with_an_outcome_and_does_not_explain_it() -> None:
    term = wording.term("a goes", 0.68, wording.tested(0.004, 0.001, 0.0005, 9), "a0: 1, a1: 2")
    assert wording.goes_with("loss", [term]) == (
        "The loss: a goes with 68% of its variance (p = 0.004 over 9 tests; a0: 1, a1: 2)."
    )
    assert wording.goes_with("loss", ["a goes …", "b goes …"]) == "The loss: a goes …; b goes …."


def test_fields_that_changed_together_are_all_named() -> None:
    assert wording.subject([["a"]], "a") == "a goes"
    assert wording.subject([["a", "b", "c", "d", "e"]], "…") == "a, b, c, d and e, which changed together, go"
    assert wording.subject([["a", "b"], ["c"]], "(a, b) × c") == "the interaction (a, b) × c goes"


def test_the_floor_of_a_test_is_said_where_p_is_at_it() -> None:
    assert wording.tested(0.75, 0.25, 0.25, 3) == "p = 0.750 over 3 tests, 0.25 alone being the smallest possible"
    assert wording.tested(0.75, 0.25, 0.03, 3) == "p = 0.750 over 3 tests"
    assert wording.tested(None, None, None, 3) == "not tested, as too few runs differ in it alone"


def test_no_term_told_from_chance_is_not_called_a_cause() -> None:
    assert wording.none_told("loss", "a goes …") == (
        "The loss: no single term is told from chance; as the largest, a goes …."
    )


def test_terms_together_are_not_called_unexplained() -> None:
    text = wording.together(0.99, 0.01, 0.34, residual=9, terms=3, tested="p = 0.001 over 9 tests")
    assert text == (
        "No single term holds half of the variance; together they hold 99% (R²; p = 0.001 over 9 tests), the seeds 1%."
    )
    assert wording.together(0.99, None, 0.9, residual=9, terms=3, tested=None) == ("Together the terms hold 99% (R²).")
    assert wording.together(0.5, 0.4, 0.5, residual=9, terms=1, tested=None) == "The seeds hold 40% of it."
    assert wording.together(0.5, None, 0.5, residual=9, terms=1, tested=None) == ""


def test_a_model_of_as_many_terms_as_runs_claims_no_r_squared() -> None:
    text = wording.together(1.0, None, 1.0, residual=0, terms=3, tested=None)
    assert "100%" not in text
    assert "as many terms as runs" in text


def test_an_odd_combination_of_chance_is_said_to_be_one() -> None:
    arguments = (["a", "b"], "a1 / b1", "100%", "0%", 0.99)
    assert wording.odd_cell(*arguments, told=True).endswith("it alone holds 99% of the variance.")
    assert wording.odd_cell(*arguments, told=False).endswith("; this is not told from chance.")


def agreement(tau: float, p_holm: float | None, *, independent: bool = False, units: str = "2 arms") -> str:
    support = wording.support_of_ranking(tau, runs=12, units=units, independent=independent, p_holm=p_holm, p_floor=0.5)
    return wording.agreement(wording.ranking("end", "x", tau, p_holm), support)


@pytest.mark.parametrize("p_holm", [None, 0.05, 1.0])
def test_an_order_of_chance_is_said_to_be_one(p_holm: float | None) -> None:
    text = agreement(0.71, p_holm)
    assert "order not told from chance" in text
    assert "τ-b +0.71 over 12 runs in 2 arms, not independent" in text
    assert "tends" not in text


def test_a_metric_tends_to_rank_and_no_more() -> None:
    assert "x tends to rank the runs as the held-out loss does (τ-b +0.71" in agreement(0.71, 0.01)
    assert "x tends to rank the runs backwards" in agreement(-0.71, 0.01)
    assert "x says little" in agreement(0.2, 0.01)
    assert "not independent" not in agreement(0.71, 0.01, independent=True, units="12 seeds")
    assert "for 2 arms not below 0.5" in agreement(0.71, 0.01)


def test_too_few_seeds_come_with_a_number_that_is_fixed_before_looking() -> None:
    text = wording.few_seeds(6, 6, 0.03125, 8)
    assert "cannot fall below 0.19" in text
    assert "from 8 seeds on it can reach 0.05, if their number is fixed before looking" in text


def test_many_means_are_cut() -> None:
    assert wording.means({"x": 1.0, "y": 2.0, "z": 3.0}, ".1f", most=2) == "x: 1.0, y: 2.0, … 1 more"


def test_nothing_is_said_to_explain_cause_or_prove() -> None:
    texts = [
        node.value
        for node in ast.walk(ast.parse(inspect.getsource(wording)))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    assert len(texts) > 100
    said = " ".join(texts[1:]).lower()
    assert "does not explain" not in said
    assert not {"explains", "explained", "causes", "proves", "significant"} & set(said.split())


@pytest.mark.parametrize(
    "text",
    [
        wording.no_baseline(),
        wording.uneven_sizes("x"),
        wording.not_comparable("x", "baseline", 3, ["data a and b"]),
        wording.differ_slightly("x", "baseline", 1, ["torch 2 and 3"]),
        wording.unfinished(1, 4),
        wording.failed_runs(1, 4),
        wording.several_probes(2),
        wording.without_config(1, 3),
        wording.repeated("x", "y"),
    ],
)
def test_notes_are_clauses_without_a_full_stop(text: str) -> None:
    assert text
    assert not text.endswith(".")
