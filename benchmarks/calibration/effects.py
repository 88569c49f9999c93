"""Coverage, error rates and power of the effects of `bitnetctl analyze`, by its own functions.

Shapes: S draws, N seeds.
"""

import itertools
import math
from collections.abc import Sequence

import numpy as np

from benchmarks.calibration.draws import (
    ALPHA,
    COLLAPSING,
    DRAWS,
    HEAVY,
    LEFT,
    NORMAL,
    QUICK_DRAWS,
    Booleans,
    Floats,
    exceeds,
)
from benchmarks.calibration.tables import Table, rate_text, rates_text
from bitnetctl.analysis.stats import detectable_factor, mean_bounds, sign_test_p

NOISES = (NORMAL, HEAVY, LEFT, COLLAPSING)
SEEDS = (3, 6, 10, 20)
METRICS = 3
"""P-values of one arm in the table of effects."""
TESTS = (1, METRICS, 8 * METRICS)


def tables(*, quick: bool = False) -> list[Table]:
    """Return the tables; a quick run has fewer draws."""
    draws = QUICK_DRAWS if quick else DRAWS
    return [coverage_table(draws), error_table(draws), family_table(draws // 4), power_table(draws), found_table(draws)]


def sign_p(differences_SN: Floats) -> Floats:
    """Return the p-value of the sign test of every draw."""
    better, worse = (differences_SN > 0).sum(1), (differences_SN < 0).sum(1)
    count = differences_SN.shape[1]
    by_counts = np.array([[sign_test_p(one, other) for other in range(count + 1)] for one in range(count + 1)])
    p_S: Floats = by_counts[better, worse]
    return p_S


def missed(differences_SN: Floats, alpha: float = ALPHA) -> Booleans:
    """Return whether the mean 0 lies outside of the Student interval of every draw."""
    low, high = (mean_bounds(differences_SN, side, 1 - alpha / 2) for side in ("low", "high"))
    return (low > 0) | (high < 0)


def coverage_table(draws: int) -> Table:
    """Return the coverage of the interval of the mean difference."""
    generator = np.random.default_rng(20)
    rows, faults = [], []
    for noise in NOISES:
        errors = [float(missed(noise.centred(generator, (draws, seeds), "mean")).mean()) for seeds in SEEDS]
        if noise is NORMAL:
            faults += _faults(errors, draws, noise.name)
        rows.append([noise.name, *(rate_text(1 - error) for error in errors)])
    return Table(
        f"Coverage of the 95 % Student interval of the mean difference ({draws:,} draws)",
        "Promised for normal differences only.",
        ["differences", *(f"{seeds} seeds" for seeds in SEEDS)],
        rows,
        faults,
    )


def error_table(draws: int) -> Table:
    """Return the error rate of the sign test under both hypotheses, beside that of Student's t."""
    generator = np.random.default_rng(21)
    rows, faults = [], []
    for changes_nothing in (True, False):
        for noise in NOISES:
            by_sign, by_student = [], []
            for seeds in SEEDS:
                differences_SN = noise.centred(generator, (draws, seeds), "mean")
                if changes_nothing:
                    differences_SN -= noise.centred(generator, (draws, seeds), "mean")
                by_sign.append(float((sign_p(differences_SN) <= ALPHA).mean()))
                by_student.append(float(missed(differences_SN).mean()))
            if changes_nothing:
                faults += _faults(by_sign, draws, noise.name)
            hypothesis = "the arm changes nothing" if changes_nothing else "equal means"
            rows.append([hypothesis, noise.name, *map(rate_text, [*by_sign, *by_student])])
    return Table(
        f"Error rate at 0.05 of the exact sign test, and of Student's t ({draws:,} draws)",
        "The sign test promises 0.05 where the arm changes nothing, and nothing of the mean.",
        ["hypothesis", "noise", *(f"{test}, {seeds} seeds" for test in ("sign", "t") for seeds in SEEDS)],
        rows,
        faults,
    )


def family_table(draws: int) -> Table:
    """Return the rate of any difference told from chance in a table of effects, where no arm changes anything."""
    generator = np.random.default_rng(22)
    rows, faults = [], []
    for arms, noise in itertools.product((1, 8), NOISES):
        tests = arms * METRICS
        errors = []
        for seeds in SEEDS:
            # all arms share the baseline; skill follows the loss, the third metric does not
            baselines = [noise.centred(generator, (draws, seeds), "mean") for _ in range(METRICS - 1)]
            smallest_S = np.ones(draws)
            for _, baseline_SN in itertools.product(range(arms), baselines):
                differences_SN = noise.centred(generator, (draws, seeds), "mean") - baseline_SN
                smallest_S = np.minimum(smallest_S, sign_p(differences_SN))
            # the first step of Holm's method decides whether there is any
            errors.append(float((smallest_S * tests < ALPHA).mean()))
        faults += _faults(errors, draws, f"{noise.name}, {tests} p-values")
        rows.append([str(arms), str(tests), noise.name, *map(rate_text, errors)])
    return Table(
        f"Any difference told from chance after Holm, where no arm changes anything ({draws:,} draws)",
        "A whole table of effects; promised is at most 0.05.",
        ["arms", "p-values", "noise", *(f"{seeds} seeds" for seeds in SEEDS)],
        rows,
        faults,
    )


def power_table(draws: int) -> Table:
    """Return the power of the sign test for normal differences, beside that of Student's t at the same level."""
    generator = np.random.default_rng(23)
    numbers = (6, 8, 10, 12, 20)
    rows = []
    for tests, shift in itertools.product(TESTS, (1.0, 1.5, 2.0)):
        cells = []
        for seeds in numbers:
            differences_SN = generator.standard_normal((draws, seeds)) + shift
            told = (sign_p(differences_SN) <= ALPHA / tests, missed(differences_SN, ALPHA / tests))
            cells.append(rates_text(*(float(one.mean()) for one in told)))
        rows.append([str(tests), f"{shift:g} sd", *cells])
    return Table(
        f"Power of the sign test / of Student's t, normal differences ({draws:,} draws)",
        "At a level of 0.05 / p-values: what a test costs that holds for any noise.",
        ["p-values", "mean difference", *(f"{seeds} seeds" for seeds in numbers)],
        rows,
    )


def found_table(draws: int) -> Table:
    """Return the power at the mean difference that is said to be found: sd of n seeds, test of n new ones."""
    generator = np.random.default_rng(24)
    numbers = (6, 7, 8, 10, 12, 20)
    rows, faults = [], []
    for tests in TESTS:
        cells = []
        for seeds in numbers:
            factor = detectable_factor(seeds, ALPHA / tests)
            if not math.isfinite(factor):
                cells.append("none")
                continue
            spread_S = generator.standard_normal((draws, seeds)).std(1, ddof=1)
            differences_SN = generator.standard_normal((draws, seeds)) + factor * spread_S[:, None]
            not_found = float((sign_p(differences_SN) > ALPHA / tests).mean())
            if exceeds(not_found, draws, 0.2):
                faults.append(f"{tests} p-values, {seeds} seeds: not found in {not_found:.4f}")
            cells.append(f"{rate_text(1 - not_found)} at {factor:.2f} sd")
        rows.append([str(tests), *cells])
    return Table(
        f"Power at the mean difference that is said to be found with 0.8 ({draws:,} draws)",
        "At a level of 0.05 / p-values; normal differences, their sd estimated from n others.",
        ["p-values", *(f"{seeds} seeds" for seeds in numbers)],
        rows,
        faults,
    )


def _faults(errors: Sequence[float], draws: int, what: str) -> list[str]:
    """Return the error rates, for each of SEEDS, that are above ALPHA."""
    return [
        f"{what}, {seeds} seeds: {error:.4f}"
        for seeds, error in zip(SEEDS, errors, strict=True)
        if exceeds(error, draws)
    ]
