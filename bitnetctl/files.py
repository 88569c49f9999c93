"""Atomic writes: a file or folder is the old one or the new one, never a mixture of both."""

import contextlib
import errno
import glob
import os
import re
import secrets
import shlex
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import platformdirs

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

    Raises ConfigError for an unknown user, where no home folder is known, and for a NUL byte, which no path can hold.
    """
    if "\0" in text:
        raise ConfigError(f"{text!r}: no path can hold a NUL byte")
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


def cache_folder() -> Path:
    """Return the folder of this user's cache; creates nothing.

    It is below XDG_CACHE_HOME where that is set, else where the system has its caches, else, for a user without a home,
    a folder of theirs below the temporary one. Raises ConfigError where there is none of these.
    """
    chosen = _chosen_cache()
    if chosen is not None:
        return chosen / "bitnetctl"
    if is_cache_temporary():
        return temporary_root("no home folder is known for the cache") / f"bitnetctl-{os.getuid()}"
    if sys.platform in ("win32", "darwin"):
        return Path(platformdirs.user_cache_dir("bitnetctl"))
    return Path(home_folder() or "", ".cache", "bitnetctl")


def is_cache_temporary() -> bool:
    """Whether the cache has no place that lasts: no XDG_CACHE_HOME and no home.

    Containers set HOME to the root of the file system for a user without a name.
    """
    home = home_folder()
    has_home = home is not None and (home != Path(home.anchor) or os.access(home, os.W_OK))
    return not has_home and _chosen_cache() is None


def _chosen_cache() -> Path | None:
    # a relative path is to be ignored, by the XDG specification
    text = expand_user(os.environ.get("XDG_CACHE_HOME", "").strip())
    return Path(text) if Path(text).is_absolute() else None


def require_own_cache() -> None:
    """Create the cache of a user without a home; raises StorageError if another user has made a folder there."""
    if not is_cache_temporary():
        return
    folder = cache_folder()
    with storage_errors(folder):
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.is_symlink() or folder.stat().st_uid != os.geteuid():
            raise StorageError(f"{folder}: is not yours; set XDG_CACHE_HOME to a folder of your own", errno.EPERM)


def temporary_root(what: str) -> Path:
    """Return the folder for temporary files; raises ConfigError that begins with `what` if none can be written."""
    try:
        return Path(tempfile.gettempdir())
    except OSError as error:
        raise ConfigError(f"{what}, and no temporary folder can be written; set TMPDIR to a folder that can") from error


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yield a new folder that is deleted afterwards; raises StorageError or ConfigError if there is no place for it."""
    root = temporary_root("files have to be set aside")
    with storage_errors(root):
        folder = tempfile.TemporaryDirectory(prefix="bitnetctl-", dir=root, ignore_cleanup_errors=True)
    with folder as name:
        yield Path(name)


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Raise a StorageError that names `path`, and what can be done, instead of an OSError."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{path}: cannot write: {error.strerror or error}{_remedy(path, error.errno)}", error.errno
        ) from error


def _remedy(path: Path, error_number: int | None) -> str:
    if error_number in NO_LOCKS:
        return "; no locks (flock) here, take a folder on another disk"
    with contextlib.suppress(ConfigError):
        if path.absolute().is_relative_to(cache_folder()):
            return "; set XDG_CACHE_HOME to another folder"
    if error_number == errno.EROFS:
        return "; take a folder on a disk that can be written"
    if error_number in (errno.EEXIST, errno.ENOTDIR):
        in_the_way = [place for place in (path, *path.parents) if os.path.isfile(place)]  # noqa: PTH113
        return f"; {in_the_way[0]} is a file, not a folder" if in_the_way else ""
    reason = blame(path) if error_number == errno.EACCES else ""
    return f"; {reason}" if reason else ""


def blame(path: Path) -> str:
    """Return which file or folder on the way to `path` cannot be written, whose it is, and what opens it.

    Empty where nothing is known to be in the way.
    """
    for place in (path, *path.parents, *path.absolute().parents):
        with contextlib.suppress(OSError):
            status = place.stat()
            if os.access(place, os.W_OK):
                return ""
            what, quoted = "it" if place == path else str(place), shlex.quote(str(place))
            if status.st_uid == getattr(os, "geteuid", lambda: None)():
                return f"{what} is read-only: chmod u+w {quoted}"
            if status.st_uid == 0:
                return f"{what} belongs to {owner(0)}; take another place"
            # of a folder above, only itself is asked for
            recursive = "-R " if place == path and stat.S_ISDIR(status.st_mode) else ""
            return f"{what} belongs to {owner(status.st_uid)}, who can share it: chmod {recursive}g+w {quoted}"
    return ""


def owner(user: int) -> str:
    """Return the name of a user id, or `user 7001` for one without a name."""
    try:
        import pwd

        return pwd.getpwuid(user).pw_name
    except (ImportError, KeyError):
        return f"user {user}"


def unwritable_part(folder: Path) -> str:
    """Return what says which folder, this or one in it, cannot be written; empty if all can."""
    for place in (folder, *(below for below in folder.rglob("*") if below.is_dir())):
        if not os.access(place, os.W_OK):
            return f"{place}: cannot write: {blame(place)}"
    return ""


def make_folder(path: Path) -> None:
    """Create a folder and its missing parents, each as open to others as the folder it is in; raises OSError."""
    missing = [folder for folder in (path, *path.absolute().parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in reversed(missing):
        share(folder)


def share(path: Path) -> None:
    """Open a new file or folder to the group, and to all, as far as they may write into the folder it is in.

    People who share a folder of runs set this on the folder; a umask, which most of them leave at 022, would undo it.
    A sticky folder such as /tmp is shared by people who keep their files apart. What belongs to another user or another
    group stays as it is.
    """
    with contextlib.suppress(OSError):
        parent, status = path.parent.stat(), path.stat()
        if parent.st_mode & stat.S_ISVTX:
            return
        added = 0
        if parent.st_mode & stat.S_IWGRP and parent.st_gid == status.st_gid:
            added |= parent.st_mode & stat.S_IRWXG
        if parent.st_mode & stat.S_IWOTH:
            added |= parent.st_mode & stat.S_IRWXO
        if not stat.S_ISDIR(status.st_mode):
            added &= ~(stat.S_IXGRP | stat.S_IXOTH)
        if added & ~status.st_mode:
            path.chmod(stat.S_IMODE(status.st_mode) | added)


def write_atomic(path: Path, content: bytes) -> None:
    """Replace the file `path` by `content`; raises StorageError, and the old file is then intact.

    A pipe or a device such as /dev/stdout is written into, never replaced.
    """
    with storage_errors(path):
        if path.exists() and not path.is_file() and not path.is_dir():
            path.write_bytes(content)
            return
        with replacing(path) as temporary:
            write_synced(temporary, content)


def write_if_changed(path: Path, content: bytes) -> None:
    """Replace the file `path` unless it holds `content` already; raises StorageError."""
    with contextlib.suppress(OSError):
        if path.read_bytes() == content:
            return
    write_atomic(path, content)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path for a file or folder that takes the place of `path` at the end of the block.

    If the block raises, the temporary path is deleted; then, and if the block leaves nothing there, `path` stays as it
    was. The block syncs its files itself; the rename is synced here.
    """
    make_folder(path.parent)
    temporary = _temporary_path(path)
    try:
        yield temporary
        if temporary.exists():
            share(temporary)
            for below in temporary.rglob("*"):
                share(below)
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


def require_space(folder: Path, needed_bytes: int, remedy: str = "") -> None:
    """Raise StorageError if the disk of `folder`, which need not exist yet, has less than `needed_bytes` free."""
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free_bytes = shutil.disk_usage(existing).free
    if free_bytes < needed_bytes:
        raise StorageError(
            f"{folder}: no space left: about {gibibytes(needed_bytes)} needed, {gibibytes(free_bytes)} free{remedy}",
            errno.ENOSPC,
        )


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable where the system can."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # some network and virtual file systems sync files only
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
