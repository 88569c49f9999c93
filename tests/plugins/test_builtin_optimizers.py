"""Built-in interventions that bring an optimizer, against independent references."""

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from configs import TinyConfig
from packs import PackArms, compose, gradients as gradients_of, weights
from run_files import UNDISTURBED, Train, assert_undisturbed, start_of
from torch import Tensor
from torch.optim import Optimizer

from bitnetctl.config import RunConfig, parse_arm
from bitnetctl.engine.pack import Pack
from bitnetctl.errors import PluginError
from bitnetctl.intervention import Intervention
from bitnetctl.plugins import registry

RATE, DECAY = 0.02, 0.3
EMBED, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
QUERY, KEY, UP, DOWN = (
    f"model.layers.0.{name}_proj.weight" for name in ("self_attn.q", "self_attn.k", "mlp.up", "mlp.down")
)
SHAPES = {EMBED: (9, 6), QUERY: (6, 6), KEY: (6, 6), UP: (10, 6), DOWN: (6, 10), NORM: (6,), HEAD: (9, 6)}
Arrays = dict[str, "np.ndarray[Any, np.dtype[np.float64]]"]


def leaves(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator, dtype=torch.double) for name, shape in SHAPES.items()}


def arrays(tensors: Mapping[str, Tensor]) -> Arrays:
    return {name: tensor.numpy().copy() for name, tensor in tensors.items()}


def hook_of(arm: str) -> Intervention:
    [intervention] = registry.compose(parse_arm(arm)).interventions
    return intervention


def made(arm: str, parameters: Mapping[str, Tensor], config: RunConfig, *, on_device: bool = False) -> list[Optimizer]:
    """The optimizers of an arm, with rates as the engine sets them; those of a captured step are tensors."""
    optimizers = hook_of(arm).make_optimizer(parameters, config)
    optimizers = list(optimizers) if isinstance(optimizers, Sequence) else [optimizers]
    for group in (group for each in optimizers for group in each.param_groups):
        rate = RATE * group.get("lr_factor", 1.0)
        group["lr"] = torch.tensor(rate, dtype=torch.double) if on_device else rate
        group["weight_decay"] = DECAY * group.get("weight_decay_factor", 1.0)
        group["capturable"] = False
    return optimizers


def updated(
    arm: str, config: RunConfig, gradients: Sequence[Mapping[str, Tensor]], *, on_device: bool = False
) -> Arrays:
    """The parameters after one update for each set of gradients."""
    parameters = leaves()
    for parameter in parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    optimizers = made(arm, parameters, config, on_device=on_device)
    for step in gradients:
        for name, gradient in step.items():
            parameters[name].grad = gradient.clone()
        for optimizer in optimizers:
            optimizer.step()
    return arrays(parameters)


def adamw(weight: Any, gradients: Sequence[Any], config: RunConfig) -> Any:
    """AdamW by the formulas of Kingma & Ba and of Loshchilov & Hutter."""
    w, m, v = weight.copy(), 0.0, 0.0
    beta1, beta2 = config.optimizer.betas
    for step, g in enumerate(gradients, 1):
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
        m_hat, v_hat = m / (1 - beta1**step), v / (1 - beta2**step)
        w = w - RATE * DECAY * w - RATE * m_hat / (np.sqrt(v_hat) + config.optimizer.eps)
    return w


def by_name(gradients: Sequence[Mapping[str, Tensor]], name: str) -> list[Any]:
    return [each[name].numpy() for each in gradients]


@pytest.mark.parametrize(
    ("settings", "momentum", "nesterov", "iterations", "adjust"),
    [
        ("", 0.95, True, 5, "match"),
        ("momentum=0.5,nesterov=false,ns_steps=3", 0.5, False, 3, "match"),
        ("adjust_lr=original,lr_factor=10", 0.95, True, 5, "original"),
    ],
)
def test_muon_moves_along_the_singular_vectors(
    settings: str, momentum: float, nesterov: bool, iterations: int, adjust: str, tiny_config: TinyConfig
) -> None:
    """The iteration is a polynomial of the singular values, so the reference takes it of them alone."""
    config = tiny_config()
    gradients = [leaves(seed) for seed in (1, 2, 3)]
    after = updated(f"muon:{settings}" if settings else "muon", config, gradients)
    start = arrays(leaves())
    for name in (QUERY, KEY, UP, DOWN):
        rate = RATE * (10 if adjust == "original" else 1)
        rows, columns = SHAPES[name]
        adjusted = 0.2 * math.sqrt(max(rows, columns)) if adjust == "match" else math.sqrt(max(1, rows / columns))
        w, m = start[name], np.zeros(SHAPES[name])
        for g in by_name(gradients, name):
            m = momentum * m + (1 - momentum) * g
            u, sigma, vt = np.linalg.svd((1 - momentum) * g + momentum * m if nesterov else m, full_matrices=False)
            sigma = sigma / np.sqrt((sigma**2).sum())
            for _ in range(iterations):
                sigma = 3.4445 * sigma - 4.7750 * sigma**3 + 2.0315 * sigma**5
            w = w - rate * DECAY * w - rate * adjusted * (u * sigma) @ vt
        # bf16 has three digits, and singular values near 0 are where the polynomial is steepest
        moved, expected = after[name] - start[name], w - start[name]
        assert np.linalg.norm(moved - expected) < 0.03 * np.linalg.norm(expected), name
    for name in (EMBED, HEAD, NORM):
        np.testing.assert_allclose(after[name], adamw(start[name], by_name(gradients, name), config), rtol=1e-9)


@pytest.mark.parametrize("adjust", ["match_rms_adamw", "original"])
def test_muon_is_that_of_torch(adjust: str, tiny_config: TinyConfig) -> None:
    """Several matrices of a shape in one product give what torch computes one by one."""
    gradients = [leaves(seed) for seed in (1, 2, 3)]
    after = updated(f"muon:adjust_lr={adjust}", tiny_config(), gradients)
    matrices = {name: tensor for name, tensor in leaves().items() if name in (QUERY, KEY, UP, DOWN)}
    of_torch = torch.optim.Muon(matrices.values(), lr=RATE, weight_decay=DECAY, adjust_lr_fn=adjust)
    for step in gradients:
        for name, matrix in matrices.items():
            matrix.grad = step[name]
        of_torch.step()
    for name, matrix in matrices.items():
        moved = matrix - leaves()[name]
        # a rounding of bf16 that comes out otherwise
        np.testing.assert_allclose(after[name], matrix.numpy(), atol=0.02 * moved.abs().max().item(), err_msg=name)


@pytest.mark.parametrize(
    ("arm", "betas", "rate", "decay"),
    [
        ("lion", (0.9, 0.99), 0.3 * RATE, DECAY / 0.3),
        ("lion:beta1=0.95,beta2=0.5,lr_factor=0.1", (0.95, 0.5), 0.1 * RATE, 10 * DECAY),
        ("lion:lr_factor=1,weight_decay_factor=0", (0.9, 0.99), RATE, 0.0),
    ],
)
def test_lion_is_its_program(
    arm: str, betas: tuple[float, float], rate: float, decay: float, tiny_config: TinyConfig
) -> None:
    gradients = [leaves(seed) for seed in (1, 2, 3, 4)]
    after = updated(arm, tiny_config(), gradients)
    for name, weight in arrays(leaves()).items():
        w, m = weight, np.zeros_like(weight)
        for g in by_name(gradients, name):
            w = w - rate * (np.sign(betas[0] * m + (1 - betas[0]) * g) + decay * w)
            m = betas[1] * m + (1 - betas[1]) * g
        np.testing.assert_allclose(after[name], w, rtol=1e-9, err_msg=name)


@pytest.mark.parametrize(
    ("settings", "gammas", "every"),
    [("", (0.7, 0.9, 0.999), 1000), ("gamma1=0.5,gamma2=0.8,gamma3=0.9,reset_every=4", (0.5, 0.8, 0.9), 4)],
)
def test_stable_spam_is_its_algorithm(
    settings: str, gammas: tuple[float, float, float], every: int, tiny_config: TinyConfig
) -> None:
    pytest.importorskip("pytorch_optimizer")
    config = tiny_config()
    # the scale of the gradients grows and has a spike
    gradients = [
        {name: each * (step + 20 * (step == 3)) for name, each in leaves(step).items()} for step in range(1, 8)
    ]
    after = updated(f"stable-spam:{settings}" if settings else "stable-spam", config, gradients)
    (gamma1, gamma2, gamma3), (beta1, beta2), eps = gammas, config.optimizer.betas, config.optimizer.eps
    clipped = 0
    for name, weight in arrays(leaves()).items():
        w, m, v = weight, np.zeros_like(weight), np.zeros_like(weight)
        mean_norm = mean_square = mean_max = 0.0
        k = 0
        for t, g in enumerate(by_name(gradients, name), 1):
            largest = np.abs(g).max()
            mean_max = gamma3 * mean_max + (1 - gamma3) * largest
            limit = mean_max / (1 - gamma3**t)
            clipped += int((np.abs(g) > limit).sum())
            g = np.where(np.abs(g) > limit, g / largest * limit, g)
            norm = np.sqrt((g**2).sum())
            mean_norm = gamma1 * mean_norm + (1 - gamma1) * norm
            mean_square = gamma2 * mean_square + (1 - gamma2) * norm**2
            g = g / norm * (mean_norm / (1 - gamma1**t)) / (np.sqrt(mean_square / (1 - gamma2**t)) + eps)
            k = 1 if t % every == 0 else k + 1
            m, v = (0 * g, 0 * g) if t % every == 0 else (m, v)
            m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
            w = w - RATE * DECAY * w - RATE * (m / (1 - beta1**k)) / (np.sqrt(v / (1 - beta2**k)) + eps)
        np.testing.assert_allclose(after[name], w, rtol=1e-7, err_msg=name)
    assert clipped > 20


def test_stable_spam_without_its_package(monkeypatch: pytest.MonkeyPatch, tiny_config: TinyConfig) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    with pytest.raises(PluginError) as caught:
        compose("stable-spam").configure(tiny_config())
    assert str(caught.value) == "stable-spam needs pytorch-optimizer: pip install 'bitnetctl[optimizers]'"


@pytest.mark.parametrize("arm", ["muon", "lion"])
def test_a_learning_rate_on_the_device_is_that_of_the_host(arm: str, tiny_config: TinyConfig) -> None:
    gradients = [leaves(seed) for seed in (1, 2)]
    on_device = updated(arm, tiny_config(), gradients, on_device=True)
    for name, weight in updated(arm, tiny_config(), gradients).items():
        np.testing.assert_allclose(on_device[name], weight, rtol=1e-6, atol=1e-7, err_msg=name)


@pytest.mark.parametrize(
    "arm",
    [
        "muon",
        "muon+fp-first:fraction=0.25,ramp=0.25",
        "lion+decoupled-decay",
        "stable-spam:reset_every=3",
        "stable-spam:reset_every=4+momentum-reset:every=5",
    ],
)
@pytest.mark.parametrize("stop", [1, 6, 8])
def test_it_resumes_where_it_was(arm: str, train: Train, tiny_config: TinyConfig, stop: int) -> None:
    if arm.startswith("stable-spam"):
        pytest.importorskip("pytorch_optimizer")
    config = tiny_config(arm=arm)
    train(config, names=["a"], runs_dir=UNDISTURBED)
    train(config, names=["a"], stop_after=stop)
    assert start_of(train(config, names=["a"])) == stop
    assert_undisturbed("a")


def moved(pack: Pack, steps: int = 1) -> dict[str, Tensor]:
    """How far the weights of run 0 go in some steps."""
    before = weights(pack)
    for step in range(1, steps + 1):
        pack.step(step)
    return {key: weight - before[key] for key, weight in weights(pack).items()}


@pytest.mark.parametrize(("arm", "is_exempt"), [("lion", False), ("lion+decoupled-decay", True)])
def test_decoupled_decay_exempts_groups_of_another_optimizer(
    arm: str, is_exempt: bool, tiny_config: TinyConfig, pack_arms: PackArms
) -> None:
    """An embedding without a gradient moves by its decay alone."""
    run = pack_arms(tiny_config(schedule__kind="constant", schedule__warmup_steps=0), arm)
    start = weights(run)
    change = moved(run)
    never_seen = (gradients_of(run)["embed"] == 0).all(-1)
    assert never_seen.any()
    expected = (0.0 if is_exempt else -1.5e-3 * 0.1) * start["embed"][never_seen]
    torch.testing.assert_close(change["embed"][never_seen], expected, rtol=1e-3, atol=1e-7)
    step = 0.3 * 1.5e-3 * gradients_of(run)["qkv"].sign() + 1.5e-3 * 0.1 * start["qkv"]
    torch.testing.assert_close(change["qkv"], -step, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("key", ["embed", "qkv", "down"])
def test_a_reduced_rate_reaches_both_optimizers_of_muon(key: str, tiny_config: TinyConfig, pack_arms: PackArms) -> None:
    config = tiny_config(schedule__stage1_weight_decay=0, schedule__warmup_steps=0)
    full, reduced = (moved(pack_arms(config, arm))[key] for arm in ("muon", "muon+reduced-lr:factor=0.5"))
    torch.testing.assert_close(reduced, 0.5 * full, rtol=1e-3, atol=1e-6)


def test_muon_takes_steps_of_the_size_of_adamw(tiny_config: TinyConfig, pack_arms: PackArms) -> None:
    """Root mean square of an update / learning rate: 0.2 in arXiv 2502.16982, section 2."""
    config = tiny_config(schedule__stage1_weight_decay=0, schedule__warmup_steps=0)
    change = moved(pack_arms(config, "muon"))
    for key in ("qkv", "gate_up", "down"):
        assert change[key].square().mean().sqrt().item() / 1.5e-3 == pytest.approx(0.2, rel=0.25), key


def test_muon_after_full_precision(tiny_config: TinyConfig, pack_arms: PackArms) -> None:
    run = pack_arms(tiny_config(), "muon+fp-first:fraction=0.25,ramp=0")
    twin = pack_arms(tiny_config(), "muon+full-precision")
    losses = []
    for step in range(1, 6):
        for each in (run, twin):
            each.step(step)
        losses.append(run.loss_R.item() == twin.loss_R.item())
    assert losses == [True, True, True, False, False]


@pytest.mark.parametrize(
    ("arm", "max_norm"), [("stable-spam", None), ("stable-spam+aggressive-clipping", 0.1), ("muon", 1.0)]
)
def test_stable_spam_clips_by_itself(
    arm: str, max_norm: float | None, tiny_config: TinyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert compose(arm).configure(tiny_config()).optimizer.max_norm == max_norm


def test_a_reset_of_moments_makes_stable_spam_anew(tiny_config: TinyConfig, pack_arms: PackArms) -> None:
    pytest.importorskip("pytorch_optimizer")
    config = tiny_config(schedule__kind="constant", schedule__warmup_steps=0)
    run = pack_arms(config, "stable-spam+momentum-reset:every=3")
    moved(run, 3)
    fresh = pack_arms(config, "stable-spam")
    with torch.no_grad():
        for key, packed in fresh.model.packed.items():
            packed.copy_(run.model.packed[key])
    for step in (4, 5):
        run.step(step)
        fresh.step(step)
    for key, weight in weights(run).items():
        assert torch.equal(weight, weights(fresh)[key]), key
