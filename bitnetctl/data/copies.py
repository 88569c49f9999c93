"""Recognise a real file under another name, and a copy of it: compressed or not, with any line ends."""

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path

from bitnetctl.data.inspection import open_bytes, read_errors
from bitnetctl.data.listing import BadDocumentError

_HEAD_BYTES = 1 << 12
_READ_BYTES = 1 << 20


class SeenFiles:
    """Files that were seen; every method raises BadDocumentError for a file that cannot be read."""

    def __init__(self) -> None:
        self._ids: dict[tuple[int, int], Path] = {}
        self._alike: dict[bytes, list[Path]] = {}
        self._heads: dict[Path, bytes] = {}
        self._digests: dict[Path, bytes] = {}

    def add(self, path: Path) -> None:
        """Add a file."""
        self._ids.setdefault(_id(path), path)
        self._alike.setdefault(self._head(path), []).append(path)

    def same_file(self, path: Path) -> Path | None:
        """Return the name under which the real file is known, None if it is not."""
        return self._ids.get(_id(path))

    def copy_of(self, path: Path) -> Path | None:
        """Return a known file with the same content; reads whole files only where their beginnings are equal."""
        for other in self._alike.get(self._head(path), []):
            # a damaged file, such as half a download, says nothing about this one
            with contextlib.suppress(BadDocumentError):
                known = self._digest(other)
                if known == self._digest(path):
                    return other
        return None

    def _head(self, path: Path) -> bytes:
        if path not in self._heads:
            head = next(_chunks(path, _HEAD_BYTES), b"")[: _HEAD_BYTES // 2]
            self._heads[path] = hashlib.blake2b(head, digest_size=16).digest()
        return self._heads[path]

    def _digest(self, path: Path) -> bytes:
        if path not in self._digests:
            content = hashlib.sha256()
            for chunk in _chunks(path, _READ_BYTES):
                content.update(chunk)
            self._digests[path] = content.digest()
        return self._digests[path]


def _id(path: Path) -> tuple[int, int]:
    with read_errors(path):
        status = path.stat()
    return status.st_dev, status.st_ino


def _chunks(path: Path, size: int) -> Iterator[bytes]:
    with read_errors(path), open_bytes(path) as file:
        while chunk := file.read(size):
            yield chunk.replace(b"\r", b"")
