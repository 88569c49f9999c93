"""How often the rule over seeds supports or refutes wrongly, for any noise and any failure rate.

A run's value supports above 0.5 and refutes below 0.0. Cells are the probability of a wrong verdict on any arm; it must
be at most 5 % wherever the claim is false. The seeds of a column are among those of the next one.
"""

import numpy as np

from benchmarks.calibration.counts import LIMIT, former_rule, p_values
from benchmarks.calibration.draws import (
    ALPHA,
    ARMS,
    COLLAPSING,
    DRAWS,
    HEAVY,
    LEFT,
    NORMAL,
    QUICK_DRAWS,
    Integers,
    Noise,
    any_rejected,
    exceeds,
    rejected,
)
from benchmarks.calibration.tables import Table, rate_text, rates_text, worst_text

SUPPORTED_ABOVE, REFUTED_BELOW = 0.5, 0.0
SCALE = 0.25
NOISES = (NORMAL, HEAVY, LEFT, COLLAPSING)
SEEDS = (3, 5, 6, 10, 20)
MANY = 50
"""Without these, nothing could support a failure rate below 0.1."""
MAX_RATES = (0.5, 0.1)
TRUE_RATES = (0.05, 0.1, 0.3, 0.5, 0.7)
UNDECIDED = (0.0, 0.2)


def tables(*, quick: bool = False) -> list[Table]:
    """Return the tables; a quick run has fewer draws."""
    draws = QUICK_DRAWS if quick else DRAWS
    return [median_table(draws), mean_table(draws), true_rate_table(draws), mixed_table(draws)]


def median_table(draws: int) -> Table:
    """Return the error rates where half of the runs are not healthy, and where half fail."""
    errors: dict[tuple[int, int], list[list[float]]] = {}
    faults = []
    for noise in NOISES:
        counts = {where: _counts(noise, where, draws) for where in (SUPPORTED_ABOVE, REFUTED_BELOW)}
        for arms in (1, ARMS):
            for index, seeds in enumerate(SEEDS):
                at_support, at_refutation = (counts[where][:, index, :arms] for where in counts)
                supporting, _ = p_values(at_support, at_support, seeds)
                _, refuting = p_values(at_refutation, at_refutation, seeds)
                both = [any_rejected(p) for p in (supporting, refuting)]
                faults += [
                    f"{noise.name}, {arms} arms, {seeds} seeds: {rate:.4f}" for rate in both if exceeds(rate, draws)
                ]
                errors.setdefault((arms, seeds), []).append(both)
    rows = [[str(arms), *(worst_text(errors[arms, seeds]) for seeds in SEEDS)] for arms in (1, ARMS)]
    return Table(
        f"Wrong verdicts with the median run at a threshold ({draws:,} draws)",
        "Cells: some arm supported with the median at 0.5 / some arm refuted with the median at 0.0, the largest of "
        f"{', '.join(noise.name for noise in NOISES)} noise; n seeds.",
        ["arms", *(f"n = {seeds}" for seeds in SEEDS)],
        rows,
        faults,
    )


def mean_table(draws: int) -> Table:
    """Return the decisions where the mean is at a threshold, by the rule and by the one of version 0.1.0."""
    rows, faults = [], []
    for outcome, where in (("supported", SUPPORTED_ABOVE), ("refuted", REFUTED_BELOW)):
        for noise in NOISES:
            generator = np.random.default_rng(2)
            values_SN = where + SCALE * noise.centred(generator, (draws, max(SEEDS)), "mean")
            below = values_SN < where
            rate = float(below.mean())
            # an equal rate is one at the limit, where the claim is false
            is_true = rate < LIMIT - 0.01 and outcome == "supported"
            cells = []
            for seeds in SEEDS:
                count = below[:, :seeds].sum(axis=1)
                supporting, refuting = p_values(count, count, seeds)
                ours = float(((supporting if outcome == "supported" else refuting) < ALPHA).mean())
                former = former_rule(values_SN[:, :seeds], SUPPORTED_ABOVE, REFUTED_BELOW)
                theirs = float(former[outcome == "refuted"].mean())
                if not is_true and exceeds(ours, draws):
                    faults.append(f"{outcome}, {noise.name}, {seeds} seeds: {ours:.4f}")
                cells.append(f"{rate_text(ours)}{'*' * is_true}/{rate_text(theirs)}")
                if noise is NORMAL and outcome == "supported":
                    cells[-1] += f" ({rate_text(1 - (1 - theirs) ** ARMS)})"
            rows.append([outcome, noise.name, rate_text(rate), *cells])
    return Table(
        f"Verdicts with the mean at a threshold: this rule / the rule of version 0.1.0 ({draws:,} draws)",
        "Supported: mean at 0.5, refuted: at 0.0. `failing`: true rate of runs that are not healthy, or that fail. "
        "* the claim, fewer than half of the runs fail, is true. In brackets: some of eight arms, version 0.1.0.",
        ["verdict", "noise", "failing", *(f"n = {seeds}" for seeds in SEEDS)],
        rows,
        faults,
    )


def true_rate_table(draws: int) -> Table:
    """Return the error rates under true rates of failed and undecided runs."""
    rows, faults = [], []
    generator = np.random.default_rng(3)
    for limit in MAX_RATES:
        for failing in TRUE_RATES:
            for undecided in UNDECIDED:
                cells, worst = [], 0.0
                for seeds in (*SEEDS, MANY):
                    unhealthy, open_ = _multinomial(generator, seeds, failing, undecided, (draws, ARMS))
                    pair = p_values(unhealthy + open_, unhealthy, seeds, limit)
                    false = (failing + undecided >= limit, failing <= limit)
                    one, many = (
                        [any_rejected(p[:, :arms]) if wrong else None for p, wrong in zip(pair, false, strict=True)]
                        for arms in (1, ARMS)
                    )
                    known = [rate for rate in (*one, *many) if rate is not None]
                    if any(exceeds(rate, draws) for rate in known):
                        faults.append(f"limit {limit:g}, failing {failing:g}, undecided {undecided:g}, {seeds} seeds")
                    worst = max(worst, *(rate or 0.0 for rate in many))
                    cells.append("/".join("–" if rate is None else rate_text(rate) for rate in one))
                rows.append([f"{limit:g}", f"{failing:g}", f"{undecided:g}", *cells, rate_text(worst)])
    return Table(
        f"Wrong verdicts by the true rate of failed runs ({draws:,} draws)",
        "Cells: supported though failed and undecided runs are together at or above the limit / refuted though failed "
        "runs are at or below it; –: would be no error. Last column: some of eight arms, at the worst n.",
        ["max_failure_rate", "failing", "undecided", *(f"n = {seeds}" for seeds in (*SEEDS, MANY)), "8 arms"],
        rows,
        faults,
    )


def mixed_table(draws: int) -> Table:
    """Return the error rates of arms at the limit beside arms whose claim is decided, where Holm's levels rise."""
    rows, faults = [], []
    for at_limit in (1, 4, 7):
        cells = []
        for seeds in SEEDS:
            generator = np.random.default_rng(4)
            at = generator.binomial(seeds, LIMIT, (draws, at_limit))
            rates = []
            for others in (0, seeds):
                decided = np.full((draws, ARMS - at_limit), others)
                count = np.concatenate([at, decided], axis=1)
                supporting, refuting = p_values(count, count, seeds)
                p = refuting if others else supporting
                rates.append(float(rejected(p)[:, :at_limit].any(axis=1).mean()))
            if any(exceeds(rate, draws) for rate in rates):
                faults.append(f"{at_limit} of {ARMS} arms at the limit, {seeds} seeds")
            cells.append(rates_text(*rates))
        rows.append([f"{at_limit} of {ARMS}", *cells])
    return Table(
        f"Wrong verdicts on arms at the limit among eight arms ({draws:,} draws)",
        "Cells: supported, where no run of the other arms fails / refuted, where all of their runs fail.",
        ["arms at the limit", *(f"n = {seeds}" for seeds in SEEDS)],
        rows,
        faults,
    )


def _counts(noise: Noise, where: float, draws: int) -> Integers:
    """Return how many of the first n seeds are below the median `where`, draws × numbers of seeds × arms."""
    generator = np.random.default_rng(1)
    below = np.zeros((draws, ARMS), dtype=np.int64)
    counts = []
    for seeds in range(1, max(SEEDS) + 1):
        below += where + SCALE * noise.centred(generator, (draws, ARMS), "median") < where
        if seeds in SEEDS:
            counts.append(below.copy())
    return np.stack(counts, axis=1)


def _multinomial(
    generator: np.random.Generator, seeds: int, failing: float, undecided: float, shape: tuple[int, ...]
) -> tuple[Integers, Integers]:
    """Draw numbers of failed and of undecided seeds."""
    unhealthy = generator.binomial(seeds, failing, shape)
    return unhealthy, generator.binomial(seeds - unhealthy, undecided / (1 - failing))
