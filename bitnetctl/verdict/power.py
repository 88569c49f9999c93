"""Power of claims about pairs: how often so many seeds support a claim that is true, and how many a power needs.

Every run is taken to end healthy, so that the statement about the failure rate passes as soon as the seeds can support
it. Claims about the median are exact (binomial and trinomial sums), those about the mean are simulated with the tests
that judge. Effects are those of the values of pairs: improvements, differences, differences of gains.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from bitnetctl.errors import ConfigError
from bitnetctl.verdict.checks.compared import ComparedCheck
from bitnetctl.verdict.checks.equivalent import EquivalentCheck
from bitnetctl.verdict.checks.pair_tests import Pairs
from bitnetctl.verdict.checks.paired import ImprovementCheck
from bitnetctl.verdict.criteria import SeedRule
from bitnetctl.verdict.rule import at_least

if TYPE_CHECKING:
    from bitnetctl.records.schema import Floats

Noise = Literal["normal", "heavy"]

DRAWS = 2000
"""Draws of the simulation of a claim about the mean."""
MOST_SEEDS = 2000
_HEAVY = 3
"""Degrees of freedom of Student's t, the heavy-tailed noise; it is scaled to the quartiles of the normal one."""
_MOST_SIMULATED = 60


@dataclass(frozen=True, kw_only=True)
class Effect:
    """The true median of the values of pairs and their standard deviation, in the unit of the measure.

    Without `sd` the effect is in standard deviations and counts from the margin on.
    """

    effect: float
    sd: float | None = None
    noise: Noise = "normal"


@dataclass(frozen=True)
class Power:
    """The probability of support, with the standard error of a simulation; 0 where it is exact."""

    value: float
    standard_error: float = 0.0


def power(
    checks: Sequence[ComparedCheck],
    seeds: int,
    effect: Effect,
    rule: SeedRule,
    *,
    arms: int = 1,
    sizes: int = 1,
    draws: int = DRAWS,
) -> Power:
    """Return the probability that so many planned seeds support every check and the failure rate at every size.

    The arm is judged at its own level, the error rate over the number of `arms`; beside arms that are decided it is a
    larger one. Of several checks and `sizes`, with the same effect at each, it is the least probability, however they
    depend on each other (Bonferroni). Raises ConfigError where the effect says too little.
    """
    level = rule.error_rate / arms
    # all healthy
    if (1 - rule.max_failure_rate) ** seeds >= level:
        return Power(0.0)
    each = [_power(check, seeds, level, effect, draws) for check in checks]
    if len(each) * sizes == 1:
        return each[0]
    lacking = sizes * sum(1 - one.value for one in each)
    return Power(max(0.0, 1 - lacking), sizes * math.sqrt(sum(one.standard_error**2 for one in each)))


def seeds_needed(
    checks: Sequence[ComparedCheck],
    effect: Effect,
    rule: SeedRule,
    *,
    wanted: float = 0.8,
    arms: int = 1,
    sizes: int = 1,
    draws: int = DRAWS,
) -> int | None:
    """Return the least number of seeds with the wanted power; None where none up to 2,000 has it.

    More seeds can have a little less power, since a sign test takes a whole number of pairs.
    """
    medians = [check.model_copy(update={"claim": "median", "range": None}) for check in checks]

    def has_power(of: Sequence[ComparedCheck], seeds: int) -> bool:
        return power(of, seeds, effect, rule, arms=arms, sizes=sizes, draws=draws).value >= wanted

    # a claim about the mean needs the one about the median, too
    first = next((seeds for seeds in range(1, MOST_SEEDS + 1) if has_power(medians, seeds)), None)
    if first is None or all(check.claim == "median" for check in checks):
        return first
    seeds = first
    for _ in range(_MOST_SIMULATED):
        if has_power(checks, seeds):
            return seeds
        seeds += max(1, seeds // 20)
    return None


def worth_planning(
    checks: Sequence[ComparedCheck],
    effect: Effect,
    rule: SeedRule,
    *,
    arms: int = 1,
    sizes: int = 1,
    up_to: int,
    most: int = 10,
) -> list[int]:
    """Return numbers of seeds with more power by signs than any smaller one, at most so many, up to a number."""
    medians = [check.model_copy(update={"claim": "median", "range": None}) for check in checks]
    worth, best = [], 0.0
    for seeds in range(1, up_to + 1):
        value = power(medians, seeds, effect, rule, arms=arms, sizes=sizes).value
        if value > best:
            worth.append(seeds)
            best = value
    if len(worth) <= most:
        return worth
    return sorted({worth[round(index * (len(worth) - 1) / (most - 1))] for index in range(most)})


def _power(check: ComparedCheck, seeds: int, level: float, effect: Effect, draws: int) -> Power:
    lost = _may_be_lost(seeds, level)
    if lost is None:
        return Power(0.0)
    if check.claim == "mean":
        return _simulated(check, seeds, level, effect, draws)
    if isinstance(check, EquivalentCheck):
        return Power(_both_sides(seeds, lost, *_outside(check, effect)))
    return Power(at_least(seeds - lost, seeds, _cdf(_beyond(check, effect), effect.noise)))


@functools.cache
def _may_be_lost(seeds: int, level: float) -> int | None:
    """Return how many pairs may be lost for the sign test to reject; None where not even none may."""
    from scipy.stats import binom

    near = int(binom.ppf(level, seeds, 0.5))
    return next((lost for lost in range(near, -1, -1) if at_least(seeds - lost, seeds, 0.5) < level), None)


def _both_sides(seeds: int, lost: int, low: float, high: float) -> float:
    """Return the probability that at most `lost` pairs are too low and at most as many too high."""
    import numpy as np
    from scipy.stats import binom

    too_high = np.arange(lost + 1)
    rest = low / (1 - high) if high < 1 else 1.0
    return float((binom.pmf(too_high, seeds, high) * binom.cdf(lost, seeds - too_high, min(1.0, rest))).sum())


def _beyond(check: ComparedCheck, effect: Effect) -> float:
    """Return by how many standard deviations the effect is beyond the margin."""
    margin = check.margin if isinstance(check, ImprovementCheck) else 0.0
    return effect.effect if effect.sd is None else (effect.effect - margin) / effect.sd


def _outside(check: EquivalentCheck, effect: Effect) -> tuple[float, float]:
    """Return the probabilities of a difference that is too low and of one that is too high."""
    sd = _required_sd(check, effect, "within")
    low, high = (-check.within - effect.effect) / sd, (effect.effect - check.within) / sd
    return _cdf(low, effect.noise), _cdf(high, effect.noise)


def _required_sd(check: ComparedCheck, effect: Effect, why: str) -> float:
    if effect.sd is None:
        raise ConfigError(
            f"{check.label}: {why} is in the measure's unit, so give the standard deviation of the pairs in it (--sd)"
        )
    return effect.sd


def _cdf(value: float, noise: Noise) -> float:
    from scipy.special import ndtr, stdtr

    return float(ndtr(value)) if noise == "normal" else float(stdtr(_HEAVY, value * _heavy_scale()))


@functools.cache
def _heavy_scale() -> float:
    from scipy.special import ndtri, stdtrit

    return float(stdtrit(_HEAVY, 0.75) / ndtri(0.75))


def _simulated(check: ComparedCheck, seeds: int, level: float, effect: Effect, draws: int) -> Power:
    """Draw the values of pairs and test them as a verdict does."""
    by_signs = check.model_copy(update={"claim": "median", "range": None})
    supported = 0
    for values in _drawn(check, seeds, effect, draws).tolist():
        pairs = Pairs(values=tuple(values), planned=seeds)
        # most draws fail by signs already, which is quicker to tell
        supported += by_signs.test(pairs).supporting < level and check.test(pairs).supporting < level
    rate = supported / draws
    return Power(rate, math.sqrt(rate * (1 - rate) / draws))


def _drawn(check: ComparedCheck, seeds: int, effect: Effect, draws: int) -> "Floats":
    """Return values of pairs as a check takes them (draws, seeds)."""
    import numpy as np

    generator = np.random.default_rng([15, seeds])
    noise_SN: Floats = generator.standard_normal((draws, seeds))
    if effect.noise == "heavy":
        noise_SN = generator.standard_t(_HEAVY, (draws, seeds)) / _heavy_scale()
    if check.range is None and isinstance(check, ImprovementCheck):
        # Student's test does not depend on the unit
        return _beyond(check, effect) + noise_SN
    values_SN = effect.effect + _required_sd(check, effect, "range" if check.range else "within") * noise_SN
    if check.range is not None:
        values_SN = np.clip(values_SN, *check.range)
    margin = check.margin if isinstance(check, ImprovementCheck) else 0.0
    return values_SN - margin
