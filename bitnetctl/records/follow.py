"""Follow the CSV of a run that is being written, by this process or another; no torch and no pandas here."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from bitnetctl.records.schema import Row

_PIECE_BYTES = 1 << 24


class RowFollower:
    """Reads the rows that are appended to a CSV; one that cannot be read is left out, since `analyze` reports it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._state: tuple[int, int, int] | None = None
        self._inode = 0
        self._offset = 0
        self._names: list[str] = []

    def new_rows(self) -> tuple[list[Row], bool]:
        """Return the rows since the last call, and whether they replace all earlier ones: the file is another one."""
        try:
            found = self.path.stat()
            state = (found.st_ino, found.st_size, found.st_mtime_ns)
            if state == self._state:
                return [], False
            replaced = found.st_ino != self._inode or found.st_size < self._offset
            if replaced:
                self._offset, self._names = 0, []
            rows: list[Row] = []
            with self.path.open("rb") as file:
                # what is appended meanwhile is for the next call
                while self._offset < found.st_size and (lines := self._next_lines(file)):
                    rows += self._parsed(lines)
        except OSError:
            # all of it is read again
            self._state, self._inode = None, 0
            return [], False
        self._state, self._inode = state, found.st_ino
        return rows, replaced

    def _next_lines(self, file: BinaryIO) -> list[str]:
        """Return the whole lines of the next piece of the file."""
        file.seek(self._offset)
        content = file.read(_PIECE_BYTES)
        whole = content[: content.rfind(b"\n") + 1]
        self._offset += len(whole)
        return whole.decode("utf-8", errors="replace").splitlines()

    def _parsed(self, lines: list[str]) -> Iterator[Row]:
        if not self._names:
            self._names = lines.pop(0).split(",")
        for line in lines:
            with contextlib.suppress(ValueError):
                cells = zip(self._names, line.split(","), strict=True)
                row = {name: float(cell) if cell else None for name, cell in cells}
                if row.get("Step") is not None:
                    yield row
