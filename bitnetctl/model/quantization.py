"""Ternary weights and int8 activations: the arithmetic of BitNet b1.58.

The gradient passes straight through both (straight-through estimator, Bengio et al. 2013, arXiv 1308.3432), so
backward needs no code here.

Shapes: R runs, L layers, O outputs, I inputs of a matrix; activations have any dimensions and their features F last.
Source: "The Era of 1-bit LLMs" (arXiv 2402.17764) section 2 and its "Training Tips, Code and FAQ".
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from bitnetctl.kernels import INT8_MAX, SCALE_FLOOR

Quantize: TypeAlias = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Quantizers:
    """Custom quantizers; None where the built-in one is used.

    `weights` maps matrices [M, O, I] to codes of that shape and a scale [M, 1 or O, groups of inputs], `activations`
    tokens [N, I] to codes and a scale [N, groups], each matrix and token by itself. A quantized value is codes · scale.
    `codes` does what `weights` does, outside of training steps: it may take the time to check every value.
    """

    weights: Quantize | None = None
    codes: Quantize | None = None
    activations: Quantize | None = None


BUILT_IN = Quantizers()
"""The quantizers of BitNet b1.58."""


def dequantized(codes: Tensor, scale: Tensor) -> Tensor:
    """Return codes · scale; a last dimension of `scale` that divides that of the codes is one scale for each group."""
    groups = scale.shape[-1]
    if groups in (1, codes.shape[-1]):
        return codes * scale
    values: Tensor = codes.unflatten(-1, (groups, -1)) * scale.unsqueeze(-1)
    return values.flatten(-2)


def custom_codes(
    weight_RLOI: Tensor, segments: Sequence[int], quantize: Quantize
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yield rows, codes and scale of each segment of a matrix: one call of the quantizer for all runs and layers."""
    start = 0
    for height in segments:
        rows = slice(start, start + height)
        codes, scale = quantize(weight_RLOI[:, :, rows].flatten(0, 1))
        yield rows, codes.unflatten(0, weight_RLOI.shape[:2]), scale.unflatten(0, weight_RLOI.shape[:2])
        start += height


def custom_weights_(
    out_RLOI: Tensor,
    weight_RLOI: Tensor,
    segments: Sequence[int],
    quantize: Quantize,
    quant_lambda_R: Tensor | None = None,
) -> None:
    """Write the values of a custom quantizer into `out_RLOI`; `quant_lambda_R` as in `ternary_weights`."""
    for rows, codes, scale in custom_codes(weight_RLOI, segments, quantize):
        values = dequantized(codes, scale)
        if quant_lambda_R is not None:
            values = torch.lerp(weight_RLOI[:, :, rows], values, quant_lambda_R.view(-1, 1, 1, 1))
        out_RLOI[:, :, rows].copy_(values)


def custom_activations(x_RNI: Tensor, quantize: Quantize, quant_lambda_R: Tensor | None = None) -> Tensor:
    """Return the values of a custom quantizer, one call for all runs; `quant_lambda_R` as in `ternary_weights`."""
    values = dequantized(*quantize(x_RNI.flatten(0, 1))).view(x_RNI.shape)
    return values if quant_lambda_R is None else torch.lerp(x_RNI, values, quant_lambda_R.view(-1, 1, 1))


def ternary_scale(weight_RLOI: Tensor, segments: Sequence[int], scratch: Tensor | None = None) -> Tensor:
    """Return 1 / max(mean |w|, 1e-5) for each row [R, L, O, 1], the mean taken over the row's segment of the matrix.

    `segments` are numbers of rows that sum to O, one for each projection with a scale of its own; [O] is one scale.
    `scratch`, of the weights' shape and type, is overwritten.
    """
    magnitude_RLOI = weight_RLOI.abs() if scratch is None else torch.abs(weight_RLOI, out=scratch)
    if len(segments) == 1:
        mean_RLO1 = magnitude_RLOI.mean((-2, -1), keepdim=True).expand(*weight_RLOI.shape[:-1], 1)
    else:
        parts = magnitude_RLOI.mean(-1, keepdim=True).split(list(segments), dim=-2)
        mean_RLO1 = torch.cat([part.mean(-2, keepdim=True).expand_as(part) for part in parts], dim=-2)
    return mean_RLO1.clamp(min=SCALE_FLOOR).reciprocal()


def ternary_codes(weight_RLOI: Tensor, segments: Sequence[int]) -> Tensor:
    """Return clamp(round(w·s), ±1) with s = `ternary_scale`: values in {-1, 0, 1}, as int8 of the same shape."""
    return (weight_RLOI * ternary_scale(weight_RLOI, segments)).round_().clamp_(-1, 1).to(torch.int8)


def ternary_weights(
    weight_RLOI: Tensor, segments: Sequence[int], quant_lambda_R: Tensor | None = None, out: Tensor | None = None
) -> Tensor:
    """Return clamp(round(w·s), ±1) / s with s = `ternary_scale`; written into `out` if given, in its layout and type.

    `quant_lambda_R` interpolates run r from full precision (0) to ternary (1), both exactly; None is 1 for all.
    """
    # when compiling, all of this is fused anyway, and `out=` would have to be contiguous
    eager_out = None if torch.compiler.is_compiling() else out
    in_place = eager_out is not None and quant_lambda_R is None and eager_out.dtype == weight_RLOI.dtype
    scale_RLO1 = ternary_scale(weight_RLOI, segments, scratch=eager_out if in_place else None)
    if in_place:
        # without temporaries, which would have to be allocated and brought into the cache
        return torch.mul(weight_RLOI, scale_RLO1, out=eager_out).round_().clamp_(-1, 1).div_(scale_RLO1)
    codes_RLOI = (weight_RLOI * scale_RLO1).round_().clamp_(-1, 1)
    if quant_lambda_R is None and eager_out is not None:
        return torch.div(codes_RLOI, scale_RLO1, out=eager_out)
    values_RLOI = codes_RLOI.div_(scale_RLO1)
    if quant_lambda_R is not None:
        values_RLOI = torch.lerp(weight_RLOI, values_RLOI, quant_lambda_R.view(-1, 1, 1, 1))
    return values_RLOI if out is None else out.copy_(values_RLOI)


def int8_scale(x: Tensor) -> Tensor:
    """Return 127 / max(max|x|, 1e-5) over the last dimension, which is kept."""
    # abs and amax in two passes are ten times faster on the CPU than the infinity norm in one
    return _int8_scale(x.abs())


def _int8_scale(magnitude: Tensor) -> Tensor:
    return magnitude.amax(-1, keepdim=True).clamp_(min=SCALE_FLOOR).reciprocal_().mul_(INT8_MAX)


def int8_activations(x: Tensor, quant_lambda_R: Tensor | None = None) -> Tensor:
    """Return round(x·s) / s of activations [R, …, F] with s = `int8_scale`, one scale per token.

    `quant_lambda_R` as in `ternary_weights`.
    """
    magnitude = x.abs()
    scale = _int8_scale(magnitude)
    # |x| * 127 / max|x| cannot round beyond ±127, so the formula's clamp to -128…127 never binds
    scaled = x * scale if torch.compiler.is_compiling() else torch.mul(x, scale, out=magnitude)
    quantized = scaled.round_().div_(scale)
    if quant_lambda_R is None:
        return quantized
    return torch.lerp(x, quantized, quant_lambda_R.view(-1, *(1,) * (x.dim() - 1)))
