"""How far a model may be from itself, computed in another order: what a gate of log-probabilities must allow.

Sums in another order flip some roundings to int8. What that changes depends on the model: it grows as the model learns,
and is large in one that has learned nothing. So a limit that holds for one model is blind or too strict for another.

Shapes: P rows of T tokens.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from bitnetctl.errors import ExportError
from bitnetctl.formats.gates import compare_rows
from bitnetctl.inference.trained import TrainedRun
from bitnetctl.model.parameters import EMBEDDINGS

NOISE, NOISE_FACTOR = 1e-6, 5
"""Relative noise of the embeddings, and how many times the KL divergence that it makes another program may make."""
CEILING = 1e-3
"""Of a gate: another model may be as near to one that is more sensitive, which is therefore refused."""


def with_noise(run: TrainedRun) -> TrainedRun:
    """Return a run whose embeddings are off by a few roundings of fp32, always by the same."""
    weights = run.weights()
    embeddings = weights[EMBEDDINGS]
    noise = torch.randn(embeddings.shape, generator=torch.Generator().manual_seed(0))
    noisy = {**weights, EMBEDDINGS: embeddings * (1 + NOISE * noise)}
    return run.with_model(noisy, run.model.matmul.quantizers)


@torch.no_grad()
def noise_kl(run: TrainedRun, rows_PT: Tensor, logits: Iterable[Tensor]) -> float:
    """Return `NOISE_FACTOR` times the KL divergence that `NOISE` makes on rows, whose `logits` [T, V] are the run's."""
    noisy = with_noise(run)
    return NOISE_FACTOR * compare_rows(logits, (noisy.logits(row_T[None])[0] for row_T in rows_PT)).kl


def kl_gate(run: TrainedRun, least: float, sensitivity: float, program: str) -> float:
    """Return the largest KL divergence allowed: `least`, or the sensitivity of the run where that is more.

    Raises ExportError above `CEILING`, where the run is no nearer to itself than another model may be.
    """
    if not sensitivity <= CEILING:
        raise ExportError(
            f"self-check cannot decide: {run.name} is so sensitive to rounding that {program} may differ by a KL "
            f"divergence of {sensitivity:.1e}, above {CEILING:g}; train it longer, or write it with --no-check"
        )
    return max(least, sensitivity)
