"""CSVs as spreadsheets, editors and logging libraries write them anew, for `benchmarks.fuzz`.

A `Sheet` is changed by any number of functions of `RESAVED`, which keep its meaning, and one of `SPOILED`, after which
it is not certain; then `Sheet.content` is the file.
"""

import csv
import io
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from bitnetctl.records import NAMES

Table = list[list[str]]


@dataclass(kw_only=True)
class Sheet:
    """Header and rows, and how they are saved; `before` are lines above the header."""

    header: list[str]
    rows: Table
    before: list[str] = field(default_factory=list)
    separator: str = ","
    decimal: str = "."
    quoted: bool = False
    end: str = "\n"
    encoding: str = "utf-8"
    tail: str = ""

    @classmethod
    def of(cls, table: Table) -> "Sheet":
        """Return the sheet of a table whose first row is the header."""
        header, *rows = ([*row] for row in table)
        return cls(header=header, rows=rows)

    def column(self, name: str) -> int:
        """Return the index of a column that is named as in the schema, or nearly so."""
        plain = [cell.strip("# ").replace("_", "").replace(" ", "").casefold() for cell in self.header]
        return plain.index(name.casefold())

    def content(self) -> bytes:
        """Return the file."""
        rows = self.rows
        if self.decimal == ",":
            rows = [[cell.replace(".", ",") for cell in row] for row in rows]
        stream = io.StringIO()
        quoting: Literal[0, 1] = csv.QUOTE_ALL if self.quoted else csv.QUOTE_MINIMAL
        writer = csv.writer(stream, delimiter=self.separator, quoting=quoting, lineterminator="\n")
        writer.writerows([self.header, *rows])
        text = "".join(line + "\n" for line in self.before) + stream.getvalue()
        return (text + self.tail).replace("\n", self.end).encode(self.encoding)


Change = Callable[[Sheet, random.Random], None]


def _fifteen_digits(sheet: Sheet, rng: random.Random) -> None:
    at = sheet.column("Step")
    sheet.rows = [
        [f"{float(cell):.15g}" if cell and index != at and _is_number(cell) else cell for index, cell in enumerate(row)]
        for row in sheet.rows
    ]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _semicolons(sheet: Sheet, rng: random.Random) -> None:
    sheet.separator = ";"
    if rng.random() < 0.4:
        sheet.before.insert(0, "sep=;")


def _decimal_commas(sheet: Sheet, rng: random.Random) -> None:
    sheet.separator, sheet.decimal = rng.choice([";", "\t"]), ","


def _tabs(sheet: Sheet, rng: random.Random) -> None:
    sheet.separator = "\t"


def _encoding(sheet: Sheet, rng: random.Random) -> None:
    sheet.encoding = rng.choice(["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])


def _line_ends(sheet: Sheet, rng: random.Random) -> None:
    sheet.end = rng.choice(["\r\n", "\r", "\r\r\n"])


def _quoted(sheet: Sheet, rng: random.Random) -> None:
    sheet.quoted = True


def _empty_ends(sheet: Sheet, rng: random.Random) -> None:
    count = rng.randrange(1, 4)
    if rng.random() < 0.5:
        sheet.header += [""] * count
    sheet.rows = [[*row, *[""] * count] for row in sheet.rows]


def _index_column(sheet: Sheet, rng: random.Random) -> None:
    sheet.header.insert(0, rng.choice(["", "Unnamed: 0", "index"]))
    sheet.rows = [[str(index), *row] for index, row in enumerate(sheet.rows)]


def _float_steps(sheet: Sheet, rng: random.Random) -> None:
    at, form = sheet.column("Step"), rng.choice(["{:.1f}", "{:.4e}", "{:.18e}"])
    sheet.rows = [
        [form.format(float(cell)) if index == at else cell for index, cell in enumerate(row)] for row in sheet.rows
    ]


def _thousands(sheet: Sheet, rng: random.Random) -> None:
    at = sheet.column("Step")
    sheet.rows = [
        [f"{int(float(cell)):,}" if index == at and _is_number(cell) else cell for index, cell in enumerate(row)]
        for row in sheet.rows
    ]


def _blank_lines(sheet: Sheet, rng: random.Random) -> None:
    sheet.tail += "\n" * rng.randrange(3)
    for _ in range(rng.randrange(1, 4)):
        sheet.rows.insert(rng.randrange(len(sheet.rows) + 1), rng.choice([[], [""] * len(sheet.header)]))


def _other_order(sheet: Sheet, rng: random.Random) -> None:
    order = rng.sample(range(len(sheet.header)), len(sheet.header))
    sheet.header, *sheet.rows = ([row[index] for index in order] for row in [sheet.header, *sheet.rows])


def _foreign_columns(sheet: Sheet, rng: random.Random) -> None:
    at = rng.randrange(len(sheet.header) + 1)
    sheet.header.insert(at, rng.choice(["epoch", "Note", "größe", "wall time"]))
    for row in sheet.rows:
        row.insert(at, rng.choice(["0", "a, b", "x;y", 'a "b"', ""]))


def _spelling(sheet: Sheet, rng: random.Random) -> None:
    spell: Callable[[str], str] = rng.choice([str.lower, str.upper, lambda name: f" {name} ", _snake_case])
    sheet.header = [spell(name) for name in sheet.header]
    if rng.random() < 0.3:
        sheet.header[0] = f"# {sheet.header[0]}"


def _snake_case(name: str) -> str:
    letters = ["_" + letter.lower() if letter.isupper() and name[index - 1].islower() else letter.lower()
               for index, letter in enumerate(name)]  # fmt: skip
    return "".join(letters).lstrip("_")


def _counts_as_floats(sheet: Sheet, rng: random.Random) -> None:
    at = {sheet.column(name) for name in ("UniquePredictions", "ProbePositions", "BigramUnique")}
    sheet.rows = [
        [f"{float(cell):.1f}" if index in at and cell else cell for index, cell in enumerate(row)] for row in sheet.rows
    ]


def _words_for_unknown(sheet: Sheet, rng: random.Random) -> None:
    word, at = rng.choice(["NA", "N/A", "null", "None", "-", "#N/A", "<NA>"]), sheet.column("FlipRate")
    sheet.rows = [[cell or (word if index == at else "") for index, cell in enumerate(row)] for row in sheet.rows]


def _comments(sheet: Sheet, rng: random.Random) -> None:
    sheet.before.append(
        rng.choice(["# written by a logger", "BitNet scaling test: hidden=256", "hidden 256, Step, Loss"])
    )


def _second_header(sheet: Sheet, rng: random.Random) -> None:
    at = rng.randrange(2, len(sheet.rows))
    repeated = rng.randrange(0, min(4, at - 1))
    mark = "\ufeff" if rng.random() < 0.2 else ""
    header = [mark + sheet.header[0], *sheet.header[1:]]
    sheet.rows = [*sheet.rows[:at], header, *map(list, sheet.rows[at - repeated :])]


def _sparse_rows(sheet: Sheet, rng: random.Random) -> None:
    step = sheet.column("Step")
    first = set(rng.sample([index for index in range(len(sheet.header)) if index != step], len(sheet.header) // 2))
    rows = []
    for row in sheet.rows:
        halves = [[cell if index == step or (index in first) == of_first else "" for index, cell in enumerate(row)]
                  for of_first in (True, False)]  # fmt: skip
        rows += halves
    sheet.rows = rows


RESAVED: dict[str, tuple[Change, ...]] = {
    "a spreadsheet's": (
        _fifteen_digits,
        _empty_ends,
        _other_order,
        _blank_lines,
        _counts_as_floats,
        _words_for_unknown,
    ),
    "a log tool's": (_index_column, _float_steps, _foreign_columns, _spelling, _second_header, _sparse_rows),
}
SAVED: tuple[Change, ...] = (_semicolons, _decimal_commas, _tabs, _encoding, _line_ends, _quoted, _comments, _thousands)


def _descending(sheet: Sheet, rng: random.Random) -> None:
    sheet.rows.reverse()


def _shuffled(sheet: Sheet, rng: random.Random) -> None:
    rows = [*sheet.rows]
    while sheet.rows == rows:
        rng.shuffle(sheet.rows)


def _changed(sheet: Sheet, row: Sequence[str], rng: random.Random) -> list[str]:
    at = sheet.column("Loss")
    return [repr(float(cell) + rng.uniform(0.01, 1)) if index == at else cell for index, cell in enumerate(row)]


def _resumed_elsewhere(sheet: Sheet, rng: random.Random) -> None:
    at = rng.randrange(3, len(sheet.rows))
    again = [_changed(sheet, row, rng) for row in sheet.rows[at - 2 :]]
    sheet.rows = [*sheet.rows[:at], [*sheet.header], *again]


def _two_runs(sheet: Sheet, rng: random.Random) -> None:
    header = [[*sheet.header]] if rng.random() < 0.7 else []
    sheet.rows = [*sheet.rows, *header, *(_changed(sheet, row, rng) for row in sheet.rows)]


def _contradicting_rows(sheet: Sheet, rng: random.Random) -> None:
    at = rng.randrange(len(sheet.rows))
    other = _changed(sheet, sheet.rows[at], rng)
    other[sheet.column("TopShare")] = ""
    sheet.rows.insert(at + 1, other)


def _spreadsheet_errors(sheet: Sheet, rng: random.Random) -> None:
    sheet.rows[-1][sheet.column("HeldOutLoss")] = rng.choice(["#NUM!", "#DIV/0!", "#VALUE!", "########"])


def _two_columns_of_one_name(sheet: Sheet, rng: random.Random) -> None:
    sheet.header.append("loss")
    sheet.header[sheet.column("Loss")] = "LOSS"
    sheet.rows = [[*row, "1"] for row in sheet.rows]


SPOILED: dict[str, Change] = {
    "descending": _descending,
    "shuffled": _shuffled,
    "resumed elsewhere": _resumed_elsewhere,
    "two runs in one": _two_runs,
    "contradicting rows": _contradicting_rows,
    "spreadsheet errors": _spreadsheet_errors,
    "two of one name": _two_columns_of_one_name,
}


def resaved(table: Table, kind: str, rng: random.Random) -> Sheet:
    """Return the table as a program of this kind saves it, with its meaning kept."""
    assert table[0] == list(NAMES)
    sheet = Sheet.of(table)
    changes = RESAVED[kind]
    # in their order: blank lines and further headers come after what needs a whole table
    chosen = sorted(
        rng.sample(range(len(changes)), rng.randrange(1, 4)), key=lambda index: _LAST.get(changes[index], 0)
    )
    for index in chosen:
        changes[index](sheet, rng)
    for change in sorted(rng.sample(range(len(SAVED)), rng.randrange(3))):
        SAVED[change](sheet, rng)
    return sheet


_LAST: dict[Change, int] = {_sparse_rows: 1, _spelling: 2, _second_header: 3, _blank_lines: 4}
