"""Names and layouts of a run's tensors in a folder for `transformers`, and which form can hold which run.

    offline    codes, four to a byte, and a scale; read by AutoBitLinear, which multiplies by the scale
    bitlinear  the same with 1 / scale, as in the first public checkpoints; read by BitLinear, which divides by it
    online     the masters, which AutoBitLinear quantizes at every forward with one scale for each projection
    plain      the masters of a run at full precision, without a quantization config

Shapes: O×I a matrix.
"""

import re
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from bitnetctl.config import ModelConfig
from bitnetctl.errors import ConfigError
from bitnetctl.formats.hf_config import PACKED, HfForm
from bitnetctl.formats.refusals import require_known_activations, require_whole_lambda
from bitnetctl.inference.trained import TrainedRun

Form: TypeAlias = Literal["offline", "bitlinear", "online"]
FORMS: tuple[Form, ...] = get_args(Form)
WEIGHTS = "model.safetensors"
MASTERS = "masters/model.safetensors"
"""Beside packed weights, those before quantization; apart, since some programs read every file of a folder."""
VALUES_PER_BYTE = 4

# where norms of a run stand in front of each projection, as BitNet layers have them inside of other models
_NORMS = {
    "self_attn.qkv_norm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attn.attn_sub_norm": ("self_attn.o_proj",),
    "mlp.gate_up_norm": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.ffn_sub_norm": ("mlp.down_proj",),
}
_NORM = re.compile(rf"(model\.layers\.[0-9]+\.)({'|'.join(map(re.escape, _NORMS))})\.weight")


def pack(codes_OI: Tensor) -> Tensor:
    """Return codes as uint8 [O / 4, I]: bits 2i and 2i + 1 of a byte hold row O / 4 · i + its own, plus 1."""
    quarters = (codes_OI + 1).to(torch.uint8).chunk(VALUES_PER_BYTE)
    return torch.stack([quarter << 2 * index for index, quarter in enumerate(quarters)]).sum(0, dtype=torch.uint8)


def unpack(packed: Tensor) -> Tensor:
    """Return the int8 codes [O, I] of uint8 [O / 4, I], the inverse of `pack`."""
    return torch.cat([(packed >> 2 * index) & 3 for index in range(VALUES_PER_BYTE)]).to(torch.int8) - 1


def written_form(run: TrainedRun, form: Form) -> HfForm:
    """Return the form in which a run is written: plain at λ 0; raises ConfigError for what that form cannot hold."""
    model = run.config.model
    if model.logit_soft_cap is not None:
        raise ConfigError(f"{run.name}: no public BitNet model caps its logits; train with model.logit_soft_cap=none")
    if run.quant_lambda == 0.0:
        if model.inner_norms:
            raise ConfigError(
                f"{run.name}: no public model at full precision has a norm in front of every projection; "
                "train with --recipe portable or b158, or model.inner_norms=false"
            )
        return "plain"
    require_whole_lambda(run)
    require_known_activations(run)
    _require_quantizers(run, form)
    if form != "online":
        _require_packable(run)
    return form


def _require_quantizers(run: TrainedRun, form: Form) -> None:
    """Raise ConfigError for quantizers and scales that a form cannot express."""
    quantizers, name = run.model.matmul.quantizers, run.name
    if form != "online":
        return
    if quantizers.weights is not None:
        raise ConfigError(
            f"{name}: --form online quantizes by the mean of |w|, not as {run.config.arm} does; take --form offline"
        )
    if run.config.model.scale_group == "fused":
        raise ConfigError(
            f"{name}: --form online has a scale for each projection, the run one for fused qkv and gate-up; "
            "take --form offline or bitlinear"
        )


def _require_packable(run: TrainedRun) -> None:
    """Raise ConfigError for codes and scales that packed weights cannot hold."""
    for name, (codes_OI, scale_OG) in run.quantized().items():
        if codes_OI.abs().max() > 1:
            raise ConfigError(f"{run.name}: {name}: codes beyond -1, 0 and 1 cannot be packed into two bits")
        if (scale_OG != scale_OG[0, 0]).any():
            what = "groups of inputs" if scale_OG.shape[1] > 1 else "rows"
            raise ConfigError(
                f"{run.name}: {run.config.arm} has a scale for {what}, and folders for transformers one for a matrix; "
                "--to gguf holds groups of 256 inputs, --to safetensors any"
            )
        if codes_OI.shape[0] % VALUES_PER_BYTE:
            raise ConfigError(
                f"{run.name}: {name} has {codes_OI.shape[0]} rows, no multiple of {VALUES_PER_BYTE}, and cannot be "
                "packed; take --form online, or train other widths"
            )


def tensors(run: TrainedRun, form: HfForm) -> dict[str, Tensor]:
    """Return the tensors of `model.safetensors` by name, each with memory of its own."""
    result = {}
    for name, weight in run.weights().items():
        for target in named(name, run.config.model):
            result[target] = weight.clone()
    if form in PACKED:
        for name, (codes_OI, scale_OG) in run.quantized().items():
            scale_1 = scale_OG[0, :1].clone()
            result[name] = pack(codes_OI)
            result[scale_name(name)] = scale_1 if form == "offline" else scale_1.reciprocal()
    return result


def scale_name(matrix: str) -> str:
    """Return the name of the scale of a packed matrix."""
    return f"{matrix}_scale"


def named(name: str, config: ModelConfig) -> tuple[str, ...]:
    """Return the names in the folder of a parameter of a run: with inner norms, these stand before each projection."""
    matched = _NORM.fullmatch(name) if config.inner_norms else None
    if matched is None:
        return (name,)
    return tuple(f"{matched[1]}{projection}.rms_norm.weight" for projection in _NORMS[matched[2]])
