"""A run at the founding document's milestones, and what to try next."""

import math
from collections.abc import Sequence

from bitnetctl.records import Run
from bitnetctl.report.columns import UNKNOWN
from bitnetctl.verdict import Outcome

MILESTONES = (0.05, 0.25, 0.3, 0.5, 1.0)
"""The founding document's 1k, 5k, 6k, 10k and 20k as shares of its 20,000 steps."""

_NEXT = {
    Outcome.SUPPORTED: "train longer, larger or with more seeds before relying on it; then look at the text it writes",
    Outcome.REFUTED: (
        "find the cause with `bitnetctl sweep --plan root-cause` and `bitnetctl analyze`; "
        "a cure to try: `-i decoupled-decay`"
    ),
    Outcome.INCONCLUSIVE: "finish the missing runs, or add seeds with `--seeds 6`",
    Outcome.INVALID: "change the set-up: a probe that can show the threshold, or a reference run that works",
}


def milestones(run: Run, column: str) -> list[float | None]:
    """Return a column at each milestone: at the first evaluation at or after it, None where there is none yet."""
    planned = run.planned_steps or run.final_step
    # an evaluation a little later belongs to the milestone, one beyond the next milestone does not
    nexts = [*MILESTONES[1:], math.inf]
    found: list[float | None] = []
    for share, following in zip(MILESTONES, nexts, strict=True):
        place = int(run.steps.searchsorted(planned * share))
        reached = place < len(run.steps) and run.steps[place] < planned * following
        found.append(run.records.value(column, place) if reached else None)
    return found


def _trajectory(run: Run) -> list[str]:
    pairs = zip(milestones(run, "UniquePredictions"), milestones(run, "HeldOutLoss"), strict=True)
    return [_whole(unique) + ("" if loss is None else f" · {loss:.2f}") for unique, loss in pairs]


def _ordered(runs: Sequence[Run]) -> list[Run]:
    return sorted(runs, key=lambda run: (run.size or 0, run.seed or 0))


def next_step(outcome: Outcome) -> str:
    """Say in plain words what to try after an outcome."""
    return _NEXT[outcome]


def _plain(value: int | None) -> str:
    return UNKNOWN if value is None else str(value)


def _whole(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:,.0f}"
