"""What an export to transformers writes and refuses, and that a failed one leaves nothing."""

import json
import math
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from calling import listing
from safetensors.torch import load_file
from tokenizers import Tokenizer

from bitnetctl.errors import ConfigError, ExportError, StorageError
from bitnetctl.formats import hf, hf_check
from bitnetctl.formats.gguf_layout import require_expressible
from bitnetctl.formats.hf import export_hf
from bitnetctl.formats.hf_layout import FORMS, Form, named, pack, tensors, unpack
from bitnetctl.formats.hf_read import read_hf
from bitnetctl.inference.trained import TrainedRun
from bitnetctl.model.quantization import Quantizers

FILES = [
    *("README.md", "config.json", "generation_config.json", "model.safetensors", "special_tokens_map.json"),
    *("tokenizer.json", "tokenizer_config.json"),
]
Runs = dict[str, TrainedRun]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check itself, which takes seconds, is that of test_hf.py."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    monkeypatch.setattr(hf, "check_folder", lambda folder: ("as it should be",))
    monkeypatch.setattr(hf, "require_transformers", lambda: None)


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text(encoding="utf-8"))


def test_four_codes_to_a_byte() -> None:
    codes_OI = torch.tensor([[-1, 0], [0, 1], [1, -1], [1, 1], [0, 0], [-1, 1], [1, 0], [0, -1]], dtype=torch.int8)
    # rows 0, 2, 4 and 6 are in the first byte of a column, from its lowest bits
    assert pack(codes_OI).tolist() == [[0b10_01_10_00, 0b01_01_00_01], [0b01_00_10_01, 0b00_10_10_10]]
    assert torch.equal(unpack(pack(codes_OI)), codes_OI)


@pytest.mark.parametrize("form", FORMS)
def test_what_a_form_writes(form: Form, export_runs: Runs, tmp_path: Path) -> None:
    run, folder = export_runs["portable"], tmp_path / "deep" / "export"
    lines: list[str] = []
    exported = export_hf(run, folder, form=form, masters=True, log=lines.append)
    assert (exported.path, exported.form, exported.checks) == (folder, form, ("as it should be",))
    extra = [] if form == "online" else ["masters", "masters/model.safetensors"]
    assert listing(folder) == sorted([*FILES, *extra])
    assert lines[-1] == "loading it with transformers ..."
    config = read(folder, "config.json")
    assert config["quantization_config"]["linear_class"] == ("bitlinear" if form == "bitlinear" else "autobitlinear")
    assert config["max_position_embeddings"] == 32
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 10_000.0
    assert config["bos_token_id"] == config["eos_token_id"] == run.end_of_text == 0
    assert read(folder, "generation_config.json")["eos_token_id"] == 0
    assert read(folder, "tokenizer_config.json")["model_max_length"] == 32
    stored = load_file(folder / "model.safetensors")
    if form == "online":
        assert stored.keys() == run.weights().keys()
        assert lines[0] == "--masters adds nothing: the weights of portable as online are its masters"
        return
    codes = read_hf(folder).quantized
    for name, (codes_OI, scale_OG) in run.quantized().items():
        assert torch.equal(codes[name][0], codes_OI)
        torch.testing.assert_close(codes[name][1], scale_OG, rtol=1e-6, atol=0)
    masters = load_file(folder / "masters" / "model.safetensors")
    assert masters.keys() == run.weights().keys()
    assert all(torch.equal(tensor, run.weights()[name]) for name, tensor in masters.items())


def test_norms_before_each_projection(export_runs: Runs, tmp_path: Path) -> None:
    run = export_runs["origin"]
    export_hf(run, tmp_path / "a")
    config = read(tmp_path / "a", "config.json")
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["quantization_config"]["use_rms_norm"] is True
    stored = load_file(tmp_path / "a" / "model.safetensors")
    for name, weight in run.weights().items():
        for target in named(name, run.config.model):
            assert name in run.quantized() or torch.equal(stored[target], weight)
    assert len([name for name in stored if name.endswith(".rms_norm.weight")]) == 2 * 7
    # the four norms of a layer stand before seven projections
    assert len({target for name in run.weights() for target in named(name, run.config.model)}) == len(stored) - 2 * 7


def test_full_precision_is_written_without_a_quantization_config(export_runs: Runs, tmp_path: Path) -> None:
    exported = export_hf(export_runs["full"], tmp_path / "a", form="bitlinear")
    assert exported.form == "plain"
    assert "quantization_config" not in read(tmp_path / "a", "config.json")
    assert "full precision" in (tmp_path / "a" / "README.md").read_text()


@pytest.mark.parametrize(
    ("name", "form", "message"),
    [
        ("capped", "offline", "no public BitNet model caps its logits; train with model.logit_soft_cap=none"),
        ("full-inner", "offline", "train with --recipe portable or b158, or model.inner_norms=false"),
        ("half", "online", r"λ 0\.5\), which no format holds; export a step with λ 0 or 1 \(--step\)"),
        ("origin", "online", "one for fused qkv and gate-up; take --form offline or bitlinear"),
        ("fused", "online", "one for fused qkv and gate-up"),
        ("median", "online", "not as median-scale does; take --form offline"),
        ("groups", "offline", "group-scale:size=16 has a scale for groups of inputs, .* --to gguf holds groups of 256"),
        ("groups", "online", "not as group-scale:size=16 does"),
    ],
)
def test_what_a_form_cannot_hold_is_refused(
    name: str, form: Form, message: str, export_runs: Runs, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=f"^{name}: .*{message}") as caught:
        export_hf(export_runs[name], tmp_path / "a", form=form)
    assert "\n" not in str(caught.value)
    assert listing(tmp_path) == []


@pytest.mark.parametrize(
    ("codes_OI", "scale_OG", "message"),
    [
        (torch.zeros(6, 4), torch.ones(6, 1), "q has 6 rows, no multiple of 4, .* take --form online"),
        (torch.full((8, 4), 2), torch.ones(8, 1), "codes beyond -1, 0 and 1"),
        (torch.zeros(8, 4), torch.arange(1.0, 9.0)[:, None], "has a scale for rows"),
    ],
)
def test_codes_that_cannot_be_packed(
    codes_OI: torch.Tensor,
    scale_OG: torch.Tensor,
    message: str,
    export_runs: Runs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(TrainedRun, "quantized", lambda run: {"q": (codes_OI.to(torch.int8), scale_OG)})
    with pytest.raises(ConfigError, match=message):
        export_hf(export_runs["portable"], tmp_path / "a")


def test_activations_in_a_way_of_their_own_are_refused(
    export_runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Quantizers(activations=lambda x_NI: (x_NI, torch.ones(1)))
    monkeypatch.setattr(export_runs["portable"].model.matmul, "quantizers", own)
    for form in FORMS:
        with pytest.raises(ConfigError, match="has a custom quantizer of activations"):
            export_hf(export_runs["portable"], tmp_path / "a", form=form)


def test_an_end_of_text_that_is_split_is_refused(export_runs: Runs, tmp_path: Path) -> None:
    tree = json.loads(export_runs["portable"].tokenizer.to_str())
    tree["added_tokens"] = []
    run = replace(export_runs["portable"], tokenizer=Tokenizer.from_str(json.dumps(tree)))
    message = r"its end of text '<.endoftext.>' is not among the added_tokens"
    with pytest.raises(ConfigError, match=message):
        export_hf(run, tmp_path / "a")
    with pytest.raises(ConfigError, match=message):
        require_expressible(run, "F32")
    assert listing(tmp_path) == []


def test_a_failed_check_leaves_what_was_there(
    export_runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(folder: hf_check.Folder) -> tuple[str, ...]:
        assert folder.path != tmp_path / "a"
        assert "model.safetensors" in listing(folder.path)
        raise ExportError("self-check failed: KL divergence")

    monkeypatch.setattr(hf, "check_folder", fail)
    with pytest.raises(ExportError):
        export_hf(export_runs["portable"], tmp_path / "a")
    assert listing(tmp_path) == []
    export_hf(export_runs["portable"], tmp_path / "a", check=False)
    before = (tmp_path / "a" / "README.md").read_text()
    with pytest.raises(ExportError):
        export_hf(export_runs["b158"], tmp_path / "a", replace=True)
    assert (tmp_path / "a" / "README.md").read_text() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


def own_file(folder: Path) -> None:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "thesis.tex").write_text("years")


def with_masters_and_more(folder: Path) -> None:
    (folder / "masters").mkdir(parents=True)
    (folder / "config.json").write_text('{"bitnetctl": {"run": "a@1"}}')
    (folder / "masters" / "thesis.txt").write_text("years")


def a_model_of_somebody(folder: Path) -> None:
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "model.safetensors").write_text("precious")


def only_a_readme(folder: Path) -> None:
    folder.mkdir()
    (folder / "README.md").write_text("mine")


@pytest.mark.parametrize(
    ("prepare", "force", "message"),
    [
        (lambda folder: folder.write_text("x"), True, "is a file, not a folder"),
        (lambda folder: folder.symlink_to(folder.parent), True, "is a file, not a folder"),
        (own_file, False, "is not empty; --force replaces what an earlier export wrote"),
        (own_file, True, "holds what no export wrote .thesis.tex.; take another folder"),
        (with_masters_and_more, True, "holds what no export wrote .masters/thesis.txt.; take another folder"),
        (a_model_of_somebody, True, "holds what no export wrote; take another folder"),
        (only_a_readme, True, "holds what no export wrote; take another folder"),
    ],
)
def test_a_folder_in_the_way(
    prepare: Callable[[Path], object], force: bool, message: str, export_runs: Runs, tmp_path: Path
) -> None:
    prepare(tmp_path / "a")
    before = listing(tmp_path)
    with pytest.raises(ConfigError, match=message):
        export_hf(export_runs["portable"], tmp_path / "a", replace=force)
    assert listing(tmp_path) == before


def test_what_comes_to_be_there_during_the_check_stays(
    export_runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def somebody_writes(folder: hf_check.Folder) -> tuple[str, ...]:
        own_file(tmp_path / "a")
        return ("as it should be",)

    monkeypatch.setattr(hf, "check_folder", somebody_writes)
    with pytest.raises(ConfigError, match="is not empty"):
        export_hf(export_runs["portable"], tmp_path / "a")
    assert listing(tmp_path) == ["a", "a/config.json", "a/thesis.tex"]


def test_the_current_folder_is_none_to_replace(
    export_runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="is the current folder; give the name of a new one"):
        export_hf(export_runs["portable"], Path())


def test_wrong_masters_are_found(export_runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def save_zeros(path: Path, weights: dict[str, torch.Tensor]) -> None:
        save_tensors(path, {name: one * (path.parent.name != "masters") for name, one in weights.items()})

    save_tensors = hf.save_tensors
    monkeypatch.setattr(hf, "save_tensors", save_zeros)
    with pytest.raises(ExportError, match=r"masters/model\.safetensors: .*: the file has other values"):
        export_hf(export_runs["portable"], tmp_path / "a", masters=True)
    assert listing(tmp_path) == []


def test_no_room_for_the_check(export_runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hf, "check_folder", hf_check.check_folder)
    monkeypatch.setattr(hf, "require_space", lambda folder, needed: None)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1 << 20))
    with pytest.raises(StorageError, match=r"no space left: .* free; set TMPDIR to a folder on another disk"):
        export_hf(export_runs["portable"], tmp_path / "a")
    assert listing(tmp_path) == []


def test_an_earlier_export_is_replaced_as_a_whole(export_runs: Runs, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    export_hf(export_runs["portable"], tmp_path / "a", masters=True)
    with pytest.raises(ConfigError, match="--force"):
        export_hf(export_runs["b158"], tmp_path / "a")
    export_hf(export_runs["b158"], tmp_path / "a", replace=True)
    assert listing(tmp_path / "a") == FILES
    assert read(tmp_path / "a", "config.json")["hidden_act"] == "relu2"


def test_a_full_disk_leaves_nothing(export_runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hf, "write_synced", full)
    with pytest.raises(StorageError, match="No space left"):
        export_hf(export_runs["portable"], tmp_path / "a")
    assert listing(tmp_path) == []


def test_without_an_end_of_text(export_runs: Runs, tmp_path: Path) -> None:
    export_hf(replace(export_runs["portable"], end_of_text=None), tmp_path / "a")
    assert read(tmp_path / "a", "config.json")["eos_token_id"] is None
    assert read(tmp_path / "a", "special_tokens_map.json") == {}


def test_tensors_are_copies(export_runs: Runs) -> None:
    stored = tensors(export_runs["origin"], "offline")
    stored["model.norm.weight"].fill_(math.nan)
    assert export_runs["origin"].weights()["model.norm.weight"].isfinite().all()
    # safetensors refuses shared memory
    assert len({tensor.data_ptr() for tensor in stored.values()}) == len(stored)


@pytest.mark.parametrize("missing", hf_check.NEEDED)
def test_a_missing_library_is_named_before_anything_is_written(
    missing: str, export_runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hf, "require_transformers", hf_check.require_transformers)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == missing else name)
    with pytest.raises(ConfigError, match=f"needs {missing}: pip install 'bitnetctl.transformers.'; --no-check"):
        export_hf(export_runs["portable"], tmp_path / "a")
    assert listing(tmp_path) == []
    export_hf(export_runs["portable"], tmp_path / "a", check=False)
    assert "without a self-check" in (tmp_path / "a" / "README.md").read_text()


@pytest.mark.skipif(sys.platform == "win32", reason="a script as interpreter")
@pytest.mark.parametrize(
    ("script", "message"),
    [
        (
            "echo reading >&2; echo 'RuntimeError: no kernel' >&2; exit 1",
            "RuntimeError: no kernel",
        ),
        ("kill -9 $$", "exit code -9"),
    ],
)
def test_a_library_that_dies_is_one_line(
    script: str, message: str, export_runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interpreter = tmp_path / "python"
    interpreter.write_text(f"#!/bin/sh\nenv > {tmp_path}/environment\n{script}\n")
    interpreter.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(interpreter))
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(hf, "check_folder", hf_check.check_folder)
    with pytest.raises(ExportError, match=f"transformers ended with: {message}$"):
        export_hf(export_runs["portable"], tmp_path / "a")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["environment", "python"]
    environment = (tmp_path / "environment").read_text().splitlines()
    assert {"HF_HUB_OFFLINE=1", "TORCHDYNAMO_DISABLE=1", "OMP_NUM_THREADS=1"} <= set(environment)
    assert "HF_HUB_OFFLINE" not in os.environ
