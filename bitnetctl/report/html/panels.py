"""Small multiples: a panel for each arm, with the curve of every run and the reference predictors, as plain SVG."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from bitnetctl.analysis.study import Study
from bitnetctl.escape import html_text
from bitnetctl.records import Run
from bitnetctl.report.columns import hidden_text, kept_indices, loss_measure, reference_losses, tick_label
from bitnetctl.units import plural

MOST_PANELS = 24
"""Most arms that have a panel; all are in the page's own chart."""
MOST_CURVES = 40
"""Most curves of a panel."""
MOST_POINTS = 60
"""Most points of a curve; a panel is that narrow."""
_WIDTH, _HEIGHT = 260, 150
_LEFT, _RIGHT, _TOP, _BOTTOM = 38, 6, 8, 20

Points = list[tuple[int, float]]


@dataclass(frozen=True, kw_only=True)
class _Scale:
    """Steps and values of all panels of a measure, and where they are drawn."""

    last: int
    low: float
    high: float
    logarithmic: bool

    def x(self, step: float) -> float:
        """Return the place of a step."""
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * step / max(1, self.last)

    def y(self, value: float) -> float:
        """Return the place of a value."""
        low, high, at = (
            (math.log(one) for one in (self.low, self.high, value))
            if self.logarithmic
            else (self.low, self.high, value)
        )
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * (at - low) / ((high - low) or 1)


def panels_section(study: Study) -> str:
    """Return held-out loss and unique predictions by step, a panel for each arm; empty without a value."""
    measures = ((*loss_measure(study), False), ("UniquePredictions", "unique predictions", True))
    parts = [part for measure in measures for part in _measure(study, *measure)]
    if not parts:
        return ""
    return f'<section id="panels"><h2>Every run by step</h2>{_legend(study)}{"".join(parts)}</section>'


def _measure(study: Study, column: str, title: str, logarithmic: bool) -> Iterator[str]:
    curves: dict[str, list[tuple[int | None, Points]]] = {}
    for run, summary in zip(study.runs, study.summaries, strict=True):
        points = _points(run, column, logarithmic=logarithmic)
        if points:
            curves.setdefault(summary.arm, []).append((summary.size, points))
    if not curves:
        return
    references = reference_losses(study.summaries) if column == "HeldOutLoss" else {}
    every = [value for of_arm in curves.values() for _, points in of_arm for _, value in points]
    every += references.values()
    last = max(points[-1][0] for of_arm in curves.values() for _, points in of_arm)
    low, high = min(every), max(every)
    room = 0.0 if logarithmic else 0.05 * (high - low)
    scale = _Scale(last=last, low=low - room, high=high + room, logarithmic=logarithmic)
    colours = {size: index for index, size in enumerate(_sizes(study))}
    shown = [arm for arm in study.arms if arm in curves][:MOST_PANELS]
    yield f"<h3>{title}</h3>"
    hidden = len(curves) - len(shown)
    if hidden > 0:
        yield f'<p class="hint">… {plural(hidden, "more arm")} in the curves below</p>'
    panels = (_panel(arm, curves[arm], scale, references, lambda size: colours[size] % 8, title) for arm in shown)
    yield f'<div class="panels">{"".join(panels)}</div>'


def _panel(
    arm: str,
    curves: Sequence[tuple[int | None, Points]],
    scale: _Scale,
    references: dict[str, float],
    colour: Callable[[int | None], int],
    title: str,
) -> str:
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    parts = [f'<path class="grid" d="M{_LEFT} {_TOP}V{bottom}H{right}"/>']
    ticks = [scale.low, math.sqrt(scale.low * scale.high) if scale.logarithmic else (scale.low + scale.high) / 2]
    parts += (
        f'<text x="{_LEFT - 4}" y="{scale.y(value) + 4:.0f}" text-anchor="end">{tick_label(value)}</text>'
        for value in (*ticks, scale.high)
    )
    parts.append(f'<text x="{_LEFT}" y="{_HEIGHT - 5}">0</text>')
    parts.append(f'<text x="{right}" y="{_HEIGHT - 5}" text-anchor="end">step {scale.last:,}</text>')
    for name, value in references.items():
        at = scale.y(value)
        parts.append(f'<path class="reference" d="M{_LEFT} {at:.1f}H{right}"/>')
        parts.append(f'<text x="{_LEFT + 4}" y="{at - 3:.1f}">{name}</text>')
    for size, points in curves[:MOST_CURVES]:
        path = "L".join(f"{scale.x(step):.1f} {scale.y(value):.1f}" for step, value in points)
        # a path of one point is drawn by its round end only
        parts.append(f'<path class="curve k{colour(size)}" d="M{path}{"" if len(points) > 1 else "h0"}"/>')
    drawn = plural(len(curves), "run")
    if len(curves) > MOST_CURVES:
        drawn = f"{MOST_CURVES} of {drawn}"
    label = html_text(f"{title} of {arm}, {drawn}")
    return (
        f'<figure><figcaption>{html_text(arm)} <span class="hint">{drawn}</span></figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg></figure>'
    )


def _points(run: Run, column: str, *, logarithmic: bool) -> Points:
    """Return the known values, without those that a logarithm does not have, thinned to MOST_POINTS."""
    pairs = zip(run.steps.tolist(), run.finite(column).tolist(), strict=True)
    # comparisons with NaN are false
    points = [(step, value) for step, value in pairs if (value > 0 if logarithmic else value == value)]
    return [points[index] for index in kept_indices(len(points), MOST_POINTS)]


def _sizes(study: Study) -> list[int | None]:
    return sorted({summary.size for summary in study.summaries}, key=lambda size: size or 0)


def _legend(study: Study) -> str:
    sizes = _sizes(study)
    if len(sizes) < 2:
        return ""
    swatches = (
        f'<span><svg class="swatch k{index % 8}" viewBox="0 0 20 8" aria-hidden="true"><line x1="0" x2="20" y1="4" '
        f'y2="4"/></svg>{hidden_text(size)}</span>'
        for index, size in enumerate(sizes)
    )
    return f'<p class="hint swatches">{"".join(swatches)}</p>'
