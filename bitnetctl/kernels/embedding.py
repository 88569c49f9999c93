"""The gradient of embeddings as one row per distinct token of a batch, instead of a table that is mostly zero.

Shapes: R runs, N tokens of a run, V vocabulary, H hidden.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

# every row compares its token with all of its run's: at 4,096 tokens 32 KB from the cache for a row of 1 KB or more
MAX_TOKENS = 4096
# a warp per row, so that finding the next duplicate takes no barrier; four duplicates in flight
_MAX_BLOCK_HIDDEN, _MAX_BLOCK_TOKENS = 256, 256


def embedding_rows(grad_RNH: Tensor, tokens_RN: Tensor, slots_RV: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return rows [R, N, H], fp32, and which of them are a token's first in its run [R, N], bool.

    The row of a token's first occurrence is the sum, in token order, of `grad_RNH` over all its occurrences in the run;
    other rows are zero. `slots_RV[r, v]` (int32) becomes the number of the row of token v; slots of other tokens are
    left alone. Gradients fp32 or bf16 with H contiguous, tokens int32 or int64. Raises ValueError for another layout
    and for more than `MAX_TOKENS`.
    """
    runs, tokens, hidden = grad_RNH.shape
    if tokens > MAX_TOKENS:
        raise ValueError(f"{tokens} tokens of a run are more than {MAX_TOKENS}")
    if grad_RNH.stride(2) != 1 or tokens_RN.stride(1) != 1:
        raise ValueError("the last dimension of a tensor is not contiguous")
    rows_RNH = torch.empty(runs, tokens, hidden, dtype=torch.float32, device=grad_RNH.device)
    first_RN = torch.empty(runs, tokens, dtype=torch.bool, device=grad_RNH.device)
    block_hidden = _block_hidden(hidden)
    _embedding_rows[(tokens, runs, triton.cdiv(hidden, block_hidden))](
        grad_RNH,
        tokens_RN,
        slots_RV,
        rows_RNH,
        first_RN,
        grad_RNH.stride(0),
        grad_RNH.stride(1),
        tokens_RN.stride(0),
        0 if slots_RV is None else slots_RV.stride(0),
        tokens,
        hidden,
        HAS_SLOTS=slots_RV is not None,
        BLOCK_TOKENS=min(triton.next_power_of_2(tokens), _MAX_BLOCK_TOKENS),
        BLOCK_HIDDEN=block_hidden,
        num_warps=1,
    )
    return rows_RNH, first_RN


def add_rows_(table_RVH: Tensor, rows_RNH: Tensor, tokens_RN: Tensor, first_RN: Tensor) -> None:
    """Add what `embedding_rows` returned to a dense gradient [R, V, H], fp32.

    H of the table and all of the others contiguous, else it raises ValueError.
    """
    if table_RVH.stride(2) != 1 or tokens_RN.stride(1) != 1:
        raise ValueError("the last dimension of a tensor is not contiguous")
    if not rows_RNH.is_contiguous() or not first_RN.is_contiguous():
        raise ValueError("the rows are not contiguous")
    runs, tokens, hidden = rows_RNH.shape
    block_hidden = _block_hidden(hidden)
    _add_rows[(tokens, runs, triton.cdiv(hidden, block_hidden))](
        table_RVH,
        rows_RNH,
        tokens_RN,
        first_RN,
        table_RVH.stride(0),
        table_RVH.stride(1),
        tokens_RN.stride(0),
        hidden,
        BLOCK_HIDDEN=block_hidden,
        num_warps=1,
    )


def _block_hidden(hidden: int) -> int:
    block: int = triton.next_power_of_2(hidden)
    return min(block, _MAX_BLOCK_HIDDEN)


@triton.jit
def _next(positions, after, tokens):
    """Return the first of the positions beyond `after`, the number of tokens if there is none."""
    return tl.min(tl.where(positions > after, positions, tokens))


@triton.jit
def _loaded(grad_ptr, position, tokens, grad_token_stride, column, hidden):
    """Return the gradient of a position, zero if it is beyond the last."""
    mask = column < tl.where(position < tokens, hidden, 0)
    return tl.load(grad_ptr + position.to(tl.int64) * grad_token_stride + column, mask, other=0.0).to(tl.float32)


@triton.jit
def _embedding_rows(
    grad_ptr,
    tokens_ptr,
    slots_ptr,
    rows_ptr,
    first_ptr,
    grad_run_stride,
    grad_token_stride,
    tokens_stride,
    slots_stride,
    tokens,
    hidden,
    HAS_SLOTS: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_HIDDEN: tl.constexpr,
):
    position, run = tl.program_id(0), tl.program_id(1).to(tl.int64)
    tokens_ptr += run * tokens_stride
    token = tl.load(tokens_ptr + position)
    earlier = tl.zeros((BLOCK_TOKENS,), tl.int32)
    for start in range(0, position, BLOCK_TOKENS):
        index = start + tl.arange(0, BLOCK_TOKENS)
        other = tl.load(tokens_ptr + index, index < position, other=-1)
        earlier += (other == token).to(tl.int32)
    is_first = tl.sum(earlier) == 0

    column = tl.program_id(2) * BLOCK_HIDDEN + tl.arange(0, BLOCK_HIDDEN)
    row = tl.zeros((BLOCK_HIDDEN,), tl.float32)
    if is_first:
        grad_ptr += run * grad_run_stride
        for start in range(position // BLOCK_TOKENS * BLOCK_TOKENS, tokens, BLOCK_TOKENS):
            index = start + tl.arange(0, BLOCK_TOKENS)
            other = tl.load(tokens_ptr + index, index < tokens, other=-1)
            positions = tl.where(other == token, index, tokens)
            first = _next(positions, -1, tokens)
            while first < tokens:
                second = _next(positions, first, tokens)
                third = _next(positions, second, tokens)
                fourth = _next(positions, third, tokens)
                # all loads before the first addition
                a = _loaded(grad_ptr, first, tokens, grad_token_stride, column, hidden)
                b = _loaded(grad_ptr, second, tokens, grad_token_stride, column, hidden)
                c = _loaded(grad_ptr, third, tokens, grad_token_stride, column, hidden)
                d = _loaded(grad_ptr, fourth, tokens, grad_token_stride, column, hidden)
                row += a
                row += b
                row += c
                row += d
                first = _next(positions, fourth, tokens)
    tl.store(rows_ptr + (run * tokens + position) * hidden + column, row, column < hidden)
    if tl.program_id(2) == 0:
        tl.store(first_ptr + run * tokens + position, is_first)
        if HAS_SLOTS:
            tl.store(slots_ptr + run * slots_stride + token, position, is_first)


@triton.jit
def _add_rows(
    table_ptr,
    rows_ptr,
    tokens_ptr,
    first_ptr,
    table_run_stride,
    table_row_stride,
    tokens_stride,
    hidden,
    BLOCK_HIDDEN: tl.constexpr,
):
    position, run = tl.program_id(0), tl.program_id(1).to(tl.int64)
    place = run * tl.num_programs(0) + position
    if tl.load(first_ptr + place):
        token = tl.load(tokens_ptr + run * tokens_stride + position).to(tl.int64)
        column = tl.program_id(2) * BLOCK_HIDDEN + tl.arange(0, BLOCK_HIDDEN)
        mask = column < hidden
        entries = table_ptr + run * table_run_stride + token * table_row_stride + column
        row = tl.load(rows_ptr + place * hidden + column, mask)
        tl.store(entries, tl.load(entries, mask) + row, mask)
