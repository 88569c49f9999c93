"""A lower learning rate."""

from typing import Annotated

from pydantic import Field

from bitnetctl.config import RunConfig
from bitnetctl.errors import ConfigError
from bitnetctl.intervention import Intervention, InterventionSettings


class ReducedLearningRate(Intervention):
    """Scale the whole learning-rate schedule to a lower peak."""

    summary = "scale the learning-rate schedule to a lower peak"
    source = "founding document, phase 3: peak 5e-4 instead of 1.5e-3"

    class Settings(InterventionSettings):
        """The new peak, or a factor on the old one."""

        peak: Annotated[float, Field(gt=0, description="new peak learning rate")] = 5e-4
        factor: Annotated[float | None, Field(gt=0, description="factor on the peak; overrides `peak`")] = None

    settings: Settings

    def configure(self, config: RunConfig) -> RunConfig:
        """Scale both peaks by the same factor, which keeps the shape of the schedule."""
        schedule = config.schedule
        if not self.settings.factor and not schedule.peak_learning_rate:
            raise ConfigError("reduced-lr: the recipe's peak learning rate is 0; give a factor")
        return scaled_rate(config, self.settings.factor or self.settings.peak / schedule.peak_learning_rate)


def scaled_rate(config: RunConfig, factor: float) -> RunConfig:
    """Return the config with every learning rate of its schedule times a factor."""
    schedule = config.schedule
    scaled = schedule.model_copy(
        update={
            "peak_learning_rate": schedule.peak_learning_rate * factor,
            "stage2_peak_learning_rate": schedule.stage2_peak_learning_rate * factor,
        }
    )
    return config.model_copy(update={"schedule": scaled})
