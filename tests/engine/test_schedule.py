"""Learning rate and weight decay at points calculated by hand, and properties that hold everywhere."""

import math
from itertools import pairwise
from typing import Any, Literal, get_args

import pytest
from hypothesis import given, strategies as st

from bitnetctl.config import ScheduleConfig, build_config
from bitnetctl.engine.schedule import learning_rate, weight_decay

Kind = Literal["two-stage", "paper", "cosine", "constant"]
KINDS: tuple[Kind, ...] = get_args(Kind)
ORIGIN = build_config("origin").schedule


def plain(kind: Kind, **fields: Any) -> ScheduleConfig:
    return ScheduleConfig(kind=kind, **{"peak_learning_rate": 1.0, "warmup_steps": 0, **fields})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("step", "rate"), [(1, 4e-6), (75, 3e-4), (300, 1.2e-3), (374, 1.496e-3), (375, 1.5e-3)])
def test_warm_up_is_linear_to_the_peak(kind: Kind, step: int, rate: float) -> None:
    schedule = ORIGIN.model_copy(update={"kind": kind})
    assert learning_rate(schedule, step, 20_000) == pytest.approx(rate, rel=1e-12)


@pytest.mark.parametrize(
    ("step", "rate"),
    [
        (2_300, 1.4e-3),  # a fifth of the way from 375 to 10,000, so a fifth of the fall from 1.5e-3 to 1e-3
        (8_075, 1.1e-3),
        (10_000, 1e-3),
        (15_000, 0.50075e-3),  # halfway between 1e-3 and 1.5e-6
        (17_500, 0.251125e-3),
        (20_000, 1.5e-6),
    ],
)
def test_two_stage(step: int, rate: float) -> None:
    assert learning_rate(ORIGIN, step, 20_000) == pytest.approx(rate, rel=1e-12)


def test_two_stage_without_warm_up_starts_below_the_peak() -> None:
    schedule = plain("two-stage", boundary_learning_rate_fraction=0.5, final_learning_rate_fraction=0.0)
    rates = [learning_rate(schedule, step, 10) for step in range(1, 11)]
    assert rates == pytest.approx([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0], abs=1e-15)


def test_the_paper_drops_at_half_of_the_steps() -> None:
    schedule = plain("paper", peak_learning_rate=1.5e-3, stage2_peak_learning_rate=1e-3)
    before, after = (learning_rate(schedule, step, 100_000) for step in (50_000, 50_001))
    assert before == pytest.approx(0.75e-3, rel=2e-3)
    assert after == pytest.approx(0.5e-3, rel=2e-3)
    assert before / after == pytest.approx(1.5, rel=1e-4)


@pytest.mark.parametrize(
    ("step", "rate"),
    [
        (5_281, 1.5e-3 * (0.75 + 0.25e-3)),  # 4,906 of 19,625 steps after warm-up: a quarter of the line, almost
        (10_000, 1.5e-3 * (10_000 + 9.625) / 19_625),
        (10_001, 1e-3 * (9_999 + 9.626) / 19_625),
        (20_000, 1e-6),
    ],
)
def test_paper(step: int, rate: float) -> None:
    schedule = build_config("b158").schedule
    assert learning_rate(schedule, step, 20_000) == pytest.approx(rate, rel=1e-4 if step == 5_281 else 1e-12)


@pytest.mark.parametrize(("step", "rate"), [(20, 1.0), (40, 0.868198), (60, 0.55), (80, 0.231802), (100, 0.1)])
def test_cosine(step: int, rate: float) -> None:
    # 0.1 + 0.9 (1 + cos(pi t)) / 2 with t = 0, 1/4, 1/2, 3/4, 1
    schedule = plain("cosine", warmup_steps=20, final_learning_rate_fraction=0.1)
    assert learning_rate(schedule, step, 100) == pytest.approx(rate, abs=1e-6)


def test_constant() -> None:
    schedule = plain("constant", warmup_steps=4)
    assert [learning_rate(schedule, step, 8) for step in range(1, 9)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_warm_up_longer_than_the_run_never_reaches_the_peak(kind: Kind) -> None:
    schedule = plain(kind, warmup_steps=400)
    assert [learning_rate(schedule, step, 100) for step in (1, 50, 100)] == [1 / 400, 1 / 8, 1 / 4]


@pytest.mark.parametrize("kind", KINDS)
def test_a_warm_up_longer_than_stage_1_still_ends_at_the_final_rate(kind: Kind) -> None:
    schedule = plain(kind, warmup_steps=80, stage2_peak_learning_rate=1.0, final_learning_rate_fraction=0.1)
    assert learning_rate(schedule, 60, 100) == 0.75
    assert learning_rate(schedule, 100, 100) == pytest.approx(1.0 if kind == "constant" else 0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_warm_up_longer_than_stage_1_rises_to_the_peak(kind: Kind) -> None:
    schedule = plain(kind, warmup_steps=80, stage2_peak_learning_rate=1.0)
    assert [learning_rate(schedule, step, 100) for step in (79, 80)] == pytest.approx([79 / 80, 1.0])


def test_weight_decay_changes_after_the_boundary() -> None:
    assert [weight_decay(ORIGIN, step, 20_000) for step in (1, 10_000, 10_001, 20_000)] == [0.1, 0.1, 0.0, 0.0]
    schedule = plain("constant", boundary_fraction=0.3, stage1_weight_decay=0.2, stage2_weight_decay=0.05)
    assert [weight_decay(schedule, step, 10) for step in (3, 4)] == [0.2, 0.05]


@pytest.mark.parametrize(("fraction", "decays"), [(0.0, [0.05] * 4), (1.0, [0.2] * 4)])
def test_one_stage_may_take_the_whole_run(fraction: float, decays: list[float]) -> None:
    schedule = plain("two-stage", boundary_fraction=fraction, stage1_weight_decay=0.2, stage2_weight_decay=0.05)
    assert [weight_decay(schedule, step, 4) for step in range(1, 5)] == decays
    end = 2 / 3 if fraction == 1.0 else 1e-3
    assert learning_rate(schedule, 4, 4) == pytest.approx(end)


SCHEDULES = st.builds(
    ScheduleConfig,
    kind=st.sampled_from(KINDS),
    peak_learning_rate=st.floats(0.0, 10.0),
    warmup_steps=st.integers(0, 150),
    boundary_fraction=st.floats(0.0, 1.0),
    boundary_learning_rate_fraction=st.floats(0.0, 1.0),
    stage2_peak_learning_rate=st.floats(0.0, 10.0),
    final_learning_rate_fraction=st.floats(0.0, 1.0),
    stage1_weight_decay=st.floats(0.0, 1.0),
    stage2_weight_decay=st.floats(0.0, 1.0),
)
STEPS = st.integers(1, 100)


@given(SCHEDULES, STEPS)
def test_rates_stay_between_zero_and_the_peaks(schedule: ScheduleConfig, steps: int) -> None:
    peak = schedule.peak_learning_rate
    if schedule.kind == "paper":
        peak = max(peak, schedule.stage2_peak_learning_rate)
    rates = [learning_rate(schedule, step, steps) for step in range(1, steps + 1)]
    assert all(math.isfinite(rate) and 0.0 <= rate <= peak * (1 + 1e-12) for rate in rates)
    decays = {weight_decay(schedule, step, steps) for step in range(1, steps + 1)}
    assert decays <= {schedule.stage1_weight_decay, schedule.stage2_weight_decay}


@given(SCHEDULES, STEPS)
def test_warm_up_rises_and_what_follows_does_not(schedule: ScheduleConfig, steps: int) -> None:
    if schedule.kind == "two-stage" and (
        schedule.boundary_learning_rate_fraction < schedule.final_learning_rate_fraction
    ):
        schedule = schedule.model_copy(update={"boundary_learning_rate_fraction": 1.0})
    if schedule.kind == "paper":
        schedule = schedule.model_copy(update={"stage2_peak_learning_rate": schedule.peak_learning_rate / 2})
    warmup = min(schedule.warmup_steps, steps)
    rates = [learning_rate(schedule, step, steps) for step in range(1, steps + 1)]
    rise, fall = rates[: max(warmup - 1, 0)], rates[max(warmup - 1, 0) :]
    assert rise == sorted(rise)
    # a constant line may vary by a rounding
    assert all(later <= earlier * (1 + 1e-12) for earlier, later in pairwise(fall))


@given(
    kind=st.sampled_from(KINDS),
    steps=st.integers(20, 200),
    warmup_fraction=st.floats(0.05, 0.4),
    boundary_fraction=st.floats(0.5, 0.9),
    middle=st.floats(0.0, 1.0),
    stage2_peak=st.floats(0.0, 1.0),
    final=st.floats(0.0, 1.0),
)
def test_rates_move_in_small_steps(
    kind: Kind,
    steps: int,
    warmup_fraction: float,
    boundary_fraction: float,
    middle: float,
    stage2_peak: float,
    final: float,
) -> None:
    warmup = round(steps * warmup_fraction)
    schedule = plain(
        kind,
        warmup_steps=warmup,
        boundary_fraction=boundary_fraction,
        boundary_learning_rate_fraction=middle,
        stage2_peak_learning_rate=stage2_peak,
        final_learning_rate_fraction=final,
    )
    boundary = schedule.boundary_step(steps)
    steepest = max(1 / max(warmup, 1), math.pi / 2 / (boundary - warmup), 1 / (steps - boundary))
    rates = [learning_rate(schedule, step, steps) for step in range(1, steps + 1)]
    for step, (before, after) in enumerate(pairwise(rates), start=1):
        drop = before * (1.0 - stage2_peak) if kind == "paper" and step == boundary else 0.0
        assert abs(after - (before - drop)) <= steepest * (1 + 1e-9)
