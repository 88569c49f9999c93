"""Measures of a run's rows: collapse, skill, ratios; no torch here."""

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from bitnetctl.records.schema import NAMES, Row

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]


def skill(loss: float | None, unigram: float | None, bigram: float | None) -> float | None:
    """Return (unigram - loss) / (unigram - bigram): 0 as good as a unigram predictor, 1 as a bigram predictor."""
    if loss is None or unigram is None or bigram is None or unigram <= bigram:
        return None
    return _sane((unigram - loss) / (unigram - bigram))


def _sane(value: float) -> float | None:
    """Return a figure that did not overflow."""
    return value if math.isfinite(value) else None


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


def _skill(row: Row) -> float | None:
    loss, unigram, bigram = row["HeldOutLoss"], row["UnigramLoss"], row["BigramLoss"]
    if loss is None or unigram is None or bigram is None:
        return None
    span = unigram - bigram
    return (unigram - loss) / span if span > 0 else None if math.isfinite(span) else math.nan


def _ratio(over: str) -> Callable[[Row], float | None]:
    def value(row: Row) -> float | None:
        unique, reference = row["UniquePredictions"], row[over]
        if unique is None or reference is None:
            return None
        return unique / reference if reference > 0 else None if math.isfinite(reference) else math.nan

    return value


DERIVED: Mapping[str, tuple[str, Callable[[Row], float | None]]] = {
    "Skill": ("(UnigramLoss - HeldOutLoss) / (UnigramLoss - BigramLoss): 0 unigram, 1 bigram predictor", _skill),
    "DiversityRatio": ("UniquePredictions / BigramUnique", _ratio("BigramUnique")),
    "Coverage": ("UniquePredictions / UniqueTargets", _ratio("UniqueTargets")),
}
"""Measures that are no column of the CSV."""

MEASURES = (*NAMES[1:], *DERIVED)
"""Every name a criteria file may use."""
