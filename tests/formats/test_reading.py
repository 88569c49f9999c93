"""What a single file holds must agree with what it says; read before any memory is taken for its model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_runs import train_tiny
from torch import Tensor

from bitnetctl.errors import BitnetctlError
from bitnetctl.formats.bitnetctl_safetensors import export_safetensors
from bitnetctl.formats.gguf_file import write_gguf
from bitnetctl.formats.reading import read_model
from bitnetctl.inference.trained import TrainedRun

NORM, MATRIX = "model.norm.weight", "model.layers.1.mlp.up_proj.weight"
CODES, SCALE = f"codes/{MATRIX}", f"scale/{MATRIX}"


@pytest.fixture(scope="module")
def run(tiny_text: Path, shared_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(shared_cache))
        return train_tiny(["grouped"], tiny_text, tmp_path_factory.mktemp("runs"))["grouped"]


Tensors = dict[str, Tensor]
Change = Callable[[Tensors, dict[str, Any]], None]


def tensor(name: str, make: Callable[[Tensor], Tensor] | None) -> Change:
    def change(stored: Tensors, model: dict[str, Any]) -> None:
        old = stored.pop(name)
        if make is not None:
            stored[name] = make(old).contiguous()

    return change


def field(**fields: Any) -> Change:
    return lambda stored, model: model.update(fields)


def added(stored: Tensors, model: dict[str, Any]) -> None:
    stored["model.layers.1.mlp.up_proj.bias"] = torch.ones(96)


REFUSED: dict[str, tuple[Change, str]] = {
    "layers": (field(num_layers=2**30), "tensors of 2 layers, and its config says 1073741824"),
    "width": (field(hidden_size=2**20), r"has shape \[300, 32\], not \[300, 1048576\]"),
    "heads": (field(num_attention_heads=3), "not divisible by num_attention_heads"),
    "no-model": (field(hidden_size="wide"), "hidden_size"),
    "unknown-field": (field(depth=3), "unknown field 'depth'"),
    "untied": (field(tie_word_embeddings=False), "lm_head.weight is missing"),
    "norm-missing": (tensor(NORM, None), "the tensor model.norm.weight is missing"),
    "no-embeddings": (tensor("model.embed_tokens.weight", None), "there is no table model.embed_tokens.weight"),
    "foreign": (added, "up_proj.bias is none of a model here"),
    "shape": (tensor(NORM, lambda old: old[1:]), r"norm.weight has shape \[31\], not \[32\]"),
    "half": (tensor(NORM, Tensor.half), "norm.weight is not made of finite numbers in fp32"),
    "nan": (tensor(NORM, lambda old: old * torch.nan), "norm.weight is not made of finite numbers in fp32"),
    "codes": (tensor(CODES, lambda old: old * 2), "up_proj.weight holds codes beyond -1, 0 and 1"),
    "floats": (tensor(CODES, Tensor.float), "up_proj.weight holds codes beyond"),
    "codes-shape": (tensor(CODES, lambda old: old[1:]), r"up_proj.weight has shape \[95, 32\]"),
    "scale-groups": (tensor(SCALE, lambda old: old.repeat(1, 3)), r"has a scale of shape \[96, 3\]"),
    "scale-missing": (tensor(SCALE, None), "not a safetensors file of bitnetctl"),
    "scale-negative": (tensor(SCALE, torch.neg), "a scale that is negative"),
}


@pytest.mark.parametrize("key", REFUSED)
def test_what_is_refused(run: TrainedRun, key: str, tmp_path: Path) -> None:
    path, (change, expected) = tmp_path / "a.safetensors", REFUSED[key]
    export_safetensors(run, path, check=False)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    stored, tree = load_file(path), json.loads(metadata["config"])
    change(stored, tree["model"])
    save_file(stored, path, {**metadata, "config": json.dumps(tree)})
    with pytest.raises(BitnetctlError, match=expected) as caught:
        read_model(path)
    assert "\n" not in str(caught.value)


def test_deep_json(run: TrainedRun, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    export_safetensors(run, path, check=False)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file(load_file(path), path, {**metadata, "config": "[" * 100_000})
    with pytest.raises(BitnetctlError, match="not a safetensors file of bitnetctl"):
        read_model(path)
    path.write_bytes(b"\xff" * 100)
    with pytest.raises(BitnetctlError, match="not a safetensors file of bitnetctl"):
        read_model(path)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("rope.scaling.type", "yarn", "its rotary embeddings are scaled"),
        (
            "attention.key_length",
            16,
            "attention.key_length is 16, and heads of models here have .* = 8",
        ),
        ("block_count", 2**30, "tensors of 2 layers, and its config says 1073741824"),
    ],
)
def test_a_gguf_file_of_another_model(
    run: TrainedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, value: object, expected: str
) -> None:
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "a.gguf"
    write = gguf.GGUFWriter.write_header_to_file

    def write_header(writer: Any) -> None:
        (data,) = writer.kv_data
        kind = gguf.GGUFValueType.STRING if isinstance(value, str) else gguf.GGUFValueType.UINT32
        data[f"bitnet.{key}"] = gguf.GGUFValue(value=value, type=kind)
        write(writer)

    monkeypatch.setattr(gguf.GGUFWriter, "write_header_to_file", write_header)
    write_gguf(path, run, "F32")
    with pytest.raises(BitnetctlError, match=expected):
        read_model(path)
