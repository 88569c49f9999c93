"""Recognise a real file under another name, and a copy of it: compressed or not, with any line ends, marked or not."""

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path

from bitnetctl.data.inspection import open_bytes, plain, read_errors, start_hash
from bitnetctl.data.listing import BadDocumentError

_READ_BYTES = 1 << 20


class SeenFiles:
    """Files that were seen; every method raises BadDocumentError for a file that cannot be read."""

    def __init__(self) -> None:
        self._ids: dict[tuple[int, int], Path] = {}
        self._alike: dict[bytes, list[Path]] = {}
        self._digests: dict[Path, bytes] = {}

    def add(self, path: Path, start: bytes) -> None:
        """Add a file; `start` is the `start_of` it."""
        self._ids.setdefault(_id(path), path)
        self._alike.setdefault(start, []).append(path)

    def same_file(self, path: Path) -> Path | None:
        """Return the name under which the real file is known, None if it is not."""
        return self._ids.get(_id(path))

    def same_text(self, path: Path, start: bytes) -> Path | None:
        """Return a known file that is the same or has the same content; the path itself for the same file.

        Reads whole files only where their beginnings are equal.
        """
        if self.same_file(path) is not None:
            return path
        for other in self._alike.get(start, []):
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


def start_of(path: Path) -> bytes:
    """Return the hash of the beginning of a file, the same for all copies of it."""
    return start_hash(next(_chunks(path), b""))


def _id(path: Path) -> tuple[int, int]:
    with read_errors(path):
        status = path.stat()
    return status.st_dev, status.st_ino


def _chunks(path: Path) -> Iterator[bytes]:
    with read_errors(path), open_bytes(path) as file:
        while chunk := file.read(_READ_BYTES):
            yield chunk
