"""Paired differences of each arm from its baseline, at equal size, seed and planned steps."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import stdev
from typing import Any, NamedTuple

from bitnetctl.analysis.anova import find_factors
from bitnetctl.analysis.stats import Better, holm, paired_differences, paired_effect, smallest_effect
from bitnetctl.analysis.summary import Metric, RunSummary
from bitnetctl.config import did_you_mean
from bitnetctl.errors import ConfigError
from bitnetctl.records.metrics import json_value
from bitnetctl.records.run import Run

METRICS: dict[Metric, tuple[str, Better]] = {
    "final_held_out_loss": ("held-out loss", "lower"),
    "final_skill": ("skill", "higher"),
    "final_log2_unique": ("log2 unique", "higher"),
}
"""Metrics that are compared: name in reports and which direction is better; differences are arm minus baseline."""


class PairKey(NamedTuple):
    """Fields that a run and the baseline run it is compared with have in common."""

    size: int | None
    seed: int | None
    planned_steps: int | None


@dataclass(frozen=True, kw_only=True)
class Arm:
    """The label of an arm, its interventions and its variant.

    `interventions` is None where they are unknown; such a run is an arm of its own. `variant` are the other fields,
    apart from size, seed and `probe`, in which the requested configs differ, as `name=level`.
    """

    label: str
    interventions: frozenset[str] | None
    variant: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Effect:
    """Mean of the paired differences of one metric; None is unknown.

    `low` and `high` are the BCa bootstrap 95 % interval of the mean, `p` is the p-value of the sign-flip permutation
    test, `p_holm` adjusted over the arms by Holm's method, `p_floor` the smallest p-value possible with so many pairs.
    A failed run is infinitely worse than a finished one, so that its pair makes the mean and the interval infinite;
    `failed_pairs` counts such pairs, `mean_of_finite` leaves them out, and the test then uses ranks. `smallest_effect`
    is the minimum detectable effect at a power of 80 %, from the number and standard deviation of the finite pairs.
    """

    pairs: int
    unknown_pairs: int
    failed_pairs: int
    mean: float | None
    mean_of_finite: float | None
    low: float | None
    high: float | None
    p: float | None
    p_floor: float | None
    p_holm: float | None
    smallest_effect: float | None
    mean_by_size: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """Return every field by name, infinity as text."""
        return {name: json_value(value) for name, value in vars(self).items()}


@dataclass(frozen=True, kw_only=True)
class ArmEffect:
    """One arm compared with its baseline; failures are runs that diverged or crashed."""

    arm: str
    baseline: str
    pairs: int
    failures: int
    baseline_failures: int
    unpaired_runs: int
    effects: dict[Metric, Effect] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return every field by name."""
        return {**vars(self), "effects": {metric: effect.to_json() for metric, effect in self.effects.items()}}


def name_arms(runs: Sequence[Run]) -> list[Arm]:
    """Return the arm of every run: its interventions, and every other field in which the requested configs differ."""
    configs = [run.config for run in runs if run.config is not None]
    factors = [
        factor
        for factor in find_factors([config.model_copy(update={"interventions": ()}) for config in configs])
        if "model.hidden_size" not in factor.fields and not factor.name.startswith("probe.")
    ]
    arms = []
    index = 0
    for run in runs:
        variant: tuple[str, ...] = ()
        if run.config is not None:
            variant = tuple(f"{factor.name}={factor.levels[factor.level_of[index]]}" for factor in factors)
            index += 1
        text = run.arm
        if text is None:
            arms.append(Arm(label=run.name, interventions=None, variant=variant))
            continue
        parts = [str(spec) for spec in run.config.interventions] if run.config else text.split("+")
        arms.append(
            Arm(
                label=f"{text} [{', '.join(variant)}]" if variant else text,
                interventions=frozenset(parts) - {"baseline"},
                variant=variant,
            )
        )
    return arms


def choose_baselines(arms: Sequence[Arm], requested: str | None = None) -> dict[str, str]:
    """Return the label of its baseline for every arm that has one.

    By default it is the arm whose interventions every other arm of the same variant has too, as a rule the one without
    any. `requested` is one baseline for all other arms: a label, or a part of a label that no other label has. Raises
    ConfigError where it does not name exactly one arm.
    """
    by_label = {arm.label: arm for arm in arms}
    if requested is not None:
        baseline = _find_label(arms, requested)
        return {label: baseline for label in by_label if label != baseline}
    chosen: dict[str, str] = {}
    for variant in {arm.variant for arm in arms}:
        same = {arm.label: arm.interventions for arm in by_label.values() if arm.variant == variant}
        known = {label: interventions for label, interventions in same.items() if interventions is not None}
        for label, interventions in known.items():
            if all(interventions <= other for other in known.values()):
                chosen |= {other: label for other in known if other != label}
                break
    return {label: chosen[label] for label in by_label if label in chosen}


def _find_label(arms: Sequence[Arm], text: str) -> str:
    labels = list(dict.fromkeys(arm.label for arm in arms))
    text = re.sub(r"\s+\+\s*", "+", text)
    if text in labels:
        return text
    matching = list(dict.fromkeys(arm.label for arm in arms if text in (*arm.variant, arm.label.partition(" [")[0])))
    if len(matching) == 1:
        return matching[0]
    if matching:
        raise ConfigError(f"--baseline {text!r} could be any of {', '.join(map(repr, matching[:8]))}")
    raise ConfigError(
        f"--baseline {text!r}: no such arm among the runs{did_you_mean(text, labels)}; arms: {', '.join(labels[:8])}"
    )


def arm_effects(summaries: Sequence[RunSummary], baselines: Mapping[str, str]) -> list[ArmEffect]:
    """Compare every arm with its baseline; p-values are adjusted over the arms by Holm's method, metric by metric."""
    by_arm: dict[str, dict[PairKey, list[RunSummary]]] = {}
    for run in summaries:
        by_arm.setdefault(run.arm, {}).setdefault(PairKey(run.size, run.seed, run.planned_steps), []).append(run)
    results = [_arm_effect(arm, by_arm[arm], baseline, by_arm[baseline]) for arm, baseline in baselines.items()]
    for metric in METRICS:
        adjusted = holm([result.effects[metric].p for result in results])
        for result, p in zip(results, adjusted, strict=True):
            result.effects[metric] = replace(result.effects[metric], p_holm=p)
    return results


def _arm_effect(
    arm: str, runs: Mapping[PairKey, list[RunSummary]], baseline: str, others: Mapping[PairKey, list[RunSummary]]
) -> ArmEffect:
    # two unknown sizes or seeds need not be equal
    shared = [key for key in runs if key in others and key.size is not None and key.seed is not None]
    paired = [run for key in shared for run in runs[key]]
    return ArmEffect(
        arm=arm,
        baseline=baseline,
        pairs=len(shared),
        failures=sum(run.failed for run in paired),
        baseline_failures=sum(run.failed for key in shared for run in others[key]),
        unpaired_runs=sum(map(len, runs.values())) - len(paired),
        effects={metric: _effect(metric, [(key.size, runs[key], others[key]) for key in shared]) for metric in METRICS},
    )


def _effect(metric: Metric, pairs: Sequence[tuple[int | None, list[RunSummary], list[RunSummary]]]) -> Effect:
    better = METRICS[metric][1]
    sign = 1.0 if better == "higher" else -1.0
    differences: list[float] = []
    failed_pairs = 0
    by_size: dict[str, list[float]] = {}
    for size, runs, others in pairs:
        for improvement in paired_differences([_value(runs, metric)], [_value(others, metric)], better):
            # adding 0.0 turns -0.0 into 0.0
            difference = sign * improvement + 0.0
            differences.append(difference)
            by_size.setdefault(str(size), []).append(difference)
            failed_pairs += any(run.failed for run in (*runs, *others))
    result = paired_effect(differences)
    finite = [value for value in differences if math.isfinite(value)]
    # equal differences cannot be resampled: the interval is unknown, not of width 0
    has_interval = result is not None and result.degenerate != "constant"
    return Effect(
        pairs=len(differences),
        unknown_pairs=len(pairs) - len(differences),
        failed_pairs=failed_pairs,
        mean=result.mean if result else None,
        mean_of_finite=_mean(finite),
        low=result.low if result and has_interval else None,
        high=result.high if result and has_interval else None,
        p=result.p if result else None,
        p_floor=result.p_floor if result else None,
        p_holm=None,
        smallest_effect=smallest_effect(len(finite), stdev(finite)) if len(finite) > 1 else None,
        mean_by_size={size: sum(values) / len(values) for size, values in by_size.items()},
    )


def _value(runs: Sequence[RunSummary], metric: Metric) -> float | None:
    """Return the mean over runs of the same arm and PairKey (usually one); NaN where one failed."""
    if any(run.failed for run in runs):
        return math.nan
    values = [run.compared_value(metric) for run in runs]
    return _mean([value for value in values if value is not None]) if None not in values else None


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
