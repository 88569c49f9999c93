"""`trainer_state.json` of the Hugging Face Trainer: `log_history` has an entry for every logging and evaluation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bitnetctl.errors import RecordError, cannot_read, one_line
from bitnetctl.records.logs.base import Format, Log, log_name, opened, planned_steps
from bitnetctl.records.logs.columns import BadValueError, Columns, parse_step
from bitnetctl.records.logs.curves import Curves

NAME = "trainer_state.json"
_HISTORY = "log_history"
_LARGEST = 1 << 29


def read_json(path: Path) -> Any:
    """Return the content of a JSON file, in which NaN and Infinity may stand; raises RecordError."""
    try:
        if path.stat().st_size > _LARGEST:
            raise RecordError(f"{path}: larger than {_LARGEST >> 20} MiB; this is no log of a training")
        return json.loads(_decoded(path))
    except OSError as error:
        raise RecordError(cannot_read(path, error)) from error
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{path}: not JSON, or cut short: {one_line(error)}") from error


def _decoded(path: Path) -> str:
    with opened(path) as file:
        return file.read().decode("utf-8-sig")


def _recognise(head: bytes, path: Path, columns: Columns) -> bool:
    return head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{") and b'"log_history"' in head


def _read(paths: Sequence[Path], columns: Columns) -> list[Log]:
    (path,) = paths
    state = read_json(path)
    history = state.get(_HISTORY) if isinstance(state, dict) else None
    if not isinstance(history, list):
        raise RecordError(f"{path}: no list {_HISTORY}; this is no state of a Trainer")
    curves = Curves(path, columns, place=f"entry of {_HISTORY}")
    name = columns.given.get("Step", "step")
    ended = False
    for number, entry in enumerate(history, start=1):
        if not isinstance(entry, dict):
            raise curves.error(number, "not an object")
        if "train_runtime" in entry:
            # its train_loss is the mean over the whole training
            ended = True
            continue
        try:
            if ended:
                curves.remarks.append(
                    f"entry {number} of {_HISTORY} and later were logged after the training; left out"
                )
                break
            curves.add(
                parse_step(name, entry.get(name)),
                {key: columns.number(key, value) for key, value in entry.items() if key != name},
                number,
            )
        except BadValueError as error:
            raise curves.error(number, str(error)) from error
    curves.remarks.append("the Trainer's loss is a mean over the steps since the row before")
    records = curves.records("state of a Hugging Face Trainer")
    total = state.get("max_steps")
    planned = planned_steps(records.frame["Step"].tolist(), total if isinstance(total, int) and total > 0 else None)
    return [Log(name=log_name(path), path=path, records=records, planned_steps=planned)]


FORMAT = Format(title="Hugging Face trainer_state.json", recognise=_recognise, read=_read)
