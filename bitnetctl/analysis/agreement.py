"""Rank correlation over runs (Kendall's tau-b) of each metric with the held-out loss."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from bitnetctl.analysis.stats import p_equals
from bitnetctl.analysis.summary import has_failed
from bitnetctl.records.run import Run

if TYPE_CHECKING:
    from bitnetctl.records.schema import Floats

MINIMUM_RUNS = 3
AGREES = 0.3
"""Smallest absolute tau-b at which two rankings are said to agree, or to be reversed."""

METRICS = {
    "RandomPromptUnique": ("the random-prompt metric", 1),
    "UniquePredictions": ("the count of distinct predictions", 1),
    "EffectiveVocab": ("the effective vocabulary", 1),
    "TopShare": ("the fraction of the most frequent prediction", -1),
    "ContextInformation": ("context information", 1),
}
"""Column: its name in a sentence, and whether a higher (1) or a lower (-1) value is healthier."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How one metric ranks the runs compared with the held-out loss.

    `tau` is Kendall's tau-b: +1 for the same ranking, healthier first, -1 for the reverse one; None with fewer than
    three runs that have both values, or where one of them is the same in every run. `p` is the two-sided p-value of
    the hypothesis that the rankings are independent.
    """

    metric: str
    when: str
    runs: int
    tau: float | None
    p: float | None
    sentence: str

    def to_json(self) -> dict[str, Any]:
        """Return every field by name."""
        return asdict(self)


def agreements(runs: Sequence[Run]) -> list[Agreement]:
    """Compare every metric that a run has with the held-out loss, at the end of stage 1 and at the end of the run.

    Losses on different probes cannot be ranked, so only the runs with the most common probe are. At the end, a failed
    run has an infinite loss and the last known value of the other metric.
    """
    comparable = _same_probe(runs)
    results = []
    for when in ("end of stage 1", "end"):
        for metric, (_, sign) in METRICS.items():
            if any(run.records.has_values(metric) for run in comparable):
                pairs = [_values_at(run, metric, when) for run in comparable]
                known = [(sign * value, -loss) for value, loss in pairs if value is not None and loss is not None]
                results.append(_agreement(metric, when, known))
    return results


def probe_key(run: Run) -> tuple[float | None, ...]:
    """Return what identifies a run's probe: number of positions, of distinct targets, and the unigram loss on them."""
    return tuple(_last_known(run.finite(name)) for name in ("ProbePositions", "UniqueTargets", "UnigramLoss"))


def _same_probe(runs: Sequence[Run]) -> list[Run]:
    probes = [probe_key(run) for run in runs]
    if not probes:
        return []
    [(most_common, _)] = Counter(probes).most_common(1)
    return [run for run, probe in zip(runs, probes, strict=True) if probe == most_common]


def _values_at(run: Run, metric: str, when: str) -> tuple[float | None, float | None]:
    """Return metric and held-out loss at `when`; at the end, the loss of a failed run is infinite."""
    values, losses = run.finite(metric), run.finite("HeldOutLoss")
    if when == "end":
        if has_failed(run):
            return _last_known(values), math.inf
        if run.is_complete is False:
            return None, None
        index = len(losses) - 1
    else:
        indices = ((run.steps > 1) & (run.steps <= (run.boundary_step or 0))).nonzero()[0]
        if not len(indices):
            return None, None
        index = int(indices[-1])
    return _last_known(values[index : index + 1]), _last_known(losses[index : index + 1])


def _last_known(column: "Floats") -> float | None:
    known = column[column == column]
    return float(known[-1]) if len(known) else None


def _agreement(metric: str, when: str, pairs: Sequence[tuple[float, float]]) -> Agreement:
    name = METRICS[metric][0]
    tau = p = None
    if len(pairs) < MINIMUM_RUNS:
        sentence = f"At the {when}, {name}: unknown: {len(pairs)} of at least {MINIMUM_RUNS} runs have both."
    elif any(len(set(column)) == 1 for column in zip(*pairs, strict=True)):
        sentence = f"At the {when}, {name}: unknown: every run has the same value."
    else:
        tau, p = _kendall(pairs)
        if tau <= -AGREES:
            ranking = "ranks the runs backwards: the healthier a run by its held-out loss, the lower it scores"
        elif tau < AGREES:
            ranking = "says little about which run is healthier by its held-out loss"
        else:
            ranking = "ranks the runs like the held-out loss does"
        sentence = f"At the {when}, {name} {ranking} (τ-b {tau:+.2f} over {len(pairs)} runs, {p_equals(p)})."
    return Agreement(metric=metric, when=when, runs=len(pairs), tau=tau, p=p, sentence=sentence)


def _kendall(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return Kendall's tau-b, which allows for ties, and its two-sided p-value."""
    from scipy.stats import kendalltau

    # by rank, because infinite losses have an order but no difference
    columns = [_ranks(column) for column in zip(*pairs, strict=True)]
    result = kendalltau(columns[0], columns[1], variant="b")
    return float(result.statistic), float(result.pvalue)


def _ranks(values: Sequence[float]) -> list[int]:
    order = {value: rank for rank, value in enumerate(sorted(set(values)))}
    return [order[value] for value in values]
