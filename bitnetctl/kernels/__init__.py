"""Own Triton kernels, each with the arithmetic of the plain operations that it replaces.

Only modules of this folder import Triton, and they are imported where it is needed: few machines without a GPU have it.
"""

INT8_MAX = 127
"""Largest code of an activation."""
SCALE_FLOOR = 1e-5
"""Lower bound of a mean or largest magnitude before its reciprocal becomes a quantization scale."""
MAX_WIDTH = 8192
"""Most features of a token: 8 warps hold them in registers; above 4,096 backward of two norms spills a few."""
