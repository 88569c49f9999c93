"""Arms of a set of runs, and the baseline of each."""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bitnetctl.analysis.factors import find_factors
from bitnetctl.config import BASELINE, ProbeConfig, did_you_mean, split_arm
from bitnetctl.errors import ConfigError
from bitnetctl.records.run import Run
from bitnetctl.units import shortened

MOST_ARMS = 8
"""Most arms that a message lists."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """The label of an arm, its interventions and its variant.

    `interventions` is None where they are unknown; such a run is an arm of its own. `variant` are the other fields,
    apart from size, seed and `probe`, in which the requested configs differ, as `name=level`.
    """

    label: str
    interventions: frozenset[str] | None
    variant: tuple[str, ...]


def name_arms(runs: Sequence[Run]) -> list[Arm]:
    """Return the arm of every run: its interventions, and every other field in which the requested configs differ."""
    configs = [run.config for run in runs if run.config is not None]
    # how a run is measured makes no arm
    same = {"interventions": (), "probe": ProbeConfig()}
    factors = [
        factor for factor in find_factors([config.model_copy(update=same) for config in configs]) if not factor.is_size
    ]
    variants = iter(
        [
            tuple(f"{factor.fields[0]}={factor.levels[factor.level_of[index]]}" for factor in factors)
            for index in range(len(configs))
        ]
    )
    return [_arm(run, next(variants) if run.config is not None else ()) for run in runs]


def _arm(run: Run, variant: tuple[str, ...]) -> Arm:
    if run.arm is None:
        return Arm(label=run.name, interventions=None, variant=variant)
    parts = [str(spec) for spec in run.config.interventions] if run.config else split_arm(run.arm)
    return Arm(
        label=f"{run.arm} [{', '.join(variant)}]" if variant else run.arm,
        interventions=frozenset(parts) - {BASELINE},
        variant=variant,
    )


def in_order(arms: Iterable[Arm]) -> list[Arm]:
    """Return each arm once: those of equal interventions together, and of these the lower numbers first."""
    distinct = list({arm.label: arm for arm in arms}.values())
    places: dict[frozenset[str] | None, int] = {}
    for arm in distinct:
        places.setdefault(arm.interventions, len(places))
    return sorted(distinct, key=lambda arm: (places[arm.interventions], [_level_key(text) for text in arm.variant]))


def _level_key(text: str) -> tuple[float, str]:
    """Return what orders `name=level`: numbers by size, in front of texts."""
    try:
        level = float(text.rpartition("=")[2])
    except ValueError:
        level = math.inf
    return (level, "") if math.isfinite(level) else (math.inf, text)


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
        names = shortened([repr(label) for label in matching], MOST_ARMS)
        raise ConfigError(f"--baseline {text!r} could be any of {names}")
    raise ConfigError(
        f"--baseline {text!r}: no such arm among the runs{did_you_mean(text, labels)}; "
        f"arms: {shortened(labels, MOST_ARMS)}"
    )
