"""With how many seeds a decision is possible, against the tests of all values that pairs can have."""

import itertools
from typing import Any

import pytest

from bitnetctl.verdict import Criteria, parse_criteria
from bitnetctl.verdict.checks.pair_tests import Pairs
from bitnetctl.verdict.decidable import can_refute, can_support, fewest_to_decide
from bitnetctl.verdict.rule import Tally, all_of, failure_rate_test

PAIRED = {"kind": "paired", "measure": "Loss", "better": "lower"}
EQUIVALENT = {"kind": "equivalent", "measure": "Loss", "within": 0.5}
LEVEL = {"kind": "level", "measure": "Loss", "supported_below": 4, "refuted_above": 5}


def criteria(*checks: dict[str, Any], rate: float = 0.5) -> Criteria:
    required = [{"kind": "finite", "columns": ["Loss"]}, {"kind": "finished"}]
    return parse_criteria({"seeds": {"rule": "rate", "max_failure_rate": rate}, "checks": [*required, *checks]})


@pytest.mark.parametrize("level", [0.05, 0.025])
@pytest.mark.parametrize("checks", [[PAIRED], [EQUIVALENT], [{**PAIRED, "pairs": 6}], [PAIRED, EQUIVALENT]], ids=str)
def test_so_many_pairs_decide_for_some_values_and_fewer_for_none(checks: list[dict[str, Any]], level: float) -> None:
    tested = criteria(*checks)
    for seeds in range(1, 9):
        supporting, refuting = [], []
        for values in itertools.product((-1.0, 0.1, 1.0), repeat=seeds):
            pairs = [check.test(Pairs(values=values, planned=check.pairs or seeds)) for check in tested.comparisons]
            for healthy in (0, seeds):
                rate = failure_rate_test(Tally(healthy=healthy, unhealthy=seeds - healthy), 0.5)
                p = all_of([rate, *pairs])
                supporting.append(p.supporting)
                refuting.append(p.refuting)
        assert can_support(tested, seeds, level) == (min(supporting) < level)
        assert can_refute(tested, seeds, level) == (min(refuting) < level)


def test_the_least_numbers_of_seeds() -> None:
    assert fewest_to_decide(criteria(PAIRED), 0.05) == (5, 6)
    assert fewest_to_decide(criteria(PAIRED), 0.025) == (6, 7)
    assert fewest_to_decide(criteria(LEVEL), 0.05) == (5, 5)
    assert fewest_to_decide(criteria(LEVEL, rate=0.1), 0.05) == (29, 2)
    # a mean may be decided by any number of seeds, unless a failure rate has to be supported, too
    assert fewest_to_decide(criteria({**LEVEL, "claim": "mean"}), 0.05) == (5, 1)


def test_the_difference_of_an_equivalence_takes_a_seed_more_to_refute() -> None:
    (check,) = criteria(EQUIVALENT).comparisons
    assert [check.can_decide(seeds, 0.025)[1] for seeds in (6, 7)] == [False, True]
