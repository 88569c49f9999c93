"""The interventions of one run, applied in order."""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bitnetctl.config import RunConfig, parse_config
from bitnetctl.errors import BitnetctlError, ConfigError, one_line
from bitnetctl.intervention import Intervention

if TYPE_CHECKING:
    from torch import Tensor

HOOKS = ("configure", "quantization", "learning_rate", "weight_decay", "training_loss", "transform_gradients")


class Composition:
    """The interventions of one run; at most one overrides `training_loss`, at most one `transform_gradients`."""

    def __init__(self, interventions: Sequence[Intervention] = ()) -> None:
        self.interventions = tuple(interventions)
        self._loss = self._overriding("training_loss")
        self._gradients = self._overriding("transform_gradients")

    def configure(self, config: RunConfig) -> RunConfig:
        """Return the config after `configure` of each in order; raises ConfigError for an invalid config."""
        for intervention in self.interventions:
            with _no_process_exit(intervention):
                changed = intervention.configure(config)
            if not isinstance(changed, RunConfig):
                name, kind = type(intervention).__name__, type(changed).__name__
                raise ConfigError(f"{name}: configure returned {kind}, not a RunConfig")
            if changed is not config:
                # model_copy does not validate
                config = parse_config(changed.model_dump(), source=f"after {type(intervention).__name__}")
        return config

    def quantization(self, base: float, step: int, steps: int) -> float:
        """Return the quantization strength λ of a step, clamped to [0, 1] after the last intervention."""
        return min(max(self._apply("quantization", base, step, steps), 0.0), 1.0)

    def learning_rate(self, base: float, step: int, steps: int) -> float:
        """Return the learning rate of a step."""
        return self._apply("learning_rate", base, step, steps)

    def weight_decay(self, base: float, step: int, steps: int) -> float:
        """Return the weight decay of a step."""
        return self._apply("weight_decay", base, step, steps)

    def _apply(self, hook: str, value: float, step: int, steps: int) -> float:
        for intervention in self.interventions:
            with _no_process_exit(intervention):
                value = getattr(intervention, hook)(value, step, steps)
        return value

    @property
    def overrides_loss(self) -> bool:
        """Whether an intervention overrides the training loss."""
        return self._loss is not None

    @property
    def overrides_gradients(self) -> bool:
        """Whether an intervention overrides the transform of the gradients."""
        return self._gradients is not None

    @property
    def capturable_step(self) -> bool:
        """Whether a step can be captured as a CUDA graph: no gradient hook, and no loss hook but a capturable one."""
        return self._gradients is None and (self._loss is None or type(self._loss).capturable)

    def training_loss(self, logits_TV: "Tensor", targets_T: "Tensor") -> "Tensor":
        """Return the objective of the intervention that overrides the training loss."""
        assert self._loss is not None
        with _no_process_exit(self._loss):
            return self._loss.training_loss(logits_TV, targets_T)

    def transform_gradients(self, parameters: "Mapping[str, Tensor]") -> None:
        """Change the gradients in place, by the intervention that overrides this hook."""
        assert self._gradients is not None
        with _no_process_exit(self._gradients):
            self._gradients.transform_gradients(parameters)

    def state_dict(self) -> list[dict[str, Any]]:
        """Return the states in order; raises ConfigError for one that does not survive a round trip through JSON."""
        return [_state_of(intervention) for intervention in self.interventions]

    def load_state_dict(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Restore the states in order."""
        for intervention, state in zip(self.interventions, states, strict=True):
            with _no_process_exit(intervention):
                intervention.load_state_dict(state)

    def _overriding(self, hook: str) -> Intervention | None:
        """Return the one intervention that overrides a hook, if any; raises ConfigError for two."""
        overriding = [each for each in self.interventions if hook in overridden_hooks(type(each))]
        if len(overriding) > 1:
            names = " and ".join(type(each).__name__ for each in overriding)
            raise ConfigError(f"{names} both override {hook}; only one intervention of a run may do so")
        return overriding[0] if overriding else None


def overridden_hooks(intervention: type[Intervention]) -> list[str]:
    """Return the names of the hooks that a class overrides."""
    return [hook for hook in HOOKS if getattr(intervention, hook) is not getattr(Intervention, hook)]


@contextlib.contextmanager
def _no_process_exit(intervention: Intervention) -> Iterator[None]:
    """Raise a BitnetctlError instead of an exception that would end the process and every other run in it."""
    try:
        yield
    except (SystemExit, GeneratorExit) as error:
        raise BitnetctlError(f"{type(intervention).__name__} raised {error!r}; no hook may end the process") from error


def _state_of(intervention: Intervention) -> dict[str, Any]:
    with _no_process_exit(intervention):
        state = intervention.state_dict()
    try:
        is_json = isinstance(state, dict) and json.loads(json.dumps(state, allow_nan=False)) == state
    except (TypeError, ValueError, RecursionError):
        is_json = False
    if not is_json:
        name, text = type(intervention).__name__, one_line(repr(state), 80)
        raise ConfigError(f"{name}: state_dict returned {text}, which is not made of finite JSON values")
    return state
