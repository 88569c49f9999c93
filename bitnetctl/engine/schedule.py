"""Learning rate and weight decay as pure functions of the step; steps are counted from 1 to `steps`."""

import math

from bitnetctl.config import ScheduleConfig


def learning_rate(schedule: ScheduleConfig, step: int, steps: int) -> float:
    """Return the learning rate of `step`; every kind warms up linearly to the peak at `warmup_steps`.

    - `two-stage` falls linearly to `boundary_learning_rate_fraction` of the peak at the boundary, then linearly to the
      final fraction at the end; straight to the end if the warm-up takes all of stage 1
    - `paper` falls linearly to the final fraction at the end; after the boundary, of the stage-2 peak instead
      ("The Era of 1-bit LLMs: Training Tips, Code and FAQ")
    - `cosine` falls in half a cosine to the final fraction (Loshchilov & Hutter 2017)
    - `constant` stays at the peak
    """
    peak, warmup = schedule.peak_learning_rate, schedule.warmup_steps
    if step < warmup:
        return peak * step / warmup
    boundary = schedule.boundary_step(steps)
    final = schedule.final_learning_rate_fraction
    match schedule.kind:
        case "two-stage":
            middle = schedule.boundary_learning_rate_fraction
            if warmup >= boundary:
                return peak * _interpolate(step, warmup, 1.0, steps, final)
            if step <= boundary:
                return peak * _interpolate(step, warmup, 1.0, boundary, middle)
            return peak * _interpolate(step, boundary, middle, steps, final)
        case "paper":
            stage_peak = peak if step <= boundary else schedule.stage2_peak_learning_rate
            return stage_peak * _interpolate(step, warmup, 1.0, steps, final)
        case "cosine":
            progress = _interpolate(step, warmup, 0.0, steps, 1.0)
            return peak * (final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * progress)))
        case "constant":
            return peak


def weight_decay(schedule: ScheduleConfig, step: int, steps: int) -> float:
    """Return the weight decay of `step`: one value through the boundary step, another after it."""
    if step <= schedule.weight_decay_boundary_step(steps):
        return schedule.stage1_weight_decay
    return schedule.stage2_weight_decay


def _interpolate(x: float, x0: float, y0: float, x1: float, y1: float) -> float:
    """Interpolate linearly from (x0, y0) to (x1, y1), constant beyond; y1 where x1 ≤ x0."""
    if x1 <= x0:
        return y1
    t = min(max((x - x0) / (x1 - x0), 0.0), 1.0)
    return (1.0 - t) * y0 + t * y1
