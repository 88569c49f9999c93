"""CSVs that other programs saved anew: read where it is certain what they mean, else refused with what to do."""

import math
from pathlib import Path

import pytest
from hypothesis import given, strategies as st
from rows import FIVE, csv_file, shared_folder

from bitnetctl.errors import RecordError
from bitnetctl.records import NAMES, Records, read

SIX = "Step,Loss,UniquePredictions,LR,WD,HeldOutLoss\n"
PLAIN = SIX + "1,10.8,16,0.001,0.1,\n200,9.5,12,0.002,0.1,9.25\n1000,7.25,14,1e-06,0.0,7.5\n"


def plain(tmp_path: Path) -> Records:
    return read(csv_file(tmp_path, PLAIN, "plain.csv"))


def assert_same(records: Records, other: Records) -> None:
    assert records.frame.equals(other.frame[list(records.frame)])
    assert set(records.frame) == set(other.frame)
    for name in NAMES:
        assert (records.unknown[name] == other.unknown[name]).all(), name


def lines(*changes: tuple[str, str]) -> str:
    text = PLAIN
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return text


def cells(text: str) -> list[list[str]]:
    return [line.split(",") for line in text.splitlines()]


def joined(table: list[list[str]], separator: str = ",") -> str:
    return "".join(separator.join(row) + "\n" for row in table)


SEMICOLONS = PLAIN.replace(",", ";")
SPARSE = (
    "epoch," + SIX + "0,1,10.8,,0.001,0.1,\n0,1,,16,,,\n0,200,9.5,,0.002,0.1,\n1,200,,12,,,9.25\n"
    "1,1000,7.25,,1e-06,0.0,\n1,1000,,14,1e-06,,7.5\n"
)
RESUMED = lines(("1000,", SIX + "1000,"))
OVERLAP = lines(("1000,", SIX + "200,9.50,12,2e-3,.1,9.25\n1000,"))

SAME: dict[str, tuple[str | bytes, str | None]] = {
    "UTF-8 with a mark": (PLAIN.encode("utf-8-sig"), None),
    "UTF-16 with a mark": (PLAIN.replace("\n", "\r\n").encode("utf-16"), "read as UTF-16"),
    "UTF-16 without one": (PLAIN.encode("utf-16-le"), "read as UTF-16"),
    "UTF-16, big endian": (PLAIN.encode("utf-16-be"), "read as UTF-16"),
    "CRLF": (PLAIN.replace("\n", "\r\n"), None),
    "CRLF twice": (PLAIN.replace("\n", "\r\r\n"), None),
    "CR": (PLAIN.replace("\n", "\r"), "lines end in a bare CR"),
    "quoted": (joined([[f'"{cell}"' for cell in row] for row in cells(PLAIN)]), None),
    "trailing commas": (PLAIN.replace("\n", ",\n"), None),
    "several, and none in the header": (
        SIX + PLAIN.removeprefix(SIX).replace("\n", ",,,\n"),
        "empty cells at the ends of rows left out",
    ),
    "several in the header": (PLAIN.replace("\n", ",,,\n"), "empty cells at the ends of rows left out"),
    "in the header alone": (lines(("HeldOutLoss\n", "HeldOutLoss,,\n")), None),
    "index column": (joined([["", *cells(SIX)[0]], *([str(i), *row] for i, row in enumerate(cells(PLAIN)[1:]))]), None),
    "index column and trailing comma": (
        joined([["", *cells(SIX)[0], ""], *([str(i), *row, ""] for i, row in enumerate(cells(PLAIN)[1:]))]),
        "empty cells at the ends of rows left out",
    ),
    "semicolons": (SEMICOLONS, "cells are separated by semicolons"),
    "tabs": (PLAIN.replace(",", "\t"), "cells are separated by tabs"),
    "a line for the spreadsheet": ("sep=;\n" + SEMICOLONS, "a first line 'sep=;' left out"),
    "# before the header": ("# " + PLAIN, "the columns # Step are read as Step"),
    "lower case": (PLAIN.replace(SIX, SIX.lower()), "the columns step, loss, uniquepredictions and 3 more are read as"),
    "snake case": (
        PLAIN.replace(SIX, "step,loss,unique_predictions,lr,wd,held_out_loss\n"),
        "the columns step, loss, unique_predictions and 3 more",
    ),
    "blanks": (PLAIN.replace("Step,", " Step , "), None),
    "comments before the header": ("# a logger's\n# columns below\n" + PLAIN, None),
    "floating-point steps": (
        lines(("\n1,", "\n1.0,"), ("200,", "2e2,"), ("1000,", "1000.000,")),
        "steps are written as floating-point numbers",
    ),
    "thousands": (lines(("\n1000,", '\n"1,000",')), "commas between thousands left out"),
    "a blank line between rows": (lines(("200,", "\n200,")), "blank lines between rows left out"),
    "a row of commas": (lines(("200,", ",,,,,\n200,")), "blank lines between rows left out"),
    "blank lines at the ends": ("\n \n" + PLAIN + "\n,,,,,\n", "blank lines before the header left out"),
    "NA": (lines(("0.1,\n", "0.1,NA\n")), "'NA' read as unknown"),
    "null": (lines(("0.1,\n", "0.1,null\n")), "'null' read as unknown"),
    "a spreadsheet's N/A": (lines(("0.1,\n", "0.1,#N/A\n")), "'#N/A' read as unknown"),
    "a dash": (lines(("0.1,\n", "0.1,-\n")), "'-' read as unknown"),
    "sparse rows": (SPARSE, "several rows of one step, each with some of the values, joined (3 steps)"),
    "a second header": (RESUMED, "line 4: a second header left out"),
    "a second header with a mark": (RESUMED.replace("\n" + SIX, "\n\ufeff" + SIX), "line 4: a second header left out"),
    "a step repeated after it": (OVERLAP, "line 4: 1 step repeated with the same values"),
    "in lower case after it": (OVERLAP.replace("\n" + SIX, "\n" + SIX.lower()), "line 4: a second header left out"),
}


@pytest.mark.parametrize("kind", SAME)
def test_the_same_rows_are_read(tmp_path: Path, kind: str) -> None:
    content, note = SAME[kind]
    records = read(csv_file(tmp_path, content), partial=False)
    assert_same(records, plain(tmp_path))
    assert records.torn is None
    if note is None:
        assert records.notes == ()
    else:
        assert any(one.startswith(note) for one in records.notes), records.notes


COMMAS = SEMICOLONS.replace(".", ",")


@pytest.mark.parametrize(
    "content",
    [
        COMMAS,
        COMMAS.replace(";", "\t"),
        joined([[f'"{cell}"' for cell in line.split(";")] for line in COMMAS.splitlines()]),
        COMMAS.encode("utf-16"),
        PLAIN,
        SEMICOLONS,
    ],
    ids=["semicolons", "tabs", "quoted", "UTF-16", "commas and points", "semicolons and points"],
)
def test_decimal_commas_are_read_where_they_are_announced(tmp_path: Path, content: str | bytes) -> None:
    assert_same(read(csv_file(tmp_path, content), decimal=","), plain(tmp_path))


REFUSED: dict[str, tuple[str | bytes, str, int, str]] = {
    "decimal commas": (
        COMMAS,
        ".",
        2,
        "Loss is '10,8': cells are separated by semicolons and decimals have a comma; add",
    ),
    "both": (COMMAS.replace("9,5", "9.5"), ",", 3, "'9.5' has a point, other numbers a comma"),
    "points for thousands": (
        FIVE.replace(",", ";") + "1.000;2;3;4;5\n2.000;2;3;4;5\n",
        ",",
        2,
        "'1.000' has a point and no number a comma: leave out `--decimal ,`",
    ),
    "steps by thousands": (COMMAS.replace("\n1000", "\n1,000"), ",", 4, "Step is '1,000', which may be thousands"),
    "steps with points": (PLAIN.replace("1000,", "1.000,"), ".", 4, "Step is '1.000', which may be thousands"),
    "broken step": (PLAIN.replace("200,", "200.5,"), ".", 3, "Step is '200.5', not a whole number"),
    "an error of a spreadsheet": (
        PLAIN.replace("7.5", "#NUM!"),
        ".",
        4,
        "'#NUM!', not a number but an error of a spread",
    ),
    "descending": (
        SIX + "".join(reversed(PLAIN.removeprefix(SIX).splitlines(keepends=True))),
        ".",
        3,
        "Step 200 after 1000; steps must increase: sort the rows by Step",
    ),
    "conflicting rows of one step": (SPARSE.replace("1,200,,12,,,", "1,200,9.75,12,,,"), ".", 5, "Step 200 repeated"),
    "the same row again": (PLAIN + "1000,7.25,14,1e-06,0.0,7.5\n", ".", 5, "Step 1000 repeated"),
    "other values after a second header": (
        OVERLAP.replace("9.50", "9.75"),
        ".",
        4,
        "a second header, after which step 200 comes again with other values; keep the rows of one of the parts",
    ),
    "no common step": (
        OVERLAP.replace("200,9.50", "150,9.5"),
        ".",
        4,
        "a second header, after which step 150 comes again",
    ),
    "two runs": (
        PLAIN + PLAIN,
        ".",
        5,
        "a second header, after which steps start again at 1; give every run a file of",
    ),
    "a header with other columns": (
        PLAIN + SIX.replace("Held", "Upheld") + "2000,2,3,4,5,6\n",
        ".",
        5,
        "a second header, with other columns; give what follows it a file of its own",
    ),
    "an empty cell more in the last row": (PLAIN.replace("7.5", "7.5,"), ".", 4, "7 cells for 6 columns"),
    "cells beyond the columns": (PLAIN.replace("9.25", "9.25,"), ".", 3, "7 cells for 6 columns"),
    "two of one name": (
        PLAIN.replace("HeldOutLoss", "loss").replace("Loss,", "LOSS,"),
        ".",
        1,
        "'LOSS' and 'loss' both mean Loss; say which with `--map Loss=NAME`",
    ),
    "an open quote among semicolons": (SEMICOLONS.replace("9.5;", '"9.5;'), ".", 3, "a quoted cell that does not end"),
    "cut UTF-16": (PLAIN.encode("utf-16")[:-1], ".", 1, "NUL"),
    "a column missing among semicolons": (SEMICOLONS.replace("WD", "W"), ".", 1, "cells are separated by semicolons"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_not_certain_is_refused_in_one_line(tmp_path: Path, kind: str) -> None:
    content, decimal, line, complaint = REFUSED[kind]
    path = csv_file(tmp_path, content)
    with pytest.raises(RecordError) as caught:
        read(path, decimal=decimal)
    assert str(caught.value).startswith(f"{path}:{line}: ")
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nan_stays_a_divergence_and_a_word_is_unknown(tmp_path: Path) -> None:
    records = read(csv_file(tmp_path, SIX + "1,nan,3,4,5,None\n2,NaN,N/A,4,5,6\n"))
    assert records.diverged_at() == 1
    assert math.isnan(records.value("Loss", 0) or 0)
    assert records.value("HeldOutLoss", 0) is None
    assert records.value("UniquePredictions", 1) is None


def test_columns_by_the_names_of_another_program(tmp_path: Path) -> None:
    text = "iter;train/loss;Loss;val/loss\n1;2.5;99;\n1;;;2.75\n2;2.25;99;2.5\n"
    columns = {"Step": "iter", "Loss": "train/loss", "HeldOutLoss": "val/loss"}
    records = read(csv_file(tmp_path, text), columns=columns)
    assert list(records.frame) == ["Step", "Loss", "HeldOutLoss"]
    assert records.frame.to_numpy().tolist() == [[1, 2.5, 2.75], [2, 2.25, 2.5]]
    assert records.unknown["UniquePredictions"].all()
    assert records.extra == ("Loss (not mapped)",)
    with pytest.raises(RecordError, match=r"missing columns: val; there are: Step, Loss"):
        read(csv_file(tmp_path, text.replace(";", ",")), columns=columns | {"HeldOutLoss": "val"})


def test_a_torn_last_row_of_another_dialect_is_noted_by_its_line(tmp_path: Path) -> None:
    records = read(csv_file(tmp_path, "\n" + SEMICOLONS.replace("200;", "\n200;") + "2000;7."))
    assert len(records.frame) == 3
    assert records.torn == "line 7: torn last row dropped: 2 cells for 6 columns"
    whole = read(csv_file(tmp_path, SEMICOLONS.removesuffix("\n")))
    assert whole.torn == "line 4: the last row has no newline; its last cell may have been cut short"


pieces = st.sampled_from(
    [
        *'0123456789;;,,..-#"\n\n\r\t ',
        "nan",
        "NA",
        "1;2;3;4;5\n",
        FIVE,
        FIVE.replace(",", ";"),
        FIVE.lower(),
        "\ufeff",
        "sep=;\n",
    ]
)


@shared_folder
@given(
    st.lists(pieces, max_size=20).map("".join),
    st.sampled_from(["", FIVE.replace(",", ";"), "t\n" + FIVE.replace(",", "\t"), "# " + FIVE]),
    st.sampled_from(["utf-8", "utf-16", "utf-16-le"]),
    st.sampled_from([".", ","]),
)
def test_any_file_gives_rows_in_order_or_one_line(
    tmp_path: Path, text: str, start: str, encoding: str, decimal: str
) -> None:
    try:
        records = read(csv_file(tmp_path, (start + text).encode(encoding)), decimal=decimal)
    except RecordError as error:
        assert str(error).count("\n") == 0  # noqa: PT017 - either result is right
    else:
        assert records.frame["Step"].is_monotonic_increasing
        assert records.frame["Step"].is_unique
