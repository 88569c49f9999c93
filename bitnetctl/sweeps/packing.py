"""Which runs train together, how many of them, and their estimated memory and time."""

import contextlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch

from bitnetctl.config import LearningRateFactors, RunConfig
from bitnetctl.engine.cost import bytes_per_replica, estimate, fixed_bytes, known_vocabulary
from bitnetctl.engine.select import choose, make_pack, uncaptured_engine
from bitnetctl.errors import ConfigError, PluginError
from bitnetctl.hardware import memory_available, memory_in_use, release_unused
from bitnetctl.plugins import registry
from bitnetctl.plugins.composition import Composition, custom_quantizers
from bitnetctl.trainer.factory import TrainerFactory
from bitnetctl.trainer.resolved import ResolvedRun

# a larger pack is compute-bound: it takes memory and saves no time
_LARGEST_PACK = {"cpu": 16, "cuda": 64}
_MEMORY_FRACTION = {"cpu": 0.5, "cuda": 0.8}

Shape = tuple[object, ...]


def shape_of(run: ResolvedRun, device: torch.device) -> Shape:
    """Return what must be equal for runs to train in one pack.

    A pack has one quantizer. On a GPU also whether a step can be captured counts: one run whose step cannot would keep
    its pack from CUDA graphs. For the same reason, and since own kernels update all runs of a pack or none, which
    optimizer is used, and how.
    """
    shape = (*run.effective.pack_key, run.quantizer_key)
    if device.type == "cpu":
        return shape
    factors = run.effective.optimizer.learning_rate_factors
    return (*shape, run.capturable_step, run.optimizer_plugin, factors == LearningRateFactors())


def largest_pack(device: torch.device, replica_bytes: int, workers: int = 1, *, once_bytes: int = 0) -> int:
    """Return how many runs of `replica_bytes` each fit into the free memory beside what their pack needs once.

    Room is left for other processes. The memory of the CPU is shared by all `workers`.
    """
    sharing = workers if device.type == "cpu" else 1
    free = memory_available(device) * _MEMORY_FRACTION[device.type] / sharing - once_bytes
    return max(1, min(int(free / replica_bytes), _LARGEST_PACK[device.type]))


def measured_largest_pack(factory: TrainerFactory, effective: RunConfig, workers: int = 1) -> int:
    """Return how many runs of an effective config fit into memory, after training one of them for a step or two.

    Its interventions take part, in instances of their own; an error of theirs is left for the training to report.
    """
    try:
        replica_bytes, once_bytes = _measured_bytes(factory, effective)
    except torch.OutOfMemoryError:
        # one run would be tried in any case
        return 1
    finally:
        # the frame that held the pack has ended
        release_unused(factory.device)
    return largest_pack(factory.device, replica_bytes, workers, once_bytes=once_bytes)


def _measured_bytes(factory: TrainerFactory, effective: RunConfig) -> tuple[int, int]:
    """Return the bytes of a run, and on a GPU those that its pack needs once."""
    with contextlib.suppress(PluginError, ConfigError):
        return _bytes_in_training(factory, effective, registry.compose(effective.interventions))
    return _bytes_in_training(factory, effective, Composition())


def _bytes_in_training(factory: TrainerFactory, effective: RunConfig, composition: Composition) -> tuple[int, int]:
    device = factory.device
    tokens, probe = factory.prepare(effective)
    # not captured or compiled, which would take memory of its own: a graph's is what such a step takes
    custom = custom_quantizers(composition.quantizer_key)
    execution = replace(factory.execution(effective, custom=custom), engine="eager", kernels=frozenset())
    replica_bytes = bytes_per_replica(effective, tokens.vocab_size, execution.precision)
    release_unused(device)
    before = memory_in_use(device)
    pack = make_pack([effective], [composition], tokens, device, execution)
    pack.step(1)
    if device.type != "cuda":
        # the allocator may reuse memory freed earlier, which is not seen here: take at least the counted bytes
        return max(memory_in_use(device) - before, replica_bytes), 0
    # the moments are made in the first step, of memory that the temporary tensors of the next then lack
    pack.step(min(2, pack.steps))
    trained = memory_in_use(device)
    probe.measure(pack.model, pack.quant_lambdas(1))
    once_bytes = fixed_bytes(effective, tokens.vocab_size, device, _LARGEST_PACK["cuda"], execution.precision)
    return max(trained - before, replica_bytes), max(memory_in_use(device) - trained, once_bytes)


def most_demanding(runs: Sequence[ResolvedRun]) -> RunConfig:
    """Return the effective config of the run to be measured for a shape.

    That is the first with a loss hook and an optimizer of its own, or with one of them, or the first of all.
    """
    return max(runs, key=lambda run: _hooks_with_memory(run.effective)).effective


def _hooks_with_memory(effective: RunConfig) -> int:
    with contextlib.suppress(PluginError, ConfigError):
        composition = registry.compose(effective.interventions)
        return composition.overrides_loss + (composition.optimizer_plugin is not None)
    return 0


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
    execution = choose(effective, vocab_size, device, custom=runs[0].custom_quantizers)
    replica_bytes = bytes_per_replica(effective, vocab_size, execution.precision)
    once_bytes = fixed_bytes(effective, vocab_size, device, _LARGEST_PACK[device.type], execution.precision)
    fits = largest_pack(device, replica_bytes, workers, once_bytes=once_bytes)
    size = min(pack_size or min(fits, math.ceil(len(runs) / workers)), len(runs))
    packs = math.ceil(len(runs) / size)
    engine = execution.engine if runs[0].capturable_step else uncaptured_engine(execution.engine)
    pack = estimate(effective, vocab_size, device, size, execution.precision, engine)
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
