"""Draw a figure with matplotlib, the same bytes for the same data: SVG, PNG or PDF."""

import importlib.util
import io
import logging
import math
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from bitnetctl.errors import ConfigError, one_line
from bitnetctl.report.columns import tick_label
from bitnetctl.report.figure import FigureData, Panel, PanelRow
from bitnetctl.report.fold import fold

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend

Format = Literal["svg", "png", "pdf"]

_COLOURS = ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
"""Colours that any colour vision can distinguish; Okabe and Ito (2008), without the yellow, too pale for a line."""
_LINES: tuple[Any, ...] = ("-", (0, (5, 1.6)), (0, (6, 1.6, 1.2, 1.6)), (0, (1.2, 1.4)))
_GRAY = "#666666"

_CROSS: dict[str, Any] = {"marker": "x", "markersize": 6.5, "markeredgewidth": 1.6, "linestyle": ""}

_DOTS_PER_INCH = 200
"""Of a PNG."""
_WIDTH = 8.0
"""Inches: at 800 pixels the smallest text is 11 pixels high."""
_LEAST_PANEL_WIDTH = 2.3
_LEGENDS = ((6, 96), (5, 96), (4, 96), (3, 96), (2, 96), (1, 96), (2, 50), (3, 32))
"""Columns of a legend, and of text after which a label is folded, in the order in which they are preferred."""
_LOCK = threading.Lock()
"""Held while drawing: the settings of matplotlib are those of the process."""
_MISSING = "--figure needs the library matplotlib: pip install 'bitnetctl[figures]'"


def figure_format(file: Path, stdout: Path) -> Format:
    """Return the format of a file by its ending, SVG for stdout; raises ConfigError for another, or without matplotlib.

    It loads nothing, so that a mistake is reported before anything is read.
    """
    ending = "svg" if file == stdout else file.suffix.lower().removeprefix(".")
    if ending not in get_args(Format):
        raise ConfigError(f"--figure {file}: the file must end in .svg, .png or .pdf")
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError(_MISSING)
    return cast(Format, ending)


def draw_figure(data: FigureData, form: Format) -> bytes:
    """Return a figure as a file, whose metadata has the hash of the data; raises ConfigError without matplotlib."""
    with _LOCK, _without_messages():
        return _drawn(data, form)


@contextmanager
def _without_messages() -> Iterator[None]:
    """Leave out what matplotlib says of its cache and of settings, which are not used here."""
    logger = logging.getLogger("matplotlib")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _drawn(data: FigureData, form: Format) -> bytes:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(f"{_MISSING} ({error})") from error
    except Exception as error:
        # it reads MPLBACKEND and matplotlibrc when it is imported
        raise ConfigError(f"--figure: matplotlib cannot be loaded with its settings: {one_line(error)}") from error
    metadata: dict[str, Any] = {
        "Title": f"{', '.join(row.title for row in data.rows)} by step",
        "Subject" if form == "pdf" else "Description": f"drawn by bitnetctl; data sha256:{data.hash}",
    }
    if form != "png":
        # the time would make every file another
        metadata["CreationDate" if form == "pdf" else "Date"] = None
    file = io.BytesIO()
    with _own_style(), warnings.catch_warnings():
        # an arm may have letters that the font lacks
        warnings.simplefilter("ignore")
        figure = Figure(layout="constrained")
        draw_panels(figure, data)
        figure.savefig(file, format=form, metadata=metadata, dpi=_DOTS_PER_INCH)
    return file.getvalue()


@contextmanager
def _own_style() -> Iterator[None]:
    """Draw with matplotlib's defaults and the style of these figures, whatever the user has set."""
    import matplotlib as mpl

    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(
            {
                "axes.edgecolor": _GRAY,
                "axes.linewidth": 0.6,
                "axes.spines.right": False,
                "axes.spines.top": False,
                "axes.titlesize": 9,
                "figure.constrained_layout.h_pad": 0.06,
                "font.family": "sans-serif",
                "font.sans-serif": ["DejaVu Sans"],
                "font.size": 8,
                "legend.frameon": False,
                # Type 3, the default, is refused by some publishers
                "pdf.fonttype": 42,
                "svg.fonttype": "none",
                "svg.hashsalt": "bitnetctl",
                # a dollar sign in the name of a run is no formula
                "text.parse_math": False,
                "xtick.color": _GRAY,
                "xtick.labelcolor": "black",
                "xtick.major.width": 0.6,
                "ytick.color": _GRAY,
                "ytick.labelcolor": "black",
                "ytick.major.width": 0.6,
            }
        )
        yield


def draw_panels(figure: "Figure", data: FigureData) -> None:
    """Draw all panels and the legend, as large as they need it."""
    columns = len(data.sizes)
    width = max(_WIDTH, columns * _LEAST_PANEL_WIDTH)
    figure.set_size_inches(width, 1)
    legend = _legend(figure, data)
    height = len(data.rows) * (2.1 if columns > 1 else 2.5 if len(data.labels) <= 8 else 3.2)
    figure.set_size_inches(width, 0.4 + height + legend.get_window_extent().height / figure.dpi)
    axes = figure.subplots(len(data.rows), columns, sharex="col", sharey="row", squeeze=False)
    for row, line in zip(data.rows, axes, strict=True):
        for panel, ax in zip(row.panels, line, strict=True):
            _panel(ax, row, panel, arms=len(data.labels))
        _value_axis(line[0], row)
        _name_levels(row, line)
        line[0].set_ylabel(row.title)
    for index, size in enumerate(data.sizes):
        _step_axis(axes[-1][index], [row.panels[index] for row in data.rows], columns)
        axes[0][index].set_title(size)
    figure.align_ylabels()


def _panel(ax: "Axes", row: PanelRow, panel: Panel, *, arms: int) -> None:
    ax.grid(axis="y", color="#e6e6e6", linewidth=0.6)
    ax.set_axisbelow(True)
    if row.logarithmic:
        ax.set_yscale("log")
    if not panel.curves:
        ax.text(0.5, 0.5, "no value", transform=ax.transAxes, ha="center", va="center", color=_GRAY)
    for boundary in panel.boundaries:
        ax.axvline(boundary, color=_GRAY, linewidth=0.8, linestyle=(0, (1, 2)), zorder=1.5)
    opacity = 0.18 if arms <= 4 else 0.12 if arms <= 8 else 0.07
    for curve in panel.curves:
        colour = _COLOURS[curve.arm % len(_COLOURS)]
        if curve.runs > 1:
            ax.fill_between(curve.steps, curve.low, curve.high, color=colour, alpha=opacity, linewidth=0)
        # a line of one point has no length
        ax.plot(curve.steps, curve.mean, marker="" if len(curve.steps) > 1 else ".", **_line(curve.arm))
        for step, value in curve.ends:
            shown = max(min(value, row.highest or math.inf), row.lowest or -math.inf)
            # white behind it sets it off from the lines that it lies on
            for width, edge in ((3.5, "white"), (1.6, colour)):
                cross = _CROSS | {"markeredgewidth": width, "color": edge}
                ax.plot([step], [shown], **cross, clip_on=False, zorder=4)


def _line(arm: int) -> dict[str, Any]:
    """Return colour and style of an arm's line; the first MOST_ARMS differ, neighbours in both."""
    return {
        "color": _COLOURS[arm % len(_COLOURS)],
        "linestyle": _LINES[arm % len(_LINES)],
        "linewidth": 1.4,
    }


def _limits(row: PanelRow) -> tuple[float, float]:
    """Return the lowest and the highest value that a row shows: those of its curves, and levels that are near."""
    low = min(min(curve.low) for panel in row.panels for curve in panel.curves)
    high = max(max(curve.high) for panel in row.panels for curve in panel.curves)
    low, high = max(low, row.lowest or -math.inf), min(high, row.highest or math.inf)
    # one further away would press the curves together
    room = high - low
    near = [level for panel in row.panels for level in panel.levels.values() if low - room <= level <= high + room]
    return min([low, *near]), max([high, *near])


def _value_axis(ax: "Axes", row: PanelRow) -> None:
    """Set range and ticks of the values, which all panels of a row share."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator, ScalarFormatter

    low, high = _limits(row)
    if row.logarithmic:
        room = 0.05 * math.log(high / low) or 0.7
        low, high = low * math.exp(-room), high * math.exp(room)
        ax.yaxis.set_major_locator(FixedLocator(_logarithmic_ticks(low, high)))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: tick_label(value)))
        ax.yaxis.set_minor_locator(NullLocator())
    else:
        room = 0.05 * (high - low) or abs(low) / 10 or 1.0
        low, high = low - room, high + room
        ax.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
        ax.yaxis.set_major_formatter(ScalarFormatter(useOffset=False))
    ax.set_ylim(low, high)


def _logarithmic_ticks(low: float, high: float) -> list[float]:
    """Return two to seven round numbers in a range: 1, 2 and 5 times powers of ten, or such powers alone."""
    powers = [10.0**power for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]
    for factors in ((1, 2, 3, 4, 5, 6, 7, 8, 9), (1, 2, 5), (1, 3), (1,)):
        ticks = [factor * power for power in powers for factor in factors if low <= factor * power <= high]
        if len(ticks) <= 5 or factors == (1,):
            break
    return ticks[:: math.ceil(len(ticks) / 7)] if len(ticks) > 1 else [low, high]


def _step_axis(ax: "Axes", panels: Sequence[Panel], columns: int) -> None:
    """Set range and ticks of the steps, which all panels of a size share."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    last = max(curve.steps[-1] for panel in panels for curve in panel.curves)
    ax.set_xlim(0, 1.01 * last)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=4 if columns > 2 else 5, steps=[1, 2, 2.5, 5, 10], integer=True))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
    ax.set_xlabel("step")


def _name_levels(row: PanelRow, line: Sequence["Axes"]) -> None:
    """Draw the levels of a row; they are named at the right end of it, or of each panel where they differ."""
    low, high = line[0].get_ylim()
    alike = all(panel.levels == row.panels[-1].levels for panel in row.panels)
    for panel, ax in zip(row.panels, line, strict=True):
        shown = {name: level for name, level in panel.levels.items() if low <= level <= high}
        close = len(shown) == 2 and abs(shown["unigram"] - shown["bigram"]) < 0.07 * (high - low)
        for name, level in shown.items():
            ax.axhline(level, color=_GRAY, linewidth=0.8, zorder=1.5)
            if not alike or ax is line[-1]:
                upper = level == max(shown.values())
                place = ("bottom" if upper else "top") if close else "center"
                ax.annotate(
                    name,
                    (1, level),
                    xycoords=ax.get_yaxis_transform(),
                    xytext=(3, 0),
                    textcoords="offset points",
                    va=place,
                    color=_GRAY,
                    annotation_clip=False,
                )


def _legend(figure: "Figure", data: FigureData) -> "Legend":
    """Put one legend below all panels, in as many columns as fit."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    panels = [panel for row in data.rows for panel in row.panels]
    entries: list[tuple[Artist, str]] = [(Line2D([], [], **_line(arm)), label) for arm, label in enumerate(data.labels)]
    if data.band:
        entries.append((Patch(facecolor=_GRAY, alpha=0.3, linewidth=0), data.band))
    if any(panel.boundaries for panel in panels):
        entries.append((Line2D([], [], color=_GRAY, linewidth=0.8, linestyle=(0, (1, 2))), "end of stage 1"))
    if any(curve.ends for panel in panels for curve in panel.curves):
        entries.append((Line2D([], [], **_CROSS, color=_GRAY), "a run diverged"))
    handles = [handle for handle, _ in entries]

    def legend(columns: int, width: int) -> "Legend":
        numbers = list(map(str, range(len(entries))))
        made = figure.legend(
            handles, numbers, loc="outside lower center", ncols=min(columns, len(entries)), handlelength=3
        )
        # as a label, text that begins with an underscore is left out by matplotlib before 3.10
        for text, (_, label) in zip(made.get_texts(), entries, strict=True):
            text.set_text("\n".join(line.plain for line in fold(label, width)))
        return made

    def overflow_and_height(layout: tuple[int, int]) -> tuple[float, float]:
        tried = legend(*layout)
        box = tried.get_window_extent()
        tried.remove()
        return max(0.0, box.width - figure.bbox.width), box.height

    return legend(*min(_LEGENDS, key=overflow_and_height))
