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
from rows import FIVE, ROW, csv_file, row_at, shared_folder, write_rows, writing

from bitnetctl.errors import ExitCode, RecordError, StorageError
from bitnetctl.records import NAMES, REQUIRED, RecordWriter, read
from bitnetctl.records.schema import HEADER

KEPT = HEADER + b"1,9.5,16,1e-05,0.1" + b"," * 16 + b"\n7,9.25,16,1e-05,0.1" + b"," * 16 + b"\n"
OLD_HEADER = HEADER.replace(b"HeldOutBitsPerByte,", b"")
OLD_KEPT = OLD_HEADER + b"1,9.5,16,1e-05,0.1" + b"," * 15 + b"\n"

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
    assert content.decode().splitlines()[1] == "1,nan,16,1e-05,0.1,inf,,,-inf,,,,,,,,0.1,,,,"


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


def first_rows(content: bytes, count: int) -> bytes:
    """Return the header and the first rows of a file."""
    return b"".join(content.splitlines(keepends=True)[: 1 + count])


@st.composite
def damaged_after(draw: st.DrawFn, kept: bytes, undisturbed: bytes) -> bytes | None:
    """Draw a file that begins with `kept`: cut at any byte, a bit flipped, continued with anything; None is missing."""
    at = draw(st.integers(len(kept), len(undisturbed)))
    start, rest = undisturbed[:at], undisturbed[at:]
    flipped = bytes([byte ^ 1 << draw(st.integers(0, 7)) for byte in rest[:1]]) + rest[1:]
    damage = draw(st.sampled_from(["none", "missing", "cut", "flipped", "zeros", "other"]))
    if damage == "missing":
        return None
    tails = {"none": rest, "cut": b"", "flipped": flipped, "zeros": bytes(len(rest)), "other": draw(st.binary())}
    return start + tails[damage]


def put(path: Path, content: bytes | None) -> None:
    """Give a file this content; None removes it."""
    path.unlink(missing_ok=True)
    if content is not None:
        path.write_bytes(content)


@shared_folder
@given(run_rows(), st.data())
def test_a_resumed_file_equals_an_undisturbed_one(
    tmp_path: Path, rows: list[dict[str, Any]], data: st.DataObject
) -> None:
    path = tmp_path / "x.csv"
    path.unlink(missing_ok=True)
    undisturbed = write_rows(path, rows)
    count = data.draw(st.integers(0, len(rows)))
    kept = first_rows(undisturbed, count)
    content = data.draw(damaged_after(kept, undisturbed))
    put(path, content)
    # a new run may be given nothing in place of the header
    given_bytes = kept if count else data.draw(st.sampled_from([b"", HEADER]))
    with writing(path, given_bytes) as writer:
        assert writer.last_step == (rows[count - 1]["Step"] if count else None)
        assert writer.had_rows == (content is not None and len(content) > len(HEADER))
        assert path.read_bytes() == kept
    put(path, content)
    assert write_rows(path, rows[count:], given_bytes) == undisturbed


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
        for count in (0, 1, 2):
            path.write_bytes(undisturbed[:end])
            assert write_rows(path, rows[count:], first_rows(undisturbed, count)) == undisturbed
        path.write_bytes(undisturbed[:end])
        with writing(path, undisturbed[:start]) as writer:
            assert writer.last_step == 10
        assert path.read_bytes() == undisturbed[:start]


def test_a_header_torn_at_any_byte_is_rewritten(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    for end in range(len(HEADER)):
        path.write_bytes(HEADER[:end])
        assert write_rows(path, []) == HEADER
        path.write_bytes(HEADER[:end])
        assert write_rows(path, [row_at(8)], KEPT) == KEPT + write_rows(tmp_path / "y.csv", [row_at(8)])[len(HEADER) :]


@pytest.mark.parametrize("last", [b"30,1.0\n", b"30" + b"," * 26 + b"\n", b"\0\0\0\0\n", b"30,x" + b"," * 19 + b"\n"])
def test_a_damaged_last_row_is_cut(tmp_path: Path, last: bytes) -> None:
    path = tmp_path / "x.csv"
    intact = write_rows(path, [row_at(1)])
    path.write_bytes(intact + last)
    assert write_rows(path, [], intact) == intact


@pytest.mark.parametrize("rows", [b"", b"1,2\n2,3\n", b"0" + b"," * 20 + b"\n", b"\0"])
def test_a_new_run_starts_with_the_header_alone(tmp_path: Path, rows: bytes) -> None:
    path = csv_file(tmp_path, HEADER + rows)
    assert write_rows(path, []) == HEADER


@pytest.mark.parametrize("content", [None, OLD_KEPT, OLD_KEPT + b"2,9.0,", OLD_HEADER[:-9], HEADER, KEPT])
def test_a_run_of_an_older_version_goes_on_with_its_columns(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "x.csv"
    put(path, content)
    written = write_rows(path, [row_at(8, FlipRate=0.5, HeldOutBitsPerByte=1.25, TokensPerSecond=7.0)], OLD_KEPT)
    assert (
        written
        == OLD_KEPT
        + write_rows(tmp_path / "y.csv", [row_at(8)]).splitlines()[1].replace(b"," * 16, b"," * 14)
        + b"0.5,7.0\n"
    )
    records = read(path)
    assert records.notes == records.extra == ()
    assert not records.has_values("HeldOutBitsPerByte")


@pytest.mark.parametrize("content", [OLD_HEADER, OLD_KEPT, OLD_KEPT.replace(b"\n", b"\r\n"), OLD_HEADER[:-9]])
def test_a_run_that_starts_again_has_the_columns_of_this_version(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(content)
    assert RecordWriter(path).had_rows == (b"9.5" in content)
    assert write_rows(path, []) == HEADER


@pytest.mark.parametrize("foreign", [FIVE + "1,2,3,4,5\n", "notes\n", "\n" + ",".join(NAMES) + "\n"])
@pytest.mark.parametrize("kept", [b"", KEPT])
def test_a_file_of_another_program_is_left_alone(tmp_path: Path, foreign: str, kept: bytes) -> None:
    path = csv_file(tmp_path, foreign)
    with pytest.raises(RecordError, match=r"x\.csv:1: not a file that this version writes"):
        RecordWriter(path, kept)
    assert path.read_bytes() == foreign.encode()


@pytest.mark.parametrize("content", [None, b"", HEADER[:30], HEADER, HEADER.replace(b"\n", b"\r\n")])
def test_rows_that_are_gone_are_restored(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "x.csv"
    put(path, content)
    writer = RecordWriter(path, KEPT)
    assert (writer.last_step, writer.had_rows) == (7, False)
    assert write_rows(path, [], KEPT) == KEPT


@pytest.mark.parametrize(
    "kept",
    [
        HEADER[:-1],
        b"Step\n7,1.0\n",
        KEPT[:-1],
        KEPT + b"\n",
        KEPT + b"8",
        KEPT + b"x,1.0\n",
        KEPT + b"-8,1.0\n",
        KEPT + b"\xff\0,\n",
        KEPT + b"9" * 9999 + b",1.0\n",
    ],
)
def test_what_is_kept_must_end_with_a_row(tmp_path: Path, kept: bytes) -> None:
    path = tmp_path / "x.csv"
    for content in (None, KEPT):
        put(path, content)
        with pytest.raises(
            RecordError, match=r"x\.csv: the rows of the checkpoint are not rows that this version writes"
        ):
            RecordWriter(path, kept)
        assert content == (path.read_bytes() if path.exists() else None)


def test_a_file_that_is_what_is_kept_is_not_replaced(tmp_path: Path) -> None:
    path = csv_file(tmp_path, KEPT)
    before = path.stat().st_ino
    assert write_rows(path, [], KEPT) == KEPT
    assert path.stat().st_ino == before


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
    with writing(path) as writer:
        writer.append(row_at(4))
        before = path.read_bytes()
        with pytest.raises(RecordError, match=re.escape(complaint)):
            writer.append(row)
        assert path.read_bytes() == before
        writer.append(row_at(5))
    assert len(read(path).frame) == 2


def test_the_first_step_is_one_or_later(tmp_path: Path) -> None:
    with writing(tmp_path / "x.csv") as writer, pytest.raises(RecordError, match="Step 0 after 0"):
        writer.append(row_at(0))


def test_each_row_is_one_write_and_visible_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.csv"
    writes = []
    real = os.write

    def spy(descriptor: int, data: bytes) -> int:
        writes.append(data)
        return real(descriptor, data)

    with writing(path) as writer:
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
    with writing(path) as writer:
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
    with writing(path) as writer:
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
    with writing(path) as writer:
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


def test_the_constructor_changes_no_file(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    before = write_rows(path, [row_at(1), row_at(2)])
    writer = RecordWriter(path, first_rows(before, 1))
    assert (writer.last_step, writer.had_rows, path.read_bytes()) == (1, True, before)
    writer.close()
    path.unlink()
    RecordWriter(path, before).close()
    assert not path.exists()
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

    with writing(tmp_path / "x.csv") as writer:
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
        RecordWriter(path, first_rows(before, 1)).open()
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.csv"]
