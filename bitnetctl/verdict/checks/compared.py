"""Base class of the checks that compare runs of several arms, seed by seed."""

import itertools
import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from statistics import median
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from bitnetctl.config import BASELINE, PositiveInt, canonical_arm
from bitnetctl.records import Run
from bitnetctl.records.provenance import provenance_differences
from bitnetctl.units import plural
from bitnetctl.verdict import wording
from bitnetctl.verdict.checks.aggregated import AggregatedCheck
from bitnetctl.verdict.checks.base import CheckContext, Finding, Seeds
from bitnetctl.verdict.checks.pair_tests import Pairs
from bitnetctl.verdict.checks.pairs import Partner, find_partners
from bitnetctl.verdict.outcome import CheckedRun, Outcome
from bitnetctl.verdict.rule import Levels, PValues, Statement, at_least

ROUNDING = 1e-9
"""Relative rounding error: a pair that is as near to the margin is equal to it."""


class ComparedCheck(AggregatedCheck):
    """A statement about pairs: a run and its partners, of other arms and of the same size, seed and steps.

    `pairs` is their number, fixed before looking (unset: the planned seeds). Runs of other data, settings or code are
    not compared, nor with `over` those that were evaluated at other steps. With `claim = "mean"` a test of the mean
    must agree with the sign test: a bet, which holds for any noise within `range`, the least and the largest possible
    value of a pair; without a range Student's test, which holds for nearly normal ones only.
    """

    unit: ClassVar[str] = "pair"
    """What a seed with all of its runs is called."""
    sides: ClassVar[int] = 1
    """Number of one-sided tests of which either refutes."""
    undecided: ClassVar[str] = "not told from chance"
    """What is said of an open result."""

    against: Annotated[str, Field(min_length=1)] = BASELINE
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
        return canonical_arm(value)

    @model_validator(mode="after")
    def _check_range(self) -> Self:
        if self.range is not None:
            if self.claim != "mean":
                raise ValueError('range is for claim = "mean"')
            low, high = self.range
            if not (math.isfinite(low + high) and all(low < limit < high for limit in self.thresholds)):
                limits = " and ".join(f"{limit:g}" for limit in self.thresholds)
                raise ValueError(f"range: {low:g} to {high:g} must hold {limits} inside")
        return self

    @property
    def about_arm(self) -> bool:
        return True

    @property
    @abstractmethod
    def thresholds(self) -> tuple[float, ...]:
        """The values of a pair that support and refutation turn on; a `range` must hold them inside."""

    @property
    def higher_is_better(self) -> bool:
        """Whether a larger value of the measure counts as the better one."""
        return True

    @property
    @abstractmethod
    def supports(self) -> str:
        """What is claimed of a pair, such as `lower than baseline`."""

    @abstractmethod
    def predicate(self, *, single: bool) -> str:
        """Say what is claimed of the runs of an arm, such as `has a lower HeldOutLoss than `baseline``."""

    def is_compared_with(self, arm: str) -> bool:
        """Whether an arm is one that others are compared with; nothing is claimed about it."""
        return arm == self.against

    def partner_arms(self, arm: str) -> Sequence[Callable[[str], bool]]:
        """Return a predicate for the arm of every partner of a run of `arm`."""
        return (self.is_compared_with,)

    @abstractmethod
    def compare(self, values: Sequence[float]) -> tuple[float, float]:
        """Return the least and the greatest value of a pair from those of its runs.

        The first is that of the judged arm, the others are those of its partners; larger is better, -inf is a failed
        run.
        """

    @abstractmethod
    def test(self, pairs: Pairs) -> PValues:
        """Return the p-values of the statement."""

    @abstractmethod
    def count(self, pairs: Pairs) -> int:
        """Return how many pairs are as claimed."""

    @abstractmethod
    def shows(self, pairs: Pairs, outcome: Outcome, p: PValues, levels: Levels) -> str:
        """Say what is shown about the median or the mean pair."""

    @abstractmethod
    def median_text(self, value: float) -> str:
        """Return the median of the pairs as text, such as `median improvement 0.3`."""

    @abstractmethod
    def margin_and_bounds(self, pairs: Pairs, levels: Levels) -> dict[str, Any]:
        """Return margin and bounds for the statistics of a verdict."""

    @abstractmethod
    def shown_bound(self, pairs: Pairs, levels: Levels, *, refuted: bool) -> tuple[str, float | None]:
        """Return the bound of the median that bears out a decision, and its side, such as `at least`."""

    @property
    def condition(self) -> dict[str, Any]:
        return {"measure": self.measure, "supports": self.supports}

    def judge(self, run: Run, context: CheckContext) -> Finding | None:
        """Report a partner that cannot be compared; a missing one is not the run's fault, but loses the pair."""
        found = self._partners(run, context)
        for partners in found:
            if partners and partners[0].unequal is not None:
                name = partners[0].run.arm
                reason = f"cannot be compared with {name}: {partners[0].unequal}"
                return Finding(Outcome.INVALID, reason, brief=f"not trained like {name}")
        apart = [_apart(partners, context) for partners in itertools.product(*found)]
        if apart and all(apart):
            reason = f"the runs that it is compared with differ: {apart[0]}"
            return Finding(Outcome.INVALID, reason, brief="compared with runs that differ")
        return None

    def judge_seeds(self, seeds: Seeds, context: CheckContext) -> Statement:
        """Test the values of all planned pairs."""
        pairs = self.form_pairs(seeds, context)
        p = self.test(pairs)
        count = self.count(pairs)

        def describe(outcome: Outcome, levels: Levels) -> str:
            return self._sentence(pairs, outcome, p, levels)

        def summarize(outcome: Outcome) -> str:
            claim = f"{self.aggregate.name(self.measure)} {self.supports}"
            formed = len(pairs.values)
            undecided = f"of which {formed} could be formed" if formed < pairs.planned else self.undecided
            return wording.pairs_briefly(claim, outcome, count, pairs.planned, self.unit, undecided)

        def statistics(levels: Levels) -> dict[str, Any]:
            return self._statistics(pairs, p, levels)

        return Statement(
            check=self.label,
            p=p,
            describe=describe,
            value=float(count),
            summarize=summarize,
            of=pairs.planned,
            statistics=statistics,
            **self.condition,
        )

    def can_decide(self, seeds: int, level: float) -> tuple[bool, bool]:
        """Whether so many pairs could support, and refute: a test of the mean needs the sign test, too."""
        least = at_least(seeds, max(seeds, self.pairs or 0), 0.5)
        return self.pairs in (None, seeds) and least < level, least * self.sides < level

    def form_pairs(self, seeds: Seeds, context: CheckContext) -> Pairs:
        """Compare every seed with its partners; an unfinished or unknown run loses its pair.

        So does a partner that crashed: its error, such as a lack of memory, is no win of the arm; one that diverged has
        failed. A seed is one pair, whatever was repeated: support takes the least value, refutation the greatest. One
        whose partner was repeated and left out is lost.
        """
        by_seed: dict[int | None, list[tuple[float, float]]] = {}
        failed: dict[int, set[int | None]] = {}
        unknown = ""
        for one in seeds.checked:
            wanted = self.partner_arms(one.run.arm or "")
            # a repetition of the partner that was left out could tell otherwise
            if any(other.arm and is_one(other.arm) for other in context.not_given_beside(one.run) for is_one in wanted):
                continue
            for partners in itertools.product(*self._partners(one.run, context)):
                if any(partner.unequal is not None for partner in partners) or _apart(partners, context):
                    continue
                checked = [one, *(context.check_twin(partner.run) for partner in partners)]
                known = [value for run in checked if (value := self._value(run)) is not None]
                crashed = next(filter(None, (_crash(partner.run) for partner in partners)), "")
                if crashed or len(known) < len(checked):
                    unknown = unknown or crashed or next(filter(None, map(self._why_unknown, checked)), "")
                    continue
                for index, value in enumerate(known):
                    failed.setdefault(index, set()).update([one.run.seed] if value == -math.inf else [])
                by_seed.setdefault(one.run.seed, []).append(self.compare(known))
        return Pairs(
            values=tuple(min(low for low, _ in of_seed) for of_seed in by_seed.values()),
            of_repeats=tuple(max(high for _, high in of_seed) for of_seed in by_seed.values()),
            seeds=tuple(by_seed),
            planned=self.pairs if self.pairs is not None else seeds.planned,
            failed=tuple(len(failed[index]) for index in sorted(failed)),
            unknown=unknown,
        )

    def _partners(self, run: Run, context: CheckContext) -> list[list[Partner]]:
        """Return the partners of a run, of each arm that it is compared with; unequal if trained for longer.

        So are, with `over`, those that were evaluated at other steps.
        """
        found = [find_partners(run, context, is_one) for is_one in self.partner_arms(run.arm or "")]
        found = [[one if one.unequal else _as_long(run, one, context) for one in partners] for partners in found]
        if self.over == "end":
            return found
        return [[one if one.unequal else _evaluated_alike(run, one) for one in partners] for partners in found]

    def _value(self, checked: CheckedRun) -> float | None:
        """Return the measure, larger is better; -inf where the run failed, None where it is unknown or unfinished."""
        outcomes = {result.outcome for result in checked.completion}
        if Outcome.REFUTED in outcomes:
            return -math.inf
        value = self.value_of(checked.run)
        if outcomes != {Outcome.SUPPORTED} or value is None:
            return None
        if not math.isfinite(value):
            return -math.inf
        return value if self.higher_is_better else -value

    def _why_unknown(self, checked: CheckedRun) -> str:
        """Return why a finished run has no value; empty where it has one or is not finished."""
        if {result.outcome for result in checked.completion} != {Outcome.SUPPORTED}:
            return ""
        run = checked.run
        why = self.aggregate.why_unknown(run) or f"{self.measure} has unknown cells"
        return "" if self.value_of(run) is not None else f"{why} ({run.arm}, seed {run.seed})"

    def _sentence(self, pairs: Pairs, outcome: Outcome, p: PValues, levels: Levels) -> str:
        """Say in how many pairs the claim holds, what that shows, and which runs failed."""
        name, formed = self.aggregate.name(self.measure), len(pairs.values)
        planned = plural(pairs.planned, f"planned {self.unit}")
        if not formed:
            return f"{name}: none of {planned} with {self.against} could be formed: {pairs.unknown or self._needs()}"
        text = f"{name} is {self.supports} in {self.count(pairs)} of {planned}"
        if formed != pairs.planned:
            text += f", of which {formed} could be formed" if formed < pairs.planned else f"; {formed} were trained"
            text += f" ({pairs.unknown})" if pairs.unknown else ""
        middle = median(pairs.values)
        if pairs.values == pairs.greatest and not math.isnan(middle):
            text += f", {self.median_text(middle)}"
        text += self.shows(pairs, outcome, p, levels)
        if any(pairs.failed):
            text += f"; {self._failures(pairs.failed)}"
        return text

    def _needs(self) -> str:
        return "a pair takes two finished runs of equal size, seed and steps"

    def _failures(self, failed: Sequence[int]) -> str:
        return f"{failed[0]} of the arm's and {failed[1]} of {self.against}'s runs failed"

    def _statistics(self, pairs: Pairs, p: PValues, levels: Levels) -> dict[str, Any]:
        values, greatest = pairs.by_seed()
        return {
            "kind": self.kind,
            "measure": self.measure,
            "value": self.aggregate.name(self.measure),
            "against": self.against,
            "claim": self.claim,
            "planned": pairs.planned,
            "count": self.count(pairs),
            "values": values,
            "greatest": greatest,
            **self.margin_and_bounds(pairs, levels),
            "level_of_support": levels.supporting,
            "level_of_refutation": levels.refuting,
            "p_of_support": p.supporting,
            "p_of_refutation": p.refuting,
            "text": self._median_known(pairs, p, levels) if pairs.values else "",
        }

    def _median_known(self, pairs: Pairs, p: PValues, levels: Levels) -> str:
        """Say what is known of the median pair."""
        refuted = p.refuting < levels.refuting
        side, bound = self.shown_bound(pairs, levels, refuted=refuted)
        text = f"{self.aggregate.name(self.measure)}: {self.median_text(median(pairs.values))}"
        return wording.median_known(text, side, bound, levels.refuting if refuted else levels.supporting)


def _crash(run: Run) -> str:
    """Return what is said of a run that an error ended; empty for any other, as one that diverged."""
    if run.manifest is None or run.manifest.status != "failed":
        return ""
    return f"{run.arm}, seed {run.seed}, crashed, which is no win of another arm"


def _apart(partners: Sequence[Partner], context: CheckContext) -> str:
    """Return why partners cannot be compared with one another; a run of unknown provenance does not show it."""
    if len(partners) < 2:
        return ""
    differences = provenance_differences([partner.run for partner in partners], same_arm=False)
    return "; ".join(differences.breaking + (differences.minor if context.strict else ()))


def _as_long(run: Run, partner: Partner, context: CheckContext) -> Partner:
    """Return the partner, as unequal where both have all of their steps, and one has more."""
    steps = run.planned_steps or context.requested_steps
    ends = run.final_step, partner.run.final_step
    if steps is None or min(ends) < steps or ends[0] == ends[1]:
        return partner
    return Partner(run=partner.run, unequal=f"trained for {ends[0]:,} and {ends[1]:,} steps")


def _evaluated_alike(run: Run, partner: Partner) -> Partner:
    """Return the partner, as unequal where one of both was evaluated where the other was not, up to its end."""
    end = min(run.final_step, partner.run.final_step)
    ours, theirs = (one.steps[one.steps <= end] for one in (run, partner.run))
    if len(ours) == len(theirs) and bool((ours == theirs).all()):
        return partner
    reason = f"evaluated at other steps ({plural(len(ours), 'evaluation')} and {len(theirs)} up to step {end:,})"
    return Partner(run=partner.run, unequal=reason)


def gain(ours: float, theirs: float) -> float:
    """Return by how much a run is better, infinitely if only the other failed; two failed runs are equal."""
    return 0.0 if ours == theirs else ours - theirs


def beyond(value: float, margin: float, values: Sequence[float]) -> float:
    """Return by how much a value exceeds a margin; rounding must not decide one that is equal to it."""
    excess = value - margin
    scale = max(1.0, abs(margin), *(abs(one) for one in values if math.isfinite(one)))
    return 0.0 if abs(excess) <= ROUNDING * scale else excess
