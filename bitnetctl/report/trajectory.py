"""Metrics at the founding document's milestones, and the recommended next step."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from bitnetctl.records import REQUIRED, Run
from bitnetctl.report.columns import format_value
from bitnetctl.verdict import Combined, Outcome

MILESTONES = (0.05, 0.25, 0.3, 0.5, 1.0)
"""The founding document's 1k, 5k, 6k, 10k and 20k as fractions of its 20,000 steps."""

_TRIED_FIRST = "decoupled-decay"


def next_step(outcome: Outcome, judged: Mapping[str, Combined], runs: Sequence[Run]) -> str:
    """Return what to try after the outcome of these arms."""
    if outcome is Outcome.SUPPORTED:
        return "train longer, larger or with more seeds before relying on it; then look at the text it writes"
    if outcome is Outcome.INVALID:
        return (
            "remove what makes it invalid, as said above: train all runs alike, take a probe that can show the "
            "threshold, or a reference run that works"
        )
    if outcome is Outcome.REFUTED:
        cause = "find the cause with `bitnetctl sweep --plan root-cause` and `bitnetctl analyze`"
        tried = any(_TRIED_FIRST in arm for arm in judged)
        return cause if tried else f"{cause}; an intervention to try: `-i {_TRIED_FIRST}`"
    verdicts = [verdict for combined in judged.values() for verdict in combined.verdicts]
    undecided = [verdict for verdict in verdicts if verdict.outcome is Outcome.INCONCLUSIVE]
    if runs and all(set(run.records.frame.columns) == set(REQUIRED) for run in runs) and len(undecided) < len(verdicts):
        return (
            "these logs have five columns, by which only `--criteria origin` or a file of your own can judge: give "
            "`--criteria`"
        )
    if any(verdict.planned.get("unreadable") for verdict in undecided):
        return "mend the files that cannot be read, or remove those that are no runs"
    if any(verdict.planned.get("left_out") for verdict in undecided):
        return "judge the runs that were left out, too"
    unfinished = any(run.is_complete is False and run.diverged_at is None for run in runs)
    if unfinished or any(verdict.planned.get(state) for verdict in undecided for state in ("missing", "unfinished")):
        return "finish the missing and unfinished runs: the command that started them does"
    return "fix a larger number of seeds, of those that could decide, and train them with `--seeds`"


def milestones(run: Run, column: str) -> list[float | None]:
    """Return a column at each milestone: at the first evaluation from it to before the next, None without one."""
    planned = run.planned_steps or run.final_step
    values: list[float | None] = []
    for fraction, following in zip(MILESTONES, (*MILESTONES[1:], math.inf), strict=True):
        index = int(run.steps.searchsorted(planned * fraction))
        reached = index < len(run.steps) and run.steps[index] < planned * following
        values.append(run.records.value(column, index) if reached else None)
    return values


def trajectory_rows(runs: Sequence[Run]) -> Iterator[tuple[Run, list[str]]]:
    """Yield runs by size and seed, each with the cells size, seed and `predictions · loss` of each milestone."""
    places = Counter((run.size, run.seed) for run in runs)
    for run in sorted(runs, key=lambda run: (run.size or 0, run.seed or 0)):
        pairs = zip(milestones(run, "UniquePredictions"), milestones(run, "HeldOutLoss"), strict=True)
        values = [format_value(unique, ",.0f") + ("" if loss is None else f" · {loss:.2f}") for unique, loss in pairs]
        yield run, [format_value(run.size), seed_cell(run.size, run.seed, run.name, places), *values]


def seed_cell(size: int | None, seed: int | None, run: str, places: Mapping[tuple[int | None, int | None], int]) -> str:
    """Return the seed or, where several runs of a size are of unknown seed, the name of the run."""
    return run if seed is None and places[size, seed] > 1 else format_value(seed)
