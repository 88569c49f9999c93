"""Files of the token cache that are written in parts, counted and hashed."""

import hashlib
import os
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict


class CachedFile(BaseModel):
    """Size and hash of a file of the cache."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bytes: int
    sha256: str


class TokenFile:
    """Numbers of tokens in an open file, counted and hashed as they are appended."""

    def __init__(self, file: BinaryIO, dtype: str) -> None:
        self._dtype = np.dtype(dtype)
        self._file = file
        self._hash = hashlib.sha256()
        self.count = 0

    def append(self, ids_N: npt.NDArray[np.int64], text: str = "") -> None:
        """Append the tokens of a text, which only some files need; none for a token that stands for no text."""
        content = ids_N.astype(self._dtype).tobytes()
        self._file.write(content)
        self._hash.update(content)
        self.count += len(ids_N)

    def finish(self) -> CachedFile:
        """Sync the file; return its size and hash."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return CachedFile(bytes=self.count * self._dtype.itemsize, sha256=self._hash.hexdigest())
