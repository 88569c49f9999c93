"""Train many runs: packs from the run queue, one after the other, until every run has ended."""

import math
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence

from bitnetctl.errors import CaptureError, PluginError, RunRefusedError, StoppedBySignal, StorageError
from bitnetctl.hardware import release_unused
from bitnetctl.records.status import refuse_case_collisions
from bitnetctl.sweeps.executors.local import run_workers, split_devices
from bitnetctl.sweeps.packing import Shape, measured_largest_pack, most_demanding, plan_costs, shape_of
from bitnetctl.sweeps.queue import RunQueue
from bitnetctl.trainer import loop
from bitnetctl.trainer.artifacts import RunArtifacts, failure_message, record_failure
from bitnetctl.trainer.events import Event, Failed, Planned, Stopped
from bitnetctl.trainer.factory import TrainerFactory
from bitnetctl.trainer.options import TrainOptions
from bitnetctl.trainer.resolved import ResolvedRun
from bitnetctl.units import plural

_WAIT_SECONDS = 1.0
_WAITING = "waiting for runs that another process trains"


def sweep_runs(
    runs: Sequence[ResolvedRun], options: TrainOptions, *, pack: int | None = None, workers: int = 1
) -> Iterator[Event]:
    """Train every run that has not ended, in packs of at most `pack` runs, yielding events.

    `pack` None: as many as fit in memory, at most ceil(runs / workers) so that each of the `workers` gets some.
    Other processes may sweep the same folder: each run is trained once, and this process waits for the runs that others
    hold and takes over those whose process dies. A run that raises an error is recorded as failed and the others
    continue, as they do without a run whose files are damaged.
    Raises ConfigError or DataError before anything is created.
    """
    return _Sweep(runs, options, pack, workers).train()


class _Sweep:
    """One process's part of a sweep."""

    def __init__(self, runs: Sequence[ResolvedRun], options: TrainOptions, pack: int | None, workers: int) -> None:
        self._options, self._pack, self._workers = options, pack, workers
        self._factory = TrainerFactory(options, workers)
        self._device = self._factory.device
        for run in runs:
            self._factory.require_room(run.effective, 1)
        self._candidates = list(runs)
        # names of the runs of failed packs, which then train one by one
        self._alone: set[str] = set()
        self._queue = RunQueue(options.runs_dir, self._shape)
        self._largest_packs: dict[object, int] = {}
        missing = list(self._queue.unfinished(runs))
        shapes = {run.name: shape_of(run, self._device) for run in missing}
        self._runs_of_shape = Counter(shapes.values())
        costs = plan_costs(
            missing,
            self._device,
            pack,
            lambda effective: self._factory.prepare(effective)[0].vocab_size,
            workers=workers,
        )
        # in the order in which the shapes first appear, as the counter has them
        cost_of = dict(zip(self._runs_of_shape, costs, strict=True))
        self._planned = Planned(
            seconds={name: cost_of[shape].seconds / cost_of[shape].runs for name, shape in shapes.items()},
            packs=sum(cost.packs for cost in costs),
            device=str(self._device),
        )

    def train(self) -> Iterator[Event]:
        """Train pack after pack until no run is left or a stop is requested.

        Raises RunRefusedError at the end for runs that only another user can go on with.
        """
        if self._planned.seconds and not self._options.should_stop():
            yield self._planned
        waiting = False
        refused: dict[str, str] = {}
        while not self._options.should_stop():
            acquired = self._queue.acquire(self._candidates, self._limit)
            while self._queue.damaged:
                name, message = self._queue.damaged.popitem()
                yield Failed(name=name, message=message)
            for name in self._queue.refused.keys() - refused.keys():
                self._options.log(f"{name}: left out: {self._queue.refused[name]}")
            refused = self._queue.refused
            if acquired:
                waiting = False
                if (yield from self._train_pack(acquired)):
                    return
                # only here, where neither a trainer nor the traceback of an error refers to the pack any more
                release_unused(self._device)
            elif all(run.name in refused for run in self._queue.unfinished(self._candidates)):
                break
            else:
                if not waiting:
                    self._options.log(_WAITING)
                    self._options.progress(_WAITING, 0, None)
                waiting = True
                time.sleep(_WAIT_SECONDS)
        if refused and not self._options.should_stop():
            name, message = next(iter(refused.items()))
            others = f" (and {plural(len(refused) - 1, 'other run')})" if len(refused) > 1 else ""
            raise RunRefusedError(f"{name}{others} cannot be trained: {message}")

    def _shape(self, run: ResolvedRun) -> Shape:
        return (*shape_of(run, self._device), run.name if run.name in self._alone else None)

    def _limit(self, run: ResolvedRun) -> int:
        if self._pack is not None:
            return self._pack
        fair = math.ceil(self._runs_of_shape[shape_of(run, self._device)] / self._workers)
        # a single run is not measured: it would be tried in any case
        if fair <= 1:
            return 1
        key = (run.effective.pack_key, run.quantizer_key)
        if key not in self._largest_packs:
            self._options.progress("measuring the memory of a run", 0, None)
            keys = ((each.effective.pack_key, each.quantizer_key) for each in self._candidates)
            alike = [run, *(each for each, other in zip(self._candidates, keys, strict=True) if other == key)]
            self._largest_packs[key] = measured_largest_pack(self._factory, most_demanding(alike), self._workers)
            if self._largest_packs[key] == 1:
                self._options.log("free memory is enough for one run at a time only")
        return min(fair, self._largest_packs[key])

    def _train_pack(self, acquired: Sequence[RunArtifacts]) -> Generator[Event, None, bool]:
        """Train a pack; returns True if it was stopped. Errors of a run or a plug-in end the pack, not the sweep."""
        try:
            return (yield from _train(self._factory, acquired, self._leave_out))
        except (StorageError, CaptureError, StoppedBySignal, KeyboardInterrupt, GeneratorExit):
            raise
        except Exception as error:
            message, is_fault_of_plugin = failure_message(error), isinstance(error, PluginError)
        if len(acquired) > 1:
            self._options.log(f"a pack of {len(acquired)} failed ({message}); its runs continue one by one")
            self._alone.update(artifacts.name for artifacts in acquired)
        else:
            (artifacts,) = acquired
            # another process may have acquired it meanwhile; the manifest of a damaged run is not overwritten
            record_failure(artifacts.run, message, is_fault_of_plugin=is_fault_of_plugin)
            self._leave_out(artifacts.name)
            yield Failed(name=artifacts.name, message=message)
        return False

    def _leave_out(self, name: str) -> None:
        """Do not try a run again that has failed."""
        self._candidates = [run for run in self._candidates if run.name != name]


def _train(
    factory: TrainerFactory, acquired: Sequence[RunArtifacts], on_failed: Callable[[str], None]
) -> Generator[Event, None, bool]:
    """Train a pack; returns True if it was stopped. When this frame ends, nothing refers to the trainer any more."""
    with factory.open(acquired) as trainer:
        for event in loop.train(trainer):
            if isinstance(event, Failed):
                on_failed(event.name)
            yield event
    return isinstance(event, Stopped)


def sweep_missing(
    runs: Sequence[ResolvedRun],
    options: TrainOptions,
    *,
    pack: int | None = None,
    workers: int = 1,
    on_event: Callable[[Event], None] = lambda event: None,
) -> bool:
    """Train the runs that have not ended; True if a stop was requested and some are left.

    `options.device` may be a list such as `cuda:0,cuda:1`, one worker process for each; `auto` is every GPU. `workers`
    is the number of processes that share the runs. Raises StoppedBySignal for a stop before anything can be saved,
    ConfigError where names of runs differ in letter case only.
    """
    refuse_case_collisions([run.name for run in runs], options.runs_dir)
    for run in runs:
        if run.problem is not None:
            record_failure(run, run.problem, is_fault_of_plugin=True)
            on_event(Failed(name=run.name, message=run.problem))
    runs = [run for run in runs if run.problem is None]
    if not runs:
        return False
    devices = split_devices(options.device)
    if len(devices) > 1:
        options.progress(f"training on {', '.join(devices)}", 0, None)
        stopped = run_workers(devices, runs, options, pack)
    else:
        for event in sweep_runs(runs, options, pack=pack, workers=workers):
            on_event(event)
            if isinstance(event, Stopped):
                return True
        # a stop between two packs yields no event
        stopped = options.should_stop()
    # a stop after the last step of all runs leaves nothing to resume
    return stopped and not all(run.has_ended() for run in runs)
