"""Skill, ratios and the collapse rule: their edge cases, for every caller and over whole columns."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies as st
from synthetic import curve, write_csv

from bitnetctl.analysis.study import study
from bitnetctl.analysis.summary import summarize_run
from bitnetctl.records import collapse_reason, load_run
from bitnetctl.records.collapse import collapsed_rows
from bitnetctl.records.metrics import ratio, skill
from bitnetctl.report.html.curves import page_data
from bitnetctl.verdict.limits import limits, value_at

NAN, INF = math.nan, math.inf
NUMBERS = st.lists(st.tuples(*[st.sampled_from([None, NAN, INF, 0, 9, 10, 11, 5.5])] * 4), min_size=1)
NAMES = ("UniquePredictions", "UniqueTargets", "HeldOutLoss", "UnigramLoss")

# held-out, unigram and bigram loss; skill for a verdict, where NaN and infinity are known and bad; skill in a summary
SKILLS = [
    (5.0, 6.0, 4.0, 0.5, 0.5),
    (6.0, 6.0, 4.0, 0.0, 0.0),
    (7.0, 6.0, 4.0, -0.5, -0.5),
    (5.0, 4.0, 4.0, None, None),
    (5.0, 4.0, 6.0, None, None),
    (None, 6.0, 4.0, None, None),
    (5.0, None, 4.0, None, None),
    (5.0, 6.0, None, None, None),
    (NAN, 6.0, 4.0, NAN, None),
    (INF, 6.0, 4.0, -INF, None),
    (-INF, 6.0, 4.0, INF, None),
    (5.0, NAN, 4.0, NAN, None),
    (5.0, 6.0, NAN, NAN, None),
    (5.0, INF, 4.0, NAN, None),
    (5.0, 6.0, INF, NAN, None),
    (5.0, 6.0, -INF, 0.0, None),
    (5.0, -INF, 4.0, NAN, None),
    (5.0, INF, INF, NAN, None),
    # the difference of the losses, the quotient, the scale overflows
    (-1e308, 1e308, 0.0, INF, None),
    (-1.0, 1e-320, 0.0, INF, None),
    (0.0, 1e308, -1e308, 0.0, 0.0),
    (1e308, -1e308, -1.5e308, -INF, None),
]
RATIOS = [
    (60.0, 100.0, 0.6),
    (0.0, 100.0, 0.0),
    (60.0, 0.0, None),
    (60.0, -1.0, None),
    (None, 100.0, None),
    (60.0, None, None),
    (NAN, 100.0, NAN),
    (INF, 100.0, INF),
    (60.0, NAN, NAN),
    (60.0, INF, 0.0),
    (60.0, -INF, NAN),
    (INF, INF, NAN),
    (NAN, 0.0, None),
    (1e308, 1e-308, INF),
]


def same(actual: float | None, expected: float | None) -> bool:
    return actual == expected or (actual is not None and expected is not None and actual != actual != expected)


@pytest.mark.parametrize(("loss", "unigram", "bigram", "judged", "summarized"), SKILLS)
def test_skill_is_one_formula_for_every_caller(
    tmp_path: Path,
    loss: float | None,
    unigram: float | None,
    bigram: float | None,
    judged: float | None,
    summarized: float | None,
) -> None:
    assert same(skill(loss, unigram, bigram), judged)
    rows = curve((1,), HeldOutLoss=(loss,), UnigramLoss=(unigram,), BigramLoss=(bigram,))
    run = load_run(write_csv(tmp_path / "x.csv", rows))
    assert same(value_at(run, "Skill", 0), judged)
    assert summarize_run(run).final_skill == summarized
    [curves] = page_data(study([run]))["runs"]
    drawn = None if judged is None or not math.isfinite(judged) else judged
    assert curves["values"].get("Skill", [None]) == [drawn]


@pytest.mark.parametrize(("value", "reference", "expected"), RATIOS)
def test_ratios_are_one_formula_for_every_measure(
    tmp_path: Path, value: float | None, reference: float | None, expected: float | None
) -> None:
    assert same(ratio(value, reference), expected)
    rows = curve((1,), UniquePredictions=(value,), BigramUnique=(reference,), UniqueTargets=(reference,))
    run = load_run(write_csv(tmp_path / "x.csv", rows))
    assert same(value_at(run, "DiversityRatio", 0), expected)
    assert same(value_at(run, "Coverage", 0), expected)


@pytest.mark.parametrize(("after", "before", "factor"), [(16, 4, 4), (4, 0, None), (1e308, 1e-308, None), (-3, -1, 3)])
def test_the_recovery_factor_of_a_summary_is_finite(
    tmp_path: Path, after: float, before: float, factor: float | None
) -> None:
    rows = curve((1, 2, 3, 4), UniquePredictions=(9, before, after, after), WD=(0.1, 0.1, 0, 0))
    assert summarize_run(load_run(write_csv(tmp_path / "x.csv", rows))).boundary_recovery_factor == factor


def test_limits_are_those_of_the_formulas(tmp_path: Path) -> None:
    columns = {"UnigramLoss": (6.0,), "BigramLoss": (4.0,), "ProbePositions": (4096,), "BigramUnique": (300,)}
    run = load_run(write_csv(tmp_path / "x.csv", curve((1,), UniqueTargets=(900,), **columns)))
    assert limits(run, "Skill").high == 6 / (6 - 4)
    assert limits(run, "DiversityRatio").high == 4096 / 300
    assert limits(run, "Coverage").high == 4096 / 900
    for measure in ("Loss", "HeldOutLoss", "HeldOutBitsPerByte"):
        assert (limits(run, measure).low, limits(run, measure).high) == (0, None)


@given(rows=NUMBERS)
def test_the_collapse_rule_is_the_same_over_columns(rows: list[tuple[float | None, ...]]) -> None:
    values = np.array([[NAN if value is None else value for value in row] for row in rows], np.float64)
    columns = np.where(np.isfinite(values), values, np.nan).T
    expected = [collapse_reason(dict(zip(NAMES, row, strict=True))) is not None for row in rows]
    assert collapsed_rows(*columns).tolist() == expected
