"""Whether the CSV of a run that ended still has the rows that it ended with. No torch here."""

import hashlib
import re
from dataclasses import replace
from pathlib import Path

from bitnetctl.errors import RecordError, cannot_read
from bitnetctl.records.encoding import normal_bytes
from bitnetctl.records.manifest import Manifest
from bitnetctl.records.reader import Records, read
from bitnetctl.records.schema import COLUMNS


def csv_checksum(csv: Path) -> str:
    """Return the SHA-256 of a CSV, whatever its line ends and encoding; raises RecordError."""
    return _sum(normal_bytes(_content(csv)))


def check_csv(csv: Path, manifest: Manifest, records: Records | None = None) -> Records | None:
    """Raise RecordError if the CSV has not the rows that the run ended with, however they are written.

    Returns `records`, what was read of the CSV; where the checksum says that all of it is there, the last row is whole.
    """
    expected = manifest.csv_sha256
    if expected is None:
        return records
    content = _content(csv)
    if _sum(content) != expected and _sum(normal_bytes(content)) != expected:
        try:
            values = _as_written(records or read(csv))
        except RecordError:
            values = b""
        if _sum(values) != expected:
            raise RecordError(
                f"{csv}: damaged or edited since the run ended (checksum differs{_hint_at_spreadsheets(values)}); "
                f"put back the file as it was{_where_copies_are(csv)}, or remove it and the run's folder to train again"
            )
    if records is None or records.torn is None:
        return records
    return replace(records, torn=None, notes=tuple(note for note in records.notes if note != records.torn))


def _content(csv: Path) -> bytes:
    try:
        return csv.read_bytes()
    except OSError as error:
        raise RecordError(cannot_read(csv, error)) from error


def _sum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _as_written(records: Records) -> bytes:
    """Return the rows as the run's writer formats them: equal values give equal bytes."""
    kinds = {column.name: column.dtype for column in COLUMNS}
    names = [str(name) for name in records.frame]
    cells = []
    for name in names:
        values = records.frame[name].tolist()
        whole = kinds[name] == "int"
        texts = [str(int(value)) if whole and float(value).is_integer() else repr(value) for value in values]
        cells.append(["" if lacks else text for text, lacks in zip(texts, records.unknown[name].tolist(), strict=True)])
    rows = [names, *map(list, zip(*cells, strict=True))]
    return "".join(",".join(row) + "\n" for row in rows).encode()


def _hint_at_spreadsheets(values: bytes) -> str:
    long_numbers = re.search(rb"[0-9.]{18}", values)
    return ", and no number has more than 15 digits, as a spreadsheet saves them" if values and not long_numbers else ""


def _where_copies_are(csv: Path) -> str:
    copies = sorted(csv.with_suffix("").glob("checkpoints/*/records.csv"))
    return f" ({copies[-1]} is a copy of its first rows)" if copies else ""
