"""The CSV that Weights & Biases exports of a chart: a column for every run and metric, named `run - metric`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from bitnetctl.errors import RecordError
from bitnetctl.records.logs.base import Format, Log
from bitnetctl.records.logs.columns import BadValueError, Columns, parse_step
from bitnetctl.records.logs.curves import Curves
from bitnetctl.records.logs.table import header_cells, rows, torn_end

_BETWEEN = " - "
_BOUNDS = ("__MIN", "__MAX")
_TABLE = {"Name", "State"}


def _recognise(head: bytes, path: Path, columns: Columns) -> bool:
    names = header_cells(head)
    if set(names) >= _TABLE:
        return True
    return len(names) > 1 and all(_BETWEEN in name for name in names[1:])


def _read(paths: Sequence[Path], columns: Columns) -> list[Log]:
    (path,) = paths
    lines = rows(path)
    _, names = next(lines)
    if set(names) >= _TABLE:
        raise RecordError(f"{path}: a table with one row a run, not curves; export the chart of the loss as CSV")
    by_run = _runs(path, names)
    curves = {run: Curves(path, columns) for run in by_run}
    for run, metrics in by_run.items():
        curves[run].names.update(dict.fromkeys(metrics))
    steps = {run: _steps(path, names[0], metrics, columns) for run, metrics in by_run.items()}
    for number, cells in lines:
        for run, metrics in by_run.items():
            try:
                values = {
                    metric: columns.number(metric, cells[index])
                    for metric, index in metrics.items()
                    if index != steps[run]
                }
                if any(value is not None for value in values.values()):
                    curves[run].add(parse_step(names[steps[run]], cells[steps[run]]), values, number)
            except BadValueError as error:
                raise RecordError(f"{path}:{number}: {error}") from error
    note = torn_end(path)
    logs = []
    for run, of_run in curves.items():
        of_run.torn = note
        if steps[run] == 0 and names[0] in ("Step", "_step"):
            of_run.remarks.append("W&B counts Step with every call of log, unless the program gives it steps")
        logs.append(Log(name=run, path=path, records=of_run.records("chart exported from W&B")))
    return logs


def _runs(path: Path, names: Sequence[str]) -> Mapping[str, Mapping[str, int]]:
    """Return the index of every metric, by run; a smallest and largest value is none."""
    by_run: dict[str, dict[str, int]] = {}
    for index, name in enumerate(names[1:], start=1):
        run, _, metric = name.rpartition(_BETWEEN)
        if name.endswith(_BOUNDS):
            continue
        if run.startswith("Group: "):
            raise RecordError(f"{path}: {run!r} is a mean over a group of runs, not a run; export the chart ungrouped")
        metrics = by_run.setdefault(run, {})
        if metric in metrics:
            raise RecordError(f"{path}: two runs have the name {run!r}; rename one before the export")
        metrics[metric] = index
    return by_run


def _steps(path: Path, axis: str, metrics: Mapping[str, int], columns: Columns) -> int:
    """Return the index of the steps of a run: a metric of its own that counts them, else the axis of the chart."""
    given = columns.given.get("Step")
    if given is not None:
        if given in metrics:
            return metrics[given]
        if given == axis:
            return 0
        raise RecordError(f"{path}: --map: no {given!r} in it; there are {', '.join((axis, *metrics))}")
    own = [
        (mapped[1], index) for name, index in metrics.items() if (mapped := columns.of(name)) and mapped[0] == "Step"
    ]
    if own:
        return min(own)[1]
    mapped = columns.of(axis)
    if axis == "_step" or (mapped is not None and mapped[0] == "Step"):
        return 0
    if "_step" in metrics:
        return metrics["_step"]
    raise RecordError(f"{path}: its axis is {axis!r}, no step; export the chart by Step, or --map Step=NAME")


FORMAT = Format(title="W&B CSV export of a chart", recognise=_recognise, read=_read)
