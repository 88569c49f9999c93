"""A log as a CSV of the schema, with what its rows do not tell in a file beside it, as a bundle keeps it."""

from __future__ import annotations

import io
from pathlib import Path

from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt, ValidationError

from bitnetctl.errors import RecordError, cannot_read, one_line
from bitnetctl.records.reader import Records
from bitnetctl.records.schema import NAMES

ORIGIN_NAME = "log.json"
"""Name of the file in the folder that has the name of the CSV."""


class Origin(BaseModel):
    """The log that a CSV was converted from, and what is known of its run."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    origin: str
    run: str
    size: PositiveInt | None = None
    arm: str | None = None
    seed: NonNegativeInt | None = None
    planned_steps: NonNegativeInt | None = None
    notes: tuple[str, ...] = ()
    torn: str | None = None


def to_csv(records: Records) -> str:
    """Return the rows as a CSV with all columns of the schema; what is unknown is empty."""
    text = io.StringIO()
    text.write(",".join(NAMES) + "\n")
    columns = []
    for name in NAMES:
        if name not in records.frame:
            columns.append([""] * len(records.frame))
            continue
        cells = zip(records.frame[name].tolist(), records.unknown[name].tolist(), strict=True)
        columns.append(["" if unknown else repr(value) for value, unknown in cells])
    for row in zip(*columns, strict=True):
        text.write(",".join(row) + "\n")
    return text.getvalue()


def read_origin(csv: Path) -> Origin | None:
    """Return what lies beside a converted CSV; None for any other CSV, RecordError where it is damaged."""
    path = csv.with_suffix("") / ORIGIN_NAME
    try:
        return Origin.model_validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise RecordError(cannot_read(path, error)) from error
    except ValidationError as error:
        raise RecordError(f"{path}: damaged: {one_line(error.errors()[0]['msg'])}") from error
