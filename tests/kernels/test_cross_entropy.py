"""Cross-entropy and its gradient in one launch, against the plain operations and double precision."""

import math

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from bitnetctl.kernels.cross_entropy import cross_entropy_
from bitnetctl.model import functional

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# the interpreter truncates where a GPU rounds
BF16 = 2**-7
# and warns of NaN
NAN_WARNING = "ignore:(invalid value|divide by zero):RuntimeWarning"


def drawn(runs: int, tokens: int, padded: int, vocab_size: int, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    """Return logits, whose padding must be ignored, and targets."""
    generator = torch.Generator().manual_seed(0)
    logits_RNV = torch.randn(runs, tokens, padded, generator=generator) * scale
    logits_RNV[..., vocab_size:] = torch.tensor([torch.nan, torch.inf]).repeat(padded)[: padded - vocab_size]
    targets_RN = torch.randint(vocab_size, (runs, tokens), generator=generator)
    return logits_RNV.to(DEVICE), targets_RN.to(DEVICE)


def expected(logits_RNV: Tensor, targets_RN: Tensor, vocab_size: int) -> tuple[Tensor, Tensor]:
    """Return loss and padded gradient in double precision."""
    loss_RN, grad_RNV = functional.cross_entropy(logits_RNV[..., :vocab_size].double(), targets_RN)
    return loss_RN, torch.nn.functional.pad(grad_RNV, (0, logits_RNV.shape[-1] - vocab_size))


@pytest.mark.parametrize(("padded", "vocab_size"), [(64, 64), (320, 257), (9000, 8195), (17_000, 16_999)])
def test_loss_and_gradient(padded: int, vocab_size: int) -> None:
    logits_RNV, targets_RN = drawn(2, 3, padded, vocab_size)
    targets_RN[0, :2] = torch.tensor([0, vocab_size - 1])
    expected_RN, expected_RNV = expected(logits_RNV, targets_RN, vocab_size)
    loss_RN = cross_entropy_(logits_RNV, targets_RN, vocab_size)
    assert loss_RN.dtype == torch.float32
    torch.testing.assert_close(loss_RN.double(), expected_RN, rtol=1e-6, atol=0.0)
    torch.testing.assert_close(logits_RNV.double(), expected_RNV, rtol=3e-6, atol=1e-12)
    assert (logits_RNV[..., vocab_size:] == 0.0).all()


def test_of_the_plain_operations_in_fp32() -> None:
    logits_RNV, targets_RN = drawn(2, 2, 2048, 2048)
    expected_RN, expected_RNV = functional.cross_entropy(logits_RNV, targets_RN)
    loss_RN = cross_entropy_(logits_RNV, targets_RN, 2048)
    torch.testing.assert_close(loss_RN, expected_RN, rtol=1e-6, atol=0.0)
    torch.testing.assert_close(logits_RNV, expected_RNV, rtol=3e-6, atol=1e-12)


def test_bf16_in_place() -> None:
    logits_RNV, targets_RN = drawn(2, 3, 640, 600)
    logits_RNV = logits_RNV.bfloat16()
    expected_RN, expected_RNV = expected(logits_RNV, targets_RN, 600)
    loss_RN = cross_entropy_(logits_RNV, targets_RN, 600)
    torch.testing.assert_close(loss_RN.double(), expected_RN, rtol=1e-6, atol=0.0)
    torch.testing.assert_close(logits_RNV.double(), expected_RNV, rtol=BF16, atol=0.0)
    assert (logits_RNV[..., 600:] == 0.0).all()


@pytest.mark.parametrize(("dtype", "grad_dtype"), [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)])
def test_a_gradient_elsewhere_leaves_the_logits(dtype: torch.dtype, grad_dtype: torch.dtype) -> None:
    logits_RNV, targets_RN = drawn(2, 3, 80, 70)
    logits_RNV = logits_RNV.to(dtype)
    before = logits_RNV.clone()
    # of other strides
    grad_RNV = torch.full((3, 2, 96), 5.0, dtype=grad_dtype, device=DEVICE).transpose(0, 1)[..., :80]
    loss_RN = cross_entropy_(logits_RNV, targets_RN, 70, grad_RNV)
    expected_RN, expected_RNV = expected(logits_RNV, targets_RN, 70)
    torch.testing.assert_close(logits_RNV, before, rtol=0.0, atol=0.0, equal_nan=True)
    torch.testing.assert_close(loss_RN.double(), expected_RN, rtol=1e-6, atol=0.0)
    torch.testing.assert_close(grad_RNV.double(), expected_RNV, rtol=BF16, atol=1e-12)


def test_targets_of_any_stride() -> None:
    logits_RNV, targets_RN = drawn(2, 3, 64, 64)
    expected_RN = cross_entropy_(logits_RNV.clone(), targets_RN, 64)
    strided_RN = targets_RN.T.contiguous().int().T
    assert torch.equal(cross_entropy_(logits_RNV, strided_RN, 64), expected_RN)


def test_large_logits_do_not_overflow() -> None:
    logits_RNV, targets_RN = drawn(1, 3, 512, 500, scale=1e4)
    logits_RNV[0, 0, :500] = 1e4
    logits_RNV[0, 1, :500] = -1e4
    expected_RN, expected_RNV = expected(logits_RNV, targets_RN, 500)
    loss_RN = cross_entropy_(logits_RNV, targets_RN, 500)
    torch.testing.assert_close(loss_RN.double(), expected_RN, rtol=1e-6, atol=0.0)
    torch.testing.assert_close(logits_RNV.double(), expected_RNV, rtol=3e-6, atol=1e-12)
    torch.testing.assert_close(loss_RN[0, :2].cpu(), torch.full((2,), math.log(500)), rtol=1e-6, atol=0.0)


@pytest.mark.filterwarnings(NAN_WARNING)
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("column", [0, 299])
def test_what_is_not_finite_stays_in_its_row(value: float, column: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # several blocks: before and after it
    monkeypatch.setattr("bitnetctl.kernels.cross_entropy._MAX_BLOCK", 64)
    logits_RNV, targets_RN = drawn(2, 3, 300, 300)
    logits_RNV[1, 1, column] = value
    loss_RN = cross_entropy_(logits_RNV, targets_RN, 300)
    assert (~loss_RN.isfinite()).nonzero().tolist() == [[1, 1]]
    assert (~logits_RNV.isfinite().all(-1)).nonzero().tolist() == [[1, 1]]


@pytest.mark.filterwarnings(NAN_WARNING)
def test_minus_infinity_is_a_probability_of_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitnetctl.kernels.cross_entropy._MAX_BLOCK", 64)
    logits_RNV, targets_RN = drawn(1, 2, 300, 300)
    # the whole of the first blocks
    logits_RNV[0, 0, :200] = -math.inf
    logits_RNV[0, 1] = -math.inf
    targets_RN[0, 0] = 250
    expected_RN, expected_RNV = expected(logits_RNV, targets_RN, 300)
    loss_RN = cross_entropy_(logits_RNV, targets_RN, 300)
    assert loss_RN[0, 1].isnan()
    torch.testing.assert_close(loss_RN[0, 0].double(), expected_RN[0, 0], rtol=1e-6, atol=0.0)
    torch.testing.assert_close(logits_RNV[0, 0].double(), expected_RNV[0, 0], rtol=3e-6, atol=1e-12)


def test_twice_the_same_bits_in_any_pack() -> None:
    logits_RNV, targets_RN = drawn(3, 2, 1000, 999)
    grads_RNV = [torch.empty_like(logits_RNV) for _ in range(3)]
    losses = [cross_entropy_(logits_RNV, targets_RN, 999, grad_RNV) for grad_RNV in grads_RNV[:2]]
    alone_RN = cross_entropy_(logits_RNV[1:2], targets_RN[1:2], 999, grads_RNV[2][1:2])
    assert torch.equal(losses[0], losses[1])
    assert torch.equal(grads_RNV[0], grads_RNV[1])
    assert torch.equal(losses[0][1:2], alone_RN)
    assert torch.equal(grads_RNV[0][1:2], grads_RNV[2][1:2])


def test_logits_that_are_not_contiguous_are_refused() -> None:
    with pytest.raises(ValueError, match="not contiguous"):
        cross_entropy_(torch.zeros(2, 64, 3).mT, torch.zeros(2, 3, dtype=torch.long), 64)
