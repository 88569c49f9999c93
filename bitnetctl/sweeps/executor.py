"""Train many runs: packs from the run queue, one after the other, until every run has ended."""

import contextlib
import time
from collections import Counter
from collections.abc import Generator, Iterator, Sequence

from bitnetctl.config import RunConfig
from bitnetctl.errors import CaptureError, RecordError, RunBusyError, StoppedBySignal, StorageError
from bitnetctl.hardware import release_unused
from bitnetctl.plugins.registry import effective_config
from bitnetctl.sweeps.packing import _PackLimits, announcement, plan_costs, shape_of, share
from bitnetctl.sweeps.queue import RunQueue
from bitnetctl.trainer import loop
from bitnetctl.trainer.artifacts import RunArtifacts
from bitnetctl.trainer.events import Event, Failed, Stopped
from bitnetctl.trainer.session import Options, TrainerFactory

_WAIT_SECONDS = 1.0


def sweep_runs(
    configs: Sequence[RunConfig], options: Options, *, pack: int | None = None, workers: int = 1
) -> Iterator[Event]:
    """Train every run that has not ended, in packs of at most `pack` runs.

    None: as many as memory takes, and no more than leave some to each of the `workers` that sweep the same runs.
    Other processes may sweep the same folder: each run is trained once, and this one waits for the runs that others
    hold, taking over those whose owner dies. A run that raises an error is recorded as failed and the rest go on, as
    they do without a run whose files are damaged.
    Raises ConfigError or DataError before anything is created.
    """
    effective = {config.hash: effective_config(config) for config in configs}
    sessions = TrainerFactory(options)
    for config in effective.values():
        sessions.require_room(config, 1)
    device = sessions.device
    alone: set[str] = set()

    def shape(config: RunConfig) -> tuple[object, ...]:
        of_pack = shape_of(config, effective[config.hash], device)
        return (*of_pack, config.hash if config.hash in alone else None)

    ledger = RunQueue(options.runs_dir, shape)
    missing = ledger.unfinished(configs)
    costs = plan_costs(missing, device, pack, lambda config: sessions.prepare(config)[0].vocab_size, workers=workers)
    options.log(announcement(costs, device))
    limits = _PackLimits(sessions)
    runs_of = Counter(shape_of(config, effective[config.hash], device) for config in missing)

    def limit(config: RunConfig) -> int:
        if pack is not None:
            return pack
        most = share(runs_of[shape_of(config, effective[config.hash], device)], workers)
        # one run is not measured: it fits, or it fails by itself
        return 1 if most <= 1 else min(most, limits.of(effective[config.hash]))

    candidates = list(configs)
    waiting = False
    while not options.should_stop():
        outputs = ledger.claim(candidates, limit)
        while ledger.damaged:
            name, message = ledger.damaged.popitem()
            yield Failed(name=name, message=message)
        if not outputs:
            if not ledger.unfinished(candidates):
                return
            if not waiting:
                options.log("waiting for runs that another process trains")
            waiting = True
            time.sleep(_WAIT_SECONDS)
            continue
        waiting = False
        try:
            if (yield from _train(sessions, outputs)):
                return
        except (StorageError, CaptureError, StoppedBySignal, KeyboardInterrupt, GeneratorExit):
            raise
        except Exception as error:
            message = f"{type(error).__name__}: {' '.join(str(error).split())}"
            if len(outputs) > 1:
                options.log(f"a pack of {len(outputs)} failed ({message}); its runs go on one by one")
                alone.update(output.config.hash for output in outputs)
            else:
                # another process may have taken it at once, and tries it for itself; what is damaged cannot tell
                with contextlib.suppress(RunBusyError, RecordError):
                    _record_failure(outputs[0], message)
                failed = outputs[0].config.hash
                candidates = [config for config in candidates if config.hash != failed]
                yield Failed(name=outputs[0].paths.name, message=message)
        # here, where neither a session nor the traceback of an error holds the pack any more
        release_unused(device)


def _train(sessions: TrainerFactory, outputs: Sequence[RunArtifacts]) -> Generator[Event, None, bool]:
    """Train a pack; True if it was stopped. A frame of its own lets go of the session, and with it of the memory."""
    with sessions.open(outputs) as session:
        for event in loop.train(session):
            yield event
    return isinstance(event, Stopped)


def _record_failure(output: RunArtifacts, message: str) -> None:
    output.claim()
    try:
        output.fail(message)
    finally:
        output.release()
