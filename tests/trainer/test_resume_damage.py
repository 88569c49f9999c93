"""Runs that were killed or damaged: what can be made good is, and nothing is trained over."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from configs import TinyConfig
from run_files import (
    RUNS,
    UNDISTURBED,
    Train,
    assert_undisturbed,
    csv_without_speed,
    damage,
    manifest,
    start_of,
)
from training import sweep_runs

from bitnetctl import checkpoint
from bitnetctl.errors import CheckpointError, RecordError, StorageError
from bitnetctl.records import RecordWriter, read_manifest, write_manifest
from bitnetctl.records.schema import HEADER
from bitnetctl.trainer.events import Event, Failed, Finished, Saved, Started
from bitnetctl.trainer.loop import Trainer
from bitnetctl.trainer.options import TrainOptions
from bitnetctl.trainer.resolved import resolve


@pytest.mark.parametrize(
    "torn", [b"", b"9", b"9,3.5,17,0.001", b"9,3.5,17,0.001,0.1,\xff"], ids=["none", "step", "half", "bytes"]
)
def test_rows_after_the_checkpoint_are_written_again(train: Train, tiny_config: TinyConfig, torn: bytes) -> None:
    config = tiny_config(probe__eval_every_steps=2)
    train(config, names=["a"], runs_dir=UNDISTURBED, checkpoint_every=5)
    with pytest.raises(SystemError):
        train(config, names=["a"], crash_after=9, checkpoint_every=5)
    # rows at 6 and 8, the last checkpoint at 5
    assert len(csv_without_speed(RUNS / "a.csv")) == 1 + 5
    with (RUNS / "a.csv").open("ab") as file:
        file.write(torn)
    events = train(config, names=["a"], stop_after=1, checkpoint_every=5)
    assert start_of(events) == 5
    assert csv_without_speed(RUNS / "a.csv") == csv_without_speed(UNDISTURBED / "a.csv")[: 1 + 4]
    train(config, names=["a"], checkpoint_every=5)
    assert_undisturbed("a")


def test_a_kill_before_the_first_checkpoint_starts_over(train: Train, tiny_config: TinyConfig) -> None:
    train(tiny_config(), names=["a"], runs_dir=UNDISTURBED)
    with pytest.raises(SystemError):
        train(tiny_config(), names=["a"], crash_after=3)
    assert (RUNS / "a.csv").read_bytes().count(b"\n") == 2
    assert start_of(train(tiny_config(), names=["a"])) == 0
    assert_undisturbed("a")


def test_a_pack_resumes_where_all_its_runs_can(train: Train, tiny_config: TinyConfig) -> None:
    configs = [tiny_config(seed=4), tiny_config(seed=5)]
    train(configs, names=["a", "b"], runs_dir=UNDISTURBED)
    with pytest.raises(SystemError):
        train(configs, names=["a", "b"], crash_after=11, checkpoint_every=3)
    # killed between the checkpoints of its replicas
    shutil.rmtree(checkpoint.path_of(RUNS / "b" / "checkpoints", 9))
    messages: list[str] = []
    assert start_of(train(configs, names=["a", "b"], log=messages.append)) == 6
    assert messages == []
    assert_undisturbed("a", "b")


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "codes.safetensors"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(train: Train, tiny_config: TinyConfig, file: str) -> None:
    train(tiny_config(), names=["a"], runs_dir=UNDISTURBED)
    train(tiny_config(), names=["a"], stop_after=7, checkpoint_every=3)
    damage(checkpoint.path_of(RUNS / "a" / "checkpoints", 7) / file)
    messages: list[str] = []
    assert start_of(train(tiny_config(), names=["a"], log=messages.append)) == 6
    (log,) = messages
    assert "step-00000007" in log
    assert file in log
    assert_undisturbed("a")


def test_a_damaged_checkpoint_does_not_replace_good_ones(train: Train, tiny_config: TinyConfig) -> None:
    train(tiny_config(), names=["a"], runs_dir=UNDISTURBED)
    train(tiny_config(), names=["a"], stop_after=9, checkpoint_every=3)
    folder = RUNS / "a" / "checkpoints"
    damage(checkpoint.path_of(folder, 9) / "model.safetensors")
    # two more checkpoints before the damaged step: it must not displace the good ones
    assert start_of(train(tiny_config(), names=["a"], stop_after=1)) == 6
    assert checkpoint.steps(folder) == [6, 7]
    assert start_of(train(tiny_config(), names=["a"], stop_after=1)) == 7
    assert checkpoint.steps(folder) == [7, 8]
    train(tiny_config(), names=["a"])
    assert_undisturbed("a")


def test_a_run_rolled_back_with_its_pack_misses_no_row_alone(train: Train, tiny_config: TinyConfig) -> None:
    configs = [tiny_config(seed=seed, probe__eval_every_steps=2) for seed in (4, 5)]
    with pytest.raises(SystemError):
        train(configs, names=["a", "b"], crash_after=11, checkpoint_every=3)
    shutil.rmtree(checkpoint.path_of(RUNS / "b" / "checkpoints", 9))
    # the pack resumes from 6, and is killed before its next checkpoint
    with pytest.raises(SystemError):
        train(configs, names=["a", "b"], crash_after=1, checkpoint_every=3)
    assert start_of(train(configs[:1], names=["a"])) == 6
    steps = [int(row.partition(b",")[0]) for row in csv_without_speed(RUNS / "a.csv")[1:]]
    assert steps == [1, 2, 4, 6, 8, 10, 12]


def change(csv: Path, step: int, bit: int = 1) -> None:
    """Change a digit of a row's loss: with the lowest bit to another digit, which no parser messages."""
    lines = csv.read_bytes().splitlines(keepends=True)
    (index,) = [index for index, line in enumerate(lines) if line.startswith(b"%d," % step)]
    line = bytearray(lines[index])
    line[line.index(b".") + 1] ^= bit
    csv.write_bytes(b"".join([*lines[:index], line, *lines[index + 1 :]]))


@pytest.mark.parametrize("bit", [1, 64], ids=["digit", "letter"])
def test_a_changed_row_gives_way_to_the_checkpoint_before_it(train: Train, tiny_config: TinyConfig, bit: int) -> None:
    train(tiny_config(), names=["a"], runs_dir=UNDISTURBED)
    train(tiny_config(), names=["a"], stop_after=9, checkpoint_every=3)
    change(RUNS / "a.csv", 8, bit)
    messages: list[str] = []
    assert start_of(train(tiny_config(), names=["a"], log=messages.append)) == 6
    (log,) = messages
    assert "step-00000009: the rows of " in log
    assert_undisturbed("a")


def change_first(csv: Path) -> None:
    change(csv, 1)


def swap_rows(csv: Path) -> None:
    header, first, second, *rest = csv.read_bytes().splitlines(keepends=True)
    csv.write_bytes(b"".join([header, second, first, *rest]))


def shorten_first(csv: Path) -> None:
    header, _, *rest = csv.read_bytes().splitlines(keepends=True)
    csv.write_bytes(b"".join([header, b"1,2\n", *rest]))


def lose_first(csv: Path) -> None:
    header, _, *rest = csv.read_bytes().splitlines(keepends=True)
    csv.write_bytes(b"".join([header, *rest]))


def cut_first(csv: Path) -> None:
    csv.write_bytes(csv.read_bytes()[: len(HEADER) + 5])


def cut_header(csv: Path) -> None:
    csv.write_bytes(HEADER[:30])


def empty(csv: Path) -> None:
    csv.write_bytes(b"")


@pytest.mark.parametrize(
    "harm",
    [change_first, swap_rows, shorten_first, lose_first, cut_first, cut_header, empty],
    ids=lambda one: one.__name__,
)
def test_damage_before_all_checkpoints_is_not_trained_over(
    train: Train, tiny_config: TinyConfig, harm: Callable[[Path], None]
) -> None:
    train(tiny_config(), names=["a"], runs_dir=UNDISTURBED)
    train(tiny_config(), names=["a"], stop_after=9, checkpoint_every=3)
    harm(RUNS / "a.csv")
    csv = (RUNS / "a.csv").read_bytes()
    messages: list[str] = []
    with pytest.raises(CheckpointError, match="no checkpoint of run a can be used"):
        train(tiny_config(), names=["a"], log=messages.append)
    assert (RUNS / "a.csv").read_bytes() == csv
    # the copy that the message names repairs it
    copy = checkpoint.path_of(RUNS / "a" / "checkpoints", 9) / "records.csv"
    assert str(copy) in messages[0]
    # and so does its removal
    (RUNS / "a.csv").unlink()
    train(tiny_config(), names=["a"], stop_after=1, checkpoint_every=3)
    assert (RUNS / "a.csv").read_bytes() == copy.read_bytes()
    (RUNS / "a.csv").write_bytes(csv)
    with pytest.raises(CheckpointError, match="no checkpoint of run a can be used"):
        train(tiny_config(), names=["a"])
    shutil.copy(copy, RUNS / "a.csv")
    assert start_of(train(tiny_config(), names=["a"])) == 10
    assert_undisturbed("a")


def test_a_missing_row_is_noticed_with_a_checkpoint_from_elsewhere(
    train: Train, tiny_config: TinyConfig, tmp_path: Path
) -> None:
    train(tiny_config(), names=["a"], stop_after=9, checkpoint_every=3)
    elsewhere = tmp_path / "backup" / "a" / "step-00000009"
    shutil.copytree(checkpoint.path_of(RUNS / "a" / "checkpoints", 9), elsewhere)
    csv = RUNS / "a.csv"
    rows = csv.read_bytes()
    csv.write_bytes(b"".join(rows.splitlines(keepends=True)[:-1]))
    with pytest.raises(CheckpointError, match=r"the rows of .* are not those that were saved with it"):
        train(tiny_config(), names=["a"], resume=elsewhere)
    csv.write_bytes(rows)
    assert start_of(train(tiny_config(), names=["a"], resume=elsewhere)) == 9


def test_a_csv_changed_after_the_end_is_reported(train: Train, tiny_config: TinyConfig) -> None:
    config = tiny_config()
    train(config, names=["a"])
    assert resolve(config, RUNS, "a").ended() is not None
    change(RUNS / "a.csv", 8)
    with pytest.raises(RecordError, match=r"a\.csv: damaged or edited since the run ended"):
        resolve(config, RUNS, "a").ended()


def test_every_flipped_bit_of_a_manifest_is_detected(train: Train, tiny_config: TinyConfig) -> None:
    train(tiny_config(), names=["a"])
    sound, path = read_manifest(RUNS / "a"), RUNS / "a" / "run.json"
    content = path.read_bytes()
    refusals = 0
    for index in range(len(content)):
        damaged = bytearray(content)
        damaged[index] ^= 1 << index % 8
        path.write_bytes(damaged)
        try:
            # white space between the tokens of JSON means nothing
            assert read_manifest(RUNS / "a") == sound
        except RecordError:
            refusals += 1
    assert refusals > 0.7 * len(content)


def test_leftovers_of_a_kill_are_removed(train: Train, tiny_config: TinyConfig) -> None:
    train(tiny_config(), names=["a"], runs_dir=UNDISTURBED)
    train(tiny_config(), names=["a"], stop_after=5)
    leftovers = [RUNS / ".a.csv.0123abcd", RUNS / "a" / ".run.json.0123abcd", RUNS / "a" / "checkpoints" / ".aside-1"]
    for leftover in leftovers[:2]:
        leftover.write_bytes(b"half")
    leftovers[2].mkdir()
    theirs = RUNS / ".ab.csv.0123abcd"
    theirs.write_bytes(b"of another run")
    train(tiny_config(), names=["a"])
    assert not any(leftover.exists() for leftover in leftovers)
    assert theirs.exists()
    assert_undisturbed("a")


def test_a_run_is_unlocked_even_if_its_csv_cannot_be_closed(
    train: Train, tiny_config: TinyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(writer: RecordWriter) -> None:
        raise StorageError("the disk is gone")

    with monkeypatch.context() as patch:
        patch.setattr(RecordWriter, "close", refuse)
        with pytest.raises(StorageError, match="the disk is gone"):
            train(tiny_config(), names=["a"], stop_after=4)
    assert start_of(train(tiny_config(), names=["a"])) == 4


def test_without_a_sound_checkpoint_nothing_is_overwritten(train: Train, tiny_config: TinyConfig) -> None:
    train(tiny_config(), names=["a"], stop_after=7, checkpoint_every=3)
    for step in (6, 7):
        damage(checkpoint.path_of(RUNS / "a" / "checkpoints", step) / "model.safetensors")
    csv = (RUNS / "a.csv").read_bytes()
    messages: list[str] = []
    with pytest.raises(CheckpointError, match="no checkpoint of run a can be used"):
        train(tiny_config(), names=["a"], log=messages.append)
    assert len(messages) == 2
    assert (RUNS / "a.csv").read_bytes() == csv
    assert checkpoint.steps(RUNS / "a" / "checkpoints") == [6, 7]


def test_a_missing_csv_is_restored(train: Train, tiny_config: TinyConfig) -> None:
    train(tiny_config(), names=["a"], runs_dir=UNDISTURBED)
    train(tiny_config(), names=["a"], stop_after=5)
    rows = (RUNS / "a.csv").read_bytes()
    (RUNS / "a.csv").unlink()
    # no evaluation at step 6
    assert start_of(train(tiny_config(), names=["a"], stop_after=1)) == 5
    assert (RUNS / "a.csv").read_bytes() == rows
    (RUNS / "a.csv").unlink()
    assert start_of(train(tiny_config(), names=["a"])) == 6
    assert (RUNS / "a.csv").read_bytes().startswith(rows)
    assert_undisturbed("a")


def test_rows_after_the_checkpoint_are_written_again_into_a_restored_csv(train: Train, tiny_config: TinyConfig) -> None:
    config = tiny_config(probe__eval_every_steps=2)
    train(config, names=["a"], runs_dir=UNDISTURBED, checkpoint_every=5)
    with pytest.raises(SystemError):
        train(config, names=["a"], crash_after=9, checkpoint_every=5)
    rows = (RUNS / "a.csv").read_bytes()
    (RUNS / "a.csv").unlink()
    assert start_of(train(config, names=["a"], checkpoint_every=5)) == 5
    kept = b"".join(rows.splitlines(keepends=True)[: 1 + 3])
    assert (RUNS / "a.csv").read_bytes().startswith(kept)
    assert_undisturbed("a")


def test_a_missing_csv_is_restored_from_the_checkpoint_before_a_damaged_one(
    train: Train, tiny_config: TinyConfig
) -> None:
    train(tiny_config(), names=["a"], runs_dir=UNDISTURBED)
    train(tiny_config(), names=["a"], stop_after=9, checkpoint_every=3)
    damage(checkpoint.path_of(RUNS / "a" / "checkpoints", 9) / "records.csv")
    (RUNS / "a.csv").unlink()
    messages: list[str] = []
    assert start_of(train(tiny_config(), names=["a"], log=messages.append)) == 6
    damaged, restored = messages
    assert "records.csv is damaged" in damaged
    assert restored == "a: its CSV is missing; restored from the checkpoint of step 6"
    assert_undisturbed("a")


def test_a_missing_csv_of_one_run_of_a_pack_is_restored(train: Train, tiny_config: TinyConfig) -> None:
    configs = [tiny_config(seed=4), tiny_config(seed=5)]
    train(configs, names=["a", "b"], runs_dir=UNDISTURBED)
    train(configs, names=["a", "b"], stop_after=7)
    (RUNS / "b.csv").unlink()
    assert start_of(train(configs, names=["a", "b"])) == 7
    assert_undisturbed("a", "b")


def test_a_missing_csv_without_checkpoints_does_not_start_over(train: Train, tiny_config: TinyConfig) -> None:
    train(tiny_config(), names=["a"], stop_after=7)
    shutil.rmtree(RUNS / "a" / "checkpoints")
    (RUNS / "a.csv").unlink()
    with pytest.raises(CheckpointError, match="7 steps were done, but its checkpoints are gone"):
        train(tiny_config(), names=["a"])
    assert not (RUNS / "a.csv").exists()


def test_a_missing_csv_of_a_finished_run_is_restored_from_its_weights(train: Train, tiny_config: TinyConfig) -> None:
    train(tiny_config(), names=["a"])
    rows, before = (RUNS / "a.csv").read_bytes(), manifest("a")
    (RUNS / "a.csv").unlink()
    events = train(tiny_config(), names=["a"])
    assert start_of(events) == 12
    assert [type(event) for event in events[1:]] == [Finished]
    assert (RUNS / "a.csv").read_bytes() == rows
    after = manifest("a")
    assert (after.status, after.steps_done, after.csv_sha256) == ("finished", 12, before.csv_sha256)
    assert checkpoint.steps(RUNS / "a" / "checkpoints") == [12]


def test_a_missing_csv_of_a_finished_run_without_weights_is_reported(train: Train, tiny_config: TinyConfig) -> None:
    train(tiny_config(), names=["a"], keep_weights=False)
    (RUNS / "a.csv").unlink()
    before = manifest("a")
    with pytest.raises(CheckpointError, match="12 steps were done, but its checkpoints are gone"):
        train(tiny_config(), names=["a"], keep_weights=False)
    assert manifest("a") == before
    assert not (RUNS / "a.csv").exists()


def test_a_missing_csv_of_a_diverged_run_is_restored_and_it_diverges_again(
    train: Train, tiny_config: TinyConfig
) -> None:
    def spoil_after_step_4(trainer: Trainer, event: Event) -> None:
        if (isinstance(event, Saved) and event.step == 4) or (isinstance(event, Started) and event.start_step == 4):
            with torch.no_grad():
                trainer.pack.model.packed["embed"][0, 299, 3] = math.inf

    train(tiny_config(), names=["a"], watch=spoil_after_step_4)
    rows, before = csv_without_speed(RUNS / "a.csv"), manifest("a")
    assert before.status == "diverged"
    (RUNS / "a.csv").unlink()
    assert start_of(train(tiny_config(), names=["a"], watch=spoil_after_step_4)) == 4
    assert csv_without_speed(RUNS / "a.csv") == rows
    after = manifest("a")
    assert (after.status, after.diverged_at, after.message) == ("diverged", before.diverged_at, before.message)


def test_a_sweep_that_cannot_resume_keeps_what_is_there(train: Train, tiny_config: TinyConfig) -> None:
    config = tiny_config()
    name = config.run_name
    train(config, runs_dir=UNDISTURBED)
    train(config, stop_after=5)
    csv = (RUNS / f"{name}.csv").read_bytes()
    before = read_manifest(RUNS / name)
    assert before is not None
    write_manifest(RUNS / name, before.model_copy(update={"elapsed_seconds": 1000.0}))
    folder = checkpoint.path_of(RUNS / name / "checkpoints", 4)
    for step in (4, 5):
        checkpoint.path_of(RUNS / name / "checkpoints", step).rename(RUNS / name / f"away-{step}")
    # an unusable checkpoint
    folder.mkdir()
    events = list(sweep_runs([config], TrainOptions(runs_dir=RUNS, device="cpu"), pack=1))
    assert isinstance(events[-1], Failed)
    stored = read_manifest(RUNS / name)
    assert stored is not None
    assert stored.status == "failed"
    assert "no checkpoint" in (stored.message or "")
    assert 1000 <= stored.elapsed_seconds < 1600
    assert (RUNS / f"{name}.csv").read_bytes() == csv

    # repaired, it resumes
    folder.rmdir()
    (RUNS / name / "away-5").rename(checkpoint.path_of(RUNS / name / "checkpoints", 5))
    list(sweep_runs([config], TrainOptions(runs_dir=RUNS, device="cpu"), pack=1))
    assert_undisturbed(name)
