"""What a collapse is, for everything that shows or analyses one; no torch here.

An evaluation is collapsed, healthy or unknown. One or two collapsed evaluations in a row are a possible collapse, three
are a collapse, which began at the first of them; three healthy ones in a row are a recovery. The evaluation at step 1
and those within the warm-up do not count: an untrained model has not collapsed.
"""

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from bitnetctl.records.metrics import finite_value
from bitnetctl.records.reader import Records
from bitnetctl.records.schema import Row

if TYPE_CHECKING:
    from bitnetctl.records.schema import Booleans, Floats

COLLAPSED_BELOW = 10
"""Distinct predictions under which the founding document calls a model collapsed."""

LASTING_EVALUATIONS = 3
"""Consecutive evaluations that make a collapse or a recovery a lasting one."""

COLLAPSE_COLUMNS = ("UniquePredictions", "UniqueTargets", "HeldOutLoss", "UnigramLoss")
"""Columns of a row that `collapse_reason` reads."""

_MEASURED = ("Loss", "HeldOutLoss", "UniquePredictions")


def collapse_reason(row: Row) -> str | None:
    """Return why an evaluation counts as collapsed, or None.

    Either of two conditions is enough: fewer than ten distinct predictions (unless the targets have fewer, too), or a
    held-out loss above that of a unigram predictor, since near a uniform guess the arg-max can still take many values.
    A condition whose values are unknown or not finite does not hold.
    """
    reasons = []
    unique, targets = finite_value(row, "UniquePredictions"), finite_value(row, "UniqueTargets")
    if unique is not None and unique < COLLAPSED_BELOW and (targets is None or targets >= COLLAPSED_BELOW):
        reasons.append(f"{unique:.0f} distinct predictions")
    loss, unigram = finite_value(row, "HeldOutLoss"), finite_value(row, "UnigramLoss")
    if loss is not None and unigram is not None and loss > unigram:
        reasons.append(f"held-out loss {loss:.2f} above the unigram predictor's {unigram:.2f}")
    return " and ".join(reasons) or None


def is_collapsed(row: Row) -> bool | None:
    """Return whether an evaluation is collapsed; None is unknown. A value that is not finite is collapsed."""
    if collapse_reason(row) is not None:
        return True
    known = {name: row.get(name) for name in (*_MEASURED, "UnigramLoss") if row.get(name) is not None}
    if any(not math.isfinite(known[name] or 0.0) for name in _MEASURED if name in known):
        return True
    return False if "UniquePredictions" in known or {"HeldOutLoss", "UnigramLoss"} <= known.keys() else None


def collapsed_rows(unique: "Floats", targets: "Floats", loss: "Floats", unigram: "Floats") -> "Booleans":
    """Return for every row whether `collapse_reason` has a reason; columns of finite values, NaN is unknown."""
    # comparisons with NaN are False
    return ((unique < COLLAPSED_BELOW) & ~(targets < COLLAPSED_BELOW)) | (loss > unigram)


def classify(records: Records) -> "tuple[Booleans, Booleans]":
    """Return which rows of a run are collapsed and which healthy, as `is_collapsed` has it; neither is unknown."""
    import numpy as np

    frame = records.frame
    known = {name: ~records.unknown[name] for name in {*COLLAPSE_COLUMNS, *_MEASURED}}
    values = {
        name: frame[name].to_numpy(np.float64) if name in frame else np.full(len(frame), np.nan) for name in known
    }
    finite = (np.where(np.isfinite(values[name]), values[name], np.nan) for name in COLLAPSE_COLUMNS)
    collapsed = collapsed_rows(*finite)
    for name in _MEASURED:
        collapsed |= known[name] & ~np.isfinite(values[name])
    healthy = ~collapsed & (known["UniquePredictions"] | (known["HeldOutLoss"] & known["UnigramLoss"]))
    return collapsed, healthy


class Health(StrEnum):
    """What the evaluations of a run say up to now."""

    UNKNOWN = "unknown"
    """No evaluation counts yet."""
    HEALTHY = "ok"
    POSSIBLE = "possible collapse"
    COLLAPSED = "collapsed"
    RECOVERED = "recovered"


@dataclass
class CollapseTracker:
    """Follows the evaluations of a run in order; `warmup_steps` are those of its effective config.

    `collapsed_at` is the first step of the first collapse and `recovered_at` that of the first recovery after it;
    `since` is the first step of the present `health`, and `reason` says why that evaluation is collapsed. `collapsed`
    and `healthy` count evaluations.
    """

    warmup_steps: int = 0
    health: Health = Health.UNKNOWN
    since: int | None = None
    reason: str | None = None
    collapsed_at: int | None = None
    recovered_at: int | None = None
    collapsed: int = 0
    healthy: int = 0
    # the evaluations alike at the end: whether they are collapsed, how many, step and reason of the first
    _streak_is: bool | None = None
    _streak: int = 0
    _streak_since: int = 0
    _streak_reason: str | None = None
    _last_step: int | None = None
    # what held before a possible collapse
    _lasting: Health = Health.UNKNOWN
    _lasting_since: int | None = None

    def add_row(self, row: Row) -> None:
        """Count an evaluation."""
        self.add(int(row["Step"] or 0), is_collapsed(row), collapse_reason(row))

    def add(self, step: int, collapsed: bool | None, reason: str | None = None) -> None:
        """Count the evaluation of a step as collapsed, healthy or unknown, which interrupts either."""
        if step > max(1, self.warmup_steps):
            self._count(step, collapsed, reason)

    def end_diverged(self, step: int) -> None:
        """Count a divergence as the last evaluation: no run recovers from it, so a shorter collapse lasts, too."""
        if not self._streak_is or self._last_step != step:
            self._count(step, True, f"diverged at step {step}")
        if self.collapsed_at is None:
            self._lasts(True)

    def _count(self, step: int, collapsed: bool | None, reason: str | None) -> None:
        self._last_step = step
        self.collapsed += collapsed is True
        self.healthy += collapsed is False
        if collapsed is not self._streak_is or not self._streak:
            self._streak_is, self._streak, self._streak_since, self._streak_reason = collapsed, 0, step, reason
        self._streak += 1
        if self._streak >= LASTING_EVALUATIONS and collapsed is not None:
            self._lasts(collapsed)
        if collapsed and self._lasting is not Health.COLLAPSED:
            self.health, self.since, self.reason = Health.POSSIBLE, self._streak_since, self._streak_reason
        elif self._lasting is not Health.UNKNOWN:
            self.health, self.since = self._lasting, self._lasting_since
        else:
            self.health, self.since = Health.UNKNOWN if collapsed is None else Health.HEALTHY, None

    def _lasts(self, collapsed: bool) -> None:
        """Record that the streak has become lasting, or still lasts."""
        if collapsed and self._lasting is not Health.COLLAPSED:
            self._lasting, self._lasting_since = Health.COLLAPSED, self._streak_since
            self.health, self.since, self.reason = Health.COLLAPSED, self._streak_since, self._streak_reason
            if self.collapsed_at is None:
                self.collapsed_at = self._streak_since
        elif not collapsed and self._lasting is Health.COLLAPSED:
            self._lasting, self._lasting_since = Health.RECOVERED, self._streak_since
            if self.recovered_at is None:
                self.recovered_at = self._streak_since
