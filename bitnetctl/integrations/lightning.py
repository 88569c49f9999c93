"""Record a training of the Trainer of `lightning` or `pytorch_lightning`: `pip install 'bitnetctl[lightning]'`.

Where both are installed, the callback is one of that which is imported already; import it first.
"""

import functools
import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bitnetctl.errors import ConfigError
from bitnetctl.integrations.base import (
    LogitsOf,
    Rates,
    Recording,
    gradient_norm,
    plain_settings,
    rates_of,
    settings_of,
)
from bitnetctl.recorder import HeldOutProbe, Recorder
from bitnetctl.recorder.recorder import TernaryCodes

_PACKAGES = ("lightning.pytorch", "pytorch_lightning")
_SHARDED = ("FSDPStrategy", "ModelParallelStrategy")
_SETTINGS = ("accumulate_grad_batches", "precision", "gradient_clip_val")


def _libraries() -> list[Any]:
    """Return the packages whose callbacks this is one of: those that are imported, else the first that is installed."""
    loaded = [module for name in _PACKAGES if (module := sys.modules.get(name)) is not None]
    if loaded:
        return loaded
    for name in _PACKAGES:
        try:
            return [importlib.import_module(name)]
        except ModuleNotFoundError as error:
            # one that is installed and broken says so itself
            if (error.name or "").partition(".")[0] != name.partition(".")[0]:
                raise
    raise ImportError("bitnetctl.integrations.lightning needs lightning: pip install 'bitnetctl[lightning]'")


_LIBRARIES = _libraries()
_Callback: Any = type("_Callback", tuple(library.Callback for library in _LIBRARIES), {})


class CollapseCallback(_Callback):
    """Measures the module at step 1, at every `eval_every_steps`-th step and at the last, and writes a run's CSV.

    `path`, `probe` and `settings` are those of `Recorder`; steps, seed (of `seed_everything`), optimizer, precision and
    accumulation are taken from the trainer where they are not given. `logits` is a function of module and tokens; by
    default the module is called. `ternary_codes` is a function of the module.

    Steps are those of the optimizer. The row's `loss` is what `training_step` returned, a mean over the batches of one
    step. A training that is resumed from a checkpoint keeps the rows up to it. Of several processes the first
    measures and writes. An error ends the run as failed.

    Raises ConfigError for sharded parameters (FSDP, DeepSpeed ZeRO-3), and as `Recorder` does.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        probe: HeldOutProbe,
        eval_every_steps: int | None = None,
        logits: LogitsOf | None = None,
        ternary_codes: Callable[[Any], TernaryCodes] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        self._recording = Recording(path, probe, eval_every_steps, ternary_codes, settings)
        self._logits = logits
        self._done = 0
        self._losses: list[Tensor] = []
        self._values: dict[str, Any] = {}
        self._rates = Rates()

    @property
    def recorder(self) -> Recorder | None:
        """The recorder, once the training has begun, in the process that writes."""
        return self._recording.recorder

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Open the files of the run."""
        if _is_sharded(trainer):
            raise ConfigError("CollapseCallback: parameters that are sharded over processes cannot be measured")
        planned = trainer.estimated_stepping_batches
        seed = os.environ.get("PL_GLOBAL_SEED", "")
        reported = {
            "trainer": f"{_LIBRARIES[0].__name__} {_LIBRARIES[0].__version__}",
            "seed": int(seed) if seed.isdecimal() else None,
            "size": getattr(getattr(pl_module, "config", None), "hidden_size", None),
            "settings": {
                **settings_of(next(iter(trainer.optimizers), None)),
                **plain_settings(trainer, "trainer", _SETTINGS),
            },
        }
        self._done = trainer.global_step
        steps = planned if isinstance(planned, int) else None
        self._recording.begin(steps, self._done, writes=trainer.is_global_zero, reported=reported)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Read the rates and the gradients that the step is done with."""
        self._rates, self._values = rates_of(optimizer), {}
        if self._recording.is_due(trainer.global_step + 1):
            self._values = {"gradient_norm": gradient_norm(pl_module.parameters())}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Measure the module after a step, not after each of the batches that are accumulated for it."""
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if isinstance(loss, Tensor):
            self._losses.append(loss.detach())
        step = trainer.global_step
        if step == self._done:
            return
        self._done = step
        self._values["loss"] = torch.stack(self._losses).float().mean() if self._losses else None
        self._losses = []
        if self._recording.is_due(step):
            self._record(trainer, pl_module)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Measure the last step, if it has no row, and end the run."""
        if self._done:
            self._record(trainer, pl_module)
        self._recording.finish()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """End the run as failed, or as stopped where it was interrupted."""
        self._recording.fail(exception)

    def _record(self, trainer: Any, module: Any) -> None:
        call = module if self._logits is None else functools.partial(self._logits, module)
        with trainer.precision_plugin.forward_context():
            self._recording.record(self._done, call, module, self._rates, **self._values)


def _is_sharded(trainer: Any) -> bool:
    config = getattr(trainer.strategy, "config", None)
    stage = config.get("zero_optimization", {}).get("stage") if isinstance(config, dict) else None
    return type(trainer.strategy).__name__ in _SHARDED or stage == 3
