"""Ternary weights from flat storage, against the plain quantizer segment by segment."""

import math

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from bitnetctl.kernels import SCALE_FLOOR
from bitnetctl.kernels.ternary import TernaryTiles, ternary_
from bitnetctl.model.quantization import ternary_scale, ternary_weights

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# the interpreter truncates where a GPU rounds
BF16 = 2**-7
# a tile and a bit; several tiles; less than one; a gap follows the first
SEGMENTS = [(0, 4112), (4160, 9120), (13280, 16)]
SIZE = 13_312
# neither starts nor lengths are multiples of anything
ODD_SEGMENTS = [(1, 4099), (4100, 7), (4107, 4110)]
# farther than this from a half, a scale of other rounding gives the same value
NEAR_TIE = 1e-5


def weights(runs: int = 2, size: int = SIZE) -> Tensor:
    """Return weights whose size differs by run."""
    weight_RS = torch.randn(runs, size, generator=torch.Generator().manual_seed(0))
    return (weight_RS * torch.tensor([0.02, 3.0, 1e-7]).repeat(runs)[:runs, None]).to(DEVICE)


def plain(segment_RS: Tensor, quant_lambda_R: Tensor | None = None) -> Tensor:
    """Return the quantizer's values of one segment."""
    return ternary_weights(segment_RS[:, None, None], [1], quant_lambda_R)[:, 0, 0]


def far_from_ties(segment_RS: Tensor) -> Tensor:
    scaled_RS = segment_RS.double() * ternary_scale(segment_RS.double()[:, None, None], [1])[:, 0, 0]
    return (scaled_RS.abs() - 0.5).abs() > NEAR_TIE


@pytest.mark.parametrize("segments", [SEGMENTS, ODD_SEGMENTS])
def test_segments_are_the_plain_quantizers(segments: list[tuple[int, int]]) -> None:
    flat_RS = weights(runs=3)
    out_RS = torch.full_like(flat_RS, 5.0)
    ternary_(flat_RS, out_RS, TernaryTiles(segments, DEVICE))
    for start, length in segments:
        part_RS, expected_RS = out_RS[:, start : start + length], plain(flat_RS[:, start : start + length])
        far_RS = far_from_ties(flat_RS[:, start : start + length])
        assert far_RS.float().mean() > 0.99
        torch.testing.assert_close(part_RS[far_RS], expected_RS[far_RS], rtol=1e-6, atol=0.0)
        assert all(len(run_S.unique()) <= 3 for run_S in part_RS)
        out_RS[:, start : start + length] = 5.0
    # nothing else was written
    assert (out_RS == 5.0).all()


def test_ties_round_to_even_and_large_weights_are_clamped() -> None:
    """The mean is 2, so weights of 1 are halves of the scale; 1e8 is beyond what fp32 rounds by adding a constant."""
    flat_RS = torch.tensor([[1.0, -1.0, 3.0, -3.0, 1.0 + 2**-10, -1.0 - 2**-10, 6.0 - 2**-9, 0.0]], device=DEVICE)
    flat_RS = torch.cat([flat_RS, torch.zeros(1, 8, device=DEVICE)], dim=1)
    flat_RS[0, 8:] = 2.0
    out_RS = torch.empty_like(flat_RS)
    ternary_(flat_RS, out_RS, TernaryTiles([(0, 16)], DEVICE))
    assert out_RS.tolist() == [[0.0, 0.0, 2.0, -2.0, 2.0, -2.0, 2.0, 0.0, *[2.0] * 8]]
    assert torch.equal(out_RS, plain(flat_RS))
    spike_RS = torch.zeros(1, 2**13, device=DEVICE)
    spike_RS[0, 5] = -1e8
    out_RS = torch.empty_like(spike_RS)
    ternary_(spike_RS, out_RS, TernaryTiles([(0, 2**13)], DEVICE))
    assert torch.equal(out_RS, plain(spike_RS))
    assert out_RS[0, 5] < 0


def test_weights_of_zero_stay_zero() -> None:
    flat_RS = torch.zeros(1, 32, device=DEVICE)
    flat_RS[0, 3] = 0.75 * SCALE_FLOOR
    out_RS = torch.empty_like(flat_RS)
    ternary_(flat_RS, out_RS, TernaryTiles([(0, 16), (16, 16)], DEVICE))
    assert torch.equal(out_RS[:, :16], plain(flat_RS[:, :16]))
    assert out_RS[0, 3] > 0
    assert (out_RS[:, 16:] == 0.0).all()


def test_lambda_interpolates_and_is_exact_at_both_ends() -> None:
    quant_lambda_R = torch.tensor([0.0, 1.0, 0.3, 0.8], device=DEVICE)
    flat_RS = weights(1).repeat(4, 1)
    tiles = TernaryTiles(SEGMENTS, DEVICE)
    full_RS, out_RS = torch.empty_like(flat_RS), torch.empty_like(flat_RS)
    ternary_(flat_RS, full_RS, tiles)
    ternary_(flat_RS, out_RS, tiles, quant_lambda_R=quant_lambda_R)
    for start, length in SEGMENTS:
        part = slice(start, start + length)
        assert torch.equal(out_RS[0, part], flat_RS[0, part])
        assert torch.equal(out_RS[1, part], full_RS[1, part])
        expected_RS = torch.lerp(flat_RS[:, part], full_RS[:, part], quant_lambda_R[:, None])
        torch.testing.assert_close(out_RS[:, part], expected_RS, rtol=1e-6, atol=1e-9)


def test_without_quantization_it_casts() -> None:
    flat_RS = weights()
    tiles = TernaryTiles(SEGMENTS, DEVICE)
    # of another stride, and the λ is ignored
    out_RS, cast_RS = torch.full((2, SIZE + 5), 5.0, device=DEVICE), flat_RS.bfloat16()
    ternary_(flat_RS, out_RS, tiles, quantizes=False, quant_lambda_R=torch.full((2,), 0.5, device=DEVICE))
    ternary_(flat_RS, cast_RS, tiles, quantizes=False)
    for start, length in SEGMENTS:
        assert torch.equal(out_RS[:, start : start + length], flat_RS[:, start : start + length])
    assert (out_RS[:, 4112:4160] == 5.0).all()
    torch.testing.assert_close(cast_RS.float(), flat_RS, rtol=BF16, atol=0.0)


def test_bf16_is_the_rounded_fp32() -> None:
    flat_RS = weights()
    tiles = TernaryTiles(SEGMENTS, DEVICE)
    out_RS, bf16_RS = torch.zeros_like(flat_RS), torch.zeros_like(flat_RS, dtype=torch.bfloat16)
    ternary_(flat_RS, out_RS, tiles)
    ternary_(flat_RS, bf16_RS, tiles)
    torch.testing.assert_close(bf16_RS.float(), out_RS, rtol=BF16, atol=0.0)


@pytest.mark.filterwarnings("ignore:(invalid value|divide by zero):RuntimeWarning")
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_stays_in_its_segment(value: float) -> None:
    flat_RS = weights()
    flat_RS[1, 5000] = value
    out_RS = torch.zeros_like(flat_RS)
    ternary_(flat_RS, out_RS, TernaryTiles(SEGMENTS, DEVICE))
    assert torch.equal(out_RS[1, 4160:13280].isnan(), plain(flat_RS[:, 4160:13280])[1].isnan())
    out_RS[1, 4160:13280] = 0.0
    assert out_RS.isfinite().all()


def test_a_large_segment_has_few_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitnetctl.kernels.ternary._MAX_TILES", 2)
    tiles = TernaryTiles(SEGMENTS, DEVICE)
    assert tiles.count == 2 + 2 + 1
    assert tiles.unit == 16
    # start, length, first tile, number of tiles, length of the segment
    assert (tiles.table_T5 * torch.tensor([16, 16, 1, 1, 1], device=DEVICE)).tolist() == [
        [0, 4096, 0, 2, 4112],
        [4096, 16, 0, 2, 4112],
        [4160, 8192, 2, 2, 9120],
        [12352, 928, 2, 2, 9120],
        [13280, 16, 4, 1, 16],
    ]
    flat_RS = weights()
    out_RS = torch.empty_like(flat_RS)
    ternary_(flat_RS, out_RS, tiles)
    part_RS = flat_RS[:, 4160:13280]
    far_RS = far_from_ties(part_RS)
    torch.testing.assert_close(out_RS[:, 4160:13280][far_RS], plain(part_RS)[far_RS], rtol=1e-6, atol=0.0)


def test_twice_the_same_bits_in_any_pack() -> None:
    flat_RS, tiles = weights(3), TernaryTiles(SEGMENTS, DEVICE)
    outs = [torch.zeros_like(flat_RS) for _ in range(3)]
    ternary_(flat_RS, outs[0], tiles)
    ternary_(flat_RS, outs[1], tiles)
    ternary_(flat_RS[1:2], outs[2][1:2], tiles)
    assert torch.equal(outs[0], outs[1])
    assert torch.equal(outs[0][1], outs[2][1])


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        TernaryTiles([(0, 16), (16, 0)], DEVICE)
    flat_RS, tiles = weights(), TernaryTiles(SEGMENTS, DEVICE)
    with pytest.raises(ValueError, match="the segments end at 13296"):
        ternary_(flat_RS[:, :13295], torch.empty_like(flat_RS), tiles)
    with pytest.raises(ValueError, match="not contiguous"):
        ternary_(flat_RS, torch.empty(SIZE, 2, device=DEVICE).T, tiles)
