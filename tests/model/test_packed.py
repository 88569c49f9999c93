"""The packed model against `transformers`, a plain reference, and itself in packs of other sizes."""

import math
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bitnetctl.config import ModelConfig
from bitnetctl.model import functional
from bitnetctl.model.layer import rotary_tables
from bitnetctl.model.packed import PackedModel
from bitnetctl.model.parameters import num_parameters
from bitnetctl.model.storage import FLAT_GROUPS

CPU = torch.device("cpu")
VOCAB = 101


def build(seeds: list[int], **fields: Any) -> PackedModel:
    settings = {"hidden_size": 32, "num_layers": 2, "initialization": "default"} | fields
    return PackedModel([ModelConfig(**settings)] * len(seeds), VOCAB, seeds, CPU)


def tokens(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(VOCAB, shape, generator=torch.Generator().manual_seed(seed))


def named(model: PackedModel, run: int) -> dict[str, Tensor]:
    return model.parameters(run)


def perturb_norms(model: PackedModel) -> None:
    """Move the norm weights off 1, where a missing or swapped norm would not show."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for key, packed in model.packed.items():
            if model.parameter_specs[key].group == "norms":
                packed.add_(torch.rand(packed.shape, generator=generator) - 0.5)


def gradients(
    model: PackedModel, tokens_RBT: Tensor, quant_lambdas: list[float]
) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """Return logits, and the gradients by name of every run's mean cross-entropy against the next token."""
    for gradient in model.gradients.values():
        gradient.fill_(torch.nan)
    activations = model.forward_for_backward(tokens_RBT, model.quantization(quant_lambdas))
    targets_RN = tokens_RBT.roll(-1, -1).flatten(1)
    loss_R, grad_RNH = model.head_loss(activations.hidden_RNH, targets_RN)
    model.backward(activations, grad_RNH)
    logits_RNV = model.logits(activations.hidden_RNH)
    losses = [F.cross_entropy(logits, targets) for logits, targets in zip(logits_RNV, targets_RN, strict=True)]
    torch.testing.assert_close(loss_R, torch.stack(losses))
    result = []
    for run in range(model.num_runs):
        parameters = model.parameters(run)
        result.append({name: p.grad.clone() for name, p in parameters.items() if p.grad is not None})
        assert result[-1].keys() == parameters.keys()
    return logits_RNV, result


# against transformers

SHAPES = [
    pytest.param({"activation": activation, "num_key_value_heads": kv, "tie_word_embeddings": tied}, id=name)
    for activation, kv, tied, name in [
        ("relu2", 4, False, "relu2-mha-untied"),
        ("relu2", 2, True, "relu2-gqa-tied"),
        ("silu", 2, False, "silu-gqa-untied"),
        ("silu", 4, True, "silu-mha-tied"),
        ("relu2", 1, False, "relu2-mqa-untied"),
    ]
]


@pytest.fixture(scope="module")
def hf() -> SimpleNamespace:
    """Import what is needed of `transformers`, which takes seconds."""
    from transformers import BitNetConfig, BitNetForCausalLM, BitNetQuantConfig
    from transformers.integrations.bitnet import replace_with_bitnet_linear
    from transformers.models.bitnet import modeling_bitnet

    def network(config: ModelConfig, weights: Mapping[str, Tensor], *, ternary: bool) -> Any:
        settings: dict[str, Any] = {
            "vocab_size": VOCAB,
            "hidden_size": config.hidden_size,
            "intermediate_size": config.intermediate_size,
            "num_hidden_layers": config.num_layers,
            "num_attention_heads": config.num_attention_heads,
            "num_key_value_heads": config.num_key_value_heads,
            "hidden_act": config.activation,
            "rms_norm_eps": config.rms_norm_eps,
            "tie_word_embeddings": config.tie_word_embeddings,
            "rope_theta": config.rope_theta,
            "max_position_embeddings": 128,
            "bos_token_id": 0,
            "eos_token_id": 0,
            "pad_token_id": None,
        }
        network: Any = BitNetForCausalLM(BitNetConfig(**settings))
        network = network.float().eval()
        if ternary:
            online = BitNetQuantConfig(linear_class="autobitlinear", quantization_mode="online")
            network = replace_with_bitnet_linear(
                network, modules_to_not_convert=["lm_head"], quantization_config=online
            )
        copies = {name: weight.detach().clone() for name, weight in weights.items()}
        if config.tie_word_embeddings:
            copies["lm_head.weight"] = copies["model.embed_tokens.weight"]
        network.load_state_dict(copies)
        return network

    return SimpleNamespace(network=network, config=BitNetConfig, modeling=modeling_bitnet)


@pytest.mark.parametrize("fields", SHAPES)
@pytest.mark.parametrize("quant_lambda", [1.0, 0.0], ids=["ternary", "full"])
@torch.no_grad()
def test_logits_are_those_of_transformers(hf: SimpleNamespace, fields: dict[str, Any], quant_lambda: float) -> None:
    model = build([0, 1], hidden_size=64, **fields)
    perturb_norms(model)
    # a float32 sum in another order can flip an int8 rounding, which moves the rest of its row by 1e-3: about one
    # short row in forty, so most rows must agree closely and the others roughly
    inputs_RBT = tokens(2, 20, 6) if quant_lambda else tokens(2, 4, 40)
    logits_RNV = model.forward(inputs_RBT, [quant_lambda, quant_lambda])
    for run in range(2):
        network = hf.network(model.config, named(model, run), ternary=quant_lambda == 1.0)
        expected_BTV = network(inputs_RBT[run]).logits
        assert expected_BTV.abs().max() > 1
        off_B = (logits_RNV[run].view_as(expected_BTV) - expected_BTV).abs().amax((1, 2))
        assert (off_B > 1e-4).sum() <= (4 if quant_lambda else 0)
        assert off_B.max() < 0.05 * expected_BTV.abs().max()


@pytest.mark.parametrize("fields", SHAPES)
def test_names_shapes_and_count_are_those_of_transformers(hf: SimpleNamespace, fields: dict[str, Any]) -> None:
    model = build([0, 1], **fields)
    network = hf.network(model.config, named(model, 1), ternary=False)
    expected = {name: tuple(parameter.shape) for name, parameter in network.named_parameters()}
    assert {name: tuple(parameter.shape) for name, parameter in named(model, 1).items()} == expected
    assert num_parameters(model.config, VOCAB) == sum(math.prod(shape) for shape in expected.values())
    assert model.num_parameters == num_parameters(model.config, VOCAB)


def test_rotary_embeddings_are_those_of_transformers(hf: SimpleNamespace) -> None:
    model = build([0], rope_theta=500.0)
    settings = hf.config(hidden_size=32, num_attention_heads=4, rope_theta=500.0)
    query, key = torch.randn(2, 3, 4, 50, 8, generator=torch.Generator().manual_seed(0)).unbind(0)
    cos, sin = hf.modeling.BitNetRotaryEmbedding(settings)(query, torch.arange(50)[None])
    expected = hf.modeling.apply_rotary_pos_emb(query, key, cos, sin)
    ours_cos, ours_sin = rotary_tables(model.config, 50)
    for x, rotated in zip((query, key), expected, strict=True):
        torch.testing.assert_close(x * ours_cos + x.roll(4, dims=-1) * ours_sin, rotated, rtol=0, atol=1e-6)


# against a plain reference: one run, autograd, straight-through estimator by detach


def plain_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def plain_matrices(weights: list[Tensor], config: ModelConfig, quant_lambda: float) -> list[Tensor]:
    """Quantize matrices that share an input: one scale over all of them, or one for each."""
    mean = torch.cat(weights).abs().mean()
    result = []
    for weight in weights:
        scale = 1 / (mean if config.scale_group == "fused" else weight.abs().mean())
        ternary = (weight * scale).round().clamp(-1, 1) / scale
        result.append(weight + quant_lambda * (ternary - weight).detach())
    return result


def plain_activations(x: Tensor, quant_lambda: float) -> Tensor:
    scale = 127 / x.abs().max(-1, keepdim=True).values
    return x + quant_lambda * ((x * scale).round().clamp(-128, 127) / scale - x).detach()


def plain_forward(p: Mapping[str, Tensor], config: ModelConfig, tokens_BT: Tensor, quant_lambda: float) -> Tensor:
    rows, length = tokens_BT.shape
    heads, groups, width = config.num_attention_heads, config.num_key_value_heads, config.head_size
    eps = config.rms_norm_eps

    frequency = config.rope_theta ** -(torch.arange(0, width, 2, dtype=torch.float) / width)
    angle = torch.arange(length)[:, None] * frequency
    cos, sin = angle.cos().repeat(1, 2), angle.sin().repeat(1, 2)

    def rotate(x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=-1)
        return x * cos + torch.cat((-second, first), dim=-1) * sin

    x = p["model.embed_tokens.weight"][tokens_BT]
    for layer in range(config.num_layers):

        def w(name: str, prefix: str = f"model.layers.{layer}.") -> Tensor:
            return p[f"{prefix}{name}.weight"]

        h = plain_norm(x, w("input_layernorm"), eps)
        if config.inner_norms:
            h = plain_norm(h, w("self_attn.qkv_norm"), eps)
        h = plain_activations(h, quant_lambda)
        matrices = plain_matrices([w(f"self_attn.{name}_proj") for name in "qkv"], config, quant_lambda)
        query, key, value = ((h @ m.T).view(rows, length, -1, width).transpose(1, 2) for m in matrices)
        key, value = (part.repeat_interleave(heads // groups, dim=1) for part in (rotate(key), value))
        scores = rotate(query) @ key.mT / math.sqrt(width)
        scores = scores.masked_fill(torch.ones(length, length, dtype=torch.bool).triu(1), -torch.inf)
        h = (scores.softmax(-1) @ value).transpose(1, 2).reshape(rows, length, -1)
        h = plain_activations(plain_norm(h, w("self_attn.attn_sub_norm"), eps), quant_lambda)
        x = x + h @ plain_matrices([w("self_attn.o_proj")], config, quant_lambda)[0].T

        h = plain_norm(x, w("post_attention_layernorm"), eps)
        if config.inner_norms:
            h = plain_norm(h, w("mlp.gate_up_norm"), eps)
        h = plain_activations(h, quant_lambda)
        gate, up = plain_matrices([w("mlp.gate_proj"), w("mlp.up_proj")], config, quant_lambda)
        gated = (h @ gate.T).relu() ** 2 if config.activation == "relu2" else F.silu(h @ gate.T)
        h = plain_activations(plain_norm(gated * (h @ up.T), w("mlp.ffn_sub_norm"), eps), quant_lambda)
        x = x + h @ plain_matrices([w("mlp.down_proj")], config, quant_lambda)[0].T
    head = p["model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"]
    return plain_norm(x, p["model.norm.weight"], eps) @ head.T


PLAIN = [
    pytest.param({"inner_norms": True, "scale_group": "fused"}, 1.0, id="origin"),
    pytest.param({"inner_norms": True, "scale_group": "fused", "activation": "silu"}, 0.0, id="origin-full-precision"),
    pytest.param({"num_key_value_heads": 2, "tie_word_embeddings": True}, 1.0, id="gqa-tied"),
    pytest.param({"scale_group": "fused", "num_key_value_heads": 2, "intermediate_ratio": 2.7}, 1.0, id="fused-gqa"),
]


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(("fields", "quant_lambda"), PLAIN)
def test_logits_and_gradients_are_those_of_a_plain_reference(fields: dict[str, Any], quant_lambda: float) -> None:
    model = build([3, 4], **fields)
    perturb_norms(model)
    tokens_RBT = tokens(2, 3, 12)
    logits_RNV, grads = gradients(model, tokens_RBT, [quant_lambda, quant_lambda])
    for run in range(2):
        p = {name: weight.detach().clone().requires_grad_() for name, weight in named(model, run).items()}
        expected_BTV = plain_forward(p, model.config, tokens_RBT[run], quant_lambda)
        torch.testing.assert_close(logits_RNV[run].view_as(expected_BTV), expected_BTV, rtol=1e-9, atol=1e-9)
        F.cross_entropy(expected_BTV.flatten(0, 1), tokens_RBT[run].roll(-1, -1).flatten()).backward()
        for name, weight in p.items():
            assert weight.grad is not None
            assert weight.grad.abs().max() > 1e-6, name
            torch.testing.assert_close(grads[run][name], weight.grad, rtol=1e-8, atol=1e-10, msg=name)


def checked(forward: Callable[..., Any], backward: Callable[..., Any]) -> Callable[..., Tensor]:
    """Return an autograd function of a forward that returns (out, *saved) and its hand-written backward."""

    class Checked(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Tensor) -> Tensor:
            result: tuple[Tensor, ...] = forward(*inputs)
            ctx.saved = result[1:]
            return result[0]

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Any:
            return backward(grads[0], *ctx.saved)

    apply: Callable[..., Tensor] = Checked.apply
    return apply


def test_rms_norm_has_the_right_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, 7, generator=generator, dtype=torch.float64)
    # a token of zeros, and tokens where eps is not negligible
    x[0, 0] = 0
    x[1] *= 1e-2
    weight = torch.randn(2, 7, generator=generator, dtype=torch.float64)
    weight = weight[:, None]

    def forward(x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        return *functional.rms_norm(x, weight, 1e-3), weight

    def backward(grad: Tensor, normed: Tensor, inverse: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        grad_x, grad_weight = functional.rms_norm_backward(grad, normed, inverse, weight)
        return grad_x, grad_weight[:, None]

    inputs = (x.requires_grad_(), weight.requires_grad_())
    assert torch.autograd.gradcheck(checked(forward, backward), inputs)
    torch.testing.assert_close(functional.rms_norm(x, weight, 1e-3)[0], plain_norm(x, weight, 1e-3))


@pytest.mark.parametrize("activation", ["relu2", "silu"])
def test_the_gate_has_the_right_gradient(activation: str) -> None:
    gate_up = torch.randn(2, 5, 14, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    function = checked(
        lambda x: (functional.gate(x, activation), x), lambda grad, x: functional.gate_backward(grad, x, activation)
    )
    assert torch.autograd.gradcheck(function, (gate_up.requires_grad_(),))


def test_plain_attention_is_that_of_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 6, 9, 4, generator=generator, dtype=torch.float64).unbind(0)
    q, k, v = (t.requires_grad_() for t in (q, k, v))
    mask = torch.full((9, 9), -math.inf, dtype=torch.float64).triu(1)
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    grad = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    expected_grads = torch.autograd.grad(expected, (q, k, v), grad)
    with torch.no_grad():
        out, p = functional.attend(q, k, v, mask)
        grads = functional.attend_backward(grad, q, k, v, p).unbind(0)
    torch.testing.assert_close(out, expected)
    for ours, theirs in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_cross_entropy_is_that_of_torch(scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = (scale * torch.randn(2, 5, 50, generator=generator)).requires_grad_()
    targets = torch.randint(50, (2, 5), generator=generator)
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(2, 5)
    (expected_grad,) = torch.autograd.grad(expected.sum(), logits)
    loss, grad = functional.cross_entropy(logits.detach(), targets)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("tied", [False, True])
def test_a_head_in_chunks_gives_the_same(tied: bool) -> None:
    # 384 tokens are more than twice the hidden size
    model, tokens_RBT = build([0, 1], tie_word_embeddings=tied), tokens(2, 8, 48)
    hidden_RNH = model.forward_for_backward(tokens_RBT, model.quantization([1.0, 1.0])).hidden_RNH
    targets_RN = tokens_RBT.roll(-1, -1).flatten(1)
    loss_R, grad_RNH = model.head_loss(hidden_RNH, targets_RN)
    chunked = model.gradients["embed" if tied else "head"].clone()
    seen: list[torch.Size] = []
    whole_R, whole_RNH = model.head_loss(hidden_RNH, targets_RN, lambda logits, _: seen.append(logits.shape))
    assert seen == [(2, 384, VOCAB)]
    torch.testing.assert_close(loss_R, whole_R)
    torch.testing.assert_close(grad_RNH, whole_RNH)
    torch.testing.assert_close(chunked, model.gradients["embed" if tied else "head"])


def gradient_norms(model: PackedModel) -> list[float]:
    """Compute the gradients of a batch; return their norms."""
    gradients(model, tokens(2, 2, 12), [1.0, 1.0])
    norms: list[float] = model.gradient_norms().tolist()
    return norms


# packs


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("quant_lambda", [0.0, 1.0])
def test_a_pack_computes_what_its_runs_compute_alone(quant_lambda: float) -> None:
    seeds, fields = [7, 8, 9], {"inner_norms": True, "num_key_value_heads": 2}
    tokens_RBT = tokens(3, 2, 12)
    logits_RNV, grads = gradients(build(seeds, **fields), tokens_RBT, [quant_lambda] * 3)
    for run, seed in enumerate(seeds):
        alone_1NV, alone = gradients(build([seed], **fields), tokens_RBT[run : run + 1], [quant_lambda])
        torch.testing.assert_close(logits_RNV[run], alone_1NV[0], rtol=1e-10, atol=1e-10)
        for name, grad in alone[0].items():
            torch.testing.assert_close(grads[run][name], grad, rtol=1e-10, atol=1e-12, msg=name)


def test_a_pack_computes_what_its_runs_compute_alone_in_single_precision() -> None:
    tokens_RBT = tokens(3, 2, 12)
    logits_RNV, grads = gradients(build([7, 8, 9]), tokens_RBT, [0.0] * 3)
    for run, seed in enumerate([7, 8, 9]):
        alone_1NV, alone = gradients(build([seed]), tokens_RBT[run : run + 1], [0.0])
        torch.testing.assert_close(logits_RNV[run], alone_1NV[0], rtol=1e-5, atol=1e-5)
        for name, grad in alone[0].items():
            torch.testing.assert_close(grads[run][name], grad, rtol=1e-4, atol=1e-6, msg=name)


@torch.no_grad()
def test_every_run_has_its_own_lambda() -> None:
    model, tokens_RBT = build([0, 1]), tokens(2, 2, 12)
    mixed = model.forward(tokens_RBT, [1.0, 0.0])
    ternary, full = model.forward(tokens_RBT, [1.0, 1.0]), model.forward(tokens_RBT, [0.0, 0.0])
    assert torch.equal(mixed[0], ternary[0])
    assert torch.equal(mixed[1], full[1])
    assert not torch.allclose(ternary, full, atol=1e-2)


@torch.no_grad()
def test_attention_is_causal() -> None:
    model, tokens_RBT = build([0, 1], inner_norms=True), tokens(2, 2, 12)
    changed_RBT = tokens_RBT.clone()
    changed_RBT[..., 7] = (changed_RBT[..., 7] + 1) % VOCAB
    before, after = (model.forward(t, [1.0, 1.0]).view(2, 2, 12, VOCAB) for t in (tokens_RBT, changed_RBT))
    torch.testing.assert_close(after[:, :, :7], before[:, :, :7], rtol=0, atol=1e-6)
    assert not torch.allclose(after[:, :, 7:], before[:, :, 7:], atol=1e-2)


# weights


@pytest.mark.parametrize("initialization", ["default", "normal"])
def test_a_run_has_the_same_weights_in_every_pack(initialization: str) -> None:
    alone, packed = build([5], initialization=initialization), build([3, 5, 4], initialization=initialization)
    for name, weight in named(alone, 0).items():
        assert torch.equal(named(packed, 1)[name], weight), name
        if "norm" not in name:
            assert not torch.equal(named(packed, 0)[name], weight), name


def test_runs_of_a_pack_may_differ_in_initialization() -> None:
    narrow, wide = (ModelConfig(hidden_size=32, init_std=std) for std in (0.02, 0.2))
    model = PackedModel([narrow, wide, narrow], VOCAB, [0, 0, 0], CPU)
    torch.testing.assert_close(named(model, 1)["lm_head.weight"], 10 * named(model, 0)["lm_head.weight"])
    assert all(torch.equal(weight, named(model, 0)[name]) for name, weight in named(model, 2).items())


@pytest.mark.parametrize("initialization", ["default", "normal"])
def test_initialization_has_the_documented_mean_and_deviation(initialization: str) -> None:
    model = PackedModel([ModelConfig(hidden_size=64, initialization=initialization)], 500, [0], CPU)
    for name, weight in named(model, 0).items():
        if "norm" in name:
            assert torch.equal(weight, torch.ones_like(weight))
            continue
        if initialization == "normal":
            std = 0.02
        elif name == "model.embed_tokens.weight":
            std = 1.0
        else:
            # torch's own Linear: uniform up to 1 / sqrt(inputs)
            bound = weight.shape[1] ** -0.5
            std = bound / math.sqrt(3)
            assert 0.99 * bound < weight.abs().max() <= bound, name
        # five standard errors
        error = 5 / math.sqrt(weight.numel())
        assert abs(weight.mean().item()) < error * std, name
        assert weight.std().item() == pytest.approx(std, rel=error), name


def test_no_two_matrices_start_equal() -> None:
    weights = [weight for name, weight in named(build([0]), 0).items() if name.endswith("proj.weight")]
    assert len({weight.flatten()[:8].sum().item() for weight in weights}) == len(weights)


def test_parameters_and_flat_parameters_share_the_memory_of_the_pack() -> None:
    model = build([0, 1])
    before = {key: packed.clone() for key, packed in model.packed.items()}
    flat_parameters = model.flat_parameters(1)
    total = sum(flat.detach().sum().item() for flat in flat_parameters.values())
    with torch.no_grad():
        for parameter in model.parameters(1).values():
            parameter.add_(1)
    for key, packed in model.packed.items():
        assert torch.equal(packed[0], before[key][0])
        assert torch.equal(packed[1], before[key][1] + 1)
    after = sum(flat.detach().sum().item() for flat in flat_parameters.values())
    assert after - total == pytest.approx(model.num_parameters, rel=1e-4)
    assert all(flat.is_leaf for flat in flat_parameters.values())
    assert flat_parameters.keys() == FLAT_GROUPS.keys()


def test_gradients_by_name_are_those_of_the_flat_parameters() -> None:
    model = build([0, 1])
    flat_parameters, (norm, neighbour) = model.flat_parameters(1), gradient_norms(model)
    assert torch.nn.utils.get_total_norm(
        [flat.grad for flat in flat_parameters.values() if flat.grad is not None]
    ).item() == pytest.approx(neighbour)
    for parameter in model.parameters(1).values():
        assert parameter.grad is not None
        assert parameter.grad.count_nonzero() > 0
        parameter.grad.zero_()
    for flat in flat_parameters.values():
        assert flat.grad is not None
        assert flat.grad.count_nonzero() == 0
    assert model.gradient_norms().tolist() == [norm, 0.0]


def test_weights_load_by_name_into_one_run() -> None:
    source, target = build([0]), build([1, 2])
    neighbour = {name: weight.detach().clone() for name, weight in named(target, 0).items()}
    weights = {name: weight.detach() for name, weight in named(source, 0).items()}
    target.load(1, weights)
    for name, weight in weights.items():
        assert torch.equal(named(target, 1)[name], weight)
        assert torch.equal(named(target, 0)[name], neighbour[name])
    with pytest.raises(KeyError, match="lm_head"):
        target.load(1, {name: weight for name, weight in weights.items() if name != "lm_head.weight"})


def test_ternary_codes_are_those_of_every_projection_alone() -> None:
    model = build([0, 1], num_key_value_heads=2)
    codes = model.ternary_codes()
    assert set(codes) == {"qkv", "o", "gate_up", "down"}
    for run in range(2):
        for key, code in codes.items():
            for name, block in model.parameter_specs[key].parameters(code[run]):
                weight = named(model, run)[name].detach()
                assert torch.equal(block, (weight / weight.abs().mean()).round().clamp(-1, 1).to(torch.int8)), name
