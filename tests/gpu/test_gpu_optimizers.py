"""Optimizers of plug-ins on a GPU: captured where they are capturable, else stepped by the host."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from configs import TinyConfig
from on_gpu import CAPTURED, GPU, MARKS, assert_close, assert_same_bits, captured, train
from optimizers import Lion, Make, own
from torch.optim import Optimizer

from bitnetctl.config import RunConfig
from bitnetctl.data import TokenData
from bitnetctl.engine.cuda_graph import CapturedPack
from bitnetctl.engine.pack import Pack
from bitnetctl.engine.select import Execution, make_pack
from bitnetctl.model.parts import supported_parts
from bitnetctl.plugins.composition import Composition

pytestmark = MARKS

OPTIMIZERS: dict[str, Make] = {
    "adamw": lambda parameters, config: torch.optim.AdamW(
        parameters.values(), betas=config.optimizer.betas, eps=config.optimizer.eps, capturable=True
    ),
    # with torch's default alpha and eps a relative change of 1e-6 in the weights becomes 2 % of the loss
    "rmsprop": lambda parameters, config: torch.optim.RMSprop(
        parameters.values(), alpha=0.9, momentum=0.9, eps=1e-3, capturable=True
    ),
    "lion": lambda parameters, config: Lion(parameters.values()),
    "two": lambda parameters, config: [
        torch.optim.Adam([one for one in parameters.values() if one.dim() == 2], capturable=True),
        Lion([one for one in parameters.values() if one.dim() == 1]),
    ],
}


def build(engine: str, configs: list[RunConfig], tokens: TokenData, makes: list[Make | None]) -> Pack:
    kernels = supported_parts(configs[0].model, "fp32") if engine == "fused" else frozenset()
    execution = Execution(engine=engine, precision="fp32", kernels=kernels)  # type: ignore[arg-type]
    compositions = [Composition() if make is None else own(make) for make in makes]
    return make_pack(configs, compositions, tokens, GPU, execution)


def configs_of(tiny_config: TinyConfig, runs: int, **settings: Any) -> list[RunConfig]:
    return [tiny_config(seed=seed, steps=40, optimizer__max_norm=0.5, **settings) for seed in range(runs)]


@pytest.mark.parametrize("engine", CAPTURED)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_captured_steps_train_as_the_host(
    tiny_config: TinyConfig, tiny_tokens: TokenData, engine: str, name: str
) -> None:
    settings = {"optimizer__exempt": "norms", "optimizer__learning_rate_factors__head": 0.5}
    # over the boundary at step 20, where the weight decay changes
    configs = configs_of(tiny_config, 2, **settings)
    ours, host = (build(each, configs, tiny_tokens, [OPTIMIZERS[name]] * 2) for each in (engine, "eager"))
    losses = [train(pack, range(1, 41)) for pack in (ours, host)]
    captured(ours)
    assert_close(losses[0], losses[1], relative=2e-2)
    again = build(engine, configs, tiny_tokens, [OPTIMIZERS[name]] * 2)
    assert torch.equal(train(again, range(1, 41)), losses[0])
    assert_same_bits(again, ours)


def test_captured_adamw_trains_as_that_of_the_config(tiny_config: TinyConfig, tiny_tokens: TokenData) -> None:
    configs = configs_of(tiny_config, 2, optimizer__name="adamw")
    ours = build("graph", configs, tiny_tokens, [OPTIMIZERS["adamw"]] * 2)
    theirs = build("graph", configs, tiny_tokens, [None] * 2)
    losses = [train(pack, range(1, 41)) for pack in (ours, theirs)]
    captured(ours)
    assert_close(losses[0], losses[1], relative=1e-2)


@pytest.mark.parametrize("engine", CAPTURED)
def test_a_diverged_run_freezes_and_its_neighbours_do_not_change(
    tiny_config: TinyConfig, tiny_tokens: TokenData, engine: str
) -> None:
    calm = configs_of(tiny_config, 3)
    absurd = tiny_config(seed=1, steps=40, schedule__peak_learning_rate=1e36, schedule__warmup_steps=0)
    disturbed = build(engine, [calm[0], absurd, calm[2]], tiny_tokens, [OPTIMIZERS["adamw"]] * 3)
    undisturbed = build(engine, calm, tiny_tokens, [OPTIMIZERS["adamw"]] * 3)
    train(disturbed, range(1, 21))
    frozen = {key: packed[1].clone() for key, packed in disturbed.model.packed.items()}
    state = {key: value.clone() for key, value in disturbed.replicas[1].optimizer.state().items()}
    train(disturbed, range(21, 41))
    train(undisturbed, range(1, 41))
    captured(disturbed).mark_diverged(40)
    assert [replica.diverged_at is None for replica in disturbed.replicas] == [True, False, True]
    for key, packed in disturbed.model.packed.items():
        assert torch.equal(packed[1], frozen[key]), key
        assert torch.equal(packed[[0, 2]], undisturbed.model.packed[key][[0, 2]]), key
    for key, value in disturbed.replicas[1].optimizer.state().items():
        assert torch.equal(value, state[key]), key


@pytest.mark.parametrize("engine", CAPTURED)
@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Muon])
def test_what_is_not_capturable_is_stepped_by_the_host(
    tiny_config: TinyConfig, tiny_tokens: TokenData, engine: str, make: Callable[..., Optimizer]
) -> None:
    def matrices_and_rest(parameters: Any, config: RunConfig) -> list[Optimizer]:
        matrices = [one for name, one in parameters.items() if "proj" in name]
        rest = [one for name, one in parameters.items() if "proj" not in name]
        return [make(matrices), torch.optim.AdamW(rest, capturable=True)]

    configs = configs_of(tiny_config, 2)
    ours, host = (build(each, configs, tiny_tokens, [matrices_and_rest] * 2) for each in (engine, "eager"))
    losses = [train(pack, range(1, 21)) for pack in (ours, host)]
    assert isinstance(ours, CapturedPack)
    assert ours.graphs is None
    assert ours.not_captured == f"own: {make.__name__} is not capturable"
    assert_close(losses[0], losses[1], relative=2e-2)


@pytest.mark.parametrize("engine", CAPTURED)
def test_captured_state_goes_through_a_checkpoint(tiny_config: TinyConfig, tiny_tokens: TokenData, engine: str) -> None:
    configs = configs_of(tiny_config, 2)
    whole, first, second = (build(engine, configs, tiny_tokens, [OPTIMIZERS["adamw"]] * 2) for _ in range(3))
    expected = train(whole, range(1, 31))
    train(first, range(1, 16))
    for run in range(2):
        second.model.load(run, {key: value.detach() for key, value in first.model.parameters(run).items()})
        second.load_optimizer_state(run, first.optimizer_state(run))
        restored, state = second.optimizer_state(run), first.optimizer_state(run)
        assert restored.keys() == state.keys()
        assert all(torch.equal(restored[name], value) for name, value in state.items())
    losses = train(second, range(16, 31))
    captured(second)
    assert_close(losses, expected[15:], relative=1e-2)


@pytest.mark.parametrize("engine", CAPTURED)
def test_micro_batches_are_captured(tiny_config: TinyConfig, tiny_tokens: TokenData, engine: str) -> None:
    split = configs_of(tiny_config, 2, data__batch_size=2, data__gradient_accumulation=3)
    whole = configs_of(tiny_config, 2, data__batch_size=6)
    ours = build(engine, split, tiny_tokens, [None] * 2)
    theirs = build("eager", whole, tiny_tokens, [None] * 2)
    losses = [train(pack, range(1, 41)) for pack in (ours, theirs)]
    captured(ours)
    assert_close(losses[0], losses[1], relative=2e-2)
