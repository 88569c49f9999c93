"""Metrics derived from a row of a run: skill, ratios; no torch here."""

import math
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any

from bitnetctl.records.schema import NAMES, Row


def finite(value: float | int | None) -> float | None:
    """Return the value as a float; None where it is unknown or not finite."""
    return None if value is None or not math.isfinite(value) else float(value)


def finite_value(row: Row, column: str) -> float | None:
    """Return the finite value of a column; None where it is missing, unknown or not finite."""
    return finite(row.get(column))


def json_value(value: Any) -> Any:
    """Return a tree of strict JSON: NaN and infinity as text, enum members as their values."""
    if isinstance(value, Mapping):
        return {str(key): json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(item) for item in value]
    if isinstance(value, Enum):
        return value.value
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def ratio(value: float | None, reference: float | None) -> float | None:
    """Return value / reference: None where one is unknown or the reference is finite and not above 0.

    The result is not finite where the value is not, where the quotient overflows, and for a reference of NaN or
    -infinity: verdicts count such a result as known and bad. Use `finite` where it is to be unknown.
    """
    if value is None or reference is None:
        return None
    if reference > 0:
        return value / reference
    return None if math.isfinite(reference) else math.nan


def skill(loss: float | None, unigram: float | None, bigram: float | None) -> float | None:
    """Return (unigram - loss) / (unigram - bigram): 0 at the unigram predictor's loss, 1 at the bigram predictor's.

    None where one is unknown or the bigram predictor is no better; not finite under the conditions of `ratio`.
    """
    if loss is None or unigram is None or bigram is None:
        return None
    return ratio(unigram - loss, unigram - bigram)


DERIVED: Mapping[str, tuple[str, Callable[[Row], float | None]]] = {
    "Skill": (
        "(UnigramLoss - HeldOutLoss) / (UnigramLoss - BigramLoss): 0 unigram, 1 bigram predictor",
        lambda row: skill(row["HeldOutLoss"], row["UnigramLoss"], row["BigramLoss"]),
    ),
    "DiversityRatio": (
        "UniquePredictions / BigramUnique",
        lambda row: ratio(row["UniquePredictions"], row["BigramUnique"]),
    ),
    "Coverage": (
        "UniquePredictions / UniqueTargets",
        lambda row: ratio(row["UniquePredictions"], row["UniqueTargets"]),
    ),
}
"""Metrics computed from a row that are not columns of the CSV: formula as text, and function."""

MEASURES = (*NAMES[1:], *DERIVED)
"""Names that a criteria file may use as `measure`."""
