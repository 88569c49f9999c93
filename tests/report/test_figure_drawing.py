"""Figures as files: the same bytes for the same data, whatever the user has set, and a layout without overlaps."""

import itertools
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import get_args
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure
from synthetic import REFERENCES, curve, quick, simple_run, write_csv, write_run

from bitnetctl.analysis.study import study
from bitnetctl.api import load_runs
from bitnetctl.errors import ConfigError
from bitnetctl.report import draw_figure, figure_data
from bitnetctl.report.columns import tick_label
from bitnetctl.report.figure import MOST_ARMS, FigureData
from bitnetctl.report.figure_drawing import Format, _line, _logarithmic_ticks, _own_style, draw_panels

BEGINNINGS = {"svg": b"<?xml", "png": b"\x89PNG", "pdf": b"%PDF"}


@pytest.fixture
def data(tmp_path: Path) -> FigureData:
    """Two arms, two sizes and two seeds, of which one diverged."""
    paths = []
    for arm, size, seed in itertools.product(("", "no-decay"), (64, 128), range(2)):
        config = quick(arm, size=size, seed=seed, steps=400)
        paths.append(simple_run(tmp_path, config, loss=5.0 + seed, unique=100 + seed))
    rows = curve((1, 100, 200), HeldOutLoss=[7.6, 5.0, "nan"], UniquePredictions=[4000, 90, 80], **REFERENCES)
    paths.append(write_run(tmp_path, quick(seed=2, steps=400), rows, status="diverged", diverged_at=200))
    return figure_data(study(load_runs(paths)))


@pytest.fixture
def canvas() -> Iterator[Figure]:
    with _own_style(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield Figure(layout="constrained")


@pytest.mark.parametrize("form", get_args(Format))
def test_the_same_data_give_the_same_bytes_whatever_the_user_has_set(
    data: FigureData, tmp_path: Path, form: Format
) -> None:
    settings = tmp_path / "matplotlibrc"
    settings.write_text(
        "font.size: 30\nfont.family: serif\nlines.linewidth: 9\naxes.grid: True\naxes.facecolor: black\n"
        "svg.fonttype: path\nsvg.hashsalt: salt\npdf.compression: 0\nsavefig.bbox: tight\nsavefig.facecolor: red\n",
        encoding="utf-8",
    )
    first = draw_figure(data, form)
    with mpl.rc_context(fname=settings):
        before = dict(mpl.rcParams)
        assert draw_figure(data, form) == first
        assert dict(mpl.rcParams) == before
    assert first.startswith(BEGINNINGS[form])
    assert f"data sha256:{data.hash}".encode() in first


def test_threads_draw_the_same_bytes(data: FigureData) -> None:
    first, before = draw_figure(data, "svg"), dict(mpl.rcParams)
    with ThreadPoolExecutor(4) as pool:
        drawn = list(pool.map(lambda _: draw_figure(data, "svg"), range(4)))
    assert set(drawn) == {first}
    assert dict(mpl.rcParams) == before


def test_settings_with_which_matplotlib_cannot_be_loaded_are_named() -> None:
    program = (
        "from bitnetctl.errors import ConfigError\n"
        "from bitnetctl.report import draw_figure\n"
        "try:\n    draw_figure(None, 'svg')\n"
        "except ConfigError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"MPLBACKEND": "nonsense"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("--figure: matplotlib cannot be loaded with its settings: Key backend: 'nonsense'")
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("measure", "values"),
    [
        ("HeldOutLoss", [7.6, 1.7e308, 1.7e308]),
        ("HeldOutLoss", [7.6, 6.0, 1.7e308]),
        ("HeldOutLoss", [None, 1e99, 1.7e308]),
        ("GradNorm", [1.0, 5e-324, 1e300]),
        ("GradNorm", [1.0, 1e-99, 1e99]),
        ("GradNorm", [1.0, 5e-324, 2.0]),
        ("WD", [0.0, 1e16, 1e16 + 2]),
    ],
)
def test_values_that_no_axis_can_show_are_left_out(tmp_path: Path, measure: str, values: list[float | None]) -> None:
    at = [step for step, value in zip((1, 9, 20), values, strict=True) if value is not None]
    known = [value for value in values if value is not None]
    for seed in range(2):
        rows = curve(at, **{"HeldOutLoss": 5.0, **REFERENCES, measure: known, "Loss": [4.0 + seed] * len(at)})
        write_run(tmp_path, quick(seed=seed, steps=20), rows)
    shown = study(load_runs([tmp_path]))
    drawable = [value for value in known[at[0] == 1 :] if value < 1e100 and (measure != "GradNorm" or value > 1e-100)]
    if not drawable:
        with pytest.raises(ConfigError, match=f"--show {measure}: no run has a value"):
            figure_data(shown, [measure])
        return
    data = figure_data(shown, [measure])
    assert list(data.rows[0].panels[0].curves[0].mean) == drawable
    for form in get_args(Format):
        draw_figure(data, form)


@pytest.mark.parametrize("losses", [[7.6, 20.0, 30.0], [7.6, 6.0, 30.0]])
def test_a_loss_axis_points_up(tmp_path: Path, canvas: Figure, losses: list[float]) -> None:
    write_run(tmp_path, quick(steps=20), curve((1, 9, 20), HeldOutLoss=losses, **REFERENCES))
    draw_panels(canvas, figure_data(study(load_runs([tmp_path])), ["HeldOutLoss"]))
    low, high = canvas.axes[0].get_ylim()
    assert low < losses[1] < high
    # where all lie beyond 1.5 times the loss of the untrained model, all are shown
    assert (high > 30) == (losses[1] > 1.5 * 7.6)


def test_the_text_of_an_svg_stays_text(data: FigureData) -> None:
    root = ElementTree.fromstring(draw_figure(data, "svg"))
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    for text in (
        *(
            "baseline (2 to 3 seeds)",
            "no-decay (2 seeds)",
            "lowest to highest seed",
            "end of stage 1",
            "a run diverged",
        ),
        *("hidden 64", "hidden 128", "held-out loss (nats)", "distinct predictions", "unigram", "bigram"),
    ):
        assert texts.count(text) == 1
    assert texts.count("step") == 2


def test_curves_bands_and_crosses_are_those_of_the_data(data: FigureData, canvas: Figure) -> None:
    draw_panels(canvas, data)
    assert len(canvas.axes) == 4
    first = canvas.axes[0]
    baseline, other = data.rows[0].panels[0].curves
    lines = [line.get_xydata() for line in first.get_lines()]
    for drawn in (baseline, other):
        assert any(np.array_equal(line, [*zip(drawn.steps, drawn.mean, strict=True)]) for line in lines)
    assert any(np.array_equal(line, [[100, 5.0]]) for line in lines)
    band = np.asarray(first.collections[0].get_paths()[0].vertices)
    assert (band[:, 1].min(), band[:, 1].max()) == (min(baseline.low), max(baseline.high)) == (5.0, 6.0)
    # sizes share the values of a measure, measures the steps of a size
    assert first.get_ylim() == canvas.axes[1].get_ylim()
    assert first.get_xlim() == canvas.axes[2].get_xlim() == (0, 404)
    assert (first.get_yscale(), canvas.axes[2].get_yscale()) == ("linear", "log")


@pytest.mark.parametrize(("arms", "sizes"), [(2, (64, 128, 256)), (16, (64,))])
def test_nothing_overlaps(tmp_path: Path, canvas: Figure, arms: int, sizes: tuple[int, ...]) -> None:
    for (index, arm), size in itertools.product(enumerate(_arms(arms)), sizes):
        # one explodes before it diverges
        loss = [7.6, 6.0, 1234.5] if index == 1 else [7.6, 6.0, 4.0 + index / 9]
        config = quick(arm, size=size, steps=20_000)
        diverged_at = 20_000 if index == 1 else None
        rows = curve((1, 9_000, 20_000), HeldOutLoss=loss, **REFERENCES)
        write_run(tmp_path, config, rows, diverged_at=diverged_at)
    draw_panels(canvas, figure_data(study(load_runs([tmp_path]))))
    canvas.draw_without_rendering()
    boxes = [box for ax in canvas.axes if (box := ax.get_tightbbox()) is not None]
    boxes.append(canvas.legends[0].get_window_extent())
    assert len(boxes) == 2 * len(sizes) + 1
    for one, other in itertools.combinations(boxes, 2):
        assert not one.overlaps(other)
    for box in boxes:
        assert box.x0 >= 0
        assert box.x1 <= canvas.bbox.x1
        assert box.y0 >= 0
        assert box.y1 <= canvas.bbox.y1
    # the panels take the place that is left
    assert min(ax.bbox.height for ax in canvas.axes) > 1.2 * canvas.dpi


def _arms(count: int) -> list[str]:
    parts = ("no-decay", "reduced-lr:peak=0.0005", "decoupled-decay:decayed=all", "full-precision")
    chosen = itertools.chain.from_iterable(itertools.combinations(parts, length) for length in range(5))
    return ["+".join(arm) for arm in chosen][:count]


def test_names_stay_text(tmp_path: Path) -> None:
    names = ("_hidden", "$x^2$ & <b>", "\N{CJK UNIFIED IDEOGRAPH-5B66}")
    paths = [write_csv(tmp_path / f"{name}.csv", curve((1, 9))) for name in names]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svg = draw_figure(figure_data(study(load_runs(paths))), "svg")
    texts = {element.text for element in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")}
    assert {f"{name} (1 run)" for name in names} <= texts


def test_every_arm_has_a_line_of_its_own() -> None:
    styles = [str(_line(arm)) for arm in range(MOST_ARMS + 1)]
    assert len(set(styles[:MOST_ARMS])) == MOST_ARMS
    assert styles[MOST_ARMS] == styles[0]


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (2, 400, [3, 10, 30, 100, 300]),
        (90, 1100, [100, 200, 500, 1000]),
        (0.5, 2.5, [0.5, 1, 2]),
        (110, 180, [110, 180]),
        (1e-3, 1e9, [1e-3, 1e-1, 1e1, 1e3, 1e5, 1e7, 1e9]),
    ],
)
def test_ticks_of_a_logarithmic_scale(low: float, high: float, ticks: list[float]) -> None:
    assert _logarithmic_ticks(low, high) == pytest.approx(ticks)


@pytest.mark.parametrize(
    ("value", "text"), [(0.12345, "0.123"), (99.5, "99.5"), (1234.5, "1,234"), (1e8, "100,000,000"), (1e50, "1e+50")]
)
def test_the_label_of_a_tick_is_short(value: float, text: str) -> None:
    assert tick_label(value) == text
