"""Find the CSVs given as files, folders or glob patterns on a command line."""

import glob
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bitnetctl.errors import ConfigError, cannot_read
from bitnetctl.records.logs.search import logs_below
from bitnetctl.records.naming import original_stem as original_stem
from bitnetctl.records.paths import MANIFEST_NAME

RUNS_FOLDER = "runs"
"""Folder of the CSVs in a bundle."""
LEFT_OUT_FOLDER = "left-out"
"""Folder of a bundle's CSVs that were not given, so that they are not given when the bundle is read."""
VERDICT_NAME = "verdict.json"

# what operating systems, editors and offices put beside files: resource forks, locks, swap files
_LITTER = re.compile(r"\._.*|\.~lock\..*#|~\$.*|\..*\.sw[a-p]|thumbs\.db|desktop\.ini|\.ds_store", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Found:
    """CSVs, each once and in order, and the files that were named and are none: hidden ones of other programs."""

    csvs: list[Path] = field(default_factory=list)
    skipped: list[Path] = field(default_factory=list)


def find_csvs(paths: Sequence[str]) -> list[Path]:
    """Return the CSVs of files, folders and glob patterns, each once, in order; raises ConfigError for none."""
    return find_files(paths).csvs


def find_files(paths: Sequence[str]) -> Found:
    """Find CSVs as `find_csvs` does, and name what was skipped.

    A folder is one of CSVs, a bundle's with the subfolder `runs`, or that of a run, whose CSV lies beside it. Hidden
    files are left out, unless they are named and not of a kind that other programs put beside files. Of a folder
    without CSVs, the logs of other programs below it are found.
    """
    csvs: dict[str, Path] = {}
    skipped: list[Path] = []
    for text in paths:
        if "\0" in text:
            raise ConfigError(f"{text!r}: no path can hold a NUL byte")
        # Path.is_dir and Path.exists raise for a long name
        text = text if os.path.lexists(text) else os.path.expanduser(text)  # noqa: PTH111
        if os.path.isdir(text):  # noqa: PTH112
            files = _in_folder(Path(text))
        elif os.path.exists(text) or not glob.has_magic(text):  # noqa: PTH110
            files = [Path(text)]
        else:
            # a shell passes a pattern without matches on unchanged, and some expand none
            files = _ordered(map(Path, glob.glob(_with_real_folders(text), recursive=True)))  # noqa: PTH207 - takes absolute patterns
            if not files:
                raise ConfigError(f"{text}: no file matches")
        for file in files:
            if is_litter(file.name):
                skipped.append(file)
            else:
                # Path.resolve raises for a symlink loop
                csvs.setdefault(os.path.realpath(file), file)
    if skipped and not csvs:
        raise ConfigError(f"{skipped[0]}: not a CSV but a hidden file that another program put there")
    return Found(csvs=list(csvs.values()), skipped=skipped)


def _with_real_folders(pattern: str) -> str:
    """Escape the folders at the beginning of a pattern that are there by this very name, such as `runs [old]`."""
    folder = os.path.dirname(pattern)  # noqa: PTH120 - keeps the text as it is
    while folder and not os.path.isdir(folder):  # noqa: PTH112
        folder = os.path.dirname(folder)  # noqa: PTH120
    return glob.escape(folder) + pattern[len(folder) :]


def is_litter(name: str) -> bool:
    """Whether a file of this name is one that operating systems and programs put beside others."""
    return _LITTER.fullmatch(name) is not None


def is_bundle_folder(folder: Path) -> bool:
    """Whether a folder is an unpacked bundle."""
    # os.path raises for no name
    return all(os.path.exists(folder / name) for name in (RUNS_FOLDER, "criteria", VERDICT_NAME))  # noqa: PTH110


def _in_folder(folder: Path) -> list[Path]:
    for place in (folder, folder / RUNS_FOLDER):
        # Path.is_dir raises for a long name
        if place is folder or os.path.isdir(place):  # noqa: PTH112
            files = [entry for entry in _entries(place) if _is_csv(entry)]
            if files:
                return _ordered(files)
    csv = folder.with_name(f"{folder.name}.csv") if folder.name else folder
    if (folder / MANIFEST_NAME).is_file() and csv.is_file():
        return [csv]
    logs = logs_below(folder)
    if not logs:
        raise ConfigError(f"{folder}: no CSV in this folder, and no log of another program below it")
    return _ordered(logs)


def _is_csv(entry: Path) -> bool:
    is_hidden = entry.name.startswith(".") or is_litter(entry.name)
    # a link to nowhere is a run that cannot be read
    is_there = entry.is_file() or (entry.is_symlink() and not entry.exists())
    return entry.suffix.lower() == ".csv" and not is_hidden and is_there


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise ConfigError(cannot_read(folder, error)) from error


def _ordered(files: Iterable[Path]) -> list[Path]:
    """Sort by name with digits as numbers: h256 before h1024."""
    pieces = re.compile(r"(\d+)")
    return sorted(
        files, key=lambda file: [part.zfill(20) if part.isdigit() else part for part in pieces.split(str(file))]
    )
