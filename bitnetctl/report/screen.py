"""The head of a verdict for a terminal: claim, verdict, one row for each arm and size, why, what next."""

from collections import Counter
from collections.abc import Iterator

from rich.text import Text

from bitnetctl.report.escape import printable
from bitnetctl.report.fitted import Column, FittedTable, Row, Span
from bitnetctl.report.fold import fold
from bitnetctl.report.head import head_columns
from bitnetctl.units import plural, shortened
from bitnetctl.verdict import Outcome, Summary
from bitnetctl.verdict.summary import SummaryRow

OUTCOME_STYLES = {
    Outcome.SUPPORTED: "green",
    Outcome.REFUTED: "red",
    Outcome.INCONCLUSIVE: "yellow",
    Outcome.INVALID: "magenta",
}
MOST_LINES = 20
"""Lines of a screen in which a verdict fits; reasons beyond it are left to `--details`."""
MORE = "--details (every check) · --json · --report FILE.md · --html FILE.html"
_LABEL = 9
_WIDE = 100
_FEW_MEASURES = 2
# reasons, rows and blank lines: the first that fits
_ROOM: tuple[tuple[int, int, *tuple[Text, ...]], ...] = (
    (3, 8, Text()),
    (2, 8, Text()),
    (1, 8, Text()),
    (1, 8),
    (1, 6),
    (1, 4),
)
_STRICTEST = (Outcome.REFUTED, Outcome.INVALID, Outcome.INCONCLUSIVE, Outcome.SUPPORTED)


def summary_lines(summary: Summary, width: int) -> list[Text]:
    """Return the lines of a summary for a width, without the last one, which is `summary.last_line`."""
    lines: list[Text] = []
    for room in _ROOM:
        lines = list(_lines(summary, width, *room))
        if len(lines) < MOST_LINES:
            break
    return lines


def _lines(summary: Summary, width: int, reasons: int, rows: int, *blank: Text) -> Iterator[Text]:
    yield from _labelled("CLAIM", summary.claim, width)
    yield from _labelled("VERDICT", _verdict(summary), width)
    yield from _labelled("", _beside(summary), width)
    yield from _labelled("horizon", summary.horizon, width)
    yield from blank
    yield from _table(summary, rows, None if width >= _WIDE else _FEW_MEASURES).lines(width)
    yield from blank
    # the first reason is the headline of an open or invalid verdict
    why = [text for text in summary.why if text != summary.headline]
    for index, text in enumerate(why[:reasons]):
        hidden = len(why) - reasons if index == reasons - 1 else 0
        more = f" … {hidden} more" if hidden > 0 else ""
        yield from _labelled("" if index else "why", f"{text}{more}", width)
    yield from _labelled("effect", _effect(summary), width)
    notes = [*summary.notes, *[f"{plural(summary.all_notes, 'note')} with --details"] * bool(summary.all_notes)]
    yield from _labelled("note", "; ".join(notes), width)
    yield from _labelled("next", summary.next, width)
    yield from _labelled("more", MORE, width)


def _verdict(summary: Summary) -> Text:
    text = Text(summary.outcome.value.upper(), style=f"bold {OUTCOME_STYLES[summary.outcome]}")
    asked = f" for {shortened(summary.arms, 2)}, the arm asked for" * bool(summary.is_requested and summary.other_arms)
    return text.append(printable(f"{asked} (exit {summary.exit_code}): {summary.headline}"), style="not bold default")


def _beside(summary: Summary) -> str:
    others = [f"{arm}: {outcome.value}" for arm, outcome in summary.other_arms.items()]
    return " · ".join(filter(None, (shortened(others, 2), summary.criteria)))


def _effect(summary: Summary) -> str:
    """Return the effect of the arm that was asked for, else of the first."""
    if not summary.effect:
        return ""
    more = f" … {plural(len(summary.effect) - 1, 'more arm')}" if len(summary.effect) > 1 else ""
    return f"{summary.effect[0]}{more}"


def _labelled(label: str, text: str | Text, width: int) -> Iterator[Text]:
    """Yield a label and its text, folded beside it; nothing where the text is empty."""
    if not text:
        return
    style = "bold" if label.isupper() else "dim"
    for index, line in enumerate(fold(text, max(20, width - _LABEL))):
        yield Text.assemble((f"{'' if index else label:<{_LABEL}}", style), line)


def _table(summary: Summary, most: int, measures: int | None) -> FittedTable:
    """Return a row for each arm and size, at most so many, and one with what is needed."""
    rows = shown_rows(summary, most)
    columns = head_columns(summary, rows, measures)
    body: list[Row | Span] = []
    for row in rows:
        style = "bold" if row.is_asked and summary.other_arms else ""
        cells = [
            Text(one.text(row), style=OUTCOME_STYLES[row.verdict]) if one.header == "verdict" else one.text(row)
            for one in columns
        ]
        body.append(Row(cells, style=style))
    body.append(Row([one.needed for one in columns], style="dim"))
    hidden = Counter(row.verdict for row in summary.rows) - Counter(row.verdict for row in rows)
    if hidden:
        counts = ", ".join(f"{hidden[outcome]} {outcome.value}" for outcome in _STRICTEST if hidden[outcome])
        body.append(Span(f"… and {hidden.total()} more: {counts} (--details)", style="dim"))
    fitted = [Column(one.header, importance=one.importance, number=one.is_number) for one in columns]
    return FittedTable(fitted, body, header_style="dim", elsewhere="--details")


def shown_rows(summary: Summary, most: int) -> list[SummaryRow]:
    """Return the rows in their order or, where there are too many, the strictest of the arms that were asked for."""
    if len(summary.rows) <= most:
        return list(summary.rows)
    ranked = sorted(summary.rows, key=lambda row: (not row.is_asked, _STRICTEST.index(row.verdict)))
    return ranked[:most]
