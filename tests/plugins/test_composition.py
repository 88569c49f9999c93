"""Composition of hooks: unchanged by default, in order, one override of loss and gradients; the worked example."""

import re
import textwrap
import tomllib
from collections.abc import Mapping
from typing import Any, cast

import pytest
import torch
from pydantic import ValidationError

from bitnetctl import intervention
from bitnetctl.config import RunConfig
from bitnetctl.errors import ConfigError, ExitCode, PluginError
from bitnetctl.intervention import API_VERSION, Intervention, InterventionSettings
from bitnetctl.plugins.composition import Composition

HOOKS = ("quantization", "learning_rate", "weight_decay")


class Scale(Intervention):
    """Multiplies every value, and the steps of the run."""

    factor = 2.0

    def configure(self, config: RunConfig) -> RunConfig:
        return config.model_copy(update={"steps": config.steps * 2})

    def quantization(self, base: float, step: int, steps: int) -> float:
        return base * self.factor

    learning_rate = weight_decay = quantization


class Shift(Intervention):
    """Adds to every value, and to the steps of the run."""

    amount = 0.25

    def configure(self, config: RunConfig) -> RunConfig:
        return config.model_copy(update={"steps": config.steps + 1})

    def quantization(self, base: float, step: int, steps: int) -> float:
        return base + self.amount

    learning_rate = weight_decay = quantization


class Watch(Intervention):
    """Returns the fraction of the steps."""

    def quantization(self, base: float, step: int, steps: int) -> float:
        return float(step) / steps

    learning_rate = weight_decay = quantization


class Loss(Intervention):
    """Overrides the loss."""

    def training_loss(self, logits_TV: Any, targets_T: Any) -> Any:
        return (logits_TV.sum() * targets_T.sum()).reshape(1)


class OtherLoss(Intervention):
    """Overrides the loss too."""

    def training_loss(self, logits_TV: Any, targets_T: Any) -> Any:
        return None


class Gradients(Intervention):
    """Overrides the transform of the gradients."""

    def __init__(self, settings: InterventionSettings) -> None:
        super().__init__(settings)
        self.seen: list[Mapping[str, Any]] = []

    def transform_gradients(self, parameters: Mapping[str, Any]) -> None:
        self.seen.append(parameters)


class InheritedGradients(Gradients):
    """Overrides it by inheritance."""


class Count(Intervention):
    """Has a state."""

    count = 0

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.count = state["count"]


def new(kind: type[Intervention]) -> Intervention:
    return kind(kind.Settings())


def compose(*kinds: type[Intervention]) -> Composition:
    return Composition([new(kind) for kind in kinds])


@pytest.mark.parametrize("composition", [Composition(), compose(Intervention), compose(Intervention, Intervention)])
def test_hooks_change_nothing_by_default(composition: Composition) -> None:
    config = RunConfig()
    assert composition.configure(config) is config
    for hook in HOOKS:
        assert getattr(composition, hook)(0.3, 1, 10) == 0.3
    assert not composition.overrides_loss
    assert not composition.overrides_gradients
    assert composition.state_dict() == [{} for _ in composition.interventions]


def test_the_base_class_has_no_loss_and_no_transform() -> None:
    idle = new(Intervention)
    tensor = cast(Any, None)
    with pytest.raises(NotImplementedError):
        idle.training_loss(tensor, tensor)
    with pytest.raises(NotImplementedError):
        idle.transform_gradients({})
    assert Intervention.api_version == API_VERSION == 1


@pytest.mark.parametrize("hook", HOOKS)
def test_hooks_compose_in_the_order_given(hook: str) -> None:
    assert getattr(compose(Scale, Shift), hook)(0.25, 1, 10) == 0.75
    assert getattr(compose(Shift, Scale), hook)(0.25, 1, 10) == 1.0
    assert getattr(compose(Scale, Watch), hook)(0.25, 3, 12) == 0.25


def test_configure_composes_in_the_order_given() -> None:
    config = RunConfig(steps=10)
    assert compose(Scale, Shift).configure(config).steps == 21
    assert compose(Shift, Scale).configure(config).steps == 22


@pytest.mark.parametrize(("base", "quant_lambda"), [(-0.75, 0.0), (0.2, 0.45), (0.75, 1.0), (1.5, 1.0)])
def test_quantization_is_clamped(base: float, quant_lambda: float) -> None:
    composition = compose(Shift)
    assert composition.quantization(base, 1, 10) == pytest.approx(quant_lambda)
    base = abs(base)
    assert composition.learning_rate(base, 1, 10) == base + 0.25
    assert composition.weight_decay(base, 1, 10) == base + 0.25


def test_only_the_composed_quant_lambda_is_clamped() -> None:
    class Halve(Scale):
        factor = 0.5

    assert compose(Scale, Scale, Halve, Halve).quantization(0.75, 1, 10) == 0.75


def test_the_overriding_intervention_is_called() -> None:
    composition = compose(Scale, Loss, InheritedGradients)
    assert composition.overrides_loss
    assert composition.overrides_gradients
    objective = composition.training_loss(torch.ones(2, 3, requires_grad=True), torch.tensor([1, 2]))
    assert (objective.item(), objective.shape) == (18.0, ())
    parameters = {"weight": torch.ones(3)}
    composition.transform_gradients(parameters)
    overriding = composition.interventions[2]
    assert isinstance(overriding, Gradients)
    assert overriding.seen == [parameters]


@pytest.mark.parametrize(
    ("kinds", "hook"),
    [
        ((Loss, OtherLoss), "training_loss"),
        ((Loss, Shift, Loss), "training_loss"),
        ((Gradients, InheritedGradients), "transform_gradients"),
    ],
)
def test_two_cannot_override_one_hook(kinds: tuple[type[Intervention], ...], hook: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(*kinds)
    assert f"both override {hook}" in str(caught.value)
    assert f"{kinds[0].__name__} and {kinds[-1].__name__}" in str(caught.value)
    assert caught.value.exit_code is ExitCode.USAGE


def test_two_may_override_different_hooks() -> None:
    composition = compose(Loss, Gradients)
    assert composition.overrides_loss
    assert composition.overrides_gradients


def test_states_are_restored_in_order() -> None:
    composition = compose(Count, Shift, Count)
    for number, each in enumerate(composition.interventions):
        if isinstance(each, Count):
            each.count = number + 5
    states = composition.state_dict()
    assert states == [{"count": 5}, {}, {"count": 7}]
    restored = compose(Count, Shift, Count)
    restored.load_state_dict(states)
    assert restored.state_dict() == states
    with pytest.raises(ValueError, match="shorter"):
        restored.load_state_dict(states[:2])


@pytest.mark.parametrize("value", [b"x", {1: 2}, {1, 2}, (1, 2), float("nan"), float("inf"), object()])
def test_a_state_that_json_cannot_hold_is_refused(value: Any) -> None:
    composition = compose(Count, Count)
    cast(Count, composition.interventions[1]).count = value
    with pytest.raises(ConfigError, match=r"Count: state_dict returned .* not made of finite JSON values"):
        composition.state_dict()


@pytest.mark.parametrize("error", [SystemExit(0), SystemExit("bye"), GeneratorExit()])
@pytest.mark.parametrize("hook", ["configure", *HOOKS, "training_loss", "transform_gradients", "state_dict"])
def test_no_hook_ends_the_process(hook: str, error: BaseException) -> None:
    def leave(*arguments: object) -> None:
        raise error

    composition = compose(cast(type[Intervention], type("Leaves", (Intervention,), {hook: leave})))
    arguments: dict[str, tuple[Any, ...]] = {"configure": (RunConfig(),), "training_loss": (None, None)}
    arguments |= {"transform_gradients": ({},), "state_dict": ()}
    with pytest.raises(
        PluginError, match=rf"Leaves: {hook}.* raised .*; no hook may end the process \(.*:\d+\)"
    ) as caught:
        getattr(composition, hook)(*arguments.get(hook, (0.5, 1, 10)))
    assert caught.value.exit_code == ExitCode.USAGE


def test_settings_are_frozen_and_complete() -> None:
    settings = Intervention.Settings()
    with pytest.raises(ValidationError, match="Extra inputs"):
        Intervention.Settings.model_validate({"unknown": 1})

    class Factor(InterventionSettings):
        factor: float = 1.0

    with pytest.raises(ValidationError, match="frozen"):
        setattr(Factor(), "factor", 2.0)  # noqa: B010 - mypy knows that it is frozen
    with pytest.raises(ValidationError, match="finite"):
        Factor(factor=float("nan"))
    assert new(Intervention).settings == settings


def documented() -> tuple[str, str]:
    """Return the worked example of the docstring: the plug-in's file, and its part of the pyproject.toml."""
    doc = intervention.__doc__ or ""
    parts = re.search(r"A worked example.*?:\n\n(.*?)\nand in the pyproject.*?\n\n(.*?)\nafter which", doc, re.DOTALL)
    assert parts is not None
    return textwrap.dedent(parts[1]), textwrap.dedent(parts[2])


def test_the_worked_example_works() -> None:
    code, _ = documented()
    namespace: dict[str, Any] = {"__name__": "my_package.halved_rate"}
    exec(compile(code, "halved_rate.py", "exec"), namespace)
    kind = namespace["HalvedRate"]
    assert issubclass(kind, Intervention)
    assert kind.summary
    assert kind.source
    composition = Composition([kind(kind.Settings())])
    assert [composition.learning_rate(1.0, step, 10) for step in (1, 5, 6, 10)] == [1.0, 1.0, 0.5, 0.5]
    assert composition.weight_decay(1.0, 10, 10) == 1.0
    assert not composition.overrides_loss
    tenth = kind(kind.Settings.model_validate({"factor": 0.1, "after": 0.0}))
    assert tenth.learning_rate(1.0, 1, 10) == 0.1
    for bad in ({"factor": 0.0}, {"after": 1.5}, {"speed": 1}):
        with pytest.raises(ValidationError):
            kind.Settings.model_validate(bad)


def test_the_worked_examples_entry_point_names_it() -> None:
    code, toml = documented()
    points = tomllib.loads(toml)["project"]["entry-points"]["bitnetctl.interventions"]
    assert points == {"halved-rate": "my_package.halved_rate:HalvedRate"}
    assert "class HalvedRate(Intervention):" in code


@pytest.mark.parametrize(
    ("changes", "problem"),
    [({"step": 10}, "unknown field 'step'; did you mean 'steps'"), ({"model": {"hidden": 32}}, "model.hidden")],
)
def test_a_misspelt_field_of_a_changed_config_is_an_error_of_the_plug_in(
    changes: dict[str, object], problem: str
) -> None:
    """The arm would be the baseline under another name."""

    class Typo(Intervention):
        summary = "a misspelt field"

        def configure(self, config: RunConfig) -> RunConfig:
            return config.model_copy(update=changes)

    with pytest.raises(PluginError, match=problem):
        Composition([Typo(Typo.Settings())], ["typo"]).configure(RunConfig())
