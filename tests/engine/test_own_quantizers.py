"""Engines and own quantizers: what is chosen, what is refused, and that every kind of pack trains the same."""

from typing import Any

import pytest
import torch
from configs import TinyConfig
from torch import Tensor

from bitnetctl.config import build_config
from bitnetctl.data import TokenData
from bitnetctl.engine import select
from bitnetctl.engine.cuda_graph import CapturedPack
from bitnetctl.engine.pack import Pack
from bitnetctl.engine.select import choose
from bitnetctl.errors import ConfigError
from bitnetctl.intervention import Intervention
from bitnetctl.model.parts import PARTS, Part, Quantized, supported_parts
from bitnetctl.plugins.composition import Composition, custom_quantizers

CPU, GPU = torch.device("cpu"), torch.device("cuda")
WEIGHTS: frozenset[Quantized] = frozenset({"weights"})
ACTIVATIONS: frozenset[Quantized] = frozenset({"activations"})


class Rows(Intervention):
    """A scale for each row of the weights."""

    def quantize_weights(self, weight_LOI: Tensor) -> tuple[Tensor, Tensor]:
        scale = weight_LOI.abs().mean(-1, keepdim=True).clamp(min=1e-5)
        return (weight_LOI / scale).round().clamp(-1, 1), scale


class FourBits(Intervention):
    """Activations of 4 bits, with a scale for each half of a token."""

    def quantize_activations(self, x_NI: Tensor) -> tuple[Tensor, Tensor]:
        halves_N2I = x_NI.unflatten(-1, (2, -1))
        scale = halves_N2I.abs().amax(-1, keepdim=True).clamp(min=1e-5) / 7
        return (halves_N2I / scale).round().flatten(-2), scale.squeeze(-1)


def own(*kinds: type[Intervention]) -> Composition:
    return Composition([kind(kind.Settings()) for kind in kinds])


@pytest.fixture
def equipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device with bf16, Triton and a compiler."""
    monkeypatch.setattr(select, "has_bf16_matmul", lambda device: True)
    monkeypatch.setattr(select, "_missing_to_compile", lambda device: None)


@pytest.mark.usefixtures("equipped")
@pytest.mark.parametrize(
    ("custom", "requested", "engine", "without"),
    [
        (frozenset(), "auto", "fused", set()),
        (WEIGHTS, "auto", "fused", {"weights"}),
        (ACTIVATIONS, "auto", "graph", None),
        (WEIGHTS | ACTIVATIONS, "auto", "graph", None),
        (ACTIVATIONS, "fused", "fused", {"layers"}),
        (WEIGHTS | ACTIVATIONS, "fused", "fused", {"weights", "layers"}),
        (WEIGHTS, "compile", "compile", None),
    ],
)
def test_own_quantizers_have_no_own_kernels(
    custom: frozenset[Quantized], requested: str, engine: str, without: set[Part] | None
) -> None:
    chosen = choose(build_config("origin"), 50257, GPU, requested, custom=custom)
    assert chosen.engine == engine
    assert chosen.kernels == (set() if without is None else set(PARTS) - without)


@pytest.mark.usefixtures("equipped")
@pytest.mark.parametrize("custom", [WEIGHTS, ACTIVATIONS])
def test_integer_matmuls_are_refused_and_never_chosen(custom: frozenset[Quantized]) -> None:
    config = build_config("origin")
    assert choose(config, 50257, GPU, precision="int8").precision == "int8"
    with pytest.raises(
        ConfigError, match=r"^--precision int8: an intervention has a quantizer .*take --precision bf16"
    ):
        choose(config, 50257, GPU, precision="int8", custom=custom)
    assert choose(config, 50257, GPU, custom=custom).precision == "bf16"


def test_parts_of_own_quantizers() -> None:
    model = build_config("quick").model
    assert supported_parts(model, "bf16", WEIGHTS) == set(PARTS) - {"weights"}
    assert supported_parts(model, "bf16", ACTIVATIONS) == set(PARTS) - {"layers"}


def trained(pack: Pack, steps: int = 3) -> Pack:
    for step in range(1, steps + 1):
        pack.step(step)
    return pack


KINDS = [(Rows,), (FourBits,), (Rows, FourBits)]


@pytest.mark.parametrize("kinds", KINDS)
def test_a_step_for_capture_trains_the_same(
    kinds: tuple[type[Intervention], ...], tiny_config: TinyConfig, tiny_tokens: TokenData
) -> None:
    config = tiny_config()
    plain = trained(Pack([config] * 2, [own(*kinds), own(*kinds)], tiny_tokens, CPU))
    captured = trained(CapturedPack([config] * 2, [own(*kinds), own(*kinds)], tiny_tokens, CPU))
    torch.testing.assert_close(captured.loss_R, plain.loss_R)


SMALL = {
    "model__hidden_size": 16,
    "model__num_attention_heads": 2,
    "model__num_key_value_heads": 2,
    "data__batch_size": 1,
    "data__sequence_length": 8,
}
INTERPRETED = pytest.mark.skipif(torch.cuda.is_available(), reason="beside a GPU kernels are not interpreted")


@INTERPRETED
@pytest.mark.parametrize("kinds", KINDS)
@pytest.mark.parametrize("cap", ["none", "2.0"])
def test_own_kernels_of_the_other_parts_train_the_same(
    kinds: tuple[type[Intervention], ...], cap: str, tiny_config: TinyConfig, tiny_tokens: TokenData
) -> None:
    pytest.importorskip("triton")
    from bitnetctl.engine.fused import FusedPack

    config = tiny_config(**SMALL, model__logit_soft_cap=cap)
    parts = supported_parts(config.model, "fp32", custom_quantizers(own(*kinds).quantizer_key))
    assert len(parts) == len(PARTS) - 1 - len(kinds) - (cap != "none")
    plain = trained(Pack([config] * 2, [own(*kinds), own(*kinds)], tiny_tokens, CPU), 2)
    fused = trained(FusedPack([config] * 2, [own(*kinds), own(*kinds)], tiny_tokens, CPU, parts=parts), 2)
    torch.testing.assert_close(fused.loss_R, plain.loss_R, rtol=2e-4, atol=2e-4)
    torch.testing.assert_close(fused.grad_norm_R, plain.grad_norm_R, rtol=2e-3, atol=2e-4)


@INTERPRETED
@pytest.mark.parametrize(("kind", "part"), [(Rows, "weights"), (FourBits, "layers")])
def test_kernels_of_the_built_in_quantizers_are_never_used_for_others(
    kind: type[Intervention], part: Any, tiny_config: TinyConfig, tiny_tokens: TokenData
) -> None:
    pytest.importorskip("triton")
    from bitnetctl.engine.fused import FusedPack

    with pytest.raises(ValueError, match="custom quantizers have no own kernels"):
        FusedPack([tiny_config(**SMALL)], [own(kind)], tiny_tokens, CPU, parts=(part,))
