"""Read a model in a public format, by what its file or folder is."""

from dataclasses import replace
from pathlib import Path

from bitnetctl.errors import ConfigError, DataError, cannot_read
from bitnetctl.formats.bitnetctl_safetensors import read_safetensors
from bitnetctl.formats.consistency import require_consistent
from bitnetctl.formats.gguf_file import is_gguf, read_gguf
from bitnetctl.formats.hf_read import CONFIG, read_hf
from bitnetctl.formats.masters import find_codes, scale_group_of
from bitnetctl.formats.model_content import ModelContent
from bitnetctl.model.parameters import EMBEDDINGS

_KNOWN = "a folder with config.json and safetensors, a GGUF file, or a file of export --to safetensors"


def read_model(path: Path) -> ModelContent:
    """Read a folder of `transformers`, a GGUF file or a file of `export --to safetensors`.

    Raises ConfigError for what is none of these, or a model that cannot be expressed here, DataError for damaged files.
    """
    content = _read(path)
    require_consistent(content, path)
    if content.config is None:
        # no other file states it
        scale_group = scale_group_of(content.quantized, content.model)
        content = replace(content, model={**content.model, "scale_group": scale_group})
    return content


def _read(path: Path) -> ModelContent:
    if path.is_dir():
        if not (path / CONFIG).is_file():
            ggufs = sorted(path.glob("*.gguf"))
            hint = f"; it holds {ggufs[0].name}: give that file" if ggufs else ""
            raise ConfigError(f"{path}: has no {CONFIG}; {_KNOWN} is read{hint}")
        return read_hf(path)
    if not path.is_file():
        raise ConfigError(f"{path}: there is no such file or folder; {_KNOWN} is read")
    try:
        is_one = is_gguf(path)
    except OSError as error:
        raise DataError(cannot_read(path, error)) from error
    if is_one:
        return _with_codes(read_gguf(path), path)
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    raise ConfigError(f"{path}: not a file that is read; {_KNOWN} is")


def _with_codes(content: ModelContent, path: Path) -> ModelContent:
    """Return the content of a GGUF file with the codes and scales of matrices that it has as their product.

    A file that states no λ is quantized (λ 1) if all its matrices are ternary. Raises ConfigError for a matrix that is
    not ternary where others are, or where the file says so.
    """
    is_stated = content.is_lambda_stated
    if is_stated and content.quant_lambda == 0.0:
        return content
    matrices = [name for name, weight in content.weights.items() if weight.dim() == 2 and name != EMBEDDINGS]
    found = {name: find_codes(content.weights[name]) for name in matrices}
    dense = [name for name, codes in found.items() if codes is None]
    if dense and not is_stated and not content.quantized:
        note = f"states no λ, and {dense[0]} is not ternary: read as a model at full precision (λ 0)"
        return replace(content, quant_lambda=0.0, notes=(*content.notes, note))
    if dense:
        raise ConfigError(f"{path}: {dense[0]} is not ternary, as the file says it is; it cannot be run here")
    if matrices and not is_stated:
        note = f"states no λ, and all {len(matrices)} matrices are ternary: read as quantized (λ 1)"
        content = replace(content, quant_lambda=1.0, notes=(*content.notes, note))
    quantized = {name: codes for name, codes in found.items() if codes is not None}
    weights = {name: weight for name, weight in content.weights.items() if name not in quantized}
    return replace(content, weights=weights, quantized={**content.quantized, **quantized})
