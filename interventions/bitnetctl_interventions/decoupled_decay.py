"""Decay apart from the gradient."""

from typing import Annotated, Literal

from pydantic import Field

from bitnetctl.config import RunConfig
from bitnetctl.intervention import Intervention, InterventionSettings


class DecoupledDecay(Intervention):
    """Use AdamW, so that the decay is not normalised by Adam's second moment."""

    summary = "AdamW instead of Adam; embeddings, head and norms without decay"
    source = "Loshchilov & Hutter 2019, arXiv 1711.05101"

    class Settings(InterventionSettings):
        """What is decayed."""

        decayed: Annotated[
            Literal["matrices", "all"], Field(description="matrices: not embeddings, head and norms; all: everything")
        ] = "matrices"

    settings: Settings

    def configure(self, config: RunConfig) -> RunConfig:
        """Set the optimizer and its exempt groups."""
        exempt = ("embeddings", "head", "norms") if self.settings.decayed == "matrices" else ()
        optimizer = config.optimizer.model_copy(update={"name": "adamw", "exempt": exempt})
        return config.model_copy(update={"optimizer": optimizer})
