"""The gates of exports: what agrees, and what does not."""

import math

import pytest
import torch
from torch import Tensor

from bitnetctl.errors import ExportError
from bitnetctl.formats import gates
from bitnetctl.formats.gates import (
    Agreement,
    Gate,
    compare,
    compare_rows,
    require_agreement,
    require_equal,
)


def logits(seed: int, rows: int = 7, vocab_size: int = 11) -> Tensor:
    return torch.randn(rows, vocab_size, generator=torch.Generator().manual_seed(seed))


def test_an_agreement_worked_out_by_hand() -> None:
    ours_NV, theirs_NV = torch.tensor([[0.5, 0.5], [0.8, 0.2]]).log(), torch.tensor([[0.25, 0.75], [0.8, 0.2]]).log()
    agreement = compare(ours_NV, theirs_NV)
    assert agreement.positions == 2
    assert agreement.max_abs == pytest.approx(math.log(2), rel=1e-6)
    assert agreement.kl == pytest.approx((0.5 * math.log(2) + 0.5 * math.log(2 / 3)) / 2, rel=1e-6)
    # of two equal ones the first is the arg-max
    assert agreement.argmax_equal == 0.5
    # to us their token is as probable as ours
    assert agreement.argmax_near == 1.0


def test_near_ties_count_as_equal_up_to_a_margin() -> None:
    margins = torch.tensor([0.0, 0.04, 0.06, 3.0])
    ours_NV = torch.stack([margins, torch.zeros(4), torch.full((4,), -9.0)], dim=-1)
    theirs_NV = ours_NV[:, [1, 0, 2]] + torch.tensor([0.0, 1e-6, 0.0])
    agreement = compare(ours_NV, theirs_NV)
    assert agreement.argmax_equal == 0.0
    assert agreement.argmax_near == 0.5


def test_logits_are_compared_as_log_probabilities() -> None:
    agreement = compare(logits(0), logits(0) + 3.0)
    assert agreement.max_abs < 1e-5
    assert agreement.kl < 1e-9
    assert agreement.argmax_equal == 1.0


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = compare(logits(0), logits(1))
    monkeypatch.setattr(gates, "_CHUNK_VALUES", 25)
    chunked = compare(logits(0), logits(1))
    assert chunked.kl == pytest.approx(whole.kl, rel=1e-12)
    assert (chunked.max_abs, chunked.argmax_equal) == (whole.max_abs, whole.argmax_equal)


@pytest.mark.parametrize("position", [0, 6])
def test_a_value_that_is_not_finite_passes_no_gate(position: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gates, "_CHUNK_VALUES", 25)
    theirs_NV = logits(0)
    theirs_NV[position, 3] = math.nan
    agreement = compare(logits(0), theirs_NV)
    assert math.isnan(agreement.kl)
    assert math.isnan(agreement.max_abs)
    with pytest.raises(ExportError, match="KL divergence"):
        require_agreement(agreement, Gate(kl=math.inf), "x")


@pytest.mark.parametrize("shape", [(7, 10), (6, 11), (0, 11)])
def test_other_shapes_are_a_bug(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="shapes"):
        compare(torch.zeros(shape), logits(0) if shape[0] else torch.zeros(shape))


@pytest.mark.parametrize(
    ("changes", "gate", "measure"),
    [
        ({}, Gate(kl=1e-5, argmax_near=0.995), None),
        ({}, Gate(kl=1e-5), None),
        ({"kl": 1.1e-5}, Gate(kl=1e-5), "KL divergence, llama.cpp, 2,048 positions: 1.1e-05 .at most 1e-05."),
        ({"argmax_near": 0.994}, Gate(kl=1e-5, argmax_near=0.995), "token.* nats of it: 99.40% .at least 99.5%."),
        ({"argmax_near": 0.994}, Gate(kl=1e-5), None),
        ({"argmax_equal": 0.9}, Gate(kl=1e-5, argmax_near=0.995), None),
        ({"max_abs": 0.11}, Gate(kl=1e-5), None),
    ],
)
def test_limits(changes: dict[str, float], gate: Gate, measure: str | None) -> None:
    values = {"max_abs": 0.1, "kl": 1e-5, "argmax_equal": 0.995, "argmax_near": 0.995} | changes
    agreement = Agreement(**values, positions=2048)
    if measure is None:
        lines = require_agreement(agreement, gate, "llama.cpp")
        assert len(lines) == 3
        assert sum("no gate" in line for line in lines) == 1 + (gate.argmax_near is None)
    else:
        with pytest.raises(ExportError, match=f"^self-check failed: .*{measure}"):
            require_agreement(agreement, gate, "llama.cpp")


def quantized(**changes: tuple[Tensor, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    codes_OI = torch.tensor([[1, 0, -1], [0, 1, 1]], dtype=torch.int8)
    return {"q": (codes_OI, torch.full((2, 1), 0.3)), "k": (-codes_OI, torch.full((2, 1), 0.2))} | changes


def test_equal_codes_and_scales() -> None:
    assert require_equal(quantized(), quantized()) == "codes of 2 matrices identical, scales identical"
    # one scale of the matrix for all rows, codes of another type
    one = quantized(q=(quantized()["q"][0].float(), torch.tensor(0.3)))
    assert require_equal(quantized(), one).endswith("scales identical")


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        (quantized(q=(quantized()["k"][0], torch.full((2, 1), 0.3))), "q: 4 of 6 codes differ"),
        (quantized(q=(quantized()["q"][0], torch.full((2, 1), 0.2))), "q: scale 0.2, not 0.3"),
        (quantized(q=(quantized()["q"][0], torch.tensor([[0.3], [math.nan]]))), "q: scale nan, not 0.3"),
        (quantized(q=(quantized()["q"][0][:1], torch.full((1, 1), 0.3))), r"q: shape \(1, 3\), not \(2, 3\)"),
        (quantized(v=quantized()["q"]), "v: codes that there should not be"),
        ({"q": quantized()["q"]}, "k: codes missing"),
    ],
)
def test_other_codes_and_scales(theirs: dict[str, tuple[Tensor, Tensor]], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        require_equal(quantized(), theirs)


def test_scales_within_a_tolerance() -> None:
    near = quantized(k=(quantized()["k"][0], torch.full((2, 1), 0.2 * (1 + 2.0e-4))))
    assert require_equal(quantized(), near, tolerance=2.5e-4).endswith("scales within 2.0e-04 (at most 0.00025)")
    with pytest.raises(ExportError, match="k: scale"):
        require_equal(quantized(), near, tolerance=1e-4)


def test_codes_at_the_threshold_may_differ_where_the_other_program_makes_them() -> None:
    masters_OI = torch.tensor([[0.3, 0.15 * (1 + 1e-7), -0.2], [0.1, 0.4, 0.3]])
    ours = {"q": (torch.tensor([[1, 1, -1], [0, 1, 1]], dtype=torch.int8), torch.full((2, 1), 0.3))}
    codes_OI, scale_O1 = ours["q"]
    other_OI = codes_OI.clone()
    other_OI[0, 1] = 0
    line = require_equal(ours, {"q": (other_OI, scale_O1)}, tolerance=1e-5, masters={"q": masters_OI})
    assert line.startswith("codes of 1 matrices identical but for 1 at the threshold")
    with pytest.raises(ExportError, match="q: 1 of 6 codes"):
        require_equal(ours, {"q": (other_OI, scale_O1)}, tolerance=1e-5)
    other_OI[0, 0] = 0
    with pytest.raises(ExportError, match="q: 1 of 6 codes"):
        require_equal(ours, {"q": (other_OI, scale_O1)}, tolerance=1e-5, masters={"q": masters_OI})


def test_rows_are_compared_as_a_whole() -> None:
    whole = compare(logits(0, 12), logits(1, 12))
    by_row = compare_rows(logits(0, 12).split([5, 7]), logits(1, 12).split([5, 7]))
    assert by_row.kl == pytest.approx(whole.kl, rel=1e-12)
    assert by_row.argmax_equal == pytest.approx(whole.argmax_equal)
    assert by_row.argmax_near == pytest.approx(whole.argmax_near)
    assert (by_row.max_abs, by_row.positions) == (whole.max_abs, 12)
    broken = logits(1, 12)
    broken[0] = math.nan
    assert math.isnan(compare_rows(logits(0, 12).split(6), broken.split(6)).max_abs)
