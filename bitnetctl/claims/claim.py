"""A claim declared in a TOML file: fields, validation, loading (docs/claims.md). No torch here."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, JsonValue, field_validator

from bitnetctl.config import Frozen, builtin_names, canonical_arm, canonical_hash, read_toml, validated
from bitnetctl.errors import ConfigError
from bitnetctl.verdict import Criteria, Outcome, parse_criteria

PACKAGE, FOLDER = "bitnetctl.claims", "builtin"
"""Where the built-in claims are."""

Text = Annotated[str, Field(min_length=1)]

_INVALID = "Nothing: the set-up could not have shown it."


class Conclusions(Frozen):
    """What would be concluded from each outcome, written before looking."""

    supported: Text
    refuted: Text
    inconclusive: Text

    def of(self, outcome: Outcome) -> str:
        """Return the conclusion of an outcome; from an invalid set-up nothing follows."""
        return {
            Outcome.SUPPORTED: self.supported,
            Outcome.REFUTED: self.refuted,
            Outcome.INCONCLUSIVE: self.inconclusive,
        }.get(outcome, _INVALID)


class Claim(Frozen):
    """A claim, and how it is tested; `name` is that of the file and has no effect on verdicts.

    `plan` has the fields of a plan of `bitnetctl sweep`, validated where it is used. `arm` is the one that is judged by
    `criteria`, the only one that anything is claimed about.
    """

    name: str = "custom"
    title: Text
    source: Text = Field(description="who says so, where")
    claimed: Text = Field(description="what was said, in one sentence")
    scale: str = Field("", description="where it was made: sizes, tokens; empty: that of the plan")
    arm: Text = Field(description="the judged arm, one of the plan's")
    plan: dict[str, JsonValue]
    criteria: Criteria
    conclusions: Conclusions
    limits: tuple[Text, ...] = Field((), description="what the verdict does not say")

    @field_validator("arm")
    @classmethod
    def _check_arm(cls, value: str) -> str:
        return canonical_arm(value)

    @property
    def hash(self) -> str:
        """SHA-256 of what decides: plan, arm and criteria, texts apart."""
        plan = {name: value for name, value in self.plan.items() if name != "description"}
        return canonical_hash({"plan": plan, "arm": self.arm, "criteria": self.criteria.hash})


def claim_names() -> list[str]:
    """Return the names of the built-in claims."""
    return builtin_names(PACKAGE, FOLDER)


def load_claim(name: str | Path) -> Claim:
    """Read a built-in claim or a `FILE.toml`; raises ConfigError with one line that names file and field."""
    tree, label = read_toml(str(name), "claim", PACKAGE, FOLDER)
    return parse_claim(tree, name=label, source=f"claim {name}")


def parse_claim(tree: Mapping[str, Any], *, name: str = "custom", source: str = "claim") -> Claim:
    """Validate the tree of a TOML file; raises ConfigError with one line that names the field."""
    if "name" in tree:
        raise ConfigError(f"{source}: unknown field 'name'; the file's name is the name, 'title' describes it")
    criteria = tree.get("criteria")
    if not isinstance(criteria, dict):
        given = f"got {criteria!r}" if "criteria" in tree else "missing"
        raise ConfigError(f"{source}: criteria: expected a table [criteria] as in a criteria file, {given}")
    parsed = parse_criteria(criteria, name=name, source=f"{source}: criteria")
    claim = validated(Claim, {**tree, "criteria": parsed, "name": name}, source)
    if parsed.is_reference(claim.arm):
        raise ConfigError(
            f"{source}: arm: the criteria compare others with {claim.arm} and claim nothing about it; judge another arm"
        )
    return claim
