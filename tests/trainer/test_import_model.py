"""Models in public formats become runs: the same arithmetic, measured, and trained on."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from calling import call
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_runs import train_tiny
from torch import Tensor

from bitnetctl.errors import BitnetctlError, ConfigError, DataError, ExitCode
from bitnetctl.formats.bitnetctl_safetensors import export_safetensors
from bitnetctl.formats.gates import compare
from bitnetctl.formats.gguf_file import write_gguf
from bitnetctl.formats.gguf_layout import GgufType, tensor_name
from bitnetctl.formats.hf import write_folder
from bitnetctl.formats.hf_config import HfForm
from bitnetctl.formats.hf_layout import MASTERS, tensors
from bitnetctl.formats.reading import read_model
from bitnetctl.inference.trained import TrainedRun, open_run
from bitnetctl.records import RunPaths, read, read_manifest
from bitnetctl.trainer import import_model as module
from bitnetctl.trainer.import_model import import_model

NAMES = (
    *("grouped", "origin", "fused", "full", "median", "half", "groups"),
    *("wide", "wide-fused", "wide-blocks", "wide-rows"),
)
RUNS = Path("runs")
TOKENS_BT = torch.randint(0, 300, (4, 32), generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def runs(tiny_text: Path, shared_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, TrainedRun]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(shared_cache))
        return train_tiny(NAMES, tiny_text, tmp_path_factory.mktemp("runs"))


def exported(run: TrainedRun, form: str) -> Path:
    """Write a run in a form, unchecked; returns the file or folder."""
    if form == "plain-file":
        return export_safetensors(run, Path("exported.safetensors"), check=False).path
    path = Path("exported")
    if form in ("TQ2_0", "TQ1_0", "F16", "F32"):
        pytest.importorskip("gguf")
        kind: GgufType = form  # type: ignore[assignment]
        write_gguf(path, run, kind)
    else:
        path.mkdir()
        written: HfForm = form  # type: ignore[assignment]
        write_folder(run, path, written, tensors(run, written))
    return path


def settings(text: Path) -> list[str]:
    return [f"data.source=file:{text}", "data.batch_size=2", "probe.positions=128"]


@pytest.mark.parametrize(
    ("name", "form", "arm"),
    [
        *(("grouped", "offline", "baseline"), ("grouped", "online", "baseline"), ("full", "plain", "baseline")),
        *(("origin", "bitlinear", "baseline"), ("median", "offline", "baseline")),
        *(("wide", "TQ2_0", "baseline"), ("wide", "F32", "baseline"), ("wide", "F16", "baseline")),
        *(("wide-blocks", "TQ1_0", "group-scale:half=true,size=256"), ("wide-rows", "F32", "group-scale:size=256")),
        *(("fused", "offline", "baseline"), ("wide-fused", "TQ2_0", "baseline"), ("wide-fused", "F32", "baseline")),
        *(("median", "plain-file", "median-scale"), ("groups", "plain-file", "group-scale:size=16")),
        *(("half", "plain-file", "baseline"), ("full", "plain-file", "full-precision")),
    ],
)
def test_an_export_comes_back(runs: dict[str, TrainedRun], tiny_text: Path, name: str, form: str, arm: str) -> None:
    run, path = runs[name], exported(runs[name], form)
    imported = import_model(path, RUNS, name="back", overrides=settings(tiny_text))
    back = open_run("back")
    assert (back.step, back.quant_lambda, back.context_length) == (4, run.quant_lambda, 32)
    assert (back.config.arm, back.end_of_text) == (arm, run.end_of_text)
    assert back.config.model.scale_group == run.config.model.scale_group
    assert back.tokenizer.to_str() == run.tokenizer.to_str()
    has_masters = form in ("online", "plain", "plain-file")
    for key, weight in run.weights().items():
        kept = has_masters or key not in run.quantized()
        # F16 rounds embeddings
        if kept and not (form == "F16" and weight.dim() == 2):
            assert torch.equal(back.weights()[key], weight), key
    if run.quant_lambda > 0:
        for key, (codes_OI, scale_OG) in run.quantized().items():
            assert torch.equal(back.quantized()[key][0], codes_OI), key
            assert torch.allclose(back.quantized()[key][1], scale_OG, rtol=1e-6, atol=0), key
    agreement = compare(run.logits(TOKENS_BT).flatten(0, 1), back.logits(TOKENS_BT).flatten(0, 1))
    # a scale that is rounded in its last bit flips int8 roundings
    assert agreement.kl < (1e-3 if form == "F16" else 1e-4)
    assert agreement.max_abs == 0 or not has_masters
    lost = [note for note in imported.notes if "those that were trained are not in the file" in note]
    assert len(lost) == (not has_masters)


def test_the_row_is_what_the_probe_measures(runs: dict[str, TrainedRun], tiny_text: Path) -> None:
    run = runs["grouped"]
    import_model(exported(run, "online"), RUNS, name="back", overrides=settings(tiny_text))
    row, trained = (read(csv).frame.iloc[-1] for csv in (RUNS / "back.csv", run.paths.csv))
    assert row["Step"] == 4
    assert all(np.isnan(row[name]) for name in ("Loss", "LR", "WD", "GradNorm", "FlipRate", "TokensPerSecond"))
    # the same probe, but norms that were moved since
    for name in ("UniqueTargets", "ProbePositions", "UnigramLoss", "BigramLoss"):
        assert row[name] == trained[name]
    manifest = read_manifest(RUNS / "back")
    assert manifest is not None
    assert manifest.imported is not None
    assert (manifest.status, manifest.steps_done) == ("finished", 4)
    assert (manifest.imported.source, manifest.imported.run) == ("exported", "grouped@4")
    assert manifest.effective_config == manifest.config


def test_it_is_judged_and_trained_on(runs: dict[str, TrainedRun], tiny_text: Path) -> None:
    path = exported(runs["grouped"], "offline")
    given = [part for text in settings(tiny_text) for part in ("--set", text)]
    done = call("import", path, *given, "--json")
    assert (done.code, done.json["run"], done.json["csv"]) == (ExitCode.SUPPORTED, "exported", "runs/exported.csv")
    assert done.json["final"]["HeldOutLoss"] > 0
    assert "codes of 14 matrices identical, scales within" in done.err
    # of so small a probe no criteria conclude anything
    judged = call("verify", "runs/exported.csv")
    assert (judged.code, judged.err) == (ExitCode.INVALID, "")
    assert "1 size × 1 seed" in judged.out
    assert "1 run" in call("analyze", "runs/exported.csv").out
    longer = call("train", "--extend", "exported", "--steps", "8", "--device", "cpu", "--json")
    assert (longer.code, longer.json["final"]["Step"]) == (ExitCode.SUPPORTED, 8)
    assert open_run(longer.json["run"]).step == 8
    rows = Path(longer.json["csv"]).read_text().splitlines()
    assert rows[1] == Path("runs/exported.csv").read_text().splitlines()[1]
    assert "run exported: exists in runs; choose another --name" in call("import", path, *given).error


def test_a_padded_vocabulary(runs: dict[str, TrainedRun], tiny_text: Path) -> None:
    run = runs["grouped"]
    path = exported(run, "online")
    stored = load_file(path / "model.safetensors")
    name = "model.embed_tokens.weight"
    save_file({**stored, name: torch.cat([stored[name], torch.ones(20, 32)])}, path / "model.safetensors")
    imported = import_model(path, RUNS, overrides=settings(tiny_text))
    assert "left out 20 rows of the vocabulary that the tokenizer has no token for" in imported.notes
    assert torch.equal(open_run("exported").logits(TOKENS_BT), run.logits(TOKENS_BT))
    save_file({**stored, name: stored[name][:-1]}, path / "model.safetensors")
    with pytest.raises(DataError, match="has 299 tokens, and the tokenizer 300"):
        import_model(path, RUNS, name="b", overrides=settings(tiny_text))


def test_the_token_that_ends_a_text(runs: dict[str, TrainedRun], tiny_text: Path) -> None:
    path = exported(runs["grouped"], "offline")
    tree = json.loads((path / "config.json").read_text())
    other = runs["grouped"].tokenizer.id_to_token(65)
    (path / "config.json").write_text(json.dumps({**tree, "eos_token_id": [65, 0]}))
    import_model(path, RUNS, overrides=settings(tiny_text))
    manifest = read_manifest(RUNS / "exported")
    assert manifest is not None
    assert manifest.data["end_of_text"] == other
    assert open_run("exported").end_of_text == 65
    done = call("train", "--extend", "exported", "--steps", "6", "--device", "cpu", "--json")
    assert open_run(done.json["run"]).end_of_text == 65


def test_masters_that_do_not_belong_to_the_codes(runs: dict[str, TrainedRun], tiny_text: Path) -> None:
    run, path = runs["grouped"], exported(runs["grouped"], "offline")
    (path / MASTERS).parent.mkdir()
    generator = torch.Generator().manual_seed(0)
    save_file({key: torch.randn(one.shape, generator=generator) for key, one in run.weights().items()}, path / MASTERS)
    imported = import_model(path, RUNS, overrides=settings(tiny_text))
    [note] = [note for note in imported.notes if "its masters are left out" in note]
    assert re.search(
        r"here \(model\.layers\.0\.self_attn\.\w+\.weight: .*trained with another quantizer, or .* damaged", note
    )
    for key, (codes_OI, _) in run.quantized().items():
        assert torch.equal(open_run("exported").quantized()[key][0], codes_OI)


def as_converted(path: Path, run: TrainedRun, change: Callable[[str, Tensor], Tensor]) -> None:
    """Write an F16 file as llama.cpp's converter does: its keys of rotary embeddings, none of ours, values changed."""
    gguf = pytest.importorskip("gguf")
    write_gguf(Path("ours.gguf"), run, "F32")
    writer = gguf.GGUFWriter(path, "bitnet")
    for name, field in gguf.GGUFReader("ours.gguf").fields.items():
        if not name.startswith(("GGUF.", "bitnetctl.", "general.architecture", "bitnet.hidden_activation")):
            kind, *below = field.types
            writer.add_key_value(name, field.contents(), kind, below[0] if below else None)
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(1.0)
    quantized = run.quantized()
    for name, weight in run.weights().items():
        values = change(name, weight) if name in quantized else weight
        writer.add_tensor(tensor_name(name), (values.half() if values.dim() == 2 else values).numpy())
    for part in ("header", "kv_data", "tensors"):
        getattr(writer, f"write_{part}_to_file")()
    writer.close()


def test_files_of_the_converter_of_llama_cpp(runs: dict[str, TrainedRun], tiny_text: Path) -> None:
    run = runs["wide-fused"]
    codes = run.quantized()
    as_converted(Path("ternary.gguf"), run, lambda name, weight: codes[name][0] * codes[name][1])
    imported = import_model(Path("ternary.gguf"), RUNS, overrides=settings(tiny_text))
    assert "states no λ, and all 14 matrices are ternary: read as quantized (λ 1)" in imported.notes
    back = open_run("ternary")
    assert (back.quant_lambda, back.config.model.scale_group) == (1.0, "fused")
    for key, (codes_OI, scale_OG) in codes.items():
        assert torch.equal(back.quantized()[key][0], codes_OI)
        assert torch.allclose(back.quantized()[key][1], scale_OG.half().float(), rtol=1e-6, atol=0)
    # masters, as another version of the converter writes them
    as_converted(Path("masters.gguf"), run, lambda name, weight: weight)
    imported = import_model(Path("masters.gguf"), RUNS, overrides=settings(tiny_text))
    assert any("is not ternary: read as a model at full precision (λ 0)" in note for note in imported.notes)
    assert open_run("masters").quant_lambda == 0.0
    # one matrix of another kind
    down = "model.layers.1.mlp.down_proj.weight"
    as_converted(
        Path("mixed.gguf"), run, lambda name, weight: weight if name == down else codes[name][0] * codes[name][1]
    )
    imported = import_model(Path("mixed.gguf"), RUNS, overrides=settings(tiny_text))
    assert any(f"{down} is not ternary: read as a model at full precision" in note for note in imported.notes)


def test_a_run_that_was_moved_is_trained_on(runs: dict[str, TrainedRun], tiny_text: Path, tmp_path: Path) -> None:
    import_model(exported(runs["grouped"], "offline"), RUNS, overrides=settings(tiny_text))
    RUNS.rename("moved")
    done = call("train", "--extend", "exported", "--runs-dir", "moved", "--steps", "6", "--device", "cpu", "--json")
    assert (done.code, done.json["final"]["Step"]) == (ExitCode.SUPPORTED, 6)


def test_an_arm_that_is_not_installed(runs: dict[str, TrainedRun], tiny_text: Path) -> None:
    path = exported(runs["median"], "plain-file")
    stored = load_file(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    for changed in ('"name":"unheard-of"', '"name":"median-scale","file":"evil.py:Evil"'):
        config = metadata["config"].replace('"name":"median-scale"', changed)
        save_file(stored, path, {**metadata, "config": config.replace('"file":null,', "").replace(',"file":null', "")})
        name = f"back{len(changed)}"
        imported = import_model(path, RUNS, name=name, overrides=settings(tiny_text))
        assert any("cannot be used here" in note for note in imported.notes)
        assert any("its masters are left out, since they do not quantize" in note for note in imported.notes)
        back = open_run(name)
        assert back.config.arm == "baseline"
        for key, (codes_OI, _) in runs["median"].quantized().items():
            assert torch.equal(back.quantized()[key][0], codes_OI)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("config", '{"model": [], "data": {}}', "its config is none"),
        ("config", '{"model": {}, "data": null}', "its config is none"),
        ("tokenizer", "{}", "its tokenizer is none"),
        ("step", "-5", "its step is -5"),
    ],
)
def test_damaged_metadata(runs: dict[str, TrainedRun], tiny_text: Path, key: str, value: str, message: str) -> None:
    path = exported(runs["full"], "plain-file")
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file(load_file(path), path, {**metadata, key: value})
    with pytest.raises(DataError, match=message):
        import_model(path, RUNS, overrides=settings(tiny_text))
    assert not RUNS.exists()


def test_a_file_does_not_say_which_text_is_read(runs: dict[str, TrainedRun], monkeypatch: pytest.MonkeyPatch) -> None:
    path = exported(runs["full"], "plain-file")
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    # nor where it lies on the machine that wrote it
    assert json.loads(metadata["config"])["data"]["source"] == "file:tiny.txt"
    save_file(load_file(path), path, {**metadata, "config": metadata["config"].replace("file:tiny.txt", "file:secret")})
    Path("secret").write_text("secret " * 5000)
    config, _ = module._config(read_model(path), RunPaths(RUNS, "a"), path, "portable", None, ())
    assert config.data.source == "stdlib"


def test_nothing_is_written_where_it_cannot_be_imported(runs: dict[str, TrainedRun], tiny_text: Path) -> None:
    path = exported(runs["grouped"], "offline")
    (path / "tokenizer.json").unlink()
    cases: list[tuple[list[str], type[BitnetctlError], str]] = [
        (settings(tiny_text), ConfigError, "has no tokenizer that is read here; name the one"),
        (["model.hidden_size=64"], ConfigError, "the model is that of exported; data, optimizer"),
        (["data.tokenizer=bpe:300", "data.source=file:none"], DataError, "none"),
    ]
    for overrides, kind, expected in cases:
        with pytest.raises(kind, match=expected):
            import_model(path, RUNS, overrides=overrides)
    assert not RUNS.exists()
    named = import_model(path, RUNS, overrides=[*settings(tiny_text), "data.tokenizer=bpe:300"], steps=9)
    assert (named.config.data.tokenizer, named.config.steps) == ("bpe:300", 9)
    ours_NV, theirs_NV = (one.logits(TOKENS_BT).flatten(0, 1) for one in (runs["grouped"], open_run("exported")))
    # a scale that is rounded in its last bit flips int8 roundings
    assert compare(ours_NV, theirs_NV).kl < 1e-4
    assert (RUNS / "exported" / "tokenizer.json").is_file()
