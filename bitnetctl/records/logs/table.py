"""CSVs with a row for every time something was logged, most cells empty: PyTorch Lightning's and others."""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from bitnetctl.errors import RecordError, cannot_read
from bitnetctl.records.logs.base import Format, Log, log_name, opened
from bitnetctl.records.logs.columns import BadValueError, Columns, parse_step
from bitnetctl.records.logs.curves import Curves
from bitnetctl.records.one_run import OneRun


def header_cells(head: bytes) -> list[str]:
    """Return the cells of the first line of a file; empty where it is no line of a CSV."""
    line, newline, _ = head.removeprefix(codecs.BOM_UTF8).partition(b"\n")
    if not newline or b"\0" in line:
        return []
    try:
        (cells,) = csv.reader([line.decode("utf-8").rstrip("\r")], strict=True)
    except (UnicodeDecodeError, csv.Error, ValueError):
        return []
    return [cell.strip() for cell in cells]


def rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield line number and cells of every row, the header first; raises RecordError for a malformed one."""
    try:
        with opened(path) as binary:
            reader = csv.reader(io.TextIOWrapper(binary, encoding="utf-8-sig", newline=""), strict=True)
            width = 0
            for cells in reader:
                if not any(cell.strip() for cell in cells):
                    continue
                width = width or len(cells)
                if len(cells) != width:
                    raise RecordError(f"{path}:{reader.line_num}: {len(cells)} cells for {width} columns")
                yield reader.line_num, [cell.strip() for cell in cells]
    except OSError as error:
        raise RecordError(cannot_read(path, error)) from error
    except (csv.Error, UnicodeDecodeError, ValueError) as error:
        raise RecordError(f"{path}: not a CSV that can be read: {error}") from error


def torn_end(path: Path) -> str | None:
    """Return a note where a file does not end with a newline."""
    with opened(path) as file:
        file.seek(0, io.SEEK_END)
        if not file.tell():
            return None
        file.seek(-1, io.SEEK_END)
        return None if file.read(1) in b"\r\n" else "the last row has no newline; its last cell may have been cut short"


def step_name(names: Sequence[str], columns: Columns) -> str | None:
    """Return the name of the steps: that of `--map`, else the one that counts optimizer steps for certain."""
    found = [(mapped[1], name) for name in names if (mapped := columns.of(name)) is not None and mapped[0] == "Step"]
    return min(found)[1] if found else None


def _recognise(head: bytes, path: Path, columns: Columns) -> bool:
    names = header_cells(head)
    mapped = {of[0] for name in names if (of := columns.of(name)) is not None}
    has_steps = "Step" in mapped or "epoch" in map(str.lower, names)
    return has_steps and bool(mapped & {"Loss", "HeldOutLoss"})


def _read(paths: Sequence[Path], columns: Columns) -> list[Log]:
    (path,) = paths
    curves = Curves(path, columns)
    names: list[str] = []
    step = ""
    run = OneRun()
    for line, cells in rows(path):
        if not names:
            names = cells
            repeated = sorted({name for name in names if name and names.count(name) > 1})
            if repeated:
                raise RecordError(f"{path}:{line}: duplicate columns: {', '.join(map(repr, repeated))}")
            found = step_name(names, columns)
            if found is None or found not in names:
                raise RecordError(f"{path}:{line}: no column of steps among {', '.join(names)}; --map Step=NAME")
            step = found
            continue
        row = dict(zip(names, cells, strict=True))
        wrong = run.contradiction(row)
        if wrong is not None:
            raise RecordError(f"{path}:{line}: {wrong}")
        try:
            values = {name: columns.number(name, cell) for name, cell in row.items() if name and name != step}
            if not row[step] and not any(value is not None for value in values.values()):
                continue
            curves.add(parse_step(step, row[step]), values, line)
        except BadValueError as error:
            raise RecordError(f"{path}:{line}: {error}") from error
    curves.refuse_nan_as_missing()
    curves.torn = torn_end(path)
    if step == "_step":
        curves.remarks.append("W&B counts _step with every call of log, unless the program gives it steps")
    title = "a table of curves (PyTorch Lightning's metrics.csv or alike)"
    return [Log(name=log_name(path), path=path, records=curves.records(title))]


FORMAT = Format(title="PyTorch Lightning metrics.csv and other tables of curves", recognise=_recognise, read=_read)
