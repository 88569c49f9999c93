"""Atomic writes: a file or folder is the old one or the new one, never a mixture of both."""

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
from bitnetctl.units import gibibytes

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


def home_folder() -> Path | None:
    """Return the user's home folder; None where the system knows none, as for a user id without a name."""
    # an empty HOME would make `~/x` the file /x
    text = os.environ.get("HOME") if os.name != "nt" else os.path.expanduser("~")  # noqa: PTH111
    if not text:
        try:
            import pwd

            text = pwd.getpwuid(os.getuid()).pw_dir
        except (ImportError, KeyError):
            return None
    return Path(text) if Path(text).is_absolute() else None


def expand_user(text: str) -> str:
    """Return a path with a leading `~` or `~name` replaced by the home folder; `./~` is a file of that name.

    Raises ConfigError for an unknown user and where no home folder is known.
    """
    if not text.startswith("~"):
        return text
    if text == "~" or text[1] in (os.sep, os.altsep):
        home = home_folder()
        if home is None:
            raise ConfigError(f"{text}: no home folder is known; set HOME, or write the whole path")
        return str(home) + text[1:]
    expanded = os.path.expanduser(text)  # noqa: PTH111 - Path.expanduser raises for an unknown user
    if expanded == text and not os.path.lexists(text):
        name = text[1:].replace("\\", "/").split("/")[0]
        raise ConfigError(f"{text}: no user {name!r}; for a file of that name write ./{text}")
    return expanded


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Raise a StorageError that names `path` instead of an OSError."""
    try:
        yield
    except OSError as error:
        hint = "; no locks (flock) here, take a folder on another disk" if error.errno in NO_LOCKS else ""
        raise StorageError(f"{path}: cannot write: {error.strerror or error}{hint}", error.errno) from error


def write_atomic(path: Path, content: bytes) -> None:
    """Replace the file `path` by `content`; raises StorageError, and the old file is then intact."""
    with storage_errors(path), replacing(path) as temporary:
        write_synced(temporary, content)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path for a file or folder that takes the place of `path` at the end of the block.

    If the block raises, the temporary path is deleted; then, and if the block leaves nothing there, `path` stays as it
    was. The block syncs its files itself; the rename is synced here.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_path(path)
    try:
        yield temporary
        if temporary.exists():
            _put_in_place(temporary, path)
    except BaseException:
        remove(temporary)
        raise
    sync_folder(path.parent)


def remove(path: Path) -> None:
    """Delete a file, a link, or a folder with all in it; what cannot be deleted stays."""
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def discard(path: Path) -> None:
    """Delete a folder atomically, by renaming it first; raises OSError if it cannot be renamed."""
    temporary = _temporary_path(path)
    path.rename(temporary)
    remove(temporary)


def write_synced(path: Path, content: bytes) -> None:
    """Write a new file and sync it; raises OSError."""
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _temporary_path(path: Path) -> Path:
    # an unpredictable name, so that nobody can put a link there in advance
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")


def _put_in_place(temporary: Path, path: Path) -> None:
    """Rename a file or folder to `path`; an old folder is moved away first, since only an empty one can be replaced."""
    if not temporary.is_dir():
        temporary.replace(path)
    elif not path.exists():
        temporary.rename(path)
    else:
        old = _temporary_path(path)
        path.rename(old)
        try:
            temporary.rename(path)
        except BaseException:
            with contextlib.suppress(OSError):
                old.rename(path)
            raise
        remove(old)


def remove_leftovers(path: Path) -> None:
    """Delete what a killed `replacing(path)` left; only for the one process that may write `path`."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.????????"):
        remove(leftover)


def require_space(folder: Path, needed_bytes: int) -> None:
    """Raise StorageError if the disk of `folder`, which need not exist yet, has less than `needed_bytes` free."""
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free_bytes = shutil.disk_usage(existing).free
    if free_bytes < needed_bytes:
        raise StorageError(
            f"{folder}: no space left: about {gibibytes(needed_bytes)} needed, {gibibytes(free_bytes)} free",
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
