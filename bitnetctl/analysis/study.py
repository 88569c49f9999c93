"""Everything that `bitnetctl analyze` finds in a set of runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bitnetctl.analysis.agreement import Agreement, agreements, probe_of
from bitnetctl.analysis.anova import SIGNIFICANT, Factor, OutcomeAnalysis, analyze_outcome, find_factors
from bitnetctl.analysis.effects import ArmEffect, arm_effects, choose_baselines, name_arms
from bitnetctl.analysis.stats import sign_flip_floor
from bitnetctl.analysis.summary import Metric, RunSummary, summarize_run
from bitnetctl.records.run import Run

OUTCOMES: dict[Metric, tuple[str, str]] = {
    "collapsed_fraction": ("share of collapsed evaluations", ".0%"),
    "stage1_held_out_loss": ("held-out loss at the end of stage 1", ".3f"),
    "final_held_out_loss": ("final held-out loss", ".3f"),
}
"""What factors are tested on: what it is called and how it is written."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """A set of runs and what it shows; `facts` stand in the order of `runs`, `arms` has the baselines first."""

    runs: tuple[Run, ...]
    facts: tuple[RunSummary, ...]
    arms: tuple[str, ...]
    effects: tuple[ArmEffect, ...]
    factors: tuple[Factor, ...]
    outcomes: tuple[OutcomeAnalysis, ...]
    agreements: tuple[Agreement, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return everything by name; no NaN among it."""
        return {
            "runs": [facts.to_json() for facts in self.facts],
            "arms": [effect.to_json() for effect in self.effects],
            "factors": {
                "fields": [{"fields": list(factor.fields), "levels": list(factor.levels)} for factor in self.factors],
                "outcomes": [outcome.to_json() for outcome in self.outcomes],
            },
            "agreement": [agreement.to_json() for agreement in self.agreements],
            "notes": list(self.notes),
        }


def study(runs: Sequence[Run], *, baseline: str | None = None, notes: Sequence[str] = ()) -> Study:
    """Analyse runs; raises ConfigError where `baseline` is not one of their arms."""
    arms = name_arms(runs)
    facts = [summarize_run(run, arm.label) for run, arm in zip(runs, arms, strict=True)]
    baselines = choose_baselines(arms, baseline)
    effects = arm_effects(facts, baselines)
    configured = [index for index, run in enumerate(runs) if run.effective is not None]
    factors = find_factors([config for run in runs if (config := run.effective) is not None])
    outcomes = [
        analyze_outcome(called, factors, [facts[index].counted(metric) for index in configured], form=form)
        for metric, (called, form) in OUTCOMES.items()
        if factors
    ]
    return Study(
        runs=tuple(runs),
        facts=tuple(facts),
        arms=tuple(dict.fromkeys([*baselines.values(), *(fact.arm for fact in facts)])),
        effects=tuple(effects),
        factors=tuple(factors),
        outcomes=tuple(outcomes),
        agreements=tuple(agreements(runs)),
        notes=(*notes, *_notes(runs, facts, effects, len(runs) - len(configured))),
    )


def _notes(
    runs: Sequence[Run], facts: Sequence[RunSummary], effects: Sequence[ArmEffect], without_config: int
) -> list[str]:
    """Say what a reader of the figures must know."""
    notes = [f"{run.name}: {note}" for run in runs for note in run.records.notes]
    known_arms = dict.fromkeys(fact.arm for run, fact in zip(runs, facts, strict=True) if run.arm is not None)
    if len(known_arms) > 1 and not effects:
        notes.append("no arm is the baseline of the others; name one with --baseline to see what the others change")
    pairs = max((effect.pairs for effect in effects), default=0)
    floor = sign_flip_floor(pairs)
    if floor is not None and floor > SIGNIFICANT:
        notes.append(
            f"with {pairs} pair{'s' * (pairs > 1)} p cannot fall below {floor:g}; from six pairs on it can show 0.05"
        )
    short = sum(fact.complete is False and not fact.failed for fact in facts)
    if short:
        notes.append(f"{short} of {len(facts)} runs are short of their plan; their final figures enter no comparison")
    failed = sum(fact.failed for fact in facts)
    if failed:
        notes.append(
            f"{failed} of {len(facts)} runs failed (diverged or crashed) and none is dropped: against a baseline they "
            "are infinitely worse, in the factors they count with the worst held-out loss that they showed"
        )
    probes = len({probe_of(run) for run in runs})
    if probes > 1:
        notes.append(
            f"the runs were measured on {probes} different probes; their losses are not comparable, and metrics are "
            "ranked over the commonest probe only"
        )
    if without_config and without_config < len(runs):
        notes.append(f"{without_config} of {len(runs)} runs have no manifest and take no part in the factors")
    seen: dict[tuple[object, ...], str] = {}
    for fact in facts:
        place = (fact.arm, fact.size, fact.seed, fact.planned_steps)
        if None not in place and place in seen:
            notes.append(f"{fact.name} repeats {seen[place]} in arm, size and seed; effects use their mean")
        seen.setdefault(place, fact.name)
    return notes
