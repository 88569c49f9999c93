"""Periodic reset of the optimizer's moments."""

from typing import Annotated

from pydantic import Field

from bitnetctl.config import RunConfig
from bitnetctl.intervention import Intervention, InterventionSettings


class MomentumReset(Intervention):
    """Zero both moments of the optimizer and its step count at a fixed interval."""

    summary = "zero the optimizer's moments at a fixed interval"
    source = "Huang et al. 2025, Stable-SPAM, arXiv 2502.17055, section 3 (MoRet)"

    class Settings(InterventionSettings):
        """The interval."""

        every: Annotated[int, Field(gt=0, description="steps between resets")] = 500

    settings: Settings

    def configure(self, config: RunConfig) -> RunConfig:
        """Set the interval."""
        optimizer = config.optimizer.model_copy(update={"reset_moments_every_steps": self.settings.every})
        return config.model_copy(update={"optimizer": optimizer})
