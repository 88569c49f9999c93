"""Held-out text is never trained on: copies of files, equal documents, long equal passages."""

import gzip
import json
import os
import random
from pathlib import Path

import pytest
from hypothesis import given, strategies as st
from texts import END, data_config, decode, failure, prose

from bitnetctl import data
from bitnetctl.data.duplicates import Repeats, Span, find_repeats, units

pytestmark = pytest.mark.usefixtures("token_cache")

TEXT = prose(1200)
LINES = TEXT.splitlines(keepends=True)


def prepare(source: str, fraction: float = 0.3, **fields: object) -> tuple[data.TokenData, float, list[str]]:
    """The tokens, the fraction of held-out lines that are trained on, and what is said."""
    said: list[str] = []
    tokens = data.prepare(data_config(source, held_out_fraction=fraction, **fields), log=said.append)
    train, held_out = (
        decode(tokens, side_N).replace(END, "\n").replace("\r", "") for side_N in (tokens.train_N, tokens.held_out_N)
    )
    trained = set(train.split("\n"))
    lines = [line for line in held_out.split("\n") if len(line) > 20]
    return tokens, sum(line in trained for line in lines) / len(lines), said


def write_rows(path: Path, texts: list[str]) -> None:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def test_a_text_without_duplicates_is_used_wholly_and_nothing_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    tokens, leak, said = prepare(f"file:{tmp_path}/a.txt")
    assert (leak, said) == (0, [])
    assert tokens.counts["left_out_passages"] == tokens.counts["left_out_characters"] == 0
    assert tokens.counts["files"] == 1
    sides = [decode(tokens, side_N).replace(END, "") for side_N in (tokens.train_N, tokens.held_out_N)]
    assert sum(map(len, sides)) == len(TEXT)


@pytest.mark.parametrize("kind", ["copy", "gzip", "windows", "marked", "hard link", "link", "all"])
def test_a_file_is_read_once_whatever_copies_there_are(tmp_path: Path, kind: str) -> None:
    (tmp_path / "one.txt").write_text(TEXT)
    alone, _, _ = prepare(f"file:{tmp_path}/one.txt")
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "a.txt").write_text(TEXT)
    if kind in ("copy", "all"):
        (folder / "b.txt").write_text(TEXT)
    if kind in ("gzip", "all"):
        (folder / "c.txt.gz").write_bytes(gzip.compress(TEXT.encode(), mtime=0))
    if kind in ("windows", "all"):
        (folder / "d.txt").write_bytes(TEXT.replace("\n", "\r\n").encode())
    if kind in ("marked", "all"):
        (folder / "g.txt").write_bytes(TEXT.encode("utf-8-sig"))
    if kind in ("hard link", "all"):
        os.link(folder / "a.txt", folder / "e.txt")
    if kind in ("link", "all"):
        (folder / "f.txt").symlink_to("a.txt")
    tokens, leak, said = prepare(f"file:{folder}/*")
    assert leak == 0
    assert tokens.fingerprint == alone.fingerprint
    links, copies = tokens.counts["links_not_read"], tokens.counts["copies_not_read"]
    assert (links, copies) == {"all": (2, 4), "link": (1, 0), "hard link": (1, 0)}.get(kind, (0, 1))
    assert len(said) == 1
    assert "each text is read once; not read again" in said[0]


def test_equal_rows_are_left_out_of_the_held_out_side_only(tmp_path: Path) -> None:
    rows = [line.strip() for line in LINES]
    write_rows(tmp_path / "rows.jsonl", rows)
    plain, leak, said = prepare(f"file:{tmp_path}/rows.jsonl")
    assert (leak, said) == (0, [])
    assert plain.counts["left_out_passages"] == 0

    repeated = rows + rows[:500]
    random.Random(0).shuffle(repeated)
    write_rows(tmp_path / "rows.jsonl", repeated)
    tokens, leak, (line,) = prepare(f"file:{tmp_path}/rows.jsonl")
    assert leak == 0
    left_out = tokens.counts["left_out_passages"]
    assert left_out > 100
    assert f"held-out text: left out {left_out} duplicates of training text" in line
    # every row is still there, training text as often as before
    train, held_out = (decode(tokens, side_N).split(END)[:-1] for side_N in (tokens.train_N, tokens.held_out_N))
    assert set(train) | set(held_out) == set(rows)
    assert len(train) + len(held_out) + left_out == len(repeated)


def test_a_second_start_says_the_same_from_the_cache(tmp_path: Path) -> None:
    rows = [line.strip() for line in LINES]
    write_rows(tmp_path / "rows.jsonl", rows + rows[:300])
    first, _, said = prepare(f"file:{tmp_path}/rows.jsonl")
    again, _, said_again = prepare(f"file:{tmp_path}/rows.jsonl")
    assert said == said_again
    assert len(said) == 1
    assert again.counts == first.counts


def test_long_documents_and_those_between_end_of_text_tokens(tmp_path: Path) -> None:
    documents = ["".join(LINES[start : start + 20]) for start in range(0, 1200, 20)]
    mixed = documents + documents[:20]
    random.Random(1).shuffle(mixed)
    write_rows(tmp_path / "long.jsonl", mixed)
    tokens, leak, _ = prepare(f"file:{tmp_path}/long.jsonl")
    assert leak == 0
    assert tokens.counts["left_out_passages"] > 3
    blocks = [(f"{END}\n".join([documents[0], documents[1], "its own\n"]), True), (documents[1], False)]
    (span,) = find_repeats(blocks, scale=4000).spans[0]
    assert blocks[0][0][span.start : span.end].strip() == documents[1].strip() + "\n" + END


@pytest.mark.parametrize("between", ["", "One line more stands here.\n"])
def test_a_text_that_repeats_itself_at_length(tmp_path: Path, between: str) -> None:
    (tmp_path / "twice.txt").write_text(TEXT + between + TEXT)
    tokens, leak, (line,) = prepare(f"file:{tmp_path}/twice.txt")
    # some lines at the edges of blocks may be left
    assert leak < 0.05
    assert tokens.counts["left_out_characters"] > 0.3 * tokens.counts["held_out_characters"]
    assert "duplicates of training text" in line


@pytest.mark.parametrize("line_end", [" ", "\r", ""])
def test_a_text_without_line_ends_that_repeats_itself(line_end: str) -> None:
    text = TEXT.replace("\n", line_end)
    size = len(text) // 8
    again = f"Something else. {text}"
    blocks = [(text[start : start + size], False) for start in range(0, len(text), size)]
    blocks += [(again[start : start + size], True) for start in range(0, len(again), size)]
    repeats = find_repeats(blocks, scale=size)
    assert repeats.characters > 0.9 * repeats.held_out_characters
    alone = [(block, number % 3 == 0) for number, (block, _) in enumerate(blocks[:8])]
    assert find_repeats(alone, scale=size).passages == 0


def test_documents_that_differ_in_white_space_are_equal(tmp_path: Path) -> None:
    documents = ["".join(LINES[start : start + 10]) for start in range(0, len(LINES), 10)]
    others = [f"  {text}".replace("\n", " \n\n") for text in documents[::2]]
    others += [text.replace("\n", "\r") for text in documents[1::2]]
    blocks = [(text, False) for text in documents] + [(text, True) for text in others]
    repeats = find_repeats(blocks, scale=1 << 14)
    assert repeats.characters == repeats.held_out_characters > 0


def test_a_held_out_source_that_overlaps(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("".join(LINES[:900]))
    (tmp_path / "valid.txt").write_text("".join(LINES[700:]))
    tokens, leak, (line,) = prepare(f"file:{tmp_path}/train.txt", held_out_source=f"file:{tmp_path}/valid.txt")
    assert leak == 0
    assert "left out 1 duplicate of training text" in line
    # all that is not trained on is there, but for some lines at the edge
    assert len(decode(tokens, tokens.held_out_N)) > 0.85 * len("".join(LINES[900:]))


def test_files_of_the_training_text_are_left_out_of_a_held_out_source(tmp_path: Path) -> None:
    for number in range(4):
        (tmp_path / f"{number}.txt").write_text("".join(LINES[number * 300 : number * 300 + 300]))
    source = f"file:{tmp_path}/[012].txt"
    tokens, leak, said = prepare(source, held_out_source=f"file:{tmp_path}/[123].txt")
    assert leak == 0
    assert tokens.counts["held_out_files_trained_on"] == 2
    assert said == ["held-out text: left out 2 files of data.source, or copies of them"]
    other, _, _ = prepare(source, held_out_source=f"file:{tmp_path}/3.txt")
    assert other.fingerprint == tokens.fingerprint


def test_no_held_out_text_is_left(tmp_path: Path, corpus: Path) -> None:
    (tmp_path / "again.txt").write_text("A line before.\n" + corpus.read_text())
    message = failure(f"file:{tmp_path}/again.txt", held_out_source=f"file:{corpus}")
    assert "all of the held-out text is also training text; held-out text must not be trained on" in message
    assert "give data.held_out_source other text, or a source without duplicates" in message


def test_the_standard_library_held_out_of_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "a.py").write_text(TEXT)
    monkeypatch.setattr("bitnetctl.data.sources.sysconfig.get_path", lambda name: str(tmp_path / "lib"))
    assert "every file of it is also in data.source" in failure("stdlib", held_out_source="stdlib")
    assert "a.py is also in data.source stdlib" in failure("stdlib", held_out_source=f"file:{tmp_path}/lib/*.py")


@given(text=st.text("ab\n\r ", max_size=300), shortest=st.integers(1, 40))
def test_units_cover_a_text(text: str, shortest: int) -> None:
    ends = [end for end, _ in units(text + "x", shortest)]
    assert ends == sorted(set(ends))
    assert ends[-1] == len(text) + 1


def test_units_of_equal_text_are_equal_wherever_it_stands() -> None:
    def texts(text: str) -> set[str]:
        ends = [end for end, _ in units(text, 100)]
        return {text[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)}

    plain = texts(TEXT)
    assert len(plain - texts("A line before.\n" + TEXT)) <= 0.02 * len(plain)
    windows = {unit.replace("\r\n", "\n") for unit in texts(TEXT.replace("\n", "\r\n"))}
    assert windows == plain


def test_spans() -> None:
    half = len("".join(LINES[:600]))
    # equal but for white space around it
    assert find_repeats([("ab cd\n", False), ("  ab cd", True)], scale=64).spans == {0: [Span(0, 7)]}
    assert find_repeats([("ab cd", True), ("ab ce", False)], scale=64).spans == {}
    # a document without text is no duplicate
    assert find_repeats([(" \n", False), ("\n", True)], scale=64) == Repeats(held_out_characters=1)
    # half of a block is trained on
    (span,) = find_repeats([(TEXT, True), (TEXT[:half], False)], scale=8000).spans[0]
    assert span.start == 0
    assert abs(span.end - half) < 1500
    # a passage that is short beside a block is none
    assert find_repeats([(TEXT, True), (TEXT[5000:6000], False)], scale=40_000).spans == {}
    parts = Repeats(spans={3: [Span(2, 4), Span(6, 9)]}).parts(3, 9)
    assert [(tuple(span), left_out) for span, left_out in parts] == [
        ((0, 2), False),
        ((2, 4), True),
        ((4, 6), False),
        ((6, 9), True),
    ]
