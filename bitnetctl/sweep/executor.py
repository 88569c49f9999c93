"""Train many runs: packs from the ledger, one after the other, until every run has ended."""

import contextlib
import time
from collections.abc import Iterator, Sequence

import torch

from bitnetctl import loop
from bitnetctl.config import RunConfig
from bitnetctl.errors import RunBusyError, StoppedBySignal, StorageError
from bitnetctl.estimate import pack_member_bytes
from bitnetctl.events import Event, Failed, Stopped
from bitnetctl.execution import make_pack
from bitnetctl.machine import memory_in_use
from bitnetctl.outputs import RunOutput
from bitnetctl.plugins import compose
from bitnetctl.runs import ended
from bitnetctl.step import pack_key
from bitnetctl.sweep.costs import announcement, largest_pack, plan_costs
from bitnetctl.sweep.ledger import Ledger
from bitnetctl.sweep.session import Options, Sessions, effective_config

_WAIT_SECONDS = 1.0


def sweep_runs(configs: Sequence[RunConfig], options: Options, *, pack: int | None = None) -> Iterator[Event]:
    """Train every run that has not ended, in packs of at most `pack` runs (None: as many as memory takes).

    Other processes may sweep the same folder: each run is trained once, and this one waits for the runs that others
    hold, taking over those whose owner dies. A run that raises an error is recorded as failed and the rest go on.
    Raises ConfigError or DataError before anything is created.
    """
    effective = {config.hash: effective_config(config) for config in configs}
    sessions = Sessions(options)
    for config in effective.values():
        sessions.require_room(config, 1)
    missing = [config for config in configs if ended(config, options.runs_dir) is None]
    costs = plan_costs(missing, sessions.device, pack, lambda config: sessions.prepare(config)[0].vocab_size)
    options.notice(announcement(costs, sessions.device))
    limits = _PackLimits(sessions, pack)
    alone: set[str] = set()

    def shape(config: RunConfig) -> tuple[object, ...]:
        return (*pack_key(effective[config.hash]), config.hash if config.hash in alone else None)

    ledger = Ledger(options.runs_dir, shape)
    candidates = list(configs)
    waiting = False
    while not options.should_stop():
        outputs = ledger.claim(candidates, lambda config: limits.of(effective[config.hash]))
        if not outputs:
            if not ledger.unfinished(candidates):
                return
            if not waiting:
                options.notice("waiting for runs that another process trains")
            waiting = True
            time.sleep(_WAIT_SECONDS)
            continue
        waiting = False
        try:
            with sessions.open(outputs) as session:
                for event in loop.train(session):
                    yield event
                    if isinstance(event, Stopped):
                        return
        except (StorageError, StoppedBySignal, KeyboardInterrupt, GeneratorExit):
            raise
        except Exception as error:
            message = f"{type(error).__name__}: {' '.join(str(error).split())}"
            if len(outputs) > 1:
                options.notice(f"a pack of {len(outputs)} failed ({message}); its runs go on one by one")
                alone.update(output.config.hash for output in outputs)
            else:
                # another process may have taken it at once, and tries it for itself
                with contextlib.suppress(RunBusyError):
                    _record_failure(outputs[0], message)
                failed = outputs[0].config.hash
                candidates = [config for config in candidates if config.hash != failed]
                yield Failed(name=outputs[0].paths.name, message=message)


def _record_failure(output: RunOutput, message: str) -> None:
    output.claim()
    try:
        output.fail(message)
    finally:
        output.release()


class _PackLimits:
    """How many runs of a shape fit into a pack, by the memory one of them was measured to take."""

    def __init__(self, sessions: Sessions, asked: int | None) -> None:
        self._sessions = sessions
        self._asked = asked
        self._known: dict[object, int] = {}

    def of(self, config: RunConfig) -> int:
        """Return the largest pack for an effective config."""
        if self._asked is not None:
            return self._asked
        key = pack_key(config)
        if key not in self._known:
            self._known[key] = self._measure(config)
        return self._known[key]

    def _measure(self, config: RunConfig) -> int:
        device = self._sessions.device
        tokens, _ = self._sessions.prepare(config)
        before = memory_in_use(device)
        pack = make_pack([config], [compose(())], tokens, device, self._sessions.execution(config))
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        pack.step(1)
        after = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else memory_in_use(device)
        # memory freed earlier is used again without showing, so the counted bytes are a lower bound
        taken = max(after - before, pack_member_bytes(config, tokens.vocab_size))
        return largest_pack(device, taken)
