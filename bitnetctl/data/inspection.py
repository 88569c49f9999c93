"""What is in a file: text, JSON lines or parquet, compressed or not; what cannot be text is refused, with a remedy."""

import bz2
import codecs
import contextlib
import gzip
import hashlib
import importlib
import json
import lzma
import re
import stat
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, cast

from bitnetctl.data.listing import BadDocumentError
from bitnetctl.errors import DataError, one_line

Kind = Literal["text", "jsonl", "parquet"]

_HEAD_BYTES = 1 << 14
_MAGIC_BYTES = 10
_AGAIN = "download it again"


def _open_zstd(path: Path, mode: str) -> Any:
    # in Python since 3.14, where it was built with it
    for module in ("compression.zstd", "backports.zstd"):
        with contextlib.suppress(ImportError):
            zstd = importlib.import_module(module)
            # large dumps are written with --long=31, beyond the default window
            window = zstd.DecompressionParameter.window_log_max
            return zstd.open(path, mode, options={window: window.bounds()[1]})
    raise DataError(f"{path}: reading zstd needs a library: pip install backports.zstd")


_OPENERS: dict[str, tuple[re.Pattern[bytes], Callable[..., Any]]] = {
    ".gz": (re.compile(rb"\x1f\x8b\x08"), gzip.open),
    ".bz2": (re.compile(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)"), bz2.open),
    ".xz": (re.compile(rb"\xfd7zXZ\x00"), lzma.open),
    # pzstd begins with a skippable frame
    ".zst": (re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18"), _open_zstd),
}
_DAMAGE = (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError)
_NAMES = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd"}

_UNPACK = "unpack it and name the text files in it"
_CONVERT = "convert it to .parquet, .jsonl or .txt"
_NOT_TOKENS = "tokens and arrays are not read: give the text that they were made from"
_MAGIC: tuple[tuple[bytes, str, str], ...] = (
    (b"PK\x03\x04", "a zip archive (or an office document)", _UNPACK),
    (b"PK\x05\x06", "an empty zip archive", _UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (b"Rar!\x1a\x07", "a rar archive", _UNPACK),
    (b"\x04\x22\x4d\x18", "lz4-compressed", "decompress it (lz4 -d), or use .gz, .bz2, .xz or .zst"),
    (b"\x1f\x9d", "compressed by `compress`", "decompress it (gzip -d), or use .gz, .bz2, .xz or .zst"),
    (b"ARROW1\x00\x00", "an Arrow file", _CONVERT),
    (b"\xff\xff\xff\xff", "an Arrow stream or binary data", _CONVERT),
    (b"Obj\x01", "an Avro file", _CONVERT),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file", _CONVERT),
    (b"SQLite format 3\x00", "an SQLite database", _CONVERT),
    (b"\x93NUMPY", "a numpy array", _NOT_TOKENS),
    (b"MMIDIDX\x00", "an index of tokens", _NOT_TOKENS),
    (b"%PDF-", "a PDF", "extract its text first (pdftotext)"),
    (b"%!PS", "a PostScript file", "extract its text first (ps2ascii)"),
    (b"{\\rtf", "an RTF document", "save it as plain text"),
    (b"WARC/", "an archive of web pages", "extract their text first"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an office document", "save it as plain text"),
)
_LFS = re.compile(rb"version https://(git-lfs\.github\.com|hawser\.github\.com)/spec/v\d+\s+(ext-\S+ \S+\s+)*oid ")
_DVC = re.compile(rb"(md5: \w+\s+)?outs:\s+- (md5|etag|hash|path): ")
_ANNEX = re.compile(rb"\s*(\.\./)*/?(\.git/)?annex/objects/\S+\s*\Z")
# only a title that is nothing but a status: pages about errors are text like any other
_HTML_ERROR = re.compile(
    rb"\s*(<!doctype html|<html).*?<title[^>]*>\s*("
    rb"(error:? )?[45]\d\d\b|(page )?not found|access denied|forbidden|unauthorized|service unavailable|bad gateway|"
    rb"sign in|log in|just a moment|attention required|google drive - (quota|virus)"
    rb")[^<]{0,40}</title>",
    re.IGNORECASE | re.DOTALL,
)
_TEXT_ERROR = re.compile(
    rb"\s*(404: not found|not found|entry not found|repository not found|access denied|forbidden|unauthorized|"
    rb"invalid username or password|bad gateway|too many requests)\.?\s*\Z",
    re.IGNORECASE,
)
_XML_ERROR = re.compile(rb"\s*(<\?xml[^>]*>)?\s*<Error><Code>\w+</Code>")
_CONTROL = bytes({*range(1, 32), 127} - {*b"\b\t\n\v\f\r\x1b"})
_MUCH_CONTROL = 0.05
_FIRST_ROWS = 4
_ROW_START = re.compile(r'\{\s*"[^"\\]{1,80}"\s*:\s*["\d\[{tfn-]')
_ROWS = (".jsonl", ".ndjson", ".json")
_BOMS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


class Mark(NamedTuple):
    """What tells files apart: device and inode, and a hash of the beginning, the same for copies of a file."""

    file: tuple[int, int]
    start: bytes


@dataclass(frozen=True)
class Format:
    """How a file is to be read; `encoding` is utf-8-sig unless a byte-order mark says otherwise."""

    kind: Kind
    encoding: str
    mark: Mark


def inspect(path: Path) -> Format:
    """Return the format of a file by its first bytes and its name; raises BadDocumentError."""
    with read_errors(path):
        file_id = _require_regular(path)
        with path.open("rb") as file:
            raw = file.read(_HEAD_BYTES)
        if not raw:
            raise BadDocumentError(path, "empty file", f"{_AGAIN} or remove it", "an empty file (0 bytes)")
        if raw.startswith(b"PAR1"):
            return Format("parquet", "", Mark(file_id, start_hash(raw)))
        _refuse_other_formats(path, raw)
        head = raw
        if (suffix := _compression(path, raw)) is not None:
            _refuse_uncompressed(path, suffix, raw)
            with open_bytes(path) as content:
                head = content.read(_HEAD_BYTES)
            _refuse_compressed(path, head)
            _refuse_other_formats(path, head)
    name = _inner_name(path)
    if name.endswith(".parquet"):
        return Format("parquet", "", Mark(file_id, start_hash(head)))
    encoding = next((name for mark, name in _BOMS if head.startswith(mark)), "utf-8-sig")
    if encoding == "utf-8-sig":
        _refuse_binary(path, head)
    text = head.decode(encoding, errors="replace").removeprefix("\ufeff").lstrip()
    if name.endswith(_ROWS):
        _refuse_array(path, text)
        return Format("jsonl", encoding, Mark(file_id, start_hash(head)))
    _refuse_rows(path, name, text)
    return Format("text", encoding, Mark(file_id, start_hash(head)))


def start_hash(content: bytes) -> bytes:
    """Return a hash of the beginning of the content of a file, of which all or at least 16 KiB is given."""
    # of 16 KiB, half may be carriage returns
    return hashlib.blake2b(plain(content[:_HEAD_BYTES])[: _HEAD_BYTES // 2], digest_size=16).digest()


def plain(content: bytes) -> bytes:
    """Return content without carriage returns and byte-order mark, which copies may differ by."""
    return content.removeprefix(codecs.BOM_UTF8).replace(b"\r", b"")


def is_lfs_pointer(content: bytes) -> bool:
    """Whether content is what Git-LFS leaves in place of a file."""
    return _LFS.match(content) is not None


def open_bytes(path: Path) -> BinaryIO:
    """Open a file for reading, decompressed by its first bytes, or as its name says where these are unknown."""
    file = path.open("rb")
    suffix = _compression(path, file.read(_MAGIC_BYTES))
    if suffix is None:
        file.seek(0)
        return file
    file.close()
    return cast(BinaryIO, _OPENERS[suffix][1](path, "rb"))


def _compression(path: Path, head: bytes) -> str | None:
    """Return the suffix of the compression of a file, None if it is not compressed."""
    for suffix, (magic, _) in _OPENERS.items():
        if magic.match(head):
            return suffix
    suffix = _suffix(path)
    return suffix if suffix in _OPENERS else None


def _suffix(path: Path) -> str:
    suffix = path.suffix.lower()
    return {".zstd": ".zst", ".lzma": ".xz"}.get(suffix, suffix)


@contextlib.contextmanager
def read_errors(path: Path) -> Iterator[None]:
    """Turn errors of reading a file into BadDocumentError."""
    try:
        yield
    except Exception as error:
        # bz2 raises a bare OSError; the zstd library may not be there
        is_bare = isinstance(error, OSError) and error.errno is None
        if is_bare or isinstance(error, _DAMAGE) or type(error).__name__ == "ZstdError":
            reason = f"damaged {_NAMES.get(_suffix(path), 'compressed')} file"
            raise BadDocumentError(path, reason, _AGAIN, f"{reason}: {one_line(error)}") from error
        if not isinstance(error, OSError):
            raise
        remedy = "make it readable for this user" if isinstance(error, PermissionError) else "check the file"
        reason = f"cannot read: {error.strerror or error}"
        raise BadDocumentError(path, reason, remedy) from error


def not_utf8(path: Path, encoding: str, offset: int, content: bytes) -> BadDocumentError:
    """Return the error for bytes that are no text in the encoding; `content` is the text around them."""
    if b"\x00" in content and encoding == "utf-8-sig":
        return binary(path, offset)
    if encoding != "utf-8-sig":
        name = encoding.upper()
        return BadDocumentError(path, f"not {name}", _AGAIN, f"not {name} at byte offset {offset}")
    remedy = f"convert the file to UTF-8 (for Latin-1: iconv -f ISO-8859-1 -t UTF-8 {path.name} > new.txt)"
    return BadDocumentError(path, "not UTF-8", remedy, f"not UTF-8 at byte offset {offset}")


def binary(path: Path, offset: int) -> BadDocumentError:
    """Return the error for a byte that is in no text."""
    what = f"binary, not text (byte offset {offset})"
    return BadDocumentError(path, "binary, not text", f"{_NOT_TOKENS} (UTF-16 needs a byte-order mark)", what)


def _inner_name(path: Path) -> str:
    name = path.name.lower()
    return name.removesuffix(path.suffix.lower()) if _suffix(path) in _OPENERS else name


def _require_regular(path: Path) -> tuple[int, int]:
    """Return device and inode of a regular file."""
    try:
        status = path.stat()
    except OSError as error:
        if isinstance(error, PermissionError) or not path.is_symlink():
            raise
        target = path.readlink()
        is_annex = "annex/objects" in target.as_posix()
        remedy = "run `git annex get` on it" if is_annex else "bring its target back or remove the link"
        what = f"a link to {target}, which is not there"
        raise BadDocumentError(path, "dangling link", remedy, what) from error
    if not stat.S_ISREG(status.st_mode):
        raise BadDocumentError(
            path, "not a regular file", "save the text to a file, since it is read several times", "a pipe or device"
        )
    return status.st_dev, status.st_ino


def _refuse_other_formats(path: Path, head: bytes) -> None:
    for magic, what, remedy in _MAGIC:
        if head.startswith(magic):
            raise BadDocumentError(path, f"{what}, not text", remedy)
    if head.startswith(b"ustar", 257) and b"\x00" in head[:257]:
        raise BadDocumentError(path, "a tar archive, not text", _UNPACK)
    if is_lfs_pointer(head):
        raise BadDocumentError(path, "Git-LFS pointer", "run `git lfs pull`", "a Git-LFS pointer, not the text itself")
    if _ANNEX.match(head):
        what = "a git-annex pointer, not the text itself"
        raise BadDocumentError(path, "git-annex pointer", "run `git annex get`", what)
    if _DVC.match(head):
        raise BadDocumentError(path, "DVC pointer", "run `dvc pull`", "a DVC pointer, not the text itself")
    is_page = path.suffix.lower() in (".html", ".htm", ".xhtml", ".xml")
    if _XML_ERROR.match(head) or _TEXT_ERROR.match(head) or (not is_page and _HTML_ERROR.match(head)):
        what = "the error page of a web server, not the text itself"
        raise BadDocumentError(path, "error page of a web server", _AGAIN, what)


def _refuse_uncompressed(path: Path, suffix: str, raw: bytes) -> None:
    """Refuse a text whose name says that it is compressed."""
    if _OPENERS[suffix][0].match(raw) or b"\x00" in raw or _has_much_control(raw):
        return
    with contextlib.suppress(UnicodeDecodeError):
        codecs.getincrementaldecoder("utf-8")().decode(raw)
        what = f"not compressed, though its name says {_NAMES[suffix]}"
        raise BadDocumentError(path, "not compressed", f"rename it to {path.stem}", what)


def _refuse_compressed(path: Path, head: bytes) -> None:
    """Refuse compressed content within a compressed file."""
    for suffix, (magic, _) in _OPENERS.items():
        if magic.match(head):
            raise BadDocumentError(path, "compressed twice", "decompress it once", f"{_NAMES[suffix]} in it once more")
    if head.startswith(b"PAR1"):
        raise BadDocumentError(path, "compressed parquet file", "decompress it, parquet is compressed as it is")


def _refuse_binary(path: Path, head: bytes) -> None:
    position = head.find(b"\x00")
    if position < 0:
        if _has_much_control(head):
            raise binary(path, next(at for at, byte in enumerate(head) if byte in _CONTROL))
        return
    for encoding in ("UTF-16LE", "UTF-16BE"):
        with contextlib.suppress(UnicodeDecodeError):
            text = head[: len(head) // 2 * 2].decode(encoding)
            if sum(each.isascii() and (each.isprintable() or each.isspace()) for each in text) > 0.9 * len(text):
                remedy = f"convert it (iconv -f {encoding} -t UTF-8 {path.name} > new.txt)"
                raise BadDocumentError(path, "UTF-16 without a byte-order mark", remedy)
    raise binary(path, position)


def _has_much_control(head: bytes) -> bool:
    return len(head) - len(head.translate(None, _CONTROL)) > _MUCH_CONTROL * len(head)


def _refuse_array(path: Path, head: str) -> None:
    """Refuse one JSON document where one on every line is expected."""
    if head.startswith("["):
        rows = ".[] | {text: .}" if re.match(r'\[\s*"', head) else ".[]"
        what, remedy = "a JSON array; JSON lines are expected", f"convert it (jq -c '{rows}' {path.name} > new.jsonl)"
        raise BadDocumentError(path, "JSON array", remedy, what)
    if re.match(r"\{\s*\n", head):
        what, remedy = "JSON over several lines", f"convert it to one object a line (jq -c . {path.name} > new.jsonl)"
        raise BadDocumentError(path, "JSON over several lines", remedy, f"{what}; JSON lines are expected")


def _refuse_rows(path: Path, name: str, head: str) -> None:
    """Refuse rows under a name that does not say so, which would be read as one text with their keys and commas."""
    if name.endswith((".csv", ".tsv")):
        raise BadDocumentError(path, "a table, not text", f"{_CONVERT} (one column of a table holds the text)")
    if re.match(r'\[\s*\{\s*"', head):
        raise BadDocumentError(path, "JSON array, not text", f"convert it (jq -c '.[]' {path.name} > new.jsonl)")
    # what is cut off at the end of the head is no row
    lines = [line for line in head.split("\n")[:_FIRST_ROWS] if line.strip()]
    is_long_row = len(lines) == 1 and _ROW_START.match(head) is not None
    if is_long_row or (len(lines) > 1 and all(map(_is_row, lines[:-1]))):
        raise BadDocumentError(path, "JSON lines, not text", f"rename it to {Path(name).stem}.jsonl")


def _is_row(line: str) -> bool:
    try:
        return line.lstrip().startswith("{") and isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False
