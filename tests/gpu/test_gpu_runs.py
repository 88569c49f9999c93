"""Whole runs on a GPU: stopped and resumed through checkpoints, hooks that wait, packs that do not fit."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from on_gpu import CAPTURED, MARKS
from run_files import RUNS, UNDISTURBED, assert_equal, csv_without_speed, manifest, saved
from sweeping import Grid, names
from torch import Tensor
from training import open_trainer, sweep_runs

from bitnetctl.config import RunConfig
from bitnetctl.engine.cuda_graph import CapturedPack
from bitnetctl.engine.pack import Pack
from bitnetctl.intervention import Intervention
from bitnetctl.plugins import registry
from bitnetctl.plugins.registry import Plugin
from bitnetctl.trainer import loop
from bitnetctl.trainer.events import Started
from bitnetctl.trainer.options import TrainOptions

pytestmark = MARKS


def train(configs: Sequence[RunConfig], folder: Path, engine: str, stop_after: int | None = None) -> list[str]:
    """Train a pack, stop it after so many steps of this call; return the lines that it logs."""
    lines: list[str] = []
    step = itertools.count(1)
    options = TrainOptions(
        runs_dir=folder,
        device="cuda",
        engine=engine,
        checkpoint_every=configs[0].steps,
        should_stop=lambda: next(step) == stop_after,
        log=lines.append,
    )
    with open_trainer(configs, options) as trainer:
        for _ in loop.train(trainer):
            pass
    return lines


@pytest.mark.parametrize("engine", CAPTURED)
def test_a_run_stopped_at_step_150_and_resumed_is_the_undisturbed_one(grid: Grid, engine: str) -> None:
    configs = grid(2, steps=200, model__hidden_size=32, probe__eval_every_steps=50)
    train(configs, UNDISTURBED, engine)
    train(configs, RUNS, engine, stop_after=150)
    assert {manifest(config).steps_done for config in configs} == {150}
    train(configs, RUNS, engine)
    for config in configs:
        resumed, undisturbed = manifest(config), manifest(config, UNDISTURBED)
        assert (resumed.engine, resumed.status, len(resumed.sessions)) == (engine, "finished", 2)
        assert undisturbed.engine == engine
        tables = [csv_without_speed(folder / f"{config.run_name}.csv") for folder in (RUNS, UNDISTURBED)]
        assert tables[0] == tables[1]
        ours, theirs = (saved(folder, config.run_name, 200) for folder in (RUNS, UNDISTURBED))
        assert_equal(ours.model, theirs.model)


class Waiting(Intervention):
    """A loss that reads a number from the GPU, although it claims that it can be captured."""

    summary = "for the tests"
    capturable = True

    def training_loss(self, logits_TV: Tensor, targets_T: Tensor) -> Tensor:
        """Wait for the loss."""
        loss = torch.nn.functional.cross_entropy(logits_TV, targets_T)
        return loss * 2 if loss.item() < 0 else loss


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plug-in `waiting` beside the real ones."""
    real = registry.load

    def load(name: str) -> Plugin:
        if name != "waiting":
            return real(name)
        plugin = replace(real("no-decay"), name=name, distribution="theirs", version="1", target="test:waiting")
        return replace(plugin, intervention=Waiting, module=None, source_sha256=None)

    monkeypatch.setattr(registry, "load", load)


def swept(configs: Sequence[RunConfig], engine: str) -> tuple[list[list[str]], list[str]]:
    """Sweep the runs in one pack; return the names of every pack, and the lines logged."""
    lines: list[str] = []
    options = TrainOptions(runs_dir=RUNS, device="cuda", engine=engine, checkpoint_every=100, log=lines.append)
    events = list(sweep_runs(configs, options, pack=len(configs)))
    return [list(event.names) for event in events if isinstance(event, Started)], lines


def test_a_hook_that_waits_is_named_and_its_run_is_uncaptured(waiting: None, grid: Grid) -> None:
    (config,) = grid(1, "waiting")
    _, lines = swept([config], "graph")
    done = manifest(config)
    assert (done.status, done.engine) == ("finished", "eager")
    assert "test_gpu_runs.py" in (done.not_captured or "")
    assert any("without a CUDA graph" in line and "test_gpu_runs.py" in line for line in lines)


def test_a_pack_without_enough_memory_goes_on_one_by_one(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    configs = grid(3)
    step = CapturedPack.step

    def crowded(pack: Pack, number: int) -> None:
        # in the capture, where memory is scarcest
        if len(pack.replicas) > 1 and number == 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        step(pack, number)  # type: ignore[arg-type]

    monkeypatch.setattr(CapturedPack, "step", crowded)
    packs, lines = swept(configs, "graph")
    assert packs == [names(configs), *([name] for name in names(configs))]
    assert any("its runs continue one by one" in line for line in lines)
    assert {manifest(config).status for config in configs} == {"finished"}
    assert {manifest(config).engine for config in configs} == {"graph"}
