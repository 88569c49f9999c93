"""The rule over seeds, tabulated over the few counts there can be, and the former rule for comparison."""

import functools

import numpy as np

from benchmarks.calibration.draws import Booleans, Floats, Integers
from bitnetctl.analysis.stats import mean_bounds
from bitnetctl.verdict.rule import Tally, failure_rate_test

LIMIT = 0.5


@functools.cache
def p_by_count(seeds: int, max_rate: float, absent: int = 0) -> tuple[Floats, Floats]:
    """Return the p-values of support by the number of seeds that are not healthy, of refutation by that of failed ones.

    `absent` of the planned `seeds` have no run yet and are neither.
    """
    here = range(seeds - absent + 1)
    tests = [
        failure_rate_test(Tally(healthy=seeds - absent - bad, unhealthy=bad, absent=absent), max_rate) for bad in here
    ]
    return np.array([test.supporting for test in tests]), np.array([test.refuting for test in tests])


def p_values(
    not_healthy: Integers, unhealthy: Integers, seeds: int, max_rate: float = LIMIT, absent: int = 0
) -> tuple[Floats, Floats]:
    """Return the p-values of support and of refutation for arrays of counts."""
    supporting, refuting = p_by_count(seeds, max_rate, absent)
    return supporting[not_healthy], refuting[unhealthy]


def former_rule(values_SN: Floats, supported_above: float, refuted_below: float) -> tuple[Booleans, Booleans]:
    """Return where the rule of version 0.1.0 supported and refuted, by one check of a measure that should be high.

    Refuted if half of the seeds are below `refuted_below`; supported if there are three seeds, all above
    `supported_above`, and so is the one-sided 95 % Student bound of their mean.
    """
    refuted = (values_SN < refuted_below).mean(axis=1) >= 0.5
    every = (values_SN > supported_above).all(axis=1)
    bound = mean_bounds(values_SN, "low", 0.95)
    enough = values_SN.shape[1] >= 3
    return enough & every & (bound > supported_above) & ~refuted, refuted
