"""Ternary weights and int8 activations: the arithmetic of BitNet b1.58.

The gradient passes straight through both (Bengio et al. 2013, arXiv 1308.3432), so the way back needs no code here.

Shapes: R runs, L layers, O outputs, I inputs of a matrix; any trailing feature dimension F for activations.
Source: "The Era of 1-bit LLMs" (arXiv 2402.17764) section 2 and its "Training Tips, Code and FAQ".
"""

from collections.abc import Sequence

import torch
from torch import Tensor

SCALE_FLOOR = 1e-5
INT8_MAX = 127


def ternary_scale(weight_RLOI: Tensor, segments: Sequence[int]) -> Tensor:
    """Return 1 / max(mean |w|, 1e-5) for each row, the mean taken over the row's segment of outputs.

    `segments` are the heights, summing to O, of the projections fused in the matrix: [O] shares one scale.
    Shape: [R, L, O, 1].
    """
    if len(segments) == 1:
        mean_RLO1 = weight_RLOI.abs().mean((-2, -1), keepdim=True).expand(*weight_RLOI.shape[:-1], 1)
    else:
        parts = weight_RLOI.abs().mean(-1, keepdim=True).split(list(segments), dim=-2)
        mean_RLO1 = torch.cat([part.mean(-2, keepdim=True).expand_as(part) for part in parts], dim=-2)
    return mean_RLO1.clamp(min=SCALE_FLOOR).reciprocal()


def ternary_codes(weight_RLOI: Tensor, segments: Sequence[int]) -> Tensor:
    """Return the ternary values in {-1, 0, 1} of a weight, as int8 of the same shape."""
    return (weight_RLOI * ternary_scale(weight_RLOI, segments)).round_().clamp_(-1, 1).to(torch.int8)


def ternary_weights(
    weight_RLOI: Tensor, segments: Sequence[int], quant_lambda_R: Tensor | None = None, out: Tensor | None = None
) -> Tensor:
    """Return round(clamp(w·s, ±1)) / s with s = `ternary_scale`, in `out` if given: its layout and type are kept.

    `quant_lambda_R` blends run r from full precision (0) to ternary (1); None is 1 for all. Both ends are exact.
    """
    scale_RLO1 = ternary_scale(weight_RLOI, segments)
    codes_RLOI = (weight_RLOI * scale_RLO1).round_().clamp_(-1, 1)
    # a compiler fuses the copy, and refuses to write into what is not contiguous
    if quant_lambda_R is None and out is not None and not torch.compiler.is_compiling():
        return torch.div(codes_RLOI, scale_RLO1, out=out)
    values_RLOI = codes_RLOI.div_(scale_RLO1)
    if quant_lambda_R is not None:
        values_RLOI = torch.lerp(weight_RLOI, values_RLOI, quant_lambda_R.view(-1, 1, 1, 1))
    return values_RLOI if out is None else out.copy_(values_RLOI)


def int8_scale(x: Tensor) -> Tensor:
    """Return 127 / max(max|x|, 1e-5) over the last dimension, which is kept."""
    # abs and amax in two passes are ten times faster on the CPU than the infinity norm in one
    return x.abs().amax(-1, keepdim=True).clamp_(min=SCALE_FLOOR).reciprocal_().mul_(INT8_MAX)


def int8_activations(x: Tensor, quant_lambda_R: Tensor | None = None) -> Tensor:
    """Return round(x·s) / s with s = `int8_scale`: one scale for each token.

    Shape: [R, …, F]. `quant_lambda_R` as in `ternary_weights`.
    """
    scale = int8_scale(x)
    # |x| * 127 / max|x| cannot round beyond ±127, so the formula's clamp to -128…127 never binds
    quantized = (x * scale).round_().div_(scale)
    return (
        quantized
        if quant_lambda_R is None
        else torch.lerp(x, quantized, quant_lambda_R.view(-1, *(1,) * (x.dim() - 1)))
    )
