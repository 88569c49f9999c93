"""The probe: what a model predicts on fixed held-out positions, measured the same for every run.

Shapes: R runs, P probe rows, T positions of a row, N positions of a chunk, V vocabulary.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from bitnetctl.config import ProbeConfig
from bitnetctl.data import ProbeData
from bitnetctl.engine.cost import probe_chunk_bytes
from bitnetctl.model.packed import PackedModel

# fp32 logits evaluated at once, to fit into the CPU's cache or, on a GPU, beside a large pack
_PASS_BYTES = {"cpu": 2 * 2**20, "cuda": 2**28}
# positions on which kernels are compared with plain operations
_CHECKED_POSITIONS = 16


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
    def measure(self, model: PackedModel, quant_lambdas: Sequence[float]) -> list[dict[str, float | int]]:
        """Return the probe's columns for every run.

        Held-out loss and context information are in nats; context information is H(mean softmax) − mean H(softmax),
        about 0 where the output ignores its context. Effective vocabulary is exp of the entropy of the arg-max
        histogram. A run whose logits are not finite gets NaN in what depends on them.
        """
        prepared, sums = model.prepared(quant_lambdas), _Sums(model.num_runs, self._vocab_size, model.device)
        rows, positions = self._inputs_PT.shape
        token_bytes = 4 * model.num_runs * self._vocab_size
        rows_per_chunk = max(1, probe_chunk_bytes(model.device) // (positions * token_bytes))
        chunks = zip(self._inputs_PT.split(rows_per_chunk), self._targets_PT.split(rows_per_chunk), strict=True)
        for inputs_PT, targets_PT in chunks:
            # not kept in a variable: the logits of two chunks would be in memory at once
            sums.add(prepared.logits(inputs_PT.expand(model.num_runs, -1, -1)), targets_PT.flatten())
        total = rows * positions
        context_R = torch.special.entr(sums.softmax_RV / total).sum(-1) - sums.entropy_R / total
        loss_R = sums.loss_R / total
        prompt_logits = prepared.logits(self._prompts_PT.expand(model.num_runs, -1, -1))
        last_RPV = prompt_logits.view(model.num_runs, *self._prompts_PT.shape, -1)[:, :, -1]
        top_RP = last_RPV.argmax(-1).masked_fill(~last_RPV.isfinite().all(-1), -1)
        return [
            self._columns(counts_V, float(loss), float(context), top_P)
            for counts_V, loss, context, top_P in zip(
                sums.counts_RV.cpu(), loss_R.cpu(), context_R.cpu(), top_RP.cpu(), strict=True
            )
        ]

    def _columns(self, counts_V: Tensor, loss: float, context: float, top_P: Tensor) -> dict[str, float | int]:
        """Return the columns of one run; `top_P` are arg-max tokens, -1 where a logit is not finite."""
        data, finite = self._data, math.isfinite(loss)
        fraction_V = counts_V.double() / counts_V.sum()
        return {
            "UniquePredictions": int(counts_V.count_nonzero()) if finite else math.nan,
            "HeldOutLoss": loss,
            "UniqueTargets": data.unique_targets,
            "ProbePositions": data.inputs_PT.size,
            "TopShare": float(fraction_V.max()) if finite else math.nan,
            "EffectiveVocab": math.exp(torch.special.entr(fraction_V).sum()) if finite else math.nan,
            "ContextInformation": context,
            "UnigramLoss": data.unigram_loss,
            "BigramLoss": data.bigram_loss,
            "BigramUnique": data.bigram_unique,
            "RandomPromptUnique": int(top_P.unique().numel()) if finite and bool((top_P >= 0).all()) else math.nan,
        }


class _Sums:
    """Sums over the probe's positions, by run: loss and entropy in nats, softmax, and how often each token is largest.

    Loss, entropy and softmax are added in double precision.
    """

    def __init__(self, runs: int, vocab_size: int, device: torch.device) -> None:
        self.loss_R = torch.zeros(runs, dtype=torch.double, device=device)
        self.entropy_R = torch.zeros_like(self.loss_R)
        self.softmax_RV = torch.zeros(runs, vocab_size, dtype=torch.double, device=device)
        self.counts_RV = torch.zeros(runs, vocab_size, dtype=torch.long, device=device)

    def add(self, logits_RNV: Tensor, targets_N: Tensor) -> None:
        """Add the predictions of N positions, by kernels where they work, else in passes over few of them."""
        if _kernels_agree(logits_RNV, targets_N):
            self.add_by_kernels(logits_RNV, targets_N)
            return
        runs, _, vocab_size = logits_RNV.shape
        tokens = max(1, _PASS_BYTES[logits_RNV.device.type] // (4 * runs * vocab_size))
        for part_RNV, part_N in zip(logits_RNV.split(tokens, 1), targets_N.split(tokens), strict=True):
            self.add_plainly(part_RNV, part_N)

    def add_plainly(self, logits_RNV: Tensor, targets_N: Tensor) -> None:
        """Add the predictions of positions by torch's operations."""
        x_RNV = logits_RNV.float()
        # bf16 has fewer bytes to read, except on the CPU, where it is slow
        argmax_RN = _argmax(x_RNV) if x_RNV.is_cpu else logits_RNV.argmax(-1)
        self.counts_RV.scatter_add_(1, argmax_RN, torch.ones_like(argmax_RN))
        argmax_RN1, targets_RN1 = argmax_RN.unsqueeze(-1), targets_N.expand(len(x_RNV), -1).unsqueeze(-1)
        p_RNV = x_RNV.softmax(-1)
        self.softmax_RV += p_RNV.sum(1)
        # log Σ exp, read off the softmax at the largest logit
        log_sum_RN1 = x_RNV.gather(-1, argmax_RN1) - p_RNV.gather(-1, argmax_RN1).log_()
        self.loss_R += (log_sum_RN1 - x_RNV.gather(-1, targets_RN1)).sum((1, 2), dtype=torch.double)
        expected_RN1 = p_RNV.mul_(x_RNV).sum(-1, keepdim=True)
        self.entropy_R += (log_sum_RN1 - expected_RN1).sum((1, 2), dtype=torch.double)

    def add_by_kernels(self, logits_RNV: Tensor, targets_N: Tensor) -> None:
        """Do what `add_plainly` does, in 6 bytes a logit of memory traffic instead of 38."""
        # needs Triton
        from bitnetctl.kernels.probe import add_predictions

        loss_RN, entropy_RN = add_predictions(logits_RNV, targets_N, self.softmax_RV, self.counts_RV)
        self.loss_R += loss_RN.sum(1, dtype=torch.double)
        self.entropy_R += entropy_RN.sum(1, dtype=torch.double)

    def agrees_with(self, other: "_Sums") -> bool | None:
        """Whether all sums of the runs that are finite in this one are equal, but for rounding; None without any."""
        finite_R = self.loss_R.isfinite()
        if not finite_R.any():
            return None
        return torch.equal(self.counts_RV[finite_R], other.counts_RV[finite_R]) and all(
            torch.allclose(ours[finite_R], theirs[finite_R], rtol=1e-5, atol=1e-5)
            for ours, theirs in (
                (self.loss_R, other.loss_R),
                (self.entropy_R, other.entropy_R),
                (self.softmax_RV, other.softmax_RV),
            )
        )


# by device and dtype, whether the kernels agreed with the plain operations
_agreed: dict[tuple[torch.device, torch.dtype], bool] = {}


def _kernels_agree(logits_RNV: Tensor, targets_N: Tensor) -> bool:
    """Whether the kernels work on this GPU: compared once for each dtype with plain operations, on a few positions."""
    key = logits_RNV.device, logits_RNV.dtype
    if logits_RNV.is_cpu or key in _agreed:
        return _agreed.get(key, False)
    part_RNV, part_N = logits_RNV[:, :_CHECKED_POSITIONS], targets_N[:_CHECKED_POSITIONS]
    plain, fused = (_Sums(len(part_RNV), part_RNV.shape[-1], part_RNV.device) for _ in range(2))
    plain.add_plainly(part_RNV, part_N)
    try:
        fused.add_by_kernels(part_RNV, part_N)
        agrees = plain.agrees_with(fused)
    except Exception:
        # no Triton, no C compiler, or a GPU for which it cannot compile
        agrees = False
    if agrees is not None:
        _agreed[key] = agrees
    return bool(agrees)


def _argmax(x_RNV: Tensor) -> Tensor:
    """Return the arg-max on the CPU: numpy's takes a twelfth of the time of torch's, and is the first one too."""
    return torch.from_numpy(x_RNV.numpy().argmax(-1))


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
