"""What an arm changes: paired differences from its baseline at equal size, seed and steps."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import stdev
from typing import Any, TypeAlias

from bitnetctl.analysis.anova import find_factors
from bitnetctl.analysis.stats import Better, holm, paired_differences, paired_effect, smallest_effect
from bitnetctl.analysis.summary import Metric, RunSummary
from bitnetctl.config import near_miss
from bitnetctl.errors import ConfigError
from bitnetctl.records.run import Run

METRICS: dict[Metric, tuple[str, Better]] = {
    "final_held_out_loss": ("held-out loss", "lower"),
    "final_skill": ("skill", "higher"),
    "final_log2_unique": ("log2 unique", "higher"),
}
"""What is compared, what it is called and which way is better; differences are arm minus baseline."""

_Place: TypeAlias = tuple[int | None, int | None, int | None]


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A label for the runs of one treatment, and what it is made of.

    `variant` holds the fields in which asked-for configs differ apart from size, seed and interventions. `parts` is
    None for a file that says nothing of its treatment; such a file is an arm of its own.
    """

    label: str
    parts: frozenset[str] | None
    variant: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Effect:
    """Mean difference over pairs with a BCa 95 % interval and the p of a sign-flip test; None is unknown.

    A failed run is infinitely worse than one that ended, so a mean with one in it is not finite, and the interval is
    all numbers; `mean_of_finite` leaves such pairs out, and `failed_pairs` counts them. The p takes them in by rank;
    `p_floor` is the least that so many pairs can give, `smallest_effect` the least mean difference that so many pairs
    of this spread would show four times in five.
    """

    metric: Metric
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
        """Return everything by name, infinity as text."""
        return {name: _plain(value) for name, value in vars(self).items() if name != "metric"}


@dataclass(frozen=True, kw_only=True)
class ArmEffect:
    """One arm against its baseline; failures are runs that diverged or crashed, which are never dropped."""

    arm: str
    baseline: str
    pairs: int
    failures: int
    baseline_failures: int
    unpaired_runs: int
    effects: dict[Metric, Effect] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return everything by name."""
        return {**vars(self), "effects": {metric: effect.to_json() for metric, effect in self.effects.items()}}


def name_arms(runs: Sequence[Run]) -> list[Arm]:
    """Return the arm of every run, told apart by interventions and by every other field that differs between them."""
    configs = [run.config for run in runs if run.config is not None]
    factors = [
        factor
        for factor in find_factors([config.model_copy(update={"interventions": ()}) for config in configs])
        if "model.hidden_size" not in factor.fields and not factor.name.startswith("probe.")
    ]
    arms = []
    place = 0
    for run in runs:
        variant: tuple[str, ...] = ()
        if run.config is not None:
            variant = tuple(f"{factor.name}={factor.levels[factor.level_of[place]]}" for factor in factors)
            place += 1
        text = run.arm
        if text is None:
            arms.append(Arm(label=run.name, parts=None, variant=variant))
            continue
        parts = [str(spec) for spec in run.config.interventions] if run.config else text.split("+")
        arms.append(
            Arm(
                label=f"{text} [{', '.join(variant)}]" if variant else text,
                parts=frozenset(parts) - {"baseline"},
                variant=variant,
            )
        )
    return arms


def choose_baselines(arms: Sequence[Arm], requested: str | None = None) -> dict[str, str]:
    """Return the label of its baseline for every arm that has one.

    By default that is the arm whose interventions every other arm of the same variant contains, the one without any
    as a rule. `requested` names one arm for all the others, by its label or by what only its label has; raises
    ConfigError where there is no such arm.
    """
    by_label = {arm.label: arm for arm in arms}
    if requested is not None:
        named = _named(arms, requested)
        return {label: named for label in by_label if label != named}
    chosen: dict[str, str] = {}
    for variant in {arm.variant for arm in arms}:
        family = {arm.label: arm.parts for arm in by_label.values() if arm.variant == variant and arm.parts is not None}
        for label, parts in family.items():
            if all(parts <= other for other in family.values()):
                chosen |= {other: label for other in family if other != label}
                break
    return {label: chosen[label] for label in by_label if label in chosen}


def _named(arms: Sequence[Arm], text: str) -> str:
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
        f"--baseline {text!r}: no such arm among the runs{near_miss(text, labels)}; arms: {', '.join(labels[:8])}"
    )


def arm_effects(facts: Sequence[RunSummary], baselines: Mapping[str, str]) -> list[ArmEffect]:
    """Compare every arm with its baseline; p values are Holm-adjusted over the arms, metric by metric."""
    by_arm: dict[str, dict[_Place, list[RunSummary]]] = {}
    for run in facts:
        by_arm.setdefault(run.arm, {}).setdefault((run.size, run.seed, run.planned_steps), []).append(run)
    found = [_arm_effect(arm, by_arm[arm], baseline, by_arm[baseline]) for arm, baseline in baselines.items()]
    for metric in METRICS:
        adjusted = holm([effect.effects[metric].p for effect in found])
        for effect, p in zip(found, adjusted, strict=True):
            effect.effects[metric] = replace(effect.effects[metric], p_holm=p)
    return found


def _arm_effect(
    arm: str, runs: Mapping[_Place, list[RunSummary]], baseline: str, others: Mapping[_Place, list[RunSummary]]
) -> ArmEffect:
    # a file that tells neither seed nor size is no pair of another that does not
    shared = [place for place in runs if place in others and place[0] is not None and place[1] is not None]
    paired = [run for place in shared for run in runs[place]]
    return ArmEffect(
        arm=arm,
        baseline=baseline,
        pairs=len(shared),
        failures=sum(run.failed for run in paired),
        baseline_failures=sum(run.failed for place in shared for run in others[place]),
        unpaired_runs=sum(map(len, runs.values())) - len(paired),
        effects={metric: _effect(metric, [(at[0], runs[at], others[at]) for at in shared]) for metric in METRICS},
    )


def _effect(metric: Metric, pairs: Sequence[tuple[int | None, list[RunSummary], list[RunSummary]]]) -> Effect:
    better = METRICS[metric][1]
    # plus 0.0 makes a positive zero of a negative one
    sign = 1.0 if better == "higher" else -1.0
    differences: list[float] = []
    failed_pairs = 0
    by_size: dict[str, list[float]] = {}
    for size, runs, others in pairs:
        one, other = _figure(runs, metric), _figure(others, metric)
        for difference in paired_differences([one], [other], better):
            differences.append(sign * difference + 0.0)
            by_size.setdefault(str(size), []).append(sign * difference + 0.0)
            failed_pairs += any(run.failed for run in (*runs, *others))
    result = paired_effect(differences)
    finite = [value for value in differences if math.isfinite(value)]
    # equal differences leave no spread to resample, which is not the same as an interval of width zero
    spread = result is not None and result.degenerate != "constant"
    return Effect(
        metric=metric,
        pairs=len(differences),
        unknown_pairs=len(pairs) - len(differences),
        failed_pairs=failed_pairs,
        mean=result.mean if result else None,
        mean_of_finite=_mean(finite),
        low=result.low if result and spread else None,
        high=result.high if result and spread else None,
        p=result.p if result else None,
        p_floor=result.p_floor if result else None,
        p_holm=None,
        smallest_effect=smallest_effect(len(finite), stdev(finite)) if len(finite) > 1 else None,
        mean_by_size={size: sum(values) / len(values) for size, values in by_size.items()},
    )


def _figure(runs: Sequence[RunSummary], metric: Metric) -> float | None:
    """Return the mean over copies of a run, as a rule the figure of the one there is; NaN where one failed."""
    if any(run.failed for run in runs):
        return math.nan
    values = [run.counted(metric) for run in runs]
    return _mean([value for value in values if value is not None]) if None not in values else None


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
