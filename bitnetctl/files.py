"""Files that are either the old ones or the new ones, never half of each."""

import contextlib
import errno
import glob
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from bitnetctl.errors import NO_LOCKS, ConfigError, StorageError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=-]{0,199}")
RESERVED_NAME = re.compile(r"(con|prn|aux|nul|com\d|lpt\d) *(\..*)?", re.IGNORECASE)
"""Names that Windows takes for a device, with any extension."""


def safe_name(name: str, kind: str = "run") -> str:
    """Return `name` if it is a plain file name on every system.

    Raises ConfigError for separators, leading dots, reserved device names, over-long names.
    """
    if not _NAME.fullmatch(name) or RESERVED_NAME.fullmatch(name) or name.endswith("."):
        raise ConfigError(
            f"{kind} name {name[:80]!r} is not usable: take letters, digits, '.', '_', '+', '=' or '-', "
            "at most 200, starting with a letter or digit"
        )
    return name


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn an OSError on `path` into one clear line."""
    try:
        yield
    except OSError as error:
        hint = "; no locks (flock) here, take a folder on another disk" if error.errno in NO_LOCKS else ""
        raise StorageError(f"{path}: cannot write: {error.strerror or error}{hint}", error.errno) from error


def write_atomic(path: Path, content: bytes) -> None:
    """Replace `path` with `content`: write aside, fsync, rename, fsync the folder.

    Raises StorageError; the old file is then intact and nothing is left aside.
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            with temporary.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            # the first error is the one to tell
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def remove_leftovers(path: Path) -> None:
    """Delete what a killed `write_atomic` of `path` left aside; for the one process that may write `path`."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.????????"):
        # a leftover takes room and does no other harm
        with contextlib.suppress(OSError):
            leftover.unlink()


def require_space(folder: Path, needed_bytes: int) -> None:
    """Raise StorageError if the disk of `folder`, which need not exist yet, has less than `needed_bytes` free."""
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free_bytes = shutil.disk_usage(existing).free
    if free_bytes < needed_bytes:
        raise StorageError(
            f"{folder}: no space left: about {needed_bytes / 2**30:.2f} GiB needed, {free_bytes / 2**30:.2f} GiB free",
            errno.ENOSPC,
        )


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable where the system can."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
