"""The data of the page's curves as one JSON tree."""

import json
import math
from collections.abc import Sequence
from typing import Any

from bitnetctl.analysis.study import Study
from bitnetctl.analysis.summary import RunSummary
from bitnetctl.escape import printable
from bitnetctl.records import COLUMNS, Run
from bitnetctl.records.metrics import skill
from bitnetctl.report.columns import LOGARITHMIC, MOST_POINTS, kept_indices, reference_losses

_FIRST = ("HeldOutLoss", "UniquePredictions", "Loss", "Skill")
"""Metrics at the head of the page's menu."""
_CONSTANT = frozenset({"UniqueTargets", "ProbePositions", "UnigramLoss", "BigramLoss", "BigramUnique"})


def embed(value: Any) -> str:
    """Return strict JSON for a <script> element, which no text in it can close."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def page_data(study: Study) -> dict[str, Any]:
    """Return the data of all curves; runs with the same steps refer to one entry of `grids`."""
    arms = {label: index for index, label in enumerate(study.arms)}
    grids: dict[tuple[int, ...], int] = {}
    runs, known, thinned = [], set(), False
    for run, summary in zip(study.runs, study.summaries, strict=True):
        steps = run.steps.tolist()
        kept = _kept(run)
        thinned = thinned or len(kept) < len(steps)
        values = _values(run, kept)
        known |= set(values)
        runs.append(
            {
                "name": printable(summary.name),
                "arm": arms[summary.arm],
                "size": summary.size,
                "detail": _detail(summary),
                "grid": grids.setdefault(tuple(steps[index] for index in kept), len(grids)),
                "values": values,
            }
        )
    boundaries = sorted({summary.boundary_step for summary in study.summaries if summary.boundary_step})
    return {
        "arms": [printable(label) for label in arms],
        "runs": runs,
        "grids": list(grids),
        "metrics": _metrics(known),
        "boundaries": boundaries if len(boundaries) <= 4 else [],
        "references": _references(study),
        "hint": f"Long runs are thinned to {MOST_POINTS} points." if thinned else "",
    }


def _kept(run: Run) -> list[int]:
    """Return the indices of the rows that are drawn, with held-out losses where most rows have none."""
    kept = kept_indices(len(run.steps))
    if len(kept) == len(run.steps):
        return kept
    known = (~run.records.unknown["HeldOutLoss"]).nonzero()[0]
    evaluated = [int(known[index]) for index in kept_indices(len(known))] if len(known) < len(kept) else []
    return sorted({*kept, *evaluated})


def _detail(summary: RunSummary) -> str:
    parts = (("size", summary.size), ("seed", summary.seed))
    return printable(", ".join([summary.arm, *(f"{name} {value}" for name, value in parts if value is not None)]))


def _values(run: Run, kept: Sequence[int]) -> dict[str, list[float | None]]:
    """Return every column with a known value, in five significant digits; None where it is not finite."""
    values = {}
    for column in COLUMNS[1:]:
        if column.name not in _CONSTANT and run.records.has_values(column.name):
            values[column.name] = [_short(value) for value in run.values(column.name)[kept].tolist()]
    names = ("HeldOutLoss", "UnigramLoss", "BigramLoss")
    losses = zip(*(run.values(name)[kept].tolist() for name in names), strict=True)
    skills = [_short(skill(*row)) for row in losses]
    if any(value is not None for value in skills):
        values["Skill"] = skills
    return values


def _short(value: float | None) -> float | None:
    if value is None or not math.isfinite(value):
        return None
    return int(value) if value == int(value) and abs(value) < 1e15 else float(f"{value:.5g}")


def _metrics(known: set[str]) -> list[dict[str, Any]]:
    units = {column.name: column.unit for column in COLUMNS}
    order = [*_FIRST, *(column.name for column in COLUMNS if column.name not in _FIRST)]
    return [
        {
            "id": name,
            "label": name if units.get(name, "1") == "1" else f"{name} ({units[name]})",
            "log": name in LOGARITHMIC,
        }
        for name in order
        if name in known
    ]


def _references(study: Study) -> dict[str, list[dict[str, Any]]]:
    """Return the unigram and bigram predictor as reference lines, their losses where all runs have the same."""
    losses = [{"label": name, "value": _short(value)} for name, value in reference_losses(study.summaries).items()]
    skills = [{"label": "unigram", "value": 0}, {"label": "bigram", "value": 1}]
    return {"HeldOutLoss": losses, "Skill": skills if len(losses) == 2 else []}
