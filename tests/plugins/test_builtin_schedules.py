"""Built-in interventions that change schedules, at points worked out by hand."""

import numpy as np
import pytest
from configs import TinyConfig
from packs import PackArms, compose

from bitnetctl.engine import schedule
from bitnetctl.errors import ConfigError


@pytest.mark.parametrize("kind", ["two-stage", "paper", "cosine", "constant"])
@pytest.mark.parametrize(("arm", "peak"), [("reduced-lr", 5e-4), ("reduced-lr:peak=2e-4", 2e-4)])
def test_reduced_lr_keeps_the_shape_of_the_schedule(kind: str, arm: str, peak: float, tiny_config: TinyConfig) -> None:
    base = tiny_config(steps=40, schedule__kind=kind, schedule__warmup_steps=4).schedule
    reduced = compose(arm).configure(tiny_config(steps=40, schedule__kind=kind, schedule__warmup_steps=4)).schedule
    before = [schedule.learning_rate(base, step, 40) for step in range(1, 41)]
    after = [schedule.learning_rate(reduced, step, 40) for step in range(1, 41)]
    assert max(before) == 1.5e-3
    assert max(after) == pytest.approx(peak)
    np.testing.assert_allclose(after, np.array(before) * (peak / 1.5e-3), rtol=1e-12)


def test_reduced_lr_by_a_factor_scales_both_peaks(tiny_config: TinyConfig) -> None:
    config = tiny_config(schedule__peak_learning_rate=4e-3, schedule__stage2_peak_learning_rate=3e-3)
    for arm in ("reduced-lr:factor=0.25", "reduced-lr:peak=9,factor=0.25", "reduced-lr:peak=1e-3"):
        reduced = compose(arm).configure(config)
        assert reduced.schedule.peak_learning_rate == pytest.approx(1e-3)
        assert reduced.schedule.stage2_peak_learning_rate == pytest.approx(0.75e-3)
    changed = {"schedule": {"peak_learning_rate", "stage2_peak_learning_rate"}}
    assert reduced.model_dump(exclude=changed) == config.model_dump(exclude=changed)


def test_reduced_lr_of_a_recipe_with_learning_rate_zero(tiny_config: TinyConfig) -> None:
    config = tiny_config(schedule__peak_learning_rate=0)
    with pytest.raises(ConfigError, match="reduced-lr"):
        compose("reduced-lr").configure(config)
    assert compose("reduced-lr:factor=0.5").configure(config).schedule.peak_learning_rate == 0.0


@pytest.mark.parametrize("kind", ["two-stage", "paper", "cosine", "constant"])
@pytest.mark.parametrize(("arm", "factor"), [("higher-rate", 2.0), ("higher-rate:factor=3+reduced-lr:factor=0.5", 1.5)])
def test_higher_rate_is_the_schedule_times_a_factor(
    kind: str, arm: str, factor: float, tiny_config: TinyConfig, pack_arms: PackArms
) -> None:
    config = tiny_config(steps=40, schedule__kind=kind, schedule__warmup_steps=4)
    higher, base = pack_arms(config, arm, "").replicas
    steps = range(1, 41)
    expected = [factor * base.learning_rate(step) for step in steps]
    np.testing.assert_allclose([higher.learning_rate(step) for step in steps], expected, rtol=1e-12)
    assert {higher.weight_decay(step) for step in steps} == {0.0, 0.1}


@pytest.mark.parametrize(
    ("arm", "points"),
    [
        ("decay-to-zero", {1: 0.099, 25: 0.075, 50: 0.05, 51: 0.049, 99: 0.001, 100: 0.0}),
        ("decay-to-zero:initial=0.4", {1: 0.396, 50: 0.2, 100: 0.0}),
        ("decay-to-zero:begin=0.5", {1: 0.1, 50: 0.1, 51: 0.098, 75: 0.05, 100: 0.0}),
        ("decay-to-zero:end=0.5", {1: 0.098, 25: 0.05, 50: 0.0, 51: 0.0, 100: 0.0}),
        ("decay-to-zero:begin=0.5,end=0.5", {50: 0.1, 51: 0.0}),
        ("wd-schedule:preset=before-fix,stage1=0.2+decay-to-zero", {50: 0.1, 51: 0.098, 100: 0.0}),
        ("no-decay+decay-to-zero", {1: 0.0, 50: 0.0}),
        ("decay-to-zero+no-decay", {1: 0.0, 50: 0.0}),
    ],
)
def test_decay_to_zero_at_points_worked_out_by_hand(
    arm: str, points: dict[int, float], tiny_config: TinyConfig, pack_arms: PackArms
) -> None:
    [replica] = pack_arms(tiny_config(steps=100), arm).replicas
    assert {step: replica.weight_decay(step) for step in points} == pytest.approx(points, abs=1e-12)


def test_decay_to_zero_is_as_much_decay_as_a_step_at_half(tiny_config: TinyConfig, pack_arms: PackArms) -> None:
    falling, stepping = pack_arms(tiny_config(steps=400), "decay-to-zero", "").replicas
    totals = [sum(map(replica.weight_decay, range(1, 401))) for replica in (falling, stepping)]
    # a sum of 400 steps is half a step away from the area
    assert totals == pytest.approx([20.0 - 0.05, 20.0], rel=1e-9)
    assert [falling.learning_rate(step) for step in range(1, 401)] == list(map(stepping.learning_rate, range(1, 401)))


def test_decay_to_zero_that_ends_before_it_begins() -> None:
    with pytest.raises(ConfigError, match=r"end 0.25 is before begin 0.5"):
        compose("decay-to-zero:begin=0.5,end=0.25")


@pytest.mark.parametrize(
    ("arm", "decays"),
    [
        ("baseline", (0.1, 0.1, 0.0, 0.0)),
        ("wd-schedule", (0.1, 0.1, 0.0, 0.0)),
        ("wd-schedule:preset=fix", (0.1, 0.1, 0.0, 0.0)),
        ("wd-schedule:preset=before-fix", (0.1, 0.1, 0.05, 0.05)),
        ("wd-schedule:preset=stage1-only", (0.1, 0.1, 0.1, 0.1)),
        ("wd-schedule:stage1=0.3", (0.3, 0.3, 0.0, 0.0)),
        ("wd-schedule:stage1=0,stage2=0.2", (0.0, 0.0, 0.2, 0.2)),
        ("wd-schedule:preset=before-fix,stage2=0.01", (0.1, 0.1, 0.01, 0.01)),
        ("wd-schedule:preset=before-fix,stage1=0.2", (0.2, 0.2, 0.05, 0.05)),
        ("wd-schedule:boundary=0.25", (0.1, 0.0, 0.0, 0.0)),
        ("wd-schedule:boundary=0", (0.0, 0.0, 0.0, 0.0)),
        ("wd-schedule:boundary=1", (0.1, 0.1, 0.1, 0.1)),
        ("wd-schedule:preset=stage1-only,boundary=0.25", (0.1, 0.0, 0.0, 0.0)),
        ("no-decay", (0.0, 0.0, 0.0, 0.0)),
        ("wd-schedule:stage2=0.05+no-decay", (0.0, 0.0, 0.0, 0.0)),
        ("no-decay+wd-schedule:stage2=0.05", (0.0, 0.0, 0.05, 0.05)),
    ],
)
def test_decay_of_each_quarter(
    arm: str, decays: tuple[float, ...], tiny_config: TinyConfig, pack_arms: PackArms
) -> None:
    [replica] = pack_arms(tiny_config(steps=8), arm).replicas
    assert [replica.weight_decay(step) for step in range(1, 9)] == [decay for decay in decays for _ in range(2)]


def test_the_boundary_of_the_decay_does_not_move_that_of_the_rate(tiny_config: TinyConfig, pack_arms: PackArms) -> None:
    moved, base = pack_arms(tiny_config(steps=40), "wd-schedule:boundary=0.2", "").replicas
    assert [moved.learning_rate(step) for step in range(1, 41)] == [base.learning_rate(step) for step in range(1, 41)]
    assert [step for step in range(1, 41) if moved.weight_decay(step)] == list(range(1, 9))
    assert [step for step in range(1, 41) if base.weight_decay(step)] == list(range(1, 21))


def test_stage1_only_never_enters_stage_2(tiny_config: TinyConfig, pack_arms: PackArms) -> None:
    config = tiny_config(steps=40, schedule__warmup_steps=4, schedule__stage2_weight_decay=0.7)
    [replica] = pack_arms(config, "wd-schedule:preset=stage1-only").replicas
    assert {replica.weight_decay(step) for step in range(1, 41)} == {0.1}
    # stage 1 is the whole run: from the peak at step 4 linearly to two thirds of it at step 40
    assert replica.learning_rate(4) == pytest.approx(1.5e-3)
    assert replica.learning_rate(22) == pytest.approx(1.25e-3)
    assert replica.learning_rate(40) == pytest.approx(1e-3)
    assert replica.config.boundary_step == 40


def test_stage1_only_overrides_the_decay_boundary_of_the_recipe(tiny_config: TinyConfig, pack_arms: PackArms) -> None:
    config = tiny_config(steps=40, schedule__weight_decay_boundary_fraction=0.5)
    [replica] = pack_arms(config, "wd-schedule:preset=stage1-only").replicas
    assert {replica.weight_decay(step) for step in range(1, 41)} == {0.1}


@pytest.mark.parametrize("preset", ["stage1-only", "before-fix", "fix"])
def test_presets_change_the_schedule_only(preset: str, tiny_config: TinyConfig) -> None:
    config = tiny_config()
    changed = compose(f"wd-schedule:preset={preset}").configure(config)
    assert changed.model_dump(exclude={"schedule"}) == config.model_dump(exclude={"schedule"})


# peak 1.5e-3, 20 steps of warm-up, 120 steps, to a thousandth: at step s both lines are at 1 - 0.999 (s - 20) / 100
@pytest.mark.parametrize(
    ("arm", "points"),
    [
        ("lr-drop", {10: 7.5e-4, 20: 1.5e-3, 60: 9.006e-4, 61: 5.9041e-4, 70: 5.005e-4, 120: 1e-6}),
        ("lr-drop:stage2_peak=2e-3", {20: 1.5e-3, 60: 9.006e-4, 61: 1.18082e-3, 120: 2e-6}),
        ("reduced-lr:factor=0.1+lr-drop", {20: 1.5e-4, 60: 9.006e-5, 61: 5.9041e-5}),
        ("reduced-lr:factor=0.1+lr-drop:stage2_peak=2e-3", {60: 9.006e-5, 61: 1.18082e-3}),
        ("lr-drop:stage2_peak=2e-3+reduced-lr:factor=0.1", {60: 9.006e-5, 61: 1.18082e-4}),
    ],
)
def test_lr_drop_at_points_worked_out_by_hand(
    arm: str, points: dict[int, float], tiny_config: TinyConfig, pack_arms: PackArms
) -> None:
    config = tiny_config(steps=120, schedule__warmup_steps=20, schedule__stage2_peak_learning_rate=9e-3)
    [replica] = pack_arms(config, arm).replicas
    assert {step: replica.learning_rate(step) for step in points} == pytest.approx(points, rel=1e-9)


@pytest.mark.parametrize(
    ("arm", "base", "points"),
    [
        ("fp-first", 1.0, {1: 0.0, 20: 0.0, 21: 0.1, 25: 0.5, 29: 0.9, 30: 1.0, 31: 1.0, 100: 1.0}),
        ("fp-first:fraction=0.5,ramp=0", 1.0, {1: 0.0, 50: 0.0, 51: 1.0, 100: 1.0}),
        ("fp-first:fraction=0.5,ramp=0.02", 1.0, {50: 0.0, 51: 0.5, 52: 1.0}),
        ("fp-first:fraction=0,ramp=0", 1.0, {1: 1.0, 100: 1.0}),
        ("fp-first:fraction=0,ramp=1", 1.0, {1: 0.01, 50: 0.5, 100: 1.0}),
        ("fp-first:fraction=1", 1.0, {1: 0.0, 99: 0.0, 100: 0.0}),
        ("fp-first", 0.5, {20: 0.0, 25: 0.25, 30: 0.5}),
        ("full-precision+fp-first", 1.0, {1: 0.0, 25: 0.0, 100: 0.0}),
        ("fp-first+fp-first:fraction=0.24,ramp=0.02", 1.0, {24: 0.0, 25: 0.25, 26: 0.6, 30: 1.0}),
    ],
)
def test_fp_first_at_points_worked_out_by_hand(
    arm: str, base: float, points: dict[int, float], tiny_config: TinyConfig, pack_arms: PackArms
) -> None:
    [replica] = pack_arms(tiny_config(steps=100, model__quantization=base), arm).replicas
    assert {step: replica.quant_lambda(step) for step in points} == pytest.approx(points, abs=1e-12)
