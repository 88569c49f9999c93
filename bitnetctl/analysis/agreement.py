"""Do the metrics rank the runs alike? Kendall's tau-b of each metric with the held-out loss."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from bitnetctl.analysis.stats import p_text
from bitnetctl.analysis.summary import has_failed
from bitnetctl.records.run import Run

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]

MINIMUM_RUNS = 3
AGREES = 0.3
"""Size of tau-b from which on two rankings are said to agree, or to be reversed."""

METRICS = {
    "RandomPromptUnique": ("the random-prompt metric", 1),
    "UniquePredictions": ("the count of distinct predictions", 1),
    "EffectiveVocab": ("the effective vocabulary", 1),
    "TopShare": ("the share of the most frequent prediction", -1),
    "ContextInformation": ("context information", 1),
}
"""Columns, what they are called, and whether more (1) or less (-1) is healthier."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How one metric ranks the runs against the held-out loss.

    `tau` is +1 where it ranks them the same way, healthier first, and -1 where backwards; None with fewer than three
    runs that have both, or where one of them is the same in every run. `p` is that of independence, two-sided.
    """

    metric: str
    when: str
    runs: int
    tau: float | None
    p: float | None
    sentence: str

    def to_json(self) -> dict[str, Any]:
        """Return everything by name."""
        return asdict(self)


def agreements(runs: Sequence[Run]) -> list[Agreement]:
    """Compare every metric that a run has with the held-out loss, at the end of stage 1 and at the end of the run.

    Only runs with the same probe can be ranked together: where there are several probes, those of the commonest. At
    the end, a run that failed ranks last by its loss and where it was last seen by the other metric.
    """
    comparable = _same_probe(runs)
    found = []
    for when in ("end of stage 1", "end"):
        for metric, (_, sign) in METRICS.items():
            if any(run.records.known(metric) for run in comparable):
                pairs = [_figures(run, metric, when) for run in comparable]
                known = [(sign * figure, -loss) for figure, loss in pairs if figure is not None and loss is not None]
                found.append(_agreement(metric, when, known))
    return found


def probe_of(run: Run) -> tuple[float | None, ...]:
    """Return what tells one probe from another: positions, targets and the unigram predictor's loss on them."""
    return tuple(_last_finite(run.finite(name)) for name in ("ProbePositions", "UniqueTargets", "UnigramLoss"))


def _same_probe(runs: Sequence[Run]) -> list[Run]:
    probes = [probe_of(run) for run in runs]
    if not probes:
        return []
    [(commonest, _)] = Counter(probes).most_common(1)
    return [run for run, probe in zip(runs, probes, strict=True) if probe == commonest]


def _figures(run: Run, metric: str, when: str) -> tuple[float | None, float | None]:
    """Return metric and held-out loss at a time; the loss of a run that failed is infinite at the end."""
    figures, losses = run.finite(metric), run.finite("HeldOutLoss")
    if when == "end":
        if has_failed(run):
            return _last_finite(figures), math.inf
        if run.is_complete is False:
            return None, None
        place = len(losses) - 1
    else:
        places = ((run.steps > 1) & (run.steps <= (run.boundary_step or 0))).nonzero()[0]
        if not len(places):
            return None, None
        place = int(places[-1])
    return _last_finite(figures[place : place + 1]), _last_finite(losses[place : place + 1])


def _last_finite(column: "Floats") -> float | None:
    known = column[column == column]
    return float(known[-1]) if len(known) else None


def _agreement(metric: str, when: str, pairs: Sequence[tuple[float, float]]) -> Agreement:
    called = METRICS[metric][0]
    tau = p = None
    if len(pairs) < MINIMUM_RUNS:
        words = f"unknown: {len(pairs)} of at least {MINIMUM_RUNS} runs have both"
    elif len({figure for figure, _ in pairs}) == 1 or len({loss for _, loss in pairs}) == 1:
        words = "unknown: every run has the same figure"
    else:
        tau, p = _kendall(pairs)
        if tau <= -AGREES:
            words = "ranks the runs backwards: the healthier a run by its held-out loss, the lower it scores"
        elif tau < AGREES:
            words = "says little about which run is healthier by its held-out loss"
        else:
            words = "ranks the runs like the held-out loss does"
    if tau is None or p is None:
        sentence = f"At the {when}, {called}: {words}."
    else:
        sentence = f"At the {when}, {called} {words} (τ-b {tau:+.2f} over {len(pairs)} runs, p {p_text(p)})."
    return Agreement(metric=metric, when=when, runs=len(pairs), tau=tau, p=p, sentence=sentence)


def _kendall(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    from scipy.stats import kendalltau

    # ranks, because infinite losses are ordered but cannot be subtracted
    columns = [_ranks(column) for column in zip(*pairs, strict=True)]
    result = kendalltau(columns[0], columns[1], variant="b")
    return float(result.statistic), float(result.pvalue)


def _ranks(values: Sequence[float]) -> list[int]:
    order = {value: rank for rank, value in enumerate(sorted(set(values)))}
    return [order[value] for value in values]
