"""The split into training and held-out text."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies as st
from texts import END, data_config, decode, failure, prose

from bitnetctl import data
from bitnetctl.data.sources import Piece, open_source
from bitnetctl.data.split import block_size, hash_text, split_blocks

pytestmark = pytest.mark.usefixtures("token_cache")


@given(
    documents=st.lists(st.text("ab \n", max_size=200), min_size=1, max_size=5),
    fraction=st.floats(0.05, 0.95),
    size=st.integers(1, 40),
    cuts=st.integers(1, 30),
)
def test_blocks_keep_the_text_and_do_not_depend_on_pieces(
    documents: list[str], fraction: float, size: int, cuts: int
) -> None:
    whole = [Piece(text, True) for text in documents]
    cut = [
        Piece(text[start : start + cuts], start + cuts >= len(text))
        for text in documents
        for start in range(0, max(1, len(text)), cuts)
    ]
    blocks = list(split_blocks(whole, fraction=fraction, size=size))
    assert list(split_blocks(cut, fraction=fraction, size=size)) == blocks
    assert "".join(block.text for block in blocks) == "".join(documents)
    assert sum(block.ends for block in blocks) == sum(map(bool, documents))
    assert all(0 < len(block.text) <= 2 * size for block in blocks)
    held = sum(len(block.text) for block in blocks if block.held_out)
    assert abs(held - fraction * sum(map(len, documents))) <= size


def test_blocks_end_at_lines_and_spread_evenly() -> None:
    text = prose(2000)
    size = block_size(len(text), 0.1)
    blocks = list(split_blocks([Piece(text, True)], fraction=0.1, size=size))
    assert all(block.text.endswith("\n") for block in blocks)
    held = [index for index, block in enumerate(blocks) if block.held_out]
    assert len(held) >= 3
    assert max(np.diff(held)) - min(np.diff(held)) <= 2
    fraction = sum(len(blocks[index].text) for index in held) / len(text)
    assert fraction == pytest.approx(0.1, abs=0.01)


def test_block_sizes() -> None:
    assert block_size(10**9, 0.1) == 1 << 16
    assert block_size(10_000, 0.1) == 250
    assert block_size(10_000, 0.75) == 625
    assert block_size(10, 0.1) == 16


def test_a_line_longer_than_a_block_is_cut_before_a_space() -> None:
    pieces = [Piece("aaaa bbbb cccc dddd", True), Piece("x" * 12, True)]
    blocks = [block.text for block in split_blocks(pieces, fraction=0.5, size=4)]
    assert blocks == ["aaaa", " bbbb", " cccc", " dddd", "xxxx", "xxxxxxxx"]


def test_held_out_text_is_disjoint_from_training_text(tmp_path: Path) -> None:
    lines = [f"line {number} of the text\n" for number in range(3000)]
    path = tmp_path / "t.txt"
    path.write_text("".join(lines))
    tokens = data.prepare(data_config(path, tokenizer="bpe:280"))
    train, held_out = (decode(tokens, ids_N) for ids_N in (tokens.train_N, tokens.held_out_N))
    sides = [set(side.replace(END, "").splitlines(keepends=True)) for side in (train, held_out)]
    assert not sides[0] & sides[1]
    assert sides[0] | sides[1] == set(lines)
    assert len(held_out) / (len(train) + len(held_out)) == pytest.approx(0.1, abs=0.02)
    # wherever the split interrupts the document, and at its end
    assert held_out.count(END) >= 3
    assert train.endswith(END)
    assert tokens.end_of_text == 0


def test_every_document_ends_with_the_end_of_text(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    documents = [f"document {number}" for number in range(400)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in [*documents, ""]))
    tokens = data.prepare(data_config(path, tokenizer="bpe:260"))
    sides = [decode(tokens, ids_N).split(END) for ids_N in (tokens.train_N, tokens.held_out_N)]
    assert [side.pop() for side in sides] == ["", ""]
    assert sorted(sides[0] + sides[1]) == sorted(documents)


def test_the_tokenizer_never_sees_held_out_text(tmp_path: Path) -> None:
    text = prose(800)
    size = block_size(len(text), 0.1)
    blocks = list(split_blocks([Piece(text, True)], fraction=0.1, size=size))
    secret = "ZYXWV"
    # line by line as long as the text it replaces, so that the split stays
    marked = [
        "".join((secret * len(line))[: len(line)] + "\n" for line in block.text.splitlines())
        if block.held_out
        else block.text
        for block in blocks
    ]
    path = tmp_path / "t.txt"
    path.write_text("".join(marked))
    tokens = data.prepare(data_config(path))
    assert secret in decode(tokens, tokens.held_out_N)
    assert secret not in decode(tokens, tokens.train_N)
    vocabulary = data.load_tokenizer(tokens.tokenizer_path).get_vocab()
    assert not [token for token in vocabulary if len(token) > 1 and set(token) & set(secret)]

    # with a held-out source of its own, the whole text is trained on
    other = tmp_path / "other.txt"
    other.write_text(prose(100, seed=7))
    tokens = data.prepare(data_config(path, held_out_source=f"file:{other}"))
    vocabulary = data.load_tokenizer(tokens.tokenizer_path).get_vocab()
    assert [token for token in vocabulary if len(token) > 1 and set(token) & set(secret)]


def test_a_held_out_source_of_its_own(tmp_path: Path, corpus: Path) -> None:
    valid = tmp_path / "valid.txt"
    valid.write_text(prose(100, seed=7))
    fields = {"held_out_source": f"file:{valid}"}
    tokens = data.prepare(data_config(corpus, **fields))
    assert decode(tokens, tokens.train_N) == corpus.read_text() + END
    assert decode(tokens, tokens.held_out_N) == valid.read_text() + END
    assert data.prepare(data_config(corpus, **fields, held_out_fraction=0.3)).fingerprint == tokens.fingerprint
    assert data.prepare(data_config(corpus)).fingerprint != tokens.fingerprint


def test_a_held_out_source_must_be_other_text(tmp_path: Path, corpus: Path) -> None:
    message = failure(f"file:{tmp_path}/*.txt", held_out_source=f"file:{corpus}")
    assert f"{corpus} is also in data.source" in message
    assert "held-out text must not be trained on, give other text" in message
    link, copy = tmp_path / "link.md", tmp_path / "copy.md"
    link.symlink_to(corpus)
    assert f"{link} is also in data.source" in failure(corpus, held_out_source=f"file:{link}")
    copy.write_bytes(corpus.read_bytes())
    assert f"{copy} is a copy of {corpus}, which is in" in failure(corpus, held_out_source=f"file:{copy}")
    short = tmp_path / "short.md"
    short.write_text("few\n")
    message = failure(corpus, held_out_source=f"file:{short}")
    assert f"data source file:{short}: 5 held-out tokens are too few for one probe row of 32" in message


def test_document_borders_are_part_of_the_hash(tmp_path: Path) -> None:
    digests = set()
    for number, texts in enumerate([["ab", "c"], ["a", "bc"], ["abc"], ["ab", "", "c"]]):
        path = tmp_path / f"{number}.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        digests.add(hash_text(open_source(f"file:{path}"), data.no_progress).digest)
    assert len(digests) == 3
