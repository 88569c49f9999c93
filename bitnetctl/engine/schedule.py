"""Learning rate and weight decay as pure functions of the step; steps are counted from 1 to `steps`."""

import math

from bitnetctl.config import ScheduleConfig


def learning_rate(schedule: ScheduleConfig, step: int, steps: int) -> float:
    """Return the learning rate of `step`.

    All kinds rise linearly to the peak at `warmup_steps`. Then `two-stage` falls linearly to
    `boundary_learning_rate_fraction` of the peak at the boundary and on to the final fraction at the end, or straight
    to it where the warm-up takes all of stage 1;
    `paper` follows one line to the final fraction until the boundary and the same line scaled to the stage-2 peak
    after it ("The Era of 1-bit LLMs: Training Tips, Code and FAQ"); `cosine` is half a cosine to the final fraction
    (Loshchilov & Hutter 2017); `constant` stays at the peak.
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
                return peak * _line(step, warmup, 1.0, steps, final)
            if step <= boundary:
                return peak * _line(step, warmup, 1.0, boundary, middle)
            return peak * _line(step, boundary, middle, steps, final)
        case "paper":
            line_peak = peak if step <= boundary else schedule.stage2_peak_learning_rate
            return line_peak * _line(step, warmup, 1.0, steps, final)
        case "cosine":
            progress = _line(step, warmup, 0.0, steps, 1.0)
            return peak * (final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * progress)))
        case "constant":
            return peak


def weight_decay(schedule: ScheduleConfig, step: int, steps: int) -> float:
    """Return the weight decay of `step`: one value through the boundary step, another after it."""
    if step <= schedule.weight_decay_boundary_step(steps):
        return schedule.stage1_weight_decay
    return schedule.stage2_weight_decay


def _line(x: float, x0: float, y0: float, x1: float, y1: float) -> float:
    """Interpolate linearly between two points; a segment without length is already at its end."""
    if x1 <= x0:
        return y1
    t = min(max((x - x0) / (x1 - x0), 0.0), 1.0)
    return (1.0 - t) * y0 + t * y1
