"""The weights of a pack as evaluation takes them.

Shapes: R runs, B rows, T positions of a row, N = B·T tokens, H hidden, V vocabulary.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bitnetctl.model.layer import LayerWeights
from bitnetctl.model.matmul import Quantization

if TYPE_CHECKING:
    from bitnetctl.model.packed import PackedModel


@dataclass(kw_only=True)
class PreparedModel:
    """Weights quantized and cast once for many forward passes; updates after that do not reach it."""

    model: "PackedModel"
    quant: Quantization
    layers: list[LayerWeights]
    head_RVH: Tensor

    @torch.no_grad()
    def logits(self, tokens_RBT: Tensor) -> Tensor:
        """Return logits [R, N, V] of token ids [R, B, T]."""
        hidden_RNH = self.model._hidden(tokens_RBT, self.quant, self.layers).hidden_RNH
        return self.model.logits(hidden_RNH, self.head_RVH)
