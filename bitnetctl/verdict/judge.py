"""Judge the runs of one arm, or of each arm, by criteria."""

import functools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from bitnetctl.errors import ConfigError
from bitnetctl.records import Run
from bitnetctl.records.distinct import Double, distinct_runs
from bitnetctl.records.inventory import Inventory
from bitnetctl.records.provenance import provenance_differences
from bitnetctl.units import shortened
from bitnetctl.verdict import decidable, wording
from bitnetctl.verdict.accounting import STATES, Account, take_account
from bitnetctl.verdict.checks.base import CheckContext
from bitnetctl.verdict.checks.completion import torn_end
from bitnetctl.verdict.criteria import Criteria
from bitnetctl.verdict.limits import limits
from bitnetctl.verdict.options import JudgeOptions
from bitnetctl.verdict.outcome import CheckedRun, CheckResult, Outcome, RunVerdict, Verdict, strictest
from bitnetctl.verdict.rule import Levels, holm_levels
from bitnetctl.verdict.seeds import SizeAssessment, SizeJudgement, assess_size, judge_size

UNKNOWN_ARM = "unknown"
"""Label of runs whose arm is unknown, such as the founding document's own files."""


@dataclass(frozen=True, kw_only=True)
class _ArmAssessment:
    """One arm before its levels are known."""

    account: Account
    kept: tuple[Run, ...]
    sizes: tuple[SizeAssessment, ...]

    @property
    def checked(self) -> list[CheckedRun]:
        return [one for size in self.sizes for one in size.checked]


def arm_label(arm: str) -> str:
    """Return an arm as a heading names it; that of runs without one must not be taken for a name."""
    return "arm unknown" if arm == UNKNOWN_ARM else arm


def judge_arms(
    runs: Sequence[Run],
    criteria: Criteria,
    options: JudgeOptions | None = None,
    *,
    arms: Sequence[str] | None = None,
    inventory: Inventory | None = None,
) -> dict[str, Verdict]:
    """Judge every arm, or those of `arms`; twins and partners are looked up among all runs.

    The arms share one error rate, together with every other arm that was planned or trained with them (`inventory`).
    An arm that the criteria only compare others with gets no verdict.
    """
    options, inventory = options or JudgeOptions(), inventory or Inventory()
    distinct, doubles = distinct_runs(runs)
    by_arm: dict[str, list[Run]] = {arm: [] for arm in arms or ()}
    for run in distinct:
        by_arm.setdefault(run.arm or UNKNOWN_ARM, []).append(run)
    for absent in inventory.absent if arms is None else ():
        if absent.arm is not None or not by_arm:
            by_arm.setdefault(absent.arm or UNKNOWN_ARM, [])
    together = [arm for arm in dict.fromkeys([*by_arm, *inventory.arms]) if not criteria.is_reference(arm)]
    context = _context(criteria, options, distinct, inventory)
    assessed = {
        arm: _assess(
            arm,
            by_arm[arm],
            [one for one in doubles if (one.same_as.arm or UNKNOWN_ARM) == arm],
            criteria,
            options,
            inventory,
            context,
        )
        for arm in together
        if arm in by_arm
    }
    alpha = criteria.seeds.error_rate
    levels = _levels(assessed, alpha, len(together) if criteria.seeds.rule == "rate" else 0)
    compared = [run for one in assessed.values() for run in one.kept]
    unequal = _unequal_arms([*compared, *(run for run in distinct if run.arm and criteria.is_reference(run.arm))])
    judged = (arm for arm in (by_arm if arms is None else arms) if arm in assessed)
    return {
        arm: _verdict(
            arm,
            assessed[arm],
            criteria,
            options,
            levels[arm],
            len(together),
            (*_beside(arm, assessed[arm], inventory), *unequal),
        )
        for arm in judged
    }


def judge(
    runs: Sequence[Run],
    criteria: Criteria,
    options: JudgeOptions | None = None,
    *,
    arm: str | None = None,
    inventory: Inventory | None = None,
) -> Verdict:
    """Judge the runs of one arm; raises ConfigError for runs of several arms, and of one that only others refer to."""
    # a renamed copy is no second arm
    arms = sorted({run.arm or UNKNOWN_ARM for run in distinct_runs(runs)[0]})
    if len(arms) > 1:
        raise ConfigError(f"runs of several arms cannot share a verdict: {', '.join(arms)}")
    name = arm or (arms[0] if arms else UNKNOWN_ARM)
    verdicts = judge_arms(runs, criteria, options, arms=[name], inventory=inventory)
    if name not in verdicts:
        raise ConfigError(f"criteria {criteria.name} compare others with the arm {name} and claim nothing about it")
    return verdicts[name]


def _context(
    criteria: Criteria, options: JudgeOptions, candidates: Sequence[Run], inventory: Inventory
) -> CheckContext:
    # without candidates: a twin is not compared with a twin of its own
    alone = CheckContext(requested_steps=options.requested_steps, strict=options.strict, check_twin=_no_twin)
    return CheckContext(
        requested_steps=options.requested_steps,
        candidates=candidates,
        not_given=[*inventory.others, *(one for one in inventory.absent if one.state in ("left out", "unreadable"))],
        strict=options.strict,
        check_twin=functools.cache(lambda twin: check_run(twin, criteria, alone)),
    )


def _no_twin(run: Run) -> CheckedRun:
    raise AssertionError(f"{run.name}: the twin of a twin is not judged")


def _assess(
    arm: str,
    runs: Sequence[Run],
    doubles: Sequence[Double],
    criteria: Criteria,
    options: JudgeOptions,
    inventory: Inventory,
    context: CheckContext,
) -> _ArmAssessment:
    kept, account = take_account(arm, runs, doubles, inventory, options)
    by_size: dict[int | None, list[CheckedRun]] = {size: [] for size in options.sizes or ()}
    for run in kept:
        by_size.setdefault(run.size, []).append(check_run(run, criteria, context))
    for accounted in account.runs:
        if accounted.state in ("failed", "unreadable", "unfinished", "missing") and not options.sizes:
            if accounted.may_be_any_size and by_size:
                continue
            by_size.setdefault(accounted.size, [])
    return _ArmAssessment(
        account=account,
        kept=tuple(kept),
        sizes=tuple(
            assess_size(size, checked, account.absent(size), criteria, context, distinct_seeds=options.distinct_seeds)
            for size, checked in by_size.items()
        ),
    )


def _levels(assessed: Mapping[str, _ArmAssessment], alpha: float, arms: int) -> dict[str, Levels]:
    """Return the levels of every arm by Holm's method, for support and for refutation each.

    An arm is supported where each of its sizes is, and refuted where one of them is, which its sizes share. `arms` is
    the number of all arms that share the error rate, 0 where none is promised.
    """
    if not arms:
        return dict.fromkeys(assessed, Levels(alpha, alpha))
    supporting, refuting = [], []
    for one in assessed.values():
        sizes = [size.p for size in one.sizes]
        supporting.append(max((p.supporting for p in sizes), default=1.0))
        refuting.append(min(1.0, len(sizes) * min((p.refuting for p in sizes), default=1.0)))
    levels = zip(holm_levels(supporting, alpha, arms), holm_levels(refuting, alpha, arms), strict=True)
    return {
        arm: Levels(for_support, for_refutation).shared(max(1, len(one.sizes)))
        for (arm, one), (for_support, for_refutation) in zip(assessed.items(), levels, strict=True)
    }


def _unequal_arms(runs: Sequence[Run]) -> tuple[str, ...]:
    if len({run.arm for run in runs}) < 2:
        return ()
    differences = provenance_differences(runs, same_arm=False)
    return tuple(wording.unequal_arms(text) for text in (*differences.breaking, *differences.minor))


def _beside(arm: str, assessment: _ArmAssessment, inventory: Inventory) -> Iterator[str]:
    """Yield notes on files beside the given ones that are no seeds of what is judged."""
    judged = {size.size for size in assessment.sizes}
    sizes = Counter(one.size for one in inventory.others if one.arm == arm and one.size not in (*judged, None))
    if sizes:
        yield wording.other_sizes(arm, sizes)
    if inventory.unnamed and any(run.arm is None or run.seed is None for run in assessment.kept):
        yield wording.unnamed_files(inventory.unnamed)


def _verdict(
    arm: str,
    assessment: _ArmAssessment,
    criteria: Criteria,
    options: JudgeOptions,
    levels: Levels,
    arms: int,
    of_the_set: Sequence[str],
) -> Verdict:
    judged = [judge_size(size, criteria, levels) for size in assessment.sizes]
    outcome = strictest(size.outcome for size in judged)
    finished = [one.run for one in assessment.checked if _is_finished(one, criteria)]
    alpha = criteria.seeds.error_rate
    by_rate = criteria.seeds.rule == "rate"
    planned = assessment.account.to_json()
    looks = decidable.looks(assessment.account, criteria)
    counted = max((numbers for _, numbers in looks), key=len, default=())
    notes = [
        *map(wording.not_judged, planned["runs"]),
        *(note for size in judged for note in size.notes),
        *of_the_set,
        *([wording.shared_alpha(arms, alpha)] if by_rate and arms > 1 else []),
        *(wording.looks(size, numbers, alpha) for size, numbers in looks if len(numbers) > 1),
        *_rule_notes(criteria),
        *_evidence_notes(criteria, finished, options.requested_steps),
        *_notes_of_runs(assessment.kept, criteria),
    ]
    return Verdict(
        outcome=outcome,
        arm=arm,
        criteria=criteria.name,
        criteria_hash=criteria.hash,
        sizes={size.size: size.outcome for size in judged},
        runs=tuple(map(_run_verdict, assessment.checked)),
        results=tuple(result for size in judged for result in size.results),
        reasons=_reasons(outcome, judged) or ("no run to judge",),
        notes=tuple(dict.fromkeys(notes)),
        evidence=_evidence(criteria, finished),
        failure_rate=_failure_rate(outcome, judged, by_rate=by_rate),
        account=wording.account([(state, assessment.account.count(state)) for state in STATES], arm_label(arm)),
        planned=planned,
        rule={
            **criteria.seeds.model_dump(mode="json"),
            "arms": arms,
            "looks": len(counted) or 1,
            "planned_numbers": counted,
        },
        statistics=tuple(size.statistics for size in judged),
    )


def _failure_rate(outcome: Outcome, judged: Sequence[SizeJudgement], *, by_rate: bool) -> str:
    """Return the sentence on the failure rate of the decisive size; empty without a run."""
    decisive = [size.failure_rate for size in judged if size.outcome is outcome and size.failure_rate]
    _, text = max(decisive, default=(0.0, ""))
    return text if by_rate or not text else f"{text}; {wording.NO_RATE}"


def check_run(run: Run, criteria: Criteria, context: CheckContext) -> CheckedRun:
    """Return the results of every check that applies to a run.

    The setup is judged on any run whose file is not cut short, its metrics on completed runs only, since a collapse in
    the middle of training may be part of the claim.
    """
    completion = tuple(
        check.result(run, finding)
        for check in criteria.checks
        if check.about_completion and (finding := check.judge(run, context))
    )
    if torn_end(run) is not None:
        return CheckedRun(run=run, completion=completion, others=())
    completed = all(result.outcome is Outcome.SUPPORTED for result in completion)
    others = []
    for check in (check for check in criteria.checks if not check.about_completion):
        finding = check.judge_setup(run)
        if finding is None and completed:
            finding = check.judge(run, context)
        if finding is not None:
            others.append(check.result(run, finding))
    return CheckedRun(run=run, completion=completion, others=tuple(others))


def _run_verdict(checked: CheckedRun) -> RunVerdict:
    run = checked.run
    ceiling = limits(run, "UniquePredictions")
    return RunVerdict(
        run=run.name,
        size=run.size,
        seed=run.seed,
        outcome=checked.outcome,
        reason="; ".join(_run_reasons(checked)),
        final_step=run.final_step,
        final_unique=run.column("UniquePredictions")[-1],
        ceiling=ceiling.high,
        ceiling_inferred=ceiling.inferred,
    )


def _run_reasons(checked: CheckedRun) -> list[str]:
    """Return the reasons of the decisive checks; of a supported run, those with thresholds only."""
    decisive = [result for result in checked.results if result.outcome is checked.outcome]
    levels = [result.reason for result in decisive if result.supports is not None]
    return levels if checked.outcome is Outcome.SUPPORTED and levels else [result.reason for result in decisive]


def _is_finished(checked: CheckedRun, criteria: Criteria) -> bool:
    label = criteria.finished.label
    return any(result.check == label and result.outcome is Outcome.SUPPORTED for result in checked.completion)


def _evidence(criteria: Criteria, finished: Sequence[Run]) -> str | None:
    """Return the highest declared level whose runs are all present and finished."""
    if not criteria.evidence:
        return None
    if not finished:
        return "none"
    return next((level.level for level in reversed(criteria.evidence) if level.is_reached(finished)), "scaled")


def _rule_notes(criteria: Criteria) -> Iterator[str]:
    """Yield a note on a rule that is not judged as it was written."""
    if criteria.seeds.was_share:
        yield (
            'seeds.rule = "share" controlled no error rate and is judged as "rate" with max_failure_rate = '
            f"{criteria.seeds.max_failure_rate:g}"
        )


def _evidence_notes(criteria: Criteria, finished: Sequence[Run], requested_steps: int | None) -> Iterator[str]:
    """Yield notes on steps and sizes other than those that the criteria require."""
    least = criteria.finished.min_steps
    if least is not None and requested_steps is not None and requested_steps < least:
        yield f"judged at {requested_steps:,} steps instead of {criteria.name}'s {least:,}: a scaled-down replication"
    sizes = sorted({run.size for level in criteria.evidence for run in level.runs})
    if sizes and finished and not any(run.size in sizes for run in finished):
        yield f"none of the sizes that {criteria.name} names ({', '.join(map(str, sizes))}) is judged"


def _notes_of_runs(runs: Sequence[Run], criteria: Criteria) -> Iterator[str]:
    """Yield the notes on single runs, each once with the runs that it is about."""
    names: dict[str, list[str]] = {}
    for run in runs:
        for note in _run_notes(run, criteria):
            names.setdefault(note, []).append(run.name)
    for note, of_runs in names.items():
        yield f"{shortened(of_runs, 3)}: {note}"


def _run_notes(run: Run, criteria: Criteria) -> list[str]:
    notes = list(run.records.notes)
    possible = limits(run, "UniquePredictions")
    if "UniquePredictions" in criteria.measures and possible.high is None and possible.damaged is None:
        notes.append("the ceiling of UniquePredictions is unknown, and so is whether its threshold can be met")
    return notes


def _reasons(outcome: Outcome, judged: Sequence[SizeJudgement]) -> tuple[str, ...]:
    """Return the reasons of the decisive checks, each with its run or size where there are several."""
    decisive = [
        result for size in judged if size.outcome is outcome for result in size.results if result.outcome is outcome
    ]
    if outcome is Outcome.SUPPORTED:
        over_seeds = [result for result in decisive if result.run is None]
        decisive = over_seeds or [result for result in decisive if result.supports is not None]
    # what is said over seeds comes first
    decisive.sort(key=lambda result: result.run is not None)
    several = len({(result.size, result.seed, result.run) for size in judged for result in size.results}) > 1
    return tuple(dict.fromkeys((_prefix(result) if several else "") + result.reason for result in decisive))


def _prefix(result: CheckResult) -> str:
    """Return the text in front of a reason that names the run or size of the result."""
    size = "" if result.size is None else f"hidden {result.size}"
    if result.run is None:
        return f"{size}: " if size else ""
    seed = "" if result.seed is None else f"seed {result.seed}"
    return f"{', '.join(filter(None, (size, seed))) or result.run}: "
