"""Curves of runs made by chance, and what `over` makes of them: the time average and the share of the steps.

Shapes: S draws, N seeds, E evaluations.
"""

import functools
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.calibration.draws import Floats
from bitnetctl.records import Run, load_run
from bitnetctl.verdict.aggregate import Aggregate

EVALUATIONS, EVERY = 20, 100
THRESHOLD = 50.0
AREA = Aggregate(over="area")
SHARE = Aggregate(over="share", above=THRESHOLD)
_COMPARED = 3


def counts(generator: np.random.Generator, shape: tuple[int, int], *, volatility: float = 1.0) -> Floats:
    """Draw distinct predictions of runs (S, N, E): a random walk in their logarithm, around the threshold."""
    steps_SNE = 0.3 * volatility * generator.standard_normal((*shape, EVALUATIONS))
    start_SN1 = 0.5 * generator.standard_normal((*shape, 1))
    return np.clip(np.round(THRESHOLD * np.exp(start_SN1 + np.cumsum(steps_SNE, axis=2))), 1, 8000)


def areas(counts_SNE: Floats) -> Floats:
    """Return the time averages (S, N); the first runs are compared with the product."""
    return _compared(counts_SNE, counts_SNE @ _weights(), AREA)


def shares(counts_SNE: Floats) -> Floats:
    """Return the shares of the steps above the threshold (S, N); the first runs are compared with the product."""
    return _compared(counts_SNE, (counts_SNE > THRESHOLD) @ _weights(), SHARE)


@functools.cache
def _weights() -> Floats:
    """Return what part of the steps an evaluation stands for: half of both gaps beside it, the first for the start."""
    weights_E = np.ones(EVALUATIONS)
    weights_E[0], weights_E[-1] = 1.5, 0.5
    return weights_E / EVALUATIONS


def _compared(counts_SNE: Floats, values_SN: Floats, aggregate: Aggregate) -> Floats:
    for row, ours in zip(counts_SNE[0, :_COMPARED], values_SN[0, :_COMPARED].tolist(), strict=True):
        theirs = aggregate.value(_run(row), "UniquePredictions")
        if theirs is None or abs(theirs - ours) > 1e-9 * max(1.0, abs(ours)):
            raise AssertionError(f"{aggregate} of {row.tolist()} is {theirs}, not {ours}")
    # rounding must not tell apart what is equal
    rounded_SN: Floats = np.round(values_SN, 9)
    return rounded_SN


def _run(counts_E: Floats) -> Run:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"h64-{EVALUATIONS * EVERY}-baseline-s0-abcdef.csv"
        rows = ["Step,Loss,UniquePredictions,LR,WD", "1,9.0,8000,0.001,0.1"]
        rows += [f"{EVERY * (index + 1)},5.0,{count:.0f},0.001,0.1" for index, count in enumerate(counts_E.tolist())]
        path.write_text("\n".join([*rows, ""]), encoding="utf-8")
        return load_run(path)
