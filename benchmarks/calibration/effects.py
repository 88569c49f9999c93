"""Coverage, error rates and power of `bitnetctl analyze`, by simulation of its own functions.

    python -m benchmarks.calibration.effects [--quick]

Every table is Markdown. A rate of n trials has a standard error of at most 0.5 / sqrt(n). The noises have mean 0:

- normal: sd 1
- t2: Student's t with 2 degrees of freedom
- skewed: 1 less an exponential variable, skewed to the left
- rare collapse: sd 0.1, and one of ten seeds 1 lower
"""

import argparse
import itertools
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from bitnetctl.analysis.agreement import tau_test
from bitnetctl.analysis.anova import permutation_tests
from bitnetctl.analysis.factors import Factor
from bitnetctl.analysis.permutation import factor_test
from bitnetctl.analysis.stats import detectable_factor, mean_bounds, sign_test_p

Floats: TypeAlias = NDArray[np.float64]
Noise: TypeAlias = Callable[[np.random.Generator, tuple[int, ...]], Floats]

LEVEL = 0.05
SEEDS = (3, 6, 10, 20)
METRICS = 3
"""P-values of one arm in the table of effects."""


def _collapse(generator: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    collapsed = generator.random(shape) < 0.1
    return 0.1 * generator.standard_normal(shape) - collapsed + 0.1


NOISES: dict[str, Noise] = {
    "normal": lambda generator, shape: generator.standard_normal(shape),
    "t2": lambda generator, shape: generator.standard_t(2, shape),
    "skewed": lambda generator, shape: 1 - generator.standard_exponential(shape),
    "rare collapse": _collapse,
}


@dataclass(frozen=True, kw_only=True)
class Table:
    """A result: title, a note on how to read it, cells as text, and the cells that break a promise."""

    title: str
    note: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    faults: tuple[str, ...] = ()


def markdown(table: Table) -> str:
    """Return title, note and a Markdown table."""
    lines = (table.columns, ("---",) * len(table.columns), *table.rows)
    return "\n".join([f"**{table.title}**", "", table.note, "", *(f"| {' | '.join(cells)} |" for cells in lines), ""])


def rate(hits: NDArray[np.bool_] | float) -> str:
    """Format a rate, such as .049."""
    return f"{float(np.mean(hits)):.3f}".removeprefix("0")


class Promises:
    """Rates that may not be exceeded, but for chance."""

    def __init__(self) -> None:
        self.faults: list[str] = []

    def at_most(self, most: float, hits: NDArray[np.bool_] | float, trials: int, what: str) -> str:
        """Format a rate; a fault if it exceeds `most` by more than four standard errors."""
        observed = float(np.mean(hits))
        if observed > most + 4 * math.sqrt(most * (1 - most) / trials):
            self.faults.append(f"{what}: {observed:.3f}, promised at most {most:.3f}")
        return rate(observed)


# paired effects


def sign_p_values(differences_TN: Floats) -> Floats:
    """Return the p-value of the sign test of every row."""
    better, worse = (differences_TN > 0).sum(1), (differences_TN < 0).sum(1)
    count = differences_TN.shape[1]
    by_counts = np.array([[sign_test_p(one, other) for other in range(count + 1)] for one in range(count + 1)])
    p_values: Floats = by_counts[better, worse]
    return p_values


def covered(differences_TN: Floats) -> NDArray[np.bool_]:
    """Return whether the 95 % Student interval of every row has the mean 0 in it."""
    low, high = mean_bounds(differences_TN, "low", 0.975), mean_bounds(differences_TN, "high", 0.975)
    return (low <= 0) & (high >= 0)


def coverage(trials: int, generator: np.random.Generator) -> Table:
    """Return the coverage of the interval of the mean difference."""
    promises = Promises()
    rows = []
    for name, noise in NOISES.items():
        missed = [~covered(noise(generator, (trials, seeds))) for seeds in SEEDS]
        if name == "normal":
            for seeds, hits in zip(SEEDS, missed, strict=True):
                promises.at_most(LEVEL, hits, trials, f"missed by the interval, {name}, {seeds} seeds")
        rows.append((name, *(rate(~hits) for hits in missed)))
    return Table(
        title="Coverage of the 95 % Student interval of the mean difference",
        note=f"{trials:,} trials. Promised for normal differences only.",
        columns=("differences", *(f"{seeds} seeds" for seeds in SEEDS)),
        rows=tuple(rows),
        faults=tuple(promises.faults),
    )


def sign_size(trials: int, generator: np.random.Generator) -> Table:
    """Return the error rate of the sign test under both null hypotheses, beside that of Student's t."""

    def nothing(noise: Noise) -> Noise:
        return lambda generator, shape: noise(generator, shape) - noise(generator, shape)

    promises = Promises()
    rows = []
    for hypothesis, of in (("the arm changes nothing", nothing), ("equal means", lambda noise: noise)):
        for name, noise in NOISES.items():
            drawn = [of(noise)(generator, (trials, seeds)) for seeds in SEEDS]
            found = [sign_p_values(differences) <= LEVEL for differences in drawn]
            if of is nothing:
                for seeds, hits in zip(SEEDS, found, strict=True):
                    promises.at_most(LEVEL, hits, trials, f"sign test, {name}, {seeds} seeds")
            students = [rate(~covered(differences)) for differences in drawn]
            rows.append((hypothesis, name, *map(rate, found), *students))
    return Table(
        title="Error rate at 0.05 of the exact sign test, and of Student's t",
        note=f"{trials:,} trials. The sign test promises 0.05 where the arm changes nothing, and nothing of the mean.",
        columns=("hypothesis", "noise", *(f"sign, {n} seeds" for n in SEEDS), *(f"t, {n} seeds" for n in SEEDS)),
        rows=tuple(rows),
        faults=tuple(promises.faults),
    )


def family_size(trials: int, generator: np.random.Generator) -> Table:
    """Return the rate of any difference told from chance in a table of effects, where no arm changes anything."""
    promises = Promises()
    rows = []
    for arms, (name, noise) in itertools.product((1, 8), NOISES.items()):
        tests = arms * METRICS
        cells = []
        for seeds in SEEDS:
            # all arms share the baseline; skill follows the loss, the third metric does not
            baseline = noise(generator, (METRICS - 1, trials, seeds))
            smallest = np.ones(trials)
            for _, metric in itertools.product(range(arms), range(METRICS - 1)):
                differences = noise(generator, (trials, seeds)) - baseline[metric]
                smallest = np.minimum(smallest, sign_p_values(differences))
            # the first step of Holm's method decides whether there is any
            what = f"family of {tests}, {name}, {seeds} seeds"
            cells.append(promises.at_most(LEVEL, smallest * tests < LEVEL, trials, what))
        rows.append((str(arms), str(tests), name, *cells))
    return Table(
        title="Any difference told from chance after Holm, where no arm changes anything",
        note=f"{trials:,} trials of a whole table of effects; promised is at most 0.05.",
        columns=("arms", "p-values", "noise", *(f"{seeds} seeds" for seeds in SEEDS)),
        rows=tuple(rows),
        faults=tuple(promises.faults),
    )


def power(trials: int, generator: np.random.Generator) -> Table:
    """Return the power of the sign test for normal differences, beside that of Student's t at the same level."""
    from scipy.special import stdtrit

    many = (6, 8, 10, 12, 20)
    rows = []
    for tests, shift in itertools.product((1, METRICS, 8 * METRICS), (1.0, 1.5, 2.0)):
        cells = []
        for seeds in many:
            differences = generator.standard_normal((trials, seeds)) + shift
            reach = float(stdtrit(seeds - 1, 1 - LEVEL / tests / 2)) / math.sqrt(seeds)
            student = np.abs(differences.mean(1)) > reach * differences.std(1, ddof=1)
            cells.append(f"{rate(sign_p_values(differences) <= LEVEL / tests)} / {rate(student)}")
        rows.append((str(tests), f"{shift:g} sd", *cells))
    return Table(
        title="Power of the sign test / of Student's t, normal differences",
        note=f"{trials:,} trials at a level of 0.05 / p-values: what a test costs that holds for any noise.",
        columns=("p-values", "mean difference", *(f"{seeds} seeds" for seeds in many)),
        rows=tuple(rows),
    )


def detectable(trials: int, generator: np.random.Generator) -> Table:
    """Return the power at the smallest difference that is said to be found: sd of n seeds, test of n new ones."""
    many = (6, 7, 8, 10, 12, 20)
    promises = Promises()
    rows = []
    for tests in (1, METRICS, 8 * METRICS):
        cells = []
        for seeds in many:
            factor = detectable_factor(seeds, LEVEL / tests)
            if not math.isfinite(factor):
                cells.append("none")
                continue
            spread = generator.standard_normal((trials, seeds)).std(1, ddof=1)
            differences = generator.standard_normal((trials, seeds)) + factor * spread[:, None]
            missed = sign_p_values(differences) > LEVEL / tests
            promises.at_most(0.2, missed, trials, f"missed at what can be found, {tests} p-values, {seeds} seeds")
            cells.append(f"{rate(~missed)} at {factor:.2f} sd")
        rows.append((str(tests), *cells))
    return Table(
        title="Power at the mean difference that is said to be found with 0.8",
        note=f"{trials:,} trials at a level of 0.05 / p-values; normal differences, their sd estimated from n others.",
        columns=("p-values", *(f"{seeds} seeds" for seeds in many)),
        rows=tuple(rows),
        faults=tuple(promises.faults),
    )


# factors


@dataclass(frozen=True, kw_only=True)
class Design:
    """Runs: the level of every factor and the seed of each, and the standard deviation of its noise."""

    name: str
    factors: tuple[tuple[int, ...], ...]
    seeds: tuple[int, ...]
    sd: tuple[float, ...]
    seed_sd: float = 0.0
    effect: float = 0.0

    def values(self, trials: int, generator: np.random.Generator) -> Floats:
        """Return outcomes of the runs, (N, S): seeds and noise are normal, the effect is that of the first factor."""
        values: Floats = generator.standard_normal((len(self.seeds), trials)) * np.array(self.sd)[:, None]
        of_seed = generator.standard_normal((max(self.seeds) + 1, trials)) * self.seed_sd
        return values + of_seed[list(self.seeds)] + self.effect * np.array(self.factors[0])[:, None]

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


def design_rates(
    design: Design, trials: int, generator: np.random.Generator
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], float] | None:
    """Return where p <= 0.05 for the first factor, where any term is told after Holm, and the floor of the former."""
    tests = [*permutation_tests(design.named(), design.seeds, design.values(trials, generator)).values()]
    if not tests:
        return None
    smallest = np.min([test.p_S for test in tests], axis=0)
    return tests[0].p_S <= LEVEL, smallest * len(tests) < LEVEL, tests[0].floor


def factor_size(trials: int, generator: np.random.Generator) -> Table:
    """Return the error rate of the tests of factors where no factor changes the mean."""
    promises = Promises()
    rows = []
    for design in DESIGNS:
        rates = design_rates(design, trials, generator)
        if rates is None:
            rows.append((design.name, "–", "–", "–"))
            continue
        first, told, floor = rates
        if len(set(design.sd)) == 1:
            promises.at_most(LEVEL, first, trials, design.name)
            promises.at_most(LEVEL, told, trials, f"{design.name}, any")
        rows.append((design.name, rate(first), rate(told), f"{floor:.2g}"))
    return Table(
        title="Error rate of the tests of factors, where no factor changes the mean",
        note=f"{trials:,} trials, normal noise. Promised is 0.05 where a factor changes nothing, the sd included.",
        columns=("design", "p ≤ 0.05, one factor", "any term told after Holm", "smallest p"),
        rows=tuple(rows),
        faults=tuple(promises.faults),
    )


def factor_power(trials: int, generator: np.random.Generator) -> Table:
    """Return the power of the tests of factors."""
    rows = []
    for design in POWERS:
        rates = design_rates(design, trials, generator)
        assert rates is not None
        rows.append((design.name, rate(rates[0]), rate(rates[1]), f"{rates[2]:.2g}"))
    return Table(
        title="Power of the tests of factors",
        note=f"{trials:,} trials, normal noise of sd 1, seeds of sd 3, one factor with an effect of 2.4.",
        columns=("design", "p ≤ 0.05, the factor", "any term told after Holm", "smallest p"),
        rows=tuple(rows),
    )


def shared_response(trials: int, generator: np.random.Generator) -> Table:
    """Return the error rate where seeds respond to a factor, each in its own way, but not on average."""
    promises = Promises()
    rows = []
    for name, repeats, seeds in (("sizes", 1, 6), ("sizes", 6, 1), ("sizes", 3, 6), ("levels of another factor", 2, 6)):
        runs = [*itertools.product(range(2), range(repeats), range(seeds))]
        arm, repeat, seed = zip(*runs, strict=True)
        response = 3 * generator.standard_normal((seeds, trials))[list(seed)] * np.array(arm)[:, None]
        values = generator.standard_normal((len(runs), trials)) + response
        none = [0] * len(runs)
        others, sizes = (none, repeat) if name == "sizes" else (repeat, none)
        tested = factor_test(arm, others, sizes, seed, values)
        half = len(runs) // 2
        differences = (values[half:] - values[:half]).reshape(repeats, seeds, trials).mean(0).T
        of_factor = "–"
        if tested is not None:
            hits = tested.p_S <= LEVEL
            of_factor = promises.at_most(LEVEL, hits, trials, name) if name == "sizes" else rate(hits)
        of_effect = rate(sign_p_values(differences) <= LEVEL) if seeds > 1 else "–"
        rows.append((f"{repeats} {name} × {seeds} seed{'s' * (seeds > 1)}", of_factor, of_effect))
    return Table(
        title="Error rate at 0.05 where each seed responds to an arm by 3 sd, but not on average",
        note=f"{trials:,} trials. Sizes of a seed are exchanged together, levels of other factors are not.",
        columns=("runs of two arms", "factor", "effect by seed"),
        rows=tuple(rows),
        faults=tuple(promises.faults),
    )


# agreement of metrics


def agreement(trials: int, generator: np.random.Generator) -> Table:
    """Return error rate and power of the test of agreement where arms differ, and runs of an arm are independent."""
    from scipy.stats import kendalltau

    promises = Promises()
    rows = []
    for arms, seeds in ((1, 6), (2, 6), (4, 3), (5, 3), (6, 3), (8, 3)):
        blocks = [arm for arm in range(arms) for _ in range(seeds)] if arms > 1 else [*range(seeds)]
        cells = [seed for _ in range(arms) for seed in range(seeds)] if arms > 1 else [0] * seeds
        unrelated, by_run, related = (np.zeros(trials, dtype=np.bool_) for _ in range(3))
        for trial in range(trials):
            of_arm = 3 * np.repeat(generator.standard_normal((2, arms)), seeds, axis=1)
            noise = generator.standard_normal((2, arms * seeds))
            one, other = of_arm + noise
            same = of_arm[0] + noise[1] if arms > 1 else one + noise[1] / 2
            unrelated[trial] = _told(tau_test(one.tolist(), other.tolist(), blocks, cells)[1])
            by_run[trial] = _told(float(kendalltau(one, other).pvalue))
            related[trial] = _told(tau_test(one.tolist(), same.tolist(), blocks, cells)[1])
        name = f"{arms} arm{'s' * (arms > 1)} × {seeds} seeds"
        promises.at_most(LEVEL, unrelated, trials, f"agreement, {name}")
        rows.append((name, rate(unrelated), rate(by_run), rate(related)))
    return Table(
        title="Kendall's τ-b at 0.05, arms 3 sd apart",
        note=f"{trials:,} trials; related: a metric that ranks the arms as the loss does, but for the noise.",
        columns=("runs", "unrelated, arms exchanged", "unrelated, runs as if independent", "related, arms exchanged"),
        rows=tuple(rows),
        faults=tuple(promises.faults),
    )


def _told(p: float | None) -> bool:
    return p is not None and p <= LEVEL


def tables(*, quick: bool = False, seed: int = 0) -> list[Table]:
    """Return every table; `quick` takes fewer trials."""
    many, some, few = (4_000, 200, 30) if quick else (200_000, 10_000, 400)
    makers: tuple[tuple[Callable[[int, np.random.Generator], Table], int], ...] = (
        (coverage, many),
        (sign_size, many),
        (family_size, many // 4),
        (power, many // 2),
        (detectable, many),
        (factor_size, some),
        (factor_power, some),
        (shared_response, some),
        (agreement, few),
    )
    return [make(trials, np.random.default_rng([seed, index])) for index, (make, trials) in enumerate(makers)]


def main() -> int:
    """Print every table and the time it took; 1 if a promise is broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer trials, some seconds")
    arguments = parser.parse_args()
    started = time.perf_counter()
    made = tables(quick=arguments.quick)
    for table in made:
        print(markdown(table))
    print(f"effects: {(time.perf_counter() - started) / 60:.2f} minutes")
    faults = [f"{table.title}: {fault}" for table in made for fault in table.faults]
    for fault in faults:
        print(f"broken promise: {fault}", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
