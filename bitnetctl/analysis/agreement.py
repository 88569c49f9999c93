"""Rank correlation over runs (Kendall's tau-b) of each metric with the held-out loss, tested by exchanging arms."""

import itertools
import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from bitnetctl.analysis import wording
from bitnetctl.analysis.permutation import CHUNK, DRAWS
from bitnetctl.analysis.stats import holm
from bitnetctl.records.run import Run
from bitnetctl.units import plural

if TYPE_CHECKING:
    import numpy as np

    from bitnetctl.analysis.least_squares import Indices
    from bitnetctl.records.schema import Floats

MINIMUM_RUNS = 3
MOST_PAIRS = 5_000
"""Most pairs of runs that the test counts."""

_WORK = 5_000_000
"""Most pairs of runs in all exchanges together, which are fewer than DRAWS where there are many pairs."""

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

    `tau` is Kendall's tau-b over runs: +1 for the same ranking, healthier first, -1 for the reverse one; None with
    fewer than three runs that have both values, or where one of them is the same in every run. Runs of an arm are not
    independent: `p` is two-sided over exchanges of whole arms, or of seeds where there is one arm, and None where none
    can be exchanged; `units` counts these. `p_floor` is the smallest possible, `p_holm` is adjusted over all metrics
    and times.
    """

    metric: str
    when: str
    runs: int
    units: int
    unit: Literal["arm", "seed"]
    tau: float | None
    p: float | None
    p_floor: float | None
    p_holm: float | None
    sentence: str

    @property
    def ranking(self) -> str:
        """How the metric ranks the runs, where tau is known."""
        return wording.ranking(self.when, METRICS[self.metric][0], self.tau or 0.0, self.p_holm)

    @property
    def support(self) -> str:
        """What that rests on: tau, the runs, and the test."""
        return wording.support_of_ranking(
            self.tau or 0.0,
            runs=self.runs,
            units=plural(self.units, self.unit),
            independent=self.units == self.runs,
            p_holm=self.p_holm,
            p_floor=self.p_floor,
        )

    def to_json(self) -> dict[str, Any]:
        """Return every field by name."""
        return asdict(self)


class _Ranked(NamedTuple):
    """A run that has both values, higher being healthier, with its unit and its place in that."""

    value: float
    loss: float
    unit: Hashable
    place: Hashable


def agreements(runs: Sequence[Run], arms: Sequence[str]) -> list[Agreement]:
    """Compare every metric that a run has with the held-out loss, at the end of stage 1 and at the end of the run.

    `arms` has the label of every run's arm. Losses on different probes cannot be ranked, so only the runs with the most
    common probe are. A failed run has an infinite loss and the last known value of the other metric, at the end of a
    stage 1 that it has not reached, too.
    """
    comparable = _same_probe(runs, arms)
    by_seed = len({arm for _, arm in comparable}) == 1
    results = []
    for when in ("end of stage 1", "end"):
        for metric in METRICS:
            if any(run.records.has_values(metric) for run, _ in comparable):
                ranked = [
                    one for run, arm in comparable if (one := _ranked(run, None if by_seed else arm, metric, when))
                ]
                results.append(_agreement(metric, when, ranked, "seed" if by_seed else "arm"))
    adjusted = holm([one.p for one in results])
    return [_with_sentence(replace(one, p_holm=p_holm)) for one, p_holm in zip(results, adjusted, strict=True)]


def _ranked(run: Run, arm: str | None, metric: str, when: str) -> _Ranked | None:
    """Return a run with its unit: its arm, or its seed without one; None where a value is unknown."""
    value, loss = _values_at(run, metric, when)
    if value is None or loss is None:
        return None
    sign = METRICS[metric][1]
    if arm is not None:
        return _Ranked(sign * value, -loss, arm, (run.size, run.seed))
    # a run of unknown seed is a unit of its own
    return _Ranked(sign * value, -loss, run.name if run.seed is None else run.seed, run.size)


def probe_key(run: Run) -> tuple[float | None, ...]:
    """Return what identifies a run's probe: number of positions, of distinct targets, and the unigram loss on them."""
    return tuple(_last_known(run.finite(name)) for name in ("ProbePositions", "UniqueTargets", "UnigramLoss"))


def _same_probe(runs: Sequence[Run], arms: Sequence[str]) -> list[tuple[Run, str]]:
    """Return the runs with the most common probe, and their arms."""
    probes = [probe_key(run) for run in runs]
    if not probes:
        return []
    [(most_common, _)] = Counter(probes).most_common(1)
    return [pair for pair, probe in zip(zip(runs, arms, strict=True), probes, strict=True) if probe == most_common]


def _values_at(run: Run, metric: str, when: str) -> tuple[float | None, float | None]:
    """Return metric and held-out loss at `when`; the loss of a run that failed before is infinite."""
    values, losses = run.finite(metric), run.finite("HeldOutLoss")
    if when == "end":
        index = None if run.has_failed or run.is_complete is False else len(losses) - 1
    else:
        index = run.stage1_end_index
    if index is not None:
        return _last_known(values[index : index + 1]), _last_known(losses[index : index + 1])
    return (_last_known(values), math.inf) if run.has_failed else (None, None)


def _last_known(column: "Floats") -> float | None:
    known = column[column == column]
    return float(known[-1]) if len(known) else None


def _agreement(metric: str, when: str, runs: Sequence[_Ranked], unit: Literal["arm", "seed"]) -> Agreement:
    """Return the agreement without adjusted p-value; the sentence is empty, or says why there is no tau."""
    result = Agreement(
        metric=metric,
        when=when,
        runs=len(runs),
        units=len({run.unit for run in runs}),
        unit=unit,
        tau=None,
        p=None,
        p_floor=None,
        p_holm=None,
        sentence="",
    )
    name = METRICS[metric][0]
    if len(runs) < MINIMUM_RUNS:
        reason = wording.too_few_runs(len(runs), MINIMUM_RUNS)
        return replace(result, sentence=wording.agreement_unknown(when, name, reason))
    values, losses, unit_of, place_of = zip(*runs, strict=True)
    if len(set(values)) == 1 or len(set(losses)) == 1:
        return replace(result, sentence=wording.agreement_unknown(when, name, wording.SAME_VALUE))
    tau, p, floor = tau_test(values, losses, unit_of, place_of)
    return replace(result, tau=tau, p=p, p_floor=floor)


def tau_test(
    values: Sequence[float],
    losses: Sequence[float],
    unit_of: Sequence[Hashable],
    place_of: Sequence[Hashable],
) -> tuple[float, float | None, float | None]:
    """Return Kendall's tau-b, its two-sided p-value over exchanges of whole units, and the smallest possible one.

    Units with the same places (an arm's sizes and seeds) are exchanged, each run with that in its place. All exchanges
    are made where there are few, else random ones. The statistic is the number of concordant less discordant pairs of
    runs; of MOST_PAIRS random ones if there are more. None where no two units have the same places.
    """
    import numpy as np

    # by rank, because infinite losses have an order but no difference
    ranks_N, losses_N = (np.array(_ranks(column), dtype=np.int64) for column in (values, losses))
    tau = _tau_b(ranks_N, losses_N)
    generator = np.random.default_rng(0)
    first_Q, second_Q = np.triu_indices(len(values), 1)
    if len(first_Q) > MOST_PAIRS:
        drawn = generator.choice(len(first_Q), MOST_PAIRS, replace=False)
        first_Q, second_Q = first_Q[drawn], second_Q[drawn]
    signs_Q = np.sign(ranks_N[first_Q] - ranks_N[second_Q]).astype(np.float32)
    orders_PN, exact = _exchanges(unit_of, place_of, min(DRAWS, _WORK // len(first_Q)), generator)
    if orders_PN is None:
        return tau, None, None
    extreme = 0
    seen = abs(float(np.sign(losses_N[first_Q] - losses_N[second_Q]) @ signs_Q))
    for start in range(0, len(orders_PN), chunk := max(1, CHUNK // len(first_Q))):
        exchanged_PN = losses_N[orders_PN[start : start + chunk]]
        # sums of signs are whole numbers
        sums_P = np.sign(exchanged_PN[:, first_Q] - exchanged_PN[:, second_Q]).astype(np.float32) @ signs_Q
        extreme += int((np.abs(sums_P) > seen - 0.5).sum())
    if exact:
        return tau, extreme / len(orders_PN), 1 / len(orders_PN)
    return tau, (extreme + 1) / (len(orders_PN) + 1), 1 / (len(orders_PN) + 1)


def _tau_b(first_N: "Indices", second_N: "Indices") -> float:
    """Return Kendall's tau-b: concordant less discordant pairs, over the geometric mean of those without a tie."""
    import numpy as np

    sums = np.zeros(3)
    for index in range(1, len(first_N)):
        one, other = np.sign(first_N[index:] - first_N[:-index]), np.sign(second_N[index:] - second_N[:-index])
        sums += (one @ other, np.count_nonzero(one), np.count_nonzero(other))
    return float(sums[0] / math.sqrt(sums[1] * sums[2]))


def _exchanges(
    unit_of: Sequence[Hashable], place_of: Sequence[Hashable], draws: int, generator: "np.random.Generator"
) -> "tuple[Indices | None, bool]":
    """Return the runs in every order that exchanges units, (P, N), and whether these are all; None for one order."""
    import numpy as np

    members: dict[Hashable, list[int]] = {}
    for index in sorted(range(len(place_of)), key=lambda index: repr(place_of[index])):
        members.setdefault(unit_of[index], []).append(index)
    alike: dict[Hashable, list[list[int]]] = {}
    for indices in members.values():
        alike.setdefault(tuple(place_of[index] for index in indices), []).append(indices)
    groups = [np.array(of_group) for of_group in alike.values() if len(of_group) > 1]
    count = math.prod(math.factorial(len(group)) for group in groups)
    if count == 1:
        return None, True
    exact = count <= draws + 1
    if exact:
        every = itertools.product(*(itertools.permutations(range(len(group))) for group in groups))
        chosen = [np.array(orders) for orders in zip(*every, strict=True)]
    else:
        chosen = [np.argsort(generator.random((draws, len(group))), axis=1) for group in groups]
    orders_PN = np.tile(np.arange(len(place_of)), (len(chosen[0]), 1))
    for group, order_PB in zip(groups, chosen, strict=True):
        orders_PN[:, group.ravel()] = group[order_PB].reshape(len(order_PB), -1)
    return orders_PN, exact


def _with_sentence(one: Agreement) -> Agreement:
    return one if one.tau is None else replace(one, sentence=wording.agreement(one.ranking, one.support))


def _ranks(values: Sequence[float]) -> list[int]:
    order = {value: rank for rank, value in enumerate(sorted(set(values)))}
    return [order[value] for value in values]
