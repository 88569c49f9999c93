"""How runs are locked and resumed: by one process, from checked checkpoints, with every change of settings reported."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from calling import call
from configs import TinyConfig
from run_files import Train, csv_without_speed, manifest
from torch import Tensor
from training import train_runs

from bitnetctl import checkpoint
from bitnetctl.checkpoint import Checkpoint
from bitnetctl.config import RunConfig
from bitnetctl.engine import select
from bitnetctl.errors import CheckpointError, ConfigError, ExitCode, RunEndedError
from bitnetctl.plugins import registry
from bitnetctl.records import PluginInfo, write_manifest
from bitnetctl.trainer.artifacts import RunArtifacts
from bitnetctl.trainer.events import Event, Finished, Started
from bitnetctl.trainer.loop import Trainer
from bitnetctl.trainer.options import TrainOptions

RUNS = Path("runs")
ABSURD = {"schedule__peak_learning_rate": 1e38, "optimizer__max_norm": "none"}


def start_of(events: list[Event]) -> int:
    assert isinstance(events[0], Started)
    return events[0].start_step


def content_below(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# a run that another process finishes while this one prepares


@pytest.fixture
def ended_meanwhile(train: Train, monkeypatch: pytest.MonkeyPatch) -> Callable[[RunConfig], None]:
    """Let another process finish the run between reading its status and locking it."""

    def arrange(config: RunConfig) -> None:
        claim = RunArtifacts.acquire

        def late(output: RunArtifacts) -> None:
            with monkeypatch.context() as patch:
                patch.setattr(RunArtifacts, "acquire", claim)
                train(config, names=["a"], keep_weights=False)
            claim(output)

        monkeypatch.setattr(RunArtifacts, "acquire", late)

    return arrange


@pytest.mark.parametrize("fields", [{}, ABSURD], ids=["finished", "diverged"])
@pytest.mark.parametrize("resume", ["auto", "never", "path"])
def test_it_is_not_trained_again(
    ended_meanwhile: Callable[[RunConfig], None],
    train: Train,
    tiny_config: TinyConfig,
    fields: dict[str, Any],
    resume: str,
) -> None:
    config, said = tiny_config(**fields), list[str]()
    path = Path("elsewhere")
    if resume == "path":
        train(tiny_config(), names=["b"], stop_after=4)
        path = checkpoint.path_of(RUNS / "b" / "checkpoints", 4).rename(path)
    ended_meanwhile(config)
    taken: Any = path if resume == "path" else resume
    options = TrainOptions(runs_dir=RUNS, device="cpu", resume=taken, log=said.append)
    assert list(train_runs([config], options, names=["a"])) == []
    status = manifest("a").status
    assert status == ("diverged" if fields else "finished")
    assert said == [f"a: already {status}, nothing to train"]


def test_the_command_finds_it_finished(
    ended_meanwhile: Callable[[RunConfig], None], train: Train, tiny_config: TinyConfig
) -> None:
    config = tiny_config()
    ended_meanwhile(config)
    arguments = ["train", "--recipe", "quick", "--name", "a", "--json"]
    tree = config.model_dump(mode="json")
    for section in ("model", "data", "schedule", "probe"):
        for key, value in tree[section].items():
            if value is not None:
                text = value if isinstance(value, str) else json.dumps(value)
                arguments += ["--set", f"{section}.{key}={text}"]
    done = call(*arguments, "--steps", "12", "--seed", str(config.seed))
    assert done.code == ExitCode.SUPPORTED, done.err
    assert "a: already finished, nothing to train" in done.err
    assert done.json["status"] == "finished"
    assert (RUNS / "a.csv").read_bytes().count(b"\n") == 1 + 4


def test_training_an_ended_run_is_refused(train: Train, tiny_config: TinyConfig) -> None:
    train(tiny_config(), names=["a"])
    before = content_below(RUNS)
    with pytest.raises(RunEndedError, match="a: already finished, nothing to train"):
        train(tiny_config(), names=["a"])
    with pytest.raises(ConfigError, match="holds another run"):
        train(tiny_config(seed=1), names=["a"])
    assert content_below(RUNS) == before


# checkpoints that are missing or links


def file_in_place(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("x", encoding="utf-8")


def link_to_nothing(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.symlink_to("nowhere")


@pytest.mark.parametrize(
    ("harm", "complaint"),
    [
        (shutil.rmtree, "run a: 7 steps were done, but its checkpoints are gone; put them back"),
        (file_in_place, "checkpoints: is not a folder; put the checkpoints back"),
        (link_to_nothing, "checkpoints: is not a folder; put the checkpoints back"),
    ],
)
def test_a_run_whose_checkpoints_are_gone_does_not_start_over(
    train: Train, tiny_config: TinyConfig, harm: Callable[[Path], None], complaint: str
) -> None:
    train(tiny_config(), names=["a"], stop_after=7)
    shutil.copytree(RUNS / "a" / "checkpoints", "away")
    harm(RUNS / "a" / "checkpoints")
    csv = (RUNS / "a.csv").read_bytes()
    with pytest.raises(CheckpointError, match=complaint) as caught:
        train(tiny_config(), names=["a"])
    assert caught.value.exit_code == ExitCode.USAGE
    assert "remove runs/a and a.csv to start over" in str(caught.value).replace(f"{Path.cwd()}/", "")
    assert (RUNS / "a.csv").read_bytes() == csv
    # restored, it resumes
    there = RUNS / "a" / "checkpoints"
    if there.is_symlink() or there.exists():
        there.unlink()
    Path("away").rename(there)
    assert start_of(train(tiny_config(), names=["a"])) == 7


def test_checkpoints_behind_links_are_not_read(train: Train, tiny_config: TinyConfig) -> None:
    train(tiny_config(), names=["a"], stop_after=7, checkpoint_every=3)
    newest = checkpoint.path_of(RUNS / "a" / "checkpoints", 7)
    newest.rename("outside")
    newest.symlink_to(Path("outside").absolute())
    said: list[str] = []
    assert start_of(train(tiny_config(), names=["a"], log=said.append)) == 6
    assert len(said) == 1
    assert "step-00000007: is a link" in said[0]
    assert (Path("outside") / "state.json").exists()


def test_a_renamed_checkpoint_gives_way(train: Train, tiny_config: TinyConfig) -> None:
    train(tiny_config(), names=["b"])
    train(tiny_config(), names=["a"], stop_after=7, checkpoint_every=3)
    folder = RUNS / "a" / "checkpoints"
    checkpoint.path_of(folder, 7).rename(checkpoint.path_of(folder, 11))
    said: list[str] = []
    assert start_of(train(tiny_config(), names=["a"], log=said.append)) == 6
    assert "step-00000011: is of step 7; rename it back" in said[0]
    assert csv_without_speed(RUNS / "a.csv") == csv_without_speed(RUNS / "b.csv")


def test_rows_are_compared_with_the_csv_that_is_appended_to(train: Train, tiny_config: TinyConfig) -> None:
    """A checkpoint outside of the runs folder has no CSV beside it that could show a missing row."""
    train(tiny_config(), names=["a"], stop_after=9, checkpoint_every=3)
    elsewhere = Path("backup", "a", "step-00000009").absolute()
    shutil.copytree(checkpoint.path_of(RUNS / "a" / "checkpoints", 9), elsewhere)
    rows = (RUNS / "a.csv").read_bytes().splitlines(keepends=True)
    (RUNS / "a.csv").write_bytes(b"".join(rows[:2] + rows[3:]))
    before = content_below(RUNS)
    with pytest.raises(CheckpointError, match=r"step-00000009: the rows of .*a\.csv are not those"):
        train(tiny_config(), names=["a"], resume=elsewhere)
    assert content_below(RUNS) == before
    shutil.copy(elsewhere / "records.csv", RUNS / "a.csv")
    assert start_of(train(tiny_config(), names=["a"], resume=elsewhere)) == 9


# checkpoints with valid checksums that do not fit the run


def first(tensors: Mapping[str, Tensor], change: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    name = next(iter(tensors))
    return {**tensors, name: change(tensors[name]).contiguous()}


def without_first(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for index, (name, tensor) in enumerate(tensors.items()) if index}


def hostile(state: Checkpoint) -> dict[str, Checkpoint]:
    codes, model, optimizer = state.codes, state.model, state.optimizer
    changed: dict[str, dict[str, Any]] = {
        "codes: shape": {"codes": first(codes, lambda code: code.flatten()[:3])},
        "codes: renamed": {"codes": {f"{name}x": code for name, code in codes.items()}},
        "codes: missing": {"codes": without_first(codes)},
        "codes: none": {"codes": {}},
        "codes: one too many": {"codes": {**codes, "x": torch.zeros(2)}},
        "codes: floats": {"codes": first(codes, Tensor.float)},
        "weights: whole numbers": {"model": first(model, lambda weight: weight.to(torch.int8))},
        "weights: shape": {"model": first(model, Tensor.flatten)},
        "weights: one too many": {"model": {**model, "x": torch.zeros(2)}},
        "moments: missing": {"optimizer": without_first(optimizer)},
        "moments: none": {"optimizer": {}},
        "moments: shape": {"optimizer": first(optimizer, lambda moment: torch.zeros(7))},
        "moments: one too many": {"optimizer": {**optimizer, "x/exp_avg": torch.zeros(3)}},
        "step: past the end": {"step": 99},
    }
    return {what: replace(state, **fields) for what, fields in changed.items()}


def test_a_checkpoint_that_does_not_fit_is_refused(train: Train, tiny_config: TinyConfig) -> None:
    train(tiny_config(), names=["a"], stop_after=7, checkpoint_every=7)
    folder = RUNS / "a" / "checkpoints"
    state = checkpoint.load(checkpoint.path_of(folder, 7))
    for what, changed in hostile(state).items():
        checkpoint.keep_only(folder, -1)
        checkpoint.save(folder, changed)
        before = content_below(RUNS)
        with pytest.raises(CheckpointError, match=r"the checkpoint of step \d+ does not fit the run: ") as caught:
            train(tiny_config(), names=["a"])
        assert "\n" not in str(caught.value), what
        assert content_below(RUNS) == before, what
    checkpoint.keep_only(folder, -1)
    checkpoint.save(folder, state)
    assert start_of(train(tiny_config(), names=["a"])) == 7


@pytest.mark.parametrize("kind", ["model", "optimizer"])
def test_a_non_finite_checkpoint_gives_way(train: Train, tiny_config: TinyConfig, kind: str) -> None:
    train(tiny_config(), names=["a"], stop_after=7, checkpoint_every=3)
    folder = RUNS / "a" / "checkpoints"
    state = checkpoint.load(checkpoint.path_of(folder, 7))
    poisoned: dict[str, Any] = {kind: first(getattr(state, kind), lambda tensor: tensor * torch.nan)}
    checkpoint.save(folder, replace(state, **poisoned))
    said: list[str] = []
    assert start_of(train(tiny_config(), names=["a"], log=said.append)) == 6
    assert f"in {kind}.safetensors is not finite" in said[0]
    assert manifest("a").status == "finished"


# what a run was trained with


def sessions(name: str) -> list[int | None]:
    return [session.from_step for session in manifest(name).sessions]


def test_every_session_that_is_part_of_the_run_is_listed(train: Train, tiny_config: TinyConfig) -> None:
    config = tiny_config()
    train(config, names=["a"], stop_after=3)
    assert sessions("a") == [0]
    # killed before its first checkpoint, so that it leaves no session
    with pytest.raises(SystemError):
        train(config, names=["a"], crash_after=2, checkpoint_every=100)
    assert sessions("a") == [0, 3]
    train([config, tiny_config(seed=1)][:1], names=["a"], stop_after=4)
    assert sessions("a") == [0, 3]
    train(config, names=["a"])
    stored = manifest("a")
    assert sessions("a") == [0, 3, 7]
    for name in ("versions", "git", "device", "engine", "precision", "threads", "plugins", "command", "pack"):
        assert getattr(stored.sessions[-1], name) == getattr(stored, name)


def test_an_older_manifest_is_one_session(train: Train, tiny_config: TinyConfig) -> None:
    train(tiny_config(), names=["a"], stop_after=3)
    write_manifest(RUNS / "a", manifest("a").model_copy(update={"sessions": [], "precision": "bf16", "device": "old"}))
    train(tiny_config(), names=["a"], precision="fp32")
    old, new = manifest("a").sessions
    assert (old.from_step, old.precision, old.device) == (None, "bf16", "old")
    assert (new.from_step, new.precision) == (3, "fp32")


def test_a_run_that_starts_over_has_one_session(train: Train, tiny_config: TinyConfig) -> None:
    with pytest.raises(SystemError):
        train(tiny_config(), names=["a"], crash_after=3)
    train(tiny_config(), names=["a"])
    assert sessions("a") == [0]


def test_a_correction_changes_the_current_session_alone(train: Train, tiny_config: TinyConfig) -> None:
    def watch(trainer: Trainer, event: Event) -> None:
        if isinstance(event, Started):
            trainer.artifacts[0].correct(engine="compile")

    train(tiny_config(), names=["a"], stop_after=3)
    train(tiny_config(), names=["a"], watch=watch)
    stored = manifest("a")
    assert stored.engine == "compile"
    assert [session.engine for session in stored.sessions] == ["eager", "compile"]


def test_a_change_of_precision_threads_or_plugin_code_is_reported(
    train: Train, tiny_config: TinyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, said = tiny_config(arm="no-decay+label-smoothing"), list[str]()
    train(config, names=["a"], stop_after=3, precision="fp32", log=said.append)
    train(config, names=["a"], stop_after=1, log=said.append)
    assert said == []
    plugin_infos = registry.plugin_infos

    def edited(specs: Any) -> list[PluginInfo]:
        first, *rest = plugin_infos(specs)
        return [first.model_copy(update={"source_sha256": "0" * 64}), *rest]

    monkeypatch.setattr(registry, "plugin_infos", edited)
    monkeypatch.setattr(select, "has_bf16_matmul", lambda device: True)
    write_manifest(RUNS / "a", manifest("a").model_copy(update={"threads": 2}))
    train(config, names=["a"], precision="bf16", log=said.append)
    changes = "precision bf16 (fp32 before), threads 1 (2 before), other code of no-decay"
    assert said == [f"a: resumes with {changes}; run.json names both"]
    *_, before, after = manifest("a").sessions
    assert (before.precision, after.precision) == ("fp32", "bf16")
    assert before.plugins[0].source_sha256 != after.plugins[0].source_sha256 == "0" * 64


def test_a_refused_engine_says_nothing_of_the_precision(train: Train, tiny_config: TinyConfig) -> None:
    train(tiny_config(), names=["a"], stop_after=3)
    said: list[str] = []
    with pytest.raises(ConfigError, match="--engine graph"):
        train(tiny_config(), names=["a"], engine="graph", log=said.append)
    assert said == []


def test_a_run_keeps_its_engine_where_the_device_has_it(
    train: Train, tiny_config: TinyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(select, "_missing_to_compile", lambda device: None)
    said: list[str] = []
    train(tiny_config(), names=["a"], stop_after=3, engine="compile", log=said.append)
    assert said == ["compiling before the first step; what is compiled is kept for the next time"]
    train(tiny_config(), names=["a"], stop_after=3)
    assert [session.engine for session in manifest("a").sessions] == ["compile", "compile"]
    write_manifest(RUNS / "a", manifest("a").model_copy(update={"engine": "graph"}))
    said.clear()
    train(tiny_config(), names=["a"], log=said.append)
    assert said == ["a: resumes with engine eager (graph before); run.json names both"]


def test_another_precision_is_reported_where_the_device_lacks_the_old_one(
    train: Train, tiny_config: TinyConfig
) -> None:
    train(tiny_config(), names=["a"], stop_after=3)
    write_manifest(RUNS / "a", manifest("a").model_copy(update={"precision": "int8"}))
    said: list[str] = []
    train(tiny_config(), names=["a"], log=said.append)
    assert said == ["a: resumes with precision fp32 (int8 before); run.json names both"]


def test_a_finished_run_without_its_manifest_is_finished(train: Train, tiny_config: TinyConfig) -> None:
    train(tiny_config(), names=["a"])
    csv = (RUNS / "a.csv").read_bytes()
    (RUNS / "a" / "run.json").unlink()
    events = train(tiny_config(), names=["a"])
    assert [type(event) for event in events] == [Started, Finished]
    assert (RUNS / "a.csv").read_bytes() == csv
    stored = manifest("a")
    assert (stored.status, stored.steps_done, sessions("a")) == ("finished", 12, [12])
    assert stored.csv_sha256 is not None
