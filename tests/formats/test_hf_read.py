"""Folders of `transformers` are read as what the library makes of them; what is damaged or cannot be is refused."""

import json
import pickle
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_runs import train_tiny
from torch import Tensor

from bitnetctl.config import ModelConfig
from bitnetctl.errors import BitnetctlError
from bitnetctl.formats.gates import compare
from bitnetctl.formats.hf import save_tensors, write_folder
from bitnetctl.formats.hf_config import HfForm
from bitnetctl.formats.hf_layout import MASTERS, pack, tensors
from bitnetctl.formats.hf_read import read_hf
from bitnetctl.formats.masters import make_masters
from bitnetctl.formats.model_content import ModelContent
from bitnetctl.formats.reading import read_model
from bitnetctl.inference.trained import TrainedRun
from bitnetctl.model.packed import PackedModel

FORMS: list[tuple[str, HfForm]] = [
    *(("grouped", "offline"), ("grouped", "bitlinear"), ("grouped", "online"), ("full", "plain")),
    *(("b158", "online"), ("origin", "offline"), ("origin", "bitlinear"), ("inner", "online"), ("inner", "offline")),
    *(("median", "bitlinear"), ("fused", "offline")),
]
TOKENS_BT = torch.randint(0, 300, (2, 20), generator=torch.Generator().manual_seed(2))
Q_PROJ = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def runs(tiny_text: Path, shared_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, TrainedRun]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(shared_cache))
        return train_tiny(dict(FORMS), tiny_text, tmp_path_factory.mktemp("runs"))


@pytest.mark.parametrize(("name", "form"), FORMS)
def test_an_export_is_read_back(runs: dict[str, TrainedRun], name: str, form: HfForm, tmp_path: Path) -> None:
    run = runs[name]
    write_folder(run, tmp_path, form, tensors(run, form))
    file = read_model(tmp_path)
    is_packed = form in ("offline", "bitlinear")
    weights, quantized = run.weights(), run.quantized() if is_packed else {}
    assert file.quantized.keys() == quantized.keys()
    for key, (codes_OI, scale_OG) in quantized.items():
        assert torch.equal(file.quantized[key][0], codes_OI)
        # 1 / (1 / scale) may be rounded
        assert torch.allclose(file.quantized[key][1], scale_OG, rtol=1e-6 if form == "bitlinear" else 0, atol=0)
    assert file.weights.keys() == weights.keys() - quantized.keys()
    assert all(torch.equal(weight, weights[key]) for key, weight in file.weights.items())
    # what is the same arithmetic counts, not the name of the arm that trained it
    expected = {field: value for field, value in run.config.model.model_dump().items() if field in file.model}
    assert {**file.model, "scale_group": expected["scale_group"]} == expected
    assert file.model["scale_group"] == ("fused" if name in ("origin", "fused") else "projection")
    assert (file.quant_lambda, file.context_length, file.run, file.step) == (run.quant_lambda, 32, name, 4)
    assert (file.tokenizer, file.end_of_text) == (run.tokenizer.to_str(), "<|endoftext|>")


def test_masters_beside_packed_weights(runs: dict[str, TrainedRun], tmp_path: Path) -> None:
    run = runs["grouped"]
    write_folder(run, tmp_path, "offline", tensors(run, "offline"))
    (tmp_path / MASTERS).parent.mkdir()
    save_tensors(tmp_path / MASTERS, {name: tensor.clone() for name, tensor in run.weights().items()})
    file = read_hf(tmp_path)
    assert all(torch.equal(file.weights[name], weight) for name, weight in run.weights().items())
    (tmp_path / MASTERS).unlink()
    save_tensors(tmp_path / MASTERS, {Q_PROJ: torch.zeros(3)})
    with pytest.raises(BitnetctlError, match="missing or of another shape; remove the file"):
        read_hf(tmp_path)


def logits(file: ModelContent) -> Tensor:
    """Return the logits of a model with the weights of a file, or with masters made for its codes."""
    config = ModelConfig.model_validate({**file.model, "quantization": file.quant_lambda})
    model = PackedModel([config], 300, [0], torch.device("cpu"))
    model.load(0, {**make_masters(file.quantized, config), **file.weights})
    return model.forward(TOKENS_BT.unsqueeze(0), [file.quant_lambda])[0]


def save_by_transformers(folder: Path, form: str, *, tied: bool, activation: str) -> None:
    """Write a BitNetForCausalLM of random weights as `transformers` itself does, in several shards."""
    from transformers import BitNetConfig, BitNetForCausalLM

    torch.manual_seed(0)
    # transformers 4 reads the first
    theta: dict[str, Any] = {"rope_theta": 777.0, "rope_parameters": {"rope_type": "default", "rope_theta": 777.0}}
    config = BitNetConfig(
        vocab_size=300,
        hidden_size=64,
        intermediate_size=160,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_hidden_layers=2,
        max_position_embeddings=48,
        initializer_range=0.2,
        **theta,
        tie_word_embeddings=tied,
        hidden_act=activation,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = BitNetForCausalLM(config).bfloat16()
    if form == "plain":
        model.save_pretrained(folder, max_shard_size="50KB")
        return
    linear_class = "bitlinear" if form == "bitlinear" else "autobitlinear"
    mode = "online" if form == "online" else "offline"
    quantization = {"quant_method": "bitnet", "linear_class": linear_class, "quantization_mode": mode}
    state = {name: tensor.float() for name, tensor in model.state_dict().items()}
    if form != "online":
        for name in [name for name in state if "_proj." in name]:
            scale = state[name].abs().mean()
            codes_OI = (state[name] / scale).round().clamp(-1, 1)
            # transformers 4 saves them unpacked, once it has loaded them
            state[name] = codes_OI if form == "unpacked" else pack(codes_OI)
            state[f"{name}_scale"] = (1 / scale if form == "bitlinear" else scale).view(1)
    if tied:
        del state["lm_head.weight"]
    folder.mkdir()
    tree = {
        **config.to_dict(),
        "architectures": ["BitNetForCausalLM"],
        "quantization_config": quantization,
        "dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(tree))
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("form", "tied", "activation"),
    [
        *(("plain", False, "relu2"), ("plain", True, "silu"), ("online", True, "relu2")),
        *(
            ("offline", False, "silu"),
            ("offline", True, "relu2"),
            ("bitlinear", False, "relu2"),
            ("unpacked", True, "silu"),
        ),
    ],
)
def test_a_folder_of_transformers(form: str, tied: bool, activation: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    folder = tmp_path / "model"
    save_by_transformers(folder, form, tied=tied, activation=activation)
    model = transformers.BitNetForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    assert (len(list(folder.glob("*.safetensors"))) > 1) == (form == "plain")
    file = read_model(folder)
    assert (file.model["num_key_value_heads"], file.model["rope_theta"], file.context_length) == (2, 777.0, 48)
    with torch.no_grad():
        theirs_NV = model(TOKENS_BT).logits.flatten(0, 1)
    ours_NV = logits(file)
    assert float(theirs_NV.std()) > 0.5
    if form == "plain":
        assert torch.allclose(ours_NV, theirs_NV, atol=2e-4)
    else:
        # an int8 rounding that flips moves a logit
        assert compare(ours_NV, theirs_NV).kl < 1e-3


def test_a_llama_without_sub_norms(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    widths = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    tree = transformers.LlamaConfig(vocab_size=300, **widths).to_dict()
    (tmp_path / "config.json").write_text(json.dumps({**tree, "architectures": ["LlamaForCausalLM"]}))
    with pytest.raises(BitnetctlError, match="no norms in front of its output and down projections"):
        read_model(tmp_path)


Change = Callable[[Path], None]


def config(**changes: Any) -> Change:
    """Change fields of config.json; `quantization__x` is one of the quantization config."""

    def change(folder: Path) -> None:
        tree = json.loads((folder / "config.json").read_text())
        for name, value in changes.items():
            section, _, field = name.rpartition("__")
            (tree["quantization_config"] if section else tree)[field] = value
        (folder / "config.json").write_text(json.dumps(tree))

    return change


def weights(edit: Callable[[dict[str, Tensor]], Mapping[str, Tensor | None]]) -> Change:
    """Change tensors; None removes one."""

    def change(folder: Path) -> None:
        stored = load_file(folder / "model.safetensors")
        changed = {**stored, **edit(stored)}
        kept = {name: tensor.contiguous() for name, tensor in changed.items() if tensor is not None}
        save_file(kept, folder / "model.safetensors")

    return change


def text(name: str, content: str) -> Change:
    def change(folder: Path) -> None:
        (folder / name).write_text(content)

    return change


def without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def pickled(folder: Path) -> None:
    without_weights(folder)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({}))


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def index(weight_map: object) -> Change:
    return text("model.safetensors.index.json", json.dumps({"weight_map": weight_map}))


REFUSED: dict[str, tuple[Change, str]] = {
    "no-json": (text("config.json", "{"), "config.json: not valid JSON"),
    "deep-json": (text("config.json", "[" * 100_000), "config.json: not valid JSON"),
    "no-object": (text("config.json", "[]"), "config.json: not a JSON object"),
    "architecture": (config(architectures=["GPT2LMHeadModel"]), "architecture 'GPT2LMHeadModel' is not read"),
    "no-architecture": (config(architectures=None, model_type="opt"), "architecture 'opt' is not read"),
    "method": (config(quantization__quant_method="gptq"), "is quantized by 'gptq'"),
    "linear-class": (config(quantization__linear_class="other"), "linear_class 'other'"),
    "not-all": (config(quantization__modules_to_not_convert=["lm_head", "q_proj"]), "q_proj is not quantized"),
    "not-all-number": (config(quantization__modules_to_not_convert=5), "modules_to_not_convert is 5, not a list"),
    "not-all-text": (config(quantization__modules_to_not_convert="lm_head"), "is lm_head, not a list of names"),
    "context": (config(max_position_embeddings=-1), "max_position_embeddings is -1, not a whole number"),
    "context-flag": (config(max_position_embeddings=True), "max_position_embeddings is True, not a whole number"),
    "tied-text": (config(tie_word_embeddings="false"), "tie_word_embeddings is false, not true or false"),
    "two-thetas": (config(rope_theta=7.0), "rope_theta and that of rope_parameters differ"),
    "eps-text": (config(quantization__rms_norm_eps="0"), "rms_norm_eps is 0, not a positive number"),
    "two-norms": (config(quantization__use_rms_norm=True), "in front of every projection and sub-norms, too"),
    "biases": (config(attention_bias=True), "have no biases"),
    "rope-scaling": (config(rope_scaling={"type": "linear", "factor": 2.0}), "scaled rotary embeddings"),
    "rope-type": (config(rope_parameters={"rope_type": "yarn"}), "scaled rotary embeddings"),
    "rope-text": (config(rope_parameters="default"), "rope_parameters is no object"),
    "part-of-a-head": (config(partial_rotary_factor=0.5), "rotate whole heads"),
    "head-dim": (config(head_dim=16), "head_dim 16 x 4 heads is not hidden_size 32"),
    "head-dim-text": (config(head_dim="8"), "head_dim is 8, not a whole number"),
    "heads": (config(num_attention_heads=3, head_dim=None), "not divisible by num_attention_heads 3"),
    "activation": (config(hidden_act="gelu"), "hidden_act 'gelu' is not known"),
    "unhashable-activation": (config(hidden_act=["silu"]), "is not known"),
    "size": (config(hidden_size="32"), "hidden_size is 32, not a whole number"),
    "huge": (config(num_hidden_layers=10**12), "num_hidden_layers is 1000000000000"),
    "layers": (config(num_hidden_layers=2**30), "tensors of 2 layers, and its config says 1073741824"),
    "eps": (config(rms_norm_eps=0), "rms_norm_eps is 0, not a positive number"),
    "width": (config(intermediate_size=64), r"gate_proj.weight is U8 \[24, 32\], not packed codes of \[64, 32\]"),
    "no-weights": (without_weights, "there is no model.safetensors"),
    "pickle": (pickled, "pytorch_model.bin, a pickle, which may run any code and is not read"),
    "cut": (cut, "not a safetensors file, or damaged"),
    "index-outside": (index({"x": "../../secret.safetensors"}), "is no name of a file in the folder"),
    "index-above": (index({"x": ".."}), "'..' is no name of a file in the folder"),
    "index-unnamed": (index({"x": ""}), "'' is no name of a file in the folder"),
    "index-of-nothing": (index([]), "has no weight_map"),
    "index-missing": (index({"x": "none.safetensors"}), "none.safetensors"),
    "scale-missing": (weights(lambda stored: {f"{Q_PROJ}_scale": None}), "q_proj.weight_scale is missing"),
    "scale-negative": (weights(lambda stored: {f"{Q_PROJ}_scale": -torch.ones(1)}), "is not one positive number"),
    "scale-of-rows": (weights(lambda stored: {f"{Q_PROJ}_scale": torch.ones(32)}), "is not one positive number"),
    "fourth-code": (weights(lambda stored: {Q_PROJ: stored[Q_PROJ] | 3}), "codes beyond -1, 0 and 1"),
    "not-packed": (weights(lambda stored: {Q_PROJ: torch.randn(32, 32)}), "values beside codes -1, 0 and 1"),
    "nan": (weights(lambda stored: {"model.norm.weight": torch.full((32,), torch.nan)}), "values that are not finite"),
    "integers": (weights(lambda stored: {"model.norm.weight": torch.ones(32, dtype=torch.int32)}), "is I32, not float"),
    "shape": (weights(lambda stored: {"model.norm.weight": torch.ones(31)}), r"has shape \[31\], not \[32\]"),
    "sub-norm": (
        weights(lambda stored: {"model.layers.0.mlp.ffn_sub_norm.weight": None}),
        r"ffn_sub_norm.weight \(SubLN\) is missing",
    ),
    "bias-tensor": (
        weights(lambda stored: {"model.layers.0.mlp.up_proj.bias": torch.ones(96)}),
        "up_proj.bias is none of a model here: .* no biases",
    ),
    "layer-left-out": (
        weights(lambda stored: {name: None for name in stored if ".layers.0." in name}),
        "tensors of 1 layers",
    ),
    "other-head": (weights(lambda stored: {"lm_head.weight": torch.ones(300, 32)}), "lm_head.weight has other values"),
    "no-embeddings": (weights(lambda stored: {"model.embed_tokens.weight": None}), "there is no table"),
    "tokenizer": (text("tokenizer.json", "{}"), "not a valid tokenizer.json"),
}


@pytest.mark.parametrize("key", REFUSED)
def test_what_is_refused(runs: dict[str, TrainedRun], key: str, tmp_path: Path) -> None:
    run, (change, expected) = runs["grouped"], REFUSED[key]
    write_folder(run, tmp_path, "offline", tensors(run, "offline"))
    change(tmp_path)
    with pytest.raises(BitnetctlError, match=expected) as caught:
        read_model(tmp_path)
    assert "\n" not in str(caught.value)


def test_norms_of_projections_that_differ(runs: dict[str, TrainedRun], tmp_path: Path) -> None:
    run = runs["origin"]
    write_folder(run, tmp_path, "offline", tensors(run, "offline"))
    shutil.copytree(tmp_path, tmp_path / "eps")
    norm = "model.layers.0.self_attn.k_proj.rms_norm.weight"
    weights(lambda stored: {norm: stored[norm] + 1})(tmp_path)
    with pytest.raises(BitnetctlError, match=r"q_proj.rms_norm.weight and .*k_proj.rms_norm.weight differ"):
        read_model(tmp_path)
    config(quantization__rms_norm_eps=0.5)(tmp_path / "eps")
    with pytest.raises(BitnetctlError, match="different rms_norm_eps"):
        read_model(tmp_path / "eps")


def test_what_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUX")
    for path, expected in (
        (tmp_path, "has no config.json; .* it holds a.gguf: give that file"),
        (tmp_path / "a.gguf", "not a file that is read"),
        (tmp_path / "none", "there is no such file or folder"),
    ):
        with pytest.raises(BitnetctlError, match=expected):
            read_model(path)
