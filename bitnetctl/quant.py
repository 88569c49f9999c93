"""Ternary weights and int8 activations with straight-through gradients: the arithmetic of BitNet b1.58.

Shapes: R runs, L layers, O outputs, I inputs of a matrix; any trailing feature dimension F for activations.
Source: "The Era of 1-bit LLMs" (arXiv 2402.17764) section 2 and its "Training Tips, Code and FAQ"; the
straight-through estimator is Bengio et al. 2013 (arXiv 1308.3432).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

SCALE_FLOOR = 1e-5
INT8_MAX = 127


def ternary_scale(weight_RLOI: Tensor, segments: Sequence[int]) -> Tensor:
    """Return 1 / max(mean |w|, 1e-5) for each row, the mean taken over the row's segment of outputs.

    `segments` are the heights, summing to O, of the projections fused in the matrix: [O] shares one scale.
    Shape: [R, L, O, 1].
    """
    row_mean_RLO = weight_RLOI.abs().mean(-1)
    parts = [
        part.mean(-1, keepdim=True).expand(-1, -1, part.shape[-1])
        for part in row_mean_RLO.split(list(segments), dim=-1)
    ]
    mean_RLO = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
    return mean_RLO.clamp(min=SCALE_FLOOR).reciprocal().unsqueeze(-1)


def ternary_codes(weight_RLOI: Tensor, segments: Sequence[int]) -> Tensor:
    """Return the ternary values in {-1, 0, 1} of a weight, as int8 of the same shape."""
    return _round_clamp(weight_RLOI * ternary_scale(weight_RLOI, segments)).to(torch.int8)


def _round_clamp(scaled: Tensor) -> Tensor:
    return scaled.round_().clamp_(-1, 1)


class _TernaryWeights(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight_RLOI: Tensor, segments: Sequence[int], strength_R: Tensor | None) -> Tensor:
        scale_RLO1 = ternary_scale(weight_RLOI, segments)
        quantized = _round_clamp(weight_RLOI * scale_RLO1).div_(scale_RLO1)
        if strength_R is None:
            return quantized
        return torch.lerp(weight_RLOI, quantized, strength_R.view(-1, 1, 1, 1))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0], None, None


class _Int8Activations(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, strength_R: Tensor | None) -> Tensor:
        # abs and amax in two passes are ten times faster on the CPU than the infinity norm in one
        scale = x.abs().amax(-1, keepdim=True)
        scale = scale.clamp_(min=SCALE_FLOOR).reciprocal_().mul_(INT8_MAX)
        # |x| * 127 / max|x| cannot round beyond ±127, so the formula's clamp to -128…127 never binds
        quantized: Tensor = (x * scale).round_().div_(scale)
        if strength_R is None:
            return quantized
        blended: Tensor = torch.lerp(x, quantized, strength_R.view(-1, *(1,) * (x.dim() - 1)))
        return blended

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


def ternary_weights(weight_RLOI: Tensor, segments: Sequence[int], strength_R: Tensor | None = None) -> Tensor:
    """Return round(clamp(w·s, ±1)) / s with s = `ternary_scale`; the gradient passes straight through.

    `strength_R` blends run r from full precision (0) to ternary (1); None is 1 for all. Both ends are exact.
    """
    result: Tensor = _TernaryWeights.apply(weight_RLOI, segments, strength_R)  # type: ignore[no-untyped-call]
    return result


def int8_activations(x: Tensor, strength_R: Tensor | None = None) -> Tensor:
    """Return round(x·s) / s with s = 127 / max(max|x|, 1e-5) over the last dimension; straight-through gradient.

    Shape: [R, …, F], one scale for each token. `strength_R` as in `ternary_weights`.
    """
    result: Tensor = _Int8Activations.apply(x, strength_R)  # type: ignore[no-untyped-call]
    return result
