"""Write and read GGUF files of llama.cpp's `bitnet` models; the library `gguf` packs, reads and unpacks.

A matrix with one scale is stored as its codes, in blocks of scale 1, and a tensor `.scale`: both exact. Where every
block of 256 inputs has a scale, that is the scale of the block, in fp16.

Shapes: O×I a matrix, G groups of inputs with a scale each, B blocks of inputs.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bitnetctl.errors import ConfigError, DataError, one_line
from bitnetctl.files import require_space
from bitnetctl.formats import gguf_vocabulary
from bitnetctl.formats.gguf_layout import (
    ARCHITECTURE,
    BLOCK,
    TERNARY_TYPES,
    GgufType,
    block_scale,
    parameter_name,
    scale_layout,
    scale_name,
    tensor_name,
)
from bitnetctl.formats.gguf_vocabulary import Vocabulary
from bitnetctl.formats.model_content import ModelContent, exported_name, parse_exported_name
from bitnetctl.inference.trained import TrainedRun
from bitnetctl.model.quantization import dequantized

Array: TypeAlias = NDArray[Any]

# the scale of a block: its last two bytes, in both ternary types
_SCALE_BYTES = 2
_MAGIC = b"GGUF"
# own keys, which llama.cpp passes over
_RUN, _LAMBDA, _TOKENIZER = "bitnetctl.run", "bitnetctl.quantization", "bitnetctl.tokenizer_sha256"
_ACTIVATION = f"{ARCHITECTURE}.hidden_activation"


def gguf_library() -> Any:
    """Return the module `gguf`; raises ConfigError where it is not installed."""
    try:
        import gguf
    except ImportError as error:
        raise ConfigError("GGUF files need the library gguf: pip install 'bitnetctl[gguf]'") from error
    return gguf


def write_gguf(path: Path, run: TrainedRun, gguf_type: GgufType) -> None:
    """Write a new file; raises StorageError, OSError. `require_expressible` says which runs it can hold."""
    gguf = gguf_library()
    stored = list(tensors(run, gguf_type))
    # of a full disk numpy does not say that it is one
    require_space(path.parent, sum(array.nbytes for _, array, _ in stored))
    vocabulary = gguf_vocabulary.vocabulary(run.tokenizer, run.model.vocab_size)
    writer = gguf.GGUFWriter(path, ARCHITECTURE)
    try:
        _add_keys(writer, run, gguf_type, vocabulary)
        for name, array, kind in stored:
            writer.add_tensor(name, array, raw_dtype=gguf.GGMLQuantizationType[kind])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _add_keys(writer: Any, run: TrainedRun, gguf_type: GgufType, vocabulary: Vocabulary) -> None:
    model, gguf = run.config.model, gguf_library()
    writer.add_name(run.name)
    writer.add_file_type(gguf.LlamaFileType[f"{'ALL' if gguf_type == 'F32' else 'MOSTLY'}_{gguf_type}"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(run.model.vocab_size)
    writer.add_context_length(run.context_length)
    writer.add_embedding_length(model.hidden_size)
    writer.add_block_count(model.num_layers)
    writer.add_feed_forward_length(model.intermediate_size)
    writer.add_head_count(model.num_attention_heads)
    writer.add_head_count_kv(model.num_key_value_heads)
    writer.add_layer_norm_rms_eps(model.rms_norm_eps)
    writer.add_rope_freq_base(model.rope_theta)
    writer.add_rope_dimension_count(model.head_size)
    # what llama.cpp computes in any case, so far
    writer.add_string(_ACTIVATION, model.activation)
    writer.add_tokenizer_model(gguf_vocabulary.MODEL)
    writer.add_tokenizer_pre(gguf_vocabulary.PRE)
    writer.add_token_list(list(vocabulary.tokens))
    writer.add_token_types(list(vocabulary.types))
    writer.add_token_merges(list(vocabulary.merges))
    writer.add_add_bos_token(False)
    if run.end_of_text is not None:
        # without them llama.cpp takes id 11
        writer.add_bos_token_id(run.end_of_text)
        writer.add_eos_token_id(run.end_of_text)
    writer.add_string(_RUN, exported_name(run.name, run.step))
    writer.add_float32(_LAMBDA, run.quant_lambda)
    fingerprint = run.manifest.data.get("tokenizer_fingerprint")
    if isinstance(fingerprint, str):
        writer.add_string(_TOKENIZER, fingerprint)


def tensors(run: TrainedRun, gguf_type: GgufType) -> Iterator[tuple[str, Array, str]]:
    """Yield the tensors of a file: name, values or packed blocks, and type.

    Embeddings are F32 but in an F16 file: as F16 they add a tenth to the difference of a ternary file.
    """
    quantized = run.quantized() if run.quant_lambda else {}
    for name, weight in run.weights().items():
        target = tensor_name(name)
        if name in quantized:
            yield from _matrix(target, *quantized[name], gguf_type)
        elif weight.dim() == 2 and gguf_type == "F16":
            yield target, weight.half().numpy(), "F16"
        else:
            yield target, weight.numpy(), "F32"


def _matrix(target: str, codes_OI: Tensor, scale_OG: Tensor, gguf_type: GgufType) -> Iterator[tuple[str, Array, str]]:
    layout = scale_layout(codes_OI, scale_OG, gguf_type)
    if gguf_type in TERNARY_TYPES:
        scale_OB = block_scale(codes_OI, scale_OG) if layout == "block" else None
        yield target, _packed(codes_OI, scale_OB, gguf_type), gguf_type
    else:
        values_OI = dequantized(codes_OI.float(), scale_OG) if layout == "values" else codes_OI
        yield target, values_OI.to(torch.float16 if gguf_type == "F16" else torch.float32).numpy(), gguf_type
    if layout == "matrix":
        yield scale_name(target), scale_OG[0, :1].numpy(), "F32"


def _packed(codes_OI: Tensor, scale_OB: Tensor | None, gguf_type: GgufType) -> Array:
    """Return the blocks [O, bytes] of codes, of scale 1 if `scale_OB` is None."""
    gguf = gguf_library()
    packed = gguf.quants.quantize(codes_OI.float().numpy(), gguf.GGMLQuantizationType[gguf_type])
    outputs, inputs = codes_OI.shape
    blocks = packed.reshape(outputs, inputs // BLOCK, _block_bytes(gguf, gguf_type))
    # a block without a weight would have scale 0
    scale = torch.ones(outputs, inputs // BLOCK) if scale_OB is None else scale_OB
    blocks[..., -_SCALE_BYTES:] = scale.half().unsqueeze(-1).numpy().view(np.uint8)
    packed_bytes: Array = blocks.reshape(outputs, -1)
    return packed_bytes


def _block_bytes(gguf: Any, kind: str) -> int:
    """Return the bytes of a block, which end with its scale."""
    _, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    return int(size)


def is_gguf(path: Path) -> bool:
    """Whether a file begins as GGUF files do; raises OSError."""
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def read_keys(path: Path) -> dict[str, Any]:
    """Return the keys of a file and their values."""
    return {name: field.contents() for name, field in _reader(gguf_library(), path).fields.items()}


def read_gguf(path: Path) -> ModelContent:
    """Read a file of a `bitnet` model, own or of llama.cpp's converter, which states no λ.

    `weights` are in fp32 what is stored: with the masters' names, but not the masters of a ternary model. Raises
    DataError for what is no GGUF file, or a damaged one, ConfigError for a model that cannot be expressed here and
    where the library is missing.
    """
    gguf = gguf_library()
    try:
        reader = _reader(gguf, path)
        keys = {name: field.contents() for name, field in reader.fields.items()}
        architecture = keys.get("general.architecture")
        if architecture != ARCHITECTURE:
            raise ConfigError(f"{path}: holds a model of architecture {architecture!r}; only {ARCHITECTURE!r} is read")
        _require_expressible(path, keys)
        arrays = {tensor.name: (tensor.tensor_type.name, tensor.data) for tensor in reader.tensors}
        weights, quantized = _read_tensors(gguf, arrays)
        run, step = parse_exported_name(keys.get(_RUN))
        return ModelContent(
            model=_model_fields(keys),
            weights=weights,
            quant_lambda=keys.get(_LAMBDA, 1.0 if quantized else 0.0),
            is_lambda_stated=_LAMBDA in keys,
            quantized=quantized,
            context_length=keys.get(f"{ARCHITECTURE}.context_length"),
            tokenizer=_read_tokenizer(keys),
            tokenizer_sha256=keys.get(_TOKENIZER),
            end_of_text=_read_end(keys),
            run=run,
            step=step,
        )
    # what the library raises for a file that was cut or changed
    except (OSError, ValueError, KeyError, IndexError, TypeError, ArithmeticError, NotImplementedError) as error:
        raise DataError(f"{path}: not a GGUF file of a bitnet model: {one_line(error)}") from error


def _reader(gguf: Any, path: Path) -> Any:
    """Return an open file; raises ValueError where a length in it leads beyond its end."""

    class Reader(gguf.GGUFReader):  # type: ignore[misc]
        def _get(self, offset: int, dtype: Any, count: int = 1, *more: Any, **named: Any) -> Any:
            # the library would go on with nothing, element by element of as many as the file claims
            if int(offset) + int(count) * np.dtype(dtype).itemsize > len(self.data):
                raise ValueError("it ends too early")
            return super()._get(offset, dtype, count, *more, **named)

    return Reader(path)


def _require_expressible(path: Path, keys: Mapping[str, Any]) -> None:
    """Raise ConfigError for what models here do not compute."""

    def key(name: str, default: Any = None) -> Any:
        return keys.get(f"{ARCHITECTURE}.{name}", default)

    # llama.cpp's converter writes a linear scaling by 1 into every file, which scales nothing
    scaling = key("rope.scaling.type", "none")
    if scaling != "none" and (scaling != "linear" or key("rope.scaling.factor", 1.0) != 1.0):
        raise ConfigError(f"{path}: its rotary embeddings are scaled ({scaling}); those of models here are not")
    head_size = keys[f"{ARCHITECTURE}.embedding_length"] // keys[f"{ARCHITECTURE}.attention.head_count"]
    for name in ("rope.dimension_count", "attention.key_length", "attention.value_length"):
        if key(name, head_size) != head_size:
            raise ConfigError(
                f"{path}: {name} is {key(name)}, and heads of models here have hidden size / heads = {head_size}"
            )


def _model_fields(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of ModelConfig; raises KeyError for a key that is missing."""

    def key(name: str) -> Any:
        return keys[f"{ARCHITECTURE}.{name}"]

    heads = key("attention.head_count")
    return {
        "hidden_size": key("embedding_length"),
        "num_layers": key("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": keys.get(f"{ARCHITECTURE}.attention.head_count_kv", heads),
        "intermediate_ratio": key("feed_forward_length") / key("embedding_length"),
        "activation": keys.get(_ACTIVATION, "silu"),
        "inner_norms": False,
        "tie_word_embeddings": True,
        # of the shortest decimal that is this number in fp32
        "rms_norm_eps": float(str(np.float32(key("attention.layer_norm_rms_epsilon")))),
        "rope_theta": float(str(np.float32(keys.get(f"{ARCHITECTURE}.rope.freq_base", 10_000.0)))),
    }


def _read_tensors(
    gguf: Any, arrays: Mapping[str, tuple[str, Array]]
) -> tuple[dict[str, Tensor], dict[str, tuple[Tensor, Tensor]]]:
    """Return weights, and codes and scales, by their names in `transformers`."""
    weights: dict[str, Tensor] = {}
    quantized: dict[str, tuple[Tensor, Tensor]] = {}
    for target, (kind, data) in arrays.items():
        if target.endswith(".scale"):
            continue
        try:
            name = parameter_name(target)
        except KeyError as error:
            raise ValueError(f"it has a tensor {target}") from error
        _, factor = arrays.get(scale_name(target), ("F32", None))
        if kind in TERNARY_TYPES:
            codes_OI, scale_OG = _unpacked(gguf, kind, data)
            quantized[name] = codes_OI, scale_OG if factor is None else scale_OG * float(factor[0])
            continue
        values = torch.from_numpy(gguf.quants.dequantize(data, gguf.GGMLQuantizationType[kind]).astype(np.float32))
        if factor is None:
            weights[name] = values
        elif bool(((values == 0) | (values.abs() == 1)).all()):
            quantized[name] = values.to(torch.int8), torch.full((values.shape[0], 1), float(factor[0]))
        else:
            weights[name] = values * float(factor[0])
    return weights, quantized


def _unpacked(gguf: Any, kind: str, data: Array) -> tuple[Tensor, Tensor]:
    """Return int8 codes [O, I] and the scale [O, B] of the blocks of a matrix, or [O, 1] where those are all one."""
    blocks = np.array(data).reshape(data.shape[0], -1, _block_bytes(gguf, kind))
    scale_OB = blocks[..., -_SCALE_BYTES:].copy().view(np.float16)[..., 0].astype(np.float32)
    blocks[..., -_SCALE_BYTES:] = np.ones(1, np.float16).view(np.uint8)
    values = gguf.quants.dequantize(blocks.reshape(data.shape[0], -1), gguf.GGMLQuantizationType[kind])
    is_one = bool((scale_OB == scale_OB[0, 0]).all())
    return torch.from_numpy(values).to(torch.int8), torch.from_numpy(scale_OB[:, :1].copy() if is_one else scale_OB)


def _read_tokenizer(keys: Mapping[str, Any]) -> str | None:
    """Return a tokenizer.json; None for one that is not byte-level BPE with the pre-tokenizer of GPT-2."""
    if keys.get("tokenizer.ggml.model") != gguf_vocabulary.MODEL:
        return None
    if keys.get("tokenizer.ggml.pre") != gguf_vocabulary.PRE:
        return None
    tokens, merges = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.merges"]
    types = keys.get("tokenizer.ggml.token_type", [gguf_vocabulary.NORMAL] * len(tokens))
    return gguf_vocabulary.tokenizer_json(Vocabulary(tokens=tokens, types=types, merges=merges))


def _read_end(keys: Mapping[str, Any]) -> str | None:
    """Return the token that ends a text."""
    number = keys.get("tokenizer.ggml.eos_token_id")
    return None if number is None else str(keys["tokenizer.ggml.tokens"][number])
