"""From runs and criteria to a verdict for one arm, for each arm, and for several criteria together."""

from collections.abc import Iterable, Sequence

from bitnetctl.analysis.stats import rate_lower, rate_upper
from bitnetctl.errors import ConfigError
from bitnetctl.records import Run
from bitnetctl.verdict.criteria import Criteria
from bitnetctl.verdict.limits import limits
from bitnetctl.verdict.outcome import CheckResult, Outcome, RunVerdict, Verdict, outcome_of_run, strictest
from bitnetctl.verdict.run import Setting, check_run, steps_required
from bitnetctl.verdict.seeds import _Findings, _judge_size

UNKNOWN_ARM = "unknown"
"""Label of runs that say nothing of their arm, such as the founding document's own files."""


def judge_arms(
    runs: Sequence[Run],
    criteria: Criteria,
    *,
    arms: Sequence[str] | None = None,
    sizes: Sequence[int] | None = None,
    seeds: Sequence[int] | None = None,
    requested_steps: int | None = None,
) -> dict[str, Verdict]:
    """Judge every arm, or those of `arms`; twins are found among all runs."""
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

    `sizes` and `seeds` are those asked for: one without a run is inconclusive, other runs are left out with a note.
    `requested_steps` are steps asked for explicitly; they replace the steps that the criteria ask for, with a note.
    `twins` are runs among which twins may be found. Raises ConfigError for runs of several arms.
    """
    found = sorted({run.arm or UNKNOWN_ARM for run in runs})
    if len(found) > 1:
        raise ConfigError(f"runs of several arms cannot share a verdict: {', '.join(found)}")
    findings = _Findings()
    setting = Setting(requested_steps=requested_steps, candidates=twins)
    kept = _select(_distinct(runs, findings.notes), sizes, seeds, findings.notes)
    checked = [(run, check_run(run, criteria, setting)) for run in kept]
    verdicts = tuple(_run_verdict(run, results) for run, results in checked)
    by_size: dict[int | None, list[tuple[Run, list[CheckResult]]]] = {size: [] for size in sizes or ()}
    for run, results in checked:
        by_size.setdefault(run.size, []).append((run, results))
    for size, members in by_size.items():
        _judge_size(size, members, criteria, seeds, findings)
    outcome = strictest(findings.sizes.values())
    evidence = _evidence(criteria, checked, requested_steps, findings.notes)
    for run, _ in checked:
        findings.notes += [f"{run.name}: {note}" for note in _run_notes(run, criteria)]
    return Verdict(
        outcome=outcome,
        arm=arm or (found[0] if found else UNKNOWN_ARM),
        criteria=criteria.name,
        criteria_hash=criteria.hash,
        sizes=findings.sizes,
        runs=verdicts,
        results=tuple(findings.results),
        reasons=_reasons(outcome, findings) or ("no run to judge",),
        notes=tuple(dict.fromkeys(findings.notes)),
        evidence=evidence,
        confidence=_confidence(outcome, findings.seeds),
        figures=tuple(findings.figures),
    )


def _distinct(runs: Iterable[Run], notes: list[str]) -> list[Run]:
    """Leave out what is the same run again: a copied file, or a seed that decides nothing, is no second seed."""
    kept: list[Run] = []
    first: dict[tuple[int | None, tuple[bytes, ...]], Run] = {}
    for run in runs:
        same = first.setdefault((run.size, _values_key(run)), run)
        if same is run and run not in kept:
            kept.append(run)
        else:
            notes.append(f"{run.path} holds the same figures as {same.path} and is left out")
    return kept


def _values_key(run: Run) -> tuple[bytes, ...]:
    """Return all that a run shows but its speed, to the last digit."""
    frame = run.records.frame
    return tuple(f"{name} ".encode() + frame[name].to_numpy().tobytes() for name in frame if name != "TokensPerSecond")


def _select(
    runs: Sequence[Run], sizes: Sequence[int] | None, seeds: Sequence[int] | None, notes: list[str]
) -> list[Run]:
    kept = []
    for run in runs:
        if sizes is not None and run.size is None:
            notes.append(
                f"{run.path}: its size is unknown, so it counts for none of those asked for; name it like "
                "h256-run.csv, or give it a title line such as 'hidden 256'"
            )
        elif sizes is not None and run.size not in sizes:
            notes.append(f"{run.path}: hidden {run.size} was not asked for and is left out")
        elif seeds is not None and run.seed is not None and run.seed not in seeds:
            notes.append(f"{run.path}: seed {run.seed} was not asked for and is left out")
        else:
            kept.append(run)
    return kept


def _run_verdict(run: Run, results: Sequence[CheckResult]) -> RunVerdict:
    outcome = outcome_of_run(result.outcome for result in results)
    ceiling = limits(run, "UniquePredictions")
    return RunVerdict(
        run=run.name,
        size=run.size,
        seed=run.seed,
        outcome=outcome,
        reason="; ".join(_telling(outcome, results)),
        final_step=run.final_step,
        final_unique=run.column("UniquePredictions")[-1],
        ceiling=ceiling.high,
        ceiling_inferred=ceiling.inferred,
    )


def _telling(outcome: Outcome, results: Sequence[CheckResult]) -> list[str]:
    """Return the reasons of what decided; for what is supported the levels, the rest being a matter of course."""
    decisive = [result for result in results if result.outcome is outcome]
    levels = [result.reason for result in decisive if result.supports is not None]
    return levels if outcome is Outcome.SUPPORTED and levels else [result.reason for result in decisive]


def _evidence(
    criteria: Criteria,
    checked: Sequence[tuple[Run, list[CheckResult]]],
    requested_steps: int | None,
    notes: list[str],
) -> str | None:
    """Return the highest declared level whose runs are all there and finished."""
    check = criteria.finished
    required = steps_required(check, requested_steps)
    if check.min_steps is not None and required is not None and required < check.min_steps:
        notes.append(f"judged at {required:,} steps instead of {criteria.name}'s {check.min_steps:,}: scaled replica")
    if not criteria.evidence:
        return None
    finished = [
        run
        for run, results in checked
        if any(item.check == check.label and item.outcome is Outcome.SUPPORTED for item in results)
    ]
    if not finished:
        return "none"
    reached = [
        level.level
        for level in criteria.evidence
        if all(
            any(run.size == wanted.size and run.final_step >= wanted.steps for run in finished) for wanted in level.runs
        )
    ]
    if reached:
        return reached[-1]
    wanted_sizes = sorted({wanted.size for level in criteria.evidence for wanted in level.runs})
    if not any(run.size in wanted_sizes for run in finished):
        notes.append(f"none of the sizes that {criteria.name} names ({', '.join(map(str, wanted_sizes))}) is judged")
    return "scaled"


def _run_notes(run: Run, criteria: Criteria) -> list[str]:
    notes = list(run.records.notes)
    reach = limits(run, "UniquePredictions")
    if "UniquePredictions" in criteria.measures and reach.high is None and reach.damaged is None:
        notes.append("the ceiling of UniquePredictions is unknown, and so is whether its threshold can be met")
    return notes


def _reasons(outcome: Outcome, findings: _Findings) -> tuple[str, ...]:
    """Return what decided, each with the run or size where there are several."""
    decisive = [result for result in findings.results if result.outcome is outcome]
    decisive = [result for result in decisive if findings.sizes[result.size] is outcome]
    if outcome is Outcome.SUPPORTED:
        over_seeds = [result for result in decisive if result.run is None]
        decisive = over_seeds or [result for result in decisive if result.supports is not None]
    several = len({(result.size, result.seed, result.run) for result in findings.results}) > 1
    return tuple(dict.fromkeys(f"{_place(result)}{result.reason}" if several else result.reason for result in decisive))


def _place(result: CheckResult) -> str:
    size = "" if result.size is None else f"hidden {result.size}"
    if result.run is None:
        return f"{size}: " if size else ""
    seed = "" if result.seed is None else f"seed {result.seed}"
    return ", ".join(text for text in (size, seed) if text) + ": " if size or seed else f"{result.run}: "


def _confidence(outcome: Outcome, seeds: Sequence[tuple[int, int]]) -> str:
    """Say how much the seeds can carry: the failure rate that they leave open."""
    if outcome is Outcome.SUPPORTED:
        count = min(total for _, total in seeds)
        bound = rate_upper(0, count)
        assert bound is not None, "supported without a run"
        told = (
            f"no failure in {_seeds(count)} leaves a failure rate of up to {100 * bound:.0f} % (one-sided 95 % bound)"
        )
        return f"{_word(bound)}: {told}"
    if outcome is Outcome.REFUTED:
        bound, failed, count = max((rate_lower(failed, total) or 0.0, failed, total) for failed, total in seeds)
        told = (
            f"{failed} of {_seeds(count)} failed, a failure rate of at least {100 * bound:.0f} % (one-sided 95 % bound)"
        )
        return f"{_word(1 - bound)}: {told}"
    return "none: nothing was decided"


def _seeds(count: int) -> str:
    return f"{count} seed{'s' * (count != 1)}"


def _word(open_rate: float) -> str:
    return "low" if open_rate > 0.5 else "moderate" if open_rate > 0.3 else "high"
