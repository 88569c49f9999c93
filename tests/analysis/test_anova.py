"""Factors of configs and the variance that they explain, on designs with a known result; agreement of metrics."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic import REFERENCES, curve, quick, simple_run, write_csv, write_run

from bitnetctl.analysis.agreement import Agreement, agreements
from bitnetctl.analysis.anova import Factor, OutcomeAnalysis, analyze_outcome, find_factors
from bitnetctl.analysis.study import study
from bitnetctl.api import load_runs
from bitnetctl.config import RunConfig
from bitnetctl.plugins import registry


def effective(arm: str = "", **overrides: Any) -> RunConfig:
    config = quick(arm, **overrides)
    return registry.compose(config.interventions).configure(config)


def two(name: str, *level_of: int) -> Factor:
    levels = tuple(f"{name}{level}" for level in range(max(level_of) + 1))
    return Factor(fields=(name,), levels=levels, level_of=level_of)


A, B = two("a", 0, 0, 0, 0, 1, 1, 1, 1), two("b", 0, 0, 1, 1, 0, 0, 1, 1)


def eta(analysis: OutcomeAnalysis) -> dict[str, float | None]:
    return {term.name: term.eta_squared for term in analysis.terms}


def test_fields_that_change_are_factors_and_seeds_are_not() -> None:
    factors = find_factors(
        [effective(optimizer__name=name, seed=seed) for name in ("adam", "adamw") for seed in (0, 1)]
    )
    assert factors == [Factor(fields=("optimizer.name",), levels=("adam", "adamw"), level_of=(0, 0, 1, 1))]
    assert find_factors([effective(), effective(seed=1)]) == []
    assert find_factors([]) == []


def test_fields_that_change_together_are_one_factor() -> None:
    arms = ("", "decoupled-decay", "full-precision", "decoupled-decay+full-precision")
    factors = {factor.name: factor for factor in find_factors([effective(arm, optimizer__name="adam") for arm in arms])}
    assert list(factors) == ["model.quantization", "optimizer.name"]
    assert factors["optimizer.name"].fields[0] == "optimizer.name"
    assert {"optimizer.exempt", "decoupled-decay"} <= set(factors["optimizer.name"].fields)
    # numbers in ascending order, not in that of the runs
    assert factors["model.quantization"].levels == ("0", "1")
    assert factors["model.quantization"].level_of == (1, 1, 0, 0)
    assert "full-precision" in factors["model.quantization"].fields


def test_an_intervention_that_changes_no_field_is_a_factor() -> None:
    factors = find_factors([effective(), effective("label-smoothing")])
    assert [factor.fields for factor in factors] == [("label-smoothing",)]
    assert factors[0].levels[0] == "off"
    assert factors[0].level_of == (0, 1)


def test_settings_that_change_a_field_are_no_second_factor() -> None:
    factors = find_factors([effective(), effective("reduced-lr:peak=0.0005"), effective("reduced-lr:peak=0.0002")])
    assert [factor.name for factor in factors] == ["schedule.peak_learning_rate"]
    assert factors[0].levels == ("0.0002", "0.0005", "0.0015")


def test_a_main_effect_alone_explains_everything() -> None:
    analysis = analyze_outcome("loss", [A, B], [1, 1, 1, 1, 3, 3, 3, 3])
    assert eta(analysis) == {"a": 1.0, "b": 0.0, "a × b": 0.0}
    assert analysis.balanced
    assert analysis.sentence == "a explains 100% of the variance of the loss, p < 0.001 (a0: 1, a1: 3)."


def test_hand_worked_sums_of_squares() -> None:
    # cells (1, 3), (5, 7), (2, 4), (10, 12): grand mean 5.5, A 4 and 7, B 2.5 and 8.5, interaction ±1
    analysis = analyze_outcome("loss", [A, B], [1, 3, 5, 7, 2, 4, 10, 12])
    assert [term.sum_of_squares for term in analysis.terms] == pytest.approx([18.0, 72.0, 8.0])
    assert [term.eta_squared for term in analysis.terms] == pytest.approx([18 / 106, 72 / 106, 8 / 106])
    assert analysis.terms[0].means == {"a0": 4.0, "a1": 7.0}
    assert analysis.terms[2].means == {"a0 / b0": 2.0, "a0 / b1": 6.0, "a1 / b0": 3.0, "a1 / b1": 11.0}
    # F = 36 with 1 and 4 degrees of freedom
    assert analysis.terms[1].p == pytest.approx(0.003882537, rel=1e-6)
    assert analysis.sentence.startswith("b explains 68% of the variance of the loss, p = 0.004 (b0: 2.5, b1: 8.5)")


def test_f_tests_agree_with_least_squares() -> None:
    # an independent reference: residual sums of nested regressions
    generator = np.random.default_rng(7)
    levels = list(itertools.product(range(2), range(3), range(2), range(3)))
    columns = list(zip(*levels, strict=True))
    values = generator.normal(size=len(levels))
    factors = [two(name, *columns[index]) for index, name in enumerate("abc")]
    analysis = analyze_outcome("x", factors, values.tolist())

    def dummies(factor: Factor) -> np.ndarray[Any, Any]:
        return np.eye(len(factor.levels))[list(factor.level_of)][:, 1:]

    def design(skip: str) -> np.ndarray[Any, Any]:
        blocks = {factor.name: dummies(factor) for factor in factors}
        for one, other in itertools.combinations(factors, 2):
            interaction = np.einsum("ni,nj->nij", dummies(one), dummies(other)).reshape(len(values), -1)
            blocks[f"{one.name} × {other.name}"] = interaction
        kept = [block - block.mean(0) for name, block in blocks.items() if name != skip]
        return np.hstack([np.ones((len(values), 1)), *kept])

    def residual(matrix: np.ndarray[Any, Any]) -> float:
        fitted = matrix @ np.linalg.lstsq(matrix, values, rcond=None)[0]
        return float(((values - fitted) ** 2).sum())

    for term in analysis.terms[3:]:
        assert term.sum_of_squares == pytest.approx(residual(design(term.name)) - residual(design("")), abs=1e-9)


def test_an_interaction_explains_the_outcome() -> None:
    analysis = analyze_outcome("loss", [A, B], [1, 1, 5, 5, 5, 5, 1, 1])
    assert eta(analysis) == {"a": 0.0, "b": 0.0, "a × b": 1.0}
    assert analysis.sentence.startswith("a × b explains 100% of the variance of the loss")


def test_noise_is_not_explained() -> None:
    analysis = analyze_outcome("loss", [A, B], [1, 9, 2, 8, 9, 2, 8, 1.5])
    assert analysis.sentence.startswith("No factor explains the loss: the strongest, ")


def test_a_constant_outcome_has_nothing_to_explain() -> None:
    analysis = analyze_outcome("fraction", [A], [0.0] * 8, format_spec=".0%")
    assert analysis.sentence == "The fraction is 0% in every run: there is nothing to explain."
    assert [term.eta_squared for term in analysis.terms] == [None]


def test_an_unbalanced_design_gives_means_only() -> None:
    analysis = analyze_outcome("loss", [A, B], [1, 1, 1, 1, 3, 3, 3, None])
    assert not analysis.balanced
    assert (analysis.runs, analysis.unknown_runs) == (7, 1)
    assert analysis.sentence == (
        "The design is not balanced: 4 of 4 combinations of 2 factors have runs (1 to 2 each), so no factor can be "
        "said to explain anything."
    )
    assert [(term.name, term.eta_squared, term.p) for term in analysis.terms] == [("a", None, None), ("b", None, None)]
    assert analysis.terms[0].means == {"a0": 1.0, "a1": 3.0}


def test_one_factor_may_have_groups_of_any_size() -> None:
    analysis = analyze_outcome("loss", [two("a", 0, 0, 0, 1, 1)], [1, 2, 3, 7, 8])
    # grand mean 4.2, means 2 and 7.5
    assert analysis.balanced
    assert analysis.terms[0].sum_of_squares == pytest.approx(3 * 2.2**2 + 2 * 3.3**2)


def test_one_run_of_each_level_explains_nothing() -> None:
    analysis = analyze_outcome("loss", [two("a", 0, 1)], [1, 5])
    assert analysis.sentence == (
        "Nothing but a differs, and there is one run of each level, so chance may explain the loss as well "
        "(a0: 1, a1: 5)."
    )
    assert analysis.terms[0].p is None


def test_a_factorial_of_single_runs_is_not_tested() -> None:
    analysis = analyze_outcome("loss", [two("a", 0, 0, 1, 1), two("b", 0, 1, 0, 1)], [1, 1.1, 5, 5.2])
    assert analysis.terms[0].p is None
    assert analysis.sentence.startswith("a explains 100% of the variance of the loss")
    assert analysis.sentence.endswith(
        "; there is no residual to test it against, so more seeds are needed to rule out chance."
    )


def test_outcomes_without_values_or_factors() -> None:
    assert analyze_outcome("loss", [A], [None] * 8).sentence == "The loss is unknown in every run."
    only_one_level = analyze_outcome("loss", [A], [1.0, 2.0, 1.0, 2.0, None, None, None, None])
    assert only_one_level.sentence.startswith("Nothing differs between the configs")
    assert only_one_level.terms == ()


def test_the_cause_of_a_synthetic_sweep_is_named(tmp_path: Path) -> None:
    paths = []
    for decay, precision, seed in itertools.product(
        ("", "decoupled-decay:decayed=all"), ("", "full-precision"), (0, 1)
    ):
        arm = "+".join(filter(None, (decay, precision)))
        loss = (5.0 if decay else 7.0) + seed / 100
        paths.append(simple_run(tmp_path, quick(arm, seed=seed, optimizer__name="adam"), loss=loss))
    result = study(load_runs(paths))
    fraction, stage1, final = result.outcomes
    assert fraction.sentence.startswith(
        "optimizer.name explains 100% of the variance of the fraction of collapsed evaluations, p < 0.001 "
        "(adam: 100%, adamw: 0%)"
    )
    assert stage1.terms[1].name == "optimizer.name"
    assert stage1.terms[1].means == {"adam": pytest.approx(7.005), "adamw": pytest.approx(5.005)}
    assert final.terms[0].eta_squared == pytest.approx(0, abs=1e-9)
    json.dumps(result.to_json(), allow_nan=False)


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


def agreement(folder: Path, *runs: tuple[float, int, int]) -> dict[tuple[str, str], Agreement]:
    paths = [
        simple_run(folder, quick(seed=seed), loss=loss, unique=unique, prompt=prompt)
        for seed, (loss, unique, prompt) in enumerate(runs)
    ]
    return {(one.metric, one.when): one for one in agreements(load_runs(paths))}


def test_a_metric_may_rank_backwards(tmp_path: Path) -> None:
    by_metric = agreement(tmp_path, (5.0, 300, 3), (5.5, 200, 5), (6.5, 100, 9), (7.0, 50, 12))
    prompt, unique = by_metric["RandomPromptUnique", "end"], by_metric["UniquePredictions", "end"]
    assert (prompt.tau, unique.tau, prompt.runs) == (-1.0, 1.0, 4)
    assert prompt.p == pytest.approx(2 / 24)
    assert prompt.sentence == (
        "At the end, the random-prompt metric ranks the runs backwards: the healthier a run by its held-out loss, the "
        "lower it scores (τ-b -1.00 over 4 runs, p = 0.083)."
    )
    assert "ranks the runs like the held-out loss does" in unique.sentence
    assert by_metric["RandomPromptUnique", "end of stage 1"].tau == -1.0


def test_ties_are_taken_into_account(tmp_path: Path) -> None:
    # 4 pairs concordant, 1 discordant, 1 tied in the metric: (4 - 1) / sqrt(6 * 5)
    by_metric = agreement(tmp_path, (5.0, 100, 9), (5.5, 100, 7), (6.0, 100, 8), (6.5, 100, 7))
    assert by_metric["RandomPromptUnique", "end"].tau == pytest.approx(3 / (6 * 5) ** 0.5)
    assert by_metric["UniquePredictions", "end"].tau is None
    assert "every run has the same value" in by_metric["UniquePredictions", "end"].sentence


def test_two_runs_are_too_few(tmp_path: Path) -> None:
    by_metric = agreement(tmp_path, (5.0, 300, 3), (5.5, 200, 5))
    assert by_metric["RandomPromptUnique", "end"].tau is None
    assert "unknown: 2 of at least 3 runs have both" in by_metric["RandomPromptUnique", "end"].sentence


def test_a_failed_run_ranks_last_with_its_last_known_value(tmp_path: Path) -> None:
    for seed, loss in enumerate((5.0, 5.5, 6.0)):
        simple_run(tmp_path, quick(seed=seed), loss=loss, prompt=9 - seed)
    rows = [row | REFERENCES for row in curve((1, 100), HeldOutLoss=(7.5, "nan"), RandomPromptUnique=(20, 15))]
    write_run(tmp_path, quick(seed=3), rows, status="diverged", diverged_at=100)
    results = agreements(load_runs(sorted(tmp_path.glob("*.csv"))))
    [end] = [one for one in results if (one.metric, one.when) == ("RandomPromptUnique", "end")]
    # of six pairs the three with the failed run are discordant
    assert (end.runs, end.tau) == (4, 0.0)
    assert "says little" in end.sentence


def test_only_one_probe_is_ranked(tmp_path: Path) -> None:
    for seed, loss in enumerate((5.0, 5.5, 6.0)):
        simple_run(tmp_path, quick(seed=seed), loss=loss, prompt=9 - seed)
    rows = [row | REFERENCES | {"UnigramLoss": 9.0} for row in curve((1, 1000), HeldOutLoss=(7.5, 1.0))]
    write_run(tmp_path, quick(seed=3), rows)
    assert {one.runs for one in agreements(load_runs(sorted(tmp_path.glob("*.csv"))))} == {3}


def test_foreign_files_have_nothing_to_compare(tmp_path: Path) -> None:
    paths = [write_csv(tmp_path / f"{name}.csv", curve((1, 1000))) for name in "abc"]
    assert {one.tau for one in agreements(load_runs(paths))} == {None}
    assert agreements([]) == []
