"""How often a claim about a mean is supported wrongly: the test by betting against Student's bound.

The test by betting knows a limit that no value can pass and nothing else of the noise; Student's takes the noise to be
normal. Shapes: S draws, N seeds, B bets.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from benchmarks.calibration.draws import ALPHA, COMPARED, DRAWS, QUICK_DRAWS, Floats, exceeds
from benchmarks.calibration.tables import Table, rate_text, rates_text
from bitnetctl.analysis.stats import mean_bounds
from bitnetctl.verdict.rule import mean_test

SEEDS = (3, 5, 6, 10, 20)
POWER_SEEDS = (5, 6, 10, 20, 50)
RANGES = (1.0, 20.0)
LOOKS = 20
GROWTHS = (0.2, 0.5, 1.0, 2.0, 5.0)
_BETS_B = np.array([0.25, 0.5, 0.75, 1.0])
_CONCENTRATION = 4.0


@dataclass(frozen=True)
class Case:
    """Values with the mean at a threshold, one for each of `RANGES`, so that no claim beyond it is true.

    `draw` draws values within 0 to 1 of a given mean.
    """

    name: str
    thresholds: tuple[float, float]
    draw: Callable[[np.random.Generator, tuple[int, ...], float], Floats]


def _normal(generator: np.random.Generator, shape: tuple[int, ...], mean: float) -> Floats:
    near = min(mean, 1 - mean)
    # clipped alike on both sides, which leaves the mean
    return np.clip(mean + 0.4 * near * generator.standard_normal(shape), mean - near, mean + near)


def _beta(generator: np.random.Generator, shape: tuple[int, ...], mean: float) -> Floats:
    return generator.beta(_CONCENTRATION * mean, _CONCENTRATION * (1 - mean), shape)


def _collapsing(generator: np.random.Generator, shape: tuple[int, ...], mean: float) -> Floats:
    noise = 0.02 * generator.uniform(-1, 1, shape)
    return np.where(generator.random(shape) < 0.1, 0.0, mean / 0.9 + noise)


def _two_points(share: float) -> Callable[[np.random.Generator, tuple[int, ...], float], Floats]:
    return lambda generator, shape, mean: np.where(generator.random(shape) < share, 0.0, mean / (1 - share))


CASES = (
    Case("normal, clipped", (0.5, 5), _normal),
    Case("beta, right-skewed", (0.2, 2), _beta),
    Case("beta, left-skewed", (0.8, 18), _beta),
    Case("10 % collapse to 0", (0.5, 10), _collapsing),
    Case("0 or one value, half each", (0.5, 4), _two_points(0.5)),
    Case("0 in 5 %, else one value", (0.9, 10), _two_points(0.05)),
)


def tables(*, quick: bool = False) -> list[Table]:
    """Return the tables; a quick run has fewer draws."""
    draws = QUICK_DRAWS if quick else DRAWS
    return [error_table(draws), power_table(draws), fewest_table()]


def betting_p(values_SN: Floats, threshold: float, limit: float) -> Floats:
    """Return the p-value of every draw after 1 … N seeds (S, N); the first draws are compared with `mean_test`."""
    growth_SN = (values_SN - threshold) / (threshold - limit)
    wealth_SN = np.zeros(values_SN.shape)
    with np.errstate(divide="ignore"):
        for bet in _BETS_B:
            wealth_SN += np.exp(np.cumsum(np.log1p(bet * growth_SN), axis=1)) / len(_BETS_B)
        p_SN = np.minimum(1.0, 1.0 / wealth_SN)
    for row, ours in zip(values_SN[:COMPARED].tolist(), p_SN.tolist(), strict=False):
        for seeds in (1, 3, len(row)):
            theirs = mean_test(row[:seeds], threshold, limit)
            if not math.isclose(theirs, ours[seeds - 1], rel_tol=1e-9):
                raise AssertionError(f"p of {row[:seeds]} is {theirs}, not {ours[seeds - 1]}")
    return p_SN


def error_table(draws: int) -> Table:
    """Return how often a mean at the threshold is taken to be above it."""
    rows, faults = [], []
    for index, case in enumerate(CASES):
        errors = []
        for high, threshold in zip(RANGES, case.thresholds, strict=True):
            generator = np.random.default_rng([8, index])
            values_SN = high * case.draw(generator, (draws, LOOKS), threshold / high)
            p_SN = betting_p(values_SN, threshold, 0.0)
            ours = [float((p_SN[:, seeds - 1] < ALPHA).mean()) for seeds in SEEDS]
            ours.append(float((p_SN < ALPHA).any(axis=1).mean()))
            faults += [f"{case.name}, 0 to {high}: {rate:.4f}" for rate in ours if exceeds(rate, draws)]
            errors.append((ours, [_student(values_SN[:, :seeds], threshold) for seeds in SEEDS]))
        betting, student = ([max(pair) for pair in zip(*one, strict=True)] for one in zip(*errors, strict=True))
        cells = [rates_text(*pair) for pair in zip(betting, student, strict=False)]
        at = [f"{threshold:g} of {high:g}" for high, threshold in zip(RANGES, case.thresholds, strict=True)]
        rows.append([case.name, ", ".join(at), *cells, rate_text(betting[-1])])
    return Table(
        f'False support of `claim = "mean"`, the mean at the threshold: betting / Student ({draws:,} draws)',
        "Cells: the larger of two ranges, 0 to 1 and 0 to 20, with a threshold in each. Last column: betting, looked "
        f"at after every seed from 1 to {LOOKS}. False refutation is the mirror image.",
        ["values", "thresholds", *(f"n = {seeds}" for seeds in SEEDS), "any look"],
        rows,
        faults,
    )


def power_table(draws: int) -> Table:
    """Return how often a mean above the threshold is found, with normal noise of 0.05 of the range."""
    rows = []
    for threshold in (0.25, 0.5):
        for above in (0.1, 0.2, 0.3, 0.4):
            generator = np.random.default_rng(9)
            values_SN = np.clip(
                threshold + above + 0.05 * generator.standard_normal((draws, max(POWER_SEEDS))), 0.0, 1.0
            )
            p_SN = betting_p(values_SN, threshold, 0.0)
            cells = [
                rates_text(float((p_SN[:, seeds - 1] < ALPHA).mean()), _student(values_SN[:, :seeds], threshold))
                for seeds in POWER_SEEDS
            ]
            rows.append([f"{threshold:g}", f"{threshold + above:g}", *cells])
    return Table(
        f'Power of `claim = "mean"`: betting / Student ({draws:,} draws)',
        "Range 0–1, normal values with a standard deviation of 0.05.",
        ["threshold", "true mean", *(f"n = {seeds}" for seeds in POWER_SEEDS)],
        rows,
    )


def fewest_table() -> Table:
    """Return the fewest seeds that support a mean when all values are equal: the least that noise can leave."""
    rows = []
    for growth in GROWTHS:
        p_by_seeds = [mean_test([1 + growth] * seeds, 1.0, 0.0) for seeds in range(1, 50)]
        fewest = [1 + next(index for index, p in enumerate(p_by_seeds) if p < ALPHA / arms) for arms in (1, 2, 8)]
        rows.append([f"{growth:g}", *map(str, fewest)])
    return Table(
        'Fewest seeds with which `claim = "mean"` can be supported',
        "Every value is beyond the threshold by this multiple of the distance from the limit of the range to the "
        "threshold. Noise takes more, and the failure rate takes seeds of its own.",
        ["beyond by", "1 arm", "2 arms", "8 arms"],
        rows,
    )


def _student(values_SN: Floats, threshold: float) -> float:
    return float((mean_bounds(values_SN, "low", 1 - ALPHA) > threshold).mean())
