"""Gradients of a step averaged over its micro-batches."""

from collections.abc import Sequence

import torch
from torch import Tensor


class Accumulator:
    """Adds up the gradients that every micro-batch writes into the same tensors.

    `gradients` are those tensors; the sum takes as much memory again.
    """

    def __init__(self, gradients: Sequence[Tensor], micro_batches: int) -> None:
        self._gradients = list(gradients)
        self._micro_batches = micro_batches
        self._sums = [torch.zeros_like(gradient) for gradient in self._gradients]

    def add(self, index: int) -> None:
        """Take the gradients of micro-batch `index` in; after the last one they are the mean of all."""
        if index == 0:
            torch._foreach_copy_(self._sums, self._gradients)
        elif index < self._micro_batches - 1:
            torch._foreach_add_(self._sums, self._gradients)
        else:
            torch._foreach_add_(self._gradients, self._sums)
            torch._foreach_div_(self._gradients, self._micro_batches)
