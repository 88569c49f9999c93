"""Read a model in a public format, by what its file or folder is."""

from dataclasses import replace
from pathlib import Path

from bitnetctl.errors import ConfigError, DataError, cannot_read
from bitnetctl.formats.bitnetctl_safetensors import read_safetensors
from bitnetctl.formats.consistency import EMBEDDINGS, require_consistent
from bitnetctl.formats.gguf_file import read_gguf
from bitnetctl.formats.hf_read import CONFIG, read_hf
from bitnetctl.formats.masters import find_codes
from bitnetctl.formats.model_content import ModelContent

_GGUF_MAGIC = b"GGUF"
_KNOWN = "a folder with config.json and safetensors, a GGUF file, or a file of export --to safetensors"


def read_model(path: Path) -> ModelContent:
    """Read a folder of `transformers`, a GGUF file or a plain safetensors file.

    Raises ConfigError for what is none of these, or a model that cannot be expressed here, DataError for damaged files.
    """
    file = _read(path)
    require_consistent(file, path)
    return file


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
        with path.open("rb") as file:
            is_gguf = file.read(len(_GGUF_MAGIC)) == _GGUF_MAGIC
    except OSError as error:
        raise DataError(cannot_read(path, error)) from error
    if is_gguf:
        return _with_codes(read_gguf(path), path)
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    raise ConfigError(f"{path}: not a file that is read; {_KNOWN} is")


def _with_codes(file: ModelContent, path: Path) -> ModelContent:
    """Return the content of a GGUF file with the codes and scales of matrices that it has as their product."""
    if file.quant_lambda == 0.0:
        return file
    weights, quantized = dict(file.weights), dict(file.quantized)
    for name in file.weights.keys() - {EMBEDDINGS}:
        if weights[name].dim() == 2:
            found = find_codes(weights.pop(name))
            if found is None:
                raise ConfigError(f"{path}: {name} is not ternary, as the file says it is; it cannot be run here")
            quantized[name] = found
    return replace(file, weights=weights, quantized=quantized)
