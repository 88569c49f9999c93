"""What the formats of logs have in common: a run of a log, the interface of a format, lines of limited length."""

from __future__ import annotations

import codecs
import io
import itertools
import re
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from bitnetctl.errors import RecordError
from bitnetctl.records.logs.columns import Columns
from bitnetctl.records.reader import Records

HEAD = 1 << 16
"""Bytes from the beginning of a file by which a format is recognised."""
LONGEST_LINE = 1 << 24

_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_LARGEST_UTF_16 = 1 << 28

_GENERIC = ("metrics", "trainer_state", "log", "logs", "train", "train_log", "training", "main", "output", "history")
_PART = re.compile(r"(?:version|checkpoint)[_-]\d+|logs?|files|metrics|csv|tensorboard|tb", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True, eq=False)
class Log:
    """One run of a log; `planned_steps` is None where the log does not tell."""

    name: str
    path: Path
    records: Records
    planned_steps: int | None = None


def own_key(path: Path) -> Hashable:
    """Return the key of a file that is a log by itself."""
    return path


@dataclass(frozen=True, kw_only=True)
class Format:
    """One format of logs.

    `recognise` tells it by the beginning of a file. Files of one `key` are one log, and read together. `read` raises
    RecordError, which names file and line, for a damaged one.
    """

    title: str
    recognise: Callable[[bytes, Path, Columns], bool]
    read: Callable[[Sequence[Path], Columns], list[Log]]
    key: Callable[[Path], Hashable] = own_key


def log_name(path: Path) -> str:
    """Return the name of the run of a file: of the file, or of its folders where every run's file has the same."""
    path = Path.cwd() / path
    if path.stem.lower() not in _GENERIC and not path.name.startswith("events.out.tfevents."):
        return path.stem
    parts = [part for part in path.parts[:-1] if part != path.anchor]
    names = [parts.pop()] if parts else [path.stem]
    while parts and _PART.fullmatch(names[0]):
        names.insert(0, parts.pop())
    return "/".join(names)


def opened(path: Path) -> BinaryIO:
    """Open a file of text as bytes of UTF-8; what a shell of Windows wrote is UTF-16. Raises OSError, RecordError."""
    file = path.open("rb")
    start = file.read(2)
    file.seek(0)
    if start not in _UTF_16:
        return file
    with file:
        content = file.read(_LARGEST_UTF_16 + 1)
    if len(content) > _LARGEST_UTF_16:
        raise RecordError(f"{path}: larger than {_LARGEST_UTF_16 >> 20} MiB in UTF-16; save it as UTF-8")
    try:
        return io.BytesIO(content.decode("utf-16").encode())
    except UnicodeError as error:
        raise RecordError(f"{path}: UTF-16 that is damaged: {error}") from error


def lines(file: BinaryIO, path: Path) -> Iterator[tuple[int, bytes, bool]]:
    """Yield number, content and whether it is whole (ends with a newline) of every line; raises RecordError.

    A carriage return, with which progress bars go over their line, ends a line, too.
    """
    number = 0
    while line := file.readline(LONGEST_LINE + 1):
        number += 1
        if len(line) > LONGEST_LINE:
            raise RecordError(f"{path}:{number}: a line of more than {LONGEST_LINE:,} bytes; this is no log")
        whole = line.endswith(b"\n")
        content = line.rstrip(b"\r\n")
        if b"\r" in content:
            for part in content.split(b"\r"):
                yield number, part, whole
        else:
            yield number, content, whole


def planned_steps(steps: Sequence[int], total: int | None) -> int | None:
    """Return the planned steps of a run by the total that its log names; None where they would mislead.

    Logs count from 0 or from 1, and not every step has a row: between the last row and the total there may be none.
    """
    if total is None or steps[-1] >= total:
        return total
    between = max((later - earlier for earlier, later in itertools.pairwise(steps)), default=total)
    return total if total - steps[-1] > between else None
