"""The numbers of seeds in docs/claims.md are those of the rule."""

import re
from pathlib import Path

import pytest

from bitnetctl.claims import load_claim
from bitnetctl.verdict.decidable import fewest_to_decide
from bitnetctl.verdict.power import Effect, power, seeds_needed

PAGE = " ".join((Path(__file__).parents[2] / "docs" / "claims.md").read_text(encoding="utf-8").split())


def test_the_seeds_that_can_decide_and_their_power() -> None:
    criteria = load_claim("muon-beats-adamw").criteria
    assert fewest_to_decide(criteria, 0.05) == (5, 6)
    assert "of one arm five can support (1/32 is below 5 %), six can refute as well (1/64 is below 2.5 %" in PAGE
    (check,) = load_claim("label-smoothing-null").criteria.comparisons
    assert [check.can_decide(seeds, 0.025)[1] for seeds in (6, 7)] == [False, True]
    assert "`equivalent` takes five, too, and seven to refute by its differences" in PAGE
    effect = Effect(effect=1.5)
    said = re.search(r"Five seeds support .* of (0\.\d\d), six with (0\.\d\d) and eight with (0\.\d\d)", PAGE)
    assert said is not None
    powers = [power(criteria.comparisons, seeds, effect, criteria.seeds).value for seeds in (5, 6, 8)]
    assert [float(one) for one in said.groups()] == pytest.approx(powers, abs=0.0051)
    assert seeds_needed(criteria.comparisons, effect, criteria.seeds) == 8
