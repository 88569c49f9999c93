"""What a file says must agree with what it holds: checked before any memory is taken for a model.

Shapes: O×I a matrix, G groups of inputs with a scale each.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from bitnetctl.config import ModelConfig, validated
from bitnetctl.errors import DataError
from bitnetctl.formats.model_content import ModelContent
from bitnetctl.model.parameters import EMBEDDINGS, ParameterSpec, parameter_specs

_LAYER = re.compile(r"model\.layers\.([0-9]{1,6})\.")


def require_consistent(file: ModelContent, path: Path) -> None:
    """Raise DataError or ConfigError for tensors that are missing, of another shape, or hold what they cannot."""
    model = validated(ModelConfig, {**file.model, "quantization": file.quant_lambda}, str(path))
    stored = {**file.weights, **{name: codes_OI for name, (codes_OI, _) in file.quantized.items()}}
    require_layers(stored, model, path)
    embeddings = file.weights.get(EMBEDDINGS)
    if embeddings is None or embeddings.dim() != 2:
        raise DataError(f"{path}: there is no table {EMBEDDINGS}")
    left = set(stored)
    for name, shape, is_matrix in parameter_shapes(parameter_specs(model, embeddings.shape[0])):
        found = [one for one in (file.weights.get(name), file.quantized.get(name, (None, None))[0]) if one is not None]
        if not found or (not is_matrix and name not in file.weights):
            raise DataError(f"{path}: the tensor {name} is missing")
        left.discard(name)
        for tensor in found:
            if tuple(tensor.shape) != shape:
                raise DataError(f"{path}: {name} has shape {list(tensor.shape)}, not {list(shape)}")
    if left:
        raise DataError(f"{path}: the tensor {min(left)} is none of a model here")
    _require_values(file, path)


def require_layers(names: Mapping[str, object], model: ModelConfig, path: Path) -> None:
    """Raise DataError where tensors are of more or fewer layers than a config claims, which may be any number."""
    layers = {int(match[1]) for name in names if (match := _LAYER.match(name))}
    if layers != set(range(len(layers))) or len(layers) != model.num_layers:
        raise DataError(f"{path}: has the tensors of {len(layers)} layers, and its config says {model.num_layers}")


def parameter_shapes(specs: Mapping[str, ParameterSpec]) -> Iterator[tuple[str, tuple[int, ...], bool]]:
    """Yield name, shape, and whether it is a matrix, of every parameter of a model."""
    for spec in specs.values():
        width = spec.shape[2:] if spec.per_layer else spec.shape[1:]
        for layer in range(spec.shape[0] if spec.per_layer else 1):
            for name, height in spec.blocks:
                yield name.format(layer=layer), (height, *width), spec.is_matrix


def _require_values(file: ModelContent, path: Path) -> None:
    for name, weight in file.weights.items():
        if weight.dtype != torch.float32 or not weight.isfinite().all():
            raise DataError(f"{path}: {name} is not made of finite numbers in fp32")
    for name, (codes_OI, scale_OG) in file.quantized.items():
        if codes_OI.dtype != torch.int8 or codes_OI.abs().amax() > 1:
            raise DataError(f"{path}: {name} holds codes beyond -1, 0 and 1: damaged, or packed in another way")
        if not _fits(codes_OI, scale_OG):
            raise DataError(f"{path}: {name} has a scale of shape {list(scale_OG.shape)} or {scale_OG.dtype}")
        if not scale_OG.isfinite().all() or (scale_OG < 0).any():
            raise DataError(f"{path}: {name} has a scale that is negative or not finite")


def _fits(codes_OI: Tensor, scale_OG: Tensor) -> bool:
    outputs, inputs = codes_OI.shape
    is_pair = scale_OG.dim() == 2 and scale_OG.shape[0] == outputs
    return scale_OG.dtype == torch.float32 and is_pair and scale_OG.shape[1] > 0 and inputs % scale_OG.shape[1] == 0
