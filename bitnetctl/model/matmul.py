"""How a pack multiplies matrices: fp32, bf16, or int8 × ternary on the way forward.

Shapes: R runs, N tokens, L layers, O×I a matrix.

| precision | operands | result | gradients |
|---|---|---|---|
| fp32 | fp32 | fp32 | fp32 products |
| bf16 | bf16 (quantized figures rounded to it) | bf16, sums in fp32 | bf16 products |
| int8 | int8 activations × ternary codes, exact sums; the head as in bf16 | fp32 | bf16 products |

Weights, norms, softmax, loss and optimizer are fp32 in all three.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from bitnetctl.hardware import onednn_keeps_fp32
from bitnetctl.model.quantization import (
    INT8_MAX,
    int8_activations,
    int8_scale,
    ternary_codes,
    ternary_scale,
    ternary_weights,
)

# up to this many multiplications MKL's shorter way in makes up for its slower arithmetic
_SMALL_PRODUCT = 2**21

Precision: TypeAlias = Literal["fp32", "bf16", "int8"]


@dataclass(frozen=True)
class Operand:
    """One side of a product: its figures, or int8 codes and 1 / scale for each token or output."""

    values: Tensor
    inverse_scale: Tensor | None = None


@dataclass(frozen=True)
class Quantization:
    """Strengths of the pack at a step; `quant_lambda_R` None is 1 for all, `off` is 0 for all."""

    off: bool
    quant_lambda_R: Tensor | None


class Matmul:
    """Products of activations [R, N, I] with matrices [R, O, I]."""

    def __init__(self, precision: Precision, device: torch.device) -> None:
        self.precision = precision
        self.dtype = torch.float32 if precision == "fp32" else torch.bfloat16
        self._int8 = precision == "int8"
        self._through_onednn = device.type == "cpu" and precision == "fp32" and onednn_keeps_fp32()

    def scope(self, multiplications: int) -> contextlib.AbstractContextManager[None]:
        """Return a context in which fp32 products of this size take the fastest library that keeps fp32."""
        through_onednn = self._through_onednn and multiplications > _SMALL_PRODUCT
        return _onednn("bf16") if through_onednn else contextlib.nullcontext()

    def outside(self) -> contextlib.AbstractContextManager[None]:
        """Return a context for products that torch's own kernels make: many small ones, which oneDNN is slow at."""
        may = self._through_onednn and not torch.compiler.is_compiling()
        return _onednn("ieee") if may else contextlib.nullcontext()

    def cast(self, x: Tensor) -> Tensor:
        """Return an operand that is not quantized."""
        return x if x.dtype == self.dtype or x.dtype == torch.float64 else x.to(self.dtype)

    def weights(self, weight_RLOI: Tensor, segments: Sequence[int], q: Quantization) -> list[Operand]:
        """Return the operand of every layer, quantized once for forward and backward."""
        runs, layers, height, width = weight_RLOI.shape
        if self._int8 and not q.off and q.quant_lambda_R is None:
            codes = ternary_codes(weight_RLOI, segments).transpose(0, 1).contiguous()
            inverse = ternary_scale(weight_RLOI, segments).reciprocal_().transpose(0, 1)
            return [Operand(*pair) for pair in zip(codes.unbind(0), inverse.unbind(0), strict=True)]
        # layers in front: a slice between others is slow to multiply
        dtype = self.dtype if weight_RLOI.dtype == torch.float32 else weight_RLOI.dtype
        packed_LROI = torch.empty(layers, runs, height, width, dtype=dtype, device=weight_RLOI.device)
        if q.off:
            packed_LROI.transpose(0, 1).copy_(weight_RLOI)
        else:
            ternary_weights(weight_RLOI, segments, q.quant_lambda_R, out=packed_LROI.transpose(0, 1))
        return [Operand(values) for values in packed_LROI.unbind(0)]

    def activations(self, x_RNI: Tensor, q: Quantization) -> Operand:
        """Return the quantized operand of a layer's input."""
        if q.off:
            return Operand(self.cast(x_RNI))
        if self._int8 and q.quant_lambda_R is None:
            scale_RN1 = int8_scale(x_RNI)
            return Operand((x_RNI * scale_RN1).round_().to(torch.int8), scale_RN1.reciprocal_())
        return Operand(self.cast(int8_activations(x_RNI, q.quant_lambda_R)))

    def multiply(self, x: Operand, weight: Operand) -> Tensor:
        """Return x · weightᵀ [R, N, O]."""
        if x.inverse_scale is None or weight.inverse_scale is None:
            return torch.bmm(x.values, weight.values.mT)
        sums = [torch._int_mm(a, b.t()) for a, b in zip(x.values, weight.values, strict=True)]
        return torch.stack(sums).to(torch.float32).mul_(x.inverse_scale).mul_(weight.inverse_scale.mT)

    def figures(self, operand: Operand) -> Tensor:
        """Return what an operand stands for, as gradients are multiplied by it."""
        if operand.inverse_scale is None:
            return operand.values
        return (operand.values * operand.inverse_scale).to(self.dtype)


def write_product(target: Tensor, a: Tensor, b: Tensor) -> None:
    """Write a · b into `target`, whatever its type."""
    if target.dtype == a.dtype:
        torch.bmm(a, b, out=target)
    else:
        target.copy_(torch.bmm(a, b))


class _onednn:  # noqa: N801
    """Let fp32 products through oneDNN; re-entrant.

    torch multiplies fp32 with MKL, which does without AVX-512 on other makers' CPUs, unless bf16 is allowed
    inside fp32 products. `onednn_keeps_fp32` has made sure that they stay fp32 all the same.
    """

    def __init__(self, allowed: str) -> None:
        self._allowed = allowed

    def __enter__(self) -> None:
        self._before = torch.backends.mkldnn.matmul.fp32_precision  # type: ignore[attr-defined]
        torch.backends.mkldnn.matmul.fp32_precision = self._allowed  # type: ignore[attr-defined]

    def __exit__(self, *_: object) -> None:
        torch.backends.mkldnn.matmul.fp32_precision = self._before  # type: ignore[attr-defined]


def int8_sum_is_exact(width: int) -> bool:
    """Whether every sum of `width` products int8 × ternary is a whole number that fp32 holds."""
    return width * INT8_MAX <= 2**24
