"""The head of a verdict for a terminal: claim, verdict, one row for each arm and size, why, what next."""

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from rich.text import Text

from bitnetctl.escape import printable
from bitnetctl.report.fitted import Column, FittedTable, Row, Span
from bitnetctl.report.fold import fold
from bitnetctl.report.head import for_arms, head_columns, other_arms
from bitnetctl.units import plural
from bitnetctl.verdict import Outcome, Summary
from bitnetctl.verdict.summary import SummaryRow

OUTCOME_STYLES = {
    Outcome.SUPPORTED: "green",
    Outcome.REFUTED: "red",
    Outcome.INCONCLUSIVE: "yellow",
    Outcome.INVALID: "magenta",
}
MOST_LINES = 20
"""Lines in which a verdict fits at 80 columns; what is beyond is left to `--details`."""
MORE = "--details (every check) · --json · --report FILE.md · --html FILE.html"
_LABEL = 9
_WIDE = 100
_FEW_MEASURES = 2
_FEW_ARMS = 2


class _Room(NamedTuple):
    """How much is shown; `is_short` cuts reasons, notes and what stands beside the verdict to one line each.

    The table has a blank line above it and one below, or with `blanks` 1 none below.
    """

    reasons: int
    rows: int
    blanks: int = 2
    is_short: bool = False


# the first that fits is taken
_ROOMS = (
    _Room(3, 8),
    _Room(2, 8),
    _Room(1, 8),
    _Room(1, 8, is_short=True),
    _Room(1, 8, blanks=1, is_short=True),
    _Room(1, 6, blanks=1, is_short=True),
    _Room(1, 4, blanks=1, is_short=True),
    _Room(1, 4, blanks=0, is_short=True),
)
_STRICTEST = (Outcome.REFUTED, Outcome.INVALID, Outcome.INCONCLUSIVE, Outcome.SUPPORTED)


def summary_lines(summary: Summary, width: int, *, whole: bool = False) -> list[Text]:
    """Return the lines of a summary for a width, without the last one, which is `summary.last_line`.

    Where they are too many, they are shortened unless `whole` is wanted.
    """
    if whole:
        return list(_lines(summary, width, _Room(len(summary.further_reasons), len(summary.rows))))
    # a narrow terminal has more lines to fold a sentence into
    most = MOST_LINES * max(width, 80) // max(1, width)
    lines: list[Text] = []
    for room in _ROOMS:
        lines = list(_lines(summary, width, room))
        if len(lines) < most:
            break
    return lines


def _lines(summary: Summary, width: int, room: _Room) -> Iterator[Text]:
    one, few = (1, 3) if room.is_short else (None, None)
    yield from _labelled("CLAIM", summary.claim, width, few)
    yield from _labelled("VERDICT", _verdict(summary), width, few)
    yield from _labelled("", _beside(summary), width, one)
    yield from _labelled("so", summary.conclusion, width, few)
    yield from _labelled("scale", summary.scale, width, few)
    yield from _labelled("horizon", summary.horizon, width, one)
    yield from [Text()] * (room.blanks > 0)
    yield from _table(summary, room.rows, None if width >= _WIDE else _FEW_MEASURES).lines(width)
    yield from [Text()] * (room.blanks > 1)
    why = summary.further_reasons
    for index, reason in enumerate(why[: room.reasons]):
        text = reason.text(2 if room.is_short else None)
        hidden = len(why) - room.reasons if index == room.reasons - 1 else 0
        more = f" … {hidden} more" if hidden > 0 else ""
        yield from _labelled("" if index else "why", f"{text}{more}", width, one)
    yield from _labelled("effect", _effect(summary, width - _LABEL if room.is_short else None), width, one)
    all_notes = [f"{plural(summary.all_notes, 'note')} with --details"] * bool(summary.all_notes)
    notes = [*summary.notes[:1], *all_notes] if room.is_short else [*summary.notes, *all_notes]
    yield from _labelled("note", "; ".join(notes), width, one)
    yield from _labelled("next", summary.next, width, few)
    yield from _labelled("more", MORE, width)


def _verdict(summary: Summary) -> Text:
    text = Text(summary.outcome.value.upper(), style=f"bold {OUTCOME_STYLES[summary.outcome]}")
    rest = f"{for_arms(summary, _FEW_ARMS)} (exit {summary.exit_code}): {summary.headline}"
    return text.append(printable(rest), style="not bold default")


def _beside(summary: Summary) -> str:
    return " · ".join(filter(None, (other_arms(summary, _FEW_ARMS), summary.criteria)))


def _effect(summary: Summary, room: int | None) -> str:
    """Return the effect of the arm that was asked for, else of the first; without its pairs where there is no room."""
    if not summary.effect:
        return ""
    more = f" … {plural(len(summary.effect) - 1, 'more arm')}" if len(summary.effect) > 1 else ""
    whole = f"{summary.effect[0]}{more}"
    return whole if room is None or len(whole) <= room else f"{summary.effect[0].partition(' (lower')[0]}{more}"


def _labelled(label: str, text: str | Text, width: int, most: int | None = None) -> Iterator[Text]:
    """Yield a label and its text, folded beside it and cut after `most` lines; nothing where the text is empty."""
    if not text:
        return
    style, room = "bold" if label.isupper() else "dim", max(20, width - _LABEL)
    lines = fold(text, room)
    if most is not None and len(lines) > most:
        lines = lines[:most]
        lines[-1].truncate(room - 2)
        lines[-1].append(" …")
    for index, line in enumerate(lines):
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
