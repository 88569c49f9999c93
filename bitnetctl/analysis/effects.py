"""Differences of each arm from its baseline, paired at equal size, seed and length, counted by seed."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import stdev
from typing import Any, NamedTuple

from bitnetctl.analysis import wording
from bitnetctl.analysis.stats import (
    SIGNIFICANT,
    Better,
    detectable_factor,
    difference,
    holm,
    mean,
    sign_test_floor,
    sign_test_p,
    student_interval,
)
from bitnetctl.analysis.summary import Metric, RunSummary
from bitnetctl.records.metrics import finite
from bitnetctl.records.provenance import Differences

METRICS: dict[Metric, tuple[str, Better]] = {
    "final_held_out_loss": ("held-out loss", "lower"),
    "final_skill": ("skill", "higher"),
    "final_log2_unique": ("log2 unique", "higher"),
}
"""Metrics that are compared: name in reports and which direction is better; differences are arm minus baseline."""


Compare = Callable[[RunSummary, RunSummary], Differences]


class PairKey(NamedTuple):
    """What a run and the baseline run it is compared with have in common; `steps` are planned, or else done."""

    size: int | None
    seed: int | None
    steps: int


class _Pair(NamedTuple):
    key: PairKey
    runs: list[RunSummary]
    others: list[RunSummary]


@dataclass(frozen=True, kw_only=True)
class Effect:
    """The difference of an arm from its baseline in one metric, arm minus baseline; None is unknown.

    A seed counts once: its difference is the mean over its pairs, which have different sizes. `better`, `worse` and
    `equal` count seeds. `low` and `high` are the 95 % Student interval of the mean over seeds, `stdev` is that of the
    differences of seeds. `p` is that of the exact sign test, `p_floor` the smallest possible with so many seeds that
    differ, `p_holm` is adjusted over all arms and metrics. `smallest_effect` is the mean difference that the test
    finds with a power of 80 %, see `stats.detectable_factor`.

    A failed run is infinitely worse than a finished one, so that its pair makes the mean infinite and leaves it without
    an interval; where seeds failed on both sides there is no mean. `failed_pairs` counts pairs with a failed run,
    `infinite_seeds` the seeds with an infinite difference, which `mean_of_finite` leaves out.
    """

    seeds: int
    pairs: int
    unknown_pairs: int
    failed_pairs: int
    infinite_seeds: int
    better: int
    worse: int
    equal: int
    mean: float | None
    mean_of_finite: float | None
    low: float | None
    high: float | None
    stdev: float | None
    p: float | None
    p_floor: float | None
    p_holm: float | None
    smallest_effect: float | None
    mean_by_size: dict[str, float | None]
    sentence: str = ""

    @property
    def interval(self) -> tuple[float, float] | None:
        """The interval of the mean."""
        return None if self.low is None or self.high is None else (self.low, self.high)

    def to_json(self) -> dict[str, Any]:
        """Return every field by name; what is infinite is null, and `infinite` has its sign at the same place."""
        tree: dict[str, Any] = {}
        infinite: dict[str, Any] = {}
        for name, value in vars(self).items():
            if name == "mean_by_size":
                tree[name] = {size: finite(mean) for size, mean in self.mean_by_size.items()}
                signs = {size: _sign(mean) for size, mean in self.mean_by_size.items() if _is_infinite(mean)}
                infinite |= {name: signs} if signs else {}
            else:
                tree[name] = None if _is_infinite(value) else value
                infinite |= {name: _sign(value)} if _is_infinite(value) else {}
        return {**tree, "infinite": infinite}


@dataclass(frozen=True, kw_only=True)
class ArmEffect:
    """One arm compared with its baseline.

    `failures` and `baseline_failures` count pairs in which the run diverged or crashed; `incomparable_pairs` are left
    out because the provenance of the two runs differs, `unpaired_runs` have no partner. `tests` counts the p-values of
    all arms and metrics. `uneven_sizes` is whether the seeds are not paired at the same sizes.
    """

    arm: str
    baseline: str
    seeds: int
    pairs: int
    failures: int
    baseline_failures: int
    unpaired_runs: int
    incomparable_pairs: int
    uneven_sizes: bool
    tests: int = 0
    effects: dict[Metric, Effect] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return every field by name, but for the notes."""
        tree = {name: value for name, value in vars(self).items() if name != "notes"}
        return {**tree, "effects": {metric: effect.to_json() for metric, effect in self.effects.items()}}


def _is_infinite(value: Any) -> bool:
    return isinstance(value, float) and math.isinf(value)


def _sign(value: float | None) -> int:
    return 1 if value is not None and value > 0 else -1


def arm_effects(summaries: Sequence[RunSummary], baselines: Mapping[str, str], compare: Compare) -> list[ArmEffect]:
    """Compare every arm with its baseline; p-values are adjusted over all arms and metrics by Holm's method.

    `compare` tells how the provenance of two runs differs.
    """
    by_arm: dict[str, dict[PairKey, list[RunSummary]]] = {}
    for run in summaries:
        by_arm.setdefault(run.arm, {}).setdefault(PairKey(run.size, run.seed, run.length), []).append(run)
    results = [
        _arm_effect(arm, by_arm[arm], baseline, by_arm[baseline], compare) for arm, baseline in baselines.items()
    ]
    p_values = [effect.p for result in results for effect in result.effects.values()]
    tests = sum(p is not None for p in p_values)
    adjusted = iter(holm(p_values))
    return [
        replace(
            result,
            tests=tests,
            effects={
                metric: _adjusted(metric, effect, next(adjusted), result, tests)
                for metric, effect in result.effects.items()
            },
        )
        for result in results
    ]


def _arm_effect(
    arm: str,
    runs: Mapping[PairKey, list[RunSummary]],
    baseline: str,
    others: Mapping[PairKey, list[RunSummary]],
    compare: Compare,
) -> ArmEffect:
    # two unknown sizes or seeds need not be equal
    shared = [
        _Pair(key, runs[key], others[key])
        for key in runs
        if key in others and key.size is not None and key.seed is not None
    ]
    pairs, breaking, minor = [], [], []
    for pair in shared:
        differences = [compare(run, other) for run in pair.runs for other in pair.others]
        reasons = [reason for one in differences for reason in one.breaking]
        if reasons:
            breaking.append(reasons)
        else:
            pairs.append(pair)
            minor.append([reason for one in differences for reason in one.minor])
    minor = [reasons for reasons in minor if reasons]
    sizes_of: dict[int | None, set[int | None]] = {}
    for pair in pairs:
        sizes_of.setdefault(pair.key.seed, set()).add(pair.key.size)
    return ArmEffect(
        arm=arm,
        baseline=baseline,
        seeds=len(sizes_of),
        pairs=len(pairs),
        failures=sum(_failed(pair.runs) for pair in pairs),
        baseline_failures=sum(_failed(pair.others) for pair in pairs),
        unpaired_runs=sum(map(len, runs.values())) - sum(len(pair.runs) for pair in shared),
        incomparable_pairs=len(shared) - len(pairs),
        uneven_sizes=len(set(map(frozenset, sizes_of.values()))) > 1,
        effects={metric: _effect(metric, pairs) for metric in METRICS},
        notes=tuple(
            form(arm, baseline, len(of_pairs), list(dict.fromkeys(itertools.chain(*of_pairs))))
            for form, of_pairs in ((wording.not_comparable, breaking), (wording.differ_slightly, minor))
            if of_pairs
        ),
    )


def _effect(metric: Metric, pairs: Sequence[_Pair]) -> Effect:
    """Return the effect without what depends on the other tests."""
    better = METRICS[metric][1]
    by_seed: dict[int | None, list[float]] = {}
    by_size: dict[str, list[float]] = {}
    failed_pairs = 0
    for key, runs, others in pairs:
        of_pair = difference(_value(runs, metric), _value(others, metric), better)
        if of_pair is not None:
            by_seed.setdefault(key.seed, []).append(of_pair)
            by_size.setdefault(str(key.size), []).append(of_pair)
            failed_pairs += _failed(runs) or _failed(others)
    differences = [_of_seed(values) for values in by_seed.values()]
    finite = [value for value in differences if math.isfinite(value)]
    higher, lower = (sum(way * value > 0 for value in differences) for way in (1, -1))
    interval = student_interval(differences)
    count = sum(map(len, by_seed.values()))
    return Effect(
        seeds=len(differences),
        pairs=count,
        unknown_pairs=len(pairs) - count,
        failed_pairs=failed_pairs,
        infinite_seeds=len(differences) - len(finite),
        better=higher if better == "higher" else lower,
        worse=lower if better == "higher" else higher,
        equal=len(differences) - higher - lower,
        mean=_mean_with_failures(differences),
        mean_of_finite=_mean(finite),
        low=interval[0] if interval else None,
        high=interval[1] if interval else None,
        stdev=stdev(finite) if len(finite) == len(differences) > 1 else None,
        # one seed has a difference and no test
        p=sign_test_p(higher, lower) if len(differences) > 1 else None,
        p_floor=sign_test_floor(higher + lower) if len(differences) > 1 else None,
        p_holm=None,
        smallest_effect=None,
        mean_by_size={size: _mean_with_failures(values) for size, values in by_size.items()},
    )


def _adjusted(metric: Metric, effect: Effect, p_holm: float | None, of_arm: ArmEffect, tests: int) -> Effect:
    """Return the effect with its adjusted p-value, the smallest effect at that level, and its sentence."""
    # the strictest level of Holm's method, as if no other difference were found
    smallest = effect.stdev * detectable_factor(effect.seeds, SIGNIFICANT / tests) if effect.stdev else None
    sentence = wording.effect(
        METRICS[metric][0],
        better=effect.better,
        worse=effect.worse,
        equal=effect.equal,
        failed=of_arm.failures,
        baseline_failed=of_arm.baseline_failures,
        pairs=of_arm.pairs,
        mean=effect.mean,
        mean_of_finite=effect.mean_of_finite,
        interval=effect.interval,
        p_holm=p_holm,
        tests=tests,
    )
    return replace(effect, p_holm=p_holm, smallest_effect=smallest, sentence=sentence)


def _of_seed(differences: Sequence[float]) -> float:
    """Return the mean over sizes; infinite with the sign of most failures, that of the others where they are even."""
    infinite = sum((value > 0) - (value < 0) for value in differences if math.isinf(value))
    if infinite:
        return math.copysign(math.inf, infinite)
    return _mean([value for value in differences if math.isfinite(value)]) or 0.0


def _mean_with_failures(differences: Sequence[float]) -> float | None:
    """Return the mean, infinite where a value is; None without values, and where both infinities are among them."""
    infinite = {value for value in differences if math.isinf(value)}
    if infinite:
        return infinite.pop() if len(infinite) == 1 else None
    return _mean(differences)


def _failed(runs: Sequence[RunSummary]) -> bool:
    return any(run.failed for run in runs)


def _value(runs: Sequence[RunSummary], metric: Metric) -> float | None:
    """Return the mean over runs of the same arm and PairKey (usually one); NaN where one failed."""
    if _failed(runs):
        return math.nan
    values = [run.compared_value(metric) for run in runs]
    return _mean([value for value in values if value is not None]) if None not in values else None


def _mean(values: Sequence[float]) -> float | None:
    return mean(values) if values else None
