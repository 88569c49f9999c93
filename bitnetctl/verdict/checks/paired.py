"""Check `paired`: an arm beats another by more than a margin, seed by seed."""

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any, Literal

from bitnetctl.config.schema import NonNegative
from bitnetctl.verdict import wording
from bitnetctl.verdict.checks.compared import ComparedCheck, beyond, gain
from bitnetctl.verdict.checks.pair_tests import Pairs, bet_on_mean, median_bounds, sign_test, student_test
from bitnetctl.verdict.outcome import Outcome, number_text
from bitnetctl.verdict.rule import Levels, PValues


class ImprovementCheck(ComparedCheck):
    """A statement that pairs improve by more than `margin`; their values are the improvements beyond it."""

    better: Literal["higher", "lower"]
    margin: NonNegative = 0.0

    @property
    def thresholds(self) -> tuple[float, ...]:
        return (self.margin,)

    @property
    def higher_is_better(self) -> bool:
        return self.better == "higher"

    @property
    def by_margin(self) -> str:
        """The margin as text, empty for none."""
        return f" by more than {number_text(self.margin)}" if self.margin else ""

    def test(self, pairs: Pairs) -> PValues:
        """Test the median pair by signs and, for a claim about the mean, the mean too."""
        p = sign_test(pairs)
        if self.claim == "median":
            return p
        limits = None if self.range is None else (self.range[0] - self.margin, self.range[1] - self.margin)
        mean = student_test(pairs) if limits is None else bet_on_mean(pairs, limits)
        return PValues(max(p.supporting, mean.supporting), max(p.refuting, mean.refuting))

    def count(self, pairs: Pairs) -> int:
        """Return in how many pairs the improvement is above the margin."""
        return pairs.wins

    def margin_and_bounds(self, pairs: Pairs, levels: Levels) -> dict[str, Any]:
        """Return the margin, and bounds of the median of the values: above 0 where it is beyond the margin."""
        low, high = median_bounds(pairs, levels)
        return {
            "better": self.better,
            "margin": self.margin,
            "bound_of_median": low,
            "upper_bound_of_median": high,
        }

    def shown_bound(self, pairs: Pairs, levels: Levels, *, refuted: bool) -> tuple[str, float | None]:
        """Return the lower bound of the median improvement, the upper one where the claim is refuted."""
        low, high = median_bounds(pairs, levels)
        side, bound = ("at most", high) if refuted else ("at least", low)
        return side, None if bound is None else bound + self.margin

    def shows(self, pairs: Pairs, outcome: Outcome, p: PValues, levels: Levels) -> str:
        """Say what is shown about the median or the mean pair."""
        values, is_mean = pairs.values, self.claim == "mean"
        text = ""
        if is_mean and all(map(math.isfinite, values)):
            text = f", mean {number_text(fmean(values) + self.margin)}"
        noise = "for any noise within the range" if self.range else "for nearly normal differences only"
        what = f"mean {self.unit}, {noise}," if is_mean else f"median {self.unit}"
        if outcome is Outcome.SUPPORTED:
            return f"{text}: so is the {what} ({wording.p_text(p.supporting)}, below {levels.supporting:.3g})"
        if outcome is Outcome.REFUTED:
            lost = f"not so in {pairs.losses}"
            return f"{text}: the {what} is not ({wording.p_text(p.refuting)}, below {levels.refuting:.3g}; {lost})"
        both = f"{wording.p_text(p.supporting)} for the claim, {wording.p_text(p.refuting)} against it"
        return f"{text}: not told from chance ({both})"


class PairedCheck(ImprovementCheck):
    """An arm beats the arm `against` in the measure by more than `margin`, at equal size, seed and steps."""

    kind: Literal["paired"] = "paired"

    @property
    def supports(self) -> str:
        return f"{self.better} than {self.against}{self.by_margin}"

    def predicate(self, *, single: bool) -> str:
        """Say what is claimed of the runs of an arm."""
        verb = "has" if single else "have"
        return f"{verb} a {self.better} {self.aggregate.name(self.measure)} than `{self.against}`"

    def compare(self, values: Sequence[float]) -> tuple[float, float]:
        """Return by how much the improvement exceeds the margin, infinitely if one run failed."""
        ours, theirs = values
        value = beyond(gain(ours, theirs), self.margin, values)
        return value, value

    def median_text(self, value: float) -> str:
        """Return the median improvement as text."""
        return f"median improvement {number_text(value + self.margin)}"
