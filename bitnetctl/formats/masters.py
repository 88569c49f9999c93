"""Weights before quantization, made of codes and scales: absmean quantization gives the same codes and scale back.

A code c with scale s becomes c · s / f, where f is the fraction of codes beside 0 among those that share the scale: the
mean |w| is then s, and a weight beside 0 is at least s away from it, so its code stays. Masters that were trained are
lost in a packed file; these start in the middle of their codes.

Shapes: O×I a matrix, G groups of inputs with a scale each, S inputs of a group.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from bitnetctl.config import ModelConfig
from bitnetctl.errors import DataError
from bitnetctl.kernels import SCALE_FLOOR
from bitnetctl.model.parameters import ParameterSpec, parameter_specs

Quantized: TypeAlias = Mapping[str, tuple[Tensor, Tensor]]
ScaleGroup: TypeAlias = Literal["projection", "fused"]

# of putting the mean back to the scale; the sum of |w| rounds it away by some 1e-7, which the second round mends, and
# the best of all is kept: the comparison in `packed_from_file` bounds what is left
_ROUNDS = 4
# sizes of groups that files hold, the largest first
_GROUPS = tuple(2**power for power in range(12, 2, -1))


def group_size(quantized: Quantized) -> int | None:
    """Return how many inputs share a scale, None where every matrix has one scale."""
    grouped = [(codes, scale) for codes, scale in quantized.values() if (scale != scale[0, 0]).any()]
    sizes = (codes_OI.shape[1] // scale_OG.shape[1] for codes_OI, scale_OG in grouped)
    return min(sizes, default=None)


def scale_group_of(quantized: Quantized, model: Mapping[str, Any]) -> ScaleGroup:
    """Return "fused" where q, k and v, and gate and up, have one scale in every layer, else "projection".

    `model` are the fields of ModelConfig, of which the tensors are.
    """
    if group_size(quantized) is not None:
        return "projection"
    fused = ModelConfig.model_validate({**model, "scale_group": "fused"})
    several = [names for names in _sharing(quantized, fused) if len(names) > 1]
    alike = (len({float(quantized[name][1][0, 0]) for name in names}) == 1 for names in several)
    return "fused" if several and all(alike) else "projection"


def make_masters(quantized: Quantized, model: ModelConfig) -> dict[str, Tensor]:
    """Return fp32 masters [O, I] of matrices by name; raises DataError for scales that absmean cannot give.

    Where `group_size` is not None, they are those of a quantizer with a scale for each group of so many inputs.
    """
    masters: dict[str, Tensor] = {}
    size = group_size(quantized)
    for names in _sharing(quantized, model):
        codes_OI = torch.cat([quantized[name][0] for name in names])
        scale_OG = torch.cat([quantized[name][1] for name in names])
        if size is None and (scale_OG != scale_OG[0, 0]).any():
            raise DataError(f"{names[0]}: has another scale than {names[-1]}, and they are to share one")
        if size is None:
            made_OI = _of_matrix(codes_OI, scale_OG[0, 0], names[0])
        else:
            groups = codes_OI.shape[1] // size
            made_OI = _of_groups(codes_OI, scale_OG.repeat_interleave(groups // scale_OG.shape[1], 1), names[0])
        heights = [quantized[name][0].shape[0] for name in names]
        masters |= zip(names, made_OI.split(heights), strict=True)
    return masters


def find_codes(values_OI: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return int8 codes and scale [O, G] of values that are their product, of as few groups as can be; None if not."""
    outputs, inputs = values_OI.shape
    codes_OI = values_OI.sign().to(torch.int8)
    magnitude_OI = values_OI.abs()
    for size in (inputs, *(size for size in _GROUPS if size < inputs and inputs % size == 0)):
        groups_OGS = magnitude_OI.unflatten(-1, (-1, size))
        scale_OG = groups_OGS.amax(-1)
        if ((groups_OGS == scale_OG.unsqueeze(-1)) | (groups_OGS == 0)).all():
            largest = scale_OG.amax()
            is_one = bool(((scale_OG == largest) | (scale_OG == 0)).all())
            return codes_OI, largest.expand(outputs, 1) if is_one else scale_OG
    return None


def _sharing(quantized: Quantized, model: ModelConfig) -> Iterator[list[str]]:
    """Yield the names of matrices that share a scale."""
    specs: Mapping[str, ParameterSpec] = parameter_specs(model, 1)
    for spec in specs.values():
        if not spec.is_matrix:
            continue
        for layer in range(spec.shape[0]):
            names = [name.format(layer=layer) for name, _ in spec.blocks]
            present = [name for name in names if name in quantized]
            yield from [present] if model.scale_group == "fused" and present else [[name] for name in present]


def _of_matrix(codes_OI: Tensor, scale: Tensor, name: str) -> Tensor:
    fraction = codes_OI.count_nonzero().double() / codes_OI.numel()
    if fraction == 0:
        return torch.zeros(codes_OI.shape)
    _require_scale(scale, name)
    magnitude = scale.double() / fraction
    best, error = torch.empty(0), torch.inf
    for _ in range(_ROUNDS):
        made_OI = codes_OI * magnitude.float()
        mean = made_OI.abs().mean()
        if abs(float(mean - scale)) < error:
            best, error = made_OI, abs(float(mean - scale))
        magnitude = magnitude * (scale.double() / mean.double())
    return best


def _of_groups(codes_OI: Tensor, scale_OG: Tensor, name: str) -> Tensor:
    codes_OGS = codes_OI.unflatten(-1, (scale_OG.shape[1], -1))
    fraction_OG = codes_OGS.count_nonzero(-1).double() / codes_OGS.shape[-1]
    is_used_OG = fraction_OG > 0
    if is_used_OG.any():
        _require_scale(scale_OG[is_used_OG].min(), name)
    magnitude_OG = torch.where(is_used_OG, scale_OG.double() / fraction_OG.clamp(min=1e-30), 0.0)
    made_OI: Tensor = (codes_OGS * magnitude_OG.float().unsqueeze(-1)).flatten(-2)
    return made_OI


def _require_scale(scale: Tensor, name: str) -> None:
    if not float(scale) >= SCALE_FLOOR:
        raise DataError(
            f"{name}: its scale {float(scale):.3g} is below {SCALE_FLOOR:g}, the least of absmean quantization"
        )
