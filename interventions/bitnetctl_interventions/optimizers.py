"""torch optimizers that built-in interventions make; in a module of their own, which only a training loads.

Learning rates may be tensors on the GPU, which a captured step reads at every replay.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

_TABLES = ("model.embed_tokens.weight", "lm_head.weight")


def matrices_and_rest(parameters: Mapping[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Return the matrices of the layers, and embeddings, head and norms."""
    is_matrix = {name: parameter.dim() == 2 and name not in _TABLES for name, parameter in parameters.items()}
    matrices = [parameter for name, parameter in parameters.items() if is_matrix[name]]
    return matrices, [parameter for name, parameter in parameters.items() if not is_matrix[name]]


class BatchedMuon(torch.optim.Muon):
    """torch's Muon with one Newton-Schulz iteration for all matrices of a shape, which takes a quarter of the time."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update the matrices; momentum, orthogonalization, decay and adjusted rate are those of `torch.optim.Muon`."""
        for group in self.param_groups:
            for shape in dict.fromkeys(matrix.shape for matrix in group["params"]):
                matrices = [matrix for matrix in group["params"] if matrix.shape == shape]
                updates = self._updates(matrices, group["momentum"], nesterov=group["nesterov"])
                orthogonal_KOI = _orthogonalized(
                    torch.stack(updates), group["ns_coefficients"], group["ns_steps"], group["eps"]
                )
                rows, columns = shape
                if group["adjust_lr_fn"] == "match_rms_adamw":
                    adjusted = 0.2 * max(rows, columns) ** 0.5
                else:
                    adjusted = max(1.0, rows / columns) ** 0.5
                torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_sub_(matrices, (orthogonal_KOI.float() * (group["lr"] * adjusted)).unbind())

    def _updates(self, matrices: list[Tensor], momentum: float, *, nesterov: bool) -> list[Tensor]:
        """Update the momentum of matrices and return what is to be orthogonalized."""
        gradients = _gradients(matrices)
        buffers = _held(self, matrices, "momentum_buffer")
        torch._foreach_lerp_(buffers, gradients, 1 - momentum)
        return list(torch._foreach_lerp(gradients, buffers, momentum)) if nesterov else buffers


def _orthogonalized(
    matrices_KOI: Tensor, coefficients: tuple[float, float, float], iterations: int, eps: float
) -> Tensor:
    """Return each matrix with singular values near 1, by quintic Newton-Schulz iterations in bf16 as torch has them."""
    a, b, c = coefficients
    is_tall = matrices_KOI.shape[1] > matrices_KOI.shape[2]
    x_KOI = matrices_KOI.bfloat16()
    x_KOI = x_KOI.mT if is_tall else x_KOI
    x_KOI = x_KOI / torch.linalg.vector_norm(x_KOI, dim=(1, 2), keepdim=True).clamp(min=eps)
    for _ in range(iterations):
        gram_KOO = x_KOI @ x_KOI.mT
        x_KOI = torch.baddbmm(x_KOI, torch.baddbmm(gram_KOO, gram_KOO, gram_KOO, beta=b, alpha=c), x_KOI, beta=a)
    return x_KOI.mT if is_tall else x_KOI


class Lion(Optimizer):
    """Lion (Chen et al. 2023, arXiv 2302.06675, program 1): steps of the sign of an interpolated momentum."""

    def __init__(self, groups: Iterable[dict[str, Any]], beta1: float, beta2: float) -> None:
        super().__init__(groups, {"lr": 0.0, "weight_decay": 0.0, "betas": (beta1, beta2), "capturable": True})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update the parameters from their gradients."""
        for group in self.param_groups:
            parameters, (beta1, beta2) = group["params"], group["betas"]
            gradients = _gradients(parameters)
            momenta = _held(self, parameters, "exp_avg")
            updates = torch._foreach_lerp(momenta, gradients, 1 - beta1)
            torch._foreach_sign_(updates)
            torch._foreach_mul_(updates, group["lr"])
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_sub_(parameters, updates)
            torch._foreach_lerp_(momenta, gradients, 1 - beta2)


class PausingAdam(torch.optim.Adam):
    """torch's fused Adam or AdamW that leaves out the steps at which it `is_paused`, and keeps a sum of gradients."""

    def __init__(self, parameters: Iterable[Tensor], **options: Any) -> None:
        super().__init__(parameters, fused=True, **options)
        self.is_paused = False

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update the parameters, unless it is paused."""
        if not self.is_paused:
            super().step()

    def add_gradients(self) -> None:
        """Add the gradients to their sum, which is part of the state."""
        parameters = self._parameters()
        torch._foreach_add_(self._sums(parameters), _gradients(parameters))
        self._shared["gradients"] = self._shared.get("gradients", 0) + 1

    def take_means(self) -> None:
        """Replace the gradients by the mean of those that were added, and begin a new sum."""
        parameters = self._parameters()
        sums = self._sums(parameters)
        torch._foreach_copy_(_gradients(parameters), torch._foreach_div(sums, self._shared["gradients"]))
        torch._foreach_zero_(sums)
        self._shared["gradients"] = 0

    @property
    def _shared(self) -> dict[Any, Any]:
        """The state, of which entries of the whole optimizer are held by text; torch's own are by parameter."""
        return self.state

    def _parameters(self) -> list[Tensor]:
        return [each for group in self.param_groups for each in group["params"]]

    def _sums(self, parameters: list[Tensor]) -> list[Tensor]:
        """Return the sum for each parameter: views of one tensor, beside the state that torch makes for each."""
        sizes = [each.numel() for each in parameters]
        if "gradient_sum" not in self._shared:
            self._shared["gradient_sum"] = parameters[0].new_zeros(sum(sizes))
        pieces = self._shared["gradient_sum"].split(sizes)
        return [piece.view_as(each) for piece, each in zip(pieces, parameters, strict=True)]


def _held(optimizer: Optimizer, parameters: Iterable[Tensor], key: str) -> list[Tensor]:
    """Return a tensor of the state of each parameter, zero at first."""
    states = [(optimizer.state[parameter], parameter) for parameter in parameters]
    for state, parameter in states:
        if key not in state:
            state[key] = torch.zeros_like(parameter, requires_grad=False)
    return [state[key] for state, _ in states]


def _gradients(parameters: Iterable[Tensor]) -> list[Tensor]:
    return [parameter.grad for parameter in parameters if parameter.grad is not None]
