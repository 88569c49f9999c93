"""Train configs: they are resolved into runs on the way."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from bitnetctl.config import RunConfig
from bitnetctl.sweeps import executor
from bitnetctl.trainer import factory
from bitnetctl.trainer.events import Event
from bitnetctl.trainer.loop import Trainer
from bitnetctl.trainer.options import TrainOptions
from bitnetctl.trainer.resolved import ResolvedRun, resolve


def resolved(configs: Sequence[RunConfig], runs_dir: Path, names: Sequence[str] | None = None) -> list[ResolvedRun]:
    """Resolve the runs of configs, by default under the names that these have."""
    names = names or [config.run_name for config in configs]
    return [resolve(config, runs_dir, name) for config, name in zip(configs, names, strict=True)]


def open_trainer(
    configs: Sequence[RunConfig], options: TrainOptions, *, names: Sequence[str] | None = None
) -> AbstractContextManager[Trainer]:
    """Acquire the runs of a pack and open their trainer."""
    return factory.open_trainer(resolved(configs, options.runs_dir, names), options)


def train_runs(
    configs: Sequence[RunConfig], options: TrainOptions, *, names: Sequence[str] | None = None
) -> Iterator[Event]:
    """Train runs one after the other."""
    return factory.train_runs(resolved(configs, options.runs_dir, names), options)


def sweep_runs(
    configs: Sequence[RunConfig], options: TrainOptions, *, pack: int | None = None, workers: int = 1
) -> Iterator[Event]:
    """Train runs in packs."""
    return executor.sweep_runs(resolved(configs, options.runs_dir), options, pack=pack, workers=workers)
