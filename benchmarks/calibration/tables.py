"""Tables of results: printed as Markdown and as JSON."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """A result: title, a note on how to read it, cells as text, and what breaks a promise."""

    title: str
    note: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    faults: Sequence[str] = ()

    def markdown(self) -> str:
        """Return title and note as a paragraph, and a Markdown table."""
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        return "\n".join([f"**{self.title}.** {self.note}", "", *(f"| {' | '.join(line)} |" for line in lines), ""])


def rate_text(rate: float) -> str:
    """Format a probability, such as `.049`; one that is not 0 is never shown as if it were."""
    if 0 < rate < 0.0005:
        return "<.001"
    return f"{rate:.3f}".removeprefix("0")


def rates_text(*rates: float) -> str:
    """Format several probabilities, such as `.049/.021`."""
    return "/".join(map(rate_text, rates))


def worst_text(pairs: Sequence[Sequence[float]]) -> str:
    """Format the largest probability of each position."""
    return rates_text(*map(max, zip(*pairs, strict=True)))
