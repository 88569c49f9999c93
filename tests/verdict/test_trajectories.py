"""The shape checks of `origin`: a careful reader's verdicts on trajectories, however often these are evaluated."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import pytest
from hypothesis import given, strategies as st
from synthetic import bare_run, curve, origin_run, write_csv

from benchmarks.calibration import shapes
from bitnetctl.records import load_run
from bitnetctl.verdict import Outcome, judge, load_criteria
from bitnetctl.verdict.checks.stages import Stage, split_at
from bitnetctl.verdict.checks.trajectory import TrajectoryCheck

ORIGIN = load_criteria("origin")
SUPPORTED, REFUTED, INCONCLUSIVE, _ = Outcome

Curve = Callable[[float], float]
"""Distinct predictions over a stage, from 0 at its start to 1 at its end."""


@dataclass(frozen=True)
class Trajectory:
    name: str
    stage1: Curve
    stage2: Curve
    outcome: Outcome
    why: str

    def sampled(self, evaluations: int) -> list[float]:
        """Return the value at step 1 and at as many evaluations of each stage."""
        at = [(index + 1) / evaluations for index in range(evaluations)]
        return [4000, *(round(self.stage1(time)) for time in at), *(round(self.stage2(time)) for time in at)]


def flat(value: float) -> Curve:
    return lambda time: value


def line(start: float, end: float) -> Curve:
    return lambda time: start + (end - start) * time


def path(*points: tuple[float, float]) -> Curve:
    times, values = zip(*points, strict=True)
    return lambda time: float(np.interp(time, times, values))


def pieces(*parts: tuple[float, float]) -> Curve:
    """Return a curve that has each value up to and with its time."""
    return lambda time: next(value for until, value in parts if time <= until + 1e-9)


def cycle(*values: float, last: float | None = None) -> Curve:
    """Return a curve that takes the values in turns, each for a tenth of the stage; `last` is its last twentieth."""

    def curve(time: float) -> float:
        if last is not None and time > 0.95:
            return last
        return values[(math.ceil(10 * time - 1e-9) - 1) % len(values)]

    return curve


def noisy(curve: Curve, log_sd: float, seed: int = 0) -> Curve:
    generator = np.random.default_rng(seed)
    return lambda time: curve(time) * math.exp(log_sd * generator.standard_normal())


COLLAPSE = pieces((0.2, 40), (0.4, 20), (0.6, 8), (1, 2))
TRAJECTORIES = [
    # the end decides, and the rest does not gainsay it
    Trajectory(
        "cured", COLLAPSE, path((0, 2), (0.2, 10), (0.4, 30), (0.6, 60), (1, 60)), SUPPORTED, "the cure claimed"
    ),
    Trajectory("healthy throughout", flat(200), flat(200), SUPPORTED, "no collapse, so nothing to recover from"),
    Trajectory("healthy and rising", flat(60), line(60, 120), SUPPORTED, "above 50 all the time"),
    Trajectory("slow recovery to 51", COLLAPSE, line(2, 51), SUPPORTED, "recovers at once, and ends above 50"),
    Trajectory(
        "recovery from the third evaluation on",
        COLLAPSE,
        pieces((0.2, 2), (1, 80)),
        SUPPORTED,
        "two evaluations of twenty in a run is at the boundary, and the rest is stable",
    ),
    Trajectory(
        "noisy around 100",
        COLLAPSE,
        noisy(flat(100), 0.2),
        SUPPORTED,
        "'variance in token counts is normal - look at the overall trend'",
    ),
    Trajectory("rising 100 to 400 with noise", COLLAPSE, noisy(line(100, 400), 0.3), SUPPORTED, "healthy throughout"),
    Trajectory("150 ↔ 310", COLLAPSE, cycle(150, 310), SUPPORTED, "swings, but never near a collapse"),
    Trajectory(
        "200, last 90", COLLAPSE, pieces((0.95, 200), (1, 90)), SUPPORTED, "90 is still healthy: one evaluation"
    ),
    Trajectory("declines 400 to 60", COLLAPSE, line(400, 60), SUPPORTED, "60 at the end is not 'low'"),
    Trajectory("70, once 400", COLLAPSE, pieces((0.5, 70), (0.55, 400), (1, 70)), SUPPORTED, "one spike is no swing"),
    Trajectory("70, once 3", COLLAPSE, pieces((0.5, 70), (0.55, 3), (1, 70)), SUPPORTED, "back at once: no collapse"),
    # it fails in the document's words
    Trajectory("collapsed for good", COLLAPSE, flat(2), REFUTED, "'ends at <10 tokens'"),
    Trajectory("stage 2 kills it", flat(200), pieces((0.1, 60), (1, 3)), REFUTED, "'ends at <10 tokens'"),
    Trajectory(
        "200, at 20k only 8", COLLAPSE, pieces((0.999, 200), (1, 8)), REFUTED, "'step 20k … that's the verdict'"
    ),
    Trajectory(
        "temporary",
        COLLAPSE,
        path((0, 100), (0.4, 100), (0.75, 15), (1, 12)),
        REFUTED,
        "'recovery is temporary (high at 10k, low at 20k)'; the final count alone does not decide",
    ),
    Trajectory("2→10→3→15→2", COLLAPSE, cycle(2, 10, 3, 15), REFUTED, "the document's own example of erratic"),
    Trajectory("the same, last 60", COLLAPSE, cycle(2, 10, 3, 15, last=60), REFUTED, "erratic: the end is chance"),
    Trajectory("3 ↔ 60", COLLAPSE, cycle(3, 60), REFUTED, "'tokens jumping'; the end at 60 is chance"),
    # it neither proves nor disproves the claim
    Trajectory("recovery to 30", COLLAPSE, path((0, 2), (0.3, 30), (1, 30)), INCONCLUSIVE, "10 to 50 is left open"),
    Trajectory("as reported", COLLAPSE, path((0, 2), (0.2, 10), (0.4, 14), (1, 13)), INCONCLUSIVE, "more than 10"),
    Trajectory(
        "5 | 10 ↔ 9, last 60",
        pieces((0.5, 20), (1, 5)),
        cycle(10, 9, last=60),
        INCONCLUSIVE,
        "one evaluation of 60 after nothing but 9 and 10 is no trend",
    ),
    Trajectory("30, last 60", COLLAPSE, pieces((0.95, 30), (1, 60)), INCONCLUSIVE, "the trend is 30, the end a peak"),
    Trajectory(
        "1 | 2 for 17 of 20, then 51",
        pieces((0.5, 20), (1, 1)),
        pieces((0.85, 2), (1, 51)),
        INCONCLUSIVE,
        "dead through most of stage 2: what cured it so late is not the change of weight decay",
    ),
    Trajectory(
        "dead for 15 of 20, a blip of 12 at the boundary",
        pieces((0.95, 2), (1, 12)),
        pieces((0.75, 2), (1, 80)),
        INCONCLUSIVE,
        "collapsed before and after the boundary, whatever one evaluation says",
    ),
    Trajectory(
        "dead for 9 of 20",
        COLLAPSE,
        pieces((0.3, 80), (0.75, 2), (1, 80)),
        INCONCLUSIVE,
        "collapsed again for almost half of stage 2: not 'stable through step 20k'",
    ),
    Trajectory("dead for the first 9 of 20", COLLAPSE, pieces((0.45, 2), (1, 80)), INCONCLUSIVE, "not at the boundary"),
    Trajectory("late recovery", COLLAPSE, pieces((0.6, 2), (1, 100)), INCONCLUSIVE, "no recovery at the boundary"),
    Trajectory(
        "falls to 3 midway",
        COLLAPSE,
        pieces((0.5, 80), (0.7, 3), (1, 80)),
        INCONCLUSIVE,
        "collapsed again, so not stable; but it ends well, which the document does not call a failure",
    ),
    Trajectory(
        "60 ↔ 115",
        COLLAPSE,
        cycle(60, 115),
        INCONCLUSIVE,
        "between just enough and healthy, by a factor of 1.9: not stable, and not the document's erratic",
    ),
]


def named(trajectories: Sequence[Trajectory]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("trajectory", trajectories, ids=[one.name for one in trajectories])


@named(TRAJECTORIES)
def test_a_trajectory_is_judged_alike_however_often_it_is_evaluated(tmp_path: Path, trajectory: Trajectory) -> None:
    """At 10, 20, 50 and 200 evaluations of stage 2, with the boundary known and known to an interval only."""
    for evaluations in (10, 20, 50, 200):
        values = trajectory.sampled(evaluations)
        for run in (bare_run(tmp_path, values), origin_run(tmp_path, values)):
            verdict = judge([run], ORIGIN)
            assert verdict.outcome is trajectory.outcome, (evaluations, verdict.reasons)


# the boundary of a foreign log


def test_the_boundary_is_known_to_a_step_or_to_an_interval(tmp_path: Path) -> None:
    assert origin_run(tmp_path, [4000, *[200] * 10]).boundary_interval == (10_000, 10_000)
    foreign = bare_run(tmp_path, [4000, *[200] * 10])
    assert (foreign.boundary_interval, foreign.boundary_step) == ((10_000, 11_999), 10_000)
    steps = [1, 900, 1_350, 1_750, 2_000]
    for decay, interval, step in (
        ([0.1, 0.1, 0.0, 0.0, 0.0], (900, 1_349), 1_000),
        # a row without its WD belongs to either stage
        ([0.1, 0.1, "", 0.0, 0.0], (900, 1_749), 1_000),
        ([0.1, 0.1, 0.1, 0.0, 0.0], (1_350, 1_749), 1_400),
        # constant: half of the planned steps
        ([0.1] * 5, (1_000, 1_000), 1_000),
    ):
        run = bare_run(tmp_path, [60] * 5, steps=2_000, Step=steps, WD=decay)
        assert (run.boundary_interval, run.boundary_step) == (interval, step)
    unknown = bare_run(tmp_path, [60] * 5, Step=steps, WD=0.1, name="mine.csv")
    assert (unknown.boundary_interval, unknown.boundary_step) == (None, None)


@pytest.mark.parametrize(
    ("first_known", "outcome", "reason"),
    [
        # dead until 11,000: most of the first half of a stage 2 that began at 5,000, not of one that began at 8,499
        (
            9_000,
            INCONCLUSIVE,
            "stage 1 ends somewhere in steps 5,000 to 8,999, and recovery at the boundary depends on where: "
            "inconclusive if at 5,000, supported if at 8,499",
        ),
        (6_000, INCONCLUSIVE, "UniquePredictions 2 → 2 at step 5,000 (medians): no recovery, less than 2 times"),
    ],
)
def test_a_foreign_log_is_judged_over_the_interval(
    tmp_path: Path, first_known: int, outcome: Outcome, reason: str
) -> None:
    steps = [1, *range(1_000, 5_001, 1_000), *range(first_known, 20_001, 1_000)]
    run = bare_run(
        tmp_path,
        [4000 if step == 1 else 2 if step < 12_000 else 80 for step in steps],
        Step=steps,
        WD=[0.1 if step <= 5_000 else 0.0 for step in steps],
    )
    verdict = judge([run], ORIGIN)
    assert (verdict.outcome, verdict.reasons[0]) == (outcome, reason)


# a stage in parts


def test_parts_are_shares_of_the_steps() -> None:
    steps = [1_000, 2_000, 3_000, 4_000, 6_000, 8_000, 10_000]
    stage = Stage(start=0, end=10_000, steps=steps, values=[1, 2, 3, 4, 5, 6, 7])
    assert stage.opening(0.5) == [1, 2, 3, 4]
    assert stage.closing(0.5) == [5, 6, 7]
    # at least three
    assert stage.opening(0.1) == [1, 2, 3]
    assert stage.closing(0.2) == [5, 6, 7]
    assert stage.levels(0.5) == [3.5, 5, 6]
    # a level before 2,000 would reach back into stage 1, and one of two values is too few
    assert stage.levels(0.2) == [2, 3, 4, 5, 6]
    assert stage.share_below(4, after=0.0) == pytest.approx(0.35)
    assert stage.share_below(4, after=0.25) == pytest.approx(0.1 / 0.75)
    assert stage.share_below(8, after=0.25) == 1


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_value_that_is_not_finite_refutes(value: float) -> None:
    """Also in a measure whose column `finite` does not name."""
    for check in ORIGIN.checks:
        if isinstance(check, TrajectoryCheck):
            stages = split_at([1, *range(100, 2_001, 100)], [4000, *[2] * 10, 60, value, *[60.0] * 8], 1_000)
            finding = check.judge_stages(*stages)
            assert (finding.outcome, finding.reason[:24]) == (REFUTED, f"UniquePredictions is {value}")


def test_few_evaluations_are_fewer_than_three_in_a_part() -> None:
    for count, fewest in ((1, 1), (2, 1), (3, 1), (4, 2), (5, 2), (6, 3), (7, 3), (100, 3)):
        stage = Stage(start=0, end=count, steps=range(1, count + 1), values=[5.0] * count)
        assert len(stage.opening(0)) == len(stage.closing(0)) == fewest
        assert len(stage.levels(0.25)) >= 1


def test_no_evaluations_are_no_values() -> None:
    stage = Stage(start=0, end=10, steps=[], values=[])
    assert (stage.opening(0.5), stage.closing(0.5), stage.smoothed()) == ([], [], [])


@given(values=st.lists(st.integers(0, 50), min_size=1, max_size=60), data=st.data())
def test_running_medians_are_medians(values: list[float], data: st.DataObject) -> None:
    """Against the median of each window by itself, for evaluations at any steps."""
    steps = sorted(data.draw(st.sets(st.integers(101, 400), min_size=len(values), max_size=len(values))))
    stage = Stage(start=100, end=steps[-1], steps=steps, values=values)
    length = stage.end - stage.start
    expected = []
    for index, step in enumerate(steps):
        window = [value for at, value in zip(steps, values, strict=True) if step - 0.25 * length < at <= step]
        if len(window) < stage.fewest:
            window = values[max(0, index + 1 - stage.fewest) : index + 1]
        if step - 0.25 * length >= 100 and len(window) >= stage.fewest:
            expected.append(median(window))
    assert stage.levels(0.25) == expected
    if len(values) >= 7:
        expected = []
        for index, step in enumerate(steps[1:-1], start=1):
            half = 0.075 * length
            if step - half >= 100 and step + half <= steps[-1]:
                near = {at for at, other in enumerate(steps) if abs(other - step) <= half}
                expected.append(median(values[at] for at in sorted(near | {index - 1, index, index + 1})))
        assert stage.smoothed() == expected


# false alarms; `python -m benchmarks.calibration --part shapes` has the whole table


@pytest.mark.parametrize("evaluations", shapes.EVALUATIONS)
def test_healthy_counts_are_rarely_erratic(evaluations: int) -> None:
    """The cells with the most false alarms: around 60, log-sd 0.3."""
    for correlation in (0.0, 0.02):
        rates = shapes.false_alarms(60, 0.3, correlation, evaluations, draws=400)
        assert rates["erratic"] <= 0.01
        assert rates["refuted"] <= 0.03


@pytest.mark.parametrize("evaluations", shapes.EVALUATIONS)
def test_swings_and_relapses_are_found(evaluations: int) -> None:
    """Power: checks that never object would pass the tests above."""
    patterns = shapes.patterns()
    for name in ("3 ↔ 60, a tenth of stage 2 each", "3 ↔ 60, every evaluation", "100, from 30% on falling to 12"):
        assert shapes.found(patterns[name], evaluations, draws=50) == (1.0, 0.0), name
    assert shapes.found(patterns["2→10→3→15→2, a tenth each"], evaluations, draws=50)[0] > 0.9
    assert shapes.found(patterns["80, then dead for 20%, then 80"], evaluations, draws=50) == (0.0, 0.0)


def test_a_weight_decay_that_is_not_finite_is_no_boundary(tmp_path: Path) -> None:
    steps = range(0, 1001, 100)
    diverged = load_run(write_csv(tmp_path / "a.csv", curve(steps, WD=[0.1] * 8 + ["nan"] * 3)))
    assert diverged.boundary_interval is None
    first = load_run(write_csv(tmp_path / "b.csv", curve(steps, WD=["nan", *[0.1] * 5, *[0.0] * 5])))
    assert first.boundary_interval is None


def test_a_number_of_positions_that_is_not_finite_is_no_ceiling(tmp_path: Path) -> None:
    known = load_run(write_csv(tmp_path / "a.csv", curve((1, 100), ProbePositions=[64, "nan"])))
    assert known.ceiling == (64, False)
    unknown = load_run(write_csv(tmp_path / "b.csv", curve((1, 100), ProbePositions=["inf", "nan"])))
    assert unknown.ceiling == (100, True)
