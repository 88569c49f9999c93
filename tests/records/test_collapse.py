"""What counts as a collapse, a possible collapse and a recovery: one definition for views and analyses."""

import math
from collections.abc import Sequence

import pytest
from hypothesis import given, settings, strategies as st
from synthetic import curve, write_csv

from bitnetctl.analysis.summary import summarize_run
from bitnetctl.records import NAMES, Row, collapse_reason, finite_value, load_run
from bitnetctl.records.collapse import LASTING_EVALUATIONS, CollapseTracker, Health, classify, is_collapsed

HEALTHY: Row = {"Step": 9, "UniquePredictions": 60, "UniqueTargets": 800, "HeldOutLoss": 5.0, "UnigramLoss": 6.37}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"UniquePredictions": 10}, None),
        ({"UniquePredictions": 9}, "9 distinct predictions"),
        ({"HeldOutLoss": 6.37}, None),
        ({"HeldOutLoss": 7.62}, "held-out loss 7.62 above the unigram predictor's 6.37"),
        # a dead model near a uniform guess still shows many distinct tokens
        ({"HeldOutLoss": 7.62, "UniquePredictions": 118}, "held-out loss 7.62 above the unigram predictor's 6.37"),
        (
            {"HeldOutLoss": 7.62, "UniquePredictions": 2},
            "2 distinct predictions and held-out loss 7.62 above the unigram predictor's 6.37",
        ),
        # a text of few tokens has few targets
        ({"UniquePredictions": 3, "UniqueTargets": 5}, None),
        ({"UniquePredictions": 3, "UniqueTargets": 10}, "3 distinct predictions"),
        ({"UniquePredictions": 3, "UniqueTargets": None}, "3 distinct predictions"),
        ({"UniquePredictions": None}, None),
        ({"UniquePredictions": math.nan}, None),
        ({"HeldOutLoss": None}, None),
        ({"HeldOutLoss": math.inf}, None),
        ({"HeldOutLoss": 7.62, "UnigramLoss": None}, None),
        ({"HeldOutLoss": 7.62, "UnigramLoss": math.nan}, None),
    ],
)
def test_collapse_has_two_criteria(changes: dict[str, float | None], reason: str | None) -> None:
    assert collapse_reason({**HEALTHY, **changes}) == reason


def test_an_empty_row_is_no_collapse() -> None:
    assert collapse_reason({}) is None
    assert collapse_reason({"UniquePredictions": 2}) == "2 distinct predictions"


@pytest.mark.parametrize(("value", "expected"), [(3, 3.0), (0, 0.0), (None, None), (math.nan, None), (-math.inf, None)])
def test_known_values_are_finite(value: float | None, expected: float | None) -> None:
    assert finite_value({"Loss": value}, "Loss") == expected
    assert finite_value({}, "Loss") is None


def tracked(evaluations: Sequence[bool | None], warmup_steps: int = 0) -> CollapseTracker:
    """Return a tracker after evaluations at steps 10, 20, …"""
    tracker = CollapseTracker(warmup_steps)
    for index, collapsed in enumerate(evaluations, start=1):
        tracker.add(10 * index, collapsed, f"reason {10 * index}" if collapsed else None)
    return tracker


X, O, U = True, False, None  # noqa: E741


@pytest.mark.parametrize(
    ("evaluations", "health", "since", "collapsed_at", "recovered_at"),
    [
        ([], Health.UNKNOWN, None, None, None),
        ([U], Health.UNKNOWN, None, None, None),
        ([O], Health.HEALTHY, None, None, None),
        ([X], Health.POSSIBLE, 10, None, None),
        ([O, X, X], Health.POSSIBLE, 20, None, None),
        ([O, X, X, O], Health.HEALTHY, None, None, None),
        ([O, X, X, X], Health.COLLAPSED, 20, 20, None),
        ([O, X, X, X, X], Health.COLLAPSED, 20, 20, None),
        # an evaluation that is unknown interrupts
        ([X, X, U, X, X], Health.POSSIBLE, 40, None, None),
        ([X, X, X, U], Health.COLLAPSED, 10, 10, None),
        # one or two healthy evaluations are no recovery yet
        ([X, X, X, O, O], Health.COLLAPSED, 10, 10, None),
        ([X, X, X, O, O, O], Health.RECOVERED, 40, 10, 40),
        ([X, X, X, O, O, X, O, O, O], Health.RECOVERED, 70, 10, 70),
        ([X, X, X, O, O, O, X, X], Health.POSSIBLE, 70, 10, 40),
        ([X, X, X, O, O, O, X, X, O], Health.RECOVERED, 40, 10, 40),
        # a second collapse is the present one; the first stays the one that is reported
        ([X, X, X, O, O, O, X, X, X], Health.COLLAPSED, 70, 10, 40),
    ],
)
def test_three_in_a_row_make_a_collapse_or_a_recovery(
    evaluations: list[bool | None],
    health: Health,
    since: int | None,
    collapsed_at: int | None,
    recovered_at: int | None,
) -> None:
    tracker = tracked(evaluations)
    assert (tracker.health, tracker.since) == (health, since)
    assert (tracker.collapsed_at, tracker.recovered_at) == (collapsed_at, recovered_at)
    if health in (Health.POSSIBLE, Health.COLLAPSED):
        assert tracker.reason == f"reason {since}"
    assert (tracker.collapsed, tracker.healthy) == (evaluations.count(True), evaluations.count(False))


def test_the_first_step_and_the_warm_up_do_not_count() -> None:
    tracker = CollapseTracker()
    for step in (1, 2, 3):
        tracker.add(step, True)
    assert (tracker.health, tracker.since, tracker.collapsed) == (Health.POSSIBLE, 2, 2)
    tracker = tracked([X, X, X, X, X, X], warmup_steps=30)
    assert (tracker.health, tracker.collapsed_at) == (Health.COLLAPSED, 40)
    assert tracked([X, X, X], warmup_steps=30).health is Health.UNKNOWN


@pytest.mark.parametrize(
    ("evaluations", "collapsed_at", "count"),
    [([O, O], 25, 1), ([O, X], 20, 2), ([X, X, X, O], 10, 4), ([], 25, 1)],
)
def test_a_divergence_is_the_last_evaluation_and_lasts(
    evaluations: list[bool | None], collapsed_at: int, count: int
) -> None:
    tracker = tracked(evaluations)
    tracker.end_diverged(25)
    assert (tracker.collapsed_at, tracker.collapsed) == (collapsed_at, count)


def test_a_divergence_whose_row_was_counted_counts_once() -> None:
    tracker = tracked([O, X])
    tracker.end_diverged(20)
    assert (tracker.health, tracker.collapsed_at, tracker.collapsed) == (Health.COLLAPSED, 20, 1)


def lasting(steps: Sequence[int], holds: Sequence[bool]) -> int | None:
    """The first step of the first streak that lasts, counted by hand."""
    for index in range(len(holds) - LASTING_EVALUATIONS + 1):
        if all(holds[index : index + LASTING_EVALUATIONS]) and (index == 0 or not holds[index - 1]):
            return steps[index]
    return None


@given(evaluations=st.lists(st.sampled_from([True, False, None]), max_size=40))
def test_the_tracker_finds_the_first_lasting_streaks(evaluations: list[bool | None]) -> None:
    steps = [10 * index for index in range(1, len(evaluations) + 1)]
    tracker = tracked(evaluations)
    collapsed_at = lasting(steps, [value is True for value in evaluations])
    assert tracker.collapsed_at == collapsed_at
    later = [
        (step, value is False) for step, value in zip(steps, evaluations, strict=True) if step > (collapsed_at or 0)
    ]
    recovered_at = lasting([step for step, _ in later], [holds for _, holds in later])
    assert tracker.recovered_at == (None if collapsed_at is None else recovered_at)


VALUES = st.sampled_from([None, math.nan, math.inf, 3.0, 7.0, 12.0, 400.0])
KEYS = ("Loss", "HeldOutLoss", "UniquePredictions", "UniqueTargets", "UnigramLoss")


@settings(max_examples=20)
@given(rows=st.lists(st.tuples(*[VALUES] * len(KEYS)), min_size=1, max_size=8))
def test_rows_and_columns_are_classified_alike(tmp_path_factory: pytest.TempPathFactory, rows: list[Row]) -> None:
    columns = {name: tuple(row[index] for row in rows) for index, name in enumerate(KEYS)}  # type: ignore[index]
    path = write_csv(tmp_path_factory.mktemp("runs") / "x.csv", curve(tuple(range(1, len(rows) + 1)), **columns))
    run = load_run(path)
    collapsed, healthy = classify(run.records)
    expected = [
        is_collapsed({name: run.records.value(name, index) for name in NAMES}) for index in range(len(run.steps))
    ]
    assert [True if bad else False if good else None for bad, good in zip(collapsed, healthy, strict=True)] == expected


@settings(max_examples=20)
@given(uniques=st.lists(st.sampled_from([2, 4, 60, 90]), min_size=1, max_size=25))
def test_views_and_summaries_agree(tmp_path_factory: pytest.TempPathFactory, uniques: list[int]) -> None:
    steps = tuple(range(10, 10 * len(uniques) + 1, 10))
    path = write_csv(tmp_path_factory.mktemp("runs") / "x.csv", curve(steps, UniquePredictions=tuple(uniques)))
    run = load_run(path)
    tracker = CollapseTracker()
    for index in range(len(steps)):
        tracker.add_row({name: run.records.value(name, index) for name in NAMES})
    summary = summarize_run(run)
    assert (summary.collapsed_at, summary.recovered_at) == (tracker.collapsed_at, tracker.recovered_at)
