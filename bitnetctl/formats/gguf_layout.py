"""What a run is called in a GGUF file of llama.cpp's `bitnet` models, and which run such a model can be.

The graph is src/models/bitnet.cpp of llama.cpp: SubLN, SiLU, the embeddings as head, and for each matrix an optional
tensor `.scale` of one value that its product is multiplied by.

Shapes: O×I a matrix, G groups of inputs with a scale each, B blocks of inputs.
"""

import math
import re
from typing import Literal, TypeAlias, get_args

from torch import Tensor

from bitnetctl.errors import ConfigError
from bitnetctl.formats.refusals import require_known_activations, require_special_end, require_whole_lambda
from bitnetctl.inference.trained import TrainedRun

GgufType: TypeAlias = Literal["TQ2_0", "TQ1_0", "F16", "F32"]
GGUF_TYPES: tuple[GgufType, ...] = get_args(GgufType)

ARCHITECTURE = "bitnet"
BLOCK = 256
"""Inputs in a block of TQ1_0 and TQ2_0, which has a scale in fp16."""
TERNARY_TYPES = ("TQ1_0", "TQ2_0")

ScaleLayout: TypeAlias = Literal["matrix", "block", "values"]

_SINGLE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm"}
_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.attn_sub_norm": "attn_sub_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.ffn_sub_norm": "ffn_sub_norm",
}
_NAMES = _SINGLE | _LAYER
_PARAMETERS = {target: name for name, target in _NAMES.items()}
_OURS = re.compile(r"(?:model\.layers\.(?P<layer>[0-9]+)\.)?(?P<stem>.+)\.weight")
_THEIRS = re.compile(r"(?:blk\.(?P<layer>[0-9]+)\.)?(?P<stem>[a-z_]+)\.weight")


def tensor_name(parameter: str) -> str:
    """Return the name in a GGUF file of a parameter; raises KeyError for one that such a model has not."""
    match = _OURS.fullmatch(parameter)
    if match is None:
        raise KeyError(parameter)
    layer, stem = match["layer"], _NAMES[match["stem"]]
    return f"{stem}.weight" if layer is None else f"blk.{layer}.{stem}.weight"


def parameter_name(tensor: str) -> str:
    """Return the parameter that a tensor of a GGUF file is, the inverse of `tensor_name`; raises KeyError."""
    match = _THEIRS.fullmatch(tensor)
    if match is None:
        raise KeyError(tensor)
    layer, stem = match["layer"], _PARAMETERS[match["stem"]]
    return f"{stem}.weight" if layer is None else f"model.layers.{layer}.{stem}.weight"


def scale_name(tensor: str) -> str:
    """Return the name of the scale of a matrix of a GGUF file."""
    return f"{tensor.removesuffix('.weight')}.scale"


def require_expressible(run: TrainedRun, gguf_type: GgufType) -> None:
    """Raise ConfigError for a run that llama.cpp would not load, or would run as another model."""
    _require_graph(run)
    _require_quantization(run, gguf_type)
    require_special_end(run)
    model = run.config.model
    if gguf_type in TERNARY_TYPES:
        _require_whole_blocks(run, gguf_type)
    if run.quant_lambda == 1.0:
        for name, (codes_OI, scale_OG) in run.quantized().items():
            try:
                scale_layout(codes_OI, scale_OG, gguf_type)
            except ValueError as error:
                # the largest groups that rows of all matrices are made of; of ternary types they are blocks
                size = math.gcd(BLOCK, model.hidden_size, model.intermediate_size)
                raise ConfigError(
                    f"{run.name}: {run.config.arm}: {name}: {error}; train with "
                    f"group-scale:size={size},half=true, or take --outtype F32"
                ) from error


def _require_whole_blocks(run: TrainedRun, gguf_type: GgufType) -> None:
    """Raise ConfigError for rows that are not made of whole blocks of a ternary type."""
    model = run.config.model
    widths = {"hidden size": model.hidden_size, "feed-forward width": model.intermediate_size}
    wrong = [f"{what} is {inputs}" for what, inputs in widths.items() if inputs % BLOCK]
    if wrong:
        needed = [f"a --size that is a multiple of {BLOCK}"] if model.hidden_size % BLOCK else []
        if not model.intermediate_ratio.is_integer():
            needed.append("a model.intermediate_ratio that is a whole number")
        raise ConfigError(
            f"{run.name}: its {' and its '.join(wrong)}, and {gguf_type} has blocks of {BLOCK} weights of a row; take "
            f"--outtype F16 or F32, or train with {' and '.join(needed)}"
        )


def _require_graph(run: TrainedRun) -> None:
    """Raise ConfigError where the graph of llama.cpp is that of another model."""
    model, problem = run.config.model, None
    if model.activation != "silu":
        problem = f"would compute SiLU where the run has {model.activation} (model.activation)"
    elif not model.tie_word_embeddings:
        problem = "takes the embeddings as head, and the run has an untied head (model.tie_word_embeddings)"
    elif model.inner_norms:
        problem = "has no norms in front of the projections inside a layer, as the run has (model.inner_norms)"
    elif model.logit_soft_cap is not None:
        problem = f"does not cap logits, which the run caps at {model.logit_soft_cap:g} (model.logit_soft_cap)"
    if problem is not None:
        raise ConfigError(
            f"{run.name}: llama.cpp {problem}; train with --recipe portable, or export --to hf or safetensors"
        )


def _require_quantization(run: TrainedRun, gguf_type: GgufType) -> None:
    """Raise ConfigError for a λ, or activations, that llama.cpp does not compute."""
    require_whole_lambda(run)
    require_known_activations(run)
    if run.quant_lambda == 0.0 and gguf_type in TERNARY_TYPES:
        raise ConfigError(
            f"{run.name}: at step {run.step:,} it is at full precision (λ 0), and {gguf_type} is ternary; take "
            "--outtype F32 or F16"
        )


def scale_layout(codes_OI: Tensor, scale_OG: Tensor, gguf_type: GgufType) -> ScaleLayout:
    """Return where a file has the scale of a matrix: in a tensor of its own, in each block, or in the values.

    Raises ValueError for scales that the type cannot hold exactly.
    """
    if (scale_OG == scale_OG[0, 0]).all():
        return "matrix"
    if gguf_type == "F32":
        return "values"
    if gguf_type in TERNARY_TYPES and block_scale(codes_OI, scale_OG) is None:
        raise ValueError(f"{scale_OG.shape[1]} scales for a row, and {gguf_type} has one for every {BLOCK} inputs")
    if not (scale_OG.half().float() == scale_OG).all():
        raise ValueError(f"its scales are not exact in fp16, as {gguf_type} has them (up to 4.9e-4 off)")
    return "block" if gguf_type in TERNARY_TYPES else "values"


def block_scale(codes_OI: Tensor, scale_OG: Tensor) -> Tensor | None:
    """Return the scale of every block of a matrix [O, B], None where a block has several."""
    outputs, inputs = codes_OI.shape
    scale_OBI = scale_OG.repeat_interleave(inputs // scale_OG.shape[1], 1).view(outputs, inputs // BLOCK, BLOCK)
    scale_OB = scale_OBI[..., 0]
    return scale_OB if (scale_OBI == scale_OB.unsqueeze(-1)).all() else None
