"""Recognise a real file under another name, and a copy of it: compressed or not, with any line ends, marked or not."""

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path

from bitnetctl.data.inspection import Mark, open_bytes, plain, read_errors, start_hash
from bitnetctl.data.listing import BadDocumentError

_READ_BYTES = 1 << 20


class SeenFiles:
    """Files that were seen; every method raises BadDocumentError for a file that cannot be read."""

    def __init__(self) -> None:
        self._ids: set[tuple[int, int]] = set()
        self._alike: dict[bytes, list[Path]] = {}
        self._digests: dict[Path, bytes] = {}

    def add(self, path: Path, mark: Mark) -> None:
        """Add a file, whose mark comes from `inspect` or `mark_of`."""
        self._ids.add(mark.file)
        self._alike.setdefault(mark.start, []).append(path)

    def same_file(self, mark: Mark) -> bool:
        """Whether the real file is known, by whatever name."""
        return mark.file in self._ids

    def same_text(self, path: Path, mark: Mark) -> Path | None:
        """Return a known file that is the same or has the same content; the path itself for the same file.

        Reads whole files only where their beginnings are equal.
        """
        if self.same_file(mark):
            return path
        for other in self._alike.get(mark.start, []):
            # a damaged file, such as half a download, says nothing about this one
            with contextlib.suppress(BadDocumentError):
                known = self._digest(other)
                if known == self._digest(path):
                    return other
        return None

    def _digest(self, path: Path) -> bytes:
        if path not in self._digests:
            content = hashlib.sha256()
            for chunk in _chunks(path):
                content.update(plain(chunk))
            self._digests[path] = content.digest()
        return self._digests[path]


def mark_of(path: Path) -> Mark:
    """Return the mark of a file that is not inspected."""
    with read_errors(path):
        status = path.stat()
    return Mark((status.st_dev, status.st_ino), start_hash(next(_chunks(path), b"")))


def _chunks(path: Path) -> Iterator[bytes]:
    with read_errors(path), open_bytes(path) as file:
        while chunk := file.read(_READ_BYTES):
            yield chunk
