"""What the probe's kernels sum, against double precision."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from bitnetctl.kernels import probe

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def logits(runs: int, positions: int, vocab_size: int, dtype: torch.dtype, *, padded: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(vocab_size)
    drawn = 8 * torch.randn(runs, positions, vocab_size + padded, generator=generator)
    return drawn.to(DEVICE, dtype)[..., :vocab_size]


def summed(x_RNV: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return loss and entropy by position, and the sums, from ones that are not zero."""
    softmax_RV = torch.ones(len(x_RNV), x_RNV.shape[-1], dtype=torch.double, device=DEVICE)
    counts_RV = torch.ones_like(softmax_RV, dtype=torch.long)
    loss_RN, entropy_RN = probe.add_predictions(x_RNV, targets_N, softmax_RV, counts_RV)
    return loss_RN, entropy_RN, softmax_RV, counts_RV


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("runs", "positions", "vocab_size", "padded"), [(1, 3, 5, 0), (2, 70, 200, 56), (1, 2, 5000, 3)]
)
def test_sums_are_those_of_double_precision(
    dtype: torch.dtype, runs: int, positions: int, vocab_size: int, padded: int
) -> None:
    x_RNV = logits(runs, positions, vocab_size, dtype, padded=padded)
    targets_N = (7 * torch.arange(positions, device=DEVICE)) % vocab_size
    loss_RN, entropy_RN, softmax_RV, counts_RV = summed(x_RNV, targets_N)
    log_p_RNV = x_RNV.double().log_softmax(-1)
    p_RNV = log_p_RNV.exp()
    expected_RN = -log_p_RNV.gather(-1, targets_N.expand(runs, -1).unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(loss_RN.double(), expected_RN, rtol=1e-6, atol=2e-6)
    torch.testing.assert_close(entropy_RN.double(), -(p_RNV * log_p_RNV).sum(-1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(softmax_RV, 1 + p_RNV.sum(1), rtol=1e-6, atol=1e-7)
    ones_RN = torch.ones_like(x_RNV.argmax(-1))
    assert counts_RV.equal(torch.ones_like(counts_RV).scatter_add_(1, x_RNV.float().argmax(-1), ones_RN))


def test_the_first_of_equal_logits_is_counted() -> None:
    """In the same lane, in the last lane of one block and in the first of the next."""
    x_RNV = torch.zeros(1, 3, 5000, device=DEVICE)
    for position, tied in enumerate(([17, 17 + 2048], [2047, 2048], [])):
        x_RNV[0, position, tied] = 1.0
    *_, counts_RV = summed(x_RNV, torch.zeros(3, dtype=torch.long, device=DEVICE))
    assert (counts_RV[0] - 1).nonzero().flatten().tolist() == [0, 17, 2047]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_spoils_its_own_row_and_run_only(bad: float) -> None:
    x_RNV = logits(2, 4, 50, torch.float32)
    targets_N = torch.zeros(4, dtype=torch.long, device=DEVICE)
    healthy = summed(x_RNV, targets_N)
    x_RNV[0, 1, 3] = bad
    # Triton's interpreter computes with numpy, which warns
    with np.errstate(invalid="ignore"):
        broken = summed(x_RNV, targets_N)
    for values, expected in zip(broken[:3], healthy[:3], strict=True):
        assert values[1].equal(expected[1])
    assert broken[0][0].isnan().tolist() == broken[1][0].isnan().tolist() == [False, True, False, False]
    assert broken[2][0].isnan().any()
    assert broken[3][0].sum() == 50 + 4


def test_certain_predictions_have_no_entropy() -> None:
    x_RNV = torch.full((1, 2, 300), -1e30, device=DEVICE)
    x_RNV[0, :, 7] = 1e4
    loss_RN, entropy_RN, softmax_RV, _ = summed(x_RNV, torch.full((2,), 7, device=DEVICE))
    assert loss_RN.tolist() == entropy_RN.tolist() == [[0.0, 0.0]]
    assert softmax_RV[0, 7] == 3
