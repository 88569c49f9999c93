"""From CSV rows to facts about a run; no torch here."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from bitnetctl.records import Row

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]

COLLAPSED_BELOW = 10
"""Distinct predictions under which the founding document calls a model collapsed."""


def collapse(row: Row) -> str | None:
    """Return why an evaluation counts as collapsed, or None.

    Two keys, because a dead model near a uniform guess can still show many distinct arg-max tokens: fewer than
    ten distinct predictions, or a held-out loss above that of a unigram predictor. Missing figures decide nothing.
    """
    reasons = []
    unique, targets = known(row, "UniquePredictions"), known(row, "UniqueTargets")
    if unique is not None and unique < COLLAPSED_BELOW and (targets is None or targets >= COLLAPSED_BELOW):
        reasons.append(f"{unique:.0f} distinct predictions")
    loss, unigram = known(row, "HeldOutLoss"), known(row, "UnigramLoss")
    if loss is not None and unigram is not None and loss > unigram:
        reasons.append(f"held-out loss {loss:.2f} above the unigram predictor's {unigram:.2f}")
    return " and ".join(reasons) or None


def collapsed_rows(unique: "Floats", targets: "Floats", loss: "Floats", unigram: "Floats") -> "npt.NDArray[np.bool_]":
    """Return for every row whether `collapse` has a reason; NaN is unknown."""
    # nothing is smaller or larger than NaN
    return ((unique < COLLAPSED_BELOW) & ~(targets < COLLAPSED_BELOW)) | (loss > unigram)


def known(row: Mapping[str, float | int | None], column: str) -> float | None:
    """Return a finite figure of a row, None where it is unknown, missing or not finite."""
    value = row.get(column)
    return None if value is None or not math.isfinite(value) else float(value)
