"""From the checked runs of one arm and size to an outcome over its seeds."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bitnetctl.analysis.stats import mean_bound, rate_lower, rate_upper
from bitnetctl.records.provenance import provenance_differences
from bitnetctl.units import plural
from bitnetctl.verdict import wording
from bitnetctl.verdict.accounting import AccountedRun
from bitnetctl.verdict.checks.base import CheckContext, Seeds, ThresholdCheck
from bitnetctl.verdict.criteria import Criteria
from bitnetctl.verdict.outcome import CheckedRun, CheckResult, Outcome, outcome_of_run, strictest
from bitnetctl.verdict.rule import (
    UNDECIDABLE,
    Levels,
    PValues,
    Statement,
    Tally,
    all_of,
    failure_rate_test,
    healthy_needed,
    seeds_to_decide,
)

Statistics = Mapping[str, Any]

RATE = "failure rate"
"""The check of the statement about the fraction of seeds that fail."""


@dataclass(frozen=True, kw_only=True)
class SizeAssessment:
    """All that is known of one arm at one size before the levels of the arms are.

    `findings` are about the set of runs, `statements` those of the rule over seeds (none where the strictest seed
    decides), `seeds` the outcomes of the planned seeds that are judged or failed without rows. `unfinished`
    of the undecided ones may still be decided.
    """

    size: int | None
    checked: tuple[CheckedRun, ...]
    seeds: tuple[Outcome, ...]
    tally: Tally
    unfinished: int
    findings: tuple[CheckResult, ...]
    statements: tuple[Statement, ...]
    notes: tuple[str, ...]

    @property
    def p(self) -> PValues:
        """The p-values of all statements together; support is impossible where something stands against it.

        Runs that are no seeds of one arm say nothing, and lend no other arm a level.
        """
        if any(finding.outcome is Outcome.INVALID for finding in self.findings):
            return UNDECIDABLE
        combined = all_of([statement.p for statement in self.statements])
        # a run that failed without rows is counted in the tally
        blocked = any(finding.run is None for finding in self.findings)
        invalid = any(one.outcome is Outcome.INVALID for one in self.checked)
        return PValues(1.0, combined.refuting) if blocked or invalid else combined


@dataclass(frozen=True, kw_only=True)
class SizeJudgement:
    """Outcome, results and statistics of one size; `results` are those of every run, then those over seeds."""

    size: int | None
    outcome: Outcome
    results: tuple[CheckResult, ...]
    notes: tuple[str, ...]
    statistics: Statistics
    failure_rate: tuple[float, str] | None
    """The bound that matters most for the outcome, and the sentence that says so; None without a seed."""


def assess_size(
    size: int | None,
    checked: Sequence[CheckedRun],
    absent: Sequence[AccountedRun],
    criteria: Criteria,
    context: CheckContext,
    *,
    distinct_seeds: bool,
) -> SizeAssessment:
    """Assess the runs of one size; `absent` are its runs that were planned and have no rows here."""
    failed = [run for run in absent if run.state == "failed"]
    seed_of = {id(one): _seed_of(one, distinct_seeds=distinct_seeds) for one in checked}
    units: dict[object, list[Outcome]] = {}
    for one in checked:
        units.setdefault(seed_of[id(one)], []).append(one.outcome)
    repeated = len(units) < len(checked)
    for run in failed:
        units.setdefault(run.seed, []).append(Outcome.REFUTED)
    unfinished = {
        seed_of[id(one)]
        for one in checked
        if _is_unfinished(one, criteria) and strictest(units[seed_of[id(one)]]) is Outcome.INCONCLUSIVE
    }
    by_rate = criteria.seeds.rule == "rate"
    outcomes = [_of_seed(unit) if by_rate else strictest(unit) for unit in units.values()]
    missing = [run for run in absent if run.state != "failed"]
    tally = Tally(
        healthy=outcomes.count(Outcome.SUPPORTED),
        unhealthy=outcomes.count(Outcome.REFUTED),
        undecided=outcomes.count(Outcome.INCONCLUSIVE) + outcomes.count(Outcome.INVALID),
        absent=len({_seed_of_absent(run) for run in missing} - units.keys()),
    )
    differences = provenance_differences([one.run for one in checked], same_arm=True)
    refused = differences.breaking + (differences.minor if context.strict else ())
    findings = [
        *(_mixed(text, size) for text in refused),
        *(_failed_without_rows(run, criteria) for run in failed),
        *_seed_numbers(len(outcomes), tally, missing, criteria, size),
    ]
    return SizeAssessment(
        size=size,
        checked=tuple(checked),
        seeds=tuple(outcomes),
        tally=tally,
        unfinished=len(unfinished),
        findings=tuple(findings),
        statements=tuple(_statements(checked, tally, len(unfinished), criteria, context, repeated=repeated)),
        notes=tuple(_notes(size, checked, () if context.strict else differences.minor, distinct_seeds=distinct_seeds)),
    )


def _seed_of(checked: CheckedRun, *, distinct_seeds: bool) -> object:
    """Return what stands for the seed of a run; runs of unknown seed are one, unless `distinct_seeds`."""
    return ("run", id(checked)) if checked.run.seed is None and distinct_seeds else checked.run.seed


def _seed_of_absent(run: AccountedRun) -> object:
    return ("run", run.run) if run.seed is None and run.state == "unreadable" else run.seed


def _of_seed(unit: Sequence[Outcome]) -> Outcome:
    """Return the outcome of the runs of one seed where a rate is judged.

    Undecided where only some failed: the more there are, the likelier one of them does.
    """
    return Outcome.INCONCLUSIVE if Outcome.REFUTED in unit and len(set(unit)) > 1 else strictest(unit)


def _notes(
    size: int | None, checked: Sequence[CheckedRun], differences: Sequence[str], *, distinct_seeds: bool
) -> Iterator[str]:
    unknown = sum(one.run.seed is None for one in checked)
    if unknown > 1 and not distinct_seeds:
        yield wording.one_unknown_seed(size, unknown)
    for text in differences:
        yield wording.minor_difference(size, text)


def _is_unfinished(checked: CheckedRun, criteria: Criteria) -> bool:
    label = criteria.finished.label
    return any(result.check == label and result.outcome is Outcome.INCONCLUSIVE for result in checked.completion)


def _finding(
    check: str, outcome: Outcome, reason: str, size: int | None, value: float | None = None, brief: str = ""
) -> CheckResult:
    return CheckResult(check=check, outcome=outcome, reason=reason, size=size, value=value, brief=brief or reason)


def _mixed(difference: str, size: int | None) -> CheckResult:
    brief = wording.mixed_briefly(difference)
    return _finding("provenance", Outcome.INVALID, wording.mixed(difference), size, brief=brief)


def _failed_without_rows(run: AccountedRun, criteria: Criteria) -> CheckResult:
    return CheckResult(
        check=criteria.finite.label,
        outcome=Outcome.REFUTED,
        reason=run.reason,
        brief="failed before the first evaluation",
        run=run.run,
        size=run.size,
        seed=run.seed,
    )


def _seed_numbers(
    count: int, tally: Tally, missing: Sequence[AccountedRun], criteria: Criteria, size: int | None
) -> Iterator[CheckResult]:
    if tally.total == 0:
        yield _finding("runs", Outcome.INCONCLUSIVE, "no run", size)
    if missing:
        states = dict.fromkeys(run.state for run in missing)
        counts = [(state, [run.label for run in missing if run.state == state]) for state in states]
        listed = ", ".join(f"{len(names)} {state}" for state, names in counts)
        brief = f"{listed} of {plural(tally.total, 'planned seed')}"
        yield _finding("planned runs", Outcome.INCONCLUSIVE, wording.absent(counts, tally.total), size, brief=brief)
    if criteria.seeds.rule == "every" and 0 < count < criteria.seeds.min_seeds:
        text = f"{count} of at least {criteria.seeds.min_seeds} seeds"
        yield _finding("seeds", Outcome.INCONCLUSIVE, text, size, float(count))


def _statements(
    checked: Sequence[CheckedRun],
    tally: Tally,
    unfinished: int,
    criteria: Criteria,
    context: CheckContext,
    *,
    repeated: bool,
) -> Iterator[Statement]:
    if criteria.seeds.rule != "rate":
        return
    yield _failure_rate(tally, unfinished, criteria.seeds.max_failure_rate)
    seeds = Seeds(checked=checked, planned=tally.total, repeated=repeated)
    for check in criteria.checks:
        if check.about_arm:
            statement = check.judge_seeds(seeds, context)
            if statement is not None:
                yield statement


def _at_the_end(tally: Tally, unfinished: int) -> Tally:
    """Count the seeds that may still be decided as absent."""
    return replace(tally, undecided=tally.undecided - unfinished, absent=tally.absent + unfinished)


def _deciding_numbers(assessment: SizeAssessment, limit: float, levels: Levels) -> Statistics:
    """Return how many of the planned seeds have to be healthy, and with how many seeds a decision becomes possible."""
    ended = _at_the_end(assessment.tally, assessment.unfinished)
    level = min(levels.supporting, levels.refuting)
    support, refute = seeds_to_decide(ended, limit, level)
    return {
        "healthy_needed": healthy_needed(ended.total, limit, levels.supporting),
        "fewest_seeds": seeds_to_decide(Tally(), limit, level)[0],
        "seeds_to_support": support,
        "seeds_to_refute": refute,
    }


def _failure_rate(tally: Tally, unfinished: int, limit: float) -> Statement:
    """Return the statement about the fraction of seeds that fail; `unfinished` of the undecided ones may be decided."""
    ended = _at_the_end(tally, unfinished)

    def describe(outcome: Outcome, levels: Levels) -> str:
        lower, upper = _rate_bounds(tally, levels)
        if outcome is Outcome.SUPPORTED:
            return wording.rate_supported(tally, upper, levels.supporting, limit)
        if outcome is Outcome.REFUTED:
            return wording.rate_refuted(tally, lower, levels.refuting, limit)
        support, refute = seeds_to_decide(ended, limit, min(levels.supporting, levels.refuting))
        return wording.rate_open(
            tally, lower, upper, limit, support=support or 0, refute=refute or 0, unfinished=unfinished
        )

    return Statement(
        check=RATE,
        p=failure_rate_test(tally, limit) if tally.total else UNDECIDABLE,
        describe=describe,
        value=tally.unhealthy / tally.total if tally.total else None,
        supports=f"< {wording.percent(limit)}",
        refutes=f"> {wording.percent(limit)}",
    )


def _rate_bounds(tally: Tally, levels: Levels) -> tuple[float, float]:
    """Return the least and the largest failure rate that stay open; 0 and 1 without a seed."""
    lower = rate_lower(tally.unhealthy, tally.total, 1 - levels.refuting)
    upper = rate_upper(tally.not_healthy, tally.total, 1 - levels.supporting)
    return lower or 0.0, 1.0 if upper is None else upper


def judge_size(assessment: SizeAssessment, criteria: Criteria, levels: Levels) -> SizeJudgement:
    """Judge one size at its levels: those of the arm, that for refutation shared by its sizes."""
    over_seeds = list(assessment.findings)
    deciding: Statistics = {}
    pairs: Statistics = {}
    if criteria.seeds.rule == "every":
        outcome = _by_every(assessment)
    else:
        each = levels.shared(len(assessment.statements))
        over_seeds += [statement.result(assessment.size, each) for statement in assessment.statements]
        pairs = {one.check: one.statistics(each) for one in assessment.statements if one.statistics is not None}
        outcome = _by_rate(assessment, levels)
        deciding = _deciding_numbers(assessment, criteria.seeds.max_failure_rate, each)
    thresholds = [check for check in criteria.checks if isinstance(check, ThresholdCheck)]
    described = {check.label: _statistics(check, assessment, criteria) for check in thresholds}
    tally = assessment.tally
    lower, upper = _rate_bounds(tally, levels)
    return SizeJudgement(
        size=assessment.size,
        outcome=outcome,
        results=(*(result for one in assessment.checked for result in one.results), *over_seeds),
        notes=assessment.notes,
        statistics={
            "size": assessment.size,
            "runs": len(assessment.checked),
            "seeds": tally.total,
            **vars(tally),
            "unfinished": assessment.unfinished,
            "failure_rate_at_least": lower,
            "failure_rate_at_most": upper,
            "level_of_support": levels.supporting,
            "level_of_refutation": levels.refuting,
            "p_of_support": assessment.p.supporting if assessment.statements else None,
            "p_of_refutation": assessment.p.refuting if assessment.statements else None,
            **deciding,
            "levels": described,
            "pairs": pairs,
        },
        failure_rate=_failure_rate_text(tally, outcome, levels) if tally.total else None,
    )


def _failure_rate_text(tally: Tally, outcome: Outcome, levels: Levels) -> tuple[float, str]:
    """Return the least failure rate that failed seeds of a refuted size show, else the largest that is left open."""
    lower, upper = _rate_bounds(tally, levels)
    if outcome is Outcome.REFUTED and tally.unhealthy:
        return lower, wording.rate_shown(tally, lower, levels.refuting)
    least = ""
    if tally.unhealthy and outcome is not Outcome.SUPPORTED:
        own_level = "" if levels.refuting == levels.supporting else f" ({wording.bound(levels.refuting)})"
        least = f"{wording.percent(lower)}{own_level}"
    return upper, wording.rate_left_open(tally, upper, levels.supporting, least)


def _by_every(assessment: SizeAssessment) -> Outcome:
    """Let the strictest seed decide; runs that are no seeds of one arm decide nothing."""
    findings = [finding.outcome for finding in assessment.findings]
    decide = outcome_of_run if Outcome.INVALID in findings else strictest
    return decide([*assessment.seeds, *findings])


def _by_rate(assessment: SizeAssessment, levels: Levels) -> Outcome:
    findings = {finding.outcome for finding in assessment.findings if finding.run is None}
    if Outcome.INVALID in findings:
        return Outcome.INVALID
    if assessment.p.refuting < levels.refuting:
        return Outcome.REFUTED
    if any(one.outcome is Outcome.INVALID for one in assessment.checked):
        return Outcome.INVALID
    return Outcome.SUPPORTED if assessment.p.supporting < levels.supporting else Outcome.INCONCLUSIVE


def _statistics(check: ThresholdCheck, assessment: SizeAssessment, criteria: Criteria) -> Statistics:
    """Return the value of each run, their mean, and the one-sided Student bound of the mean; they describe only.

    Mean and bound are None where a value is unknown.
    """
    values = [one.value(check.label) for one in assessment.checked]
    known = [value for value in values if value is not None]
    complete = 0 < len(known) == len(values)
    side: Any = "low" if check.higher_is_better else "high"
    return {
        **check.condition,
        "values": values,
        "mean": sum(value / len(known) for value in known) if complete else None,
        "student_bound_of_mean": mean_bound(known, side, criteria.seeds.confidence) if complete else None,
    }
