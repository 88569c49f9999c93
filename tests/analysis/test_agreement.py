"""Agreement of metrics with the held-out loss: tau-b, and a test that respects arms."""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import kendalltau
from synthetic import REFERENCES, curve, quick, simple_run, write_csv, write_run

from bitnetctl.analysis import agreement as module
from bitnetctl.analysis.agreement import Agreement, agreements, tau_test
from bitnetctl.api import load_runs
from bitnetctl.records import Run


def of_runs(runs: Sequence[Run]) -> list[Agreement]:
    return agreements(runs, [run.arm or run.name for run in runs])


def agreement(folder: Path, *runs: tuple[float, int, int]) -> dict[tuple[str, str], Agreement]:
    paths = [
        simple_run(folder, quick(seed=seed), loss=loss, unique=unique, prompt=prompt)
        for seed, (loss, unique, prompt) in enumerate(runs)
    ]
    return {(one.metric, one.when): one for one in of_runs(load_runs(paths))}


def test_a_metric_may_rank_backwards(tmp_path: Path) -> None:
    by_metric = agreement(tmp_path, (5.0, 300, 3), (5.5, 200, 5), (6.5, 100, 9), (7.0, 50, 12))
    prompt, unique = by_metric["RandomPromptUnique", "end"], by_metric["UniquePredictions", "end"]
    assert (prompt.tau, unique.tau, prompt.runs) == (-1.0, 1.0, 4)
    assert prompt.p == pytest.approx(2 / 24)
    # four p-values of 2 / 24, two metrics at two times
    assert prompt.p_holm == pytest.approx(8 / 24)
    assert prompt.sentence == (
        "At the end, the random-prompt metric: order not told from chance (τ-b −1.00 over 4 runs of 4 seeds; p = 0.333 "
        "after Holm, for 4 seeds not below 0.042)."
    )
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
    results = of_runs(load_runs(sorted(tmp_path.glob("*.csv"))))
    [end] = [one for one in results if (one.metric, one.when) == ("RandomPromptUnique", "end")]
    # of six pairs the three with the failed run are discordant
    assert (end.runs, end.tau) == (4, 0.0)
    # it failed in stage 1 already
    [stage1] = [one for one in results if (one.metric, one.when) == ("RandomPromptUnique", "end of stage 1")]
    assert (stage1.runs, stage1.tau) == (4, 0.0)
    assert "order not told from chance" in end.sentence


def test_a_run_in_stage_1_ranks_nowhere(tmp_path: Path) -> None:
    for seed, loss in enumerate((5.0, 5.5, 6.0)):
        simple_run(tmp_path, quick(seed=seed), loss=loss, prompt=9 - seed)
    rows = [row | REFERENCES for row in curve((1, 400), HeldOutLoss=(7.5, 7.0), RandomPromptUnique=(20, 15))]
    write_run(tmp_path, quick(seed=3), rows, status="running")
    assert {one.runs for one in of_runs(load_runs(sorted(tmp_path.glob("*.csv"))))} == {3}


def test_only_one_probe_is_ranked(tmp_path: Path) -> None:
    for seed, loss in enumerate((5.0, 5.5, 6.0)):
        simple_run(tmp_path, quick(seed=seed), loss=loss, prompt=9 - seed)
    rows = [row | REFERENCES | {"UnigramLoss": 9.0} for row in curve((1, 1000), HeldOutLoss=(7.5, 1.0))]
    write_run(tmp_path, quick(seed=3), rows)
    assert {one.runs for one in of_runs(load_runs(sorted(tmp_path.glob("*.csv"))))} == {3}


def test_foreign_files_have_nothing_to_compare(tmp_path: Path) -> None:
    paths = [write_csv(tmp_path / f"{name}.csv", curve((1, 1000))) for name in "abc"]
    assert {one.tau for one in of_runs(load_runs(paths))} == {None}
    assert agreements([], []) == []


def test_many_seeds_of_one_arm_tell_a_ranking_from_chance(tmp_path: Path) -> None:
    runs = [(5.0 + seed / 10, 300 - seed, 3 + seed) for seed in range(8)]
    by_metric = agreement(tmp_path, *runs)
    assert by_metric["RandomPromptUnique", "end"].sentence == (
        "At the end, the random-prompt metric tends to rank the runs backwards: the healthier a run by its held-out "
        "loss, the lower it scores (τ-b −1.00 over 8 runs of 8 seeds; p < 0.001 after Holm)."
    )
    assert "tends to rank the runs as the held-out loss does" in by_metric["UniquePredictions", "end"].sentence


def by_arm(
    values: Sequence[Sequence[float]], losses: Sequence[Sequence[float]]
) -> tuple[float, float | None, float | None]:
    """Test values and losses of arms (rows) and seeds (columns)."""
    arms, seeds = len(values), len(values[0])
    blocks = [arm for arm in range(arms) for _ in range(seeds)]
    return tau_test([*itertools.chain(*values)], [*itertools.chain(*losses)], blocks, [*range(seeds)] * arms)


def test_two_arms_tell_nothing_however_many_seeds() -> None:
    apart = [[float(seed) for seed in range(10)], [100.0 + seed for seed in range(10)]]
    tau, p, floor = by_arm(apart, apart)
    assert tau == pytest.approx(1)
    # the exchange of the arms, and none; over runs as if independent it would be 1e-8
    assert (p, floor) == (0.5, 0.5)
    assert kendalltau([*itertools.chain(*apart)], [*itertools.chain(*apart)]).pvalue < 1e-6


def test_whole_arms_are_exchanged() -> None:
    generator = np.random.default_rng(0)
    values, losses = generator.standard_normal((2, 4, 3)).tolist()

    def tau(order: Sequence[int]) -> float:
        exchanged = [losses[arm] for arm in order]
        return float(kendalltau([*itertools.chain(*values)], [*itertools.chain(*exchanged)]).statistic)

    every = [tau(order) for order in itertools.permutations(range(4))]
    observed, p, floor = by_arm(values, losses)
    assert observed == pytest.approx(every[0])
    assert p == pytest.approx(np.mean([abs(one) >= abs(every[0]) - 1e-9 for one in every]))
    assert floor == 1 / 24


def test_arms_with_other_seeds_cannot_be_exchanged() -> None:
    values = [1.0, 2.0, 3.0, 4.0, 5.0]
    _, p, floor = tau_test(values, values, ["a", "a", "b", "b", "c"], [0, 1, 0, 1, 2])
    assert (p, floor) == (0.5, 0.5)
    assert tau_test(values[:3], values[:3], ["a", "a", "b"], [0, 1, 0])[1:] == (None, None)


def test_tau_is_that_of_scipy_with_ties_and_infinities() -> None:
    generator = np.random.default_rng(1)
    values, losses = generator.integers(0, 4, (2, 30)).astype(float).tolist()
    losses[3] = losses[7] = math.inf
    ranked = [9.0 if math.isinf(loss) else loss for loss in losses]
    assert tau_test(values, losses, range(30), [0] * 30)[0] == pytest.approx(kendalltau(values, ranked).statistic)


def test_random_exchanges_and_pairs_agree_with_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(3)
    of_arm = np.repeat(generator.standard_normal(6), 4).reshape(6, 4)
    values, losses = (of_arm + 2 * generator.standard_normal((2, 6, 4))).tolist()
    _, exact, _ = by_arm(values, losses)
    monkeypatch.setattr(module, "DRAWS", 600)
    _, drawn, floor = by_arm(values, losses)
    assert floor == 1 / 601
    assert drawn == pytest.approx(exact, abs=0.06)
    assert by_arm(values, losses)[1] == drawn
    monkeypatch.setattr(module, "MOST_PAIRS", 200)
    assert by_arm(values, losses)[1] == pytest.approx(exact, abs=0.15)


def test_many_runs_take_no_longer_than_a_second_or_two() -> None:
    values = np.random.default_rng(4).standard_normal((2, 20, 50)).tolist()
    _, p, floor = by_arm(*values)
    assert floor == pytest.approx(1 / (module._WORK // module.MOST_PAIRS + 1))
    assert p is not None


def test_runs_of_arms_are_said_not_to_be_independent(tmp_path: Path) -> None:
    for arm, seed in itertools.product(("", "no-decay"), range(6)):
        simple_run(tmp_path, quick(arm, seed=seed), loss=(7.0 if arm else 5.0) + seed / 100, prompt=50 if arm else 9)
    results = of_runs(load_runs(sorted(tmp_path.glob("*.csv"))))
    [end] = [one for one in results if (one.metric, one.when) == ("RandomPromptUnique", "end")]
    assert (end.units, end.unit, end.p_floor) == (2, "arm", 0.5)
    assert end.sentence.startswith("At the end, the random-prompt metric: order not told from chance (τ-b −0.")
    assert "over 12 runs in 2 arms, not independent; " in end.sentence
