"""What a set of runs will take: shapes, packs, estimated memory and time."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from bitnetctl.config import RunConfig
from bitnetctl.engine.cost import bytes_per_replica, estimate, known_vocabulary
from bitnetctl.engine.select import choose, make_pack
from bitnetctl.hardware import memory_available, memory_in_use, release_unused
from bitnetctl.plugins import registry
from bitnetctl.plugins.registry import compose, effective_config
from bitnetctl.trainer.session import TrainerFactory


class _PackLimits:
    """How many runs of a shape fit into a pack, by the memory one of them was measured to take."""

    def __init__(self, sessions: TrainerFactory) -> None:
        self._sessions = sessions
        self._known: dict[object, int] = {}

    def of(self, config: RunConfig) -> int:
        """Return the largest pack for an effective config."""
        key = config.pack_key
        if key not in self._known:
            self._known[key] = self._measure(config)
        return self._known[key]

    def _measure(self, config: RunConfig) -> int:
        device = self._sessions.device
        tokens, _ = self._sessions.prepare(config)
        # to record or compile a step that is made once would be in vain, and take memory of its own
        execution = replace(self._sessions.execution(config), engine="eager")
        before = memory_in_use(device)
        pack = make_pack([config], [compose(())], tokens, device, execution)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        pack.step(1)
        after = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else memory_in_use(device)
        # memory freed earlier is used again without showing, so the counted bytes are a lower bound
        taken = max(after - before, bytes_per_replica(config, tokens.vocab_size))
        del pack
        release_unused(device)
        return largest_pack(device, taken)


# beyond these a pack is bound by arithmetic and only takes memory
_LARGEST_PACK = {"cpu": 16, "cuda": 64}
_MEMORY_SHARE = {"cpu": 0.5, "cuda": 0.85}


def largest_pack(device: torch.device, replica_bytes: int) -> int:
    """Return how many runs of `replica_bytes` each fit into the free memory, with room left for others."""
    fits = int(memory_available(device) * _MEMORY_SHARE[device.type] / replica_bytes)
    return max(1, min(fits, _LARGEST_PACK[device.type]))


def shape_of(config: RunConfig, effective: RunConfig, device: torch.device) -> tuple[object, ...]:
    """Return what must be equal for runs to train in one pack; on a GPU also whether their steps can be recorded.

    One run that needs the host between its kernels would slow down all that are recorded without it.
    """
    recordable = device.type != "cpu" and registry.compose(config.interventions).capturable_step
    return (*effective.pack_key, recordable)


def share(runs: int, workers: int) -> int:
    """Return how many of so many runs a pack may take, so that each worker finds some."""
    return -(-runs // workers)


def announcement(costs: Sequence[dict[str, Any]], device: torch.device) -> str:
    """Say how many runs are to be trained and how long that will take."""
    runs, seconds = sum(cost["runs"] for cost in costs), sum(cost["seconds"] for cost in costs)
    minutes = f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
    return f"{runs} run{'s' * (runs != 1)} to train on {device}, about {minutes}"


def plan_costs(
    configs: Sequence[RunConfig],
    device: torch.device,
    pack_size: int | None,
    vocab_size: Callable[[RunConfig], int] = known_vocabulary,
    *,
    workers: int = 1,
) -> list[dict[str, Any]]:
    """Return a tree for each shape: size, steps, runs, arms, packs, runs in a pack, memory in bytes, seconds."""
    groups: dict[object, list[tuple[RunConfig, RunConfig]]] = {}
    for config in configs:
        effective = effective_config(config)
        groups.setdefault(shape_of(config, effective, device), []).append((config, effective))
    return [_cost(replicas, device, pack_size, vocab_size(replicas[0][1]), workers) for replicas in groups.values()]


def _cost(
    replicas: Sequence[tuple[RunConfig, RunConfig]],
    device: torch.device,
    pack_size: int | None,
    vocab_size: int,
    workers: int,
) -> dict[str, Any]:
    effective = replicas[0][1]
    fits = largest_pack(device, bytes_per_replica(effective, vocab_size))
    limit = pack_size or min(fits, share(len(replicas), workers))
    size = min(limit, len(replicas))
    packs = -(-len(replicas) // size)
    cost = estimate(effective, vocab_size, device, size, choose(effective, vocab_size, device).precision)
    return {
        "size": effective.model.hidden_size,
        "steps": effective.steps,
        "runs": len(replicas),
        "arms": list(Counter(config.arm for config, _ in replicas)),
        "packs": packs,
        "runs_in_a_pack": size,
        "memory_bytes": cost.memory_bytes,
        "seconds": round(packs * cost.total_seconds, 1),
    }
