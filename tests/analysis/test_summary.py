"""Facts of a run against numbers worked out by hand; what is missing stays unknown."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from synthetic import REFERENCES, curve, quick, write_csv, write_run

from bitnetctl.analysis.summary import RunSummary, has_failed, summarize_run
from bitnetctl.records import load_run
from bitnetctl.records.metrics import skill

STEPS = (1, 100, 200, 300, 400, 500, 600, 700, 800, 900, 1000)
UNIQUE = (1000, 64, 32, 8, 4, 4, 16, 32, 32, 32, 64)
HELD_OUT = (7.6, 6.5, 7.0, 7.0, 7.5, 7.25, 5.75, 5.5, 5.25, 5.25, 5.0)
LOSS = (7.7, 6.0, 7.0, 7.0, 7.0, 6.0, 5.25, 5.0, 5.0, 5.0, 4.5)
FLIPS = (None, 0.3, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1)


def example(**columns: Any) -> list[dict[str, Any]]:
    figures = {"UniquePredictions": UNIQUE, "HeldOutLoss": HELD_OUT, "Loss": LOSS, "FlipRate": FLIPS}
    rows = curve(STEPS, **figures | columns)
    return [row | REFERENCES | {"ZeroFraction": 0.3 + place / 100} for place, row in enumerate(rows)]


def facts_of(folder: Path, rows: list[dict[str, Any]], config: Any = None, **fields: Any) -> RunSummary:
    return summarize_run(load_run(write_run(folder, config or quick(), rows, **fields)))


def test_every_fact_of_a_run_that_falls_and_comes_back(tmp_path: Path) -> None:
    facts = facts_of(tmp_path, example())
    assert (facts.size, facts.seed, facts.arm, facts.status) == (64, 0, "baseline", "finished")
    assert (facts.complete, facts.failed, facts.diverged_at) == (True, False, None)
    assert (facts.planned_steps, facts.boundary_step, facts.final_step) == (1000, 500, 1000)
    assert facts.unique_ceiling == 4096
    assert (facts.stage1_min_unique, facts.stage1_min_unique_step) == (4, 400)
    # step 100 is in the warm-up; the unigram predictor has 6 nats
    assert (facts.collapsed_at, facts.recovered_at) == (200, 600)
    assert facts.collapse_reason == "held-out loss 7.00 above the unigram predictor's 6.00"
    assert facts.collapsed_fraction == 4 / 9
    assert facts.boundary_recovery_factor == 16 / 4
    assert facts.boundary_held_out_loss_drop == 7.25 - 5.75
    assert facts.boundary_training_loss_drop == 6.0 - 5.25
    assert facts.stage1_held_out_loss == 7.25
    assert (facts.final_held_out_loss, facts.final_training_loss, facts.final_unique) == (5.0, 4.5, 64)
    assert facts.final_skill == 0.5
    # from 200 on: 32 8 4 4 16 32 32 32 64
    assert facts.volatility == (2 + 1 + 0 + 2 + 1 + 0 + 0 + 1) / 8
    assert facts.zero_fraction == pytest.approx(0.4)
    assert facts.mean_flip_rate == pytest.approx(0.12)
    assert facts.worst_held_out_loss == 7.6


def test_two_collapsed_evaluations_are_no_lasting_collapse(tmp_path: Path) -> None:
    facts = facts_of(tmp_path, example(HeldOutLoss=[5.0] * 11, UniquePredictions=[100] * 5 + [9, 9] + [100] * 4))
    assert facts.collapsed_at is None
    assert facts.collapse_reason is None
    assert facts.recovered_at is None
    assert facts.collapsed_fraction == 2 / 9


def test_a_collapse_without_recovery(tmp_path: Path) -> None:
    facts = facts_of(tmp_path, example(HeldOutLoss=[5.0] * 11, UniquePredictions=[100] * 7 + [9, 9, 8, 12]))
    assert (facts.collapsed_at, facts.recovered_at) == (700, None)
    assert facts.collapse_reason == "9 distinct predictions"


def test_a_foreign_file_of_five_columns(tmp_path: Path) -> None:
    rows = curve(
        (1, 1000, 2000, 3000, 4000, 5000, 6000, 7000),
        UniquePredictions=(20, 16, 8, 2, 2, 2, 10, 14),
        Loss=(10.9, 10.1, 10.2, 10.4, 10.6, 10.8, 7.2, 7.0),
        WD=(0.1,) * 6 + (0.0,) * 2,
    )
    facts = summarize_run(load_run(write_csv(tmp_path / "hidden256.csv", rows, "Hidden 256 results\n")))
    assert (facts.name, facts.arm, facts.size, facts.seed) == ("hidden256", "hidden256", 256, None)
    assert (facts.boundary_step, facts.planned_steps, facts.complete, facts.status) == (5000, None, None, None)
    assert (facts.stage1_min_unique, facts.stage1_min_unique_step) == (2, 3000)
    assert (facts.collapsed_at, facts.recovered_at) == (2000, None)
    assert facts.collapsed_fraction == 4 / 7
    assert facts.boundary_recovery_factor == 5
    assert facts.boundary_training_loss_drop == pytest.approx(3.6)
    assert facts.final_unique == 14
    unknown = (
        "boundary_held_out_loss_drop stage1_held_out_loss final_held_out_loss final_skill zero_fraction "
        "mean_flip_rate unigram_loss bigram_loss worst_held_out_loss"
    )
    assert all(getattr(facts, name) is None for name in unknown.split())
    assert facts.compared_value("final_held_out_loss") is None
    assert facts.compared_value("final_log2_unique") == math.log2(14)


def test_without_a_boundary_there_is_no_stage_one(tmp_path: Path) -> None:
    facts = summarize_run(load_run(write_csv(tmp_path / "x.csv", curve((1, 500, 1000)))))
    assert facts.boundary_step is None
    assert facts.stage1_min_unique is None
    assert facts.boundary_recovery_factor is None
    assert facts.boundary_training_loss_drop is None
    assert facts.final_unique == 100


def test_one_row_is_enough(tmp_path: Path) -> None:
    facts = summarize_run(load_run(write_csv(tmp_path / "x.csv", curve((1,)))))
    assert facts.collapsed_fraction is None
    assert facts.volatility is None
    assert facts.final_unique == 100


def test_empty_cells_are_unknown_and_never_zero(tmp_path: Path) -> None:
    rows = example(UniquePredictions=[None] * 11, HeldOutLoss=[None] * 11, FlipRate=[None] * 11)
    facts = facts_of(tmp_path, rows)
    assert facts.stage1_min_unique is None
    assert facts.collapsed_fraction is None
    assert facts.volatility is None
    assert facts.mean_flip_rate is None
    assert facts.final_skill is None
    assert facts.compared_value("final_log2_unique") is None


def test_an_evaluation_that_nothing_decides_counts_neither_way(tmp_path: Path) -> None:
    unique = [None if step in (700, 800) else 100 for step in STEPS]
    losses = [None if step in (700, 800) else 7.0 for step in STEPS]
    facts = facts_of(tmp_path, example(UniquePredictions=unique, HeldOutLoss=losses))
    assert facts.collapsed_fraction == 1.0


def test_a_diverged_run_stays_collapsed_to_its_planned_end(tmp_path: Path) -> None:
    rows = example(HeldOutLoss=[7.6, *[5.0] * 10], UniquePredictions=[100] * 11)[:6]
    rows[-1] |= {"Loss": "nan", "HeldOutLoss": "nan", "UniquePredictions": 1}
    facts = facts_of(tmp_path, rows, status="diverged", diverged_at=500)
    assert facts.failed
    assert facts.diverged_at == 500
    assert (facts.collapsed_at, facts.recovered_at) == (500, None)
    # of 200…1000 the evaluations 500…1000
    assert facts.collapsed_fraction == 6 / 9
    assert facts.final_held_out_loss is None
    assert facts.compared_value("final_held_out_loss") == 7.6
    assert facts.compared_value("final_skill") == (6 - 7.6) / 2
    assert facts.compared_value("final_log2_unique") == 0
    assert facts.compared_value("stage1_held_out_loss") == 7.6
    json.dumps(facts.to_json(), allow_nan=False)


def test_a_run_that_diverged_in_stage_two_keeps_its_stage_one(tmp_path: Path) -> None:
    rows = example(HeldOutLoss=[7.6, *[5.0] * 10], UniquePredictions=[100] * 11)[:8]
    rows[-1] |= {"Loss": "inf"}
    facts = facts_of(tmp_path, rows, status="diverged", diverged_at=700)
    assert facts.compared_value("stage1_held_out_loss") == 5.0
    assert facts.compared_value("final_held_out_loss") == 7.6
    assert facts.collapsed_at == 700


def test_divergence_between_evaluations_is_seen(tmp_path: Path) -> None:
    rows = example(HeldOutLoss=[5.0] * 11, UniquePredictions=[100] * 11)[:6]
    facts = facts_of(tmp_path, rows, status="diverged", diverged_at=543)
    assert facts.collapsed_at == 543
    assert facts.collapse_reason == "diverged at step 543"
    assert facts.collapsed_fraction == 6 / 10


def test_a_foreign_file_with_nan_has_diverged(tmp_path: Path) -> None:
    rows = curve((1, 100, 200, 300), Loss=(10.0, 9.0, "nan", "nan"), UniquePredictions=(20, 15, 1, 1))
    facts = summarize_run(load_run(write_csv(tmp_path / "x.csv", rows)))
    assert facts.failed
    assert facts.diverged_at == 200
    assert facts.collapsed_at == 200
    assert facts.collapsed_fraction == 2 / 3
    assert facts.compared_value("final_held_out_loss") is None


def test_a_crash_is_a_failure_and_a_stop_is_not(tmp_path: Path) -> None:
    rows = example(HeldOutLoss=[5.0] * 11, UniquePredictions=[100] * 11)[:6]
    crashed = facts_of(tmp_path / "crashed", rows, status="failed", message="out of memory")
    assert crashed.failed
    assert crashed.collapsed_fraction == 5 / 9
    stopped = facts_of(tmp_path / "stopped", rows, status="stopped")
    assert not stopped.failed
    assert stopped.complete is False
    assert stopped.collapsed_fraction == 0
    assert stopped.compared_value("final_held_out_loss") is None
    assert stopped.compared_value("stage1_held_out_loss") == 5.0


def test_failure_is_read_from_figures_or_manifest(tmp_path: Path) -> None:
    assert not has_failed(load_run(write_run(tmp_path, quick(), example())))
    assert has_failed(load_run(write_run(tmp_path, quick(), example(), status="failed")))


@pytest.mark.parametrize(
    ("loss", "unigram", "bigram", "expected"),
    [(5.0, 6.0, 4.0, 0.5), (6.0, 6.0, 4.0, 0.0), (7.0, 6.0, 4.0, -0.5), (5.0, 4.0, 4.0, None), (None, 6.0, 4.0, None)],
)
def test_skill(loss: float | None, unigram: float, bigram: float, expected: float | None) -> None:
    assert skill(loss, unigram, bigram) == expected


def test_facts_are_strict_json(tmp_path: Path) -> None:
    facts = facts_of(tmp_path, example())
    assert json.loads(json.dumps(facts.to_json(), allow_nan=False))["collapsed_at"] == 200
    assert replace(facts, final_unique=0).compared_value("final_log2_unique") is None
