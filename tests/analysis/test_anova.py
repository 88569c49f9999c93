"""The variance of an outcome split between factors, on designs with a known result."""

import itertools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from synthetic import REFERENCES, curve, quick, simple_run, write_run

from bitnetctl.analysis import least_squares
from bitnetctl.analysis.anova import Outcome, OutcomeAnalysis, Term, analyze_outcomes
from bitnetctl.analysis.factors import Factor
from bitnetctl.analysis.least_squares import added_by_terms
from bitnetctl.analysis.study import study
from bitnetctl.api import load_runs


def two(name: str, *level_of: int) -> Factor:
    levels = tuple(f"{name}{level}" for level in range(max(level_of) + 1))
    return Factor(fields=(name,), levels=levels, level_of=level_of)


A, B = two("a", 0, 0, 0, 0, 1, 1, 1, 1), two("b", 0, 0, 1, 1, 0, 0, 1, 1)
PAIRS = (0, 1, 0, 1, 0, 1, 0, 1)
"""Seeds of A and B: every combination has both."""


def analyze(
    factors: Sequence[Factor],
    values: Sequence[float | None],
    seeds: Sequence[int] | None = None,
    *,
    name: str = "loss",
    format_spec: str = ".3g",
) -> OutcomeAnalysis:
    """Analyse one outcome; by default every run has a seed of its own."""
    outcome = Outcome(name=name, values=tuple(values), format_spec=format_spec)
    [analysis] = analyze_outcomes([outcome], factors, range(len(values)) if seeds is None else seeds)
    return analysis


def eta(analysis: OutcomeAnalysis) -> dict[str, float | None]:
    return {term.name: term.eta_squared for term in analysis.terms}


def crossed(*levels: int, seeds: int) -> tuple[list[Factor], tuple[int, ...]]:
    """Return factors a, b, ... with all combinations of levels for every seed, and the seeds."""
    columns = [*zip(*itertools.product(*map(range, levels), range(seeds)), strict=True)]
    return [two(name, *column) for name, column in zip("abcd", columns[:-1], strict=False)], columns[-1]


def test_a_main_effect_alone_holds_everything() -> None:
    analysis = analyze([A, B], [1, 1, 1, 1, 3, 3, 3, 3], PAIRS)
    assert eta(analysis) == pytest.approx({"a": 1.0, "b": 0.0, "a × b": 0.0})
    assert analysis.r_squared == pytest.approx(1)
    # four pairs of runs, two seeds: 2 of 16 arrangements, and not p < 0.001
    assert analysis.terms[0].p == 2 / 16
    assert analysis.terms[0].p_floor == 2 / 16


def test_hand_worked_sums_of_squares() -> None:
    # cells (1, 3), (5, 7), (2, 4), (10, 12): grand mean 5.5, A 4 and 7, B 2.5 and 8.5, interaction ±1
    analysis = analyze([A, B], [1, 3, 5, 7, 2, 4, 10, 12])
    largest = 12**2
    squares = [term.sum_of_squares * largest for term in analysis.terms if term.sum_of_squares is not None]
    assert squares == pytest.approx([18.0, 72.0, 8.0])
    assert [term.eta_squared for term in analysis.terms] == pytest.approx([18 / 106, 72 / 106, 8 / 106])
    assert analysis.r_squared == pytest.approx(98 / 106)
    assert analysis.terms[0].means == {"a0": 4.0, "a1": 7.0}
    assert analysis.terms[2].means == {"a0 / b0": 2.0, "a0 / b1": 6.0, "a1 / b0": 3.0, "a1 / b1": 11.0}
    assert (analysis.residual_degrees_of_freedom, analysis.seed_eta_squared) == (4, None)


def test_seeds_that_are_crossed_are_blocks() -> None:
    # the same values with the seeds 0 and 1 in every combination: seeds hold the rest, 8 of 106
    analysis = analyze([A, B], [1, 3, 5, 7, 2, 4, 10, 12], PAIRS)
    assert analysis.seed_eta_squared == pytest.approx(8 / 106)
    assert [term.eta_squared for term in analysis.terms] == pytest.approx([18 / 106, 72 / 106, 8 / 106])
    assert analysis.residual_degrees_of_freedom == 3
    assert "the seeds 8%" in analysis.sentence


def test_an_effect_is_found_under_far_larger_differences_of_seeds() -> None:
    generator = np.random.default_rng(0)
    [factor], seeds = crossed(2, seeds=10)
    values = 0.3 * generator.standard_normal(10)[list(seeds)] + 0.04 * generator.standard_normal(20)
    analysis = analyze([factor], (values - 0.098 * np.array(factor.level_of)).tolist(), seeds)
    assert analysis.terms[0].p == analysis.terms[0].p_floor == 2 / 2**10
    assert analysis.sentence.startswith("The loss: a goes with ")
    assert "The seeds hold 9" in analysis.sentence
    # without the seeds it drowns
    assert (analyze([factor], values.tolist()).terms[0].p or 0) > 0.05


def nested(factors: Sequence[Factor], values: Sequence[float], seeds: Sequence[int]) -> dict[str, float]:
    """Return sums of squares of type II by regressions on dummies, a seed being a column: an independent reference."""
    dummies = {factor.name: np.eye(len(factor.levels))[list(factor.level_of)] for factor in factors}
    blocks: dict[tuple[str, ...], Any] = {(name,): matrix for name, matrix in dummies.items()}
    for one, other in itertools.combinations(dummies, 2):
        blocks[one, other] = np.einsum("ni,nj->nij", dummies[one], dummies[other]).reshape(len(values), -1)
    seed_columns = np.eye(max(seeds) + 1)[list(seeds)]

    def residual(terms: Sequence[tuple[str, ...]]) -> float:
        matrix = np.hstack([np.ones((len(values), 1)), seed_columns, *(blocks[term] for term in terms)])
        fitted = matrix @ np.linalg.lstsq(matrix, np.array(values), rcond=None)[0]
        return float(((np.array(values) - fitted) ** 2).sum())

    results = {}
    for term in blocks:
        others = [other for other in blocks if not set(term) <= set(other)]
        results[" × ".join(term)] = residual(others) - residual([*others, term])
    return results


@pytest.mark.parametrize("left_out", [(), (3, 17, 20, 41)])
def test_least_squares_of_balanced_and_unbalanced_designs(left_out: tuple[int, ...]) -> None:
    generator = np.random.default_rng(7)
    factors, seeds = crossed(2, 3, 2, seeds=4)
    values: list[float | None] = [*(generator.standard_normal(48) + np.repeat(range(6), 8)).tolist()]
    kept = [index for index in range(48) if index not in left_out]
    for index in left_out:
        values[index] = None
    analysis = analyze(factors, values, seeds)
    known = [value for value in values if value is not None]
    expected = nested([factor.among(kept) for factor in factors], known, [seeds[index] for index in kept])
    scale = max(map(abs, known)) ** 2
    measured = {term.name: (term.sum_of_squares or 0) * scale for term in analysis.terms}
    assert measured == pytest.approx(expected)
    assert (analysis.runs, analysis.unknown_runs) == (len(kept), len(left_out))
    assert all(term.p is not None for term in analysis.terms)


def test_unbalanced_designs_without_common_seeds() -> None:
    analysis = analyze([A, B], [1, 1, 1, 1, 3, 3, 3, None])
    assert analysis.r_squared == pytest.approx(1)
    # a and b are no longer orthogonal: a cannot have what b could have, too
    assert eta(analysis) == pytest.approx({"a": 35 / 36, "b": 0.0, "a × b": 0.0}, abs=1e-9)
    assert analysis.terms[0].means == {"a0": 1.0, "a1": 3.0}


def test_a_combination_that_was_never_run_leaves_the_interaction_out() -> None:
    a, b = two("a", 0, 0, 1, 1, 0, 0), two("b", 0, 0, 0, 0, 1, 1)
    analysis = analyze([a, b], [1, 2, 5, 6, 3, 4], [0, 1] * 3)
    assert [term.name for term in analysis.terms] == ["a", "b"]
    assert analysis.not_estimable == ("a × b",)
    assert "These runs cannot tell from other terms: a × b." in analysis.sentence
    # pairs (1, 5), (2, 6)
    assert [term.p for term in analysis.terms] == [2 / 4, 2 / 4]


def test_factors_that_cannot_be_told_apart_are_said_to_be_so() -> None:
    # a and b agree but for the level a2, which has no run with b0
    a, b, c = two("a", 0, 0, 1, 1, 2, 2), two("b", 0, 0, 1, 1, 1, 1), two("c", 0, 0, 0, 0, 1, 1)
    analysis = analyze([a, b, c], [1, 1.1, 5, 5.1, 9, 9.1], [0, 1] * 3)
    assert {"a", "b", "c"} & set(analysis.not_estimable)
    assert all(term.p is None for term in analysis.terms if term.name in analysis.not_estimable)
    assert "cannot tell from other terms" in analysis.sentence


def test_one_factor_may_have_groups_of_any_size() -> None:
    analysis = analyze([two("a", 0, 0, 0, 1, 1)], [1, 2, 3, 7, 8])
    # grand mean 4.2, means 2 and 7.5
    between = 3 * 2.2**2 + 2 * 3.3**2
    assert analysis.terms[0].eta_squared == pytest.approx(between / (between + 2.5))
    assert analysis.terms[0].p_floor == 1 / 10


@pytest.mark.parametrize(("levels", "p"), [((0, 0, 1), 1 / 3), ((0, 0, 1, 1), 2 / 6)])
def test_three_or_four_runs_that_do_not_vary_within_levels(levels: tuple[int, ...], p: float) -> None:
    analysis = analyze([two("a", *levels)], [float(level) for level in levels], name="fraction", format_spec=".0%")
    assert analysis.terms[0].p == pytest.approx(p)
    assert analysis.sentence.startswith("The fraction: no single term is told from chance; ")
    assert f"{p:.2g} alone being the smallest possible" in analysis.sentence


def test_one_run_of_each_level_has_no_p() -> None:
    analysis = analyze([two("a", 0, 1)], [1, 5])
    assert analysis.terms[0].p is None
    assert analysis.sentence == (
        "The loss: no single term is told from chance; as the largest, a goes with 100% of its variance (not tested, "
        "as too few runs differ in it alone; a0: 1, a1: 5). The model has as many terms as runs, so that it would hold "
        "all of the variance of any values."
    )


def test_a_factorial_of_single_runs_is_not_told_from_chance() -> None:
    analysis = analyze([two("a", 0, 0, 1, 1), two("b", 0, 1, 0, 1)], [1, 1.1, 5, 5.2], [0, 0, 0, 0])
    assert analysis.residual_degrees_of_freedom == 0
    # two pairs of one seed
    assert analysis.terms[0].p == 2 / 4
    assert "no single term is told from chance" in analysis.sentence
    assert "The model has as many terms as runs" in analysis.sentence
    assert analysis.sentence.endswith("All runs have the same seed: how other seeds would come out is unknown.")


def collapse_of_one_combination(seeds: int, noise: float = 0.0) -> OutcomeAnalysis:
    generator = np.random.default_rng(0)
    factors, seed_of = crossed(2, 2, seeds=seeds)
    odd = np.array(factors[0].level_of) * np.array(factors[1].level_of)
    return analyze(factors, (odd + noise * generator.standard_normal(len(odd))).tolist(), seed_of)


def test_a_collapse_of_one_combination_is_named() -> None:
    analysis = collapse_of_one_combination(10)
    assert list(eta(analysis).values()) == pytest.approx([1 / 3] * 3)
    # equal to the last digit, and so in the order of the terms
    assert len(set(eta(analysis).values())) == 1
    assert re.findall(r"(a|b|the interaction a × b) goes with 33%", analysis.sentence) == [
        "a",
        "b",
        "the interaction a × b",
    ]
    assert analysis.r_squared == pytest.approx(1)
    assert all(term.is_significant for term in analysis.terms)
    odd = analysis.odd_cell
    assert odd is not None
    assert (odd.cell, odd.mean, odd.mean_of_rest) == ("a1 / b1", 1.0, 0.0)
    assert odd.eta_squared == pytest.approx(1)
    assert (
        "No single term holds half of the variance; together they hold 100% (R²; p < 0.001 over 4 " in analysis.sentence
    )
    assert analysis.sentence.endswith(
        "Of the combinations of a and b one differs from the others: a1 / b1 has 1, the others have 0 on average, and "
        "it alone holds 100% of the variance."
    )


def test_an_odd_combination_of_few_runs_is_not_told_from_chance() -> None:
    few = collapse_of_one_combination(2)
    assert few.odd_cell is not None
    assert few.sentence.endswith("; this is not told from chance.")


def test_noise_and_main_effects_have_no_odd_combination() -> None:
    assert collapse_of_one_combination(10, noise=3.0).odd_cell is None
    factors, seeds = crossed(2, 2, seeds=4)
    assert analyze(factors, [float(level) for level in factors[0].level_of], seeds).odd_cell is None
    assert analyze(factors, [float(level + number / 99) for number, level in enumerate(seeds)], seeds).odd_cell is None


def test_an_odd_combination_of_three_factors() -> None:
    factors, seeds = crossed(2, 2, 2, seeds=3)
    values = [float(all(levels)) for levels in zip(*(factor.level_of for factor in factors), strict=True)]
    odd = analyze(factors, values, seeds).odd_cell
    assert odd is not None
    assert (odd.factors, odd.cell) == (("a", "b", "c"), "a1 / b1 / c1")


def test_an_interaction_alone() -> None:
    analysis = analyze([A, B], [1, 1, 5, 5, 5, 5, 1, 1], PAIRS)
    assert eta(analysis) == pytest.approx({"a": 0.0, "b": 0.0, "a × b": 1.0})
    assert "as the largest, the interaction a × b goes with 100% of its variance" in analysis.sentence


def test_p_values_are_adjusted_over_all_outcomes_together() -> None:
    [factor], seeds = crossed(2, seeds=7)
    differing = tuple(float(level) for level in factor.level_of)
    noise = tuple(np.random.default_rng(1).standard_normal(14).tolist())
    outcomes = [Outcome(name=name, values=values) for name, values in (("x", differing), ("y", noise), ("z", noise))]
    analyses = analyze_outcomes(outcomes, [factor], seeds)
    assert [analysis.tests for analysis in analyses] == [3, 3, 3]
    first = analyses[0].terms[0]
    assert first.p == 2 / 2**7
    assert first.p_holm == pytest.approx(3 * 2 / 2**7)
    assert first.is_significant


def test_outcomes_with_other_runs_are_as_if_alone() -> None:
    factors, seeds = crossed(2, 2, seeds=3)
    values = [*np.random.default_rng(2).standard_normal(12).tolist()]
    outcomes = [
        Outcome(name="all", values=tuple(values)),
        Outcome(name="some", values=(None, *values[1:])),
        Outcome(name="none", values=(None,) * 12),
    ]
    together = analyze_outcomes(outcomes, factors, seeds)
    for outcome, analysis in zip(outcomes, together, strict=True):
        [alone] = analyze_outcomes([outcome], factors, seeds)
        assert [term.p for term in analysis.terms] == [term.p for term in alone.terms]
    assert together[2].sentence == "The none is unknown in every run."


def test_what_is_the_same_for_all_outcomes_is_computed_once() -> None:
    factors, seeds = crossed(3, 2, 2, seeds=3)
    values = np.random.default_rng(3).standard_normal((4, len(seeds))).tolist()
    outcomes = [Outcome(name=str(number), values=tuple(one)) for number, one in enumerate(values)]
    with mock.patch.object(least_squares, "added_by_terms", wraps=added_by_terms) as added:
        together = analyze_outcomes(outcomes, factors, seeds)
    assert added.call_count == 1
    alone = [analyze_outcomes([outcome], factors, seeds)[0] for outcome in outcomes]
    assert [eta(analysis) for analysis in together] == [eta(analysis) for analysis in alone]


def test_a_constant_outcome_has_nothing_to_split() -> None:
    analysis = analyze([A], [0.0] * 8, name="fraction", format_spec=".0%")
    assert analysis.sentence == "The fraction is 0% in every run: there is no variance to split."
    assert [term.eta_squared for term in analysis.terms] == [None]


def test_outcomes_without_values_or_factors() -> None:
    assert analyze([A], [None] * 8).sentence == "The loss is unknown in every run."
    only_one_level = analyze([A], [1.0, 2.0, 1.0, 2.0, None, None, None, None])
    assert only_one_level.sentence.startswith("Nothing differs between the configs")
    assert only_one_level.terms == ()


def test_huge_values_do_not_overflow() -> None:
    analysis = analyze([A, B], [1e308, 1.1e308, 1e308, 1.2e308, -1e308, -1.1e308, -1e308, -1.2e308])
    assert analysis.terms[0].eta_squared == pytest.approx(0.99, abs=0.01)


def test_names_of_terms_have_every_field() -> None:
    term = Term(fields=(("a", "b"), ("c",)), means={})
    assert (term.name, term.factors) == ("(a, b) × c", ("a, b", "c"))


def sweep(folder: Path, seeds: int) -> list[Path]:
    paths = []
    for decay, precision, seed in itertools.product(
        ("", "decoupled-decay:decayed=all"), ("", "full-precision"), range(seeds)
    ):
        arm = "+".join(filter(None, (decay, precision)))
        loss = (5.0 if decay else 7.0) + seed / 100
        paths.append(simple_run(folder, quick(arm, seed=seed, optimizer__name="adam"), loss=loss))
    return paths


def test_the_cause_of_a_synthetic_sweep_is_named(tmp_path: Path) -> None:
    result = study(load_runs(sweep(tmp_path, 5)))
    fraction, stage1, final = result.outcomes
    assert fraction.sentence.startswith("The fraction of collapsed evaluations: optimizer.name")
    assert "decoupled-decay, which changed together, go with 100% of its variance (p = 0.0" in fraction.sentence
    assert stage1.terms[1].name.startswith("optimizer.name, ")
    assert stage1.terms[1].means == {"adam": pytest.approx(7.02), "adamw": pytest.approx(5.02)}
    assert final.terms[0].eta_squared == pytest.approx(0, abs=1e-9)
    json.dumps(result.to_json(), allow_nan=False)


def test_two_seeds_of_the_same_sweep_do_not_tell(tmp_path: Path) -> None:
    for outcome in study(load_runs(sweep(tmp_path, 2))).outcomes:
        assert "no single term is told from chance" in outcome.sentence


def test_a_failed_run_stays_in_the_factors(tmp_path: Path) -> None:
    paths = [
        simple_run(tmp_path, quick(optimizer__name=name, seed=seed)) for name in ("adam", "adamw") for seed in (0, 1)
    ]
    config = quick(optimizer__name="adam", seed=2)
    rows = [row | REFERENCES for row in curve((1, 100), HeldOutLoss=(7.5, "nan"), Loss=(8.0, "nan"))]
    paths.append(write_run(tmp_path, config, rows, status="diverged", diverged_at=100))
    final = study(load_runs(paths)).outcomes[2]
    assert final.runs == 5
    assert final.terms[0].means == {"adam": pytest.approx((5 + 5 + 7.5) / 3), "adamw": 5.0}
    tree: dict[str, Any] = json.loads(json.dumps(final.to_json(), allow_nan=False))
    assert tree["terms"][0]["fields"] == [["optimizer.name"]]
