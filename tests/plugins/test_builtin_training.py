"""Built-in interventions that change loss, gradients, optimizer or weights, against independent references."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from configs import TinyConfig
from packs import PackArms, batch, compose, counted_steps, first_moments, gradients, weights
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bitnetctl.engine.pack import Pack
from bitnetctl.model import matmul
from bitnetctl_interventions import adaptive_clipping


def adam(
    weight: Tensor,
    gradients: list[Tensor],
    *,
    rate: float,
    decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the weight after steps of Adam with decoupled decay, by the formulas of Kingma & Ba and Loshchilov."""
    w = weight.double().numpy().copy()
    m, v = np.zeros_like(w), np.zeros_like(w)
    for step, gradient in enumerate(gradients, 1):
        g = gradient.double().numpy()
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g**2
        m_hat, v_hat = m / (1 - betas[0] ** step), v / (1 - betas[1] ** step)
        w = w - rate * decay * w - rate * m_hat / (np.sqrt(v_hat) + eps)
    return w


def assert_close(actual: Mapping[str, Tensor], expected: Mapping[str, Any], atol: float) -> None:
    assert set(actual) == set(expected)
    for key, value in expected.items():
        np.testing.assert_allclose(actual[key].double().numpy(), value, rtol=1e-5, atol=atol, err_msg=key)


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 0.5])
def test_label_smoothing_is_its_formula(epsilon: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits_TV = (3 * torch.randn(7, 11, generator=generator, dtype=torch.float64)).requires_grad_()
    targets_T = torch.randint(11, (7,), generator=generator)
    loss = compose(f"label-smoothing:epsilon={epsilon}").training_loss(logits_TV, targets_T)
    loss.backward()

    scores_TV = logits_TV.detach().numpy()
    log_p_TV = scores_TV - np.log(np.exp(scores_TV).sum(-1, keepdims=True))
    one_hot_TV = np.eye(11)[targets_T.numpy()]
    mixed_TV = (1 - epsilon) * one_hot_TV + epsilon / 11
    assert loss.item() == pytest.approx(-(mixed_TV * log_p_TV).sum(-1).mean(), rel=1e-12)
    assert logits_TV.grad is not None
    np.testing.assert_allclose(logits_TV.grad.numpy(), (np.exp(log_p_TV) - mixed_TV) / 7, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("coefficient", [1e-4, 0.5])
def test_z_loss_is_its_formula(coefficient: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits_TV = (3 * torch.randn(7, 11, generator=generator, dtype=torch.float64)).requires_grad_()
    targets_T = torch.randint(11, (7,), generator=generator)
    objective = compose(f"z-loss:coefficient={coefficient}").training_loss(logits_TV, targets_T)
    objective.backward()

    total, gradient_TV = 0.0, np.zeros((7, 11))
    for row, (scores, target) in enumerate(zip(logits_TV.detach().numpy(), targets_T.tolist(), strict=True)):
        z = sum(math.exp(score) for score in scores)
        total += (math.log(z) - scores[target] + coefficient * math.log(z) ** 2) / 7
        for token, score in enumerate(scores):
            p = math.exp(score) / z
            gradient_TV[row, token] = (p - (token == target) + 2 * coefficient * math.log(z) * p) / 7
    assert objective.item() == pytest.approx(total, rel=1e-12)
    assert logits_TV.grad is not None
    np.testing.assert_allclose(logits_TV.grad.numpy(), gradient_TV, rtol=1e-9, atol=1e-15)


def test_z_loss_is_in_the_objective_and_not_in_the_loss(tiny_config: TinyConfig, pack_arms: PackArms) -> None:
    both = pack_arms(tiny_config(), "", "z-loss:coefficient=0.5")
    inputs_RBT, _ = batch(both, 1)
    with torch.no_grad():
        log_z_N = both.model.forward(inputs_RBT, [1.0, 1.0])[1].logsumexp(-1)
    both.step(1)
    assert both.loss_R[1].item() == pytest.approx(both.loss_R[0].item(), rel=1e-6)
    extra = both.objective_R[1].item() - both.loss_R[1].item()
    assert extra == pytest.approx(0.5 * log_z_N.square().mean().item(), rel=1e-5)


def test_label_smoothing_does_not_change_the_measured_loss(tiny_config: TinyConfig, pack_arms: PackArms) -> None:
    both = pack_arms(tiny_config(), "", "label-smoothing:epsilon=0.5")
    inputs_RBT, targets_RN = batch(both, 1)
    with torch.no_grad():
        log_p_NV = both.model.forward(inputs_RBT, [1.0, 1.0])[0].log_softmax(-1)
    nll = -log_p_NV.gather(-1, targets_RN[0][:, None]).mean().item()
    both.step(1)
    assert both.loss_R.tolist() == pytest.approx([nll, nll], rel=1e-6)
    smoothed = 0.5 * nll - 0.5 * log_p_NV.mean().item()
    assert abs(smoothed - nll) > 1e-3
    assert both.objective_R.tolist() == pytest.approx([nll, smoothed], rel=1e-6)
    both.step(2)
    assert both.loss_R[0].item() != pytest.approx(both.loss_R[1].item(), rel=1e-7)


def test_label_smoothing_trains_on_the_smoothed_loss(tiny_config: TinyConfig, pack_arms: PackArms) -> None:
    config = tiny_config(optimizer__max_norm="none")
    both = pack_arms(config, "label-smoothing:epsilon=0.3", "")
    inputs_RBT, targets_RN = batch(both, 1)
    hidden_NH = both.model.forward_for_backward(inputs_RBT, both.model.quantization([1.0, 1.0])).hidden_RNH[0]
    head_VH = both.model.packed["head"][0].clone().requires_grad_()
    log_p_NV = (hidden_NH @ head_VH.T).log_softmax(-1)
    nll = -log_p_NV.gather(-1, targets_RN[0][:, None]).mean()
    (expected,) = torch.autograd.grad(0.7 * nll - 0.3 * log_p_NV.mean(), head_VH)
    both.step(1)
    torch.testing.assert_close(gradients(both, 0)["head"], expected, rtol=1e-4, atol=1e-7)
    assert not torch.allclose(gradients(both, 1)["head"], expected, rtol=1e-2, atol=1e-5)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(("arm", "norm"), [("aggressive-clipping", 0.1), ("aggressive-clipping:max_norm=0.02", 0.02)])
def test_aggressive_clipping_is_what_the_optimizer_sees(
    arm: str, norm: float, tiny_config: TinyConfig, pack_arms: PackArms
) -> None:
    both = pack_arms(tiny_config(), arm, "")
    both.step(1)
    measured = both.grad_norm_R.tolist()
    assert measured[0] == pytest.approx(measured[1], rel=1e-9)
    assert measured[0] > 0.2
    clipped = math.sqrt(sum(float(gradient.double().square().sum()) for gradient in gradients(both).values()))
    assert clipped == pytest.approx(norm, rel=1e-5)
    for key, gradient in gradients(both, 1).items():
        scale = norm / min(measured[1], 1.0)
        torch.testing.assert_close(gradients(both)[key], gradient * scale, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("decayed", ["matrices", "all"])
def test_decoupled_decay_is_adamw(decayed: str, tiny_config: TinyConfig, pack_arms: PackArms) -> None:
    config = tiny_config(
        schedule__kind="constant",
        schedule__peak_learning_rate=0.01,
        schedule__warmup_steps=0,
        schedule__stage1_weight_decay=0.5,
    )
    run = pack_arms(config, f"decoupled-decay:decayed={decayed}")
    start, seen = weights(run), []
    for step in (1, 2, 3):
        run.step(step)
        seen.append(gradients(run))
    exempt = ("embed", "head", "norm") if decayed == "matrices" else ()
    decays = {key: 0.0 if key.startswith(exempt) or key.endswith(exempt) else 0.5 for key in start}
    assert sum(decay > 0 for decay in decays.values()) == (4 if decayed == "matrices" else len(start))
    expected = {key: adam(start[key], [each[key] for each in seen], rate=0.01, decay=decays[key]) for key in start}
    assert_close(weights(run), expected, atol=3e-6)
    # the decay of a decayed tensor is far larger than the tolerance
    for key, weight in start.items():
        if decays[key]:
            undecayed = adam(weight, [each[key] for each in seen], rate=0.01)
            assert np.abs(undecayed - expected[key]).max() > 1e-3


def test_the_baseline_couples_its_decay(tiny_config: TinyConfig, pack_arms: PackArms) -> None:
    config = tiny_config(
        schedule__kind="constant",
        schedule__peak_learning_rate=0.01,
        schedule__warmup_steps=0,
        schedule__stage1_weight_decay=0.5,
    )
    both = pack_arms(config, "", "decoupled-decay:decayed=all")
    start = weights(both)
    both.step(1)
    coupled = {key: adam(start[key], [grad + 0.5 * start[key]], rate=0.01) for key, grad in gradients(both).items()}
    assert_close(weights(both), coupled, atol=3e-6)
    assert np.abs(weights(both, 1)["embed"].double().numpy() - coupled["embed"]).max() > 1e-3


def test_no_decay_at_all(tiny_config: TinyConfig, pack_arms: PackArms) -> None:
    config = tiny_config(schedule__kind="constant", schedule__peak_learning_rate=0.01, schedule__warmup_steps=0)
    run = pack_arms(config, "no-decay")
    start = weights(run)
    run.step(1)
    seen = gradients(run)
    assert_close(weights(run), {key: adam(start[key], [seen[key]], rate=0.01) for key in start}, atol=3e-6)
    never_seen = (seen["embed"] == 0).all(-1)
    assert never_seen.any()
    assert torch.equal(weights(run)["embed"][never_seen], start["embed"][never_seen])


@pytest.mark.parametrize(("arm", "std"), [("init-scale", 0.02), ("init-scale:std=0.1", 0.1)])
def test_init_scale_is_the_spread_of_the_weights(
    arm: str, std: float, tiny_config: TinyConfig, pack_arms: PackArms
) -> None:
    both = pack_arms(tiny_config(), arm, "")
    for key, weight in weights(both).items():
        if key.endswith("norm"):
            assert (weight == 1.0).all()
            continue
        values = weight.double().numpy().ravel()
        # six standard errors of a mean and of a standard deviation
        assert abs(values.mean()) < 6 * std / math.sqrt(values.size)
        assert abs(values.std() / std - 1) < 6 / math.sqrt(2 * values.size)
        # Gaussian, not uniform: 4.55 % beyond two deviations
        assert (np.abs(values) > 2 * std).mean() == pytest.approx(0.0455, abs=0.02)
    assert weights(both, 1)["embed"].std().item() == pytest.approx(1.0, rel=0.05)
    assert weights(both, 1)["qkv"].abs().max().item() <= 32**-0.5


def test_full_precision_quantizes_nothing(
    tiny_config: TinyConfig, pack_arms: PackArms, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*arguments: Any, **named: Any) -> Tensor:
        raise AssertionError("something is rounded")

    ternary = pack_arms(tiny_config(), "")
    twin = pack_arms(tiny_config(), "full-precision")
    assert twin.quant_lambdas(1) == twin.quant_lambdas(12) == [0.0]
    monkeypatch.setattr(matmul, "int8_activations", forbidden)
    monkeypatch.setattr(matmul, "ternary_weights", forbidden)
    twin.step(1)
    twin.step(2)
    with pytest.raises(AssertionError, match="rounded"):
        ternary.step(1)


@pytest.mark.parametrize("packed", [False, True])
def test_full_precision_is_the_plain_transformer(packed: bool, tiny_config: TinyConfig, pack_arms: PackArms) -> None:
    config = tiny_config(model__inner_norms=False, model__initialization="normal", model__init_std=0.2)
    run = pack_arms(config, "full-precision", *([""] if packed else []))
    tokens_RBT = torch.arange(24).view(1, 24, 1).expand(1 + packed, -1, -1)
    with torch.no_grad():
        logits_RNV = run.model.forward(tokens_RBT, run.quant_lambdas(1))
        ternary_RNV = run.model.forward(tokens_RBT, [1.0] * (1 + packed))
    w = {name: weight.detach() for name, weight in run.model.parameters(0).items()}

    def norm(x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], eps=1e-5)

    # rows of one token: attention returns the value, and RoPE does not rotate position 0
    x = w["model.embed_tokens.weight"][:24]
    for layer in range(2):
        p = f"model.layers.{layer}."
        value = norm(x) @ w[f"{p}self_attn.v_proj.weight"].T
        x = x + norm(value) @ w[f"{p}self_attn.o_proj.weight"].T
        gate, up = (norm(x) @ w[f"{p}mlp.{name}_proj.weight"].T for name in ("gate", "up"))
        x = x + norm(F.relu(gate) ** 2 * up) @ w[f"{p}mlp.down_proj.weight"].T
    expected_NV = norm(x) @ w["lm_head.weight"].T
    torch.testing.assert_close(logits_RNV[0], expected_NV, rtol=1e-4, atol=1e-4)
    assert (ternary_RNV[0] - expected_NV).abs().max() > 0.1


def test_fp_first_is_the_twin_and_then_ternary(tiny_config: TinyConfig, pack_arms: PackArms) -> None:
    config = tiny_config()
    run, twin = pack_arms(config, "fp-first:fraction=0.25,ramp=0"), pack_arms(config, "full-precision")
    for step in (1, 2, 3):
        run.step(step)
        twin.step(step)
        assert run.loss_R.item() == twin.loss_R.item()
    before, moments = weights(run), first_moments(run)
    inputs_RBT, targets_RN = batch(run, 4)
    with torch.no_grad():
        ternary_NV = run.model.forward(inputs_RBT, [1.0])[0]
    run.step(4)
    twin.step(4)
    assert run.loss_R.item() == pytest.approx(F.cross_entropy(ternary_NV, targets_RN[0]).item(), rel=1e-6)
    assert run.loss_R.item() != twin.loss_R.item()

    # the moments are kept
    after, seen = first_moments(run), gradients(run)
    assert counted_steps(run) == 4
    decay = run.replicas[0].weight_decay(4)
    for key, weight in before.items():
        coupled = seen[key] + decay * weight
        momentum = 0.9 * moments[key] + 0.1 * coupled
        torch.testing.assert_close(after[key], momentum, rtol=1e-4, atol=1e-7)
        assert moments[key].abs().max() > 1e-4


@pytest.mark.parametrize("every", [1, 2])
def test_momentum_reset_is_the_first_step_of_a_new_optimizer(
    every: int, tiny_config: TinyConfig, pack_arms: PackArms
) -> None:
    config = tiny_config(optimizer__name="adamw", schedule__kind="constant", schedule__warmup_steps=0)
    both = pack_arms(config, f"momentum-reset:every={every}", "")
    seen: list[list[dict[str, Tensor]]] = [[], []]
    for step in range(1, 6):
        before = weights(both), weights(both, 1)
        both.step(step)
        fresh = [step for step in range(1, 6) if (step - 1) % every == 0]
        for run in (0, 1):
            seen[run].append(gradients(both, run))
        if step not in fresh or step == 1:
            continue
        for run in (0, 1):
            first = {
                key: adam(weight, [seen[run][-1][key]], rate=1.5e-3, decay=0.1) for key, weight in before[run].items()
            }
            if run == 0:
                assert_close(weights(both), first, atol=1e-6)
                assert counted_steps(both) == 1
            else:
                assert np.abs(weights(both, 1)["qkv"].double().numpy() - first["qkv"]).max() > 1e-4


def test_momentum_is_kept_between_resets(tiny_config: TinyConfig, pack_arms: PackArms) -> None:
    run = pack_arms(tiny_config(optimizer__name="adamw", schedule__warmup_steps=0), "momentum-reset:every=3")
    counts = []
    for step in range(1, 9):
        run.step(step)
        counts.append(counted_steps(run))
    assert counts == [1, 2, 3, 1, 2, 3, 1, 2]


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(("clipping", "eps"), [(0.01, 1e-3), (0.05, 1e-3), (0.01, 2.0)])
def test_adaptive_clipping_row_by_row(
    clipping: float, eps: float, tiny_config: TinyConfig, pack_arms: PackArms
) -> None:
    config = tiny_config(optimizer__max_norm="none")
    both = pack_arms(config, f"adaptive-clipping:clipping={clipping},eps={eps}", "")
    named = {name: w.detach().double().numpy().copy() for name, w in named_parameters(both, 0).items()}
    both.step(1)
    raw, clipped = named_gradients(both, 1), named_gradients(both, 0)
    assert set(raw) == set(clipped) == set(named)
    bound = 0
    for name, gradient in raw.items():
        expected = gradient.copy()
        if name != "lm_head.weight":
            # a vector is one unit
            for unit, weight in zip(np.atleast_2d(expected), np.atleast_2d(named[name]), strict=True):
                limit = clipping * max(float(np.sqrt((weight**2).sum())), eps)
                norm = float(np.sqrt((unit**2).sum()))
                if norm > limit:
                    unit *= limit / norm
                    bound += 1
        np.testing.assert_allclose(clipped[name], expected, rtol=1e-6, atol=1e-12, err_msg=name)
    assert bound > 10
    np.testing.assert_allclose(clipped["lm_head.weight"], raw["lm_head.weight"], rtol=1e-6, atol=1e-12)
    head_norms = np.linalg.norm(raw["lm_head.weight"], axis=-1)
    assert (head_norms > clipping * np.maximum(np.linalg.norm(named["lm_head.weight"], axis=-1), 1e-3)).any()


def named_parameters(pack: Pack, run: int) -> dict[str, Tensor]:
    return pack.model.parameters(run)


def named_gradients(pack: Pack, run: int) -> dict[str, np.ndarray[Any, np.dtype[np.float64]]]:
    return {
        name: weight.grad.double().numpy().copy()
        for name, weight in named_parameters(pack, run).items()
        if weight.grad is not None
    }


def test_adaptive_clipping_by_hand() -> None:
    def parameter(values: list[Any], gradient: list[Any] | None) -> Tensor:
        tensor = torch.tensor(values, dtype=torch.float64)
        tensor.grad = None if gradient is None else torch.tensor(gradient, dtype=torch.float64)
        return tensor

    parameters = {
        # norms of the rows 5, 5, 0, 5; limits 0.5, 0.5, 0.01 (the floor 0.1), 0.5
        "matrix": parameter([[3, 4], [3, 4], [0, 0], [3, 4]], [[6, 8], [0.3, 0.4], [0, 2], [0, 0]]),
        "vector": parameter([3, 4], [0, 50]),
        "lm_head.weight": parameter([[3, 4]], [[600, 800]]),
        "unused": parameter([1], None),
    }
    compose("adaptive-clipping:clipping=0.1,eps=0.1").transform_gradients(parameters)
    expected: dict[str, list[Any]] = {
        "matrix": [[0.3, 0.4], [0.3, 0.4], [0, 0.01], [0, 0]],
        "vector": [0, 0.5],
        "lm_head.weight": [[600, 800]],
    }
    for name, values in expected.items():
        gradient = parameters[name].grad
        assert gradient is not None
        np.testing.assert_allclose(gradient.numpy(), values, rtol=1e-12, atol=1e-15, err_msg=name)
    assert parameters["unused"].grad is None


class Operations(TorchDispatchMode):
    """Count operators other than views."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        is_view = (
            any(argument.alias_info is not None for argument in func._schema.returns) and func._schema.name[-1] != "_"
        )
        self.count += not is_view
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("large", "most"), [(2**20, 80), (0, 540)])
def test_adaptive_clipping_takes_few_operations(
    monkeypatch: pytest.MonkeyPatch, tiny_config: TinyConfig, pack_arms: PackArms, large: int, most: int
) -> None:
    """Equal shapes together, and large tensors one by one with the same result."""
    runs = [pack_arms(tiny_config(model__num_layers=4), "") for _ in range(2)]
    for run in runs:
        run.step(1)
    hook = compose("adaptive-clipping")
    with torch.no_grad():
        hook.transform_gradients(named_parameters(runs[0], 0))
    monkeypatch.setattr(adaptive_clipping, "_LARGE", {"cpu": large})
    with torch.no_grad(), Operations() as operations:
        hook.transform_gradients(named_parameters(runs[1], 0))
    assert operations.count <= most
    for name, gradient in named_gradients(runs[0], 0).items():
        np.testing.assert_allclose(named_gradients(runs[1], 0)[name], gradient, rtol=1e-6, err_msg=name)


def test_adaptive_clipping_comes_before_the_global_clip(tiny_config: TinyConfig, pack_arms: PackArms) -> None:
    run = pack_arms(tiny_config(), "adaptive-clipping:clipping=1e6+aggressive-clipping")
    run.step(1)
    norm = math.sqrt(sum(float(gradient.double().square().sum()) for gradient in gradients(run).values()))
    assert norm == pytest.approx(0.1, rel=1e-4)
