"""What `make_optimizer` of a plug-in may return."""

import difflib
import inspect
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bitnetctl.plugins.blame import blamed
from bitnetctl.plugins.values import as_float, kind_of
from bitnetctl.units import listed

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

FACTORS = ("lr_factor", "weight_decay_factor")
# as similar as a factor with one or two wrong letters; weight_decay itself is less
_SIMILAR = 0.85


def checked_optimizers(
    made: object, parameters: "Mapping[str, Tensor]", plugin: str, hook: Callable[..., object]
) -> "list[Optimizer]":
    """Return the optimizers that a hook made; raises PluginError unless each parameter is in one group of one of them.

    One whose `step` requires an argument is refused, too: gradients are computed once a step.
    """
    from torch.optim import Optimizer

    optimizers: list[Optimizer] = []
    for each in made if isinstance(made, Sequence) else [made]:
        if not isinstance(each, Optimizer):
            raise blamed(plugin, f"make_optimizer returned {kind_of(each)}, not a torch.optim.Optimizer", hook)
        optimizers.append(each)
        if _requires_argument(each):
            problem = f"{type(each).__name__}.step requires a closure; an optimizer gets the gradients, once a step"
            raise blamed(plugin, problem, hook)
    groups = [group for each in optimizers for group in each.param_groups]
    broken = _coverage_problem(groups, parameters) or _factor_problem(groups)
    if broken is not None:
        raise blamed(plugin, f"make_optimizer: {broken}", hook)
    return optimizers


def factor_of(group: Mapping[str, Any], name: str) -> float:
    """Return a factor that a group states, 1.0 by default; raises ValueError for what is none."""
    value = as_float(group.get(name, 1.0))
    if value is None or not math.isfinite(value) or value < 0:
        raise ValueError(f"{name} of a group is {group[name]!r}; it must be a number that is finite and not negative")
    return value


def _requires_argument(optimizer: "Optimizer") -> bool:
    try:
        signature = inspect.signature(optimizer.step)
    except (TypeError, ValueError):
        return False
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return any(each.default is each.empty and each.kind not in kinds for each in signature.parameters.values())


def _coverage_problem(groups: Sequence[Mapping[str, Any]], parameters: "Mapping[str, Tensor]") -> str | None:
    """Return what keeps each parameter from being in exactly one group."""
    names = {id(parameter): name for name, parameter in parameters.items()}
    held = [each for group in groups for each in group["params"]]
    for each in held:
        if id(each) not in names:
            return f"a group holds a tensor of shape {tuple(each.shape)} that is none of the parameters"
    counts = Counter(names[id(each)] for each in held)
    doubled = [name for name, count in counts.items() if count > 1]
    if doubled:
        return f"{_some(doubled)} in more than one group"
    missing = [name for name in parameters if name not in counts]
    return f"{_some(missing)} in no group (lr_factor 0 freezes a group)" if missing else None


def _factor_problem(groups: Sequence[Mapping[str, Any]]) -> str | None:
    try:
        for group in groups:
            for name in FACTORS:
                factor_of(group, name)
            for key in group.keys() - set(FACTORS):
                close = difflib.get_close_matches(str(key).lower(), FACTORS, 1, cutoff=_SIMILAR)
                if close:
                    return f"{key} of a group is never read; did you mean {close[0]}?"
    except ValueError as error:
        return str(error)
    return None


def _some(names: Sequence[str]) -> str:
    more = f"{len(names) - 3} more"
    return f"{listed([*names[:3], more] if len(names) > 3 else names)} {'is' if len(names) == 1 else 'are'}"
