"""One optimizer step of a pack: forward and backward batched over the runs, everything else per run.

Shapes: R runs, B rows, T positions, N = B·T, V vocabulary.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
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
        groups = {key: storage.group for key, storage in model.storages.items()}
        self.optimizer = RunOptimizer(config.optimizer, self.leaves, groups)
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
        logits_RNV = self.model.forward(inputs_RBT, self.strengths(step))
        self.loss_R, objective_R = self._objectives(logits_RNV, targets_RN)

        for packed in self.model.packed.values():
            packed.grad = None
        objective_R.backward(torch.ones_like(objective_R))
        self.objective_R = objective_R.detach()
        self.grad_norm_R = self._grad_norms()

        self._mark_diverged(step)
        for run, member in enumerate(self.members):
            if member.diverged_at is None:
                self._update(run, member, step)

    def _batch(self, step: int) -> tuple[Tensor, Tensor]:
        rows_RBT1 = torch.from_numpy(np.stack([batches.rows_BT1(step) for batches in self._batches]))
        if self.device.type == "cuda":
            rows_RBT1 = rows_RBT1.pin_memory().to(self.device, non_blocking=True)
        return rows_RBT1[..., :-1], rows_RBT1[..., 1:].flatten(1)

    def _objectives(self, logits_RNV: Tensor, targets_RN: Tensor) -> tuple[Tensor, Tensor]:
        """Return the plain cross-entropy, detached, and what is minimised: the same unless a seam is claimed."""
        loss_RN = F.cross_entropy(logits_RNV.flatten(0, 1), targets_RN.flatten(), reduction="none")
        loss_R = loss_RN.view_as(targets_RN).mean(-1)
        if not any(member.composition.claims_loss for member in self.members):
            return loss_R.detach(), loss_R
        # unbind, not indexing: its gradient is stacked once instead of being padded with zeros for every run
        objectives = [
            member.composition.training_loss(logits_NV, targets_N) if member.composition.claims_loss else loss
            for member, logits_NV, targets_N, loss in zip(
                self.members, logits_RNV.unbind(0), targets_RN, loss_R.unbind(0), strict=True
            )
        ]
        return loss_R.detach(), torch.stack(objectives)

    @torch.no_grad()
    def _grad_norms(self) -> Tensor:
        norms_R = [
            torch.linalg.vector_norm(packed.grad.flatten(1), dim=1)
            for packed in self.model.packed.values()
            if packed.grad is not None
        ]
        norm_R: Tensor = torch.linalg.vector_norm(torch.stack(norms_R), dim=0)
        return norm_R

    def _update(self, run: int, member: Member, step: int) -> None:
        self.model.set_gradients(run, member.leaves)
        norm = self.grad_norm_R[run]
        if member.composition.claims_gradients:
            with torch.no_grad():
                member.composition.transform_gradients(self.model.parameters(member.leaves))
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
