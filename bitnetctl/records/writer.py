"""Append rows to a run's CSV; a crash at any byte loses at most the row being written."""

import errno
import operator
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from bitnetctl.errors import RecordError, StorageError
from bitnetctl.files import storage_errors, write_atomic
from bitnetctl.records.reader import BadRowError, Layout, parse_row
from bitnetctl.records.schema import HEADER, NAMES, REQUIRED, Row

_FLAGS = os.O_WRONLY | os.O_APPEND | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)


class RecordWriter:
    """The only writer of a run's CSV, for the process that holds the run's lock; use it as a context manager.

    The constructor reads and checks an existing file, and `open` changes it: a new file gets the header; from an
    existing one, rows after `keep_through_step` and a torn last row are cut, atomically, so that the file of a resumed
    run equals that of an undisturbed run byte for byte. `last_step` is the step of the last row, None without rows;
    `last_kept_step` is the value that it must have after the cut. `had_rows` is whether the file had any.

    Raises RecordError where the file was not written by this tool, is damaged, or is gone although rows are to be kept.
    """

    def __init__(self, path: Path | str, keep_through_step: int = 0, *, last_kept_step: int | None = None) -> None:
        self.path = Path(path)
        self.last_step: int | None = None
        self._descriptor: int | None = None
        self._torn = False
        old = self._old_content()
        self.had_rows = len(old) > len(HEADER)
        kept = self._repair(old, keep_through_step, last_kept_step)
        if last_kept_step is not None and self.last_step != last_kept_step:
            raise RecordError(
                f"{self.path}: the row of step {last_kept_step} is missing; put it back (a checkpoint's records.csv "
                "is a copy), or start the run afresh"
            )
        self._end = len(kept)
        self._repaired = None if kept == old else kept

    def open(self) -> None:
        """Cut the rows that are not kept; raises StorageError where the disk refuses, with all complete rows intact."""
        if self._repaired is not None:
            write_atomic(self.path, self._repaired)
            self._repaired = None
        with storage_errors(self.path):
            self._descriptor = os.open(self.path, _FLAGS)

    def append(self, row: Row) -> None:
        """Write one row; a column that is missing or None is unknown.

        Raises RecordError for a foreign column, a missing required one, a value that is not a number, and a step that
        does not increase; StorageError where the disk refuses.
        """
        step, line = self._format(row)
        descriptor = self._open_descriptor()
        with storage_errors(self.path):
            if self._torn:
                self._cut(descriptor)
            self._require_own_file(descriptor)
            self._torn = True
            try:
                written = os.write(descriptor, line)
                # a full disk writes what fits and reports why at the next write only
                if written < len(line) and written + os.write(descriptor, line[written:]) < len(line):
                    raise StorageError(f"{self.path}: cannot write: the disk took part of a row only")
            except BaseException:
                self._try_cut(descriptor)
                raise
        self._torn = False
        self._end += len(line)
        self.last_step = step

    def sync(self) -> None:
        """Make every row durable; to be called before a checkpoint that relies on them is saved."""
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

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.sync()
        finally:
            self.close()

    def _open_descriptor(self) -> int:
        if self._descriptor is None:
            raise ValueError(f"{self.path}: the writer is closed")
        return self._descriptor

    def _require_own_file(self, descriptor: int) -> None:
        """Raise StorageError unless the path is still the open file, with the length that the last write left."""
        own = os.fstat(descriptor)
        try:
            is_there = os.path.samestat(own, self.path.stat())
        except FileNotFoundError:
            is_there = False
        if not is_there or (own.st_size != self._end and not self._torn):
            raise StorageError(
                f"{self.path}: was removed, replaced or changed by another program while the run was writing it; "
                "started again, the run resumes from the last checkpoint whose rows are there",
                errno.ESTALE,
            )

    def _cut(self, descriptor: int) -> None:
        os.ftruncate(descriptor, self._end)
        self._torn = False

    def _try_cut(self, descriptor: int) -> None:
        try:
            self._cut(descriptor)
        except OSError:
            # still marked torn: the next append tries again, a resume repairs it
            return

    def _format(self, row: Row) -> tuple[int, bytes]:
        unknown = sorted(set(row) - set(NAMES))
        if unknown:
            raise RecordError(f"{self.path}: not columns of a run: {', '.join(unknown)}")
        missing = [name for name in REQUIRED if name not in row]
        if missing:
            raise RecordError(f"{self.path}: a row without {', '.join(missing)}")
        cells = [self._format_cell(name, row.get(name)) for name in NAMES]
        if not cells[0].isdecimal():
            raise RecordError(f"{self.path}: Step is {row['Step']!r}, not a whole number")
        step = int(cells[0])
        self._require_later(step, str(self.path))
        return step, (",".join(cells) + "\n").encode()

    def _format_cell(self, name: str, value: float | int | None) -> str:
        if value is None:
            return ""
        if isinstance(value, float):
            # the repr of numpy's float64 is not a number
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
            raise RecordError(f"{self.path}: cannot read: {error.strerror or error}") from error

    def _repair(self, old: bytes, keep_through_step: int, last_kept_step: int | None) -> bytes:
        if not old.startswith(HEADER):
            if not HEADER.startswith(old):
                raise RecordError(f"{self.path}:1: not a file that this version writes; move it away or rename the run")
            if keep_through_step > 0:
                raise RecordError(
                    f"{self.path}:1: the rows up to step {keep_through_step} are gone; put them back (a checkpoint's "
                    "records.csv is a copy), or start the run afresh"
                )
            return HEADER
        end = len(HEADER)
        layout = Layout.of(NAMES)
        # the last piece has no newline: it is empty or a torn row
        lines = old[end:].split(b"\n")[:-1] if keep_through_step > 0 else []
        for number, line in enumerate(lines, start=2):
            if last_kept_step is not None and self.last_step == last_kept_step:
                # later rows are written again, damaged or not
                break
            try:
                step, _, _ = parse_row(line, layout)
            except BadRowError as error:
                if number <= len(lines):
                    raise RecordError(f"{self.path}:{number}: {error}") from error
                break
            self._require_later(step, f"{self.path}:{number}")
            if step > keep_through_step:
                break
            self.last_step = step
            end += len(line) + 1
        return old[:end]

    def _require_later(self, step: int, where: str) -> None:
        last = self.last_step or 0
        if step <= last:
            raise RecordError(f"{where}: Step {step} after {last}; steps must increase")
