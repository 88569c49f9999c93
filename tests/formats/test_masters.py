"""Masters made of codes and scales: absmean quantization gives both back."""

import pytest
import torch
from torch import Tensor

from bitnetctl.config import ModelConfig
from bitnetctl.errors import DataError
from bitnetctl.formats.masters import find_codes, group_size, make_masters
from bitnetctl.model.packed import PackedModel
from bitnetctl.plugins import registry

MODEL = {"hidden_size": 64, "num_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}


def quantized_model(scale_group: str = "projection", size: int | None = None) -> tuple[ModelConfig, PackedModel]:
    """Return a model of random weights, with a scale for each matrix or for groups of `size` inputs."""
    from bitnetctl.config import parse_arm

    config = ModelConfig.model_validate({**MODEL, "scale_group": scale_group})
    composition = registry.compose(parse_arm("" if size is None else f"group-scale:size={size}"))
    return config, PackedModel([config], 300, [3], torch.device("cpu"), quantizers=composition.quantizers())


@pytest.mark.parametrize(
    ("scale_group", "size"), [("projection", None), ("fused", None), ("projection", 16), ("projection", 32)]
)
def test_they_quantize_to_the_same_codes_and_scales(scale_group: str, size: int | None) -> None:
    config, model = quantized_model(scale_group, size)
    before = model.quantized(0)
    masters = make_masters(before, config)
    assert masters.keys() == before.keys()
    model.load(0, {name: view.detach().clone() for name, view in model.parameters(0).items()} | masters)
    for name, (codes_OI, scale_OG) in model.quantized(0).items():
        assert torch.equal(codes_OI, before[name][0])
        assert torch.allclose(scale_OG, before[name][1], rtol=1e-6, atol=0)
        # a step of training is to move few codes: none is at the edge of another
        distance_OI = masters[name].abs() / scale_OG.repeat_interleave(masters[name].shape[1] // scale_OG.shape[1], 1)
        assert float((distance_OI - 0.5).abs().min()) >= 0.499


def one(codes_OI: Tensor, scale_OG: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    return {"model.layers.0.self_attn.o_proj.weight": (codes_OI, scale_OG)}


def test_few_and_no_weights_beside_zero() -> None:
    config = ModelConfig.model_validate(MODEL)
    codes_OI = torch.zeros(64, 64, dtype=torch.int8)
    [master_OI] = make_masters(one(codes_OI, torch.full((64, 1), 0.3)), config).values()
    assert not master_OI.any()
    codes_OI[5, 7] = -1
    [master_OI] = make_masters(one(codes_OI, torch.full((64, 1), 0.3)), config).values()
    assert master_OI[5, 7] == pytest.approx(-0.3 * 64 * 64)
    assert master_OI.count_nonzero() == 1


def test_scales_that_absmean_cannot_give() -> None:
    config, codes_OI = ModelConfig.model_validate(MODEL), torch.ones(64, 64, dtype=torch.int8)
    with pytest.raises(DataError, match=r"o_proj.weight: its scale 1e-06 is below 1e-05"):
        make_masters(one(codes_OI, torch.full((64, 1), 1e-6)), config)
    attention = "model.layers.0.self_attn."
    other = {f"{attention}{name}_proj.weight": (codes_OI, torch.full((64, 1), at)) for name, at in (("q", 1), ("k", 2))}
    with pytest.raises(DataError, match=r"q_proj.weight: has another scale than .*k_proj.weight"):
        make_masters(other, config.model_copy(update={"scale_group": "fused"}))


def test_the_size_of_groups() -> None:
    codes_OI = torch.ones(4, 64, dtype=torch.int8)
    scales = {"one": torch.ones(4, 1), "equal": torch.ones(4, 2), "rows": torch.arange(4.0).view(4, 1)}
    assert group_size({name: (codes_OI, scales[name]) for name in ("one", "equal")}) is None
    assert group_size({name: (codes_OI, scale) for name, scale in scales.items()}) == 64
    assert group_size({"groups": (codes_OI, torch.rand(4, 4)), "rows": (codes_OI, scales["rows"])}) == 16


@pytest.mark.parametrize(("groups", "found"), [(1, 1), (2, 2), (8, 8)])
def test_codes_and_scales_are_found_in_their_product(groups: int, found: int) -> None:
    generator = torch.Generator().manual_seed(0)
    codes_OI = torch.randint(-1, 2, (6, 64), generator=generator).to(torch.int8)
    scale_OG = torch.rand(1 if groups == 1 else 6, groups, generator=generator).add(0.1).expand(6, groups)
    values_OI = codes_OI * scale_OG.repeat_interleave(64 // groups, 1)
    result = find_codes(values_OI)
    assert result is not None
    assert torch.equal(result[0], codes_OI)
    assert torch.equal(result[1], scale_OG)
    assert result[1].shape[1] == found
    assert find_codes(torch.randn(6, 64, generator=generator)) is None
