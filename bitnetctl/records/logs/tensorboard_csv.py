"""The CSV that TensorBoard offers for download: one tag of one run, which only the file's name tells."""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from pathlib import Path

from bitnetctl.errors import RecordError
from bitnetctl.records.logs.base import Format, Log
from bitnetctl.records.logs.columns import BadValueError, Columns, parse_step
from bitnetctl.records.logs.curves import Curves
from bitnetctl.records.logs.table import header_cells, rows, torn_end

_HEADER = ["wall time", "step", "value"]
# browsers number the copies of a name
_NAME = re.compile(r"run[-_](?P<run>.*?)[-_]tag[-_](?P<tag>.*?)(?: ?\(\d+\))?", re.DOTALL)


def _recognise(head: bytes, path: Path, columns: Columns) -> bool:
    return [name.lower() for name in header_cells(head)] == _HEADER


def _key(path: Path) -> Hashable:
    named = _NAME.fullmatch(path.stem)
    return (path.parent, named["run"]) if named else path


def _read(paths: Sequence[Path], columns: Columns) -> list[Log]:
    named = _NAME.fullmatch(paths[0].stem)
    run = named["run"] if named else paths[0].stem
    # TensorBoard's name of the folder that it was started with
    if run in (".", ""):
        run = (Path.cwd() / paths[0]).parent.name
    curves = Curves(paths[0], columns)
    curves.refuse_other_steps(("step",))
    for path in paths:
        _read_tag(path, curves, columns)
    return [Log(name=run, path=paths[0], records=curves.records("scalars exported from TensorBoard"))]


def _read_tag(path: Path, curves: Curves, columns: Columns) -> None:
    named = _NAME.fullmatch(path.stem)
    tag = named["tag"] if named and "Value" not in columns.given.values() else "Value"
    if columns.of(tag) is None and tag == "Value":
        raise RecordError(f"{path}: the name of the file tells no tag (run-NAME-tag-TAG.csv); --map Loss=Value")
    part = Curves(path, columns)
    for number, cells in rows(path):
        if number == 1:
            continue
        try:
            part.add(parse_step("Step", cells[1]), {tag: columns.number(tag, cells[2])}, number)
        except BadValueError as error:
            raise RecordError(f"{path}:{number}: {error}") from error
    part.torn = torn_end(path)
    curves.join(part)


FORMAT = Format(title="TensorBoard CSV of a tag", recognise=_recognise, read=_read, key=_key)
