"""Combine the checked runs of one size into an outcome over seeds."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bitnetctl.analysis.stats import mean_bound, rate_lower, rate_upper
from bitnetctl.records import Run
from bitnetctl.verdict.checks.base import ThresholdCheck
from bitnetctl.verdict.checks.level import LevelCheck
from bitnetctl.verdict.checks.twin import differing_settings
from bitnetctl.verdict.criteria import Criteria, SeedRule
from bitnetctl.verdict.outcome import CheckedRun, CheckResult, Outcome, number_text, outcome_of_run, strictest

Statistics = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class SizeJudgement:
    """Outcome, results and statistics of the runs of one size.

    `results` are those of every run, then those over seeds; `failed` of `total` runs are refuted.
    """

    size: int | None
    outcome: Outcome
    results: tuple[CheckResult, ...]
    notes: tuple[str, ...]
    statistics: Statistics
    failed: int
    total: int


def judge_size(
    size: int | None, checked: Sequence[CheckedRun], criteria: Criteria, seeds: Sequence[int] | None
) -> SizeJudgement:
    """Judge all runs of one size; a seed of `seeds` without a run is inconclusive."""
    rule = criteria.seeds
    notes: tuple[str, ...] = ()
    if rule.over_seeds:
        checked, notes = _longest(checked)
    runs = [one.run for one in checked]
    outcomes = [one.outcome for one in checked]
    failed = outcomes.count(Outcome.REFUTED)
    thresholds = [check for check in criteria.checks if isinstance(check, ThresholdCheck)]
    statistics = {check.label: _statistics(check, checked, rule) for check in thresholds}
    mixed = list(_mixed_settings(runs))
    tolerated = list(_tolerated_failures(failed, len(runs), rule))
    over_seeds = [
        replace(result, size=size)
        for result in (
            *_missing_seeds(runs, seeds),
            *mixed,
            *_seed_numbers(runs, rule),
            *_bounds(runs, criteria, statistics),
            *tolerated,
        )
    ]
    if tolerated:
        outcomes = [outcome for outcome in outcomes if outcome is not Outcome.REFUTED]
    decide = outcome_of_run if mixed else strictest
    return SizeJudgement(
        size=size,
        outcome=decide([*outcomes, *(result.outcome for result in over_seeds)]),
        results=(*(result for one in checked for result in one.results), *over_seeds),
        notes=notes,
        statistics={
            "size": size,
            "runs": len(runs),
            "seeds": _seed_count(runs),
            "failed": failed,
            "failure_rate_at_least": rate_lower(failed, len(runs), rule.confidence),
            "failure_rate_at_most": rate_upper(failed, len(runs), rule.confidence),
            "confidence": rule.confidence,
            "levels": statistics,
        },
        failed=failed,
        total=len(runs),
    )


def _longest(checked: Sequence[CheckedRun]) -> tuple[Sequence[CheckedRun], tuple[str, ...]]:
    """Leave out shorter runs, with a note: seeds of different lengths are no repetitions of each other."""
    longest = max((one.run.planned_steps for one in checked if one.run.planned_steps is not None), default=None)
    kept = [one for one in checked if one.run.planned_steps in (longest, None)]
    left_out = len(checked) - len(kept)
    if not left_out:
        return kept, ()
    note = f"{left_out} runs of hidden {checked[0].run.size} with fewer than {longest:,} steps are left out"
    return kept, (note,)


def _seed_count(runs: Sequence[Run]) -> int:
    """Count distinct seeds; every run of unknown seed counts as one of its own."""
    return len({run.seed for run in runs if run.seed is not None}) + sum(run.seed is None for run in runs)


def _statistics(check: ThresholdCheck, checked: Sequence[CheckedRun], rule: SeedRule) -> Statistics:
    """Return the value of each seed, their mean, and its one-sided bound on the side of the refuting threshold.

    Mean and bound are None where a value is unknown.
    """
    values = [one.value(check.label) for one in checked]
    known = [value for value in values if value is not None]
    complete = 0 < len(known) == len(values)
    return {
        **check.condition,
        "values": values,
        "mean": sum(value / len(known) for value in known) if complete else None,
        "bound": mean_bound(known, "low" if check.higher_is_better else "high", rule.confidence) if complete else None,
    }


def _inconclusive(check: str, reason: str, value: float | None = None) -> CheckResult:
    return CheckResult(check=check, outcome=Outcome.INCONCLUSIVE, reason=reason, value=value)


def _missing_seeds(runs: Sequence[Run], seeds: Sequence[int] | None) -> Iterator[CheckResult]:
    if not runs:
        yield _inconclusive("runs", "no run")
        return
    missing = [str(seed) for seed in seeds or () if all(run.seed not in (seed, None) for run in runs)]
    if missing:
        yield _inconclusive("seeds", f"no run of seed {', '.join(missing)}")


def _mixed_settings(runs: Sequence[Run]) -> Iterator[CheckResult]:
    differing = next(filter(None, (differing_settings(runs[0], other) for other in runs[1:])), None)
    if differing:
        text = ", ".join(f"{name} {ours} and {theirs}" for name, (ours, theirs) in list(differing.items())[:3])
        reason = f"runs of different settings are no seeds of one arm: {text}"
        yield CheckResult(check="settings", outcome=Outcome.INVALID, reason=reason)


def _seed_numbers(runs: Sequence[Run], rule: SeedRule) -> Iterator[CheckResult]:
    count = _seed_count(runs)
    if runs and count < rule.min_seeds:
        yield _inconclusive("seeds", f"{count} of at least {rule.min_seeds} seeds", float(count))
    if rule.over_seeds and count < len(runs):
        yield _inconclusive("seeds", "several different runs have the same seed")


def _bounds(runs: Sequence[Run], criteria: Criteria, statistics: Mapping[str, Statistics]) -> Iterator[CheckResult]:
    """Compare, for each `level` check, the bound of the mean over seeds with the supporting threshold."""
    count = _seed_count(runs)
    if not criteria.seeds.over_seeds or count < criteria.seeds.min_seeds:
        return
    for check in criteria.of_kind(LevelCheck):
        mean, bound = statistics[check.label]["mean"], statistics[check.label]["bound"]
        supported = bound is not None and check.outcome(bound) is Outcome.SUPPORTED
        if bound is None:
            reason = "no bound over seeds, since one is unknown"
        else:
            comparison = check.supports if supported else f"not {check.supports}"
            reason = f"mean {number_text(mean)} over {count} seeds, bound {number_text(bound)} {comparison}"
        yield CheckResult(
            check=check.label,
            outcome=Outcome.SUPPORTED if supported else Outcome.INCONCLUSIVE,
            reason=f"{check.label}: {reason}",
            value=bound,
            **check.condition,
        )


def _tolerated_failures(failed: int, total: int, rule: SeedRule) -> Iterator[CheckResult]:
    """Report failures of too few seeds to refute the size; they leave it inconclusive."""
    if rule.over_seeds and failed and failed / total < rule.refuted_share:
        yield _inconclusive("seeds", f"{failed} of {total} seeds failed", failed / total)
