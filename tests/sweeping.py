"""Sweeps of tiny runs in this process, and plug-ins that fail; loaded as a pytest plugin by conftest.py."""

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import pytest
from configs import TinyConfig
from pydantic import Field
from run_files import RUNS, UNDISTURBED
from training import sweep_runs

from bitnetctl.config import RunConfig
from bitnetctl.intervention import Intervention, InterventionSettings
from bitnetctl.plugins import registry
from bitnetctl.plugins.registry import Plugin
from bitnetctl.records import NAMES, read
from bitnetctl.sweeps import executor
from bitnetctl.trainer.events import Event, Started
from bitnetctl.trainer.options import TrainOptions

Sweep = Callable[..., list[Event]]
Grid = Callable[..., list[RunConfig]]

DIVERGES = "reduced-lr:factor=1e300"
# largest relative difference between a run in a pack and the same run alone, in every column but TokensPerSecond.
# Measured: double 2e-14 (ContextInformation, a difference of entropies), single 0. Noise that another CPU may
# add in single precision flips roundings to int8, so only double precision can be held to much.
DOUBLE, SINGLE = 1e-9, 1e-2
COMPARED = [name for name in NAMES if name != "TokensPerSecond"]


def names(configs: Sequence[RunConfig]) -> list[str]:
    return [config.run_name for config in configs]


def packs(events: Sequence[Event]) -> list[list[str]]:
    return [list(event.names) for event in events if isinstance(event, Started)]


def starts(events: Sequence[Event]) -> list[int]:
    return [event.start_step for event in events if isinstance(event, Started)]


def pick(rows: Iterable[Mapping[str, Any]], *keys: str) -> list[tuple[Any, ...]]:
    """Return some columns of rows."""
    return [tuple(row[key] for key in keys) for row in rows]


def row_steps(config: RunConfig, runs_dir: Path = RUNS) -> list[int]:
    steps: list[int] = read(runs_dir / f"{config.run_name}.csv", partial=False).frame["Step"].to_list()
    return steps


def largest_difference(config: RunConfig, ours: Path, theirs: Path) -> dict[str, float]:
    """Return the largest relative difference of every compared column; unknown and NaN equal themselves only."""
    one, other = (read(folder / f"{config.run_name}.csv", partial=False) for folder in (ours, theirs))
    assert one.frame["Step"].to_list() == other.frame["Step"].to_list()
    worst = dict.fromkeys(COMPARED, 0.0)
    for name in COMPARED:
        for index in range(len(one.frame)):
            a, b = one.value(name, index), other.value(name, index)
            if a is None or b is None or math.isnan(a) or math.isnan(b):
                assert (a is None, a is not None and math.isnan(a)) == (b is None, b is not None and math.isnan(b)), (
                    name
                )
            elif a != b:
                # some values are zero but for rounding
                worst[name] = max(worst[name], abs(a - b) / max(abs(a), abs(b), 1e-3))
    return worst


def assert_same(configs: Sequence[RunConfig], tolerance: float, theirs: Path = UNDISTURBED) -> None:
    for config in configs:
        worst = largest_difference(config, RUNS, theirs)
        assert max(worst.values()) <= tolerance, (config.run_name, worst)


class Counting(Intervention):
    """Count the steps of the run."""

    def __init__(self, settings: InterventionSettings) -> None:
        super().__init__(settings)
        self.step = 0

    def transform_gradients(self, parameters: Mapping[str, Any]) -> None:
        """Count a step."""
        self.step += 1
        self.at_step(self.step)

    def at_step(self, step: int) -> None:
        """Do what goes wrong."""

    def state_dict(self) -> dict[str, Any]:
        """Return the steps done."""
        return {"step": self.step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the steps done."""
        self.step = state["step"]


class Fails(Counting):
    """Raise at a step while `broken`."""

    summary = "for the tests"
    broken = True

    class Settings(InterventionSettings):
        """The step that goes wrong."""

        at: Annotated[int, Field(ge=1)] = 6

    settings: Settings

    def at_step(self, step: int) -> None:
        """Raise at the step."""
        if self.broken and step == self.settings.at:
            raise RuntimeError("two\nlines [bold]")


class Fuller(Counting):
    """Raise what a full disk raises."""

    summary = "for the tests"
    error: BaseException | None = None

    def at_step(self, step: int) -> None:
        """Raise at step 6."""
        if step == 6 and self.error is not None:
            raise self.error


class Deeper(Intervention):
    """Change the shape of a run."""

    summary = "for the tests"

    def configure(self, config: RunConfig) -> RunConfig:
        """Add a layer."""
        model = config.model.model_copy(update={"num_layers": config.model.num_layers + 1})
        return config.model_copy(update={"model": model})


@pytest.fixture
def sweep(monkeypatch: pytest.MonkeyPatch) -> Sweep:
    """Sweep `runs/` and return the events; a stop is requested once `stop_when` is true of an event."""
    # half of a tiny run's time, and no test needs durability
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(executor, "_WAIT_SECONDS", 0.01)

    def run(
        configs: Sequence[RunConfig],
        *,
        pack: int | None = None,
        workers: int = 1,
        runs_dir: Path = RUNS,
        stop_when: Callable[[Event], bool] = lambda event: False,
        **options: object,
    ) -> list[Event]:
        events: list[Event] = []
        named = {"should_stop": lambda: any(map(stop_when, events)), **options}
        named.setdefault("checkpoint_every", configs[0].eval_every_steps)
        chosen = TrainOptions(runs_dir=runs_dir, device="cpu", **named)  # type: ignore[arg-type]
        # one by one: `stop_when` sees them during the sweep
        events.extend(sweep_runs(configs, chosen, pack=pack, workers=workers))
        return events

    return run


@pytest.fixture
def grid(tiny_config: TinyConfig) -> Callable[..., list[RunConfig]]:
    """The smallest runs, one for every arm and seed: eight steps, rows at 1, 4 and 8."""

    def build(seeds: int, *arms: str, **overrides: object) -> list[RunConfig]:
        smallest = {"steps": 8, "model__hidden_size": 16, "model__num_layers": 1}
        return [
            tiny_config(arm=arm, **smallest | {"seed": seed} | overrides)
            for arm in (arms or ("",))
            for seed in range(seeds)
        ]

    return build


@pytest.fixture
def third_party(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plug-ins `fails`, `fuller` and `deeper` beside the real ones."""
    real = registry.load
    classes: dict[str, type[Intervention]] = {"fails": Fails, "fuller": Fuller, "deeper": Deeper}

    def load(name: str) -> Plugin:
        if name not in classes:
            return real(name)
        plugin = replace(real("no-decay"), name=name, distribution="theirs", version="1", target=f"test_sweep:{name}")
        return replace(plugin, intervention=classes[name], module=None, source_sha256=None)

    monkeypatch.setattr(registry, "load", load)
    monkeypatch.setattr(Fails, "broken", True)
    monkeypatch.setattr(Fuller, "error", None)
