"""How many steps an arm takes to the loss at which its baseline ends."""

import math
from collections.abc import Mapping, Sequence
from statistics import median_high

from bitnetctl.analysis.effects import ArmEffect
from bitnetctl.analysis.summary import RunSummary
from bitnetctl.records.run import Run

StepsBySize = Mapping[int, int]
_Arm = dict[int, dict[tuple[int, int], list[tuple[Run, RunSummary]]]]
"""Runs by size, then by length and seed."""


def steps_to_baseline(
    runs: Sequence[Run], summaries: Sequence[RunSummary], effects: Sequence[ArmEffect]
) -> dict[str, StepsBySize]:
    """Return by arm and size the first evaluation with a held-out loss as low as that at the end of the baseline.

    Runs of equal size, seed and length are compared; of several seeds it is the median, the later one of two in
    the middle. A seed does not count as getting there if it does at its last evaluation only, if either run failed or
    is not finished, or if the baseline ends no better than a unigram predictor. A size is left out where the median
    seed does not get there, where lengths differ, and where a seed is there twice; an arm, where pairs are not
    comparable.
    """
    by_arm: dict[str, _Arm] = {}
    for run, summary in zip(runs, summaries, strict=True):
        # two unknown sizes or seeds need not be equal
        if summary.size is not None and summary.seed is not None:
            place = (summary.length, summary.seed)
            of_size = by_arm.setdefault(summary.arm, {}).setdefault(summary.size, {})
            of_size.setdefault(place, []).append((run, summary))
    return {
        effect.arm: {}
        if effect.incomparable_pairs
        else _median_steps(by_arm.get(effect.arm, {}), by_arm.get(effect.baseline, {}))
        for effect in effects
    }


def _median_steps(arm: _Arm, baseline: _Arm) -> StepsBySize:
    reached = {}
    for size in sorted(arm.keys() & baseline.keys()):
        places = arm[size].keys() & baseline[size].keys()
        is_once = all(len(arms[size][place]) == 1 for place in places for arms in (arm, baseline))
        if is_once and len({length for length, _ in places}) == 1:
            step = median_high(_step_before_end(*arm[size][place][0], baseline[size][place][0][1]) for place in places)
            if math.isfinite(step):
                reached[size] = int(step)
    return reached


def _step_before_end(run: Run, summary: RunSummary, other: RunSummary) -> float:
    """Return the first step with at most the other run's final loss, infinite without one that counts."""
    own_end, loss = (None if one.failed else one.compared_value("final_held_out_loss") for one in (summary, other))
    if own_end is None or loss is None or (other.final_skill is not None and other.final_skill <= 0):
        return math.inf
    values = run.finite("HeldOutLoss")
    evaluations = (values == values).nonzero()[0][:-1]
    steps = run.steps[evaluations[values[evaluations] <= loss]].tolist()
    return next((step for step in steps if 1 < step <= summary.length), math.inf)
