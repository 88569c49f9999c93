"""A higher learning rate."""

from typing import Annotated

from pydantic import Field

from bitnetctl.config import RunConfig
from bitnetctl.intervention import Intervention, InterventionSettings
from bitnetctl_interventions.reduced_lr import scaled_rate


class HigherRate(Intervention):
    """Multiply the whole learning-rate schedule, as ternary models are said to want."""

    summary = "the learning-rate schedule times a factor, by default 2"
    source = (
        "Wang et al. 2023 (BitNet), arXiv 2310.11453, section 2.2: large learning rate; "
        "The Era of 1-bit LLMs: Training Tips, Code and FAQ, section 2"
    )

    class Settings(InterventionSettings):
        """The factor."""

        factor: Annotated[float, Field(gt=0, description="factor on the learning rate of every step")] = 2.0

    settings: Settings

    def configure(self, config: RunConfig) -> RunConfig:
        """Scale both peaks by the factor, which keeps the shape of the schedule."""
        return scaled_rate(config, self.settings.factor)
