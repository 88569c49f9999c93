"""Whether the values of a run can be what their columns are named: what is not measured so was changed or misnamed."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from bitnetctl.errors import RecordError
from bitnetctl.records.reader import Records
from bitnetctl.records.schema import COLUMNS, Column

if TYPE_CHECKING:
    from bitnetctl.records.schema import Booleans, Floats

_ROUNDING = 1e-6
_LOSSES = ("Loss", "HeldOutLoss")
_LOST_POINT = (1_000, 100_000)
"""Losses in this range have decimals; 6.173 read as one with a point between thousands is 6173."""


def check_plausible(records: Records, source: str) -> None:
    """Raise RecordError for the first value that its column cannot have; `source` names the file."""
    # once, since one column after the other takes a third of the time of reading a run
    frame = records.frame
    values_of = dict(zip(frame.columns, frame.to_numpy(float).T, strict=True))
    for column in COLUMNS:
        if column.name == "Step" or column.name not in values_of:
            continue
        values = values_of[column.name]
        for wrong, what in _impossible(column, values):
            if wrong.any():
                row = int(wrong.argmax())
                raise RecordError(
                    f"{source}: {column.name} is {values[row]:.6g} at step {records.frame['Step'].iloc[row]}, {what}; "
                    "take the values as they were measured, or name the right column with --map"
                )


def _impossible(column: Column, values: Floats) -> list[tuple[Booleans, str]]:
    """Return which of the values are impossible, and what they are, for every reason; NaN and infinity are possible."""
    import numpy as np

    finite = np.isfinite(values)
    found = [(finite & (values < column.least), "negative")]
    if column.most < math.inf:
        found.append((finite & (values > column.most + _ROUNDING), f"more than {column.most:g}"))
    whole = np.floor(values) == values
    if column.dtype == "int":
        found.append((finite & ~whole, "not a whole number"))
    if column.name in _LOSSES:
        lost = whole & (values >= _LOST_POINT[0]) & (values < _LOST_POINT[1])
        found.append((lost, "a whole number, as where a program takes a decimal point for one between thousands"))
    return found
