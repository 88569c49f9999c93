"""TensorBoard event files, read with the library `tensorboard` (extra `tensorboard`)."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bitnetctl.errors import ConfigError, RecordError, one_line
from bitnetctl.records.logs.base import Format, Log, log_name
from bitnetctl.records.logs.columns import Columns
from bitnetctl.records.logs.curves import Curves

PREFIX = "events.out.tfevents."
_WRITTEN = re.compile(r"tfevents\.(\d+)")
_SCALARS = "scalars"


def _recognise(head: bytes, path: Path, columns: Columns) -> bool:
    # the first record, after twelve bytes of length and checksum, names the version of the format
    return b"brain.Event:" in head[:64]


def _key(path: Path) -> Hashable:
    # of a run that was resumed there are several files in its folder
    return path.parent


def _read(paths: Sequence[Path], columns: Columns) -> list[Log]:
    ordered = sorted(paths, key=_written)
    curves = Curves(ordered[0], columns, place="event")
    curves.refuse_other_steps(("step",))
    number = 0
    for path in ordered:
        for step, tag, value in _scalars(path, curves):
            number += 1
            if step < 0:
                raise curves.error(number, f"{tag!r} at step {step}")
            curves.add(step, {tag: value if columns.wants(tag) else None}, number)
    path = ordered[0]
    return [Log(name=log_name(path), path=path, records=curves.records("event files of TensorBoard"))]


def _written(path: Path) -> tuple[int, str]:
    match = _WRITTEN.search(path.name)
    return (int(match[1][:18]) if match else 0, path.name)


def _scalars(path: Path, curves: Curves) -> Iterator[tuple[int, str, float]]:
    """Yield step, tag and value of every scalar in the order of the file; raises ConfigError without the library.

    The library's own loader stops without a word at a damaged record.
    """
    try:
        from tensorboard import data_compat, dataclass_compat
        from tensorboard.compat.proto import event_pb2
        from tensorboard.compat.tensorflow_stub import errors
        from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import PyRecordReader_New
        from tensorboard.util import tensor_util
    except ImportError as error:
        raise ConfigError(
            f"{path}: event files need the library tensorboard: pip install 'bitnetctl[tensorboard]'"
        ) from error
    metadata: dict[str, Any] = {}
    number = 0
    try:
        reader = PyRecordReader_New(str(path))
        while True:
            number += 1
            reader.GetNext()
            raw = data_compat.migrate_event(event_pb2.Event.FromString(reader.record()))
            for event in dataclass_compat.migrate_event(raw, metadata):
                for value in event.summary.value:
                    if metadata[value.tag].plugin_data.plugin_name == _SCALARS:
                        yield event.step, value.tag, float(tensor_util.make_ndarray(value.tensor).item())
    except errors.OutOfRangeError:
        return
    except errors.DataLossError as error:
        if "truncated" not in str(error):
            raise RecordError(f"{path}: record {number:,} is damaged (checksum differs)") from error
        curves.torn = f"{path.name}: torn last record {number:,} dropped"
    except (ValueError, KeyError, TypeError, message_errors()) as error:
        raise RecordError(f"{path}: record {number:,} is no event: {one_line(error)}") from error


def message_errors() -> type[Exception]:
    """Return the type of protobuf's errors of decoding."""
    from google.protobuf.message import DecodeError

    error: type[Exception] = DecodeError
    return error


FORMAT = Format(title="TensorBoard event files", recognise=_recognise, read=_read, key=_key)
