"""Text sources, tokenizers, the token cache, batches and the probe's references."""

import errno
import gzip
import io
import json
import math
import os
import random
import shutil
import subprocess
import sys
import threading
import time
import types
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from bitnetctl import data
from bitnetctl.config import DataConfig
from bitnetctl.data import bpe, sources, store
from bitnetctl.data import tokenizer as tokenizer_module
from bitnetctl.data.probe import count_references
from bitnetctl.errors import ConfigError, DataError, ExitCode, StoppedBySignal, StorageError

END = "<|endoftext|>"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "bitnetctl" / "tokens"


def prose(lines: int, seed: int = 0) -> str:
    generator = random.Random(seed)
    words = ["".join(generator.choices("abcdefghij", k=generator.randint(2, 6))) for _ in range(150)]
    return "".join(" ".join(generator.choices(words, k=8)) + "\n" for _ in range(lines))


def config(source: Path | str, **fields: Any) -> DataConfig:
    spec = f"file:{source}" if isinstance(source, Path) else source
    return DataConfig.model_validate({"source": spec, "tokenizer": "bpe:300", **fields})


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text(prose(800))
    return path


def decode(tokens: data.TokenData, ids_N: Any) -> str:
    tokenizer = data.load_tokenizer(tokens.tokenizer_path)
    return str(tokenizer.decode(ids_N.tolist(), skip_special_tokens=False))


def read(spec: str) -> list[str]:
    documents = [""]
    for piece in sources.open_source(spec).pieces():
        documents[-1] += piece.text
        if piece.ends:
            documents.append("")
    return documents[:-1]


def failure(source: Path | str, **fields: Any) -> str:
    with pytest.raises(DataError) as caught:
        data.prepare(config(source, **fields))
    assert caught.value.exit_code == ExitCode.USAGE
    assert isinstance(caught.value, ConfigError)
    message = str(caught.value)
    assert "\n" not in message
    root = data.cache_folder() / "tokens"
    assert not root.exists() or not list(root.iterdir())
    return message


# sources


def test_stdlib_is_python_without_its_tests() -> None:
    source = sources.open_source("stdlib")
    names = {path.name for path in source.files}
    folders = {part for path in source.files for part in path.parts}
    assert {"argparse.py", "dataclasses.py"} <= names
    assert not {"site-packages", "idle_test", "__pycache__", "lib2to3"} & folders
    assert not any(name.startswith("_sysconfigdata") for name in names)
    assert all(piece.ends for _, piece in zip(range(5), source.pieces(), strict=False))


def test_stdlib_skips_what_cannot_be_read_and_sorts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, content in {
        "b.py": b"b = 1\n",
        "a/z.py": b"z = 1\n",
        "a.py": b"a = 1\n",
        "bad.py": b"\xff",
        "test/t.py": b"t\n",
        "notes.txt": b"n\n",
        "_sysconfigdata_x.py": b"s\n",
    }.items():
        (tmp_path / "lib" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "lib" / name).write_bytes(content)
    monkeypatch.setattr("bitnetctl.data.sources.sysconfig.get_path", lambda name: str(tmp_path / "lib"))
    assert read("stdlib") == ["a = 1\n", "z = 1\n", "b = 1\n"]
    monkeypatch.setattr("bitnetctl.data.sources.sysconfig.get_path", lambda name: str(tmp_path / "none"))
    assert "no Python source under" in failure("stdlib")


def test_files_are_read_in_order_and_in_every_format(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    (tmp_path / "deep").mkdir()
    (tmp_path / "a.md").write_bytes(b"\xef\xbb\xbfplain \xc3\xa9\n")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"zipped\n"))
    (tmp_path / "c.jsonl").write_text('{"text": "one"}\n\n{"text": "two", "id": 2}\n')
    (tmp_path / "d.jsonl.gz").write_bytes(gzip.compress(b'{"text": "three"}\n'))
    (tmp_path / "deep" / "f.txt").write_text("last")
    parquet.write_table(pyarrow.table({"text": ["four", "five"]}), tmp_path / "e.parquet")
    assert read(f"file:{tmp_path}/**/*") == [
        *("plain é\n", "zipped\n", "one", "two", "three"),
        *("last", "four", "five"),
    ]


def test_a_file_name_with_glob_characters_and_a_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a[1].txt").write_text("x")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read("file:~/a[1].txt") == ["x"]


def test_long_files_are_read_in_pieces_whatever_the_border(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.txt"
    path.write_text("é€𝄞" * 5)
    monkeypatch.setattr(sources, "_READ_BYTES", 2)
    assert read(f"file:{path}") == ["é€𝄞" * 5]
    path.write_bytes("é€𝄞".encode() + b"a\xff")
    with pytest.raises(DataError, match="byte offset 10;"):
        read(f"file:{path}")
    path.write_bytes("é€".encode()[:-1])
    with pytest.raises(DataError, match="byte offset 2;"):
        read(f"file:{path}")


class FakeDataset:
    def __init__(self, **columns: list[Any]) -> None:
        self.columns = columns
        self.column_names = list(columns)

    def select_columns(self, names: list[str]) -> "FakeDataset":
        return FakeDataset(**{name: self.columns[name] for name in names})

    def iter(self, batch_size: int) -> Iterator[dict[str, list[Any]]]:
        yield self.columns


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, str | None], Any]:
    known: dict[tuple[str, str | None], Any] = {}

    def load_dataset(name: str, config: str | None, split: str) -> Any:
        assert split == "train"
        found = known.get((name, config), FileNotFoundError(f"Dataset '{name}' does not exist\non the Hub"))
        if isinstance(found, Exception):
            raise found
        return found

    module = types.ModuleType("datasets")
    vars(module).update(load_dataset=load_dataset, disable_progress_bars=lambda: None)
    monkeypatch.setitem(sys.modules, "datasets", module)
    return known


def test_hub_names_are_read_as_organization_first_then_as_config(
    hub: dict[tuple[str, str | None], Any],
) -> None:
    hub["plain", None] = FakeDataset(text=["1"])
    hub["org/name", None] = FakeDataset(text=["2", ""], id=[1, 2])
    hub["wikitext", "wikitext-2-raw-v1"] = FakeDataset(text=["3"])
    hub["org/name", "config"] = FakeDataset(text=["4"])
    assert read("hf:plain") == ["1"]
    assert read("hf:org/name") == ["2", ""]
    assert read("hf:wikitext/wikitext-2-raw-v1") == ["3"]
    assert read("hf:org/name/config") == ["4"]


def test_hub_errors(hub: dict[tuple[str, str | None], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    hub["other", None] = FakeDataset(content=["x"])
    hub["null", None] = FakeDataset(text=["x", None])
    hub["org/down", None] = ConnectionError("Couldn't reach the Hub")
    assert "Dataset 'a/b' does not exist on the Hub; check the name and the network" in failure("hf:a/b")
    assert "Couldn't reach the Hub" in failure("hf:org/down")
    assert "no column 'text'; columns: content" in failure("hf:other")
    assert "row 2 has no text" in failure("hf:null")
    assert "expected hf:NAME, hf:ORG/NAME" in failure("hf:a/b/c/d")
    assert "expected hf:NAME, hf:ORG/NAME" in failure("hf:a//b")
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "pip install 'bitnetctl[hf]'" in failure("hf:org/name")


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("t.txt", b"", "the text is empty"),
        ("t.txt", b"abc\n" * 10 + b"\xe9t\xe9", "t.txt: not UTF-8 at byte offset 40; convert"),
        ("t.txt", b"a b c\n", "training tokens are too few for one batch of 4 x 32"),
        ("t.txt.gz", b"no gzip", "t.txt.gz: damaged gzip file: Not a gzipped file"),
        ("t.txt.gz", gzip.compress(b"text " * 99)[:-9], "t.txt.gz: damaged gzip file"),
        ("t.jsonl", b'{"text": "a"}\n{"t": 1}\n', "t.jsonl:2: no text; expected an object"),
        ("t.jsonl", b'{"text": "a"}\n\n{"text": 3}\n', "t.jsonl:3: no text"),
        ("t.jsonl", b"[1]\n", "t.jsonl:1: no text"),
        ("t.jsonl", b'{"text": "a"}\nnothing\n', "t.jsonl:2: not a line of JSON: Expecting value"),
        ("t.jsonl", b"[" * 100_000, "t.jsonl:1: not a line of JSON"),
        ("t.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n', "t.jsonl: not UTF-8 at byte offset 24"),
        ("t.jsonl", b'\xef\xbb\xbf{"text": "\xff"}\n', "t.jsonl: not UTF-8 at byte offset 13"),
        ("t.jsonl", b'{"text": "\\ud800"}\n', "t.jsonl:1: the text holds half of a surrogate pair"),
        ("t.parquet", b"no parquet", "t.parquet: not a readable parquet file"),
    ],
)
def test_unusable_text_is_one_clear_line(tmp_path: Path, name: str, content: bytes, expected: str) -> None:
    (tmp_path / name).write_bytes(content)
    # 257 needs no merges, so a text may be as short as it likes
    assert expected in failure(tmp_path / name, tokenizer="bpe:257")


def test_parquet_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "t.parquet"
    parquet.write_table(pyarrow.table({"body": ["x"], "id": [1]}), path)
    assert "no column 'text'; columns: body, id" in failure(path)
    parquet.write_table(pyarrow.table({"text": ["x", None]}), path)
    assert "t.parquet: row 2 has no text" in failure(path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "pip install 'bitnetctl[parquet]'" in failure(path)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("stdlb", "unknown data source 'stdlb'; did you mean 'stdlib'? expected stdlib, file:GLOB or"),
        ("fil:x", "did you mean 'file'?"),
        ("s3://bucket", "unknown data source 's3://bucket': expected stdlib"),
        ("file:", "names nothing after the colon"),
        ("file:none/here.txt", "data source file:none/here.txt: there is no such file"),
        ("file:none/*.txt", "data source file:none/*.txt: the glob matches no file"),
    ],
)
def test_unknown_sources(spec: str, expected: str) -> None:
    assert expected in failure(spec)


def test_a_bare_path_or_folder_is_told_how_to_be_named(tmp_path: Path, corpus: Path) -> None:
    assert f"did you mean 'file:{corpus}'?" in failure(str(corpus))
    assert f"is a folder; use 'file:{tmp_path}/**/*.txt'" in failure(tmp_path)


def test_an_unreadable_file_is_one_clear_line(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(sources, "_open", refuse)
    assert "corpus.txt: cannot read: Permission denied" in failure(corpus)


# the split


@given(
    documents=st.lists(st.text("ab \n", max_size=200), min_size=1, max_size=5),
    fraction=st.floats(0.05, 0.95),
    size=st.integers(1, 40),
    cuts=st.integers(1, 30),
)
def test_blocks_keep_the_text_and_do_not_depend_on_pieces(
    documents: list[str], fraction: float, size: int, cuts: int
) -> None:
    whole = [sources.Piece(text, True) for text in documents]
    cut = [
        sources.Piece(text[start : start + cuts], start + cuts >= len(text))
        for text in documents
        for start in range(0, max(1, len(text)), cuts)
    ]
    blocks = list(sources.split_blocks(whole, fraction=fraction, size=size))
    assert list(sources.split_blocks(cut, fraction=fraction, size=size)) == blocks
    assert "".join(block.text for block in blocks) == "".join(documents)
    assert sum(block.ends for block in blocks) == sum(map(bool, documents))
    assert all(0 < len(block.text) <= 2 * size for block in blocks)
    held = sum(len(block.text) for block in blocks if block.held_out)
    assert abs(held - fraction * sum(map(len, documents))) <= size


def test_blocks_end_at_lines_and_spread_evenly() -> None:
    text = prose(2000)
    size = sources.block_characters(len(text), 0.1)
    blocks = list(sources.split_blocks([sources.Piece(text, True)], fraction=0.1, size=size))
    assert all(block.text.endswith("\n") for block in blocks)
    held = [place for place, block in enumerate(blocks) if block.held_out]
    assert len(held) >= 3
    assert max(np.diff(held)) - min(np.diff(held)) <= 2
    share = sum(len(blocks[place].text) for place in held) / len(text)
    assert share == pytest.approx(0.1, abs=0.01)


def test_block_sizes() -> None:
    assert sources.block_characters(10**9, 0.1) == 1 << 16
    assert sources.block_characters(10_000, 0.1) == 250
    assert sources.block_characters(10_000, 0.75) == 625
    assert sources.block_characters(10, 0.1) == 16


def test_a_line_longer_than_a_block_breaks_in_front_of_a_space() -> None:
    pieces = [sources.Piece("aaaa bbbb cccc dddd", True), sources.Piece("x" * 12, True)]
    blocks = [block.text for block in sources.split_blocks(pieces, fraction=0.5, size=4)]
    assert blocks == ["aaaa", " bbbb", " cccc", " dddd", "xxxx", "xxxxxxxx"]


def test_held_out_text_is_disjoint_from_training_text(tmp_path: Path) -> None:
    lines = [f"line {number} of the text\n" for number in range(3000)]
    path = tmp_path / "t.txt"
    path.write_text("".join(lines))
    tokens = data.prepare(config(path, tokenizer="bpe:280"))
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
    tokens = data.prepare(config(path, tokenizer="bpe:260"))
    found = [decode(tokens, ids_N).split(END) for ids_N in (tokens.train_N, tokens.held_out_N)]
    assert [side.pop() for side in found] == ["", ""]
    assert sorted(found[0] + found[1]) == sorted(documents)


def test_the_tokenizer_never_sees_held_out_text(tmp_path: Path) -> None:
    text = prose(800)
    size = sources.block_characters(len(text), 0.1)
    blocks = list(sources.split_blocks([sources.Piece(text, True)], fraction=0.1, size=size))
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
    tokens = data.prepare(config(path))
    assert secret in decode(tokens, tokens.held_out_N)
    assert secret not in decode(tokens, tokens.train_N)
    vocabulary = data.load_tokenizer(tokens.tokenizer_path).get_vocab()
    assert not [token for token in vocabulary if len(token) > 1 and set(token) & set(secret)]

    # trained on as well, it is learnt
    other = tmp_path / "other.txt"
    other.write_text(prose(100, seed=7))
    tokens = data.prepare(config(path, held_out_source=f"file:{other}"))
    vocabulary = data.load_tokenizer(tokens.tokenizer_path).get_vocab()
    assert [token for token in vocabulary if len(token) > 1 and set(token) & set(secret)]


def test_a_held_out_source_of_its_own(tmp_path: Path, corpus: Path) -> None:
    valid = tmp_path / "valid.txt"
    valid.write_text(prose(100, seed=7))
    fields = {"held_out_source": f"file:{valid}"}
    tokens = data.prepare(config(corpus, **fields))
    assert decode(tokens, tokens.train_N) == corpus.read_text() + END
    assert decode(tokens, tokens.held_out_N) == valid.read_text() + END
    assert data.prepare(config(corpus, **fields, held_out_fraction=0.3)).fingerprint == tokens.fingerprint
    assert data.prepare(config(corpus)).fingerprint != tokens.fingerprint


def test_a_held_out_source_must_be_other_text(tmp_path: Path, corpus: Path) -> None:
    message = failure(f"file:{tmp_path}/*.txt", held_out_source=f"file:{corpus}")
    assert f"{corpus} is also in data.source" in message
    copy = tmp_path / "copy.md"
    copy.write_bytes(corpus.read_bytes())
    assert "is the same text as data.source" in failure(corpus, held_out_source=f"file:{copy}")
    short = tmp_path / "short.md"
    short.write_text("few\n")
    message = failure(corpus, held_out_source=f"file:{short}")
    assert f"data source file:{short}: 5 held-out tokens are too few for one probe row of 32" in message


# tokenizers


def gpt2_files(folder: Path, *, end: bool = True) -> dict[str, int]:
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: place for place, symbol in enumerate([*symbols, "ab", "abc"])}
    if end:
        vocabulary[END] = len(vocabulary)
    folder.mkdir(exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\na b\nab c\n")
    return vocabulary


def test_a_trained_tokenizer_has_the_size_asked_for_and_is_deterministic(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = data.prepare(config(corpus))
    assert first.vocab_size == 300 == data.vocab_size_of(config(corpus))
    assert first.train_N.dtype == np.uint16
    assert int(first.train_N.max()) < 300
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    again = data.prepare(config(corpus))
    assert again.tokenizer_path != first.tokenizer_path
    assert again.tokenizer_path.read_bytes() == first.tokenizer_path.read_bytes()
    assert again.fingerprint == first.fingerprint


def test_the_end_of_text_in_the_text_is_the_token(tmp_path: Path) -> None:
    path = tmp_path / "stories.txt"
    path.write_text(prose(400).replace("\n", f"\n{END}\n"))
    tokens = data.prepare(config(path))
    assert np.count_nonzero(tokens.train_N == 0) > 300
    vocabulary = data.load_tokenizer(tokens.tokenizer_path).get_vocab()
    assert not [token for token in vocabulary if token != END and ("<|" in token or "of" in token)]


def test_gpt2_files(tmp_path: Path) -> None:
    vocabulary = gpt2_files(tmp_path / "gpt2")
    path = tmp_path / "t.txt"
    path.write_text(" abc ab\n" * 300)
    fields = {"tokenizer": f"gpt2-files:{tmp_path / 'gpt2'}"}
    tokens = data.prepare(config(path, **fields))
    assert tokens.vocab_size == len(vocabulary) == 259 == data.vocab_size_of(config(path, **fields))
    assert tokens.end_of_text == vocabulary[END] == tokens.train_N[-1]
    assert tokens.train_N[:2].tolist() == [vocabulary["Ġ"], vocabulary["abc"]]
    assert END + "abc" not in decode(tokens, tokens.train_N[:50])
    gpt2_files(tmp_path / "gpt2", end=False)
    assert data.prepare(config(path, **fields)).end_of_text is None


def test_a_tokenizer_file_neither_truncates_nor_adds_tokens(tmp_path: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = Tokenizer(models.WordLevel({"a": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "b": 70_000}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.enable_truncation(max_length=8)
    tokenizer.enable_padding(length=512)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    path = tmp_path / "t.txt"
    path.write_text("a b c\n" * 200)
    fields = {"tokenizer": f"file:{tmp_path / 'tokenizer.json'}"}
    tokens = data.prepare(config(path, **fields))
    assert tokens.vocab_size == 70_001 == data.vocab_size_of(config(path, **fields))
    assert tokens.train_N.dtype == np.uint32
    assert tokens.end_of_text == 2
    ids = [*tokens.train_N.tolist(), *tokens.held_out_N.tolist()]
    assert Counter(token for token in ids if token != 2) == {0: 200, 70_000: 200, 3: 200}


def test_a_hub_tokenizer(tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpt2_files(tmp_path / "gpt2")
    plan = tokenizer_module.open_tokenizer(f"gpt2-files:{tmp_path / 'gpt2'}")

    class Hub:
        @staticmethod
        def from_pretrained(name: str) -> Any:
            if name != "org/name":
                raise OSError("cannot find\nthe requested files")
            return plan.ready

    monkeypatch.setattr(tokenizer_module, "Tokenizer", Hub)
    assert data.vocab_size_of(config(corpus, tokenizer="hf:org/name")) is None
    message = failure(corpus, tokenizer="hf:none")
    assert "tokenizer hf:none: cannot find the requested files; check the name and the network" in message
    assert data.prepare(config(corpus, tokenizer="hf:org/name")).vocab_size == 259


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("bpe:256", "expected bpe:SIZE with a SIZE from 257"),
        ("bpe:2k", "expected bpe:SIZE"),
        ("bpe:-300", "expected bpe:SIZE"),
        ("bpe:9999999", "to 1048576, such as bpe:2048"),
        ("bpe:" + "9" * 5000, "expected bpe:SIZE"),
        ("bpe:", "names nothing after the scheme: expected bpe:SIZE, gpt2-files:DIR"),
        ("bpe", "names nothing after the scheme"),
        ("bpee:300", "unknown tokenizer 'bpee:300'; did you mean 'bpe'? expected"),
        ("gpt2-file:x", "did you mean 'gpt2-files'?"),
        ("word:300", "unknown tokenizer 'word:300': expected"),
        ("bpe:50257", "tokenizer bpe:50257: the training text supports only "),
        ("gpt2-files:none", "no vocab.json and no merges.txt in none"),
        ("file:none.json", "tokenizer file:none.json: there is no file none.json"),
    ],
)
def test_unusable_tokenizers(corpus: Path, spec: str, expected: str) -> None:
    assert expected in failure(corpus, tokenizer=spec)


def test_too_large_a_vocabulary_says_what_would_do(corpus: Path) -> None:
    message = failure(corpus, tokenizer="bpe:50257")
    supported = message.partition("use ")[2].partition(" ")[0]
    assert data.prepare(config(corpus, tokenizer=supported)).vocab_size == int(supported[4:])


def test_a_token_beyond_the_vocabulary_is_refused(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "vocab_size", lambda tokenizer: 10)
    assert "tokenizer bpe:300: gives token 299 beyond its vocabulary of 10" in failure(corpus)


@pytest.mark.parametrize(
    ("vocabulary", "merges", "expected"),
    [
        ("{", None, "malformed vocab.json or merges.txt: Expecting"),
        (None, "#version: 0.2\na\n", "malformed vocab.json or merges.txt"),
        (None, "#version: 0.2\na zz\n", "malformed vocab.json or merges.txt"),
        (None, b"\xff \xfe\n", "malformed vocab.json or merges.txt"),
        ('{"a": 0, "b": 1}', "", "not byte-level BPE: vocab.json lacks 254 of the 256 byte symbols"),
        ("[1]", "", "malformed vocab.json or merges.txt"),
    ],
)
def test_malformed_gpt2_files(
    tmp_path: Path, corpus: Path, vocabulary: str | None, merges: str | bytes | None, expected: str
) -> None:
    gpt2_files(tmp_path / "gpt2")
    if vocabulary is not None:
        (tmp_path / "gpt2" / "vocab.json").write_text(vocabulary)
    if merges is not None:
        content = merges if isinstance(merges, bytes) else merges.encode()
        (tmp_path / "gpt2" / "merges.txt").write_bytes(content)
    assert expected in failure(corpus, tokenizer=f"gpt2-files:{tmp_path / 'gpt2'}")


def test_unusable_tokenizer_files(tmp_path: Path, corpus: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text("{}")
    assert f"tokenizer {path}: not a valid tokenizer.json" in failure(corpus, tokenizer=f"file:{path}")
    path.write_bytes(b"\xff")
    assert "not a valid tokenizer.json" in failure(corpus, tokenizer=f"file:{path}")
    Tokenizer(models.BPE()).save(str(path))
    assert "the vocabulary is empty" in failure(corpus, tokenizer=f"file:{path}")
    Tokenizer(models.WordLevel({"a": 0}, "<unk>")).save(str(path))
    assert "cannot encode the text" in failure(corpus, tokenizer=f"file:{path}")
    assert f"did you mean 'file:{path}'?" in failure(corpus, tokenizer=str(path))
    assert f"did you mean 'gpt2-files:{tmp_path}'?" in failure(corpus, tokenizer=str(tmp_path))
    with pytest.raises(DataError, match="cannot read: No such file"):
        data.load_tokenizer(tmp_path / "none.json")


# the cache


def test_a_second_start_uses_the_cache(corpus: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    first = data.prepare(config(corpus), progress=lambda what, done, total: steps.append(what))
    assert {"reading text", "training tokenizer", "encoding text"} == set(steps)
    assert [folder / "meta.json" for folder in cache.iterdir()] == [*cache.glob("*/meta.json")]
    monkeypatch.setattr(store, "_build", None)
    again = data.prepare(config(corpus, batch_size=2, order="shuffled"))
    assert again.fingerprint == first.fingerprint
    assert isinstance(again.train_N, np.memmap)
    assert not again.train_N.flags.writeable
    assert (again.source, again.tokenizer) == (f"file:{corpus}", "bpe:300")
    with pytest.raises(DataError, match="too few for one batch of 4096 x 32"):
        data.prepare(config(corpus, batch_size=4096))


def test_other_text_split_or_tokenizer_are_other_tokens(corpus: Path) -> None:
    prints = [data.prepare(config(corpus)).fingerprint]
    prints.append(data.prepare(config(corpus, tokenizer="bpe:301")).fingerprint)
    prints.append(data.prepare(config(corpus, held_out_fraction=0.2)).fingerprint)
    corpus.write_text(corpus.read_text() + "more\n")
    prints.append(data.prepare(config(corpus)).fingerprint)
    assert len(set(prints)) == 4


def test_document_borders_are_part_of_the_text(tmp_path: Path) -> None:
    digests = set()
    for number, texts in enumerate([["ab", "c"], ["a", "bc"], ["abc"], ["ab", "", "c"]]):
        path = tmp_path / f"{number}.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        digests.add(sources.read_hash(sources.open_source(f"file:{path}"), data.ignore).digest)
    assert len(digests) == 3


@pytest.mark.parametrize("name", ["train.bin", "held_out.bin", "tokenizer.json", "meta.json"])
@pytest.mark.parametrize("harm", ["cut", "remove", "replace"])
def test_a_damaged_cache_is_rebuilt_and_says_so(corpus: Path, name: str, harm: str) -> None:
    first = data.prepare(config(corpus))
    folder = first.tokenizer_path.parent
    content = (folder / name).read_bytes()
    if harm == "remove":
        (folder / name).unlink()
    elif harm == "cut":
        (folder / name).write_bytes(content[:-2])
    elif name in ("tokenizer.json", "meta.json"):
        # the old size and another tokenizer; another fingerprint
        (folder / name).write_bytes(
            content.replace(b'"BPE"', b'"BPX"').replace(b'fingerprint": "', b'fingerprint": "x')
        )
    else:
        (folder / name).write_bytes(content + b"\0\0")
    steps: list[str] = []
    again = data.prepare(config(corpus), progress=lambda what, done, total: steps.append(what))
    assert any(step.startswith("rebuilding the damaged token cache (") for step in steps)
    assert again.fingerprint == first.fingerprint
    assert (folder / name).read_bytes() == content
    assert not list(folder.parent.glob(".aside-*"))


def test_meta_that_contradicts_itself_is_damage(corpus: Path) -> None:
    first = data.prepare(config(corpus))
    path = first.tokenizer_path.parent / "meta.json"
    steps: list[str] = []
    for field, value in {"fingerprint": "0", "train_tokens": 1000, "format": 0, "files": {}}.items():
        meta = json.loads(path.read_text())
        path.write_text(json.dumps({**meta, field: value}))
        steps.clear()
        data.prepare(config(corpus), progress=lambda what, *_: steps.append(what))
        assert any("rebuilding" in step for step in steps), field
        assert json.loads(path.read_text()) == meta


def test_a_half_written_folder_never_counts_and_is_swept_in_time(corpus: Path, cache: Path) -> None:
    old, new = cache / ".aside-old", cache / ".aside-new"
    for temporary in (old, new):
        temporary.mkdir(parents=True)
        (temporary / "train.bin").write_bytes(b"half")
    yesterday = time.time() - 2 * 24 * 3600
    for path in (old, old / "train.bin"):
        os.utime(path, (yesterday, yesterday))
    data.prepare(config(corpus))
    assert not old.exists()
    assert new.exists()


def test_a_stopped_build_leaves_nothing(corpus: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(store, "_encode", interrupt)
    with pytest.raises(KeyboardInterrupt):
        data.prepare(config(corpus))
    assert not list(cache.iterdir())


def test_a_full_disk_is_one_clear_line(corpus: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("bitnetctl.data.store.os.fsync", full)
    with pytest.raises(StorageError, match="cannot write: No space left on device"):
        data.prepare(config(corpus))
    assert not list(cache.iterdir())


def test_a_cache_that_cannot_be_made_is_one_clear_line(tmp_path: Path, corpus: Path) -> None:
    (tmp_path / "cache").write_text("in the way")
    with pytest.raises(StorageError, match="cannot write"):
        data.prepare(config(corpus))


def test_text_that_changes_while_it_is_read_is_refused(
    corpus: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def edit(what: str, done: int, total: int | None) -> None:
        if what == "encoding text":
            corpus.write_text(prose(800, seed=5))

    # bpe: one reading to hash, one to train; the edit comes before the third is over
    monkeypatch.setattr(store, "_ENCODE_CHARACTERS", 1)
    monkeypatch.setattr(sources, "_READ_BYTES", 1000)
    with pytest.raises(DataError, match="the text changed while it was being read; try again"):
        data.prepare(config(corpus), progress=edit)
    assert not list(cache.iterdir())


def test_without_locks_a_build_that_comes_second_uses_the_first(
    corpus: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **named: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    publish = store._publish
    inner: list[data.TokenData] = []

    def slow_publish(temporary: Path, folder: Path) -> None:
        if not inner:
            monkeypatch.setattr(store, "_publish", publish)
            inner.append(data.prepare(config(corpus)))
            inode.append(folder.stat().st_ino)
        publish(temporary, folder)

    inode: list[int] = []
    monkeypatch.setattr(store, "_publish", slow_publish)
    tokens = data.prepare(config(corpus))
    assert tokens.fingerprint == inner[0].fingerprint
    assert tokens.tokenizer_path.parent.stat().st_ino == inode[0]
    assert [path.name for path in cache.iterdir()] == [tokens.tokenizer_path.parent.name]


def test_two_processes_at_once(corpus: Path, cache: Path) -> None:
    program = (
        "import sys; from bitnetctl.config import DataConfig; from bitnetctl import data;"
        "tokens = data.prepare(DataConfig(source=sys.argv[1], tokenizer='bpe:300'));"
        "print(tokens.fingerprint, int(tokens.train_N.sum(dtype='i8')), 'torch' in sys.modules)"
    )
    command = [sys.executable, "-W", "error", "-c", program, f"file:{corpus}"]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    results = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], results
    assert results[0] == results[1]
    assert len(list(cache.iterdir())) == 1
    tokens = data.prepare(config(corpus))
    assert results[0] == (f"{tokens.fingerprint} {tokens.train_N.sum(dtype='i8')} False\n", "")


def test_one_builds_and_the_other_waits(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_WAIT_SECONDS", 0.01)
    encode, said = store._encode, threading.Event()
    waited: list[str] = []
    others: list[data.TokenData] = []

    def wait(what: str, done: int, total: int | None) -> None:
        waited.append(what)
        if what.startswith("waiting"):
            said.set()

    second = threading.Thread(target=lambda: others.append(data.prepare(config(corpus), progress=wait)))

    def hold(*arguments: Any) -> None:
        second.start()
        assert said.wait(30)
        encode(*arguments)

    monkeypatch.setattr(store, "_encode", hold)
    tokens = data.prepare(config(corpus))
    second.join(30)
    assert others[0].fingerprint == tokens.fingerprint
    assert set(waited) == {"reading text", "waiting for another process that prepares the same text"}


def test_what_a_killed_process_left_does_not_hold_up(corpus: Path, cache: Path) -> None:
    program = (
        "import os, sys; from bitnetctl.config import DataConfig; from bitnetctl import data;"
        "from bitnetctl.data import store;"
        "store._encode = lambda *_: os.kill(os.getpid(), 9);"
        "data.prepare(DataConfig(source=sys.argv[1], tokenizer='bpe:300'))"
    )
    killed = subprocess.run([sys.executable, "-c", program, f"file:{corpus}"], check=False)
    assert killed.returncode == -9
    (temporary,) = cache.glob(".aside-*")
    steps: list[str] = []
    # stamps of another clock: a lock is held by a process, not by a date
    for stamp in (0, 1 << 33):
        for path in (cache.parent / "locks").iterdir():
            os.utime(path, (stamp, stamp))
        data.prepare(config(corpus), progress=lambda what, done, total: steps.append(what))
        shutil.rmtree(next(path for path in cache.iterdir() if path != temporary))
    assert temporary.exists()
    assert not [step for step in steps if step.startswith("waiting")]


def test_leftovers_are_aged_by_the_clock_that_stamps_files(
    corpus: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the machine is a year ahead of its file server; another process is at work
    temporary = cache / ".aside-living"
    temporary.mkdir(parents=True)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 365 * 24 * 3600)
    data.prepare(config(corpus))
    assert temporary.exists()


# a stop


@pytest.mark.parametrize("at", ["reading text", "training tokenizer", "encoding text"])
def test_what_the_progress_raises_ends_the_build(corpus: Path, cache: Path, at: str) -> None:
    def stop(what: str, done: int, total: int | None) -> None:
        if what == at:
            raise StoppedBySignal

    with pytest.raises(StoppedBySignal):
        data.prepare(config(corpus), progress=stop)
    assert not cache.exists() or not list(cache.iterdir())
    assert data.prepare(config(corpus)).vocab_size == 300


def test_a_training_apart_that_dies_is_told(corpus: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "bpe.py"
    monkeypatch.setattr("bitnetctl.data.bpe.__file__", str(program))
    program.write_text("raise MemoryError('too much')")
    assert "bpe:300: its training ended with exit code 1: MemoryError: too much" in failure(corpus)
    program.write_text("import os; os.kill(os.getpid(), 9)")
    assert failure(corpus).endswith("its training ended with exit code -9")


def test_a_training_apart_writes_nothing_when_its_sender_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "bpe.json"
    file = io.BytesIO()
    bpe.send([prose(200)], file)
    for content, made in ((file.getvalue()[:-8], False), (file.getvalue(), True)):
        command = [sys.executable, "-P", bpe.__file__, "270", str(path)]
        done = subprocess.run(command, input=content, capture_output=True, check=False)
        assert (done.returncode == 0, path.exists()) == (made, made)
    assert path.read_text() == bpe.train_bpe(270, [prose(200)]).to_str(pretty=True)


# batches


def token_data(train: Any, held_out: Any = (0, 1), *, vocab_size: int = 8, **fields: Any) -> data.TokenData:
    return data.TokenData(
        **{
            "train_N": np.array(train, dtype=np.uint16),
            "held_out_N": np.array(held_out, dtype=np.uint16),
            "vocab_size": vocab_size,
            "fingerprint": "f" * 64,
            "tokenizer_fingerprint": "t" * 64,
            "source": "stdlib",
            "tokenizer": "bpe:300",
            "tokenizer_path": Path("tokenizer.json"),
            "end_of_text": 0,
            **fields,
        }
    )


def test_sequential_batches_by_hand() -> None:
    fields = config("stdlib", batch_size=2, sequence_length=3)
    batches = data.Batches(token_data(range(100, 120)), fields, seed=1)
    # 19 targets make 6 windows of 3, three batches of 2
    assert batches.steps_per_epoch == 3
    assert batches.rows_BT1(1).tolist() == [[100, 101, 102, 103], [103, 104, 105, 106]]
    assert batches.rows_BT1(3).tolist() == [[112, 113, 114, 115], [115, 116, 117, 118]]
    assert batches.rows_BT1(4).tolist() == batches.rows_BT1(1).tolist()
    assert batches.starts_B(3).tolist() == [12, 15]
    assert batches.rows_BT1(1).dtype == batches.starts_B(1).dtype == np.int64
    with pytest.raises(ValueError, match="steps count from 1, got 0"):
        batches.rows_BT1(0)


@settings(deadline=None)
@given(
    tokens=st.integers(2, 400),
    rows=st.integers(1, 5),
    length=st.integers(1, 9),
    order=st.sampled_from(["sequential", "shuffled"]),
    seed=st.integers(0, 2**63 - 1),
    epoch=st.integers(0, 1000),
)
def test_an_epoch_covers_the_text_once(tokens: int, rows: int, length: int, order: str, seed: int, epoch: int) -> None:
    fields = config("stdlib", batch_size=rows, sequence_length=length, order=order)
    # the token at place n is n, so rows show where they come from
    tokens_data = token_data(range(tokens))
    if tokens - 1 < rows * length:
        with pytest.raises(DataError, match=f"{tokens} training tokens are too few for one batch of {rows} x"):
            data.Batches(tokens_data, fields, seed)
        return
    batches = data.Batches(tokens_data, fields, seed)
    assert batches.steps_per_epoch == (tokens - 1) // length // rows
    steps = range(epoch * batches.steps_per_epoch + 1, (epoch + 1) * batches.steps_per_epoch + 1)
    starts = np.concatenate([batches.starts_B(step) for step in steps])
    assert len(set(starts.tolist())) == len(starts)
    assert not np.any(starts % length)
    assert starts.min() >= 0
    assert starts.max() + length < tokens
    for step in random.Random(0).sample(steps, 1):
        rows_BT1 = batches.rows_BT1(step)
        assert rows_BT1.tolist() == [list(range(start, start + length + 1)) for start in batches.starts_B(step)]
        other = data.Batches(tokens_data, fields, seed)
        assert np.array_equal(other.rows_BT1(step), rows_BT1)


def test_shuffled_batches_depend_on_seed_and_epoch_alone() -> None:
    fields = config("stdlib", batch_size=2, sequence_length=4, order="shuffled")
    tokens = token_data(range(801))

    def epoch(seed: int, number: int) -> list[int]:
        batches = data.Batches(tokens, fields, seed)
        steps = range(1 + number * batches.steps_per_epoch, 1 + (number + 1) * batches.steps_per_epoch)
        return [int(start) for step in reversed(steps) for start in batches.starts_B(step)]

    epochs = [epoch(seed, number) for seed in (0, 1) for number in (0, 1)]
    assert len({tuple(starts) for starts in epochs}) == 4
    assert [set(starts) for starts in epochs] == [set(range(0, 800, 4))] * 4
    first = data.Batches(tokens, fields, 3).starts_B(1)
    assert (first // 4).tolist() == np.random.default_rng((3, 0)).permutation(200)[:2].tolist()


# the probe


def naive_references(train: list[int], inputs: list[int], targets: list[int], vocabulary: int) -> Any:
    tokens, pairs = Counter(train), Counter(pairwise(train))
    seen: Counter[int] = Counter(train[:-1])
    followers = {v: {w for u, w in pairs if u == v} for v in seen}

    def unigram(w: int) -> Fraction:
        return Fraction(tokens[w] + 1, len(train) + vocabulary)

    def bigram(v: int, w: int) -> Fraction:
        types = len(followers.get(v, ()))
        return (pairs[v, w] + types * unigram(w)) / (seen[v] + types) if types else unigram(w)

    best = {v: max(range(vocabulary), key=lambda w: (bigram(v, w), -w)) for v in set(inputs)}
    losses = [
        -sum(math.log(p) for p in probabilities) / len(targets)
        for probabilities in (
            [unigram(w) for w in targets],
            [bigram(v, w) for v, w in zip(inputs, targets, strict=True)],
        )
    ]
    return (*losses, len(set(best.values())))


@settings(deadline=None, max_examples=60)
@given(
    train=st.lists(st.integers(0, 6), min_size=1, max_size=60),
    probe=st.lists(st.integers(0, 7), min_size=2, max_size=20),
    chunk=st.integers(1, 20),
)
def test_references_agree_with_a_naive_count(train: list[int], probe: list[int], chunk: int) -> None:
    inputs_PT, targets_PT = np.array([probe[:-1]]), np.array([probe[1:]])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bitnetctl.data.probe._CHUNK_TOKENS", chunk)
        found = count_references(np.array(train, dtype=np.uint16), inputs_PT, targets_PT, vocab_size=8)
    unigram, bigram, unique = naive_references(train, probe[:-1], probe[1:], 8)
    assert found.unigram_loss == pytest.approx(unigram, rel=1e-12)
    assert found.bigram_loss == pytest.approx(bigram, rel=1e-12)
    assert found.bigram_unique == unique


def test_bigram_probabilities_sum_to_one() -> None:
    train_N = np.array([1, 2, 1, 3, 1, 2, 0, 5, 1, 1], dtype=np.uint16)
    for context in range(6):
        targets_PT = np.arange(6)[:, None]
        total = sum(
            math.exp(-count_references(train_N, np.array([[context]]), target[None], vocab_size=6).bigram_loss)
            for target in targets_PT
        )
        assert total == pytest.approx(1.0)


def test_probe_rows_are_evenly_spaced_and_rounded_up() -> None:
    tokens = token_data([0, 1, 2, 3] * 20, np.arange(1000) % 251, vocab_size=251)
    probe = data.probe_data(tokens, positions=41, sequence_length=8)
    assert probe.inputs_PT.shape == probe.targets_PT.shape == (6, 8)
    assert probe.positions == 48
    assert probe.inputs_PT.dtype == np.int64
    assert np.array_equal(probe.inputs_PT[:, 1:], probe.targets_PT[:, :-1])
    starts = [place * 999 // 6 for place in range(6)]
    assert probe.inputs_PT[:, 0].tolist() == [start % 251 for start in starts]
    assert probe.unique_targets == len(set(probe.targets_PT.ravel().tolist()))


@given(held_out=st.integers(2, 300), length=st.integers(1, 20), positions=st.integers(1, 300))
def test_probe_rows_do_not_overlap(held_out: int, length: int, positions: int) -> None:
    tokens = token_data([0], np.arange(held_out), vocab_size=300)
    supported = (held_out - 1) // length * length
    with pytest.MonkeyPatch.context() as patch:
        references = data.probe.References(unigram_loss=1.0, bigram_loss=1.0, bigram_unique=1)
        patch.setattr("bitnetctl.data.probe._cached_references", lambda *_: references)
        if positions > supported:
            with pytest.raises(DataError, match=f"support at most {supported} probe positions"):
                data.probe_data(tokens, positions=positions, sequence_length=length)
            return
        probe = data.probe_data(tokens, positions=positions, sequence_length=length)
    targets = probe.targets_PT.ravel()
    assert len(np.unique(targets)) == len(targets) >= positions
    assert targets.max() < held_out


def test_too_little_held_out_text_says_what_would_do(corpus: Path) -> None:
    tokens = data.prepare(config(corpus))
    with pytest.raises(DataError) as caught:
        data.probe_data(tokens, positions=10**6, sequence_length=32)
    message = str(caught.value)
    supported = int(message.partition("lower probe.positions to ")[2].partition(",")[0])
    assert "data.held_out_fraction" in message
    assert "\n" not in message
    assert data.probe_data(tokens, positions=supported, sequence_length=32).positions == supported
    with pytest.raises(DataError, match=r"at most 0 probe positions.*lower data.sequence_length, give more"):
        data.probe_data(tokens, positions=1, sequence_length=10**6)


def test_references_are_cached_and_checked(corpus: Path) -> None:
    tokens = data.prepare(config(corpus))
    steps: list[str] = []

    def probe() -> tuple[float, float, int]:
        steps.clear()
        found = data.probe_data(tokens, positions=256, sequence_length=32, progress=lambda what, *_: steps.append(what))
        return found.unigram_loss, found.bigram_loss, found.bigram_unique

    first = probe()
    assert "counting references" in steps
    assert first[1] < first[0]
    assert probe() == first
    assert not steps
    (path,) = (data.cache_folder() / "references").iterdir()
    content = path.read_text()
    loss = f'"unigram_loss":{first[0]}'
    assert loss in content.replace(" ", "")
    for harmed in (
        "{",
        content.replace("unigram", "trigram"),
        content.replace(str(first[0]), "NaN"),
        content.replace(tokens.fingerprint, "0" * 64),
    ):
        path.write_text(harmed)
        assert probe() == first
        assert steps[0].startswith("recounting references (the cached ones ")
        assert path.read_text() == content
    assert probe() == first
    assert not steps
