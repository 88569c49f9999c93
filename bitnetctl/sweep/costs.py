"""What a set of runs will take: shapes, packs, estimated memory and time."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch

from bitnetctl import plugins
from bitnetctl.capture import can_be_captured
from bitnetctl.config import RunConfig
from bitnetctl.data import vocab_size_of
from bitnetctl.errors import ConfigError
from bitnetctl.estimate import estimate, pack_member_bytes
from bitnetctl.execution import choose
from bitnetctl.machine import memory_available
from bitnetctl.step import pack_key
from bitnetctl.sweep.session import effective_config

# beyond these a pack is bound by arithmetic and only takes memory
_LARGEST_PACK = {"cpu": 16, "cuda": 64}
_MEMORY_SHARE = {"cpu": 0.5, "cuda": 0.85}


def known_vocabulary(config: RunConfig) -> int:
    """Return the vocabulary size of a config without touching its text; raises ConfigError where that cannot be."""
    size = vocab_size_of(config.data)
    if size is None:
        raise ConfigError(f"the vocabulary of {config.data.tokenizer} is not known without fetching it")
    return size


def largest_pack(device: torch.device, member_bytes: int) -> int:
    """Return how many runs of `member_bytes` each fit into the free memory, with room left for others."""
    fits = int(memory_available(device) * _MEMORY_SHARE[device.type] / member_bytes)
    return max(1, min(fits, _LARGEST_PACK[device.type]))


def shape_of(config: RunConfig, effective: RunConfig, device: torch.device) -> tuple[object, ...]:
    """Return what must be equal for runs to train in one pack; on a card also whether their steps can be recorded.

    One run that needs the host between its kernels would slow down all that are recorded without it.
    """
    recordable = device.type != "cpu" and can_be_captured([plugins.compose(config.interventions)])
    return (*pack_key(effective), recordable)


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
    return [_cost(members, device, pack_size, vocab_size(members[0][1]), workers) for members in groups.values()]


def _cost(
    members: Sequence[tuple[RunConfig, RunConfig]],
    device: torch.device,
    pack_size: int | None,
    vocab_size: int,
    workers: int,
) -> dict[str, Any]:
    effective = members[0][1]
    fits = largest_pack(device, pack_member_bytes(effective, vocab_size))
    limit = pack_size or min(fits, share(len(members), workers))
    size = min(limit, len(members))
    packs = -(-len(members) // size)
    cost = estimate(effective, vocab_size, device, size, choose(effective, vocab_size, device).precision)
    return {
        "size": effective.model.hidden_size,
        "steps": effective.steps,
        "runs": len(members),
        "arms": list(Counter(config.arm for config, _ in members)),
        "packs": packs,
        "runs_in_a_pack": size,
        "memory_bytes": cost.memory_bytes,
        "seconds": round(packs * cost.total_seconds, 1),
    }
