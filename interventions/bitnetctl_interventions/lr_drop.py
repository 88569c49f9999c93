"""The drop of the learning rate in the b1.58 recipe."""

from typing import Annotated

from pydantic import Field

from bitnetctl.config import RunConfig
from bitnetctl.intervention import Intervention, InterventionSettings


class LearningRateDrop(Intervention):
    """Decay linearly over the whole run, and drop to a second, lower linear decay at the boundary."""

    summary = "two linear decays of the learning rate, with a drop from the first to the second at the boundary"
    source = "The Era of 1-bit LLMs: Training Tips, Code and FAQ, section 2: 1.5e-3 → 1e-3 at 700M"

    class Settings(InterventionSettings):
        """The second decay."""

        stage2_peak: Annotated[
            float | None, Field(gt=0, description="peak of the second decay; unset: two thirds of the first peak")
        ] = None

    settings: Settings

    def configure(self, config: RunConfig) -> RunConfig:
        """Change the kind of the schedule."""
        peak = config.schedule.peak_learning_rate
        schedule = config.schedule.model_copy(
            update={"kind": "paper", "stage2_peak_learning_rate": self.settings.stage2_peak or peak * 2 / 3}
        )
        return config.model_copy(update={"schedule": schedule})
