"""The files of a run that another program trains: its lock, CSV and manifest."""

import contextlib
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bitnetctl.config import canonical_hash
from bitnetctl.errors import ConfigError, RecordError, cannot_read
from bitnetctl.files import remove_leftovers
from bitnetctl.locks import Lock
from bitnetctl.records import (
    Manifest,
    PlannedRuns,
    RecordWriter,
    Row,
    RunPaths,
    Session,
    Status,
    read_manifest,
    utc_now,
    write_manifest,
)
from bitnetctl.records.checksum import csv_checksum
from bitnetctl.records.encoding import plain_lines
from bitnetctl.records.manifest import ExternalRun, sessions_until
from bitnetctl.trainer.artifacts import lock_run
from bitnetctl.trainer.provenance import environment
from bitnetctl.units import listed

_STEP = re.compile(rb"([0-9]{1,19}),")


class RecordedFiles:
    """The one writer of a run's files, from its making to `close`.

    `resume_step` is the step of the checkpoint from which the training continues: rows after it are cut. None is a new
    run, which may have no rows yet. Raises ConfigError where the files are those of another run, RunBusyError where
    another process writes them, RecordError where they are damaged.
    """

    def __init__(
        self,
        csv: Path,
        external: ExternalRun,
        data: Mapping[str, Any],
        planned: PlannedRuns | None,
        resume_step: int | None,
    ) -> None:
        self.paths = RunPaths(csv.parent, csv.stem)
        self._lock = Lock(self.paths.lock)
        lock_run(self.paths, self._lock)
        with contextlib.ExitStack() as stack:
            stack.callback(self._lock.release)
            for path in (self.paths.csv, self.paths.manifest):
                remove_leftovers(path)
            previous = read_manifest(self.paths.folder)
            kept = b"" if resume_step is None else _rows_until(self.paths.csv, resume_step)
            self._writer = RecordWriter(self.paths.csv, kept)
            self._refuse(previous, external, data, resume_step)
            self._manifest = self._begin(previous if resume_step else None, external, data, planned, resume_step or 0)
            self._writer.open()
            stack.callback(self._writer.close)
            write_manifest(self.paths.folder, self._manifest)
            self._kept_open = stack.pop_all()
        self._seconds_before, self._started = self._manifest.elapsed_seconds, time.monotonic()

    @property
    def last_step(self) -> int | None:
        """Step of the last row, None without rows."""
        return self._writer.last_step

    def append(self, row: Row, device: str, diverged_at: int | None) -> None:
        """Write a row, and into the manifest how far the run is."""
        self._writer.append(row)
        if self._manifest.device != device:
            *earlier, last = self._manifest.sessions
            sessions = [*earlier, last.model_copy(update={"device": device})]
            self._manifest = self._manifest.model_copy(update={"device": device, "sessions": sessions})
        self.update("running", diverged_at=diverged_at)

    def update(self, status: Status, *, diverged_at: int | None = None, message: str | None = None) -> None:
        """Write the status of the run into its manifest after syncing its rows."""
        self._writer.sync()
        external, steps_done = self._manifest.external, self._writer.last_step or 0
        assert external is not None
        if status == "finished" and external.steps is None:
            external = external.model_copy(update={"steps": steps_done})
        self._manifest = self._manifest.model_copy(
            update={
                "external": external,
                "status": status,
                "steps_done": steps_done,
                "diverged_at": diverged_at,
                "message": message,
                "csv_sha256": csv_checksum(self.paths.csv) if status in ("finished", "diverged") else None,
                "updated_at": utc_now(),
                "elapsed_seconds": round(self._seconds_before + time.monotonic() - self._started, 3),
            }
        )
        write_manifest(self.paths.folder, self._manifest)

    def close(self) -> None:
        """Close the CSV and unlock the run."""
        self._kept_open.close()

    def _refuse(
        self, previous: Manifest | None, external: ExternalRun, data: Mapping[str, Any], resume_step: int | None
    ) -> None:
        """Raise unless the files are those of this run, or none."""
        csv = self.paths.csv
        if resume_step is None and (self._writer.had_rows or (previous is not None and previous.steps_done)):
            raise ConfigError(
                f"{csv}: has rows of a run; give resume_step, the step of the checkpoint that it continues from, or "
                f"take another path, or remove {csv.name} and {self.paths.folder}"
            )
        if previous is None:
            if self._writer.had_rows:
                raise RecordError(f"{csv}: has rows, but {self.paths.manifest} is gone; put it back, or move the CSV")
            return
        if previous.external is None:
            raise ConfigError(f"{csv}: is a run that bitnetctl trained; take another path")
        differing = list(_differences(previous, external, data))
        if resume_step is not None and differing:
            raise ConfigError(f"{csv}: is another run ({listed(differing)}); take another path")

    def _begin(
        self,
        previous: Manifest | None,
        external: ExternalRun,
        data: Mapping[str, Any],
        planned: PlannedRuns | None,
        start: int,
    ) -> Manifest:
        now = utc_now()
        metadata = {**environment(), "threads": torch.get_num_threads()}
        description = {"external": external.model_dump(mode="json"), "probe": data["probe_fingerprint"]}
        sessions = [*sessions_until(start, previous), Session.model_validate({"from_step": start, **metadata})]
        return Manifest.model_validate(
            {
                "run": self.paths.name,
                "status": "running",
                "external": external,
                "config_hash": canonical_hash(description),
                "planned": planned,
                "created_at": previous.created_at if previous else now,
                "updated_at": now,
                "steps_done": self._writer.last_step or 0,
                "diverged_at": previous.diverged_at if previous and (previous.diverged_at or 0) <= start else None,
                "elapsed_seconds": previous.elapsed_seconds if previous else 0.0,
                "sessions": sessions,
                "data": dict(data),
                **metadata,
            }
        )


def _rows_until(csv: Path, step: int) -> bytes:
    """Return the header and the whole rows of a CSV up to a step; empty where there is none."""
    try:
        content = plain_lines(csv.read_bytes())
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise RecordError(cannot_read(csv, error)) from error
    header, *rows = content.splitlines(keepends=True) or [b""]
    kept = []
    for row in rows:
        found = _STEP.match(row)
        if found is None or not row.endswith(b"\n") or int(found[1]) > step:
            break
        kept.append(row)
    return header + b"".join(kept) if header.endswith(b"\n") else b""


def _differences(previous: Manifest, external: ExternalRun, data: Mapping[str, Any]) -> list[str]:
    """Return what is known of this run otherwise than of that in a manifest, such as `seed is 2, was 1`."""
    assert previous.external is not None
    before, now = (one.model_dump(mode="json", exclude={"trainer"}) for one in (previous.external, external))
    if external.steps is None:
        # what ended by then had planned as much
        before["steps"] = None
    settings = [one.pop("settings") for one in (before, now)]
    pairs = [(name, before[name], now[name]) for name in now]
    pairs += [(name, *(one.get(name) for one in settings)) for name in dict.fromkeys([*settings[0], *settings[1]])]
    fingerprint = "probe_fingerprint"
    pairs.append(("probe", str(previous.data.get(fingerprint))[:12], str(data[fingerprint])[:12]))
    return [f"{name} is {new}, was {old}" for name, old, new in pairs if old != new]
