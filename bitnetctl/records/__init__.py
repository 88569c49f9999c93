"""The files of a run that are judged: the CSV of its rows and the manifest beside it. No torch here.

Training and judging share nothing but these files. A cell of the CSV is a number, `nan`, `inf` or `-inf`, all of them
known values, or empty, which is unknown; the reader keeps NaN and unknown apart.
"""

from bitnetctl.records.manifest import (
    Manifest,
    PluginInfo,
    Rollback,
    Session,
    Status,
    read_manifest,
    utc_now,
    write_manifest,
)
from bitnetctl.records.metrics import COLLAPSED_BELOW, collapse, known
from bitnetctl.records.paths import RunPaths
from bitnetctl.records.reader import Records, read
from bitnetctl.records.run import Run, load_begun_runs, load_run, load_runs
from bitnetctl.records.schema import COLUMNS, NAMES, REQUIRED, SCHEMA_VERSION, Column, Row
from bitnetctl.records.writer import RecordWriter

__all__ = [
    "COLLAPSED_BELOW",
    "COLUMNS",
    "NAMES",
    "REQUIRED",
    "SCHEMA_VERSION",
    "Column",
    "Manifest",
    "PluginInfo",
    "RecordWriter",
    "Records",
    "Rollback",
    "Row",
    "Run",
    "RunPaths",
    "Session",
    "Status",
    "collapse",
    "known",
    "load_begun_runs",
    "load_run",
    "load_runs",
    "read",
    "read_manifest",
    "utc_now",
    "write_manifest",
]
