"""The events that a training yields, for the caller to render. No torch here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bitnetctl.config import RunConfig
from bitnetctl.records import Row


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A sweep begins: estimated seconds of each run's part of its pack, by name, and how many packs there will be."""

    seconds: Mapping[str, float]
    packs: int
    device: str


@dataclass(frozen=True, kw_only=True)
class Started:
    """A pack begins after `start_step`; `run` in later events is an index into these names and configs.

    `configs` are as requested, `effective` after interventions.
    """

    names: Sequence[str]
    configs: Sequence[RunConfig]
    effective: Sequence[RunConfig]
    start_step: int
    num_parameters: int
    device: str


@dataclass(frozen=True, kw_only=True)
class Progress:
    """The pack is at `step`; losses of its runs in nats, memory of the process or device in bytes."""

    step: int
    losses: Sequence[float]
    memory_bytes: int


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """A row was written for a run."""

    run: int
    row: Row


@dataclass(frozen=True, kw_only=True)
class Saved:
    """Checkpoints of `step` are on disk."""

    step: int


@dataclass(frozen=True, kw_only=True)
class Diverged:
    """A loss, gradient, weight or moment of a run was not finite at `step`; the run is not trained any further."""

    run: int
    step: int


@dataclass(frozen=True, kw_only=True)
class RolledBack:
    """A run that diverged will be resumed after `step`; its pack continues without it."""

    run: int
    step: int


@dataclass(frozen=True, kw_only=True)
class Failed:
    """A run raised an error, which is in its manifest; the others continue. Its pack may never have started."""

    name: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Stopped:
    """A stop was requested; the pack can be resumed from `step`."""

    step: int


@dataclass(frozen=True, kw_only=True)
class Finished:
    """All steps are done, or no run of the pack is left."""

    step: int


Event = Planned | Started | Progress | Evaluated | Saved | Diverged | RolledBack | Failed | Stopped | Finished
