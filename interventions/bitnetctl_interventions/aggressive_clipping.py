"""A small limit for the global gradient norm."""

from typing import Annotated

from pydantic import Field

from bitnetctl.config import RunConfig
from bitnetctl.intervention import Intervention, InterventionSettings


class AggressiveClipping(Intervention):
    """Clip the global gradient norm at a tenth of the usual value."""

    summary = "clip the global gradient norm at a tenth of the usual value"
    source = "Pascanu et al. 2013, arXiv 1211.5063; founding document, phase 4"

    class Settings(InterventionSettings):
        """The limit."""

        max_norm: Annotated[float, Field(gt=0, description="largest global gradient norm")] = 0.1

    settings: Settings

    def configure(self, config: RunConfig) -> RunConfig:
        """Set the limit."""
        optimizer = config.optimizer.model_copy(update={"max_norm": self.settings.max_norm})
        return config.model_copy(update={"optimizer": optimizer})
