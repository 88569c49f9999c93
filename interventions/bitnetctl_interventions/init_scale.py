"""Small normal initialisation."""

from typing import Annotated

from pydantic import Field

from bitnetctl.config import RunConfig
from bitnetctl.intervention import Intervention, InterventionSettings


class InitScale(Intervention):
    """Draw embeddings and matrices from N(0, std²) instead of torch's defaults."""

    summary = "draw matrices and embeddings from a narrow normal distribution"
    source = "Radford et al. 2019 (GPT-2), section 2.3: std 0.02"

    class Settings(InterventionSettings):
        """The standard deviation."""

        std: Annotated[float, Field(gt=0, description="standard deviation")] = 0.02

    settings: Settings

    def configure(self, config: RunConfig) -> RunConfig:
        """Set the initialisation."""
        model = config.model.model_copy(update={"initialization": "normal", "init_std": self.settings.std})
        return config.model_copy(update={"model": model})
