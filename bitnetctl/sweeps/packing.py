"""Which runs train together, how many of them, and their estimated memory and time."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch

from bitnetctl.config import RunConfig
from bitnetctl.engine.cost import bytes_per_replica, estimate, known_vocabulary
from bitnetctl.engine.select import choose, make_pack
from bitnetctl.hardware import memory_available, memory_in_use, release_unused
from bitnetctl.plugins.composition import Composition
from bitnetctl.trainer.factory import TrainerFactory
from bitnetctl.trainer.resolved import ResolvedRun

# a larger pack is compute-bound: it takes memory and saves no time
_LARGEST_PACK = {"cpu": 16, "cuda": 64}
_MEMORY_FRACTION = {"cpu": 0.5, "cuda": 0.85}

Shape = tuple[object, ...]


def shape_of(run: ResolvedRun, device: torch.device) -> Shape:
    """Return what must be equal for runs to train in one pack.

    On a GPU also whether a step can be captured: one run whose step cannot would keep its pack from CUDA graphs.
    """
    return (*run.effective.pack_key, device.type != "cpu" and run.capturable_step)


def largest_pack(device: torch.device, replica_bytes: int, workers: int = 1) -> int:
    """Return how many runs of `replica_bytes` each fit into the free memory, with room left for other processes.

    That of the CPU is shared by all `workers`.
    """
    sharing = workers if device.type == "cpu" else 1
    fits = int(memory_available(device) * _MEMORY_FRACTION[device.type] / sharing / replica_bytes)
    return max(1, min(fits, _LARGEST_PACK[device.type]))


def measured_largest_pack(factory: TrainerFactory, effective: RunConfig, workers: int = 1) -> int:
    """Return how many runs of an effective config fit into memory, after training one of them for a step."""
    device = factory.device
    tokens, _ = factory.prepare(effective)
    # one step only: capturing or compiling it would take memory of its own
    execution = replace(factory.execution(effective), engine="eager")
    on_gpu = device.type == "cuda"
    before = torch.cuda.memory_allocated(device) if on_gpu else memory_in_use(device)
    pack = make_pack([effective], [Composition()], tokens, device, execution)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    pack.step(1)
    after = torch.cuda.max_memory_allocated(device) if on_gpu else memory_in_use(device)
    # the allocator may reuse memory freed earlier, which `after` does not show: take at least the counted bytes
    replica_bytes = max(after - before, bytes_per_replica(effective, tokens.vocab_size))
    del pack
    release_unused(device)
    return largest_pack(device, replica_bytes, workers)


@dataclass(frozen=True, kw_only=True)
class ShapeCost:
    """Estimated cost of the runs of one shape: memory of one pack in bytes, time of all packs in seconds."""

    size: int
    steps: int
    runs: int
    arms: list[str]
    packs: int
    runs_in_a_pack: int
    memory_bytes: int
    seconds: float


def plan_costs(
    runs: Iterable[ResolvedRun],
    device: torch.device,
    pack_size: int | None,
    vocab_size: Callable[[RunConfig], int] = known_vocabulary,
    *,
    workers: int = 1,
) -> list[ShapeCost]:
    """Estimate the cost of each shape; `pack_size` None: as many as fit in memory, at most ceil(runs / workers)."""
    groups: dict[Shape, list[ResolvedRun]] = {}
    for run in runs:
        groups.setdefault(shape_of(run, device), []).append(run)
    return [_cost(group, device, pack_size, vocab_size(group[0].effective), workers) for group in groups.values()]


def _cost(
    runs: Sequence[ResolvedRun], device: torch.device, pack_size: int | None, vocab_size: int, workers: int
) -> ShapeCost:
    effective = runs[0].effective
    fits = largest_pack(device, bytes_per_replica(effective, vocab_size), workers)
    size = min(pack_size or min(fits, math.ceil(len(runs) / workers)), len(runs))
    packs = math.ceil(len(runs) / size)
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
