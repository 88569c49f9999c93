"""Tables at every width: what identifies a row stays whole, numbers are never cut, what is left out is named."""

import io
import itertools
import re

import pytest
from rich.console import Console
from rich.text import Text

from bitnetctl.report.fitted import Column, FittedTable, Row, Span, rows_of
from bitnetctl.report.fold import fold, longest_number, longest_piece

WIDTHS = [20, 30, 40, 60, 80, 120, 200]
LONG = "reduced-lr+no-decay+label-smoothing:epsilon=0."
ARMS = ("baseline", f"{LONG}1", f"{LONG}2", f"{LONG}3")
COLUMNS = (
    Column("arm"),
    Column("size", number=True),
    Column("seed", number=True),
    Column("held-out", 9, number=True),
    Column("skill", 8, number=True),
    Column("unique", 7, number=True),
    Column("volat.", 4, number=True),
    Column("zeros", 3, number=True),
    Column("loss drop", 2, number=True),
)
VALUES = ("5.591", "-1.203", "12,345", "–", "27%", "0.019")
KEYS = [(arm, "64", str(seed)) for arm in ARMS for seed in range(2)]
TABLE = FittedTable(COLUMNS, [Row((*key, *VALUES)) for key in KEYS], title="The end")


def shown(table: FittedTable, width: int) -> list[str]:
    return [line.plain for line in table.lines(width)]


def read_keys(lines: list[str]) -> list[tuple[str, str, str]]:
    """Read arm, size and seed of each row back; lines without a blank go on with the arm above."""
    keys: list[tuple[str, str, str]] = []
    for line in itertools.takewhile(lambda line: "left out" not in line, lines):
        if row := re.match(r"(\S+) +(64) +([01]) ", line):
            keys.append((row[1], row[2], row[3]))
        elif keys and " " not in line:
            keys[-1] = (keys[-1][0] + line, *keys[-1][1:])
    return keys


@pytest.mark.parametrize("width", WIDTHS)
def test_no_line_is_longer_than_the_width(width: int) -> None:
    assert max(map(len, shown(TABLE, width))) <= width
    assert all(line == line.rstrip() for line in shown(TABLE, width))


@pytest.mark.parametrize("width", WIDTHS[1:])
def test_every_arm_size_and_seed_can_be_told_apart(width: int) -> None:
    assert read_keys(shown(TABLE, width)) == KEYS


def test_in_the_narrowest_terminal_a_row_is_a_few_lines() -> None:
    lines = shown(TABLE, 20)
    rows = "\n".join(lines[1:]).split("\n\n")
    assert rows[0].splitlines() == [
        "arm: baseline",
        "size: 64  seed: 0",
        "held-out: 5.591",
        "skill: -1.203",
        "unique: 12,345",
        "volat.: –",
        "zeros: 27%",
        "loss drop: 0.019",
    ]
    whole = ["".join(line.strip() for line in row.splitlines()) for row in rows]
    assert [re.match(r"arm: ?(.+)size: (64)  seed: ([01])", row).groups() for row in whole] == KEYS  # type: ignore[union-attr]


@pytest.mark.parametrize("width", WIDTHS)
def test_numbers_are_whole(width: int) -> None:
    body = "\n".join(itertools.takewhile(lambda line: "left out" not in line, shown(TABLE, width)))
    numbers = set(re.findall(r"(?<!\S)[+-]?\d\S*", body))
    assert numbers <= {"64", "0", "1", "5.591", "-1.203", "12,345", "27%", "0.019"}
    assert "5.591" in numbers
    assert {f"0.{index}" for index in (1, 2, 3)} == set(re.findall(r"epsilon=(\S+)", body))


def test_the_least_important_columns_go_first_and_are_counted() -> None:
    assert TABLE.left_out(200) == TABLE.left_out(80) == []
    # `volat.` is more important, but without a value in any row
    assert TABLE.left_out(60) == ["volat.", "loss drop"]
    assert TABLE.left_out(40) == ["unique", "volat.", "zeros", "loss drop"]
    assert " ".join(shown(TABLE, 40)[-3:]) == (
        "4 columns left out at 40 columns: unique, volat., zeros, loss drop (wider terminal or --json)"
    )
    assert "left out" not in "\n".join(shown(FittedTable(COLUMNS, TABLE.rows, elsewhere=""), 40))


def test_a_wide_table_has_one_line_for_a_row() -> None:
    lines = shown(TABLE, 120)
    assert lines[1] == "arm" + " " * 46 + "size  seed  held-out   skill  unique  volat.  zeros  loss drop"
    assert len(lines) == 2 + len(KEYS)


def test_headers_wrap_at_words_and_stand_on_their_columns() -> None:
    table = FittedTable((Column("arm"), Column("95 % Student interval", 1, number=True)), rows_of([("a", "1.000")]))
    assert shown(table, 60) == ["arm  95 % Student interval", "a                    1.000"]
    assert shown(table, 20) == ["     95 % Student", "arm      interval", "a           1.000"]


def test_one_blank_between_columns_where_that_saves_one() -> None:
    columns = (Column("arm"), Column("a", 2, number=True), Column("b", 1, number=True))
    table = FittedTable(columns, rows_of([("x" * 10, "1.234567890", "1.234567")]))
    assert shown(table, 33)[1] == f"{'x' * 10}  1.234567890  1.234567"
    assert shown(table, 31)[1] == f"{'x' * 10} 1.234567890 1.234567"


def test_a_note_stands_below_its_row_where_there_is_little_room() -> None:
    columns = (Column("seed", number=True), Column("outcome", 1), Column("because", note=True))
    table = FittedTable(columns, rows_of([("0", "refuted", "skill -1.203 below the unigram predictor")]))
    assert shown(table, 80) == [
        "seed  outcome  because",
        "   0  refuted  skill -1.203 below the unigram predictor",
    ]
    assert shown(table, 40)[1:] == [
        "   0  refuted  skill -1.203 below the",
        "               unigram predictor",
    ]
    assert shown(table, 30) == ["seed  outcome", "   0  refuted", "  skill -1.203 below the", "  unigram predictor"]


def test_spans_and_styles() -> None:
    rows: list[Row | Span] = [Span("an arm with a long name", "bold", indent=2), Row(("x", "1.5"), style="red")]
    table = FittedTable((Column("metric"), Column("p", 1, number=True)), rows, show_header=False)
    assert shown(table, 20) == ["  an arm with a long", "  name", "x  1.5"]
    assert [str(line.spans[0].style) for line in table.lines(40)] == ["bold", "red"]


def test_it_takes_the_width_of_the_console_and_no_markup() -> None:
    file = io.StringIO()
    console = Console(file=file, width=40, color_system=None, emoji=False)
    console.print(FittedTable((Column("name"), Column("n", 1, number=True)), rows_of([("[red]a:smile:\x1b[1m", "1")])))
    assert file.getvalue().splitlines() == ["name               n", "[red]a:smile:�[1m  1"]


@pytest.mark.parametrize(
    ("text", "width", "lines"),
    [
        ("reduced-lr+no-decay", 12, ["reduced-lr", "+no-decay"]),
        ("reduced-lr:peak=5e-4+no-decay", 12, ["reduced-lr:", "peak=5e-4", "+no-decay"]),
        ("lr:peak=1e+3+no-decay", 16, ["lr:peak=1e+3", "+no-decay"]),
        ("a mean of -1,234.5 nats", 10, ["a mean of", "-1,234.5", "nats"]),
        ("in 45 % of runs", 6, ["in", "45 %", "of", "runs"]),
        ("-1234567.25", 4, ["-1234567.25"]),
        ("abcdefghij", 4, ["abcd", "efgh", "ij"]),
        ("x reduced-lr+label-smoothing:epsilon=0.1", 16, ["x", "reduced-lr", "+label-", "smoothing:", "epsilon=0.1"]),
        ("模型模型", 5, ["模型", "模型"]),
        ("", 5, [""]),
    ],
)
def test_folding(text: str, width: int, lines: list[str]) -> None:
    assert [line.plain for line in fold(text, width)] == lines


def test_folded_lines_can_be_indented_and_keep_their_style() -> None:
    lines = fold(Text("one two\nthree", style="red"), 7, indent=2)
    assert [line.plain for line in lines] == ["one two", "  three"]
    assert longest_piece("one reduced-lr+no-decay") == len("reduced-lr")
    assert longest_piece("held-out", hyphens=True) == len("held-")
    assert longest_number("a=-1.25e-3, 7 %") == len("-1.25e-3")
