"""Error rates and power of the tests of factors of `bitnetctl analyze`, by its own functions.

Shapes: S draws, N runs.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.calibration.draws import ALPHA, Floats, exceeds
from benchmarks.calibration.effects import sign_p
from benchmarks.calibration.tables import Table, rate_text
from bitnetctl.analysis.anova import permutation_tests
from bitnetctl.analysis.factors import Factor
from bitnetctl.analysis.permutation import Block, factor_test

DRAWS, QUICK_DRAWS = 10_000, 200


@dataclass(frozen=True, kw_only=True)
class Design:
    """Runs: the level of every factor and the seed of each, and the standard deviation of its noise."""

    name: str
    factors: tuple[tuple[int, ...], ...]
    seeds: tuple[int, ...]
    sd: tuple[float, ...]
    seed_sd: float = 0.0
    effect: float = 0.0

    def values(self, draws: int, generator: np.random.Generator) -> Floats:
        """Return outcomes of the runs, (N, S): seeds and noise are normal, the effect is that of the first factor."""
        noise_NS = generator.standard_normal((len(self.seeds), draws)) * np.array(self.sd)[:, None]
        of_seed = generator.standard_normal((max(self.seeds) + 1, draws)) * self.seed_sd
        values_NS: Floats = noise_NS + of_seed[list(self.seeds)] + self.effect * np.array(self.factors[0])[:, None]
        return values_NS

    def named(self) -> list[Factor]:
        """Return the factors, named by letters."""
        return [
            Factor(fields=(letter,), levels=tuple(map(str, sorted(set(levels)))), level_of=levels)
            for letter, levels in zip("abcdefgh", self.factors, strict=False)
        ]


def groups(
    name: str, *sizes: int, sd: Sequence[float] = (1.0, 1.0, 1.0), seed_sd: float = 0.0, effect: float = 0.0
) -> Design:
    """Return arms of so many runs, every run with a seed of its own."""
    levels = tuple(level for level, size in enumerate(sizes) for _ in range(size))
    return Design(
        name=name,
        factors=(levels,),
        seeds=tuple(range(len(levels))),
        sd=tuple(sd[level] for level in levels),
        seed_sd=seed_sd,
        effect=effect,
    )


def crossed(
    name: str,
    levels: Sequence[int],
    seeds: int,
    sd: Sequence[float] = (1.0, 1.0, 1.0),
    seed_sd: float = 3.0,
    effect: float = 0.0,
) -> Design:
    """Return every combination of levels with every seed; `sd` is by the level of the first factor."""
    runs = [*itertools.product(*map(range, levels), range(seeds))]
    factors: list[tuple[int, ...]] = [*zip(*runs, strict=True)]
    seed_of = factors.pop()
    return Design(
        name=name,
        factors=tuple(factors),
        seeds=seed_of,
        sd=tuple(sd[level] for level in factors[0]),
        seed_sd=seed_sd,
        effect=effect,
    )


DESIGNS = (
    groups("3 + 3 runs, no seed in common", 3, 3),
    groups("3 + 3, sd 1 : 10", 3, 3, sd=(1, 10)),
    groups("10 + 2", 10, 2),
    groups("10 + 2, the two wide (1 : 10)", 10, 2, sd=(1, 10)),
    groups("10 + 2, the ten wide (10 : 1)", 10, 2, sd=(10, 1)),
    groups("10 + 10, sd 1 : 10", 10, 10, sd=(1, 10)),
    groups("4 + 4 + 4, sd 1 : 1 : 10", 4, 4, 4, sd=(1, 1, 10)),
    crossed("6 seeds × 2, seeds 3 sd", (2,), 6),
    crossed("6 seeds × 2, seeds 3 sd, sd 1 : 10", (2,), 6, sd=(1, 10)),
    crossed("6 seeds × 3, seeds 3 sd, sd 1 : 1 : 10", (3,), 6, sd=(1, 1, 10)),
    crossed("2⁴, one seed", (2, 2, 2, 2), 1),
    crossed("2⁴, three seeds, seeds 3 sd", (2, 2, 2, 2), 3),
    crossed("2⁴, three seeds, seeds 3 sd, sd 1 : 10", (2, 2, 2, 2), 3, sd=(1, 10)),
)
POWERS = (
    *(crossed(f"{seeds} seeds × 2", (2,), seeds, effect=2.4) for seeds in (6, 7, 10)),
    *(crossed(f"{seeds} seeds × 2²", (2, 2), seeds, effect=2.4) for seeds in (3, 6)),
    groups("6 + 6, no seed in common", 6, 6, seed_sd=3.0, effect=2.4),
)


def tables(*, quick: bool = False) -> list[Table]:
    """Return the tables; a quick run has fewer draws."""
    draws = QUICK_DRAWS if quick else DRAWS
    return [error_table(draws), power_table(draws), shared_response_table(draws)]


def rates(design: Design, draws: int, generator: np.random.Generator) -> tuple[float, float, float]:
    """Return how often p <= 0.05 for the first factor and any term is told after Holm, and the floor of the former."""
    tests = [*permutation_tests(design.named(), design.seeds, design.values(draws, generator)).values()]
    smallest_S = np.min([test.p_S for test in tests], axis=0)
    told = (tests[0].p_S <= ALPHA, smallest_S * len(tests) < ALPHA)
    return float(told[0].mean()), float(told[1].mean()), tests[0].floor


def error_table(draws: int) -> Table:
    """Return the error rate of the tests of factors where no factor changes the mean."""
    generator = np.random.default_rng([0, 5])
    rows, faults = [], []
    for design in DESIGNS:
        *errors, floor = rates(design, draws, generator)
        # a factor that changes the spread changes something
        if len(set(design.sd)) == 1:
            faults += [f"{design.name}: {error:.4f}" for error in errors if exceeds(error, draws)]
        rows.append([design.name, *map(rate_text, errors), f"{floor:.2g}"])
    return Table(
        f"Error rate of the tests of factors, where no factor changes the mean ({draws:,} draws)",
        "Normal noise. Promised is 0.05 where a factor changes nothing, the sd included.",
        ["design", "p ≤ 0.05, one factor", "any term told after Holm", "smallest p"],
        rows,
        faults,
    )


def power_table(draws: int) -> Table:
    """Return the power of the tests of factors."""
    generator = np.random.default_rng([0, 6])
    rows = []
    for design in POWERS:
        *powers, floor = rates(design, draws, generator)
        rows.append([design.name, *map(rate_text, powers), f"{floor:.2g}"])
    return Table(
        f"Power of the tests of factors ({draws:,} draws)",
        "Normal noise of sd 1, seeds of sd 3, one factor with an effect of 2.4.",
        ["design", "p ≤ 0.05, the factor", "any term told after Holm", "smallest p"],
        rows,
    )


def shared_response_table(draws: int) -> Table:
    """Return the error rate where seeds respond to a factor, each in its own way, but not on average."""
    generator = np.random.default_rng([0, 7])
    rows, faults = [], []
    for name, repeats, seeds in (("sizes", 1, 6), ("sizes", 6, 1), ("sizes", 3, 6), ("levels of another factor", 2, 6)):
        runs = [*itertools.product(range(2), range(repeats), range(seeds))]
        arm_of, _, seed_of = zip(*runs, strict=True)
        response_NS = 3 * generator.standard_normal((seeds, draws))[list(seed_of)] * np.array(arm_of)[:, None]
        values_NS = generator.standard_normal((len(runs), draws)) + response_NS
        of_size, of_others = (1, 0) if name == "sizes" else (0, 1)
        block_of = [Block(seed, of_size * repeat, of_others * repeat) for _, repeat, seed in runs]
        tested = factor_test(arm_of, block_of, values_NS)
        of_factor = of_effect = "–"
        if tested is not None:
            error = float((tested.p_S <= ALPHA).mean())
            if name == "sizes" and exceeds(error, draws):
                faults.append(f"{repeats} {name}, {seeds} seeds: {error:.4f}")
            of_factor = rate_text(error)
        if seeds > 1:
            treated, untreated = values_NS[len(runs) // 2 :], values_NS[: len(runs) // 2]
            differences_SN = (treated - untreated).reshape(repeats, seeds, draws).mean(0).T
            of_effect = rate_text(float((sign_p(differences_SN) <= ALPHA).mean()))
        rows.append([f"{repeats} {name} × {seeds} seed{'s' * (seeds > 1)}", of_factor, of_effect])
    return Table(
        f"Error rate at 0.05 where each seed responds to an arm by 3 sd, but not on average ({draws:,} draws)",
        "Sizes of a seed are exchanged together, levels of other factors are not.",
        ["runs of two arms", "factor", "effect by seed"],
        rows,
        faults,
    )
