"""Optimizers of plug-ins that tests make up."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from bitnetctl.config import RunConfig
from bitnetctl.intervention import Intervention
from bitnetctl.plugins.composition import Composition

Make = Callable[[Mapping[str, Tensor], RunConfig], Optimizer | Sequence[Optimizer]]


class Own(Intervention):
    """The optimizer that a function makes."""

    def __init__(self, make: Make) -> None:
        super().__init__(self.Settings())
        self.make = make
        self.made = 0

    def make_optimizer(self, parameters: Mapping[str, Tensor], config: RunConfig) -> Optimizer | Sequence[Optimizer]:
        self.made += 1
        return self.make(parameters, config)


class Counting(Optimizer):
    """Signed steps of a size that depends on numbers of Python, in the state of a parameter and in its group."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 1.0, "shrinking": 1.0, "is_late": False})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            group["shrinking"] *= 0.7
            for parameter in group["params"]:
                state = self.state[parameter]
                state["count"] = state.get("count", 0) + 1
                state["nothing"] = None
                group["is_late"] = state["count"] > 2
                size = group["lr"] * group["shrinking"] / state["count"] * (0.1 if group["is_late"] else 1.0)
                parameter.sub_(parameter.grad.sign(), alpha=size)


class Lion(Optimizer):
    """A captured optimizer must read the rate as a tensor; this one does."""

    def __init__(self, params: Any, *, capturable: bool = True) -> None:
        super().__init__(params, {"lr": 1.0, "weight_decay": 0.0, "capturable": capturable})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    state["average"] = torch.zeros_like(parameter, requires_grad=False)
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.sub_((state["average"] * 0.9 + parameter.grad * 0.1).sign() * group["lr"])
                state["average"].mul_(0.99).add_(parameter.grad, alpha=0.01)


def adamw(parameters: Mapping[str, Tensor], config: RunConfig) -> Optimizer:
    optimizer = config.optimizer
    return torch.optim.AdamW(parameters.values(), betas=optimizer.betas, eps=optimizer.eps)


def own(make: Make) -> Composition:
    return Composition([Own(make)], ["own"])
