"""Cross-entropy with its gradient in place of the logits: one launch, in which the logits are read once from memory.

The logits of a token (100 KB of 50,304 in bf16) are read twice, the second time from the cache.

Shapes: R runs, N tokens of a run, V vocabulary, which may be padded.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

# a token's logits at once, and threads that each take sixteen of them
_MAX_BLOCK, _MIN_BLOCK, _PER_WARP = 8192, 256, 512


def cross_entropy_(logits_RNV: Tensor, targets_RN: Tensor, vocab_size: int, grad_RNV: Tensor | None = None) -> Tensor:
    """Return each token's loss, log Σ exp − logit of the target, fp32 [R, N]; write softmax − one-hot as its gradient.

    The gradient replaces the logits (bf16 or fp32), or is written into `grad_RNV`, in that tensor's type. Columns from
    `vocab_size` on are ignored and get a gradient of zero. A NaN or inf makes the loss of its own token not finite;
    logits of −inf have a probability of zero. Raises ValueError for a vocabulary dimension that is not contiguous.
    """
    grad_RNV = logits_RNV if grad_RNV is None else grad_RNV
    if logits_RNV.stride(2) != 1 or grad_RNV.stride(2) != 1:
        raise ValueError("the last dimension of the logits or of their gradient is not contiguous")
    runs, tokens, padded_size = logits_RNV.shape
    loss_RN = torch.empty(runs, tokens, dtype=torch.float32, device=logits_RNV.device)
    block = min(max(triton.next_power_of_2(padded_size), _MIN_BLOCK), _MAX_BLOCK)
    _cross_entropy[(tokens, runs)](
        logits_RNV,
        targets_RN,
        grad_RNV,
        loss_RN,
        logits_RNV.stride(0),
        logits_RNV.stride(1),
        targets_RN.stride(0),
        targets_RN.stride(1),
        grad_RNV.stride(0),
        grad_RNV.stride(1),
        vocab_size,
        padded_size,
        BLOCK=block,
        num_warps=max(block // _PER_WARP, 2),
    )
    return loss_RN


@triton.jit
def _cross_entropy(
    logits_ptr,
    targets_ptr,
    grad_ptr,
    loss_ptr,
    logits_run_stride,
    logits_token_stride,
    targets_run_stride,
    targets_token_stride,
    grad_run_stride,
    grad_token_stride,
    vocab_size,
    padded_size,
    BLOCK: tl.constexpr,
):
    token, run = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    logits_ptr += run * logits_run_stride + token * logits_token_stride
    grad_ptr += run * grad_run_stride + token * grad_token_stride
    target = tl.load(targets_ptr + run * targets_run_stride + token * targets_token_stride)
    target_logit = tl.load(logits_ptr + target).to(tl.float32)

    largest = -float("inf")
    sums = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, padded_size, BLOCK):
        column = start + tl.arange(0, BLOCK)
        # the mask of the load ends where rows of 16 bytes end, so that it is vectorized
        logit = tl.load(logits_ptr + column, column < padded_size).to(tl.float32)
        logit = tl.where(column < vocab_size, logit, -float("inf"))
        previous = largest
        largest = tl.maximum(previous, tl.max(logit))
        # nothing but -inf so far: inf - inf would be NaN
        shift = tl.where(largest == -float("inf"), 0.0, largest)
        sums = sums * tl.exp(previous - shift) + tl.exp(logit - shift)
    total = tl.sum(sums)
    tl.store(loss_ptr + run * tl.num_programs(0) + token, largest - target_logit + tl.log(total))

    # the gradient may overwrite what another warp has yet to read
    tl.debug_barrier()
    inverse = tl.div_rn(1.0, total)
    for start in range(0, padded_size, BLOCK):
        column = start + tl.arange(0, BLOCK)
        logit = tl.load(logits_ptr + column, column < padded_size).to(tl.float32)
        p = tl.exp(logit - largest) * inverse
        grad = tl.where(column == target, p - 1.0, p)
        tl.store(grad_ptr + column, tl.where(column < vocab_size, grad, 0.0), column < padded_size)
