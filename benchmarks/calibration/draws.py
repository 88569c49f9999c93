"""Noise of seeds, and the decisions about many arms at once.

Shape suffixes: S draws, K arms that share an error rate, N seeds.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bitnetctl.verdict.rule import holm_levels

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Booleans = npt.NDArray[np.bool_]

ALPHA = 0.05
DRAWS, QUICK_DRAWS = 200_000, 2_000
ARMS = 8
COMPARED = 50
"""Draws of each simulation for which the function of the product is called, too."""
_STANDARD_ERRORS = 3.1
_LOG_SD = 0.7
_COLLAPSE, _COLLAPSE_SHARE, _COLLAPSE_SD = -6.0, 0.1, 0.2


@dataclass(frozen=True)
class Noise:
    """A distribution of the values of seeds, with its median and mean."""

    name: str
    draw: Callable[[np.random.Generator, tuple[int, ...]], Floats]
    median: float
    mean: float

    def centred(self, generator: np.random.Generator, shape: tuple[int, ...], statistic: str) -> Floats:
        """Draw values of which the `statistic`, median or mean, is 0."""
        return self.draw(generator, shape) - (self.median if statistic == "median" else self.mean)


def _collapsing(generator: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    healthy = _COLLAPSE_SD * generator.standard_normal(shape)
    return np.where(generator.random(shape) < _COLLAPSE_SHARE, _COLLAPSE, healthy)


def _lognormal(sign: float) -> Callable[[np.random.Generator, tuple[int, ...]], Floats]:
    return lambda generator, shape: sign * np.exp(_LOG_SD * generator.standard_normal(shape))


NORMAL = Noise("normal", lambda generator, shape: generator.standard_normal(shape), 0.0, 0.0)
HEAVY = Noise("t₂", lambda generator, shape: generator.standard_t(2, shape), 0.0, 0.0)
LEFT = Noise("left-skewed", _lognormal(-1.0), -1.0, -math.exp(_LOG_SD**2 / 2))
RIGHT = Noise("right-skewed", _lognormal(1.0), 1.0, math.exp(_LOG_SD**2 / 2))
# the median of all is the 4/9 quantile of the nine tenths that do not collapse
COLLAPSING = Noise("10 % collapse", _collapsing, _COLLAPSE_SD * -0.13971, _COLLAPSE_SHARE * _COLLAPSE)
"""Healthy seeds are close together, a tenth of the seeds is 30 of their standard deviations below."""


def rejected(p_SK: Floats) -> Booleans:
    """Return which hypotheses Holm's method rejects in every draw; the first draws are compared with the product's."""
    arms = p_SK.shape[1]
    order = np.argsort(p_SK, axis=1, kind="stable")
    passes = np.take_along_axis(p_SK, order, axis=1) < ALPHA / (arms - np.arange(arms))
    result = np.zeros(p_SK.shape, dtype=bool)
    np.put_along_axis(result, order, np.logical_and.accumulate(passes, axis=1), axis=1)
    for row, ours in zip(p_SK[:COMPARED].tolist(), result, strict=False):
        levels = holm_levels(row, ALPHA, arms)
        if [p < level for p, level in zip(row, levels, strict=True)] != ours.tolist():
            raise AssertionError(f"Holm's method: {row}, levels {levels}, rejected {ours.tolist()}")
    return result


def any_rejected(p_SK: Floats) -> float:
    """Return how often Holm's method rejects any hypothesis."""
    return float(rejected(p_SK).any(axis=1).mean())


def decisions(supporting_SK: Floats, refuting_SK: Floats) -> Integers:
    """Return 1 where an arm is supported, -1 where it is refuted, 0 where it stays open."""
    return np.where(rejected(refuting_SK), -1, rejected(supporting_SK).astype(np.int64))


def exceeds(rate: float, draws: int, alpha: float = ALPHA) -> bool:
    """Whether a simulated error rate is above `alpha` by more than simulation explains."""
    return rate > alpha + _STANDARD_ERRORS * math.sqrt(alpha * (1 - alpha) / draws)
