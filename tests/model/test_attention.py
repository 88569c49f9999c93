"""Attention through SDPA: which backends it may take, a backward that repeats, and the library settings around it."""

import contextlib
import warnings
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from bitnetctl.config import ModelConfig
from bitnetctl.model import layer
from bitnetctl.model.layer import Layer, compile_if
from bitnetctl.model.matmul import Matmul

CPU = torch.device("cpu")
FLASH = "ScaledDotProductFlashAttentionBackward0"


def node(name: str, *inputs: SimpleNamespace) -> SimpleNamespace:
    """A node of autograd's graph."""
    return SimpleNamespace(name=lambda: name, next_functions=[(each, 0) for each in inputs])


@pytest.fixture
def deterministic_settings() -> Iterator[None]:
    """Restore torch's settings."""
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]


def settings() -> tuple[bool, bool, bool]:
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
    )


def test_attention_never_takes_cudnn(monkeypatch: pytest.MonkeyPatch) -> None:
    allowed: list[tuple[bool, bool]] = []
    sdpa = torch.nn.functional.scaled_dot_product_attention

    def recorded(*tensors: Any, **options: Any) -> Tensor:
        allowed.append((torch.backends.cuda.cudnn_sdp_enabled(), torch.backends.cuda.flash_sdp_enabled()))
        return sdpa(*tensors, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", recorded)
    before = torch.backends.cuda.cudnn_sdp_enabled()
    one = Layer(ModelConfig(hidden_size=32), Matmul("fp32", CPU), 80, CPU)
    heads = tuple(torch.randn(2, 4, 80, 8) for _ in range(3))
    out, saved = one._attend((heads[0], heads[1], heads[2]), 1)
    one._attend_backward(torch.ones_like(out), saved)
    assert allowed == [(False, True)]
    assert torch.backends.cuda.cudnn_sdp_enabled() == before


@pytest.mark.usefixtures("deterministic_settings")
@pytest.mark.parametrize("enabled", [False, True])
def test_settings_are_restored_after_a_deterministic_backward(enabled: bool) -> None:
    torch.use_deterministic_algorithms(enabled, warn_only=enabled)
    before = settings()
    with contextlib.suppress(RuntimeError), layer._deterministic():
        assert settings() == (True, False, False)
        raise RuntimeError
    assert settings() == before


@pytest.mark.parametrize(
    ("grad_fn", "positions", "expected"),
    [
        (node(FLASH), 129, True),
        # the sum of two blocks has one order
        (node(FLASH), 128, False),
        (node("SliceBackward0", node(FLASH)), 512, True),
        (node("ScaledDotProductEfficientAttentionBackward0"), 512, False),
        (node("UnsafeViewBackward0", node("BmmBackward0")), 512, False),
        (None, 512, False),
    ],
)
def test_only_flash_attention_of_many_positions_needs_it(
    grad_fn: SimpleNamespace | None, positions: int, expected: bool
) -> None:
    out: Any = SimpleNamespace(grad_fn=grad_fn)
    before = settings()
    with layer._repeatable(out, positions):
        assert torch.are_deterministic_algorithms_enabled() == expected
    assert settings() == before


def test_bf16_matmuls_on_a_gpu_add_in_fp32() -> None:
    matmuls = torch.backends.cuda.matmul
    before = matmuls.allow_bf16_reduced_precision_reduction
    try:
        matmuls.allow_bf16_reduced_precision_reduction = True
        Matmul("bf16", CPU)
        assert matmuls.allow_bf16_reduced_precision_reduction
        Matmul("bf16", torch.device("cuda"))
        assert not matmuls.allow_bf16_reduced_precision_reduction
    finally:
        matmuls.allow_bf16_reduced_precision_reduction = before


def test_advice_of_the_compiler_about_its_own_kernels_is_not_shown() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compile_if(True, torch.sin)
        warnings.warn("\nOnline softmax is disabled on the fly since Inductor decides to\nsplit", stacklevel=1)
        warnings.warn("TensorFloat32 tensor cores for float32 matrix multiplication available", stacklevel=1)
        with pytest.raises(UserWarning, match="another"):
            warnings.warn("another", stacklevel=1)
