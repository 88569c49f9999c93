"""Locks of the operating system, which end with the process that holds them, however it ends."""

import contextlib
import math
import os
import sys
import time
from pathlib import Path

from filelock import FileLock, Timeout

from bitnetctl.files import share

_POLL_SECONDS = 0.05


class Lock:
    """A lock on a file that stays behind, which others who may write into its folder can take as well."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # never a soft lock, a file that stays locked when its process is killed
        self._lock = FileLock(path, thread_local=False, fallback_to_soft=False)
        self._descriptor: int | None = None

    @property
    def is_held(self) -> bool:
        """Whether this object holds the lock."""
        return self._lock.is_locked or self._descriptor is not None

    def acquire(self, timeout: float = -1) -> None:
        """Wait at most `timeout` seconds for the lock, without end if negative; raises Timeout, or OSError."""
        try:
            self._lock.acquire(timeout=timeout)
        except PermissionError:
            if sys.platform == "win32":
                raise
            self._acquire_read_only(timeout)
        else:
            share(self.path)

    def release(self) -> None:
        """Release the lock, if it is held."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)
        self._lock.release()

    def _acquire_read_only(self, timeout: float) -> None:
        """Lock a file of another user that may only be read; NFS refuses that.

        Both ways of taking the lock are flock, so that they exclude each other.
        """
        import fcntl

        deadline = math.inf if timeout < 0 else time.monotonic() + timeout
        with contextlib.ExitStack() as stack:
            descriptor = os.open(self.path, os.O_RDONLY)
            stack.callback(os.close, descriptor)
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= deadline:
                        raise Timeout(str(self.path)) from None
                    time.sleep(_POLL_SECONDS)
            stack.pop_all()
        self._descriptor = descriptor
