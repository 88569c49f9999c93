"""What the probe reads off logits on a GPU: each is written once and read twice, by rows and by columns.

Shapes: R runs, N positions, V vocabulary.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

# below every logit that is finite; -inf would make exp(-inf − -inf) of columns beyond the vocabulary
_LOWEST = tl.constexpr(-3.0e38)
_ROW_BLOCK = 2048
_COLUMN_BLOCK, _POSITION_BLOCK = 128, 64


def add_predictions(
    logits_RNV: Tensor, targets_N: Tensor, softmax_RV: Tensor, counts_RV: Tensor
) -> tuple[Tensor, Tensor]:
    """Return loss and entropy [R, N] in nats of every position; add its softmax and its arg-max to the sums.

    `logits_RNV` are bf16 or fp32, contiguous in V; `softmax_RV` is fp64, `counts_RV` int64. Entropy is log Σ exp x −
    Σ p·x. The first of equal logits is the arg-max. A row that is not finite gives NaN.
    """
    runs, positions, vocab_size = logits_RNV.shape
    log_sum_RN = torch.empty(runs, positions, dtype=torch.float32, device=logits_RNV.device)
    loss_RN, entropy_RN = torch.empty_like(log_sum_RN), torch.empty_like(log_sum_RN)
    argmax_RN = torch.empty(runs, positions, dtype=torch.long, device=logits_RNV.device)
    strides = logits_RNV.stride()[:2]
    _rows[(positions, runs)](
        logits_RNV,
        targets_N,
        argmax_RN,
        log_sum_RN,
        loss_RN,
        entropy_RN,
        positions,
        vocab_size,
        *strides,
        BLOCK=_ROW_BLOCK,
        num_warps=8,
    )
    counts_RV.scatter_add_(1, argmax_RN, torch.ones_like(argmax_RN))
    _columns[(triton.cdiv(vocab_size, _COLUMN_BLOCK), runs)](
        logits_RNV,
        log_sum_RN,
        softmax_RV,
        positions,
        vocab_size,
        *strides,
        BLOCK_N=_POSITION_BLOCK,
        BLOCK_V=_COLUMN_BLOCK,
        num_warps=4,
    )
    return loss_RN, entropy_RN


@triton.jit(do_not_specialize=["positions"])
def _rows(
    logits_ptr,
    targets_ptr,
    argmax_ptr,
    log_sum_ptr,
    loss_ptr,
    entropy_ptr,
    positions,
    vocab_size,
    stride_r,
    stride_n,
    BLOCK: tl.constexpr,
):
    """Reduce one row: Σ exp and Σ exp·x relative to a running maximum in each lane (Milakov & Gimelshein 2018)."""
    n, run = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    row_ptr = logits_ptr + run * stride_r + n * stride_n
    lanes = tl.arange(0, BLOCK)
    largest = tl.full([BLOCK], _LOWEST, tl.float32)
    where = tl.zeros([BLOCK], tl.int32)
    total = tl.zeros([BLOCK], tl.float32)
    weighted = tl.zeros([BLOCK], tl.float32)
    for start in range(0, vocab_size, BLOCK):
        column = start + lanes
        inside = column < vocab_size
        x = tl.load(row_ptr + column, mask=inside, other=_LOWEST).to(tl.float32)
        where = tl.where(x > largest, column, where)
        now = tl.maximum(largest, x)
        shrink, e = tl.exp(largest - now), tl.where(inside, tl.exp(x - now), 0.0)
        total = total * shrink + e
        weighted = weighted * shrink + e * x
        largest = now
    top = tl.max(largest, 0)
    shrink = tl.exp(largest - top)
    total_1, weighted_1 = tl.sum(total * shrink, 0), tl.sum(weighted * shrink, 0)
    log_sum = top + tl.log(total_1)
    out = run * positions + n
    tl.store(argmax_ptr + out, tl.min(tl.where(largest == top, where, vocab_size - 1), 0).to(tl.int64))
    tl.store(log_sum_ptr + out, log_sum)
    tl.store(loss_ptr + out, log_sum - tl.load(row_ptr + tl.load(targets_ptr + n)).to(tl.float32))
    tl.store(entropy_ptr + out, log_sum - weighted_1 / total_1)


@triton.jit(do_not_specialize=["positions"])
def _columns(
    logits_ptr,
    log_sum_ptr,
    softmax_ptr,
    positions,
    vocab_size,
    stride_r,
    stride_n,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """Add Σ_n softmax of a block of columns to the sums of a run."""
    run = tl.program_id(1).to(tl.int64)
    column = tl.program_id(0) * BLOCK_V + tl.arange(0, BLOCK_V)
    inside = column < vocab_size
    total = tl.zeros([BLOCK_N, BLOCK_V], tl.float32)
    for start in range(0, positions, BLOCK_N):
        n = (start + tl.arange(0, BLOCK_N)).to(tl.int64)
        present = n < positions
        log_sum = tl.load(log_sum_ptr + run * positions + n, mask=present, other=0.0)
        mask = present[:, None] & inside[None, :]
        x_ptr = logits_ptr + run * stride_r + n[:, None] * stride_n + column[None, :]
        x = tl.load(x_ptr, mask=mask, other=_LOWEST).to(tl.float32)
        total += tl.exp(x - log_sum[:, None])
    sum_ptr = softmax_ptr + run * vocab_size + column
    tl.store(sum_ptr, tl.load(sum_ptr, mask=inside) + tl.sum(total, 0).to(tl.float64), mask=inside)
