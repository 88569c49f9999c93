"""The cells of a verdict's summary, as text for every kind of report."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from bitnetctl.units import UNKNOWN, format_value, shortened
from bitnetctl.verdict import Summary
from bitnetctl.verdict.outcome import number_text
from bitnetctl.verdict.summary import SummaryCell, SummaryColumn, SummaryRow, signed

_HUGE = 1e15


def for_arms(summary: Summary, most: int | None = None) -> str:
    """Return which arms a verdict is on, where others stand beside it; empty without others."""
    return f" for {shortened(summary.arms, most or len(summary.arms))}" if summary.other_arms else ""


def other_arms(summary: Summary, most: int | None = None) -> str:
    """Return the verdicts on the arms that stand beside."""
    texts = [f"{arm}: {outcome.value}" for arm, outcome in summary.other_arms.items()]
    return shortened(texts, most or len(texts))


def paragraphs(summary: Summary) -> list[tuple[str, Sequence[str]]]:
    """Return what stands below the table, by name: what follows, why, effect, notes, next step."""
    return [
        *((name, [text]) for name, text in (("so", summary.conclusion), ("scale", summary.scale)) if text),
        ("why", [reason.text() for reason in summary.further_reasons]),
        ("effect", summary.effect),
        ("note", summary.notes),
        ("next", [summary.next]),
    ]


class HeadColumn(NamedTuple):
    """A column of the table; `importance` is None where it identifies a row, else the lowest may be left out first."""

    header: str
    importance: int | None
    is_number: bool
    text: Callable[[SummaryRow], str]
    needed: str = ""


def head_columns(summary: Summary, rows: Sequence[SummaryRow], measures: int | None = None) -> list[HeadColumn]:
    """Return the columns of the rows that are shown, with the first `measures` of what decides (None: all).

    A column without a value in any row is left out.
    """
    deciding = list(enumerate(summary.columns))[:measures]
    cells = [cell for row in rows for cell in row.cells[: len(deciding)] if cell is not None]
    marks = " ×no" * any(cell.failed for cell in cells)
    marks += " ?open" * any(cell.undecided and not cell.failed for cell in cells)
    columns = [
        HeadColumn("arm", None, False, lambda row: row.arm, f"needed{marks}"),
        HeadColumn("size", None, True, lambda row: format_value(row.size)),
        HeadColumn("verdict", None, False, lambda row: row.verdict.value),
        HeadColumn("seeds ok", 100, True, lambda row: f"{row.seeds_ok}/{row.seeds}", _needed_seeds(summary)),
        HeadColumn("held-out", 50, True, lambda row: _loss(row.held_out_loss)),
        HeadColumn("vs base", 60, True, _versus_baseline),
        *(
            HeadColumn(column.name, 90 - 10 * index, True, _cell_of(index, column), _needed(column))
            for index, column in deciding
        ),
        HeadColumn("unique", 45, True, lambda row: _count(row.unique)),
    ]
    if any(column.measure == "UniquePredictions" for _, column in deciding):
        columns.pop()
    return [one for one in columns if any(one.text(row) != UNKNOWN for row in rows)]


def _cell_of(index: int, column: SummaryColumn) -> Callable[[SummaryRow], str]:
    return lambda row: cell_text(row.cells[index] if index < len(row.cells) else None, column)


def _loss(value: float | None) -> str:
    """Format a loss in two decimals, a huge one in four digits."""
    return number_text(value) if value is not None and abs(value) >= _HUGE else format_value(value, ".2f")


def _count(value: float | None) -> str:
    return number_text(value) if value is not None and abs(value) >= _HUGE else format_value(value, ",.0f")


def _versus_baseline(row: SummaryRow) -> str:
    return UNKNOWN if row.versus_baseline is None else signed(row.versus_baseline)


def _needed_seeds(summary: Summary) -> str:
    """Return how many of how many seeds have to be healthy; empty where that differs."""
    counts = {row.seeds_needed for row in summary.rows if row.is_asked}
    seeds = counts.pop() if len(counts) == 1 else None
    return f"{seeds[1]}/{seeds[0]}" if seeds is not None and seeds[0] else ""


def _needed(column: SummaryColumn) -> str:
    """Return the supporting condition as it fits a narrow column; that of pairs is in the claim."""
    return "" if column.is_count else column.needed.replace(" ", "")


def cell_text(cell: SummaryCell | None, column: SummaryColumn) -> str:
    """Format a mean, with `×` where every run fails by it and `×2/3` where some do, `?` where some are open."""
    if cell is None:
        return UNKNOWN
    text = UNKNOWN if cell.mean is None else value_text(cell.mean, column.threshold)
    if column.is_count:
        return f"{text}/{cell.runs}" + ("×" if cell.failed else "?" if cell.undecided else "")
    if cell.failed:
        return f"{text}×" + (f"{cell.failed}/{cell.runs}" if cell.failed < cell.runs else "")
    return f"{text}?" if cell.undecided else text


def value_text(value: float, threshold: float | None) -> str:
    """Format a value in two decimals, or in as many as tell it from 0 and from a threshold that it does not equal."""
    if abs(value) >= _HUGE:
        return number_text(value)
    if value == round(value):
        return f"{value:,.0f}"
    for digits in range(0 if abs(value) >= 100 else 2, 7):
        text = f"{value:,.{digits}f}"
        shown = float(text.replace(",", ""))
        if shown not in (0, threshold):
            return text.replace("-", "−")
    return number_text(value)
