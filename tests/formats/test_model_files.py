"""Single files of a model, GGUF and plain safetensors: what is written is read back, bit for bit."""

import dataclasses
import json
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save, save_file
from tokenizers import Tokenizer

from bitnetctl.config import ModelConfig
from bitnetctl.errors import ConfigError, DataError, ExportError
from bitnetctl.formats import bitnetctl_safetensors
from bitnetctl.formats.bitnetctl_safetensors import export_safetensors, read_safetensors
from bitnetctl.formats.gguf import export_gguf
from bitnetctl.formats.gguf_file import read_gguf, write_gguf
from bitnetctl.formats.gguf_layout import GGUF_TYPES, GgufType, parameter_name, tensor_name
from bitnetctl.formats.gguf_vocabulary import tokenizer_json, vocabulary
from bitnetctl.inference.trained import TrainedRun
from bitnetctl.model.quantization import dequantized

gguf = pytest.importorskip("gguf")

Runs = dict[str, TrainedRun]


@pytest.fixture
def runs(export_runs: Runs, wide_runs: Runs) -> Runs:
    return {**export_runs, **wide_runs}


def written(run: TrainedRun, gguf_type: GgufType, path: Path = Path("model.gguf")) -> Path:
    write_gguf(path, run, gguf_type)
    return path


@pytest.mark.parametrize("gguf_type", GGUF_TYPES)
@pytest.mark.parametrize("name", ["wide", "wide-blocks"])
def test_a_gguf_file_holds_codes_and_scales(name: str, gguf_type: GgufType, runs: Runs) -> None:
    run = runs[name]
    read = read_gguf(written(run, gguf_type))
    values_of_blocks = name == "wide-blocks" and gguf_type in ("F16", "F32")
    assert read.quantized.keys() == (set() if values_of_blocks else run.quantized().keys())
    for matrix, (codes_OI, scale_OG) in run.quantized().items():
        if values_of_blocks:
            assert torch.equal(read.weights[matrix], dequantized(codes_OI.float(), scale_OG))
            continue
        codes, scale = read.quantized[matrix]
        assert codes.dtype == torch.int8
        assert torch.equal(codes, codes_OI)
        assert torch.equal(scale.expand(scale_OG.shape), scale_OG)
    others = run.weights().keys() - run.quantized().keys()
    for other in others:
        weight = run.weights()[other]
        is_rounded = gguf_type == "F16" and weight.dim() == 2
        assert torch.equal(read.weights[other], weight.half().float() if is_rounded else weight)


def test_a_file_of_blocks_has_a_scale_for_each(runs: Runs) -> None:
    run = runs["wide-blocks"]
    down = "model.layers.0.mlp.down_proj.weight"
    _, scale_OG = read_gguf(written(run, "TQ2_0")).quantized[down]
    assert scale_OG.shape == (256, 2)
    # by the layout of block_tq2_0: 64 bytes of codes, then the scale in fp16
    tensor = next(one for one in gguf.GGUFReader("model.gguf").tensors if one.name == "blk.0.ffn_down.weight")
    blocks = np.array(tensor.data).reshape(256, 2, 66)
    np.testing.assert_array_equal(blocks[..., 64:].copy().view(np.float16)[..., 0], scale_OG.numpy())
    assert len(scale_OG.unique()) > 100


def test_a_gguf_file_tells_config_tokenizer_and_origin(runs: Runs) -> None:
    run = runs["wide"]
    read = read_gguf(written(run, "TQ2_0"))
    drawn = {"initialization", "init_std"}
    assert ModelConfig(**read.model).model_dump(exclude=drawn) == run.config.model.model_dump(exclude=drawn)
    assert (read.context_length, read.quant_lambda, read.end_of_text) == (32, 1.0, "<|endoftext|>")
    assert (read.run, read.step) == (run.name, run.step)
    assert read.tokenizer == run.tokenizer.to_str()
    assert read.tokenizer_sha256 == run.manifest.data["tokenizer_fingerprint"]


def test_keys_that_llama_cpp_needs(runs: Runs) -> None:
    fields = gguf.GGUFReader(written(runs["wide"], "TQ2_0")).fields
    keys = {name: field.contents() for name, field in fields.items()}
    assert keys["general.architecture"] == "bitnet"
    assert keys["general.file_type"] == gguf.LlamaFileType.MOSTLY_TQ2_0
    assert keys["bitnet.vocab_size"] == 300
    assert keys["bitnet.rope.dimension_count"] == 64
    assert keys["bitnet.attention.head_count_kv"] == 2
    assert keys["bitnet.rope.freq_base"] == 500.0
    assert keys["tokenizer.ggml.pre"] == "gpt-2"
    assert keys["tokenizer.ggml.add_bos_token"] is False
    assert keys["tokenizer.ggml.bos_token_id"] == keys["tokenizer.ggml.eos_token_id"] == 0
    assert keys["tokenizer.ggml.token_type"] == [3, *[1] * 299]


def test_full_precision_has_no_codes(runs: Runs) -> None:
    run = runs["full"]
    read = read_gguf(written(run, "F32"))
    assert (read.quant_lambda, read.quantized) == (0.0, {})
    assert all(torch.equal(read.weights[name], weight) for name, weight in run.weights().items())


def test_a_file_that_scales_its_blocks_alike(runs: Runs) -> None:
    """As the library packs codes · scale, without tensors of their own: the scale is that of fp16."""
    run = runs["wide"]
    writer = gguf.GGUFWriter("other.gguf", "bitnet")
    kind = gguf.GGMLQuantizationType.TQ2_0
    for key in ("embedding_length", "block_count", "feed_forward_length", "head_count"):
        getattr(writer, f"add_{key}")(4)
    writer.add_layer_norm_rms_eps(1e-6)
    name = "model.layers.1.self_attn.q_proj.weight"
    codes_OI, scale_OG = run.quantized()[name]
    values = dequantized(codes_OI.float(), scale_OG).numpy()
    writer.add_tensor("blk.1.attn_q.weight", gguf.quants.quantize(values, kind), raw_dtype=kind)
    for step in ("header", "kv_data", "tensors"):
        getattr(writer, f"write_{step}_to_file")()
    writer.close()
    read = read_gguf(Path("other.gguf"))
    codes, scale = read.quantized[name]
    assert torch.equal(codes, codes_OI)
    assert torch.equal(scale.expand(scale_OG.shape), scale_OG.half().float())
    assert (read.quant_lambda, read.tokenizer, read.end_of_text, read.run) == (1.0, None, None, None)
    assert (read.model["rms_norm_eps"], read.model["rope_theta"]) == (1e-6, 10_000.0)


def test_names_of_tensors(runs: Runs) -> None:
    names = list(runs["wide"].weights())
    assert [parameter_name(tensor_name(name)) for name in names] == names
    assert tensor_name("model.layers.11.mlp.ffn_sub_norm.weight") == "blk.11.ffn_sub_norm.weight"
    for unknown in ("lm_head.weight", "model.layers.0.mlp.gate_up_norm.weight", "bias"):
        with pytest.raises(KeyError):
            tensor_name(unknown)
    for unknown in ("output.weight", "blk.0.attn_q.bias", "rope_freqs"):
        with pytest.raises(KeyError):
            parameter_name(unknown)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20_000])


def other_magic(path: Path) -> None:
    path.write_bytes(b"GGML" + path.read_bytes()[4:])


def other_architecture(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"bitnet", b"bitnot"))


def other_tensor(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"output_norm.weight", b"output_norm.magnet"))


def no_key(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"bitnet.block_count", b"bitnet.block_mount"))


def endless(path: Path) -> None:
    """Claim 2^60 types of tokens."""
    content = bytearray(path.read_bytes())
    at = content.index(b"tokenizer.ggml.token_type") + len("tokenizer.ggml.token_type") + 8
    assert struct.unpack_from("<Q", content, at) == (300,)
    struct.pack_into("<Q", content, at, 1 << 60)
    path.write_bytes(content)


def other_version(path: Path) -> None:
    path.write_bytes(b"GGUF" + struct.pack("<I", 77) + path.read_bytes()[8:])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, "not a GGUF file of a bitnet model"),
        (other_magic, "magic"),
        (other_architecture, "architecture 'bitnot'; only 'bitnet' is read"),
        (other_tensor, "it has a tensor output_norm.magnet"),
        (no_key, "bitnet.block_count"),
        (endless, "it ends too early"),
        (other_version, "version 77"),
        (lambda path: path.write_bytes(b""), "not a GGUF file"),
        (lambda path: path.unlink(), "No such file"),
    ],
)
def test_damaged_gguf_files(damage: Callable[[Path], object], message: str, runs: Runs) -> None:
    path = written(runs["full"], "F32")
    damage(path)
    with pytest.raises(ConfigError, match=message) as caught:
        read_gguf(path)
    assert "\n" not in str(caught.value)
    # a sound file of another model is not damaged
    assert isinstance(caught.value, DataError) == (damage is not other_architecture)


def test_gguf_needs_its_library(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ConfigError, match=r"pip install 'bitnetctl\[gguf\]'"):
        read_gguf(Path("model.gguf"))


def changed(run: TrainedRun, **changes: object) -> Tokenizer:
    tree = json.loads(run.tokenizer.to_str())
    for key, value in changes.items():
        *parents, last = key.split("__")
        place = tree
        for parent in parents:
            place = place[int(parent) if parent.isdigit() else parent]
        place[last] = value
    return Tokenizer.from_str(json.dumps(tree))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pre_tokenizer__add_prefix_space": True}, "a space is put in front of a text"),
        ({"pre_tokenizer__use_regex": False}, "its pre-tokenizer has not the pattern of GPT-2"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "its pre-tokenizer is Whitespace"),
        ({"pre_tokenizer": None}, "its pre-tokenizer is none"),
        ({"normalizer": {"type": "NFC"}}, r"text is normalized \(NFC\)"),
        ({"model__ignore_merges": True}, "ignore_merges is True"),
        ({"added_tokens__0__lstrip": True}, "takes the space beside it"),
        ({"model": {"type": "WordLevel", "vocab": {"<|endoftext|>": 0}, "unk_token": "?"}}, "its model is WordLevel"),
        (
            {"model": {"type": "BPE", "vocab": {"a": 1, "<|endoftext|>": 0}, "merges": []}},
            "255 of the 256 byte symbols are missing",
        ),
    ],
)
def test_tokenizers_that_llama_cpp_splits_otherwise(changes: dict[str, object], message: str, runs: Runs) -> None:
    with pytest.raises(ConfigError, match=rf"{message}; train with data.tokenizer=bpe:SIZE"):
        vocabulary(changed(runs["wide"], **changes), 300)


def test_ids_without_a_token_and_tokens_of_users(runs: Runs) -> None:
    tokenizer = changed(runs["wide"])
    tokenizer.add_tokens(["<mine>"])
    read = vocabulary(tokenizer, 303)
    assert list(read.tokens[299:]) == [tokenizer.id_to_token(299), "<mine>", "[UNUSED301]", "[UNUSED302]"]
    assert list(read.types[299:]) == [1, 4, 5, 5]
    again = Tokenizer.from_str(tokenizer_json(read))
    for text in ("some <mine> text<|endoftext|>", "ünï 12"):
        assert again.encode(text).ids == tokenizer.encode(text).ids


@pytest.mark.parametrize("name", ["wide-blocks", "groups", "full", "half", "origin"])
def test_a_plain_file_holds_any_run(name: str, runs: Runs) -> None:
    run = runs[name]
    exported = export_safetensors(run, Path("model.safetensors"))
    read = read_safetensors(exported.path)
    assert ModelConfig(**read.model) == run.config.model
    assert (read.quant_lambda, read.context_length) == (run.quant_lambda, 32)
    assert (read.run, read.step, read.end_of_text) == (run.name, run.step, "<|endoftext|>")
    assert read.tokenizer == run.tokenizer.to_str()
    assert read.tokenizer_sha256 == run.manifest.data["tokenizer_fingerprint"]
    assert all(torch.equal(read.weights[key], weight) for key, weight in run.weights().items())
    quantized = {} if name == "full" else run.quantized()
    assert read.quantized.keys() == quantized.keys()
    assert all(
        torch.equal(*pair) for key in quantized for pair in zip(read.quantized[key], quantized[key], strict=True)
    )
    assert exported.form == ("masters" if name == "full" else "masters and codes")
    (line,) = exported.checks
    assert line.endswith("tensors in fp32 identical, read back from the file")
    assert line.startswith("codes of 14 matrices identical") == (name != "full")


def test_a_plain_file_is_not_replaced_by_chance(runs: Runs) -> None:
    path = Path("model.safetensors")
    export_safetensors(runs["full"], path, check=False)
    with pytest.raises(ConfigError, match="exists; --force replaces"):
        export_safetensors(runs["origin"], path)
    export_safetensors(runs["origin"], path, replace=True)
    assert read_safetensors(path).run == "origin"
    path.unlink()
    path.symlink_to("nowhere")
    for replace, message in ((False, "exists; --force replaces"), (True, "is a link or a device")):
        with pytest.raises(ConfigError, match=message):
            export_safetensors(runs["origin"], path, replace=replace)
    other = Path("rows.csv")
    other.write_text("Step,Loss")
    with pytest.raises(ConfigError, match="is nothing that such an export wrote"):
        export_safetensors(runs["origin"], other, replace=True)
    with pytest.raises(ConfigError, match="is nothing that such an export wrote"):
        export_gguf(runs["wide"], other, check=False, replace=True)
    assert other.read_text() == "Step,Loss"
    with pytest.raises(ConfigError, match="is a folder"):
        export_safetensors(runs["origin"], Path())


@pytest.mark.parametrize("name", ["model.norm.weight", "codes/model.layers.0.mlp.up_proj.weight"])
def test_a_plain_file_that_differs_is_not_kept(name: str, runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:

    def wrong(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> bytes:
        return save({**tensors, name: 1 - tensors[name]}, metadata)

    monkeypatch.setattr("bitnetctl.formats.bitnetctl_safetensors.save", wrong)
    with pytest.raises(ExportError, match=r"self-check failed: model\."):
        export_safetensors(runs["wide"], Path("model.safetensors"))
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("quantization", "0.5"), ("context_length", "7"), ("end_of_text", "the"), ("tokenizer", "{}")),
        *(("step", "1"), ("run", "other")),
    ],
)
def test_other_metadata_are_found(key: str, value: str, runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> bytes:
        return save(tensors, {**metadata, key: value})

    monkeypatch.setattr("bitnetctl.formats.bitnetctl_safetensors.save", wrong)
    with pytest.raises(ExportError, match=f"self-check failed: .*{key}"):
        export_safetensors(runs["wide"], Path("model.safetensors"))
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("bitnet.rope.freq_base", lambda old: 501.0, "rope_theta is '501.0' in the file, not 500.0"),
        ("bitnet.attention.layer_norm_rms_epsilon", lambda old: 2e-5, "rms_norm_eps is"),
        ("bitnet.context_length", lambda old: 7, "context_length is '7' in the file, not 32"),
        ("bitnetctl.run", lambda old: "wide@3", "step is '3' in the file, not 4"),
        ("tokenizer.ggml.eos_token_id", lambda old: 5, "end_of_text is"),
        ("tokenizer.ggml.bos_token_id", lambda old: 5, "bos_token_id: the file has other values"),
        ("tokenizer.ggml.add_bos_token", lambda old: True, "add_bos_token: the file has other values"),
        ("tokenizer.ggml.token_type", lambda old: [1] * 300, "token_type: the file has other values"),
        ("tokenizer.ggml.tokens", lambda old: [*old[:-2], old[-1], old[-2]], "tokens: the file has other values"),
    ],
)
def test_other_keys_of_a_gguf_file_are_found(
    key: str, change: Callable[[Any], Any], message: str, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = gguf.GGUFWriter.write_header_to_file

    def write_header(writer: Any) -> None:
        (data,) = writer.kv_data
        data[key] = dataclasses.replace(data[key], value=change(data[key].value))
        write(writer)

    monkeypatch.setattr(gguf.GGUFWriter, "write_header_to_file", write_header)
    with pytest.raises(ExportError, match=f"self-check failed: .*{message}"):
        export_gguf(runs["wide"], Path("model.gguf"), check=False)
    assert list(Path().iterdir()) == []


def test_other_safetensors_files(runs: Runs) -> None:
    path = Path("model.safetensors")
    save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(DataError, match="not a file of `bitnetctl export --to safetensors`"):
        read_safetensors(path)
    path.unlink()
    export_safetensors(runs["full"], path)
    tensors = load_file(path)
    save_file(tensors, path, {"format": bitnetctl_safetensors.FORMAT})
    with pytest.raises(DataError, match="not a safetensors file of bitnetctl, or damaged: 'config'"):
        read_safetensors(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="not a safetensors file of bitnetctl, or damaged"):
        read_safetensors(path)
