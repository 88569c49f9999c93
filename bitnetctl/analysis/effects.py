"""What an arm changes: paired differences from its baseline at equal size, seed and steps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from bitnetctl.analysis.facts import Metric, RunFacts
from bitnetctl.analysis.factors import find_factors
from bitnetctl.analysis.runs import Run
from bitnetctl.analysis.stats import holm, paired_effect
from bitnetctl.config import near_miss
from bitnetctl.errors import ConfigError

METRICS: dict[Metric, str] = {
    "final_held_out_loss": "held-out loss",
    "final_skill": "skill",
    "final_log2_unique": "log2 unique",
}
"""What is compared, and what it is called; differences are arm minus baseline."""

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
    """Mean difference over pairs with a 95 % interval and the p of a sign-flip test; None is unknown."""

    metric: Metric
    pairs: int
    unknown_pairs: int
    mean: float | None
    low: float | None
    high: float | None
    p: float | None
    p_holm: float | None
    mean_by_size: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """Return everything by name."""
        return {name: value for name, value in vars(self).items() if name != "metric"}


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


def choose_baselines(arms: Sequence[Arm], asked_for: str | None = None) -> dict[str, str]:
    """Return the label of its baseline for every arm that has one.

    By default that is the arm whose interventions every other arm of the same variant contains, the one without any
    as a rule. `asked_for` names one arm for all the others; raises ConfigError where there is no such arm.
    """
    by_label = {arm.label: arm for arm in arms}
    if asked_for is not None:
        if asked_for not in by_label:
            hint = near_miss(asked_for, by_label) or f"; arms: {', '.join(list(by_label)[:8])}"
            raise ConfigError(f"--baseline {asked_for!r}: no such arm among the runs{hint}")
        return {label: asked_for for label in by_label if label != asked_for}
    chosen: dict[str, str] = {}
    for variant in {arm.variant for arm in arms}:
        family = {arm.label: arm.parts for arm in by_label.values() if arm.variant == variant and arm.parts is not None}
        for label, parts in family.items():
            if all(parts <= other for other in family.values()):
                chosen |= {other: label for other in family if other != label}
                break
    return {label: chosen[label] for label in by_label if label in chosen}


def arm_effects(facts: Sequence[RunFacts], baselines: Mapping[str, str]) -> list[ArmEffect]:
    """Compare every arm with its baseline; p values are Holm-adjusted over the arms, metric by metric."""
    by_arm: dict[str, dict[_Place, list[RunFacts]]] = {}
    for run in facts:
        by_arm.setdefault(run.arm, {}).setdefault((run.size, run.seed, run.planned_steps), []).append(run)
    found = [_arm_effect(arm, by_arm[arm], baseline, by_arm[baseline]) for arm, baseline in baselines.items()]
    for metric in METRICS:
        tested = [place for place, effect in enumerate(found) if effect.effects[metric].p is not None]
        adjusted = holm([effect.p for place in tested if (effect := found[place].effects[metric]).p is not None])
        for place, p in zip(tested, adjusted, strict=True):
            effects = found[place].effects
            effects[metric] = replace(effects[metric], p_holm=float(p))
    return found


def _arm_effect(
    arm: str, runs: Mapping[_Place, list[RunFacts]], baseline: str, others: Mapping[_Place, list[RunFacts]]
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
        effects={metric: _effect(metric, [(place[0], runs[place], others[place]) for place in shared]) for metric in METRICS},
    )


def _effect(metric: Metric, pairs: Sequence[tuple[int | None, list[RunFacts], list[RunFacts]]]) -> Effect:
    differences: list[float] = []
    by_size: dict[str, list[float]] = {}
    for size, runs, others in pairs:
        ours, theirs = _mean(runs, metric), _mean(others, metric)
        if ours is not None and theirs is not None:
            differences.append(ours - theirs)
            by_size.setdefault(str(size), []).append(ours - theirs)
    result = paired_effect(differences) if differences else None
    return Effect(
        metric=metric,
        pairs=len(differences),
        unknown_pairs=len(pairs) - len(differences),
        mean=result.mean if result else None,
        low=result.low if result else None,
        high=result.high if result else None,
        p=result.p if result else None,
        p_holm=None,
        mean_by_size={size: sum(values) / len(values) for size, values in by_size.items()},
    )


def _mean(runs: Sequence[RunFacts], metric: Metric) -> float | None:
    """Return the mean over copies of a run, as a rule the figure of the one there is."""
    values = [value for run in runs if (value := run.counted(metric)) is not None]
    return sum(values) / len(values) if values and len(values) == len(runs) else None
