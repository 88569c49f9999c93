"""Rows of tokens that grow token by token within the context that a model was trained with.

Shapes: R runs, B rows, T positions of a prompt, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from bitnetctl.model.kv_cache import KVCacheForward
from bitnetctl.model.packed import PackedModel

# a matmul of another size sums in another order, so rows are computed in blocks of one size: what a row gets does not
# depend on how many others there are
_BLOCK_ROWS = {"cpu": 8, "cuda": 64}

# a second thread costs more than it gains where so little is read for a token, and very much beside a busy process
_ONE_THREAD_BYTES = 32 * 2**20


def threads_for(model: PackedModel) -> int:
    """Return how many threads of the CPU to decode with: one for a small model."""
    return 1 if 4 * model.num_runs * model.num_parameters <= _ONE_THREAD_BYTES else torch.get_num_threads()


class Decoder:
    """Logits of R runs for rows that grow by a token at a time, with a KV cache.

    When the trained context is full, its newest half is computed again as the beginning of a new one: no position is
    beyond those of training, and from then on a token sees between half and all of the context.
    """

    def __init__(self, model: PackedModel, quant_lambdas: Sequence[float], context_length: int, rows: int) -> None:
        self._context, self._rows, self._device = context_length, rows, model.device
        size, prepared = _BLOCK_ROWS.get(model.device.type, 1), model.prepared(quant_lambdas)
        self._blocks = [
            KVCacheForward(prepared, min(size, rows - start), context_length, padded_rows=size)
            for start in range(0, rows, size)
        ]
        # the tokens [R, B] of every position of the present context
        self._window: list[Tensor] = []

    def prefill(self, tokens_RBT: Tensor) -> Tensor:
        """Return logits [R, B, V] after the last token of prompts, of which the last part that fits is used.

        One prompt [R, 1, T] stands for all rows.
        """
        tokens_RBT = tokens_RBT.to(self._device)[..., -self._context :]
        self._window = list(tokens_RBT.expand(-1, self._rows, -1).unbind(-1))
        if tokens_RBT.shape[1] == 1:
            return torch.cat([block.start(tokens_RBT).expand(-1, block.rows, -1) for block in self._blocks], 1)
        return self._start(tokens_RBT)

    def step(self, tokens_RB: Tensor) -> Tensor:
        """Return logits [R, B, V] after one more token of every row; a negative one counts as token 0."""
        self._window.append(tokens_RB.to(self._device).clamp(min=0))
        if len(self._window) > self._context:
            self._window = self._window[-max(1, self._context // 2) :]
            return self._start(torch.stack(self._window, -1))
        parts = self._window[-1].split([block.rows for block in self._blocks], dim=1)
        return torch.cat([block.step(part) for block, part in zip(self._blocks, parts, strict=True)], 1)

    def _start(self, tokens_RBT: Tensor) -> Tensor:
        """Compute the whole context, row by row: the sums of a long matmul, too, may depend on how many rows it has."""
        places = ((block, row) for block in self._blocks for row in range(block.rows))
        prompts = zip(places, tokens_RBT.split(1, dim=1), strict=True)
        return torch.cat([block.start(tokens_R1T, row) for (block, row), tokens_R1T in prompts], 1)
