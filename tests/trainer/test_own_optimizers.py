"""Runs with optimizers of plug-ins: resumed bit for bit, extended, rolled back; what a checkpoint cannot hold."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from configs import TinyConfig
from optimizers import Counting, Lion, Own, adamw
from run_files import RUNS, UNDISTURBED, Train, assert_same_state, assert_undisturbed, manifest, saved, start_of
from torch import Tensor
from torch.optim import Optimizer

from bitnetctl import checkpoint
from bitnetctl.config import InterventionSpec, RunConfig
from bitnetctl.engine import plugin_optimizer
from bitnetctl.engine.cuda_graph import CapturedPack
from bitnetctl.engine.pack import Pack
from bitnetctl.errors import CheckpointError
from bitnetctl.plugins import registry
from bitnetctl.plugins.composition import Composition
from bitnetctl.records import RunPaths
from bitnetctl.trainer import factory
from bitnetctl.trainer.events import Failed, RolledBack, Saved
from bitnetctl.trainer.extend import begin_extension, extended_config
from bitnetctl.trainer.resolved import resolve


class Averaging(Lion):
    """Keep a copy of the first weights that it sees, a matrix of another shape than the weights, and a group tensor."""

    def __init__(self, params: Any) -> None:
        super().__init__(params)
        self.param_groups[0]["total"] = torch.zeros(2, dtype=torch.float64)
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["first"] = parameter.detach().clone()
                self.state[parameter]["average"] = torch.zeros_like(parameter, requires_grad=False)
                self.state[parameter]["outer"] = torch.zeros(3, 2, dtype=torch.bfloat16)

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        super().step()
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                state["outer"] += parameter.mean().to(torch.bfloat16)
                parameter.lerp_(state["first"], 0.01 * state["outer"].float().tanh().mean().item() ** 2)
        self.param_groups[0]["total"] = self.param_groups[0]["total"] + 1


class Holding(Lion):
    """Keep an object in its state."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        super().step()
        next(iter(self.state.values()))["history"] = [1, 2]


class Counted(Lion):
    """Keep a number that no integer of a tensor can hold."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        super().step()
        next(iter(self.state.values()))["seen"] = 10**30


class Splitting(Lion):
    """Add a group in the step."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        super().step()
        self.param_groups.append({**self.param_groups[0], "params": []})


class Wrapping(Lion):
    """Add to what `state_dict` returns."""

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "more": 1}


def one(kind: Callable[..., Optimizer], **settings: Any) -> Callable[..., Optimizer]:
    return lambda parameters, config: kind(parameters.values(), **settings)


def mixed(parameters: Mapping[str, Tensor], config: RunConfig) -> Sequence[Optimizer]:
    matrices = [each for name, each in parameters.items() if "proj" in name]
    rest = [each for name, each in parameters.items() if "proj" not in name]
    return [torch.optim.SGD(matrices, momentum=0.9, nesterov=True), torch.optim.AdamW(rest, amsgrad=True)]


OPTIMIZERS: dict[str, Any] = {
    "sgd": one(torch.optim.SGD),
    "mixed": mixed,
    "adagrad": one(torch.optim.Adagrad),
    "rmsprop": one(torch.optim.RMSprop, momentum=0.9, centered=True),
    "nadam": one(torch.optim.NAdam),
    "adafactor": one(torch.optim.Adafactor),
    "counting": one(Counting),
    "lion": one(Lion),
    "averaging": one(Averaging),
    "holding": one(Holding),
    "counted": one(Counted),
    "splitting": one(Splitting),
    "wrapping": one(Wrapping),
    "adamw": adamw,
}


@pytest.fixture(autouse=True)
def own_optimizers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let an arm of one made-up name stand for the optimizer of that name."""

    def compose(specs: Sequence[InterventionSpec]) -> Composition:
        names = [spec.name for spec in specs]
        return Composition([Own(OPTIMIZERS[name]) for name in names], names)

    monkeypatch.setattr(registry, "compose", compose)
    monkeypatch.setattr(registry, "plugin_infos", lambda specs: [])


def with_optimizer(config: RunConfig, name: str) -> RunConfig:
    return config.model_copy(update={"interventions": (InterventionSpec(name=name),)})


@pytest.mark.parametrize("kind", [Pack, CapturedPack])
@pytest.mark.parametrize("name", sorted(OPTIMIZERS.keys() - {"holding", "counted", "splitting", "wrapping"}))
def test_a_stop_changes_nothing(
    train: Train, tiny_config: TinyConfig, monkeypatch: pytest.MonkeyPatch, name: str, kind: type[Pack]
) -> None:
    monkeypatch.setattr(factory, "make_pack", lambda *arguments: kind(*arguments[:-1]))
    settings = {"optimizer__exempt": "norms", "optimizer__learning_rate_factors__head": 0.5}
    configs = [with_optimizer(tiny_config(seed=4, **settings), name), tiny_config(seed=5)]
    train(configs, names=["a", "b"], runs_dir=UNDISTURBED, stop_after=11)
    for start, steps in ((0, 3), (3, 4), (7, 4)):
        assert start_of(train(configs, names=["a", "b"], stop_after=steps)) == start
    for each in ("a", "b"):
        assert_same_state(saved(RUNS, each, 11), saved(UNDISTURBED, each, 11))
    for folder in (RUNS, UNDISTURBED):
        train(configs, names=["a", "b"], runs_dir=folder)
    assert_undisturbed("a", "b")


def test_a_captured_step_resumes_bit_for_bit(
    train: Train, tiny_config: TinyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(factory, "make_pack", lambda *arguments: CapturedPack(*arguments[:-1]))
    monkeypatch.setattr(plugin_optimizer, "_CAPTURABLE_DEVICES", ("cpu",))
    config = with_optimizer(tiny_config(seed=4), "lion")
    train(config, names=["a"], runs_dir=UNDISTURBED)
    train(config, names=["a"], stop_after=5)
    train(config, names=["a"])
    assert_undisturbed("a")


def test_a_checkpoint_holds_numbers_with_their_types(train: Train, tiny_config: TinyConfig) -> None:
    config = with_optimizer(tiny_config(), "counting")
    train(config, names=["a"], stop_after=4)
    tensors = saved(RUNS, "a", 4).optimizer
    assert tensors["model.norm.weight/count:int"].item() == 4
    assert tensors["groups.0/shrinking:float"].item() == pytest.approx(0.7**4, rel=1e-15)
    assert tensors["groups.0/is_late:bool"].item() is True
    assert tensors["groups/count"].item() == 1
    names = {name.partition("/")[0] for name in tensors} - {"groups", "groups.0"}
    assert names == set(saved(RUNS, "a", 4).model)

    def look(trainer: Any, event: object) -> None:
        optimizer = trainer.pack.replicas[0].optimizer._optimizers[0]
        group, state = optimizer.param_groups[0], next(iter(optimizer.state.values()))
        seen.append((type(group["shrinking"]), type(group["is_late"]), type(state["count"]), state["nothing"]))

    seen: list[Any] = []
    train(config, names=["a"], watch=look)
    assert set(seen[:1]) == {(float, bool, int, None)}


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("holding", "checkpoints cannot hold model.*/history of its optimizer, a list: only tensors and plain numbers"),
        ("counted", "checkpoints cannot hold model.*/seen of its optimizer, a int: only tensors and plain numbers"),
        ("splitting", "its optimizer made 2 groups of 1 in its step"),
        ("wrapping", "checkpoints cannot hold what Wrapping adds to its state_dict"),
    ],
)
def test_what_a_checkpoint_cannot_hold_ends_its_run_only(
    train: Train, tiny_config: TinyConfig, name: str, problem: str
) -> None:
    configs = [with_optimizer(tiny_config(seed=4), name), tiny_config(seed=5)]
    events = train(configs, names=["a", "b"])
    (failed,) = [event for event in events if isinstance(event, Failed)]
    assert failed.name == "a"
    assert (manifest("a").status, manifest("b").status) == ("failed", "finished")
    # at the first checkpoint
    assert manifest("a").steps_done <= 4
    assert re.search(problem, manifest("a").message or "")


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (lambda tensors: tensors.pop("groups/count"), "groups/count is not 1"),
        (lambda tensors: tensors.update({"groups/count": torch.tensor(2)}), "groups/count is not 1"),
        (lambda tensors: tensors.update({"model.other/average": torch.zeros(1)}), "model.other/average is unknown"),
        (lambda tensors: tensors.update({"groups.7/d:float": torch.zeros(())}), "groups.7/d:float is unknown"),
        (
            lambda tensors: tensors.update({"model.norm.weight/d:int": torch.zeros(2)}),
            "weight/d:int is no number",
        ),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(
    train: Train, tiny_config: TinyConfig, edit: Callable[[dict[str, Tensor]], object], problem: str
) -> None:
    config = with_optimizer(tiny_config(), "lion")
    train(config, names=["a"], stop_after=5)
    state = saved(RUNS, "a", 5)
    tensors = dict(state.optimizer)
    edit(tensors)
    checkpoint.save(RUNS / "a" / "checkpoints", replace(state, optimizer=tensors))
    path = checkpoint.path_of(RUNS / "a" / "checkpoints", 5)
    with pytest.raises(CheckpointError, match=f"does not fit the run: .*{problem}"):
        train(config, names=["a"], resume=path)


def test_an_optimizer_sees_the_weights_of_the_run_that_is_extended(train: Train, tiny_config: TinyConfig) -> None:
    train(with_optimizer(tiny_config(), "averaging"), names=["a"])
    weights = saved(RUNS, "a", 12).model
    config = extended_config(RunPaths(RUNS, "a"), 20)
    begin_extension(resolve(config, RUNS, "b"), RunPaths(RUNS, "a"))
    train(config, names=["b"], stop_after=3)
    state = saved(RUNS, "b", 15).optimizer
    assert torch.equal(state["model.norm.weight/first"], weights["model.norm.weight"])


def test_a_run_that_cannot_be_captured_says_so(
    train: Train, tiny_config: TinyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Graphs:
        error = None

    def make(*arguments: Any) -> Pack:
        pack = CapturedPack(*arguments[:-1])
        pack.graphs = Graphs()  # type: ignore[assignment]
        return pack

    monkeypatch.setattr(factory, "make_pack", make)
    lines: list[str] = []
    train(with_optimizer(tiny_config(), "sgd"), names=["a"], log=lines.append)
    assert manifest("a").not_captured == "sgd: SGD is not capturable"
    assert manifest("a").engine == "eager"
    assert "a: its pack trains without a CUDA graph, which is slower: sgd: SGD is not capturable" in lines


def test_a_state_that_is_not_finite_is_rolled_back(train: Train, tiny_config: TinyConfig) -> None:
    def spoil(trainer: Any, event: object) -> None:
        if isinstance(event, Saved) and event.step == 8:
            trainer.pack.replicas[0].optimizer.state()["model.norm.weight/average"][1] = torch.nan

    config = with_optimizer(tiny_config(), "lion")
    events = train(config, names=["a"], watch=spoil, on_divergence="rollback", checkpoint_every=4)
    assert [event.step for event in events if isinstance(event, RolledBack)] == [8]
    (rollback,) = manifest("a").rollbacks
    # the sign of NaN is 0 in torch: the weights stay finite
    assert rollback.tensor == "the moment model.norm.weight/average"
    assert start_of(train(config, names=["a"])) == 8
    assert manifest("a").status == "finished"
