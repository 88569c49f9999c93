"""Folders for transformers: loaded by the library, every form is the model of the run, and every wrong one is found."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, pre_tokenizers, processors
from torch import Tensor

from bitnetctl.errors import ExportError
from bitnetctl.formats.hf import write_folder
from bitnetctl.formats.hf_check import Folder, Loaded, load_folders, require_same
from bitnetctl.formats.hf_config import HfForm
from bitnetctl.formats.hf_layout import tensors
from bitnetctl.inference.trained import TrainedRun

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

GOOD: list[tuple[str, HfForm]] = [
    ("portable", "offline"),
    ("portable", "bitlinear"),
    ("portable", "online"),
    ("grouped", "offline"),
    ("b158", "bitlinear"),
    ("b158", "online"),
    ("origin", "offline"),
    ("origin", "bitlinear"),
    ("inner", "online"),
    ("fused", "offline"),
    ("full", "plain"),
    ("median", "bitlinear"),
]
LAYER = "model.layers.1."

Change = Callable[[Path, TrainedRun], None]


def edit_config(**changes: Any) -> Change:
    return edit_json("config.json", **changes)


def edit_json(name: str, **changes: Any) -> Change:
    def change(folder: Path, run: TrainedRun) -> None:
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def edit_weights(edit: Callable[[dict[str, Tensor], TrainedRun], Mapping[str, Tensor]]) -> Change:
    def change(folder: Path, run: TrainedRun) -> None:
        path = folder / "model.safetensors"
        stored = load_file(path)
        save_file({**stored, **edit(stored, run)}, path, metadata={"format": "pt"})

    return change


def swapped(first: str, second: str) -> Change:
    first, second = f"{LAYER}{first}", f"{LAYER}{second}"
    return edit_weights(lambda stored, run: {first: stored[second].clone(), second: stored[first].clone()})


def inverse_scales(stored: dict[str, Tensor], run: TrainedRun) -> dict[str, Tensor]:
    return {name: tensor.reciprocal() for name, tensor in stored.items() if name.endswith("weight_scale")}


def masters(stored: dict[str, Tensor], run: TrainedRun) -> dict[str, Tensor]:
    return {name: weight.clone() for name, weight in run.weights().items() if name in run.quantized()}


def without_quantization(folder: Path, run: TrainedRun) -> None:
    path = folder / "config.json"
    tree = json.loads(path.read_text())
    del tree["quantization_config"]
    path.write_text(json.dumps(tree))


def other_tokenizer(folder: Path, run: TrainedRun) -> None:
    path = folder / "tokenizer.json"
    tree = json.loads(path.read_text())
    del tree["model"]["merges"][0]
    path.write_text(json.dumps(tree))


def with_special_tokens(tokenizer: Tokenizer) -> Tokenizer:
    """Return the tokenizer with what RoBERTa's does: a space in front of a text, special tokens around it."""
    other = Tokenizer.from_str(tokenizer.to_str())
    other.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    other.post_processor = processors.RobertaProcessing(("<|endoftext|>", 0), ("<|endoftext|>", 0))
    return other


THETA = {"rope_theta": 100.0, "rope_parameters": {"rope_type": "default", "rope_theta": 100.0}}
# a run, its form, how its folder is made wrong, and what the check says
WRONG: dict[str, tuple[str, HfForm, Change, str]] = {
    "q-k-scales-swapped": (
        *("portable", "offline"),
        swapped("self_attn.q_proj.weight_scale", "self_attn.k_proj.weight_scale"),
        r"layers\.1\.self_attn\.q_proj\.weight: scale 0\.\d+, not 0\.\d+",
    ),
    "gate-up-scales-swapped": (
        *("b158", "bitlinear"),
        swapped("mlp.gate_proj.weight_scale", "mlp.up_proj.weight_scale"),
        r"layers\.1\.mlp\.gate_proj\.weight: scale",
    ),
    "codes-swapped": (
        *("portable", "offline"),
        swapped("self_attn.q_proj.weight", "self_attn.k_proj.weight"),
        r"q_proj\.weight: \d+ of 1,024 codes differ",
    ),
    "inverse-scales": ("portable", "offline", edit_weights(inverse_scales), "layers.0.self_attn.q_proj.weight: scale"),
    "inverse-of-bitlinear": ("origin", "bitlinear", edit_weights(inverse_scales), "q_proj.weight: scale"),
    "masters-not-ternarised": ("portable", "offline", edit_weights(masters), "q_proj.weight: .* codes differ"),
    "not-quantized": ("portable", "online", without_quantization, "down_proj.weight: codes missing"),
    "online-of-a-fused-scale": ("fused", "online", lambda folder, run: None, "q_proj.weight: scale"),
    "online-of-another-quantizer": ("median", "online", lambda folder, run: None, "q_proj.weight: scale"),
    "theta": ("grouped", "offline", edit_config(**THETA), "KL divergence"),
    "silu-for-relu2": ("b158", "offline", edit_config(hidden_act="silu"), "KL divergence"),
    "epsilon": ("b158", "online", edit_config(rms_norm_eps=0.3), "KL divergence"),
    # too little to be seen in the probabilities of such a model
    "epsilon-a-little": ("portable", "offline", edit_config(rms_norm_eps=1.0001e-5), "rms_norm_eps is '1.0001e-05' in"),
    "theta-a-little": (
        *("portable", "offline"),
        edit_config(rope_theta=10_001.0, rope_parameters={"rope_type": "default", "rope_theta": 10_001.0}),
        "rope_theta is '10001.0' in the file, not 10000.0",
    ),
    "theta-of-transformers-4": ("portable", "offline", edit_config(rope_theta=10_100.0), "KL|rope_theta and that of"),
    "context": ("portable", "offline", edit_config(max_position_embeddings=7), "context_length is '7' in the file"),
    "end-of-text": ("portable", "offline", edit_config(eos_token_id=5), "end_of_text is .* in the file, not '<.endof"),
    "end-of-generation": (
        *("portable", "offline"),
        edit_json("generation_config.json", eos_token_id=5),
        "generation_config.eos_token_id is 5 as it was loaded, not 0",
    ),
    "end-of-the-tokenizer": (
        *("portable", "offline"),
        edit_json("tokenizer_config.json", eos_token="e"),
        "tokenizer.* is .*, not ",
    ),
    "length-of-the-tokenizer": (
        *("portable", "offline"),
        edit_json("tokenizer_config.json", model_max_length=7),
        "model_max_length is 7 as it was loaded, not 32",
    ),
    "norms-swapped": (
        *("portable", "offline"),
        swapped("input_layernorm.weight", "post_attention_layernorm.weight"),
        "input_layernorm.weight: is not the tensor of the run",
    ),
    "norm-missing": (
        *("origin", "offline"),
        edit_config(
            quantization_config={
                "quant_method": "bitnet",
                "linear_class": "autobitlinear",
                "quantization_mode": "offline",
            }
        ),
        "unexpected keys: .*rms_norm",
    ),
    "other-tokenizer": ("portable", "bitlinear", other_tokenizer, "other tokens for"),
    "no-config": ("portable", "plain", lambda folder, run: (folder / "config.json").unlink(), "cannot use it: .*Error"),
}


@pytest.fixture(scope="module")
def loaded(
    export_runs: dict[str, TrainedRun], shared_cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Loaded]:
    """All folders, good and wrong, loaded in one process of the library."""
    place = tmp_path_factory.mktemp("folders")
    folders: dict[str, Folder] = {}

    def write(key: str, run: TrainedRun, form: HfForm) -> Path:
        path = place / key
        path.mkdir()
        write_folder(run, path, form, tensors(run, form))
        folders[key] = Folder(run=run, path=path, form=form)
        return path

    for name, form in GOOD:
        write(f"{name}-{form}", export_runs[name], form)
    other = replace(export_runs["portable"], tokenizer=with_special_tokens(export_runs["portable"].tokenizer))
    write("special-tokens", other, "offline")
    for key, (name, form, change, _) in WRONG.items():
        change(write(key, export_runs[name], form), export_runs[name])
    work = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(shared_cache))
        return dict(zip(folders, load_folders(list(folders.values()), work, positions=128), strict=True))


@pytest.mark.parametrize(("name", "form"), GOOD)
def test_every_form_is_the_model_of_the_run(name: str, form: HfForm, loaded: dict[str, Loaded]) -> None:
    *first, kl, equal, largest, settings = require_same(loaded[f"{name}-{form}"])
    codes = [line for line in first if line.startswith("codes of 14 matrices identical, scales")]
    assert len(codes) == (0 if form == "plain" else 1)
    assert any("other tensors identical" in line for line in first)
    assert any("strings identical" in line for line in first)
    assert "128 positions" in kl
    assert "(at least 99.5%)" in equal
    assert "(no gate)" in largest
    assert settings == "config, context length and end of text identical"


def test_a_tokenizer_that_adds_special_tokens_is_written_without_them(loaded: dict[str, Loaded]) -> None:
    lines = require_same(loaded["special-tokens"])
    assert any("strings identical" in line for line in lines)


@pytest.mark.parametrize("key", WRONG)
def test_every_wrong_folder_is_found(key: str, loaded: dict[str, Loaded]) -> None:
    with pytest.raises(ExportError, match=f"^self-check failed: .*{WRONG[key][3]}"):
        require_same(loaded[key])
