"""Cells of a run's CSV: the names in its header, and one row or a block of rows as numbers."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from bitnetctl.records.schema import NAMES

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_BLANK = " \t"
_MAX_STEP = 2**63 - 1
_MAX_WHOLE_DOUBLE = 2**53
NUMBER = re.compile(r"[+-]?(?:(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:e[+-]?[0-9]+)?|nan|inf|infinity)", re.IGNORECASE)
_WHOLE = re.compile(r"[+-]?[0-9]+")
DECIMAL_COMMA = re.compile(r"[+-]?[0-9.]*,[0-9]+(?:e[+-]?[0-9]+)?", re.IGNORECASE)
_CONFLICT = ("<<<<<<< ", "=======", ">>>>>>> ", "||||||| ")
_MAY_BE_THOUSANDS = re.compile(r"[+-]?[0-9]{1,3}(?:\.[0-9]{3})+")
_UNKNOWN = {"na", "n/a", "#n/a", "<na>", "null", "none", "-"}
"""What programs write for a value that is not there; NaN is not among them, since it tells of a divergence."""
_SPREADSHEET_ERROR = re.compile(r"#(?:num|div/0|value|ref|name|null)[!?]", re.IGNORECASE)
# what float() accepts of these characters, NUMBER accepts too
_PLAIN = b"0123456789+-.eEnaN,\n"
_NOT_SEPARATORS = bytes(byte for byte in range(256) if byte not in b",\n")
_SEPARATES_WORDS = re.compile(r"[\s_-]+")

Rows: TypeAlias = "tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], npt.NDArray[np.bool_]]"
"""Steps (rows,), values (columns without Step, rows), and which of the values are unknown."""


def _folded(name: str) -> str:
    return _SEPARATES_WORDS.sub("", name.removeprefix("#")).casefold()


_BY_FOLDED_NAME = {_folded(name): name for name in NAMES}


def schema_names(cells: Sequence[str], columns: Mapping[str, str] | None = None) -> list[str]:
    """Return the names of a header's columns, spelled as in the schema where letter case or blanks differ only.

    `columns` gives the name in the file by that in the schema; then a column of that name in the schema is another one.
    """
    columns = columns or {}
    wanted = {source: name for name, source in columns.items()}
    exact = set(cells)
    names = []
    for cell in cells:
        meant = _BY_FOLDED_NAME.get(_folded(cell))
        if cell in wanted:
            names.append(wanted[cell])
        elif cell in columns:
            names.append(f"{cell} (not mapped)")
        elif meant is not None and meant not in columns and (cell == meant or meant not in exact):
            names.append(meant)
        else:
            names.append(cell)
    return names


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Number of cells in a row, index of its Step, names and indices of the schema's other columns in the file."""

    width: int
    step: int
    values: tuple[tuple[str, int], ...]

    @classmethod
    def of(cls, names: Sequence[str]) -> Layout:
        """Return the layout for a header that has a Step."""
        indices = {name: index for index, name in enumerate(names)}
        values = tuple((name, indices[name]) for name in NAMES if name in indices and name != "Step")
        return cls(width=len(names), step=indices["Step"], values=values)


class BadRowError(ValueError):
    """A line that is not a row of the file; the caller adds file and line to the message."""


class OverlongRowError(BadRowError):
    """More cells than columns, which a torn row cannot have."""


def parse_row(
    line: bytes, layout: Layout, remarks: dict[str, None] | None = None
) -> tuple[int, list[float], list[bool]]:
    """Parse one line into step, values (NaN where unknown) and which are unknown; raises BadRowError.

    What was read although another program writes it differently is added to `remarks`.
    """
    cells = split(decode(line))
    if cells[0].startswith(_CONFLICT):
        raise BadRowError(f"{quote(cells[0])}: two versions of the file are in it; keep one and remove the marks")
    if len(cells) > layout.width:
        raise OverlongRowError(f"{len(cells)} cells for {layout.width} columns; decimals need a point, not a comma")
    if len(cells) < layout.width:
        raise BadRowError(f"{len(cells)} cells for {layout.width} columns")
    remarks = {} if remarks is None else remarks
    step = parse_step(cells[layout.step], remarks)
    texts = [(name, cells[index]) for name, index in layout.values]
    missing = [is_unknown(text) for _, text in texts]
    for (_, text), is_missing in zip(texts, missing, strict=True):
        if is_missing and text:
            remarks.setdefault(f"{quote(text)} read as unknown")
    values = [
        math.nan if is_missing else _parse_value(name, text)
        for (name, text), is_missing in zip(texts, missing, strict=True)
    ]
    return step, values, missing


def is_unknown(text: str) -> bool:
    """Whether a cell says that there is no value: it is empty, or a word for that such as NA."""
    return not text or text.casefold() in _UNKNOWN


def parse_step(text: str, remarks: dict[str, None]) -> int:
    """Parse a Step, also one written as a whole floating-point number such as 1000.0 or 1e3; raises BadRowError."""
    if not _WHOLE.fullmatch(text):
        if _MAY_BE_THOUSANDS.fullmatch(text):
            raise BadRowError(
                f"Step is {quote(text)}, which may be thousands: save the file with whole numbers in Step"
            )
        value = float(text) if NUMBER.fullmatch(text) else math.nan
        if not value.is_integer() or abs(value) > _MAX_WHOLE_DOUBLE:
            raise BadRowError(f"Step is {quote(text)}, not a whole number" if text else "Step is empty")
        remarks.setdefault("steps are written as floating-point numbers")
        text = str(int(value))
    # int() raises a ValueError of its own for thousands of digits
    step = int(text) if len(text) < 25 else _MAX_STEP + 1
    if step < 0:
        raise BadRowError(f"Step is {text}, negative")
    if step > _MAX_STEP:
        raise BadRowError(f"Step is {quote(text)}, too large")
    return step


def _parse_value(name: str, text: str) -> float:
    if not NUMBER.fullmatch(text):
        hint = ""
        if DECIMAL_COMMA.fullmatch(text):
            hint = "; decimals need a point, not a comma: add `--decimal ,` or save the file with an English locale"
        elif _SPREADSHEET_ERROR.fullmatch(text):
            hint = " but an error of a spreadsheet: export the file again from the program that wrote it"
        raise BadRowError(f"{name} is {quote(text)}, not a number{hint}")
    value = float(text)
    # an overflow is not the known value "infinite"
    if math.isinf(value) and "n" not in text.lower():
        raise BadRowError(f"{name} is {quote(text)}, too large for a double")
    return value


def decode(line: bytes) -> str:
    """Decode a line without its end; raises BadRowError."""
    if b"\0" in line:
        raise BadRowError("holds a NUL byte; the file is damaged")
    try:
        return line.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise BadRowError(f"not UTF-8 (byte 0x{line[error.start]:02x}); save the file as UTF-8") from error


def split(text: str, separator: str = ",") -> list[str]:
    """Split a line into cells without quotes and blanks around them; raises BadRowError."""
    if '"' not in text:
        return [cell.strip(_BLANK) for cell in text.split(separator)]
    try:
        (cells,) = csv.reader([text], delimiter=separator, strict=True, skipinitialspace=True)
    except csv.Error as error:
        raise BadRowError("a quoted cell that does not end properly on its line") from error
    return [cell.strip(_BLANK) for cell in cells]


def quote(text: str) -> str:
    """Return a text in quotes, shortened."""
    return repr(text if len(text) <= 40 else text[:40] + "…")


def parse_plain(block: bytes, layout: Layout, last_step: int) -> Rows | None:
    """Parse whole lines, two to three times as fast as `parse_row` and with equal results.

    Return None where a cell is not a plain number or empty, or a step does not increase; `parse_row` finds the line.
    """
    import numpy as np

    block = block.replace(b"\r\n", b"\n")
    rows, width = block.count(b"\n"), layout.width
    if block.translate(None, _PLAIN) or block.translate(None, _NOT_SEPARATORS) != (b"," * (width - 1) + b"\n") * rows:
        return None
    cells = block[:-1].replace(b"\n", b",").split(b",")
    columns = [cells[index::width] for _, index in layout.values]
    try:
        steps = np.array(list(map(int, cells[layout.step :: width])), np.int64)
        values = np.array([[float(cell or b"nan") for cell in column] for column in columns])
    except (ValueError, OverflowError):
        return None
    # "inf" cannot occur here, so an infinite value is an overflow
    if steps[0] <= last_step or (np.diff(steps) <= 0).any() or np.isinf(values).any():
        return None
    return steps, values, np.array([[not cell for cell in column] for column in columns])
