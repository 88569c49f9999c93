"""A finished run trained on, as a run of its own."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from calling import call, training
from configs import TinyConfig
from run_files import RUNS, Train, assert_equal, csv_without_speed, saved

from bitnetctl import checkpoint
from bitnetctl.config import RunConfig
from bitnetctl.errors import CheckpointError, ConfigError, ExitCode
from bitnetctl.records import RunPaths, read, read_manifest
from bitnetctl.trainer.extend import begin_extension, extended_config
from bitnetctl.trainer.resolved import resolve

SOURCE = RunPaths(RUNS, "a")


@pytest.fixture
def finished(train: Train, tiny_config: TinyConfig) -> RunConfig:
    config = tiny_config()
    train(config, names=["a"])
    return config


def test_it_starts_with_rows_and_weights_of_the_other(train: Train, finished: RunConfig) -> None:
    config = extended_config(SOURCE, 20)
    assert config == finished.model_copy(update={"steps": 20, "continues": f"{finished.hash[:12]}@12"})
    before = {path: path.read_bytes() for path in RUNS.rglob("*") if path.is_file() and path.name != "run.lock"}
    begin_extension(resolve(config, RUNS, "b"), SOURCE)
    start = checkpoint.load(checkpoint.path_of(RUNS / "b" / "checkpoints", 12), RUNS / "b.csv")
    end = checkpoint.load(checkpoint.path_of(RUNS / "a" / "checkpoints", 12))
    assert start.config_hash == config.hash
    assert all(torch.equal(start.model[name], tensor) for name, tensor in end.model.items())
    train(config, names=["b"])
    old, new = read(RUNS / "a.csv").frame, read(RUNS / "b.csv").frame
    assert new.iloc[: len(old)].equals(old)
    assert int(new["Step"].iloc[len(old)]) > 12
    assert int(new["Step"].iloc[-1]) == 20
    manifest = read_manifest(RUNS / "b")
    assert manifest is not None
    assert (manifest.status, manifest.steps_done, manifest.sessions[0].from_step) == ("finished", 20, 12)
    assert {path: path.read_bytes() for path in before} == before


def test_a_stop_changes_nothing(train: Train, finished: RunConfig) -> None:
    config = extended_config(SOURCE, 20)
    for name in ("b", "c"):
        begin_extension(resolve(config, RUNS, name), SOURCE)
    train(config, names=["b"])
    train(config, names=["c"], stop_after=3)
    begin_extension(resolve(config, RUNS, "c"), SOURCE)
    train(config, names=["c"])
    assert_equal(saved(RUNS, "b", 20).model, saved(RUNS, "c", 20).model)
    assert csv_without_speed(RUNS / "b.csv") == csv_without_speed(RUNS / "c.csv")


@pytest.mark.parametrize("order", ["sequential", "shuffled"])
def test_its_steps_are_those_of_the_longer_schedule(train: Train, tiny_config: TinyConfig, order: str) -> None:
    train(tiny_config(data__order=order), names=["a"])
    config = extended_config(SOURCE, 20)
    begin_extension(resolve(config, RUNS, "b"), SOURCE)
    train(config, names=["b"])
    train(tiny_config(data__order=order, steps=20), names=["c"])
    extended, anew = (read(RUNS / f"{name}.csv").frame.iloc[-1] for name in ("b", "c"))
    assert (extended["Step"], extended["LR"], extended["WD"]) == (20, anew["LR"], anew["WD"])
    assert extended["Loss"] != anew["Loss"]


def test_it_is_no_run_of_the_longer_config(finished: RunConfig) -> None:
    config = extended_config(SOURCE, 20)
    assert config.hash != finished.model_copy(update={"steps": 20}).hash
    with pytest.raises(ConfigError, match="the extended run has 12; take more, not 12"):
        extended_config(SOURCE, 12)


def test_a_run_that_cannot_be_extended_is_named(train: Train, tiny_config: TinyConfig, finished: RunConfig) -> None:
    with pytest.raises(ConfigError, match="no run there"):
        extended_config(RunPaths(RUNS, "none"), 20)
    train(tiny_config(), names=["b"], stop_after=4)
    with pytest.raises(ConfigError, match="the run is stopped, not finished"):
        extended_config(RunPaths(RUNS, "b"), 20)
    config = extended_config(SOURCE, 20)
    checkpoint.keep_only(SOURCE.checkpoints, -1)
    with pytest.raises(CheckpointError, match="its weights were not kept"):
        begin_extension(resolve(config, RUNS, "c"), SOURCE)


def test_moments_are_missing_at_the_start_only(train: Train, finished: RunConfig) -> None:
    config = extended_config(SOURCE, 20)
    begin_extension(resolve(config, RUNS, "b"), SOURCE)
    train(config, names=["b"], stop_after=3)
    folder = RUNS / "b" / "checkpoints"
    last = checkpoint.steps(folder)[-1]
    state = checkpoint.load(checkpoint.path_of(folder, last), RUNS / "b.csv")
    checkpoint.save(folder, replace(state, optimizer={}))
    with pytest.raises(CheckpointError, match=r"exp_avg is missing|step is missing"):
        train(config, names=["b"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a", ("runs", "a")),
        ("elsewhere/a", ("elsewhere", "a")),
        ("elsewhere/a.csv", ("elsewhere", "a")),
        ("/full/a/", ("/full", "a")),
    ],
)
def test_a_run_is_named_by_name_folder_or_csv(text: str, expected: tuple[str, str]) -> None:
    paths = RunPaths.of(text, Path("runs"))
    assert (str(paths.runs_dir), paths.name) == expected


def test_a_folder_of_its_name_is_not_taken_for_the_run(train: Train, finished: RunConfig) -> None:
    Path("a").mkdir()
    assert RunPaths.of("a", RUNS) == SOURCE
    (RUNS / "a").rename("b")
    assert RunPaths.of("b", RUNS) == RunPaths(Path(), "b")


def test_the_command(tiny_text: Path) -> None:
    arguments = training(tiny_text)
    first = call(*arguments)
    assert first.code == ExitCode.SUPPORTED, first.err
    [csv] = RUNS.glob("*.csv")
    longer = call(*[*arguments, "--steps", "60"])
    assert f"--extend {csv.stem} would train that one on" in longer.err
    done = call("train", "--extend", csv.stem, "--steps", "50", "--json")
    assert (done.code, done.json["status"], done.json["final"]["Step"]) == (ExitCode.SUPPORTED, "finished", 50)
    assert "starts with rows and weights of the run that it extends" in done.err
    again = call("train", "--extend", csv, "--steps", "50")
    assert "already finished" in again.err
    assert "leave out --seed" in call("train", "--extend", csv.stem, "--steps", "50", "--seed", "3").error
    assert "say with --steps" in call("train", "--extend", csv.stem).error
    named = csv.with_suffix("") / "checkpoints"
    [step] = named.iterdir()
    other = call(*[*arguments, "--steps", "70", "--resume", str(step)])
    assert "belongs to another config: steps is 70 now, was 20" in other.err
