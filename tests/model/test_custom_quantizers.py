"""Quantizers of interventions in the model: values, gradients, λ, codes and what export reads, against plain loops."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from bitnetctl.config import ModelConfig
from bitnetctl.model.packed import PackedModel
from bitnetctl.model.quantization import BUILT_IN, Quantizers, dequantized

CPU = torch.device("cpu")
VOCAB = 40


def build(quantizers: Quantizers = BUILT_IN, runs: int = 2, **fields: Any) -> PackedModel:
    config = ModelConfig(
        hidden_size=16,
        num_layers=2,
        num_attention_heads=2,
        num_key_value_heads=fields.pop("kv", 2),
        init_std=0.3,
        **fields,
    )
    return PackedModel([config] * runs, VOCAB, list(range(runs)), CPU, quantizers=quantizers)


def tokens(runs: int = 2, rows: int = 2, length: int = 6) -> Tensor:
    return torch.randint(VOCAB, (runs, rows, length), generator=torch.Generator().manual_seed(0))


def mean_ternary(weight_LOI: Tensor) -> tuple[Tensor, Tensor]:
    """The built-in quantizer as a hook, with the same operations."""
    inverse = weight_LOI.abs().mean((-2, -1), keepdim=True).clamp(min=1e-5).reciprocal()
    return (weight_LOI * inverse).round().clamp(-1, 1), inverse.reciprocal()


def int8(x_NI: Tensor) -> tuple[Tensor, Tensor]:
    scale = x_NI.abs().amax(-1, keepdim=True).clamp(min=1e-5) / 127
    return (x_NI / scale).round().clamp(-128, 127), scale


def by_row(weight_LOI: Tensor) -> tuple[Tensor, Tensor]:
    scale = weight_LOI.abs().amax(-1, keepdim=True) / 2
    return (weight_LOI / scale).round().clamp(-1, 1), scale


def by_group(size: int) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Codes and a scale for each group of `size` inputs, of weights or activations."""

    def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
        grouped = x.unflatten(-1, (-1, size))
        scale = grouped.abs().amax(-1, keepdim=True).clamp(min=1e-5) / 1.5
        return (grouped / scale).round().clamp(-1, 1).flatten(-2), scale.squeeze(-1)

    return quantize


def gradients_of_a_step(model: PackedModel, lambdas: list[float]) -> tuple[Tensor, dict[str, Tensor]]:
    inputs_RBT = tokens(model.num_runs)
    activations = model.forward_for_backward(inputs_RBT, model.quantization(lambdas))
    loss_R, grad_RNH = model.head_loss(activations.hidden_RNH, inputs_RBT.flatten(1).roll(1, 1))
    model.backward(activations, grad_RNH)
    return loss_R, {key: gradient.clone() for key, gradient in model.gradients.items()}


@pytest.mark.parametrize("lambdas", [[1.0, 1.0], [0.3, 0.8], [0.0, 1.0]])
def test_the_built_in_weights_written_as_a_hook_train_the_same_bits(lambdas: list[float]) -> None:
    plain, custom = (build(each, scale_group="fused") for each in (BUILT_IN, Quantizers(weights=mean_ternary)))
    (loss_R, expected), (custom_R, found) = (gradients_of_a_step(model, lambdas) for model in (plain, custom))
    assert torch.equal(loss_R, custom_R)
    for key, gradient in expected.items():
        assert torch.equal(found[key], gradient), key


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("lambdas", [[1.0, 1.0], [0.3, 0.8]])
def test_the_built_in_weights_written_as_a_hook_train_alike(lambdas: list[float]) -> None:
    # the mean of a projection is added in another order
    plain, custom = build(kv=1), build(Quantizers(weights=mean_ternary), kv=1)
    (loss_R, expected), (custom_R, found) = (gradients_of_a_step(model, lambdas) for model in (plain, custom))
    torch.testing.assert_close(custom_R, loss_R)
    torch.testing.assert_close(found, expected)


@pytest.mark.usefixtures("double")
def test_the_built_in_activations_written_as_a_hook_train_alike() -> None:
    plain, custom = build(), build(Quantizers(activations=int8))
    (loss_R, expected), (custom_R, found) = (gradients_of_a_step(model, [1.0, 0.4]) for model in (plain, custom))
    torch.testing.assert_close(custom_R, loss_R)
    torch.testing.assert_close(found, expected)


def reference_step(model: PackedModel, quantizers: Quantizers, lambdas: list[float]) -> tuple[Tensor, dict[str, Any]]:
    """The loss and gradients of each run by autograd, straight through by `detach`, from the model's named weights."""
    losses: list[Tensor] = []
    grads: dict[str, list[Tensor | None]] = {key: [] for key in model.packed}
    for run, strength in enumerate(lambdas):
        leaves = {key: packed[run].clone().requires_grad_() for key, packed in model.packed.items()}
        loss = autograd_loss(model, leaves, quantizers, strength, run)
        loss.backward()
        losses.append(loss.detach())
        for key, leaf in leaves.items():
            grads[key].append(leaf.grad)
    return torch.stack(losses), {
        key: torch.stack([grad for grad in each if grad is not None]) for key, each in grads.items()
    }


def straight_through(x: Tensor, quantized: Tensor, strength: float) -> Tensor:
    return x + (strength * (quantized - x)).detach()


def autograd_loss(
    model: PackedModel, leaves: dict[str, Tensor], quantizers: Quantizers, strength: float, run: int
) -> Tensor:
    config = model.config

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + config.rms_norm_eps).rsqrt() * weight

    def linear(x_BTI: Tensor, key: str, layer: int) -> Tensor:
        assert quantizers.weights is not None
        assert quantizers.activations is not None
        weight_OI = leaves[key][layer]
        rows = []
        for part_OI in weight_OI.split(model.segments(key)):
            codes, scale = quantizers.weights(part_OI.detach()[None])
            rows.append(straight_through(part_OI, expanded(codes, scale)[0], strength))
        codes, scale = quantizers.activations(x_BTI.detach().flatten(0, 1))
        x_BTI = straight_through(x_BTI, expanded(codes, scale).view(x_BTI.shape), strength)
        return x_BTI @ torch.cat(rows).T

    inputs_BT = tokens(model.num_runs)[run]
    x = leaves["embed"][inputs_BT]
    batch, length = inputs_BT.shape
    for layer in range(config.num_layers):
        qkv = linear(norm(x, leaves["input_norm"][layer]), "qkv", layer)
        q, k, v = (each.view(batch, length, -1, config.head_size).transpose(1, 2) for each in qkv.chunk(3, -1))
        q, k = rotated(q, config), rotated(k, config)
        a = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        a = a.transpose(1, 2).reshape(batch, length, -1)
        x = x + linear(norm(a, leaves["attn_sub_norm"][layer]), "o", layer)
        gate, up = linear(norm(x, leaves["post_norm"][layer]), "gate_up", layer).chunk(2, -1)
        f = torch.relu(gate).square() * up
        x = x + linear(norm(f, leaves["ffn_sub_norm"][layer]), "down", layer)
    logits_BTV = norm(x, leaves["final_norm"]) @ leaves["head"].T
    if config.logit_soft_cap is not None:
        logits_BTV = config.logit_soft_cap * torch.tanh(logits_BTV / config.logit_soft_cap)
    targets_N = tokens(model.num_runs).flatten(1).roll(1, 1)[run]
    return torch.nn.functional.cross_entropy(logits_BTV.flatten(0, 1), targets_N)


def rotated(x: Tensor, config: ModelConfig) -> Tensor:
    """RoPE as complex rotations of the pairs (i, i + D/2)."""
    half = x.shape[-1] // 2
    angles = torch.outer(torch.arange(x.shape[-2]).to(x), config.rope_theta ** (-torch.arange(half).to(x) / half))
    turned = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat((turned.real, turned.imag), -1)


def expanded(codes: Tensor, scale: Tensor) -> Tensor:
    """Codes times scale, the scale repeated for each input of its group."""
    return codes * scale.repeat_interleave(codes.shape[-1] // scale.shape[-1], -1)


CUSTOM = [
    pytest.param(Quantizers(weights=mean_ternary, activations=int8), id="built-in"),
    pytest.param(Quantizers(weights=by_row, activations=by_group(4)), id="rows-and-groups"),
    pytest.param(Quantizers(weights=by_group(8), activations=int8), id="groups"),
    pytest.param(Quantizers(weights=by_group(1), activations=by_group(16)), id="each-input"),
]


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("quantizers", CUSTOM)
@pytest.mark.parametrize("lambdas", [[1.0, 1.0], [0.25, 0.75], [0.0, 1.0]])
@pytest.mark.parametrize("fields", [{}, {"scale_group": "fused", "logit_soft_cap": 2.0}], ids=["projection", "fused"])
def test_loss_and_gradients_are_those_of_autograd(
    quantizers: Quantizers, lambdas: list[float], fields: dict[str, Any]
) -> None:
    model = build(quantizers, **fields)
    loss_R, found = gradients_of_a_step(model, lambdas)
    expected_R, expected = reference_step(model, quantizers, lambdas)
    torch.testing.assert_close(loss_R, expected_R)
    for key, gradient in expected.items():
        assert gradient.abs().max() > 0.01
        # the model's tables of rotary embeddings are fp32
        torch.testing.assert_close(found[key], gradient, rtol=1e-5, atol=1e-6)


def test_no_quantization_calls_no_quantizer() -> None:
    def forbidden(x: Tensor) -> tuple[Tensor, Tensor]:
        raise AssertionError

    custom, plain = build(Quantizers(weights=forbidden, activations=forbidden)), build()
    assert torch.equal(custom.forward(tokens(), [0.0, 0.0]), plain.forward(tokens(), [0.0, 0.0]))


def test_a_run_in_full_precision_is_exactly_that_beside_a_quantized_one() -> None:
    custom, plain = build(Quantizers(weights=by_group(4), activations=by_group(4))), build()
    mixed, full = custom.forward(tokens(), [0.0, 0.6]), plain.forward(tokens(), [0.0, 0.0])
    assert torch.equal(mixed[0], full[0])
    assert not torch.allclose(mixed[1], full[1])


def test_the_probe_sees_what_training_sees() -> None:
    model = build(Quantizers(weights=by_row, activations=by_group(8)))
    saved = model.forward_for_backward(tokens(), model.quantization([1.0, 0.5]))
    assert torch.equal(model.prepared([1.0, 0.5])(tokens()), model.logits(saved.hidden_RNH))


@pytest.mark.parametrize("scale_group", ["projection", "fused"])
def test_a_quantizer_gets_each_projection_of_all_runs_at_once(scale_group: str) -> None:
    shapes: list[tuple[int, ...]] = []

    def watched(weight_LOI: Tensor) -> tuple[Tensor, Tensor]:
        shapes.append(tuple(weight_LOI.shape))
        return by_row(weight_LOI)

    model = build(Quantizers(weights=watched), runs=3, kv=1, scale_group=scale_group)
    model.forward(tokens(3), [1.0] * 3)
    projections = [(6, 16, 16), (6, 8, 16), (6, 8, 16), (6, 16, 16), (6, 32, 16), (6, 32, 16), (6, 16, 32)]
    fused = [(6, 32, 16), (6, 16, 16), (6, 64, 16), (6, 16, 32)]
    assert shapes == (projections if scale_group == "projection" else fused)


def test_a_quantizer_gets_the_tokens_of_all_runs_at_once() -> None:
    shapes: list[tuple[int, ...]] = []

    def watched(x_NI: Tensor) -> tuple[Tensor, Tensor]:
        shapes.append(tuple(x_NI.shape))
        return int8(x_NI)

    build(Quantizers(activations=watched), runs=3).forward(tokens(3, 2, 5), [1.0] * 3)
    assert shapes == [(30, 16), (30, 16), (30, 16), (30, 32)] * 2


def multiplied(model: PackedModel, run: int) -> Iterator[tuple[str, Tensor]]:
    """The named weights of a run that the forward pass multiplies at λ 1."""
    matrices = model._quantized_matrices(model.quantization([1.0] * model.num_runs))
    for key, layers in matrices.items():
        values_LOI = torch.stack([operand.values[run] for operand in layers])
        yield from model.parameter_specs[key].parameters(values_LOI)


@pytest.mark.parametrize(
    ("weights", "size"), [(None, None), (mean_ternary, None), (by_row, None), (by_group(8), 8), (by_group(1), 1)]
)
@pytest.mark.parametrize("scale_group", ["projection", "fused"])
def test_codes_and_scales_are_the_weights_that_are_multiplied(weights: Any, size: int | None, scale_group: str) -> None:
    model = build(Quantizers(weights=weights), kv=1, scale_group=scale_group)
    for run in range(2):
        quantized = model.quantized(run)
        expected = dict(multiplied(model, run))
        assert quantized.keys() == expected.keys()
        assert quantized.keys() == {name for name in model.parameters(run) if "proj" in name}
        for name, (codes_OI, scale_OG) in quantized.items():
            assert codes_OI.dtype == torch.int8
            assert set(codes_OI.unique().tolist()) <= {-1, 0, 1}
            outputs, inputs = codes_OI.shape
            assert scale_OG.shape == (outputs, 1 if size is None else inputs // size)
            assert torch.equal(expanded(codes_OI, scale_OG), expected[name]), name


def test_scales_of_projections_may_have_other_numbers_of_groups() -> None:
    model = build(Quantizers(weights=lambda w: (by_row if w.shape[1] == 8 else by_group(4))(w)), kv=1)
    expected = dict(multiplied(model, 1))
    for name, (codes_OI, scale_OG) in model.quantized(1).items():
        assert torch.equal(expanded(codes_OI, scale_OG), expected[name])


def test_ternary_codes_are_those_of_the_quantizer() -> None:
    model = build(Quantizers(weights=by_group(4)))
    for key, codes_RLOI in model.ternary_codes().items():
        assert codes_RLOI.dtype == torch.int8
        for run in range(2):
            parts = [by_group(4)(part_LOI)[0] for part_LOI in model.packed[key][run].split(model.segments(key), 1)]
            assert torch.equal(codes_RLOI[run].float(), torch.cat(parts, 1))


def test_codes_are_read_where_every_value_may_be_checked() -> None:
    model = build(Quantizers(weights=by_row, codes=mean_ternary))
    assert torch.equal(model.ternary_codes()["o"], build().ternary_codes()["o"])
    assert not torch.equal(model.ternary_codes()["o"], build(Quantizers(weights=by_row)).ternary_codes()["o"])


def test_a_dequantized_value_has_the_scale_of_its_group() -> None:
    codes, scale = torch.tensor([[1.0, -1, 0, 1, 1, -1]]), torch.tensor([[2.0, 3.0, 5.0]])
    assert dequantized(codes, scale).tolist() == [[2, -2, 0, 3, 5, -5]]
    assert dequantized(codes, scale[:, :1]).tolist() == [[2, -2, 0, 2, 2, -2]]


def test_integer_matmuls_are_refused() -> None:
    config = ModelConfig(hidden_size=16, num_layers=1, num_attention_heads=2, num_key_value_heads=2)
    with pytest.raises(ValueError, match="no int8 matmuls"):
        PackedModel([config], VOCAB, [0], CPU, precision="int8", quantizers=Quantizers(weights=by_row))
