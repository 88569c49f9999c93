"""Curves over the steps for a terminal."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich.text import Text

from bitnetctl.analysis.study import Study
from bitnetctl.report.columns import kept_places
from bitnetctl.report.escape import printable

MOST_CURVES = 6
HEIGHT = 14
_COLORS = (("blue", "blue"), ("orange", "yellow"), ("green", "green"), ("red", "red"), ("magenta", "magenta"))
_MARKS = "abcdef"


@dataclass(frozen=True)
class Curve:
    """One figure over the steps, the mean over the runs of one arm and size."""

    label: str
    steps: tuple[int, ...]
    values: tuple[float, ...]


def plots(study: Study, *, width: int, color: bool) -> list[Text]:
    """Return plots of held-out loss (of the training loss where it is unknown) and distinct predictions.

    Without `color` there is no colour code in them, and letters tell the curves apart.
    """
    has_held_out = any(run.records.known("HeldOutLoss") for run in study.runs)
    loss = ("HeldOutLoss", "held-out loss (nats)") if has_held_out else ("Loss", "training loss (nats)")
    drawn = []
    for (column, title), logarithmic in ((loss, False), (("UniquePredictions", "distinct predictions"), True)):
        found = curves(study, column, logarithmic=logarithmic)
        if found:
            drawn.append(_plot(title, found, _boundaries(study), width, logarithmic=logarithmic, color=color))
    return drawn


def curves(study: Study, column: str, *, logarithmic: bool) -> list[Curve]:
    """Return a curve for every arm and size, step 1 left out: the mean, geometric if logarithmic, at every step."""
    sizes = {facts.size for facts in study.summaries}
    groups: dict[str, dict[int, list[float]]] = {}
    places = {arm: place for place, arm in enumerate(study.arms)}
    runs = zip(study.runs, study.summaries, strict=True)
    for run, facts in sorted(runs, key=lambda pair: (places[pair[1].arm], pair[1].size or 0)):
        label = f"{facts.arm} h{facts.size}" if len(sizes) > 1 and facts.size is not None else facts.arm
        points = groups.setdefault(label, {})
        kept = kept_places(len(run.steps))
        for step, value in zip(run.steps[kept].tolist(), run.finite(column)[kept].tolist(), strict=True):
            # a comparison with NaN does not hold
            if step > 1 and (value > 0 if logarithmic else value == value):
                points.setdefault(step, []).append(math.log(value) if logarithmic else value)
    found = []
    for label, points in groups.items():
        if points:
            means = {step: sum(values) / len(values) for step, values in sorted(points.items())}
            found.append(Curve(label, tuple(means), tuple(means.values())))
    return found


def _boundaries(study: Study) -> list[int]:
    steps = dict.fromkeys(facts.boundary_step for facts in study.summaries)
    return [step for step in steps if step]


def _plot(
    title: str, found: Sequence[Curve], boundaries: Sequence[int], width: int, *, logarithmic: bool, color: bool
) -> Text:
    import plotext

    figure = plotext.figure
    figure.clear()
    figure.theme("colorless")
    figure.canvas("default")
    figure.plot_size(width, HEIGHT)
    shown = found[:MOST_CURVES]
    last = max(curve.steps[-1] for curve in shown)
    first = min(curve.steps[0] for curve in shown)
    lowest = min(min(curve.values) for curve in shown)
    highest = max(max(curve.values) for curve in shown)
    if len(boundaries) == 1 and first <= boundaries[0] <= last:
        marker = plotext.marker("┊", "gray") if color else "┊"
        figure.draw(figure.segment([boundaries[0]] * 2, [lowest, highest], marker=marker))
    for place, curve in enumerate(shown):
        marker = plotext.marker("hd", _COLORS[place % len(_COLORS)][0]) if color else _MARKS[place]
        figure.draw(figure.signal(list(curve.steps), list(curve.values), marker=marker).lines())
    places = _round_places(first, last)
    figure.ruler("x").ticks(places, [f"{step:,.0f}" for step in places])
    heights = [lowest + (highest - lowest) * place / 3 for place in range(4)] if highest > lowest else [lowest]
    figure.ruler("y").ticks(heights, [_figure(math.exp(value) if logarithmic else value) for value in heights])
    drawn = figure.build().string().rstrip()
    figure.clear()
    text = Text.from_ansi(drawn) if color else Text(plotext.uncolorize(drawn))
    return Text("\n").join([Text(title, style="bold"), text, *_legend(found, boundaries, color=color)])


def _round_places(low: float, high: float) -> list[float]:
    """Return three to seven round numbers in a range; its one number where it is none."""
    if high <= low:
        return [low]
    unit = 10.0 ** math.floor(math.log10(high - low))
    step = next(unit * factor for factor in (0.2, 0.5, 1, 2) if (high - low) / (unit * factor) <= 6)
    return [step * place for place in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _legend(found: Sequence[Curve], boundaries: Sequence[int], *, color: bool) -> list[Text]:
    lines = []
    for place, curve in enumerate(found[:MOST_CURVES]):
        mark = Text("━━", style=_COLORS[place % len(_COLORS)][1]) if color else Text(f" {_MARKS[place]}")
        lines.append(Text("  ").append_text(mark).append(f" {printable(curve.label)}"))
    if len(found) > MOST_CURVES:
        lines.append(Text(f"  … and {len(found) - MOST_CURVES} more; --html shows all", style="dim"))
    if len(boundaries) == 1:
        lines.append(Text(f"   ┊ boundary at step {boundaries[0]:,}", style="dim"))
    return lines
