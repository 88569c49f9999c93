"""Export a run to a GGUF file for llama.cpp."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from bitnetctl.errors import ConfigError, DataError, ExportError
from bitnetctl.files import replacing, storage_errors
from bitnetctl.formats import gguf_vocabulary
from bitnetctl.formats.exported import Exported
from bitnetctl.formats.gates import require_equal
from bitnetctl.formats.gguf_file import gguf_library, is_gguf, read_gguf, read_keys, write_gguf
from bitnetctl.formats.gguf_layout import GGUF_TYPES, GgufType, require_expressible
from bitnetctl.formats.llama_cpp import check_in_llama_cpp, require_llama_cpp
from bitnetctl.formats.stated import require_stated
from bitnetctl.formats.targets import require_free_file
from bitnetctl.inference.trained import TrainedRun
from bitnetctl.model.quantization import dequantized


def export_gguf(
    run: TrainedRun,
    file: Path,
    *,
    outtype: str = "TQ2_0",
    check: bool = True,
    replace: bool = False,
    log: Callable[[str], None] = lambda line: None,
) -> Exported:
    """Write a run as a GGUF file and read it back; `check` also runs it in llama.cpp.

    Raises ConfigError, before anything is written, for what llama.cpp would not load or run as another model, for a
    library that is missing, and for a file that exists, with `replace` for one that is no GGUF file; ExportError,
    leaving no file, where the file is not the model of the run.
    """
    gguf_type = _known_type(outtype)
    gguf_library()
    require_expressible(run, gguf_type)
    try:
        gguf_vocabulary.vocabulary(run.tokenizer, run.model.vocab_size)
    except ConfigError as error:
        raise ConfigError(f"{run.name}: {error}") from error
    if check:
        require_llama_cpp(run)
    require_free_file(file, is_gguf, replace=replace)
    with storage_errors(file), replacing(file) as temporary:
        write_gguf(temporary, run, gguf_type)
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        read_back = require_stored(run, temporary, gguf_type)
        log(f"{file}: {temporary.stat().st_size / 1e6:.1f} MB in {gguf_type}; read back: {read_back}")
        if check:
            log("running it in llama.cpp ...")
        checks = check_in_llama_cpp(run, temporary, gguf_type) if check else ()
        # the check takes long enough for somebody else to write there
        require_free_file(file, is_gguf, replace=replace)
    return Exported(path=file, form=gguf_type, is_checked=check, read_back=read_back, checks=checks)


def _known_type(text: str) -> GgufType:
    for known in GGUF_TYPES:
        if known == text.upper():
            return known
    raise ConfigError(f"--outtype {text!r} is not known; take {', '.join(GGUF_TYPES)}")


def require_stored(run: TrainedRun, file: Path, gguf_type: GgufType) -> str:
    """Return a line that says a file holds the run's codes, scales and other weights; raises ExportError if not."""
    try:
        stored = read_gguf(file)
    except DataError as error:
        raise ExportError(f"self-check failed: {error}") from error
    ours = run.quantized() if run.quant_lambda else {}
    # where the scales are in the values, these are compared
    in_values = ours.keys() - stored.quantized.keys() & ours.keys()
    line = require_equal({name: ours[name] for name in ours if name not in in_values}, stored.quantized)
    for name, weight in run.weights().items():
        if name in stored.quantized:
            continue
        expected = dequantized(ours[name][0].float(), ours[name][1]) if name in in_values else weight
        if gguf_type == "F16" and weight.dim() == 2:
            expected = expected.half().float()
        found = stored.weights.get(name)
        if found is None or not torch.equal(found, expected):
            raise ExportError(f"self-check failed: {name}: the file has other values")
    values = f"codes · scale of {len(in_values)} matrices identical" if in_values else line
    require_stated(run, stored)
    _require_vocabulary(run, read_keys(file))
    return f"{values if ours else 'all weights identical'}, settings and vocabulary identical"


def _require_vocabulary(run: TrainedRun, keys: Mapping[str, Any]) -> None:
    """Raise ExportError where a file has other tokens than the run, or adds one in front of a text."""
    vocabulary = gguf_vocabulary.vocabulary(run.tokenizer, run.model.vocab_size)
    expected = {
        "tokens": list(vocabulary.tokens),
        "token_type": list(vocabulary.types),
        "merges": list(vocabulary.merges),
        "bos_token_id": run.end_of_text,
        "eos_token_id": run.end_of_text,
        "add_bos_token": False,
    }
    for name, value in expected.items():
        if keys.get(f"tokenizer.ggml.{name}") != value:
            raise ExportError(f"self-check failed: tokenizer.ggml.{name}: the file has other values")
