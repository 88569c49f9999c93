"""The summary of one run: collapse, recovery, change at the stage boundary, final values. None is unknown."""

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from bitnetctl.records.collapse import COLLAPSE_COLUMNS, CollapseTracker, classify, collapse_reason
from bitnetctl.records.metrics import finite, skill
from bitnetctl.records.run import Run

if TYPE_CHECKING:
    from bitnetctl.records.schema import Booleans, Floats

Metric = Literal[
    "final_held_out_loss", "final_skill", "final_log2_unique", "stage1_held_out_loss", "collapsed_fraction"
]


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """Metrics of one run over its rows.

    Losses are in nats. `final_` is of the last row, whatever its step; `complete` is whether that is the planned end.
    In a log of another program, whose rows need not be evaluations, it is of the last row that has the value.
    The evaluation at step 1 and those within the warm-up, where its length is known, count neither as collapsed nor as
    healthy: an untrained model has not collapsed.
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
    collapsed_fraction: float | None
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

    @property
    def length(self) -> int:
        """The planned steps or, where they are unknown, those of the last row: runs of equal length are compared."""
        return self.final_step if self.planned_steps is None else self.planned_steps

    def to_json(self) -> dict[str, Any]:
        """Return every field by name; none is NaN."""
        return asdict(self)

    def compared_value(self, metric: Metric) -> float | None:
        """Return the finite value with which the run enters a comparison of runs; None is unknown.

        A failed run (diverged or crashed) is not left out: its loss is the worst held-out loss of any of its
        evaluations (as a rule that of the untrained model), its skill that of this loss, and its distinct predictions
        are 1. A run that has not reached its planned steps has no final value and no fraction of collapsed evaluations.
        """
        if metric == "stage1_held_out_loss":
            failed_in_stage1 = self.failed and (self.boundary_step is None or self.final_step <= self.boundary_step)
            return self.worst_held_out_loss if failed_in_stage1 else self.stage1_held_out_loss
        if metric == "collapsed_fraction":
            return self.collapsed_fraction if self.failed or self.complete is not False else None
        if self.failed:
            if metric == "final_log2_unique":
                return 0.0
            loss = self.worst_held_out_loss
            return loss if metric == "final_held_out_loss" else finite(skill(loss, self.unigram_loss, self.bigram_loss))
        if self.complete is False:
            return None
        if metric == "final_log2_unique":
            return math.log2(self.final_unique) if self.final_unique and self.final_unique > 0 else None
        return self.final_held_out_loss if metric == "final_held_out_loss" else self.final_skill


def summarize_run(run: Run, arm: str | None = None) -> RunSummary:
    """Return the summary of a run; `arm` is the label of its arm among the runs it is compared with.

    `volatility` is the mean of |log2(u[i+1] / u[i])| over the distinct predictions u of consecutive evaluations after
    step 1 and the warm-up: doublings or halvings from one evaluation to the next, 0 for a constant count.
    """
    steps = run.steps
    loss, unique, held_out = (run.finite(name) for name in ("Loss", "UniquePredictions", "HeldOutLoss"))
    unigram, bigram = (_last(run.finite(name)) for name in ("UnigramLoss", "BigramLoss"))
    trained = steps > max(1, run.warmup_steps)

    boundary = run.boundary_step
    stage1 = (steps > 1) & (steps <= (-1 if boundary is None else boundary))
    before = run.stage1_end_index
    after = None if boundary is None else _first_index(steps > boundary)
    lowest = _lowest_index(unique, stage1)

    collapse = _followed(run)
    collapsed_count = collapse.collapsed + _missed_evaluations(run)
    judged_count = collapsed_count + collapse.healthy
    manifest = run.manifest
    return RunSummary(
        name=run.name,
        path=str(run.path),
        arm=arm or run.arm or run.name,
        size=run.size,
        seed=run.seed,
        status=manifest.status if manifest else None,
        complete=run.is_complete,
        failed=run.has_failed,
        diverged_at=run.diverged_at,
        planned_steps=run.planned_steps,
        boundary_step=boundary,
        final_step=run.final_step,
        unique_ceiling=run.ceiling[0] if run.ceiling else None,
        stage1_min_unique=_pick(unique, lowest),
        stage1_min_unique_step=None if lowest is None else int(steps[lowest]),
        collapsed_at=collapse.collapsed_at,
        collapse_reason=_reason(run, collapse.collapsed_at),
        recovered_at=collapse.recovered_at,
        collapsed_fraction=collapsed_count / judged_count if judged_count else None,
        boundary_recovery_factor=_quotient(_pick(unique, after), _pick(unique, before)),
        boundary_held_out_loss_drop=_difference(_pick(held_out, before), _pick(held_out, after)),
        boundary_training_loss_drop=_difference(_pick(loss, before), _pick(loss, after)),
        stage1_held_out_loss=_pick(held_out, before),
        final_held_out_loss=_pick(held_out, _final_index(run, "HeldOutLoss")),
        final_training_loss=_pick(loss, _final_index(run, "Loss")),
        final_unique=_pick(unique, _final_index(run, "UniquePredictions")),
        final_skill=finite(skill(_pick(held_out, _final_index(run, "HeldOutLoss")), unigram, bigram)),
        volatility=_volatility(unique[trained]),
        zero_fraction=_last(run.finite("ZeroFraction")),
        mean_flip_rate=_mean(run.finite("FlipRate")),
        unigram_loss=unigram,
        bigram_loss=bigram,
        worst_held_out_loss=_largest(held_out),
    )


def _followed(run: Run) -> CollapseTracker:
    """Return what all evaluations of a run say."""
    tracker = CollapseTracker(run.warmup_steps)
    for step, collapsed, healthy in zip(run.steps.tolist(), *map(list, classify(run.records)), strict=True):
        tracker.add(step, True if collapsed else False if healthy else None)
    if run.ended_diverged_at is not None:
        # it is not evaluated any more
        tracker.end_diverged(max(run.ended_diverged_at, run.final_step))
    return tracker


def _missed_evaluations(run: Run) -> int:
    """Count the planned evaluations after the last row of a failed run, which count as collapsed."""
    config = run.effective
    if config is None or not run.has_failed:
        return 0
    every, steps = config.eval_every_steps, config.steps
    done = max(run.final_step, run.diverged_at or 0, config.schedule.warmup_steps)
    return max(0, steps // every - done // every + (steps % every > 0)) if done < steps else 0


def _reason(run: Run, step: int | None) -> str | None:
    if step is None:
        return None
    index = _first_index(run.steps == step)
    row = {} if index is None else {name: run.records.value(name, index) for name in COLLAPSE_COLUMNS}
    return collapse_reason(row) or f"diverged at step {run.diverged_at}"


def _volatility(unique: "Floats") -> float | None:
    import numpy as np

    earlier, later = unique[:-1], unique[1:]
    usable = (earlier > 0) & (later > 0)
    # the log of a quotient could overflow
    return _mean(np.abs(np.log2(later[usable]) - np.log2(earlier[usable])))


def _last(column: "Floats") -> float | None:
    return _pick(column, _last_index(column == column))


def _mean(column: "Floats") -> float | None:
    values = column[column == column]
    # divided before summing, so that the sum cannot overflow
    return float((values / len(values)).sum()) if len(values) else None


def _largest(column: "Floats") -> float | None:
    values = column[column == column]
    return float(values.max()) if len(values) else None


def _pick(column: "Floats", index: int | None) -> float | None:
    return None if index is None else finite(column[index])


def _first_index(holds: "Booleans") -> int | None:
    return int(holds.argmax()) if holds.any() else None


def _last_index(holds: "Booleans") -> int | None:
    return len(holds) - 1 - int(holds[::-1].argmax()) if holds.any() else None


def _lowest_index(column: "Floats", among: "Booleans") -> int | None:
    """Return the first index of the smallest known value."""
    indices = (among & (column == column)).nonzero()[0]
    return int(indices[column[indices].argmin()]) if len(indices) else None


def _final_index(run: Run, column: str) -> int | None:
    return -1 if run.records.origin is None else _last_index(~run.records.unknown[column])


def _quotient(after: float | None, before: float | None) -> float | None:
    # not `ratio`: counts in a file of another program may be negative
    return finite(after / before) if after is not None and before else None


def _difference(before: float | None, after: float | None) -> float | None:
    return finite(before - after) if before is not None and after is not None else None
