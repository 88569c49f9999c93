"""Export a run as a folder that `transformers` loads: weights, config, tokenizer and model card."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from bitnetctl.errors import ExportError
from bitnetctl.files import replacing, require_space, storage_errors, sync_folder, write_synced
from bitnetctl.formats.exported import Exported
from bitnetctl.formats.hf_card import model_card
from bitnetctl.formats.hf_check import Folder, check_folder, require_transformers
from bitnetctl.formats.hf_config import PACKED, HfForm, config_tree
from bitnetctl.formats.hf_layout import MASTERS, WEIGHTS, Form, tensors, written_form
from bitnetctl.formats.refusals import require_special_end
from bitnetctl.formats.targets import require_free_folder
from bitnetctl.inference.sampling import Sampling
from bitnetctl.inference.trained import TrainedRun

CARD = "README.md"
_JSON = ("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json")
_FILES = {*_JSON, CARD, "tokenizer.json", WEIGHTS, MASTERS}


def export_hf(
    run: TrainedRun,
    folder: Path,
    *,
    form: Form = "offline",
    masters: bool = False,
    check: bool = True,
    replace: bool = False,
    log: Callable[[str], None] = lambda line: None,
) -> Exported:
    """Write a run as a folder for `transformers`; `masters` adds the weights before quantization to a packed form.

    `check` loads it with the library and compares. `replace` allows a folder that an earlier export wrote. Raises
    ConfigError for what the form cannot hold and for a folder that is in the way, ExportError where the check fails,
    StorageError; the folder is then as it was.
    """
    written = written_form(run, form)
    require_special_end(run)
    if check:
        require_transformers()
    require_free_folder(folder, _FILES, replace=replace)
    weights = tensors(run, written)
    require_space(folder, sum(tensor.nbytes for tensor in weights.values()))
    with storage_errors(folder), replacing(folder) as temporary:
        temporary.mkdir()
        write_folder(run, temporary, written, weights)
        if masters and written not in PACKED:
            log(f"--masters adds nothing: the weights of {run.name} as {written} are its masters")
        elif masters:
            (temporary / MASTERS).parent.mkdir()
            save_tensors(temporary / MASTERS, run.weights())
            if check:
                _require_masters(run, temporary / MASTERS)
        if check:
            log("loading it with transformers ...")
        checks = check_folder(Folder(run=run, path=temporary, form=written)) if check else ()
        write_synced(temporary / CARD, model_card(run, written, checks).encode())
        sync_folder(temporary)
        # the check takes long enough for somebody else to write there
        require_free_folder(folder, _FILES, replace=replace)
    return Exported(path=folder, form=written, is_checked=check, checks=checks)


def write_folder(run: TrainedRun, folder: Path, form: HfForm, weights: dict[str, Tensor]) -> None:
    """Write everything but the model card into an empty folder; raises OSError."""
    save_tensors(folder / WEIGHTS, weights)
    tokenizer = json.loads(run.tokenizer.to_str())
    if run.tokenizer.num_special_tokens_to_add(is_pair=False):
        # the model was trained without what it would put around a text
        tokenizer["post_processor"] = None
    write_synced(folder / "tokenizer.json", json.dumps(tokenizer, ensure_ascii=False).encode())
    end = None if run.end_of_text is None else run.tokenizer.id_to_token(run.end_of_text)
    named = {} if end is None else {"bos_token": end, "eos_token": end}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": run.context_length,
        # by default transformers 4 adds token types, which the model does not take
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
        **named,
    }
    prefix = (tokenizer["pre_tokenizer"] or {}).get("add_prefix_space")
    if prefix is not None:
        # transformers 4 sets it in the tokenizer, by default to false
        settings["add_prefix_space"] = prefix
    sampling = Sampling()
    generation = {
        "bos_token_id": run.end_of_text,
        "eos_token_id": run.end_of_text,
        "do_sample": True,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
    }
    trees: list[dict[str, Any]] = [config_tree(run, form), generation, settings, named]
    for name, tree in zip(_JSON, trees, strict=True):
        write_synced(folder / name, json.dumps(tree, indent=2, ensure_ascii=False).encode() + b"\n")


def _require_masters(run: TrainedRun, path: Path) -> None:
    """Raise ExportError where a file does not hold the masters: no program but an import reads them."""
    stored = load_file(path)
    for name, weight in run.weights().items():
        if not torch.equal(stored.get(name, torch.empty(0)), weight):
            raise ExportError(f"self-check failed: {MASTERS}: {name}: the file has other values")


def save_tensors(path: Path, weights: dict[str, Tensor]) -> None:
    """Write and sync a safetensors file as transformers reads it; raises OSError."""
    # the library's own save_file leaves a file that only its owner can read
    write_synced(path, save(weights, metadata={"format": "pt"}))
