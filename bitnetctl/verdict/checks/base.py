"""Base classes of checks, their context and their findings."""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, Self, TypeAlias, TypeVar, cast

from pydantic import Field, field_validator, model_validator

from bitnetctl.config import Frozen, PositiveInt, hint_at
from bitnetctl.records import Run
from bitnetctl.records.inventory import AbsentRun
from bitnetctl.records.metrics import MEASURES
from bitnetctl.verdict.outcome import CheckedRun, CheckResult, Outcome, number_text
from bitnetctl.verdict.rule import Statement

_Item = TypeVar("_Item")

Otherwise: TypeAlias = Literal["refuted", "inconclusive"]


@dataclass(frozen=True, kw_only=True)
class CheckContext:
    """Inputs of a check besides the run.

    `requested_steps` are steps requested by the user, `candidates` the runs among which partners are looked up,
    `not_given` those that lie beside the given ones, `check_twin` applies the same criteria to one, and
    with `strict` it may not differ in software and hardware.
    """

    check_twin: Callable[[Run], CheckedRun]
    requested_steps: int | None = None
    candidates: Sequence[Run] = ()
    not_given: Sequence[AbsentRun] = ()
    strict: bool = False

    @cached_property
    def _by_place(self) -> Mapping[object, Sequence[Run]]:
        return _grouped((_place(run), run) for run in self.candidates)

    @cached_property
    def _not_given(self) -> Mapping[object, Sequence[AbsentRun]]:
        return _grouped((_place(run), run) for run in self.not_given)

    def beside(self, run: Run) -> Sequence[Run]:
        """Return the candidates of the same size, seed and steps."""
        return self._by_place.get(_place(run), ())

    def not_given_beside(self, run: Run) -> Sequence[AbsentRun]:
        """Return the runs of the same size, seed and steps that lie beside those given."""
        return self._not_given.get(_place(run), ())

    def any_of_cell(self, run: Run, question: str, holds: Callable[[Run], bool]) -> bool:
        """Whether any candidate of the run's arm and size has a property, which is asked once."""
        key = (question, run.arm, run.size)
        if key not in self._answers:
            self._answers[key] = any(
                holds(one) for one in self.candidates if (one.arm, one.size) == (run.arm, run.size)
            )
        return self._answers[key]

    @cached_property
    def _answers(self) -> dict[tuple[object, ...], bool]:
        return {}


def _place(run: Run | AbsentRun) -> tuple[object, ...]:
    return run.size, run.seed, run.planned_steps


def _grouped(pairs: Iterable[tuple[object, _Item]]) -> dict[object, list[_Item]]:
    groups: dict[object, list[_Item]] = {}
    for key, item in pairs:
        groups.setdefault(key, []).append(item)
    return groups


@dataclass(frozen=True, kw_only=True)
class Seeds:
    """The planned seeds of one arm and size: the runs that are judged, and how many seeds are planned.

    `repeated` is whether a seed has several runs, so that runs are not seeds.
    """

    checked: Sequence[CheckedRun]
    planned: int
    repeated: bool = False


@dataclass(frozen=True)
class Finding:
    """The outcome of one check on one run, the reason, and the value that was compared (None: unknown or none).

    `brief` is the reason without the values of the run.
    """

    outcome: Outcome
    reason: str
    value: float | None = None
    brief: str = ""


def inconclusive(reason: str, value: float | None = None, brief: str = "") -> Finding:
    """Return an inconclusive finding."""
    return Finding(Outcome.INCONCLUSIVE, reason, value, brief)


def require_known(field: str, name: str, known: Collection[str]) -> None:
    """Raise ValueError for a name that is not in `known`, with the nearest of them as a suggestion."""
    if name not in known:
        raise ValueError(f"{field}: unknown {name!r}{hint_at(name, known)}")


class Check(Frozen):
    """One `[[checks]]` table of a criteria file.

    A kind of check overrides one or more of the judging methods; each returns None where the check does not apply.
    """

    about_completion: ClassVar[bool] = False
    """Whether it judges how a run ended. Such checks run first, and alone where the last row may be cut short."""

    kind: str
    name: str = Field("", description="shown in tables and reasons")

    @property
    def label(self) -> str:
        """The name, by default kind and measure."""
        return self.name or f"{self.kind} {self.condition.get('measure', '')}".rstrip()

    @property
    def short(self) -> str:
        """The name, by default the measure or the kind: what a summary calls it."""
        return self.name or self.condition.get("measure", self.kind)

    @property
    def condition(self) -> dict[str, Any]:
        """`measure`, `supports` and `refutes` of a CheckResult, as far as this kind has them."""
        return {}

    def judge_setup(self, run: Run) -> Finding | None:
        """Judge what is fixed before training, such as the probe; called for unfinished and failed runs too."""
        return None

    def judge(self, run: Run, context: CheckContext) -> Finding | None:
        """Judge the rows; called only after all checks about completion support, unless this is one of them."""
        return None

    @property
    def about_arm(self) -> bool:
        """Whether it makes a statement over seeds."""
        return False

    def can_decide(self, seeds: int, level: float) -> tuple[bool, bool]:
        """Whether so many seeds could support, and refute, the statement at a level; True where that is not known."""
        return True, True

    def judge_seeds(self, seeds: Seeds, context: CheckContext) -> Statement | None:
        """Judge an arm at one size over its seeds; called where `about_arm`."""
        return None

    def result(self, run: Run, finding: Finding) -> CheckResult:
        """Return the finding with check, run and thresholds."""
        return CheckResult(
            check=self.label, run=run.name, size=run.size, seed=run.seed, **vars(finding), **self.condition
        )


class MeasuredCheck(Check):
    measure: str

    @field_validator("measure")
    @classmethod
    def _check_measure(cls, value: str) -> str:
        require_known("measure", value, MEASURES)
        return value

    @property
    def condition(self) -> dict[str, Any]:
        return {"measure": self.measure}


class ThresholdCheck(MeasuredCheck):
    """Two thresholds, both strict; a value between them is inconclusive.

    Larger is better: `supported_above` and `refuted_below`. Smaller is better: `supported_below`, `refuted_above`.
    The value is the median of the `last` evaluations, without the one of the untrained model at step 1.
    """

    last: PositiveInt = 1
    supported_above: float | None = None
    refuted_below: float | None = None
    supported_below: float | None = None
    refuted_above: float | None = None

    @model_validator(mode="after")
    def _check_thresholds(self) -> Self:
        pairs = (("supported_above", "refuted_below"), ("supported_below", "refuted_above"))
        given = tuple(name for pair in pairs for name in pair if getattr(self, name) is not None)
        if given not in pairs:
            raise ValueError("give supported_above and refuted_below, or supported_below and refuted_above")
        if self.outcome(self.refuting) is Outcome.SUPPORTED:
            supported, refuted = given
            side = "more" if self.higher_is_better else "less"
            raise ValueError(f"{refuted} {self.refuting:g} is {side} than {supported} {self.supporting:g}")
        return self

    @property
    def higher_is_better(self) -> bool:
        return self.supported_above is not None

    @property
    def supporting(self) -> float:
        """The threshold beyond which a value supports."""
        return cast(float, self.supported_above if self.higher_is_better else self.supported_below)

    @property
    def refuting(self) -> float:
        """The threshold beyond which a value refutes."""
        return cast(float, self.refuted_below if self.higher_is_better else self.refuted_above)

    @property
    def supports(self) -> str:
        """The supporting condition as text, such as `> 50`."""
        return f"{'>' if self.higher_is_better else '<'} {number_text(self.supporting)}"

    @property
    def refutes(self) -> str:
        """The refuting condition as text, such as `< 10`."""
        return f"{'<' if self.higher_is_better else '>'} {number_text(self.refuting)}"

    @property
    def condition(self) -> dict[str, Any]:
        return {"measure": self.measure, "supports": self.supports, "refutes": self.refutes}

    def outcome(self, value: float) -> Outcome:
        """Compare a finite value with both thresholds."""
        sign = 1 if self.higher_is_better else -1
        if sign * value > sign * self.supporting:
            return Outcome.SUPPORTED
        return Outcome.REFUTED if sign * value < sign * self.refuting else Outcome.INCONCLUSIVE

    def compare(self, value: float, name: str) -> Finding:
        """Compare a value with both thresholds; one that is not finite refutes. `name` is its name in the reason."""
        if not math.isfinite(value):
            return Finding(Outcome.REFUTED, f"{name} is {value}", value, f"{self.short} is not finite")
        outcome = self.outcome(value)
        low, high = map(number_text, sorted((self.refuting, self.supporting)))
        comparison = {
            Outcome.SUPPORTED: self.supports,
            Outcome.REFUTED: self.refutes,
            Outcome.INCONCLUSIVE: f"is between {low} and {high}",
        }[outcome]
        brief = f"{self.short} {comparison.removeprefix('is ')}"
        return Finding(outcome, f"{name} {number_text(value)} {comparison}", value, brief)
