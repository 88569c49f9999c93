"""Kernels of rotary embeddings against `functional.rotate` and its backward."""

import math

import pytest
import torch
from torch import Tensor

from bitnetctl.config import ModelConfig
from bitnetctl.kernels.rotary import rotate_, rotate_backward
from bitnetctl.model import functional
from bitnetctl.model.layer import rotary_tables

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
RUNS, ROWS, HEADS = 2, 3, 4
# one rounding of a sum of two products; in bf16 Triton's interpreter truncates where a GPU rounds
TOLERANCE = {torch.float32: 2**-22, torch.bfloat16: 2**-7}
# positions, key/value heads, head size
SHAPES = [(5, 4, 8), (5, 2, 64), (7, 1, 24), (40, 4, 16), (1, 2, 2)]


def tables(positions: int, size: int) -> tuple[Tensor, Tensor]:
    config = ModelConfig(hidden_size=HEADS * size, num_attention_heads=HEADS, num_key_value_heads=HEADS)
    cos_TD, sin_TD = rotary_tables(config, positions)
    return cos_TD.to(DEVICE), sin_TD.to(DEVICE)


def random(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(DEVICE, dtype)


def assert_close(actual: Tensor, expected: Tensor) -> None:
    """Compare values, of which all are of order 1, with those of fp32."""
    torch.testing.assert_close(actual.float(), expected.float(), rtol=TOLERANCE[actual.dtype], atol=2**-20)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("positions", "kv_heads", "size"), SHAPES)
def test_queries_and_keys_are_rotated_in_place(positions: int, kv_heads: int, size: int, dtype: torch.dtype) -> None:
    cos_TD, sin_TD = tables(positions, size)
    heads, rotated = HEADS + 2 * kv_heads, HEADS + kv_heads
    qkv_RNO = random(RUNS, ROWS * positions, heads * size, dtype=dtype)
    # with space between rows and between runs, which must stay as it is
    spaced_RNO = torch.full((RUNS, ROWS * positions + 1, (heads + 1) * size), 7.0, dtype=dtype, device=DEVICE)
    inner_RNO = spaced_RNO[:, :-1, : heads * size]
    inner_RNO.copy_(qkv_RNO)
    rotate_(inner_RNO, cos_TD, sin_TD, rotated)
    result = inner_RNO.reshape(-1, positions, heads, size).transpose(1, 2)
    before = qkv_RNO.view(-1, positions, heads, size).transpose(1, 2)
    assert_close(result[:, :rotated], functional.rotate(before[:, :rotated].float(), cos_TD, sin_TD))
    assert torch.equal(result[:, rotated:], before[:, rotated:])
    inner_RNO.fill_(7)
    assert spaced_RNO.eq(7).all()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("positions", "kv_heads", "size"), SHAPES)
def test_gradients_are_rotated_back(positions: int, kv_heads: int, size: int, dtype: torch.dtype) -> None:
    cos_TD, sin_TD = tables(positions, size)
    heads = HEADS + 2 * kv_heads
    # each gradient in strides of its own: as attention returns it, positions before heads, with space between
    grads = random(RUNS * ROWS, heads, positions, size, dtype=dtype)
    grad_q = grads[:, :HEADS].clone()
    grad_k = grads[:, HEADS:-kv_heads].transpose(1, 2).contiguous().transpose(1, 2)
    grad_v = grads[:, -kv_heads:]
    result_RNO = rotate_backward(grad_q, grad_k, grad_v, cos_TD, sin_TD, RUNS)
    assert (result_RNO.shape, result_RNO.dtype) == ((RUNS, ROWS * positions, heads * size), dtype)
    assert result_RNO.is_contiguous()
    result = result_RNO.view(-1, positions, heads, size).transpose(1, 2)
    expected = functional.rotate_backward(grads[:, :-kv_heads].float(), cos_TD, sin_TD)
    assert_close(result[:, :-kv_heads], expected)
    assert torch.equal(result[:, -kv_heads:], grad_v)


def test_backward_undoes_the_rotation() -> None:
    cos_TD, sin_TD = tables(9, 16)
    qkv_RNO = random(RUNS, ROWS * 9, 3 * HEADS * 16, dtype=torch.float32)
    rotated_RNO = qkv_RNO.clone()
    rotate_(rotated_RNO, cos_TD, sin_TD, 2 * HEADS)
    q, k, v = rotated_RNO.view(-1, 9, 3 * HEADS, 16).transpose(1, 2).split(HEADS, dim=1)
    assert_close(rotate_backward(q, k, v, cos_TD, sin_TD, RUNS), qkv_RNO)


# Triton's interpreter computes in NumPy
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_what_is_not_finite_stays_in_its_head() -> None:
    cos_TD, sin_TD = tables(5, 8)
    qkv_RNO = random(RUNS, ROWS * 5, 3 * HEADS * 8, dtype=torch.float32)
    qkv_RNO[1, 7, 8:16] = math.nan
    qkv_RNO[1, 7, -1] = math.inf
    rotate_(qkv_RNO, cos_TD, sin_TD, 2 * HEADS)
    finite = qkv_RNO.isfinite()
    assert finite.logical_not().sum() == 9
    q, k, v = qkv_RNO.view(-1, 5, 3 * HEADS, 8).transpose(1, 2).split(HEADS, dim=1)
    grad_RNO = rotate_backward(q, k, v, cos_TD, sin_TD, RUNS)
    assert torch.equal(grad_RNO.isfinite(), finite)
    assert grad_RNO[1, 7, -1] == math.inf


def test_features_that_are_not_contiguous_are_refused() -> None:
    cos_TD, sin_TD = tables(5, 8)
    query, key, value = (random(RUNS * ROWS, HEADS, 5, 8, dtype=torch.float32) for _ in range(3))
    transposed = key.mT.contiguous().mT
    with pytest.raises(ValueError, match="not contiguous"):
        rotate_backward(query, transposed, value, cos_TD, sin_TD, RUNS)
