"""Where text comes from, one document after another, and which blocks of it are held out."""

import codecs
import contextlib
import glob
import gzip
import hashlib
import importlib
import json
import os
import sysconfig
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from bitnetctl.config import near_miss
from bitnetctl.errors import DataError

Progress = Callable[[str, int, int | None], None]

_FORMS = "stdlib, file:GLOB or hf:DATASET[/CONFIG]"
_READ_BYTES = 1 << 20
_BLOCK_CHARACTERS = 1 << 16
# tests, and what differs between builds of one Python version
_STDLIB_SKIPPED = {
    *("test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"),
    *("lib2to3", "ensurepip", "lib-dynload"),
}


def ignore(what: str, done: int, total: int | None) -> None:
    """Report progress to nobody."""


def one_line(error: BaseException) -> str:
    """Say a foreign library's error in one line of at most 300 characters."""
    return (" ".join(str(error).split()) or type(error).__name__)[:300]


def expand(text: str) -> Path:
    """Return a path with `~` expanded; a user that does not exist is part of the name."""
    try:
        return Path(os.path.expanduser(text))  # noqa: PTH111 - Path.expanduser raises for an unknown user
    except ValueError:
        return Path(text)


def is_file(path: Path) -> bool:
    """Whether there is a file, also for names that no file system can hold."""
    return os.path.isfile(path)  # noqa: PTH113 - Path.is_file raises for a long name


def is_folder(path: Path) -> bool:
    """Whether there is a folder, also for names that no file system can hold."""
    return os.path.isdir(path)  # noqa: PTH112 - Path.is_dir raises for a long name


class Piece(NamedTuple):
    """A stretch of a document; `ends` says that the document is over."""

    text: str
    ends: bool


class Block(NamedTuple):
    """A non-empty stretch of a document on one side of the split."""

    text: str
    held_out: bool
    ends: bool


@dataclass(frozen=True, kw_only=True)
class Source:
    """A text that can be read more than once."""

    spec: str
    files: frozenset[Path]
    pieces: Callable[[], Iterator[Piece]]


class TextHash:
    """BLAKE2b of documents in order, independent of how their text is cut into pieces."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=32)
        self._open = False
        self.characters = 0

    def update(self, text: str, ends: bool) -> None:
        """Add a stretch of the current document."""
        self._hash.update(text.encode())
        self.characters += len(text)
        self._open = self._open or bool(text)
        if ends and self._open:
            # 0xff never occurs in UTF-8, so the document's end cannot be mistaken for text
            self._hash.update(b"\xff")
            self._open = False

    @property
    def digest(self) -> str:
        """Hex digest of what was added so far."""
        return self._hash.hexdigest()


class Meter:
    """Report characters to a progress callback about once a million."""

    def __init__(self, progress: Progress, what: str, total: int | None) -> None:
        self._progress, self._what, self._total = progress, what, total
        self._done = 0
        self._next = 0

    def add(self, characters: int) -> None:
        """Count `characters` more."""
        self._done += characters
        if self._done >= self._next:
            self._progress(self._what, self._done, self._total)
            self._next = self._done + (1 << 20)

    def again(self) -> None:
        """Report what was reported last."""
        self._progress(self._what, self._done, self._total)

    def finish(self) -> None:
        """Report the end."""
        self._progress(self._what, self._done, self._done)


def open_source(spec: str) -> Source:
    """Return the source that a spec names.

    `stdlib` is the installed Python standard library without its tests; `file:GLOB` plain text, `.jsonl` or
    `.parquet` files, the first two also `.gz`; `hf:NAME` a dataset's train split. `hf:A/B` is dataset B of
    organization A if there is one, else config B of dataset A; `hf:A/B/C` is config C of A/B.
    Raises DataError.
    """
    scheme, colon, rest = spec.partition(":")
    if spec == "stdlib":
        return _stdlib()
    if scheme == "file" and rest:
        return _files(spec, rest)
    if scheme == "hf" and rest:
        return _hub(spec, rest)
    if colon and scheme in ("file", "hf"):
        raise DataError(f"data source {spec!r} names nothing after the colon: expected {_FORMS}")
    if not colon and (is_file(expand(spec)) or is_folder(expand(spec))):
        raise DataError(f"unknown data source {spec!r}; did you mean 'file:{spec}'?")
    hint = near_miss(scheme, ["stdlib", "file", "hf"])
    raise DataError(f"unknown data source {spec!r}{hint or ':'} expected {_FORMS}")


def read_hash(source: Source, progress: Progress) -> TextHash:
    """Read the whole text once and return its hash and length; raises DataError when it is empty."""
    meter = Meter(progress, "reading text", None)
    content = TextHash()
    for piece in source.pieces():
        content.update(*piece)
        meter.add(len(piece.text))
    meter.finish()
    if not content.characters:
        raise DataError(f"data source {source.spec}: the text is empty")
    return content


def block_characters(characters: int, fraction: float) -> int:
    """Length of a block: 64 Ki characters, less for a small text, so that both sides get several blocks."""
    if fraction in (0.0, 1.0):
        return _BLOCK_CHARACTERS
    smaller_share = min(fraction, 1.0 - fraction)
    return max(16, min(_BLOCK_CHARACTERS, int(characters * smaller_share / 4)))


def split_blocks(pieces: Iterable[Piece], *, fraction: float, size: int) -> Iterator[Block]:
    """Cut documents at line boundaries into blocks of `size` to twice `size` characters, and hold some out.

    A block is held out when that brings the held-out share of all characters so far closer to `fraction`,
    which spreads the held-out blocks evenly. The result does not depend on how pieces cut the text.
    """
    seen = held = 0
    for text, ends in _cut(pieces, size):
        seen += len(text)
        is_held = held + len(text) / 2 <= fraction * seen
        held += len(text) if is_held else 0
        yield Block(text, is_held, ends)


def _cut(pieces: Iterable[Piece], size: int) -> Iterator[Piece]:
    buffer = ""
    for text, ends in pieces:
        buffer += text
        start = 0
        while len(buffer) - start > 2 * size:
            end = _boundary(buffer, start + size, start + 2 * size)
            yield Piece(buffer[start:end], False)
            start = end
        buffer = buffer[start:]
        if ends:
            if buffer:
                yield Piece(buffer, True)
            buffer = ""


def _boundary(text: str, low: int, high: int) -> int:
    line_end = text.find("\n", low - 1, high)
    if line_end >= 0:
        return line_end + 1
    # a line longer than a block breaks in front of a space, as byte-level tokens do, or anywhere
    space = text.find(" ", low, high)
    return space if space >= 0 else low


def _stdlib() -> Source:
    root = Path(sysconfig.get_path("stdlib"))
    found: dict[str, Path] = {}
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in _STDLIB_SKIPPED]
        for name in names:
            if name.endswith(".py") and not name.startswith("_sysconfigdata"):
                path = Path(folder, name)
                found[path.relative_to(root).as_posix()] = path
    if not found:
        raise DataError(f"data source stdlib: no Python source under {root}; use file:GLOB")
    paths = [found[name] for name in sorted(found)]

    def pieces() -> Iterator[Piece]:
        for path in paths:
            try:
                text = path.read_bytes().decode()
            except (OSError, UnicodeDecodeError):
                continue
            yield Piece(text, True)

    return Source(spec="stdlib", files=frozenset(paths), pieces=pieces)


def _files(spec: str, pattern: str) -> Source:
    literal = expand(pattern)
    if is_folder(literal):
        raise DataError(f"data source {spec}: is a folder; use 'file:{pattern.rstrip('/')}/**/*.txt' or the like")
    # Path.glob takes no absolute pattern
    names = [literal] if is_file(literal) else map(Path, glob.glob(str(literal), recursive=True))  # noqa: PTH207
    paths = sorted({path for path in names if is_file(path)}, key=Path.as_posix)
    if not paths:
        is_glob = glob.has_magic(pattern)
        raise DataError(f"data source {spec}: {'the glob matches no file' if is_glob else 'there is no such file'}")

    def pieces() -> Iterator[Piece]:
        for path in paths:
            yield from _file_pieces(path)

    return Source(spec=spec, files=frozenset(path.resolve() for path in paths), pieces=pieces)


def _file_pieces(path: Path) -> Iterator[Piece]:
    name = path.name.lower().removesuffix(".gz")
    if name.endswith(".parquet"):
        return _parquet_pieces(path)
    if name.endswith(".jsonl"):
        return _jsonl_pieces(path)
    return _text_pieces(path)


def _open(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path, "rb")) if path.name.lower().endswith(".gz") else path.open("rb")


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: damaged gzip file: {one_line(error)}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot read: {error.strerror or error}") from error


def _not_utf8(path: Path, offset: int) -> DataError:
    return DataError(f"{path}: not UTF-8 at byte offset {offset}; convert the file to UTF-8")


def _text_pieces(path: Path) -> Iterator[Piece]:
    # -sig: a byte-order mark in front of the text is no text
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    read = 0
    with _reading(path), _open(path) as file:
        try:
            while chunk := file.read(_READ_BYTES):
                read += len(chunk)
                yield Piece(decoder.decode(chunk), False)
            yield Piece(decoder.decode(b"", final=True), True)
        except UnicodeDecodeError as error:
            raise _not_utf8(path, read - len(error.object) + error.start) from error


def _jsonl_pieces(path: Path) -> Iterator[Piece]:
    read = 0
    with _reading(path), _open(path) as file:
        for number, line in enumerate(file, 1):
            read += len(line)
            content = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if not content.strip():
                continue
            try:
                record = json.loads(content.decode())
            except UnicodeDecodeError as error:
                raise _not_utf8(path, read - len(content) + error.start) from error
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path}:{number}: not a line of JSON: {one_line(error)}") from error
            text = record.get("text") if isinstance(record, dict) else None
            if not isinstance(text, str):
                raise DataError(f'{path}:{number}: no text; expected an object such as {{"text": "..."}}')
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise DataError(f"{path}:{number}: the text holds half of a surrogate pair") from error
            yield Piece(text, True)


def _parquet_pieces(path: Path) -> Iterator[Piece]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise DataError(f"{path}: reading parquet needs pyarrow: pip install 'bitnetctl[parquet]'") from error
    row = 0
    with _reading(path):
        try:
            with parquet.ParquetFile(path) as file:
                columns = file.schema_arrow.names
                if "text" not in columns:
                    raise DataError(f"{path}: no column 'text'; columns: {', '.join(columns)}")
                for batch in file.iter_batches(columns=["text"]):
                    for text in batch.column(0).to_pylist():
                        row += 1
                        if not isinstance(text, str):
                            raise DataError(f"{path}: row {row} has no text")
                        yield Piece(text, True)
        except pyarrow.ArrowException as error:
            raise DataError(f"{path}: not a readable parquet file: {one_line(error)}") from error
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: the text column is not UTF-8 after row {row}") from error


def _hub(spec: str, name: str) -> Source:
    parts = name.split("/")
    if len(parts) > 3 or not all(parts):
        raise DataError(f"data source {spec}: expected hf:NAME, hf:ORG/NAME, hf:NAME/CONFIG or hf:ORG/NAME/CONFIG")
    readings: list[tuple[str, str | None]]
    if len(parts) == 3:
        readings = [("/".join(parts[:2]), parts[2])]
    else:
        readings = [(name, None), *([(parts[0], parts[1])] if len(parts) == 2 else [])]
    dataset = _load_hub(spec, readings)
    if "text" not in dataset.column_names:
        raise DataError(f"data source {spec}: no column 'text'; columns: {', '.join(dataset.column_names)}")
    rows = dataset.select_columns(["text"])

    def pieces() -> Iterator[Piece]:
        number = 0
        for batch in rows.iter(batch_size=1000):
            for text in batch["text"]:
                number += 1
                if not isinstance(text, str):
                    raise DataError(f"data source {spec}: row {number} has no text")
                yield Piece(text, True)

    return Source(spec=spec, files=frozenset(), pieces=pieces)


def _load_hub(spec: str, readings: list[tuple[str, str | None]]) -> Any:
    try:
        datasets = importlib.import_module("datasets")
    except ImportError as error:
        raise DataError(f"data source {spec}: needs the datasets library: pip install 'bitnetctl[hf]'") from error
    datasets.disable_progress_bars()
    errors: list[Exception] = []
    for name, config in readings:
        try:
            return datasets.load_dataset(name, config, split="train")
        except Exception as error:  # whatever the hub, the network or a dataset's own reader may raise
            errors.append(error)
    # that one of two readings of the name does not exist says less than any other failure
    cause = next((error for error in errors if not isinstance(error, FileNotFoundError)), errors[0])
    raise DataError(
        f"data source {spec}: {one_line(cause)}; check the name and the network, or use file:GLOB"
    ) from cause
