"""The interventions of one run, applied in order."""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bitnetctl.config import RunConfig, parse_config
from bitnetctl.errors import BitnetctlError, ConfigError
from bitnetctl.intervention import Intervention

if TYPE_CHECKING:
    from torch import Tensor


class Composition:
    """The interventions of one run, applied in order; each hook asked only of those that changed it."""

    def __init__(self, interventions: Sequence[Intervention] = ()) -> None:
        self.interventions = tuple(interventions)
        self._loss = self._overriding("training_loss")
        self._gradients = self._overriding("transform_gradients")

    def configure(self, config: RunConfig) -> RunConfig:
        """Apply `configure` of each in turn; raises ConfigError for a config that no recipe could have."""
        for intervention in self.interventions:
            with _no_way_out(intervention):
                changed = intervention.configure(config)
            if not isinstance(changed, RunConfig):
                name, kind = type(intervention).__name__, type(changed).__name__
                raise ConfigError(f"{name}: configure returned {kind}, not a RunConfig")
            if changed is not config:
                # a frozen config is changed by copying, which checks nothing
                config = parse_config(changed.model_dump(), source=f"after {type(intervention).__name__}")
        return config

    def quantization(self, base: float, step: int, steps: int) -> float:
        """Compose the strengths, kept within [0, 1]."""
        for intervention in self.interventions:
            with _no_way_out(intervention):
                base = intervention.quantization(base, step, steps)
        return min(max(base, 0.0), 1.0)

    def learning_rate(self, base: float, step: int, steps: int) -> float:
        """Compose the learning rates."""
        for intervention in self.interventions:
            with _no_way_out(intervention):
                base = intervention.learning_rate(base, step, steps)
        return base

    def weight_decay(self, base: float, step: int, steps: int) -> float:
        """Compose the weight decays."""
        for intervention in self.interventions:
            with _no_way_out(intervention):
                base = intervention.weight_decay(base, step, steps)
        return base

    @property
    def overrides_loss(self) -> bool:
        """Whether an intervention replaces the training loss."""
        return self._loss is not None

    @property
    def overrides_gradients(self) -> bool:
        """Whether an intervention transforms the gradients."""
        return self._gradients is not None

    @property
    def capturable_step(self) -> bool:
        """Whether a step can be captured as a CUDA graph: no gradient hook, and no loss hook but a capturable one."""
        return self._gradients is None and (self._loss is None or type(self._loss).capturable)

    def training_loss(self, logits_TV: "Tensor", targets_T: "Tensor") -> "Tensor":
        """Ask the claimant for the objective."""
        assert self._loss is not None
        with _no_way_out(self._loss):
            return self._loss.training_loss(logits_TV, targets_T)

    def transform_gradients(self, parameters: "Mapping[str, Tensor]") -> None:
        """Let the claimant change the gradients."""
        assert self._gradients is not None
        with _no_way_out(self._gradients):
            self._gradients.transform_gradients(parameters)

    def state_dict(self) -> list[dict[str, Any]]:
        """Return the states in order; raises ConfigError for one that would not come back from JSON as it is."""
        return [_state_of(intervention) for intervention in self.interventions]

    def load_state_dict(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Hand the states back in order."""
        for intervention, state in zip(self.interventions, states, strict=True):
            with _no_way_out(intervention):
                intervention.load_state_dict(state)

    def _overriding(self, hook: str) -> Intervention | None:
        claimants = [
            intervention
            for intervention in self.interventions
            if getattr(type(intervention), hook) is not getattr(Intervention, hook)
        ]
        if len(claimants) > 1:
            names = " and ".join(type(claimant).__name__ for claimant in claimants)
            raise ConfigError(f"{names} both claim {hook}; a run can have one claimant only")
        return claimants[0] if claimants else None


@contextlib.contextmanager
def _no_way_out(intervention: Intervention) -> Iterator[None]:
    """Turn what would end the process, and with it every other run, into an error of the intervention."""
    try:
        yield
    except (SystemExit, GeneratorExit) as error:
        raise BitnetctlError(f"{type(intervention).__name__} raised {error!r}; no hook may end the process") from error


def _state_of(intervention: Intervention) -> dict[str, Any]:
    with _no_way_out(intervention):
        state = intervention.state_dict()
    try:
        is_json = isinstance(state, dict) and json.loads(json.dumps(state, allow_nan=False)) == state
    except (TypeError, ValueError, RecursionError):
        is_json = False
    if not is_json:
        name, shown = type(intervention).__name__, " ".join(repr(state).split())[:80]
        raise ConfigError(f"{name}: state_dict returned {shown}, which is not made of finite JSON values")
    return state
