"""What a run leaves behind: the CSV of its figures and the manifest beside it. No torch here.

The CSV is the only bridge between training and judging. A cell is a number, `nan`, `inf` or `-inf` (facts
about the run) or empty (unknown); the reader keeps the two apart.
"""

from bitnetctl.records.manifest import (
    Manifest,
    PluginRecord,
    Rollback,
    RunPaths,
    SessionRecord,
    Status,
    read_manifest,
    utc_now,
    write_manifest,
)
from bitnetctl.records.reader import Records, read
from bitnetctl.records.schema import COLUMNS, NAMES, REQUIRED, SCHEMA_VERSION, Column, Row
from bitnetctl.records.writer import RecordWriter

__all__ = [
    "COLUMNS",
    "NAMES",
    "REQUIRED",
    "SCHEMA_VERSION",
    "Column",
    "Manifest",
    "PluginRecord",
    "RecordWriter",
    "Records",
    "Rollback",
    "Row",
    "RunPaths",
    "SessionRecord",
    "Status",
    "read",
    "read_manifest",
    "utc_now",
    "write_manifest",
]
