"""What a `config.json` of `transformers` means, for writing and for reading.

What this product cannot express is refused with the reason. Missing fields have the defaults of `transformers`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from bitnetctl.config import ModelConfig, validated
from bitnetctl.errors import ConfigError, DataError
from bitnetctl.formats.model_content import exported_name
from bitnetctl.inference.trained import TrainedRun

HfForm: TypeAlias = Literal["offline", "bitlinear", "online", "plain"]
"""How matrices are stored: codes with a scale, or with 1 / scale; masters that are quantized; full precision."""
PACKED: tuple[HfForm, ...] = ("offline", "bitlinear")

# `linear_class` and `quantization_mode` of each; BitLinear does not read its mode
_LAYERS: Mapping[HfForm, tuple[str, str]] = {
    "offline": ("autobitlinear", "offline"),
    "bitlinear": ("bitlinear", "offline"),
    "online": ("autobitlinear", "online"),
}

_ARCHITECTURES = {"bitnet": "BitNetForCausalLM", "llama": "LlamaForCausalLM"}
_ROPE_THETA = {"bitnet": 500_000.0, "llama": 10_000.0}
_ACTIVATIONS = {"relu2": "relu2", "silu": "silu", "swish": "silu"}
# modules that are quantized by none of the forms, whatever the config says
_NEVER_QUANTIZED = {"lm_head", "embed_tokens", "model.embed_tokens", "norm", "model.norm"}


def config_tree(run: TrainedRun, form: HfForm) -> dict[str, Any]:
    """Return `config.json`: both spellings of what the versions of `transformers` name differently."""
    model = run.config.model
    kind = "llama" if model.inner_norms else "bitnet"
    tree: dict[str, Any] = {
        "architectures": [_ARCHITECTURES[kind]],
        "model_type": kind,
        "attention_bias": False,
        "attention_dropout": 0.0,
        # the defaults are ids of another vocabulary
        "bos_token_id": run.end_of_text,
        "eos_token_id": run.end_of_text,
        "pad_token_id": None,
        "head_dim": model.head_size,
        "hidden_act": model.activation,
        "hidden_size": model.hidden_size,
        "initializer_range": model.init_std,
        "intermediate_size": model.intermediate_size,
        "max_position_embeddings": run.context_length,
        "num_attention_heads": model.num_attention_heads,
        "num_hidden_layers": model.num_layers,
        "num_key_value_heads": model.num_key_value_heads,
        "rms_norm_eps": model.rms_norm_eps,
        # the first is read by transformers 4, the second by 5
        "rope_theta": model.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": model.rope_theta},
        "tie_word_embeddings": model.tie_word_embeddings,
        "torch_dtype": "float32",
        "dtype": "float32",
        "use_cache": True,
        "vocab_size": run.model.vocab_size,
        # read by an import only
        "bitnetctl": {"run": exported_name(run.name, run.step)},
    }
    if form in _LAYERS:
        linear_class, mode = _LAYERS[form]
        tree["quantization_config"] = {
            "quant_method": "bitnet",
            "linear_class": linear_class,
            "quantization_mode": mode,
            "use_rms_norm": model.inner_norms,
            "rms_norm_eps": model.rms_norm_eps,
            "modules_to_not_convert": ["lm_head"],
        }
    return tree


@dataclass(frozen=True, kw_only=True)
class HfConfig:
    """What a config.json says: fields of ModelConfig but for the scale, how matrices are stored, the context length.

    `end_of_text` is the id of the token that ends a text, `run` the run that was exported, where it says so.
    """

    model: dict[str, Any]
    form: HfForm
    context_length: int | None
    end_of_text: int | None
    run: str | None

    def model_config(self) -> ModelConfig:
        """Return the config of a model with these fields; raises ConfigError."""
        return validated(ModelConfig, self.model, "config.json")


def parse_hf_config(tree: Mapping[str, Any], path: Path) -> HfConfig:
    """Return what a config.json says; raises ConfigError for a model that cannot be expressed, DataError if damaged."""
    kind = _model_type(tree, path)
    quantization = tree.get("quantization_config")
    form, in_front, eps = _quantization(quantization, path)
    if kind == "llama" and not in_front:
        raise ConfigError(
            f"{path}: a Llama without use_rms_norm has no norms in front of its output and down projections (SubLN), "
            "which every model here has"
        )
    if kind == "bitnet" and in_front:
        raise ConfigError(f"{path}: has a norm in front of every projection and sub-norms, too; models here have one")
    if in_front and eps is not None and eps != _number(tree, "rms_norm_eps", 1e-6, path):
        raise ConfigError(f"{path}: norms of two kinds have a different rms_norm_eps; models here have one")
    _require_expressible(tree, path)
    hidden, heads = _count(tree, "hidden_size", path), _count(tree, "num_attention_heads", path)
    kv_heads = heads if tree.get("num_key_value_heads") is None else _count(tree, "num_key_value_heads", path)
    if tree.get("head_dim") is not None and (head_dim := _count(tree, "head_dim", path)) * heads != hidden:
        raise ConfigError(
            f"{path}: head_dim {head_dim} x {heads} heads is not hidden_size {hidden}, as it is in models here"
        )
    activation = tree.get("hidden_act", "relu2" if kind == "bitnet" else "silu")
    if not isinstance(activation, str) or activation not in _ACTIVATIONS:
        raise ConfigError(f"{path}: hidden_act {str(activation)[:80]!r} is not known; models here have relu2 or silu")
    context = "max_position_embeddings"
    return HfConfig(
        model={
            "hidden_size": hidden,
            "num_layers": _count(tree, "num_hidden_layers", path),
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "intermediate_ratio": _count(tree, "intermediate_size", path) / hidden,
            "activation": _ACTIVATIONS[activation],
            "inner_norms": in_front,
            "tie_word_embeddings": _flag(tree, "tie_word_embeddings", path),
            "rms_norm_eps": _number(tree, "rms_norm_eps", 1e-5 if kind == "bitnet" else 1e-6, path),
            "rope_theta": _rope_theta(tree, kind, path),
        },
        form=form,
        context_length=None if tree.get(context) is None else _count(tree, context, path),
        end_of_text=_first(tree.get("eos_token_id")),
        run=_exported_run(tree),
    )


def _model_type(tree: Mapping[str, Any], path: Path) -> str:
    names = tree.get("architectures")
    name = names[0] if isinstance(names, list) and names else _ARCHITECTURES.get(str(tree.get("model_type")))
    for kind, architecture in _ARCHITECTURES.items():
        if name == architecture:
            return kind
    known = " and ".join(_ARCHITECTURES.values())
    raise ConfigError(f"{path}: architecture {str(name or tree.get('model_type'))[:80]!r} is not read; {known} are")


def _quantization(tree: Any, path: Path) -> tuple[HfForm, bool, float | None]:
    """Return how matrices are stored, whether each projection has a norm, and the eps of that."""
    if tree is None:
        return "plain", False, None
    if not isinstance(tree, dict):
        raise DataError(f"{path}: quantization_config is no object")
    method = tree.get("quant_method")
    if method != "bitnet":
        raise ConfigError(f"{path}: is quantized by {str(method)[:80]!r}; only bitnet is read")
    named = tree.get("modules_to_not_convert") or []
    if not isinstance(named, list) or not all(isinstance(one, str) for one in named):
        raise DataError(f"{path}: modules_to_not_convert is {str(named)[:80]}, not a list of names")
    if others := set(named) - _NEVER_QUANTIZED:
        raise ConfigError(
            f"{path}: {min(others)[:80]} is not quantized (modules_to_not_convert); models here quantize every "
            "projection"
        )
    layer = str(tree.get("linear_class", "bitlinear")), str(tree.get("quantization_mode", "offline"))
    forms: Mapping[tuple[str, str], HfForm] = {layers: form for form, layers in _LAYERS.items()}
    form = "bitlinear" if layer[0] == "bitlinear" else forms.get(layer)
    if form is None:
        raise ConfigError(f"{path}: linear_class {layer[0][:80]!r} in mode {layer[1][:80]!r} is not known")
    return form, _flag(tree, "use_rms_norm", path), _number(tree, "rms_norm_eps", 1e-6, path)


def _require_expressible(tree: Mapping[str, Any], path: Path) -> None:
    """Raise ConfigError for what would be computed otherwise here."""
    for name in ("attention_bias", "mlp_bias"):
        if tree.get(name):
            raise ConfigError(f"{path}: {name}: matrices of models here have no biases")
    if tree.get("partial_rotary_factor") not in (None, 1, 1.0):
        raise ConfigError(f"{path}: partial_rotary_factor: models here rotate whole heads")
    if (tree.get("pretraining_tp") or 1) != 1:
        raise ConfigError(f"{path}: pretraining_tp: models here multiply whole matrices")


def _rope_theta(tree: Mapping[str, Any], kind: str, path: Path) -> float:
    """Return the base of the rotary embeddings, which transformers 5 has in `rope_parameters`."""
    parameters = tree.get("rope_parameters") or {}
    for name, scaling in (("rope_parameters", parameters), ("rope_scaling", tree.get("rope_scaling") or {})):
        if not isinstance(scaling, dict):
            raise DataError(f"{path}: {name} is no object")
        found = scaling.get("rope_type", scaling.get("type", "default"))
        if found != "default":
            raise ConfigError(
                f"{path}: {name}: scaled rotary embeddings ({str(found)[:80]}); models here have plain ones"
            )
        if scaling.get("partial_rotary_factor") not in (None, 1, 1.0):
            raise ConfigError(f"{path}: {name}: models here rotate whole heads")
    thetas = {_number(where, "rope_theta", 1.0, path) for where in (tree, parameters) if "rope_theta" in where}
    if len(thetas) > 1:
        raise ConfigError(
            f"{path}: rope_theta and that of rope_parameters differ; transformers 4 takes the first, and 5 the second"
        )
    return thetas.pop() if thetas else _ROPE_THETA[kind]


def _count(tree: Mapping[str, Any], name: str, path: Path) -> int:
    value = tree.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 1 << 31:
        raise DataError(f"{path}: {name} is {str(value)[:80]}, not a whole number from 1")
    return value


def _flag(tree: Mapping[str, Any], name: str, path: Path) -> bool:
    value = tree.get(name)
    if value is not None and not isinstance(value, bool):
        raise DataError(f"{path}: {name} is {str(value)[:80]}, not true or false")
    return bool(value)


def _number(tree: Mapping[str, Any], name: str, default: float, path: Path) -> float:
    value = tree.get(name)
    value = default if value is None else value
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1e30:
        raise DataError(f"{path}: {name} is {str(value)[:80]}, not a positive number")
    return float(value)


def _first(value: Any) -> int | None:
    value = value[0] if isinstance(value, list) and value else value
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _exported_run(tree: Mapping[str, Any]) -> str | None:
    own = tree.get("bitnetctl")
    run = own.get("run") if isinstance(own, dict) else None
    return run if isinstance(run, str) else None
