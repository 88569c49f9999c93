"""Tables that fit any width: what identifies a row stays, no number is cut, and columns left out are named.

In a wide terminal a table is as usual. In a narrower one headers wrap at words and names of arms fold between
interventions; then the least important columns are left out, which a line below the table says; where not even what
identifies a row and one value fit, each row becomes lines of `header: value`.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from bitnetctl.report.fold import fold, longest_number, longest_piece, plain
from bitnetctl.units import plural

_UNKNOWN = ("–", "")
_INDENT = 2
# a note with less room than this stands below its row
_LEAST_NOTE = 24
# below this width one blank may stand between two columns instead of two
_NARROW = 48

Cell: TypeAlias = str | Text
"""A string is shown as it is, without markup; a Text keeps its style and its line breaks."""


@dataclass(frozen=True)
class Column:
    """A column of a table.

    `importance` None is for what identifies a row, which is never left out; of the others the lowest is left out first,
    but before all of them one without a value in any row. A `number` is aligned right and never folded. Other cells
    are text, which folds. A `note` is free text in the last column, which is never left out; with little room it stands
    below its row.
    """

    header: str
    importance: int | None = None
    number: bool = False
    note: bool = False


@dataclass(frozen=True)
class Row:
    """The cells of a row, one for each column."""

    cells: Sequence[Cell]
    style: str = ""


@dataclass(frozen=True)
class Span:
    """A line of text across the table."""

    text: Cell
    style: str = ""
    indent: int = 0


class _Fit(NamedTuple):
    """Indices of the columns to show, none if not even one value fits; the least width of all; the gap between two."""

    kept: list[int]
    least: list[int]
    gap: int


@dataclass(frozen=True)
class FittedTable:
    """A table for rich that adapts to the width it is given; see the module.

    `elsewhere` says where the columns that are left out can be seen; without it no line names them.
    """

    columns: Sequence[Column]
    rows: Sequence[Row | Span]
    title: Cell = ""
    title_style: str = "bold"
    header_style: str = "bold"
    show_header: bool = True
    elsewhere: str = "wider terminal or --json"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for line in self.lines(options.max_width):
            line.no_wrap, line.overflow = True, "ignore"
            yield line

    def left_out(self, width: int) -> list[str]:
        """Return the headers of the columns that a width has no room for."""
        kept = self._fit(width).kept
        return [one.header for index, one in enumerate(self.columns) if kept and index not in kept]

    def lines(self, width: int) -> list[Text]:
        """Return the table as lines of at most `width` columns."""
        title = [_styled(line, self.title_style) for line in fold(self.title, width)] if self.title else []
        fit = self._fit(width)
        if not fit.kept:
            return [*title, *self._stacked(width)]
        return [*title, *self._laid_out(fit, self._widths(fit, width), width), *self._left_out_line(width)]

    @property
    def _body(self) -> list[Row]:
        return [row for row in self.rows if isinstance(row, Row)]

    def _fit(self, width: int) -> _Fit:
        """Choose the columns to show."""
        kept = list(range(len(self.columns)))
        least = [self._least(index, width) for index in kept]

        def fits(gap: int) -> bool:
            inline = [least[index] for index in kept if not self.columns[index].note]
            return sum(inline) + gap * (len(inline) - 1) <= width

        gap = 1 if width < _NARROW and not fits(2) else 2
        values = [index for index in kept if self.columns[index].importance is not None]
        values.sort(key=lambda index: (not self._is_empty(index), self.columns[index].importance))
        for index in values[:-1]:
            if fits(gap):
                break
            kept.remove(index)
        return _Fit(kept if fits(gap) else [], least, gap)

    def _is_empty(self, index: int) -> bool:
        return all(plain(row.cells[index]) in _UNKNOWN for row in self._body)

    def _least(self, index: int, width: int) -> int:
        """Return the columns that a column needs: a number its longest, text its longest word within reason."""
        column = self.columns[index]
        cells = [row.cells[index] for row in self._body]
        header = longest_piece(column.header, hyphens=True) if self.show_header else 0
        if column.number:
            return max([header, *map(_natural, cells)])
        words = min(max(map(longest_piece, cells), default=0), _least_text(width))
        return max([header, words, *map(longest_number, cells)])

    def _widths(self, fit: _Fit, width: int) -> dict[int, int]:
        """Return the width of each column; a note that stands below its row has none."""
        kept, least, gap = fit
        widths = {index: least[index] for index in kept if not self.columns[index].note}
        room = width - sum(widths.values()) - gap * (len(widths) - 1)

        def widen(index: int, wanted: int) -> None:
            nonlocal room
            more = max(0, min(room, wanted - widths[index]))
            widths[index] += more
            room -= more

        # first what identifies a row, then other text, then notes, then headers on one line
        natural = {index: max((_natural(row.cells[index]) for row in self._body), default=0) for index in kept}
        for index in sorted(widths, key=lambda index: self.columns[index].importance is not None):
            widen(index, natural[index])
        for index in kept:
            wanted = max(natural[index], _natural(self.columns[index].header))
            if self.columns[index].note and min(wanted, _LEAST_NOTE) <= room - gap:
                widths[index] = 0
                room -= gap
                widen(index, wanted)
        for index in widths if self.show_header else ():
            widen(index, _header_width(self.columns[index].header, widths[index], widths[index] + room))
        return widths

    def _laid_out(self, fit: _Fit, widths: Mapping[int, int], width: int) -> Iterator[Text]:
        if self.show_header:
            headers = [fold(self.columns[index].header, size) for index, size in widths.items()]
            height = max(map(len, headers))
            # the last line of every header stands on its column
            cells = [[*[Text()] * (height - len(header)), *header] for header in headers]
            yield from (_styled(line, self.header_style) for line in self._joined(cells, widths, fit.gap))
        for row in self.rows:
            if isinstance(row, Span):
                yield from _spanned(row, width)
                continue
            cells = [
                [_text(row.cells[index])] if self.columns[index].number else fold(row.cells[index], size)
                for index, size in widths.items()
            ]
            lines = list(self._joined(cells, widths, fit.gap))
            for index in fit.kept:
                if index not in widths and plain(row.cells[index]):
                    lines += _spanned(Span(row.cells[index], indent=_INDENT), width)
            yield from (_styled(line, row.style) for line in lines)

    def _joined(self, cells: Sequence[Sequence[Text]], widths: Mapping[int, int], gap: int) -> Iterator[Text]:
        """Yield lines of cells side by side, without blanks at their ends."""
        for parts in itertools.zip_longest(*cells, fillvalue=Text()):
            padded = []
            for part, (index, size) in zip(parts, widths.items(), strict=True):
                padding = " " * max(0, size - part.cell_len)
                is_number = self.columns[index].number
                padded.append(Text.assemble(padding * is_number, part, padding * (not is_number)))
            line = Text(" " * gap).join(padded)
            line.rstrip()
            yield line

    def _left_out_line(self, width: int) -> list[Text]:
        names = self.left_out(width)
        if not names or not self.elsewhere:
            return []
        text = f"{plural(len(names), 'column')} left out at {width} columns: {', '.join(names)} ({self.elsewhere})"
        return [_styled(line, "dim") for line in fold(text, width)]

    def _stacked(self, width: int) -> Iterator[Text]:
        """Yield `header: value` for every cell, as many on a line as fit, and a blank line between rows."""
        for number, row in enumerate(self.rows):
            if isinstance(row, Span):
                yield from _spanned(row, width)
                continue
            if number and isinstance(self.rows[number - 1], Row):
                yield Text()
            line = Text()
            for column, cell in zip(self.columns, row.cells, strict=True):
                if not plain(cell):
                    continue
                part = Text(f"{column.header}: " if column.header else "").append_text(_text(cell))
                if line.cell_len and line.cell_len + 2 + _natural(part) > width:
                    yield _styled(line, row.style)
                    line = Text()
                *complete, last = fold(part, width, indent=_INDENT)
                yield from (_styled(one, row.style) for one in complete)
                line = last if complete or not line.cell_len else line.append("  ").append_text(last)
            yield _styled(line, row.style)


def rows_of(cells: Iterable[Sequence[Cell]]) -> list[Row]:
    """Return rows without a style of their own."""
    return [Row(of_row) for of_row in cells]


def _least_text(width: int) -> int:
    """Return the columns that a folded column of text keeps: most interventions fit on one line."""
    return max(12, min(16, width * 2 // 5), width // 5)


def _header_width(header: str, least: int, most: int) -> int:
    """Return the smallest width between two at which a header has the fewest lines."""
    widths = range(least, max(least, min(most, _natural(header))) + 1)
    return min(widths, key=lambda width: len(fold(header, width)))


def _natural(cell: Cell) -> int:
    """Return the columns of a cell that is not folded."""
    return max(map(cell_len, plain(cell).split("\n")))


def _text(cell: Cell) -> Text:
    return Text(plain(cell)) if isinstance(cell, str) else cell.copy()


def _spanned(span: Span, width: int) -> Iterator[Text]:
    for line in fold(span.text, width - span.indent):
        yield _styled(Text(" " * span.indent).append_text(line), span.style)


def _styled(line: Text, style: str) -> Text:
    if style:
        line.stylize_before(style)
    return line
