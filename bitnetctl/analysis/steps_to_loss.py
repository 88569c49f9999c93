"""How many steps an arm takes to the loss at which its baseline ends."""

import math
from collections.abc import Mapping, Sequence
from statistics import median_high

from bitnetctl.analysis.effects import ArmEffect
from bitnetctl.analysis.summary import RunSummary
from bitnetctl.records.run import Run

StepsBySize = Mapping[int, int]


def steps_to_baseline(
    runs: Sequence[Run], summaries: Sequence[RunSummary], effects: Sequence[ArmEffect]
) -> dict[str, StepsBySize]:
    """Return by arm and size the first evaluation with a held-out loss as low as that at the end of the baseline.

    Runs of equal size, seed and planned steps are compared; of several seeds it is the median, the later one of two in
    the middle. A seed of which a run failed or is not finished never gets there. A size is left out where the median
    seed does not get there before its end, an arm where some pairs are not comparable.
    """
    by_arm: dict[str, dict[tuple[int, int | None, int], tuple[Run, RunSummary]]] = {}
    for run, summary in zip(runs, summaries, strict=True):
        # two unknown sizes or seeds need not be equal
        if summary.size is not None and summary.seed is not None:
            key = (summary.size, summary.planned_steps, summary.seed)
            by_arm.setdefault(summary.arm, {})[key] = (run, summary)
    result: dict[str, StepsBySize] = {}
    for effect in effects:
        arm, baseline = by_arm.get(effect.arm, {}), by_arm.get(effect.baseline, {})
        steps: dict[int, list[float]] = {}
        for key, pair in arm.items():
            if key in baseline:
                steps.setdefault(key[0], []).append(_step_before_end(*pair, baseline[key][1]))
        medians = {size: median_high(of_size) for size, of_size in sorted(steps.items())}
        reached = {size: int(step) for size, step in medians.items() if math.isfinite(step)}
        result[effect.arm] = {} if effect.incomparable_pairs else reached
    return result


def _step_before_end(run: Run, summary: RunSummary, other: RunSummary) -> float:
    """Return the first step, but the last, with at most the other run's final loss; infinite without one."""
    loss = None if summary.failed or other.failed else other.compared_value("final_held_out_loss")
    if loss is None:
        return math.inf
    steps = run.steps[:-1][run.finite("HeldOutLoss")[:-1] <= loss]
    return int(steps[0]) if len(steps) else math.inf
