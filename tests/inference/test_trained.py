"""Runs opened to use their weights: complete ones, older ones, and what is said where something is missing."""

import hashlib
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from configs import TinyConfig
from distributions import Distribution, forget_plugins
from run_files import RUNS, Train, damage, manifest
from tokenizers import Tokenizer, processors
from torch import Tensor

from bitnetctl import checkpoint
from bitnetctl.config import RunConfig, canonical_hash
from bitnetctl.data import TokenData
from bitnetctl.errors import BitnetctlError, CheckpointError, ConfigError, DataError
from bitnetctl.inference.trained import open_run
from bitnetctl.records import RunPaths, write_manifest
from bitnetctl.records.manifest import ExternalRun
from bitnetctl.trainer.events import Event, Finished, Stopped
from bitnetctl.trainer.loop import Trainer

FIXTURES = Path(__file__).parents[1] / "fixtures"
PATHS = RunPaths(RUNS, "a")
TOKENS_BT = torch.randint(0, 300, (3, 16), generator=torch.Generator().manual_seed(1))

CUSTOM = """
    import torch
    from bitnetctl.intervention import Intervention, InterventionSettings

    class Signs(Intervention):
        summary = "no zeros"
        source = "a test"

        class Settings(InterventionSettings):
            pass

        def quantize_weights(self, weight_LOI):
            return weight_LOI.sign(), weight_LOI.abs().amax((-2, -1), keepdim=True)

        def quantization(self, base, step, steps):
            return step / steps
"""


def trained(
    train: Train, configs: RunConfig | Sequence[RunConfig], names: Sequence[str] = ("a",), **options: object
) -> dict[str, Tensor]:
    """Train a pack; return the logits of each run at its end, in the pack."""
    logits: dict[str, Tensor] = {}

    def watch(trainer: Trainer, event: Event) -> None:
        if isinstance(event, Finished | Stopped):
            pack = trainer.pack
            tokens_RBT = TOKENS_BT.expand(len(names), *TOKENS_BT.shape)
            logits_RNV = pack.model.forward(tokens_RBT, pack.quant_lambdas(event.step))
            logits.update(zip(names, logits_RNV.unflatten(1, TOKENS_BT.shape), strict=True))

    train(configs, names=names, watch=watch, **options)
    return logits


def complete_no_more(paths: RunPaths) -> None:
    """Take from a run what earlier versions did not keep."""
    paths.tokenizer.unlink()
    for step in checkpoint.steps(paths.checkpoints):
        state_path = checkpoint.path_of(paths.checkpoints, step) / "state.json"
        state = json.loads(state_path.read_text(encoding="utf-8"))
        del state["quantization"], state["state_sha256"]
        state_path.write_text(json.dumps({**state, "state_sha256": canonical_hash(state)}), encoding="utf-8")


def message(text: str = "a", kind: type[BitnetctlError] = ConfigError, step: int | None = None) -> str:
    with pytest.raises(kind) as caught:
        open_run(text, RUNS, step=step)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_finished_run(train: Train, tiny_config: TinyConfig, tiny_tokens: TokenData) -> None:
    logits = trained(train, tiny_config())
    run = open_run("a", RUNS)
    assert (run.name, run.step, run.context_length, run.quant_lambda) == ("a", 12, 16, 1.0)
    assert run.config == tiny_config()
    assert run.end_of_text == run.tokenizer.token_to_id("<|endoftext|>")
    assert PATHS.tokenizer.read_bytes() == tiny_tokens.tokenizer_path.read_bytes()
    assert run.tokenizer.to_str() == PATHS.tokenizer.read_text(encoding="utf-8")
    assert torch.equal(run.logits(TOKENS_BT), logits["a"])
    saved = checkpoint.load_weights(checkpoint.path_of(PATHS.checkpoints, 12))
    assert run.weights().keys() == saved.model.keys()
    assert all(torch.equal(tensor, saved.model[name]) for name, tensor in run.weights().items())
    assert not any(tensor.requires_grad for tensor in run.weights().values())
    codes_OI, scale_OG = run.quantized()["model.layers.1.mlp.up_proj.weight"]
    weight_OI = saved.model["model.layers.1.mlp.up_proj.weight"]
    mean = torch.cat([saved.model[f"model.layers.1.mlp.{name}_proj.weight"] for name in ("gate", "up")]).abs().mean()
    # the quick recipe has one scale for both
    assert torch.allclose(scale_OG, mean.expand_as(scale_OG))
    assert torch.equal(codes_OI, (weight_OI / scale_OG).round().clamp(-1, 1).to(torch.int8))


def test_text_and_tokens(train: Train, tiny_config: TinyConfig, tiny_tokens: TokenData, token_cache: Path) -> None:
    trained(train, tiny_config())
    # as of other programs, which put a token in front
    tokenizer = Tokenizer.from_file(str(PATHS.tokenizer))
    start = ("<|endoftext|>", tokenizer.token_to_id("<|endoftext|>"))
    tokenizer.post_processor = processors.TemplateProcessing("<|endoftext|> $A", None, [start])
    run = replace(open_run("a", RUNS), tokenizer=tokenizer)
    text = "to be<|endoftext|> or not é"
    assert tokenizer.encode(text).ids == [run.end_of_text, *run.encode(text)]
    assert run.end_of_text in run.encode(text)
    assert run.decode(run.encode(text)) == text
    with pytest.raises(DataError, match=r"^run a: its tokenizer cannot encode the text: "):
        run.encode("\ud800")
    found = run.training_tokens()
    assert found is not None
    assert np.array_equal(found.train_N, tiny_tokens.train_N)
    shutil.rmtree(token_cache)
    assert run.training_tokens() is None


@pytest.mark.parametrize(
    "arm", ["median-scale", "group-scale:size=16", "fp-first:fraction=0.3,ramp=0.5", "full-precision"]
)
def test_the_arithmetic_is_that_of_the_arm(train: Train, tiny_config: TinyConfig, arm: str) -> None:
    logits = trained(train, tiny_config(arm=arm), stop_after=8)
    run = open_run("a", RUNS)
    assert run.step == 8
    assert torch.equal(run.logits(TOKENS_BT), logits["a"])
    complete_no_more(PATHS)
    again = open_run("a", RUNS)
    assert again.quant_lambda == run.quant_lambda
    assert torch.equal(again.logits(TOKENS_BT), logits["a"])


def test_lambda_is_that_of_the_step(train: Train, tiny_config: TinyConfig) -> None:
    config = tiny_config(arm="fp-first:fraction=0.3,ramp=0.5")
    trained(train, config, stop_after=8)
    quant_lambdas = [open_run("a", RUNS, step=step).quant_lambda for step in (4, 8)]
    complete_no_more(PATHS)
    assert [open_run("a", RUNS, step=step).quant_lambda for step in (4, 8)] == quant_lambdas
    assert 0 < quant_lambdas[0] < quant_lambdas[1] < 1
    assert "has weights of step 4 and 8, not 5" in message(kind=CheckpointError, step=5)


def test_each_run_of_a_pack(train: Train, tiny_config: TinyConfig) -> None:
    logits = trained(train, [tiny_config(seed=seed) for seed in (0, 1)], ["a", "b"])
    for name in ("a", "b"):
        # rounding depends on the number of runs in a matmul
        assert torch.allclose(open_run(name, RUNS).logits(TOKENS_BT), logits[name], atol=1e-4)
    assert not torch.allclose(logits["a"], logits["b"], atol=1e-2)


def test_a_folder_elsewhere(train: Train, tiny_config: TinyConfig, tmp_path: Path, token_cache: Path) -> None:
    logits = trained(train, tiny_config())
    shutil.move(RUNS / "a", tmp_path / "moved" / "other")
    shutil.rmtree(token_cache)
    run = open_run(str(tmp_path / "moved" / "other"))
    assert run.name == "other"
    assert torch.equal(run.logits(TOKENS_BT), logits["a"])


def test_a_run_whose_weights_are_not_kept_has_no_tokenizer(train: Train, tiny_config: TinyConfig) -> None:
    train(tiny_config(), names=["a"], keep_weights=False, stop_after=4)
    assert not PATHS.tokenizer.exists()
    # what it resumes from has weights
    assert open_run("a", RUNS).step == 4
    train(tiny_config(), names=["a"], keep_weights=False)
    assert "its weights were not kept" in message(kind=CheckpointError)


def test_a_resumed_run_gets_its_tokenizer(train: Train, tiny_config: TinyConfig) -> None:
    train(tiny_config(), names=["a"], stop_after=4)
    content = PATHS.tokenizer.read_bytes()
    assert hashlib.sha256(content).hexdigest() == manifest("a").data["tokenizer_fingerprint"]
    PATHS.tokenizer.unlink()
    train(tiny_config(), names=["a"])
    assert PATHS.tokenizer.read_bytes() == content


@pytest.mark.parametrize("version", ["schema-1", "schema-2"])
def test_files_of_earlier_versions(version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(FIXTURES / version, tmp_path / "old")
    monkeypatch.chdir(tmp_path / "old")
    expected = json.loads(Path("expected.json").read_text(encoding="utf-8"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "old" / "cache"))
    assert "its weights were not kept" in message(expected["finished"], CheckpointError)
    run = open_run(expected["stopped"])
    steps_done = manifest(expected["stopped"]).steps_done
    assert (run.step, run.quant_lambda, run.end_of_text) == (steps_done, 1.0, 256)
    assert run.logits(TOKENS_BT.clamp(max=256)).isfinite().all()
    content = run.paths.tokenizer.read_bytes()
    run.paths.tokenizer.unlink()
    # without a cache the file that the tokenizer was read from will do
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "none"))
    assert open_run(expected["stopped"]).paths.tokenizer.read_bytes() == content


def test_a_tokenizer_that_is_gone(train: Train, tiny_config: TinyConfig, token_cache: Path) -> None:
    train(tiny_config(), names=["a"])
    PATHS.tokenizer.unlink()
    shutil.rmtree(token_cache)
    found = message(kind=DataError)
    assert "neither in its folder nor in the token cache" in found
    assert "bpe:300" in found
    assert "tiny.txt" in found


def test_a_tokenizer_of_another_run(train: Train, tiny_config: TinyConfig) -> None:
    train(tiny_config(), names=["a"])
    damage(PATHS.tokenizer)
    assert "is not the tokenizer that the run was trained with" in message(kind=DataError)


def test_custom_quantizers_need_their_plugin(train: Train, tiny_config: TinyConfig, distribution: Distribution) -> None:
    site = distribution("signs", CUSTOM, points={"signs": "made_up_signs:Signs"})
    logits = trained(train, tiny_config(arm="signs"), stop_after=8)
    assert torch.equal(open_run("a", RUNS).logits(TOKENS_BT), logits["a"])
    assert open_run("a", RUNS).quant_lambda == 8 / 12
    sys.path.remove(str(site))
    forget_plugins()
    found = message()
    assert "unknown intervention 'signs'" in found
    assert "it was trained with signs 1.2: install it" in found


def test_runs_without_weights(train: Train, tiny_config: TinyConfig) -> None:
    train(tiny_config(), names=["a"])
    assert "no run there; give the name of one in --runs-dir, or its folder; did you mean 'a'?" in message("aa")
    finished = manifest("a")
    checkpoint.keep_only(PATHS.checkpoints, -1)
    for status, expected in (("diverged", "it diverged before"), ("running", "has no checkpoint yet")):
        write_manifest(PATHS.folder, finished.model_copy(update={"status": status}))
        assert expected in message(kind=CheckpointError)
    write_manifest(PATHS.folder, finished.model_copy(update={"effective_config": None, "status": "failed"}))
    assert "failed before its first step" in message()
    write_manifest(PATHS.folder, finished.model_copy(update={"config": None, "external": ExternalRun()}))
    assert "another program trained it" in message()


def test_damaged_weights(train: Train, tiny_config: TinyConfig) -> None:
    train(tiny_config(), names=["a"])
    train(tiny_config(seed=1), names=["b"])
    folder = checkpoint.path_of(PATHS.checkpoints, 12)
    # what is not needed may be gone, and so may the rows
    PATHS.csv.unlink()
    (folder / "records.csv").unlink()
    assert open_run("a", RUNS).step == 12
    damage(folder / "model.safetensors")
    assert "model.safetensors is damaged (checksum differs)" in message(kind=CheckpointError)
    shutil.rmtree(folder)
    shutil.copytree(RUNS / "b" / "checkpoints" / folder.name, folder)
    assert "is of another config than run.json" in message(kind=CheckpointError)
