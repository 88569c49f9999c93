"""The plot of what is compared seed by seed, as SVG without script: places in percent, so that text keeps its size."""

from collections.abc import Iterator

from bitnetctl.escape import html_text
from bitnetctl.report.seed_plot import Axis, SeedPlot, SeedRow

_LEFT, _RIGHT = 15.0, 96.0
"""The ends of the axis in percent of the width; seeds are named to the left."""
_ROW, _TOP, _MIDDLE, _BOTTOM = 22, 40, 34, 44
_NARROW_ROW = 9
"""Height of a row where there are more seeds than can be named one by one."""
MOST_NUMBERS = 40
"""Most seeds that have a number beside their dot."""
_NEAR = 0.3
"""Share of the axis that the name of a line may take."""
_LABEL = 0.12
"""Share of the axis that the value beside a dot takes."""
_DIAMOND = "M0-7L7 0L0 7L-7 0Z"
_CROSS = "M-5-5L5 5M-5 5L5-5"


def dots_figure(plot: SeedPlot, number: int) -> str:
    """Return one dot a seed, 0, margin or band, the median and its bounds; `number` makes its ids unique."""
    axis = Axis.of(plot)
    row = _ROW if len(plot.rows) <= MOST_NUMBERS else _NARROW_ROW
    end = _TOP + row * len(plot.rows)
    height = end + (_MIDDLE if plot.middle is not None else 0) + _BOTTOM
    ids = f"plot-{number}-title plot-{number}-desc"
    parts = [
        f'<svg class="dots" role="img" aria-labelledby="{ids}" width="100%" height="{height}">'
        f'<title id="plot-{number}-title">{html_text(plot.title)}</title>'
        f'<desc id="plot-{number}-desc">{html_text(plot.summary)}</desc>',
        *_ground(plot, axis, height - _BOTTOM),
        *(part for index, one in enumerate(plot.rows) for part in _seed(plot, one, axis, index, row)),
        *(_median(plot, axis, end + _MIDDLE / 2) if plot.middle is not None else ()),
        *_axis(plot, axis, height - _BOTTOM),
        "</svg>",
    ]
    return "".join(parts)


def _x(axis: Axis, value: float) -> str:
    return f"{_LEFT + (_RIGHT - _LEFT) * min(max(axis.share(value), 0.0), 1.0):.2f}%"


def _ground(plot: SeedPlot, axis: Axis, bottom: float) -> Iterator[str]:
    """Yield the band, 0 and the lines, with their names above."""
    low, high = map(axis.share, plot.claimed)
    width = (_RIGHT - _LEFT) * (min(high, 1.0) - max(low, 0.0))
    yield f'<rect class="claimed" x="{_x(axis, plot.claimed[0])}" y="{_TOP}" width="{width:.2f}%" '
    yield f'height="{bottom - _TOP}"/>'
    if plot.columns:
        yield _vertical("zero", axis, 0.0, bottom)
    shares = [axis.share(place) for _, place in plot.lines]
    is_near = len(shares) > 1 and abs(shares[1] - shares[0]) < _NEAR
    for index, (name, place) in enumerate(plot.lines):
        yield _vertical("edge", axis, place, bottom)
        side = "start" if shares[index] < 1 - _NEAR else "end"
        y = _TOP - 8 - 15 * index * is_near
        yield f'<text x="{_x(axis, place)}" y="{y}" class="{side}">{html_text(name)} {plot.number(place)}</text>'


def _vertical(kind: str, axis: Axis, place: float, bottom: float) -> str:
    x = _x(axis, place)
    return f'<line class="{kind}" x1="{x}" x2="{x}" y1="{_TOP - 4}" y2="{bottom}"/>'


def _seed(plot: SeedPlot, row: SeedRow, axis: Axis, index: int, height: float) -> Iterator[str]:
    """Yield the name of a seed and its dot, filled where it is as claimed, or a cross at the end for a failed run."""
    y = _TOP + height * (index + 0.5)
    is_named = height == _ROW or index % 5 == 0
    if is_named:
        yield f'<text x="0" y="{y + 4:.1f}" class="seed">seed {html_text(row.seed)}</text>'
    what = html_text(f"seed {row.seed}: {plot.text(row)}" + (f", {row.note}" if row.note else ""))
    yield f'<g class="{"holds" if row.holds else "fails"}"><title>{what}</title>'
    if row.low is None or row.high is None:
        yield _note(row, _LEFT, y, height)
    elif row.is_drawn:
        ends = dict.fromkeys((row.low, row.high))
        if len(ends) > 1:
            yield f'<line class="span" x1="{_x(axis, row.low)}" x2="{_x(axis, row.high)}" y1="{y:.1f}" y2="{y:.1f}"/>'
        radius = 5.5 if height == _ROW else 3.5
        yield from (f'<circle cx="{_x(axis, place)}" cy="{y:.1f}" r="{radius}"/>' for place in ends)
        if height == _ROW:
            yield _value(plot, row, axis, y)
    else:
        place = _LEFT if row.low < 0 else _RIGHT
        yield f'<svg class="cross" x="{place}%" y="{y:.1f}"><path d="{_CROSS}"/></svg>'
        yield _note(row, place, y, height)
    yield "</g>"


def _value(plot: SeedPlot, row: SeedRow, axis: Axis, y: float) -> str:
    """Return the value beside its dot."""
    place = row.high if row.high is not None else 0.0
    share = axis.share(place)
    lines = [axis.share(line) for line in (*([0.0] if plot.columns else []), *(line for _, line in plot.lines))]
    right, left = (any(low < line < low + _LABEL for line in lines) for low in (share, share - _LABEL))
    # a value on a line is hard to read
    is_right = share > 0.8 or (share > 0.15 and right and not left)
    if is_right:
        place = row.low if row.low is not None else place
    side = 'class="end" dx="-11"' if is_right else 'class="start" dx="11"'
    return f'<text x="{_x(axis, place)}" y="{y + 4:.1f}" {side}>{html_text(plot.text(row))}</text>'


def _note(row: SeedRow, place: float, y: float, height: float) -> str:
    if height < _ROW:
        return ""
    side = 'class="note end" dx="-11"' if place > 50 else 'class="note start" dx="11"'
    return f'<text x="{place}%" y="{y + 4:.1f}" {side}>{html_text(row.note)}</text>'


def _median(plot: SeedPlot, axis: Axis, y: float) -> Iterator[str]:
    """Yield the median, and its one-sided bounds with an arrow where there is no bound on the other side."""
    middle = plot.middle if plot.middle is not None else 0.0
    yield f'<text x="0" y="{y + 4:.1f}" class="seed">median</text>'
    what = html_text(f"median {plot.number(middle)}; {plot.bounds}" if plot.bounds else f"median {plot.number(middle)}")
    yield f'<g class="median"><title>{what}</title>'
    if plot.lower is not None or plot.upper is not None:
        left = f"{_LEFT}%" if plot.lower is None else _x(axis, plot.lower)
        right = f"{_RIGHT}%" if plot.upper is None else _x(axis, plot.upper)
        yield f'<line x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
        for place, bound, arrow in ((left, plot.lower, "M6-5L0 0L6 5"), (right, plot.upper, "M-6-5L0 0L-6 5")):
            shape = arrow if bound is None else "M0-7V7"
            yield f'<svg class="bound" x="{place}" y="{y:.1f}"><path d="{shape}"/></svg>'
    yield f'<svg class="diamond" x="{_x(axis, middle)}" y="{y:.1f}"><path d="{_DIAMOND}"/></svg></g>'


def _axis(plot: SeedPlot, axis: Axis, y: float) -> Iterator[str]:
    yield f'<line class="grid" x1="{_LEFT}%" x2="{_RIGHT}%" y1="{y}" y2="{y}"/>'
    for tick in axis.ticks:
        x = _x(axis, tick)
        yield f'<line class="grid" x1="{x}" x2="{x}" y1="{y}" y2="{y + 4}"/>'
        yield f'<text x="{x}" y="{y + 17}" class="mid">{plot.number(tick)}</text>'
    yield f'<text x="{_LEFT}%" y="{y + 36}" class="start">← {html_text(plot.left)}</text>'
    yield f'<text x="{_RIGHT}%" y="{y + 36}" class="end">{html_text(plot.right)} →</text>'
