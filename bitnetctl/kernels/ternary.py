"""Ternary weights of all runs and matrices in two launches, read from and written to flat storage.

The arithmetic is that of `bitnetctl.model.quantization.ternary_weights` in fp32.

Shapes: R runs, S elements of a flat parameter, T tiles.
"""

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from bitnetctl.kernels import SCALE_FLOOR
from bitnetctl.kernels.lerp import lerp

# elements at once: eight 16-byte loads per thread
_BLOCK, _WARPS = 4096, 4
# tiles of a segment, whose sums every tile of it adds again; larger segments have larger tiles
_MAX_TILES = 1024
_SUMS_BLOCK = 256
_SCALE_FLOOR = tl.constexpr(SCALE_FLOOR)
# columns of the table: start and length of a tile, first tile, number of tiles and length of its segment
START, LENGTH, _FIRST_TILE, _NUM_TILES, _SEGMENT_LENGTH = (tl.constexpr(column) for column in range(5))
COLUMNS = tl.constexpr(5)


class TernaryTiles:
    """The tiles of a flat parameter [S], none of which reaches over a segment's end.

    A segment (start, length) is a range that shares one scale. Nothing outside of the segments is read or written.
    Raises ValueError for an empty segment. `table_T5` is int64, starts and lengths of tiles in units of `unit`.
    """

    def __init__(self, segments: Sequence[tuple[int, int]], device: torch.device) -> None:
        if not segments or any(length < 1 for _, length in segments):
            raise ValueError("a segment is empty")
        # a start known to be a multiple of 16 makes loads vectorized
        self.unit = math.gcd(16, *(number for segment in segments for number in segment))
        rows: list[tuple[int, int, int, int, int]] = []
        for start, length in segments:
            tile = _BLOCK * triton.cdiv(triton.cdiv(length, _BLOCK), _MAX_TILES)
            first, count = len(rows), triton.cdiv(length, tile)
            for offset in range(0, length, tile):
                part = min(tile, length - offset)
                rows.append(((start + offset) // self.unit, part // self.unit, first, count, length))
        self.count = len(rows)
        self.end = max(start + length for start, length in segments)
        self.table_T5 = torch.tensor(rows, dtype=torch.long, device=device)


def ternary_(
    flat_RS: Tensor,
    out_RS: Tensor,
    tiles: TernaryTiles,
    *,
    quantizes: bool = True,
    quant_lambda_R: Tensor | None = None,
    sums_RT: Tensor | None = None,
) -> None:
    """Write clamp(round(w·s), ±1) / s with s = 1 / max(mean |w|, 1e-5) of a segment into `out_RS`, bf16 or fp32.

    `quant_lambda_R` (fp32) interpolates run r from full precision (0) to ternary (1), both exactly; None is 1 for all.
    Without `quantizes`, weights are only cast, in one launch; in one, too, with `sums_RT`, the sums of |w| of every
    tile, as `adam_tiles_` leaves them. S contiguous and as long as the segments, R of any stride; else it raises
    ValueError.
    """
    if flat_RS.stride(1) != 1 or out_RS.stride(1) != 1:
        raise ValueError("the last dimension of a tensor is not contiguous")
    if min(flat_RS.shape[1], out_RS.shape[1]) < tiles.end:
        raise ValueError(f"the segments end at {tiles.end}, beyond the weights")
    runs, grid = flat_RS.shape[0], (tiles.count, flat_RS.shape[0])
    if quantizes and sums_RT is None:
        sums_RT = torch.empty(runs, tiles.count, dtype=torch.float32, device=flat_RS.device)
        _absolute_sums[grid](
            flat_RS, sums_RT, tiles.table_T5, flat_RS.stride(0), UNIT=tiles.unit, BLOCK=_BLOCK, num_warps=_WARPS
        )
    _ternary[grid](
        flat_RS,
        out_RS,
        sums_RT if quantizes else None,
        quant_lambda_R if quantizes else None,
        tiles.table_T5,
        flat_RS.stride(0),
        out_RS.stride(0),
        QUANTIZES=quantizes,
        INTERPOLATES=quantizes and quant_lambda_R is not None,
        UNIT=tiles.unit,
        BLOCK=_BLOCK,
        SUMS_BLOCK=_SUMS_BLOCK,
        num_warps=_WARPS,
    )


@triton.jit
def _absolute_sums(flat_ptr, sums_ptr, table_ptr, flat_stride, UNIT: tl.constexpr, BLOCK: tl.constexpr):
    tile, run = tl.program_id(0), tl.program_id(1).to(tl.int64)
    table_ptr += tile * COLUMNS
    flat_ptr += run * flat_stride + tl.load(table_ptr + START) * UNIT
    length = tl.load(table_ptr + LENGTH).to(tl.int32) * UNIT
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, length, BLOCK):
        offsets = start + tl.arange(0, BLOCK)
        total += tl.abs(tl.load(flat_ptr + offsets, offsets < length, other=0.0))
    tl.store(sums_ptr + run * tl.num_programs(0) + tile, tl.sum(total))


@triton.jit
def _ternary(
    flat_ptr,
    out_ptr,
    sums_ptr,
    quant_lambda_ptr,
    table_ptr,
    flat_stride,
    out_stride,
    QUANTIZES: tl.constexpr,
    INTERPOLATES: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK: tl.constexpr,
    SUMS_BLOCK: tl.constexpr,
):
    tile, run = tl.program_id(0), tl.program_id(1).to(tl.int64)
    table_ptr += tile * COLUMNS
    first = tl.load(table_ptr + START) * UNIT
    length = tl.load(table_ptr + LENGTH).to(tl.int32) * UNIT
    flat_ptr += run * flat_stride + first
    out_ptr += run * out_stride + first
    if QUANTIZES:
        sums_ptr += run * tl.num_programs(0) + tl.load(table_ptr + _FIRST_TILE)
        count = tl.load(table_ptr + _NUM_TILES).to(tl.int32)
        total = tl.zeros((SUMS_BLOCK,), tl.float32)
        for start in range(0, count, SUMS_BLOCK):
            index = start + tl.arange(0, SUMS_BLOCK)
            total += tl.load(sums_ptr + index, index < count, other=0.0)
        mean = tl.div_rn(tl.sum(total), tl.load(table_ptr + _SEGMENT_LENGTH).to(tl.float32))
        # a comparison with NaN is false, which keeps it
        scale = tl.div_rn(1.0, tl.where(mean < _SCALE_FLOOR, _SCALE_FLOOR, mean))
        unit = tl.div_rn(1.0, scale)
    if INTERPOLATES:
        quant_lambda = tl.load(quant_lambda_ptr + run)
    for start in range(0, length, BLOCK):
        offsets = start + tl.arange(0, BLOCK)
        weight = tl.load(flat_ptr + offsets, offsets < length)
        value = weight
        if QUANTIZES:
            scaled = weight * scale
            # rounding half to even, a half becomes 0; c · (1 / s) is c / s as c is -1, 0 or 1
            code = tl.where(scaled > 0.5, 1.0, tl.where(scaled < -0.5, -1.0, 0.0))
            value = code * unit
        if INTERPOLATES:
            value = lerp(weight, value, quant_lambda)
        tl.store(out_ptr + offsets, value, offsets < length)
