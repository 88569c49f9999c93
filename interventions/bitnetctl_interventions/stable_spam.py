"""Stable-SPAM, an Adam for low-precision training that clips and normalizes by its own history."""

import functools
import importlib.util
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from bitnetctl.config import RunConfig
from bitnetctl.errors import PluginError
from bitnetctl.intervention import Intervention, InterventionSettings

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer


class StableSpam(Intervention):
    """Clip each tensor's spikes (AdaClip), scale its gradient to its usual norm (AdaGN), and reset moments (MoRet).

    Clipping by the global norm is turned off, since these replace it; an intervention after this one may set it. Decay
    is decoupled. Needs pytorch-optimizer: pip install 'bitnetctl[optimizers]'.
    """

    summary = "Stable-SPAM instead of Adam: adaptive clipping, norm scaling and moment resets"
    source = "Huang et al. 2025, Stable-SPAM, arXiv 2502.17055, section 3"

    class Settings(InterventionSettings):
        """The decay rates of what is remembered of gradients, and the interval of resets."""

        gamma1: Annotated[float, Field(ge=0, lt=1, description="AdaGN: decay rate of the mean norm")] = 0.7
        gamma2: Annotated[float, Field(ge=0, lt=1, description="AdaGN: decay rate of the mean squared norm")] = 0.9
        gamma3: Annotated[float, Field(ge=0, lt=1, description="AdaClip: decay rate of the mean maximum")] = 0.999
        reset_every: Annotated[int, Field(gt=0, description="MoRet: steps between resets of the moments")] = 1000

    settings: Settings

    def configure(self, config: RunConfig) -> RunConfig:
        """Turn clipping by the global norm off."""
        if importlib.util.find_spec("pytorch_optimizer") is None:
            raise PluginError("stable-spam needs pytorch-optimizer: pip install 'bitnetctl[optimizers]'")
        return config.model_copy(update={"optimizer": config.optimizer.model_copy(update={"max_norm": None})})

    def make_optimizer(self, parameters: "Mapping[str, Tensor]", config: RunConfig) -> "Optimizer":
        """Return pytorch-optimizer's StableSPAM with the betas of the config."""
        group = {"params": [*parameters.values()], "total_step": 0}
        optimizer: Optimizer = _optimizer_class()(
            [group],
            betas=config.optimizer.betas,
            eps=config.optimizer.eps,
            gamma1=self.settings.gamma1,
            gamma2=self.settings.gamma2,
            theta=self.settings.gamma3,
            update_proj_gap=self.settings.reset_every,
        )
        return optimizer


@functools.cache
def _optimizer_class() -> Any:
    """Return StableSPAM with its number of steps in the groups, which checkpoints hold."""
    from pytorch_optimizer import StableSPAM
    from torch.optim import Optimizer

    class ResumableStableSPAM(StableSPAM):  # type: ignore[misc]
        state_dict = Optimizer.state_dict
        load_state_dict = Optimizer.load_state_dict

        @property
        def total_step(self) -> int:
            return int(self.param_groups[0]["total_step"])

        @total_step.setter
        def total_step(self, value: int) -> None:
            # it is set before there are groups
            for group in getattr(self, "param_groups", ()):
                group["total_step"] = value

    return ResumableStableSPAM
