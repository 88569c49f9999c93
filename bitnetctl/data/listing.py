"""The files that a pattern names: each real file once, whatever links and copies of it there are."""

import fnmatch
import glob
import os
from collections.abc import Iterator
from pathlib import Path

from bitnetctl.errors import DataError, one_line


class BadDocumentError(DataError):
    """A file or row cannot be read as text; `reason` names the kind of fault, for counting."""

    def __init__(self, where: object, reason: str, remedy: str, detail: str = "") -> None:
        self.where, self.reason = where, reason
        # names may hold line ends and codes that colour a terminal
        name = "".join(
            character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in str(where)
        )
        joined = name if name.endswith(" has") else f"{name}:"
        super().__init__(f"{joined} {detail or reason}; {remedy}, or leave it out: --set data.on_bad_document=skip")


def expand(text: str) -> Path:
    """Return a path with `~` expanded; `~name` of an unknown user stays as it is."""
    try:
        return Path(os.path.expanduser(text))  # noqa: PTH111 - Path.expanduser raises for an unknown user
    except ValueError:
        return Path(text)


def is_file(path: Path) -> bool:
    """Whether there is a file; False for a name that no file system allows."""
    return os.path.isfile(path)  # noqa: PTH113 - Path.is_file raises for a long name


def is_folder(path: Path) -> bool:
    """Whether there is a folder; False for a name that no file system allows."""
    return os.path.isdir(path)  # noqa: PTH112 - Path.is_dir raises for a long name


def named_files(spec: str, pattern: str) -> list[Path]:
    """Return what a pattern names, folders left out, sorted; dangling links and pipes are in it. Raises DataError.

    A part of the pattern that exists as it is written is no pattern. `*` matches no hidden name, `**` any folders
    below, through links too, each real folder once.
    """
    path = expand(pattern)
    if is_folder(path):
        raise DataError(f"data source {spec}: is a folder; use 'file:{pattern.rstrip('/')}/**/*.txt' or the like")
    try:
        found = set(_matches(Path(path.anchor), path.parts[bool(path.anchor) :]))
    except (OSError, ValueError) as error:
        where = getattr(error, "filename", None) or pattern
        raise DataError(
            f"data source {spec}: {where}: cannot read: {getattr(error, 'strerror', None) or one_line(error)}; "
            "check the name and its permissions"
        ) from error
    files = sorted((each for each in found if not is_folder(each)), key=Path.as_posix)
    if files:
        return files
    if found:
        raise DataError(
            f"data source {spec}: the pattern matches folders only; use 'file:{pattern.rstrip('/')}/*.txt', "
            "or ** for any depth"
        )
    braces = "; {a,b} is no pattern" if "{" in pattern else ""
    if not glob.has_magic(pattern):
        _require_access(spec, path)
        raise DataError(f"data source {spec}: there is no such file{braces}")
    raise DataError(f"data source {spec}: the glob matches no file; hidden files must be named{braces}")


def _require_access(spec: str, path: Path) -> None:
    """Raise DataError where a folder may not be looked into, so that nobody knows whether a file is there."""
    try:
        path.lstat()
    except PermissionError as error:
        raise DataError(
            f"data source {spec}: {path.parent}: cannot read: {error.strerror}; check its permissions"
        ) from error
    except (OSError, ValueError):
        pass


def _matches(folder: Path, parts: tuple[str, ...]) -> Iterator[Path]:
    part, rest = parts[0], parts[1:]
    if part == "**":
        yield from _below(folder, rest or ("*",))
        return
    if not glob.has_magic(part) or os.path.lexists(folder / part):
        names = [part] if os.path.lexists(folder / part) else []
    else:
        hidden = part.startswith(".")
        names = [
            name
            for name in fnmatch.filter([each.name for each in folder.iterdir()], part)
            # macOS keeps attributes of a file in ._NAME
            if not name.startswith("._") and (hidden or not name.startswith("."))
        ]
    for name in names:
        if not rest:
            yield folder / name
        elif is_folder(folder / name):
            yield from _matches(folder / name, rest)


def _below(root: Path, rest: tuple[str, ...]) -> Iterator[Path]:
    """Yield the matches in a folder and all folders below, real ones first; a loop of links ends."""
    seen: set[str] = set()
    queues: tuple[list[Path], list[Path]] = ([root], [])
    while queues[0] or queues[1]:
        folder = (queues[0] or queues[1]).pop()
        real = os.path.realpath(folder)
        if real in seen:
            continue
        seen.add(real)
        yield from _matches(folder, rest)
        with os.scandir(folder) as entries:
            for entry in entries:
                if not entry.name.startswith(".") and is_folder(Path(entry.path)):
                    queues[entry.is_symlink()].append(folder / entry.name)


def real_first(paths: list[Path]) -> list[Path]:
    """Return paths without links in them before those with links."""
    folders = {path.parent for path in paths}
    links = {folder for folder in folders if os.path.realpath(folder) != os.path.abspath(folder)}  # noqa: PTH100
    return sorted(paths, key=lambda path: path.parent in links or path.is_symlink())
