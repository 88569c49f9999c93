"""The probe: what a model predicts on fixed held-out positions, measured the same for every run.

Shapes: R runs, P probe rows, T positions of a row, N positions of a chunk, V vocabulary.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from bitnetctl.config import ProbeConfig
from bitnetctl.data import ProbeData
from bitnetctl.engine.cost import probe_chunk_bytes
from bitnetctl.engine.predictions import PredictionSums
from bitnetctl.model.packed import PackedModel

Logits: TypeAlias = Callable[[Tensor], Tensor]
"""Maps tokens [R, P, T] to logits [R, P·T, V]."""


class Probe:
    """Measures every run of a pack on the same held-out positions and the same random prompts."""

    def __init__(self, config: ProbeConfig, data: ProbeData, vocab_size: int, device: torch.device) -> None:
        self._data = data
        self._vocab_size = vocab_size
        self._inputs_PT = torch.from_numpy(data.inputs_PT).to(device)
        self._targets_PT = torch.from_numpy(data.targets_PT).to(device)
        rng = np.random.default_rng(config.seed)
        prompts = rng.integers(0, vocab_size, (config.random_prompts, config.random_prompt_tokens))
        self._prompts_PT = torch.from_numpy(prompts).to(device)

    @torch.no_grad()
    def measure(self, model: PackedModel, quant_lambdas: Sequence[float]) -> list[dict[str, float | int | None]]:
        """Return the probe's columns for every run.

        Held-out loss and context information are in nats; context information is H(mean softmax) − mean H(softmax),
        about 0 where the output ignores its context. Effective vocabulary is exp of the entropy of the arg-max
        histogram. Bits per byte are unknown without the probe's bytes. A run whose logits are not finite gets NaN in
        what depends on them.
        """
        return self.measure_logits(model.prepared(quant_lambdas), model.num_runs, fused="probe" in model.parts)

    @torch.no_grad()
    def measure_logits(
        self, logits: Logits, runs: int = 1, *, fused: bool = False, rows_per_chunk: int | None = None
    ) -> list[dict[str, float | int | None]]:
        """Return the columns as `measure` does for any model; `rows_per_chunk` are as many as fit if None."""
        device = self._inputs_PT.device
        sums = PredictionSums(runs, self._vocab_size, device, fused=fused)
        rows, positions = self._inputs_PT.shape
        if rows_per_chunk is None:
            token_bytes = 4 * runs * self._vocab_size
            rows_per_chunk = max(1, probe_chunk_bytes(device) // (positions * token_bytes))
        chunks = zip(self._inputs_PT.split(rows_per_chunk), self._targets_PT.split(rows_per_chunk), strict=True)
        for inputs_PT, targets_PT in chunks:
            # not kept in a variable: the logits of two chunks would be in memory at once
            sums.add(logits(inputs_PT.expand(runs, -1, -1)), targets_PT.flatten())
        total = rows * positions
        context_R = _entropy(sums.softmax_RV / total) - sums.entropy_R / total
        loss_R = sums.loss_R / total
        prompt_logits = logits(self._prompts_PT.expand(runs, -1, -1))
        last_RPV = prompt_logits.view(runs, *self._prompts_PT.shape, -1)[:, :, -1]
        top_RP = last_RPV.argmax(-1).masked_fill(~last_RPV.isfinite().all(-1), -1)
        return [
            self._columns(counts_V, float(loss), float(context), top_P)
            for counts_V, loss, context, top_P in zip(
                sums.counts_RV.cpu(), loss_R.cpu(), context_R.cpu(), top_RP.cpu(), strict=True
            )
        ]

    def _columns(self, counts_V: Tensor, loss: float, context: float, top_P: Tensor) -> dict[str, float | int | None]:
        """Return the columns of one run; `top_P` are arg-max tokens, -1 where a logit is not finite."""
        data, finite = self._data, math.isfinite(loss)
        fraction_V = counts_V.double() / counts_V.sum()
        return {
            "UniquePredictions": int(counts_V.count_nonzero()) if finite else math.nan,
            "HeldOutLoss": loss,
            "UniqueTargets": data.unique_targets,
            "ProbePositions": data.inputs_PT.size,
            "TopShare": float(fraction_V.max()) if finite else math.nan,
            "EffectiveVocab": math.exp(_entropy(fraction_V)) if finite else math.nan,
            "ContextInformation": context,
            "UnigramLoss": data.unigram_loss,
            "BigramLoss": data.bigram_loss,
            "BigramUnique": data.bigram_unique,
            "RandomPromptUnique": int(top_P.unique().numel()) if finite and bool((top_P >= 0).all()) else math.nan,
            "HeldOutBitsPerByte": self._bits_per_byte(loss),
        }

    def _bits_per_byte(self, loss: float) -> float | None:
        """Return loss / ln 2 · tokens / bytes, which does not depend on the tokenizer; None without bytes."""
        data = self._data
        return loss / math.log(2) * data.targets_PT.size / data.target_bytes if data.target_bytes else None


def _entropy(p: Tensor) -> Tensor:
    """Return −Σ p·log p over the last dimension; `torch.special.entr` would be compiled at its first use on a GPU."""
    return -torch.xlogy(p, p).sum(-1)


def ternary_health(codes: Mapping[str, Tensor], previous: Mapping[str, Tensor] | None) -> list[dict[str, float | None]]:
    """Return zero fraction and flip rate for every run of ternary codes [R, L, O, I].

    The flip rate is the fraction of ternary weights that changed their value since `previous`; unknown without it.
    """
    total = sum(code[0].numel() for code in codes.values())
    zeros_R = torch.stack([(code == 0).flatten(1).sum(1) for code in codes.values()]).sum(0)
    flips: list[float | None] = [None] * len(zeros_R)
    if previous is not None:
        changed_R = torch.stack([(codes[key] != previous[key]).flatten(1).sum(1) for key in codes]).sum(0)
        flips = (changed_R / total).tolist()
    return [
        {"ZeroFraction": zeros / total, "FlipRate": flip} for zeros, flip in zip(zeros_R.tolist(), flips, strict=True)
    ]
