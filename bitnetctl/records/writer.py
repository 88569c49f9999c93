"""Append rows to a run's CSV; a crash at any byte loses at most the row being written."""

import contextlib
import errno
import operator
import os
import re
from pathlib import Path

from bitnetctl.errors import RecordError, StorageError, cannot_read
from bitnetctl.files import storage_errors, write_atomic
from bitnetctl.records.encoding import plain_lines
from bitnetctl.records.schema import HEADER, HEADERS, NAMES, REQUIRED, Row

_FLAGS = os.O_WRONLY | os.O_APPEND | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
_LAST_ROW = re.compile(rb"(?:\A|\n)([0-9]{1,19}),[^\n]*\n\Z")


def _header_of(content: bytes) -> bytes | None:
    """Return the header of a schema version that a CSV begins with."""
    return next((header for header in HEADERS if content.startswith(header)), None)


class RecordWriter:
    """Writer of a run's CSV; the caller holds the run's lock.

    `kept` is the header and the rows of the checkpoint that the run resumes from; empty for a new run. The constructor
    reads an existing file, and `open` replaces it by `kept` if it differs, so that the file of a resumed run equals
    that of an uninterrupted run byte for byte. `last_step` is the step of the last row, None without rows; `had_rows`
    is whether the existing file had any. A run that an older version began keeps the columns of that version.

    Raises RecordError where either has a header that no version writes, or `kept` ends within a row.
    """

    def __init__(self, path: Path | str, kept: bytes = b"") -> None:
        self.path = Path(path)
        self._descriptor: int | None = None
        self._torn = False
        self._kept = kept or HEADER
        content = self._old_content()
        is_begun = any(header.startswith(content) for header in HEADERS)
        # another program may have changed its line ends
        old = content if is_begun else plain_lines(content)
        old_header = _header_of(old)
        if old_header is None and not is_begun and not any(header.startswith(old) for header in HEADERS):
            raise RecordError(f"{self.path}:1: not a file that this version writes; move it away or rename the run")
        header = _header_of(self._kept)
        rows = self._kept[len(header or b"") :]
        last_row = _LAST_ROW.search(rows)
        if header is None or (rows and last_row is None):
            raise RecordError(f"{self.path}: the rows of the checkpoint are not rows that this version writes")
        self._names = HEADERS[header]
        self.had_rows = old_header is not None and len(old) > len(old_header)
        self._is_kept = content == self._kept
        self._end = len(self._kept)
        self.last_step = int(last_row[1]) if last_row else None

    def open(self) -> None:
        """Replace the file by `kept` if it differs; raises StorageError where that fails, with the old file intact."""
        # what another user wrote may be read-only in a folder that can be written
        if not self._is_kept or not os.access(self.path, os.W_OK):
            write_atomic(self.path, self._kept)
        with storage_errors(self.path):
            self._descriptor = os.open(self.path, _FLAGS)

    def append(self, row: Row) -> None:
        """Write one row; a column that is missing or None is unknown.

        Raises RecordError for an unknown column, a missing required one, a value that is not a number, and a step that
        does not increase; StorageError where writing fails.
        """
        step, line = self._format(row)
        descriptor = self._open_descriptor()
        with storage_errors(self.path):
            if self._torn:
                self._truncate(descriptor)
            self._require_own_file(descriptor)
            self._torn = True
            try:
                written = os.write(descriptor, line)
                # a full disk first writes what fits; only the next write raises
                if written < len(line) and written + os.write(descriptor, line[written:]) < len(line):
                    raise StorageError(f"{self.path}: cannot write: the disk took part of a row only")
            except BaseException:
                # if this fails `_torn` stays True: the next append tries again, and a resume rewrites the file
                with contextlib.suppress(OSError):
                    self._truncate(descriptor)
                raise
        self._torn = False
        self._end += len(line)
        self.last_step = step

    def sync(self) -> None:
        """Call fsync; needed before a checkpoint that relies on the rows is saved."""
        descriptor = self._open_descriptor()
        with storage_errors(self.path):
            os.fsync(descriptor)
            self._require_own_file(descriptor)

    def close(self) -> None:
        """Close the file without syncing it; closing twice is harmless."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            with storage_errors(self.path):
                os.close(descriptor)

    def _open_descriptor(self) -> int:
        if self._descriptor is None:
            raise ValueError(f"{self.path}: the writer is closed")
        return self._descriptor

    def _require_own_file(self, descriptor: int) -> None:
        """Raise StorageError unless the path is still the open file, with the length after the last write."""
        own = os.fstat(descriptor)
        try:
            is_there = os.path.samestat(own, self.path.stat())
        except FileNotFoundError:
            is_there = False
        if not is_there or (own.st_size != self._end and not self._torn):
            raise StorageError(
                f"{self.path}: was removed, replaced or changed by another program while the run was writing it; "
                "put it back, or remove it: started again, the run restores it from its last checkpoint",
                errno.ESTALE,
            )

    def _truncate(self, descriptor: int) -> None:
        os.ftruncate(descriptor, self._end)
        self._torn = False

    def _format(self, row: Row) -> tuple[int, bytes]:
        unknown = sorted(set(row) - set(NAMES))
        if unknown:
            raise RecordError(f"{self.path}: not columns of a run: {', '.join(unknown)}")
        missing = [name for name in REQUIRED if name not in row]
        if missing:
            raise RecordError(f"{self.path}: a row without {', '.join(missing)}")
        cells = [self._format_cell(name, row.get(name)) for name in self._names]
        if not cells[0].isdecimal():
            raise RecordError(f"{self.path}: Step is {row['Step']!r}, not a whole number")
        step = int(cells[0])
        last = self.last_step or 0
        if step <= last:
            raise RecordError(f"{self.path}: Step {step} after {last}; steps must increase")
        return step, (",".join(cells) + "\n").encode()

    def _format_cell(self, name: str, value: float | int | None) -> str:
        if value is None:
            return ""
        if isinstance(value, float):
            # repr(np.float64(1.0)) is 'np.float64(1.0)'
            return float.__repr__(value)
        try:
            if isinstance(value, bool):
                raise TypeError
            return str(operator.index(value))
        except TypeError:
            raise RecordError(f"{self.path}: {name} is {value!r}, not an int or a float") from None

    def _old_content(self) -> bytes:
        try:
            return self.path.read_bytes()
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise RecordError(cannot_read(self.path, error)) from error
