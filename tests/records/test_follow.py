"""Following the CSV of a run that is being written."""

from pathlib import Path

import pytest

from bitnetctl.records import follow
from bitnetctl.records.follow import RowFollower


def test_only_new_whole_rows_are_read(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    follower = RowFollower(path)
    assert follower.new_rows() == ([], False)
    path.write_text("Step,Loss,HeldOutLoss\n1,7.5,\n2,6", encoding="utf-8")
    assert follower.new_rows() == ([{"Step": 1.0, "Loss": 7.5, "HeldOutLoss": None}], True)
    assert follower.new_rows() == ([], False)
    with path.open("a", encoding="utf-8") as file:
        file.write(".5,6.25\n3,nan,inf\n")
    rows, replaced = follower.new_rows()
    assert not replaced
    assert rows[0] == {"Step": 2.0, "Loss": 6.5, "HeldOutLoss": 6.25}
    assert [str(value) for value in rows[1].values()] == ["3.0", "nan", "inf"]


def test_a_file_that_is_replaced_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("Step,Loss\n1,7\n2,6\n3,5\n", encoding="utf-8")
    follower = RowFollower(path)
    assert len(follower.new_rows()[0]) == 3
    # a resume replaces it by the rows of the checkpoint
    other = tmp_path / "other"
    other.write_text("Step,Loss\n1,7\n2,6\n", encoding="utf-8")
    other.replace(path)
    assert follower.new_rows() == ([{"Step": 1.0, "Loss": 7.0}, {"Step": 2.0, "Loss": 6.0}], True)
    path.unlink()
    assert follower.new_rows() == ([], False)


def test_a_large_file_is_read_whole_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "_PIECE_BYTES", 64)
    path = tmp_path / "x.csv"
    path.write_text("Step,Loss\n" + "".join(f"{step},7\n" for step in range(1, 201)), encoding="utf-8")
    follower = RowFollower(path)
    rows, replaced = follower.new_rows()
    assert replaced
    assert [row["Step"] for row in rows] == list(range(1, 201))
    assert follower.new_rows() == ([], False)
    # no row is so long
    path.write_text("Step,Loss\n1,7\n" + "8" * 100 + "\n2,6\n", encoding="utf-8")
    assert RowFollower(path).new_rows() == ([{"Step": 1.0, "Loss": 7.0}], True)


def test_rows_that_cannot_be_read_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(b"Step,Loss\n1,7\n2\n3,x\n,4\n4,\xff\n5,3\n")
    assert RowFollower(path).new_rows() == ([{"Step": 1.0, "Loss": 7.0}, {"Step": 5.0, "Loss": 3.0}], True)
