"""Check `interaction`: an arm gains more over another than it does where a modifier is added to both."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from bitnetctl.config import canonical_arm, split_arm
from bitnetctl.units import listed
from bitnetctl.verdict.checks.compared import beyond, gain
from bitnetctl.verdict.checks.pair_tests import Pairs
from bitnetctl.verdict.checks.paired import ImprovementCheck
from bitnetctl.verdict.outcome import number_text
from bitnetctl.verdict.rule import Levels


class InteractionCheck(ImprovementCheck):
    """The gain of an arm over `against` is larger, by more than `margin`, than with `modifier` added to both.

    The value of a seed takes four runs of one size and length: (arm - against) - (arm+modifier - against+modifier),
    signed so that larger is better. The arms with the modifier are named by their interventions, in any order, and with
    the settings that it states. A gain is infinite where one of two runs failed, and 0 where both did. A seed with two
    infinite gains of one sign helps neither side.
    """

    unit: ClassVar[str] = "seed"

    kind: Literal["interaction"] = "interaction"
    modifier: Annotated[str, Field(min_length=1)]

    @field_validator("modifier")
    @classmethod
    def _check_modifier(cls, value: str) -> str:
        return canonical_arm(value)

    @model_validator(mode="after")
    def _check_arms(self) -> Self:
        if not split_arm(self.modifier):
            raise ValueError("modifier: name the intervention that is added to both arms")
        if self._has_modifier(self.against):
            raise ValueError(f"against {self.against!r} has the modifier {self.modifier!r} already")
        return self

    @property
    def supports(self) -> str:
        more = f"over {number_text(self.margin)} more" if self.margin else "more"
        return f"improved over {self.against} by {more} than with {self.modifier}"

    def predicate(self, *, single: bool) -> str:
        """Say what is claimed of the runs of an arm."""
        name = self.aggregate.name(self.measure)
        verb, by_margin = "gains" if single else "gain", f",{self.by_margin}" if self.margin else ""
        return f"{verb} more over `{self.against}` in {name} than with `{self.modifier}` added to both{by_margin}"

    def is_compared_with(self, arm: str) -> bool:
        """Whether an arm is `against` or has the modifier."""
        return arm == self.against or self._has_modifier(arm)

    def partner_arms(self, arm: str) -> Sequence[Callable[[str], bool]]:
        """Return predicates for `against`, the arm with the modifier, and `against` with the modifier."""
        return (
            lambda other: other == self.against,
            lambda other: self._is_modified(other, arm),
            lambda other: self._is_modified(other, self.against),
        )

    def compare(self, values: Sequence[float]) -> tuple[float, float]:
        """Return by how much the difference of the gains exceeds the margin; anything where both are infinite alike."""
        ours, theirs, ours_modified, theirs_modified = values
        plain, modified = gain(ours, theirs), gain(ours_modified, theirs_modified)
        if plain == modified and math.isinf(plain):
            return -math.inf, math.inf
        value = beyond(plain - modified, self.margin, values)
        return value, value

    def median_text(self, value: float) -> str:
        """Return the median difference of the gains as text."""
        return f"median difference of the gains {number_text(value + self.margin)}"

    def margin_and_bounds(self, pairs: Pairs, levels: Levels) -> dict[str, Any]:
        """Return modifier, margin and bounds."""
        return {"modifier": self.modifier, **super().margin_and_bounds(pairs, levels)}

    def _needs(self) -> str:
        return f"a seed takes four finished runs of equal size and steps, two of them with {self.modifier}"

    def _failures(self, failed: Sequence[int]) -> str:
        names = (
            "of the arm's",
            f"of {self.against}'s",
            f"of the arm's with {self.modifier}",
            f"of {self.against}'s with {self.modifier}",
        )
        return f"{listed([f'{count} {name}' for count, name in zip(failed, names, strict=True)])} failed"

    def _has_modifier(self, arm: str) -> bool:
        return Counter(split_arm(self.modifier)) <= Counter(split_arm(arm))

    def _is_modified(self, arm: str, of: str) -> bool:
        return sorted(split_arm(arm)) == sorted([*split_arm(of), *split_arm(self.modifier)])
