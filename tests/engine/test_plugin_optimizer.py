"""The optimizer of a plug-in: what the engine sets and guards, against the optimizers of the config and of torch."""

import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from configs import TinyConfig
from optimizers import Lion, Make, Own, adamw, own
from packs import weights
from torch import Tensor
from torch.optim import Optimizer

from bitnetctl.config import RunConfig
from bitnetctl.data import TokenData
from bitnetctl.engine import plugin_optimizer
from bitnetctl.engine.cuda_graph import CapturedPack
from bitnetctl.engine.pack import Pack
from bitnetctl.engine.plugin_optimizer import PluginOptimizer
from bitnetctl.errors import ConfigError, PluginError
from bitnetctl.plugins.composition import Composition

CPU = torch.device("cpu")
TABLES = ("model.embed_tokens.weight", "lm_head.weight")


def built(
    configs: RunConfig | Sequence[RunConfig],
    tokens: TokenData,
    compositions: Composition | Sequence[Composition] | None = None,
    kind: type[Pack] = Pack,
) -> Pack:
    configs = [configs] if isinstance(configs, RunConfig) else configs
    compositions = [compositions] if isinstance(compositions, Composition) else compositions
    return kind(configs, compositions or [Composition() for _ in configs], tokens, CPU)


def train(pack: Pack, steps: range = range(1, 6)) -> Pack:
    for step in steps:
        pack.step(step)
    return pack


def optimizer_of(pack: Pack, run: int = 0) -> PluginOptimizer:
    optimizer = pack.replicas[run].optimizer
    assert isinstance(optimizer, PluginOptimizer)
    return optimizer


def assert_alike(ours: Pack, theirs: Pack, tolerance: float = 1e-9, run: int = 0) -> None:
    for key, weight in weights(theirs, run).items():
        torch.testing.assert_close(weights(ours, run)[key], weight, rtol=0, atol=tolerance, msg=key)


def assert_same_bits(ours: Pack, theirs: Pack, run: int = 0, their_run: int = 0) -> None:
    for key, weight in weights(theirs, their_run).items():
        assert torch.equal(weights(ours, run)[key], weight), key


# against the optimizer of the config

SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {"optimizer__max_norm": "none"},
    "clipped": {"optimizer__max_norm": 0.1},
    "exempt": {"optimizer__exempt": "norms,head"},
    "factors": {"optimizer__learning_rate_factors__embeddings": 0.25, "optimizer__learning_rate_factors__norms": 3},
    "factors and exempt": {"optimizer__learning_rate_factors__head": 0.5, "optimizer__exempt": "embeddings"},
    "frozen norms": {"optimizer__learning_rate_factors__norms": 0},
    "reset": {"optimizer__reset_moments_every_steps": 2},
    "tied": {"model__tie_word_embeddings": True, "optimizer__learning_rate_factors__embeddings": 0.25},
    "micro-batches": {"data__gradient_accumulation": 2},
}


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("kind", [Pack, CapturedPack])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_adamw_of_a_plug_in_trains_as_that_of_the_config(
    settings: dict[str, Any], kind: type[Pack], tiny_config: TinyConfig, tiny_tokens: TokenData
) -> None:
    # over the boundary at step 6, where the weight decay changes
    config = tiny_config(optimizer__name="adamw", **settings)
    ours = train(built(config, tiny_tokens, own(adamw), kind), range(1, 9))
    theirs = train(built(config, tiny_tokens), range(1, 9))
    assert_alike(ours, theirs, 1e-8)
    start = built(config, tiny_tokens)
    frozen = config.optimizer.learning_rate_factors.norms == 0
    assert torch.equal(weights(ours)["final_norm"], weights(start)["final_norm"]) is frozen
    assert not torch.allclose(weights(ours)["qkv"], weights(start)["qkv"], atol=1e-4)


@pytest.mark.usefixtures("double")
def test_a_group_states_factors_of_its_own(tiny_config: TinyConfig, tiny_tokens: TokenData) -> None:
    def grouped(parameters: Mapping[str, Tensor], config: RunConfig) -> Optimizer:
        name = "model.embed_tokens.weight"
        groups: list[dict[str, Any]] = [
            {"params": [parameters[name]], "lr_factor": 0.25, "weight_decay_factor": 0},
            {"params": [one for key, one in parameters.items() if key != name]},
        ]
        return torch.optim.AdamW(groups, betas=config.optimizer.betas, eps=config.optimizer.eps)

    # the factor of the config comes on top
    config = tiny_config(optimizer__name="adamw", optimizer__learning_rate_factors__embeddings=2.0)
    like = tiny_config(
        optimizer__name="adamw", optimizer__learning_rate_factors__embeddings=0.5, optimizer__exempt="embeddings"
    )
    assert_alike(train(built(config, tiny_tokens, own(grouped))), train(built(like, tiny_tokens)), 1e-8)


@pytest.mark.usefixtures("double")
def test_each_of_two_optimizers_updates_its_parameters(tiny_config: TinyConfig, tiny_tokens: TokenData) -> None:
    def two(parameters: Mapping[str, Tensor], config: RunConfig) -> list[Optimizer]:
        tables = [parameters[name] for name in TABLES]
        rest = [one for name, one in parameters.items() if name not in TABLES]
        return [adamw(dict(zip(TABLES, tables, strict=True)), config), torch.optim.SGD(rest, momentum=0.9)]

    config = tiny_config(optimizer__name="adamw")
    pack, adam = (train(built(config, tiny_tokens, composition), range(1, 2)) for composition in (own(two), own(adamw)))
    for key in ("embed", "head"):
        torch.testing.assert_close(weights(pack)[key], weights(adam)[key], rtol=0, atol=1e-9)
    # the first step of SGD: the clipped gradient, and the coupled decay
    start = weights(built(config, tiny_tokens))
    rate, decay = pack.replicas[0].learning_rate(1), pack.replicas[0].weight_decay(1)
    for key in ("qkv", "final_norm"):
        expected = start[key] - rate * (pack.model.gradients[key][0] + decay * start[key])
        torch.testing.assert_close(weights(pack)[key], expected, rtol=0, atol=1e-12)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("kind", ["SGD", "Adagrad", "RMSprop", "NAdam", "Adafactor", "Rprop"])
def test_any_optimizer_of_torch_makes_the_steps_that_it_makes_alone(
    kind: str, tiny_config: TinyConfig, tiny_tokens: TokenData
) -> None:
    make = getattr(torch.optim, kind)
    config = tiny_config(optimizer__max_norm=0.5)
    pack = built(config, tiny_tokens, own(lambda parameters, _: make(parameters.values())))
    copies = {name: one.detach().clone().requires_grad_() for name, one in pack.model.parameters(0).items()}
    reference = make(copies.values())
    for step in range(1, 5):
        pack.step(step)
        # as they are after clipping
        for name, parameter in pack.model.parameters(0).items():
            assert parameter.grad is not None
            copies[name].grad = parameter.grad.clone()
        for group in reference.param_groups:
            group.update(lr=pack.replicas[0].learning_rate(step), weight_decay=pack.replicas[0].weight_decay(step))
        reference.step()
    for name, parameter in pack.model.parameters(0).items():
        torch.testing.assert_close(parameter.detach(), copies[name].detach(), rtol=1e-9, atol=1e-12, msg=name)


def test_neighbours_are_not_touched(tiny_config: TinyConfig, tiny_tokens: TokenData) -> None:
    configs = [tiny_config(seed=seed, model__quantization=0.0) for seed in (0, 1, 2)]
    compositions = [own(lambda parameters, _: torch.optim.SGD(parameters.values(), 0.1)), Composition(), own(adamw)]
    together, without = train(built(configs, tiny_tokens, compositions)), train(built(configs, tiny_tokens))
    assert_same_bits(together, without, 1, 1)
    assert not torch.equal(weights(together, 0)["qkv"], weights(without, 0)["qkv"])


# what is refused


def refusal(make: Make, config: RunConfig, tokens: TokenData) -> str:
    pack = built(config, tokens, own(make))
    with pytest.raises(PluginError) as caught:
        pack.step(1)
    message = str(caught.value)
    assert re.match(r"own: .* \(.*optimizers?\.py:\d+\)$", message), message
    return message


def sgd_of(choose: Callable[[dict[str, Tensor]], list[Tensor]]) -> Make:
    return lambda parameters, _: torch.optim.SGD(choose(dict(parameters)), 0.1)


REFUSED: dict[str, tuple[Any, str]] = {
    "a closure": (lambda parameters, _: torch.optim.LBFGS(list(parameters.values())), "LBFGS.step requires a closure"),
    "left out": (
        sgd_of(lambda parameters: [one for name, one in parameters.items() if name != "model.norm.weight"]),
        "model.norm.weight is in no group",
    ),
    "many left out": (sgd_of(lambda parameters: [parameters["model.norm.weight"]]), r"and \d+ more are in no group"),
    "foreign": (
        sgd_of(lambda parameters: [*parameters.values(), torch.zeros(3, requires_grad=True)]),
        r"holds a tensor of shape \(3,\) that is none of the parameters",
    ),
    "a copy": (
        sgd_of(lambda parameters: [one.detach().clone() for one in parameters.values()]),
        "that is none of the parameters",
    ),
    "doubled": (
        lambda parameters, _: [
            torch.optim.SGD(parameters.values(), 0.1),
            torch.optim.SGD([parameters["model.norm.weight"]], 0.1),
        ],
        "model.norm.weight is in more than one group",
    ),
    "none": (lambda parameters, _: None, "returned None, not a torch.optim.Optimizer"),
    "a class": (
        lambda parameters, _: [torch.optim.SGD],
        "returned type, not a torch.optim.Optimizer",
    ),
    "a factor": (
        lambda parameters, _: torch.optim.SGD([{"params": list(parameters.values()), "lr_factor": "2"}], 0.1),
        "lr_factor of a group is '2'",
    ),
    "a negative factor": (
        lambda parameters, _: torch.optim.SGD([{"params": list(parameters.values()), "weight_decay_factor": -1}], 0.1),
        "weight_decay_factor of a group is -1",
    ),
    "an error": (lambda parameters, _: 1 / 0, "make_optimizer raised ZeroDivisionError"),
}


@pytest.mark.parametrize(("make", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_used_is_refused(
    make: Make, reason: str, tiny_config: TinyConfig, tiny_tokens: TokenData
) -> None:
    assert re.search(reason, refusal(make, tiny_config(), tiny_tokens))


def test_two_optimizers_of_two_plug_ins_are_refused() -> None:
    with pytest.raises(ConfigError, match="one and two both override make_optimizer"):
        Composition([Own(adamw), Own(adamw)], ["one", "two"])


class Breaking(Lion):
    """Raises an error in its third step, after it changed a weight."""

    steps = 0

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.steps += 1
        if self.steps == 3:
            raise ArithmeticError("no step three")
        super().step()


@pytest.mark.parametrize("kind", [Pack, CapturedPack])
def test_an_error_in_a_step_ends_its_run_only(
    kind: type[Pack], tiny_config: TinyConfig, tiny_tokens: TokenData
) -> None:
    configs = [tiny_config(seed=seed) for seed in (0, 1)]
    broken = own(lambda parameters, _: Breaking(parameters.values()))
    pack = train(built(configs, tiny_tokens, [broken, Composition()], kind))
    ((run, error),) = pack.failed
    assert run == 0
    assert re.match(r"own: the step of its optimizer raised ArithmeticError: no step three \(.*\.py:\d+\)", str(error))
    without = train(built(configs, tiny_tokens, kind=kind))
    assert_same_bits(pack, without, 1, 1)


def test_a_parameter_that_is_replaced_is_refused(tiny_config: TinyConfig, tiny_tokens: TokenData) -> None:
    class Replacing(Lion):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            parameter = self.param_groups[0]["params"][3]
            parameter.data = parameter.data - 0.1

    message = refusal(lambda parameters, _: Replacing(parameters.values()), tiny_config(), tiny_tokens)
    assert re.search(r"its optimizer replaces model\.layers\.\d.* instead of changing it in place", message)


def test_gradients_that_the_optimizer_drops_are_there_again(tiny_config: TinyConfig, tiny_tokens: TokenData) -> None:
    class Dropping(Lion):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            super().step()
            self.zero_grad()

    config = tiny_config()
    dropping = train(built(config, tiny_tokens, own(lambda parameters, _: Dropping(parameters.values()))))
    assert_same_bits(dropping, train(built(config, tiny_tokens, own(lambda parameters, _: Lion(parameters.values())))))


def test_the_process_is_not_changed_by_a_step(tiny_config: TinyConfig, tiny_tokens: TokenData) -> None:
    class Drawing(Lion):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            drawn.append(torch.rand(()).item())
            super().step()

    drawn: list[float] = []
    torch.manual_seed(0)
    before = torch.get_rng_state()
    make = own(lambda parameters, _: Drawing(parameters.values()))
    train(built(tiny_config(seed=3), tiny_tokens, make), range(1, 4))
    assert torch.equal(torch.get_rng_state(), before)
    first, drawn = drawn, []
    configs = [tiny_config(seed=1), tiny_config(seed=3)]
    other = own(lambda parameters, _: Drawing(parameters.values()))
    train(built(configs, tiny_tokens, [Composition(), other]), range(1, 4))
    # the same numbers in another pack, others in each step
    assert drawn == first
    assert len(set(first)) == 3


# divergence, and steps on the device


@pytest.mark.parametrize("kind", [Pack, CapturedPack])
@pytest.mark.parametrize("capturable", [False, True])
def test_a_diverged_run_keeps_weights_and_state(
    kind: type[Pack],
    capturable: bool,
    tiny_config: TinyConfig,
    tiny_tokens: TokenData,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(plugin_optimizer, "_CAPTURABLE_DEVICES", ("cpu",) if capturable else ())
    configs = [tiny_config(seed=seed) for seed in (0, 1)]
    compositions = [own(lambda parameters, _: Lion(parameters.values())), own(adamw)]
    pack = train(built(configs, tiny_tokens, compositions, kind), range(1, 4))
    assert optimizer_of(pack).is_capturable is capturable
    before, state = weights(pack), {key: value.clone() for key, value in optimizer_of(pack).state().items()}
    other = weights(pack, 1)
    inner = type(pack)._compute_gradients

    def spoilt(self: Pack, *arguments: Any) -> Any:
        result = inner(self, *arguments)
        self.model.gradients["qkv"][0].fill_(torch.nan)
        return result

    monkeypatch.setattr(type(pack), "_compute_gradients", spoilt)
    train(pack, range(4, 6))
    pack.mark_diverged(5)
    assert pack.replicas[0].diverged_at == 4
    assert pack.replicas[1].diverged_at is None
    for key, weight in weights(pack).items():
        assert torch.equal(weight, before[key]), key
    assert all(torch.equal(value, state[key]) for key, value in optimizer_of(pack).state().items())
    assert not torch.equal(weights(pack, 1)["qkv"], other["qkv"])
    assert pack.first_nonfinite_tensor(0).startswith("the gradient of model.layers.0")


@pytest.mark.usefixtures("double")
def test_a_captured_rate_is_read_from_a_tensor(
    tiny_config: TinyConfig, tiny_tokens: TokenData, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(optimizer__max_norm=0.1, optimizer__learning_rate_factors__norms=2, optimizer__exempt="head")
    host = train(built(config, tiny_tokens, own(lambda parameters, _: Lion(parameters.values()))), range(1, 9))
    monkeypatch.setattr(plugin_optimizer, "_CAPTURABLE_DEVICES", ("cpu",))
    pack = built(config, tiny_tokens, own(lambda parameters, _: Lion(parameters.values())), CapturedPack)
    pack.step(1)
    groups = [group for each in optimizer_of(pack)._optimizers for group in each.param_groups]
    rates = [group["lr"] for group in groups]
    assert all(isinstance(rate, Tensor) for rate in rates)
    train(pack, range(2, 9))
    # the memory that a graph reads stays the same
    assert all(group["lr"] is rate for group, rate in zip(groups, rates, strict=True))
    assert_alike(pack, host, 1e-8)


@pytest.mark.usefixtures("double")
def test_a_capturable_adam_of_torch_trains_as_another(
    tiny_config: TinyConfig, tiny_tokens: TokenData, monkeypatch: pytest.MonkeyPatch
) -> None:
    def adam(parameters: Mapping[str, Tensor], config: RunConfig) -> Optimizer:
        return torch.optim.Adam(parameters.values(), betas=config.optimizer.betas, capturable=True)

    config = tiny_config(optimizer__name="adam", optimizer__max_norm=0.1)
    stock = train(built(config, tiny_tokens, kind=CapturedPack))
    # torch refuses capturable steps on the CPU, so the engine takes the others there
    plain = built(config, tiny_tokens, own(adam), CapturedPack)
    plain.make_optimizers()
    assert not optimizer_of(plain).is_capturable
    assert_alike(train(plain), stock, 1e-8)
    monkeypatch.setattr(plugin_optimizer, "_CAPTURABLE_DEVICES", ("cpu",))
    module = importlib.import_module("torch.optim.adam")
    monkeypatch.setattr(module, "_get_capturable_supported_devices", lambda *_, **__: ["cpu"])
    captured = train(built(config, tiny_tokens, own(adam), CapturedPack))
    assert optimizer_of(captured).is_capturable
    assert isinstance(optimizer_of(captured)._all_groups()[0]["lr"], Tensor)
    assert_alike(captured, stock, 1e-8)


def test_a_capturable_optimizer_that_replaces_its_state_is_refused(
    tiny_config: TinyConfig, tiny_tokens: TokenData, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Replacing(Lion):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            super().step()
            for state in self.state.values():
                state["average"] = state["average"].clone()

    monkeypatch.setattr(plugin_optimizer, "_CAPTURABLE_DEVICES", ("cpu",))
    pack = built(tiny_config(), tiny_tokens, own(lambda parameters, _: Replacing(parameters.values())), CapturedPack)
    pack.step(1)
    with pytest.raises(PluginError, match=r"is capturable, but makes model\..*/average anew"):
        pack.step(2)


def test_what_keeps_a_step_from_capture_is_named(
    tiny_config: TinyConfig, tiny_tokens: TokenData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugin_optimizer, "_CAPTURABLE_DEVICES", ("cpu",))
    lion = own(lambda parameters, _: Lion(parameters.values()))
    assert optimizer_of(built(tiny_config(), tiny_tokens, lion)).not_capturable() is None
    assert (
        optimizer_of(built(tiny_config(), tiny_tokens, own(adamw))).not_capturable() == "own: AdamW is not capturable"
    )
    resetting = built(tiny_config(optimizer__reset_moments_every_steps=3), tiny_tokens, lion)
    assert "reset_moments_every_steps makes anew" in str(optimizer_of(resetting).not_capturable())


def test_a_capturable_optimizer_that_counts_on_the_host_is_refused(
    tiny_config: TinyConfig, tiny_tokens: TokenData, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Counted(Lion):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            super().step()
            self.param_groups[0]["steps"] = self.param_groups[0].get("steps", 0) + 1

    monkeypatch.setattr(plugin_optimizer, "_CAPTURABLE_DEVICES", ("cpu",))
    pack = built(tiny_config(), tiny_tokens, own(lambda parameters, _: Counted(parameters.values())), CapturedPack)
    pack.step(1)
    with pytest.raises(PluginError, match=r"is capturable, but makes groups\.0/steps anew"):
        pack.step(2)
