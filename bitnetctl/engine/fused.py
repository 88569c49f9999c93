"""A captured pack whose step is made of own Triton kernels, and whose runs are all updated by one launch a parameter.

With stock optimizers a step launches each run's update; here the coefficients of all runs stand in a table on the
device, so learning rate, weight decay, clipping and a run's divergence change nothing in what is captured.

Shapes: R runs, N tokens of a run, F flat parameters.
"""

import functools
import math
from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor

from bitnetctl.config import RunConfig
from bitnetctl.data import TokenData
from bitnetctl.engine.cuda_graph import CapturedPack, StepKey
from bitnetctl.engine.optim import RunMoments
from bitnetctl.kernels.adam import adam_, adam_rows_, adam_tiles_, square_sums
from bitnetctl.kernels.finish import finish_step, new_state
from bitnetctl.model.fused import FusedModel
from bitnetctl.model.matmul import Precision
from bitnetctl.model.packed import PackedModel
from bitnetctl.model.parts import Part
from bitnetctl.model.storage import FLAT_GROUPS
from bitnetctl.plugins.composition import Composition


class FusedPack(CapturedPack):
    """R runs of one shape in training, with own kernels in `parts` of the step; see `FusedModel`."""

    model: FusedModel

    def __init__(
        self,
        configs: Sequence[RunConfig],
        compositions: Sequence[Composition],
        data: TokenData,
        device: torch.device,
        *,
        precision: Precision = "fp32",
        parts: Collection[Part],
    ) -> None:
        # the base makes the model and the tables, which depend on it
        self._parts = frozenset(parts)
        super().__init__(configs, compositions, data, device, precision=precision)

    def _model_factory(self) -> Callable[..., PackedModel]:
        return functools.partial(FusedModel, parts=self._parts)

    def _make_tables(self, device: torch.device) -> None:
        super()._make_tables(device)
        if "update" not in self._parts:
            return
        flats = self.model.flat_tables()
        self._exp_avg = {name: torch.zeros_like(weight_RS) for name, (weight_RS, _, _) in flats.items()}
        self._exp_avg_sq = {name: torch.zeros_like(weight_RS) for name, (weight_RS, _, _) in flats.items()}
        self._state = new_state(len(self.replicas), len(flats), device)
        self._state.diverged_at_R = self._diverged_at_R
        for run, replica in enumerate(self.replicas):
            optimizer = replica.config.optimizer
            self._state.constants_5R[:, run] = torch.tensor(
                [
                    *optimizer.betas,
                    optimizer.eps,
                    math.inf if optimizer.max_norm is None else optimizer.max_norm,
                    float(optimizer.name == "adamw"),
                ],
                dtype=torch.float64,
            )
            self._state.exempt_FR[:, run] = torch.tensor(
                [float(FLAT_GROUPS[name] in optimizer.exempt) for name in flats]
            )
            moments = {
                name: (self._exp_avg[name][run, :size], self._exp_avg_sq[name][run, :size])
                for name, (_, _, size) in flats.items()
            }
            replica.optimizer = RunMoments(moments, self._state.updates_R[run])
        self._refresh_copies()

    def _captured_decays(self, decays_R: tuple[float, ...]) -> tuple[float, ...]:
        return () if "update" in self._parts else super()._captured_decays(decays_R)

    def _fill(self, first: int) -> None:
        super()._fill(first)
        # weights may have been restored since
        self._refresh_copies()

    def _refresh_copies(self) -> None:
        """Bring the copy of the head and the sums of magnitudes up to date with the weights."""
        self.model.refresh_head_copy()
        if self.model.absolute_sums_RT is not None:
            # SKIP is 1: weights stay, only their magnitudes are summed
            skipping_RC = torch.ones_like(self._state.coefficients_FRC[0])
            self._update_flat("matrices", skipping_RC)

    def _step_on_device(self, key: StepKey) -> None:
        if "update" not in self._parts:
            super()._step_on_device(key)
            return
        loss_R, objectives = self._compute_gradients(self._at_index(self._rows_SRBT1), self._quantization(key))
        objective_R = loss_R
        if objectives:
            objective_R = loss_R.clone()
            for run, objective in objectives.items():
                objective_R[run] = objective
        self._update_all(loss_R, objective_R)
        self._index_1.add_(1)

    def _update_all(self, loss_R: Tensor, objective_R: Tensor) -> None:
        """Update the weights of all runs from their gradients."""
        flats, rows_RNH = self.model.flat_tables(), self.model.embedding_rows_RNH
        sums, starts = [], [0]
        for name, (_, grad_RS, size) in flats.items():
            if name == "embed" and rows_RNH is not None:
                grad_RS, size = rows_RNH.flatten(1), rows_RNH[0].numel()
            sums.append(square_sums(grad_RS, size))
            starts.append(starts[-1] + sums[-1].shape[1])
        finish_step(
            self._state,
            torch.cat(sums, dim=1),
            starts,
            loss_R,
            objective_R,
            self._index_1,
            self._rates_SR,
            self._decays_SR,
            self._steps_S,
            self._block_metrics_S3R,
        )
        for name, coefficients_RC in zip(flats, self._state.coefficients_FRC, strict=True):
            self._update_flat(name, coefficients_RC)

    def _update_flat(self, name: str, coefficients_RC: Tensor) -> None:
        """Update a flat parameter of all runs, with the copy of the head or the sums of magnitudes formed from it."""
        model, rows_RNH = self.model, self.model.embedding_rows_RNH
        weight_RS, grad_RS, size = model.flat_tables()[name]
        moments = self._exp_avg[name], self._exp_avg_sq[name]
        if name == "embed" and rows_RNH is not None:
            rows = (table.view(len(self.replicas), -1, rows_RNH.shape[-1]) for table in (weight_RS, *moments))
            weight_RVH, exp_avg_RVH, exp_avg_sq_RVH = rows
            assert model.slots_RV is not None
            adam_rows_(weight_RVH, rows_RNH, model.slots_RV, exp_avg_RVH, exp_avg_sq_RVH, coefficients_RC)
        elif name == "matrices" and model.absolute_sums_RT is not None:
            adam_tiles_(weight_RS, grad_RS, *moments, coefficients_RC, model.tiles, model.absolute_sums_RT)
        else:
            copy_RS = model.head_copy(name)
            adam_(weight_RS, grad_RS, *moments, coefficients_RC, size=size, copy_RS=copy_RS)

    def first_nonfinite_tensor(self, run: int) -> str:
        """Name what is not finite in a diverged run; the embeddings' gradient by its norm, as it has no tensor."""
        embed = list(self.model.flat_tables()).index("embed")
        if (
            self.model.embedding_rows_RNH is not None
            and self._nonfinite_state(run) is None
            and self.objective_R[run].isfinite()
            and not self._state.norms_FR[embed, run].isfinite()
        ):
            return "the gradient of model.embed_tokens.weight"
        return super().first_nonfinite_tensor(run)
