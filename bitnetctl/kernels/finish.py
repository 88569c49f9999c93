"""The end of a step, one small kernel for what would be forty: metrics, divergence, clipping, coefficients of Adam.

Shapes: R runs, F flat parameters, B partial sums of a run, S steps of a table, C coefficients.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from bitnetctl.kernels.adam import (
    BETA1,
    BETA2,
    DECAY_TO_GRADIENT,
    DIVISOR,
    EPS,
    INVERSE_ROOT_CORRECTION,
    KEEP,
    ONE_MINUS_BETA1,
    ONE_MINUS_BETA2,
    RATE_OVER_CORRECTION,
    SKIP,
    Coefficient,
)

# partial sums read at once
_BLOCK = 256


@dataclass(kw_only=True)
class RunState:
    """What the end of a step reads and writes of every run.

    `constants_5R`, in fp64, are β1, β2, ε, the largest gradient norm (inf: none) and 1.0 for a decoupled decay;
    `exempt_FR` is 1.0 where a flat parameter is not decayed. `updates_R` counts a run's updates since its moments were
    zero; `diverged_at_R` is the first step that was not finite, 0 if none. `norms_FR` are the norms of the last
    gradients, `coefficients_FRC` the numbers with which `adam_` updates each flat parameter.
    """

    constants_5R: Tensor
    exempt_FR: Tensor
    updates_R: Tensor
    diverged_at_R: Tensor
    norms_FR: Tensor
    coefficients_FRC: Tensor


def finish_step(
    state: RunState,
    square_sums_RB: Tensor,
    starts: Sequence[int],
    loss_R: Tensor,
    objective_R: Tensor,
    index_1: Tensor,
    rates_SR: Tensor,
    decays_SR: Tensor,
    steps_S: Tensor,
    metrics_S3R: Tensor,
) -> None:
    """Prepare the update of every run for the step at `index_1` of the tables and write its metrics; one launch.

    Flat parameter f has the partial sums of squares `starts[f]` to `starts[f + 1]`. Metrics are loss, objective and
    global gradient norm. A run whose objective or norm is not finite is marked in `diverged_at_R`, and its updates are
    skipped from here on. The gradients are clipped by a divisor max(1, (norm + 1e-6) / max norm).
    """
    flats, runs, _ = state.coefficients_FRC.shape
    _finish[(runs,)](
        square_sums_RB,
        square_sums_RB.stride(0),
        loss_R,
        objective_R,
        index_1,
        rates_SR,
        decays_SR,
        steps_S,
        metrics_S3R,
        state.constants_5R,
        state.exempt_FR,
        state.updates_R,
        state.diverged_at_R,
        state.norms_FR,
        state.coefficients_FRC,
        runs,
        FLATS=flats,
        STARTS=tuple(starts),
        BLOCK=_BLOCK,
        COLUMNS=len(Coefficient),
        num_warps=1,
        enable_fp_fusion=False,
    )


@triton.jit
def _finish(
    sums_ptr,
    sums_stride,
    loss_ptr,
    objective_ptr,
    index_ptr,
    rates_ptr,
    decays_ptr,
    steps_ptr,
    metrics_ptr,
    constants_ptr,
    exempt_ptr,
    updates_ptr,
    diverged_ptr,
    norms_ptr,
    coefficients_ptr,
    runs,
    FLATS: tl.constexpr,
    STARTS: tl.constexpr,
    BLOCK: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    run = tl.program_id(0)
    index = tl.load(index_ptr)
    lanes = tl.arange(0, BLOCK)
    total = 0.0
    for flat in tl.static_range(FLATS):
        sums = tl.zeros([BLOCK], dtype=tl.float32)
        for start in range(STARTS[flat], STARTS[flat + 1], BLOCK):
            sums += tl.load(
                sums_ptr + run * sums_stride + start + lanes, mask=start + lanes < STARTS[flat + 1], other=0.0
            )
        squares = tl.sum(sums)
        tl.store(norms_ptr + flat * runs + run, tl.sqrt_rn(squares))
        total += squares
    norm = tl.sqrt_rn(total)
    loss, objective = tl.load(loss_ptr + run), tl.load(objective_ptr + run)
    tl.store(metrics_ptr + (index * 3 + 0) * runs + run, loss)
    tl.store(metrics_ptr + (index * 3 + 1) * runs + run, objective)
    tl.store(metrics_ptr + (index * 3 + 2) * runs + run, norm)

    # neither NaN nor infinite
    is_finite = (tl.abs(objective) < float("inf")) & (norm < float("inf"))
    diverged_at = tl.load(diverged_ptr + run)
    diverged_at = tl.where((diverged_at == 0) & (is_finite == 0), tl.load(steps_ptr + index), diverged_at)
    tl.store(diverged_ptr + run, diverged_at)
    skip = tl.where(diverged_at > 0, 1.0, 0.0)
    updates = tl.load(updates_ptr + run)
    tl.store(updates_ptr + run, updates + 1.0 - skip)

    beta1, beta2 = tl.load(constants_ptr + run), tl.load(constants_ptr + runs + run)
    eps, max_norm = tl.load(constants_ptr + 2 * runs + run), tl.load(constants_ptr + 3 * runs + run)
    decoupled = tl.load(constants_ptr + 4 * runs + run)
    rate, decay = tl.load(rates_ptr + index * runs + run), tl.load(decays_ptr + index * runs + run)
    # in fp64: 1 - β^t loses most of its digits in fp32 at the first steps
    count = (updates + 1.0).to(tl.float64)
    correction1 = 1.0 - tl.exp(count * tl.log(beta1))
    correction2 = 1.0 - tl.exp(count * tl.log(beta2))
    divisor = tl.maximum(tl.div_rn(norm + 1e-6, max_norm.to(tl.float32)), 1.0)
    for flat in tl.static_range(FLATS):
        row = coefficients_ptr + (flat * runs + run) * COLUMNS
        decayed = decay.to(tl.float64) * (1.0 - tl.load(exempt_ptr + flat * runs + run))
        tl.store(row + RATE_OVER_CORRECTION, rate.to(tl.float64) / correction1)
        tl.store(row + INVERSE_ROOT_CORRECTION, 1.0 / tl.sqrt(correction2))
        tl.store(row + DECAY_TO_GRADIENT, decayed * (1.0 - decoupled))
        tl.store(row + KEEP, 1.0 - rate.to(tl.float64) * decayed * decoupled)
        tl.store(row + BETA1, beta1)
        tl.store(row + BETA2, beta2)
        tl.store(row + EPS, eps)
        tl.store(row + DIVISOR, divisor)
        tl.store(row + SKIP, skip)
        tl.store(row + ONE_MINUS_BETA1, 1.0 - beta1)
        tl.store(row + ONE_MINUS_BETA2, 1.0 - beta2)


def new_state(runs: int, flats: int, device: torch.device) -> RunState:
    """Return the state of `runs` runs before their first step; its constants are to be filled."""
    return RunState(
        constants_5R=torch.zeros(5, runs, dtype=torch.float64, device=device),
        exempt_FR=torch.zeros(flats, runs, device=device),
        updates_R=torch.zeros(runs, device=device),
        diverged_at_R=torch.zeros(runs, dtype=torch.long, device=device),
        norms_FR=torch.full((flats, runs), torch.nan, device=device),
        coefficients_FRC=torch.zeros(flats, runs, len(Coefficient), device=device),
    )
