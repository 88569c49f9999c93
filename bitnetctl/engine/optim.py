"""The optimizer of a run: torch's fused Adam or AdamW over flat parameters."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from bitnetctl.config import OptimizerConfig, ParameterGroup

_KERNELS: dict[str, Callable[..., None]] = {"adam": torch._fused_adam_, "adamw": torch._fused_adamw_}
# what `torch.optim` keeps for every parameter, by its names
_STATE = ("step", "exp_avg", "exp_avg_sq")


class RunOptimizer:
    """The optimizer of one run, over its flat parameters: those that the config treats alike are updated together.

    `adam` couples the decay (L2 added to the gradient, Kingma & Ba 2015 with torch's `weight_decay`);
    `adamw` decouples it (Loshchilov & Hutter 2019). Both are torch's fused kernels and keep the state that
    `torch.optim` keeps; its own step takes nearly as long around the kernel as the kernel takes for a small model.
    """

    def __init__(
        self,
        config: OptimizerConfig,
        flat_parameters: Mapping[str, Tensor],
        groups: Mapping[str, ParameterGroup | None],
    ) -> None:
        by_settings: dict[tuple[bool, float], list[str]] = {}
        # the decayed ones first
        for name in sorted(flat_parameters, key=lambda name: groups[name] in config.exempt):
            settings = (groups[name] not in config.exempt, learning_rate_factor(config, groups[name]))
            by_settings.setdefault(settings, []).append(name)
        self._groups = [(tuple(names), *settings) for settings, names in by_settings.items()]
        self._flat_parameters = {name: flat_parameters[name] for names, *_ in self._groups for name in names}
        self._kernel, self._betas, self._eps = _KERNELS[config.name], config.betas, config.eps
        # by flat parameter; empty before the first update
        self._state: dict[str, dict[str, Tensor]] = {}

    @torch.no_grad()
    def step(
        self,
        learning_rate: float | Tensor,
        weight_decay: float,
        *,
        divisor: Tensor | None = None,
        skip: Tensor | None = None,
    ) -> None:
        """Update the flat parameters from their `.grad`; exempt ones are never decayed.

        The fused kernel clips the gradients by dividing them by `divisor` (torch's `grad_scale`); where `skip`
        (`found_inf`) is 1.0 it leaves weights and moments unchanged, without a synchronization. On a GPU the learning
        rate may be a tensor, which a captured step reads at every replay.
        """
        if not self._state:
            self._state = {name: _initial_state(flat) for name, flat in self._flat_parameters.items()}
        for names, is_decayed, factor in self._groups:
            states = [self._state[name] for name in names]
            steps = [state["step"] for state in states]
            torch._foreach_add_(steps, 1)
            self._kernel(
                [self._flat_parameters[name] for name in names],
                [self._flat_parameters[name].grad for name in names],
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [],
                steps,
                amsgrad=False,
                lr=learning_rate if factor == 1 else learning_rate * factor,
                beta1=self._betas[0],
                beta2=self._betas[1],
                weight_decay=weight_decay if is_decayed else 0.0,
                eps=self._eps,
                maximize=False,
                grad_scale=divisor,
                found_inf=skip,
            )
            if skip is not None:
                torch._foreach_sub_(steps, [skip] * len(steps))

    def reset_moments(self) -> None:
        """Zero both moments and the step count, as if the next update were the first."""
        for entry in self._state.values():
            for tensor in entry.values():
                tensor.zero_()

    def state(self) -> dict[str, Tensor]:
        """Return the optimizer's tensors as `flat parameter/key`, such as `head/exp_avg`."""
        return {f"{name}/{key}": value for name, entry in self._state.items() for key, value in entry.items()}

    def state_like(self) -> dict[str, Tensor]:
        """Return tensors with the names, shapes and dtypes of what `state` returns after a step."""
        count = torch.zeros((), dtype=torch.float32)
        return {
            f"{name}/{key}": count if key == "step" else flat
            for name, flat in self._flat_parameters.items()
            for key in _STATE
        }

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned."""
        self._state = {
            name: {
                key: tensors[f"{name}/{key}"].to(flat.device, torch.float32 if key == "step" else flat.dtype)
                for key in _STATE
            }
            for name, flat in self._flat_parameters.items()
        }


def learning_rate_factor(config: OptimizerConfig, group: ParameterGroup | None) -> float:
    """Return what the learning rate of a parameter group is multiplied by; 1 for matrices, which have no group."""
    return 1.0 if group is None else float(getattr(config.learning_rate_factors, group))


def require_alike(loaded: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless the tensors have the names, shapes and dtypes of the expected ones."""
    for name in sorted(loaded.keys() ^ expected.keys()):
        raise ValueError(f"{name} is {'missing' if name in expected else 'unknown'}")
    for name, like in expected.items():
        actual, wanted = (f"{tensor.dtype} {list(tensor.shape)}" for tensor in (loaded[name], like))
        if actual != wanted:
            raise ValueError(f"{name} is {actual}, not {wanted}")


def _initial_state(flat: Tensor) -> dict[str, Tensor]:
    """Return the state before the first update, as `torch.optim` makes it for its fused kernels."""
    return {
        "step": torch.zeros((), dtype=torch.float32, device=flat.device),
        "exp_avg": torch.zeros_like(flat, requires_grad=False),
        "exp_avg_sq": torch.zeros_like(flat, requires_grad=False),
    }


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
