"""Check `equivalent`: an arm differs from another by less than a stated amount, seed by seed."""

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any, ClassVar, Literal

from bitnetctl.config import Positive
from bitnetctl.verdict import wording
from bitnetctl.verdict.checks.compared import ROUNDING, ComparedCheck, gain
from bitnetctl.verdict.checks.pair_tests import (
    Pairs,
    median_bounds,
    two_bets_on_mean,
    two_sign_tests,
    two_student_tests,
)
from bitnetctl.verdict.outcome import Outcome, number_text
from bitnetctl.verdict.rule import Levels, PValues


class EquivalentCheck(ComparedCheck):
    """The median difference of an arm from the arm `against` lies between -`within` and `within`.

    Two one-sided exact sign tests, which hold for any noise; with `claim = "mean"` tests of the mean, too. Support
    takes both, refutation either of the opposite ones at half of the level. Two failed runs are equal; one failed run
    is a difference beyond any amount.
    """

    sides: ClassVar[int] = 2
    undecided: ClassVar[str] = "neither shown nor excluded"

    kind: Literal["equivalent"] = "equivalent"
    within: Positive

    @property
    def thresholds(self) -> tuple[float, ...]:
        return -self.within, self.within

    @property
    def supports(self) -> str:
        return f"within {number_text(self.within)} of {self.against}"

    def predicate(self, *, single: bool) -> str:
        """Say what is claimed of the runs of an arm."""
        verb, name = "differs" if single else "differ", self.aggregate.name(self.measure)
        return f"{verb} from `{self.against}` in {name} by less than {number_text(self.within)}"

    def compare(self, values: Sequence[float]) -> tuple[float, float]:
        """Return the difference of the arm from the other one, infinite if one run failed."""
        ours, theirs = values
        value = gain(ours, theirs)
        scale = max(1.0, *(abs(one) for one in values if math.isfinite(one)), 0.0)
        # rounding must not decide a pair that is equal to the limit
        if abs(abs(value) - self.within) <= ROUNDING * scale:
            value = math.copysign(self.within, value)
        return value, value

    def test(self, pairs: Pairs) -> PValues:
        """Test the median pair by signs and, for a claim about the mean, the mean too."""
        p = two_sign_tests(pairs, self.within)
        if self.claim == "median":
            return p
        mean = (
            two_bets_on_mean(pairs, self.range, self.within)
            if self.range is not None
            else two_student_tests(pairs, self.within)
        )
        return PValues(max(p.supporting, mean.supporting), max(p.refuting, mean.refuting))

    def count(self, pairs: Pairs) -> int:
        """Return how many pairs differ by less than `within`."""
        return pairs.inside(self.within)

    def margin_and_bounds(self, pairs: Pairs, levels: Levels) -> dict[str, Any]:
        """Return `within`, one-sided bounds of the median difference, and the larger one of both in size."""
        low, high = median_bounds(pairs, Levels(levels.supporting, levels.supporting))
        return {
            "within": self.within,
            "bound_of_median": None if low is None or high is None else max(-low, high),
            "lower_bound_of_median": low,
            "upper_bound_of_median": high,
        }

    def shown_bound(self, pairs: Pairs, levels: Levels, *, refuted: bool) -> tuple[str, float | None]:
        """Return a bound of the size of the median difference: the largest, the least where the claim is refuted."""
        level = levels.refuting / 2 if refuted else levels.supporting
        low, high = median_bounds(pairs, Levels(level, level))
        if low is None or high is None:
            return "", None
        return ("at least", max(low, -high)) if refuted else ("in size at most", max(-low, high))

    def median_text(self, value: float) -> str:
        """Return the median difference as text."""
        return f"median difference {number_text(value)}"

    def shows(self, pairs: Pairs, outcome: Outcome, p: PValues, levels: Levels) -> str:
        """Say what is shown about the median or the mean difference; an open result is no evidence of equality."""
        values, is_mean, within = pairs.values, self.claim == "mean", number_text(self.within)
        mean = f", mean {number_text(fmean(values))}" if is_mean and all(map(math.isfinite, values)) else ""
        noise = "for any noise within the range" if self.range else "for nearly normal differences only"
        what = f"mean pair, {noise}," if is_mean else "median pair"
        if outcome is Outcome.SUPPORTED:
            return (
                f"{mean}: the {what} differs by less than {within} ({wording.p_text(p.supporting)} by both one-sided "
                f"tests, below {levels.supporting:.3g})"
            )
        if outcome is Outcome.REFUTED:
            p_text = wording.p_text(p.refuting)
            return f"{mean}: the {what} differs by at least {within} ({p_text}, below {levels.refuting:.3g})"
        less, more = map(wording.p_text, (p.supporting, p.refuting))
        return (
            f"{mean}: neither a difference of less than {within} is shown ({less}) nor one of at least {within} "
            f"({more}), which is no evidence of equality"
        )
