"""A run's CSV and its manifest (`run.json`): writing, reading, validation. No torch here.

Training and judging share nothing but these files. A cell of the CSV is a number, `nan`, `inf` or `-inf`, all of them
known values, or empty, which is unknown; the reader keeps NaN and unknown apart.
"""

from bitnetctl.records.collapse import collapse_reason as collapse_reason
from bitnetctl.records.load import (
    LoadedSet as LoadedSet,
    load_begun_runs as load_begun_runs,
    load_files as load_files,
    load_planned as load_planned,
    load_run as load_run,
    load_set as load_set,
)
from bitnetctl.records.manifest import (
    Manifest as Manifest,
    PlannedRuns as PlannedRuns,
    PluginInfo as PluginInfo,
    Rollback as Rollback,
    Session as Session,
    Status as Status,
    read_manifest as read_manifest,
    utc_now as utc_now,
    write_manifest as write_manifest,
)
from bitnetctl.records.metrics import finite_value as finite_value
from bitnetctl.records.paths import RunPaths as RunPaths
from bitnetctl.records.reader import Records as Records, read as read
from bitnetctl.records.run import EmptyRun as EmptyRun, Run as Run, UnreadRun as UnreadRun
from bitnetctl.records.schema import (
    COLUMNS as COLUMNS,
    NAMES as NAMES,
    REQUIRED as REQUIRED,
    SCHEMA_VERSION as SCHEMA_VERSION,
    Row as Row,
)
from bitnetctl.records.writer import RecordWriter as RecordWriter
