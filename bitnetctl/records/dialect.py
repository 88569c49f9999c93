"""Rewrite a CSV that another program saved anew, where it is certain what it means, for the strict reader.

Spreadsheets, editors, version control, shells and logging libraries change encoding, line ends, separators, decimals
and the number of rows of a step. What could mean two things is left as it is, so that the reader refuses it, or is
refused here with what to do.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from bitnetctl.records.cells import (
    DECIMAL_COMMA,
    NUMBER,
    BadRowError,
    is_unknown,
    parse_step,
    quote,
    schema_names,
    split,
)
from bitnetctl.records.encoding import decode_text
from bitnetctl.records.schema import NAMES
from bitnetctl.units import plural

MAX_BYTES = 2**26
"""Size up to which a file is rewritten."""
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}

_LINES_BEFORE_HEADER = 10
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?', re.IGNORECASE)
_GROUPED = re.compile(r"[+-]?[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]*)?")
_BLANKS = re.compile("[ \u00a0\u2009\u202f'\u2019]")
_GROUPED_BY_BLANKS = re.compile(rf"[+-]?[0-9]{{1,3}}(?:{_BLANKS.pattern}[0-9]{{3}})+(?:[.,][0-9]*)?")
_POINT = re.compile(r"[0-9]*\.[0-9]")
# three digits after a point may be a group of thousands
_POINT_NOT_OF_GROUPS = re.compile(r"[+-]?[0-9]*\.(?:[0-9]{1,2}|[0-9]{4,})(?:e.*)?|[+-]?[0-9.]+e.*", re.IGNORECASE)
_SPEED = "TokensPerSecond"


class DialectError(ValueError):
    """A file whose meaning is not certain; `line` is where that shows, the message says what to do."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


@dataclass(frozen=True, kw_only=True)
class Plain:
    """A CSV in UTF-8 with commas and LF; `lines` are the numbers that its lines have in the original file.

    It ends without a newline where the original does. `notes` say what was done.
    """

    content: bytes
    lines: tuple[int, ...]
    notes: tuple[str, ...]


def rewrite(
    content: bytes, *, required: Collection[str], columns: Mapping[str, str] | None = None, decimal: str = "."
) -> Plain | None:
    """Return the rewritten file, None where there is nothing to rewrite or no header with the required columns.

    `columns` are names in the file by those in the schema. Raises DialectError.
    """
    notes: dict[str, None] = {}
    text, is_utf16 = (None, False) if len(content) > MAX_BYTES else decode_text(content)
    if text is None or "\0" in text:
        return None
    if is_utf16:
        notes["read as UTF-16"] = None
    if "\n" not in text and "\r" in text:
        notes["lines end in a bare CR"] = None
        text = text.replace("\r", "\n")
    lines = [line.rstrip("\r").removeprefix("\ufeff") for line in text.split("\n")]
    table = _find_header(lines, required, columns or {}, notes)
    if table is None:
        return None
    table.add_rows(lines)
    table.trim(ends_whole=not lines[-1])
    table.convert_decimals(decimal)
    return table.plain(_joined_parts(table), ends_whole=not lines[-1], unchanged=content)


def _find_header(
    lines: Sequence[str], required: Collection[str], columns: Mapping[str, str], notes: dict[str, None]
) -> _Table | None:
    """Return a table without rows for the first line that names the required columns.

    Before it there may be a line that names the separator, one title, and comments.
    """
    separators: Sequence[str] = tuple(SEPARATORS)
    title: int | None = None
    for index, line in enumerate(lines[:_LINES_BEFORE_HEADER]):
        named = _SEPARATOR_LINE.fullmatch(line.strip()) if index == 0 else None
        if named is not None:
            separators = [named[1]]
            notes[f"a first line {quote(line.strip())} left out"] = None
            continue
        if not line.strip():
            notes["blank lines before the header left out"] = None
            continue
        for separator in separators:
            try:
                names = split(line, separator)
            except BadRowError:
                continue
            if set(required) <= set(schema_names(names, columns)):
                if separator != ",":
                    notes[f"cells are separated by {SEPARATORS.get(separator, quote(separator))}"] = None
                return _Table(
                    title=title,
                    header=index,
                    names=names,
                    separator=separator,
                    columns=columns,
                    notes=notes,
                    lines=lines,
                )
        if title is None:
            title = index
        elif not line.startswith("#"):
            return None
    return None


@dataclass(kw_only=True)
class _Row:
    """One row: the number of its line, and its cells."""

    line: int
    cells: list[str]


@dataclass(kw_only=True)
class _Table:
    """The cells of a file; `title` and `header` are indices of `lines`."""

    title: int | None
    header: int
    names: list[str]
    separator: str
    columns: Mapping[str, str]
    notes: dict[str, None]
    lines: Sequence[str]
    rows: list[_Row] = field(default_factory=list)

    @cached_property
    def known(self) -> dict[str, int]:
        """Indices of the columns of the schema, by name; only once the names are final."""
        return {name: index for index, name in enumerate(schema_names(self.names, self.columns)) if name in NAMES}

    def add_rows(self, lines: Sequence[str]) -> None:
        """Split the lines after the header; blank ones between rows are left out, also those with separators only."""
        blank = False
        for index in range(self.header + 1, len(lines)):
            if not lines[index].strip(f" \t{self.separator}"):
                blank = True
                continue
            try:
                cells = split(lines[index], self.separator)
            except BadRowError as error:
                if index < len(lines) - 1:
                    raise DialectError(index + 1, str(error)) from error
                # a torn last row is the reader's to judge
                cells = [lines[index]]
            blank = blank or not any(cells)
            if not any(cells):
                continue
            if blank and self.rows:
                self.notes["blank lines between rows left out"] = None
            blank = False
            self.rows.append(_Row(line=index + 1, cells=cells))

    def trim(self, *, ends_whole: bool) -> None:
        """Leave out empty cells that all rows have beyond the named columns, and name columns without a name."""
        named = len(_without_empty_end(self.names))
        used = max((len(_without_empty_end(row.cells)) for row in self.rows), default=0)
        headers = {id(row) for row in self.rows if _without_empty_end(row.cells) == _without_empty_end(self.names)}
        rows = [row for row in self.rows if id(row) not in headers]
        # a last row without a newline may be torn
        lengths = {len(row.cells) for row in (rows if ends_whole or len(rows) == 1 else rows[:-1])}
        width = max(named, min(used, len(self.names)))
        if used <= width and len(lengths) == 1:
            for row in self.rows:
                if len(row.cells) > width:
                    row.cells = row.cells[:width]
                    self.notes["empty cells at the ends of rows left out"] = None
            if min(lengths) >= width:
                self.names = self.names[:width]
        if self.names.count("") > 1:
            self.names = [name or f"column {index + 1}" for index, name in enumerate(self.names)]

    def convert_decimals(self, decimal: str) -> None:
        """Write the numbers of the schema's columns with a point; raises DialectError where a comma is uncertain."""
        self._remove_blanks_in_numbers()
        numbers = list(self._numbers())
        commas = [(row, index) for row, index in numbers if "," in row.cells[index]]
        if decimal == ",":
            self._convert_commas(numbers, commas)
            return
        if not commas:
            return
        have_points = any(_POINT.search(row.cells[index]) for row, index in numbers)
        if have_points and all(_GROUPED.fullmatch(row.cells[index]) for row, index in commas):
            for row, index in commas:
                row.cells[index] = row.cells[index].replace(",", "")
            self.notes["commas between thousands left out"] = None
            return
        for row, index in commas:
            if DECIMAL_COMMA.fullmatch(row.cells[index]) and self.separator in SEPARATORS:
                name = schema_names(self.names, self.columns)[index]
                raise DialectError(
                    row.line,
                    f"{name} is {quote(row.cells[index])}: cells are separated by {SEPARATORS[self.separator]} and "
                    "decimals have a comma; add `--decimal ,`, or save the file with points",
                )

    def _remove_blanks_in_numbers(self) -> None:
        """Remove blanks and apostrophes between thousands, which no locale has before decimals."""
        for row, index in self._numbers():
            if _GROUPED_BY_BLANKS.fullmatch(row.cells[index]):
                row.cells[index] = _BLANKS.sub("", row.cells[index])
                self.notes["blanks between thousands left out"] = None

    def _numbers(self) -> Iterator[tuple[_Row, int]]:
        for row in self.rows:
            for index in self.known.values():
                if index < len(row.cells) and row.cells[index]:
                    yield row, index

    def _convert_commas(self, numbers: Sequence[tuple[_Row, int]], commas: Sequence[tuple[_Row, int]]) -> None:
        points = [(row, index) for row, index in numbers if "." in row.cells[index]]
        if points and commas:
            row, index = points[0]
            raise DialectError(
                row.line,
                f"{quote(row.cells[index])} has a point, other numbers a comma: save the file with points only",
            )
        if points and not any(_POINT_NOT_OF_GROUPS.fullmatch(row.cells[index]) for row, index in points):
            row, index = points[0]
            raise DialectError(
                row.line, f"{quote(row.cells[index])} has a point and no number a comma: leave out `--decimal ,`"
            )
        for row, index in commas:
            if index == self.known["Step"] and _GROUPED.fullmatch(row.cells[index]):
                raise DialectError(
                    row.line, f"Step is {quote(row.cells[index])}, which may be thousands: save the file without them"
                )
            if DECIMAL_COMMA.fullmatch(row.cells[index]):
                row.cells[index] = row.cells[index].replace(",", ".")
                self.notes["decimals have a comma"] = None

    def step(self, row: _Row) -> int:
        """Return the Step of a row; raises DialectError."""
        index = self.known["Step"]
        try:
            return parse_step(row.cells[index] if index < len(row.cells) else "", {})
        except BadRowError as error:
            raise DialectError(row.line, str(error)) from error

    def plain(self, rows: Sequence[_Row], *, ends_whole: bool, unchanged: bytes) -> Plain | None:
        """Return title, header and rows as a plain file."""
        head = [] if self.title is None else [self.lines[self.title].rstrip(f" \t{self.separator}")]
        lines = [*head, *map(_joined, [self.names, *(row.cells for row in rows)])]
        content = "\n".join(lines) + ("\n" if ends_whole or not rows else "")
        numbers = [] if self.title is None else [self.title + 1]
        numbers += [self.header + 1, *(row.line for row in rows)]
        if content.encode() == unchanged or not (rows or self.notes):
            return None
        return Plain(content=content.encode(), lines=tuple(numbers), notes=tuple(self.notes))


def _without_empty_end(cells: Sequence[str]) -> Sequence[str]:
    end = len(cells)
    while end and not cells[end - 1]:
        end -= 1
    return cells[:end]


def _joined(cells: Sequence[str]) -> str:
    return ",".join(
        '"' + cell.replace('"', '""') + '"' if "," in cell or '"' in cell or not cell.isprintable() else cell
        for cell in cells
    )


def _joined_parts(table: _Table) -> list[_Row]:
    """Return the rows without further headers; raises DialectError where what follows one does not continue.

    A program that resumes writes its header again and, from its checkpoint on, steps that are there already: the same
    run if the values are the same.
    """
    expected = schema_names(table.names, table.columns)
    parts: list[tuple[int, list[_Row]]] = [(0, [])]
    step = table.known["Step"]
    for row in table.rows:
        if step < len(row.cells) and NUMBER.fullmatch(row.cells[step]):
            parts[-1][1].append(row)
            continue
        names = schema_names(row.cells, table.columns)
        if "Step" in names:
            if list(_without_empty_end(names)) != list(_without_empty_end(expected)):
                raise DialectError(
                    row.line, "a second header, with other columns; give what follows it a file of its own"
                )
            parts.append((row.line, []))
        else:
            parts[-1][1].append(row)
    rows = _merged_rows(table, parts[0][1])
    for line, part in parts[1:]:
        table.notes[f"line {line}: a second header left out"] = None
        rows = _continued(table, rows, line, _merged_rows(table, part))
    return rows


def _continued(table: _Table, rows: list[_Row], line: int, part: list[_Row]) -> list[_Row]:
    if not rows or not part or table.step(part[0]) > table.step(rows[-1]):
        return rows + part
    first = table.step(part[0])
    before, again = ({table.step(row): row for row in of_part} for of_part in (rows, part))
    if [*before] != sorted(before) or [*again] != sorted(again) or len(before) + len(again) < len(rows) + len(part):
        # within a part steps do not increase, which the reader refuses
        return rows + part
    if first <= table.step(rows[0]):
        raise DialectError(
            line, f"a second header, after which steps start again at {first}; give every run a file of its own"
        )
    common = [(row, before[step]) for step, row in again.items() if step in before]
    differing = next((new for new, old in common if not _are_equal(table, new, old)), None)
    if differing is not None or not common:
        at = table.step(differing or part[0])
        raise DialectError(
            line,
            f"a second header, after which step {at} comes again with other values; keep the rows of one of the parts",
        )
    table.notes[f"line {line}: {plural(len(common), 'step')} repeated with the same values"] = None
    joined = before | again
    return [joined[step] for step in sorted(joined)]


def _are_equal(table: _Table, row: _Row, other: _Row) -> bool:
    cells = [(row.cells[index], other.cells[index]) for name, index in table.known.items() if name != _SPEED]
    return all(_equal_cells(*pair) for pair in cells)


def _equal_cells(text: str, other: str) -> bool:
    if text == other or (is_unknown(text) and is_unknown(other)):
        return True
    return bool(NUMBER.fullmatch(text) and NUMBER.fullmatch(other)) and float(text) == float(other)


def _merged_rows(table: _Table, rows: Sequence[_Row]) -> list[_Row]:
    """Join successive rows of one step that have different cells, as loggers write for each call; others stay."""
    merged: list[_Row] = []
    steps: set[str] = set()
    at = table.known["Step"]
    for row in rows:
        last = merged[-1] if merged else None
        if last is not None and _complement(table, last.cells, row.cells):
            steps.add(row.cells[at])
            merged[-1] = _Row(
                line=last.line,
                cells=[new if is_unknown(old) else old for old, new in zip(last.cells, row.cells, strict=True)],
            )
        else:
            merged.append(row)
    if steps:
        table.notes[
            f"several rows of one step, each with some of the values, joined ({plural(len(steps), 'step')})"
        ] = None
    return merged


def _complement(table: _Table, cells: Sequence[str], others: Sequence[str]) -> bool:
    """Whether two rows have the same Step, and values that the other lacks, and do not contradict each other."""
    if len(cells) != len(table.names) or len(others) != len(table.names):
        return False
    pairs = [(cells[index], others[index]) for name, index in table.known.items() if name != "Step"]
    if not _equal_cells(cells[table.known["Step"]], others[table.known["Step"]]):
        return False
    adds = [not is_unknown(other) for cell, other in pairs if is_unknown(cell)]
    had = [not is_unknown(cell) for cell, other in pairs if is_unknown(other)]
    both = [_equal_cells(*pair) for pair in pairs if not any(map(is_unknown, pair))]
    return any(adds) and any(had) and all(both)
