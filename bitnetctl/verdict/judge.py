"""Judge the runs of one arm, or of each arm, by criteria."""

from collections.abc import Iterable, Iterator, Sequence

from bitnetctl.analysis.stats import rate_lower, rate_upper
from bitnetctl.errors import ConfigError
from bitnetctl.records import Run
from bitnetctl.units import plural
from bitnetctl.verdict.checks.base import CheckContext
from bitnetctl.verdict.checks.completion import torn_end
from bitnetctl.verdict.criteria import Criteria
from bitnetctl.verdict.limits import limits
from bitnetctl.verdict.outcome import CheckedRun, CheckResult, Outcome, RunVerdict, Verdict, strictest
from bitnetctl.verdict.seeds import SizeJudgement, judge_size

UNKNOWN_ARM = "unknown"
"""Label of runs whose arm is unknown, such as the founding document's own files."""


def judge_arms(
    runs: Sequence[Run],
    criteria: Criteria,
    *,
    arms: Sequence[str] | None = None,
    sizes: Sequence[int] | None = None,
    seeds: Sequence[int] | None = None,
    requested_steps: int | None = None,
) -> dict[str, Verdict]:
    """Judge every arm, or those of `arms`; twins are looked up among all runs."""
    by_arm: dict[str, list[Run]] = {arm: [] for arm in arms or ()}
    for run in runs:
        by_arm.setdefault(run.arm or UNKNOWN_ARM, []).append(run)
    return {
        arm: judge(
            by_arm[arm], criteria, arm=arm, sizes=sizes, seeds=seeds, requested_steps=requested_steps, twins=runs
        )
        for arm in (by_arm if arms is None else arms)
    }


def judge(
    runs: Sequence[Run],
    criteria: Criteria,
    *,
    arm: str | None = None,
    sizes: Sequence[int] | None = None,
    seeds: Sequence[int] | None = None,
    requested_steps: int | None = None,
    twins: Sequence[Run] = (),
) -> Verdict:
    """Judge the runs of one arm.

    `sizes` and `seeds` are those requested: one without a run is inconclusive, other runs are left out with a note.
    `requested_steps`, if given, replaces the steps that the criteria require, with a note.
    `twins` are runs among which twins are looked up. Raises ConfigError for runs of several arms.
    """
    arms = sorted({run.arm or UNKNOWN_ARM for run in runs})
    if len(arms) > 1:
        raise ConfigError(f"runs of several arms cannot share a verdict: {', '.join(arms)}")
    distinct, repeated = _distinct(runs)
    kept, left_out = _select(distinct, sizes, seeds)
    checked = [check_run(run, criteria, requested_steps=requested_steps, candidates=twins) for run in kept]
    by_size: dict[int | None, list[CheckedRun]] = {size: [] for size in sizes or ()}
    for one in checked:
        by_size.setdefault(one.run.size, []).append(one)
    judged = [judge_size(size, of_size, criteria, seeds) for size, of_size in by_size.items()]
    outcome = strictest(size.outcome for size in judged)
    finished = [one.run for one in checked if _is_finished(one, criteria)]
    notes = [
        *repeated,
        *left_out,
        *(note for size in judged for note in size.notes),
        *_evidence_notes(criteria, finished, requested_steps),
        *(f"{run.name}: {note}" for run in kept for note in _run_notes(run, criteria)),
    ]
    return Verdict(
        outcome=outcome,
        arm=arm or (arms[0] if arms else UNKNOWN_ARM),
        criteria=criteria.name,
        criteria_hash=criteria.hash,
        sizes={size.size: size.outcome for size in judged},
        runs=tuple(map(_run_verdict, checked)),
        results=tuple(result for size in judged for result in size.results),
        reasons=_reasons(outcome, judged) or ("no run to judge",),
        notes=tuple(dict.fromkeys(notes)),
        evidence=_evidence(criteria, finished),
        confidence=_confidence(outcome, judged),
        statistics=tuple(size.statistics for size in judged),
    )


def check_run(
    run: Run, criteria: Criteria, *, requested_steps: int | None = None, candidates: Sequence[Run] = ()
) -> CheckedRun:
    """Return the results of every check that applies.

    The setup is judged on any run whose file is not cut short, its metrics on completed runs only, since a collapse in
    the middle of training may be part of the claim. `candidates` are runs among which twins are looked up.
    """
    context = CheckContext(
        requested_steps=requested_steps,
        candidates=candidates,
        # without candidates: a twin is not compared with a twin of its own
        check_twin=lambda twin: check_run(twin, criteria, requested_steps=requested_steps),
    )
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


def _distinct(runs: Iterable[Run]) -> tuple[list[Run], list[str]]:
    """Return runs with distinct values, and a note on each other one: copies must not count as several seeds."""
    kept: list[Run] = []
    notes: list[str] = []
    first: dict[tuple[int | None, tuple[bytes, ...]], Run] = {}
    for run in runs:
        same = first.setdefault((run.size, _values_key(run)), run)
        if same is run and run not in kept:
            kept.append(run)
        else:
            notes.append(f"{run.path} holds the same values as {same.path} and is left out")
    return kept, notes


def _values_key(run: Run) -> tuple[bytes, ...]:
    """Return the bytes of every column but TokensPerSecond."""
    frame = run.records.frame
    return tuple(f"{name} ".encode() + frame[name].to_numpy().tobytes() for name in frame if name != "TokensPerSecond")


def _select(
    runs: Iterable[Run], sizes: Sequence[int] | None, seeds: Sequence[int] | None
) -> tuple[list[Run], list[str]]:
    """Return the runs of the requested sizes and seeds, and a note for each other one."""
    kept: list[Run] = []
    notes: list[str] = []
    for run in runs:
        if sizes is not None and run.size is None:
            notes.append(
                f"{run.path}: its size is unknown, so it counts for none of those requested; name it like "
                "h256-run.csv, or give it a title line such as 'hidden 256'"
            )
        elif sizes is not None and run.size not in sizes:
            notes.append(f"{run.path}: hidden {run.size} was not requested and is left out")
        elif seeds is not None and run.seed is not None and run.seed not in seeds:
            notes.append(f"{run.path}: seed {run.seed} was not requested and is left out")
        else:
            kept.append(run)
    return kept, notes


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


def _evidence_notes(criteria: Criteria, finished: Sequence[Run], requested_steps: int | None) -> Iterator[str]:
    """Yield notes on steps and sizes other than those that the criteria require."""
    least = criteria.finished.min_steps
    if least is not None and requested_steps is not None and requested_steps < least:
        yield f"judged at {requested_steps:,} steps instead of {criteria.name}'s {least:,}: a scaled-down replication"
    sizes = sorted({run.size for level in criteria.evidence for run in level.runs})
    if sizes and finished and not any(run.size in sizes for run in finished):
        yield f"none of the sizes that {criteria.name} names ({', '.join(map(str, sizes))}) is judged"


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
    several = len({(result.size, result.seed, result.run) for size in judged for result in size.results}) > 1
    return tuple(dict.fromkeys((_prefix(result) if several else "") + result.reason for result in decisive))


def _prefix(result: CheckResult) -> str:
    """Return the text in front of a reason that names the run or size of the result."""
    size = "" if result.size is None else f"hidden {result.size}"
    if result.run is None:
        return f"{size}: " if size else ""
    seed = "" if result.seed is None else f"seed {result.seed}"
    return f"{', '.join(filter(None, (size, seed))) or result.run}: "


def _confidence(outcome: Outcome, judged: Sequence[SizeJudgement]) -> str:
    """Describe the Clopper-Pearson bound that the number of seeds gives on the failure rate."""
    if outcome is Outcome.SUPPORTED:
        count = min(size.total for size in judged)
        bound = rate_upper(0, count)
        assert bound is not None, "supported without a run"
        uncertainty, rate = bound, f"no failure in {plural(count, 'seed')} leaves a failure rate of up to"
    elif outcome is Outcome.REFUTED:
        bounds = [(rate_lower(size.failed, size.total) or 0.0, size.failed, size.total) for size in judged]
        bound, failed, count = max(bounds)
        uncertainty, rate = 1 - bound, f"{failed} of {plural(count, 'seed')} failed, a failure rate of at least"
    else:
        return "none: nothing was decided"
    word = "low" if uncertainty > 0.5 else "moderate" if uncertainty > 0.3 else "high"
    return f"{word}: {rate} {100 * bound:.0f} % (one-sided 95 % bound)"
