"""Attention on a GPU: which kernels it takes, that its bits repeat, and that it agrees with double precision."""

from typing import Any

import pytest
import torch
from on_gpu import GPU, MARKS
from torch import Tensor

from bitnetctl.config import ModelConfig
from bitnetctl.model.layer import Layer
from bitnetctl.model.matmul import Matmul, Operand

pytestmark = MARKS
HEADS, WIDTH = 4, 64
FLASH, EFFICIENT = "ScaledDotProductFlashAttention", "ScaledDotProductEfficientAttention"


def heads(layer: Layer, positions: int) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
    """Return queries, keys and values of two rows, and the gradient of attention's output."""
    generator = torch.Generator(GPU).manual_seed(positions)
    q, k, v = (
        torch.randn(2, HEADS, positions, WIDTH, generator=generator, device=GPU).to(layer._matmul.dtype)
        for _ in range(3)
    )
    return (q, k, v), torch.randn(1, 2 * positions, HEADS * WIDTH, generator=generator, device=GPU)


def layer_of(positions: int, precision: Any) -> Layer:
    config = ModelConfig(hidden_size=HEADS * WIDTH, num_attention_heads=HEADS, num_key_value_heads=HEADS)
    return Layer(config, Matmul(precision, GPU), positions, GPU)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("positions", [8, 32, 33, 128, 256, 512])
def test_attention_repeats_and_agrees_with_double_precision(positions: int, precision: Any) -> None:
    layer = layer_of(positions, precision)
    (q, k, v), grad = heads(layer, positions)

    def both_ways() -> list[Tensor]:
        out, saved = layer._attend((q, k, v), 1)
        return [out, *layer._attend_backward(grad, saved)]

    first = both_ways()
    for _ in range(10):
        for expected, again in zip(first, both_ways(), strict=True):
            assert torch.equal(expected, again)
    exact = [head.double().requires_grad_() for head in (q, k, v)]
    mask = torch.full((positions, positions), -torch.inf, dtype=torch.double, device=GPU).triu(1)
    out = (exact[0] @ exact[1].mT * WIDTH**-0.5 + mask).softmax(-1) @ exact[2]
    out = out.transpose(1, 2).reshape(1, -1, HEADS * WIDTH)
    expected_all = [out.detach(), *torch.autograd.grad(out, exact, grad.double())]
    for ours, double in zip(first, expected_all, strict=True):
        error = (ours.double() - double).norm() / double.norm()
        assert error < (1e-2 if precision == "bf16" else 1e-5)


@pytest.mark.parametrize(("precision", "kernel"), [("bf16", FLASH), ("fp32", EFFICIENT)])
@pytest.mark.parametrize("positions", [8, 32, 33, 256])
def test_attention_is_flash_in_bf16_and_never_cudnn(positions: int, precision: Any, kernel: str) -> None:
    layer = layer_of(positions, precision)
    _, (_, _, _, out) = layer._attend(heads(layer, positions)[0], 1)
    assert out.grad_fn is not None
    # cuDNN's is ScaledDotProductCudnnAttentionBackward0
    assert out.grad_fn.name().startswith(f"{kernel}Backward")


def test_sums_of_int8_times_ternary_are_exact() -> None:
    generator = torch.Generator(GPU).manual_seed(0)
    x = torch.randint(-127, 128, (2, 32, 256), generator=generator, device=GPU).to(torch.int8)
    w = torch.randint(-1, 2, (2, 64, 256), generator=generator, device=GPU).to(torch.int8)
    ones = [torch.ones(2, rows, 1, device=GPU) for rows in (32, 64)]
    product = Matmul("int8", GPU).multiply(Operand(x, ones[0]), Operand(w, ones[1]))
    assert torch.equal(product.double(), x.double() @ w.double().mT)
