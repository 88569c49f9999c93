"""The interventions of one run, applied in order, each isolated from the rest of the process."""

import contextlib
import functools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from pydantic import BaseModel

from bitnetctl.config import RunConfig, parse_config
from bitnetctl.errors import ConfigError, PluginError, one_line
from bitnetctl.intervention import Intervention
from bitnetctl.plugins.blame import blamed, errors_blamed
from bitnetctl.plugins.isolation import isolated
from bitnetctl.plugins.optimizers import checked_optimizers
from bitnetctl.plugins.quantizer import QUANTIZER_HOOKS, Quantizer, QuantizerHook
from bitnetctl.plugins.values import as_float, kind_of
from bitnetctl.units import listed

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

    from bitnetctl.model.parts import Quantized
    from bitnetctl.model.quantization import Quantizers

QuantizerKey: TypeAlias = tuple[tuple[str, str, str, str], ...]
Schedule = Literal["quantization", "learning_rate", "weight_decay"]

HOOKS = (
    "configure",
    "quantization",
    "learning_rate",
    "weight_decay",
    "training_loss",
    "additional_loss",
    "transform_gradients",
    "make_optimizer",
    "quantize_weights",
    "quantize_activations",
)


class Composition:
    """The interventions of one run.

    Any number may override `configure`, a schedule and `additional_loss`, at most one each other hook.

    `names` are those of the plug-ins for messages, by default the names of the classes. `seed`, `step` and
    `micro_batch` are those of the run in training; global generators that a hook draws from depend on them only.
    """

    def __init__(self, interventions: Sequence[Intervention] = (), names: Sequence[str] | None = None) -> None:
        self.interventions = tuple(interventions)
        self.names = tuple(names or (type(each).__name__ for each in self.interventions))
        self.seed = self.step = self.micro_batch = 0
        self._loss = self._overriding("training_loss")
        self._terms = self._all_overriding("additional_loss")
        self._gradients = self._overriding("transform_gradients")
        self._optimizer = self._overriding("make_optimizer")
        overriding = {hook: self._overriding(hook) for hook in QUANTIZER_HOOKS}
        self._quantizers = {hook: index for hook, index in overriding.items() if index is not None}
        self._schedules = {
            hook: self._all_overriding(hook) for hook in ("quantization", "learning_rate", "weight_decay")
        }

    def configure(self, config: RunConfig) -> RunConfig:
        """Return the config after `configure` of each in order; raises PluginError for an invalid config."""
        for index in self._all_overriding("configure"):
            name, hook = self.names[index], self.interventions[index].configure
            with self._in(index, "configure"):
                changed = hook(config)
            if not isinstance(changed, RunConfig):
                raise blamed(name, f"configure returned {kind_of(changed)}, not a RunConfig", hook)
            if changed is not config:
                # model_copy validates nothing, and would lose a misspelt field in silence
                try:
                    config = parse_config(_tree(changed), source=f"after {name}")
                except ConfigError as error:
                    raise PluginError(str(error)) from error
        return config

    def overrides(self, hook: Schedule) -> bool:
        """Whether an intervention overrides a schedule."""
        return bool(self._schedules[hook])

    def schedule(self, hook: Schedule, base: Callable[[int], float], steps: int) -> list[float]:
        """Return a schedule of all steps, from 1 on; raises PluginError for a value that cannot be used."""
        values = [base(step) for step in range(1, steps + 1)]
        for index in self._schedules[hook]:
            with self._in(index, hook):
                values = [self._value(index, hook, value, step, steps) for step, value in enumerate(values, 1)]
        return [min(max(value, 0.0), 1.0) for value in values] if hook == "quantization" else values

    def quantization(self, base: float, step: int, steps: int) -> float:
        """Return the quantization strength λ of a step, clamped to [0, 1] after the last intervention."""
        return min(max(self._apply("quantization", base, step, steps), 0.0), 1.0)

    def learning_rate(self, base: float, step: int, steps: int) -> float:
        """Return the learning rate of a step."""
        return self._apply("learning_rate", base, step, steps)

    def weight_decay(self, base: float, step: int, steps: int) -> float:
        """Return the weight decay of a step."""
        return self._apply("weight_decay", base, step, steps)

    def _apply(self, hook: Schedule, value: float, step: int, steps: int) -> float:
        for index in self._schedules[hook]:
            with self._in(index, hook):
                value = self._value(index, hook, value, step, steps)
        return value

    def _value(self, index: int, hook: Schedule, base: float, step: int, steps: int) -> float:
        """Return one intervention's value of a schedule as a float; raises PluginError where it is none."""
        function = getattr(self.interventions[index], hook)
        with errors_blamed(self.names[index], f"{hook} at step {step}", function):
            value = function(base, step, steps)
        number = as_float(value)
        if number is None:
            raise blamed(self.names[index], f"{hook} returned {kind_of(value)} at step {step}, not a number", function)
        # λ is clamped
        if not math.isfinite(number) or (number < 0 and hook != "quantization"):
            problem = f"{hook} returned {number:g} at step {step}; it must be finite and not negative"
            raise blamed(self.names[index], problem, function)
        return number

    @property
    def overrides_loss(self) -> bool:
        """Whether an intervention overrides the training loss or adds a term to it."""
        return self._loss is not None or bool(self._terms)

    @property
    def overrides_gradients(self) -> bool:
        """Whether an intervention overrides the transform of the gradients."""
        return self._gradients is not None

    @property
    def optimizer_plugin(self) -> str | None:
        """The name of the intervention that makes the optimizer, None for the optimizer of the config."""
        return None if self._optimizer is None else self.names[self._optimizer]

    @property
    def capturable_step(self) -> bool:
        """Whether a step can be captured as a CUDA graph: no gradient hook, and other hooks of a step capturable.

        Whether an optimizer of its own can be captured is known once it is made.
        """
        of_step = [*self._terms, *([] if self._loss is None else [self._loss]), *self._quantizers.values()]
        return self._gradients is None and all(type(self.interventions[index]).capturable for index in of_step)

    @property
    def quantizer_key(self) -> QuantizerKey:
        """What must be equal for runs to share quantizers: hook, plug-in, class and settings of each that is custom."""
        return tuple(self._identity(hook, index) for hook, index in self._quantizers.items())

    def _identity(self, hook: str, index: int) -> tuple[str, str, str, str]:
        intervention = self.interventions[index]
        kind, name = type(intervention), self.names[index]
        with errors_blamed(name, "the JSON of its Settings"):
            settings = json.dumps(intervention.settings.model_dump(mode="json"), sort_keys=True)
        return hook, name, f"{kind.__module__}.{kind.__qualname__}", settings

    def quantizers(self) -> "Quantizers":
        """Return the hooks that quantize, with checked results; those that no intervention overrides are None."""
        from bitnetctl.model.quantization import Quantizers

        weights, activations = (self._quantizer(hook) for hook in QUANTIZER_HOOKS)
        return Quantizers(weights=weights, codes=None if weights is None else weights.checked, activations=activations)

    def _quantizer(self, hook: QuantizerHook) -> Quantizer | None:
        index = self._quantizers.get(hook)
        if index is None:
            return None
        isolated_call = functools.partial(self._in, index, hook)
        function = getattr(self.interventions[index], hook)
        return Quantizer(plugin=self.names[index], hook=hook, function=function, isolated=isolated_call)

    def training_loss(self, logits_TV: "Tensor", targets_T: "Tensor") -> "Tensor":
        """Return the objective, of shape (): the overridden training loss or the cross-entropy, and all terms."""
        import torch.nn.functional as F

        objective = (
            F.cross_entropy(logits_TV, targets_T)
            if self._loss is None
            else self._of_loss(self._loss, "training_loss", logits_TV, targets_T)
        )
        for index in self._terms:
            objective = objective + self._of_loss(index, "additional_loss", logits_TV, targets_T)
        return objective

    def loss_and_gradient(self, logits_TV: "Tensor", targets_T: "Tensor") -> "tuple[Tensor, Tensor]":
        """Return the objective and its gradient with respect to the logits, which must require one."""
        import torch

        index = self._terms[0] if self._loss is None else self._loss
        hook = "additional_loss" if self._loss is None else "training_loss"
        with torch.enable_grad():
            objective = self.training_loss(logits_TV, targets_T)
            # of functions with a backward of their own, too
            with errors_blamed(self.names[index], f"the gradient of {hook}", getattr(self.interventions[index], hook)):
                (gradient_TV,) = torch.autograd.grad(objective, logits_TV)
        return objective.detach(), gradient_TV

    def _of_loss(self, index: int, hook: str, logits_TV: "Tensor", targets_T: "Tensor") -> "Tensor":
        """Return the scalar of one hook; raises PluginError where it is none that can be differentiated."""
        import torch

        name, function = self.names[index], getattr(self.interventions[index], hook)
        with self._in(index, hook, draws=True):
            value = function(logits_TV, targets_T)
        if not isinstance(value, torch.Tensor):
            raise blamed(name, f"{hook} returned {kind_of(value)}, not a tensor", function)
        if value.numel() != 1:
            raise blamed(name, f"{hook} returned a tensor of shape {tuple(value.shape)}, not a scalar", function)
        if not value.is_floating_point():
            raise blamed(name, f"{hook} returned {value.dtype}, not a floating-point tensor", function)
        if not value.requires_grad:
            raise blamed(name, f"{hook} returned a tensor without a gradient; compute it from the logits", function)
        if value.device != logits_TV.device:
            raise blamed(name, f"{hook} returned a tensor on {value.device}, not {logits_TV.device}", function)
        return value.reshape(())

    def transform_gradients(self, parameters: "Mapping[str, Tensor]") -> None:
        """Change the gradients in place, by the intervention that overrides this hook."""
        assert self._gradients is not None
        name, function = self.names[self._gradients], self.interventions[self._gradients].transform_gradients
        before = {key: parameter.grad for key, parameter in parameters.items()}
        with self._in(self._gradients, "transform_gradients", draws=True):
            returned: object = function(parameters)
        if returned is not None:
            problem = f"transform_gradients returned {kind_of(returned)}; it must change each .grad in place"
            raise blamed(name, problem, function)
        for key, gradient in before.items():
            replaced = parameters[key].grad if key in parameters else None
            if gradient is None or replaced is gradient:
                continue
            problem = f"transform_gradients left no gradient for {key}"
            if replaced is None:
                raise blamed(name, problem, function)
            one, other = ((each.dtype, tuple(each.shape), each.device) for each in (gradient, replaced))
            if one != other:
                problem = f"transform_gradients made the gradient of {key} {_text(other)} instead of {_text(one)}"
                raise blamed(name, problem, function)
            # the optimizer reads the memory of the first one
            gradient.copy_(replaced)
            parameters[key].grad = gradient

    def make_optimizer(self, parameters: "Mapping[str, Tensor]", config: RunConfig) -> "list[Optimizer]":
        """Return the optimizers of the intervention that overrides this hook; raises PluginError for unusable ones."""
        assert self._optimizer is not None
        name, function = self.names[self._optimizer], self.interventions[self._optimizer].make_optimizer
        with self._in(self._optimizer, "make_optimizer", draws=True):
            made = function(dict(parameters), config)
        return checked_optimizers(made, parameters, name, function)

    @contextlib.contextmanager
    def in_optimizer(self, doing: str) -> Iterator[None]:
        """Run code of an optimizer that `make_optimizer` returned as a hook is run; `doing`: such as `the step of`."""
        assert self._optimizer is not None
        with self._in(self._optimizer, "make_optimizer", draws=True, what=f"{doing} its optimizer"):
            yield

    def blamed_optimizer(self, problem: str) -> PluginError:
        """Return the error for an optimizer that `make_optimizer` returned and that breaks a rule."""
        assert self._optimizer is not None
        return blamed(self.names[self._optimizer], problem, self.interventions[self._optimizer].make_optimizer)

    def state_dict(self) -> list[dict[str, Any]]:
        """Return the states in order; raises PluginError for one that does not survive a round trip through JSON."""
        return [self._state_of(index) for index in range(len(self.interventions))]

    def _state_of(self, index: int) -> dict[str, Any]:
        function = self.interventions[index].state_dict
        if getattr(function, "__func__", None) is Intervention.state_dict:
            return {}
        with self._in(index, "state_dict"):
            state = function()
        try:
            is_json = isinstance(state, dict) and json.loads(json.dumps(state, allow_nan=False)) == state
        except (TypeError, ValueError, RecursionError):
            is_json = False
        if not is_json:
            text = one_line(repr(state), 80)
            problem = f"state_dict returned {text}, which is not made of finite JSON values"
            raise blamed(self.names[index], problem, function)
        return state

    def load_state_dict(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Restore the states in order; raises ValueError where there are more or fewer of them."""
        for index, (_, state) in enumerate(zip(self.interventions, states, strict=True)):
            with self._in(index, "load_state_dict"):
                self.interventions[index].load_state_dict(state)

    @contextlib.contextmanager
    def _in(self, index: int, hook: str, *, draws: bool = False, what: str | None = None) -> Iterator[None]:
        """Run a hook, or `what` it made, isolated; its errors are blamed on it.

        One that `draws` has global generators of its own.
        """
        what = hook if what is None else what
        micro_batch = f" {self.micro_batch}" if self.micro_batch else ""
        seed = f"{self.seed} {self.step} {index} {what}{micro_batch}" if draws else None
        with (
            isolated(self.names[index], f"in {what}", seed=seed, kind=type(self.interventions[index])),
            errors_blamed(self.names[index], what, getattr(self.interventions[index], hook)),
        ):
            yield

    def _all_overriding(self, hook: str) -> list[int]:
        return [index for index, each in enumerate(self.interventions) if hook in overridden_hooks(type(each))]

    def _overriding(self, hook: str) -> int | None:
        """Return the one intervention that overrides a hook, if any; raises ConfigError for two."""
        overriding = self._all_overriding(hook)
        if len(overriding) > 1:
            names = listed([self.names[index] for index in overriding])
            hint = "; a term that is added to the loss belongs in additional_loss" if hook == "training_loss" else ""
            raise ConfigError(f"{names} both override {hook}; only one intervention of a run may do so{hint}")
        return overriding[0] if overriding else None


def custom_quantizers(key: QuantizerKey) -> "frozenset[Quantized]":
    """Return what the interventions of a run quantize in a way of their own, from its `quantizer_key`."""
    names: dict[str, Quantized] = {"quantize_weights": "weights", "quantize_activations": "activations"}
    return frozenset(names[hook] for hook, *_ in key)


def overridden_hooks(intervention: type[Intervention]) -> list[str]:
    """Return the names of the hooks that a class overrides."""
    return [hook for hook in HOOKS if getattr(intervention, hook) is not getattr(Intervention, hook)]


def _tree(value: object) -> Any:
    """Return a config with all in it as dictionaries, fields that it does not have included."""
    if isinstance(value, BaseModel):
        return {name: _tree(each) for name, each in vars(value).items()}
    return tuple(map(_tree, value)) if isinstance(value, tuple | list) else value


def _text(kind: tuple[Any, tuple[int, ...], Any]) -> str:
    dtype, shape, device = kind
    return f"{dtype} {list(shape)} on {device}"
