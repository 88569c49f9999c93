"""Matrix multiplication of a pack: fp32, bf16, or int8 × ternary in the forward pass.

Shapes: R runs, N tokens, L layers, O×I a matrix.

| precision | operands | result | gradients |
|---|---|---|---|
| fp32 | fp32 | fp32 | fp32 matmuls |
| bf16 | bf16 (quantized values rounded to it) | bf16, accumulated in fp32 | bf16 matmuls |
| int8 | int8 activations × ternary codes, exact sums; the head as in bf16 | fp32 | bf16 matmuls |

Weights, norms, softmax, loss and optimizer are fp32 in all three.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from bitnetctl.hardware import mkldnn_fp32_precision, onednn_keeps_fp32
from bitnetctl.kernels import INT8_MAX
from bitnetctl.model.quantization import (
    BUILT_IN,
    Quantizers,
    custom_activations,
    custom_weights_,
    int8_activations,
    int8_scale,
    ternary_codes,
    ternary_scale,
    ternary_weights,
)

# up to this many multiply-adds MKL is faster than oneDNN: it has less overhead per call
_MKL_MULTIPLICATIONS = 2**20
# and of the largest matmul of a compiled layer, whose smaller ones then lose
_MKL_LAYER_MULTIPLICATIONS = 2**21

# a GPU refuses an int8 matmul of fewer
_LEAST_INT8_TOKENS = 17

Precision: TypeAlias = Literal["fp32", "bf16", "int8"]


class Operand(NamedTuple):
    """One side of a matmul: its values, or int8 codes and 1 / scale of each row (token or output)."""

    values: Tensor
    inverse_scale: Tensor | None = None


@dataclass(frozen=True)
class Quantization:
    """λ of the runs, 0 full precision to 1 ternary. `off`: all are 0; `quant_lambda_R`: None if all are 0 or all 1."""

    off: bool
    quant_lambda_R: Tensor | None


class Matmul:
    """Multiplies activations [R, N, I] by matrices [R, O, I] in one precision.

    Raises ValueError for custom quantizers in int8, whose sums need one scale for each row.
    """

    def __init__(self, precision: Precision, device: torch.device, quantizers: Quantizers = BUILT_IN) -> None:
        if precision == "int8" and quantizers != BUILT_IN:
            raise ValueError("custom quantizers have no int8 matmuls")
        self.quantizers = quantizers
        self.dtype = torch.float32 if precision == "fp32" else torch.bfloat16
        self._int8 = precision == "int8"
        # whether the sums of a bf16 matmul are written as fp32 without a copy, which a GPU can do
        self.casts_sums = False
        if device.type == "cuda":
            # by default cuBLAS may add partial sums of a split matmul in bf16
            torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
        self._onednn = device.type == "cpu" and precision == "fp32" and onednn_keeps_fp32()

    def fastest_blas(self, multiplications: int) -> contextlib.AbstractContextManager[None]:
        """Return a context in which fp32 matmuls, the largest of this size, run in oneDNN where it is faster than MKL.

        torch sends fp32 matmuls to MKL, which leaves AVX-512 unused on AMD, unless bf16 is allowed inside them;
        `onednn_keeps_fp32` has checked that oneDNN computes in fp32 all the same.
        """
        use_onednn = self._onednn and multiplications > _MKL_LAYER_MULTIPLICATIONS
        return mkldnn_fp32_precision("bf16") if use_onednn else contextlib.nullcontext()

    def bmm(self, a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
        """Return a · b, in `out` if given, by the library that is the fastest for its size, as `fastest_blas` says."""
        if not self._onednn or torch.compiler.is_compiling() or a.numel() * b.shape[-1] <= _MKL_MULTIPLICATIONS:
            return torch.bmm(a, b, out=out)
        settings = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
        before, settings.fp32_precision = settings.fp32_precision, "bf16"
        try:
            return torch.bmm(a, b, out=out)
        finally:
            settings.fp32_precision = before

    def cast(self, x: Tensor) -> Tensor:
        """Cast to the dtype of this precision; fp64 stays fp64."""
        return x if x.dtype == self.dtype or x.dtype == torch.float64 else x.to(self.dtype)

    def weights(self, weight_RLOI: Tensor, segments: Sequence[int], quant: Quantization) -> list[Operand]:
        """Return a matrix's operand for every layer, quantized once for forward and backward."""
        runs, layers, height, width = weight_RLOI.shape
        if self._int8 and not quant.off and quant.quant_lambda_R is None:
            codes = ternary_codes(weight_RLOI, segments).transpose(0, 1).contiguous()
            inverse = ternary_scale(weight_RLOI, segments).reciprocal_().transpose(0, 1)
            return [Operand(*pair) for pair in zip(codes.unbind(0), inverse.unbind(0), strict=True)]
        # layers first, so that each layer's [R, O, I] is contiguous: a strided slice is slow to multiply
        dtype = self.dtype if weight_RLOI.dtype == torch.float32 else weight_RLOI.dtype
        packed_LROI = torch.empty(layers, runs, height, width, dtype=dtype, device=weight_RLOI.device)
        if quant.off:
            packed_LROI.transpose(0, 1).copy_(weight_RLOI)
        elif (quantize := self.quantizers.weights) is not None:
            custom_weights_(packed_LROI.transpose(0, 1), weight_RLOI, segments, quantize, quant.quant_lambda_R)
        else:
            ternary_weights(weight_RLOI, segments, quant.quant_lambda_R, out=packed_LROI.transpose(0, 1))
        return [Operand(values) for values in packed_LROI.unbind(0)]

    def activations(self, x_RNI: Tensor, quant: Quantization) -> Operand:
        """Return the quantized operand of a matrix's input."""
        if quant.off:
            return Operand(self.cast(x_RNI))
        if self.quantizers.activations is not None:
            return Operand(self.cast(custom_activations(x_RNI, self.quantizers.activations, quant.quant_lambda_R)))
        if self._int8 and quant.quant_lambda_R is None:
            scale_RN1 = int8_scale(x_RNI)
            return Operand((x_RNI * scale_RN1).round_().to(torch.int8), scale_RN1.reciprocal_())
        return Operand(self.cast(int8_activations(x_RNI, quant.quant_lambda_R)))

    def multiply(self, x: Operand, weight: Operand) -> Tensor:
        """Return x · weightᵀ [R, N, O]."""
        if x.inverse_scale is None or weight.inverse_scale is None:
            return self.bmm(x.values, weight.values.mT)
        tokens, values_RNI = x.values.shape[1], x.values
        if tokens < _LEAST_INT8_TOKENS:
            values_RNI = F.pad(values_RNI, (0, 0, 0, _LEAST_INT8_TOKENS - tokens))
        sums = [torch._int_mm(a, b.t()) for a, b in zip(values_RNI, weight.values, strict=True)]
        sums_RNO = torch.stack(sums)[:, :tokens].to(torch.float32)
        return sums_RNO.mul_(x.inverse_scale).mul_(weight.inverse_scale.mT)

    def multiply_into(self, target: Tensor, a: Tensor, b: Tensor) -> None:
        """Write a · b into `target`, cast to its dtype."""
        if target.dtype == a.dtype:
            self.bmm(a, b, out=target)
        elif self.casts_sums:
            torch.bmm(a, b, out_dtype=target.dtype, out=target)
        else:
            target.copy_(self.bmm(a, b))

    def dequantize(self, operand: Operand) -> Tensor:
        """Return the values of an operand for the matmuls of backward: codes / scale where it is int8."""
        if operand.inverse_scale is None:
            return operand.values
        return (operand.values * operand.inverse_scale).to(self.dtype)


def int8_sum_is_exact(width: int) -> bool:
    """Whether fp32 holds every sum of `width` products of int8 and ternary exactly."""
    return width * INT8_MAX <= 2**24
