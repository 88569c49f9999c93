"""Shapes of a model's packed tensors, and the named parameters that are blocks of their rows.

Shapes: L layers, O×I a matrix, F the width of a norm, V vocabulary, H hidden.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from bitnetctl.config import ModelConfig, ParameterGroup

EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"
"""Names of the table of embeddings and of an untied head."""


@dataclass(frozen=True, kw_only=True)
class ParameterSpec:
    """One packed tensor of the model and the named parameters that are blocks of it.

    `shape` is without the run dimension: [L, O, I] for matrices, [L, F] for norms ([F] for the last), [V, H] for
    embeddings and head. `blocks` are the parameters fused in the rows: name (with `{layer}`) and number of rows.
    """

    shape: tuple[int, ...]
    blocks: tuple[tuple[str, int], ...]
    group: ParameterGroup | None = None
    per_layer: bool = True

    @property
    def is_matrix(self) -> bool:
        """Whether it is a matrix, which is quantized and always decayed."""
        return self.group is None

    def parameters(self, packed: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield name and view of every parameter in one run's slice [*shape] of the packed tensor or its gradient."""
        for layer, rows in enumerate(packed.unbind(0) if self.per_layer else (packed,)):
            start = 0
            for name, height in self.blocks:
                yield name.format(layer=layer), rows[start : start + height]
                start += height


def parameter_specs(config: ModelConfig, vocab_size: int) -> dict[str, ParameterSpec]:
    """Return the packed tensors of a model by name; parameter names are those of `transformers`."""
    layers, hidden, ffn = config.num_layers, config.hidden_size, config.intermediate_size
    heads = config.num_attention_heads * config.head_size
    kv = config.num_key_value_heads * config.head_size
    layer, attention, mlp = "model.layers.{layer}.", "self_attn.", "mlp."

    def matrix(inputs: int, *blocks: tuple[str, int]) -> ParameterSpec:
        named = tuple((f"{layer}{name}.weight", height) for name, height in blocks)
        return ParameterSpec(shape=(layers, sum(height for _, height in blocks), inputs), blocks=named)

    def norm(name: str, width: int) -> ParameterSpec:
        return ParameterSpec(shape=(layers, width), blocks=((f"{layer}{name}.weight", width),), group="norms")

    def single(name: str, group: ParameterGroup, *shape: int) -> ParameterSpec:
        return ParameterSpec(shape=shape, blocks=((name, shape[0]),), group=group, per_layer=False)

    result = {"embed": single(EMBEDDINGS, "embeddings", vocab_size, hidden)}
    if not config.tie_word_embeddings:
        result["head"] = single(HEAD, "head", vocab_size, hidden)
    result |= {
        "qkv": matrix(hidden, (f"{attention}q_proj", heads), (f"{attention}k_proj", kv), (f"{attention}v_proj", kv)),
        "o": matrix(heads, (f"{attention}o_proj", hidden)),
        "gate_up": matrix(hidden, (f"{mlp}gate_proj", ffn), (f"{mlp}up_proj", ffn)),
        "down": matrix(ffn, (f"{mlp}down_proj", hidden)),
        "input_norm": norm("input_layernorm", hidden),
        "attn_sub_norm": norm(f"{attention}attn_sub_norm", heads),
        "post_norm": norm("post_attention_layernorm", hidden),
        "ffn_sub_norm": norm(f"{mlp}ffn_sub_norm", ffn),
    }
    if config.inner_norms:
        result["qkv_norm"] = norm(f"{attention}qkv_norm", hidden)
        result["gate_up_norm"] = norm(f"{mlp}gate_up_norm", hidden)
    result["final_norm"] = single("model.norm.weight", "norms", hidden)
    return result


def parameter_groups(specs: Mapping[str, ParameterSpec]) -> dict[str, ParameterGroup | None]:
    """Return the parameter group of every named parameter; None for matrices."""
    return {
        name.format(layer=layer): spec.group
        for spec in specs.values()
        for layer in range(spec.shape[0] if spec.per_layer else 1)
        for name, _ in spec.blocks
    }


def num_parameters(config: ModelConfig, vocab_size: int) -> int:
    """Return the number of parameters of one run."""
    return sum(math.prod(spec.shape) for spec in parameter_specs(config, vocab_size).values())
