"""Checkpoints: whole or absent, checked when read, and never a pickle."""

import contextlib
import hashlib
import json
import math
import os
import pickle
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bitnetctl import checkpoint
from bitnetctl.checkpoint import Checkpoint
from bitnetctl.config import canonical_hash
from bitnetctl.errors import CheckpointError, ExitCode, StorageError


def state(step: int, **fields: Any) -> Checkpoint:
    generator = torch.Generator().manual_seed(step)
    packed = torch.randn(2, 6, 4, generator=generator)
    return replace(
        Checkpoint(
            step=step,
            config_hash="c" * 64,
            data_fingerprint="d" * 64,
            # views of one storage, as a run's parameters are
            model={"model.q.weight": packed[0, :3], "model.k.weight": packed[0, 3:], "norm": packed[1, 0]},
            optimizer={"q/exp_avg": torch.randn(3, 4, generator=generator), "q/step": torch.tensor(float(step))},
            codes={"qkv": torch.randint(-1, 2, (1, 6, 4), generator=generator, dtype=torch.int8)},
            interventions=[{}, {"momentum": [1.5, None], "name": "é"}],
            records=b"Step,Loss\n1,7.5\n",
        ),
        **fields,
    )


def assert_same(ours: Checkpoint, theirs: Checkpoint) -> None:
    for name in ("step", "config_hash", "data_fingerprint", "interventions", "records"):
        assert getattr(ours, name) == getattr(theirs, name)
    for name in ("model", "optimizer", "codes"):
        left, right = getattr(ours, name), getattr(theirs, name)
        assert left.keys() == right.keys()
        for key in left:
            assert left[key].dtype == right[key].dtype
            assert torch.equal(left[key], right[key])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run" / "checkpoints"


def refused(path: Path) -> str:
    for read in (checkpoint.load, checkpoint.verify):
        with pytest.raises(CheckpointError) as caught:
            read(path)
        assert caught.value.exit_code == ExitCode.USAGE
        message = str(caught.value)
        assert str(path) in message
        assert "\n" not in message
    return message


def test_what_is_saved_is_loaded(folder: Path) -> None:
    path = checkpoint.save(folder, state(7))
    assert path == checkpoint.path_of(folder, 7)
    assert path.name == "step-00000007"
    assert_same(checkpoint.load(path), state(7))


def test_a_finished_run_keeps_the_model_alone(folder: Path) -> None:
    path = checkpoint.save(folder, state(7, optimizer={}, codes={}))
    assert sorted(file.name for file in path.iterdir()) == ["model.safetensors", "records.csv", "state.json"]
    loaded = checkpoint.load(path)
    assert loaded.optimizer == {}
    assert loaded.codes == {}


def test_the_last_two_are_kept_in_the_order_of_steps(folder: Path) -> None:
    for step in (9, 10, 100_000_000, 11):
        checkpoint.save(folder, state(step))
    assert checkpoint.steps(folder) == [11, 100_000_000]
    assert_same(checkpoint.load(checkpoint.path_of(folder, 11)), state(11))
    checkpoint.keep_only(folder, 11)
    assert checkpoint.steps(folder) == [11]


def test_a_folder_that_is_not_there_has_no_checkpoints(folder: Path) -> None:
    assert checkpoint.steps(folder) == []
    assert "state.json" in refused(checkpoint.path_of(folder, 1))


def test_saving_a_step_again_replaces_it(folder: Path) -> None:
    checkpoint.save(folder, state(3))
    checkpoint.save(folder, state(3, config_hash="e" * 64))
    assert checkpoint.steps(folder) == [3]
    assert checkpoint.load(checkpoint.path_of(folder, 3)).config_hash == "e" * 64


def test_a_sound_checkpoint_is_not_replaced_by_its_like(folder: Path) -> None:
    """A kill in between would leave a finished run without its only checkpoint."""
    path = checkpoint.save(folder, state(3))
    before = path.stat().st_ino
    checkpoint.save(folder, state(3))
    assert path.stat().st_ino == before
    assert sorted(entry.name for entry in folder.iterdir()) == ["step-00000003"]
    # a damaged one is
    (path / "codes.safetensors").write_bytes(b"")
    checkpoint.save(folder, state(3))
    assert path.stat().st_ino != before
    assert_same(checkpoint.load(path), state(3))
    assert sorted(entry.name for entry in folder.iterdir()) == ["step-00000003"]


def test_the_old_one_comes_back_if_the_new_one_cannot_take_its_place(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save(folder, state(3))
    rename = Path.rename

    def refuse_the_new(path: Path, target: Path) -> Path:
        if target.name == "step-00000003" and json.loads((path / "state.json").read_text())["config_hash"][0] == "e":
            raise OSError(5, "Input/output error")
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", refuse_the_new)
        with pytest.raises(StorageError, match="Input/output error"):
            checkpoint.save(folder, state(3, config_hash="e" * 64))
    assert_same(checkpoint.load(checkpoint.path_of(folder, 3)), state(3))
    assert [entry.name for entry in folder.iterdir()] == ["step-00000003"]


def test_checkpoints_after_a_step_are_dropped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (3, 4):
        checkpoint.save(folder, state(step))
    with monkeypatch.context() as patch:
        # one that is deleted in part must not look damaged
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)
        checkpoint.drop_after(folder, 3)
    assert checkpoint.steps(folder) == [3]
    checkpoint.drop_after(folder, 3)
    checkpoint.drop_after(folder / "nowhere", 0)
    assert checkpoint.steps(folder) == [3]


def test_the_rows_must_be_those_that_were_saved(folder: Path) -> None:
    path = checkpoint.save(folder, state(3, records=b"Step\n1\n"))
    csv = folder.parents[1] / "run.csv"
    for content in (None, b"Step\n1\n", b"Step\n1\n4\n", b"Step\n1\n4"):
        if content is not None:
            csv.write_bytes(content)
        assert checkpoint.load(path).records == b"Step\n1\n"
    for content in (b"", b"Step\n1", b"Step\n2\n", b"step\n1\n4\n"):
        csv.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"step-00000003: the rows of .*run\.csv are not those"):
            checkpoint.load(path)
        # its folder does not matter to the run that resumes from it
        assert checkpoint.load(path, folder / "other.csv").records == b"Step\n1\n"
    csv.rename(folder / "other.csv")
    assert checkpoint.load(path).records == b"Step\n1\n"
    with pytest.raises(CheckpointError, match=r"step-00000003: the rows of .*other\.csv are not those"):
        checkpoint.load(path, folder / "other.csv")


def test_leftovers_are_ignored_and_removed(folder: Path) -> None:
    leftover = folder / ".step-00000003.0123abcd"
    leftover.mkdir(parents=True)
    (leftover / "model.safetensors").write_bytes(b"half")
    (folder / "step-0000000x").mkdir()
    (folder / "step-00000005.old").mkdir()
    assert checkpoint.steps(folder) == []
    checkpoint.save(folder, state(4))
    assert checkpoint.steps(folder) == [4]
    assert not list(folder.glob(".step-*"))


@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_leftover_that_is_no_folder_is_removed(kind: str, folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "keep").touch()
    folder.mkdir(parents=True)
    leftover = folder / ".aside-0123abcd"
    leftover.touch() if kind == "file" else leftover.symlink_to(outside)
    checkpoint.save(folder, state(4))
    assert [entry.name for entry in folder.iterdir()] == ["step-00000004"]
    assert (outside / "keep").exists()


def test_a_link_in_place_of_a_checkpoint_is_dropped_and_its_target_spared(folder: Path, tmp_path: Path) -> None:
    outside = checkpoint.save(tmp_path / "outside", state(3))
    folder.mkdir(parents=True)
    for step in (2, 3, 9):
        checkpoint.path_of(folder, step).symlink_to(outside)
    checkpoint.drop_after(folder, 8)
    checkpoint.keep_only(folder, 3)
    checkpoint.save(folder, state(3, config_hash="e" * 64))
    assert [entry.name for entry in folder.iterdir()] == ["step-00000003"]
    assert checkpoint.load(checkpoint.path_of(folder, 3)).config_hash == "e" * 64
    assert_same(checkpoint.load(outside), state(3))


def test_digits_of_other_scripts_are_no_steps(folder: Path) -> None:
    checkpoint.save(folder, state(3))
    (folder / "step-\N{ARABIC-INDIC DIGIT ONE}0000000").mkdir()
    assert checkpoint.steps(folder) == [3]


def test_a_checkpoint_by_the_name_of_another_step_is_refused(folder: Path, tmp_path: Path) -> None:
    path = checkpoint.save(folder, state(3))
    assert "is of step 3; rename it back" in refused(path.rename(checkpoint.path_of(folder, 5)))
    # a name without a step contradicts none
    copy = checkpoint.path_of(folder, 5).rename(tmp_path / "copy")
    assert checkpoint.load(copy).step == 3


@pytest.mark.parametrize("name", ["model", "optimizer"])
def test_a_value_that_is_not_finite_makes_it_unusable(folder: Path, name: str) -> None:
    good = getattr(state(3), name)
    last = list(good)[-1]
    path = checkpoint.save(folder, state(3, **{name: {**good, last: torch.full_like(good[last], math.inf)}}))
    with pytest.raises(CheckpointError, match=f"{last} in {name}.safetensors is not finite"):
        checkpoint.load(path)


FILES = ["model.safetensors", "optimizer.safetensors", "codes.safetensors", "records.csv", "state.json"]


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    path = checkpoint.save(folder, state(3))
    (path / name).unlink()
    assert name in refused(path)


@pytest.mark.skipif(os.name != "posix", reason="no pipes with a name")
@pytest.mark.parametrize("name", FILES)
def test_a_link_or_a_pipe_is_no_file(folder: Path, name: str, tmp_path: Path) -> None:
    path = checkpoint.save(folder, state(3))
    outside = (path / name).rename(tmp_path / name)
    (path / name).symlink_to(outside)
    assert f"{name} is no plain file" in refused(path)
    (path / name).unlink()
    # reading one without a writer would never end
    os.mkfifo(path / name)
    assert f"{name} is no plain file" in refused(path)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
def test_a_truncated_file_is_named(folder: Path, name: str, kept: float) -> None:
    path = checkpoint.save(folder, state(3))
    content = (path / name).read_bytes()
    (path / name).write_bytes(content[: int(kept * len(content))])
    assert name in refused(path)


@pytest.mark.parametrize("name", FILES[:4])
@pytest.mark.parametrize("position", [0.0, 0.2, 0.999])
def test_a_flipped_bit_is_detected(folder: Path, name: str, position: float) -> None:
    path = checkpoint.save(folder, state(3))
    content = bytearray((path / name).read_bytes())
    content[int(position * len(content))] ^= 0b100
    (path / name).write_bytes(content)
    assert name in refused(path)


@pytest.mark.parametrize("content", [b"[]", b"null", b"\xff\xfe", b"{}", b'{"schema_version": 1}', b"1"])
def test_a_malformed_state_is_refused(folder: Path, content: bytes) -> None:
    path = checkpoint.save(folder, state(3))
    (path / "state.json").write_bytes(content)
    assert "state.json" in refused(path)


def test_every_flipped_bit_of_the_state_is_detected(folder: Path) -> None:
    path = checkpoint.save(folder, state(3))
    content = (path / "state.json").read_bytes()
    for index in range(len(content)):
        damaged = bytearray(content)
        damaged[index] ^= 1 << index % 8
        (path / "state.json").write_bytes(damaged)
        try:
            loaded = checkpoint.load(path)
        except CheckpointError:
            continue
        # a flip between the tokens of JSON may be harmless
        assert_same(loaded, state(3))


def edit_state(path: Path, **fields: Any) -> None:
    """Rewrite state.json on purpose: with a valid checksum."""
    tree = json.loads((path / "state.json").read_text(encoding="utf-8")) | fields
    del tree["state_sha256"]
    (path / "state.json").write_text(json.dumps(tree | {"state_sha256": canonical_hash(tree)}), encoding="utf-8")


def test_a_newer_schema_is_refused(folder: Path) -> None:
    path = checkpoint.save(folder, state(3))
    edit_state(path, schema_version=checkpoint.SCHEMA_VERSION)
    assert checkpoint.load(path).step == 3
    edit_state(path, schema_version=checkpoint.SCHEMA_VERSION + 1)
    assert "newer bitnetctl" in refused(path)


class _Bomb:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (Path.touch, (Path("exploded"),))  # type: ignore[return-value]


@pytest.mark.parametrize("name", FILES[:3])
@pytest.mark.parametrize("writer", ["pickle", "torch"])
def test_a_pickle_is_refused_and_never_run(folder: Path, name: str, writer: str) -> None:
    path = checkpoint.save(folder, state(3))
    if writer == "pickle":
        (path / name).write_bytes(pickle.dumps({"weight": _Bomb()}))
    else:
        torch.save({"weight": torch.ones(3), "bomb": _Bomb()}, path / name)
    sums = json.loads((path / "state.json").read_text(encoding="utf-8"))["sha256"]
    sums[name] = hashlib.sha256((path / name).read_bytes()).hexdigest()
    edit_state(path, sha256=sums)
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoint.load(path)
    assert not Path("exploded").exists()


@contextlib.contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """Limit the size of files, so that the system refuses every longer write, of Python and of libraries."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    "fields", [{"model": {"w": torch.zeros(9999)}}, {"interventions": [{"x": "y" * 9999}]}], ids=["tensors", "state"]
)
def test_a_disk_that_refuses_leaves_the_old_ones(folder: Path, fields: dict[str, Any]) -> None:
    for step in (1, 2):
        checkpoint.save(folder, state(step))
    with files_up_to(5000), pytest.raises(StorageError, match=r"step-00000003.*cannot write: File too large"):
        checkpoint.save(folder, state(3, **fields))
    assert sorted(entry.name for entry in folder.iterdir()) == ["step-00000001", "step-00000002"]
    for step in (1, 2):
        assert_same(checkpoint.load(checkpoint.path_of(folder, step)), state(step))


def test_a_kill_during_a_save_leaves_the_old_ones(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save(folder, state(1))
    with monkeypatch.context() as patch:
        # what a kill between writing and renaming leaves behind
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)
        patch.setattr(Path, "rename", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            checkpoint.save(folder, state(2))
    assert list(folder.glob(".step-*"))
    assert checkpoint.steps(folder) == [1]
    checkpoint.save(folder, state(3))
    assert sorted(entry.name for entry in folder.iterdir()) == ["step-00000001", "step-00000003"]
