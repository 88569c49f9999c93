"""How often checks of equivalence and of interactions err, also over the steps, and what they find.

Every simulated set is at the edge of what is claimed: the median, or the mean, of the pairs is at the limit. The error
rates are those of the statement alone; beside that of the failure rate it needs a smaller p-value to be refuted, and
errs less. Shapes: S draws, N pairs.
"""

import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from benchmarks.calibration import curves
from benchmarks.calibration.draws import (
    ALPHA,
    COLLAPSING,
    COMPARED,
    DRAWS,
    HEAVY,
    LEFT,
    NORMAL,
    QUICK_DRAWS,
    RIGHT,
    Floats,
    Noise,
    exceeds,
)
from benchmarks.calibration.means import betting_p
from benchmarks.calibration.tables import Table, rates_text, worst_text
from bitnetctl.verdict.checks.compared import gain
from bitnetctl.verdict.checks.equivalent import EquivalentCheck
from bitnetctl.verdict.checks.interaction import InteractionCheck
from bitnetctl.verdict.checks.pair_tests import (
    Pairs,
    median_bound,
    sign_test,
    two_bets_on_mean,
    two_sign_tests,
    two_student_tests,
)
from bitnetctl.verdict.criteria import SeedRule
from bitnetctl.verdict.power import Effect, power, seeds_needed

NOISES = (NORMAL, HEAVY, LEFT, RIGHT, COLLAPSING)
PAIRS = (5, 6, 8, 10, 12, 20)
POWER_SEEDS = (5, 8, 11, 13, 20)
SPREADS = (0.05, 0.5, 5.0)
"""Standard deviations of the differences where they may be within 1: far from the other limit, and beyond it too."""
WIDER = 3.0
"""How much noisier the arm is than the three others of an interaction, so that the differences are skewed."""
FAILING = 0.1
RULE = SeedRule(rule="rate")
_MANY = 2_000_000

Draw = Callable[[np.random.Generator, tuple[int, int]], Floats]


def tables(*, quick: bool = False) -> list[Table]:
    """Return the tables; a quick run has fewer draws."""
    draws = QUICK_DRAWS if quick else DRAWS
    # a run over the steps is twenty values
    some = QUICK_DRAWS if quick else DRAWS // 10
    return [
        equivalent_table(draws, some),
        interaction_table(draws, some),
        mean_table(draws),
        equivalent_power_table(),
        interaction_power_table(),
    ]


@functools.cache
def p_by_counts(pairs: int) -> tuple[Floats, Floats]:
    """Return the p-values of `equivalent` by the numbers of differences that are too low and too high."""
    p = np.ones((2, pairs + 1, pairs + 1))
    for low, high in itertools.product(range(pairs + 1), repeat=2):
        if low + high <= pairs:
            values = (-2.0,) * low + (2.0,) * high + (0.0,) * (pairs - low - high)
            found = two_sign_tests(Pairs(values=values, planned=pairs), 1.0)
            p[:, low, high] = found.supporting, found.refuting
    return p[0], p[1]


def two_sided(differences_SN: Floats, within: float) -> tuple[Floats, Floats]:
    """Return the p-values of `equivalent` (S); the first draws are compared with `two_sign_tests`."""
    supporting, refuting = p_by_counts(differences_SN.shape[1])
    # one that is equal to the limit helps neither side, so that it counts as outside for support only
    inside = [(differences_SN <= -within).sum(1), (differences_SN >= within).sum(1)]
    outside = [(differences_SN < -within).sum(1), (differences_SN > within).sum(1)]
    p = supporting[*inside], refuting[*outside]
    for row, *ours in zip(differences_SN[:COMPARED].tolist(), *p, strict=False):
        theirs = two_sign_tests(Pairs(values=tuple(row), planned=len(row)), within)
        if not np.allclose(ours, (theirs.supporting, theirs.refuting), rtol=1e-9):
            raise AssertionError(f"p of {row} is {theirs}, not {ours}")
    return p


@functools.cache
def _p_of_signs(pairs: int) -> Floats:
    """Return the p-value of at least so many wins."""
    wins = ((1.0,) * won + (-1.0,) * (pairs - won) for won in range(pairs + 1))
    return np.array([sign_test(Pairs(values=values, planned=pairs)).supporting for values in wins])


def signs(values_SN: Floats) -> tuple[Floats, Floats]:
    """Return the p-values of `interaction` (S); the first draws are compared with the sign test and its bound."""
    p_by_wins = _p_of_signs(values_SN.shape[1])
    p = p_by_wins[(values_SN > 0).sum(1)], p_by_wins[(values_SN < 0).sum(1)]
    for row, *ours in zip(values_SN[:COMPARED].tolist(), *p, strict=False):
        pairs = Pairs(values=tuple(row), planned=len(row))
        theirs = sign_test(pairs)
        if not np.allclose(ours, (theirs.supporting, theirs.refuting), rtol=1e-9):
            raise AssertionError(f"p of {row} is {theirs}, not {ours}")
        bound = median_bound(pairs, ALPHA, "low")
        if (theirs.supporting < ALPHA) is not (bound is not None and bound > 0):
            raise AssertionError(f"the bound of the median of {row} is {bound}, and {theirs}")
    return p


def equivalent_table(draws: int, some: int) -> Table:
    """Return the error rates of `equivalent` with the median difference at the limit, to either side."""
    rows, faults = [], []
    for name, draw, count in _differences(draws, some):
        cells = []
        for pairs in PAIRS:
            generator = np.random.default_rng(30)
            errors = []
            for spread in SPREADS:
                centred_SN = spread * draw(generator, (count, pairs))
                for limit in (1.0, -1.0):
                    p = two_sided(limit + centred_SN, 1.0)
                    errors.append([float((one < ALPHA).mean()) for one in p])
            cells.append(worst_text(errors))
            faults += [f"{name}, {pairs} pairs: {one}" for one in errors if any(exceeds(rate, count) for rate in one)]
        rows.append([name, *cells])
    cells = []
    for pairs in PAIRS:
        generator = np.random.default_rng(31)
        halves_SN = generator.choice([-3.0, 3.0], (draws, pairs)) + 0.1 * generator.standard_normal((draws, pairs))
        rates = [float((one < ALPHA).mean()) for one in two_sided(halves_SN, 1.0)]
        faults += [f"half and half, {pairs} pairs: {rates}"] if any(exceeds(rate, draws) for rate in rates) else []
        cells.append(rates_text(*rates))
    rows.append(["half far above, half far below", *cells])
    return Table(
        "Wrong verdicts of `equivalent`, the median difference at the limit "
        f"({draws:,} draws, {some:,} of runs over the steps)",
        f"Cells: supported / refuted, the largest of differences that vary by {', '.join(map(str, SPREADS))} times the "
        "limit, to either side. Of differences that are half far above and half far below, the median may be anywhere "
        "between: without the factor of two, refutation would err twice as often.",
        ["differences", *(f"{pairs} pairs" for pairs in PAIRS)],
        rows,
        faults,
    )


def interaction_table(draws: int, some: int) -> Table:
    """Return the error rates of `interaction` with the median difference of the gains at the margin."""
    rows, faults = [], []
    for name, draw, count in _gains(draws, some):
        cells = []
        for pairs in PAIRS:
            values_SN = draw(np.random.default_rng(32), (count, pairs))
            rates = [float((one < ALPHA).mean()) for one in signs(values_SN)]
            faults += [f"{name}, {pairs} seeds: {rates}"] if any(exceeds(rate, count) for rate in rates) else []
            cells.append(rates_text(*rates))
        rows.append([name, *cells])
    return Table(
        "Wrong verdicts of `interaction`, the median difference of the gains at the margin "
        f"({draws:,} draws, {some:,} of runs over the steps)",
        f"Cells: supported / refuted. Four runs a seed; the arm is {WIDER:g} times as noisy as the others. Where runs "
        "fail all arms are alike; over the steps the arms with the modifier are half as volatile.",
        ["noise of the runs", *(f"{pairs} seeds" for pairs in PAIRS)],
        rows,
        faults,
    )


def mean_table(draws: int) -> Table:
    """Return how often equivalence of the mean is supported with the mean difference at the limit."""
    rows, faults = [], []
    for noise in (*NOISES, None):
        name = "two values, one in twenty" if noise is None else noise.name
        bets, students = [], []
        for pairs in PAIRS:
            generator = np.random.default_rng(33)
            if noise is None:
                centred_SN = np.where(generator.random((draws, pairs)) < 0.05, -9.5, 0.5) * 0.4
            else:
                centred_SN = 0.2 * noise.centred(generator, (draws, pairs), "mean")
            sides = (1.0 + centred_SN, -1.0 + centred_SN)
            bets.append(max(map(_by_bets, sides)))
            students.append(max(map(_by_student, sides)))
        if noise is NORMAL and any(exceeds(rate, draws) for rate in (*bets, *students)):
            faults.append(f"{name}: {bets}, {students}")
        if any(exceeds(rate, draws) for rate in bets):
            faults.append(f"{name}, bets: {bets}")
        rows.append([name, *(rates_text(*pair) for pair in zip(bets, students, strict=True))])
    return Table(
        f'False support of `equivalent` with `claim = "mean"`, the mean difference at the limit ({draws:,} draws)',
        "Cells: bets within a range of four times the limit / Student's tests without a range, each with both sign "
        "tests; the larger of both sides. Bets hold for any noise within the range, Student's for nearly normal "
        "differences only.",
        ["differences", *(f"{pairs} pairs" for pairs in PAIRS)],
        rows,
        faults,
    )


def _by_bets(values_SN: Floats) -> float:
    """Return how often both sign tests and both bets support; the first draws are compared."""
    inside_S = np.all(np.abs(values_SN) <= 4.0, axis=1)
    signs_S, _ = two_sided(values_SN, 1.0)
    # those outside of the range are open, whatever the bets
    clipped_SN = np.clip(values_SN, -4.0, 4.0)
    high, low = betting_p(clipped_SN, 1.0, 4.0)[:, -1], betting_p(clipped_SN, -1.0, -4.0)[:, -1]
    p_S = np.maximum(high, low)
    for row, ours, inside in zip(values_SN[:COMPARED].tolist(), p_S, inside_S, strict=False):
        theirs = two_bets_on_mean(Pairs(values=tuple(row), planned=len(row)), (-4.0, 4.0), 1.0).supporting
        if inside and not math.isclose(theirs, ours, rel_tol=1e-9):
            raise AssertionError(f"p of {row} is {theirs}, not {ours}")
    return float((inside_S & (np.maximum(signs_S, p_S) < ALPHA)).mean())


def _by_student(values_SN: Floats) -> float:
    """Return how often both sign tests and both Student tests support; the first draws are compared."""
    from scipy.special import stdtr

    count = values_SN.shape[1]
    error_S = values_SN.std(axis=1, ddof=1) / math.sqrt(count)
    mean_S = values_SN.mean(axis=1)
    known = np.where(error_S < 1e-12, np.nan, error_S)
    p_S = np.fmax(stdtr(count - 1, (mean_S - 1.0) / known), stdtr(count - 1, (-1.0 - mean_S) / known))
    p_S = np.where(np.isnan(known), 1.0, p_S)
    for row, ours in zip(values_SN[:COMPARED].tolist(), p_S, strict=False):
        theirs = two_student_tests(Pairs(values=tuple(row), planned=len(row)), 1.0).supporting
        if not math.isclose(theirs, ours, rel_tol=1e-6, abs_tol=1e-12):
            raise AssertionError(f"p of {row} is {theirs}, not {ours}")
    return float((np.maximum(two_sided(values_SN, 1.0)[0], p_S) < ALPHA).mean())


def equivalent_power_table() -> Table:
    """Return the exact power of `equivalent` by how many standard deviations the limit is wide."""
    check = EquivalentCheck(measure="HeldOutLoss", within=1.0)
    rows = []
    for width, share in itertools.product((1.0, 1.5, 2.0, 3.0), (0.0, 0.5)):
        effect = Effect(effect=share, sd=1 / width)
        rows.append([f"{width:g} sd", f"{share:g} of it" if share else "0", *_power_cells(check, effect)])
    return Table(
        "Power of `equivalent`, exact",
        "Normal differences / Student's t with 3 degrees of freedom and the same quartiles; one arm, no run fails. "
        f"{_LAST}",
        ["limit", "true difference", *(f"{seeds} seeds" for seeds in POWER_SEEDS), "for 0.8"],
        rows,
    )


def interaction_power_table() -> Table:
    """Return the exact power of `interaction` and `paired` by the effect beyond the margin."""
    check = InteractionCheck(measure="HeldOutLoss", better="lower", modifier="full-precision")
    rows = [
        [f"{effect:g} sd", *_power_cells(check, Effect(effect=effect))] for effect in (0.3, 0.5, 0.75, 1.0, 1.5, 2.0)
    ]
    return Table(
        "Power of `interaction`, exact",
        "The effect is the median difference of the gains beyond the margin, in its own standard deviations, which is "
        "twice that of a run where the four runs of a seed are independent. Normal / heavy-tailed as above; the power "
        f"of `paired` is the same, in standard deviations of the pairs. {_LAST}",
        ["effect", *(f"{seeds} seeds" for seeds in POWER_SEEDS), "for 0.8"],
        rows,
    )


_LAST = "Last column: the least number of seeds for a power of 0.8."


def _power_cells(check: EquivalentCheck | InteractionCheck, effect: Effect) -> list[str]:
    noises = (effect, replace(effect, noise="heavy"))
    cells = [rates_text(*(power([check], seeds, one, RULE).value for one in noises)) for seeds in POWER_SEEDS]
    return [*cells, "/".join(str(seeds_needed([check], one, RULE) or "none") for one in noises)]


def _differences(draws: int, some: int) -> list[tuple[str, Draw, int]]:
    """Return differences of pairs whose median is 0, by name, and how many to draw."""
    of_noise: list[tuple[str, Draw, int]] = [
        (noise.name, functools.partial(_centred, noise), draws) for noise in NOISES
    ]
    return [
        *of_noise,
        ("two clusters", _clusters, draws),
        ("area of a curve", _over_steps(curves.areas), some),
        ("share of the steps", _over_steps(curves.shares), some),
    ]


def _centred(noise: Noise, generator: np.random.Generator, shape: tuple[int, int]) -> Floats:
    return noise.centred(generator, shape, "median")


def _clusters(generator: np.random.Generator, shape: tuple[int, int]) -> Floats:
    """Draw differences in two clusters, of which one is wide: the median is between them."""
    is_high = generator.random(shape) < 0.5
    spread = generator.random(shape)
    return np.where(is_high, spread, -20 * spread)


def _over_steps(summary: Callable[[Floats], Floats]) -> Draw:
    """Return differences of runs by their time average or share, in units of their spread; the median is 0."""
    scale = float(_curve_differences(summary, np.random.default_rng(35), (100, 100)).std())
    return lambda generator, shape: _curve_differences(summary, generator, shape) / scale


def _curve_differences(
    summary: Callable[[Floats], Floats], generator: np.random.Generator, shape: tuple[int, int]
) -> Floats:
    ours, theirs = (summary(curves.counts(generator, shape)) for _ in range(2))
    return ours - theirs


def _gains(draws: int, some: int) -> list[tuple[str, Draw, int]]:
    """Return differences of gains beyond the margin whose median is 0, by name, and how many to draw."""
    of_noise: list[tuple[str, Draw, int]] = [
        (noise.name, functools.partial(_interaction, noise, _median_of(noise)), draws) for noise in NOISES
    ]
    return [
        *of_noise,
        (f"{FAILING:.0%} of the runs fail", _failing, draws),
        ("area of a curve", functools.partial(_interaction_over_steps, curves.areas), some),
        ("share of the steps", functools.partial(_interaction_over_steps, curves.shares), some),
    ]


def _median_of(noise: Noise) -> float:
    return float(np.median(_interaction(noise, 0.0, np.random.default_rng(36), (_MANY, 1))))


def _interaction(noise: Noise, median: float, generator: np.random.Generator, shape: tuple[int, int]) -> Floats:
    ours, *others = (noise.draw(generator, shape) for _ in range(4))
    values_SN: Floats = WIDER * ours - others[0] - others[1] + others[2] - median
    return values_SN


def _failing(generator: np.random.Generator, shape: tuple[int, int]) -> Floats:
    """Draw runs of which some fail, all arms alike; two infinite gains of one sign are a tie."""
    runs = [np.where(generator.random(shape) < FAILING, -math.inf, generator.standard_normal(shape)) for _ in range(4)]
    with np.errstate(invalid="ignore"):
        plain, modified = (np.where(ours == theirs, 0.0, ours - theirs) for ours, theirs in (runs[:2], runs[2:]))
        values_SN: Floats = np.where(plain == modified, 0.0, plain - modified)
    check = InteractionCheck(measure="HeldOutLoss", better="lower", modifier="full-precision")
    for index in range(min(COMPARED, shape[1])):
        of_seed = [float(run[0, index]) for run in runs]
        least, greatest = check.compare(of_seed)
        ours = float(values_SN[0, index])
        expected = (-math.inf, math.inf) if ours == 0 and math.isinf(gain(*of_seed[:2])) else (ours, ours)
        if not np.allclose((least, greatest), expected):
            raise AssertionError(f"the difference of the gains of {of_seed} is {(least, greatest)}, not {expected}")
    return values_SN


def _interaction_over_steps(
    summary: Callable[[Floats], Floats], generator: np.random.Generator, shape: tuple[int, int]
) -> Floats:
    """Draw runs whose modified arms are less volatile; both gains have the same distribution around 0."""
    ours, theirs = (summary(curves.counts(generator, shape)) for _ in range(2))
    modified = [summary(curves.counts(generator, shape, volatility=0.5)) for _ in range(2)]
    values_SN: Floats = np.round(ours - theirs - modified[0] + modified[1], 9)
    return values_SN
