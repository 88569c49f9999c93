"""Batches of training tokens, a pure function of tokens, order, seed and step."""

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from bitnetctl.config import DataConfig
from bitnetctl.data.store import TokenData, Tokens, require_batch


class Batches:
    """The batch of every step; steps count from 1.

    An epoch is all non-overlapping windows of `sequence_length` tokens, except those left over after the last batch.
    `sequential` takes them in the order of the text and ignores the seed; `shuffled` permutes them in every epoch
    with `numpy.random.default_rng((seed, epoch))`. The micro-batches of a step are one batch here, in the order of its
    rows. Raises DataError for less than one batch.
    """

    def __init__(self, data: TokenData, config: DataConfig, seed: int) -> None:
        require_batch(len(data.train_N), config)
        # indexing a numpy.memmap takes several times as long
        self._train_N: Tokens = data.train_N.view(np.ndarray)
        self._rows = config.rows_per_step
        self._length = config.sequence_length
        self._seed = seed
        self._shuffled = config.order == "shuffled"
        self._offsets_T1 = np.arange(self._length + 1, dtype=np.int64)
        self._windows = (len(self._train_N) - 1) // self._length
        self.steps_per_epoch = self._windows // self._rows
        # two epochs, because a prefetch may read into the next one
        self._permutation_W = lru_cache(maxsize=2)(self._permute)

    def starts_B(self, step: int) -> npt.NDArray[np.int64]:
        """Return the index of the first token of every row of a step; a row is T + 1 tokens. Shape [B]."""
        if step < 1:
            raise ValueError(f"steps count from 1, got {step}")
        epoch, position = divmod(step - 1, self.steps_per_epoch)
        first = position * self._rows
        if self._shuffled:
            return self._permutation_W(epoch)[first : first + self._rows].astype(np.int64) * self._length
        return np.arange(first, first + self._rows, dtype=np.int64) * self._length

    def rows_BT1(self, step: int) -> npt.NDArray[np.int64]:
        """Return the tokens of a step, shape [B, T + 1]: inputs are [:, :-1], targets [:, 1:]."""
        tokens_BT1: Tokens = self._train_N[self.starts_B(step)[:, None] + self._offsets_T1]
        return tokens_BT1.astype(np.int64)

    def _permute(self, epoch: int) -> npt.NDArray[np.uint32]:
        generator = np.random.default_rng((self._seed, epoch))
        return generator.permutation(np.arange(self._windows, dtype=np.uint32))
