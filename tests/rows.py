"""Rows of a run's CSV, and files of given content."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings

from bitnetctl.records import RecordWriter

FIVE = "Step,Loss,UniquePredictions,LR,WD\n"
ROW = {"Step": 1, "Loss": 10.8, "UniquePredictions": 16, "LR": 4e-06, "WD": 0.1}

# for property tests with a `tmp_path`, which the examples share
shared_folder = settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])


@contextlib.contextmanager
def writing(path: Path, kept: bytes = b"") -> Iterator[RecordWriter]:
    """Yield an open writer; at the end it is closed, and synced unless the block raised."""
    writer = RecordWriter(path, kept)
    writer.open()
    try:
        yield writer
        writer.sync()
    finally:
        writer.close()


def write_rows(path: Path, rows: list[dict[str, Any]], kept: bytes = b"") -> bytes:
    """Write rows after what is kept and return the content of the file."""
    with writing(path, kept) as writer:
        for row in rows:
            writer.append(row)
    return path.read_bytes()


def row_at(step: int, **values: float | int | None) -> dict[str, Any]:
    """Return a row with the required columns and other `values`."""
    return ROW | {"Step": step} | values


def csv_file(folder: Path, content: str | bytes, name: str = "x.csv") -> Path:
    """Write a file of this content."""
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path
