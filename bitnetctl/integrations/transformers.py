"""Record a training of `transformers.Trainer`: `pip install 'bitnetctl[transformers]'`."""

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch import nn

try:
    import transformers
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ImportError as error:
    raise ImportError(
        "bitnetctl.integrations.transformers needs transformers and accelerate: pip install 'bitnetctl[transformers]'"
    ) from error

from bitnetctl.errors import ConfigError
from bitnetctl.integrations.base import LogitsOf, Rates, Recording, plain_settings, rates_of, settings_of
from bitnetctl.recorder import HeldOutProbe, Recorder
from bitnetctl.recorder.recorder import TernaryCodes

_SETTINGS = (
    *("per_device_train_batch_size", "gradient_accumulation_steps", "max_grad_norm", "lr_scheduler_type"),
    *("warmup_steps", "label_smoothing_factor", "bf16", "fp16"),
)


class CollapseCallback(TrainerCallback):
    """Measures the model at step 1, at every `eval_every_steps`-th step and at the last, and writes a run's CSV.

    `path`, `probe` and `settings` are those of `Recorder`; steps, seed, size, warm-up, optimizer and batch are taken
    from the trainer where they are not given. `logits` is a function of model and tokens; by default the model is
    called. `ternary_codes` is a function of the model.

    At a measured step the trainer is asked to log: its `loss`, a mean over the steps since it logged before, is the
    row's. The rates are those of the step. A training that is resumed from a checkpoint keeps the rows up to it.
    Of several processes the first measures and writes. As a context manager around `train()`, it notes an error.

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
        self._recording = Recording(path, probe, eval_every_steps, ternary_codes, settings)
        self._logits = logits
        self._rates = Rates()
        self._due: int | None = None

    @property
    def recorder(self) -> Recorder | None:
        """The recorder, once the training has begun, in the process that writes."""
        return self._recording.recorder

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            self._recording.fail(error)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the files of the run."""
        if _is_sharded(args):
            raise ConfigError("CollapseCallback: parameters that are sharded over processes cannot be measured")
        reported = {
            "trainer": f"transformers {transformers.__version__}",
            "seed": args.seed,
            "size": getattr(getattr(kwargs["model"], "config", None), "hidden_size", None),
            "warmup_steps": args.get_warmup_steps(state.max_steps),
            "settings": {**settings_of(kwargs.get("optimizer")), **plain_settings(args, "arguments", _SETTINGS)},
        }
        self._recording.begin(state.max_steps, state.global_step, writes=state.is_world_process_zero, reported=reported)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write the row of a step at which nothing was logged."""
        self._record(state.global_step, kwargs["model"])

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Read the rates that the step is done with."""
        if self._recording.is_due(state.global_step + 1):
            self._rates = rates_of(kwargs.get("optimizer"))

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Ask for the loss of a step that is measured; every process must, since it is a mean over all of them."""
        if self._recording.is_due(state.global_step):
            self._due = state.global_step
            control.should_log = True
        return control

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Measure the model and write the row."""
        if logs is not None and "loss" in logs:
            self._record(state.global_step, kwargs["model"], loss=logs["loss"], gradient_norm=logs.get("grad_norm"))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure the last step, if it has no row, and end the run."""
        # then the model is that of another step
        if not args.load_best_model_at_end:
            self._due = state.global_step
            self._record(state.global_step, kwargs["model"])
        self._recording.finish()

    def _record(self, step: int, model: nn.Module, **values: Any) -> None:
        """Write the row of a step that is due."""
        if self._due != step:
            return
        self._due = None
        call = _caller(model) if self._logits is None else functools.partial(self._logits, model)
        self._recording.record(step, call, model, self._rates, **values)


def _caller(model: nn.Module) -> Callable[..., Any]:
    """Return the model as a function of its tokens; a KV cache is not needed."""
    has_cache = "use_cache" in inspect.signature(model.forward).parameters
    return functools.partial(model, use_cache=False) if has_cache else model


def _is_sharded(args: TrainingArguments) -> bool:
    plugin = getattr(args, "deepspeed_plugin", None)
    return bool(getattr(args, "fsdp", None)) or getattr(plugin, "zero_stage", 0) == 3
