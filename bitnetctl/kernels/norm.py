"""Kernels from the residual stream to a matmul's input and back: sum, gate, RMSNorms and int8 quantization at once.

A token's features are held in registers, so each is read and written once. Arithmetic is fp32 in the order of
`functional.normalize`, `functional.gate` and `int8_activations` and their backward functions: only sums over features
and tokens are formed in another order, always the same one.

Shapes: R runs, N tokens, F features, K norms in sequence, P blocks of a run's tokens.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

import torch
import triton
import triton.language as tl
from torch import Tensor

from bitnetctl.kernels import INT8_MAX, SCALE_FLOOR
from bitnetctl.kernels.lerp import lerp

# one for each multiprocessor of an H100, about
_BACKWARD_PROGRAMS = 128
# elements of one pass over a block's tokens: 16 for each of 256 threads
_TILE = 4096

Activation: TypeAlias = Literal["relu2", "silu"]

# above it backward reads the weights again for every token: the registers are full of sums
_HELD_WIDTH = tl.constexpr(4096)
_INT8_MAX, _SCALE_FLOOR = tl.constexpr(float(INT8_MAX)), tl.constexpr(SCALE_FLOOR)
# 1.5 · 2²³: added and subtracted, it leaves the nearest integer, half to even, of what is below 2²²
_ROUNDER = tl.constexpr(12582912.0)


class NormQuantized(NamedTuple):
    """A matmul's input, and what backward needs: the normalized stream in fp32 and 1 / RMS of each norm."""

    values_RNF: Tensor
    stream_RNF: Tensor
    inverse_KRN: Tensor


@triton.jit
def _relu(x):
    # unlike a maximum it keeps NaN
    return tl.where(x < 0.0, 0.0, x)


@triton.jit
def _sigmoid(x):
    return tl.div_rn(1.0, 1.0 + tl.exp(-x))


@triton.jit
def _gated(gate, up, ACTIVATION: tl.constexpr):
    """Return act(gate) · up."""
    if ACTIVATION == "relu2":
        gate = _relu(gate)
        return gate * gate * up
    return tl.div_rn(gate, 1.0 + tl.exp(-gate)) * up


@triton.jit
def _gate_gradients(grad, gate, up, ACTIVATION: tl.constexpr):
    """Return the gradients of gate and up."""
    if ACTIVATION == "relu2":
        gate = _relu(gate)
        return 2.0 * (grad * up) * gate, grad * (gate * gate)
    sigmoid = _sigmoid(gate)
    silu = gate * sigmoid
    # d silu(g) = σ + silu·(1 − σ)
    return grad * up * tl.fma(silu, 1.0 - sigmoid, sigmoid), grad * silu


@triton.jit
def _inverse_rms(x, eps, F: tl.constexpr):
    return tl.rsqrt(tl.sum(x * x, 0) * (1.0 / F) + eps)


@triton.jit
def _int8(x):
    """Return round(x·s) / s with s = 127 / max(max|x|, 1e-5)."""
    # as integers the bits of |x| are in the order of its values, NaN last, which a maximum of floats would drop
    bits = x.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    largest = tl.max(bits, 0).to(tl.float32, bitcast=True)
    largest = tl.where(largest < _SCALE_FLOOR, _SCALE_FLOOR, largest)
    scale = tl.div_rn(1.0, largest) * _INT8_MAX
    return tl.div_rn((x * scale + _ROUNDER) - _ROUNDER, scale)


@triton.jit
def _forward_kernel(
    x_ptr,
    delta_ptr,
    first_ptr,
    second_ptr,
    lambda_ptr,
    values_ptr,
    stream_ptr,
    inverse_ptr,
    x_stride_R,
    x_stride_N: tl.constexpr,
    delta_stride_R,
    delta_stride_N: tl.constexpr,
    first_stride_R,
    second_stride_R,
    eps,
    F: tl.constexpr,
    BLOCK: tl.constexpr,
    ACTIVATION: tl.constexpr,
    QUANTIZES: tl.constexpr,
):
    """Normalize and quantize one token; grid (N, R)."""
    token, run = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    row = run * tl.num_programs(0) + token
    column = tl.arange(0, BLOCK)
    mask = column < F
    x_ptr += run * x_stride_R + token * x_stride_N
    x = tl.load(x_ptr + column, mask, other=0.0).to(tl.float32)
    if ACTIVATION is not None:
        x = _gated(x, tl.load(x_ptr + F + column, mask, other=0.0).to(tl.float32), ACTIVATION)
    if delta_ptr is not None:
        delta_ptr += run * delta_stride_R + token * delta_stride_N
        x += tl.load(delta_ptr + column, mask, other=0.0).to(tl.float32)
        tl.store(stream_ptr + row * F + column, x, mask)
    inverse = _inverse_rms(x, eps, F)
    tl.store(inverse_ptr + row, inverse)
    y = x * inverse * tl.load(first_ptr + run * first_stride_R + column, mask, other=0.0)
    if second_ptr is not None:
        inverse = _inverse_rms(y, eps, F)
        rows = tl.num_programs(0).to(tl.int64) * tl.num_programs(1)
        tl.store(inverse_ptr + rows + row, inverse)
        y = y * inverse * tl.load(second_ptr + run * second_stride_R + column, mask, other=0.0)
    if QUANTIZES:
        if lambda_ptr is None:
            y = _int8(y)
        else:
            y = lerp(y, _int8(y), tl.load(lambda_ptr + run))
    tl.store(values_ptr + row * F + column, y, mask)


@triton.jit
def _norm_gradient(grad, normed, weight, inverse, F: tl.constexpr):
    """Return the gradient [rows, F] of the input of x · inverse · weight."""
    grad = grad * weight
    dot = tl.sum(grad * normed, 1)[:, None]
    return tl.fma(normed, dot * (-1.0 / F), grad) * inverse


@triton.jit
def _backward_kernel(
    grad_ptr,
    x_ptr,
    residual_ptr,
    first_ptr,
    second_ptr,
    inverse_ptr,
    first_partial_ptr,
    second_partial_ptr,
    out_ptr,
    copy_ptr,
    grad_stride_R,
    grad_stride_N: tl.constexpr,
    x_stride_R,
    x_stride_N: tl.constexpr,
    residual_stride_R,
    residual_stride_N: tl.constexpr,
    first_stride_R,
    second_stride_R,
    first_partial_stride_R,
    first_partial_stride_P,
    second_partial_stride_R,
    second_partial_stride_P,
    tokens,
    block_tokens,
    scale,
    F: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    """Differentiate one block of a run's tokens, ROWS of them at a time; grid (P, R)."""
    block, run = tl.program_id(0), tl.program_id(1).to(tl.int64)
    column = tl.arange(0, BLOCK)[None, :]
    column_mask = column < F
    first_ptr += run * first_stride_R
    first_weight = tl.load(first_ptr + column, column_mask, other=0.0)
    first_sum = tl.zeros([ROWS, BLOCK], tl.float32)
    if second_ptr is not None:
        second_ptr += run * second_stride_R
        second_weight = tl.load(second_ptr + column, column_mask, other=0.0)
        second_sum = tl.zeros([ROWS, BLOCK], tl.float32)
    grad_ptr += run * grad_stride_R
    x_ptr += run * x_stride_R
    first = block * block_tokens
    last = tl.minimum(first + block_tokens, tokens)
    for start in range(first, last, ROWS):
        token = (start + tl.arange(0, ROWS)).to(tl.int64)[:, None]
        token_mask = token < last
        mask = token_mask & column_mask
        row = run * tokens + token
        grad = tl.load(grad_ptr + token * grad_stride_N + column, mask, other=0.0).to(tl.float32) * scale
        x = tl.load(x_ptr + token * x_stride_N + column, mask, other=0.0).to(tl.float32)
        if ACTIVATION is not None:
            gate = x
            up = tl.load(x_ptr + F + token * x_stride_N + column, mask, other=0.0).to(tl.float32)
            x = _gated(gate, up, ACTIVATION)
        if BLOCK > _HELD_WIDTH:
            first_weight = tl.load(first_ptr + column, column_mask, other=0.0)
            if second_ptr is not None:
                second_weight = tl.load(second_ptr + column, column_mask, other=0.0)
        inverse = tl.load(inverse_ptr + row, token_mask, other=0.0)
        normed = x * inverse
        if second_ptr is not None:
            rows = tl.num_programs(1).to(tl.int64) * tokens
            second_inverse = tl.load(inverse_ptr + rows + row, token_mask, other=0.0)
            second_normed = normed * first_weight * second_inverse
            second_sum += grad * second_normed
            grad = _norm_gradient(grad, second_normed, second_weight, second_inverse, F)
        first_sum += grad * normed
        grad = _norm_gradient(grad, normed, first_weight, inverse, F)
        if ACTIVATION is not None:
            gate_grad, up_grad = _gate_gradients(grad, gate, up, ACTIVATION)
            tl.store(out_ptr + row * (2 * F) + column, gate_grad, mask)
            tl.store(out_ptr + row * (2 * F) + F + column, up_grad, mask)
        else:
            if residual_ptr is not None:
                residual_row = residual_ptr + run * residual_stride_R + token * residual_stride_N
                grad += tl.load(residual_row + column, mask, other=0.0)
            tl.store(out_ptr + row * F + column, grad, mask)
            if copy_ptr is not None:
                tl.store(copy_ptr + row * F + column, grad, mask)
    column, column_mask = tl.arange(0, BLOCK), tl.arange(0, BLOCK) < F
    first_partial_ptr += run * first_partial_stride_R + block * first_partial_stride_P
    tl.store(first_partial_ptr + column, tl.sum(first_sum, 0), column_mask)
    if second_ptr is not None:
        second_partial_ptr += run * second_partial_stride_R + block * second_partial_stride_P
        tl.store(second_partial_ptr + column, tl.sum(second_sum, 0), column_mask)


def token_blocks(runs: int, tokens: int) -> int:
    """Return P, the number of blocks of a run's tokens: how many partial sums there are of a norm's gradient."""
    return max(1, min(tokens, _BACKWARD_PROGRAMS // runs))


def norm_quantize(
    x_RNF: Tensor,
    norms: Sequence[Tensor],
    eps: float,
    *,
    dtype: torch.dtype,
    quantizes: bool,
    quant_lambda_R: Tensor | None = None,
    delta_RNF: Tensor | None = None,
    activation: Activation | None = None,
) -> NormQuantized:
    """Return the values [R, N, F] in `dtype` that a matmul takes: x + delta, or act(gate) · up, normalized, quantized.

    x is fp32 or bf16, with `activation` the fused projection [R, N, 2F]; `delta_RNF` the output of a matrix that is
    added to it; `norms` one or two weights [R, 1, F], applied in sequence. Features are contiguous, other strides free.
    Unless `quantizes`, the normalized values are only cast; `quant_lambda_R` as in `int8_activations`.
    """
    runs, tokens, width = x_RNF.shape
    width = width // 2 if activation is not None else width
    values_RNF = torch.empty(runs, tokens, width, dtype=dtype, device=x_RNF.device)
    inverse_KRN = torch.empty(len(norms), runs, tokens, dtype=torch.float32, device=x_RNF.device)
    stream_RNF = x_RNF if delta_RNF is None else torch.empty_like(values_RNF, dtype=torch.float32)
    block = triton.next_power_of_2(width)
    first, second = _pair(norms)
    _forward_kernel[(tokens, runs)](
        x_RNF,
        delta_RNF,
        first,
        second,
        quant_lambda_R,
        values_RNF,
        stream_RNF,
        inverse_KRN,
        *x_RNF.stride()[:2],
        *_strides(delta_RNF),
        first.stride(0),
        0 if second is None else second.stride(0),
        eps,
        width,
        block,
        activation,
        quantizes,
        num_warps=_warps(block),
        enable_fp_fusion=False,
    )
    return NormQuantized(values_RNF, stream_RNF, inverse_KRN)


def norm_quantize_backward(
    grad_RNF: Tensor,
    x_RNF: Tensor,
    norms: Sequence[Tensor],
    inverse_KRN: Tensor,
    partials_KRPF: Sequence[Tensor],
    *,
    dtype: torch.dtype,
    activation: Activation | None = None,
    residual_RNF: Tensor | None = None,
    copy_RNF: Tensor | None = None,
    scale: float = 1.0,
) -> Tensor:
    """Return the gradient of what was normalized, in `dtype`: [R, N, F], with `activation` [R, N, 2F].

    The gradient of the quantized values, times `scale`, passes straight through the quantizer. x is the stream or the
    fused projection of `norm_quantize`, `residual_RNF` a gradient [R, N, F] in fp32 that is added to that of the
    stream; `copy_RNF`, contiguous, receives the result too, in its own type. Each of `partials_KRPF` [R, P, F] receives
    the sums over blocks of tokens of one weight's gradient.
    """
    runs, tokens, width = grad_RNF.shape
    out_RNF = torch.empty(x_RNF.shape, dtype=dtype, device=x_RNF.device)
    blocks = partials_KRPF[0].shape[1]
    block_tokens = triton.cdiv(tokens, blocks)
    block = triton.next_power_of_2(width)
    rows = min(triton.next_power_of_2(block_tokens), max(1, _TILE // block))
    first, second = _pair(norms)
    first_partial, second_partial = _pair(partials_KRPF)
    _backward_kernel[(blocks, runs)](
        grad_RNF,
        x_RNF,
        residual_RNF,
        first,
        second,
        inverse_KRN,
        first_partial,
        second_partial,
        out_RNF,
        copy_RNF,
        *grad_RNF.stride()[:2],
        *x_RNF.stride()[:2],
        *_strides(residual_RNF),
        first.stride(0),
        0 if second is None else second.stride(0),
        *first_partial.stride()[:2],
        *_strides(second_partial),
        tokens,
        block_tokens,
        float(scale),
        width,
        block,
        rows,
        activation,
        num_warps=_warps(rows * block),
        enable_fp_fusion=False,
    )
    return out_RNF


def _pair(tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    """Return the first of one or two tensors, and the second or None."""
    return tensors[0], tensors[1] if len(tensors) > 1 else None


def _strides(x: Tensor | None) -> tuple[int, int]:
    return (0, 0) if x is None else (x.stride(0), x.stride(1))


def _warps(elements: int) -> int:
    """Return the warps that hold so many elements: 8 to 16 for each thread where there are many."""
    if elements <= 256:
        return 1
    if elements <= 512:
        return 2
    return 4 if elements <= 2048 else 8
