"""What the callbacks share: when to measure, the settings of an optimizer, and the recorder."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from bitnetctl.errors import ConfigError
from bitnetctl.recorder import HeldOutProbe, Recorder
from bitnetctl.recorder.recorder import TernaryCodes

LogitsOf: TypeAlias = Callable[[Any, Tensor], Any]
"""Takes the model and int64 tokens [P, T]; returns what `Recorder.record` takes as the result of a model."""


class Rates(NamedTuple):
    """Learning rate of the first parameter group, and the largest weight decay of all; None where unknown."""

    learning_rate: float | None = None
    weight_decay: float | None = None


def rates_of(optimizer: Any) -> Rates:
    """Return the rates of a torch optimizer as they are now."""
    groups = getattr(optimizer, "param_groups", None)
    if not groups:
        return Rates()
    decays = [float(group["weight_decay"]) for group in groups if group.get("weight_decay") is not None]
    learning_rate = groups[0].get("lr")
    return Rates(None if learning_rate is None else float(learning_rate), max(decays, default=None))


def settings_of(optimizer: Any) -> dict[str, Any]:
    """Return class and default settings of an optimizer, for the manifest."""
    # accelerate and Lightning wrap it
    optimizer = getattr(optimizer, "optimizer", optimizer)
    known = {name: _plain(value) for name, value in getattr(optimizer, "defaults", {}).items()}
    return {"optimizer": type(optimizer).__name__, **{f"optimizer.{name}": v for name, v in known.items()}}


def plain_settings(source: Any, prefix: str, names: Iterable[str]) -> dict[str, Any]:
    """Return attributes as values that JSON can hold, by prefix and name; one that is not there is left out."""
    return {f"{prefix}.{name}": _plain(getattr(source, name)) for name in names if hasattr(source, name)}


def gradient_norm(parameters: Iterable[nn.Parameter]) -> float | None:
    """Return the global L2 norm of the gradients, None without any."""
    norms = [parameter.grad.detach().float().norm() for parameter in parameters if parameter.grad is not None]
    if not norms:
        return None
    return float(torch.stack([norm.to(norms[0].device) for norm in norms]).norm())


class Recording:
    """When a training is measured: at step 1, at every `eval_every_steps`-th and at the last.

    By default these are a twentieth of the steps. `settings` are those of `Recorder`; they take precedence over
    what the trainer reports. The recorder is made where the training begins, in the process that writes.
    """

    def __init__(
        self,
        path: Any,
        probe: HeldOutProbe,
        eval_every_steps: int | None,
        ternary_codes: Callable[[Any], TernaryCodes] | None,
        settings: Mapping[str, Any],
    ) -> None:
        if eval_every_steps is not None and eval_every_steps < 1:
            raise ConfigError(f"eval_every_steps is {eval_every_steps}; give a number of steps, or None")
        self._path, self._probe, self._settings = path, probe, settings
        self._requested, self._every, self._steps = eval_every_steps, 1, 0
        self._ternary_codes = ternary_codes
        self.recorder: Recorder | None = None

    def begin(self, steps: int | None, done: int, *, writes: bool, reported: Mapping[str, Any]) -> None:
        """Begin a training of `steps` steps, `done` of which were done before; `reported` comes from the trainer."""
        self._steps = steps or 0
        self._every = self._requested or max(1, self._steps // 20)
        if not writes:
            return
        settings = {"steps": steps, "resume_step": done or None, **reported, **self._settings}
        settings["settings"] = {**reported.get("settings", {}), **self._settings.get("settings", {})}
        self.recorder = Recorder(self._path, probe=self._probe, **settings)

    def is_due(self, step: int) -> bool:
        """Whether the model is measured after this step."""
        return step in (1, self._steps) or step % self._every == 0

    def record(self, step: int, model: Any, module: nn.Module, rates: Rates, **values: Any) -> None:
        """Measure and write a row, in the process that writes, unless this step has one."""
        recorder = self.recorder
        if recorder is None or step <= (recorder.last_step or 0):
            return
        codes = None if self._ternary_codes is None else self._ternary_codes(module)
        recorder.record(step, model, module=module, ternary_codes=codes, **rates._asdict(), **values)

    def finish(self) -> None:
        """End the run as it is."""
        if self.recorder is not None:
            self.recorder.finish()

    def fail(self, error: BaseException) -> None:
        """End the run with an error."""
        if self.recorder is not None:
            self.recorder.fail(error)


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    # an enumeration of text is not the text itself
    value = getattr(value, "value", value) if isinstance(value, str) else value
    return value if value is None or type(value) in (bool, int, float, str) else str(value)
