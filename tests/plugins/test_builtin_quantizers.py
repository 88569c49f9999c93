"""`median-scale` and `group-scale` against loops written from their definitions, and in training."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from configs import TinyConfig
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as stnp
from packs import PackArms, compose

from bitnetctl.errors import ConfigError
from bitnetctl.intervention import Intervention
from bitnetctl.plugins import registry

Matrix = npt.NDArray[np.float32]
# codes are compared away from the boundary between two of them, where a last bit decides
BOUNDARY = 1e-5

MATRICES = stnp.arrays(
    np.float32, (2, 4, 8), elements=st.floats(-2, 2, width=32).filter(lambda w: w == 0 or abs(w) > 1e-6)
)


def built_in(name: str, **values: Any) -> Intervention:
    kind = registry.load(name).intervention
    assert kind is not None
    return kind(kind.Settings.model_validate(values))


def quantized(intervention: Intervention, weight_LOI: Matrix) -> tuple[Matrix, Matrix]:
    codes, scale = intervention.quantize_weights(torch.from_numpy(weight_LOI))
    return codes.numpy(), scale.numpy()


def ternary(weight: float, scale: float) -> int | None:
    """Round w / s to the nearest of -1, 0 and 1; None where that is a tie but for rounding."""
    ratio = float(weight) / scale
    if abs(abs(ratio) - 0.5) < BOUNDARY:
        return None
    return 0 if abs(ratio) < 0.5 else 1 if ratio > 0 else -1


@given(MATRICES)
@settings(max_examples=50, deadline=None)
def test_the_median_scales_a_matrix(weight_LOI: Matrix) -> None:
    codes_LOI, scale_L11 = quantized(built_in("median-scale"), weight_LOI)
    assert scale_L11.shape == (2, 1, 1)
    for matrix_OI, found_OI, found in zip(weight_LOI, codes_LOI, scale_L11.flatten(), strict=True):
        magnitudes = sorted(abs(float(weight)) for weight in matrix_OI.flatten())
        # the lower of the two in the middle
        scale = max(magnitudes[len(magnitudes) // 2 - 1], 1e-5)
        assert found == pytest.approx(scale, rel=1e-6)
        for weight, code in zip(matrix_OI.flatten(), found_OI.flatten(), strict=True):
            assert ternary(weight, scale) in (code, None)


@pytest.mark.parametrize("size", [1, 2, 4, 8])
@given(weight_LOI=MATRICES)
@settings(max_examples=25, deadline=None)
def test_the_mean_scales_each_group_of_a_row(size: int, weight_LOI: Matrix) -> None:
    codes_LOI, scale_LOG = quantized(built_in("group-scale", size=size), weight_LOI)
    assert scale_LOG.shape == (2, 4, 8 // size)
    for layer, row, start in np.ndindex(2, 4, 8 // size):
        group = [float(weight) for weight in weight_LOI[layer, row, start * size : (start + 1) * size]]
        scale = max(sum(map(abs, group)) / size, 1e-5)
        assert scale_LOG[layer, row, start] == pytest.approx(scale, rel=1e-5)
        for weight, code in zip(group, codes_LOI[layer, row, start * size : (start + 1) * size], strict=True):
            assert ternary(weight, scale) in (code, None)


def test_an_example_by_hand() -> None:
    weight_LOI = np.array([[[0.1, -0.2, 0.4, 5.0], [-0.6, 0.0, 0.3, -0.8]]], np.float32)
    # magnitudes 0, .1, .2, .3 | .4, .6, .8, 5: the lower of the middle is 0.3
    codes, scale = quantized(built_in("median-scale"), weight_LOI)
    assert scale.item() == pytest.approx(0.3)
    assert codes.tolist() == [[[0, -1, 1, 1], [-1, 0, 1, -1]]]
    codes, scale = quantized(built_in("group-scale", size=2), weight_LOI)
    np.testing.assert_allclose(scale, [[[0.15, 2.7], [0.3, 0.55]]], rtol=1e-6)
    assert codes.tolist() == [[[1, -1, 0, 1], [-1, 0, 1, -1]]]


@given(weight_LOI=MATRICES)
@settings(max_examples=25, deadline=None)
def test_a_half_scale_is_that_of_a_block_of_tq2_0(weight_LOI: Matrix) -> None:
    _, whole_LOG = quantized(built_in("group-scale", size=4), weight_LOI)
    codes_LOI, scale_LOG = quantized(built_in("group-scale", size=4, half=True), weight_LOI)
    np.testing.assert_array_equal(scale_LOG, whole_LOG.astype(np.float16).astype(np.float32))
    for layer, row, at in np.ndindex(2, 4, 8):
        # by the rounded scale
        scale = scale_LOG.item(layer, row, at // 4)
        assert ternary(weight_LOI.item(layer, row, at), scale) in (codes_LOI.item(layer, row, at), None)


def test_a_half_scale_is_finite() -> None:
    _, scale = quantized(built_in("group-scale", size=2, half=True), np.full((1, 1, 2), 1e6, np.float32))
    assert scale.item() == 65504


@pytest.mark.parametrize("name", ["median-scale", "group-scale:size=4"])
def test_zero_weights_stay_zero(name: str, tiny_config: TinyConfig, pack_arms: PackArms) -> None:
    pack = pack_arms(tiny_config(), name)
    pack.model.packed["o"].zero_()
    codes_OI, scale_OG = pack.model.quantized(0)["model.layers.1.self_attn.o_proj.weight"]
    assert codes_OI.count_nonzero() == 0
    assert torch.equal(scale_OG, torch.full_like(scale_OG, 1e-5))
    pack.step(1)
    assert pack.objective_R.isfinite().all()
    assert pack.grad_norm_R.isfinite().all()


@pytest.mark.parametrize(("arm", "groups"), [("median-scale", 1), ("group-scale:size=8", 4)])
def test_it_trains_with_scales_of_its_own(arm: str, groups: int, tiny_config: TinyConfig, pack_arms: PackArms) -> None:
    config = tiny_config(model__scale_group="projection")
    pack, baseline = pack_arms(config, arm, f"{arm}+reduced-lr"), pack_arms(config, "")
    for step in (1, 2, 3):
        pack.step(step)
        baseline.step(step)
    assert pack.loss_R.isfinite().all()
    assert pack.loss_R[0].item() != pytest.approx(baseline.loss_R[0].item(), rel=1e-6)
    _, scale_OG = pack.model.quantized(0)["model.layers.0.self_attn.q_proj.weight"]
    assert scale_OG.shape == (32, groups)
    assert (len(scale_OG.unique()) == 1) == (groups == 1)


@pytest.mark.parametrize(("size", "field"), [(48, "model.hidden_size is 32"), (64, "model.hidden_size is 32")])
def test_rows_that_are_not_whole_groups_are_refused(size: int, field: str, tiny_config: TinyConfig) -> None:
    with pytest.raises(
        ConfigError, match=f"group-scale: {field}, no multiple of size={size}; take one of its divisors"
    ):
        compose(f"group-scale:size={size}").configure(tiny_config())
    with pytest.raises(ConfigError, match=r"_ratio x model\.hidden_size is 48, no multiple of size=32"):
        compose("group-scale:size=32").configure(tiny_config(model__intermediate_ratio=1.5))
    assert compose("group-scale:size=16").configure(tiny_config(model__intermediate_ratio=1.5))


@pytest.mark.parametrize("arm", ["median-scale+group-scale", "group-scale+group-scale:size=8"])
def test_a_run_has_one_quantizer_of_weights(arm: str) -> None:
    with pytest.raises(ConfigError, match="both override quantize_weights"):
        compose(arm)
