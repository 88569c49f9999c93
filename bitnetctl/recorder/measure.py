"""Measure a callable `tokens -> logits` on a probe, and leave the model and the process as they were.

Shapes: P rows, T positions of a row, V vocabulary.
"""

import contextlib
import functools
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from bitnetctl.errors import ConfigError
from bitnetctl.recorder.probe import HeldOutProbe
from bitnetctl.trainer.evaluate import Logits, Probe

Model: TypeAlias = Callable[[Tensor], Any]
"""Takes int64 tokens [P, T] and returns logits [P, T, V], a tuple that begins with them, or an object with `.logits`.
"""


class CallableProbe:
    """Measures callables on a probe; `rows_per_chunk` are evaluated at once, by default as many as fit."""

    def __init__(
        self, probe: HeldOutProbe, device: torch.device | str | None = None, rows_per_chunk: int | None = None
    ) -> None:
        self._probe = probe
        self._device = None if device is None else torch.device(device)
        self._rows_per_chunk = rows_per_chunk
        self._probes: dict[torch.device, Probe] = {}

    def device_of(self, model: Model, module: nn.Module | None = None) -> torch.device:
        """Return the device that the tokens are given on: as requested, else that of the module, else the CPU."""
        module = module or module_of(model)
        tensors = () if module is None else (*module.parameters(), *module.buffers())
        return self._device or next((tensor.device for tensor in tensors), torch.device("cpu"))

    def measure(self, model: Model, module: nn.Module | None = None) -> dict[str, float | int | None]:
        """Return the probe's columns; `module` is what the model calls, found where it is the model itself.

        Raises ConfigError where the model does not return logits [P, T, V] or more columns.
        """
        device = self.device_of(model, module)
        # where there is no double precision, what is summed is on the CPU
        sums_device = device if device.type in ("cpu", "cuda") else torch.device("cpu")
        if sums_device not in self._probes:
            probe = self._probe
            self._probes[sums_device] = Probe(probe.prompts, probe.data, probe.vocab_size, sums_device)
        logits = _logits(model, self._probe.vocab_size, device, sums_device)
        with evaluating(module or module_of(model)):
            (columns,) = self._probes[sums_device].measure_logits(logits, rows_per_chunk=self._rows_per_chunk)
        return {**columns}


def module_of(model: object) -> nn.Module | None:
    """Return the module that a callable is, or whose method it is; None where that is not known."""
    while isinstance(model, functools.partial):
        model = model.func
    model = getattr(model, "__self__", model)
    return model if isinstance(model, nn.Module) else None


@contextlib.contextmanager
def evaluating(module: nn.Module | None) -> Iterator[None]:
    """Evaluate without gradients, a module in eval mode; restore the modes of all its parts and every random state."""
    modes = [] if module is None else [(part, part.training) for part in module.modules()]
    tensors = () if module is None else module.parameters()
    gpus = sorted({tensor.get_device() for tensor in tensors if tensor.is_cuda})
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002 - the global one
    # not inference mode: what a model keeps of it, such as a mask, could not be used in the next training step
    with torch.random.fork_rng(devices=gpus), torch.no_grad():
        try:
            if module is not None:
                module.eval()
            yield
        finally:
            for part, mode in modes:
                # parents come first, and what they did to their parts is corrected afterwards
                if part.training is not mode:
                    part.train(mode)
            random.setstate(python_state)
            np.random.set_state(numpy_state)  # noqa: NPY002


def _logits(model: Model, vocab_size: int, device: torch.device, sums_device: torch.device) -> Logits:
    """Return a function of tokens [1, P, T] that returns logits [1, P·T, V]; columns beyond V are cut."""

    def logits(tokens_RPT: Tensor) -> Tensor:
        tokens_PT = tokens_RPT[0].to(device)
        logits_PTV = _logits_in(model(tokens_PT))
        shape = tuple(logits_PTV.shape)
        if shape[:2] != tuple(tokens_PT.shape) or len(shape) != 3 or shape[2] < vocab_size:
            rows, positions = tokens_PT.shape
            raise ConfigError(
                f"recorder: the model returned logits of shape {shape} for tokens ({rows}, {positions}), not "
                f"({rows}, {positions}, {vocab_size}) or more columns: logits of the whole vocabulary at every position"
            )
        return logits_PTV.detach()[..., :vocab_size].to(sums_device).flatten(0, 1).unsqueeze(0)

    return logits


def _logits_in(output: Any) -> Tensor:
    """Return the logits of what a model returned; raises ConfigError where there are none."""
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if logits is None:
        logits = output[0] if isinstance(output, tuple | list) and output else output
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        what = f"a tensor of {logits.dtype}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise ConfigError(
            f"recorder: the model returned {what}; it must return logits as a tensor of floating-point numbers, a "
            "tuple that begins with it, or an object with .logits"
        )
    return logits
