"""Values and files that cannot be those of one run are refused in one line, whatever the criteria ask for."""

from pathlib import Path

import pytest

from bitnetctl.errors import ConfigError, RecordError
from bitnetctl.records import load_files, read
from bitnetctl.records.foreign import what_it_is
from bitnetctl.records.logs import parse_map

HEADER = "Step,Loss,UniquePredictions,LR,WD,HeldOutLoss,TopShare"
ROWS = ("1,9.5,12,0.001,0.1,9.6,0.5", "2,8.25,14,0.001,0.1,8.5,0.25", "3,7.5,15,0.001,0.1,7.75,0.125")


def table(tmp_path: Path, *rows: str, header: str = HEADER, end: str = "\n") -> Path:
    path = tmp_path / "x.csv"
    path.write_text("\n".join([header, *rows]) + end, encoding="utf-8")
    return path


def test_what_was_measured_is_plausible(tmp_path: Path) -> None:
    diverged = "4,nan,nan,0.001,0.1,inf,0.1"
    large = "5,123456.5,3,-0.001,-0.1,1e30,1"
    assert len(load_files([table(tmp_path, *ROWS, diverged, large)]).runs) == 1


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("4,7250,15,0.001,0.1,7.5,0.1", "Loss is 7250 at step 4, a whole number"),
        ("4,7.25,15,0.001,0.1,12500,0.1", "HeldOutLoss is 12500 at step 4, a whole number"),
        ("4,-7.25,15,0.001,0.1,7.5,0.1", "Loss is -7.25 at step 4, negative"),
        ("4,7.25,-15,0.001,0.1,7.5,0.1", "UniquePredictions is -15 at step 4, negative"),
        ("4,7.25,15.5,0.001,0.1,7.5,0.1", "UniquePredictions is 15.5 at step 4, not a whole number"),
        ("4,7.25,15,0.001,0.1,7.5,12.5", "TopShare is 12.5 at step 4, more than 1"),
    ],
)
def test_what_no_run_measures_is_refused(tmp_path: Path, row: str, said: str) -> None:
    with pytest.raises(RecordError, match=rf"x\.csv: {said}"):
        load_files([table(tmp_path, *ROWS, row)])


def test_a_negative_loss_of_another_programs_log_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("step,train_loss\n1,-3.5\n2,-4.5\n", encoding="utf-8")
    with pytest.raises(RecordError, match=r"Loss is -3\.5 at step 1, negative"):
        load_files([path])


@pytest.mark.parametrize("name", ["seed", "run_id", "Run Name", "hidden_size"])
def test_a_column_that_names_the_run_may_not_change(tmp_path: Path, name: str) -> None:
    one = [f"{row},7" for row in ROWS]
    assert len(read(table(tmp_path, *one, header=f"{HEADER},{name}")).frame) == 3
    several = [*one[:2], ROWS[2] + ",8"]
    with pytest.raises(RecordError, match=rf"x\.csv:4: '{name}' changes from '7' to '8': several runs in one file"):
        read(table(tmp_path, *several, header=f"{HEADER},{name}"))


def test_a_log_with_a_column_that_names_the_run_may_not_change(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("step,train_loss,seed\n1,3.5,0\n2,4.5,1\n", encoding="utf-8")
    with pytest.raises(RecordError, match=r"metrics\.csv:3: 'seed' changes"):
        load_files([path])
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1, "loss": 2.5, "seed": 0}\n{"step": 2, "loss": 2.25, "seed": 1}\n', encoding="utf-8")
    with pytest.raises(RecordError, match=r"log\.jsonl:2: 'seed' changes"):
        load_files([path])


def test_a_last_cell_that_no_check_uses_may_lack_its_newline(tmp_path: Path) -> None:
    for name, torn in (("TokensPerSecond", False), ("comment", False), ("GradNorm", True)):
        rows = [f"{row},1.5" for row in ROWS]
        records = read(table(tmp_path, *rows, header=f"{HEADER},{name}", end=""))
        assert len(records.frame) == 3
        assert (records.torn is not None) is torn
        assert "line 4: the last row has no newline" in records.notes[-1]


@pytest.mark.parametrize("blank", [" ", "\u00a0", "\u202f", "'"])
def test_blanks_between_thousands(tmp_path: Path, blank: str) -> None:
    rows = [f"{row},7{blank}583.5".replace(",", ";") for row in ROWS]
    records = read(table(tmp_path, *rows, header=f"{HEADER},TokensPerSecond".replace(",", ";")))
    assert records.frame["TokensPerSecond"].tolist() == [7583.5] * 3
    assert "blanks between thousands left out" in records.notes
    with pytest.raises(RecordError, match="not a number"):
        read(table(tmp_path, *ROWS, f"4,7{blank}58.5,15,0.001,0.1,7.5,0.1"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"PK\x03\x04" + b"\0" * 40, "a spreadsheet or a zip"),
        (b"\x1f\x8b\x08\0" + b"\1" * 40, "compressed with gzip; unpack it with `gunzip`"),
        (b"\r\n<!DOCTYPE HTML>\n<html>Step,Loss\n", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "run `git lfs pull`"),
        (b"\0" * 512, "nothing but NUL bytes"),
    ],
)
def test_a_file_that_is_no_csv_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(content)
    with pytest.raises(RecordError, match=rf"x\.csv:1: .*{said}"):
        read(path)
    assert what_it_is(b"Step,Loss\n") is None


def test_a_conflict_of_version_control_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"x\.csv:3: '<<<<<<< HEAD': two versions of the file are in it"):
        read(table(tmp_path, ROWS[0], "<<<<<<< HEAD", ROWS[1], "=======", ROWS[1], ">>>>>>> other", ROWS[2]))


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("Step=epoch", "'epoch' does not count optimizer steps"),
        ("Step=train/tokens", "'train/tokens' does not count optimizer steps"),
        ("Loss=TopShare", "'TopShare' is a column of its own"),
        ("UniquePredictions=UniqueTargets", "'UniqueTargets' is a column of its own"),
    ],
)
def test_a_column_is_not_mapped_to_what_it_cannot_be(option: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_map([option])
    assert parse_map(["Step=opt_step,Loss=tl"]) == {"Step": "opt_step", "Loss": "tl"}


def test_an_export_without_a_loss_names_what_there_is(tmp_path: Path) -> None:
    path = tmp_path / "wandb.csv"
    path.write_text('"Step","a - eval/accuracy"\n1,0.5\n', encoding="utf-8")
    with pytest.raises(RecordError, match="there are eval/accuracy"):
        load_files([path])
