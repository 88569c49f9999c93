"""One run in figures: how deep it fell, whether it came back, where it ended. None is unknown, never zero."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from bitnetctl.analysis.collapse import collapse
from bitnetctl.analysis.runs import Run

LASTING_EVALUATIONS = 3
"""Evaluations in a row that make a collapse, or a recovery, a lasting one."""

Metric = Literal[
    "final_held_out_loss", "final_skill", "final_log2_unique", "stage1_held_out_loss", "share_of_collapsed_evaluations"
]


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What the rows of one run add up to.

    Losses are in nats. `final` is the last row, whatever its step: `complete` says whether that is the planned end.
    Evaluations up to the end of the warm-up, where that is known, and the one at step 1 count neither as collapsed
    nor as healthy: an untrained model has not collapsed.
    """

    name: str
    path: str
    arm: str
    size: int | None
    seed: int | None
    status: str | None
    complete: bool | None
    failed: bool
    diverged_at: int | None
    planned_steps: int | None
    boundary_step: int | None
    final_step: int
    unique_ceiling: float | None
    stage1_min_unique: float | None
    stage1_min_unique_step: int | None
    collapsed_at: int | None
    collapse_reason: str | None
    recovered_at: int | None
    share_of_collapsed_evaluations: float | None
    boundary_recovery_factor: float | None
    boundary_held_out_loss_drop: float | None
    boundary_training_loss_drop: float | None
    stage1_held_out_loss: float | None
    final_held_out_loss: float | None
    final_training_loss: float | None
    final_unique: float | None
    final_skill: float | None
    volatility: float | None
    zero_fraction: float | None
    mean_flip_rate: float | None
    unigram_loss: float | None
    bigram_loss: float | None
    worst_held_out_loss: float | None

    def to_json(self) -> dict[str, Any]:
        """Return every fact by name; no NaN among them."""
        return asdict(self)

    def counted(self, metric: Metric) -> float | None:
        """Return the finite figure that enters a comparison of runs; None is unknown.

        A run that diverged or crashed is a failure and stays in: it counts with the worst held-out loss it ever
        showed, that of its untrained model as a rule, with the skill of that loss and with one distinct prediction.
        A run that is still short of its plan has no final figure yet.
        """
        if metric == "share_of_collapsed_evaluations":
            return self.share_of_collapsed_evaluations
        if metric == "stage1_held_out_loss":
            fell_in_stage1 = self.failed and (self.boundary_step is None or self.final_step <= self.boundary_step)
            return self.worst_held_out_loss if fell_in_stage1 else self.stage1_held_out_loss
        if self.failed:
            if metric == "final_log2_unique":
                return 0.0
            loss = self.worst_held_out_loss
            return loss if metric == "final_held_out_loss" else skill(loss, self.unigram_loss, self.bigram_loss)
        if self.complete is False:
            return None
        if metric == "final_log2_unique":
            return math.log2(self.final_unique) if self.final_unique else None
        return self.final_held_out_loss if metric == "final_held_out_loss" else self.final_skill


def run_facts(run: Run, arm: str | None = None) -> RunFacts:
    """Return the facts of a run; `arm` is the label of its arm among the runs it is compared with.

    Volatility is the mean of |log2(u[i+1] / u[i])| over the distinct predictions u of neighbouring evaluations after
    step 1 and the warm-up: doublings or halvings from one evaluation to the next, 0 for a constant count.
    """
    steps: list[int] = run.steps.tolist()
    loss, unique, held_out = (_finite(run.column(name)) for name in ("Loss", "UniquePredictions", "HeldOutLoss"))
    unigram, bigram = (_last(run.column(name)) for name in ("UnigramLoss", "BigramLoss"))
    warmup = run.effective.schedule.warmup_steps if run.effective is not None else 0
    trained = [index for index, step in enumerate(steps) if step > max(1, warmup)]

    boundary = run.boundary_step
    stage1 = [index for index, step in enumerate(steps) if boundary is not None and 1 < step <= boundary]
    before = stage1[-1] if stage1 else None
    after = next((index for index, step in enumerate(steps) if boundary is not None and step > boundary), None)
    shown = [(value, steps[index]) for index in stage1 if (value := unique[index]) is not None]
    lowest = min(shown, default=(None, None))

    states = _states(run, trained)
    endless = run.diverged_at is not None
    collapsed = _first_lasting([(step, state is True) for step, state in states], endless=endless)
    recovered = None
    if collapsed is not None:
        recovered = _first_lasting([(step, state is False) for step, state in states if step > collapsed])
    manifest = run.manifest
    judged = [state for _, state in [*states, *_missed(run)] if state is not None]
    return RunFacts(
        name=run.name,
        path=str(run.path),
        arm=arm or run.arm or run.name,
        size=run.size,
        seed=run.seed,
        status=manifest.status if manifest else None,
        complete=run.is_complete,
        failed=has_failed(run),
        diverged_at=run.diverged_at,
        planned_steps=run.planned_steps,
        boundary_step=boundary,
        final_step=run.final_step,
        unique_ceiling=run.ceiling[0] if run.ceiling else None,
        stage1_min_unique=lowest[0],
        stage1_min_unique_step=lowest[1],
        collapsed_at=collapsed,
        collapse_reason=_reason(run, collapsed),
        recovered_at=recovered,
        share_of_collapsed_evaluations=sum(judged) / len(judged) if judged else None,
        boundary_recovery_factor=_ratio(_pick(unique, after), _pick(unique, before)),
        boundary_held_out_loss_drop=_difference(_pick(held_out, before), _pick(held_out, after)),
        boundary_training_loss_drop=_difference(_pick(loss, before), _pick(loss, after)),
        stage1_held_out_loss=_pick(held_out, before),
        final_held_out_loss=held_out[-1],
        final_training_loss=loss[-1],
        final_unique=unique[-1],
        final_skill=skill(held_out[-1], unigram, bigram),
        volatility=_volatility([unique[index] for index in trained]),
        zero_fraction=_last(run.column("ZeroFraction")),
        mean_flip_rate=_mean(run.column("FlipRate")),
        unigram_loss=unigram,
        bigram_loss=bigram,
        worst_held_out_loss=max((value for value in held_out if value is not None), default=None),
    )


def has_failed(run: Run) -> bool:
    """Whether a run diverged or crashed, by its figures or its manifest; being unfinished is no failure."""
    status = run.manifest.status if run.manifest else None
    return run.diverged_at is not None or status in ("diverged", "failed")


def skill(loss: float | None, unigram: float | None, bigram: float | None) -> float | None:
    """Return (unigram - loss) / (unigram - bigram): 0 as good as a unigram predictor, 1 as a bigram predictor."""
    if loss is None or unigram is None or bigram is None or unigram <= bigram:
        return None
    return (unigram - loss) / (unigram - bigram)


def _states(run: Run, trained: Sequence[int]) -> list[tuple[int, bool | None]]:
    """Return step and whether it is collapsed for every trained evaluation; None where no figure decides it."""
    steps: list[int] = run.steps.tolist()
    states: list[tuple[int, bool | None]] = []
    for index in trained:
        row = run.row(index)
        known = {name for name in ("UniquePredictions", "HeldOutLoss", "UnigramLoss") if row[name] is not None}
        values = [row[name] for name in ("Loss", "HeldOutLoss", "UniquePredictions")]
        if any(value is not None and not math.isfinite(value) for value in values) or collapse(row) is not None:
            states.append((steps[index], True))
        elif "UniquePredictions" in known or {"HeldOutLoss", "UnigramLoss"} <= known:
            states.append((steps[index], False))
        else:
            states.append((steps[index], None))
    if run.diverged_at is not None:
        # a diverged run stays diverged, although it is not evaluated any further
        last = max(run.diverged_at, run.final_step)
        if not states or states[-1][0] != last or states[-1][1] is not True:
            states.append((last, True))
    return states


def _missed(run: Run) -> Iterator[tuple[int, bool]]:
    """Yield the evaluations that a failed run was to have after its last row: nothing healthy comes from them."""
    config = run.effective
    if config is None or not has_failed(run):
        return
    every, done = config.eval_every_steps, max(run.final_step, run.diverged_at or 0)
    planned = [*range(every, config.steps + 1, every), *([config.steps] if config.steps % every else [])]
    yield from ((step, True) for step in planned if step > max(done, config.schedule.warmup_steps))


def _first_lasting(states: Sequence[tuple[int, bool]], *, endless: bool = False) -> int | None:
    """Return the first step of LASTING_EVALUATIONS in a row, or of the streak at the end that would go on for ever."""
    streak: list[int] = []
    for step, holds in states:
        streak = [*streak, step] if holds else []
        if len(streak) >= LASTING_EVALUATIONS:
            return streak[0]
    return streak[0] if streak and endless else None


def _reason(run: Run, step: int | None) -> str | None:
    if step is None:
        return None
    places = (run.steps == step).nonzero()[0]
    reason = run.collapse_reasons()[int(places[0])] if len(places) else None
    return reason or f"diverged at step {run.diverged_at}"


def _volatility(unique: Sequence[float | None]) -> float | None:
    pairs = itertools.pairwise(unique)
    changes = [abs(math.log2(later / earlier)) for earlier, later in pairs if earlier and later]
    return sum(changes) / len(changes) if changes else None


def _finite(column: Sequence[float | None]) -> list[float | None]:
    return [value if value is not None and math.isfinite(value) else None for value in column]


def _last(column: Sequence[float | None]) -> float | None:
    return next((value for value in reversed(_finite(column)) if value is not None), None)


def _mean(column: Sequence[float | None]) -> float | None:
    values = [value for value in _finite(column) if value is not None]
    return sum(values) / len(values) if values else None


def _pick(column: Sequence[float | None], index: int | None) -> float | None:
    return None if index is None else column[index]


def _ratio(after: float | None, before: float | None) -> float | None:
    return after / before if after is not None and before else None


def _difference(before: float | None, after: float | None) -> float | None:
    return before - after if before is not None and after is not None else None
