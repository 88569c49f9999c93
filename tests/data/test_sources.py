"""Text sources: what they read, in which order, and how they fail."""

import errno
import gzip
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from texts import failure

from bitnetctl.data import documents, sources
from bitnetctl.errors import DataError

pytestmark = pytest.mark.usefixtures("token_cache")


def read(spec: str) -> list[str]:
    documents = [""]
    for piece in sources.open_source(spec).pieces():
        documents[-1] += piece.text
        if piece.ends:
            documents.append("")
    return documents[:-1]


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
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"zipped\n", mtime=0))
    (tmp_path / "c.jsonl").write_text('{"text": "one"}\n\n{"text": "two", "id": 2}\n')
    (tmp_path / "d.jsonl.gz").write_bytes(gzip.compress(b'{"text": "three"}\n', mtime=0))
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


def test_long_files_are_read_in_pieces_that_may_cut_a_character(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "t.txt"
    path.write_text("é€𝄞" * 5)
    monkeypatch.setattr(documents, "_READ_BYTES", 2)
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

    def load_dataset(name: str, config: str | None = None, *, split: str) -> Any:
        assert split == "train"
        result = known.get((name, config), FileNotFoundError(f"Dataset '{name}' does not exist\non the Hub"))
        if isinstance(result, Exception):
            raise result
        return result

    module = types.ModuleType("datasets")
    vars(module).update(load_dataset=load_dataset, disable_progress_bars=lambda: None)
    monkeypatch.setitem(sys.modules, "datasets", module)
    return known


def test_hub_names_are_read_as_organization_first_and_then_as_config(
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
    assert 'hf:other has no column "text"; its columns are content: --set data.text_field=content' in failure(
        "hf:other"
    )
    assert 'data source hf:null: row 2: "text" is null' in failure("hf:null")
    assert "expected hf:NAME, hf:ORG/NAME" in failure("hf:a/b/c/d")
    assert "expected hf:NAME, hf:ORG/NAME" in failure("hf:a//b")
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "pip install 'bitnetctl[hf]'" in failure("hf:org/name")


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("t.txt", b"", "t.txt: an empty file (0 bytes); download it again or remove it"),
        ("t.txt", b"abc\n" * 10 + b"\xe9t\xe9", "t.txt: not UTF-8 at byte offset 40; convert"),
        ("t.txt", b"a b c\n", "training tokens are too few for one batch of 4 x 32"),
        ("t.txt.gz", b"no gzip", "t.txt.gz: not compressed, though its name says gzip"),
        ("t.txt.gz", gzip.compress(b"text " * 99, mtime=0)[:-9], "t.txt.gz: damaged gzip file"),
        ("t.jsonl", b'{"text": "a"}\n{"t": 1}\n', 't.jsonl:2 has no "text"; its keys are t: give the row'),
        ("t.jsonl", b'{"text": "a"}\n\n{"text": 3}\n', 't.jsonl:3: "text" is a number, no text'),
        ("t.jsonl", b'{"text": "a"}\n[1]\n', "t.jsonl:2: no text; not an object such as"),
        ("t.jsonl", b'{"text": "a"}\nnothing\n', "t.jsonl:2: not a line of JSON: Expecting value"),
        ("t.jsonl", b'{"text":' + b"[" * 100_000, "t.jsonl:1: not a line of JSON"),
        ("t.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n', "t.jsonl: not UTF-8 at byte offset 24"),
        ("t.jsonl", b'\xef\xbb\xbf{"text": "\xff"}\n', "t.jsonl: not UTF-8 at byte offset 13"),
        ("t.jsonl", b'{"text": "\\ud800"}\n', "t.jsonl:1: the text holds half of a surrogate pair"),
        ("t.parquet", b"no parquet", "t.parquet: not a readable parquet file"),
    ],
)
def test_unusable_text_is_one_clear_line(tmp_path: Path, name: str, content: bytes, expected: str) -> None:
    (tmp_path / name).write_bytes(content)
    # 257 needs no merges, so a text of any length will do
    assert expected in failure(tmp_path / name, tokenizer="bpe:257")


def test_parquet_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "t.parquet"
    parquet.write_table(pyarrow.table({"body": ["x"], "id": [1]}), path)
    assert 't.parquet has no column "text"; its columns are body, id: --set data.text_field=body' in failure(path)
    parquet.write_table(pyarrow.table({"text": ["x", None]}), path)
    assert 't.parquet: row 2: "text" is null' in failure(path)
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


def test_a_path_without_scheme_and_a_folder_get_a_suggestion(tmp_path: Path, corpus: Path) -> None:
    assert f"did you mean 'file:{corpus}'?" in failure(str(corpus))
    assert f"is a folder; use 'file:{tmp_path}/**/*.txt'" in failure(tmp_path)


def test_an_unreadable_file_is_one_clear_line(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(documents, "open_bytes", refuse)
    message = failure(corpus)
    assert "corpus.txt: cannot read: Permission denied; make it readable for this user, or leave it out" in message
