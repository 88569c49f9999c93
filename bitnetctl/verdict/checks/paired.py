"""Check `paired`: an arm beats another by more than a margin, seed by seed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median, stdev
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from bitnetctl.config import BASELINE, PositiveInt, join_arm, split_arm
from bitnetctl.config.schema import NonNegative
from bitnetctl.records import Run
from bitnetctl.units import plural
from bitnetctl.verdict import wording
from bitnetctl.verdict.checks.base import CheckContext, Finding, MeasuredCheck, Seeds
from bitnetctl.verdict.checks.pairs import Partner, find_partners
from bitnetctl.verdict.limits import last_median
from bitnetctl.verdict.outcome import CheckedRun, Outcome, number_text
from bitnetctl.verdict.rule import UNDECIDABLE, Levels, PValues, Statement, at_least, mean_test


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Improvements of an arm over another, by more than the margin if above 0; `planned` pairs, the others are lost.

    An improvement is infinite where one run of a pair failed, and 0 less the margin where both did. Where a seed was
    repeated, `improvements` has the least of its pairs, and `of_repeats` the greatest.
    """

    improvements: tuple[float, ...]
    planned: int
    failed: int
    failed_against: int
    of_repeats: tuple[float, ...] = ()

    @property
    def greatest(self) -> tuple[float, ...]:
        """The greatest improvement of every seed, the only one where none was repeated."""
        return self.of_repeats or self.improvements

    @property
    def wins(self) -> int:
        return sum(value > 0 for value in self.improvements)

    @property
    def losses(self) -> int:
        return sum(value < 0 for value in self.greatest)

    @property
    def complete(self) -> bool:
        """Whether every planned pair is there, and no other."""
        return len(self.improvements) == self.planned > 0


def sign_test(pairs: Pairs) -> PValues:
    """Return the exact one-sided p-values of the sign test, about the median pair.

    A pair that is lost or equal helps neither side. It holds for any noise, failures included.
    """
    supporting = at_least(pairs.wins, pairs.planned, 0.5) if pairs.complete else 1.0
    return PValues(supporting, at_least(pairs.losses, max(pairs.planned, len(pairs.improvements)), 0.5))


def student_test(pairs: Pairs) -> PValues:
    """Return the one-sided p-values of Student's test of the mean improvement; 1 where a run failed."""
    if not pairs.complete:
        return UNDECIDABLE
    return PValues(_student_p(pairs.improvements), _student_p([-value for value in pairs.greatest]))


def _student_p(values: Sequence[float]) -> float:
    """Return the p-value of a mean of at most 0."""
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return 1.0
    from scipy.special import stdtr

    spread = stdev(values)
    if spread == 0:
        return 1.0
    return float(stdtr(len(values) - 1, -fmean(values) / (spread / math.sqrt(len(values)))))


def bet_on_mean(pairs: Pairs, limits: tuple[float, float], margin: float) -> PValues:
    """Return p-values of the mean improvement for any noise within the limits; 1 if one is outside, as a failure is."""
    low, high = (limit - margin for limit in limits)
    if not pairs.complete or not all(low <= value <= high for value in (*pairs.improvements, *pairs.greatest)):
        return UNDECIDABLE
    return PValues(mean_test(pairs.improvements, 0.0, low), mean_test(pairs.greatest, 0.0, high))


class PairedCheck(MeasuredCheck):
    """An arm beats the arm `against` in the measure by more than `margin`, at equal size, seed and steps.

    A pair is a seed at one size; `pairs` is their number, fixed before looking (unset: the planned seeds). The sign
    test of the median pair holds for any noise. With `claim = "mean"` a test of the mean must agree: a bet, which holds
    for any noise within `range`, the least and the largest possible improvement; without a range Student's test, which
    holds for nearly normal differences only. Runs of other data, settings or code are not compared.
    """

    kind: Literal["paired"] = "paired"
    against: Annotated[str, Field(min_length=1)] = BASELINE
    better: Literal["higher", "lower"]
    margin: NonNegative = 0.0
    last: PositiveInt = 1
    pairs: PositiveInt | None = None
    claim: Literal["median", "mean"] = "median"
    range: tuple[float, float] | None = None

    @field_validator("measure")
    @classmethod
    def _refuse_schedule(cls, value: str) -> str:
        if value in ("LR", "WD"):
            raise ValueError(f"{value} is set by the arm and measures nothing")
        return value

    @field_validator("against")
    @classmethod
    def _check_arm(cls, value: str) -> str:
        return join_arm(split_arm(value))

    @model_validator(mode="after")
    def _check_range(self) -> Self:
        if self.range is not None:
            if self.claim != "mean":
                raise ValueError('range is for claim = "mean"')
            low, high = self.range
            if not (math.isfinite(low + high) and low < self.margin < high):
                raise ValueError(f"range: {low:g} to {high:g} must hold the margin {self.margin:g} inside")
        return self

    @property
    def about_arm(self) -> bool:
        return True

    @property
    def condition(self) -> dict[str, Any]:
        margin = f" by more than {number_text(self.margin)}" if self.margin else ""
        return {"measure": self.measure, "supports": f"{self.better} than {self.against}{margin}"}

    def judge(self, run: Run, context: CheckContext) -> Finding | None:
        """Report a partner that cannot be compared; a missing one is not the run's fault, but loses the pair."""
        partner = self._partner(run, context)
        if partner is None or partner.unequal is None:
            return None
        brief = f"not trained like {self.against}"
        return Finding(Outcome.INVALID, f"cannot be compared with {self.against}: {partner.unequal}", brief=brief)

    def judge_seeds(self, seeds: Seeds, context: CheckContext) -> Statement:
        """Test the improvements of all planned pairs."""
        pairs = self.form_pairs(seeds, context)
        p = sign_test(pairs)
        if self.claim == "mean":
            mean = student_test(pairs) if self.range is None else bet_on_mean(pairs, self.range, self.margin)
            p = PValues(max(p.supporting, mean.supporting), max(p.refuting, mean.refuting))

        def describe(outcome: Outcome, levels: Levels) -> str:
            return _sentence(self, pairs, outcome, p, levels)

        def summarize(outcome: Outcome) -> str:
            claim = f"{self.measure} {self.condition['supports']}"
            return wording.pairs_briefly(claim, outcome, pairs.wins, pairs.planned)

        return Statement(
            check=self.label,
            p=p,
            describe=describe,
            value=float(pairs.wins),
            summarize=summarize,
            of=pairs.planned,
            **self.condition,
        )

    def form_pairs(self, seeds: Seeds, context: CheckContext) -> Pairs:
        """Pair every seed with its partner; an unfinished or unknown run loses its pair.

        A seed is one pair, whatever was repeated: support takes the least improvement, refutation the greatest. One
        whose partner was repeated and left out is lost.
        """
        by_seed: dict[int | None, list[float]] = {}
        failed, failed_against = set(), set()
        for one in seeds.checked:
            # a repetition of the partner that was left out could tell otherwise
            if any(other.arm == self.against for other in context.not_given_beside(one.run)):
                continue
            for partner in self._partners(one.run, context):
                if partner.unequal is not None:
                    continue
                ours, theirs = self._value(one), self._value(context.check_twin(partner.run))
                if ours is None or theirs is None:
                    continue
                if ours == -math.inf:
                    failed.add(one.run.seed)
                if theirs == -math.inf:
                    failed_against.add(one.run.seed)
                by_seed.setdefault(one.run.seed, []).append(self._improvement(ours, theirs))
        return Pairs(
            improvements=tuple(map(min, by_seed.values())),
            of_repeats=tuple(map(max, by_seed.values())),
            planned=self.pairs if self.pairs is not None else seeds.planned,
            failed=len(failed),
            failed_against=len(failed_against),
        )

    def _improvement(self, ours: float, theirs: float) -> float:
        """Return by how much a pair exceeds the margin; two failed runs are equal."""
        if ours == theirs:
            return 0.0 - self.margin
        excess = ours - theirs - self.margin
        # rounding must not decide a pair that is equal to the margin
        return 0.0 if abs(excess) <= 1e-9 * max(1.0, self.margin, abs(ours), abs(theirs)) < math.inf else excess

    def _partner(self, run: Run, context: CheckContext) -> Partner | None:
        return next(iter(self._partners(run, context)), None)

    def _partners(self, run: Run, context: CheckContext) -> list[Partner]:
        return find_partners(run, context, lambda arm: arm == self.against)

    def _value(self, checked: CheckedRun) -> float | None:
        """Return the measure, larger is better; -inf where the run failed, None where it is unknown or unfinished."""
        outcomes = {result.outcome for result in checked.completion}
        if Outcome.REFUTED in outcomes:
            return -math.inf
        value = last_median(checked.run, self.measure, self.last)
        if outcomes != {Outcome.SUPPORTED} or value is None:
            return None
        if not math.isfinite(value):
            return -math.inf
        return value if self.better == "higher" else -value


def _sentence(check: PairedCheck, pairs: Pairs, outcome: Outcome, p: PValues, levels: Levels) -> str:
    """Say in how many pairs an arm wins, what that shows about the median or the mean pair, and which runs failed."""
    values, is_mean = pairs.improvements, check.claim == "mean"
    formed = len(values)
    if not formed:
        return (
            f"{check.measure}: none of {plural(pairs.planned, 'planned pair')} with {check.against} could be formed: a "
            "pair takes two finished runs of equal size, seed and steps"
        )
    text = (
        f"{check.measure} is {check.condition['supports']} in {pairs.wins} of {plural(pairs.planned, 'planned pair')}"
    )
    if formed != pairs.planned:
        text += f", of which {formed} could be formed" if formed < pairs.planned else f"; {formed} were trained"
    if values:
        text += f", median improvement {number_text(median(values) + check.margin)}"
    if values and is_mean and all(map(math.isfinite, values)):
        text += f", mean {number_text(fmean(values) + check.margin)}"
    noise = "for any noise within the range" if check.range else "for nearly normal differences only"
    what = f"mean pair, {noise}," if is_mean else "median pair"
    if outcome is Outcome.SUPPORTED:
        text += f": so is the {what} ({wording.p_text(p.supporting)}, below {levels.supporting:.3g})"
    elif outcome is Outcome.REFUTED:
        lost = f"it is not in {pairs.losses}"
        text += f": the {what} is not ({wording.p_text(p.refuting)}, below {levels.refuting:.3g}; {lost})"
    else:
        both = f"{wording.p_text(p.supporting)} for the claim, {wording.p_text(p.refuting)} against it"
        text += f": not told from chance ({both})"
    if pairs.failed or pairs.failed_against:
        text += f"; {pairs.failed} of the arm's and {pairs.failed_against} of {check.against}'s runs failed"
    return text
