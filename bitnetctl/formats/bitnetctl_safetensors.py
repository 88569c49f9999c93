"""Export a run to one safetensors file that any program can read: masters, codes, scales, and what explains them.

    NAME               fp32 masters, and all that is not quantized, by the names of `transformers`
    codes/NAME         int8 [O, I]: -1, 0 or 1, of a matrix; at λ 0 there are none, and no scales
    scale/NAME         fp32 [O, G]: of a row, or of G groups of its inputs; codes · scale are multiplied at λ 1
    metadata           texts: format, run, step, config (JSON), quantization (λ), context_length, end_of_text,
                       tokenizer (a tokenizer.json) and tokenizer_sha256

Shapes: O×I a matrix, G groups of inputs.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from bitnetctl.errors import DataError, ExportError, one_line
from bitnetctl.files import replacing, storage_errors, write_synced
from bitnetctl.formats.exported import Exported
from bitnetctl.formats.gates import require_equal
from bitnetctl.formats.model_content import ModelContent
from bitnetctl.formats.stated import end_of_text_name, require_stated, without_folders
from bitnetctl.formats.targets import require_free_file
from bitnetctl.inference.trained import TrainedRun

FORMAT = "bitnetctl-plain-1"

_CODES, _SCALE = "codes/", "scale/"


def export_safetensors(
    run: TrainedRun,
    file: Path,
    *,
    check: bool = True,
    replace: bool = False,
    log: Callable[[str], None] = lambda line: None,
) -> Exported:
    """Write a run of any recipe, quantizer and λ as one safetensors file; `check` reads it back.

    Raises ConfigError for a file that exists, with `replace` for one that is no earlier export; ExportError, leaving no
    file, for a difference.
    """
    require_free_file(file, _is_own, replace=replace)
    tokenizer = run.tokenizer.to_str()
    metadata = {
        "format": FORMAT,
        "run": run.name,
        "step": str(run.step),
        "config": json.dumps(_public_config(run), separators=(",", ":")),
        "quantization": repr(run.quant_lambda),
        "context_length": str(run.context_length),
        "tokenizer": tokenizer,
        "tokenizer_sha256": hashlib.sha256(tokenizer.encode()).hexdigest(),
    }
    end = end_of_text_name(run)
    if end is not None:
        metadata["end_of_text"] = end
    quantized = run.quantized() if run.quant_lambda else {}
    tensors = {name: weight.contiguous() for name, weight in run.weights().items()}
    for name, (codes_OI, scale_OG) in quantized.items():
        tensors |= {f"{_CODES}{name}": codes_OI.contiguous(), f"{_SCALE}{name}": scale_OG.contiguous()}
    with storage_errors(file), replacing(file) as temporary:
        write_synced(temporary, save(tensors, metadata))
        log(f"{file}: {temporary.stat().st_size / 1e6:.1f} MB")
        checks = (_read_back(run, temporary, quantized),) if check else ()
        require_free_file(file, _is_own, replace=replace)
    form = "masters and codes" if quantized else "masters"
    return Exported(path=file, form=form, is_checked=check, checks=checks)


def _public_config(run: TrainedRun) -> dict[str, Any]:
    """Return the config of a run as a tree, without the folders of its files, which tell of the machine."""
    tree = run.config.model_dump(mode="json")
    tree["data"] |= {name: without_folders(tree["data"][name]) for name in ("source", "tokenizer")}
    for spec in tree["interventions"]:
        if spec.get("file"):
            spec["file"] = spec["file"].replace("\\", "/").rpartition("/")[2]
    return tree


def _is_own(file: Path) -> bool:
    try:
        with safe_open(file, framework="pt") as opened:
            return (opened.metadata() or {}).get("format") == FORMAT
    except (OSError, SafetensorError):
        return False


def _read_back(run: TrainedRun, file: Path, quantized: Mapping[str, tuple[Tensor, Tensor]]) -> str:
    read, weights = read_safetensors(file), run.weights()
    if read.weights.keys() != weights.keys() or read.config != _public_config(run):
        raise ExportError("self-check failed: the file has other names or another config")
    for name, weight in weights.items():
        if not torch.equal(read.weights[name], weight):
            raise ExportError(f"self-check failed: {name}: the file has other values")
    require_stated(run, read)
    tokenizer = run.tokenizer.to_str()
    fingerprint = hashlib.sha256(tokenizer.encode()).hexdigest()
    if (read.tokenizer, read.tokenizer_sha256) != (tokenizer, fingerprint):
        raise ExportError("self-check failed: the file has another tokenizer")
    line = f"{require_equal(quantized, read.quantized)}, " if quantized else ""
    return f"{line}{len(weights)} tensors in fp32 identical, read back from the file"


def read_safetensors(path: Path) -> ModelContent:
    """Read a file that `export_safetensors` wrote; raises DataError for another one."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise DataError(
                    f"{path}: not a file of `bitnetctl export --to safetensors`; of a model in several files give the "
                    "folder"
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        config, step = json.loads(metadata["config"]), int(metadata["step"])
        if not isinstance(config, dict) or not all(isinstance(config[name], dict) for name in ("model", "data")):
            raise ValueError("its config is none")
        if not 0 < step < 1 << 31:
            raise ValueError(f"its step is {step}")
        return ModelContent(
            model=config["model"],
            config=config,
            weights={name: tensor for name, tensor in tensors.items() if not name.startswith((_CODES, _SCALE))},
            quantized={
                name.removeprefix(_CODES): (codes_OI, tensors[f"{_SCALE}{name.removeprefix(_CODES)}"])
                for name, codes_OI in tensors.items()
                if name.startswith(_CODES)
            },
            context_length=int(metadata["context_length"]),
            tokenizer=metadata["tokenizer"],
            tokenizer_sha256=metadata["tokenizer_sha256"],
            end_of_text=metadata.get("end_of_text"),
            quant_lambda=float(metadata["quantization"]),
            run=metadata["run"],
            step=step,
        )
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, RecursionError) as error:
        raise DataError(f"{path}: not a safetensors file of bitnetctl, or damaged: {one_line(error)}") from error
