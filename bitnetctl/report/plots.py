"""Line plots of metrics over steps for a terminal."""

import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from rich.text import Text

from bitnetctl.analysis.study import Study
from bitnetctl.report.columns import loss_measure, tick_label
from bitnetctl.report.fold import fold
from bitnetctl.report.mean_curves import mean_curves

MOST_CURVES = 6
HEIGHT = 14
_COLORS = (("blue", "blue"), ("orange", "yellow"), ("green", "green"), ("red", "red"), ("magenta", "magenta"))
"""Colours of the curves in turn, by their names in plotext and in rich."""
_MARKS = "abcdef"

Curve: TypeAlias = dict[int, float]
"""Mean over the runs of one arm and size, by step in ascending order."""


def plots(study: Study, *, width: int, color: bool) -> list[Text]:
    """Return plots of held-out loss (of the training loss where it is unknown) and distinct predictions.

    Without `color` there are no colour codes, and letters distinguish the curves.
    """
    boundaries = {summary.boundary_step for summary in study.summaries if summary.boundary_step}
    boundary = boundaries.pop() if len(boundaries) == 1 else None
    drawn = []
    for (column, title), logarithmic in (
        (loss_measure(study), False),
        (("UniquePredictions", "distinct predictions"), True),
    ):
        by_label = curves(study, column, logarithmic=logarithmic)
        if by_label:
            drawn.append(line_plot(title, by_label, width, boundary=boundary, logarithmic=logarithmic, color=color))
    return drawn


def curves(study: Study, column: str, *, logarithmic: bool) -> dict[str, Curve]:
    """Return a curve for every arm and size without step 1; if `logarithmic`, of the mean logarithm."""
    several = len({summary.size for summary in study.summaries}) > 1
    return {
        f"{curve.label} h{curve.size}" if several and curve.size is not None else curve.label: {
            step: math.log(value) if logarithmic else value for step, value in zip(curve.steps, curve.mean, strict=True)
        }
        for curve in mean_curves(study, column, logarithmic=logarithmic)
    }


def line_plot(
    title: str,
    curves: Mapping[str, Curve],
    width: int,
    height: int = HEIGHT,
    *,
    boundary: int | None = None,
    references: Mapping[str, float] | None = None,
    logarithmic: bool = False,
    color: bool,
) -> Text:
    """Return curves with a title and a legend; `height` is that of the plot alone, `references` are level lines,
    drawn where they are near the curves."""
    import plotext

    figure = plotext.figure
    figure.clear()
    figure.theme("colorless")
    figure.canvas("default")
    figure.plot_size(width, height)
    shown = list(curves.values())[:MOST_CURVES]
    first = min(min(curve) for curve in shown)
    last = max(max(curve) for curve in shown)
    lowest = min(min(curve.values()) for curve in shown)
    highest = max(max(curve.values()) for curve in shown)
    # one further away would press the curves together: it stands in the legend only
    margin = (highest - lowest) / 2
    levels = [level for level in (references or {}).values() if lowest - margin <= level <= highest + margin]
    lowest, highest = min([lowest, *levels]), max([highest, *levels])
    if boundary is not None and first <= boundary <= last:
        marker = plotext.marker("┊", "gray") if color else "┊"
        figure.draw(figure.segment([boundary] * 2, [lowest, highest], marker=marker))
    for level in levels:
        marker = plotext.marker("┈", "gray") if color else "┈"
        figure.draw(figure.segment([first, last], [level] * 2, marker=marker))
    for index, curve in enumerate(shown):
        marker = plotext.marker("hd", _COLORS[index % len(_COLORS)][0]) if color else _MARKS[index]
        figure.draw(figure.signal(list(curve), list(curve.values()), marker=marker).lines())
    ticks = _round_ticks(first, last)
    figure.ruler("x").ticks(ticks, [f"{step:,.0f}" for step in ticks])
    heights = [lowest + (highest - lowest) * index / 3 for index in range(4)] if highest > lowest else [lowest]
    figure.ruler("y").ticks(heights, [tick_label(math.exp(value) if logarithmic else value) for value in heights])
    drawn = figure.build().string().rstrip()
    figure.clear()
    text = Text.from_ansi(drawn) if color else Text(plotext.uncolorize(drawn))
    legend = _legend(list(curves), boundary, width, color=color)
    if references:
        named = ", ".join(f"{name} {level:.2f}" for name, level in references.items())
        legend.append(Text(f"   ┈ {named}", style="dim"))
    return Text("\n").join([Text(title, style="bold"), text, *legend])


def _round_ticks(low: float, high: float) -> list[float]:
    """Return three to seven round numbers in a range; `low` alone where the range is empty."""
    if high <= low:
        return [low]
    unit = 10.0 ** math.floor(math.log10(high - low))
    step = next(unit * factor for factor in (0.2, 0.5, 1, 2) if (high - low) / (unit * factor) <= 6)
    return [step * multiple for multiple in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _legend(labels: Sequence[str], boundary: int | None, width: int, *, color: bool) -> list[Text]:
    lines = []
    for index, label in enumerate(labels[:MOST_CURVES]):
        mark = Text("━━", style=_COLORS[index % len(_COLORS)][1]) if color else Text(f" {_MARKS[index]}")
        first, *others = fold(label, max(1, width - 5))
        lines.append(Text("  ").append_text(mark).append(" ").append_text(first))
        lines += (Text(" " * 5).append_text(line) for line in others)
    if len(labels) > MOST_CURVES:
        lines.append(Text(f"  … and {len(labels) - MOST_CURVES} more; --html shows all", style="dim"))
    if boundary is not None:
        lines.append(Text(f"   ┊ boundary at step {boundary:,}", style="dim"))
    return lines
