"""Text sources: the standard library, files and Hugging Face datasets, read document by document."""

import codecs
import contextlib
import glob
import gzip
import importlib
import json
import os
import sysconfig
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from bitnetctl.config import did_you_mean
from bitnetctl.errors import DataError, one_line

Progress = Callable[[str, int, int | None], None]
"""Called with the name of a stage, the work done, and the total work where it is known."""

_SPECS = "stdlib, file:GLOB or hf:DATASET[/CONFIG]"
_READ_BYTES = 1 << 20
# tests, and files that differ between builds of one Python version
_STDLIB_SKIPPED = {
    *("test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"),
    *("lib2to3", "ensurepip", "lib-dynload"),
}


def no_progress(stage: str, done: int, total: int | None) -> None:
    """A progress callback that does nothing."""


def expand(text: str) -> Path:
    """Return a path with `~` expanded; `~name` of an unknown user stays as it is."""
    try:
        return Path(os.path.expanduser(text))  # noqa: PTH111 - Path.expanduser raises for an unknown user
    except ValueError:
        return Path(text)


def is_file(path: Path) -> bool:
    """Whether there is a file; False for a name that no file system allows."""
    return os.path.isfile(path)  # noqa: PTH113 - Path.is_file raises for a long name


def is_folder(path: Path) -> bool:
    """Whether there is a folder; False for a name that no file system allows."""
    return os.path.isdir(path)  # noqa: PTH112 - Path.is_dir raises for a long name


class Piece(NamedTuple):
    """Part of a document; `ends` is True for its last part."""

    text: str
    ends: bool


@dataclass(frozen=True, kw_only=True)
class Source:
    """A text; each call of `pieces` reads it from the start. `files` is empty for a Hugging Face dataset."""

    spec: str
    files: frozenset[Path]
    pieces: Callable[[], Iterator[Piece]]


class ProgressMeter:
    """Count characters and report them to a progress callback, about once per million."""

    def __init__(self, progress: Progress, stage: str, total: int | None) -> None:
        self._progress, self._stage, self._total = progress, stage, total
        self._done = 0
        self._next = 0

    def add(self, characters: int) -> None:
        """Count `characters` more."""
        self._done += characters
        if self._done >= self._next:
            self._progress(self._stage, self._done, self._total)
            self._next = self._done + (1 << 20)

    def repeat(self) -> None:
        """Report the current count, so that the callback is called although nothing was added."""
        self._progress(self._stage, self._done, self._total)

    def finish(self) -> None:
        """Report that the stage is complete."""
        self._progress(self._stage, self._done, self._done)


def open_source(spec: str) -> Source:
    """Open the source that a spec names; raises DataError.

    `stdlib` is the installed Python standard library without its tests. `file:GLOB` are plain text, `.jsonl` or
    `.parquet` files, the first two also as `.gz`. `hf:NAME` is the train split of a Hugging Face dataset: `hf:A/B` is
    dataset B of organization A if there is one, else config B of dataset A; `hf:A/B/C` is config C of A/B.
    """
    scheme, colon, rest = spec.partition(":")
    if spec == "stdlib":
        return _stdlib()
    if scheme == "file" and rest:
        return _files(spec, rest)
    if scheme == "hf" and rest:
        return _hub(spec, rest)
    if colon and scheme in ("file", "hf"):
        raise DataError(f"data source {spec!r} names nothing after the colon: expected {_SPECS}")
    if not colon and (is_file(expand(spec)) or is_folder(expand(spec))):
        raise DataError(f"unknown data source {spec!r}; did you mean 'file:{spec}'?")
    hint = did_you_mean(scheme, ["stdlib", "file", "hf"])
    raise DataError(f"unknown data source {spec!r}{hint or ':'} expected {_SPECS}")


def _stdlib() -> Source:
    root = Path(sysconfig.get_path("stdlib"))
    paths: list[Path] = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in _STDLIB_SKIPPED]
        scripts = (name for name in names if name.endswith(".py") and not name.startswith("_sysconfigdata"))
        paths += [Path(folder, name) for name in scripts]
    if not paths:
        raise DataError(f"data source stdlib: no Python source under {root}; use file:GLOB")
    paths.sort(key=Path.as_posix)

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
    return Source(
        spec=spec,
        files=frozenset(path.resolve() for path in paths),
        pieces=lambda: chain.from_iterable(map(_file_pieces, paths)),
    )


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
def _read_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: damaged gzip file: {one_line(error)}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot read: {error.strerror or error}") from error


def _not_utf8(path: Path, offset: int) -> DataError:
    return DataError(f"{path}: not UTF-8 at byte offset {offset}; convert the file to UTF-8")


def _text_pieces(path: Path) -> Iterator[Piece]:
    # utf-8-sig drops a byte-order mark
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    read = 0
    with _read_errors(path), _open(path) as file:
        try:
            while chunk := file.read(_READ_BYTES):
                read += len(chunk)
                yield Piece(decoder.decode(chunk), False)
            yield Piece(decoder.decode(b"", final=True), True)
        except UnicodeDecodeError as error:
            raise _not_utf8(path, read - len(error.object) + error.start) from error


def _jsonl_pieces(path: Path) -> Iterator[Piece]:
    read = 0
    with _read_errors(path), _open(path) as file:
        for number, line in enumerate(file, 1):
            read += len(line)
            content = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if not content.strip():
                continue
            try:
                value = json.loads(content.decode())
            except UnicodeDecodeError as error:
                raise _not_utf8(path, read - len(content) + error.start) from error
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path}:{number}: not a line of JSON: {one_line(error)}") from error
            text = value.get("text") if isinstance(value, dict) else None
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
    with _read_errors(path):
        try:
            with parquet.ParquetFile(path) as file:
                _require_text_column(file.schema_arrow.names, str(path))
                batches = file.iter_batches(columns=["text"])
                texts = chain.from_iterable(batch.column(0).to_pylist() for batch in batches)
                for row, text in enumerate(texts, 1):
                    yield _row_piece(text, row, str(path))
        except pyarrow.ArrowException as error:
            raise DataError(f"{path}: not a readable parquet file: {one_line(error)}") from error
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: the text column is not UTF-8 after row {row}") from error


def _hub(spec: str, name: str) -> Source:
    parts = name.split("/")
    if len(parts) > 3 or not all(parts):
        raise DataError(f"data source {spec}: expected hf:NAME, hf:ORG/NAME, hf:NAME/CONFIG or hf:ORG/NAME/CONFIG")
    whole, with_config = [name], name.rsplit("/", 1)
    dataset = _load_hub(spec, {1: [whole], 2: [whole, with_config], 3: [with_config]}[len(parts)])
    _require_text_column(dataset.column_names, f"data source {spec}")
    rows = dataset.select_columns(["text"])

    def pieces() -> Iterator[Piece]:
        texts = chain.from_iterable(batch["text"] for batch in rows.iter(batch_size=1000))
        return (_row_piece(text, row, f"data source {spec}") for row, text in enumerate(texts, 1))

    return Source(spec=spec, files=frozenset(), pieces=pieces)


def _require_text_column(columns: list[str], name: str) -> None:
    if "text" not in columns:
        raise DataError(f"{name}: no column 'text'; columns: {', '.join(columns)}")


def _row_piece(text: object, row: int, name: str) -> Piece:
    if not isinstance(text, str):
        raise DataError(f"{name}: row {row} has no text")
    return Piece(text, True)


def _load_hub(spec: str, candidates: list[list[str]]) -> Any:
    """Load the first candidate, [name] or [name, config], that can be loaded."""
    try:
        datasets = importlib.import_module("datasets")
    except ImportError as error:
        raise DataError(f"data source {spec}: needs the datasets library: pip install 'bitnetctl[hf]'") from error
    datasets.disable_progress_bars()
    errors: list[Exception] = []
    for candidate in candidates:
        try:
            return datasets.load_dataset(*candidate, split="train")
        except Exception as error:  # the hub, the network or a dataset's own reader may raise anything
            errors.append(error)
    # "not found" for one of two candidates is the least informative error
    cause = next((error for error in errors if not isinstance(error, FileNotFoundError)), errors[0])
    raise DataError(
        f"data source {spec}: {one_line(cause)}; check the name and the network, or use file:GLOB"
    ) from cause
