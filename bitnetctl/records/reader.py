"""Read a run's CSV: bitnetctl's, the founding document's, or any with the five required columns."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, BinaryIO

from bitnetctl.errors import RecordError, cannot_read
from bitnetctl.records import dialect
from bitnetctl.records.cells import (
    BadRowError,
    Layout,
    OverlongRowError,
    Rows,
    decode,
    parse_plain,
    parse_row,
    quote,
    schema_names,
    split,
)
from bitnetctl.records.foreign import what_it_is
from bitnetctl.records.one_run import OneRun, names_runs
from bitnetctl.records.schema import NAMES, REQUIRED
from bitnetctl.units import shortened

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd

_BLOCK = 1 << 20
_LONGEST_LINE = 1 << 20
_REMEDY = "sort the rows by Step or, where a resumed run repeats steps, keep those of one part"
_BOM = b"\xef\xbb\xbf"


class NoRowsError(RecordError):
    """A CSV has a header and no rows, or is empty."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Records:
    """The rows of one run.

    `frame` holds those columns of the schema that the file has, in the schema's order: Step int64, the others float64.
    `unknown[column]` (bool, one per row, for every column of the schema) is True where a cell is empty, and throughout
    for an absent column; elsewhere NaN and infinity in `frame` are known values. `extra` are columns that the schema
    lacks, `notes` what was done to read the file, with `torn`, which says that the last row was dropped or may be cut
    short. `origin` is the format of the log of another program that they come from.
    """

    path: Path
    title: str | None
    frame: pd.DataFrame
    unknown: Mapping[str, npt.NDArray[np.bool_]]
    extra: tuple[str, ...]
    notes: tuple[str, ...]
    torn: str | None = None
    origin: str | None = None

    def value(self, column: str, index: int) -> float | None:
        """Return the value in row `index`, None where unknown; KeyError for a column that the schema lacks."""
        if self.unknown[column][index]:
            return None
        return float(self.frame[column].iloc[index])

    def has_values(self, column: str) -> bool:
        """Whether a column of the schema has a value that is not unknown."""
        return not self.unknown[column].all()

    def diverged_at(self) -> int | None:
        """Return the first step whose Loss or HeldOutLoss is NaN or infinite, None without one."""
        import numpy as np

        diverged = np.zeros(len(self.frame), dtype=np.bool_)
        for column in ("Loss", "HeldOutLoss"):
            if column in self.frame:
                diverged |= ~np.isfinite(self.frame[column].to_numpy()) & ~self.unknown[column]
        return int(self.frame["Step"].iloc[int(diverged.argmax())]) if diverged.any() else None


def read(
    path: Path | str, *, partial: bool = True, columns: Mapping[str, str] | None = None, decimal: str = "."
) -> Records:
    """Read a run's CSV; raises RecordError naming `file:line` where the file is malformed or damaged.

    A torn last row (no newline, and too few cells or a cell that is no number) is dropped and noted; with
    `partial=False`, for a run that is known to be finished, it is an error. `columns` gives the names that columns of
    the schema have in the file; then no others but Step are required. `decimal` is a point or a comma, which a file
    with other separators between cells may have in its numbers.
    """
    path = Path(path)
    reader = _Reader(path, partial=partial, columns=columns)
    try:
        with path.open("rb") as file:
            source = file if file.seekable() else _whole(path, file)
            try:
                return reader.read_one_run(source)
            except RecordError as error:
                source.seek(0)
                content = source.read(dialect.MAX_BYTES + 1)
                as_read = error
                what = what_it_is(content)
                if what is not None:
                    raise RecordError(f"{path}:1: {what}") from error
    except OSError as error:
        raise RecordError(cannot_read(path, error)) from error
    try:
        plain = dialect.rewrite(content, required=reader.required, columns=columns, decimal=decimal)
    except dialect.DialectError as error:
        raise RecordError(f"{path}:{error.line}: {error}") from error
    if plain is None:
        raise as_read
    return _Reader(path, partial=partial, columns=columns, plain=plain).read_one_run(io.BytesIO(plain.content))


def _whole(path: Path, pipe: BinaryIO) -> BinaryIO:
    """Return the content of a pipe, which can be read once only."""
    content = pipe.read(dialect.MAX_BYTES + 1)
    if len(content) > dialect.MAX_BYTES:
        raise RecordError(f"{path}: more than {dialect.MAX_BYTES // 2**20} MiB from a pipe; write a file and give that")
    return io.BytesIO(content)


class _Reader:
    """State while one file is read: last line number and step, number of the first blank line."""

    def __init__(
        self,
        path: Path,
        *,
        partial: bool,
        columns: Mapping[str, str] | None = None,
        plain: dialect.Plain | None = None,
    ) -> None:
        self.path = path
        self.partial = partial
        self.columns = columns
        self.required = ("Step", *(name for name in columns if name != "Step")) if columns else REQUIRED
        self.lines = plain.lines if plain else ()
        self.remarks: dict[str, None] = dict.fromkeys(plain.notes if plain else ())
        self.torn: str | None = None
        self.ends_unjudged = False
        self.line = self.header = 0
        self.step = -1
        self.blank: int | None = None
        self.parts: list[Rows] = []

    def read_one_run(self, file: BinaryIO) -> Records:
        """Read a file and refuse one with several runs, which only its further columns may tell."""
        records = self.read(file)
        if any(map(names_runs, records.extra)):
            file.seek(0)
            run = OneRun()
            lines = file.read().decode("utf-8-sig").split("\n")
            header = split(lines[self.header - 1].rstrip("\r"))
            for number, line in enumerate(lines[self.header :], start=self.header + 1):
                # only a torn last row cannot be split
                cells = split(line.rstrip("\r")) if number < len(lines) else []
                wrong = run.contradiction(dict(zip(header, cells, strict=False)))
                if wrong is not None:
                    raise self._error(number, wrong)
        return records

    def read(self, file: BinaryIO) -> Records:
        title, names = self._read_header(file)
        layout = Layout.of(names)
        self.ends_unjudged = names[-1] == "TokensPerSecond" or names[-1] not in NAMES
        # a block ends with a line, unless the file ends without a newline
        while block := self._next_block(file):
            cut = block.rfind(b"\n") + 1
            if cut:
                self._read_block(block[:cut], layout)
            if cut < len(block):
                self._read_tail(block[cut:], layout)
        if not self.parts:
            reason = f" ({self.torn})" if self.torn else ""
            raise NoRowsError(self._located(max(self.line, 1), f"a header and no rows{reason}"))
        return self._collect(title, names, layout)

    def _next_block(self, file: BinaryIO) -> bytes:
        block = file.read(_BLOCK)
        return block + self._read_line(file, self.line + block.count(b"\n") + 1)

    def _read_line(self, file: BinaryIO, number: int) -> bytes:
        """Read the rest of a line, of limited length, so that a file without newlines does not fill the memory."""
        line = file.readline(_LONGEST_LINE + 1)
        if len(line) > _LONGEST_LINE:
            raise self._error(number, f"a line of more than {_LONGEST_LINE:,} bytes; this is not the CSV of a run")
        return line

    def _read_header(self, file: BinaryIO) -> tuple[str | None, list[str]]:
        first = self._read_line(file, 1).removeprefix(_BOM)
        if not first.strip():
            if not self._read_line(file, 2).strip():
                raise NoRowsError(self._located(1, "the file is empty"))
            raise self._error(1, "a blank first line, not a title or the header")
        self.line = 1
        first_text, names = self._header_cells(first)
        title = None
        if not set(self.required) <= set(names):
            # the title may hold commas and even "Step", so the second line decides
            here = file.tell()
            second = self._read_line(file, 2)
            if self._mentions_step(second):
                title = first_text.strip()
                self.line = 2
                _, names = self._header_cells(second)
            else:
                file.seek(here)
        self._check_header(first if title is None else second, names)
        self._note_names(first if title is None else second, names)
        self.header = self.line
        return title, names

    def _header_cells(self, line: bytes) -> tuple[str, list[str]]:
        try:
            text = decode(line)
        except BadRowError as error:
            raise self._error(self.line, str(error)) from error
        try:
            return text, schema_names(split(text), self.columns)
        except BadRowError:
            # a title may hold a lone quote
            return text, []

    def _note_names(self, line: bytes, names: Sequence[str]) -> None:
        """Note which columns are named otherwise than in the schema."""
        mapped = (self.columns or {}).values()
        pairs = [(cell, name) for cell, name in zip(split(decode(line)), names, strict=True) if cell != name]
        read_as = [pair for pair in pairs if pair[1] in NAMES and pair[0] not in mapped]
        if read_as:
            cells, meant = ([pair[index] for pair in read_as] for index in (0, 1))
            self.remarks[f"the columns {shortened(cells, 3)} are read as {shortened(meant, 3)}"] = None

    def _mentions_step(self, line: bytes, separators: str = ",;\t") -> bool:
        text = line.decode("utf-8", "replace").strip("\r\n").replace('"', "")
        return any("Step" in schema_names(split(text, separator), self.columns) for separator in separators)

    def _check_header(self, line: bytes, names: list[str]) -> None:
        where = self.line
        if b"\r" in line.rstrip(b"\r\n"):
            raise self._error(where, "lines end in a bare CR; save the file with LF or CRLF line ends")
        if "Step" not in names:
            for separator, called in dialect.SEPARATORS.items():
                if separator != "," and self._mentions_step(line, separator):
                    advice = "save the file with commas between cells and points in decimals"
                    raise self._error(where, f"cells are separated by {called}; {advice}")
            known = "" if self.columns else ", or a known log of another program; --map names the columns of others"
            raise self._error(where, f"no header: expected a line with {','.join(self._names_in_file())}{known}")
        repeated = sorted(name for name, count in Counter(names).items() if count > 1)
        if repeated:
            cells = split(decode(line))
            meant = [cell for cell, name in zip(cells, names, strict=True) if name == repeated[0]]
            if len(set(meant)) > 1:
                several = " and ".join(map(quote, meant))
                raise self._error(
                    where, f"{several} both mean {repeated[0]}; say which with `--map {repeated[0]}=NAME`"
                )
            raise self._error(where, f"duplicate columns: {', '.join(map(quote, repeated))}; remove one of each")
        missing = [name for name in self.required if name not in names]
        if missing:
            there = f"; there are: {shortened(names, 12)}" if self.columns else ""
            raise self._error(where, f"missing columns: {', '.join(self._names_in_file(missing))}{there}")

    def _names_in_file(self, names: Sequence[str] = ()) -> list[str]:
        return [(self.columns or {}).get(name, name) for name in names or self.required]

    def _read_block(self, block: bytes, layout: Layout) -> None:
        rows = parse_plain(block, layout, self.step) if self.blank is None else None
        if rows is not None:
            self.line += len(rows[0])
            self.step = int(rows[0][-1])
            self.parts.append(rows)
            return
        parsed = []
        for line in block[:-1].split(b"\n"):
            self.line += 1
            if not line.strip():
                self.blank = self.blank or self.line
                continue
            try:
                parsed.append(parse_row(line, layout, self.remarks))
            except BadRowError as error:
                raise self._error(self.line, str(error)) from error
            self._advance(parsed[-1][0])
        self._keep(parsed)

    def _read_tail(self, line: bytes, layout: Layout) -> None:
        self.line += 1
        if not line.strip():
            return
        try:
            row = parse_row(line, layout, self.remarks)
        except BadRowError as error:
            if isinstance(error, OverlongRowError) or not self.partial:
                raise self._error(self.line, f"{error} (the last row, without a newline)") from error
            self.torn = f"line {self._number(self.line)}: torn last row dropped: {error}"
            return
        self._advance(row[0])
        self._keep([row])
        note = f"line {self._number(self.line)}: the last row has no newline; its last cell may have been cut short"
        if self.ends_unjudged:
            self.remarks[f"{note}, which no check uses"] = None
        else:
            self.torn = note

    def _advance(self, step: int) -> None:
        if self.blank is not None:
            raise self._error(self.blank, "a blank line between rows")
        if step <= self.step:
            how = "repeated" if step == self.step else f"after {self.step}; steps must increase: {_REMEDY}"
            raise self._error(self.line, f"Step {step} {how}")
        self.step = step

    def _keep(self, parsed: list[tuple[int, list[float], list[bool]]]) -> None:
        import numpy as np

        if parsed:
            steps, values, unknown = zip(*parsed, strict=True)
            self.parts.append((np.array(steps, np.int64), np.array(values).T, np.array(unknown).T))

    def _collect(self, title: str | None, names: list[str], layout: Layout) -> Records:
        import numpy as np
        import pandas as pd

        steps = np.concatenate([part[0] for part in self.parts])
        known = np.zeros(len(steps), dtype=np.bool_)
        absent = np.ones(len(steps), dtype=np.bool_)
        data: dict[str, npt.NDArray[np.int64] | npt.NDArray[np.float64]] = {"Step": steps}
        unknown = dict.fromkeys(NAMES, absent) | {"Step": known}
        for index, (name, _) in enumerate(layout.values):
            data[name] = np.concatenate([part[1][index] for part in self.parts])
            unknown[name] = np.concatenate([part[2][index] for part in self.parts])
        for mask in unknown.values():
            mask.flags.writeable = False
        return Records(
            path=self.path,
            title=title,
            frame=pd.DataFrame(data, copy=False),
            unknown=MappingProxyType(unknown),
            extra=tuple(name for name in names if name not in NAMES),
            notes=(*self.remarks, *([self.torn] if self.torn else [])),
            torn=self.torn,
        )

    def _error(self, line: int, message: str) -> RecordError:
        return RecordError(self._located(line, message))

    def _located(self, line: int, message: str) -> str:
        return f"{self.path}:{self._number(line)}: {message}"

    def _number(self, line: int) -> int:
        """Return the number that a line has in the file itself."""
        return self.lines[min(line, len(self.lines)) - 1] if self.lines else line
