"""The weights of a pack as evaluation takes them.

Shapes: R runs, B rows, T positions of a row, N = B·T tokens, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class PreparedModel:
    """Weights quantized and cast once for many forward passes; updates after that do not reach all of them."""

    forward: Callable[[Tensor], Tensor]

    @torch.no_grad()
    def logits(self, tokens_RBT: Tensor) -> Tensor:
        """Return logits [R, N, V] of token ids [R, B, T]."""
        return self.forward(tokens_RBT)
