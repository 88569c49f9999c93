"""One optimizer step of a pack: forward and backward batched over the runs, everything else run by run.

Shapes: R runs, B rows, T positions, N = B·T tokens, H hidden, V vocabulary.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from bitnetctl.config import RunConfig
from bitnetctl.data import Batches, TokenData
from bitnetctl.engine import schedule
from bitnetctl.engine.accumulation import Accumulator
from bitnetctl.engine.optim import RunMoments, RunOptimizer, clip_divisor, require_alike
from bitnetctl.engine.plugin_optimizer import PluginOptimizer
from bitnetctl.errors import ConfigError, PluginError
from bitnetctl.model.layer import is_attention_plain
from bitnetctl.model.matmul import Precision, Quantization
from bitnetctl.model.packed import PackedModel
from bitnetctl.model.parameters import parameter_groups
from bitnetctl.model.quantization import BUILT_IN
from bitnetctl.model.storage import FLAT_GROUPS
from bitnetctl.plugins.composition import Composition, Schedule

# tokens of all runs whose rows are fetched together
_ROWS_AT_ONCE = 2**15


class Replica:
    """One run inside a pack: its config, interventions, parameters and optimizer.

    `failure` is the error of a plug-in, after which the run is not trained any further.
    """

    def __init__(self, config: RunConfig, composition: Composition, model: PackedModel, run: int) -> None:
        self.config = config
        self.composition = composition
        composition.seed = config.seed
        self.flat_parameters = model.flat_parameters(run)
        self.optimizer: RunOptimizer | RunMoments | PluginOptimizer
        if composition.optimizer_plugin is None:
            self.optimizer = RunOptimizer(config.optimizer, self.flat_parameters, FLAT_GROUPS)
        else:
            groups = parameter_groups(model.parameter_specs)
            self.optimizer = PluginOptimizer(config, composition, model.parameters(run), groups)
        self.diverged_at: int | None = None
        self.failure: PluginError | None = None
        self.halved_after: Sequence[int] = ()
        self._schedules: dict[Schedule, list[float]] = {}

    def compute_schedules(self) -> None:
        """Compute the schedules that interventions change, of all steps; raises PluginError."""
        for hook in get_args(Schedule):
            if self.composition.overrides(hook):
                base = functools.partial(self._base, hook)
                self._schedules[hook] = self.composition.schedule(hook, base, self.config.steps)

    def _base(self, hook: Schedule, step: int) -> float:
        """Return a scheduled value before interventions."""
        match hook:
            case "learning_rate":
                return schedule.learning_rate(self.config.schedule, step, self.config.steps)
            case "weight_decay":
                return schedule.weight_decay(self.config.schedule, step, self.config.steps)
            case "quantization":
                return self.config.model.quantization

    def _value(self, hook: Schedule, step: int) -> float:
        values = self._schedules.get(hook)
        return self._base(hook, step) if values is None else values[step - 1]

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of `step` after interventions, halved for each rollback that resumed before it."""
        return self._value("learning_rate", step) * 0.5 ** sum(step > after for after in self.halved_after)

    def weight_decay(self, step: int) -> float:
        """Return the weight decay of `step` after all interventions."""
        return self._value("weight_decay", step)

    def resets_moments(self, step: int) -> bool:
        """Whether the optimizer's moments are reset before the update of `step`."""
        every = self.config.optimizer.reset_moments_every_steps
        return every is not None and step > 1 and (step - 1) % every == 0

    def quant_lambda(self, step: int) -> float:
        """Return the quantization λ of `step` after all interventions."""
        return self._value("quantization", step)


class Pack:
    """R runs of one shape in training; the host launches every kernel of a step."""

    def __init__(
        self,
        configs: Sequence[RunConfig],
        compositions: Sequence[Composition],
        data: TokenData,
        device: torch.device,
        *,
        precision: Precision = "fp32",
        compiled: bool = False,
    ) -> None:
        if len({config.pack_key for config in configs}) != 1:
            raise ConfigError("runs of different shape cannot train in one pack")
        if len({composition.quantizer_key for composition in compositions}) != 1:
            raise ConfigError("runs with different quantizers cannot train in one pack")
        # pure functions, so those of one run serve them all
        quantizers = compositions[0].quantizers()
        self.device = device
        self.model = self._model_factory()(
            [config.model for config in configs],
            data.vocab_size,
            [config.seed for config in configs],
            device,
            precision=precision,
            compiled=compiled,
            quantizers=quantizers,
        )
        self.replicas = [
            Replica(config, composition, self.model, run)
            for run, (config, composition) in enumerate(zip(configs, compositions, strict=True))
        ]
        self.steps = configs[0].steps
        self._has_optimizers = False
        micro_batches = configs[0].data.gradient_accumulation
        gradients = [flat.grad for each in self.replicas for flat in each.flat_parameters.values()]
        self._accumulator = None
        if micro_batches > 1:
            self._accumulator = Accumulator([grad for grad in gradients if grad is not None], micro_batches)
        self._batches = [Batches(data, config.data, config.seed) for config in configs]
        self._fetched_from, self._fetched_SRBT1 = 0, torch.empty(0)
        # rows: loss, objective, gradient norm
        self._metrics_3R = torch.full((3, len(configs)), torch.nan, device=device)
        # first step that was not finite, 0 if none; on the device, to skip updates without a synchronization
        self._diverged_at_R = torch.zeros(len(configs), dtype=torch.long, device=device)
        self._skip_R = torch.zeros(len(configs), dtype=torch.float, device=device)
        self._checks_on_device = device.type != "cpu"
        needs_autograd = (
            compiled
            or any(each.overrides_loss for each in compositions)
            or quantizers != BUILT_IN
            or not is_attention_plain(configs[0].model, configs[0].data.sequence_length, device)
        )
        # each operation takes a tenth less without what autograd does for it even under `no_grad`
        self._without_autograd = contextlib.nullcontext if needs_autograd else torch.inference_mode
        self._named: dict[int, dict[str, Tensor]] = {}
        for run, replica in enumerate(self.replicas):
            with self.failing_alone(run):
                replica.compute_schedules()

    def _model_factory(self) -> Callable[..., PackedModel]:
        return PackedModel

    @property
    def loss_R(self) -> Tensor:
        """Cross-entropy of the last step's batch, in nats, whatever the objective."""
        return self._last_metrics()[0]

    @property
    def objective_R(self) -> Tensor:
        """What the last step minimised: the loss, unless an intervention overrides it."""
        return self._last_metrics()[1]

    @property
    def grad_norm_R(self) -> Tensor:
        """Global norm of the last step's gradients, before gradient hooks and clipping."""
        return self._last_metrics()[2]

    def _last_metrics(self) -> Tensor:
        return self._metrics_3R

    @property
    def alive(self) -> list[tuple[int, Replica]]:
        """The runs that have neither diverged nor failed, with their indices."""
        return [
            (run, replica)
            for run, replica in enumerate(self.replicas)
            if replica.diverged_at is None and replica.failure is None
        ]

    @property
    def failed(self) -> list[tuple[int, PluginError]]:
        """The runs that the code of a plug-in has ended, with its error."""
        return [(run, replica.failure) for run, replica in enumerate(self.replicas) if replica.failure is not None]

    @contextlib.contextmanager
    def failing_alone(self, run: int) -> Iterator[None]:
        """Let an error of a plug-in end its own run only; the run of a pack of one raises it."""
        try:
            yield
        except PluginError as error:
            if len(self.replicas) == 1:
                raise
            # the error itself would keep the frames of the step, and so this pack, in memory
            self.replicas[run].failure = PluginError(str(error))
            # keeps a step that runs on the device from updating it
            self._diverged_at_R[run].fill_(1)

    @property
    def tokens_per_step(self) -> int:
        """Training tokens of one run in a step."""
        return self.replicas[0].config.data.tokens_per_step

    def make_optimizers(self) -> None:
        """Make the optimizers of plug-ins, unless they are; an error of one ends its run.

        Called once the weights are in place: an optimizer may copy them.
        """
        if self._has_optimizers:
            return
        for run, replica in self.alive:
            if isinstance(replica.optimizer, PluginOptimizer):
                with self.failing_alone(run):
                    replica.optimizer.make()
        self._has_optimizers = True

    def optimizer_state(self, run: int) -> dict[str, Tensor]:
        """Return the state of a run's optimizer by its names in checkpoints; raises PluginError if it has others."""
        optimizer = self.replicas[run].optimizer
        if isinstance(optimizer, PluginOptimizer):
            return optimizer.checkpoint()
        return self.model.by_spec(optimizer.state())

    def load_optimizer_state(self, run: int, tensors: Mapping[str, Tensor]) -> None:
        """Restore what `optimizer_state` returned; raises ValueError where it does not fit."""
        optimizer = self.replicas[run].optimizer
        if isinstance(optimizer, PluginOptimizer):
            optimizer.load_state(tensors)
            return
        require_alike(tensors, self.model.by_spec(optimizer.state_like()))
        optimizer.load_state(self.model.by_flat_parameter(tensors))

    def quant_lambdas(self, step: int) -> list[float]:
        """Return the quantization λ of every run at `step`."""
        return [replica.quant_lambda(step) for replica in self.replicas]

    def step(self, step: int) -> None:
        """Train one step; its metrics stay on the device until they are read."""
        self.make_optimizers()
        for replica in self.replicas:
            replica.composition.step = step
        self._compute(self._rows(step), self.model.quantization(self.quant_lambdas(step)))
        self._check_finite(step)
        for run, replica in self.alive:
            self._update(run, replica, step)

    def wait(self) -> None:
        """Synchronize with the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _rows(self, step: int) -> Tensor:
        """Return the batch of every run, inputs and targets overlapping: [R, B, T + 1]."""
        index = step - self._fetched_from
        if not 0 <= index < len(self._fetched_SRBT1):
            index, self._fetched_from = 0, step
            # several steps at once: from step to step the code that does it has left the cache
            steps = range(step, step + max(1, _ROWS_AT_ONCE // (self.tokens_per_step * len(self.replicas))))
            rows = [np.stack([batches.rows_BT1(each) for batches in self._batches]) for each in steps]
            self._fetched_SRBT1 = torch.from_numpy(np.stack(rows))
        rows_RBT1 = self._fetched_SRBT1[index]
        if self.device.type == "cuda":
            return rows_RBT1.pin_memory().to(self.device, non_blocking=True)
        return rows_RBT1

    def _compute(self, rows_RBT1: Tensor, quantization: Quantization) -> None:
        """Compute the gradients and metrics of a batch."""
        with self._without_autograd():
            compute = self._compute_gradients if self._accumulator is None else self._accumulate_gradients
            loss_R, objectives = compute(rows_RBT1, quantization)
            torch.stack((loss_R, loss_R, self.model.gradient_norms()), out=self._metrics_3R)
        for run, objective in objectives.items():
            self._metrics_3R[1, run] = objective

    def _accumulate_gradients(
        self, rows_RBT1: Tensor, quantization: Quantization
    ) -> tuple[Tensor, Mapping[int, Tensor]]:
        """Compute gradients, losses and objectives as `_compute_gradients` does, averaged over the micro-batches."""
        assert self._accumulator is not None
        micro_batches = rows_RBT1.split(self.replicas[0].config.data.batch_size, dim=1)
        losses, objectives = [], dict[int, list[Tensor]]()
        for index, micro_RBT1 in enumerate(micro_batches):
            for replica in self.replicas:
                replica.composition.micro_batch = index
            loss_R, of_micro_batch = self._compute_gradients(micro_RBT1, quantization)
            self._accumulator.add(index)
            losses.append(loss_R)
            for run, objective in of_micro_batch.items():
                objectives.setdefault(run, []).append(objective)
        for replica in self.replicas:
            replica.composition.micro_batch = 0
        means = {run: torch.stack(values).mean() for run, values in objectives.items()}
        return torch.stack(losses).mean(0), means

    def _compute_gradients(self, rows_RBT1: Tensor, quantization: Quantization) -> tuple[Tensor, Mapping[int, Tensor]]:
        """Compute the gradients of a batch; return every run's loss, and the objective of those that override it."""
        targets_RN = rows_RBT1[..., 1:].flatten(1)
        activations = self.model.forward_for_backward(rows_RBT1[..., :-1], quantization)
        objectives: dict[int, Tensor] = {}

        overriding = [
            run
            for run, replica in enumerate(self.replicas)
            if replica.composition.overrides_loss and replica.failure is None
        ]

        def override(logits_RNV: Tensor, grad_RNV: Tensor) -> None:
            """Write N times the gradient of the objective of each run that overrides it: `head_loss` divides by N."""
            for run in overriding:
                logits_NV = logits_RNV[run].to(torch.promote_types(grad_RNV.dtype, torch.float32)).requires_grad_()
                with self.failing_alone(run):
                    objective, grad_NV = self.replicas[run].composition.loss_and_gradient(logits_NV, targets_RN[run])
                    torch.mul(grad_NV, grad_NV.shape[0], out=grad_RNV[run])
                    objectives[run] = objective

        loss_R, grad_RNH = self.model.head_loss(activations.hidden_RNH, targets_RN, override if overriding else None)
        self.model.backward(activations, grad_RNH)
        return loss_R, objectives

    def _check_finite(self, step: int | Tensor) -> None:
        """Mark the runs whose objective or gradient norm is not finite; they are not updated from here on."""
        if not self._checks_on_device:
            # on the CPU reading a value is free, and it spares the updates of diverged runs
            _, objectives, norms = self._metrics_3R.tolist()
            for replica, *values in zip(self.replicas, objectives, norms, strict=True):
                if not all(map(math.isfinite, values)) and replica.diverged_at is None and replica.failure is None:
                    replica.diverged_at = int(step)
            return
        bad_R = ~self._metrics_3R[1:].isfinite().all(0)
        self._diverged_at_R.copy_(torch.where(bad_R & (self._diverged_at_R == 0), step, self._diverged_at_R))
        self._skip_R.copy_(self._diverged_at_R > 0)

    def mark_diverged(self, step: int) -> None:
        """Set `diverged_at` to the step marked on the device, or to `step` where a weight or moment is not finite."""
        diverged_at = self._diverged_at_R.tolist()
        for run, replica in self.alive:
            replica.diverged_at = diverged_at[run] or (step if self._nonfinite_state(run) else None)

    @torch.no_grad()
    def first_nonfinite_tensor(self, run: int) -> str:
        """Name what is not finite in a diverged run: a weight or moment, else the loss, else a gradient."""
        if (state := self._nonfinite_state(run)) is not None:
            return state
        if not self.objective_R[run].isfinite():
            return "the loss"
        gradients = {name: parameter.grad for name, parameter in self.model.parameters(run).items()}
        bad_gradients = (name for name, grad in gradients.items() if grad is not None and not grad.isfinite().all())
        return f"the gradient of {next(bad_gradients, 'all parameters together')}"

    @torch.no_grad()
    def _nonfinite_state(self, run: int) -> str | None:
        """Return the first weight or moment that is not finite."""
        replica = self.replicas[run]
        if not all(flat.isfinite().all() for flat in replica.flat_parameters.values()):
            weights = self.model.parameters(run).items()
            return "the weight " + next(name for name, weight in weights if not weight.isfinite().all())
        moments = replica.optimizer.state().items()
        name = next((name for name, moment in moments if not moment.isfinite().all()), None)
        return None if name is None else f"the moment {name}"

    def _named_parameters(self, run: int) -> dict[str, Tensor]:
        """Return the named views of a run, made once: making them takes the host 0.3 ms."""
        if run not in self._named:
            self._named[run] = self.model.parameters(run)
        # a hook may change the dictionary
        return dict(self._named[run])

    def _update(self, run: int, replica: Replica, step: int) -> None:
        """Apply gradient hook, clipping and optimizer to one run."""
        norm = self.grad_norm_R[run]
        if replica.composition.overrides_gradients:
            with torch.no_grad(), self.failing_alone(run):
                replica.composition.transform_gradients(self._named_parameters(run))
            if replica.failure is not None:
                return
            gradients = [flat.grad for flat in replica.flat_parameters.values() if flat.grad is not None]
            norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        max_norm = replica.config.optimizer.max_norm
        divisor = None if max_norm is None else clip_divisor(norm, max_norm)
        skip = self._skip_R[run] if self._checks_on_device else None
        rate, decay = replica.learning_rate(step), replica.weight_decay(step)
        assert not isinstance(replica.optimizer, RunMoments)
        with self.failing_alone(run):
            if replica.resets_moments(step):
                replica.optimizer.reset_moments()
            replica.optimizer.step(rate, decay, divisor=divisor, skip=skip)
