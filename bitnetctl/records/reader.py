"""Read a run's CSV: this tool's, the origin's, or any that has the five required columns."""

from __future__ import annotations

import csv
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, BinaryIO, TypeAlias

from pydantic_core import from_json

from bitnetctl.errors import RecordError
from bitnetctl.records.schema import NAMES, REQUIRED

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd

_BLOCK = 1 << 20
_LONGEST_LINE = 1 << 20
_BOM = b"\xef\xbb\xbf"
_BLANK = " \t"
_MAX_STEP = 2**63 - 1
_NUMBER = re.compile(r"[+-]?(?:(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:e[+-]?[0-9]+)?|nan|inf|infinity)", re.IGNORECASE)
_WHOLE = re.compile(r"[+-]?[0-9]+")
_DECIMAL_COMMA = re.compile(r"[+-]?[0-9.]*,[0-9]+(?:e[+-]?[0-9]+)?", re.IGNORECASE)
# all that a JSON array of these bytes can hold is numbers in a subset of the form of _NUMBER
_PLAIN = b"0123456789+-.eEnaN,\n"
_NOT_SEPARATORS = bytes(byte for byte in range(256) if byte not in b",\n")

_Rows: TypeAlias = "tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], npt.NDArray[np.bool_]]"
"""Steps (rows,), figures (figure columns, rows), which of the figures are unknown."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Records:
    """The figures of one run.

    `frame` holds the schema's columns that the file has, in the schema's order: Step int64, the others
    float64. NaN and infinity in it are facts unless `unknown[column]` (bool, one per row, for every column of
    the schema) is True there; an absent column is unknown throughout.
    """

    path: Path
    title: str | None
    frame: pd.DataFrame
    unknown: Mapping[str, npt.NDArray[np.bool_]]
    extra: tuple[str, ...]
    notes: tuple[str, ...]

    def value(self, column: str, step_index: int) -> float | None:
        """Return the figure in row `step_index`, None where unknown; KeyError for a foreign name."""
        if self.unknown[column][step_index]:
            return None
        return float(self.frame[column].iloc[step_index])

    def known(self, column: str) -> bool:
        """Whether the file has at least one known cell of a schema column."""
        return not self.unknown[column].all()

    def diverged_at(self) -> int | None:
        """Return the first step whose Loss or HeldOutLoss is known and not finite."""
        import numpy as np

        diverged = np.zeros(len(self.frame), dtype=np.bool_)
        for column in ("Loss", "HeldOutLoss"):
            if column in self.frame:
                diverged |= ~np.isfinite(self.frame[column].to_numpy()) & ~self.unknown[column]
        return int(self.frame["Step"].iloc[int(diverged.argmax())]) if diverged.any() else None


def read(path: Path | str, *, partial: bool = True) -> Records:
    """Read a CSV of figures; raises RecordError naming `file:line` for whatever cannot be trusted.

    A last row that was cut while being written (no newline, and short or unparsable) is dropped and noted;
    with `partial=False`, for runs that are known to be finished, it is an error.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            return _Reader(path, partial=partial).read(file)
    except OSError as error:
        raise RecordError(f"{path}: cannot read: {error.strerror or error}") from error


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where the known columns stand in the rows of a file."""

    width: int
    step: int
    figures: tuple[tuple[str, int], ...]

    @classmethod
    def of(cls, names: Sequence[str]) -> Layout:
        """Lay out a header that has a Step."""
        place = {name: index for index, name in enumerate(names)}
        figures = tuple((name, place[name]) for name in NAMES if name in place and name != "Step")
        return cls(width=len(names), step=place["Step"], figures=figures)


class BadRowError(ValueError):
    """A row that is not one; the message lacks the place, which the caller knows."""


class _OverlongRowError(BadRowError):
    """More cells than columns: no row that was cut while being written looks like this."""


def parse_row(line: bytes, layout: Layout) -> tuple[int, list[float], list[bool]]:
    """Parse one line into step, figures (NaN where unknown) and which are unknown; raises BadRowError."""
    cells = _split(_decode(line))
    if len(cells) > layout.width:
        raise _OverlongRowError(f"{len(cells)} cells for {layout.width} columns; decimals need a point, not a comma")
    if len(cells) < layout.width:
        raise BadRowError(f"{len(cells)} cells for {layout.width} columns")
    step = _parse_step(cells[layout.step])
    texts = [cells[index] for _, index in layout.figures]
    figures = [
        _parse_figure(name, text) if text else math.nan for (name, _), text in zip(layout.figures, texts, strict=True)
    ]
    return step, figures, [not text for text in texts]


def _parse_step(text: str) -> int:
    if not _WHOLE.fullmatch(text):
        raise BadRowError(f"Step is {_quote(text)}, not a whole number" if text else "Step is empty")
    # the length first: int() refuses thousands of digits in its own words
    step = int(text) if len(text) < 25 else _MAX_STEP + 1
    if step < 0:
        raise BadRowError(f"Step is {text}, negative")
    if step > _MAX_STEP:
        raise BadRowError(f"Step is {_quote(text)}, too large")
    return step


def _parse_figure(name: str, text: str) -> float:
    if not _NUMBER.fullmatch(text):
        hint = ""
        if _DECIMAL_COMMA.fullmatch(text):
            hint = "; decimals need a point, not a comma: save the file with an English locale"
        raise BadRowError(f"{name} is {_quote(text)}, not a number{hint}")
    figure = float(text)
    # an overflow must not pass for the fact "infinite"
    if math.isinf(figure) and "n" not in text.lower():
        raise BadRowError(f"{name} is {_quote(text)}, too large for a double")
    return figure


def _decode(line: bytes) -> str:
    if b"\0" in line:
        raise BadRowError("holds a NUL byte; the file is damaged")
    try:
        return line.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise BadRowError(f"not UTF-8 (byte 0x{line[error.start]:02x}); save the file as UTF-8") from error


def _split(text: str) -> list[str]:
    if '"' not in text:
        return [cell.strip(_BLANK) for cell in text.split(",")]
    try:
        (cells,) = csv.reader([text], strict=True, skipinitialspace=True)
    except csv.Error as error:
        raise BadRowError("a quoted cell that does not end properly on its line") from error
    return [cell.strip(_BLANK) for cell in cells]


def _mentions_step(line: bytes, separator: bytes) -> bool:
    return any(cell.strip(b' \t\r\n"') == b"Step" for cell in re.split(separator, line))


def _quote(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "…")


def parse_plain(block: bytes, layout: Layout, last_step: int) -> _Rows | None:
    """Parse whole rows of plain numbers at C speed; None where a row needs the careful way.

    What it returns equals what parse_row gives line by line, some ten times faster.
    """
    import numpy as np

    if b"\r" in block:
        block = block.replace(b"\r\n", b"\n")
    if block.translate(None, _PLAIN):
        return None
    rows = block.count(b"\n")
    if block.translate(None, _NOT_SEPARATORS) != (b"," * (layout.width - 1) + b"\n") * rows:
        return None
    characters = np.frombuffer(block, np.uint8)
    ends = np.flatnonzero((characters == ord(",")) | (characters == ord("\n")))
    unknown = (np.diff(ends, prepend=-1) == 1).reshape(rows, layout.width)
    try:
        cells = from_json(_json_array(block, gaps=bool(unknown.any())))
        steps = cells[layout.step :: layout.width]
        if set(map(type, steps)) != {int}:
            return None
        steps = np.array(steps, np.int64)
        figures = np.empty((len(layout.figures), rows))
        for place, (_, index) in enumerate(layout.figures):
            figures[place] = cells[index :: layout.width]
    except (ValueError, OverflowError):
        return None
    # an infinity may be an overflow, which only the text can tell
    if steps[0] <= last_step or (np.diff(steps) <= 0).any() or np.isinf(figures).any():
        return None
    return steps, figures, unknown[:, [index for _, index in layout.figures]].T


def _json_array(block: bytes, *, gaps: bool) -> bytes:
    if gaps:
        # twice: neighbours overlap
        block = block.replace(b",,", b",nan,").replace(b",,", b",nan,")
        block = block.replace(b",\n", b",nan\n").replace(b"\n,", b"\nnan,")
    return b"[" + block[:-1].replace(b"\n", b",").replace(b"nan", b"NaN") + b"]"


@dataclass(kw_only=True)
class _Cursor:
    """How far the reader is."""

    line: int = 0
    step: int = -1
    blank: int | None = None
    notes: list[str] = field(default_factory=list)
    parts: list[_Rows] = field(default_factory=list)


class _Reader:
    def __init__(self, path: Path, *, partial: bool) -> None:
        self.path = path
        self.partial = partial
        self.at = _Cursor()

    def read(self, file: BinaryIO) -> Records:
        title, names = self._read_header(file)
        layout = Layout.of(names)
        # a block ends at a line's end, except at the file's
        while block := self._next_block(file):
            cut = block.rfind(b"\n") + 1
            if cut:
                self._read_block(block[:cut], layout)
            if cut < len(block):
                self._read_tail(block[cut:], layout)
        if not self.at.parts:
            reason = f" ({self.at.notes[-1]})" if self.at.notes else ""
            raise self._error(max(self.at.line, 1), f"a header and no rows{reason}")
        return self._collect(title, names, layout)

    def _next_block(self, file: BinaryIO) -> bytes:
        block = file.read(_BLOCK)
        return block + self._read_line(file, self.at.line + block.count(b"\n") + 1)

    def _read_line(self, file: BinaryIO, number: int) -> bytes:
        """Read up to the line's end; no file fills the memory with a line that has none."""
        line = file.readline(_LONGEST_LINE + 1)
        if len(line) > _LONGEST_LINE:
            raise self._error(number, f"a line of more than {_LONGEST_LINE:,} bytes; this is no file of figures")
        return line

    def _read_header(self, file: BinaryIO) -> tuple[str | None, list[str]]:
        first = self._read_line(file, 1).removeprefix(_BOM)
        if not first.strip():
            rest = self._read_line(file, 2)
            if not rest.strip():
                raise self._error(1, "the file is empty")
            raise self._error(1, "a blank first line; a title or the header belongs there")
        self.at.line = 1
        first_text, names = self._header_cells(first)
        title = None
        if not set(REQUIRED) <= set(names):
            # the title may hold commas and even "Step", so the second line decides
            here = file.tell()
            second = self._read_line(file, 2)
            if _mentions_step(second, b"[,;\t]"):
                title = first_text.strip()
                self.at.line = 2
                _, names = self._header_cells(second)
            else:
                file.seek(here)
        self._check_header(first if title is None else second, names)
        return title, names

    def _header_cells(self, line: bytes) -> tuple[str, list[str]]:
        try:
            text = _decode(line)
        except BadRowError as error:
            raise self._error(self.at.line, str(error)) from error
        try:
            return text, _split(text)
        except BadRowError:
            # a title may hold a lone quote
            return text, []

    def _check_header(self, line: bytes, names: list[str]) -> None:
        where = self.at.line
        if b"\r" in line.rstrip(b"\r\n"):
            raise self._error(where, "lines end in a bare CR; save the file with LF or CRLF line ends")
        if "Step" not in names:
            for separator, called in ((b";", "semicolons"), (b"\t", "tabs")):
                if _mentions_step(line, separator):
                    raise self._error(
                        where,
                        f"cells are separated by {called}; save the file with commas between cells "
                        "and points in decimals",
                    )
            raise self._error(where, f"no header: expected a line with {','.join(REQUIRED)}")
        repeated = sorted(name for name, count in Counter(names).items() if count > 1)
        if repeated:
            raise self._error(where, f"duplicate columns: {', '.join(map(_quote, repeated))}")
        missing = [name for name in REQUIRED if name not in names]
        if missing:
            raise self._error(where, f"missing columns: {', '.join(missing)}")

    def _read_block(self, block: bytes, layout: Layout) -> None:
        at = self.at
        rows = parse_plain(block, layout, at.step) if at.blank is None else None
        if rows is not None:
            at.line += len(rows[0])
            at.step = int(rows[0][-1])
            at.parts.append(rows)
            return
        parsed = []
        for line in block[:-1].split(b"\n"):
            at.line += 1
            if not line.strip():
                at.blank = at.blank or at.line
                continue
            try:
                parsed.append(parse_row(line, layout))
            except BadRowError as error:
                raise self._error(at.line, str(error)) from error
            self._advance(parsed[-1][0])
        self._keep(parsed)

    def _read_tail(self, line: bytes, layout: Layout) -> None:
        self.at.line += 1
        if not line.strip():
            return
        try:
            row = parse_row(line, layout)
        except BadRowError as error:
            if isinstance(error, _OverlongRowError) or not self.partial:
                raise self._error(self.at.line, f"{error} (the last row, without a newline)") from error
            self.at.notes.append(f"line {self.at.line}: torn last row dropped: {error}")
            return
        self._advance(row[0])
        self._keep([row])
        self.at.notes.append(f"line {self.at.line}: the last row has no newline; its last cell may have been cut short")

    def _advance(self, step: int) -> None:
        at = self.at
        if at.blank is not None:
            raise self._error(at.blank, "a blank line between rows")
        if step <= at.step:
            how = "repeated" if step == at.step else f"after {at.step}; steps must increase"
            raise self._error(at.line, f"Step {step} {how}")
        at.step = step

    def _keep(self, parsed: list[tuple[int, list[float], list[bool]]]) -> None:
        import numpy as np

        if parsed:
            steps, figures, unknown = zip(*parsed, strict=True)
            self.at.parts.append(
                (np.array(steps, np.int64), np.array(figures, np.float64).T, np.array(unknown, np.bool_).T)
            )

    def _collect(self, title: str | None, names: list[str], layout: Layout) -> Records:
        import numpy as np
        import pandas as pd

        steps = np.concatenate([part[0] for part in self.at.parts])
        known = np.zeros(len(steps), dtype=np.bool_)
        absent = np.ones(len(steps), dtype=np.bool_)
        data: dict[str, npt.NDArray[np.int64] | npt.NDArray[np.float64]] = {"Step": steps}
        unknown = dict.fromkeys(NAMES, absent) | {"Step": known}
        for place, (name, _) in enumerate(layout.figures):
            data[name] = np.concatenate([part[1][place] for part in self.at.parts])
            unknown[name] = np.concatenate([part[2][place] for part in self.at.parts])
        for mask in unknown.values():
            mask.flags.writeable = False
        return Records(
            path=self.path,
            title=title,
            frame=pd.DataFrame(data, copy=False),
            unknown=MappingProxyType(unknown),
            extra=tuple(name for name in names if name not in NAMES),
            notes=tuple(self.at.notes),
        )

    def _error(self, line: int, message: str) -> RecordError:
        return RecordError(f"{self.path}:{line}: {message}")
