"""Tokens chosen from logits.

The order is that of llama.cpp: top-k, of what it leaves top-p, of what that leaves min-p, and the temperature last.

Shapes: R runs, B rows, V vocabulary, K candidates.
"""

import math
from collections.abc import Collection

import numpy as np
import torch
from torch import Tensor

from bitnetctl.inference.sampling import Sampling

NO_TOKEN = -1
"""Stands for the token of a row whose logits are not finite."""


class Sampler:
    """Chooses tokens for `rows` rows of every run, never one of `banned`.

    Row b of each run uses the same random numbers, which follow from the seed and b alone.
    """

    def __init__(self, sampling: Sampling, rows: int, banned: Collection[int] = ()) -> None:
        self._sampling = sampling
        self._generators = [np.random.default_rng((sampling.seed, row)) for row in range(rows)]
        self._banned = sorted(banned)

    def choose(self, logits_RBV: Tensor) -> Tensor:
        """Return the next token [R, B], `NO_TOKEN` where a logit is not finite."""
        finite_RB = logits_RBV.isfinite().all(-1)
        if self._banned:
            banned = torch.tensor(self._banned, device=logits_RBV.device)
            logits_RBV = logits_RBV.index_fill(-1, banned, -math.inf)
        greedy = self._sampling.temperature == 0
        tokens_RB = logits_RBV.argmax(-1) if greedy else self._drawn(logits_RBV)
        return torch.where(finite_RB, tokens_RB, NO_TOKEN)

    def _drawn(self, logits_RBV: Tensor) -> Tensor:
        """Return tokens by the inverse of the cumulative distribution, the most probable first."""
        sampling, vocabulary = self._sampling, logits_RBV.shape[-1]
        if sampling.top_k is None or sampling.top_k >= vocabulary:
            logits_RBK, tokens_RBK = logits_RBV.sort(dim=-1, descending=True, stable=True)
        else:
            logits_RBK, tokens_RBK = logits_RBV.topk(sampling.top_k, -1)
        # a sum over a large vocabulary must not decide between two tokens
        logits_RBK = logits_RBK.double()
        p_RBK = logits_RBK.softmax(-1)
        # a token stays unless those before it reach top-p already
        kept_RBK = (p_RBK.cumsum(-1) - p_RBK < sampling.top_p) & (p_RBK >= sampling.min_p * p_RBK[..., :1])
        kept_RBK[..., 0] = True
        # the largest is 0, so that no temperature overflows
        scaled_RBK = (logits_RBK - logits_RBK[..., :1]) / sampling.temperature
        cumulative_RBK = scaled_RBK.masked_fill(~kept_RBK, -math.inf).softmax(-1).cumsum(-1)
        uniform_B = torch.tensor([generator.random() for generator in self._generators], dtype=torch.float64)
        # a sum that ends below 1 must not let a number above it choose a token that was left out
        point_RB = uniform_B.to(logits_RBV.device) * cumulative_RBK[..., -1]
        index_RB = (cumulative_RBK <= point_RB.unsqueeze(-1)).sum(-1).clamp_(max=p_RBK.shape[-1] - 1)
        return tokens_RBK.gather(-1, index_RB.unsqueeze(-1)).squeeze(-1)
