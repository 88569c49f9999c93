"""Kernels of rotary embeddings: queries and keys rotated in place, and the gradient of qkv from those of the heads.

Arithmetic is fp32 in the order of `functional.rotate` and `functional.rotate_backward`, rounded once.

Shapes: R runs, B rows of T positions, N = B·T tokens, A query heads, G key/value heads, D head size, O = (A + 2G)·D.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

# pairs of features that a warp rotates: 8 for each thread
_TILE = 256


@triton.jit
def _rotate_kernel(
    qkv_ptr,
    cos_ptr,
    sin_ptr,
    stride_R,
    stride_N: tl.constexpr,
    tokens,
    positions,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Rotate one head of ROWS tokens; grid (blocks of tokens, heads, R)."""
    head, run = tl.program_id(1), tl.program_id(2).to(tl.int64)
    token = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    mask = (token < tokens) & (column < HALF)
    x_ptr = qkv_ptr + run * stride_R + token.to(tl.int64) * stride_N + head * (2 * HALF) + column
    table = (token % positions) * (2 * HALF) + column
    first = tl.load(x_ptr, mask, other=0.0).to(tl.float32)
    second = tl.load(x_ptr + HALF, mask, other=0.0).to(tl.float32)
    first_cos, first_sin = tl.load(cos_ptr + table, mask), tl.load(sin_ptr + table, mask)
    second_cos, second_sin = tl.load(cos_ptr + HALF + table, mask), tl.load(sin_ptr + HALF + table, mask)
    tl.store(x_ptr, tl.fma(second, first_sin, first * first_cos), mask)
    tl.store(x_ptr + HALF, tl.fma(first, second_sin, second * second_cos), mask)


@triton.jit
def _rotate_backward_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    cos_ptr,
    sin_ptr,
    out_ptr,
    query_stride_B,
    query_stride_A: tl.constexpr,
    query_stride_T: tl.constexpr,
    key_stride_B,
    key_stride_G: tl.constexpr,
    key_stride_T: tl.constexpr,
    value_stride_B,
    value_stride_G: tl.constexpr,
    value_stride_T: tl.constexpr,
    tokens,
    positions,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Rotate back one head's gradient for ROWS tokens of all runs; grid (blocks of tokens, A + 2G)."""
    head = tl.program_id(1)
    token = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    mask = (token < tokens) & (column < HALF)
    row, position = (token // positions).to(tl.int64), token % positions
    if head < HEADS:
        grad_ptr = query_ptr + head * query_stride_A + row * query_stride_B + position * query_stride_T
    elif head < HEADS + KV_HEADS:
        grad_ptr = key_ptr + (head - HEADS) * key_stride_G + row * key_stride_B + position * key_stride_T
    else:
        value_head = head - HEADS - KV_HEADS
        grad_ptr = value_ptr + value_head * value_stride_G + row * value_stride_B + position * value_stride_T
    first = tl.load(grad_ptr + column, mask, other=0.0).to(tl.float32)
    second = tl.load(grad_ptr + HALF + column, mask, other=0.0).to(tl.float32)
    if head < HEADS + KV_HEADS:
        table = position * (2 * HALF) + column
        first_cos, first_sin = tl.load(cos_ptr + table, mask), tl.load(sin_ptr + table, mask)
        second_cos, second_sin = tl.load(cos_ptr + HALF + table, mask), tl.load(sin_ptr + HALF + table, mask)
        rotated_first, rotated_second = second * second_sin, first * first_sin
        first, second = tl.fma(first, first_cos, rotated_first), tl.fma(second, second_cos, rotated_second)
    out_ptr += (token.to(tl.int64) * (HEADS + 2 * KV_HEADS) + head) * (2 * HALF) + column
    tl.store(out_ptr, first, mask)
    tl.store(out_ptr + HALF, second, mask)


def rotate_(qkv_RNO: Tensor, cos_TD: Tensor, sin_TD: Tensor, heads: int) -> None:
    """Apply RoPE (Su et al. 2021) in place to the first `heads` heads of every token.

    Token n is at position n % T of the tables of `rotary_tables` [T, D]. Features are contiguous, other strides free;
    the tables are contiguous and fp32.
    """
    runs, tokens, _ = qkv_RNO.shape
    positions, size = cos_TD.shape
    half, block, rows = _tile(size)
    _rotate_kernel[(triton.cdiv(tokens, rows), heads, runs)](
        qkv_RNO,
        cos_TD,
        sin_TD,
        *qkv_RNO.stride()[:2],
        tokens,
        positions,
        half,
        block,
        rows,
        num_warps=1,
        enable_fp_fusion=False,
    )


def rotate_backward(
    grad_q: Tensor, grad_k: Tensor, grad_v: Tensor, cos_TD: Tensor, sin_TD: Tensor, runs: int
) -> Tensor:
    """Return the gradient of qkv [R, N, O], in the dtype of `grad_q`.

    `grad_q` [R·B, A, T, D] and `grad_k` [R·B, G, T, D] are gradients of rotated heads, `grad_v` [R·B, G, T, D] of
    values. Other strides are free; the tables are contiguous and fp32. Raises ValueError where features are not
    contiguous.
    """
    if any(grad.stride(-1) != 1 for grad in (grad_q, grad_k, grad_v)):
        raise ValueError("the last dimension of a gradient is not contiguous")
    batch, heads, positions, size = grad_q.shape
    kv_heads, tokens = grad_k.shape[1], batch * positions
    out_heads = heads + 2 * kv_heads
    out_RNO = torch.empty(runs, tokens // runs, out_heads * size, dtype=grad_q.dtype, device=grad_q.device)
    half, block, rows = _tile(size)
    _rotate_backward_kernel[(triton.cdiv(tokens, rows), out_heads)](
        grad_q,
        grad_k,
        grad_v,
        cos_TD,
        sin_TD,
        out_RNO,
        *grad_q.stride()[:3],
        *grad_k.stride()[:3],
        *grad_v.stride()[:3],
        tokens,
        positions,
        heads,
        kv_heads,
        half,
        block,
        rows,
        num_warps=1,
        enable_fp_fusion=False,
    )
    return out_RNO


def _tile(size: int) -> tuple[int, int, int]:
    """Return half a head's size, the power of two that covers it, and the tokens of a program."""
    half = size // 2
    block = triton.next_power_of_2(half)
    return half, block, max(1, _TILE // block)
