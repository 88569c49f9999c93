"""Find the CSVs given as files, folders or glob patterns on a command line."""

import glob
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from bitnetctl.errors import ConfigError
from bitnetctl.records.logs.search import logs_below


def find_csvs(paths: Sequence[str]) -> list[Path]:
    """Return the CSVs of files, folders and glob patterns, each once, in order; raises ConfigError for none.

    Of a folder without CSVs, the logs of other programs below it.
    """
    csvs: dict[str, Path] = {}
    for text in paths:
        path = Path(text)
        if "\0" in text:
            raise ConfigError(f"{text!r}: no path can hold a NUL byte")
        # Path.is_dir and Path.exists raise for a long name
        if os.path.isdir(text):  # noqa: PTH112
            files = _ordered(entry for entry in _entries(path) if entry.suffix.lower() == ".csv" and entry.is_file())
            files = files or _ordered(logs_below(path))
            if not files:
                raise ConfigError(f"{path}: no CSV in this folder, and no log of another program below it")
        elif os.path.exists(text) or not glob.has_magic(text):  # noqa: PTH110
            files = [path]
        else:
            # a shell passes a pattern without matches on unchanged, and some expand none
            files = _ordered(map(Path, glob.glob(text, recursive=True)))  # noqa: PTH207 - takes absolute patterns
            if not files:
                raise ConfigError(f"{text}: no file matches")
        for file in files:
            # Path.resolve raises for a symlink loop
            csvs.setdefault(os.path.realpath(file), file)
    return list(csvs.values())


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise ConfigError(f"{folder}: cannot read: {error.strerror or error}") from error


def _ordered(files: Iterable[Path]) -> list[Path]:
    """Sort by name with digits as numbers: h256 before h1024."""
    pieces = re.compile(r"(\d+)")
    return sorted(
        files, key=lambda file: [part.zfill(20) if part.isdigit() else part for part in pieces.split(str(file))]
    )
