"""The documents of a file: the text of a plain file, and of every row of JSON lines or parquet."""

import codecs
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from bitnetctl.data.inspection import Format, binary, inspect, not_utf8, open_bytes, read_errors
from bitnetctl.data.listing import BadDocumentError
from bitnetctl.errors import DataError, one_line
from bitnetctl.units import shortened

_READ_BYTES = 1 << 20
_MOST_KEYS = 12
_LIKELY_FIELDS = ("text", "content", "body", "document", "article", "story", "raw_content", "completion")


class Piece(NamedTuple):
    """Part of a document; `ends` is True for its last part."""

    text: str
    ends: bool


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How documents are read: the field of a row that holds its text, and whether bad files and rows are left out.

    `skipped` counts what was left out, by reason.
    """

    text_field: str = "text"
    skip: bool = False
    skipped: Counter[str] = field(default_factory=Counter)

    def again(self) -> "Reading":
        """Return the same with a count of its own."""
        return Reading(text_field=self.text_field, skip=self.skip)

    def bad(self, error: BadDocumentError) -> None:
        """Count a bad file or row, or raise the error."""
        if not self.skip:
            raise error
        self.skipped[error.reason] += 1


def file_pieces(path: Path, reading: Reading, form: Format | None = None) -> Iterator[Piece]:
    """Yield the documents of a file; raises BadDocumentError for a file as a whole, and for rows as `reading` says.

    `form` is what `inspect` returned for the file, where that is known.
    """
    form = inspect(path) if form is None else form
    if form.kind == "parquet":
        pieces = _parquet_pieces(path, reading)
    elif form.kind == "jsonl":
        pieces = _jsonl_pieces(path, form, reading)
    else:
        pieces = _text_pieces(path, form)
    is_blank, skipped = True, reading.skipped.total()
    for piece in pieces:
        is_blank = is_blank and (not piece.text or piece.text.isspace())
        yield piece
    # rows that were left out are counted as such
    if is_blank and reading.skipped.total() == skipped:
        raise BadDocumentError(path, "file without text", "remove it", "no text, white space at most")


def row_piece(value: object, where: str, reading: Reading) -> Iterator[Piece]:
    """Yield the text of a row, an object or its column; nothing if it is left out."""
    try:
        text = _text_of(value, where, reading.text_field)
    except BadDocumentError as error:
        reading.bad(error)
    else:
        yield Piece(text, True)


def column_of(columns: Iterable[str], name: str, reading: Reading) -> str:
    """Return the column that holds the text, or the field with it; raises DataError."""
    columns = list(columns)
    for column in (reading.text_field, reading.text_field.partition(".")[0]):
        if column in columns:
            return column
    likely = next((each for each in _LIKELY_FIELDS if each in columns), columns[0] if len(columns) == 1 else None)
    listed = f"its columns are {shortened(columns, _MOST_KEYS)}"
    remedy = f"{listed}: --set data.text_field={likely or 'COLUMN'}"
    raise BadDocumentError(f"{name} has", f'no column "{reading.text_field}"', remedy)


def _text_pieces(path: Path, form: Format) -> Iterator[Piece]:
    # utf-8-sig drops a byte-order mark
    decoder = codecs.getincrementaldecoder(form.encoding)()
    read = 0
    with read_errors(path), open_bytes(path) as file:
        chunk = b""
        try:
            while chunk := file.read(_READ_BYTES):
                text = decoder.decode(chunk)
                if "\0" in text:
                    raise binary(path, read + max(0, chunk.find(b"\x00")))
                read += len(chunk)
                yield Piece(text, False)
            yield Piece(decoder.decode(b"", final=True), True)
        except UnicodeDecodeError as error:
            # what the decoder kept of the last chunk stands before this one
            start = read + len(chunk) - len(error.object)
            raise not_utf8(path, form.encoding, start + error.start, error.object) from error


def _jsonl_pieces(path: Path, form: Format, reading: Reading) -> Iterator[Piece]:
    with read_errors(path):
        for number, offset, line in _lines(path, form):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                value = json.loads(line.decode())
            except UnicodeDecodeError as error:
                reading.bad(not_utf8(path, form.encoding, offset + error.start, line))
            except json.JSONDecodeError as error:
                what = f"not a line of JSON: {error.msg} at column {error.colno}"
                reading.bad(BadDocumentError(where, "not JSON", "mend the line", what))
            except (ValueError, RecursionError) as error:
                what = f"not a line of JSON: {one_line(error).partition(';')[0]}"
                reading.bad(BadDocumentError(where, "not JSON", "mend the line", what))
            else:
                yield from row_piece(value, where, reading)


def _lines(path: Path, form: Format) -> Iterator[tuple[int, int, bytes]]:
    """Yield number, byte offset and content of every line, as UTF-8."""
    with open_bytes(path) as file:
        if form.encoding == "utf-8-sig":
            offset = 0
            for number, line in enumerate(file, 1):
                mark = codecs.BOM_UTF8 if number == 1 and line.startswith(codecs.BOM_UTF8) else b""
                yield number, offset + len(mark), line[len(mark) :]
                offset += len(line)
            return
        with io.TextIOWrapper(file, encoding=form.encoding, newline="\n") as lines:
            try:
                for number, text in enumerate(lines, 1):
                    yield number, 0, text.encode()
            except UnicodeDecodeError as error:
                raise not_utf8(path, form.encoding, error.start, b"") from error


def _parquet_pieces(path: Path, reading: Reading) -> Iterator[Piece]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise DataError(f"{path}: reading parquet needs pyarrow: pip install 'bitnetctl[parquet]'") from error
    row = 0
    with read_errors(path):
        try:
            with parquet.ParquetFile(path) as file:
                column = column_of(file.schema_arrow.names, str(path), reading)
                values = chain.from_iterable(
                    batch.column(0).to_pylist() for batch in file.iter_batches(columns=[column])
                )
                for row, value in enumerate(values, 1):
                    yield from row_piece({column: value}, f"{path}: row {row}", reading)
        except pyarrow.ArrowException as error:
            what = f"not a readable parquet file: {one_line(error)}"
            raise BadDocumentError(path, "not a readable parquet file", "download it again", what) from error
        except UnicodeDecodeError as error:
            what = f"the text column is not UTF-8 after row {row}"
            raise BadDocumentError(path, "not UTF-8", "write it again as UTF-8", what) from error


def _text_of(row: object, where: str, name: str) -> str:
    """Return the text of a row, which is an object; `name` is a key, or keys joined by dots."""
    if not isinstance(row, dict):
        what = 'not an object such as {"text": "..."}'
        raise BadDocumentError(where, "row is not an object", "make every line an object", f"no text; {what}")
    keys = [name] if name in row else name.split(".")
    value: Any = row
    for key in keys:
        if not isinstance(value, dict) or key not in value:
            raise _no_field(row, where, name)
        value = value[key]
    if value is None:
        raise BadDocumentError(where, "text is null", "give the row a text", f'"{name}" is null')
    if not isinstance(value, str):
        kinds = {dict: "an object", list: "a list", bool: "true or false", int: "a number", float: "a number"}
        kind = kinds.get(type(value), "no string but " + type(value).__name__)
        raise BadDocumentError(where, "text is no string", "give the row a text", f'"{name}" is {kind}, no text')
    try:
        value.encode()
    except UnicodeEncodeError as error:
        what = "the text holds half of a surrogate pair"
        raise BadDocumentError(where, "half of a surrogate pair", "mend the text", what) from error
    return value


def _no_field(row: Mapping[str, Any], where: str, name: str) -> BadDocumentError:
    fields = dict(_text_fields(row))
    likely = next((field for field in _LIKELY_FIELDS if field in fields), None)
    likely = likely or max(fields, key=lambda each: len(fields[each]), default=None)
    keys = f"its keys are {shortened([*map(str, row)], _MOST_KEYS)}" if row else "it has no keys"
    remedy = f"{keys}: --set data.text_field={likely}" if likely else f"{keys}: give the row a text"
    return BadDocumentError(f"{where} has", f'no "{name}"', remedy)


def _text_fields(row: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the fields of a row that hold text, also those one or two levels below, with dots."""
    for key, value in row.items():
        if isinstance(value, str):
            yield f"{prefix}{key}", value
        elif isinstance(value, dict) and prefix.count(".") < 2:
            yield from _text_fields(value, f"{prefix}{key}.")
