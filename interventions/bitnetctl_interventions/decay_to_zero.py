"""A weight decay that falls linearly to zero."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from bitnetctl.config import RunConfig
from bitnetctl.intervention import Intervention, InterventionSettings


class DecayToZero(Intervention):
    """Let the weight decay fall linearly to 0 instead of dropping to it at the boundary.

    By default it falls over the whole run from the decay of stage 1, which is as much decay in total as a step to 0
    at half of the run. It is the weight decay; "D2Z" (arXiv 2502.15938) lowers the learning rate in the same way.
    """

    summary = "weight decay (not learning rate) falls linearly to 0, without a step"
    source = "variant of the two-stage decay: The Era of 1-bit LLMs: Training Tips, Code and FAQ, section 2"

    class Settings(InterventionSettings):
        """The decay at first, and where the fall begins and ends, as fractions of the steps."""

        initial: Annotated[
            float | None, Field(ge=0, description="weight decay before the fall; unset: that of stage 1")
        ] = None
        begin: Annotated[float, Field(ge=0, le=1, description="fraction of the steps before the fall")] = 0.0
        end: Annotated[float, Field(ge=0, le=1, description="fraction of the steps at which it is 0")] = 1.0

        @model_validator(mode="after")
        def _check_order(self) -> Self:
            if self.end < self.begin:
                raise ValueError(f"end {self.end} is before begin {self.begin}")
            return self

    settings: Settings

    def configure(self, config: RunConfig) -> RunConfig:
        """Give both stages the decay at first: the fall replaces the step."""
        initial = config.schedule.stage1_weight_decay if self.settings.initial is None else self.settings.initial
        schedule = config.schedule.model_copy(update={"stage1_weight_decay": initial, "stage2_weight_decay": initial})
        return config.model_copy(update={"schedule": schedule})

    def weight_decay(self, base: float, step: int, steps: int) -> float:
        """Return `base`, then a linear fall from it, then 0; a step where the fall has no length."""
        begin, end = self.settings.begin * steps, self.settings.end * steps
        if step <= begin:
            return base
        return 0.0 if step >= end else base * (end - step) / (end - begin)
