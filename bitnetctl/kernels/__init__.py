"""Own Triton kernels, each with the arithmetic of the plain operations that it replaces.

Only modules of this folder import Triton, and they are imported where it is needed: few machines without a GPU have it.
"""

MAX_WIDTH = 8192
"""Features of a token that a kernel holds in registers at most, forward and backward."""
