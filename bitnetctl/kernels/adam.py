"""Adam and AdamW over the parameters of all runs: one launch per flat parameter, which never writes gradients back.

The arithmetic is that of torch's fused kernel (aten/src/ATen/native/cuda/fused_adam_utils.cuh), in fp32.

Shapes: R runs, S elements of a flat parameter, C coefficients, V vocabulary, N tokens of a run, H hidden.
"""

import enum

import torch
import triton
import triton.language as tl
from torch import Tensor

from bitnetctl.kernels.ternary import COLUMNS, LENGTH, START, TernaryTiles

# two 16-byte loads of each of four tensors in flight per thread
_BLOCK, _WARPS = 1024, 4
# four 16-byte loads per thread, and partial sums that are few enough to be added at once
_SUM_BLOCK, _MAX_SUMS = 2048, 1024


class Coefficient(enum.IntEnum):
    """Columns of the coefficients [R, C], fp32: what an update of a run needs at step t.

    Computed in fp64 and rounded once: 1 - β2 of a β2 that was rounded to fp32 is wrong by 1e-5.
    """

    # lr / (1 - β1^t)
    RATE_OVER_CORRECTION = 0
    # 1 / sqrt(1 - β2^t)
    INVERSE_ROOT_CORRECTION = 1
    # coupled weight decay, 0 if none
    DECAY_TO_GRADIENT = 2
    # 1 - lr · decoupled weight decay, 1 if none
    KEEP = 3
    BETA1 = 4
    BETA2 = 5
    EPS = 6
    # gradients are divided by it, which clips them; at least 1
    DIVISOR = 7
    # 1.0: leave weights and moments of the run unchanged
    SKIP = 8
    # 1 - β1 and 1 - β2
    ONE_MINUS_BETA1 = 9
    ONE_MINUS_BETA2 = 10


# for kernels
RATE_OVER_CORRECTION = tl.constexpr(Coefficient.RATE_OVER_CORRECTION.value)
INVERSE_ROOT_CORRECTION = tl.constexpr(Coefficient.INVERSE_ROOT_CORRECTION.value)
DECAY_TO_GRADIENT = tl.constexpr(Coefficient.DECAY_TO_GRADIENT.value)
KEEP = tl.constexpr(Coefficient.KEEP.value)
BETA1 = tl.constexpr(Coefficient.BETA1.value)
BETA2 = tl.constexpr(Coefficient.BETA2.value)
EPS = tl.constexpr(Coefficient.EPS.value)
DIVISOR = tl.constexpr(Coefficient.DIVISOR.value)
SKIP = tl.constexpr(Coefficient.SKIP.value)
ONE_MINUS_BETA1 = tl.constexpr(Coefficient.ONE_MINUS_BETA1.value)
ONE_MINUS_BETA2 = tl.constexpr(Coefficient.ONE_MINUS_BETA2.value)


def adam_(
    weight_RS: Tensor,
    grad_RS: Tensor,
    exp_avg_RS: Tensor,
    exp_avg_sq_RS: Tensor,
    coefficients_RC: Tensor,
    *,
    size: int | None = None,
    copy_RS: Tensor | None = None,
) -> None:
    """Update the weights and moments of all runs, but of none whose SKIP is 1.

    fp32, S contiguous, R of any stride; only the first `size` elements of S, all by default. `copy_RS` also receives
    the new weights, in its own type. Raises ValueError for a tensor whose last dimension is not contiguous.
    """
    _require_contiguous(weight_RS, grad_RS, exp_avg_RS, exp_avg_sq_RS, coefficients_RC, *_given(copy_RS))
    size = weight_RS.shape[1] if size is None else size
    _adam[(triton.cdiv(size, _BLOCK), weight_RS.shape[0])](
        weight_RS,
        grad_RS,
        exp_avg_RS,
        exp_avg_sq_RS,
        copy_RS,
        coefficients_RC,
        weight_RS.stride(0),
        grad_RS.stride(0),
        exp_avg_RS.stride(0),
        exp_avg_sq_RS.stride(0),
        0 if copy_RS is None else copy_RS.stride(0),
        coefficients_RC.stride(0),
        size,
        HAS_COPY=copy_RS is not None,
        BLOCK=_BLOCK,
        num_warps=_WARPS,
    )


def adam_tiles_(
    weight_RS: Tensor,
    grad_RS: Tensor,
    exp_avg_RS: Tensor,
    exp_avg_sq_RS: Tensor,
    coefficients_RC: Tensor,
    tiles: TernaryTiles,
    sums_RT: Tensor,
) -> None:
    """Update as `adam_` does, tile by tile, and write the sum of |w| of each tile's new weights into `sums_RT`.

    The sums are those of skipped runs, too, with the same bits as if their weights had just been written.
    """
    _require_contiguous(weight_RS, grad_RS, exp_avg_RS, exp_avg_sq_RS, coefficients_RC, sums_RT)
    _adam_tiles[(tiles.count, weight_RS.shape[0])](
        weight_RS,
        grad_RS,
        exp_avg_RS,
        exp_avg_sq_RS,
        sums_RT,
        tiles.table_T5,
        coefficients_RC,
        weight_RS.stride(0),
        grad_RS.stride(0),
        exp_avg_RS.stride(0),
        exp_avg_sq_RS.stride(0),
        coefficients_RC.stride(0),
        UNIT=tiles.unit,
        BLOCK=_BLOCK,
        num_warps=_WARPS,
    )


def adam_rows_(
    weight_RVH: Tensor,
    rows_RNH: Tensor,
    slots_RV: Tensor,
    exp_avg_RVH: Tensor,
    exp_avg_sq_RVH: Tensor,
    coefficients_RC: Tensor,
) -> None:
    """Update embeddings, most of whose rows have no gradient; set all slots to -1, of skipped runs too.

    The gradient of row v is `rows_RNH[r, slots_RV[r, v]]`, or zero, which is not read, if the slot (int32) is negative.
    fp32, each run's [V, H] and [N, H] contiguous, else it raises ValueError; R of any stride.
    """
    _require_contiguous(weight_RVH[0], rows_RNH[0], exp_avg_RVH[0], exp_avg_sq_RVH[0], slots_RV, coefficients_RC)
    runs, rows, hidden = weight_RVH.shape
    if any(table.stride(1) != hidden for table in (weight_RVH, rows_RNH, exp_avg_RVH, exp_avg_sq_RVH)):
        raise ValueError("the rows of a table are not adjacent")
    # the largest power of two that divides a row leaves no lane idle
    divisor = min(hidden & -hidden, _BLOCK)
    block_hidden = divisor if divisor >= 64 else min(triton.next_power_of_2(hidden), _BLOCK)
    block_rows = _BLOCK // block_hidden
    _adam_rows[(triton.cdiv(rows, block_rows), runs)](
        weight_RVH,
        rows_RNH,
        slots_RV,
        exp_avg_RVH,
        exp_avg_sq_RVH,
        coefficients_RC,
        weight_RVH.stride(0),
        rows_RNH.stride(0),
        slots_RV.stride(0),
        exp_avg_RVH.stride(0),
        exp_avg_sq_RVH.stride(0),
        coefficients_RC.stride(0),
        rows,
        hidden,
        BLOCK_ROWS=block_rows,
        BLOCK_HIDDEN=block_hidden,
        num_warps=_WARPS,
    )


def square_sums(grad_RS: Tensor, size: int | None = None) -> Tensor:
    """Return partial sums of the squares of each run's first `size` elements: fp32 [R, at most 1024].

    fp32 or bf16, S contiguous, else it raises ValueError. A run's sums do not depend on the other runs.
    """
    _require_contiguous(grad_RS)
    size = grad_RS.shape[1] if size is None else size
    blocks = min(triton.cdiv(size, _SUM_BLOCK), _MAX_SUMS)
    sums_RB = torch.empty(grad_RS.shape[0], blocks, dtype=torch.float32, device=grad_RS.device)
    _square_sums[(blocks, grad_RS.shape[0])](
        grad_RS, sums_RB, grad_RS.stride(0), size, BLOCK=_SUM_BLOCK, num_warps=_WARPS
    )
    return sums_RB


def _given(tensor: Tensor | None) -> tuple[Tensor, ...]:
    return () if tensor is None else (tensor,)


def _require_contiguous(*tensors: Tensor) -> None:
    if any(tensor.stride(-1) != 1 for tensor in tensors):
        raise ValueError("the last dimension of a tensor is not contiguous")


@triton.jit
def _updated(weight, grad, exp_avg, exp_avg_sq, coefficients):
    """Return the new weight and moments of a run's elements."""
    grad = tl.div_rn(grad, tl.load(coefficients + DIVISOR))
    grad += tl.load(coefficients + DECAY_TO_GRADIENT) * weight
    weight *= tl.load(coefficients + KEEP)
    exp_avg = tl.load(coefficients + BETA1) * exp_avg + tl.load(coefficients + ONE_MINUS_BETA1) * grad
    # in this order, as the square of a small gradient underflows
    exp_avg_sq = tl.load(coefficients + BETA2) * exp_avg_sq + tl.load(coefficients + ONE_MINUS_BETA2) * grad * grad
    root = tl.sqrt_rn(exp_avg_sq) * tl.load(coefficients + INVERSE_ROOT_CORRECTION)
    denominator = root + tl.load(coefficients + EPS)
    weight -= tl.div_rn(tl.load(coefficients + RATE_OVER_CORRECTION) * exp_avg, denominator)
    return weight, exp_avg, exp_avg_sq


@triton.jit
def _adam(
    weight_ptr,
    grad_ptr,
    exp_avg_ptr,
    exp_avg_sq_ptr,
    copy_ptr,
    coefficients_ptr,
    weight_stride,
    grad_stride,
    exp_avg_stride,
    exp_avg_sq_stride,
    copy_stride,
    coefficients_stride,
    size,
    HAS_COPY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    run = tl.program_id(1).to(tl.int64)
    coefficients = coefficients_ptr + run * coefficients_stride
    if tl.load(coefficients + SKIP) != 1.0:
        offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        mask = offsets < size
        weights = weight_ptr + run * weight_stride + offsets
        exp_avgs = exp_avg_ptr + run * exp_avg_stride + offsets
        exp_avg_sqs = exp_avg_sq_ptr + run * exp_avg_sq_stride + offsets
        weight = tl.load(weights, mask)
        grad = tl.load(grad_ptr + run * grad_stride + offsets, mask)
        exp_avg = tl.load(exp_avgs, mask)
        exp_avg_sq = tl.load(exp_avg_sqs, mask)
        weight, exp_avg, exp_avg_sq = _updated(weight, grad, exp_avg, exp_avg_sq, coefficients)
        tl.store(weights, weight, mask)
        tl.store(exp_avgs, exp_avg, mask)
        tl.store(exp_avg_sqs, exp_avg_sq, mask)
        if HAS_COPY:
            tl.store(copy_ptr + run * copy_stride + offsets, weight, mask)


@triton.jit
def _adam_tiles(
    weight_ptr,
    grad_ptr,
    exp_avg_ptr,
    exp_avg_sq_ptr,
    sums_ptr,
    table_ptr,
    coefficients_ptr,
    weight_stride,
    grad_stride,
    exp_avg_stride,
    exp_avg_sq_stride,
    coefficients_stride,
    UNIT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    tile, run = tl.program_id(0), tl.program_id(1).to(tl.int64)
    table_ptr += tile * COLUMNS
    first = tl.load(table_ptr + START) * UNIT
    length = tl.load(table_ptr + LENGTH).to(tl.int32) * UNIT
    weight_ptr += run * weight_stride + first
    grad_ptr += run * grad_stride + first
    exp_avg_ptr += run * exp_avg_stride + first
    exp_avg_sq_ptr += run * exp_avg_sq_stride + first
    coefficients = coefficients_ptr + run * coefficients_stride
    # a skipped run has nothing to update, only weights to add up
    updates = tl.where(tl.load(coefficients + SKIP) != 1.0, length, 0)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, length, BLOCK):
        offsets = start + tl.arange(0, BLOCK)
        weight = tl.load(weight_ptr + offsets, offsets < length, other=0.0)
        mask = offsets < updates
        grad = tl.load(grad_ptr + offsets, mask, other=0.0)
        exp_avg = tl.load(exp_avg_ptr + offsets, mask, other=0.0)
        exp_avg_sq = tl.load(exp_avg_sq_ptr + offsets, mask, other=0.0)
        updated, exp_avg, exp_avg_sq = _updated(weight, grad, exp_avg, exp_avg_sq, coefficients)
        tl.store(weight_ptr + offsets, updated, mask)
        tl.store(exp_avg_ptr + offsets, exp_avg, mask)
        tl.store(exp_avg_sq_ptr + offsets, exp_avg_sq, mask)
        total += tl.abs(tl.where(mask, updated, weight))
    tl.store(sums_ptr + run * tl.num_programs(0) + tile, tl.sum(total))


@triton.jit
def _adam_rows(
    weight_ptr,
    rows_ptr,
    slots_ptr,
    exp_avg_ptr,
    exp_avg_sq_ptr,
    coefficients_ptr,
    weight_stride,
    rows_stride,
    slots_stride,
    exp_avg_stride,
    exp_avg_sq_stride,
    coefficients_stride,
    num_rows,
    hidden,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_HIDDEN: tl.constexpr,
):
    run = tl.program_id(1).to(tl.int64)
    coefficients = coefficients_ptr + run * coefficients_stride
    first = tl.program_id(0) * BLOCK_ROWS
    row = tl.arange(0, BLOCK_ROWS)
    is_row = first + row < num_rows
    slots = slots_ptr + run * slots_stride + first + row
    slot = tl.load(slots, is_row, other=-1)
    # 32 bits are enough for offsets from here only
    start_of_rows = first.to(tl.int64) * hidden
    weight_ptr += run * weight_stride + start_of_rows
    exp_avg_ptr += run * exp_avg_stride + start_of_rows
    exp_avg_sq_ptr += run * exp_avg_sq_stride + start_of_rows
    rows = rows_ptr + run * rows_stride + slot[:, None].to(tl.int64) * hidden
    if tl.load(coefficients + SKIP) != 1.0:
        for start in range(0, hidden, BLOCK_HIDDEN):
            column = start + tl.arange(0, BLOCK_HIDDEN)[None, :]
            mask = is_row[:, None] & (column < hidden)
            offsets = row[:, None] * hidden + column
            weight = tl.load(weight_ptr + offsets, mask)
            exp_avg = tl.load(exp_avg_ptr + offsets, mask)
            exp_avg_sq = tl.load(exp_avg_sq_ptr + offsets, mask)
            grad = tl.load(rows + column, mask & (slot[:, None] >= 0), other=0.0)
            weight, exp_avg, exp_avg_sq = _updated(weight, grad, exp_avg, exp_avg_sq, coefficients)
            tl.store(weight_ptr + offsets, weight, mask)
            tl.store(exp_avg_ptr + offsets, exp_avg, mask)
            tl.store(exp_avg_sq_ptr + offsets, exp_avg_sq, mask)
    # a slot is loaded by several warps, and the first to come here must not reset it for the others
    tl.debug_barrier()
    tl.store(slots, -1, is_row & (slot >= 0))


@triton.jit
def _square_sums(grad_ptr, sums_ptr, grad_stride, size, BLOCK: tl.constexpr):
    run = tl.program_id(1).to(tl.int64)
    block, blocks = tl.program_id(0), tl.num_programs(0)
    total = tl.zeros((BLOCK,), tl.float32)
    for tile in range(block, tl.cdiv(size, BLOCK), blocks):
        offsets = tile * BLOCK + tl.arange(0, BLOCK)
        grad = tl.load(grad_ptr + run * grad_stride + offsets, offsets < size, other=0.0).to(tl.float32)
        total += grad * grad
    tl.store(sums_ptr + run * blocks + block, tl.sum(total))
