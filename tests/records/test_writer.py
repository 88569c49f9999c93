"""The writer of a run's CSV: round trips, resumes after a crash, refused rows and disks that fail."""

import errno
import math
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st
from rows import FIVE, ROW, csv_file, row_at, shared_folder, write_rows

from bitnetctl.errors import ExitCode, RecordError, StorageError
from bitnetctl.records import NAMES, REQUIRED, RecordWriter, read
from bitnetctl.records.schema import HEADER

numbers = st.one_of(st.none(), st.integers(0, 2**53), st.floats(), st.floats(0, 12))


@st.composite
def run_rows(draw: st.DrawFn, min_size: int = 1) -> list[dict[str, Any]]:
    steps = draw(st.lists(st.integers(1, 2**62), min_size=min_size, max_size=8, unique=True).map(sorted))
    rows = []
    for step in steps:
        optional = draw(st.sets(st.sampled_from(NAMES[5:])))
        rows.append({"Step": step} | {name: draw(numbers) for name in (*REQUIRED[1:], *sorted(optional))})
    return rows


def same(actual: float | None, expected: float | int | None) -> bool:
    if expected is None or actual is None:
        return actual is None and expected is None
    return actual == float(expected) or (math.isnan(actual) and math.isnan(float(expected)))


def test_a_row_is_written_as_text_that_reads_back_exactly(tmp_path: Path) -> None:
    row = row_at(1, Loss=math.nan, HeldOutLoss=math.inf, TopShare=-math.inf, GradNorm=0.1, LR=np.float64(1e-05))
    content = write_rows(tmp_path / "x.csv", [row | {"UniquePredictions": np.int64(16)}])
    assert content.decode().splitlines()[1] == "1,nan,16,1e-05,0.1,inf,,,-inf,,,,,,,,0.1,,,"


@shared_folder
@given(run_rows())
def test_written_rows_read_back_equal(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    path = tmp_path / "x.csv"
    write_rows(path, rows)
    records = read(path, partial=False)
    assert records.frame["Step"].tolist() == [row["Step"] for row in rows]
    assert records.frame["Step"].dtype == np.int64
    for name in NAMES:
        for index, row in enumerate(rows):
            assert same(records.value(name, index), row.get(name)), (name, row)
    assert records.notes == records.extra == ()
    assert records.title is None


@shared_folder
@given(run_rows(), st.data())
def test_a_resumed_file_equals_an_undisturbed_one(
    tmp_path: Path, rows: list[dict[str, Any]], data: st.DataObject
) -> None:
    path = tmp_path / "x.csv"
    undisturbed = write_rows(path, rows)
    keep = data.draw(st.sampled_from([0, *(row["Step"] for row in rows), rows[-1]["Step"] + 5]))
    with RecordWriter(path, keep) as writer:
        kept = [row["Step"] for row in rows if row["Step"] <= keep]
        assert writer.last_step == (kept[-1] if kept else None)
    assert write_rows(path, [row for row in rows if row["Step"] > keep], keep) == undisturbed


def test_a_row_torn_at_any_byte_is_cut_and_written_again(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    rows = [row_at(1), row_at(10, HeldOutLoss=9.5), row_at(20, HeldOutLoss=9.25, FlipRate=0.125)]
    undisturbed = write_rows(path, rows)
    start = undisturbed[:-1].rfind(b"\n") + 1
    for end in range(start, len(undisturbed)):
        path.write_bytes(undisturbed[:end])
        records = read(path)
        # without its newline, only a row with all its cells can pass
        torn = undisturbed[start:end].count(b",") < len(NAMES) - 1
        assert records.frame["Step"].tolist() == ([1, 10] if torn else [1, 10, 20])
        assert bool(records.notes) == (end > start)
        assert not torn or end == start or "line 4: torn last row dropped" in records.notes[0]
        assert write_rows(path, rows[2:], keep_through_step=15) == undisturbed
        path.write_bytes(undisturbed[:end])
        with RecordWriter(path, keep_through_step=20) as writer:
            assert writer.last_step == 10
        assert path.read_bytes() == undisturbed[:start]


def test_a_header_torn_at_any_byte_is_rewritten(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    for end in range(len(HEADER)):
        path.write_bytes(HEADER[:end])
        assert write_rows(path, []) == HEADER


@pytest.mark.parametrize("last", [b"30,1.0\n", b"30" + b"," * 25 + b"\n", b"\0\0\0\0\n", b"30,x" + b"," * 18 + b"\n"])
def test_a_damaged_last_row_is_cut(tmp_path: Path, last: bytes) -> None:
    path = tmp_path / "x.csv"
    intact = write_rows(path, [row_at(1)])
    path.write_bytes(intact + last)
    assert write_rows(path, [], keep_through_step=40) == intact


def test_damage_before_the_last_row_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    intact = write_rows(path, [row_at(1), row_at(2)])
    lines = intact.splitlines(keepends=True)
    path.write_bytes(lines[0] + b"1,2\n" + lines[2])
    with pytest.raises(RecordError, match=r"x\.csv:2: 2 cells for 20 columns"):
        RecordWriter(path, 2)
    path.write_bytes(lines[0] + lines[2] + lines[1])
    with pytest.raises(RecordError, match=r"x\.csv:3: Step 1 after 2"):
        RecordWriter(path, 2)
    assert path.read_bytes() == lines[0] + lines[2] + lines[1]


@pytest.mark.parametrize("rows", [b"", b"1,2\n2,3\n", b"0" + b"," * 19 + b"\n", b"\0"])
def test_a_new_run_starts_with_the_header_alone(tmp_path: Path, rows: bytes) -> None:
    path = csv_file(tmp_path, HEADER + rows)
    assert write_rows(path, []) == HEADER


@pytest.mark.parametrize("foreign", [FIVE + "1,2,3,4,5\n", "notes\n", ",".join(NAMES) + "\r\n"])
@pytest.mark.parametrize("keep", [0, 10])
def test_a_file_of_another_program_is_left_alone(tmp_path: Path, foreign: str, keep: int) -> None:
    path = csv_file(tmp_path, foreign)
    with pytest.raises(RecordError, match=r"x\.csv:1: not a file that this version writes"):
        RecordWriter(path, keep)
    assert path.read_bytes() == foreign.encode()


@pytest.mark.parametrize("content", [None, b"", HEADER[:30]])
def test_a_resume_without_its_rows_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "x.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RecordError, match=r"x\.csv:1: the rows up to step 7 are gone"):
        RecordWriter(path, 7)


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        (row_at(5, Lose=1.0), "not columns of a run: Lose"),
        ({"Step": 5, "Loss": 1.0, "LR": 0.1}, "a row without UniquePredictions, WD"),
        (row_at(4), "Step 4 after 4"),
        (row_at(3), "Step 3 after 4"),
        ({**ROW, "Step": 5.0}, "Step is 5.0, not a whole number"),
        ({**ROW, "Step": None}, "Step is None, not a whole number"),
        ({**ROW, "Step": -1}, "Step is -1, not a whole number"),
        (row_at(5, Loss=True), "Loss is True, not an int or a float"),
        ({**ROW, "Step": 5, "Loss": "1.0"}, "Loss is '1.0', not an int or a float"),
    ],
)
def test_refused_rows_change_nothing(tmp_path: Path, row: dict[str, Any], complaint: str) -> None:
    path = tmp_path / "x.csv"
    with RecordWriter(path) as writer:
        writer.append(row_at(4))
        before = path.read_bytes()
        with pytest.raises(RecordError, match=re.escape(complaint)):
            writer.append(row)
        assert path.read_bytes() == before
        writer.append(row_at(5))
    assert len(read(path).frame) == 2


def test_the_first_step_is_one_or_later(tmp_path: Path) -> None:
    with RecordWriter(tmp_path / "x.csv") as writer, pytest.raises(RecordError, match="Step 0 after 0"):
        writer.append(row_at(0))


def test_each_row_is_one_write_and_visible_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.csv"
    writes = []
    real = os.write

    def spy(descriptor: int, data: bytes) -> int:
        writes.append(data)
        return real(descriptor, data)

    with RecordWriter(path) as writer:
        monkeypatch.setattr(os, "write", spy)
        for step in (1, 2):
            writer.append(row_at(step))
            assert path.read_bytes().endswith(writes[-1])
        monkeypatch.undo()
        writer.sync()
    assert len(writes) == 2


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """A disk that writes seven bytes of a row and refuses the rest."""
    real = os.write

    def write(descriptor: int, data: bytes) -> int:
        real(descriptor, data[:7])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        yield patch


def test_a_full_disk_leaves_the_earlier_rows(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    path = tmp_path / "x.csv"
    rows = [row_at(1), row_at(2)]
    undisturbed = write_rows(tmp_path / "y.csv", rows)
    with RecordWriter(path) as writer:
        writer.append(rows[0])
        before = path.read_bytes()
        disk = request.getfixturevalue("full_disk")
        with pytest.raises(StorageError, match=r"x\.csv: cannot write: No space left on device"):
            writer.append(rows[1])
        assert path.read_bytes() == before
        assert writer.last_step == 1
        disk.undo()
        writer.append(rows[1])
    assert path.read_bytes() == undisturbed


def test_a_torn_row_that_cannot_be_cut_is_cut_before_the_next(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    def refuse(descriptor: int, length: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    path = tmp_path / "x.csv"
    rows = [row_at(1), row_at(2)]
    undisturbed = write_rows(tmp_path / "y.csv", rows)
    with RecordWriter(path) as writer:
        writer.append(rows[0])
        before = path.read_bytes()
        disk = request.getfixturevalue("full_disk")
        disk.setattr(os, "ftruncate", refuse)
        with pytest.raises(StorageError, match="No space left"):
            writer.append(rows[1])
        assert path.read_bytes() == before + undisturbed[len(before) :][:7]
        disk.undo()
        writer.append(rows[1])
    assert path.read_bytes() == undisturbed


def test_a_short_write_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    path = tmp_path / "x.csv"
    with RecordWriter(path) as writer:
        before = path.read_bytes()
        monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[:9]))
        with pytest.raises(StorageError, match="part of a row only"):
            writer.append(row_at(1))
        monkeypatch.undo()
        assert path.read_bytes() == before


def replace_by_copy(path: Path) -> None:
    # as an editor does that keeps a backup
    path.rename(path.with_suffix(".old"))
    path.write_bytes(path.with_suffix(".old").read_bytes())


TAMPERING: dict[str, Callable[[Path], object]] = {
    "removed": Path.unlink,
    "replaced": replace_by_copy,
    "cut": lambda path: os.truncate(path, path.stat().st_size - 5),
    "emptied": lambda path: os.truncate(path, 0),
    "continued": lambda path: path.write_bytes(path.read_bytes() + b"7,"),
}


@pytest.mark.skipif(os.name != "posix", reason="an open file cannot be removed")
@pytest.mark.parametrize("what", TAMPERING)
def test_a_file_changed_by_another_program_is_detected(what: str, tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    writer = RecordWriter(path)
    writer.open()
    writer.append(row_at(1))
    writer.sync()
    TAMPERING[what](path)
    message = r"x\.csv: was removed, replaced or changed"
    with pytest.raises(StorageError, match=message) as caught:
        writer.append(row_at(2))
    assert caught.value.exit_code == ExitCode.USAGE
    with pytest.raises(StorageError, match=message):
        writer.sync()
    writer.close()


def test_a_missing_last_kept_row_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    before = write_rows(path, [row_at(1), row_at(2), row_at(9)])
    assert RecordWriter(path, 8, last_kept_step=2).last_step == 2
    with pytest.raises(RecordError, match="the row of step 4 is missing; put it back"):
        RecordWriter(path, 8, last_kept_step=4)
    assert path.read_bytes() == before


def test_the_constructor_changes_no_file(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    before = write_rows(path, [row_at(1), row_at(2)])
    writer = RecordWriter(path, 1)
    assert (writer.last_step, writer.had_rows, path.read_bytes()) == (1, True, before)
    writer.close()
    assert not RecordWriter(tmp_path / "new.csv").had_rows
    assert not (tmp_path / "new.csv").exists()


def test_a_closed_writer_refuses_rows(tmp_path: Path) -> None:
    writer = RecordWriter(tmp_path / "x.csv")
    writer.close()
    writer.close()
    with pytest.raises(ValueError, match="closed"):
        writer.append(row_at(1))


def test_a_failed_sync_is_a_storage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with RecordWriter(tmp_path / "x.csv") as writer:
        monkeypatch.setattr(os, "fsync", refuse)
        with pytest.raises(StorageError, match=r"x\.csv: cannot write: Input/output error"):
            writer.sync()
        monkeypatch.undo()


def test_a_failed_repair_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "x.csv"
    before = write_rows(path, [row_at(1), row_at(2)])
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(StorageError, match="No space left"):
        RecordWriter(path, 1).open()
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.csv"]
