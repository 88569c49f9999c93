"""Criteria declared in a TOML file: fields, validation, loading (examples in docs/criteria.md).

A file is a list of checks, each a `kind` with its parameters, and a rule for seeds. The kinds and their fields are the
classes in `bitnetctl.verdict.checks`; measures are the CSV's columns and `Skill`, `DiversityRatio` and `Coverage`. A
run is supported when every check that applies supports it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias, TypeVar, get_args

from pydantic import Field, model_validator

from bitnetctl.config import (
    Frozen,
    PositiveInt,
    builtin_names,
    canonical_hash,
    hint_at,
    read_toml,
    validated,
)
from bitnetctl.errors import ConfigError
from bitnetctl.records import Run
from bitnetctl.verdict.checks.base import Check, MeasuredCheck
from bitnetctl.verdict.checks.compared import ComparedCheck
from bitnetctl.verdict.checks.completion import FinishedCheck, FiniteCheck
from bitnetctl.verdict.checks.equivalent import EquivalentCheck
from bitnetctl.verdict.checks.interaction import InteractionCheck
from bitnetctl.verdict.checks.level import LevelCheck, ProbeCheck
from bitnetctl.verdict.checks.paired import PairedCheck
from bitnetctl.verdict.checks.trajectory import LastingCheck, RecoveryCheck, SteadyCheck
from bitnetctl.verdict.checks.twin import TwinCheck

AnyCheck: TypeAlias = (
    FiniteCheck
    | FinishedCheck
    | ProbeCheck
    | LevelCheck
    | RecoveryCheck
    | LastingCheck
    | SteadyCheck
    | TwinCheck
    | PairedCheck
    | EquivalentCheck
    | InteractionCheck
)
CheckT = TypeVar("CheckT", bound=Check)
KINDS: Mapping[str, type[AnyCheck]] = {cls.model_fields["kind"].default: cls for cls in get_args(AnyCheck)}
"""Every kind of check by its name."""


class SeedRule(Frozen):
    """How the outcomes of the seeds of one size become one outcome.

    `every`: the strictest seed decides, and there are at least `min_seeds`. `rate`: supported if the one-sided upper
    bound of the failure rate is below `max_failure_rate`, refuted if its lower bound is above; 1 - `confidence` is the
    error rate of either, shared by all arms that are decided together (`bitnetctl.verdict.rule`).
    """

    rule: Literal["every", "rate"] = "every"
    min_seeds: PositiveInt = 1
    max_failure_rate: Annotated[float, Field(ge=1e-6, le=1 - 1e-6)] = 0.5
    confidence: Annotated[float, Field(ge=0.5, lt=1.0)] = 0.95
    was_share: bool = Field(False, exclude=True, description="whether the file has the rule of version 0.1.0")

    @model_validator(mode="before")
    @classmethod
    def _read_share(cls, tree: Any) -> Any:
        """Read the rule of version 0.1.0, which controlled no error rate, as the one about the same share of seeds."""
        if not isinstance(tree, dict) or tree.get("rule") != "share":
            return tree
        share = tree.get("refuted_share", 0.5)
        if isinstance(share, int | float):
            share = min(max(share, 1e-6), 1 - 1e-6)
        others = {name: value for name, value in tree.items() if name not in ("refuted_share", "min_seeds")}
        return {**others, "rule": "rate", "max_failure_rate": share, "was_share": True}

    @property
    def error_rate(self) -> float:
        """Alpha: the largest probability of a wrong support, and of a wrong refutation."""
        return round(1.0 - self.confidence, 12)


class EvidenceRun(Frozen):
    """A run that a level of evidence requires."""

    size: PositiveInt
    steps: PositiveInt


class EvidenceLevel(Frozen):
    """A named amount of evidence; levels are declared in ascending order."""

    level: Annotated[str, Field(min_length=1)]
    runs: tuple[EvidenceRun, ...] = Field(min_length=1)

    def is_reached(self, finished: Sequence[Run]) -> bool:
        """Whether the finished runs include every one that this level requires."""
        return all(
            any(run.size == required.size and run.final_step >= required.steps for run in finished)
            for required in self.runs
        )


class Criteria(Frozen):
    """Declared criteria; `name` is that of the file and has no effect on verdicts."""

    name: str = "custom"
    title: str = ""
    seeds: SeedRule = SeedRule()
    checks: tuple[AnyCheck, ...] = Field(min_length=1)
    evidence: tuple[EvidenceLevel, ...] = ()

    @model_validator(mode="after")
    def _check_required(self) -> Self:
        for kind in ("finite", "finished"):
            if len(self.of_kind(KINDS[kind])) != 1:
                raise ValueError(f"checks: exactly one of kind {kind!r} is needed, or a failed run could pass")
        if not self.of_kind(LevelCheck) and not self.comparisons:
            raise ValueError("checks: at least one of kind 'level', 'paired', 'equivalent' or 'interaction' is needed")
        over_seeds = next((check for check in self.checks if check.about_arm), None)
        if over_seeds is not None and self.seeds.rule != "rate":
            raise ValueError(f'checks: {over_seeds.label!r} is a statement over seeds and needs seeds.rule = "rate"')
        labels = [check.label for check in self.checks]
        repeated = next((label for label in labels if labels.count(label) > 1), None)
        if repeated is not None:
            raise ValueError(f"checks: two are called {repeated!r}; give one a name")
        return self

    def of_kind(self, kind: type[CheckT]) -> tuple[CheckT, ...]:
        """Return the checks of one class, in their order."""
        return tuple(check for check in self.checks if isinstance(check, kind))

    @property
    def finite(self) -> FiniteCheck:
        """The one check of kind `finite`."""
        return self.of_kind(FiniteCheck)[0]

    @property
    def finished(self) -> FinishedCheck:
        """The one check of kind `finished`."""
        return self.of_kind(FinishedCheck)[0]

    @property
    def comparisons(self) -> tuple[ComparedCheck, ...]:
        """The checks that compare an arm with others."""
        return tuple(check for check in self.checks if isinstance(check, ComparedCheck))

    @property
    def references(self) -> tuple[str, ...]:
        """The arms that checks name to compare others with, without repeats."""
        return tuple(dict.fromkeys(check.against for check in self.comparisons))

    def is_reference(self, arm: str) -> bool:
        """Whether an arm is one that others are compared with; nothing is claimed about it."""
        return any(check.is_compared_with(arm) for check in self.comparisons)

    @property
    def measures(self) -> tuple[str, ...]:
        """The measures of all checks, without repeats."""
        return tuple(dict.fromkeys(check.measure for check in self.checks if isinstance(check, MeasuredCheck)))

    @property
    def hash(self) -> str:
        """SHA-256 of all fields that are not defaults, except names and titles."""
        tree = self.model_dump(mode="json", exclude={"name", "title", "checks"}, exclude_defaults=True)
        checks = [
            {"kind": check.kind, **check.model_dump(mode="json", exclude={"name"}, exclude_defaults=True)}
            for check in self.checks
        ]
        return canonical_hash({**tree, "checks": checks})


def criteria_names() -> list[str]:
    """Return the names of the built-in criteria."""
    return builtin_names("bitnetctl.verdict", "builtin")


def load_criteria(name: str | Path) -> Criteria:
    """Read built-in criteria or a `FILE.toml`; raises ConfigError with one line that names file and field."""
    tree, label = read_toml(str(name), "criteria", "bitnetctl.verdict", "builtin")
    return parse_criteria(tree, name=label, source=f"criteria {name}")


def parse_criteria(tree: Mapping[str, Any], *, name: str = "custom", source: str = "criteria") -> Criteria:
    """Validate the tree of a TOML file; raises ConfigError with one line that names the field."""
    checks = tree.get("checks", [])
    if not isinstance(checks, list):
        raise ConfigError(f"{source}: checks: expected [[checks]] tables, got {checks!r}")
    parsed = [_parse_check(check, f"{source}: checks.{index}") for index, check in enumerate(checks, start=1)]
    if "name" in tree:
        raise ConfigError(f"{source}: unknown field 'name'; the file's name is the name, 'title' describes it")
    return validated(Criteria, {**tree, "checks": parsed, "name": name}, source)


def _parse_check(tree: Any, source: str) -> AnyCheck:
    if not isinstance(tree, dict):
        raise ConfigError(f"{source}: expected a table, got {tree!r}")
    kind = tree.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        hint = hint_at(str(kind), KINDS)
        raise ConfigError(f"{source}: kind: " + (f"unknown {kind!r}{hint}" if "kind" in tree else f"missing{hint}"))
    return validated(KINDS[kind], tree, f"{source} ({kind})")
