"""Curves of arms by step: the mean over the runs of an arm and size, and the range of these runs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bitnetctl.analysis.study import Study
from bitnetctl.records import Run
from bitnetctl.records.metrics import DERIVED
from bitnetctl.report.columns import kept_indices
from bitnetctl.verdict.limits import value_at

if TYPE_CHECKING:
    from bitnetctl.records.schema import Floats, Integers

MOST = 1e100
"""Values as large as this, or on a logarithmic scale as small as 1 / MOST, count as infinite: nothing can draw them."""

Points = tuple["Integers", "Floats"]
"""Steps in ascending order, and a finite value for each."""


@dataclass(frozen=True, kw_only=True)
class MeanCurve:
    """The mean, the lowest and the highest value over runs at each step, and the runs that it is made of.

    `label` is the arm, with the planned steps where runs of one arm and size were to be of several lengths. `ends` are
    the last points of the runs that diverged.
    """

    arm: str
    label: str
    size: int | None
    runs: tuple[Run, ...]
    steps: tuple[int, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    ends: tuple[tuple[int, float], ...]


def mean_curves(study: Study, measure: str, *, logarithmic: bool) -> list[MeanCurve]:
    """Return a curve for every arm and size that has a value after step 1, in the order of the arms, then by size.

    If `logarithmic`, the mean is that of the logarithm, and values that have none are left out. At a step at which
    a run was not evaluated, its value lies on the line between its evaluations before and after it; before the first
    and after the last one it is in no mean. A curve is thinned to MOST_POINTS.
    """
    groups: dict[tuple[str, int | None, int | None], list[Run]] = {}
    ranks = {arm: rank for rank, arm in enumerate(study.arms)}
    runs = sorted(
        zip(study.runs, study.summaries, strict=True), key=lambda pair: (ranks[pair[1].arm], pair[1].size or 0)
    )
    for run, summary in runs:
        groups.setdefault((summary.arm, summary.size, run.planned_steps), []).append(run)
    places = [(arm, size) for arm, size, _ in groups]
    found = []
    for (arm, size, planned), members in groups.items():
        points = [points_of(run, measure, logarithmic=logarithmic) for run in members]
        drawn = [(run, (steps, values)) for run, (steps, values) in zip(members, points, strict=True) if len(steps)]
        if drawn:
            several = places.count((arm, size)) > 1 and planned is not None
            label = f"{arm}, {planned:,} steps" if several else arm
            found.append(_curve(arm, label, size, drawn, logarithmic=logarithmic))
    return found


def points_of(run: Run, measure: str, *, logarithmic: bool) -> Points:
    """Return the finite values of a run after step 1, until it diverged; those above 0 if `logarithmic`."""
    import numpy as np

    if measure in DERIVED:
        # unknown is NaN here
        cells = (value_at(run, measure, index) for index in range(len(run.steps)))
        values = np.array([math.nan if value is None else value for value in cells], dtype=np.float64)
    else:
        values = run.finite(measure)
    # NaN is not less
    kept = (np.abs(values) < MOST) & (run.steps > 1)
    if logarithmic:
        kept &= values > 1 / MOST
    if run.ended_diverged_at is not None:
        kept &= run.steps <= run.ended_diverged_at
    return run.steps[kept], values[kept]


def _curve(
    arm: str, label: str, size: int | None, drawn: Sequence[tuple[Run, Points]], *, logarithmic: bool
) -> MeanCurve:
    import numpy as np

    every = np.unique(np.concatenate([steps for _, (steps, _) in drawn]))
    at = every[kept_indices(len(every))]
    values_RS = np.stack([np.interp(at, steps, values, left=np.nan, right=np.nan) for _, (steps, values) in drawn])
    low, high = np.nanmin(values_RS, axis=0), np.nanmax(values_RS, axis=0)
    # of equal values the mean is that value, without the rounding of a logarithm
    mean = np.exp(np.nanmean(np.log(values_RS), axis=0)) if logarithmic else np.nanmean(values_RS, axis=0)
    mean = np.where(low == high, low, mean)
    return MeanCurve(
        arm=arm,
        label=label,
        size=size,
        runs=tuple(run for run, _ in drawn),
        steps=tuple(at.tolist()),
        mean=tuple(mean.tolist()),
        low=tuple(low.tolist()),
        high=tuple(high.tolist()),
        ends=tuple(
            (int(steps[-1]), float(values[-1])) for run, (steps, values) in drawn if run.ended_diverged_at is not None
        ),
    )
