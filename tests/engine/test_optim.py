"""A run's optimizer against torch's own on independent copies."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from bitnetctl.config import LearningRateFactors, OptimizerConfig, ParameterGroup
from bitnetctl.engine.optim import RunOptimizer, clip_divisor

GROUPS: dict[str, ParameterGroup | None] = {"embed": "embeddings", "qkv": None, "head": "head", "final_norm": "norms"}
SHAPES = {"embed": (11, 4), "qkv": (2, 12, 4), "head": (11, 4), "final_norm": (4,)}
# (learning rate, weight decay) of five steps, both changing
STEPS = [(1e-3, 0.1), (2e-3, 0.1), (3e-3, 0.05), (1e-3, 0.0), (5e-4, 0.2)]


def random_parameters(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator).requires_grad_() for name, shape in SHAPES.items()}


def set_gradients(flat_parameters: Mapping[str, Tensor], seed: int) -> None:
    for name, gradient in random_parameters(seed).items():
        flat_parameters[name].grad = gradient.detach()


def config(name: str, *exempt: str) -> OptimizerConfig:
    return OptimizerConfig.model_validate({"name": name, "exempt": exempt, "betas": (0.8, 0.95), "eps": 1e-2})


@pytest.mark.parametrize(("name", "reference"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)])
@pytest.mark.parametrize("exempt", [(), ("norms",), ("embeddings", "head", "norms")])
def test_five_steps_are_those_of_torch(
    name: str, reference: type[torch.optim.Adam] | type[torch.optim.AdamW], exempt: tuple[str, ...]
) -> None:
    flat_parameters, copies = random_parameters(), random_parameters()
    ours = RunOptimizer(config(name, *exempt), flat_parameters, GROUPS)
    # one group a tensor, independent of our grouping
    theirs = reference([{"params": [copy]} for copy in copies.values()], betas=(0.8, 0.95), eps=1e-2)
    for step, (learning_rate, weight_decay) in enumerate(STEPS):
        set_gradients(flat_parameters, 10 + step)
        set_gradients(copies, 10 + step)
        ours.step(learning_rate, weight_decay)
        for flat, group in zip(SHAPES, theirs.param_groups, strict=True):
            decayed = GROUPS[flat] not in exempt
            group.update(lr=learning_rate, weight_decay=weight_decay if decayed else 0.0)
        theirs.step()
        for flat in SHAPES:
            torch.testing.assert_close(flat_parameters[flat], copies[flat], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("name", "reference"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)])
@pytest.mark.parametrize("exempt", [(), ("norms",)])
def test_each_group_has_its_learning_rate(
    name: str, reference: type[torch.optim.Adam] | type[torch.optim.AdamW], exempt: tuple[str, ...]
) -> None:
    factors = {"embeddings": 0.25, "head": 1.0, "norms": 3.0}
    flat_parameters, copies = random_parameters(), random_parameters()
    chosen = OptimizerConfig.model_validate({**config(name, *exempt).model_dump(), "learning_rate_factors": factors})
    ours = RunOptimizer(chosen, flat_parameters, GROUPS)
    theirs = reference([{"params": [copy]} for copy in copies.values()], betas=(0.8, 0.95), eps=1e-2)
    for step, (learning_rate, weight_decay) in enumerate(STEPS):
        set_gradients(flat_parameters, 10 + step)
        set_gradients(copies, 10 + step)
        # as a tensor, as captured steps have it
        ours.step(learning_rate if step % 2 else torch.tensor(learning_rate), weight_decay)
        for flat, group in zip(SHAPES, theirs.param_groups, strict=True):
            factor = factors.get(GROUPS[flat] or "", 1.0)
            group.update(lr=learning_rate * factor, weight_decay=0.0 if GROUPS[flat] in exempt else weight_decay)
        theirs.step()
        for flat in SHAPES:
            torch.testing.assert_close(flat_parameters[flat], copies[flat], rtol=1e-5, atol=1e-7)


def test_a_factor_of_zero_freezes_a_group() -> None:
    flat_parameters, before = random_parameters(), random_parameters()
    chosen = config("adamw").model_copy(update={"learning_rate_factors": LearningRateFactors(norms=0.0)})
    set_gradients(flat_parameters, 1)
    RunOptimizer(chosen, flat_parameters, GROUPS).step(0.1, 0.5)
    assert torch.equal(flat_parameters["final_norm"], before["final_norm"])
    assert not torch.equal(flat_parameters["head"], before["head"])


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_exempt_groups_are_not_decayed(name: str) -> None:
    flat_parameters, before = random_parameters(), random_parameters()
    optimizer = RunOptimizer(config(name, "embeddings", "norms"), flat_parameters, GROUPS)
    for weight in flat_parameters.values():
        weight.grad = torch.zeros_like(weight)
    optimizer.step(0.1, 0.5)
    for flat in ("embed", "final_norm"):
        assert torch.equal(flat_parameters[flat], before[flat])
    for flat in ("qkv", "head"):
        if name == "adamw":
            torch.testing.assert_close(flat_parameters[flat], before[flat] * (1 - 0.1 * 0.5))
        else:
            # coupled: the gradient g is the decay alone, and the first step of Adam is g / (|g| + eps)
            decay = 0.5 * before[flat]
            torch.testing.assert_close(flat_parameters[flat], before[flat] - 0.1 * decay / (decay.abs() + 1e-2))


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_a_restored_optimizer_resumes_bit_for_bit(name: str) -> None:
    flat_parameters = random_parameters()
    optimizer = RunOptimizer(config(name, "norms"), flat_parameters, GROUPS)
    for step in range(3):
        set_gradients(flat_parameters, step)
        optimizer.step(1e-2, 0.1)
    saved = {path: value.clone() for path, value in optimizer.state().items()}
    keys = {f"{flat}/{key}" for flat in SHAPES for key in ("step", "exp_avg", "exp_avg_sq")}
    assert saved.keys() == keys
    assert saved["qkv/exp_avg"].shape == SHAPES["qkv"]

    copies = {name: flat.detach().clone().requires_grad_() for name, flat in flat_parameters.items()}
    restored = RunOptimizer(config(name, "norms"), copies, GROUPS)
    # the order of tensors in a file is not that of the flat parameters
    restored.load_state(dict(sorted(saved.items(), reverse=True)))
    for step in range(3, 6):
        for each in (flat_parameters, copies):
            set_gradients(each, step)
        optimizer.step(1e-2, 0.1)
        restored.step(1e-2, 0.1)
        for flat in SHAPES:
            assert torch.equal(copies[flat], flat_parameters[flat])
    assert all(torch.equal(restored.state()[path], value) for path, value in optimizer.state().items())


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_an_optimizer_with_reset_moments_is_a_fresh_one(name: str) -> None:
    flat_parameters = random_parameters()
    optimizer = RunOptimizer(config(name, "norms"), flat_parameters, GROUPS)
    for step in range(3):
        set_gradients(flat_parameters, step)
        optimizer.step(1e-2, 0.1)
    optimizer.reset_moments()
    copies = {name: flat.detach().clone().requires_grad_() for name, flat in flat_parameters.items()}
    fresh = RunOptimizer(config(name, "norms"), copies, GROUPS)
    for step in range(3, 5):
        for each, taking in ((flat_parameters, optimizer), (copies, fresh)):
            set_gradients(each, step)
            taking.step(1e-2, 0.1)
        for flat in SHAPES:
            assert torch.equal(copies[flat], flat_parameters[flat])


def test_an_optimizer_without_a_step_has_no_state() -> None:
    assert RunOptimizer(config("adamw"), random_parameters(), GROUPS).state() == {}


@pytest.mark.parametrize("factor", [0.1, 0.999, 1.0, 1.0000001, 1.001, 10.0])
def test_clipping_is_that_of_torch(factor: float) -> None:
    flat_parameters, copies = random_parameters(), random_parameters()
    for each in (flat_parameters, copies):
        set_gradients(each, 1)
    norm = torch.nn.utils.get_total_norm([copy.grad for copy in copies.values() if copy.grad is not None])
    max_norm = factor * norm.item()
    RunOptimizer(config("adam"), flat_parameters, GROUPS).step(1e-3, 0.0, divisor=clip_divisor(norm, max_norm))
    stock = torch.optim.Adam(copies.values(), lr=1e-3, betas=config("adam").betas, eps=config("adam").eps)
    torch.nn.utils.clip_grad_norm_(copies.values(), max_norm)
    stock.step()
    for flat in SHAPES:
        torch.testing.assert_close(flat_parameters[flat], copies[flat], rtol=1e-6, atol=1e-7)
    clipped = torch.nn.utils.get_total_norm([flat.grad for flat in flat_parameters.values() if flat.grad is not None])
    assert clipped.item() == pytest.approx(min(norm.item(), max_norm), rel=1e-5)


def test_a_skipped_update_changes_nothing() -> None:
    flat_parameters = random_parameters()
    optimizer = RunOptimizer(config("adamw"), flat_parameters, GROUPS)
    set_gradients(flat_parameters, 1)
    optimizer.step(1e-3, 0.1, skip=torch.zeros(()))
    before = {flat: tensor.detach().clone() for flat, tensor in flat_parameters.items()}
    moments = {key: tensor.clone() for key, tensor in optimizer.state().items()}
    for tensor in flat_parameters.values():
        assert tensor.grad is not None
        tensor.grad.fill_(torch.nan)
    optimizer.step(1e-3, 0.1, skip=torch.ones(()))
    for flat, tensor in flat_parameters.items():
        assert torch.equal(tensor, before[flat])
    for key, tensor in optimizer.state().items():
        assert torch.equal(tensor, moments[key])
