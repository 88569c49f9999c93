"""Interpolation between full precision and quantized values, as several kernels need it."""

import triton
import triton.language as tl


@triton.jit
def lerp(start, end, weight):
    """Return torch.lerp of the three: exactly `start` at weight 0 and `end` at 1."""
    near_start = weight < 0.5
    return tl.fma(tl.where(near_start, weight, weight - 1.0), end - start, tl.where(near_start, start, end))
