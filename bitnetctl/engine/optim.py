"""The optimizer of a run: stock torch Adam or AdamW, fused, over flat parameters."""

from collections.abc import Mapping

import torch
from torch import Tensor

from bitnetctl.config import OptimizerConfig, ParameterGroup

_CLASSES = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


class RunOptimizer:
    """The optimizer of one run: a decayed and an exempt parameter group over the run's flat parameters.

    `adam` couples the decay (L2 added to the gradient, Kingma & Ba 2015 with torch's `weight_decay`);
    `adamw` decouples it (Loshchilov & Hutter 2019).
    """

    def __init__(
        self,
        config: OptimizerConfig,
        flat_parameters: Mapping[str, Tensor],
        groups: Mapping[str, ParameterGroup | None],
    ) -> None:
        decayed = {name: flat for name, flat in flat_parameters.items() if groups[name] not in config.exempt}
        exempt = {name: flat for name, flat in flat_parameters.items() if groups[name] in config.exempt}
        # torch numbers the parameters in this order
        self._flat_parameters = decayed | exempt
        self._optimizer = _CLASSES[config.name](
            [{"params": list(decayed.values())}, {"params": list(exempt.values())}],
            lr=0.0,
            betas=config.betas,
            eps=config.eps,
            weight_decay=0.0,
            fused=True,
            capturable=all(flat.is_cuda for flat in flat_parameters.values()),
        )
        # uncaptured steps are intended: the warm-up before a capture, and all of the eager engine
        self._optimizer._warned_capturable_if_run_uncaptured = True

    def step(
        self,
        learning_rate: float | Tensor,
        weight_decay: float,
        *,
        divisor: Tensor | None = None,
        skip: Tensor | None = None,
    ) -> None:
        """Update the flat parameters from their `.grad`; the exempt group is never decayed.

        The fused kernel clips the gradients by dividing them by `divisor` (torch's `grad_scale`); where `skip`
        (`found_inf`) is 1.0 it leaves weights and moments unchanged, without a synchronization. On a GPU the learning
        rate may be a tensor, which a captured step reads at every replay.
        """
        decayed, exempt = self._optimizer.param_groups
        decayed["lr"] = exempt["lr"] = learning_rate
        decayed["weight_decay"] = weight_decay
        self._optimizer.grad_scale = divisor
        self._optimizer.found_inf = skip
        self._optimizer.step()

    def reset_moments(self) -> None:
        """Zero both moments and the step count, as if the next update were the first."""
        for entry in self._optimizer.state.values():
            for tensor in entry.values():
                tensor.zero_()

    def state(self) -> dict[str, Tensor]:
        """Return the optimizer's tensors as `flat parameter/key`, such as `head/exp_avg`."""
        names, state = list(self._flat_parameters), self._optimizer.state_dict()["state"]
        return {f"{names[i]}/{key}": value for i, entry in state.items() for key, value in entry.items()}

    def state_like(self) -> dict[str, Tensor]:
        """Return tensors with the names, shapes and dtypes of what `state` returns after a step."""
        count = torch.zeros((), dtype=torch.float32)
        return {
            f"{name}/{key}": count if key == "step" else flat
            for name, flat in self._flat_parameters.items()
            for key in ("step", "exp_avg", "exp_avg_sq")
        }

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned."""
        index = {name: i for i, name in enumerate(self._flat_parameters)}
        state: dict[int, dict[str, Tensor]] = {}
        for path, value in tensors.items():
            name, _, key = path.rpartition("/")
            state.setdefault(index[name], {})[key] = value
        self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": state})


class RunMoments:
    """The moments and the number of updates of one run: views of those of its pack."""

    def __init__(self, moments: Mapping[str, tuple[Tensor, Tensor]], updates: Tensor) -> None:
        self._moments, self._updates = moments, updates

    def reset_moments(self) -> None:
        """Zero both moments and the step count, as if the next update were the first."""
        for pair in self._moments.values():
            for moment in pair:
                moment.zero_()
        self._updates.zero_()

    def state(self) -> dict[str, Tensor]:
        """Return the tensors as `flat parameter/key`, such as `head/exp_avg`."""
        return {
            f"{name}/{key}": value
            for name, pair in self._moments.items()
            for key, value in zip(("step", "exp_avg", "exp_avg_sq"), (self._updates, *pair), strict=True)
        }

    def state_like(self) -> dict[str, Tensor]:
        """Return tensors with the names, shapes and dtypes of what `state` returns."""
        return self.state()

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned."""
        for path, value in self.state().items():
            value.copy_(tensors[path])


def clip_divisor(norm: Tensor, max_norm: float | Tensor) -> Tensor:
    """Return the divisor that clips gradients to a global norm of `max_norm`: max(1, (norm + 1e-6) / max_norm)."""
    return ((norm + 1e-6) / max_norm).clamp_(min=1.0).to(torch.float32)
