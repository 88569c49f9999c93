"""A plug-in that fails or breaks a rule is named with its hook, file and line; plain numbers are taken in any dress."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from configs import TinyConfig
from torch import Tensor

from bitnetctl.data import TokenData
from bitnetctl.engine.pack import Pack
from bitnetctl.errors import ConfigError, ExitCode, PluginError
from bitnetctl.intervention import Intervention
from bitnetctl.plugins.composition import Composition
from bitnetctl.plugins.values import as_float

HERE = re.escape(__file__)


def made(**hooks: Callable[..., Any]) -> Intervention:
    kind: type[Intervention] = type("Made", (Intervention,), hooks)
    return kind(kind.Settings())


def compose(**hooks: Callable[..., Any]) -> Composition:
    return Composition([made(**hooks)], ["made-up"])


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.5, 0.5),
        (2, 2.0),
        (np.float32(0.5), 0.5),
        (np.int64(3), 3.0),
        (np.array(0.5), 0.5),
        (torch.tensor(0.5), 0.5),
        (torch.tensor(2, requires_grad=False), 2.0),
        (True, None),
        (np.bool_(True), None),
        (torch.tensor(True), None),
        (None, None),
        ("0.5", None),
        ([0.5], None),
        (np.array([0.5]), None),
        (torch.tensor([0.5, 0.5]), None),
        (1j, None),
        (10**400, None),
    ],
)
def test_a_plain_number_in_any_dress(value: object, expected: float | None) -> None:
    assert as_float(value) == expected


@pytest.mark.parametrize("hook", ["learning_rate", "weight_decay", "quantization"])
@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (None, "returned None at step 3, not a number"),
        ("x", "returned str at step 3, not a number"),
        (np.zeros(2), r"returned numpy.ndarray of shape \(2,\) at step 3, not a number"),
        (float("nan"), "returned nan at step 3; it must be finite and not negative"),
    ],
)
def test_a_schedule_that_is_no_number_is_blamed(hook: Any, value: object, problem: str) -> None:
    composition = compose(**{hook: lambda self, base, step, steps: value if step == 3 else base})
    with pytest.raises(PluginError, match=rf"^made-up: {hook} {problem} \({HERE}:\d+\)$") as caught:
        composition.schedule(hook, lambda step: 0.5, 5)
    assert caught.value.exit_code == ExitCode.USAGE


def test_a_schedule_is_computed_in_order() -> None:
    first = made(learning_rate=lambda self, base, step, steps: np.float64(base * step))
    second = made(learning_rate=lambda self, base, step, steps: torch.tensor(base + steps))
    assert Composition([first, second]).schedule("learning_rate", lambda step: 2.0, 3) == [5.0, 7.0, 9.0]
    assert compose(quantization=lambda self, base, step, steps: step - 2.0).schedule(
        "quantization", lambda step: 1.0, 4
    ) == [0.0, 0.0, 1.0, 1.0]


def typo(self: Intervention, logits_TV: Tensor, targets_T: Tensor) -> Tensor:
    loss: Tensor = F.cross_entropi(logits_TV, targets_T)  # type: ignore[attr-defined]
    return loss


def test_an_error_names_hook_file_and_line() -> None:
    line = typo.__code__.co_firstlineno + 1
    text = rf"made-up: training_loss raised AttributeError: .*cross_entropi.* \({HERE}:{line}\)"
    with pytest.raises(PluginError, match=text):
        compose(training_loss=typo).loss_and_gradient(*batch())


def test_a_wrong_signature_names_where_the_hook_is_defined() -> None:
    def short(self: Intervention, base: float, step: int) -> float:
        return base

    text = rf"made-up: learning_rate at step 1 raised TypeError: .* \({HERE}:{short.__code__.co_firstlineno}\)"
    with pytest.raises(PluginError, match=text):
        compose(learning_rate=short).learning_rate(1.0, 1, 10)


def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(4, 5, generator=torch.Generator().manual_seed(0)).requires_grad_(), torch.arange(4)


@pytest.mark.parametrize("hook", ["training_loss", "additional_loss"])
@pytest.mark.parametrize(
    ("loss", "problem"),
    [
        (lambda self, logits, targets: None, "returned None, not a tensor"),
        (lambda self, logits, targets: 0.5, "returned float, not a tensor"),
        (lambda self, logits, targets: logits.sum(-1), r"returned a tensor of shape \(4,\), not a scalar"),
        (lambda self, logits, targets: logits.argmax(), "returned torch.int64, not a floating-point tensor"),
        (lambda self, logits, targets: logits.detach().sum(), "returned a tensor without a gradient"),
    ],
)
def test_a_loss_that_cannot_be_minimised_is_blamed(hook: str, loss: Callable[..., Any], problem: str) -> None:
    with pytest.raises(PluginError, match=f"^made-up: {hook} {problem}"):
        compose(**{hook: loss}).loss_and_gradient(*batch())


def test_a_loss_without_the_logits_is_blamed() -> None:
    weight = torch.ones((), requires_grad=True)
    with pytest.raises(PluginError, match="made-up: the gradient of training_loss raised RuntimeError"):
        compose(training_loss=lambda self, logits, targets: weight * 2).loss_and_gradient(*batch())


@pytest.mark.parametrize(
    ("replace", "problem"),
    [
        (lambda gradient: None, "left no gradient for w"),
        # torch refuses most of these itself
        (lambda gradient: gradient.double(), "(made the gradient of w torch.float64|raised RuntimeError)"),
    ],
)
def test_a_gradient_that_is_gone_is_blamed(replace: Callable[[Tensor], Any], problem: str) -> None:
    def transform(self: Intervention, parameters: Mapping[str, Tensor]) -> None:
        parameters["w"].grad = replace(gradient)

    gradient = torch.ones(3)
    weight = torch.zeros(3, requires_grad=True)
    weight.grad = gradient
    with pytest.raises(PluginError, match=f"made-up: transform_gradients {problem}"):
        compose(transform_gradients=transform).transform_gradients({"w": weight})


def test_a_gradient_that_is_replaced_counts_as_changed_in_place() -> None:
    def transform(self: Intervention, parameters: Mapping[str, Tensor]) -> None:
        parameters["w"].grad = torch.full((3,), 2.0)

    weight = torch.zeros(3, requires_grad=True)
    weight.grad = gradient = torch.ones(3)
    compose(transform_gradients=transform).transform_gradients({"w": weight})
    assert weight.grad is gradient
    assert gradient.tolist() == [2.0, 2.0, 2.0]


def test_a_returned_gradient_is_blamed() -> None:
    composition = compose(transform_gradients=lambda self, parameters: dict(parameters))
    with pytest.raises(PluginError, match=r"returned dict; it must change each \.grad in place"):
        composition.transform_gradients({})


def z_loss(self: Intervention, logits_TV: Tensor, targets_T: Tensor) -> Tensor:
    return logits_TV.logsumexp(-1).square().mean()


def smoothed(self: Intervention, logits_TV: Tensor, targets_T: Tensor) -> Tensor:
    return F.cross_entropy(logits_TV, targets_T, label_smoothing=0.1)


def test_terms_are_added_to_the_loss() -> None:
    logits_TV, targets_T = batch()
    term = z_loss(made(), logits_TV, targets_T)
    for base, hooks in (
        (F.cross_entropy(logits_TV, targets_T), ()),
        (smoothed(made(), logits_TV, targets_T), (smoothed,)),
    ):
        others = [made(training_loss=hook) for hook in hooks]
        composition = Composition([made(additional_loss=z_loss), *others, made(additional_loss=z_loss)])
        objective, gradient_TV = composition.loss_and_gradient(logits_TV, targets_T)
        torch.testing.assert_close(objective, (base + 2 * term).detach())
        (expected_TV,) = torch.autograd.grad(base + 2 * term, logits_TV, retain_graph=True)
        torch.testing.assert_close(gradient_TV, expected_TV)
        assert composition.overrides_loss
    with pytest.raises(ConfigError, match=r"both override training_loss.*additional_loss"):
        Composition([made(training_loss=smoothed), made(training_loss=smoothed)])


def test_a_run_whose_plugin_fails_leaves_its_pack(tiny_config: TinyConfig, tiny_tokens: TokenData) -> None:
    def late(self: Any, logits_TV: Tensor, targets_T: Tensor) -> Tensor:
        self.calls = getattr(self, "calls", 0) + 1
        return typo(self, logits_TV, targets_T) if self.calls == 2 else F.cross_entropy(logits_TV, targets_T)

    config = tiny_config()
    at_once = compose(learning_rate=lambda self, base, step, steps: None)
    in_step_2 = compose(training_loss=late)
    arms = [at_once, Composition(), in_step_2]
    together = Pack([config] * 3, arms, tiny_tokens, torch.device("cpu"))
    alone = Pack([config] * 3, [Composition() for _ in arms], tiny_tokens, torch.device("cpu"))
    for step in (1, 2, 3):
        together.step(step)
        alone.step(step)
        assert [run for run, _ in together.failed] == ([0] if step == 1 else [0, 2])
    assert [run for run, _ in together.alive] == [1]
    for key, flat in alone.replicas[1].flat_parameters.items():
        assert torch.equal(together.replicas[1].flat_parameters[key], flat)
    with pytest.raises(PluginError, match="learning_rate returned None"):
        Pack([config], [at_once], tiny_tokens, torch.device("cpu"))
