"""Adaptive gradient clipping (AGC): clip the gradient of every unit relative to its weights."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from bitnetctl.intervention import Intervention, InterventionSettings

if TYPE_CHECKING:
    from torch import Tensor

_HEAD = "lm_head.weight"
# values of a tensor from which copying it takes longer than operations of its own
_LARGE = {"cpu": 2**14, "cuda": 2**20}


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

        clipped = [weight for name, weight in parameters.items() if weight.grad is not None and name != _HEAD]
        for group in _of_equal_shape(clipped):
            weights = group[0].unsqueeze(0) if len(group) == 1 else torch.stack(group)
            of_group = [weight.grad for weight in group if weight.grad is not None]
            gradients = of_group[0].unsqueeze(0) if len(group) == 1 else torch.stack(of_group)
            limit = torch.linalg.vector_norm(weights, dim=-1, keepdim=True).clamp_(min=self.settings.eps)
            limit *= self.settings.clipping
            norm = torch.linalg.vector_norm(gradients, dim=-1, keepdim=True)
            gradients *= torch.where(norm > limit, limit / norm.clamp(min=1e-6), 1.0)
            if len(group) > 1:
                torch._foreach_copy_(of_group, list(gradients.unbind()))


def _of_equal_shape(tensors: "Sequence[Tensor]") -> "list[list[Tensor]]":
    """Return the tensors in groups that are stacked, so that a GPU gets one launch for each; large ones are alone."""
    groups: dict[tuple[int, ...], list[Tensor]] = {}
    for index, tensor in enumerate(tensors):
        is_large = tensor.numel() > _LARGE.get(tensor.device.type, 0)
        groups.setdefault((index if is_large else -1, *tensor.shape), []).append(tensor)
    return list(groups.values())
