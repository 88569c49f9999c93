"""The head of a verdict for a terminal: claim, verdict, one row for each arm and size, why, what next."""

from collections import Counter
from collections.abc import Iterator, Sequence

from rich.text import Text

from bitnetctl.report.columns import UNKNOWN, format_value
from bitnetctl.report.escape import printable
from bitnetctl.report.fitted import Column, FittedTable, Row, Span
from bitnetctl.report.fold import fold
from bitnetctl.units import shortened
from bitnetctl.verdict import Outcome, Summary
from bitnetctl.verdict.outcome import number_text
from bitnetctl.verdict.summary import SummaryCell, SummaryColumn, SummaryRow, signed

OUTCOME_STYLES = {
    Outcome.SUPPORTED: "green",
    Outcome.REFUTED: "red",
    Outcome.INCONCLUSIVE: "yellow",
    Outcome.INVALID: "magenta",
}
MOST_LINES = 20
"""Lines of a screen in which a verdict fits; reasons beyond it are left to `--details`."""
MOST_ROWS = 8
MOST_REASONS = 3
_LABEL = 9
_WIDE = 100
_FEW_MEASURES = 2
_STRICTEST = (Outcome.REFUTED, Outcome.INVALID, Outcome.INCONCLUSIVE, Outcome.SUPPORTED)
MORE = "--details (every check) · --json · --report FILE.md · --html FILE.html"


def summary_lines(summary: Summary, width: int) -> list[Text]:
    """Return the lines of a summary for a width, without the last one, which is `summary.last_line`."""
    lines: list[Text] = []
    for reasons in range(MOST_REASONS, 0, -1):
        lines = list(_lines(summary, width, reasons))
        if len(lines) < MOST_LINES:
            break
    return lines


def _lines(summary: Summary, width: int, reasons: int) -> Iterator[Text]:
    yield from _labelled("CLAIM", summary.claim, width)
    yield from _labelled("VERDICT", _verdict(summary), width)
    yield from _labelled("", _beside(summary), width)
    yield from _labelled("horizon", summary.horizon, width)
    yield Text()
    measures = len(summary.columns) if width >= _WIDE else _FEW_MEASURES
    yield from summary_table(summary, measures).lines(width)
    yield Text()
    # the first reason is the headline of an open or invalid verdict
    why = [text for text in summary.why if text != summary.headline]
    for index, text in enumerate(why[:reasons]):
        hidden = len(why) - reasons if index == reasons - 1 else 0
        more = f" … {hidden} more" if hidden > 0 else ""
        yield from _labelled("" if index else "why", f"{text}{more}", width)
    yield from _labelled("effect", _cut(summary.effect, 2, "more arms"), width)
    yield from _labelled("note", "; ".join(summary.notes), width)
    yield from _labelled("next", summary.next, width)
    yield from _labelled("more", MORE, width)


def _verdict(summary: Summary) -> Text:
    text = Text(summary.outcome.value.upper(), style=f"bold {OUTCOME_STYLES[summary.outcome]}")
    if summary.is_requested and summary.other_arms:
        text.append(f" for {shortened(summary.arms, 2)}, the arm asked for", style="default")
    return text.append(f" (exit {summary.exit_code}): {summary.headline}", style="not bold default")


def _beside(summary: Summary) -> str:
    others = [f"{arm}: {outcome.value}" for arm, outcome in summary.other_arms.items()]
    return " · ".join(filter(None, (shortened(others, 2), summary.criteria)))


def _cut(texts: Sequence[str], most: int, what: str) -> str:
    more = f"; … {len(texts) - most} {what}" if len(texts) > most else ""
    return "; ".join(texts[:most]) + more


def _labelled(label: str, text: str | Text, width: int) -> Iterator[Text]:
    """Yield a label and its text, folded beside it; nothing where the text is empty."""
    if not text:
        return
    shown = Text(printable(text)) if isinstance(text, str) else text
    style = "bold" if label.isupper() else "dim"
    for index, line in enumerate(fold(shown, max(20, width - _LABEL))):
        yield Text.assemble((f"{'' if index else label:<{_LABEL}}", style), line)


def summary_table(summary: Summary, measures: int) -> FittedTable:
    """Return a row for each arm and size, and one with what is needed; the strictest where there are many.

    `measures` is the most columns of what decides.
    """
    rows, deciding = shown_rows(summary), summary.columns[:measures]
    by_size = any(row.size is not None for row in rows)
    extra = (
        ("held-out", 50, lambda row: format_value(row.held_out_loss, ".2f")),
        ("vs base", 60, lambda row: UNKNOWN if row.versus_baseline is None else signed(row.versus_baseline)),
    )
    shown_extra = [one for one in extra if any(one[2](row) != UNKNOWN for row in rows)]
    shows_unique = all(column.measure != "UniquePredictions" for column in deciding)
    columns = [
        Column("arm"),
        *([Column("size", number=True)] * by_size),
        Column("verdict"),
        Column("seeds ok", importance=100, number=True),
        *(Column(header, importance=rank, number=True) for header, rank, _ in shown_extra),
        *(Column(one.name, importance=90 - rank * 10, number=True) for rank, one in enumerate(deciding)),
        *([Column("unique", importance=45, number=True)] * shows_unique),
    ]
    body: list[Row | Span] = [
        Row(
            [
                row.arm,
                *([format_value(row.size)] * by_size),
                Text(row.verdict.value, style=OUTCOME_STYLES[row.verdict]),
                f"{row.seeds_ok}/{row.seeds}",
                *(text(row) for _, _, text in shown_extra),
                *(cell_text(cell, one) for cell, one in zip(row.cells, deciding, strict=False)),
                *([format_value(row.unique, ",.0f")] * shows_unique),
            ],
            style="bold" if row.is_asked and summary.other_arms else "",
        )
        for row in rows
    ]
    needed = [needed_text(one) for one in deciding]
    blanks = [""] * len(shown_extra)
    body.append(
        Row(
            ["needed", *([""] * by_size), "", needed_seeds(summary), *blanks, *needed, *([""] * shows_unique)],
            style="dim",
        )
    )
    hidden = Counter(row.verdict for row in summary.rows) - Counter(row.verdict for row in rows)
    if hidden:
        counts = ", ".join(f"{hidden[outcome]} {outcome.value}" for outcome in _STRICTEST if hidden[outcome])
        body.append(Span(f"… and {hidden.total()} more: {counts} (--details)", style="dim"))
    return FittedTable(columns, body, header_style="dim", elsewhere="--details")


def shown_rows(summary: Summary, most: int = MOST_ROWS) -> list[SummaryRow]:
    """Return the rows in their order or, where there are too many, the strictest of the arms that were asked for."""
    if len(summary.rows) <= most:
        return list(summary.rows)
    ranked = sorted(summary.rows, key=lambda row: (not row.is_asked, _STRICTEST.index(row.verdict)))
    return ranked[:most]


def needed_seeds(summary: Summary) -> str:
    """Return how many of the planned seeds have to be healthy; empty where that differs or no number is enough."""
    counts = {(row.seeds_needed, row.seeds) for row in summary.rows if row.is_asked}
    needed, seeds = counts.pop() if len(counts) == 1 else (None, 0)
    return f"{needed}/{seeds}" if needed else ""


def needed_text(column: SummaryColumn) -> str:
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
    """Format a value in three digits, or in as many as tell it from a threshold that it does not equal."""
    if value == round(value):
        return f"{value:,.0f}"
    for digits in range(2, 7):
        text = f"{value:,.0f}" if abs(value) >= 100 and digits == 2 else f"{value:.{digits}f}"
        is_lost = float(text.replace(",", "")) == 0 != value
        if not is_lost and (threshold is None or value == threshold or float(text.replace(",", "")) != threshold):
            return text
    return number_text(value)
