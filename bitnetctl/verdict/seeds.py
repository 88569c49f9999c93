"""From the runs of one size to an outcome over seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from bitnetctl.analysis.stats import mean_bound, rate_lower, rate_upper
from bitnetctl.records import Run
from bitnetctl.verdict.criteria import Criteria, LevelCheck, TwinCheck
from bitnetctl.verdict.outcome import CheckResult, Outcome, format_value, outcome_of_run, strictest
from bitnetctl.verdict.run import differing_settings


@dataclass
class _Findings:
    """What is gathered while judging one arm."""

    sizes: dict[int | None, Outcome] = field(default_factory=dict)
    results: list[CheckResult] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    figures: list[Mapping[str, Any]] = field(default_factory=list)
    seeds: list[tuple[int, int]] = field(default_factory=list)


def _judge_size(
    size: int | None,
    members: Sequence[tuple[Run, list[CheckResult]]],
    criteria: Criteria,
    seeds: Sequence[int] | None,
    findings: _Findings,
) -> None:
    """Judge all runs of one size, and keep what is found."""
    over_seeds = criteria.seeds.rule == "share"
    if over_seeds:
        members = _longest(members, findings.notes)
    runs = [run for run, _ in members]
    own: list[CheckResult] = []

    def say(check: str, outcome: Outcome, reason: str, **fields: Any) -> None:
        own.append(CheckResult(check=check, outcome=outcome, reason=reason, size=size, **fields))

    if not runs:
        say("runs", Outcome.INCONCLUSIVE, "no run")
    missing = [str(seed) for seed in seeds or () if runs and all(run.seed not in (seed, None) for run in runs)]
    if missing:
        say("seeds", Outcome.INCONCLUSIVE, f"no run of seed {', '.join(missing)}")
    mixed = _mixed(runs)
    if mixed is not None:
        say("settings", Outcome.INVALID, mixed)
    outcomes = [outcome_of_run(result.outcome for result in results) for _, results in members]
    count, failed = _seed_count(runs), outcomes.count(Outcome.REFUTED)
    if runs and count < criteria.seeds.min_seeds:
        say("seeds", Outcome.INCONCLUSIVE, f"{count} of at least {criteria.seeds.min_seeds} seeds", figure=float(count))
    if over_seeds and count < len(runs):
        say("seeds", Outcome.INCONCLUSIVE, "several different runs claim the same seed")
    figures = _figures(members, criteria)
    if over_seeds and runs and count >= criteria.seeds.min_seeds:
        for check in criteria.of_kind(LevelCheck):
            bound = figures[check.label]["bound"]
            reason = f"{check.label}: mean {format_value(figures[check.label]['mean'])} over {count} seeds, bound "
            told = {"measure": check.measure, "figure": bound, "supports": check.supports, "refutes": check.refutes}
            if bound is None:
                say(
                    check.label,
                    Outcome.INCONCLUSIVE,
                    f"{check.label}: no bound over seeds, since one is unknown",
                    **told,
                )
            elif check.outcome(bound) is Outcome.SUPPORTED:
                say(check.label, Outcome.SUPPORTED, f"{reason}{format_value(bound)} {check.supports}", **told)
            else:
                say(check.label, Outcome.INCONCLUSIVE, f"{reason}{format_value(bound)} not {check.supports}", **told)
    share = failed / len(runs) if runs else 0.0
    if over_seeds and failed and share < criteria.seeds.refuted_share:
        say("seeds", Outcome.INCONCLUSIVE, f"{failed} of {len(runs)} seeds failed", figure=share)
        outcomes = [outcome for outcome in outcomes if outcome is not Outcome.REFUTED]
    result = [*outcomes, *(item.outcome for item in own)]
    findings.sizes[size] = outcome_of_run(result) if mixed is not None else strictest(result)
    findings.results += [item for _, results in members for item in results] + own
    findings.seeds.append((failed, len(runs)))
    findings.figures.append(
        {
            "size": size,
            "runs": len(runs),
            "seeds": count,
            "failed": failed,
            "failure_rate_at_least": rate_lower(failed, len(runs), criteria.seeds.confidence),
            "failure_rate_at_most": rate_upper(failed, len(runs), criteria.seeds.confidence),
            "confidence": criteria.seeds.confidence,
            "levels": figures,
        }
    )


def _longest(
    members: Sequence[tuple[Run, list[CheckResult]]], notes: list[str]
) -> Sequence[tuple[Run, list[CheckResult]]]:
    """Leave out shorter runs: seeds of different lengths are no replicas of each other."""
    longest = max((run.planned_steps for run, _ in members if run.planned_steps is not None), default=None)
    kept = [(run, results) for run, results in members if run.planned_steps in (longest, None)]
    left = len(members) - len(kept)
    if left:
        notes.append(f"{left} runs of hidden {members[0][0].size} with fewer than {longest:,} steps are left out")
    return kept


def _mixed(runs: Sequence[Run]) -> str | None:
    for other in runs[1:]:
        differing = differing_settings(runs[0], other)
        if differing:
            told = ", ".join(f"{name} {ours} and {theirs}" for name, (ours, theirs) in list(differing.items())[:3])
            return f"runs of different settings are no seeds of one arm: {told}"
    return None


def _seed_count(runs: Sequence[Run]) -> int:
    return len({run.seed for run in runs if run.seed is not None}) + sum(run.seed is None for run in runs)


def _figures(members: Sequence[tuple[Run, list[CheckResult]]], criteria: Criteria) -> dict[str, Any]:
    """Return, for every level and twin, the figure of each seed, their mean, and its bound on the wrong side."""
    figures: dict[str, Any] = {}
    for check in criteria.checks:
        if not isinstance(check, LevelCheck | TwinCheck):
            continue
        values = [next((item.figure for item in results if item.check == check.label), None) for _, results in members]
        known = [value for value in values if value is not None]
        whole = len(known) == len(values) and len(known) > 0
        side: Literal["low", "high"] = "low" if check.higher_is_better else "high"
        figures[check.label] = {
            "measure": check.measure,
            "supports": check.supports,
            "refutes": check.refutes,
            "values": values,
            "mean": sum(value / len(known) for value in known) if whole else None,
            "bound": mean_bound(known, side, criteria.seeds.confidence) if whole else None,
        }
    return figures
