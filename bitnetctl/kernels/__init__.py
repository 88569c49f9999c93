"""Own Triton kernels, each with the arithmetic of the plain operations that it replaces.

Only modules of this folder import Triton, and they are imported where it is needed: few machines without a GPU have it.
"""

INT8_MAX = 127
"""Largest code of an activation."""
SCALE_FLOOR = 1e-5
"""What a mean or largest absolute value is taken for at least, where its reciprocal is a scale."""
MAX_WIDTH = 8192
"""Features of a token that the registers of 8 warps hold; above 4,096 they spill a little in backward of two norms."""
