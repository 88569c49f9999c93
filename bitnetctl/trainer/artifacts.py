"""The files of a run in training: its lock, manifest, CSV and checkpoints."""

import contextlib
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from filelock import Timeout

from bitnetctl import checkpoint
from bitnetctl.checkpoint import Checkpoint
from bitnetctl.errors import PluginError, RecordError, RunBusyError, RunRefusedError, one_line
from bitnetctl.files import blame, make_folder, remove_leftovers, storage_errors, unwritable_part, write_if_changed
from bitnetctl.locks import Lock
from bitnetctl.plugins.isolation import intrusions_of
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
from bitnetctl.records.checksum import csv_checksum
from bitnetctl.records.manifest import sessions_until
from bitnetctl.trainer.resolved import ResolvedRun


class RunArtifacts:
    """The one writer of a run's files, from `acquire` to `release`."""

    def __init__(self, run: ResolvedRun) -> None:
        self.run = run
        self.paths = run.paths
        self._lock = Lock(run.paths.lock)
        self._writer: RecordWriter | None = None
        self._manifest: Manifest | None = None
        self._started = time.monotonic()
        self._seconds_before = 0.0

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.paths.name

    def acquire(self) -> None:
        """Lock the run for this process.

        Raises RunBusyError if another process holds it, RunRefusedError if its files are another user's.
        """
        lock_run(self.paths, self._lock)

    def begin(self, metadata: Mapping[str, Any], resumed: Checkpoint | None, tokenizer: bytes | None = None) -> None:
        """Open the CSV with the rows of the checkpoint, drop later checkpoints, write the manifest with `metadata`.

        `tokenizer` is the content of the tokenizer.json that is kept with the weights, None where these are not kept.
        Raises RecordError, before anything is changed, where a row of the checkpoint is missing, and for a CSV with
        rows whose manifest is gone.
        """
        resume_step = resumed.step if resumed else 0
        for path in (self.paths.csv, self.paths.manifest, self.paths.tokenizer, self.paths.samples):
            remove_leftovers(path)
        previous = read_manifest(self.paths.folder)
        writer = RecordWriter(self.paths.csv, resumed.records if resumed else b"")
        if writer.last_step != self._last_evaluation(resume_step):
            raise RecordError(f"{self.paths.csv}: the checkpoint of step {resume_step} has not all rows up to there")
        # a manifest without an effective config belongs to a run that failed before its first step
        if resume_step == 0 and writer.had_rows and (previous is None or previous.effective_config is None):
            raise RecordError(
                f"{self.paths.csv}: has rows, but {self.paths.manifest}, which names their config, is gone; put it "
                "back, or move the CSV away"
            )
        if resume_step == 0 and previous is not None and not previous.rollbacks:
            previous = None
        self._seconds_before = previous.elapsed_seconds if previous else 0.0
        self._started = time.monotonic()
        sessions = [*sessions_until(resume_step, previous), Session(from_step=resume_step, **metadata)]
        self._manifest = self._new_manifest(previous, resume_step, {**metadata, "sessions": sessions})
        # what an earlier session wrote is not what these weights will write
        with storage_errors(self.paths.samples):
            self.paths.samples.unlink(missing_ok=True)
        # checkpoints first: each needs the rows before it
        checkpoint.drop_after(self.paths.checkpoints, resume_step)
        if tokenizer is not None:
            write_if_changed(self.paths.tokenizer, tokenizer)
        writer.open()
        self._writer = writer
        self._write_manifest()

    def fail(self, message: str, *, is_fault_of_plugin: bool = False) -> None:
        """Write into the manifest that the run raised an error; the next sweep tries it again."""
        if self._manifest is None:
            self._manifest = read_manifest(self.paths.folder) or self._new_manifest(None, 0, {})
            self._seconds_before = self._manifest.elapsed_seconds
        self.update("failed", self._manifest.steps_done, message=message, is_fault_of_plugin=is_fault_of_plugin)

    def append(self, row: Row) -> None:
        """Append one CSV row."""
        assert self._writer is not None
        self._writer.append(row)

    def save(self, state: Checkpoint) -> None:
        """Save a checkpoint after syncing the rows before it."""
        assert self._writer is not None
        # a power cut must not lose rows that a checkpoint counts on
        self._writer.sync()
        with storage_errors(self.paths.csv):
            records = self.paths.csv.read_bytes()
        checkpoint.save(self.paths.checkpoints, replace(state, records=records))
        self.update("running", state.step)

    def update(
        self,
        status: Status,
        steps_done: int,
        *,
        diverged_at: int | None = None,
        message: str | None = None,
        is_fault_of_plugin: bool = False,
    ) -> None:
        """Write the status of the run into its manifest after syncing its rows."""
        assert self._manifest is not None
        if self._writer is not None:
            self._writer.sync()
        self._note_put_back()
        csv_sha256 = csv_checksum(self.paths.csv) if status in ("finished", "diverged") else None
        self._manifest = self._manifest.model_copy(
            update={
                "status": status,
                "steps_done": steps_done,
                "diverged_at": diverged_at,
                "message": message,
                "is_fault_of_plugin": is_fault_of_plugin,
                "csv_sha256": csv_sha256,
                "updated_at": utc_now(),
                "elapsed_seconds": round(self._seconds_before + time.monotonic() - self._started, 3),
            }
        )
        self._write_manifest()

    def correct(self, **metadata: Any) -> None:
        """Replace metadata of this session; the next update writes it."""
        assert self._manifest is not None
        *earlier, last = self._manifest.sessions
        sessions = [*earlier, last.model_copy(update=metadata)]
        self._manifest = self._manifest.model_copy(update={**metadata, "sessions": sessions})

    def _note_put_back(self) -> None:
        """Note what the plug-ins of the run changed in the process up to now."""
        assert self._manifest is not None
        if any(plugin.put_back != intrusions_of(plugin.name) for plugin in self._manifest.plugins):
            plugins = [
                plugin.model_copy(update={"put_back": intrusions_of(plugin.name)}) for plugin in self._manifest.plugins
            ]
            self.correct(plugins=plugins)

    @property
    def rollbacks(self) -> list[Rollback]:
        """Divergences that the run was rolled back from."""
        assert self._manifest is not None
        return self._manifest.rollbacks

    def roll_back(self, diverged_at: int, tensor: str, start_step: int) -> int:
        """Write into the manifest that the run resumes from its newest checkpoint at half the learning rate.

        Returns the step of that checkpoint: `start_step`, where this session began, until there is a newer one.
        """
        resumed_from = max([start_step, *checkpoint.steps(self.paths.checkpoints)])
        rollback = Rollback(diverged_at=diverged_at, resumed_from=resumed_from, tensor=tensor)
        assert self._manifest is not None
        self._manifest = self._manifest.model_copy(update={"rollbacks": [*self._manifest.rollbacks, rollback]})
        self.update("stopped", resumed_from, message=f"{tensor} not finite at step {diverged_at}; rolled back")
        return resumed_from

    def release(self) -> None:
        """Close the CSV and unlock the run."""
        writer, self._writer = self._writer, None
        try:
            if writer is not None:
                writer.close()
        finally:
            self._lock.release()

    def _last_evaluation(self, step: int) -> int | None:
        """Return the last step up to `step` that has a row, None if none has."""
        return next((at for at in range(step, 0, -1) if self.run.effective.is_evaluated(at)), None)

    def _new_manifest(self, previous: Manifest | None, steps_done: int, metadata: Mapping[str, Any]) -> Manifest:
        now = utc_now()
        return Manifest(
            run=self.name,
            status="running",
            config=self.run.config.model_dump(mode="json"),
            config_hash=self.run.config_hash,
            planned=self.run.planned,
            created_at=previous.created_at if previous else now,
            updated_at=now,
            steps_done=steps_done,
            elapsed_seconds=self._seconds_before,
            rollbacks=previous.rollbacks if previous else [],
            **metadata,
        )

    def _write_manifest(self) -> None:
        assert self._manifest is not None
        write_manifest(self.paths.folder, self._manifest)


def lock_run(paths: RunPaths, lock: Lock) -> None:
    """Make the folder of a run and take its lock; raises as `RunArtifacts.acquire` does."""
    with storage_errors(paths.folder):
        make_folder(paths.folder)
    with storage_errors(paths.lock):
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise RunBusyError(
                f"run {paths.name} is being trained by another process; wait for it or stop it first"
            ) from error
        except PermissionError as error:
            raise RunRefusedError(f"{paths.lock}: cannot lock: {blame(paths.lock)}") from error
    # only here: while another process trains the run, its checkpoints come and go
    if problem := unwritable_part(paths.folder):
        lock.release()
        raise RunRefusedError(problem)


def record_failure(run: ResolvedRun, message: str, *, is_fault_of_plugin: bool) -> None:
    """Write into the manifest of a run that it raised an error, unless another process holds it or it is damaged."""
    artifacts = RunArtifacts(run)
    with contextlib.suppress(RunBusyError, RunRefusedError, RecordError):
        artifacts.acquire()
        try:
            artifacts.fail(message, is_fault_of_plugin=is_fault_of_plugin)
        finally:
            artifacts.release()


def failure_message(error: Exception) -> str:
    """Return the message of an error for the manifest; that of a plug-in says all."""
    text = one_line(error, 2000)
    return text if isinstance(error, PluginError) else f"{type(error).__name__}: {text}"
