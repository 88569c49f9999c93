"""Tables of results: printed as Markdown and as JSON."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol


class Printable(Protocol):
    """What is printed of a table."""

    @property
    def title(self) -> str: ...
    @property
    def note(self) -> str: ...
    @property
    def columns(self) -> Sequence[str]: ...
    @property
    def rows(self) -> Sequence[Sequence[str]]: ...


@dataclass(frozen=True)
class Table:
    """A result: title, a note on how to read it, cells as text, and the cells that break a promise."""

    title: str
    note: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    faults: Sequence[str] = ()


def markdown(table: Printable) -> str:
    """Return title and note as a paragraph, and a Markdown table."""
    lines = [table.columns, ["---"] * len(table.columns), *table.rows]
    return "\n".join([f"**{table.title}.** {table.note}", "", *(f"| {' | '.join(line)} |" for line in lines), ""])


def to_json(table: Printable) -> dict[str, Any]:
    """Return title, note, and the rows by column."""
    return {
        "title": table.title,
        "note": table.note,
        "columns": list(table.columns),
        "rows": [list(row) for row in table.rows],
        "faults": list(getattr(table, "faults", ())),
    }


def rate_text(rate: float) -> str:
    """Format a probability, such as `.049`; one that is not 0 is never shown as if it were."""
    if 0 < rate < 0.0005:
        return "<.001"
    return f"{rate:.3f}".removeprefix("0")
