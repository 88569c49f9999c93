"""The CSV and the manifest of a run: round trips, repairs and every refusal with its place."""

import errno
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from pydantic import ValidationError

from bitnetctl import records
from bitnetctl.errors import ConfigError, ExitCode, RecordError, StorageError
from bitnetctl.records import NAMES, REQUIRED, Manifest, PluginInfo, RecordWriter, RunPaths, read, reader
from bitnetctl.records.schema import HEADER

FIVE = "Step,Loss,UniquePredictions,LR,WD\n"
ROW = {"Step": 1, "Loss": 10.8, "UniquePredictions": 16, "LR": 4e-06, "WD": 0.1}
DESIGN_ORDER = (
    "Step,Loss,UniquePredictions,LR,WD,HeldOutLoss,UniqueTargets,ProbePositions,TopShare,EffectiveVocab,"
    "ContextInformation,UnigramLoss,BigramLoss,BigramUnique,RandomPromptUnique,Objective,GradNorm,"
    "ZeroFraction,FlipRate,TokensPerSecond"
)

ours = settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])


def write_rows(path: Path, rows: list[dict[str, Any]], keep_through_step: int = 0) -> bytes:
    with RecordWriter(path, keep_through_step) as writer:
        for row in rows:
            writer.append(row)
    return path.read_bytes()


def row_at(step: int, **figures: float | int | None) -> dict[str, Any]:
    return ROW | {"Step": step} | figures


def csv_file(folder: Path, content: str | bytes, name: str = "x.csv") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


figures = st.one_of(st.none(), st.integers(0, 2**53), st.floats(), st.floats(0, 12))


@st.composite
def run_rows(draw: st.DrawFn, min_size: int = 1) -> list[dict[str, Any]]:
    steps = draw(st.lists(st.integers(1, 2**62), min_size=min_size, max_size=8, unique=True).map(sorted))
    rows = []
    for step in steps:
        optional = draw(st.sets(st.sampled_from(NAMES[5:])))
        rows.append({"Step": step} | {name: draw(figures) for name in (*REQUIRED[1:], *sorted(optional))})
    return rows


def same(found: float | None, expected: float | int | None) -> bool:
    if expected is None or found is None:
        return found is None and expected is None
    return found == float(expected) or (math.isnan(found) and math.isnan(float(expected)))


# the schema


def test_columns_are_those_of_the_design() -> None:
    assert ",".join(NAMES) == DESIGN_ORDER
    assert REQUIRED == ("Step", "Loss", "UniquePredictions", "LR", "WD")
    assert HEADER.decode() == DESIGN_ORDER + "\n"
    assert records.SCHEMA_VERSION == 1


def test_every_column_says_what_it_is() -> None:
    for column in records.COLUMNS:
        assert column.unit
        assert len(column.description) > 20
        assert column.dtype in ("int", "float")


def test_import_is_light() -> None:
    code = "import sys, bitnetctl.records; print([m for m in ('numpy', 'pandas', 'torch') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# the writer


def test_a_row_is_written_as_text_that_reads_back_exactly(tmp_path: Path) -> None:
    row = row_at(1, Loss=math.nan, HeldOutLoss=math.inf, TopShare=-math.inf, GradNorm=0.1, LR=np.float64(1e-05))
    content = write_rows(tmp_path / "x.csv", [row | {"UniquePredictions": np.int64(16)}])
    assert content.decode().splitlines()[1] == "1,nan,16,1e-05,0.1,inf,,,-inf,,,,,,,,0.1,,,"


@ours
@given(run_rows())
def test_written_rows_read_back_equal(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    path = tmp_path / "x.csv"
    write_rows(path, rows)
    found = read(path, partial=False)
    assert found.frame["Step"].tolist() == [row["Step"] for row in rows]
    assert found.frame["Step"].dtype == np.int64
    for name in NAMES:
        for index, row in enumerate(rows):
            assert same(found.value(name, index), row.get(name)), (name, row)
    assert found.notes == found.extra == ()
    assert found.title is None


@ours
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


def test_a_row_torn_at_any_byte_is_cut_and_made_again(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    rows = [row_at(1), row_at(10, HeldOutLoss=9.5), row_at(20, HeldOutLoss=9.25, FlipRate=0.125)]
    undisturbed = write_rows(path, rows)
    start = undisturbed[:-1].rfind(b"\n") + 1
    for end in range(start, len(undisturbed)):
        path.write_bytes(undisturbed[:end])
        found = read(path)
        # without its newline, only a row with all its cells can pass
        torn = undisturbed[start:end].count(b",") < len(NAMES) - 1
        assert found.frame["Step"].tolist() == ([1, 10] if torn else [1, 10, 20])
        assert bool(found.notes) == (end > start)
        assert not torn or end == start or "line 4: torn last row dropped" in found.notes[0]
        assert write_rows(path, rows[2:], keep_through_step=15) == undisturbed
        path.write_bytes(undisturbed[:end])
        with RecordWriter(path, keep_through_step=20) as writer:
            assert writer.last_step == 10
        assert path.read_bytes() == undisturbed[:start]


def test_a_header_torn_at_any_byte_is_written_anew(tmp_path: Path) -> None:
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


@pytest.mark.parametrize("foreign", [FIVE + "1,2,3,4,5\n", "notes\n", DESIGN_ORDER + "\r\n"])
@pytest.mark.parametrize("keep", [0, 10])
def test_a_file_that_is_not_ours_is_left_alone(tmp_path: Path, foreign: str, keep: int) -> None:
    path = csv_file(tmp_path, foreign)
    with pytest.raises(RecordError, match=r"x\.csv:1: not a file that this version writes"):
        RecordWriter(path, keep)
    assert path.read_bytes() == foreign.encode()


@pytest.mark.parametrize("content", [None, b"", HEADER[:30]])
def test_rows_that_are_gone_cannot_be_continued(tmp_path: Path, content: bytes | None) -> None:
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
def test_rows_that_are_refused_leave_no_trace(tmp_path: Path, row: dict[str, Any], complaint: str) -> None:
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
    """A disk that takes seven bytes of a row and refuses the rest."""
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


def test_a_short_write_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    path = tmp_path / "x.csv"
    with RecordWriter(path) as writer:
        before = path.read_bytes()
        monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[:9]))
        with pytest.raises(StorageError, match="part of a row only"):
            writer.append(row_at(1))
        monkeypatch.undo()
        assert path.read_bytes() == before


def _replace(path: Path) -> None:
    # as an editor does that keeps a copy
    path.rename(path.with_suffix(".old"))
    path.write_bytes(path.with_suffix(".old").read_bytes())


TAMPERING: dict[str, Callable[[Path], object]] = {
    "removed": Path.unlink,
    "replaced": _replace,
    "cut": lambda path: os.truncate(path, path.stat().st_size - 5),
    "emptied": lambda path: os.truncate(path, 0),
    "continued": lambda path: path.write_bytes(path.read_bytes() + b"7,"),
}


@pytest.mark.skipif(os.name != "posix", reason="an open file cannot be removed")
@pytest.mark.parametrize("what", TAMPERING)
def test_a_file_in_other_hands_is_noticed(what: str, tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    writer = RecordWriter(path)
    writer.open()
    writer.append(row_at(1))
    writer.sync()
    TAMPERING[what](path)
    noticed = r"x\.csv: was removed, replaced or changed"
    with pytest.raises(StorageError, match=noticed) as caught:
        writer.append(row_at(2))
    assert caught.value.exit_code == ExitCode.USAGE
    with pytest.raises(StorageError, match=noticed):
        writer.sync()
    writer.close()


def test_a_row_that_must_be_there_is_missed(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    before = write_rows(path, [row_at(1), row_at(2), row_at(9)])
    assert RecordWriter(path, 8, last_kept_step=2).last_step == 2
    with pytest.raises(RecordError, match="the row of step 4 is missing; put it back"):
        RecordWriter(path, 8, last_kept_step=4)
    assert path.read_bytes() == before


def test_nothing_is_changed_before_it_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    before = write_rows(path, [row_at(1), row_at(2)])
    writer = RecordWriter(path, 1)
    assert (writer.last_step, writer.had_rows, path.read_bytes()) == (1, True, before)
    writer.close()
    assert not RecordWriter(tmp_path / "new.csv").had_rows
    assert not (tmp_path / "new.csv").exists()


def test_a_closed_writer_stays_closed(tmp_path: Path) -> None:
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


# reading the origin's files

ORIGIN = """\
BitNet scaling test: hidden=256, 10000 steps, WD 0.1 -> 0.0, Step 5000
Step,Loss,UniquePredictions,LR,WD
1000,10.31,16,0.0014324,0.1
2000,10.72,8,0.0012973,0.1
3000,10.80,2,0.0011622,0.1
4000,10.78,2,0.001027,0.1
5000,10.34,2,0.001,0.1
6000,7.32,10,0.0008003,0.0
7000,7.21,14,0.0006005,0.0
10000,7.05,13,1.5e-06,0.0
"""


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("blank", ["", "\n", "\n \n\n"])
def test_the_origins_file(tmp_path: Path, bom: bytes, end: str, blank: str) -> None:
    path = csv_file(tmp_path, bom + (ORIGIN + blank).replace("\n", end).encode())
    found = read(path, partial=False)
    assert found.path == path
    assert found.title == "BitNet scaling test: hidden=256, 10000 steps, WD 0.1 -> 0.0, Step 5000"
    assert list(found.frame) == list(REQUIRED)
    assert found.frame["Step"].tolist() == [1000, 2000, 3000, 4000, 5000, 6000, 7000, 10000]
    assert found.frame["UniquePredictions"].tolist() == [16, 8, 2, 2, 2, 10, 14, 13]
    assert found.value("Loss", 5) == 7.32
    assert found.value("HeldOutLoss", 5) is None
    assert found.known("WD")
    assert not found.known("HeldOutLoss")
    assert set(found.unknown) == set(NAMES)
    assert found.diverged_at() is None
    assert found.notes == ()


@pytest.mark.parametrize(
    "title", ["", "plain", "a, b, Step", 'a "quoted, title', "größer, 256", "Step,Loss", "Step,by,Step"]
)
def test_titles(tmp_path: Path, title: str) -> None:
    text = f"{title}\n{FIVE}1,2,3,4,5\n"
    if not title:
        with pytest.raises(RecordError, match=r"x\.csv:1: a blank first line"):
            read(csv_file(tmp_path, text))
        return
    assert read(csv_file(tmp_path, text)).title == title


def test_columns_in_any_order_with_foreign_ones(tmp_path: Path) -> None:
    text = 'WD,Note,HeldOutLoss,LR,"UniquePredictions",Loss,Step,\n0.1,"a, b",,0.2,3,4.5,10,\n0,é,9,0,5,6,11,x\n'
    found = read(csv_file(tmp_path, text))
    assert list(found.frame) == [*REQUIRED, "HeldOutLoss"]
    assert found.extra == ("Note", "")
    assert [found.value(name, 0) for name in (*REQUIRED, "HeldOutLoss")] == [10.0, 4.5, 3.0, 0.2, 0.1, None]
    assert [found.value(name, 1) for name in (*REQUIRED, "HeldOutLoss")] == [11.0, 6.0, 5.0, 0.0, 0.0, 9.0]


def test_unknown_and_nan_stay_apart(tmp_path: Path) -> None:
    text = "Step,Loss,UniquePredictions,LR,WD,HeldOutLoss\n1,nan,,+.5, 1. ,\n2,,2,-Infinity,1E-3,NaN\n"
    found = read(csv_file(tmp_path, text))
    assert found.unknown["Loss"].tolist() == [False, True]
    assert found.unknown["HeldOutLoss"].tolist() == [True, False]
    assert found.unknown["GradNorm"].all()
    assert math.isnan(found.value("Loss", 0) or 0)
    assert found.value("Loss", 1) is None
    assert np.isnan(found.frame["Loss"]).all()
    assert (found.value("LR", 0), found.value("LR", 1)) == (0.5, -math.inf)
    assert (found.value("WD", 0), found.value("WD", 1)) == (1.0, 1e-3)
    assert not found.known("GradNorm")
    with pytest.raises(KeyError):
        found.value("Lose", 0)
    with pytest.raises(ValueError, match="read-only"):
        found.unknown["Loss"][0] = True


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ("1,2,3,4,5,6\n2,nan,3,4,5,6\n3,inf,3,4,5,6\n", 2),
        ("1,2,3,4,5,6\n2,2,3,4,5,-inf\n", 2),
        ("1,2,3,4,5,\n2,,3,4,5,6\n3,1,nan,inf,5,6\n", None),
    ],
)
def test_divergence(tmp_path: Path, rows: str, expected: int | None) -> None:
    text = FIVE.replace("WD", "WD,HeldOutLoss") + rows
    assert read(csv_file(tmp_path, text)).diverged_at() == expected


# refusals, each with its place

REFUSED = [
    ("", 1, "the file is empty"),
    ("\n\n", 1, "the file is empty"),
    (FIVE, 1, "a header and no rows"),
    ("title\n" + FIVE + "\n\n", 4, "a header and no rows"),
    (FIVE + "1,2", 2, "a header and no rows (line 2: torn last row dropped: 2 cells for 5 columns)"),
    ("hello\nworld\n", 1, "no header: expected a line with Step,Loss,UniquePredictions,LR,WD"),
    ("title\n1,2,3,4,5\n", 1, "no header"),
    ("Step,Loss,WD\n1,2,3\n", 1, "missing columns: UniquePredictions, LR"),
    ("title\nStep,Loss,WD\n1,2,3\n", 2, "missing columns: UniquePredictions, LR"),
    ("Step,Loss,UniquePredictions,LR,WD,Loss\n1,2,3,4,5,6\n", 1, "duplicate columns: 'Loss'"),
    ("Step,Loss,UniquePredictions,LR,WD,a,a\n1,2,3,4,5,6,7\n", 1, "duplicate columns: 'a'"),
    (FIVE + "1,2,3,4,5\n1,2,3,4,5\n", 3, "Step 1 repeated"),
    (FIVE + "5,2,3,4,5\n9,2,3,4,5\n7,2,3,4,5\n", 4, "Step 7 after 9; steps must increase"),
    ("t\n" + FIVE + "5,2,3,4,5\n4,2,3,4,5", 4, "Step 4 after 5; steps must increase"),
    (FIVE + "1,2,3,4,5\n2,two,3,4,5\n", 3, "Loss is 'two', not a number"),
    (FIVE + "1,2,3,4,NA\n", 2, "WD is 'NA', not a number"),
    (FIVE + "1,1_000,3,4,5\n", 2, "Loss is '1_000', not a number"),
    (FIVE + "1,0x10,3,4,5\n", 2, "Loss is '0x10', not a number"),
    (FIVE + "1,١,3,4,5\n", 2, "Loss is '١', not a number"),
    (FIVE + "1,1 2,3,4,5\n", 2, "Loss is '1 2', not a number"),
    (FIVE + "1,1e400,3,4,5\n", 2, "Loss is '1e400', too large for a double"),
    (FIVE + '1,"1,5",3,4,5\n', 2, "Loss is '1,5', not a number; decimals need a point, not a comma"),
    (FIVE + "1,1,5,3,4,5\n", 2, "6 cells for 5 columns; decimals need a point, not a comma"),
    (FIVE + "1,1,5,3,4,5", 2, "6 cells for 5 columns"),
    (FIVE + "1,2,3,4,5\n2,1,5,3,4,5", 3, "6 cells for 5 columns"),
    (
        FIVE.replace(",", ";") + "1;2,5;3;4;5\n",
        1,
        "cells are separated by semicolons; save the file with commas",
    ),
    ("a title\n" + FIVE.replace(",", ";") + "1;2;3;4;5\n", 2, "cells are separated by semicolons"),
    (FIVE.replace(",", "\t") + "1\t2\t3\t4\t5\n", 1, "cells are separated by tabs"),
    (FIVE.replace("\n", "\r") + "1,2,3,4,5\r", 1, "lines end in a bare CR"),
    (FIVE + "1.0,2,3,4,5\n", 2, "Step is '1.0', not a whole number"),
    (FIVE + "1_0,2,3,4,5\n", 2, "Step is '1_0', not a whole number"),
    (FIVE + "nan,2,3,4,5\n", 2, "Step is 'nan', not a whole number"),
    (FIVE + ",2,3,4,5\n", 2, "Step is empty"),
    (FIVE + "-1,2,3,4,5\n", 2, "Step is -1, negative"),
    (FIVE + "9223372036854775808,2,3,4,5\n", 2, "Step is '9223372036854775808', too large"),
    (FIVE + "9" * 5000 + ",2,3,4,5\n", 2, "too large"),
    (FIVE + "1,2,3,4\n2,2,3,4,5\n", 2, "4 cells for 5 columns"),
    (FIVE + "1,2,3,4,5\n\n2,2,3,4,5\n", 3, "a blank line between rows"),
    (FIVE + "1,2,3,4,5\n\n2,2,3,4,5", 3, "a blank line between rows"),
    (FIVE + '1,"2,3,4,5\n2,2,3,4,5\n', 2, "a quoted cell that does not end properly"),
    (FIVE + "1,2,3,4,5\n2,2\0,3,4,5\n", 3, "holds a NUL byte"),
    ("ti\0tle\n" + FIVE + "1,2,3,4,5\n", 1, "holds a NUL byte"),
    ((FIVE + "1,2,3,4,5\n2,").encode() + b"\xff,3,4,5\n", 3, "not UTF-8 (byte 0xff)"),
    (b"gr\xf6\xdfer\n" + (FIVE + "1,2,3,4,5\n").encode(), 1, "not UTF-8 (byte 0xf6)"),
    (("t\n" + FIVE + "1,2,3,4,5\n").encode("utf-16"), 1, "NUL"),
    (b"Step,Loss,UniquePredictions,LR,WD,Note\n1,2,3,4,5," + b"\xe9\n", 2, "not UTF-8"),
]


@pytest.mark.parametrize("careful", [False, True], ids=["fast", "careful"])
@pytest.mark.parametrize(("content", "line", "complaint"), REFUSED, ids=range(len(REFUSED)))
def test_refusals(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    content: str | bytes,
    line: int,
    complaint: str,
    careful: bool,
) -> None:
    if careful:
        monkeypatch.setattr(reader, "parse_plain", lambda *args: None)
    path = csv_file(tmp_path, content)
    with pytest.raises(RecordError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}:{line}: ")
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"none\.csv: cannot read: No such file"):
        read(tmp_path / "none.csv")
    with pytest.raises(RecordError, match="cannot read"):
        read(tmp_path)
    with pytest.raises(RecordError, match="cannot read"):
        RecordWriter(tmp_path)


@pytest.mark.parametrize("tail", ["2,3", "2,3,4,5,6e-", "2,3,4,5,\0\0\0", '2,"3', "title"])
def test_a_torn_last_row_is_dropped_only_from_an_unfinished_run(tmp_path: Path, tail: str) -> None:
    path = csv_file(tmp_path, FIVE + "1,2,3,4,5\n" + tail)
    found = read(path)
    assert found.frame["Step"].tolist() == [1]
    assert len(found.notes) == 1
    assert found.notes[0].startswith("line 3: torn last row dropped: ")
    with pytest.raises(RecordError, match=r"x\.csv:3: .* \(the last row, without a newline\)"):
        read(path, partial=False)


def test_a_last_row_without_newline_is_kept_and_noted(tmp_path: Path) -> None:
    found = read(csv_file(tmp_path, FIVE + "1,2,3,4,5\n2,3,4,5,6"), partial=False)
    assert found.frame["WD"].tolist() == [5, 6]
    assert found.notes == ("line 3: the last row has no newline; its last cell may have been cut short",)


pieces = st.sampled_from(
    [*"0123456789,,,,..-+e\"'\n\n\r \t;", "\r\n", "nan", "inf", "\0", "é", "1,2,3,4,5\n", FIVE, "Step"]
)


@settings(ours, max_examples=400)
@given(st.lists(pieces, max_size=30).map("".join), st.sampled_from(["", FIVE, "title\n" + FIVE]), st.booleans())
def test_whatever_the_file_holds_the_answer_is_records_or_one_line(
    tmp_path: Path, text: str, start: str, partial: bool
) -> None:
    try:
        found = read(csv_file(tmp_path, start + text), partial=partial)
    except RecordError as error:
        assert re.match(r".*x\.csv:[1-9][0-9]*: [^\n]+$", str(error))  # noqa: PT017 - either way is right
    else:
        assert found.frame["Step"].is_monotonic_increasing
        assert set(REQUIRED) <= set(found.frame)


@ours
@given(st.binary(max_size=60))
def test_bytes_of_any_kind_are_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(RecordError, match=r"x\.csv:[1-9][0-9]*: "):
        read(csv_file(tmp_path, content))


# the fast way and the careful way

cells = st.one_of(
    st.floats().map(repr),
    st.integers(-(10**20), 10**20).map(str),
    st.sampled_from(["", "nan", "NaN", "inf", "-Infinity", "1.", ".5", "+1", "1e400", "1e-400", " 2 ", '"3"']),
    st.sampled_from(["007", "-0", "-nan", "1e", "1-2", "-", "e", "na", "1_0", "nannan", "x", "1 2", "\r", "[1]"]),
)
plain_cells = st.one_of(st.floats().map(repr), st.integers(0, 10**6).map(str), st.just(""))


@settings(ours, max_examples=400)
@given(st.data())
def test_the_fast_way_agrees_with_the_careful_way(data: st.DataObject) -> None:
    columns = data.draw(st.permutations([*REQUIRED, "GradNorm", "Other"]))
    layout = reader.Layout.of(columns)
    drawn = plain_cells if data.draw(st.booleans()) else cells
    step, lines = 0, []
    for _ in range(data.draw(st.integers(1, 5))):
        step += data.draw(st.sampled_from([1, 1, 1, 7, 0]))
        row = {name: data.draw(drawn) for name in columns} | {"Step": str(step)}
        lines.append(",".join(row[name] for name in columns))
    block = ("\n".join(lines) + "\n").encode()
    fast = reader.parse_plain(block, layout, -1)
    if fast is None:
        return
    parsed = [reader.parse_row(line.encode(), layout) for line in lines]
    steps, values, unknown = zip(*parsed, strict=True)
    assert fast[0].tolist() == list(steps)
    assert (np.diff(fast[0]) > 0).all()
    np.testing.assert_array_equal(fast[1], np.array(values).T)
    np.testing.assert_array_equal(fast[2], np.array(unknown).T)


@settings(ours, max_examples=50)
@given(st.lists(st.tuples(*[plain_cells] * 4), min_size=1, max_size=5))
def test_plain_rows_take_the_fast_way(rows: list[tuple[str, ...]]) -> None:
    block = "".join(f"{step},{','.join(row)}\n" for step, row in enumerate(rows)).encode()
    fast = reader.parse_plain(block, reader.Layout.of(REQUIRED), -1)
    assert (fast is None) == (b"inf" in block)


def test_blocks_join_without_a_seam(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row_at(step, HeldOutLoss=[9.1, None, math.nan, math.inf][step % 4]) for step in range(1, 60)]
    path = tmp_path / "x.csv"
    write_rows(path, rows)
    whole = read(path)
    monkeypatch.setattr(reader, "_BLOCK", 100)
    parts = read(path)
    assert parts.frame.equals(whole.frame)
    assert all((parts.unknown[name] == whole.unknown[name]).all() for name in NAMES)
    content = path.read_bytes()
    broken = content.replace(b"\n40,", b"\n39,")
    with pytest.raises(RecordError, match=r":41: Step 39 repeated"):
        read(csv_file(tmp_path, broken))
    for ends in (b"\n" * 150, b"\r\n" * 90):
        assert len(read(csv_file(tmp_path, content + ends), partial=False).frame) == 59
    with pytest.raises(RecordError, match=r":61: a blank line between rows"):
        read(csv_file(tmp_path, content + b"\n" * 150 + b"99,1,1,1,1" + b"," * 15 + b"\n"))


def test_a_long_file_is_read_in_linear_time(tmp_path: Path) -> None:
    row = ",".join(["7.123456789012345"] * 19)
    path = csv_file(tmp_path, HEADER.decode() + "".join(f"{step},{row}\n" for step in range(1, 20_001)))
    found = read(path)
    assert found.frame.shape == (20_000, 20)
    assert found.value("TokensPerSecond", -1) == 7.123456789012345


# manifests


def manifest(**changes: Any) -> Manifest:
    facts: dict[str, Any] = {
        "run": "x",
        "status": "running",
        "config": {"steps": 20, "optimizer": {"betas": [0.9, 0.95]}},
        "config_hash": "1a2b3c",
        "created_at": "2025-11-22T17:00:00+00:00",
        "updated_at": "2025-11-22T17:00:01Z",
    }
    return Manifest.model_validate(facts | changes)


def test_a_manifest_reads_back_equal(tmp_path: Path) -> None:
    full = manifest(
        status="diverged",
        effective_config={"steps": 20},
        steps_done=12,
        diverged_at=10,
        message="loss is not finite",
        versions={"torch": "2.10"},
        git={"commit": "abc", "dirty": False},
        device="cpu",
        threads=2,
        data={"fingerprint": "f", "train_tokens": 10**9, "unigram_loss": 6.37},
        plugins=[PluginInfo(name="reduced-lr", version="1", distribution="d", settings={"peak": 5e-4})],
        command=["bitnetctl", "train", "größer"],
        elapsed_seconds=1.5,
        pack=["x", "y"],
    )
    records.write_manifest(tmp_path / "x", full)
    text = (tmp_path / "x" / "run.json").read_text()
    assert records.read_manifest(tmp_path / "x") == full
    assert text.endswith("}\n")
    assert list(json.loads(text)) == sorted(Manifest.model_fields)
    assert text.startswith('{\n  "command": [')
    assert [entry.name for entry in (tmp_path / "x").iterdir()] == ["run.json"]


def test_a_manifest_is_found_from_its_csv(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path, "h256-a.b+c-s0")
    records.write_manifest(paths.folder, manifest())
    assert records.read_manifest(paths.csv) == manifest()
    assert records.read_manifest(str(paths.csv)) == manifest()
    assert records.read_manifest(tmp_path / "other file.csv") is None
    assert records.read_manifest(tmp_path / "other") is None
    csv_file(tmp_path, FIVE, "plain")
    assert records.read_manifest(tmp_path / "plain") is None


def test_a_newer_manifest_stays_readable(tmp_path: Path) -> None:
    tree = manifest().model_dump(mode="json") | {"schema_version": 2, "mood": "good"}
    (tmp_path / "run.json").write_text(json.dumps(tree))
    found = records.read_manifest(tmp_path)
    assert found is not None
    assert found.schema_version == 2
    assert not hasattr(found, "mood")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "Expecting value"),
        (b'{"run": "x"', "Expecting"),
        (b"[]", "the whole: "),
        (b"{}", "run: Field required"),
        (b"\xff", "not UTF-8"),
        (b'{"elapsed_seconds": NaN}', "NaN is not JSON"),
        (b"[" * 100_000, "recursion"),
        (json.dumps(manifest().model_dump() | {"status": "asleep"}).encode(), "status: Input should be"),
        (json.dumps(manifest().model_dump() | {"created_at": "soon"}).encode(), "created_at: "),
        (json.dumps(manifest().model_dump() | {"updated_at": "2025-01-01T00:00:00"}).encode(), "in UTC"),
    ],
)
def test_damaged_manifests(tmp_path: Path, content: bytes, complaint: str) -> None:
    path = tmp_path / "run.json"
    path.write_bytes(content)
    with pytest.raises(RecordError) as caught:
        records.read_manifest(tmp_path)
    assert str(caught.value).startswith(f"{path}: damaged manifest: ")
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [math.nan, -math.inf, object(), {"deep": [math.inf]}])
def test_a_manifest_never_holds_what_json_cannot(tmp_path: Path, value: Any) -> None:
    records.write_manifest(tmp_path, manifest())
    before = (tmp_path / "run.json").read_bytes()
    with pytest.raises(RecordError, match=r"run\.json: the manifest holds what JSON cannot"):
        records.write_manifest(tmp_path, manifest(data={"figure": value}))
    assert (tmp_path / "run.json").read_bytes() == before


def test_manifest_fields_are_checked_and_frozen() -> None:
    with pytest.raises(ValidationError):
        manifest(elapsed_seconds=math.nan)
    with pytest.raises(ValidationError):
        manifest(steps_done=-1)
    with pytest.raises(ValidationError):
        manifest().status = "failed"  # type: ignore[misc]
    assert manifest(created_at=records.utc_now()).created_at.endswith("+00:00")


def test_a_message_that_is_not_utf8_does_not_stop_an_update(tmp_path: Path) -> None:
    updated = manifest().model_copy(update={"status": "failed", "message": "caf\udce9.txt: gone"})
    records.write_manifest(tmp_path, updated)
    found = records.read_manifest(tmp_path)
    assert found is not None
    assert found.message == "caf\\udce9.txt: gone"


def test_an_argument_that_is_not_utf8_does_not_stop_the_manifest(tmp_path: Path) -> None:
    records.write_manifest(tmp_path, manifest(command=["file:caf\udce9.txt"]))
    found = records.read_manifest(tmp_path)
    assert found is not None
    assert found.command == ["file:caf\\udce9.txt"]


# paths


def test_the_files_of_a_run() -> None:
    paths = RunPaths(Path("runs"), "x")
    assert paths.csv == Path("runs/x.csv")
    assert paths.folder == Path("runs/x")
    assert paths.manifest == Path("runs/x/run.json")
    assert paths.checkpoints == Path("runs/x/checkpoints")
    assert paths.lock == Path("runs/x/run.lock")
    assert RunPaths.from_csv("runs/x.csv") == paths
    assert RunPaths.from_csv("h256-a.b.csv").folder == Path("h256-a.b")


@pytest.mark.parametrize(
    "name", ["", "..", "../x", "a/b", "a\\b", ".x", "con", "x\n", "x.csv", "x.CSV", "é", "a" * 201]
)
def test_names_that_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="name"):
        RunPaths(Path("runs"), name)


@pytest.mark.parametrize("path", ["runs/x", "runs/x.txt", "runs/my results.csv", ".csv"])
def test_csv_paths_that_are_no_runs(path: str) -> None:
    with pytest.raises(ConfigError):
        RunPaths.from_csv(path)


@pytest.mark.parametrize("link", ["x", "x.csv", "x/checkpoints", "x/run.json", "x/run.lock"])
def test_links_out_of_the_runs_folder_are_refused(tmp_path: Path, link: str) -> None:
    runs = tmp_path / "runs"
    (runs / link).parent.mkdir(parents=True)
    (runs / link).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="leads out of"):
        RunPaths(runs, "x")


def test_a_sibling_whose_name_only_begins_alike_is_outside(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "x").symlink_to(tmp_path / "runs-old")
    with pytest.raises(ConfigError, match="leads out of"):
        RunPaths(tmp_path / "runs", "x")


def test_links_that_stay_inside_are_fine(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "runs").symlink_to(tmp_path / "real")
    assert RunPaths(tmp_path / "runs", "x").csv.parent == tmp_path / "runs"


def test_a_link_in_a_circle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").symlink_to(tmp_path / "x")
    try:
        paths = RunPaths(tmp_path, "x")
    except ConfigError as error:
        assert "cannot be resolved" in str(error)  # noqa: PT017 - newer Pythons resolve a circle to itself
    else:
        assert paths.folder == tmp_path / "x"
