"""Logs that other programs write of a training, recognised by their content. No torch here.

What a log does not have is unknown. A new format is a module with a `FORMAT` and a line in `FORMATS`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from bitnetctl.errors import RecordError
from bitnetctl.records.logs import (
    hugging_face,
    json_lines,
    table,
    tensorboard_csv,
    tensorboard_events,
    text,
    wandb,
)
from bitnetctl.records.logs.base import HEAD, Format as Format, opened
from bitnetctl.records.logs.columns import Columns, parse_map as parse_map
from bitnetctl.records.logs.converted import Origin
from bitnetctl.records.naming import original_stem, parse_run_name, seed_hint, size_hint
from bitnetctl.records.paths import MANIFEST_NAME
from bitnetctl.records.reader import Records
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
_ABOVE = 10
"""Lines of titles and comments that may stand above a header."""


def recognise(path: Path, columns: Mapping[str, str] | None = None) -> Format | None:
    """Return the format of a file; None for the product's own CSV, what is nearly one, and what is not known."""
    head = _head(path)
    known = Columns(columns)
    if not head or _is_named_as_own(path, head, known) or _is_own(head, known):
        return None
    return next((one for one in FORMATS if one.recognise(head, path, known)), None)


def _head(path: Path) -> bytes:
    """Return the beginning of a file; nothing of one that cannot be read, or only once."""
    try:
        # Path.is_file raises for a long name
        if not path.is_file():
            return b""
        with opened(path) as file:
            return file.read(HEAD)
    except (OSError, RecordError):
        return b""


def _is_named_as_own(path: Path, head: bytes, columns: Columns) -> bool:
    """Whether a file has a manifest beside it, or the name of a run and what may be left of its header."""
    if path.suffix.lower() == ".csv" and os.path.exists(path.with_suffix("") / MANIFEST_NAME):  # noqa: PTH110
        return True
    is_named = parse_run_name(original_stem(path.stem)) is not None
    return is_named and not columns.given and re.match(rb"Step[,\r\n]", head) is not None


def _is_own(head: bytes, columns: Columns) -> bool:
    """Whether one of the first lines is the header of the product's own files, or nearly so.

    The reader of these says what is wrong with one that is nearly so, unless `--map` says what its names mean.
    """
    names = {_folded(name.encode()) for name in REQUIRED}
    for cells in _headers(head):
        there = names & cells
        nearly = len(there) > _FEW or {b"step", b"uniquepredictions"} <= there
        if len(there) == len(names) or (nearly and not columns.given):
            return True
    return False


def _headers(head: bytes) -> list[set[bytes]]:
    """Return the folded cells of the lines that can be the header of the product's own files."""
    lines = head.split(b"\n", _ABOVE + 1)[: _ABOVE + 1]
    return [{_folded(cell) for cell in re.split(rb"[,;\t]", line)} for line in lines]


def _folded(name: bytes) -> bytes:
    """Return a name without what programs change in it: letter case, quotes, a comment mark, between its words."""
    return re.sub(rb'[\s_"#-]+', b"", name).lower()


def mapped_columns(path: Path, columns: Mapping[str, str] | None) -> Mapping[str, str] | None:
    """Return the names that hold for a CSV: none for one of the product's own that has nothing of these names."""
    if not columns:
        return None
    head = _head(path)
    own = {_folded(name.encode()) for name in REQUIRED}
    given = {_folded(name.encode()) for name in columns.values()} - own
    return None if any(own <= cells and not given & cells for cells in _headers(head)) else columns


def group_logs(
    paths: Iterable[Path], columns: Mapping[str, str] | None = None
) -> list[tuple[Format | None, list[Path]]]:
    """Return format and files of every log in order, the files of one run together; no format for any other file."""
    grouped: dict[Hashable, tuple[Format | None, list[Path]]] = {}
    for path in paths:
        one = recognise(path, columns)
        key = ("", path) if one is None else (one.title, one.key(path))
        grouped.setdefault(key, (one, []))[1].append(path)
    return list(grouped.values())


def read_log(
    one: Format, paths: Sequence[Path], columns: Mapping[str, str] | None = None
) -> Iterator[tuple[Path, Records, Origin]]:
    """Yield file, rows and what is known of every run of a log; raises RecordError where it is damaged.

    `columns` are names in the log by column of the schema.
    """
    for log in one.read(paths, Columns(columns)):
        named = parse_run_name(log.name)
        yield (
            log.path,
            log.records,
            Origin(
                origin=one.title,
                run=log.name,
                size=named.size if named else size_hint(log.name, None, of_log=True),
                arm=named.arm if named else None,
                seed=named.seed if named else seed_hint(log.name, None),
                planned_steps=named.steps if named else log.planned_steps,
                notes=log.records.notes,
                torn=log.records.torn,
            ),
        )
