"""Adaptive gradient clipping (AGC): clip the gradient of every unit relative to its weights."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from bitnetctl.intervention import Intervention, InterventionSettings

if TYPE_CHECKING:
    from torch import Tensor

_HEAD = "lm_head.weight"


class AdaptiveClipping(Intervention):
    """Keep the gradient norm of each output unit below a fraction of its weight norm, except in the head."""

    summary = "clip each unit's gradient at a fraction of its weight norm (AGC)"
    source = "Brock et al. 2021, arXiv 2102.06171, section 4"

    class Settings(InterventionSettings):
        """The fraction of the weight norm, and the smallest weight norm."""

        clipping: Annotated[float, Field(gt=0, description="largest gradient norm / weight norm")] = 0.01
        eps: Annotated[float, Field(gt=0, description="smallest weight norm that counts")] = 1e-3

    settings: Settings

    def transform_gradients(self, parameters: "Mapping[str, Tensor]") -> None:
        """Scale down the gradient of a matrix row, or of a vector, where its norm is too large."""
        import torch

        for name, parameter in parameters.items():
            gradient = parameter.grad
            if gradient is None or name == _HEAD:
                continue
            limit = torch.linalg.vector_norm(parameter, dim=-1, keepdim=True).clamp_(min=self.settings.eps)
            limit *= self.settings.clipping
            norm = torch.linalg.vector_norm(gradient, dim=-1, keepdim=True)
            gradient.mul_(torch.where(norm > limit, limit / norm.clamp(min=1e-6), 1.0))
