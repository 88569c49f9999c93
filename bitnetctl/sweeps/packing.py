"""Which runs train together, how many, and what that will take."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from bitnetctl.config import RunConfig
from bitnetctl.engine.cost import bytes_per_replica, estimate, known_vocabulary
from bitnetctl.engine.select import choose, make_pack
from bitnetctl.hardware import memory_available, memory_in_use, release_unused
from bitnetctl.plugins.composition import Composition
from bitnetctl.trainer.factory import TrainerFactory
from bitnetctl.trainer.resolved import ResolvedRun
from bitnetctl.units import duration

# a larger pack is bound by arithmetic, so it takes memory and saves no time
_LARGEST_PACK = {"cpu": 16, "cuda": 64}
_MEMORY_FRACTION = {"cpu": 0.5, "cuda": 0.85}

Shape = tuple[object, ...]


def shape_of(run: ResolvedRun, device: torch.device) -> Shape:
    """Return what must be equal for runs to train in one pack; on a GPU also whether their steps can be captured.

    One run that needs the host between its kernels would slow down all that are captured without it.
    """
    return (*run.effective.pack_key, device.type != "cpu" and run.capturable_step)


def largest_pack(device: torch.device, replica_bytes: int) -> int:
    """Return how many runs of `replica_bytes` each fit into the free memory, with room left for other processes."""
    fits = int(memory_available(device) * _MEMORY_FRACTION[device.type] / replica_bytes)
    return max(1, min(fits, _LARGEST_PACK[device.type]))


def runs_per_worker(runs: int, workers: int) -> int:
    """Return ceil(runs / workers): the largest pack that leaves runs to every worker."""
    return -(-runs // workers)


class PackLimits:
    """How many runs of a shape fit into a pack, by the memory that one of them is measured to take."""

    def __init__(self, factory: TrainerFactory) -> None:
        self._factory = factory
        self._known: dict[object, int] = {}

    def of(self, effective: RunConfig) -> int:
        """Return the largest pack for an effective config."""
        key = effective.pack_key
        if key not in self._known:
            self._known[key] = self._measure(effective)
        return self._known[key]

    def _measure(self, effective: RunConfig) -> int:
        device = self._factory.device
        tokens, _ = self._factory.prepare(effective)
        # one step only: capturing or compiling it would take memory of its own
        execution = replace(self._factory.execution(effective), engine="eager")
        before = memory_in_use(device)
        pack = make_pack([effective], [Composition()], tokens, device, execution)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        pack.step(1)
        after = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else memory_in_use(device)
        # memory freed earlier is used again without showing, so the counted bytes are a lower bound
        replica_bytes = max(after - before, bytes_per_replica(effective, tokens.vocab_size))
        del pack
        release_unused(device)
        return largest_pack(device, replica_bytes)


@dataclass(frozen=True, kw_only=True)
class ShapeCost:
    """What the runs of one shape will take: memory of a pack in bytes, time of all packs in seconds."""

    size: int
    steps: int
    runs: int
    arms: list[str]
    packs: int
    runs_in_a_pack: int
    memory_bytes: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return everything by name."""
        return asdict(self)


def plan_costs(
    runs: Iterable[ResolvedRun],
    device: torch.device,
    pack_size: int | None,
    vocab_size: Callable[[RunConfig], int] = known_vocabulary,
    *,
    workers: int = 1,
) -> list[ShapeCost]:
    """Estimate every shape among the runs; `pack_size` None: as many as memory takes, shared by the `workers`."""
    groups: dict[Shape, list[ResolvedRun]] = {}
    for run in runs:
        groups.setdefault(shape_of(run, device), []).append(run)
    return [_cost(group, device, pack_size, vocab_size(group[0].effective), workers) for group in groups.values()]


def _cost(
    runs: Sequence[ResolvedRun], device: torch.device, pack_size: int | None, vocab_size: int, workers: int
) -> ShapeCost:
    effective = runs[0].effective
    fits = largest_pack(device, bytes_per_replica(effective, vocab_size))
    size = min(pack_size or min(fits, runs_per_worker(len(runs), workers)), len(runs))
    packs = -(-len(runs) // size)
    pack = estimate(effective, vocab_size, device, size, choose(effective, vocab_size, device).precision)
    return ShapeCost(
        size=effective.model.hidden_size,
        steps=effective.steps,
        runs=len(runs),
        arms=list(Counter(run.config.arm for run in runs)),
        packs=packs,
        runs_in_a_pack=size,
        memory_bytes=pack.memory_bytes,
        seconds=round(packs * pack.total_seconds, 1),
    )


def announcement(costs: Sequence[ShapeCost], device: torch.device) -> str:
    """Say how many runs are to be trained and how long that will take."""
    runs, seconds = sum(cost.runs for cost in costs), sum(cost.seconds for cost in costs)
    return f"{runs} run{'s' * (runs != 1)} to train on {device}, about {duration(seconds)}"
