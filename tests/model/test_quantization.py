"""The quantizers against the formulas of the papers, written out again in numpy and double precision."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, strategies as st
from hypothesis.extra import numpy as hnp

from bitnetctl.model.quantization import int8_activations, ternary_codes, ternary_scale, ternary_weights

Doubles = npt.NDArray[np.float64]

# float32 against float64: farther than this from a half, both must round to the same
NEAR_TIE = 1e-5


def paper_weights(weight: npt.NDArray[Any]) -> tuple[Doubles, Doubles]:
    """Return scaled weights before rounding, and the scale 1 / max(mean|w|, 1e-5)."""
    weight = weight.astype(np.float64)
    scale = 1.0 / np.maximum(np.abs(weight).mean(), 1e-5)
    return weight * scale, scale


def paper_activations(x: npt.NDArray[Any]) -> tuple[Doubles, Doubles]:
    """Return scaled activations before rounding, and the scale of every token 127 / max(max|x|, 1e-5)."""
    x = x.astype(np.float64)
    scale = 127.0 / np.maximum(np.abs(x).max(-1, keepdims=True), 1e-5)
    return x * scale, scale


def assert_rounded(codes: npt.NDArray[Any], scaled: Doubles, low: int, high: int) -> None:
    """Check codes = clamp(round(scaled), low, high); a value on a tie may round either way."""
    assert np.array_equal(codes, np.round(codes))
    expected = np.clip(np.round(scaled), low, high)
    on_tie = np.abs(np.abs(scaled - np.trunc(scaled)) - 0.5) < NEAR_TIE * (1 + np.abs(scaled))
    np.testing.assert_array_equal(codes[~on_tie], expected[~on_tie])
    assert (np.abs(codes - scaled)[on_tie & (np.abs(scaled) < high)] < 0.51).all()
    assert codes.min() >= low
    assert codes.max() <= high


def arrays(shape: tuple[int, ...], largest: float) -> st.SearchStrategy[npt.NDArray[np.float32]]:
    """Return float32 arrays with edge cases of a scale: zeros, denormals, huge values, a negative maximum, ties."""
    special = [0.0, -0.0, 1e-45, -1e-40, 1e-38, 1e-5, 9.9e-6, 0.5, -0.5, 1.5, 2.5, 126.5, 127.0, -127.0, -128.0]
    special += [largest, -largest]
    exact = [float(np.float32(value)) for value in special]
    bound = float(np.float32(largest))
    floats = st.floats(-bound, bound, width=32) | st.floats(-1, 1, width=32) | st.sampled_from(exact)
    return hnp.arrays(np.float32, shape, elements=floats)


# the mean of 24 values must stay within float32
@given(arrays((1, 1, 4, 6), 1e37))
def test_ternary_weights_follow_the_paper(weight: npt.NDArray[np.float32]) -> None:
    tensor = torch.from_numpy(weight)
    scaled, scale = paper_weights(weight)
    codes = ternary_codes(tensor, [4])
    assert codes.dtype == torch.int8
    assert_rounded(codes.numpy(), scaled, -1, 1)
    np.testing.assert_allclose(ternary_scale(tensor, [4]).numpy(), np.full((1, 1, 4, 1), scale), rtol=1e-6)
    quantized = ternary_weights(tensor, [4])
    np.testing.assert_allclose(quantized.numpy(), codes.numpy() / scale, rtol=1e-6)


# beyond 1e38 the reciprocal of the maximum is a denormal and loses digits
@given(arrays((2, 3, 5), 8e37))
def test_int8_activations_follow_the_paper(x: npt.NDArray[np.float32]) -> None:
    scaled, scale = paper_activations(x)
    quantized = int8_activations(torch.from_numpy(x)).numpy()
    assert np.isfinite(quantized).all()
    codes = np.round(quantized.astype(np.float64) * scale)
    assert_rounded(codes, scaled, -128, 127)
    # which is why the code leaves out the clamp of the formula
    assert np.abs(codes).max() <= 127
    np.testing.assert_allclose(quantized, codes / scale, rtol=1e-6)


@pytest.mark.parametrize("largest", [127.0, -127.0])
def test_int8_ties_round_to_even(largest: float) -> None:
    # 1/127 · 127 is exactly 1 in float32, so these are true ties
    x = torch.tensor([[largest, 0.5, 1.5, 2.5, -0.5, -1.5, 126.5]])
    expected = torch.tensor([[largest, 0.0, 2.0, 2.0, -0.0, -2.0, 126.0]])
    assert torch.equal(int8_activations(x), expected)


def test_ternary_ties_round_to_even() -> None:
    # mean |w| is 1
    weight = torch.tensor([0.5, -0.5, 1.5, -1.5, 0.5, 1.5]).view(1, 1, 2, 3)
    assert ternary_codes(weight, [2]).flatten().tolist() == [0, 0, 1, -1, 0, 1]


def test_every_token_has_its_own_scale() -> None:
    x = torch.tensor([[[1.0, 0.004], [1000.0, 0.004]]])
    quantized = int8_activations(x)
    assert quantized[0, 0, 1] == pytest.approx(1 / 127)
    assert quantized[0, 1, 1] == 0.0


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_codes_are_ternary_and_a_gaussian_has_the_expected_fraction_of_zeros() -> None:
    codes = ternary_codes(random(2, 3, 64, 64), [64])
    assert sorted(codes.unique().tolist()) == [-1, 0, 1]
    # P(|z| < E|z| / 2) of a Gaussian, 24,576 draws
    assert (codes == 0).double().mean().item() == pytest.approx(0.3101, abs=0.01)


def test_projections_have_scales_of_their_own_unless_fused() -> None:
    weight = random(2, 3, 10, 7) * torch.tensor([1.0] * 5 + [10.0] * 3 + [0.1] * 2).view(10, 1)
    alone = [ternary_weights(part, [part.shape[2]]) for part in weight.split([5, 3, 2], dim=2)]
    projected = ternary_weights(weight, [5, 3, 2])
    torch.testing.assert_close(projected, torch.cat(alone, dim=2), rtol=1e-6, atol=0)

    fused = ternary_weights(weight, [10])
    for run in range(2):
        for layer in range(3):
            scaled, scale = paper_weights(weight[run, layer].numpy())
            expected = np.clip(np.round(scaled), -1, 1) / scale
            np.testing.assert_allclose(fused[run, layer].numpy(), expected, rtol=1e-6)
    # at one tenth of the size, the last projection falls to zero under the shared scale and not under its own
    assert fused[:, :, 8:].count_nonzero() == 0
    assert projected[:, :, 8:].count_nonzero() > 0


@pytest.mark.parametrize("quant_lambdas", [None, [0.0, 0.3, 1.0]])
@pytest.mark.parametrize("dtype", [torch.float, torch.bfloat16])
def test_ternary_weights_are_written_into_out(quant_lambdas: list[float] | None, dtype: torch.dtype) -> None:
    quant_lambda_R = None if quant_lambdas is None else torch.tensor(quant_lambdas)
    weight, out_LROI = random(3, 2, 8, 6), torch.empty(2, 3, 8, 6, dtype=dtype)
    ternary_weights(weight, [4, 4], quant_lambda_R, out=out_LROI.transpose(0, 1))
    assert torch.equal(out_LROI.transpose(0, 1), ternary_weights(weight, [4, 4], quant_lambda_R).to(dtype))


def test_lambda_blends_every_run_by_its_own() -> None:
    quant_lambda_R = torch.tensor([0.0, 0.25, 1.0])
    weight = random(3, 2, 8, 6)
    ternary, blended = ternary_weights(weight, [8]), ternary_weights(weight, [8], quant_lambda_R)
    assert torch.equal(blended[0], weight[0])
    assert torch.equal(blended[2], ternary[2])
    torch.testing.assert_close(blended[1], 0.75 * weight[1] + 0.25 * ternary[1], rtol=1e-6, atol=1e-7)

    x = random(3, 5, 6)
    int8, blended = int8_activations(x), int8_activations(x, quant_lambda_R)
    assert torch.equal(blended[0], x[0])
    assert torch.equal(blended[2], int8[2])
    torch.testing.assert_close(blended[1], 0.75 * x[1] + 0.25 * int8[1], rtol=1e-6, atol=1e-7)


def test_the_scale_has_a_floor() -> None:
    zeros = torch.zeros(1, 1, 3, 4)
    assert torch.equal(ternary_scale(zeros, [3]), torch.full((1, 1, 3, 1), 1e5))
    assert torch.equal(ternary_weights(zeros, [3]), zeros)
    assert torch.equal(int8_activations(zeros), zeros)
    # a mean below the floor of 1e-5 does not scale up to ±1
    assert ternary_codes(torch.full((1, 1, 3, 4), 4e-6), [3]).count_nonzero() == 0


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_values_that_are_not_finite_stay_so(bad: float) -> None:
    x = torch.ones(1, 1, 2, 3)
    x[0, 0, 0, 0] = bad
    assert not ternary_weights(x, [2]).isfinite().all()
    assert not int8_activations(x).isfinite().all()


def test_inputs_are_not_modified() -> None:
    weight = random(1, 1, 4, 6)
    before = weight.clone()
    ternary_weights(weight, [4])
    ternary_codes(weight, [4])
    int8_activations(weight)
    assert torch.equal(weight, before)
