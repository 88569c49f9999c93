"""The rule over seeds: exact tests of a failure rate and of a mean, and Holm's levels over arms.

Each statement about an arm has two p-values: `supporting` is that of the hypothesis that the claim does not hold,
`refuting` that of the hypothesis that it holds. A statement is decided where one of them is below its level.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bitnetctl.verdict.outcome import CheckResult, Outcome

_BETS = (0.25, 0.5, 0.75, 1.0)
_MOST_SEEDS = 10_000


@dataclass(frozen=True, kw_only=True)
class Tally:
    """The planned seeds of one arm and size by their state; `absent` are missing, unfinished or left out."""

    healthy: int = 0
    unhealthy: int = 0
    undecided: int = 0
    absent: int = 0

    @property
    def total(self) -> int:
        """Number of planned seeds."""
        return self.healthy + self.unhealthy + self.undecided + self.absent

    @property
    def not_healthy(self) -> int:
        """Seeds that count as failures where support is tested: undecided ones help neither side."""
        return self.unhealthy + self.undecided + self.absent


@dataclass(frozen=True)
class PValues:
    """Of the hypotheses that the claim does not hold (`supporting`) and that it holds (`refuting`)."""

    supporting: float
    refuting: float


UNDECIDABLE = PValues(1.0, 1.0)


@dataclass(frozen=True)
class Levels:
    """What the two p-values of a statement have to be below."""

    supporting: float
    refuting: float

    def shared(self, parts: int) -> "Levels":
        """Return the levels of each of several statements, of which one refuted is enough (Bonferroni)."""
        return Levels(self.supporting, self.refuting / parts)


@dataclass(frozen=True, kw_only=True)
class Statement:
    """A statement about one arm at one size, over its seeds.

    `describe` gives the reason for an outcome at given levels, `summarize` says it in a few words, `statistics` gives
    the numbers behind it, None for none; the other fields are those of a CheckResult.
    """

    check: str
    p: PValues
    describe: Callable[[Outcome, Levels], str]
    value: float | None = None
    measure: str | None = None
    supports: str | None = None
    refutes: str | None = None
    summarize: Callable[[Outcome], str] = lambda outcome: ""
    of: int | None = None
    statistics: Callable[[Levels], Mapping[str, Any]] | None = None

    def outcome(self, levels: Levels) -> Outcome:
        """Compare both p-values with their levels."""
        if self.p.refuting < levels.refuting:
            return Outcome.REFUTED
        return Outcome.SUPPORTED if self.p.supporting < levels.supporting else Outcome.INCONCLUSIVE

    def result(self, size: int | None, levels: Levels) -> CheckResult:
        """Return the outcome at these levels with its reason."""
        outcome = self.outcome(levels)
        return CheckResult(
            check=self.check,
            outcome=outcome,
            reason=self.describe(outcome, levels),
            size=size,
            measure=self.measure,
            value=self.value,
            supports=self.supports,
            refutes=self.refutes,
            brief=self.summarize(outcome),
            of=self.of,
        )


def failure_rate_test(tally: Tally, max_rate: float) -> PValues:
    """Return the exact one-sided binomial p-values of a failure rate of at least and of at most `max_rate`.

    Undecided seeds count as failures where support is tested and as healthy where refutation is; an absent seed makes
    support impossible and counts as healthy otherwise, so that a decision before all planned runs have ended is one
    that the remaining runs cannot overturn.
    """
    from scipy.special import bdtr

    if tally.total == 0:
        return UNDECIDABLE
    supporting = 1.0 if tally.absent else float(bdtr(tally.not_healthy, tally.total, max_rate))
    return PValues(supporting, at_least(tally.unhealthy, tally.total, max_rate))


def at_least(successes: int, trials: int, rate: float) -> float:
    """Return the probability of at least so many successes."""
    from scipy.special import bdtrc

    return 1.0 if successes == 0 else float(bdtrc(successes - 1, trials, rate))


def seeds_to_decide(tally: Tally, max_rate: float, level: float) -> tuple[int | None, int | None]:
    """Return the least numbers of seeds with which support and refutation become possible; None beyond 10,000.

    That is if every further seed is healthy, or every further seed fails, and so do those that are absent so far.
    """
    from scipy.special import bdtr

    start = max(1, tally.total)
    bad = tally.unhealthy + tally.undecided
    totals = range(start, _MOST_SEEDS)
    support = next((n for n in totals if float(bdtr(bad, n, max_rate)) < level), None)
    not_failed = tally.healthy + tally.undecided
    refute = next((n for n in totals if at_least(n - not_failed, n, max_rate) < level), None)
    return support, refute


def healthy_needed(total: int, max_rate: float, level: float) -> int | None:
    """Return how many of `total` seeds have to be healthy for support; None where not even all are enough."""
    from scipy.special import bdtr

    enough = (total - failed for failed in range(total - 1, -1, -1) if float(bdtr(failed, total, max_rate)) < level)
    return next(enough, None)


def fewest_seeds(max_rate: float, level: float, *, failing: bool = True) -> int:
    """Return the least number of seeds that can decide: all healthy for support, or with `failing` all failed."""
    chance = min(1 - max_rate, max_rate) if failing else 1 - max_rate
    possible = (count for count in range(1, _MOST_SEEDS) if chance**count < level)
    return next(possible, _MOST_SEEDS)


def mean_test(values: Sequence[float], threshold: float, limit: float) -> float:
    """Return a p-value of the hypothesis that the mean is not beyond `threshold`, seen from `limit`.

    `limit` is a bound that no value can pass, on the other side of the threshold: for a mean above the threshold the
    least possible value. The test holds for any distribution within the limit: a bet of the fraction c of the stake on
    every value multiplies it by 1 + c (v - threshold) / (threshold - limit), whose expectation is at most 1 under the
    hypothesis, and so is that of the average over several c; its reciprocal is a p-value by Markov's inequality
    (betting, Waudby-Smith & Ramdas 2024, doi:10.1093/jrsssb/qkad009). It is valid at every look.
    """
    import numpy as np

    if threshold == limit or not values:
        return 1.0
    # a value beyond the limit, by rounding, costs a bet no more than its stake
    growth = np.maximum((np.array(values) - threshold) / (threshold - limit), -1.0)
    with np.errstate(divide="ignore", over="ignore"):
        logs = np.log1p(np.multiply.outer(_BETS, growth)).sum(axis=1)
    highest = float(logs.max())
    if highest == -math.inf:
        return 1.0
    evidence = highest + math.log(float(np.exp(logs - highest).mean()))
    return 1.0 if evidence <= 0 else math.exp(-evidence)


def all_of(parts: Sequence[PValues]) -> PValues:
    """Combine statements that must all hold: each must be supported, one refuted is enough (Bonferroni)."""
    if not parts:
        return UNDECIDABLE
    return PValues(max(part.supporting for part in parts), min(1.0, len(parts) * min(part.refuting for part in parts)))


def holm_levels(p_values: Sequence[float], alpha: float, tests: int) -> list[float]:
    """Return the level that each p-value has to be below, by the step-down method of Holm (1979).

    `tests` is the number of all tests that share `alpha`, at least that of the p-values; those of the others are
    unknown and count as the largest.
    """
    tests = max(tests, len(p_values))
    levels = [0.0] * len(p_values)
    rank = 0
    for p, index in sorted((p, index) for index, p in enumerate(p_values)):
        levels[index] = alpha / (tests - rank)
        # after one that is not below, all others are held to the same level
        rank += p < levels[index]
    return levels
