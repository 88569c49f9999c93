"""How often paired checks err and what they find: the sign gate, and Student's for claims about a mean.

A pair is won where the improvement exceeds the margin, here 0. No run fails, and the statement about the failure rate
is combined with that about the pairs as in a verdict. Shapes: S draws, K arms, N pairs.
"""

import functools
import math

import numpy as np

from benchmarks.calibration.draws import (
    ALPHA,
    ARMS,
    COLLAPSING,
    COMPARED,
    DRAWS,
    HEAVY,
    LEFT,
    NORMAL,
    QUICK_DRAWS,
    RIGHT,
    Floats,
    Integers,
    any_rejected,
    exceeds,
)
from benchmarks.calibration.tables import Table, rates_text, worst_text
from bitnetctl.verdict.checks.pair_tests import Pairs, sign_test, student_test
from bitnetctl.verdict.rule import PValues, Tally, all_of, at_least, failure_rate_test

NOISES = (NORMAL, HEAVY, LEFT, RIGHT, COLLAPSING)
PAIRS = (5, 6, 8, 10, 12)
NUMBERS_OF_ARMS = (1, 2, 4, ARMS)
EFFECTS = (1.5, 1.0)


def tables(*, quick: bool = False) -> list[Table]:
    """Return the tables; a quick run has fewer draws."""
    draws = QUICK_DRAWS if quick else DRAWS
    return [median_table(draws), mean_table(draws), choice_table(draws)]


@functools.cache
def p_by_wins(pairs: int) -> tuple[Floats, Floats]:
    """Return the p-values of support and of refutation by the number of pairs won, none equal and no run failed."""
    tests = [_combined(sign_test(_pairs([1.0] * wins + [-1.0] * (pairs - wins))), pairs) for wins in range(pairs + 1)]
    return np.array([test.supporting for test in tests]), np.array([test.refuting for test in tests])


def student_p(improvements_SKN: Floats) -> tuple[Floats, Floats]:
    """Return Student's p-values in both directions (S, K); the first draws are compared with `student_test`."""
    from scipy.special import stdtr

    count = improvements_SKN.shape[2]
    error_SK = improvements_SKN.std(axis=2, ddof=1) / math.sqrt(count)
    is_constant = error_SK == 0
    t_SK = improvements_SKN.mean(axis=2) / np.where(is_constant, 1.0, error_SK)
    supporting, refuting = (np.where(is_constant, 1.0, stdtr(count - 1, sign * t_SK)) for sign in (-1, 1))
    for row, *ours in zip(improvements_SKN[:COMPARED, 0].tolist(), supporting[:, 0], refuting[:, 0], strict=False):
        theirs = student_test(_pairs(row))
        if not np.allclose(ours, (theirs.supporting, theirs.refuting), rtol=1e-9):
            raise AssertionError(f"Student's p of {row} is {theirs}, not {ours}")
    return supporting, refuting


def both_gates(improvements_SKN: Floats) -> tuple[Floats, Floats]:
    """Return the p-values of `claim = "mean"` beside a failure rate of 0 (S, K)."""
    wins_SK, pairs = _wins(improvements_SKN), improvements_SKN.shape[2]
    sign_supporting, sign_refuting = p_by_wins(pairs)
    supporting, refuting = student_p(improvements_SKN)
    # twice as large, since one statement of two is enough to refute
    return np.maximum(sign_supporting[wins_SK], supporting), np.maximum(
        sign_refuting[wins_SK], np.minimum(1.0, 2 * refuting)
    )


def median_table(draws: int) -> Table:
    """Return the error rates of `claim = "median"` with the median pair at the margin, over all noises."""
    errors: dict[tuple[int, int], list[list[float]]] = {}
    faults = []
    for noise in NOISES:
        generator = np.random.default_rng(10)
        wins_SK = np.zeros((draws, ARMS), dtype=np.int64)
        for pairs in range(1, max(PAIRS) + 1):
            wins_SK += noise.centred(generator, (draws, ARMS), "median") > 0
            if pairs not in PAIRS:
                continue
            supporting, refuting = p_by_wins(pairs)
            for arms in NUMBERS_OF_ARMS:
                both = [any_rejected(p[wins_SK[:, :arms]]) for p in (supporting, refuting)]
                if any(exceeds(rate, draws) for rate in both):
                    faults.append(f"{noise.name}, {arms} arms, {pairs} pairs: {both}")
                errors.setdefault((arms, pairs), []).append(both)
    rows = [[str(arms), *(worst_text(errors[arms, pairs]) for pairs in PAIRS)] for arms in NUMBERS_OF_ARMS]
    return Table(
        f"Wrong verdicts of `paired`, the median pair at the margin ({draws:,} draws)",
        f"Cells: some arm supported / refuted, the largest of {', '.join(noise.name for noise in NOISES)} noise.",
        ["arms", *(f"{pairs} pairs" for pairs in PAIRS)],
        rows,
        faults,
    )


def mean_table(draws: int) -> Table:
    """Return how often `claim = "mean"` and `claim = "median"` are supported with the mean pair at the margin."""
    rows, faults = [], []
    for noise in NOISES:
        # whoever has a median above the mean wins more than half of the pairs
        is_promised = noise.median <= noise.mean
        cells: dict[int, list[list[float]]] = {}
        for arms in (1, ARMS):
            some = max(1, draws // arms)
            for pairs in PAIRS:
                generator = np.random.default_rng(11)
                improvements_SKN = noise.centred(generator, (some, arms, pairs), "mean")
                supporting, _ = both_gates(improvements_SKN)
                ours = any_rejected(supporting)
                median = any_rejected(p_by_wins(pairs)[0][_wins(improvements_SKN)])
                if is_promised and exceeds(ours, some):
                    faults.append(f"{noise.name}, {arms} arms, {pairs} pairs: {ours:.4f}")
                cells.setdefault(arms, []).append([ours, median])
        texts = [*(rates_text(*pair) for pair in cells[1]), worst_text(cells[ARMS])]
        rows.append([noise.name, "yes" if is_promised else "no", *(text + "*" * (not is_promised) for text in texts)])
    return Table(
        f"Support of `paired`, the mean pair at the margin ({draws:,} draws of one arm, {draws // ARMS:,} of eight)",
        'Cells: some arm supported by `claim = "mean"`, always an error / by `claim = "median"` (* no error: the '
        "median is above the margin). `promised`: whether the two gates hold the error rate under this noise. Last "
        "column: some of eight arms, at the worst number of pairs.",
        ["noise", "promised", *(f"{pairs} pairs" for pairs in PAIRS), f"{ARMS} arms"],
        rows,
        faults,
    )


def choice_table(draws: int) -> Table:
    """Return the fewest pairs that can decide, those that may lose one, and the power of that choice."""
    rows = []
    for arms in NUMBERS_OF_ARMS:
        level = ALPHA / arms
        all_won, one_lost = (next(n for n in range(1, 100) if at_least(n - lost, n, 0.5) < level) for lost in (0, 1))
        cells = []
        for effect in EFFECTS:
            generator = np.random.default_rng(12)
            improvements_SKN = effect + generator.standard_normal((draws, 1, one_lost))
            by_sign = p_by_wins(one_lost)[0][_wins(improvements_SKN)]
            by_both = both_gates(improvements_SKN)[0]
            cells.append(rates_text(*(float((p < level).mean()) for p in (by_sign, by_both))))
        rows.append([str(arms), str(all_won), f"{one_lost - 1} of {one_lost}", *cells])
    return Table(
        f"How many pairs to plan ({draws:,} draws)",
        "For an arm on its own level, 5 % over the number of arms. Power with the pairs of the third column and normal "
        'improvements of 1.5 and 1 standard deviations above the margin: `claim = "median"` / `claim = "mean"`.',
        ["arms", "fewest, all won", "fewest that may lose one", *(f"power at {effect:g} sd" for effect in EFFECTS)],
        rows,
    )


def _wins(improvements_SKN: Floats) -> Integers:
    wins: Integers = (improvements_SKN > 0).sum(axis=2)
    return wins


def _pairs(improvements: list[float]) -> Pairs:
    return Pairs(values=tuple(improvements), planned=len(improvements))


def _combined(pairs: PValues, planned: int) -> PValues:
    return all_of([failure_rate_test(Tally(healthy=planned), 0.5), pairs])
