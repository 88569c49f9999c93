"""Findings: a direction, a size, the seeds, and what they cannot show; none says more than its test does."""

import ast
import inspect
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from synthetic import REFERENCES, curve, quick, simple_run, two_stages, write_csv, write_run

from bitnetctl.analysis import finding_wording
from bitnetctl.analysis.findings import Finding
from bitnetctl.analysis.study import study
from bitnetctl.api import load_runs

Losses = Mapping[str, Sequence[float]]
Find = Callable[..., list[Finding]]
AT_ONCE = "at the final loss of the baseline by step 100"
"""Of these runs, whose loss is that of the end from the first evaluation after step 1."""


@pytest.fixture
def find(tmp_path: Path) -> Find:
    """Return the findings of one kind on runs with these final losses by arm and seed, alike at every size."""

    def found(kind: str, losses: Losses, sizes: Sequence[int] = (64,), **fields: Any) -> list[Finding]:
        paths = [
            simple_run(tmp_path, quick(arm, size=size, seed=seed), loss=loss, **fields)
            for arm, of_arm in losses.items()
            for size, (seed, loss) in itertools.product(sizes, enumerate(of_arm))
        ]
        return [finding for finding in study(load_runs(paths)).findings if finding.kind == kind]

    return found


def test_three_seeds_show_a_direction_and_no_p(find: Find) -> None:
    [finding] = find("arm", {"": (5.0, 5.1, 5.2), "no-decay": (4.3, 4.5, 4.6)})
    assert finding.statement == f"no-decay: held-out loss −0.633, all 3 seeds better, {AT_ONCE} in the median"
    assert finding.cautions == (
        "3 seeds cannot show p < 0.05 over 3 tests: 7 could, if their number is fixed before looking",
    )
    assert (finding.direction, finding.better, finding.worse, finding.told) == ("better", 3, 0, False)
    assert finding.value == pytest.approx(-0.633, abs=1e-3)
    assert finding.sentence == f"{finding.statement} ({finding.cautions[0]})"


def test_no_visible_help_where_no_more_seeds_are_better_than_worse(find: Find) -> None:
    [finding] = find("arm", {"": (5.0, 5.0, 5.0), "no-decay": (4.99, 5.01, 5.012)})
    assert finding.statement == ("no-decay: no visible help, held-out loss +0.004, worse in 2 of 3 seeds, better in 1")
    assert finding.direction == "worse"


@pytest.mark.parametrize(
    ("of_arm", "statement", "direction"),
    [
        ((5.5, 5.5, 5.5), "no-decay: held-out loss +0.500, all 3 seeds worse", "worse"),
        ((5.0, 5.0, 5.0), "no-decay: held-out loss +0.000, all 3 seeds equal", "equal"),
        ((4.0, 6.0), "no-decay: no visible help, held-out loss +0.000, better in 1 of 2 seeds, worse in 1", "mixed"),
        (
            (4.0, 4.0, 5.5),
            f"no-decay: held-out loss −0.500, better in 2 of 3 seeds, worse in 1, {AT_ONCE} in the median",
            "better",
        ),
        ((4.0, 4.0), f"no-decay: held-out loss −1.000, both seeds better, {AT_ONCE} in the median", "better"),
    ],
)
def test_the_seeds_give_the_direction(find: Find, of_arm: tuple[float, ...], statement: str, direction: str) -> None:
    [finding] = find("arm", {"": (5.0,) * len(of_arm), "no-decay": of_arm})
    assert (finding.statement, finding.direction) == (statement, direction)


def test_enough_seeds_are_told_from_chance(find: Find) -> None:
    [finding] = find("arm", {"": [5.0] * 8, "no-decay": [4.5 + seed / 100 for seed in range(8)]})
    assert finding.told
    assert finding.cautions == ("told from chance: p = 0.023 over 3 tests (sign test, Holm)",)


def test_seeds_that_could_show_it_and_do_not(find: Find) -> None:
    [finding] = find("arm", {"": [5.0] * 8, "no-decay": [4.5] * 6 + [5.5] * 2})
    assert (
        finding.statement
        == f"no-decay: held-out loss −0.250, better in 6 of 8 seeds, worse in 2, {AT_ONCE} in the median"
    )
    assert not finding.told
    [caution] = finding.cautions
    assert caution.startswith("not told from chance: p = ")


def test_one_seed_has_no_test(find: Find) -> None:
    [finding] = find("arm", {"": [5.0], "no-decay": [4.0]})
    assert finding.statement == f"no-decay: held-out loss −1.000, better in 1 of 1 seed, {AT_ONCE}"
    assert finding.cautions == (finding_wording.ONE_SEED,)


def test_a_mean_that_points_the_other_way_is_named(find: Find) -> None:
    [finding] = find("arm", {"": (5.0, 5.0, 5.0), "no-decay": (4.99, 4.99, 5.5)})
    assert (
        finding.statement
        == f"no-decay: held-out loss +0.160, better in 2 of 3 seeds, worse in 1, {AT_ONCE} in the median"
    )
    assert finding_wording.MEAN_AGAINST_SEEDS in finding.cautions


def test_sizes_and_metrics_that_disagree_are_named(tmp_path: Path) -> None:
    paths = []
    for arm, size, seed in itertools.product(("", "no-decay"), (64, 128), range(3)):
        loss = 5.0 if not arm else 4.0 if size == 64 else 5.5
        paths.append(simple_run(tmp_path, quick(arm, size=size, seed=seed), loss=loss, unique=50 if arm else 100))
    [finding] = [one for one in study(load_runs(paths)).findings if one.kind == "arm"]
    assert finding.statement == f"no-decay: held-out loss −0.250, all 3 seeds better, {AT_ONCE} at h64 in the median"
    assert "but log2 unique −1.000, all 3 seeds worse" in finding.cautions
    assert "the sizes disagree (64: −1.000, 128: +0.500)" in finding.cautions


def test_a_failure_leaves_the_mean_of_the_other_seeds(tmp_path: Path) -> None:
    paths = [simple_run(tmp_path, quick("", seed=seed), loss=5.0) for seed in range(3)]
    for seed in range(3):
        fields: dict[str, Any] = {"status": "diverged", "diverged_at": 700} if seed == 2 else {}
        paths.append(simple_run(tmp_path, quick("no-decay", seed=seed), loss=4.5, **fields))
    found = study(load_runs(paths))
    [finding] = [one for one in found.findings if one.kind == "arm"]
    assert finding.statement == (
        "no-decay: held-out loss −0.500 over the 2 seeds without a failure, better in 2 of 3 seeds, worse in 1, "
        f"the arm failed in 1 of 3 pairs, {AT_ONCE} in the median"
    )
    assert finding.value == pytest.approx(-0.5)
    assert any("1 of 6 runs failed" in one.statement for one in found.findings if one.kind == "data")
    json.dumps(found.to_json(), allow_nan=False)
    assert "inf" not in json.dumps(found.to_json()["arms"]).replace("infinite", "")


def test_without_a_pair_there_is_nothing_to_compare(tmp_path: Path) -> None:
    paths = [simple_run(tmp_path, quick("", seed=0)), simple_run(tmp_path, quick("no-decay", seed=1))]
    [finding] = [one for one in study(load_runs(paths)).findings if one.kind == "arm"]
    assert finding.statement.startswith("no-decay: nothing to compare")
    assert (finding.direction, finding.value, finding.told) == (None, None, False)
    assert finding.cautions == ("1 run without a partner",)


def test_collapses_and_recoveries_are_counted(tmp_path: Path) -> None:
    """Runs that collapse early, late and not at all; one recovers."""
    shapes = ([9] * 10, [60] * 4 + [8] * 6, [60] * 10, [8] * 4 + [60] * 6, [60] * 9 + [8])
    paths = []
    for seed, unique in enumerate(shapes):
        rows = [row | {"UniqueTargets": 900} for row in curve([1, *range(100, 1001, 100)])]
        for row, count in zip(rows[1:], unique, strict=True):
            row["UniquePredictions"] = count
        paths.append(write_run(tmp_path, quick(seed=seed), rows))
    [finding] = [one for one in study(load_runs(paths)).findings if one.kind == "collapse"]
    assert finding.statement == "baseline: 3 of 5 runs collapsed (first at step 200 in the median), 1 recovered"
    assert finding.cautions == (
        "a count over 5 seeds, not a test",
        "1 more for fewer than three evaluations in a row, which does not count",
    )
    assert (finding.value, finding.seeds) == (0.6, 5)


def test_an_unknown_collapse_is_not_a_healthy_run(tmp_path: Path) -> None:
    paths = [
        simple_run(tmp_path, quick(seed=seed, schedule__warmup_steps=1000), loss=6.5, unique=3) for seed in range(2)
    ]
    [finding] = [one for one in study(load_runs(paths)).findings if one.kind == "collapse"]
    assert finding.statement.startswith("collapse is unknown in all 2 runs")
    assert finding.cautions == ("2 of 2 runs end no better than a unigram predictor",)


def test_a_file_of_another_program_collapsed(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "hidden256.csv", two_stages([4000, 40, 8, 2, 2, 2, 2, 2, 2, 2, 2]))
    [finding] = study(load_runs([path])).findings
    assert finding.statement == "hidden256: collapsed at step 4,000, not recovered"


def test_the_largest_factor_of_chance_is_said_to_be_one(find: Find) -> None:
    [finding] = find("factor", {"": (5.0, 5.1, 5.2), "no-decay": (4.3, 4.5, 4.6)})
    assert finding.statement.startswith("no single factor is told from chance; as the largest, ")
    assert "of the variance of the " in finding.statement
    assert not finding.told
    assert finding.cautions[0].startswith("p = ")


def test_a_factor_that_is_told_goes_with_its_outcome(find: Find) -> None:
    losses = {"": [5.0 + seed / 100 for seed in range(10)], "no-decay": [4.5 + seed / 90 for seed in range(10)]}
    found = find("factor", losses)
    assert found
    assert all(finding.told for finding in found)
    assert any("goes with" in one.statement or "go with" in one.statement for one in found)
    assert all("no single factor" not in one.statement for one in found)


def test_the_random_prompt_metric_is_always_reported(tmp_path: Path) -> None:
    paths = [
        simple_run(tmp_path, quick(arm, seed=seed), loss=5.0 - seed / 10 - bool(arm), prompt=10 - seed)
        for arm in ("", "no-decay")
        for seed in range(3)
    ]
    [finding] = [one for one in study(load_runs(paths)).findings if one.kind == "metric"]
    assert finding.statement == "At the end, the random-prompt metric: order not told from chance"
    assert finding.cautions[0].startswith("τ-b −0.")
    assert not finding.told


def test_problems_of_the_data_come_last(tmp_path: Path) -> None:
    rows = [row | REFERENCES for row in curve((1, 100, 200), HeldOutLoss=(7.5, 6.0, 5.5))]
    paths = [write_run(tmp_path, quick(), rows, status="running"), simple_run(tmp_path, quick(seed=1, steps=500))]
    found = study(load_runs(paths), notes=["x.csv: left out"])
    problems = [one.statement for one in found.findings if one.kind == "data"]
    assert problems[0] == "x.csv: left out"
    assert "runs of 500 and 1,000 steps: only runs of equal length are compared" in problems
    assert any(problem.startswith("1 of 2 runs are unfinished") for problem in problems)
    kinds = [one.kind for one in found.findings]
    assert kinds == sorted(kinds, key=["arm", "collapse", "factor", "metric", "data"].index)
    assert set(problems) <= set(found.notes)


def test_findings_say_no_more_than_the_other_sentences() -> None:
    texts = [
        node.value
        for node in ast.walk(ast.parse(inspect.getsource(finding_wording)))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    assert len(texts) > 50
    said = set(" ".join(texts).lower().split())
    assert not {"explains", "explained", "causes", "proves", "significant", "because"} & said
