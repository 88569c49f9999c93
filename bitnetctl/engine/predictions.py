"""What is read off the logits of many positions, for every run of a pack.

Shapes: R runs, N positions, V vocabulary.
"""

import torch
from torch import Tensor

# fp32 logits evaluated at once, to fit into the CPU's cache or, on a GPU, beside a large pack
_PASS_BYTES = {"cpu": 2 * 2**20, "cuda": 2**28}


class PredictionSums:
    """Sums over positions, by run: loss and entropy in nats, softmax, and how often each token is the largest.

    Loss, entropy and softmax are added in double precision. `fused`: by own kernels, which read the logits twice: 6
    bytes a logit instead of 38.
    """

    def __init__(self, runs: int, vocab_size: int, device: torch.device, *, fused: bool = False) -> None:
        self._fused = fused
        self.loss_R = torch.zeros(runs, dtype=torch.double, device=device)
        self.entropy_R = torch.zeros_like(self.loss_R)
        self.softmax_RV = torch.zeros(runs, vocab_size, dtype=torch.double, device=device)
        self.counts_RV = torch.zeros(runs, vocab_size, dtype=torch.long, device=device)

    def add(self, logits_RNV: Tensor, targets_N: Tensor) -> None:
        """Add the predictions of N positions: all at once by kernels, else a few at a time."""
        if self._fused:
            self._add_by_kernels(logits_RNV, targets_N)
            return
        runs, _, vocab_size = logits_RNV.shape
        tokens = max(1, _PASS_BYTES[logits_RNV.device.type] // (4 * runs * vocab_size))
        for part_RNV, part_N in zip(logits_RNV.split(tokens, 1), targets_N.split(tokens), strict=True):
            self._add_plainly(part_RNV, part_N)

    def _add_plainly(self, logits_RNV: Tensor, targets_N: Tensor) -> None:
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

    def _add_by_kernels(self, logits_RNV: Tensor, targets_N: Tensor) -> None:
        # needs Triton
        from bitnetctl.kernels.probe import add_predictions

        loss_RN, entropy_RN = add_predictions(logits_RNV, targets_N, self.softmax_RV, self.counts_RV)
        self.loss_R += loss_RN.sum(1, dtype=torch.double)
        self.entropy_R += entropy_RN.sum(1, dtype=torch.double)


def _argmax(x_RNV: Tensor) -> Tensor:
    """Return the arg-max on the CPU: numpy's takes a twelfth of the time of torch's, and is the first one too."""
    return torch.from_numpy(x_RNV.numpy().argmax(-1))
