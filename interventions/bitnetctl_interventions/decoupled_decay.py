"""Decoupled weight decay."""

from typing import Annotated, Literal

from pydantic import Field

from bitnetctl.config import RunConfig
from bitnetctl.intervention import Intervention, InterventionSettings


class DecoupledDecay(Intervention):
    """Use AdamW, whose decay is not divided by the square root of Adam's second moment."""

    summary = "AdamW instead of Adam; embeddings, head and norms without decay"
    source = "Loshchilov & Hutter 2019, arXiv 1711.05101"

    class Settings(InterventionSettings):
        """Which parameters decay."""

        decayed: Annotated[
            Literal["matrices", "all"],
            Field(description="matrices: all but embeddings, head and norms; all: every parameter"),
        ] = "matrices"

    settings: Settings

    def configure(self, config: RunConfig) -> RunConfig:
        """Set the optimizer and its exempt groups."""
        exempt = ("embeddings", "head", "norms") if self.settings.decayed == "matrices" else ()
        optimizer = config.optimizer.model_copy(update={"name": "adamw", "exempt": exempt})
        return config.model_copy(update={"optimizer": optimizer})
