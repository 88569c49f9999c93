"""Compositions of arms, and what a test reads from a pack that trains them."""

from collections.abc import Callable

from torch import Tensor

from bitnetctl.config import parse_arm
from bitnetctl.engine.pack import Pack
from bitnetctl.plugins import registry
from bitnetctl.plugins.composition import Composition

PackArms = Callable[..., Pack]


def compose(arm: str) -> Composition:
    """The interventions of an arm."""
    return registry.compose(parse_arm(arm))


def weights(pack: Pack, run: int = 0) -> dict[str, Tensor]:
    """Copies of the packed weights of a run."""
    return {key: packed[run].clone() for key, packed in pack.model.packed.items()}


def gradients(pack: Pack, run: int = 0) -> dict[str, Tensor]:
    """What the optimizer of a run was handed in the last step."""
    return {key: gradient[run].clone() for key, gradient in pack.model.gradients.items()}


def batch(pack: Pack, step: int) -> tuple[Tensor, Tensor]:
    """Inputs [R, B, T] and targets [R, N] of a step."""
    rows_RBT1 = pack._rows(step)
    return rows_RBT1[..., :-1], rows_RBT1[..., 1:].flatten(1)


def first_moments(pack: Pack) -> dict[str, Tensor]:
    """The first moments of run 0 by storage."""
    state = pack.replicas[0].optimizer.state()
    return pack.model._spec_views({flat: state[f"{flat}/exp_avg"].clone() for flat in pack.replicas[0].flat_parameters})


def counted_steps(pack: Pack) -> float:
    """What the optimizer of run 0 holds for the number of its steps."""
    (count,) = {value.item() for key, value in pack.replicas[0].optimizer.state().items() if key.endswith("/step")}
    return count
