"""Lion: the sign of the momentum."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from bitnetctl.config import RunConfig
from bitnetctl.intervention import Intervention, InterventionSettings

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer


class Lion(Intervention):
    """Step every parameter by the sign of its momentum, with decoupled decay.

    Every step is as large as the learning rate, so the paper advises a third to a tenth of AdamW's, and a decay that
    is larger in turn.
    """

    summary = "Lion instead of Adam: the sign of the momentum, at a lower learning rate"
    source = "Chen et al. 2023, Symbolic Discovery of Optimization Algorithms, arXiv 2302.06675, sections 3 and 5"

    class Settings(InterventionSettings):
        """The two decay rates, and learning rate and weight decay in those of AdamW."""

        beta1: Annotated[float, Field(ge=0, lt=1, description="weight of the momentum in the update")] = 0.9
        beta2: Annotated[float, Field(ge=0, lt=1, description="decay rate of the momentum")] = 0.99
        lr_factor: Annotated[float, Field(gt=0, description="learning rate / scheduled learning rate")] = 0.3
        weight_decay_factor: Annotated[
            float | None,
            Field(ge=0, description="weight decay / scheduled one; unset: 1 / lr_factor, which keeps rate · decay"),
        ] = None

    settings: Settings

    def make_optimizer(self, parameters: "Mapping[str, Tensor]", config: RunConfig) -> "Optimizer":
        """Return Lion over all parameters."""
        from bitnetctl_interventions import optimizers

        settings = self.settings
        decay = 1 / settings.lr_factor if settings.weight_decay_factor is None else settings.weight_decay_factor
        group = {"params": [*parameters.values()], "lr_factor": settings.lr_factor, "weight_decay_factor": decay}
        return optimizers.Lion([group], settings.beta1, settings.beta2)
