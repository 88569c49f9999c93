"""Rows of tokens that grow token by token within the context that a model was trained with.

Shapes: R runs, B rows, T positions of a prompt, V vocabulary.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from bitnetctl.model.cached import CachedForward
from bitnetctl.model.packed import PackedModel

# a matmul of other sizes sums in another order, so the rows are computed in blocks of one size: what a row gets does
# not depend on how many others there are
_BLOCK_ROWS = {"cpu": 8, "cuda": 64}


class Decoder:
    """Logits of R runs for rows that grow by a token at a time, with a cache of keys and values.

    When the context is full, the newest half of it is computed again as the beginning of a new one: so every token
    sees at least half of the trained context and no position beyond it.
    """

    def __init__(self, model: PackedModel, quant_lambdas: Sequence[float], context_length: int, rows: int) -> None:
        self._context, self._rows = context_length, rows
        block = _BLOCK_ROWS.get(model.device.type, 1)
        prepared = model.prepared(quant_lambdas)
        self._blocks = [CachedForward(prepared, block, context_length) for _ in range(-(-rows // block))]
        self._device = model.device
        # the tokens [R, B] of every position of the present context, padded to whole blocks
        self._window: list[Tensor] = []

    def prefill(self, tokens_RBT: Tensor) -> Tensor:
        """Return logits [R, B, V] after the last token of prompts, of which the last part that fits is used.

        One prompt [R, 1, T] stands for all rows.
        """
        tokens_RBT = tokens_RBT.to(self._device)[..., -self._context :]
        self._window = [self._padded(tokens_RB) for tokens_RB in tokens_RBT.expand(-1, self._rows, -1).unbind(-1)]
        logits = []
        for start, block in self._starts():
            if tokens_RBT.shape[1] == 1:
                logits.append(block.start(tokens_RBT).expand(-1, block.rows, -1))
                continue
            # one by one: the sums of a long matmul, too, may depend on how many rows it has
            for row in range(min(block.rows, self._rows - start)):
                given = tokens_RBT[:, start + row : start + row + 1]
                logits.append(block.start(given, slice(row, row + 1)))
        return torch.cat(logits, 1)[:, : self._rows]

    def step(self, tokens_RB: Tensor) -> Tensor:
        """Return logits [R, B, V] after one more token of every row."""
        self._window.append(self._padded(tokens_RB.to(self._device)))
        is_full = len(self._window) > self._context
        if is_full:
            self._window = self._window[-max(1, self._context // 2) :]
        logits = []
        for start, block in self._starts():
            rows = slice(start, start + block.rows)
            if is_full:
                logits.append(block.start(torch.stack([tokens_RB[:, rows] for tokens_RB in self._window], -1)))
            else:
                logits.append(block.step(self._window[-1][:, rows]))
        return torch.cat(logits, 1)[:, : self._rows]

    def _starts(self) -> Iterator[tuple[int, CachedForward]]:
        """Yield every block with the number of its first row."""
        for index, block in enumerate(self._blocks):
            yield index * block.rows, block

    def _padded(self, tokens_RB: Tensor) -> Tensor:
        """Fill the last block with rows of token 0, which also stands for `NO_TOKEN`."""
        rows = len(self._blocks) * self._blocks[0].rows
        return F.pad(tokens_RB, (0, rows - tokens_RB.shape[1])).clamp(min=0)
