"""The page of a claim as Markdown, with the plots as text."""

import math
from collections.abc import Iterable, Iterator

from bitnetctl.escape import markdown_cell, markdown_line, markdown_text, printable
from bitnetctl.report.claim import ClaimPage, Terms
from bitnetctl.report.markdown import markdown_table
from bitnetctl.report.seed_plot import Axis, SeedPlot, SeedRow

_WIDTH = 57
"""Columns of the axis of a plot."""
KEY = "`●` as claimed, `○` not as claimed, `×` a run failed, `◆` the median between its one-sided bounds `[` `]`"


def claim_lines(page: ClaimPage) -> list[str]:
    """Return verdict and conclusion, what was said, dots by seed, design, limits and looks, each with a blank line."""
    return [
        f"**{page.outcome.value.upper()}**: {markdown_text(page.conclusion)}",
        "",
        markdown_line(page.headline),
        "",
        markdown_line(page.error),
        "",
        *_section("What was said", _terms(page.said)),
        *(["## Seed by seed", "", f"{KEY}.", ""] if page.plots else []),
        *(line for plot in page.plots for line in _plot(plot)),
        *_section("How it was tested", _terms(page.design)),
        *_section("What this does not say", map(markdown_text, page.limits)),
        *_section("Looks before this one", map(markdown_text, page.looks)),
    ]


def _section(title: str, texts: Iterable[str]) -> list[str]:
    lines = [f"- {text}" for text in texts]
    return [f"## {title}", "", *lines, ""] if lines else []


def _terms(terms: Terms) -> list[str]:
    return [f"**{name}**: {markdown_text('; '.join(texts))}" for name, texts in terms]


def _plot(plot: SeedPlot) -> Iterator[str]:
    yield f"### {markdown_text(plot.title)}: {plot.outcome.value}"
    yield ""
    yield markdown_text(plot.caption)
    yield ""
    yield from ("```text", *text_plot(plot), "```", "")
    for text in (plot.sentence, plot.bounds):
        if text:
            yield from (markdown_line(text), "")
    if plot.is_shown_by_dots:
        return
    difference = "difference" if plot.columns else "value"
    heads = ["seed", difference, "as claimed", *map(markdown_cell, plot.columns), "note"]
    yield from markdown_table(heads, [_cells(plot, row) for row in plot.rows])


def _cells(plot: SeedPlot, row: SeedRow) -> list[str]:
    # a difference is no formula
    compared = [markdown_cell(row.seed), plot.text(row), "yes" if row.holds else "no"]
    return [*compared, *map(markdown_cell, (*row.values, row.note))]


def text_plot(plot: SeedPlot) -> list[str]:
    """Return the plot as lines of text: a row for each seed, one for the median, and the axis."""
    axis = Axis.of(plot)
    label = max(len(f"seed {row.seed}") for row in plot.rows) if plot.rows else 0
    label = max(label, len("median")) + 2
    lines = [_line(f"seed {row.seed}", label, _marks(row, axis), plot, axis, _beside(plot, row)) for row in plot.rows]
    if plot.middle is not None:
        lines.append(_line("median", label, _median(plot, axis), plot, axis, plot.number(plot.middle)))
    return [*lines, *_axis(plot, axis, label)]


def _place(axis: Axis, value: float) -> int:
    if not math.isfinite(value):
        return 0 if value < 0 else _WIDTH - 1
    return round(min(max(axis.share(value), 0.0), 1.0) * (_WIDTH - 1))


def _line(name: str, label: int, marks: dict[int, str], plot: SeedPlot, axis: Axis, beside: str) -> str:
    cells = [" "] * _WIDTH
    for _, value in plot.lines:
        cells[_place(axis, value)] = "┊"
    if plot.columns:
        cells[_place(axis, 0.0)] = "│"
    for place, mark in marks.items():
        cells[place] = mark
    # a new line in a name would end the block
    return printable(f"{name:<{label}}{''.join(cells)}  {beside}".rstrip())


def _marks(row: SeedRow, axis: Axis) -> dict[int, str]:
    if row.low is None or row.high is None:
        return {}
    first, last = _place(axis, row.low), _place(axis, row.high)
    marks = dict.fromkeys(range(first, last), "─")
    for place, value in ((first, row.low), (last, row.high)):
        marks[place] = ("●" if row.holds else "○") if math.isfinite(value) else "×"
    return marks


def _beside(plot: SeedPlot, row: SeedRow) -> str:
    return row.note if row.low is None or not row.is_drawn else plot.text(row)


def _median(plot: SeedPlot, axis: Axis) -> dict[int, str]:
    marks: dict[int, str] = {}
    if plot.lower is not None or plot.upper is not None:
        first = 0 if plot.lower is None else _place(axis, plot.lower)
        last = _WIDTH - 1 if plot.upper is None else _place(axis, plot.upper)
        marks = dict.fromkeys(range(first, last + 1), "─")
        marks |= {first: "<" if plot.lower is None else "[", last: ">" if plot.upper is None else "]"}
    return marks | {_place(axis, plot.middle or 0.0): "◆"}


def _axis(plot: SeedPlot, axis: Axis, label: int) -> Iterator[str]:
    rule, names = ["─"] * _WIDTH, [" "] * (_WIDTH + 12)
    for tick in axis.ticks:
        text, place = plot.number(tick), _place(axis, tick)
        start = max(0, place - len(text) // 2)
        rule[place] = "┴"
        # a name that would run into the one before it is left out
        if all(cell == " " for cell in names[max(0, start - 1) : start + len(text)]):
            names[start : start + len(text)] = text
    yield f"{'':<{label}}{''.join(rule)}"
    yield f"{'':<{label}}{''.join(names)}".rstrip()
    sides = f"← {plot.left}", f"{plot.right} →"
    yield f"{'':<{label}}{sides[0]}{sides[1]:>{max(1, _WIDTH - len(sides[0]))}}"
    if plot.lines:
        places = (f"{name} {plot.number(place)}".strip() for name, place in plot.lines)
        yield f"{'':<{label}}┊ {', '.join(places)}"
