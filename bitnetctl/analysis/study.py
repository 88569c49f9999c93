"""Everything that `bitnetctl analyze` reports about a set of runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bitnetctl.analysis import finding_wording, wording
from bitnetctl.analysis.agreement import Agreement, agreements, probe_key
from bitnetctl.analysis.anova import Outcome, OutcomeAnalysis, analyze_outcomes
from bitnetctl.analysis.arms import choose_baselines, in_order, name_arms
from bitnetctl.analysis.effects import ArmEffect, Compare, arm_effects
from bitnetctl.analysis.factors import Factor, find_factors
from bitnetctl.analysis.findings import Finding, find
from bitnetctl.analysis.stats import SIGNIFICANT, seeds_needed, sign_test_floor
from bitnetctl.analysis.steps_to_loss import StepsBySize, steps_to_baseline
from bitnetctl.analysis.summary import Metric, RunSummary, summarize_run
from bitnetctl.analysis.text_quality import texts_json
from bitnetctl.records.provenance import code_differences, provenance_differences
from bitnetctl.records.run import Run

OUTCOMES: dict[Metric, tuple[str, str]] = {
    "collapsed_fraction": ("fraction of collapsed evaluations", ".0%"),
    "stage1_held_out_loss": ("held-out loss at the end of stage 1", ".3f"),
    "final_held_out_loss": ("final held-out loss", ".3f"),
}
"""Outcomes of the factors: name and format spec."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """The analysis of a set of runs; `summaries` are in the order of `runs`, `arms` has the baselines first.

    `steps_to_baseline` are those to the loss at which the baseline ends, by arm and size.
    `findings` are what it shows in short; `notes` are caveats, also those that a finding has.
    """

    runs: tuple[Run, ...]
    summaries: tuple[RunSummary, ...]
    arms: tuple[str, ...]
    effects: tuple[ArmEffect, ...]
    steps_to_baseline: Mapping[str, StepsBySize]
    factors: tuple[Factor, ...]
    outcomes: tuple[OutcomeAnalysis, ...]
    agreements: tuple[Agreement, ...]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the JSON of `analyze --json`; no value is NaN."""
        return {
            "findings": [finding.to_json() for finding in self.findings],
            "runs": [summary.to_json() for summary in self.summaries],
            "arms": [
                {
                    **effect.to_json(),
                    "steps_to_baseline": {str(size): step for size, step in self.steps_to_baseline[effect.arm].items()},
                }
                for effect in self.effects
            ],
            "factors": {
                "fields": [{"fields": list(factor.fields), "levels": list(factor.levels)} for factor in self.factors],
                "outcomes": [outcome.to_json() for outcome in self.outcomes],
            },
            "agreement": [agreement.to_json() for agreement in self.agreements],
            "texts": texts_json(self.runs, [summary.arm for summary in self.summaries]),
            "notes": list(self.notes),
        }


def study(runs: Sequence[Run], *, baseline: str | None = None, notes: Sequence[str] = ()) -> Study:
    """Analyse runs, of which none is a copy of another; raises ConfigError where `baseline` names not one arm."""
    arms = name_arms(runs)
    summaries = [summarize_run(run, arm.label) for run, arm in zip(runs, arms, strict=True)]
    ordered = in_order(arms)
    baselines = choose_baselines(ordered, baseline)
    effects = arm_effects(summaries, baselines, _compare(runs, summaries))
    reached = steps_to_baseline(runs, summaries, effects)
    configs = {index: config for index, run in enumerate(runs) if (config := run.effective) is not None}
    factors = find_factors([*configs.values()])
    outcomes = [
        Outcome(
            name=name,
            values=tuple(summaries[index].compared_value(metric) for index in configs),
            format_spec=format_spec,
        )
        for metric, (name, format_spec) in OUTCOMES.items()
        if factors
    ]
    analyses = analyze_outcomes(outcomes, factors, [config.seed for config in configs.values()])
    ranked = agreements(runs, [summary.arm for summary in summaries])
    problems = [*notes, *_problems(runs, summaries, effects, len(runs) - len(configs))]
    labels = list(dict.fromkeys([*baselines.values(), *(arm.label for arm in ordered)]))
    return Study(
        runs=tuple(runs),
        summaries=tuple(summaries),
        arms=tuple(labels),
        effects=tuple(effects),
        steps_to_baseline=reached,
        factors=tuple(factors),
        outcomes=tuple(analyses),
        agreements=tuple(ranked),
        findings=tuple(find(summaries, labels, effects, reached, analyses, ranked, problems)),
        notes=(*problems, *_effect_notes(effects)),
    )


def _compare(runs: Sequence[Run], summaries: Sequence[RunSummary]) -> Compare:
    """Return how the provenance of two runs differs, as a function of their summaries.

    Settings in which the runs differ are part of the names of their arms, and so what is compared.
    """
    # a log of another program may hold several runs
    run_of = {(summary.path, summary.name): run for run, summary in zip(runs, summaries, strict=True)}
    return lambda one, other: provenance_differences(
        [run_of[one.path, one.name], run_of[other.path, other.name]], same_arm=False, same_settings=False
    )


def _problems(
    runs: Sequence[Run], summaries: Sequence[RunSummary], effects: Sequence[ArmEffect], without_config: int
) -> list[str]:
    """Return what is wrong with the data, or uneven in it."""
    notes = [f"{run.name}: {note}" for run in runs for note in run.records.notes]
    known_arms = dict.fromkeys(summary.arm for run, summary in zip(runs, summaries, strict=True) if run.arm is not None)
    if len(known_arms) > 1 and not effects:
        notes.append(wording.no_baseline())
    lengths = sorted({summary.length for summary in summaries})
    if len(lengths) > 1:
        notes.append(finding_wording.several_lengths(lengths))
    unfinished = sum(summary.complete is False and not summary.failed for summary in summaries)
    if unfinished:
        notes.append(wording.unfinished(unfinished, len(runs)))
    failed = sum(summary.failed for summary in summaries)
    if failed:
        notes.append(wording.failed_runs(failed, len(runs)))
    probes = len({probe_key(run) for run in runs})
    if probes > 1:
        notes.append(wording.several_probes(probes))
    by_arm: dict[str, list[Run]] = {}
    for run, summary in zip(runs, summaries, strict=True):
        by_arm.setdefault(summary.arm, []).append(run)
    notes += [wording.several_codes(arm, text) for arm, of_arm in by_arm.items() for text in code_differences(of_arm)]
    if without_config and without_config < len(runs):
        notes.append(wording.without_config(without_config, len(runs)))
    seen: dict[tuple[object, ...], str] = {}
    for summary in summaries:
        key = (summary.arm, summary.size, summary.seed, summary.planned_steps)
        if None not in key and key in seen:
            notes.append(wording.repeated(summary.name, seen[key]))
        seen.setdefault(key, summary.name)
    return notes


def _effect_notes(effects: Sequence[ArmEffect]) -> list[str]:
    """Return caveats on the effects: what their seeds cannot show, and pairs of unequal provenance."""
    seeds = max((effect.seeds for effect in effects), default=0)
    # without a second seed there is no p-value, and as many as arms and metrics with one
    tests = max((effect.tests for effect in effects), default=0) or sum(len(effect.effects) for effect in effects)
    notes = []
    if seeds and sign_test_floor(seeds) * tests > SIGNIFICANT:
        notes.append(wording.few_seeds(seeds, tests, sign_test_floor(seeds), seeds_needed(tests)))
    for effect in effects:
        notes += [wording.uneven_sizes(effect.arm)] * effect.uneven_sizes
        notes += effect.notes
    return notes
