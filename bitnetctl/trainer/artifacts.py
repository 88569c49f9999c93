"""The files of a run in training: its lock, manifest, CSV and checkpoints."""

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from filelock import FileLock, Timeout

from bitnetctl.config import RunConfig, parse_config
from bitnetctl.errors import RecordError, RunBusyError
from bitnetctl.files import remove_leftovers, storage_errors
from bitnetctl.records import (
    Manifest,
    RecordWriter,
    Rollback,
    Row,
    RunPaths,
    Session,
    Status,
    read_manifest,
    utc_now,
    write_manifest,
)
from bitnetctl.records.manifest import csv_checksum, sessions_until
from bitnetctl.trainer import checkpoint
from bitnetctl.trainer.checkpoint import Checkpoint


class RunArtifacts:
    """Exclusive owner of one run's files, from `claim` to `release`."""

    def __init__(self, paths: RunPaths, config: RunConfig) -> None:
        self.paths = paths
        self.config = config
        # a marker in place of a lock would outlive a killed owner
        self._lock = FileLock(paths.lock, thread_local=False, fallback_to_soft=False)
        self._writer: RecordWriter | None = None
        self._manifest: Manifest | None = None
        self._started = time.monotonic()
        self._seconds_before = 0.0

    def claim(self) -> None:
        """Take the run for this process; raises RunBusyError if another one has it."""
        with storage_errors(self.paths.folder):
            self.paths.folder.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.acquire(timeout=0)
            except Timeout as error:
                raise RunBusyError(
                    f"run {self.paths.name} is being trained by another process; wait for it or stop it first"
                ) from error

    def begin(self, facts: Mapping[str, Any], resume_step: int) -> None:
        """Open the CSV, dropping rows and checkpoints after `resume_step`, and write the manifest with the given facts.

        Raises RecordError, with everything as it was, where a row up to `resume_step` is missing, and for rows that
        nothing says whose they are.
        """
        for path in (self.paths.csv, self.paths.manifest):
            remove_leftovers(path)
        before = read_manifest(self.paths.folder)
        writer = RecordWriter(
            self.paths.csv, keep_through_step=resume_step, last_kept_step=self._last_row(facts, resume_step)
        )
        # a manifest without an effective config is of a run that failed before it began
        if resume_step == 0 and writer.had_rows and (before is None or before.effective_config is None):
            raise RecordError(
                f"{self.paths.csv}: has rows, but {self.paths.manifest}, which says whose, is gone; put it back, or "
                "move the CSV away"
            )
        if resume_step == 0 and before is not None and not before.rollbacks:
            before = None
        self._seconds_before = before.elapsed_seconds if before else 0.0
        self._started = time.monotonic()
        sessions = [*sessions_until(resume_step, before), Session(from_step=resume_step, **facts)]
        self._manifest = self._new_manifest(before, resume_step, {**facts, "sessions": sessions})
        # before the rows that they count on are cut
        checkpoint.drop_after(self.paths.checkpoints, resume_step)
        writer.open()
        self._writer = writer
        self._write_manifest()

    def fail(self, message: str) -> None:
        """Record that the run raised an error; it is tried again by the next sweep."""
        if self._manifest is None:
            self._manifest = read_manifest(self.paths.folder) or self._new_manifest(None, 0, {})
            self._seconds_before = self._manifest.elapsed_seconds
        self.update("failed", self._manifest.steps_done, message=message)

    def append(self, row: Row) -> None:
        """Append one CSV row."""
        assert self._writer is not None
        self._writer.append(row)

    def save(self, state: Checkpoint) -> None:
        """Save a checkpoint, after the rows before it are on disk."""
        assert self._writer is not None
        # a checkpoint must never claim rows that a power cut can take back
        self._writer.sync()
        with storage_errors(self.paths.csv):
            records = self.paths.csv.read_bytes()
        checkpoint.save(self.paths.checkpoints, replace(state, records=records))
        self.update("running", state.step)

    def update(
        self, status: Status, steps_done: int, *, diverged_at: int | None = None, message: str | None = None
    ) -> None:
        """Write where the run stands into its manifest, after the rows it speaks of are on disk."""
        assert self._manifest is not None
        if self._writer is not None:
            self._writer.sync()
        csv_sha256 = csv_checksum(self.paths.csv) if status in ("finished", "diverged") else None
        self._manifest = self._manifest.model_copy(
            update={
                "status": status,
                "steps_done": steps_done,
                "diverged_at": diverged_at,
                "message": message,
                "csv_sha256": csv_sha256,
                "updated_at": utc_now(),
                "elapsed_seconds": round(self._seconds_before + time.monotonic() - self._started, 3),
            }
        )
        self._write_manifest()

    def correct(self, **facts: Any) -> None:
        """Replace facts of this session that turned out otherwise; the next update writes them."""
        assert self._manifest is not None
        *earlier, last = self._manifest.sessions
        sessions = [*earlier, last.model_copy(update=facts)]
        self._manifest = self._manifest.model_copy(update={**facts, "sessions": sessions})

    @property
    def rollbacks(self) -> list[Rollback]:
        """What the run was rolled back from so far."""
        assert self._manifest is not None
        return self._manifest.rollbacks

    def roll_back(self, diverged_at: int, tensor: str, start_step: int) -> int:
        """Record that the run is to go on with half the learning rate from its newest checkpoint; return its step.

        That is the one of `start_step`, wherever it lies, until there is a newer one.
        """
        resumed_from = max([start_step, *checkpoint.steps(self.paths.checkpoints)])
        rollback = Rollback(diverged_at=diverged_at, resumed_from=resumed_from, tensor=tensor)
        assert self._manifest is not None
        self._manifest = self._manifest.model_copy(update={"rollbacks": [*self._manifest.rollbacks, rollback]})
        self.update("stopped", resumed_from, message=f"{tensor} not finite at step {diverged_at}; rolled back")
        return resumed_from

    def release(self) -> None:
        """Close the CSV and let the run go."""
        writer, self._writer = self._writer, None
        try:
            if writer is not None:
                writer.close()
        finally:
            self._lock.release()

    def _last_row(self, facts: Mapping[str, Any], step: int) -> int | None:
        """Return the step of the last row up to `step`."""
        effective = facts.get("effective_config")
        config = self.config if effective is None else parse_config(effective)
        return next((at for at in range(step, 0, -1) if config.is_evaluated(at)), None)

    def _new_manifest(self, before: Manifest | None, steps_done: int, facts: Mapping[str, Any]) -> Manifest:
        now = utc_now()
        return Manifest(
            run=self.paths.name,
            status="running",
            config=self.config.model_dump(mode="json"),
            config_hash=self.config.hash,
            created_at=before.created_at if before else now,
            updated_at=now,
            steps_done=steps_done,
            elapsed_seconds=self._seconds_before,
            rollbacks=before.rollbacks if before else [],
            **facts,
        )

    def _write_manifest(self) -> None:
        assert self._manifest is not None
        write_manifest(self.paths.folder, self._manifest)
