"""Everything that `bitnetctl analyze` reports about a set of runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bitnetctl.analysis.agreement import Agreement, agreements, probe_key
from bitnetctl.analysis.anova import SIGNIFICANT, Factor, OutcomeAnalysis, analyze_outcome, find_factors
from bitnetctl.analysis.effects import ArmEffect, arm_effects, choose_baselines, name_arms
from bitnetctl.analysis.stats import sign_flip_floor
from bitnetctl.analysis.summary import Metric, RunSummary, summarize_run
from bitnetctl.records.run import Run

OUTCOMES: dict[Metric, tuple[str, str]] = {
    "collapsed_fraction": ("fraction of collapsed evaluations", ".0%"),
    "stage1_held_out_loss": ("held-out loss at the end of stage 1", ".3f"),
    "final_held_out_loss": ("final held-out loss", ".3f"),
}
"""Outcomes of the ANOVA: name and format spec."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """The analysis of a set of runs; `summaries` are in the order of `runs`, `arms` has the baselines first."""

    runs: tuple[Run, ...]
    summaries: tuple[RunSummary, ...]
    arms: tuple[str, ...]
    effects: tuple[ArmEffect, ...]
    factors: tuple[Factor, ...]
    outcomes: tuple[OutcomeAnalysis, ...]
    agreements: tuple[Agreement, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the JSON of `analyze --json`; no value is NaN."""
        return {
            "runs": [summary.to_json() for summary in self.summaries],
            "arms": [effect.to_json() for effect in self.effects],
            "factors": {
                "fields": [{"fields": list(factor.fields), "levels": list(factor.levels)} for factor in self.factors],
                "outcomes": [outcome.to_json() for outcome in self.outcomes],
            },
            "agreement": [agreement.to_json() for agreement in self.agreements],
            "notes": list(self.notes),
        }


def study(runs: Sequence[Run], *, baseline: str | None = None, notes: Sequence[str] = ()) -> Study:
    """Analyse runs; raises ConfigError where `baseline` does not name exactly one of their arms."""
    arms = name_arms(runs)
    summaries = [summarize_run(run, arm.label) for run, arm in zip(runs, arms, strict=True)]
    baselines = choose_baselines(arms, baseline)
    effects = arm_effects(summaries, baselines)
    configured = [index for index, run in enumerate(runs) if run.effective is not None]
    factors = find_factors([config for run in runs if (config := run.effective) is not None])
    outcomes = [
        analyze_outcome(
            name, factors, [summaries[index].compared_value(metric) for index in configured], format_spec=format_spec
        )
        for metric, (name, format_spec) in OUTCOMES.items()
        if factors
    ]
    return Study(
        runs=tuple(runs),
        summaries=tuple(summaries),
        arms=tuple(dict.fromkeys([*baselines.values(), *(summary.arm for summary in summaries)])),
        effects=tuple(effects),
        factors=tuple(factors),
        outcomes=tuple(outcomes),
        agreements=tuple(agreements(runs)),
        notes=(*notes, *_notes(runs, summaries, effects, len(runs) - len(configured))),
    )


def _notes(
    runs: Sequence[Run], summaries: Sequence[RunSummary], effects: Sequence[ArmEffect], without_config: int
) -> list[str]:
    """Return caveats on the results."""
    notes = [f"{run.name}: {note}" for run in runs for note in run.records.notes]
    known_arms = dict.fromkeys(summary.arm for run, summary in zip(runs, summaries, strict=True) if run.arm is not None)
    if len(known_arms) > 1 and not effects:
        notes.append("no arm is the baseline of the others; name one with --baseline to see what the others change")
    pairs = max((effect.pairs for effect in effects), default=0)
    floor = sign_flip_floor(pairs)
    if floor is not None and floor > SIGNIFICANT:
        notes.append(
            f"with {pairs} pair{'s' * (pairs > 1)} p cannot fall below {floor:g}; from six pairs on it can reach 0.05"
        )
    unfinished = sum(summary.complete is False and not summary.failed for summary in summaries)
    if unfinished:
        notes.append(f"{unfinished} of {len(runs)} runs are unfinished; their final values enter no comparison")
    failed = sum(summary.failed for summary in summaries)
    if failed:
        notes.append(
            f"{failed} of {len(runs)} runs failed (diverged or crashed) and are not left out: compared with a baseline "
            "they are infinitely worse, and in the factors their value is that of their worst held-out loss"
        )
    probes = len({probe_key(run) for run in runs})
    if probes > 1:
        notes.append(
            f"the runs were measured on {probes} different probes; their losses are not comparable, and metrics are "
            "ranked over the runs with the most common probe only"
        )
    if without_config and without_config < len(runs):
        notes.append(f"{without_config} of {len(runs)} runs have no manifest and are left out of the factors")
    seen: dict[tuple[object, ...], str] = {}
    for summary in summaries:
        key = (summary.arm, summary.size, summary.seed, summary.planned_steps)
        if None not in key and key in seen:
            notes.append(f"{summary.name} repeats {seen[key]} in arm, size and seed; effects use their mean")
        seen.setdefault(key, summary.name)
    return notes
