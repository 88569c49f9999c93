"""One optimizer step of a pack: forward and backward batched over the runs, everything else per run.

Shapes: R runs, B rows, T positions, N = B·T, V vocabulary.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from bitnetctl import schedule
from bitnetctl.config import RunConfig
from bitnetctl.data import Batches, TokenData
from bitnetctl.errors import ConfigError
from bitnetctl.intervention import Composition
from bitnetctl.model import PackedModel
from bitnetctl.optim import RunOptimizer, clip_gradients


class Member:
    """One run inside a pack: its config, interventions, parameters, optimizer and the figures of its last step."""

    def __init__(self, config: RunConfig, composition: Composition, model: PackedModel, run: int) -> None:
        self.config = config
        self.composition = composition
        self.leaves = model.leaves(run)
        self.optimizer = RunOptimizer(config.optimizer, self.leaves, model.leaf_groups())
        self.diverged_at: int | None = None

    def learning_rate(self, step: int) -> float:
        """Learning rate of `step` after all interventions."""
        base = schedule.learning_rate(self.config.schedule, step, self.config.steps)
        return self.composition.learning_rate(base, step, self.config.steps)

    def weight_decay(self, step: int) -> float:
        """Weight decay of `step` after all interventions."""
        base = schedule.weight_decay(self.config.schedule, step, self.config.steps)
        return self.composition.weight_decay(base, step, self.config.steps)

    def strength(self, step: int) -> float:
        """Quantization strength λ of `step` after all interventions."""
        return self.composition.quantization(self.config.model.quantization, step, self.config.steps)


def pack_key(config: RunConfig) -> tuple[object, ...]:
    """Return what must be equal for runs to train in one pack: model shape, batch, data, steps, probe."""
    model = config.model.model_dump(exclude={"initialization", "init_std", "quantization"})
    return (
        config.steps,
        config.eval_every_steps,
        tuple(model.items()),
        tuple(config.data.model_dump(exclude={"order"}).items()),
        tuple(config.probe.model_dump(exclude={"eval_every_steps"}).items()),
    )


class Pack:
    """R runs of one shape in training."""

    def __init__(
        self,
        configs: Sequence[RunConfig],
        compositions: Sequence[Composition],
        data: TokenData,
        device: torch.device,
    ) -> None:
        if len({pack_key(config) for config in configs}) != 1:
            raise ConfigError("runs of different shape cannot train in one pack")
        self.device = device
        self.model = PackedModel(
            [config.model for config in configs], data.vocab_size, [config.seed for config in configs], device
        )
        self.members = [
            Member(config, composition, self.model, run)
            for run, (config, composition) in enumerate(zip(configs, compositions, strict=True))
        ]
        self.steps = configs[0].steps
        self._claims_loss = any(member.composition.claims_loss for member in self.members)
        self._batches = [Batches(data, config.data, config.seed) for config in configs]
        self.loss_R = torch.full((len(configs),), torch.nan, device=device)
        self.objective_R = self.loss_R
        self.grad_norm_R = self.loss_R

    @property
    def tokens_per_step(self) -> int:
        """Training tokens a step of one run."""
        data = self.members[0].config.data
        return data.batch_size * data.sequence_length

    def strengths(self, step: int) -> list[float]:
        """Quantization strengths of all members."""
        return [member.strength(step) for member in self.members]

    def step(self, step: int) -> None:
        """Train one step; loss, objective and gradient norm of each run stay on the device until they are read."""
        inputs_RBT, targets_RN = self._batch(step)
        tape = self.model.record(inputs_RBT, self.strengths(step))
        claims = _Claims(self.members, targets_RN) if self._claims_loss else None
        self.loss_R, grad_RNH = self.model.head_loss(tape.hidden_RNH, targets_RN, claims)
        self.objective_R = self.loss_R if claims is None else claims.objectives(self.loss_R)
        self.model.backward(tape, grad_RNH)
        self.grad_norm_R = self.model.gradient_norms()

        self._mark_diverged(step)
        for run, member in enumerate(self.members):
            if member.diverged_at is None:
                self._update(run, member, step)

    def _batch(self, step: int) -> tuple[Tensor, Tensor]:
        rows_RBT1 = torch.from_numpy(np.stack([batches.rows_BT1(step) for batches in self._batches]))
        if self.device.type == "cuda":
            rows_RBT1 = rows_RBT1.pin_memory().to(self.device, non_blocking=True)
        return rows_RBT1[..., :-1], rows_RBT1[..., 1:].flatten(1)

    def _update(self, run: int, member: Member, step: int) -> None:
        norm = self.grad_norm_R[run]
        if member.composition.claims_gradients:
            with torch.no_grad():
                member.composition.transform_gradients(self.model.parameters(run))
            norm = torch.nn.utils.get_total_norm(
                [leaf.grad for leaf in member.leaves.values() if leaf.grad is not None]
            )
        max_norm = member.config.optimizer.max_norm
        if max_norm is not None:
            clip_gradients(member.leaves, norm, max_norm)
        reset_every = member.config.optimizer.reset_moments_every_steps
        if reset_every is not None and step > 1 and (step - 1) % reset_every == 0:
            member.optimizer.reset_moments()
        member.optimizer.step(member.learning_rate(step), member.weight_decay(step))

    def _mark_diverged(self, step: int) -> None:
        # reading a GPU's figures waits for it, so there the loop asks at its log points
        if self.device.type == "cpu":
            self.mark_diverged(step)

    def mark_diverged(self, step: int) -> None:
        """Mark the runs whose objective or gradient is not finite; they are not updated any more."""
        finite = (self.objective_R.isfinite() & self.grad_norm_R.isfinite()).tolist()
        for member, is_finite in zip(self.members, finite, strict=True):
            if not is_finite and member.diverged_at is None:
                member.diverged_at = step


class _Claims:
    """The objectives of the runs whose intervention claims the training loss."""

    def __init__(self, members: Sequence[Member], targets_RN: Tensor) -> None:
        self._members = members
        self._targets_RN = targets_RN
        self._objectives: dict[int, Tensor] = {}

    def __call__(self, logits_RNV: Tensor, grad_RNV: Tensor) -> None:
        """Replace the gradients of the claimed runs."""
        for run, member in enumerate(self._members):
            if member.composition.claims_loss:
                logits_NV = logits_RNV[run].to(grad_RNV.dtype).requires_grad_()
                with torch.enable_grad():
                    objective = member.composition.training_loss(logits_NV, self._targets_RN[run])
                    (grad_NV,) = torch.autograd.grad(objective, logits_NV)
                torch.mul(grad_NV, grad_NV.shape[0], out=grad_RNV[run])
                self._objectives[run] = objective.detach()

    def objectives(self, loss_R: Tensor) -> Tensor:
        """Return what is minimised: the plain loss but for the claimed runs."""
        objective_R = loss_R.clone()
        for run, objective in self._objectives.items():
            objective_R[run] = objective
        return objective_R
