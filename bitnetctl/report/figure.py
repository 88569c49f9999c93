"""What a figure shows: panels of curves as plain data, and their hash; no matplotlib here."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from bitnetctl.analysis.arms import name_arms
from bitnetctl.analysis.study import Study
from bitnetctl.config import hint_at
from bitnetctl.errors import ConfigError
from bitnetctl.escape import printable
from bitnetctl.records import Run
from bitnetctl.records.metrics import MEASURES
from bitnetctl.report.columns import LOGARITHMIC, hidden_text, loss_measure, measure_title, reference_losses
from bitnetctl.report.mean_curves import MeanCurve, mean_curves
from bitnetctl.units import plural
from bitnetctl.verdict.limits import value_at

MOST_ARMS = 28
"""Most arms of a figure: so many pairs of a colour and a line style differ."""
MOST_SIZES = 12
MOST_BOUNDARIES = 4
"""Most boundaries of stages that a panel shows; where it has more, it shows none."""
SIGNIFICANT_DIGITS = 6
"""Digits of a value that enter the hash."""
_LOSSES = ("Loss", "HeldOutLoss", "HeldOutBitsPerByte", "Objective")
_BEYOND_UNTRAINED = 1.5
"""A loss axis ends at so many times the loss of the untrained model: what a divergence adds would flatten the rest."""


@dataclass(frozen=True, kw_only=True)
class PanelCurve:
    """The mean of an arm and the range of its runs at each step; `arm` is an index of the figure's labels.

    `ends` are the last points of the runs that diverged.
    """

    arm: int
    runs: int
    steps: tuple[int, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    ends: tuple[tuple[int, float], ...]


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One measure at one size; `levels` are the reference predictors by name, `boundaries` the ends of stage 1."""

    curves: tuple[PanelCurve, ...]
    boundaries: tuple[int, ...]
    levels: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class PanelRow:
    """One measure at every size; values below `lowest` and above `highest` lie outside of its axis."""

    measure: str
    title: str
    logarithmic: bool
    lowest: float | None
    highest: float | None
    panels: tuple[Panel, ...]


@dataclass(frozen=True, kw_only=True)
class FigureData:
    """All that is drawn: `sizes` are the headings of the columns of panels, `labels` the arms in the legend.

    `band` says there what the range of a curve is, an empty text where every curve is of one run.
    """

    sizes: tuple[str, ...]
    labels: tuple[str, ...]
    band: str
    rows: tuple[PanelRow, ...]

    @property
    def hash(self) -> str:
        """SHA-256 of what is drawn, with values in six significant digits."""
        tree = json.dumps(_rounded(asdict(self)), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(tree.encode()).hexdigest()


def parse_columns(text: str | None) -> tuple[str, ...] | None:
    """Return the names of `--show`, None without it; raises ConfigError for an unknown one."""
    if text is None:
        return None
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        if name not in MEASURES:
            raise ConfigError(f"--show: unknown column {name!r}{hint_at(name, MEASURES)}")
    return names


def figure_data_hash(study: Study, columns: Sequence[str] | None = None) -> str:
    """Return the SHA-256 that the metadata of a figure of these runs has; needs no matplotlib.

    It changes with the values, labels and lines that are drawn, not with their style.
    """
    return figure_data(study, columns).hash


def figure_data(study: Study, columns: Sequence[str] | None = None) -> FigureData:
    """Return a row of panels for every measure, by default the loss and distinct predictions where they are known.

    Raises ConfigError where a column has no value, there is nothing to draw, or more arms or sizes than are legible.
    """
    measures = columns or [loss_measure(study)[0], "UniquePredictions"]
    short = _short_labels(study)
    drawn = {
        measure: [
            replace(curve, label=curve.label.replace(curve.arm, short[curve.arm], 1))
            for curve in mean_curves(study, measure, logarithmic=measure in LOGARITHMIC)
        ]
        for measure in dict.fromkeys(measures)
    }
    if columns is None:
        drawn = {measure: curves for measure, curves in drawn.items() if curves}
    for measure, curves in drawn.items():
        if not curves:
            raise ConfigError(f"--show {measure}: no run has a value of it after step 1")
    if not drawn:
        raise ConfigError("--figure: no run has a value after step 1")
    every = [curve for curves in drawn.values() for curve in curves]
    sizes = sorted({curve.size for curve in every}, key=lambda size: size or 0)
    ranks = {arm: rank for rank, arm in enumerate(study.arms)}
    arms = list(dict.fromkeys(curve.label for curve in sorted(every, key=lambda curve: ranks[curve.arm])))
    for count, most, noun in ((len(arms), MOST_ARMS, "arm"), (len(sizes), MOST_SIZES, "size")):
        if count > most:
            raise ConfigError(f"--figure: {plural(count, noun)}; one figure holds at most {most}, so give fewer runs")
    labels, band = _legend(arms, every)
    return FigureData(
        sizes=tuple(map(hidden_text, sizes)) if sizes != [None] else ("",),
        labels=labels,
        band=band,
        rows=tuple(_row(study, measure, curves, sizes, arms) for measure, curves in drawn.items()),
    )


def _short_labels(study: Study) -> dict[str, str]:
    """Return the label of every arm without fields that all runs of a size share: sizes are in panels of their own."""
    arms = name_arms(study.runs)
    levels: dict[tuple[str, int | None], set[str]] = {}
    for arm, summary in zip(arms, study.summaries, strict=True):
        for field in arm.variant:
            levels.setdefault((field.partition("=")[0], summary.size), set()).add(field)
    shared = {
        name for name, _ in levels if all(len(found) == 1 for (field, _), found in levels.items() if field == name)
    }
    short = {}
    for arm in arms:
        distinguishing = [field for field in arm.variant if field.partition("=")[0] not in shared]
        name = arm.label.removesuffix(f" [{', '.join(arm.variant)}]")
        short[arm.label] = f"{name} [{', '.join(distinguishing)}]" if distinguishing else name
    return short


def _legend(arms: Sequence[str], curves: Sequence[MeanCurve]) -> tuple[tuple[str, ...], str]:
    """Return the labels of the arms and that of the range; the number of seeds stands there where all have as many."""
    seeds = [{run.seed for run in curve.runs} for curve in curves]
    by_seed = all(None not in of and len(of) == len(curve.runs) for of, curve in zip(seeds, curves, strict=True))
    noun = "seed" if by_seed else "run"
    counts = {len(curve.runs) for curve in curves}
    if len(counts) == 1 and counts != {1}:
        return tuple(map(printable, arms)), f"lowest to highest of {plural(counts.pop(), noun)}"
    labels = []
    for arm in arms:
        of_arm = sorted({len(curve.runs) for curve in curves if curve.label == arm})
        number = plural(of_arm[-1], noun)
        labels.append(printable(f"{arm} ({number if len(of_arm) == 1 else f'{of_arm[0]} to {number}'})"))
    return tuple(labels), f"lowest to highest {noun}" if max(counts) > 1 else ""


def _row(
    study: Study, measure: str, curves: Sequence[MeanCurve], sizes: Sequence[int | None], arms: Sequence[str]
) -> PanelRow:
    lowest, highest = _limits(measure, curves)
    panels = []
    for size in sizes:
        members = [curve for curve in curves if curve.size == size]
        boundaries = {step for curve in members for run in curve.runs if (step := run.boundary_step) is not None}
        panels.append(
            Panel(
                curves=tuple(
                    PanelCurve(
                        arm=arms.index(curve.label),
                        runs=len(curve.runs),
                        steps=curve.steps,
                        mean=curve.mean,
                        low=curve.low,
                        high=curve.high,
                        ends=curve.ends,
                    )
                    for curve in members
                ),
                boundaries=tuple(sorted(boundaries)) if len(boundaries) <= MOST_BOUNDARIES else (),
                levels=_levels(study, measure, size) if members else {},
            )
        )
    return PanelRow(
        measure=measure,
        title=measure_title(measure),
        logarithmic=measure in LOGARITHMIC,
        lowest=lowest,
        highest=highest,
        panels=tuple(panels),
    )


def _levels(study: Study, measure: str, size: int | None) -> dict[str, float]:
    """Return the unigram and the bigram predictor where they have a place on the scale of a measure."""
    losses = reference_losses(summary for summary in study.summaries if summary.size == size)
    if measure == "HeldOutLoss":
        return losses
    return {"unigram": 0.0, "bigram": 1.0} if measure == "Skill" and len(losses) == 2 else {}


def _limits(measure: str, curves: Sequence[MeanCurve]) -> tuple[float | None, float | None]:
    """Return where an axis ends before its values do, below and above; None where it shows all of them."""
    untrained = [value for curve in curves for run in curve.runs if (value := _untrained(run, measure)) is not None]
    # where every value lies beyond it, nothing would be left to see
    lowest, highest = min(min(curve.low) for curve in curves), max(max(curve.high) for curve in curves)
    if measure in _LOSSES and untrained:
        limit = _BEYOND_UNTRAINED * max(untrained)
        if max(lowest, 0) < limit < highest:
            return None, limit
    if measure == "Skill" and untrained:
        limit = _BEYOND_UNTRAINED * min(untrained)
        if lowest < limit < min(highest, 0):
            return limit, None
    return None, None


def _untrained(run: Run, measure: str) -> float | None:
    """Return the finite value at step 1, None without one."""
    value = value_at(run, measure, 0) if run.steps[0] == 1 else None
    return value if value is not None and math.isfinite(value) else None


def _rounded(value: Any) -> Any:
    """Return a tree of JSON, with numbers as text in six significant digits."""
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return format(value, f".{SIGNIFICANT_DIGITS}g") if isinstance(value, float) else value
