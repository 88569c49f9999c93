"""Each kind of check on one run."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from bitnetctl.records import REQUIRED, Run
from bitnetctl.verdict.criteria import (
    Check,
    Criteria,
    FinishedCheck,
    FiniteCheck,
    LastingCheck,
    LevelCheck,
    ProbeCheck,
    RecoveryCheck,
    SteadyCheck,
    TwinCheck,
)
from bitnetctl.verdict.limits import last_median, limits, values
from bitnetctl.verdict.outcome import CheckResult, Outcome, format_value, outcome_of_run

_TOLERANCE = 1e-6
"""Rounding by which a figure may miss its range."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a check may know besides the run: the steps asked for explicitly, and runs among which twins are found."""

    requested_steps: int | None = None
    candidates: Sequence[Run] = ()


@dataclass(frozen=True, kw_only=True)
class _Found:
    outcome: Outcome
    reason: str
    figure: float | None = None


def check_run(run: Run, criteria: Criteria, setting: Setting) -> list[CheckResult]:
    """Return the results of every check that applies.

    What cannot be reached is found on any run; what a run shows is judged on finished runs only, since in the middle of
    a training a collapse may be part of the claim.
    """
    ends = [(check, _end(run, check, setting)) for check in criteria.checks if isinstance(check, _ENDS)]
    if _torn(run) is not None:
        return [_result(run, check, found) for check, found in ends]
    found: list[tuple[Check, _Found | None]] = [*ends]
    healthy = all(result.outcome is Outcome.SUPPORTED for _, result in ends)
    for check in criteria.checks:
        if isinstance(check, ProbeCheck):
            found.append((check, _probe(run, check)))
        elif isinstance(check, LevelCheck):
            found.append((check, _reach(run, check) or (_level(run, check) if healthy else None)))
        elif isinstance(check, TwinCheck) and healthy:
            found.append((check, _twin(run, check, criteria, setting)))
        elif type(check) in _SHAPES and healthy:
            found.append((check, _SHAPES[type(check)](run, check)))
    return [_result(run, check, result) for check, result in found if result is not None]


def steps_required(check: FinishedCheck, requested_steps: int | None) -> int | None:
    """Return the steps a run is judged at, None where only its own plan says."""
    return check.min_steps if requested_steps is None or check.min_steps is None else requested_steps


def _result(run: Run, check: Check, found: _Found) -> CheckResult:
    return CheckResult(
        check=check.label,
        outcome=found.outcome,
        reason=found.reason,
        run=run.name,
        size=run.size,
        seed=run.seed,
        measure=getattr(check, "measure", None),
        figure=found.figure,
        supports=getattr(check, "supports", None),
        refutes=getattr(check, "refutes", None),
    )


def _unknown(reason: str, figure: float | None = None) -> _Found:
    return _Found(outcome=Outcome.INCONCLUSIVE, reason=reason, figure=figure)


def _end(run: Run, check: FiniteCheck | FinishedCheck, setting: Setting) -> _Found:
    return _finite(run, check) if isinstance(check, FiniteCheck) else _finished(run, check, setting.requested_steps)


def _finite(run: Run, check: FiniteCheck) -> _Found:
    manifest = run.manifest
    if manifest is not None and manifest.status == "failed":
        message = f": {manifest.message}" if manifest.message else ""
        return _Found(outcome=Outcome.REFUTED, reason=f"crashed after step {manifest.steps_done:,}{message}")
    step = run.diverged_at
    if step is not None or (manifest is not None and manifest.status == "diverged"):
        return _Found(outcome=Outcome.REFUTED, reason=f"diverged at step {run.final_step if step is None else step:,}")
    unknown = []
    for name in check.columns:
        column = run.column(name)
        for at, value in zip(run.steps.tolist(), column, strict=True):
            if value is not None and not math.isfinite(value):
                return _Found(outcome=Outcome.REFUTED, reason=f"{name} is {value} at step {at:,}", figure=value)
        missing = sum(value is None for value in column)
        if missing:
            unknown.append(f"{name} is unknown in {missing:,} of {len(column):,} rows")
    if unknown:
        return _unknown("; ".join(unknown))
    return _Found(outcome=Outcome.SUPPORTED, reason=f"finite to step {run.final_step:,}")


def _finished(run: Run, check: FinishedCheck, requested_steps: int | None) -> _Found:
    torn = _torn(run)
    if torn is not None:
        return _unknown(torn, run.final_step)
    known = [
        steps
        for steps in (steps_required(check, requested_steps), requested_steps, run.planned_steps)
        if steps is not None
    ]
    if not known:
        return _unknown(
            "the planned steps are unknown: ask for steps, or name the file like h256-20000-baseline-s0-1a2b3c.csv",
            run.final_step,
        )
    reason = f"ends at step {run.final_step:,} of {max(known):,}"
    done = run.final_step >= max(known)
    return _Found(outcome=Outcome.SUPPORTED if done else Outcome.INCONCLUSIVE, reason=reason, figure=run.final_step)


def _torn(run: Run) -> str | None:
    """Return why the end of the file cannot be trusted."""
    for note in run.records.notes:
        # in the founding document's format a cut can only shorten the last WD, which no check looks at
        if "torn" in note or run.records.extra or set(run.records.frame.columns) != set(REQUIRED):
            return f"{note}; end a whole file with a newline"
    return None


def _probe(run: Run, check: ProbeCheck) -> _Found:
    figures = []
    for column, least in (("ProbePositions", check.min_positions), ("BigramUnique", check.min_bigram_unique)):
        known = [value for value in run.column(column) if value is not None]
        if not known or not all(math.isfinite(value) for value in known):
            return _unknown(f"{column} is unknown")
        figures.append(f"{column} {format_value(min(known))}")
        if min(known) < least:
            reason = f"{column} {format_value(min(known))} is less than {least:,}: too small a probe to tell"
            return _Found(outcome=Outcome.INVALID, reason=reason, figure=min(known))
    return _Found(outcome=Outcome.SUPPORTED, reason=", ".join(figures))


def _reach(run: Run, check: LevelCheck) -> _Found | None:
    """Return why the supporting threshold cannot be met in this run, None where it can as far as is known."""
    reach = limits(run, check.measure)
    if reach.empty is not None:
        return _Found(outcome=Outcome.INVALID, reason=reach.empty)
    edge = reach.high if check.higher_is_better else reach.low
    if edge is not None and not (edge > check.supporting if check.higher_is_better else edge < check.supporting):
        side = "most" if check.higher_is_better else "least"
        return _Found(
            outcome=Outcome.INVALID,
            reason=f"{check.measure} {check.supports} of at {side} {format_value(edge)} ({reach.why}) cannot be met",
            figure=last_median(run, check.measure, check.last, check.at),
        )
    return None if reach.damaged is None else _unknown(reach.damaged)


def _level(run: Run, check: LevelCheck) -> _Found:
    figure = last_median(run, check.measure, check.last, check.at)
    name = check.measure if check.at == "end" else f"{check.measure} at the boundary"
    if figure is None:
        return _unknown(
            f"{name} is unknown in the last {check.last} evaluations" if check.last > 1 else f"{name} is unknown"
        )
    reach = limits(run, check.measure)
    slack = _TOLERANCE * max(1.0, abs(figure))
    above = reach.high is not None and figure > reach.high + slack
    below = reach.low is not None and figure < reach.low - slack
    if above or below:
        return _unknown(f"{name} {format_value(figure)} is impossible: the file is damaged", figure)
    return _compare(check, figure, name)


def _compare(check: LevelCheck | TwinCheck, figure: float, name: str) -> _Found:
    if not math.isfinite(figure):
        return _Found(outcome=Outcome.REFUTED, reason=f"{name} is {figure}", figure=figure)
    outcome = check.outcome(figure)
    said = {
        Outcome.SUPPORTED: check.supports,
        Outcome.REFUTED: check.refutes,
        Outcome.INCONCLUSIVE: "is between {} and {}".format(
            *map(format_value, sorted((check.refuting, check.supporting)))
        ),
    }[outcome]
    return _Found(outcome=outcome, reason=f"{name} {format_value(figure)} {said}", figure=figure)


def _stages(run: Run, measure: str) -> tuple[int, list[float | None], list[float | None]] | None:
    """Return the boundary and a measure at the evaluations of stage 1, without the untrained one, and of stage 2."""
    boundary = run.boundary_step
    if boundary is None:
        return None
    rows = list(zip(run.steps.tolist(), values(run, measure), strict=True))
    first = [value for step, value in rows if 1 < step <= boundary]
    return boundary, first, [value for step, value in rows if step > boundary]


_NO_BOUNDARY = "the boundary of the stages is unknown: WD never changes and no plan is known"


def _recovery(run: Run, check: RecoveryCheck) -> _Found:
    stages = _stages(run, check.measure)
    if stages is None:
        return _unknown(_NO_BOUNDARY)
    boundary, first, second = stages
    if not first or not second or first[-1] is None or second[0] is None:
        return _unknown(f"{check.measure} around step {boundary:,} is unknown")
    before, after = first[-1], second[0]
    told = f"{check.measure} {format_value(before)} → {format_value(after)} at step {boundary:,}"
    if not before < check.collapsed_below:
        return _Found(
            outcome=Outcome.SUPPORTED,
            reason=f"{check.measure} {format_value(before)} at step {boundary:,}: nothing to recover from",
            figure=after,
        )
    if after >= check.factor * before and after > before:
        return _Found(outcome=Outcome.SUPPORTED, reason=f"{told}: recovered", figure=after)
    reason = f"{told}: no recovery, less than {check.factor:g} times"
    return _Found(outcome=Outcome(check.otherwise), reason=reason, figure=after)


def _lasting(run: Run, check: LastingCheck) -> _Found:
    stages = _stages(run, check.measure)
    if stages is None:
        return _unknown(_NO_BOUNDARY)
    _, _, second = stages
    known = [value for value in second if value is not None]
    if not second or len(known) < len(second):
        return _unknown(
            f"{check.measure} is unknown in {len(second) - len(known):,} of {len(second):,} rows of stage 2"
        )
    final, middle = known[-1], median(known)
    told = f"{check.measure} {format_value(final)} at the end, median {format_value(middle)} in stage 2"
    if final < check.share * middle:
        return _Found(outcome=Outcome(check.otherwise), reason=f"temporary recovery: {told}", figure=final)
    return _Found(outcome=Outcome.SUPPORTED, reason=told, figure=final)


def _steady(run: Run, check: SteadyCheck) -> _Found:
    stages = _stages(run, check.measure)
    if stages is None:
        return _unknown(_NO_BOUNDARY)
    _, _, second = stages
    known = [value for value in second if value is not None]
    extremes = swings(known, check.factor)
    turns = max(0, len(extremes) - 2)
    told = "→".join(format_value(value) for value in extremes[:12]) or "level"
    if turns >= check.reversals:
        # a cell more could only add a turn
        reason = f"erratic: {turns} reversals by a factor of {check.factor:g} or more in stage 2 ({told})"
        return _Found(outcome=Outcome(check.otherwise), reason=reason, figure=turns)
    if not second or len(known) < len(second):
        return _unknown(
            f"{check.measure} is unknown in {len(second) - len(known):,} of {len(second):,} rows of stage 2"
        )
    return _Found(outcome=Outcome.SUPPORTED, reason=f"{turns} reversals in stage 2 ({told})", figure=turns)


def swings(figures: Sequence[float], factor: float) -> list[float]:
    """Return successive extremes, low and high in turn, that differ by at least `factor`; none where nothing does.

    2, 10, 3, 15, 2 with a factor of 2 gives all five, and three turns between them.
    """

    def apart(low: float, high: float) -> bool:
        return high > low and high >= factor * low

    if not figures:
        return []
    # the direction is open until the range since the start is wide enough
    low = high = figures[0]
    extremes: list[float] = []
    rising: bool | None = None
    for value in figures[1:]:
        if rising is None:
            low, high = min(low, value), max(high, value)
            if apart(low, high):
                rising = value == high
                extremes = [low, high] if rising else [high, low]
        elif rising:
            if value > extremes[-1]:
                extremes[-1] = value
            elif apart(value, extremes[-1]):
                extremes.append(value)
                rising = False
        elif value < extremes[-1]:
            extremes[-1] = value
        elif apart(extremes[-1], value):
            extremes.append(value)
            rising = True
    return extremes


def _twin(run: Run, check: TwinCheck, criteria: Criteria, setting: Setting) -> _Found | None:
    twin = find_twin(run, check.intervention, setting.candidates)
    if twin is None:
        return None
    results = check_run(twin, criteria, Setting(requested_steps=setting.requested_steps))
    outcome = outcome_of_run(result.outcome for result in results)
    if outcome in (Outcome.REFUTED, Outcome.INVALID):
        why = next(result.reason for result in results if result.outcome is outcome)
        return _Found(
            outcome=Outcome.INVALID,
            reason=f"the twin with {check.intervention} fails as well ({why}): the set-up is at fault",
        )
    other, own = last_median(twin, check.measure, check.last), last_median(run, check.measure, check.last)
    if own is None or other is None or not (math.isfinite(own) and math.isfinite(other)):
        return _unknown(f"{check.measure} of the run or its twin with {check.intervention} is unknown")
    ends = {end.label for end in criteria.checks if isinstance(end, _ENDS)}
    open_ends = [
        result.reason for result in results if result.check in ends and result.outcome is not Outcome.SUPPORTED
    ]
    if open_ends:
        return _unknown(f"the twin with {check.intervention}: {open_ends[0]}")
    return _compare(check, own - other, f"{check.measure} minus that of the twin with {check.intervention}")


def find_twin(run: Run, intervention: str, candidates: Sequence[Run]) -> Run | None:
    """Return the run that differs in having `intervention` and nothing else, as far as is known."""
    if run.arm is None or run.size is None or run.seed is None:
        return None
    parts = _parts(run.arm)
    if any(_name(part) == intervention for part in parts):
        return None
    for other in candidates:
        if other.arm is None or (other.size, other.seed, other.planned_steps) != (
            run.size,
            run.seed,
            run.planned_steps,
        ):
            continue
        theirs = _parts(other.arm)
        rest = [part for part in theirs if _name(part) != intervention]
        if len(rest) < len(theirs) and sorted(rest) == sorted(parts) and not differing_settings(run, other):
            return other
    return None


def differing_settings(run: Run, other: Run) -> dict[str, tuple[Any, Any]]:
    """Return the fields in which two asked-for configs differ, apart from size, seed, steps and interventions.

    Empty where a config is unknown.
    """
    if run.config is None or other.config is None:
        return {}
    ours, theirs = (_leaves(one.config.model_dump(mode="json")) for one in (run, other) if one.config is not None)
    return {name: (ours[name], theirs[name]) for name in ours if name not in _FREE and ours[name] != theirs[name]}


_FREE = {"recipe", "steps", "seed", "interventions", "model.hidden_size", "probe.eval_every_steps"}


def _leaves(tree: Any, prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        leaves |= _leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return leaves


def _parts(arm: str) -> list[str]:
    # as config.parse_arm splits it, without refusing what a foreign name may hold
    return [] if arm == "baseline" else [part.strip() for part in re.split(r"\+(?=\s*[A-Za-z])", arm)]


def _name(part: str) -> str:
    return part.partition(":")[0]


_ENDS = (FiniteCheck, FinishedCheck)
"""How a run ended; nothing it shows is judged unless it ended well."""

_SHAPES: dict[type[Check], Callable[[Run, Any], _Found]] = {
    RecoveryCheck: _recovery,
    LastingCheck: _lasting,
    SteadyCheck: _steady,
}
