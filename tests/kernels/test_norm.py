"""Kernels of norms against the operations of `functional` and `quantization`, and against autograd in fp64."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import pytest
import torch
from torch import Tensor

from bitnetctl.kernels import norm
from bitnetctl.kernels.norm import NormQuantized, norm_quantize, norm_quantize_backward, token_blocks
from bitnetctl.model import functional
from bitnetctl.model.quantization import int8_activations, int8_scale

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
EPS = 1e-5
# of the largest of a run: sums in another order, and on a GPU its exponential
FP32 = 2e-6
# one unit in the last place: Triton's interpreter truncates where a GPU rounds
BF16 = 2**-7
LAMBDAS = (0.0, 0.3, 1.0)

Kind = Literal["stream", "delta", "relu2", "silu"]
KINDS: tuple[Kind, ...] = ("stream", "delta", "relu2", "silu")
DTYPES = (torch.float32, torch.bfloat16)


@dataclass
class Case:
    """Random inputs; `x_RNF` is the fused projection [R, N, 2F] where there is an activation."""

    kind: Kind
    x_RNF: Tensor
    delta_RNF: Tensor | None
    norms: list[Tensor]

    @property
    def activation(self) -> norm.Activation | None:
        return self.kind if self.kind in ("relu2", "silu") else None

    def quantize(
        self, dtype: torch.dtype = torch.float32, *, quantizes: bool = True, quant_lambda_R: Tensor | None = None
    ) -> NormQuantized:
        """Return what the kernel makes of the inputs."""
        return norm_quantize(
            self.x_RNF,
            self.norms,
            EPS,
            dtype=dtype,
            quantizes=quantizes,
            quant_lambda_R=quant_lambda_R,
            delta_RNF=self.delta_RNF,
            activation=self.activation,
        )

    def input(self) -> Tensor:
        """Return by plain operations what is normalized."""
        if self.activation is not None:
            return functional.gate(self.x_RNF, self.activation)
        return self.x_RNF if self.delta_RNF is None else self.x_RNF + self.delta_RNF

    def normalized(self) -> Tensor:
        """Return it normalized by plain operations."""
        return functional.normalize(self.input(), self.norms, EPS)[0]


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def make(
    kind: Kind, width: int, *, norms: int = 2, runs: int = 3, tokens: int = 5, dtype: torch.dtype = torch.float32
) -> Case:
    """Return inputs in which only what a matmul returns is of `dtype`."""
    gated = kind in ("relu2", "silu")
    x_RNF = random(runs, tokens, width * (2 if gated else 1), seed=1, dtype=dtype if gated else torch.float32)
    delta_RNF = random(runs, tokens, width, seed=2, dtype=dtype) if kind == "delta" else None
    return Case(kind, x_RNF, delta_RNF, [1 + random(runs, 1, width, seed=3 + k) / 2 for k in range(norms)])


def assert_close(actual: Tensor, expected: Tensor) -> None:
    """Compare with what was computed in fp32 or wider, relative to the largest of each run; bf16 to one rounding."""
    largest_R11 = expected.flatten(1).abs().amax(1).view(-1, *(1,) * (expected.dim() - 1))
    tolerance = FP32 * largest_R11
    if actual.dtype == torch.bfloat16:
        tolerance = tolerance + BF16 * expected.abs()
    assert (actual - expected).abs().le(tolerance).all(), (actual - expected).abs().div(largest_R11).max()


def assert_quantized(actual: Tensor, case: Case, quant_lambda_R: Tensor | None) -> None:
    """Compare with plain operations; a value that a sum's last bit moves to the next code must be rare."""
    normed_RNF = case.normalized()
    expected = int8_activations(normed_RNF, quant_lambda_R)
    moved = (actual - expected).abs() > 0.2 / int8_scale(normed_RNF)
    assert moved.sum() <= actual.numel() / 1000
    assert_close(torch.where(moved, 0, actual), torch.where(moved, 0, expected))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norms", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_norms_and_quantizer_are_those_of_plain_operations(kind: Kind, norms: int, dtype: torch.dtype) -> None:
    case = make(kind, 24, norms=norms, dtype=dtype)
    quant_lambda_R = torch.tensor(LAMBDAS, device=DEVICE)
    for given in (None, quant_lambda_R):
        result = case.quantize(dtype, quant_lambda_R=given)
        assert (result.values_RNF.dtype, result.inverse_KRN.shape) == (dtype, (norms, 3, 5))
        if dtype == torch.float32:
            assert_quantized(result.values_RNF, case, given)
        else:
            # the same codes as in fp32, rounded
            assert_close(result.values_RNF, case.quantize(quant_lambda_R=given).values_RNF)
    assert_close(case.quantize(dtype, quantizes=False).values_RNF, case.normalized())
    _, saved = functional.normalize(case.input(), case.norms, EPS)
    for inverse_RN, (_, expected_RN1) in zip(result.inverse_KRN, saved, strict=True):
        assert_close(inverse_RN, expected_RN1.squeeze(-1))


@pytest.mark.parametrize("runs", [1, 3])
@pytest.mark.parametrize("width", [8, 64, 100, 5000])
@pytest.mark.parametrize("kind", KINDS)
def test_any_width(kind: Kind, width: int, runs: int) -> None:
    case = make(kind, width, runs=runs, tokens=3)
    assert_quantized(case.quantize().values_RNF, case, None)


def test_only_a_residual_sum_is_a_new_stream() -> None:
    case = make("delta", 24, dtype=torch.bfloat16)
    stream_RNF = case.quantize(torch.bfloat16).stream_RNF
    assert stream_RNF.dtype == torch.float32
    assert torch.equal(stream_RNF, case.input())
    for kind in ("stream", "relu2"):
        case = make(kind, 24)
        assert case.quantize().stream_RNF is case.x_RNF


def test_codes_move_rarely() -> None:
    case = make("delta", 128, runs=2, tokens=200)
    scale_RN1 = int8_scale(case.normalized())
    codes = (case.quantize().values_RNF * scale_RN1).round()
    assert (codes != (case.normalized() * scale_RN1).round()).sum() <= 5  # of 51,200


def exact(weights: Sequence[float]) -> Case:
    """Return inputs of ±1, whose sums are exact in any order, with a weight that decides what is quantized."""
    x_RNF = torch.where(random(3, 5, len(weights)) < 0, -1.0, 1.0)
    return Case("stream", x_RNF, None, [torch.tensor(weights, device=DEVICE).expand(3, 1, -1)])


def test_the_quantizer_is_exact_where_sums_are() -> None:
    case = exact((random(64) * 3).tolist())
    expected_RNF = int8_activations(case.normalized())
    assert torch.equal(case.quantize().values_RNF, expected_RNF)
    result_RNF = case.quantize(quant_lambda_R=torch.tensor(LAMBDAS, device=DEVICE)).values_RNF
    assert torch.equal(result_RNF[0], case.normalized()[0])
    assert torch.equal(result_RNF[2], expected_RNF[2])
    assert not torch.equal(result_RNF[1], expected_RNF[1])


def test_halves_are_rounded_to_even() -> None:
    weights = [0.5, 1.5, 2.5, 3.5, 125.5, 126.5, 0.0, 127.0]
    case = exact(weights)
    values_RNF = norm_quantize(case.x_RNF, case.norms, 0.0, dtype=torch.float32, quantizes=True).values_RNF
    codes = [0.0, 2, 2, 4, 126, 126, 0, 127]
    assert values_RNF.abs().flatten(0, 1).tolist() == [codes] * 15


def test_small_rows_are_divided_by_the_floor() -> None:
    case = exact((random(64) * 1e-6).tolist())
    case.x_RNF[1, 2] = 0
    result = case.quantize()
    assert torch.equal(result.values_RNF, int8_activations(case.normalized()))
    assert result.values_RNF[1, 2].eq(0).all()
    assert result.inverse_KRN[0, 1, 2].item() == pytest.approx(1 / math.sqrt(EPS), rel=1e-6)


# Triton's interpreter computes in NumPy
@pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered:RuntimeWarning")
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_finite_stays_in_its_row(kind: Kind, value: float) -> None:
    case = make(kind, 24)
    sound = case.quantize().values_RNF.clone()
    # the last is an input of `up`, which no ReLU makes 0
    case.x_RNF[1, 2, -1] = value
    result_RNF = case.quantize().values_RNF
    assert result_RNF[1, 2].isnan().all()
    sound[1, 2] = result_RNF[1, 2] = 0
    assert torch.equal(result_RNF, sound)


def test_runs_do_not_depend_on_their_pack() -> None:
    case = make("delta", 24)
    assert case.delta_RNF is not None
    alone = Case("delta", case.x_RNF[1:2], case.delta_RNF[1:2], [weight[1:2] for weight in case.norms])
    for of_alone, of_pack in zip(alone.quantize(), case.quantize(), strict=True):
        runs = of_pack[:, 1:2] if of_pack.shape[0] == 2 else of_pack[1:2]
        assert torch.equal(of_alone, runs)


def strided(x_RNF: Tensor) -> Tensor:
    """Return the same values, tokens first, with space between rows."""
    runs, tokens, width = x_RNF.shape
    spaced_NRF = torch.full((tokens, runs, width + 8), math.nan, dtype=x_RNF.dtype, device=x_RNF.device)
    view_RNF = spaced_NRF.transpose(0, 1)[..., :width]
    return view_RNF.copy_(x_RNF)


@pytest.mark.parametrize("kind", KINDS)
def test_strides_do_not_matter(kind: Kind) -> None:
    case = make(kind, 24)
    if kind == "stream":
        case.x_RNF = case.x_RNF.bfloat16()
    delta_RNF = None if case.delta_RNF is None else strided(case.delta_RNF)
    other = Case(kind, strided(case.x_RNF), delta_RNF, [strided(weight) for weight in case.norms])
    expected, actual = case.quantize(), other.quantize()
    assert actual.values_RNF.is_contiguous()
    assert torch.equal(actual.values_RNF, expected.values_RNF)
    grad_RNF = random(3, 5, 24, seed=9)
    residual_RNF = random(3, 5, 24, seed=10) if case.activation is None else None
    partials_KRPF = partial_sums(case, 2)
    grad = backward(case, expected, grad_RNF, partials_KRPF, residual_RNF=residual_RNF)
    # one buffer of all partial sums, as of a model's gradients
    partials_RPKF = torch.full((3, 2, 3, 24), 7.0, device=DEVICE)
    spaced_RNF = None if residual_RNF is None else strided(residual_RNF)
    spaced_grad = backward(other, actual, strided(grad_RNF), partials_RPKF.unbind(2)[:2], residual_RNF=spaced_RNF)
    assert torch.equal(spaced_grad, grad)
    assert torch.equal(partials_RPKF[:, :, :2], torch.stack(partials_KRPF, 2))
    assert partials_RPKF[:, :, 2].eq(7).all()


def backward(
    case: Case,
    result: NormQuantized,
    grad_RNF: Tensor,
    partials_KRPF: Sequence[Tensor],
    *,
    dtype: torch.dtype = torch.float32,
    residual_RNF: Tensor | None = None,
    scale: float = 1.0,
) -> Tensor:
    return norm_quantize_backward(
        grad_RNF,
        result.stream_RNF,
        case.norms,
        result.inverse_KRN,
        partials_KRPF,
        dtype=dtype,
        activation=case.activation,
        residual_RNF=residual_RNF,
        scale=scale,
    )


def partial_sums(case: Case, blocks: int) -> list[Tensor]:
    """Return memory in which a sum that is not overwritten shows."""
    runs, _, width = case.norms[0].shape
    return [torch.full((runs, blocks, width), math.nan, device=DEVICE) for _ in case.norms]


def autograd_gradients(case: Case, grad_RNF: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return the gradients of what is normalized, or of the fused projection, and of the weights, in fp64."""
    x_RNF = (case.x_RNF if case.activation is not None else case.input()).double().requires_grad_()
    norms = [weight.double().requires_grad_() for weight in case.norms]
    y_RNF = x_RNF
    if case.activation is not None:
        gate_RNF, up_RNF = x_RNF.chunk(2, dim=-1)
        y_RNF = up_RNF * (gate_RNF.relu() ** 2 if case.activation == "relu2" else gate_RNF * gate_RNF.sigmoid())
    for weight_R1F in norms:
        y_RNF = y_RNF / (y_RNF.square().mean(-1, keepdim=True) + EPS).sqrt() * weight_R1F
    grad_x, *grads = torch.autograd.grad(y_RNF, [x_RNF, *norms], grad_RNF.double())
    return grad_x, grads


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norms", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_autograd(kind: Kind, norms: int, dtype: torch.dtype) -> None:
    case = make(kind, 24, norms=norms, tokens=7, dtype=dtype)
    grad_RNF = random(3, 7, 24, seed=9, dtype=dtype)
    residual_RNF = None if case.activation is not None else random(3, 7, 24, seed=10)
    partials_KRPF = partial_sums(case, 3)
    result = case.quantize(dtype)
    grad = backward(case, result, grad_RNF, partials_KRPF, dtype=dtype, residual_RNF=residual_RNF, scale=0.3)
    expected, expected_weights = autograd_gradients(case, grad_RNF.double() * 0.3)
    assert grad.dtype == dtype
    assert_close(grad, expected if residual_RNF is None else expected + residual_RNF)
    for partial_RPF, expected_R1F in zip(partials_KRPF, expected_weights, strict=True):
        assert_close(partial_RPF.sum(1, keepdim=True), expected_R1F)


@pytest.mark.parametrize("runs", [1, 3])
@pytest.mark.parametrize("width", [8, 64, 100, 5000])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_any_width(kind: Kind, width: int, runs: int) -> None:
    case = make(kind, width, runs=runs, tokens=3)
    grad_RNF = random(runs, 3, width, seed=9)
    partials_KRPF = partial_sums(case, 2)
    grad = backward(case, case.quantize(), grad_RNF, partials_KRPF)
    expected, expected_weights = autograd_gradients(case, grad_RNF)
    assert_close(grad, expected)
    for partial_RPF, expected_R1F in zip(partials_KRPF, expected_weights, strict=True):
        assert_close(partial_RPF.sum(1, keepdim=True), expected_R1F)


@pytest.mark.parametrize("kind", ["stream", "silu"])
@pytest.mark.parametrize(("tokens", "blocks"), [(13, 2), (13, 1), (4, 3), (13, 13)])
def test_partial_sums_are_those_of_each_block(
    kind: Kind, tokens: int, blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # at most four tokens a pass, so that a pass ends beyond its block
    monkeypatch.setattr(norm, "_TILE", 128)
    case = make(kind, 24, tokens=tokens)
    grad_RNF = random(3, tokens, 24, seed=9)
    partials_KRPF = partial_sums(case, blocks)
    grad = backward(case, case.quantize(), grad_RNF, partials_KRPF)
    _, saved = functional.normalize(case.input(), case.norms, EPS)
    expected, _ = functional.normalize_backward(grad_RNF, saved, case.norms)
    if case.activation is not None:
        expected = functional.gate_backward(expected, case.x_RNF, case.activation)
    assert_close(grad, expected)
    each = math.ceil(tokens / blocks)
    for block in range(blocks):
        chosen = slice(block * each, (block + 1) * each)
        part = [(normed_RNF[:, chosen], inverse_RN1[:, chosen]) for normed_RNF, inverse_RN1 in saved]
        _, grads_KRF = functional.normalize_backward(grad_RNF[:, chosen], part, case.norms)
        for partial_RPF, expected_RF in zip(partials_KRPF, grads_KRF, strict=True):
            assert_close(partial_RPF[:, block], expected_RF)


@pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered:RuntimeWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_finite_stays_in_its_row_and_run_in_backward(kind: Kind) -> None:
    case = make(kind, 24)
    grad_RNF = random(3, 5, 24, seed=9)
    results = []
    for value in (case.x_RNF[1, 2, 3].item(), math.nan, math.inf):
        # of a gate too
        case.x_RNF[1, 2, 3] = value
        partials_KRPF = partial_sums(case, 2)
        results.append((backward(case, case.quantize(), grad_RNF, partials_KRPF), partials_KRPF))
    (sound, sound_partials), *others = results
    for grad, partials_KRPF in others:
        assert grad[1, 2].isnan().any()
        sound[1, 2] = grad[1, 2] = 0
        assert torch.equal(grad, sound)
        for partial_RPF, sound_RPF in zip(partials_KRPF, sound_partials, strict=True):
            assert partial_RPF[1, 0].isnan().any()
            partial_RPF[1, 0] = sound_RPF[1, 0] = 0
            assert torch.equal(partial_RPF, sound_RPF)


@pytest.mark.parametrize(
    ("runs", "tokens", "blocks"), [(1, 128, 128), (16, 128, 8), (16, 4, 4), (3, 1000, 42), (300, 10, 1), (1, 1, 1)]
)
def test_blocks_of_tokens_give_every_multiprocessor_a_program(runs: int, tokens: int, blocks: int) -> None:
    assert token_blocks(runs, tokens) == blocks
