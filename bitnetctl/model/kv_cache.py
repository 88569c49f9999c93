"""The forward pass with a KV cache: keys and values of earlier positions are kept while rows grow token by token.

Shapes: R runs, B rows, T positions of a row, C positions that the cache has room for, H hidden, V vocabulary, L layers,
A query heads, G key/value heads, D head size.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from bitnetctl.config import ModelConfig
from bitnetctl.model import functional
from bitnetctl.model.layer import Layer, LayerWeights, rotary_tables
from bitnetctl.model.matmul import Matmul, Quantization
from bitnetctl.model.packed import PreparedModel


class KVCacheForward:
    """Logits of a model for `rows` rows of each run that start with a prompt and grow to at most `capacity` positions.

    `length` is the number of positions that they have now. Matmuls of all rows get `padded_rows` of them: another
    number may be summed in another order.
    """

    def __init__(self, prepared: PreparedModel, rows: int, capacity: int, *, padded_rows: int) -> None:
        model = prepared.model
        self.rows, self.length = rows, 0
        self._prepared, self._capacity, self._padding = prepared, capacity, padded_rows - rows
        self._layer = _NextPosition(model.config, model.matmul, capacity, model.device)
        # by layer keys and values [R, B, G, C, D], in the dtype that attention has
        self._cache: list[tuple[Tensor, Tensor]] = []

    # SDPA's forward asks for a graph, which inference mode refuses
    @torch.no_grad()
    def start(self, tokens_R1T: Tensor, row: int | None = None) -> Tensor:
        """Return logits [R, 1, V] after the last token of the prompt of one row, by default of all rows alike.

        All rows have to be started with the same number of tokens before the first step.
        """
        prepared, model = self._prepared, self._prepared.model
        self.length = tokens_R1T.shape[-1]
        rows = slice(None) if row is None else slice(row, row + 1)
        _, x_RTH = model.embedded(tokens_R1T)
        layer, normalize = model.arithmetic(self.length, for_backward=False)
        for index, weights in enumerate(prepared.weights):
            x_RTH, saved = layer.forward(x_RTH, weights, prepared.quant)
            assert saved.attention is not None
            self._keep(index, (saved.attention.k, saved.attention.v), rows)
        hidden_R1H, _ = normalize(x_RTH[:, -1:].contiguous(), model.final_norm, model.config.rms_norm_eps)
        return prepared.logits(hidden_R1H)

    @torch.inference_mode()
    def step(self, tokens_RB: Tensor) -> Tensor:
        """Return logits [R, B, V] after one more token of every row."""
        prepared, model = self._prepared, self._prepared.model
        _, x_RBH = model.embedded(F.pad(tokens_RB, (0, self._padding)).unsqueeze(-1))
        self._layer.move_to(self.length)
        for weights, cache in zip(prepared.weights, self._cache, strict=True):
            x_RBH = self._layer.append(x_RBH, weights, prepared.quant, *cache)
        self.length += 1
        hidden_RBH, _ = functional.normalize(x_RBH, model.final_norm, model.config.rms_norm_eps)
        return prepared.logits(hidden_RBH)[:, : self.rows]

    def _keep(self, index: int, keys_and_values: Sequence[Tensor], rows: slice) -> None:
        """Copy the keys and values of a prompt into the cache of a layer."""
        config, runs = self._prepared.model.config, self._prepared.model.num_runs
        heads, width = config.num_key_value_heads, config.head_size
        keys, values = (new.reshape(runs, 1, heads, self.length, width) for new in keys_and_values)
        if index == len(self._cache):
            shape = (runs, self.rows, heads, self._capacity, width)
            self._cache.append((keys.new_zeros(shape), values.new_zeros(shape)))
        for cached, new in zip(self._cache[index], (keys, values), strict=True):
            cached[:, rows, :, : self.length] = new


class _NextPosition(Layer):
    """The arithmetic of a layer for one more position of every row."""

    def __init__(self, config: ModelConfig, matmul: Matmul, capacity: int, device: torch.device) -> None:
        super().__init__(config, matmul, 1, device)
        self._tables_CD = [table.to(device) for table in rotary_tables(config, capacity)]
        self._position = 0
        # a query may attend to all that is cached
        self._nothing_masked = self._tables_CD[0].new_zeros(1, 1)

    def move_to(self, position: int) -> None:
        """Let `append` take tokens of this position."""
        self._position = position
        self._cos_TD, self._sin_TD = (table_CD[position : position + 1] for table_CD in self._tables_CD)

    def append(self, x_RBH: Tensor, weights: LayerWeights, quant: Quantization, keys: Tensor, values: Tensor) -> Tensor:
        """Return the residual stream after the layer; write keys and values [R, B, G, C, D] of its position.

        The last rows of the stream may be padding, which has no place in the cache.
        """
        heads, _ = self._before_attention(x_RBH, weights, quant)
        runs, rows = keys.shape[:2]
        query, key, value = (each.unflatten(0, (runs, -1))[:, :rows] for each in heads)
        # the queries of a group are rows over the same keys
        query = query.reshape(-1, self._heads // self._kv_heads, self._config.head_size)
        k, v = (cached.flatten(0, 2)[:, : self._position + 1] for cached in (keys, values))
        k[:, -1:], v[:, -1:] = key.reshape(k[:, -1:].shape), value.reshape(v[:, -1:].shape)
        out, _ = functional.attend(query, k, v, self._nothing_masked.to(query.dtype))
        a_RBH = F.pad(out.view(runs, rows, -1), (0, 0, 0, x_RBH.shape[1] - rows))
        x_RBH, _ = self._after_attention(x_RBH, a_RBH, weights, quant)
        return x_RBH
