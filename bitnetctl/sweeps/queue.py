"""Which process trains which runs: exclusive claims in the runs folder that end with their owner.

A claim is an operating-system lock on `runs/<run>/run.lock`, so it ends when its process does, however it ends, and
no clock is read. One short lock on the whole folder keeps two sweeps from splitting a pack between them.
"""

import contextlib
from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path

from filelock import FileLock

from bitnetctl.config import RunConfig
from bitnetctl.errors import RecordError, RunBusyError
from bitnetctl.files import storage_errors
from bitnetctl.records import RunPaths
from bitnetctl.records.status import ended
from bitnetctl.trainer import checkpoint
from bitnetctl.trainer.artifacts import RunArtifacts


class RunQueue:
    """Hands out packs of runs that nobody has finished or holds."""

    def __init__(self, runs_dir: Path, shape_of: Callable[[RunConfig], Hashable]) -> None:
        self._runs_dir = runs_dir
        self._shape_of = shape_of
        # by identity: hashing every config again for every claim would make a sweep's cost quadratic
        self._over: dict[int, RunConfig] = {}
        # by name, what is wrong with the files of runs that are therefore not handed out
        self.damaged: dict[str, str] = {}
        self._guard = FileLock(runs_dir / ".claims.lock", thread_local=False, fallback_to_soft=False)

    def unfinished(self, configs: Sequence[RunConfig]) -> list[RunConfig]:
        """Return the runs that are to be trained, whoever holds them."""
        return list(self._unfinished(configs))

    def _unfinished(self, configs: Sequence[RunConfig]) -> Iterator[RunConfig]:
        for config in configs:
            if id(config) not in self._over and not self._is_over(config):
                yield config

    def _is_over(self, config: RunConfig) -> bool:
        """Look whether a run has ended, or has files that nobody can go on from; either is remembered."""
        try:
            if ended(config, self._runs_dir) is None:
                return False
        except RecordError as error:
            self.damaged[config.run_name] = str(error)
        self._over[id(config)] = config
        return True

    def claim(self, configs: Sequence[RunConfig], limit: Callable[[RunConfig], int]) -> list[RunArtifacts]:
        """Claim a pack of at most `limit` runs of one shape that resume from the same step; empty if none is free.

        The first free run decides the shape, and the step is the one that most of its kind can resume from.
        """
        with contextlib.ExitStack() as stack:
            with storage_errors(self._runs_dir):
                self._runs_dir.mkdir(parents=True, exist_ok=True)
                stack.enter_context(self._guard)
            claimed: list[RunArtifacts] = []
            try:
                for config in self._unfinished(configs):
                    if claimed and self._shape_of(config) != self._shape_of(claimed[0].config):
                        continue
                    output = RunArtifacts(RunPaths(self._runs_dir, config.run_name), config)
                    try:
                        output.claim()
                    except RunBusyError:
                        continue
                    claimed.append(output)
                    if self._is_over(config):
                        # its owner ended it since we looked
                        claimed.pop().release()
                        continue
                    if len(claimed) == limit(claimed[0].config):
                        break
                return _keep_resumable_together(claimed)
            except BaseException:
                for output in claimed:
                    output.release()
                raise


def _keep_resumable_together(claimed: list[RunArtifacts]) -> list[RunArtifacts]:
    """Release the runs that cannot resume from the same step as most of the others."""
    # a run without checkpoints begins at 0, one with checkpoints never does: that would throw work away
    available = [set(checkpoint.steps(output.paths.checkpoints)) or {0} for output in claimed]
    counts: dict[int, int] = {}
    for steps in available:
        for step in steps:
            counts[step] = counts.get(step, 0) + 1
    if not counts:
        return []
    best = max(counts, key=lambda step: (counts[step], step))
    kept = []
    for output, steps in zip(claimed, available, strict=True):
        if best in steps:
            kept.append(output)
        else:
            output.release()
    return kept
