"""Find the logs below a folder: by the names that programs give them, and for JSONL by what is in it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from bitnetctl.records.logs.base import HEAD

_DEPTH = 6
_MOST = 10_000
_TABLES = ("metrics.csv",)
_STATE = "trainer_state.json"
_EVENTS = "events.out.tfevents."
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_OF_CURVES = (
    re.compile(rb'"[^"]*loss[^"]*"\s*:', re.IGNORECASE),
    re.compile(rb'"[^"]*(?:step|iter|num_updates)[^"]*"\s*:', re.IGNORECASE),
)


def logs_below(folder: Path) -> list[Path]:
    """Return `metrics.csv`, `trainer_state.json`, `*.jsonl` with losses, and event files where there is nothing else.

    Of the checkpoints of one training the last counts, whose state has the others' history. Folders that cannot be
    read, and hidden ones, are passed over.
    """
    files = list(_walk(folder, _DEPTH))
    found = [
        file
        for file in _last_states(files)
        if file.name in (*_TABLES, _STATE) or (file.suffix.lower() == ".jsonl" and _has_curves(file))
    ]
    return found or [file for file in files if file.name.startswith(_EVENTS)]


def _walk(folder: Path, depth: int) -> Iterable[Path]:
    try:
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))[:_MOST]
    except OSError:
        return
    for entry in entries:
        if entry.is_dir():
            if depth and not entry.is_symlink():
                yield from _walk(entry, depth - 1)
        elif entry.is_file():
            yield entry


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


def _has_curves(file: Path) -> bool:
    try:
        with file.open("rb") as opened:
            head = opened.read(HEAD)
    except OSError:
        return False
    return all(pattern.search(head) for pattern in _OF_CURVES)
