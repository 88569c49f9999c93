"""Read a folder of `transformers` that holds a BitNet model, own or of `transformers`.

Shapes: O×I a matrix.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from bitnetctl.config import ModelConfig
from bitnetctl.data.tokenizer import load_tokenizer, named_end
from bitnetctl.errors import ConfigError, DataError
from bitnetctl.formats.consistency import parameter_shapes, require_layers
from bitnetctl.formats.hf_config import PACKED, HfConfig, parse_hf_config
from bitnetctl.formats.hf_layout import MASTERS, VALUES_PER_BYTE, named, scale_name, unpack
from bitnetctl.formats.model_content import ModelContent, parse_exported_name
from bitnetctl.formats.safetensors_reader import SafetensorsReader, open_folder, read_json
from bitnetctl.model.parameters import EMBEDDINGS, HEAD, ParameterSpec, parameter_specs

CONFIG = "config.json"
_MOST_ROWS = 1 << 22

Quantized = dict[str, tuple[Tensor, Tensor]]


def read_hf(folder: Path) -> ModelContent:
    """Read a folder that `transformers` or an export wrote, with its tokenizer if that is there.

    Raises ConfigError for a model that cannot be expressed here, DataError for files that are missing or damaged.
    """
    config = parse_hf_config(read_json(folder / CONFIG), folder / CONFIG)
    stored = open_folder(folder)
    model = config.model_config()
    specs = _specs(stored, model, folder)
    weights, quantized = _read_tensors(stored, specs, config, folder)
    if quantized:
        weights |= _read_masters(folder / MASTERS, quantized)
    tokenizer, end = _read_tokenizer(folder, config.end_of_text)
    run, step = parse_exported_name(config.run)
    return ModelContent(
        model=config.model,
        weights=weights,
        quant_lambda=0.0 if config.form == "plain" else 1.0,
        quantized=quantized,
        context_length=config.context_length,
        tokenizer=tokenizer,
        end_of_text=end,
        run=run,
        step=step,
    )


def _specs(stored: SafetensorsReader, model: ModelConfig, folder: Path) -> dict[str, ParameterSpec]:
    """Return the tensors that a model of this config has; raises DataError where the files are of another depth."""
    embeddings = stored.entries.get(EMBEDDINGS)
    if embeddings is None or len(embeddings.shape) != 2 or not 0 < embeddings.shape[0] <= _MOST_ROWS:
        raise DataError(f"{folder}: there is no table {EMBEDDINGS}")
    require_layers(stored.entries, model, folder)
    return parameter_specs(model, embeddings.shape[0])


def _read_tensors(
    stored: SafetensorsReader, specs: Mapping[str, ParameterSpec], config: HfConfig, folder: Path
) -> tuple[dict[str, Tensor], Quantized]:
    """Return weights, and codes and scales, by the names of a run."""
    model, weights, quantized = config.model_config(), dict[str, Tensor](), Quantized()
    left = set(stored.entries)
    shapes = list(parameter_shapes(specs))
    is_packed = config.form in PACKED
    if model.tie_word_embeddings and HEAD in stored.entries:
        shapes.append((HEAD, stored.entries[EMBEDDINGS].shape, False))
    for name, shape, is_matrix in shapes:
        targets = named(name, model)
        missing = [target for target in targets if target not in stored.entries]
        if missing:
            hint = " (SubLN)" if "sub_norm" in name else ""
            raise DataError(f"{folder}: the tensor {missing[0]}{hint} is missing")
        left -= set(targets)
        if is_matrix and is_packed:
            left.discard(scale_name(name))
            quantized[name] = _packed(stored, name, shape, divides=config.form == "bitlinear")
        else:
            weights[name] = _shared(stored, targets, shape)
    if model.tie_word_embeddings and not torch.equal(weights.pop(HEAD, weights[EMBEDDINGS]), weights[EMBEDDINGS]):
        raise DataError(f"{folder}: the head is tied to the embeddings ({CONFIG}), and {HEAD} has other values")
    others = sorted(name for name in left if not name.endswith("rotary_emb.inv_freq"))
    if others:
        reason = ": matrices of models here have no biases" if others[0].endswith(".bias") else ""
        raise ConfigError(f"{folder}: the tensor {others[0]} is none of a model here{reason}")
    return weights, quantized


def _shared(stored: SafetensorsReader, targets: tuple[str, ...], shape: tuple[int, ...]) -> Tensor:
    """Return the parameter that several tensors hold, all with the same values; raises DataError, ConfigError."""
    for target in targets:
        entry = stored.entries[target]
        if entry.shape != shape:
            raise DataError(f"{entry.path}: {target} has shape {list(entry.shape)}, not {list(shape)}")
    first, *others = (stored.floats(target) for target in targets)
    if not all(torch.equal(first, other) for other in others):
        raise ConfigError(
            f"{stored.entries[targets[0]].path}: {targets[0]} and {targets[1]} differ; in models here they are one norm"
        )
    return first


def _packed(stored: SafetensorsReader, name: str, shape: tuple[int, ...], *, divides: bool) -> tuple[Tensor, Tensor]:
    """Return int8 codes [O, I] and scale [O, 1] of a matrix; `divides`: 1 / scale is stored. Raises DataError."""
    entry = stored.entries[name]
    rows = shape[0] // VALUES_PER_BYTE
    if scale_name(name) not in stored.entries:
        raise DataError(f"{entry.path}: the tensor {scale_name(name)} is missing")
    scale = stored.floats(scale_name(name)).flatten()
    if scale.numel() != 1 or not scale.item() > 0:
        raise DataError(f"{entry.path}: {scale_name(name)} is not one positive number")
    if entry.dtype == "U8" and entry.shape == (rows, *shape[1:]) and shape[0] % VALUES_PER_BYTE == 0:
        codes_OI = unpack(stored.raw(name))
    elif entry.is_float and entry.shape == shape:
        # transformers saves them unpacked, once it has loaded them
        values_OI = stored.floats(name)
        codes_OI = values_OI.round().clamp(-1, 2).to(torch.int8)
        if not torch.equal(codes_OI.float(), values_OI):
            raise DataError(f"{entry.path}: {name} holds values beside codes -1, 0 and 1, and has a scale")
    else:
        raise DataError(f"{entry.path}: {name} is {entry.dtype} {list(entry.shape)}, not packed codes of {list(shape)}")
    if codes_OI.amax() > 1:
        raise DataError(f"{entry.path}: {name} holds codes beyond -1, 0 and 1: damaged, or packed in another way")
    scale = scale.reciprocal() if divides else scale
    return codes_OI, scale.view(1, 1).expand(shape[0], 1)


def _read_masters(path: Path, quantized: Quantized) -> dict[str, Tensor]:
    """Return the masters beside packed weights, empty without them; raises DataError."""
    if not path.is_file():
        return {}
    stored, masters = SafetensorsReader([path]), {}
    for name, (codes_OI, _) in quantized.items():
        entry = stored.entries.get(name)
        if entry is None or entry.shape != tuple(codes_OI.shape):
            raise DataError(f"{path}: {name} is missing or of another shape; remove the file to import without masters")
        masters[name] = stored.floats(name)
    return masters


def _read_tokenizer(folder: Path, end_id: int | None) -> tuple[str | None, str | None]:
    """Return the text of tokenizer.json, None without one, and the token that ends a text, where the folder says so."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None, None
    tokenizer = load_tokenizer(path)
    return str(tokenizer.to_str()), _token(tokenizer, end_id) or named_end(folder, f"file:{path}")


def _token(tokenizer: Tokenizer, number: int | None) -> str | None:
    return None if number is None or not 0 <= number < 1 << 31 else tokenizer.id_to_token(number)
