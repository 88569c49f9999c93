"""What a run leaves behind: the CSV of its figures and the manifest beside it. No torch here.

The CSV is the only bridge between training and judging. A cell is a number, `nan`, `inf` or `-inf` (facts
about the run) or empty (unknown); the reader keeps the two apart.
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
