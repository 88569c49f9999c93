"""Files and rows that hold no readable text: an error that names file and remedy, or left out and counted."""

import bz2
import codecs
import gzip
import importlib
import io
import json
import lzma
import os
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from texts import data_config, failure, prose

from bitnetctl import data
from bitnetctl.data.documents import Reading
from bitnetctl.data.sources import open_source
from bitnetctl.errors import DataError

pytestmark = pytest.mark.usefixtures("token_cache")

SKIP = "or leave it out: --set data.on_bad_document=skip"
TEXT = prose(60)
ROWS = "".join(json.dumps({"text": line}) + "\n" for line in TEXT.splitlines())


def zstd(content: bytes) -> bytes:
    name = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
    compressed = importlib.import_module(name).compress(content)
    assert isinstance(compressed, bytes)
    return compressed


def archive(kind: str) -> bytes:
    file = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(file, "w") as packed:
            packed.writestr("a.txt", TEXT)
    else:
        with tarfile.open(fileobj=file, mode="w") as packed_tar:
            info = tarfile.TarInfo("a.txt")
            info.size = len(TEXT)
            packed_tar.addfile(info, io.BytesIO(TEXT.encode()))
    return file.getvalue()


def array_bytes() -> bytes:
    file = io.BytesIO()
    np.save(file, np.arange(100))
    return file.getvalue()


def read(path: Path, **fields: object) -> str:
    reading = Reading(**fields)  # type: ignore[arg-type]
    return "".join(piece.text for piece in open_source(f"file:{path}", reading).pieces())


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstd,
}


@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_compressed_text_and_rows(tmp_path: Path, suffix: str) -> None:
    compress = COMPRESSIONS[suffix]
    half = len(TEXT) // 2
    # two members, frames or streams, as parallel compressors write them
    content = compress(TEXT[:half].encode()) + compress(TEXT[half:].encode())
    for name in (f"a.txt{suffix}", f"a{suffix}", f"a.TXT{suffix.upper()}", "a.txt"):
        (tmp_path / name).write_bytes(content)
        assert read(tmp_path / name) == TEXT
    (tmp_path / f"a.jsonl{suffix}").write_bytes(compress(ROWS.encode()))
    assert read(tmp_path / f"a.jsonl{suffix}") == TEXT.replace("\n", "")


@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_damaged_compression(tmp_path: Path, suffix: str) -> None:
    kind = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd"}[suffix]
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(COMPRESSIONS[suffix](TEXT.encode())[:-9])
    message = failure(path)
    assert f"a.txt{suffix}: damaged {kind} file: " in message
    assert message.endswith(f"; download it again, {SKIP}")
    path.write_bytes(b"this is not compressed\n")
    assert f"a.txt{suffix}: not compressed, though its name says {kind}; rename it to a.txt, {SKIP}" in failure(path)
    path.write_bytes(COMPRESSIONS[suffix](COMPRESSIONS[suffix](TEXT.encode())))
    assert f"a.txt{suffix}: {kind} in it once more; decompress it once, {SKIP}" in failure(path)
    # what lies under the name of a compressed file
    path.write_bytes(LFS)
    assert f"a.txt{suffix}: a Git-LFS pointer, not the text itself; run `git lfs pull`" in failure(path)
    if suffix == ".gz":
        path.write_bytes(gzip.compress(TEXT.encode(), mtime=0) + b"<html>garbage")
        assert "damaged gzip file: Not a gzipped file" in failure(path)


def test_zstd_as_its_tools_write_it(tmp_path: Path) -> None:
    zstd_library = importlib.import_module("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")
    path = tmp_path / "a.txt.zst"
    # zstd --long=31, as large dumps are compressed
    window = {zstd_library.CompressionParameter.window_log: 31}
    with zstd_library.open(path, "wb", options=window) as file:
        file.write(TEXT.encode())
    assert read(path) == TEXT
    # pzstd, and frames one after the other
    skippable = b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd"
    half = len(TEXT) // 2
    for name in ("a.txt.zst", "a.txt"):
        (tmp_path / name).write_bytes(skippable + zstd(TEXT[:half].encode()) + zstd(TEXT[half:].encode()))
        assert read(tmp_path / name) == TEXT
    (tmp_path / "a.jsonl.zstd").write_bytes(zstd(ROWS.encode()))
    assert read(tmp_path / "a.jsonl.zstd") == TEXT.replace("\n", "")


def test_a_line_that_is_not_json_is_named_with_its_column(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(ROWS + '{"text": "a"},\n')
    assert f"a.jsonl:61: not a line of JSON: Extra data at column 14; mend the line, {SKIP}" in failure(path)


def test_text_that_looks_like_something_else(tmp_path: Path) -> None:
    texts = [
        f"version https://git-lfs.github.com/spec/v1 begins a pointer\n{TEXT}",
        f"404: Not Found\n{TEXT}",
        f'{{"text": 1}}\n{TEXT}',
        f"[1] {TEXT}",
        TEXT.replace("\n", "\x1b[0m\x0c\n"),
        "".join(f"{letter}\b{letter}" for letter in TEXT),
    ]
    for text in texts:
        (tmp_path / "a.txt").write_text(text)
        assert read(tmp_path / "a.txt") == text


def test_zstd_without_its_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt.zst").write_bytes(zstd(TEXT.encode()))
    for module in ("compression.zstd", "backports.zstd"):
        monkeypatch.setitem(sys.modules, module, None)
    assert "a.txt.zst: reading zstd needs a library: pip install backports.zstd" in failure(tmp_path / "a.txt.zst")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
def test_text_with_a_byte_order_mark(tmp_path: Path, encoding: str) -> None:
    mark = codecs.BOM_UTF16_BE if encoding == "utf-16-be" else b""
    (tmp_path / "a.txt").write_bytes(mark + "é and ü\r\n".encode(encoding))
    assert read(tmp_path / "a.txt") == "é and ü\r\n"
    (tmp_path / "a.jsonl").write_bytes(mark + '{"text": "é"}\r\n{"text": "ü"}\r\n'.encode(encoding))
    assert read(tmp_path / "a.jsonl") == "éü"


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n"
ANNEX = b"/annex/objects/SHA256E-s7--00.txt\n"
PAGE = b"<!DOCTYPE html>\n<html><head><title>404 Not Found</title></head><body></body></html>\n"
PROSE = "<html><head><title>Errors that are not found in tests</title></head>text</html>\n"
S3 = b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>AccessDenied</Code></Error>'


@pytest.mark.parametrize(
    ("name", "content", "problem", "remedy"),
    [
        ("a.txt", b"", "an empty file (0 bytes)", "download it again or remove it"),
        ("a.txt.gz", b"", "an empty file (0 bytes)", "download it again or remove it"),
        ("a.txt", b" \n\t\r\n", "no text, white space at most", "remove it"),
        ("a.txt.gz", gzip.compress(b"", mtime=0), "no text, white space at most", "remove it"),
        ("a.jsonl", b"\n\n", "no text, white space at most", "remove it"),
        ("a.txt", LFS, "a Git-LFS pointer, not the text itself", "run `git lfs pull`"),
        ("a.jsonl", LFS, "a Git-LFS pointer, not the text itself", "run `git lfs pull`"),
        ("a.parquet", LFS, "a Git-LFS pointer, not the text itself", "run `git lfs pull`"),
        ("a.txt", ANNEX, "a git-annex pointer, not the text itself", "run `git annex get`"),
        ("a.txt", PAGE, "the error page of a web server, not the text itself", "download it again"),
        ("a.jsonl", S3, "the error page of a web server, not the text itself", "download it again"),
        ("a.txt", archive("zip"), "a zip archive (or an office document), not text", "unpack it"),
        ("a.zip", archive("zip"), "a zip archive (or an office document), not text", "unpack it"),
        ("a.tar", archive("tar"), "a tar archive, not text", "unpack it"),
        ("a.tar.gz", gzip.compress(archive("tar"), mtime=0), "a tar archive, not text", "unpack it"),
        ("a.zst", zstd(archive("tar")), "a tar archive, not text", "unpack it"),
        (
            "a.zst",
            zstd(np.arange(900, dtype=np.uint16).tobytes()),
            "binary, not text",
            "tokens and arrays are not read",
        ),
        ("a.npy", array_bytes(), "a numpy array, not text", "tokens and arrays are not read"),
        ("a.bin", np.arange(3000, dtype=np.uint16).tobytes(), "binary, not text", "tokens and arrays are not read"),
        ("a.txt", TEXT.encode() + b"\0\1\2", "binary, not text (byte offset ", "tokens and arrays are not read"),
        ("a.arrow", b"ARROW1\0\0" + bytes(99), "an Arrow file, not text", "convert it to .parquet, .jsonl or .txt"),
        ("a.pdf", b"%PDF-1.7\n", "a PDF, not text", "extract its text first (pdftotext)"),
        ("a.txt", TEXT.encode("utf-16-le"), "UTF-16 without a byte-order mark", "convert it (iconv -f UTF-16LE"),
        ("a.txt", "caf\xe9".encode("latin-1"), "not UTF-8 at byte offset 3", "iconv -f ISO-8859-1 -t UTF-8 a.txt"),
        ("a.txt", codecs.BOM_UTF16_LE + b"a\0b", "not UTF-16 at byte offset 4", "download it again"),
        ("a.jsonl", codecs.BOM_UTF16_LE + b"a\0b", "not UTF-16 at byte offset ", "download it again"),
        (
            "a.jsonl",
            b'[{"text": "a"},\n {"text": "b"}]',
            "a JSON array; JSON lines are expected",
            "jq -c '.[]' a.jsonl",
        ),
        ("a.json", b'[{"text": "a"}]', "a JSON array; JSON lines are expected", "jq -c '.[]' a.json"),
        ("a.jsonl", b'{\n "text": "a"\n}\n', "JSON over several lines; JSON lines are expected", "jq -c . a.jsonl"),
        ("a.jsonl", b'["a", "b"]', "a JSON array; JSON lines are expected", "jq -c '.[] | {text: .}' a.jsonl"),
        ("a.jsonl", b'{"text": ""}\n{"text": " "}\n', "no text, white space at most", "remove it"),
        # rows under other names
        ("a.txt", ROWS.encode(), "JSON lines, not text", "rename it to a.jsonl"),
        ("a", ROWS.encode("utf-8-sig"), "JSON lines, not text", "rename it to a.jsonl"),
        ("a.txt.gz", gzip.compress(ROWS.encode(), mtime=0), "JSON lines, not text", "rename it to a.jsonl"),
        ("a.txt", b'[\n {"text": "a"},\n {"text": "b"}]', "JSON array, not text", "jq -c '.[]' a.txt"),
        ("a.txt", json.dumps({"text": TEXT * 20}).encode(), "JSON lines, not text", "rename it to a.jsonl"),
        ("a.csv", b"id,text\n1,a\n", "a table, not text", "convert it to .parquet, .jsonl or .txt"),
        ("a.tsv.gz", gzip.compress(b"id\ttext\n1\ta\n", mtime=0), "a table, not text", "convert it"),
        ("a.parquet.gz", gzip.compress(b"PAR1" + bytes(99), mtime=0), "compressed parquet file", "decompress it"),
        ("a.txt.gz", PAGE, "the error page of a web server, not the text itself", "download it again"),
        ("a.txt.gz", archive("zip"), "a zip archive (or an office document), not text", "unpack it"),
        ("a.txt", b"404: Not Found", "the error page of a web server, not the text itself", "download it again"),
        ("a.txt", b"Entry not found", "the error page of a web server, not the text itself", "download it again"),
        ("a.dvc", b"outs:\n- md5: d8e8\n  path: a.txt\n", "a DVC pointer, not the text itself", "run `dvc pull`"),
        ("a.bin", bytes(range(1, 65)) * 40, "binary, not text (byte offset 0)", "tokens and arrays are not read"),
        ("a.txt.Z", b"\x1f\x9d\x90text", "compressed by `compress`, not text", "gzip -d"),
        ("a.parquet", b"something", "not a readable parquet file", "download it again"),
    ],
)
def test_a_bad_file_is_named_with_its_remedy_or_left_out(
    tmp_path: Path, name: str, content: bytes, problem: str, remedy: str
) -> None:
    if name == "a.parquet":
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(content)
    message = failure(tmp_path / name, tokenizer="bpe:257")
    assert f"{name}: {problem}" in message
    assert remedy in message
    assert message.endswith(SKIP)
    message = failure(tmp_path / name, on_bad_document="skip")
    assert "no usable file is left (1 × " in message

    # beside a good file
    (tmp_path / "good.txt").write_text(TEXT)
    assert f"{name}: {problem}" in failure(f"file:{tmp_path}/*", tokenizer="bpe:257")
    source = open_source(f"file:{tmp_path}/*", Reading(skip=True))
    assert source.files == (tmp_path / "good.txt",)
    assert sum(source.skipped.values()) == 1
    assert "".join(piece.text for piece in source.pieces()) == TEXT


def test_ordinary_text_that_looks_strange(tmp_path: Path) -> None:
    for text in (
        "version https://example.org\n",
        "BZh and ORC and PK\n",
        "<html><title>A page</title>\n",
        "[1] a\n",
        PROSE,
    ):
        (tmp_path / "a.txt").write_text(text)
        assert read(tmp_path / "a.txt") == text
    (tmp_path / "page.html").write_bytes(PAGE)
    assert read(tmp_path / "page.html") == PAGE.decode()


def test_a_name_with_control_characters_is_one_printable_line(tmp_path: Path) -> None:
    path = tmp_path / "a\x1b[31m\nb.txt"
    path.write_bytes(b"")
    message = failure(f"file:{tmp_path}/a*")
    assert f"{tmp_path}/a�[31m�b.txt: an empty file (0 bytes)" in message
    assert message.isprintable()


def test_links_that_lead_nowhere_and_pipes(tmp_path: Path) -> None:
    (tmp_path / "a.txt").symlink_to("../blobs/gone")
    message = failure(tmp_path / "a.txt")
    assert (
        f"a.txt: a link to ../blobs/gone, which is not there; bring its target back or remove the link, {SKIP}"
        in message
    )
    (tmp_path / "b.txt").symlink_to(".git/annex/objects/x1/k2/SHA256E-s7--00.txt")
    assert "run `git annex get` on it" in failure(tmp_path / "b.txt")
    (tmp_path / "c.txt").symlink_to("c.txt")
    assert "c.txt: a link to c.txt, which is not there" in failure(tmp_path / "c.txt")
    os.mkfifo(tmp_path / "d.txt")
    assert "d.txt: a pipe or device; save the text to a file" in failure(tmp_path / "d.txt")
    source_error = failure(f"file:{tmp_path}/*.txt")
    assert "d.txt: a pipe or device" in source_error
    assert source_error.count("dangling link") == 3
    (tmp_path / "e.txt").write_text(TEXT)
    source = open_source(f"file:{tmp_path}/*", Reading(skip=True))
    assert source.skipped == {"dangling link": 3, "not a regular file": 1}


def test_many_bad_files_are_named_together(tmp_path: Path) -> None:
    for number in range(9):
        (tmp_path / f"p{number}.txt").write_bytes(LFS)
    message = failure(f"file:{tmp_path}/*.txt")
    assert f"{tmp_path}/p0.txt: a Git-LFS pointer, not the text itself; run `git lfs pull`" in message
    assert message.endswith("p3.txt (Git-LFS pointer) and 5 more")


def test_a_fault_at_the_end_of_a_file_leaves_out_all_of_it(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(prose(60, seed=1).encode(), mtime=0)[:-9])
    (tmp_path / "c.txt").write_bytes(prose(60, seed=2).encode() + b"\xe9")
    (tmp_path / "d.jsonl").write_bytes(b'{"text": null}\n' * 3 + b"\n")
    source = open_source(f"file:{tmp_path}/*", Reading(skip=True))
    assert "".join(piece.text for piece in source.pieces()) == TEXT
    assert source.skipped == {"damaged gzip file": 1, "not UTF-8": 1, "text is null": 3}


@pytest.mark.parametrize("names", [("a.gz", "b.gz"), ("b.gz", "a.gz")])
def test_half_a_download_does_not_hide_the_whole(tmp_path: Path, names: tuple[str, str]) -> None:
    text = prose(2000)
    (tmp_path / names[0]).write_bytes(gzip.compress(text.encode(), mtime=0)[:-9])
    (tmp_path / names[1]).write_bytes(gzip.compress(text.encode(), mtime=0))
    source = open_source(f"file:{tmp_path}/*", Reading(skip=True))
    assert [path.name for path in source.files] == [names[1]]
    assert (source.copies, source.skipped) == (0, {"damaged gzip file": 1})
    assert f"{names[0]}: damaged gzip file" in failure(f"file:{tmp_path}/*")


@pytest.mark.parametrize(
    ("row", "problem", "reason"),
    [
        ('{"text": null}', ':2: "text" is null; give the row a text', "text is null"),
        ('{"text": {"en": "a"}}', ':2: "text" is an object, no text', "text is no string"),
        ('{"text": ["a"]}', ':2: "text" is a list, no text', "text is no string"),
        ('{"text": true}', ':2: "text" is true or false, no text', "text is no string"),
        ('{"id": 1}', ':2 has no "text"; its keys are id: give the row a text', 'no "text"'),
        ('{"id": 1, "body": "b"}', ':2 has no "text"; its keys are id, body: --set data.text_field=body', 'no "text"'),
        ("{}", ':2 has no "text"; it has no keys: give the row a text', 'no "text"'),
        ('"a"', ":2: no text; not an object such as", "row is not an object"),
        ('{"text": "a"', ":2: not a line of JSON: Expecting", "not JSON"),
        ('{"text": "\\ud800"}', ":2: the text holds half of a surrogate pair", "half of a surrogate pair"),
        ('{"text": "\xff"}', ": not UTF-8 at byte offset 24", "not UTF-8"),
    ],
)
def test_bad_rows(tmp_path: Path, row: str, problem: str, reason: str) -> None:
    lines = ROWS.splitlines(keepends=True)
    lines[:1] = ['{"text": "a"}\n', row + "\n"]
    path = tmp_path / "rows.jsonl"
    path.write_bytes("".join(lines).encode("latin-1"))
    message = failure(path, tokenizer="bpe:257")
    assert f"rows.jsonl{problem}" in message
    assert message.endswith(SKIP)
    said: list[str] = []
    config = data_config(path, on_bad_document="skip", tokenizer="bpe:257", held_out_fraction=0.3)
    tokens = data.prepare(config, log=said.append)
    assert tokens.counts["skipped"] == {reason: 1}
    assert said == [f"file:{path}: left out because data.on_bad_document is skip: 1 × {reason}"]
    # the same tokens as from a file without the row
    del lines[1]
    path.write_text("".join(lines))
    again = data.prepare(config)
    assert (again.fingerprint, again.counts["skipped"]) == (tokens.fingerprint, {})


def test_all_rows_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"content": "a"}\n' * 40)
    message = failure(tmp_path / "a.jsonl", on_bad_document="skip")
    assert 'the text is empty (left out: 40 × no "text"); give a source with text' in message


def test_the_field_of_the_text(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": "1", "content": "one", "meta": {"body": "deep", "a.b": 1}, "x.y": "dotted"}\n')
    assert read(path, text_field="content") == "one"
    assert read(path, text_field="meta.body") == "deep"
    assert read(path, text_field="x.y") == "dotted"
    keys = "its keys are id, content, meta, x.y"
    assert f'a.jsonl:1 has no "text"; {keys}: --set data.text_field=content' in failure(path)
    assert f'has no "meta.text"; {keys}' in failure(path, text_field="meta.text")
    path.write_text('{"id": "1", "data": {"text": "deep"}}\n')
    assert "--set data.text_field=data.text" in failure(path)


def test_the_field_of_the_text_in_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"body": ["one", None], "meta": [{"text": "deep"}, {"text": "er"}]}), path)
    assert read(path, text_field="meta.text") == "deeper"
    source = open_source(f"file:{path}", Reading(text_field="body", skip=True))
    assert [piece.text for piece in source.pieces()] == ["one"]
    assert source.skipped == {"text is null": 1}


def test_a_file_that_vanishes_while_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    (tmp_path / "b.txt").write_text(prose(60, seed=1))

    def remove(what: str, done: int, total: int | None) -> None:
        (tmp_path / "b.txt").unlink(missing_ok=True)

    with pytest.raises(DataError, match=r"b\.txt: cannot read: No such file or directory; check the file"):
        data.prepare(data_config(f"file:{tmp_path}/*.txt"), progress=remove)
