"""The files of a run in training: nothing is cut or dropped before it is known that the run can resume."""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from configs import TinyConfig
from run_files import Train, csv_without_speed
from training import sweep_runs

from bitnetctl import checkpoint
from bitnetctl.errors import CheckpointError, ExitCode, RecordError, StorageError
from bitnetctl.records import read_manifest
from bitnetctl.records.schema import HEADER
from bitnetctl.trainer.events import Event, Failed, Saved, Started
from bitnetctl.trainer.loop import Trainer
from bitnetctl.trainer.options import TrainOptions

RUNS = Path("runs")


def content_below(folder: Path) -> dict[str, bytes]:
    """Return every file, but for the lock and run.json, by its path."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): path.read_bytes() for path in files if path.name not in ("run.lock", "run.json")}


# rows without a manifest


@pytest.mark.parametrize("seed", [0, 5], ids=["same config", "another config"])
@pytest.mark.parametrize("ended", [True, False], ids=["finished", "stopped"])
def test_a_csv_whose_folder_is_gone_is_left_alone(
    train: Train, tiny_config: TinyConfig, ended: bool, seed: int
) -> None:
    train(tiny_config(), names=["a"], stop_after=None if ended else 7)
    shutil.rmtree(RUNS / "a")
    csv = (RUNS / "a.csv").read_bytes()
    for _ in range(2):
        with pytest.raises(RecordError, match=r"a\.csv: has rows, but .*run\.json, which names their config, is gone"):
            train(tiny_config(seed=seed), names=["a"])
        assert (RUNS / "a.csv").read_bytes() == csv
    (RUNS / "a.csv").rename("away.csv")
    events = train(tiny_config(seed=seed), names=["a"])
    assert isinstance(events[0], Started)
    assert events[0].start_step == 0


def test_a_sweep_fails_a_run_without_folder_and_never_trains_over_it(train: Train, tiny_config: TinyConfig) -> None:
    configs = [tiny_config(seed=seed) for seed in range(2)]
    csv = RUNS / f"{configs[0].run_name}.csv"
    train(configs[0])
    shutil.rmtree(csv.with_suffix(""))
    rows = csv.read_bytes()
    # a failure is written to run.json, which must not be taken for the manifest of the rows
    for _ in range(2):
        events = list(sweep_runs(configs, TrainOptions(runs_dir=RUNS, device="cpu"), pack=1))
        assert [event.name for event in events if isinstance(event, Failed)] == [configs[0].run_name]
        assert csv.read_bytes() == rows
    other = read_manifest(RUNS / configs[1].run_name)
    assert other is not None
    assert other.status == "finished"


# nothing is dropped or cut before the checks


SPOILT: dict[str, Callable[[bytes], bytes]] = {
    "the last row is missing": lambda rows: b"".join(rows.splitlines(keepends=True)[:-1]),
    "a row too many": lambda rows: rows + rows.splitlines(keepends=True)[-1].replace(b"6,", b"7,", 1),
    "no row": lambda rows: HEADER,
    "nothing": lambda rows: b"",
    "half a header": lambda rows: HEADER[:20],
    "another header": lambda rows: rows.replace(b"Step", b"step"),
    "half a row": lambda rows: rows[:-1],
    "no step": lambda rows: rows + b"x,1.0\n",
}


REFUSED_ROWS = r"a\.csv: the (checkpoint of step 6 has not all rows|rows of the checkpoint are not rows that)"
REFUSED = rf"{REFUSED_ROWS}|the rows of .*a\.csv are not those that were saved"


@pytest.mark.parametrize("what", SPOILT)
def test_checkpoints_are_there_still_where_the_rows_are_refused(
    train: Train, tiny_config: TinyConfig, tmp_path: Path, what: str
) -> None:
    """Checksums prove nothing of a checkpoint from elsewhere: anyone can compute them."""
    config = tiny_config(probe__eval_every_steps=2)
    train(config, names=["a"], stop_after=7, checkpoint_every=3)
    state = checkpoint.load(checkpoint.path_of(RUNS / "a" / "checkpoints", 6))
    older = checkpoint.save(tmp_path / "backup" / "a", replace(state, records=SPOILT[what](state.records)))
    train(config, names=["a"], stop_after=4, checkpoint_every=3)
    assert checkpoint.steps(RUNS / "a" / "checkpoints") == [9, 11]
    for there in (True, False):
        if not there:
            (RUNS / "a.csv").unlink()
        before = content_below(RUNS)
        with pytest.raises((RecordError, CheckpointError), match=REFUSED if there else REFUSED_ROWS) as caught:
            train(config, names=["a"], resume=older)
        assert caught.value.exit_code == ExitCode.USAGE
        assert "\n" not in str(caught.value)
        assert content_below(RUNS) == before


def test_a_csv_that_is_gone_is_restored_from_the_checkpoint_that_is_named(
    train: Train, tiny_config: TinyConfig, tmp_path: Path
) -> None:
    config = tiny_config(probe__eval_every_steps=2)
    train(config, names=["b"])
    train(config, names=["a"], stop_after=7, checkpoint_every=3)
    older = tmp_path / "backup" / "a" / "step-00000006"
    shutil.copytree(checkpoint.path_of(RUNS / "a" / "checkpoints", 6), older)
    train(config, names=["a"], stop_after=4, checkpoint_every=3)
    (RUNS / "a.csv").unlink()
    train(config, names=["a"], resume=older, stop_after=1)
    # neither the rows nor the checkpoints after the one that is named
    assert (RUNS / "a.csv").read_bytes() == (older / "records.csv").read_bytes()
    assert checkpoint.steps(RUNS / "a" / "checkpoints") == [7]
    train(config, names=["a"])
    assert csv_without_speed(RUNS / "a.csv") == csv_without_speed(RUNS / "b.csv")


# a CSV that another program replaced


def replaced(csv: Path) -> None:
    csv.rename("old.csv")
    shutil.copy("old.csv", csv)


@pytest.mark.skipif(os.name != "posix", reason="an open file cannot be replaced")
@pytest.mark.parametrize("step", [4, 8])
@pytest.mark.parametrize("tamper", [Path.unlink, replaced, lambda csv: os.truncate(csv, 300)])
def test_a_run_whose_csv_was_replaced_is_not_finished(
    train: Train, tiny_config: TinyConfig, tamper: Callable[[Path], None], step: int
) -> None:
    def watch(trainer: Trainer, event: Event) -> None:
        if isinstance(event, Saved) and event.step == step:
            tamper(RUNS / "a.csv")

    with pytest.raises(StorageError, match=r"a\.csv: was removed, replaced or changed") as caught:
        train(tiny_config(), names=["a"], watch=watch)
    assert caught.value.exit_code == ExitCode.USAGE
    stored = read_manifest(RUNS / "a")
    assert stored is not None
    assert (stored.status, stored.csv_sha256) == ("running", None)


@pytest.mark.skipif(os.name != "posix", reason="an open file cannot be replaced")
@pytest.mark.parametrize("tamper", [Path.unlink, replaced])
def test_a_run_resumes_after_its_csv_was_replaced_or_removed(
    train: Train, tiny_config: TinyConfig, tamper: Callable[[Path], None]
) -> None:
    train(tiny_config(), names=["b"])

    def watch(trainer: Trainer, event: Event) -> None:
        if isinstance(event, Saved):
            tamper(RUNS / "a.csv")

    with pytest.raises(StorageError):
        train(tiny_config(), names=["a"], watch=watch)
    events = train(tiny_config(), names=["a"])
    assert isinstance(events[0], Started)
    assert events[0].start_step == 4
    assert csv_without_speed(RUNS / "a.csv") == csv_without_speed(RUNS / "b.csv")
