"""What a part of a GPU window has found, written to its folder at once: JSON and Markdown. The standard library only.

A part may be killed at any time, so that every value and row is written when it is known.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# exit code of a part that has nothing to measure here
NOT_MEASURED = 3


class NotMeasuredError(Exception):
    """A part has nothing to measure on this machine or in this version; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What all parts are given; `work` is the folder of runs and caches."""

    device: str
    quick: bool
    work: str
    wheels: str
    text: str | None = None
    tokenizer: str | None = None


class Report:
    """Values, tables and texts of a part."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self.failures: list[str] = []
        self._not_measured = ""
        self._values: dict[str, Any] = {}
        self._tables: dict[str, list[dict[str, Any]]] = {}
        self._texts: list[str] = []
        self._write()

    def values(self, **values: Any) -> None:
        """Add values by name."""
        self._values.update(values)
        self._write()

    def row(self, table: str, row: Mapping[str, Any]) -> None:
        """Add a row to a table."""
        self._tables.setdefault(table, []).append(dict(row))
        self._write()

    def text(self, markdown: str) -> None:
        """Add a text below the tables."""
        self._texts.append(markdown)
        self._write()

    def failed(self, message: str) -> None:
        """Note a failure: the part goes on and ends as failed."""
        self.failures.append(message)
        self._write()

    def not_measured(self, message: str) -> None:
        """Note why there is nothing to measure."""
        self._not_measured = message
        self._write()

    def _write(self) -> None:
        content = {
            "part": self.name,
            "values": self._values,
            "tables": self._tables,
            "texts": self._texts,
            "failures": self.failures,
            "not_measured": self._not_measured,
        }
        write_text(self.folder / f"{self.name}.json", json.dumps(content, indent=1, default=str) + "\n")
        lines = [f"# {self.name}", ""]
        lines += [f"**failed:** {failure}\n" for failure in self.failures]
        lines += [f"not measured: {self._not_measured}\n"] if self._not_measured else []
        lines += [f"- {name}: {cell(value)}" for name, value in self._values.items()]
        for title, rows in self._tables.items():
            lines += ["", f"## {title}", "", markdown_table(rows)]
        lines += [f"\n{text}" for text in self._texts]
        write_text(self.folder / f"{self.name}.md", "\n".join(lines) + "\n")


def write_text(path: Path, text: str) -> None:
    """Replace a file at once, so that a reader never finds half of it."""
    beside = path.with_name(f"{path.name}.new")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as a Markdown table; columns are those of all rows, in the order in which they appear."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    numeric = {column: any(isinstance(row.get(column), int | float) for row in rows) for column in columns}
    lines = [columns, ["--:" if numeric[column] else ":--" for column in columns]]
    lines += [[cell(row.get(column)).replace("|", "\\|") for column in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(value: Any) -> str:
    """Return a value as text for a table; – is unknown."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return " ".join(str(value).split())
