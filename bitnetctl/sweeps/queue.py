"""The run queue: how processes that share a runs folder divide its runs, without a server.

A process holds a run by an operating-system lock on `runs/<run>/run.lock`, which ends when the process does, however it
ends; there are no timeouts. A brief lock on the whole folder keeps two sweeps from splitting a pack between them.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path

from bitnetctl import checkpoint
from bitnetctl.errors import RecordError, RunBusyError, RunRefusedError
from bitnetctl.files import make_folder, storage_errors
from bitnetctl.locks import Lock
from bitnetctl.trainer.artifacts import RunArtifacts
from bitnetctl.trainer.resolved import ResolvedRun


class RunQueue:
    """Hands out packs of runs that have not ended and that no process holds.

    `shape_of` gives what must be equal for runs to train in one pack. `damaged` maps the names of runs that are not
    handed out, because of damaged files, to the error; `refused` those of other users, which cannot be written.
    """

    def __init__(self, runs_dir: Path, shape_of: Callable[[ResolvedRun], Hashable]) -> None:
        self._runs_dir = runs_dir
        self._shape_of = shape_of
        self._done: set[str] = set()
        self.damaged: dict[str, str] = {}
        self.refused: dict[str, str] = {}
        # the name of earlier versions, which may sweep the same folder
        self._folder_lock = Lock(runs_dir / ".claims.lock")

    def unfinished(self, runs: Sequence[ResolvedRun]) -> Iterator[ResolvedRun]:
        """Yield the runs that have not ended and are not damaged, held by a process or not."""
        for run in runs:
            if run.name not in self._done and not self._is_done(run):
                yield run

    def _is_done(self, run: ResolvedRun) -> bool:
        """Whether a run has ended or has damaged files; cached once true."""
        try:
            if run.ended() is None:
                return False
        except RecordError as error:
            self.damaged[run.name] = str(error)
        self._done.add(run.name)
        return True

    def acquire(self, runs: Sequence[ResolvedRun], limit: Callable[[ResolvedRun], int]) -> list[RunArtifacts]:
        """Acquire a pack of at most `limit` runs of one shape that resume from the same step; empty if none is free.

        The first free run decides the shape; the step is the one that most runs of that shape can resume from.
        """
        with contextlib.ExitStack() as stack:
            with storage_errors(self._runs_dir):
                make_folder(self._runs_dir)
            with storage_errors(self._folder_lock.path):
                self._folder_lock.acquire()
                stack.callback(self._folder_lock.release)
            self.refused = {}
            acquired: list[RunArtifacts] = []
            try:
                for run in self.unfinished(runs):
                    if acquired and self._shape_of(run) != self._shape_of(acquired[0].run):
                        continue
                    artifacts = self._lock(run)
                    if artifacts is None:
                        continue
                    acquired.append(artifacts)
                    if self._is_done(run):
                        # it ended in another process before it was acquired
                        acquired.pop().release()
                    elif len(acquired) == limit(acquired[0].run):
                        break
                return _keep_resumable_together(acquired)
            except BaseException:
                for artifacts in acquired:
                    artifacts.release()
                raise

    def _lock(self, run: ResolvedRun) -> RunArtifacts | None:
        """Return the locked files of a run; None if another process holds it, or another user."""
        artifacts = RunArtifacts(run)
        try:
            artifacts.acquire()
        except RunBusyError:
            return None
        except RunRefusedError as error:
            self.refused[run.name] = str(error)
            return None
        return artifacts


def _keep_resumable_together(acquired: list[RunArtifacts]) -> list[RunArtifacts]:
    """Release the runs that cannot resume from the same step as most of the others."""
    # a run without checkpoints starts at 0; one with checkpoints never does, since that would discard work
    available = [set(checkpoint.steps(artifacts.paths.checkpoints)) or {0} for artifacts in acquired]
    counts = Counter(step for steps in available for step in steps)
    best = max(counts, key=lambda step: (counts[step], step), default=0)
    kept = []
    for artifacts, steps in zip(acquired, available, strict=True):
        if best in steps:
            kept.append(artifacts)
        else:
            artifacts.release()
    return kept
