"""Scalars as JSON: an object a line (JSONL), also behind the prefix of a logger as fairseq writes it, or one array."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bitnetctl.errors import RecordError, cannot_read, one_line
from bitnetctl.records.logs.base import HEAD, Format, Log, lines, log_name, opened
from bitnetctl.records.logs.columns import BadValueError, Columns, parse_step
from bitnetctl.records.logs.curves import Curves
from bitnetctl.records.logs.hugging_face import read_json
from bitnetctl.records.logs.table import step_name
from bitnetctl.records.one_run import OneRun
from bitnetctl.units import plural

# "2021-03-08 12:31:36 | INFO | train_inner | {…}"; its lines of epochs hold means
_FAIRSEQ = re.compile(rb"\| (?:train_inner|valid) \| (\{.*\})$")
_START = b"\xef\xbb\xbf \t\r\n"
_DEPTH = 3


def _recognise(head: bytes, path: Path, columns: Columns) -> bool:
    start = head.lstrip(_START)
    if re.match(rb"\[\s*\{", start):
        return True
    line, newline, _ = start.partition(b"\n")
    if not newline and len(head) == HEAD:
        return re.match(rb'\{\s*"[^"]*"\s*:', line) is not None
    try:
        return isinstance(json.loads(line.decode("utf-8")), dict)
    except (ValueError, RecursionError):
        return any(_FAIRSEQ.search(other.rstrip()) for other in head.split(b"\n"))


def _read(paths: Sequence[Path], columns: Columns) -> list[Log]:
    (path,) = paths
    curves = Curves(path, columns)
    skipped = 0
    run = OneRun()
    for number, tree in _objects(path, curves):
        values = dict(_flat(tree))
        wrong = run.contradiction(values)
        if wrong is not None:
            raise curves.error(number, wrong)
        name = step_name(list(values), columns)
        if name is None or values[name] is None:
            skipped += 1
            curves.names.update(dict.fromkeys(values))
            continue
        try:
            curves.add(
                parse_step(name, values[name]),
                {key: columns.number(key, value) for key, value in values.items() if key != name},
                number,
            )
        except BadValueError as error:
            raise curves.error(number, str(error)) from error
    if skipped:
        curves.remarks.append(f"{plural(skipped, 'object')} without a step left out")
    return [Log(name=log_name(path), path=path, records=curves.records("a log of scalars as JSON"))]


def _objects(path: Path, curves: Curves) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield the objects of a file with their lines, or places in the array."""
    try:
        with opened(path) as file:
            start = file.read(HEAD).lstrip(_START)[:1]
            if start == b"[":
                yield from _array(path)
                return
            file.seek(0)
            for number, line, whole in lines(file, path):
                content = line.strip(_START)
                if start != b"{":
                    prefixed = _FAIRSEQ.search(content)
                    content = prefixed[1] if prefixed else b""
                if not content:
                    continue
                try:
                    tree = json.loads(content.decode("utf-8"))
                except (ValueError, RecursionError) as error:
                    if not whole:
                        curves.torn = f"line {number}: torn last line dropped"
                        return
                    raise curves.error(number, f"not JSON: {one_line(error)}") from error
                if not isinstance(tree, dict):
                    raise curves.error(number, "not an object")
                yield number, tree
    except OSError as error:
        raise RecordError(cannot_read(path, error)) from error


def _array(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    entries = read_json(path)
    for number, entry in enumerate(entries if isinstance(entries, list) else [entries], start=1):
        if not isinstance(entry, dict):
            raise RecordError(f"{path}: entry {number}: not an object")
        yield number, entry


def _flat(tree: Mapping[str, Any], above: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Yield names and scalars, of nested objects with the names joined by `/`."""
    for key, value in tree.items():
        name = f"{above}{key}"
        if isinstance(value, dict):
            if depth < _DEPTH:
                yield from _flat(value, f"{name}/", depth + 1)
        elif isinstance(value, str | int | float) or value is None:
            yield name, value


FORMAT = Format(title="JSONL of scalars", recognise=_recognise, read=_read)
