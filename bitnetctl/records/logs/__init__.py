"""Logs that other programs write of a training, recognised by their content. No torch here.

What a log does not have is unknown. A new format is a module with a `FORMAT` and a line in `FORMATS`.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path

from bitnetctl.records.logs import (
    hugging_face,
    json_lines,
    table,
    tensorboard_csv,
    tensorboard_events,
    text,
    wandb,
)
from bitnetctl.records.logs.base import HEAD, Format, Log
from bitnetctl.records.logs.columns import Columns, parse_map as parse_map
from bitnetctl.records.schema import REQUIRED

FORMATS: tuple[Format, ...] = (
    tensorboard_events.FORMAT,
    hugging_face.FORMAT,
    json_lines.FORMAT,
    tensorboard_csv.FORMAT,
    wandb.FORMAT,
    table.FORMAT,
    text.FORMAT,
)
"""In the order in which they are tried: the more particular ones first."""

_FEW = 3


def recognise(path: Path, columns: Mapping[str, str] | None = None) -> Format | None:
    """Return the format of a file; None for the product's own CSV, what is nearly one, and what is not known."""
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
    except OSError:
        return None
    known = Columns(columns)
    if not head or _is_own(head, known):
        return None
    return next((one for one in FORMATS if one.recognise(head, path, known)), None)


def _is_own(head: bytes, columns: Columns) -> bool:
    """Whether the first or the second line, below a title, is the header of the product's own files, or nearly so.

    The reader of these says what is wrong with one that is nearly so, unless `--map` says what its names mean.
    """
    names = {name.lower().encode() for name in REQUIRED}
    for line in head.split(b"\n", 2)[:2]:
        there = names & {cell.strip(b' \t\r"#').lower() for cell in re.split(rb"[,;\t]", line)}
        nearly = len(there) > _FEW or {b"step", b"uniquepredictions"} <= there
        if len(there) == len(names) or (nearly and not columns.given):
            return True
    return False


def read_logs(paths: Iterable[tuple[Path, Format]], columns: Mapping[str, str] | None = None) -> list[Log]:
    """Return the runs of logs in order, the files of one run read together; raises RecordError."""
    grouped: dict[tuple[str, Hashable], tuple[Format, list[Path]]] = {}
    for path, one in paths:
        grouped.setdefault((one.title, one.key(path)), (one, []))[1].append(path)
    known = Columns(columns)
    return [log for one, files in grouped.values() for log in one.read(files, known)]
