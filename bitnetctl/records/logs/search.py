"""Find the logs below a folder: by the names that programs give them, and for JSONL by what is in it."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

_DEPTH = 6
_MOST = 100_000
"""Most files that are looked at."""
_SEARCHED = 1 << 20
_TABLES = ("metrics.csv",)
_STATE = "trainer_state.json"
_EVENTS = "events.out.tfevents."
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_OF_EVENTS = (re.compile(rb"loss", re.IGNORECASE),)
_OF_CURVES = (
    re.compile(rb'"[^"]*loss[^"]*"\s*:', re.IGNORECASE),
    re.compile(rb'"[^"]*(?:step|iter|num_updates)[^"]*"\s*:', re.IGNORECASE),
)


def logs_below(folder: Path) -> list[Path]:
    """Return `metrics.csv`, `trainer_state.json`, `*.jsonl` with losses, and event files where there is nothing else.

    Of the checkpoints of one training the last counts, whose state has the others' history. Folders that cannot be
    read, and hidden ones, are passed over.
    """
    files = list(itertools.islice(_walk(folder, _DEPTH), _MOST))
    found = [
        file
        for file in _last_states(files)
        if file.name in (*_TABLES, _STATE) or (file.suffix.lower() == ".jsonl" and _holds(file, _OF_CURVES))
    ]
    # of settings and other tags there are event files of their own
    return found or [file for file in files if file.name.startswith(_EVENTS) and _holds(file, _OF_EVENTS)]


def _walk(folder: Path, depth: int) -> Iterator[Path]:
    """Yield the files below a folder, at most `depth` folders down."""
    try:
        with os.scandir(folder) as entries:
            ordered = sorted((entry for entry in entries if not entry.name.startswith(".")), key=_by_name)
    except OSError:
        return
    for entry in ordered:
        # a loop of links
        with contextlib.suppress(OSError):
            if entry.is_dir(follow_symlinks=False):
                if depth:
                    yield from _walk(Path(entry.path), depth - 1)
            elif entry.is_file():
                yield Path(entry.path)


def _by_name(entry: os.DirEntry[str]) -> str:
    return entry.name


def _last_states(files: Iterable[Path]) -> list[Path]:
    """Return the files without the states of checkpoints that a later one, or that of the whole training, repeats."""
    files = list(files)
    last: dict[Path, int] = {}
    whole = {file.parent for file in files if file.name == _STATE}
    for file in files:
        named = _CHECKPOINT.fullmatch(file.parent.name)
        if file.name == _STATE and named is not None:
            training = file.parent.parent
            last[training] = max(last.get(training, -1), int(named[1][:18]))

    def is_repeated(file: Path) -> bool:
        named = _CHECKPOINT.fullmatch(file.parent.name)
        if file.name != _STATE or named is None:
            return False
        training = file.parent.parent
        return training in whole or int(named[1][:18]) < last[training]

    return [file for file in files if not is_repeated(file)]


def _holds(file: Path, patterns: Iterable[re.Pattern[bytes]]) -> bool:
    try:
        with file.open("rb") as opened:
            head = opened.read(_SEARCHED)
    except OSError:
        return False
    return all(pattern.search(head) for pattern in patterns)
