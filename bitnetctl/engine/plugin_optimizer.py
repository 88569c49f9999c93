"""The optimizer of a run that a plug-in makes: any `torch.optim.Optimizer` over the run's named parameters."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from bitnetctl.config import ParameterGroup, RunConfig
from bitnetctl.engine.optim import learning_rate_factor
from bitnetctl.plugins.composition import Composition
from bitnetctl.plugins.optimizers import factor_of
from bitnetctl.units import listed

# what the engine sets in a group, or what never changes
_NOT_SAVED = {"params", "param_names", "lr", "weight_decay", "capturable"}
# torch itself refuses the others
_CAPTURABLE_DEVICES = ("cuda",)
_DTYPES: dict[type, torch.dtype] = {bool: torch.bool, int: torch.int64, float: torch.float64}
# in every checkpoint, since an optimizer may have no state
_COUNT = "groups/count"
_TYPES = {kind.__name__: kind for kind in _DTYPES}


@dataclass(frozen=True)
class _GroupSettings:
    """What the config sets for the parameters of a group."""

    learning_rate_factor: float
    is_decayed: bool


class _Snapshot:
    """The values of tensors, to be put back without a synchronization; few kernels, however many tensors there are."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._by_dtype: dict[torch.dtype, list[Tensor]] = {}
        for tensor in tensors:
            self._by_dtype.setdefault(tensor.dtype, []).append(tensor)
        self._flat = {dtype: _flattened(each) for dtype, each in self._by_dtype.items()}

    def put_back(self, condition: Tensor) -> None:
        """Put the values back where `condition`, a boolean without dimensions, is true."""
        for dtype, tensors in self._by_dtype.items():
            flat = _flattened(tensors)
            # by selection, as NaN times 0 is NaN
            torch.where(condition, self._flat[dtype], flat, out=flat)
            parts = flat.split([tensor.numel() for tensor in tensors])
            torch._foreach_copy_(tensors, [part.view(one.shape) for part, one in zip(parts, tensors, strict=True)])


def _flattened(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


class PluginOptimizer:
    """The optimizers that a plug-in makes for one run; the interface is that of `RunOptimizer`.

    `parameters` are the run's leaf tensors with their `.grad`, and `groups` the parameter group of each by name.
    Nothing is made before `make` is called, or anything that needs it: weights must be in place by then.
    """

    def __init__(
        self,
        config: RunConfig,
        composition: Composition,
        parameters: Mapping[str, Tensor],
        groups: Mapping[str, ParameterGroup | None],
    ) -> None:
        self._config = config
        self._composition = composition
        self._parameters = dict(parameters)
        self._gradients = [_gradient_of(parameter) for parameter in self._parameters.values()]
        self._memory = [parameter.data_ptr() for parameter in self._parameters.values()]
        self._groups = dict(groups)
        self._optimizers: list[Optimizer] = []
        self._group_settings: list[_GroupSettings] = []
        # as they were made: what a reset goes back to, and what need not be saved
        self._initial_states: list[dict[Any, Any]] = []
        self._initial_groups: list[dict[str, Any]] = []
        self._rates: list[Tensor] = []
        self._has_stepped = False
        self.is_capturable = False

    def make(self) -> None:
        """Make the optimizers, unless they are; raises PluginError."""
        if self._optimizers:
            return
        optimizers = self._composition.make_optimizer(self._parameters, self._config)
        device = next(iter(self._parameters.values())).device
        with self._composition.in_optimizer("the groups of"):
            self._group_settings = [settings for each in optimizers for settings in self._split_groups(each)]
            groups = [group for each in optimizers for group in each.param_groups]
            for group in groups:
                if device.type not in _CAPTURABLE_DEVICES and group.get("capturable"):
                    group["capturable"] = False
            resets = self._config.optimizer.reset_moments_every_steps is not None
            self._initial_states = [_copied(dict(each.state)) if resets else {} for each in optimizers]
            self._initial_groups = [
                {key: _copied(value) for key, value in group.items() if key not in _NOT_SAVED} for group in groups
            ]
        # a reset makes the state anew, and a graph holds where it was
        self.is_capturable = all(group.get("capturable") for group in groups) and not resets
        if self.is_capturable:
            # captured kernels read the rates from this memory
            self._rates = [torch.zeros((), device=device) for _ in groups]
            for each in optimizers:
                # torch would warn of the steps before the capture
                each._warned_capturable_if_run_uncaptured = True
        self._optimizers = optimizers

    def not_capturable(self) -> str | None:
        """Return what keeps the step out of a CUDA graph, None if nothing does."""
        self.make()
        if self.is_capturable:
            return None
        plugin = self._composition.optimizer_plugin
        names = [
            type(each).__name__
            for each in self._optimizers
            if not all(group.get("capturable") for group in each.param_groups)
        ]
        if not names:
            return f"{plugin}: a graph holds the state of its optimizer, which reset_moments_every_steps makes anew"
        return f"{plugin}: {listed(list(dict.fromkeys(names)))} is not capturable"

    def _split_groups(self, optimizer: Optimizer) -> list[_GroupSettings]:
        """Split groups whose parameters the config treats differently; return the settings of each group."""
        names = {id(parameter): name for name, parameter in self._parameters.items()}
        split, all_settings = [], []
        for group in optimizer.param_groups:
            of_group = [self._settings_of(names[id(parameter)]) for parameter in group["params"]]
            for settings in dict.fromkeys(of_group):
                chosen = [index for index, each in enumerate(of_group) if each == settings]
                part = {key: copy.copy(value) for key, value in group.items() if key not in ("params", "param_names")}
                for key in ("params", "param_names"):
                    if key in group:
                        part[key] = [group[key][index] for index in chosen]
                split.append(group if len(chosen) == len(of_group) else part)
                all_settings.append(settings)
        # an optimizer may hold the list itself
        optimizer.param_groups[:] = split
        return all_settings

    def _settings_of(self, name: str) -> _GroupSettings:
        group, optimizer = self._groups[name], self._config.optimizer
        return _GroupSettings(learning_rate_factor(optimizer, group), group is None or group not in optimizer.exempt)

    @torch.no_grad()
    def step(
        self,
        learning_rate: float | Tensor,
        weight_decay: float,
        *,
        divisor: Tensor | None = None,
        skip: Tensor | None = None,
    ) -> None:
        """Update the parameters from their `.grad`; raises PluginError for an error in the optimizer's step.

        Gradients are divided by `divisor` in place. Where `skip` is 1.0, weights and state stay as they were: without a
        synchronization if the optimizer is capturable, but for the first step, which makes the state.
        """
        self.make()
        makes_state = not self._has_stepped and not any(each.state for each in self._optimizers)
        if skip is not None and (makes_state or not self.is_capturable):
            if skip.item():
                return
            skip = None
        before = {} if skip is None else dict(self._values())
        tensors = [*self._parameters.values(), *(value for value in before.values() if isinstance(value, Tensor))]
        snapshot = None if skip is None else _Snapshot(tensors)
        for parameter, gradient in zip(self._parameters.values(), self._gradients, strict=True):
            # the optimizer may have dropped or replaced it
            if parameter.grad is not gradient:
                parameter.grad = gradient
        if divisor is not None:
            if skip is not None:
                # that of a diverged run is not finite, and its gradients are to show which was not
                divisor = torch.where(skip > 0, 1.0, divisor)
            torch._foreach_div_(self._gradients, divisor)
        with self._composition.in_optimizer("the step of"):
            self._set_groups(learning_rate, weight_decay)
            for optimizer in self._optimizers:
                optimizer.step()
        self._has_stepped = True
        self._require_in_place()
        if skip is not None and snapshot is not None:
            self._require_kept(before)
            snapshot.put_back(skip > 0)

    def _set_groups(self, learning_rate: float | Tensor, weight_decay: float) -> None:
        """Set learning rate and weight decay of every group."""
        for index, (group, settings) in enumerate(zip(self._all_groups(), self._group_settings, strict=True)):
            factor = settings.learning_rate_factor * factor_of(group, "lr_factor")
            rate = learning_rate if factor == 1 else learning_rate * factor
            if not self.is_capturable:
                group["lr"] = float(rate)
            else:
                group["lr"] = self._rates[index]
                group["lr"].copy_(rate) if isinstance(rate, Tensor) else group["lr"].fill_(rate)
            decay = weight_decay * factor_of(group, "weight_decay_factor")
            group["weight_decay"] = decay if settings.is_decayed else 0.0

    def _require_in_place(self) -> None:
        """Raise PluginError where a parameter has other memory, which the model would not see, or groups were added."""
        made, groups = len(self._group_settings), len(self._all_groups())
        if made != groups:
            raise self._composition.blamed_optimizer(f"its optimizer made {groups} groups of {made} in its step")
        for (name, parameter), pointer in zip(self._parameters.items(), self._memory, strict=True):
            if parameter.data_ptr() != pointer:
                raise self._composition.blamed_optimizer(
                    f"its optimizer replaces {name} instead of changing it in place"
                )

    def _require_kept(self, before: Mapping[str, object]) -> None:
        """Raise PluginError where a capturable step made a tensor anew or changed a number: replays would not."""
        for path, value in self._values():
            is_kept = value is before.get(path) if isinstance(value, Tensor) else _is_same(value, before.get(path))
            if not is_kept:
                problem = f"its optimizer is capturable, but makes {path} anew; it must be a tensor changed in place"
                raise self._composition.blamed_optimizer(problem)

    def reset_moments(self) -> None:
        """Put the state back to what it was when the optimizers were made, as if the next update were the first."""
        for optimizer, initial in zip(self._optimizers, self._initial_states, strict=True):
            optimizer.state.clear()
            optimizer.state.update(_copied(initial))
        for group, made in zip(self._all_groups(), self._initial_groups, strict=True):
            for key in [key for key in group if key not in _NOT_SAVED]:
                del group[key]
            group.update({key: _copied(value) for key, value in made.items()})

    def state(self) -> dict[str, Tensor]:
        """Return what of the state can be saved, as `parameter/key`; that of changed groups as `groups.INDEX/key`.

        A number of Python is a tensor without dimensions whose name ends with its type, such as `:int`.
        """
        encoded = ((path, _encoded(path, value)) for path, value in self._values())
        return {f"{path}{each[0]}": each[1] for path, each in encoded if each is not None}

    def checkpoint(self) -> dict[str, Tensor]:
        """Return copies of what `state` returns, and the number of groups; raises PluginError if that is not all."""
        for path, value in self._values():
            if _encoded(path, value) is None:
                kind = f"{type(value).__module__}.{type(value).__name__}".removeprefix("builtins.")
                problem = f"checkpoints cannot hold {path} of its optimizer, a {kind}: only tensors and plain numbers"
                raise self._composition.blamed_optimizer(problem)
        for optimizer in self._optimizers:
            if type(optimizer).state_dict is not Optimizer.state_dict:
                name = type(optimizer).__name__
                problem = f"checkpoints cannot hold what {name} adds to its state_dict, only state and groups"
                raise self._composition.blamed_optimizer(problem)
        copies = {path: tensor.detach().to("cpu", copy=True).contiguous() for path, tensor in self.state().items()}
        return {**copies, _COUNT: torch.tensor(len(self._all_groups()))}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what `checkpoint` returned; raises ValueError where it does not fit."""
        self.make()
        groups = self._all_groups()
        if _COUNT not in tensors or tensors[_COUNT].item() != len(groups):
            raise ValueError(f"{_COUNT} is not {len(groups)}")
        holders: dict[str, tuple[dict[Any, Any], dict[str, Any], Tensor]] = {}
        names = {id(parameter): name for name, parameter in self._parameters.items()}
        for number, optimizer in enumerate(self._optimizers):
            optimizer.state.clear()
            first = optimizer.param_groups[0]
            holders[f"optimizers.{number}"] = (optimizer.state, first, first["params"][0])
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    holders[names[id(parameter)]] = (optimizer.state[parameter], group, parameter)
        holders |= {f"groups.{index}": (group, group, group["params"][0]) for index, group in enumerate(groups)}
        for path, tensor in tensors.items():
            if path != _COUNT:
                owner, _, rest = path.partition("/")
                if owner not in holders or not rest:
                    raise ValueError(f"{path} is unknown")
                entry, group, parameter = holders[owner]
                if rest.rpartition(":")[2] in _TYPES and tensor.dim():
                    raise ValueError(f"{path} is no number")
                key, value = _decoded(rest, tensor)
                entry[key] = _placed(key, value, group, parameter) if isinstance(value, Tensor) else value

    def _all_groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self._optimizers for group in optimizer.param_groups]

    def _values(self) -> Iterator[tuple[str, object]]:
        """Yield `owner/key` and value of the state, and of what changed in the groups."""
        names = {id(parameter): name for name, parameter in self._parameters.items()}
        for number, optimizer in enumerate(self._optimizers):
            for owner, entry in optimizer.state.items():
                if id(owner) in names and isinstance(entry, dict):
                    yield from ((f"{names[id(owner)]}/{key}", value) for key, value in entry.items())
                else:
                    yield f"optimizers.{number}/{owner}", entry
        for index, (group, made) in enumerate(zip(self._all_groups(), self._initial_groups, strict=True)):
            for key, value in group.items():
                if key not in _NOT_SAVED and not (key in made and _is_same(value, made[key])):
                    yield f"groups.{index}/{key}", value


def _gradient_of(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def _copied(value: Any) -> Any:
    """Return a copy that later changes in place do not reach; keys, among them parameters, are not copied."""
    if isinstance(value, dict):
        return {key: _copied(each) for key, each in value.items()}
    return value.detach().clone() if isinstance(value, Tensor) else copy.deepcopy(value)


def _is_same(value: object, other: object) -> bool:
    """Whether two values are equal; tensors are not compared, which a GPU would have to be waited for."""
    return type(value) is type(other) and not isinstance(value, Tensor) and bool(value == other)


def _encoded(path: str, value: object) -> tuple[str, Tensor] | None:
    """Return the suffix of the name and the tensor that holds a value; None for what cannot be saved."""
    if value is None:
        return ":None", torch.zeros((), dtype=torch.bool)
    if type(value) in (Tensor, torch.nn.Parameter):
        assert isinstance(value, Tensor)
        is_plain = value.layout == torch.strided and path.rpartition(":")[2] not in (*_TYPES, "None")
        return ("", value.detach()) if is_plain else None
    if type(value) in _DTYPES:
        try:
            return f":{type(value).__name__}", torch.tensor(value, dtype=_DTYPES[type(value)])
        except (OverflowError, RuntimeError, ValueError):
            return None
    return None


def _decoded(name: str, tensor: Tensor) -> tuple[str, Tensor | bool | int | float | None]:
    """Return key and value of what `_encoded` made."""
    key, _, kind = name.rpartition(":")
    if key and kind == "None":
        return key, None
    if key and kind in _TYPES:
        return key, _TYPES[kind](tensor.item())
    return name, tensor


def _placed(key: str, value: Tensor, group: Mapping[str, Any], parameter: Tensor) -> Tensor:
    """Return a tensor of the state where its optimizer expects it: as in `torch.optim`, step counts are on the CPU."""
    is_host_count = key == "step" and not (group.get("capturable") or group.get("fused"))
    return value.to("cpu" if is_host_count else parameter.device, copy=True)
