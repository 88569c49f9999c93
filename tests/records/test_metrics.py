"""The rule of a collapse, row by row and over whole columns, and facts of runs with extreme figures or plans."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies as st
from synthetic import REFERENCES, curve, quick, write_csv, write_run

from bitnetctl.analysis.study import study
from bitnetctl.analysis.summary import RunSummary, summarize_run
from bitnetctl.config import RunConfig
from bitnetctl.records import collapse, load_run, load_runs
from bitnetctl.records.metrics import collapsed_rows

FIGURES = st.lists(st.tuples(*[st.sampled_from([None, math.nan, math.inf, 0, 9, 10, 11, 5.5])] * 4), min_size=1)
NAMES = ("UniquePredictions", "UniqueTargets", "HeldOutLoss", "UnigramLoss")


@given(rows=FIGURES)
def test_the_rule_is_one(rows: list[tuple[float | None, ...]]) -> None:
    figures = np.array([[math.nan if value is None else value for value in row] for row in rows], np.float64)
    columns = np.where(np.isfinite(figures), figures, np.nan).T
    expected = [collapse(dict(zip(NAMES, row, strict=True))) is not None for row in rows]
    assert collapsed_rows(*columns).tolist() == expected


def failed_facts(folder: Path, config: RunConfig, last: int, diverged_at: int | None) -> RunSummary:
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
    facts = failed_facts(tmp_path, config, last, diverged_at)
    planned = {*range(every, steps + 1, every), steps}
    missed = sum(step > max(last, warmup, diverged_at or 0) for step in planned)
    # the last row is healthy, and so is not a divergence behind it
    healthy, diverged = int(last > warmup), int(diverged_at is not None)
    assert facts.collapsed_fraction == pytest.approx((missed + diverged) / (missed + diverged + healthy))


def test_a_plan_without_end_is_counted_not_walked(tmp_path: Path) -> None:
    config = quick(steps=10**15, probe__eval_every_steps=1)
    assert failed_facts(tmp_path, config, 200, None).collapsed_fraction == pytest.approx(1)


@pytest.mark.parametrize("values", [(-3, -1), (-3, 5), (0, 5), (1e308, 1e-308), (1e-308, 1e308), (-1e308, 1e308)])
def test_extreme_figures_are_unknown_at_worst(tmp_path: Path, values: tuple[float, float]) -> None:
    columns = {name: [*values] * 5 for name in ("Loss", "UniquePredictions", "HeldOutLoss", "FlipRate", "UnigramLoss")}
    decay = [0.1] * 5 + [0.0] * 5
    rows = curve(range(1, 11), BigramLoss=[*values[::-1]] * 5, WD=decay, **columns)
    paths = [write_csv(tmp_path / f"h64-10-baseline-s{seed}-00000a.csv", rows) for seed in range(3)]
    found = study(load_runs(paths))
    json.dumps(found.to_json(), allow_nan=False)


def test_lasting_is_three_in_a_row(tmp_path: Path) -> None:
    unique = [900, 5, 5, 80, 5, 5, 5, 80, 80, 5, 80, 80, 80, 5]
    facts = summarize_run(load_run(write_csv(tmp_path / "x.csv", curve(range(1, 15), UniquePredictions=unique))))
    assert (facts.collapsed_at, facts.recovered_at) == (5, 11)
