"""The reader of a run's CSV: files of any origin, and every refusal with its line."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from rows import FIVE, csv_file, row_at, shared_folder, write_rows

from bitnetctl.errors import RecordError
from bitnetctl.records import NAMES, REQUIRED, RecordWriter, cells as cells_of, read, reader
from bitnetctl.records.schema import HEADER

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
    records = read(path, partial=False)
    assert records.path == path
    assert records.title == "BitNet scaling test: hidden=256, 10000 steps, WD 0.1 -> 0.0, Step 5000"
    assert list(records.frame) == list(REQUIRED)
    assert records.frame["Step"].tolist() == [1000, 2000, 3000, 4000, 5000, 6000, 7000, 10000]
    assert records.frame["UniquePredictions"].tolist() == [16, 8, 2, 2, 2, 10, 14, 13]
    assert records.value("Loss", 5) == 7.32
    assert records.value("HeldOutLoss", 5) is None
    assert records.has_values("WD")
    assert not records.has_values("HeldOutLoss")
    assert set(records.unknown) == set(NAMES)
    assert records.diverged_at() is None
    assert records.notes == ()


@pytest.mark.parametrize(
    "title", ["plain", "a, b, Step", 'a "quoted, title', "größer, 256", "Step,Loss", "Step,by,Step"]
)
def test_titles(tmp_path: Path, title: str) -> None:
    text = f"{title}\n{FIVE}1,2,3,4,5\n"
    assert read(csv_file(tmp_path, text)).title == title


def test_columns_in_any_order_with_foreign_ones(tmp_path: Path) -> None:
    text = 'WD,Note,HeldOutLoss,LR,"UniquePredictions",Loss,Step,\n0.1,"a, b",,0.2,3,4.5,10,\n0,é,9,0,5,6,11,x\n'
    records = read(csv_file(tmp_path, text))
    assert list(records.frame) == [*REQUIRED, "HeldOutLoss"]
    assert records.extra == ("Note", "")
    assert [records.value(name, 0) for name in (*REQUIRED, "HeldOutLoss")] == [10.0, 4.5, 3.0, 0.2, 0.1, None]
    assert [records.value(name, 1) for name in (*REQUIRED, "HeldOutLoss")] == [11.0, 6.0, 5.0, 0.0, 0.0, 9.0]


def test_unknown_and_nan_are_distinguished(tmp_path: Path) -> None:
    text = "Step,Loss,UniquePredictions,LR,WD,HeldOutLoss\n1,nan,,+.5, 1. ,\n2,,2,-Infinity,1E-3,NaN\n"
    records = read(csv_file(tmp_path, text))
    assert records.unknown["Loss"].tolist() == [False, True]
    assert records.unknown["HeldOutLoss"].tolist() == [True, False]
    assert records.unknown["GradNorm"].all()
    assert math.isnan(records.value("Loss", 0) or 0)
    assert records.value("Loss", 1) is None
    assert np.isnan(records.frame["Loss"]).all()
    assert (records.value("LR", 0), records.value("LR", 1)) == (0.5, -math.inf)
    assert (records.value("WD", 0), records.value("WD", 1)) == (1.0, 1e-3)
    assert not records.has_values("GradNorm")
    with pytest.raises(KeyError):
        records.value("Lose", 0)
    with pytest.raises(ValueError, match="read-only"):
        records.unknown["Loss"][0] = True


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


# refusals, each with its line

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
    (FIVE + "1,1_000,3,4,5\n", 2, "Loss is '1_000', not a number"),
    (FIVE + "1,0x10,3,4,5\n", 2, "Loss is '0x10', not a number"),
    (FIVE + "1,١,3,4,5\n", 2, "Loss is '١', not a number"),
    (FIVE + "1,1 2,3,4,5\n", 2, "Loss is '1 2', not a number"),
    (FIVE + "1,1e400,3,4,5\n", 2, "Loss is '1e400', too large for a double"),
    (
        FIVE + '1,"1,5",3,4,5\n',
        2,
        "Loss is '1,5': cells are separated by commas and decimals have a comma; add `--decimal ,`",
    ),
    (FIVE + "1,1,5,3,4,5\n", 2, "6 cells for 5 columns; decimals need a point, not a comma"),
    (FIVE + "1,1,5,3,4,5", 2, "6 cells for 5 columns"),
    (FIVE + "1,2,3,4,5\n2,1,5,3,4,5", 3, "6 cells for 5 columns"),
    (
        FIVE.replace(",", ";") + "1;2,5;3;4;5\n",
        2,
        "Loss is '2,5': cells are separated by semicolons and decimals have a comma; add `--decimal ,`",
    ),
    (FIVE + "1_0,2,3,4,5\n", 2, "Step is '1_0', not a whole number"),
    (FIVE + "nan,2,3,4,5\n", 2, "Step is 'nan', not a whole number"),
    (FIVE + ",2,3,4,5\n", 2, "Step is empty"),
    (FIVE + "-1,2,3,4,5\n", 2, "Step is -1, negative"),
    (FIVE + "9223372036854775808,2,3,4,5\n", 2, "Step is '9223372036854775808', too large"),
    (FIVE + "9" * 5000 + ",2,3,4,5\n", 2, "too large"),
    (FIVE + "1,2,3,4\n2,2,3,4,5\n", 2, "4 cells for 5 columns"),
    (FIVE + '1,"2,3,4,5\n2,2,3,4,5\n', 2, "a quoted cell that does not end properly"),
    (FIVE + "1,2,3,4,5\n2,2\0,3,4,5\n", 3, "holds a NUL byte"),
    ("ti\0tle\n" + FIVE + "1,2,3,4,5\n", 1, "holds a NUL byte"),
    ((FIVE + "1,2,3,4,5\n2,").encode() + b"\xff,3,4,5\n", 3, "not UTF-8 (byte 0xff)"),
    (b"gr\xf6\xdfer\n" + (FIVE + "1,2,3,4,5\n").encode(), 1, "not UTF-8 (byte 0xf6)"),
    (b"Step,Loss,UniquePredictions,LR,WD,Note\n1,2,3,4,5," + b"\xe9\n", 2, "not UTF-8"),
]


@pytest.mark.parametrize("by_line", [False, True], ids=["block", "line"])
@pytest.mark.parametrize(("content", "line", "complaint"), REFUSED, ids=range(len(REFUSED)))
def test_malformed_files_are_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    content: str | bytes,
    line: int,
    complaint: str,
    by_line: bool,
) -> None:
    if by_line:
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
    records = read(path)
    assert records.frame["Step"].tolist() == [1]
    assert len(records.notes) == 1
    assert records.notes[0].startswith("line 3: torn last row dropped: ")
    with pytest.raises(RecordError, match=r"x\.csv:3: .* \(the last row, without a newline\)"):
        read(path, partial=False)


def test_a_last_row_without_newline_is_kept_and_noted(tmp_path: Path) -> None:
    records = read(csv_file(tmp_path, FIVE + "1,2,3,4,5\n2,3,4,5,6"), partial=False)
    assert records.frame["WD"].tolist() == [5, 6]
    assert records.notes == ("line 3: the last row has no newline; its last cell may have been cut short",)


pieces = st.sampled_from(
    [*"0123456789,,,,..-+e\"'\n\n\r \t;", "\r\n", "nan", "inf", "\0", "é", "1,2,3,4,5\n", FIVE, "Step"]
)


@settings(shared_folder, max_examples=400)
@given(st.lists(pieces, max_size=30).map("".join), st.sampled_from(["", FIVE, "title\n" + FIVE]), st.booleans())
def test_any_file_gives_records_or_one_line_of_error(tmp_path: Path, text: str, start: str, partial: bool) -> None:
    try:
        records = read(csv_file(tmp_path, start + text), partial=partial)
    except RecordError as error:
        assert re.match(r".*x\.csv:[1-9][0-9]*: [^\n]+$", str(error))  # noqa: PT017 - either result is right
    else:
        assert records.frame["Step"].is_monotonic_increasing
        assert set(REQUIRED) <= set(records.frame)


@shared_folder
@given(st.binary(max_size=60))
def test_bytes_of_any_kind_are_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(RecordError, match=r"x\.csv:[1-9][0-9]*: "):
        read(csv_file(tmp_path, content))


# blocks of plain numbers, and line by line

cells = st.one_of(
    st.floats().map(repr),
    st.integers(-(10**20), 10**20).map(str),
    st.sampled_from(["", "nan", "NaN", "inf", "-Infinity", "1.", ".5", "+1", "1e400", "1e-400", " 2 ", '"3"']),
    st.sampled_from(["007", "-0", "-nan", "1e", "1-2", "-", "e", "na", "1_0", "nannan", "x", "1 2", "\r", "[1]"]),
)
plain_cells = st.one_of(st.floats().map(repr), st.integers(0, 10**6).map(str), st.just(""))


@settings(shared_folder, max_examples=400)
@given(st.data())
def test_parse_plain_agrees_with_parse_row(data: st.DataObject) -> None:
    columns = data.draw(st.permutations([*REQUIRED, "GradNorm", "Other"]))
    layout = cells_of.Layout.of(columns)
    drawn = plain_cells if data.draw(st.booleans()) else cells
    step, lines = 0, []
    for _ in range(data.draw(st.integers(1, 5))):
        step += data.draw(st.sampled_from([1, 1, 1, 7, 0]))
        row = {name: data.draw(drawn) for name in columns} | {"Step": str(step)}
        lines.append(",".join(row[name] for name in columns))
    block = ("\n".join(lines) + "\n").encode()
    fast = cells_of.parse_plain(block, layout, -1)
    if fast is None:
        return
    parsed = [cells_of.parse_row(line.encode(), layout) for line in lines]
    steps, values, unknown = zip(*parsed, strict=True)
    assert fast[0].tolist() == list(steps)
    assert (np.diff(fast[0]) > 0).all()
    np.testing.assert_array_equal(fast[1], np.array(values).T)
    np.testing.assert_array_equal(fast[2], np.array(unknown).T)


@settings(shared_folder, max_examples=50)
@given(st.lists(st.tuples(*[plain_cells] * 4), min_size=1, max_size=5))
def test_plain_rows_are_parsed_as_a_block(rows: list[tuple[str, ...]]) -> None:
    block = "".join(f"{step},{','.join(row)}\n" for step, row in enumerate(rows)).encode()
    fast = cells_of.parse_plain(block, cells_of.Layout.of(REQUIRED), -1)
    assert (fast is None) == (b"inf" in block)


def test_blocks_join_without_a_gap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    between = read(csv_file(tmp_path, content + b"\n" * 150 + b"99,1,1,1,1" + b"," * 16 + b"\n"))
    assert between.notes == ("blank lines between rows left out",)
    assert len(between.frame) == 60
    with pytest.raises(RecordError, match=r":211: Step 9 after 59; steps must increase"):
        read(csv_file(tmp_path, content + b"\n" * 150 + b"9,1,1,1,1" + b"," * 16 + b"\n"))


def test_a_long_file_is_read_in_linear_time(tmp_path: Path) -> None:
    row = ",".join(["7.123456789012345"] * 20)
    path = csv_file(tmp_path, HEADER.decode() + "".join(f"{step},{row}\n" for step in range(1, 20_001)))
    records = read(path)
    assert records.frame.shape == (20_000, 21)
    assert records.value("TokensPerSecond", -1) == 7.123456789012345
