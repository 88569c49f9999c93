"""Criteria as data: what a TOML file may declare, and how it is read.

A file is a list of checks, each a `kind` with its parameters, and a rule for seeds:

    title = "More than 100 distinct predictions, three seeds"

    [seeds]
    rule = "share"            # or "every"
    min_seeds = 3

    [[checks]]
    kind = "finite"           # required: a crash or a NaN refutes

    [[checks]]
    kind = "finished"         # required: an unfinished run decides nothing

    [[checks]]
    kind = "level"
    measure = "UniquePredictions"
    last = 3
    supported_above = 100
    refuted_below = 20

The kinds and their fields are the classes below; measures are the CSV's columns and `Skill`, `DiversityRatio` and
`Coverage`. A run is supported when every check that applies supports it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeAlias, TypeVar

from pydantic import Field, ValidationError, field_validator, model_validator

from bitnetctl.config import (
    Fraction,
    Frozen,
    Positive,
    PositiveInt,
    builtin_names,
    canonical_hash,
    near_miss,
    read_toml,
    validation_line,
)
from bitnetctl.errors import ConfigError
from bitnetctl.records import NAMES
from bitnetctl.records.metrics import MEASURES
from bitnetctl.verdict.outcome import Outcome, format_value

Otherwise: TypeAlias = Literal["refuted", "inconclusive"]


class _Check(Frozen):
    """What every check has: a name for tables, by default its kind and measure."""

    kind: str
    name: str = Field("", description="shown in tables and reasons")

    @property
    def label(self) -> str:
        """Name, or kind and measure."""
        return self.name or " ".join(text for text in (self.kind, getattr(self, "measure", "")) if text)


class _Measured(_Check):
    """A check of one measure."""

    measure: str

    @field_validator("measure")
    @classmethod
    def _check_measure(cls, value: str) -> str:
        if value not in MEASURES:
            raise ValueError(
                f"measure: unknown {value!r}{near_miss(value, MEASURES) or '; known: ' + ', '.join(MEASURES)}"
            )
        return value


class _Threshold(_Measured):
    """Two thresholds, both strict, with what lies between them inconclusive.

    Larger is better: `supported_above` and `refuted_below`. Smaller is better: `supported_below`, `refuted_above`.
    The figure is the median of the `last` evaluations, the untrained one at step 1 left out.
    """

    last: PositiveInt = 1
    supported_above: float | None = None
    refuted_below: float | None = None
    supported_below: float | None = None
    refuted_above: float | None = None

    @model_validator(mode="after")
    def _check_thresholds(self) -> Self:
        rising = (self.supported_above, self.refuted_below)
        falling = (self.supported_below, self.refuted_above)
        pairs = [pair for pair in (rising, falling) if pair != (None, None)]
        if len(pairs) != 1 or None in pairs[0]:
            raise ValueError("give supported_above and refuted_below, or supported_below and refuted_above")
        if not self.higher_is_better and self.refuting < self.supporting:
            raise ValueError(f"refuted_above {self.refuting:g} is less than supported_below {self.supporting:g}")
        if self.higher_is_better and self.refuting > self.supporting:
            raise ValueError(f"refuted_below {self.refuting:g} is more than supported_above {self.supporting:g}")
        return self

    @property
    def higher_is_better(self) -> bool:
        """Which way the thresholds point."""
        return self.supported_above is not None

    @property
    def supporting(self) -> float:
        """The threshold on the good side."""
        return _given(self.supported_above, self.supported_below)

    @property
    def refuting(self) -> float:
        """The threshold on the bad side."""
        return _given(self.refuted_below, self.refuted_above)

    @property
    def supports(self) -> str:
        """The supporting condition in signs, such as `> 50`."""
        return f"{'>' if self.higher_is_better else '<'} {format_value(self.supporting)}"

    @property
    def refutes(self) -> str:
        """The refuting condition in signs, such as `< 10`."""
        return f"{'<' if self.higher_is_better else '>'} {format_value(self.refuting)}"

    def outcome(self, figure: float) -> Outcome:
        """Compare a finite figure with both thresholds."""
        sign = 1 if self.higher_is_better else -1
        if sign * figure > sign * self.supporting:
            return Outcome.SUPPORTED
        return Outcome.REFUTED if sign * figure < sign * self.refuting else Outcome.INCONCLUSIVE


class FiniteCheck(_Check):
    """A crash by the manifest refutes, and so do NaN and infinity in a loss, UniquePredictions or one of `columns`.

    An unknown cell of `columns` is inconclusive.
    """

    kind: Literal["finite"] = "finite"
    columns: tuple[str, ...] = Field(("Loss", "UniquePredictions"), min_length=1)

    @field_validator("columns")
    @classmethod
    def _check_columns(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name not in NAMES[1:]:
                raise ValueError(f"columns: unknown {name!r}{_hint(name)}")
        return value


class FinishedCheck(_Check):
    """A run that is torn, short of its plan or short of `min_steps` is inconclusive, and no level is judged on it.

    Whoever asks for other steps explicitly is judged at those, with a note. Without `min_steps` the plan must be known
    from the manifest or the file's name, or steps asked for.
    """

    kind: Literal["finished"] = "finished"
    min_steps: PositiveInt | None = None


class ProbeCheck(_Check):
    """A probe too small to tell health from collapse makes the verdict invalid; an unknown one is inconclusive."""

    kind: Literal["probe"] = "probe"
    min_positions: PositiveInt = 1024
    min_bigram_unique: PositiveInt = 1


class LevelCheck(_Threshold):
    """A measure against two thresholds, at the end or at the end of stage 1 (`at = "boundary"`).

    A supporting threshold that cannot be reached makes the verdict invalid.
    """

    kind: Literal["level"] = "level"
    at: Literal["end", "boundary"] = "end"


class RecoveryCheck(_Measured):
    """The first evaluation of stage 2 must be at least `factor` times the last of stage 1, where that is below
    `collapsed_below`; a run that stage 1 did not collapse has nothing to recover from."""

    kind: Literal["recovery"] = "recovery"
    collapsed_below: Positive
    factor: Annotated[float, Field(gt=1.0)] = 2.0
    otherwise: Otherwise = "inconclusive"


class LastingCheck(_Measured):
    """The last evaluation must be at least `share` of the median of stage 2."""

    kind: Literal["lasting"] = "lasting"
    share: Fraction = 0.5
    otherwise: Otherwise = "refuted"


class SteadyCheck(_Measured):
    """Stage 2 must have fewer than `reversals` turns between extremes that differ by at least `factor`."""

    kind: Literal["steady"] = "steady"
    factor: Annotated[float, Field(gt=1.0)] = 2.0
    reversals: PositiveInt = 3
    otherwise: Otherwise = "refuted"


class TwinCheck(_Threshold):
    """The measure minus that of the twin: the run of the same size, seed and steps that has `intervention` besides.

    A run without a twin is not checked. A twin that fails the other checks makes the verdict invalid, since the set-up
    is at fault; the thresholds are for the difference, run minus twin.
    """

    kind: Literal["twin"] = "twin"
    measure: str = "HeldOutLoss"
    intervention: Annotated[str, Field(min_length=1)]


Check: TypeAlias = (
    FiniteCheck | FinishedCheck | ProbeCheck | LevelCheck | RecoveryCheck | LastingCheck | SteadyCheck | TwinCheck
)
_CLASSES: tuple[type[Check], ...] = (
    FiniteCheck,
    FinishedCheck,
    ProbeCheck,
    LevelCheck,
    RecoveryCheck,
    LastingCheck,
    SteadyCheck,
    TwinCheck,
)
CheckT = TypeVar("CheckT", bound=Check)
KINDS: Mapping[str, type[Check]] = {cls.model_fields["kind"].default: cls for cls in _CLASSES}
"""Every kind of check by its name."""


class SeedRule(Frozen):
    """How the seeds of one size make one outcome.

    `every`: the strictest seed decides. `share`: refuted when at least `refuted_share` of the seeds fail; supported
    when every seed supports, there are `min_seeds`, and for each level the one-sided Student-t bound of the mean over
    seeds, at `confidence`, is beyond the supporting threshold too.
    """

    rule: Literal["every", "share"] = "every"
    min_seeds: PositiveInt = 1
    refuted_share: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    confidence: Annotated[float, Field(ge=0.5, lt=1.0)] = 0.95

    @model_validator(mode="after")
    def _check_bound(self) -> Self:
        if self.rule == "share" and self.min_seeds < 2:
            raise ValueError('seeds.min_seeds: a bound over seeds (rule = "share") takes at least 2')
        return self


class EvidenceRun(Frozen):
    """A run that a level of evidence asks for."""

    size: PositiveInt
    steps: PositiveInt


class EvidenceLevel(Frozen):
    """A named amount of evidence; levels are declared from the least to the most."""

    level: Annotated[str, Field(min_length=1)]
    runs: tuple[EvidenceRun, ...] = Field(min_length=1)


class Criteria(Frozen):
    """Declared criteria; `name` is the file's and decides nothing."""

    REQUIRED: ClassVar[tuple[str, ...]] = ("finite", "finished")

    name: str = "custom"
    title: str = ""
    seeds: SeedRule = SeedRule()
    checks: tuple[Check, ...] = Field(min_length=1)
    evidence: tuple[EvidenceLevel, ...] = ()

    @model_validator(mode="after")
    def _check_required(self) -> Self:
        for kind in self.REQUIRED:
            if len(self.of_kind(KINDS[kind])) != 1:
                raise ValueError(f"checks: exactly one of kind {kind!r} is needed, or a failed run could pass")
        if not self.of_kind(LevelCheck):
            raise ValueError("checks: at least one of kind 'level' is needed")
        labels = [check.label for check in self.checks]
        repeated = next((label for label in labels if labels.count(label) > 1), None)
        if repeated is not None:
            raise ValueError(f"checks: two are called {repeated!r}; give one a name")
        return self

    def of_kind(self, kind: type[CheckT]) -> tuple[CheckT, ...]:
        """Return the checks of one class, in their order."""
        return tuple(check for check in self.checks if isinstance(check, kind))

    @property
    def finished(self) -> FinishedCheck:
        """The one check that says when a run is finished."""
        return self.of_kind(FinishedCheck)[0]

    @property
    def measures(self) -> tuple[str, ...]:
        """Every measure that decides, without repeats."""
        return tuple(dict.fromkeys(check.measure for check in self.checks if isinstance(check, _Measured)))

    @property
    def hash(self) -> str:
        """SHA-256 of everything that decides; names, titles and comments do not, and neither do defaults."""
        tree = self.model_dump(mode="json", exclude={"name", "title", "checks"}, exclude_defaults=True)
        checks = [
            {"kind": check.kind, **check.model_dump(mode="json", exclude={"name"}, exclude_defaults=True)}
            for check in self.checks
        ]
        return canonical_hash({**tree, "checks": checks})


def criteria_names() -> list[str]:
    """Names of the built-in criteria."""
    return builtin_names("bitnetctl.verdict", "builtin")


def load_criteria(name: str | Path) -> Criteria:
    """Read built-in criteria or a `FILE.toml`; raises ConfigError with one line that names file and field."""
    tree, label = read_toml(str(name), "criteria", "bitnetctl.verdict", "builtin")
    return parse_criteria(tree, name=label, source=f"criteria {name}")


def parse_criteria(tree: Mapping[str, Any], *, name: str = "custom", source: str = "criteria") -> Criteria:
    """Validate a plain tree; raises ConfigError with one line that names the field."""
    checks = tree.get("checks", [])
    if not isinstance(checks, list):
        raise ConfigError(f"{source}: checks: expected [[checks]] tables, got {checks!r}")
    parsed = [_parse_check(check, f"{source}: checks.{index}") for index, check in enumerate(checks, start=1)]
    if "name" in tree:
        raise ConfigError(f"{source}: unknown field 'name'; the file's name is the name, 'title' describes it")
    try:
        return Criteria.model_validate({**tree, "checks": parsed, "name": name})
    except ValidationError as error:
        raise ConfigError(f"{source}: {validation_line(error, Criteria)}") from error


def _parse_check(tree: Any, source: str) -> Check:
    if not isinstance(tree, dict):
        raise ConfigError(f"{source}: expected a table, got {tree!r}")
    kind = tree.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        hint = near_miss(str(kind), KINDS) or f"; known: {', '.join(KINDS)}"
        raise ConfigError(f"{source}: kind: " + (f"unknown {kind!r}{hint}" if "kind" in tree else f"missing{hint}"))
    try:
        return KINDS[kind].model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{source} ({kind}): {validation_line(error, KINDS[kind])}") from error


def _hint(measure: str) -> str:
    return near_miss(measure, MEASURES) or f"; known: {', '.join(MEASURES)}"


def _given(first: float | None, second: float | None) -> float:
    if first is not None:
        return first
    assert second is not None, "validated"
    return second
