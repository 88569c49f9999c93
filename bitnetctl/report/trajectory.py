"""Metrics at the founding document's milestones."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from bitnetctl.records import Run
from bitnetctl.units import format_value

MILESTONES = (0.05, 0.25, 0.3, 0.5, 1.0)
"""The founding document's 1k, 5k, 6k, 10k and 20k as fractions of its 20,000 steps."""


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
