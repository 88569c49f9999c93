"""Summaries of runs against numbers worked out by hand; a missing value stays unknown."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from synthetic import REFERENCES, curve, quick, write_csv, write_run

from bitnetctl.analysis.study import study
from bitnetctl.analysis.summary import RunSummary, summarize_run
from bitnetctl.config import RunConfig
from bitnetctl.records import load_run

STEPS = (1, 100, 200, 300, 400, 500, 600, 700, 800, 900, 1000)
UNIQUE = (1000, 64, 32, 8, 4, 4, 16, 32, 32, 32, 64)
HELD_OUT = (7.6, 6.5, 7.0, 7.0, 7.5, 7.25, 5.75, 5.5, 5.25, 5.25, 5.0)
LOSS = (7.7, 6.0, 7.0, 7.0, 7.0, 6.0, 5.25, 5.0, 5.0, 5.0, 4.5)
FLIPS = (None, 0.3, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1)


def example(**columns: Any) -> list[dict[str, Any]]:
    values = {"UniquePredictions": UNIQUE, "HeldOutLoss": HELD_OUT, "Loss": LOSS, "FlipRate": FLIPS}
    rows = curve(STEPS, **values | columns)
    return [row | REFERENCES | {"ZeroFraction": 0.3 + index / 100} for index, row in enumerate(rows)]


def summary_of(folder: Path, rows: list[dict[str, Any]], config: Any = None, **fields: Any) -> RunSummary:
    return summarize_run(load_run(write_run(folder, config or quick(), rows, **fields)))


def test_every_field_of_a_run_that_collapses_and_recovers(tmp_path: Path) -> None:
    summary = summary_of(tmp_path, example())
    assert (summary.size, summary.seed, summary.arm, summary.status) == (64, 0, "baseline", "finished")
    assert (summary.complete, summary.failed, summary.diverged_at) == (True, False, None)
    assert (summary.planned_steps, summary.boundary_step, summary.final_step) == (1000, 500, 1000)
    assert summary.unique_ceiling == 4096
    assert (summary.stage1_min_unique, summary.stage1_min_unique_step) == (4, 400)
    # step 100 is in the warm-up; the unigram predictor has 6 nats
    assert (summary.collapsed_at, summary.recovered_at) == (200, 600)
    assert summary.collapse_reason == "held-out loss 7.00 above the unigram predictor's 6.00"
    assert summary.collapsed_fraction == 4 / 9
    assert summary.boundary_recovery_factor == 16 / 4
    assert summary.boundary_held_out_loss_drop == 7.25 - 5.75
    assert summary.boundary_training_loss_drop == 6.0 - 5.25
    assert summary.stage1_held_out_loss == 7.25
    assert (summary.final_held_out_loss, summary.final_training_loss, summary.final_unique) == (5.0, 4.5, 64)
    assert summary.final_skill == 0.5
    # from 200 on: 32 8 4 4 16 32 32 32 64
    assert summary.volatility == (2 + 1 + 0 + 2 + 1 + 0 + 0 + 1) / 8
    assert summary.zero_fraction == pytest.approx(0.4)
    assert summary.mean_flip_rate == pytest.approx(0.12)
    assert summary.worst_held_out_loss == 7.6


def test_two_collapsed_evaluations_are_no_lasting_collapse(tmp_path: Path) -> None:
    summary = summary_of(tmp_path, example(HeldOutLoss=[5.0] * 11, UniquePredictions=[100] * 5 + [9, 9] + [100] * 4))
    assert summary.collapsed_at is None
    assert summary.collapse_reason is None
    assert summary.recovered_at is None
    assert summary.collapsed_fraction == 2 / 9


def test_a_collapse_without_recovery(tmp_path: Path) -> None:
    summary = summary_of(tmp_path, example(HeldOutLoss=[5.0] * 11, UniquePredictions=[100] * 7 + [9, 9, 8, 12]))
    assert (summary.collapsed_at, summary.recovered_at) == (700, None)
    assert summary.collapse_reason == "9 distinct predictions"


def test_a_foreign_file_of_five_columns(tmp_path: Path) -> None:
    rows = curve(
        (1, 1000, 2000, 3000, 4000, 5000, 6000, 7000),
        UniquePredictions=(20, 16, 8, 2, 2, 2, 10, 14),
        Loss=(10.9, 10.1, 10.2, 10.4, 10.6, 10.8, 7.2, 7.0),
        WD=(0.1,) * 6 + (0.0,) * 2,
    )
    summary = summarize_run(load_run(write_csv(tmp_path / "hidden256.csv", rows, "Hidden 256 results\n")))
    assert (summary.name, summary.arm, summary.size, summary.seed) == ("hidden256", "hidden256", 256, None)
    assert (summary.boundary_step, summary.planned_steps, summary.complete, summary.status) == (5000, None, None, None)
    assert (summary.stage1_min_unique, summary.stage1_min_unique_step) == (2, 3000)
    assert (summary.collapsed_at, summary.recovered_at) == (2000, None)
    assert summary.collapsed_fraction == 4 / 7
    assert summary.boundary_recovery_factor == 5
    assert summary.boundary_training_loss_drop == pytest.approx(3.6)
    assert summary.final_unique == 14
    unknown = (
        "boundary_held_out_loss_drop stage1_held_out_loss final_held_out_loss final_skill zero_fraction "
        "mean_flip_rate unigram_loss bigram_loss worst_held_out_loss"
    )
    assert all(getattr(summary, name) is None for name in unknown.split())
    assert summary.compared_value("final_held_out_loss") is None
    assert summary.compared_value("final_log2_unique") == math.log2(14)


def test_without_a_boundary_there_is_no_stage_one(tmp_path: Path) -> None:
    summary = summarize_run(load_run(write_csv(tmp_path / "x.csv", curve((1, 500, 1000)))))
    assert summary.boundary_step is None
    assert summary.stage1_min_unique is None
    assert summary.boundary_recovery_factor is None
    assert summary.boundary_training_loss_drop is None
    assert summary.final_unique == 100


def test_one_row_is_enough(tmp_path: Path) -> None:
    summary = summarize_run(load_run(write_csv(tmp_path / "x.csv", curve((1,)))))
    assert summary.collapsed_fraction is None
    assert summary.volatility is None
    assert summary.final_unique == 100


def test_empty_cells_are_unknown_and_never_zero(tmp_path: Path) -> None:
    rows = example(UniquePredictions=[None] * 11, HeldOutLoss=[None] * 11, FlipRate=[None] * 11)
    summary = summary_of(tmp_path, rows)
    assert summary.stage1_min_unique is None
    assert summary.collapsed_fraction is None
    assert summary.volatility is None
    assert summary.mean_flip_rate is None
    assert summary.final_skill is None
    assert summary.compared_value("final_log2_unique") is None


def test_an_evaluation_without_known_values_counts_neither_way(tmp_path: Path) -> None:
    unique = [None if step in (700, 800) else 100 for step in STEPS]
    losses = [None if step in (700, 800) else 7.0 for step in STEPS]
    summary = summary_of(tmp_path, example(UniquePredictions=unique, HeldOutLoss=losses))
    assert summary.collapsed_fraction == 1.0


def test_a_diverged_run_stays_collapsed_to_its_planned_end(tmp_path: Path) -> None:
    rows = example(HeldOutLoss=[7.6, *[5.0] * 10], UniquePredictions=[100] * 11)[:6]
    rows[-1] |= {"Loss": "nan", "HeldOutLoss": "nan", "UniquePredictions": 1}
    summary = summary_of(tmp_path, rows, status="diverged", diverged_at=500)
    assert summary.failed
    assert summary.diverged_at == 500
    assert (summary.collapsed_at, summary.recovered_at) == (500, None)
    # of 200…1000 the evaluations 500…1000
    assert summary.collapsed_fraction == 6 / 9
    assert summary.final_held_out_loss is None
    assert summary.compared_value("final_held_out_loss") == 7.6
    assert summary.compared_value("final_skill") == (6 - 7.6) / 2
    assert summary.compared_value("final_log2_unique") == 0
    assert summary.compared_value("stage1_held_out_loss") == 7.6
    json.dumps(summary.to_json(), allow_nan=False)


def test_a_run_that_diverged_in_stage_two_keeps_its_stage_one(tmp_path: Path) -> None:
    rows = example(HeldOutLoss=[7.6, *[5.0] * 10], UniquePredictions=[100] * 11)[:8]
    rows[-1] |= {"Loss": "inf"}
    summary = summary_of(tmp_path, rows, status="diverged", diverged_at=700)
    assert summary.compared_value("stage1_held_out_loss") == 5.0
    assert summary.compared_value("final_held_out_loss") == 7.6
    assert summary.collapsed_at == 700


def test_divergence_between_evaluations_counts(tmp_path: Path) -> None:
    rows = example(HeldOutLoss=[5.0] * 11, UniquePredictions=[100] * 11)[:6]
    summary = summary_of(tmp_path, rows, status="diverged", diverged_at=543)
    assert summary.collapsed_at == 543
    assert summary.collapse_reason == "diverged at step 543"
    assert summary.collapsed_fraction == 6 / 10


def test_a_foreign_file_with_nan_has_diverged(tmp_path: Path) -> None:
    rows = curve((1, 100, 200, 300), Loss=(10.0, 9.0, "nan", "nan"), UniquePredictions=(20, 15, 1, 1))
    summary = summarize_run(load_run(write_csv(tmp_path / "x.csv", rows)))
    assert summary.failed
    assert summary.diverged_at == 200
    assert summary.collapsed_at == 200
    assert summary.collapsed_fraction == 2 / 3
    assert summary.compared_value("final_held_out_loss") is None


def test_a_crash_is_a_failure_and_a_stop_is_not(tmp_path: Path) -> None:
    rows = example(HeldOutLoss=[5.0] * 11, UniquePredictions=[100] * 11)[:6]
    crashed = summary_of(tmp_path / "crashed", rows, status="failed", message="out of memory")
    assert crashed.failed
    assert crashed.collapsed_fraction == 5 / 9
    stopped = summary_of(tmp_path / "stopped", rows, status="stopped")
    assert not stopped.failed
    assert stopped.complete is False
    assert stopped.collapsed_fraction == 0
    assert stopped.compared_value("final_held_out_loss") is None
    assert stopped.compared_value("stage1_held_out_loss") == 5.0


def test_an_unfinished_run_enters_no_comparison_that_it_has_not_reached(tmp_path: Path) -> None:
    running = summary_of(tmp_path / "stage1", example()[:5], status="running")
    # at step 400 of a stage 1 of 500
    assert running.collapsed_fraction == 1.0
    assert running.stage1_held_out_loss is None
    assert [running.compared_value(metric) for metric in ("collapsed_fraction", "stage1_held_out_loss")] == [None, None]
    stage2 = summary_of(tmp_path / "stage2", example()[:7], status="running")
    assert [stage2.compared_value(metric) for metric in ("collapsed_fraction", "stage1_held_out_loss")] == [None, 7.25]


def test_a_run_that_was_rolled_back_and_went_on_has_not_ended_collapsed(tmp_path: Path) -> None:
    healthy = example(HeldOutLoss=[7.6, *[5.0] * 10], UniquePredictions=[1000, *[100] * 10])
    rollback = {"diverged_at": 250, "resumed_from": 200, "tensor": "loss"}
    went_on = summary_of(tmp_path / "a", healthy, rollbacks=[rollback])
    assert (went_on.failed, went_on.diverged_at, went_on.collapsed_at, went_on.collapsed_fraction) == (
        True,
        250,
        None,
        0,
    )
    ended = summary_of(tmp_path / "b", healthy[:4], status="diverged", rollbacks=[rollback], diverged_at=320)
    assert (ended.failed, ended.diverged_at, ended.collapsed_at) == (True, 250, 320)


def test_failure_is_read_from_rows_or_manifest(tmp_path: Path) -> None:
    assert not load_run(write_run(tmp_path, quick(), example())).has_failed
    assert load_run(write_run(tmp_path, quick(), example(), status="failed")).has_failed


def test_summaries_are_strict_json(tmp_path: Path) -> None:
    summary = summary_of(tmp_path, example())
    assert json.loads(json.dumps(summary.to_json(), allow_nan=False))["collapsed_at"] == 200
    assert replace(summary, final_unique=0).compared_value("final_log2_unique") is None


# extreme values and plans


def failed_summary(folder: Path, config: RunConfig, last: int, diverged_at: int | None) -> RunSummary:
    rows = [row | REFERENCES for row in curve((1, last), HeldOutLoss=(7, 5))]
    path = write_run(folder, config, rows, status="failed", diverged_at=diverged_at)
    return summarize_run(load_run(path))


@pytest.mark.parametrize(
    ("steps", "every", "warmup", "last", "diverged_at"),
    [(1000, 100, 100, 400, None), (1000, 300, 100, 300, None), (1000, 300, 0, 900, 950), (900, 300, 700, 300, None)],
)
def test_evaluations_that_a_failed_run_missed_count_as_collapsed(
    tmp_path: Path, steps: int, every: int, warmup: int, last: int, diverged_at: int | None
) -> None:
    config = quick(steps=steps, probe__eval_every_steps=every, schedule__warmup_steps=warmup)
    summary = failed_summary(tmp_path, config, last, diverged_at)
    planned = {*range(every, steps + 1, every), steps}
    missed = sum(step > max(last, warmup, diverged_at or 0) for step in planned)
    # the last row is healthy, a divergence after it is not
    healthy, diverged = int(last > warmup), int(diverged_at is not None)
    assert summary.collapsed_fraction == pytest.approx((missed + diverged) / (missed + diverged + healthy))


def test_a_huge_plan_is_counted_without_a_loop(tmp_path: Path) -> None:
    config = quick(steps=10**15, probe__eval_every_steps=1)
    assert failed_summary(tmp_path, config, 200, None).collapsed_fraction == pytest.approx(1)


@pytest.mark.parametrize("values", [(-3, -1), (-3, 5), (0, 5), (1e308, 1e-308), (1e-308, 1e308), (-1e308, 1e308)])
def test_extreme_values_are_unknown_at_worst(tmp_path: Path, values: tuple[float, float]) -> None:
    columns = {name: [*values] * 5 for name in ("Loss", "UniquePredictions", "HeldOutLoss", "FlipRate", "UnigramLoss")}
    decay = [0.1] * 5 + [0.0] * 5
    rows = curve(range(1, 11), BigramLoss=[*values[::-1]] * 5, WD=decay, **columns)
    paths = [write_csv(tmp_path / f"h64-10-baseline-s{seed}-00000a.csv", rows) for seed in range(3)]
    json.dumps(study([load_run(path) for path in paths]).to_json(), allow_nan=False)


def test_lasting_is_three_in_a_row(tmp_path: Path) -> None:
    unique = [900, 5, 5, 80, 5, 5, 5, 80, 80, 5, 80, 80, 80, 5]
    summary = summarize_run(load_run(write_csv(tmp_path / "x.csv", curve(range(1, 15), UniquePredictions=unique))))
    assert (summary.collapsed_at, summary.recovered_at) == (5, 11)
