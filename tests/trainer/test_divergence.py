"""Values that are not finite: detected wherever they are, never saved, never applied; rolled back if requested."""

import csv
import io
import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from calling import call
from configs import TinyConfig
from rich.console import Console
from run_files import Train, manifest
from torch import Tensor
from torch.nn.functional import cross_entropy
from training import sweep_runs, train_runs

from bitnetctl import checkpoint
from bitnetctl.engine.pack import Pack
from bitnetctl.errors import ExitCode
from bitnetctl.intervention import Intervention, InterventionSettings
from bitnetctl.monitor.console import PlainReporter
from bitnetctl.plugins import registry
from bitnetctl.plugins.composition import Composition
from bitnetctl.records import load_run
from bitnetctl.trainer.events import Diverged, Event, Saved
from bitnetctl.trainer.loop import MAX_ROLLBACKS, Trainer
from bitnetctl.trainer.options import TrainOptions

RUNS = Path("runs")

ABSURD = {"schedule__peak_learning_rate": 1e38, "optimizer__max_norm": "none"}


def rows(name: str) -> list[dict[str, str]]:
    with (RUNS / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def after(step: int, spoil: Callable[[Trainer], None]) -> Callable[[Trainer, Event], None]:
    """Call `spoil` once the checkpoint of `step` is written."""

    def watch(trainer: Trainer, event: Event) -> None:
        if isinstance(event, Saved) and event.step == step:
            with torch.no_grad():
                spoil(trainer)

    return watch


def weight(trainer: Trainer) -> None:
    # a token that is not in the tiny text: no forward pass uses it
    trainer.pack.model.packed["embed"][1, 299, 3] = math.inf


def moment(trainer: Trainer) -> None:
    state = trainer.pack.replicas[1].optimizer.state()
    state["matrices/exp_avg_sq"][7] = math.nan


def second_moment(trainer: Trainer) -> None:
    # divided by infinity, the update is zero and the weights stay as they are
    state = trainer.pack.replicas[1].optimizer.state()
    state["matrices/exp_avg_sq"][7] = math.inf


def head(trainer: Trainer) -> None:
    trainer.pack.model.packed["head"][1, 5, 0] = math.nan


@pytest.mark.parametrize(
    ("spoil", "name"),
    [
        (weight, "the weight model.embed_tokens.weight"),
        (moment, "the weight model.layers.0.self_attn.q_proj.weight"),
        (second_moment, "the moment matrices/exp_avg_sq"),
        (head, "the weight lm_head.weight"),
    ],
)
def test_nothing_non_finite_is_saved_or_measured(
    spoil: Callable[[Trainer], None], name: str, train: Train, tiny_config: TinyConfig
) -> None:
    configs = [tiny_config(seed=seed) for seed in range(3)]
    events = train(configs, names=["a", "b", "c"], watch=after(4, spoil))
    assert [manifest(run).status for run in "abc"] == ["finished", "diverged", "finished"]
    bad = manifest("b")
    assert bad.diverged_at is not None
    assert 5 <= bad.diverged_at <= 8
    assert bad.message == f"{name} not finite at step {bad.diverged_at}"
    assert [event.run for event in events if isinstance(event, Diverged)] == [1]
    for step in checkpoint.steps(RUNS / "b" / "checkpoints"):
        saved = checkpoint.load(checkpoint.path_of(RUNS / "b" / "checkpoints", step))
        for tensor in (*saved.model.values(), *saved.optimizer.values()):
            assert tensor.isfinite().all()
    # the other runs of the pack are those of a pack without it
    train([configs[0], configs[2]], names=["a2", "c2"])
    for run in "ac":
        for ours, theirs in zip(rows(run), rows(f"{run}2"), strict=True):
            for column in ("Loss", "HeldOutLoss", "GradNorm"):
                assert float(ours[column]) == pytest.approx(float(theirs[column]), rel=1e-3)


class Breaks(Intervention):
    """A loss that is NaN from its sixth call on, or a finite one whose gradient is not finite."""

    def __init__(self, what: str) -> None:
        super().__init__(InterventionSettings())
        self.what = what
        self.calls = 0

    def training_loss(self, logits_TV: Tensor, targets_T: Tensor) -> Tensor:
        self.calls += 1
        loss = cross_entropy(logits_TV, targets_T)
        if self.calls < 6:
            return loss
        # the derivative of the square root at zero is infinite
        return loss + math.nan if self.what == "loss" else loss + (0 * logits_TV).sum().sqrt()


@pytest.mark.parametrize(
    ("what", "name"), [("loss", "the loss"), ("gradient", "the gradient of model.embed_tokens.weight")]
)
def test_a_step_that_is_not_finite_is_not_applied(
    what: str, name: str, train: Train, tiny_config: TinyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "compose", lambda specs: Composition([Breaks(what)]))
    weights: dict[int, Tensor] = {}

    def watch(trainer: Trainer, event: Event) -> None:
        if isinstance(event, Saved | Diverged):
            weights[event.step] = trainer.pack.model.packed["head"].clone()

    train(tiny_config(), names=["a"], checkpoint_every=5, watch=watch)
    stored = manifest("a")
    assert (stored.status, stored.diverged_at) == ("diverged", 6)
    assert stored.message == f"{name} not finite at step 6"
    assert checkpoint.steps(RUNS / "a" / "checkpoints") == [5]
    assert torch.equal(weights[5], weights[6])


def test_the_last_checkpoint_before_it_stays(train: Train, tiny_config: TinyConfig) -> None:
    train([tiny_config(), tiny_config(seed=1)], names=["a", "b"], watch=after(4, weight))
    assert checkpoint.steps(RUNS / "b" / "checkpoints") == [4]
    assert checkpoint.steps(RUNS / "a" / "checkpoints") == [12]


def options(said: list[str] | None = None, **named: Any) -> TrainOptions:
    log = (lambda text: None) if said is None else said.append
    return TrainOptions(runs_dir=RUNS, device="cpu", checkpoint_every=2, on_divergence="rollback", log=log, **named)


def spoil_once(monkeypatch: pytest.MonkeyPatch, at: int, run: int = 0) -> None:
    """Make a weight of a run non-finite after a step, the first time that it is trained."""
    step, spoiled = Pack.step, list[int]()

    def spoiling(pack: Any, number: int) -> None:
        step(pack, number)
        if number == at and not spoiled:
            spoiled.append(number)
            pack.model.packed["head"][run, 0, 0] = math.nan

    monkeypatch.setattr(Pack, "step", spoiling)


def reported(events: Iterable[Event]) -> list[str]:
    """Return the lines that are shown to the user."""
    file = io.StringIO()
    with PlainReporter(Console(file=file)) as reporter:
        for event in events:
            reporter.event(event)
    return file.getvalue().splitlines()


def test_a_rolled_back_run_resumes_with_half_the_rate(tiny_config: TinyConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    config, said = tiny_config(), list[str]()
    spoil_once(monkeypatch, 7)
    lines = reported(train_runs([config], options(said), names=["a"]))
    assert [line for line in lines if "finished" in line] == lines[-1:]
    stored = manifest("a")
    assert stored.status == "finished"
    (rollback,) = stored.rollbacks
    assert (rollback.diverged_at, rollback.resumed_from, rollback.tensor) == (8, 6, "the weight lm_head.weight")
    assert "resumes from step 6 with half the learning rate (1 of 3 times)" in said[-1]

    list(train_runs([config], TrainOptions(runs_dir=RUNS, device="cpu"), names=["plain"]))
    for ours, theirs in zip(rows("a"), rows("plain"), strict=True):
        factor = 0.5 if int(ours["Step"]) > 6 else 1.0
        assert float(ours["LR"]) == pytest.approx(factor * float(theirs["LR"]))
        if int(ours["Step"]) <= 6:
            assert ours["HeldOutLoss"] == theirs["HeldOutLoss"]
    # a verdict counts its config as diverged
    assert load_run(RUNS / "a.csv").diverged_at == 8


def test_a_pack_does_not_finish_a_run_that_it_rolled_back(
    tiny_config: TinyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = [tiny_config(seed=seed) for seed in range(3)]
    names = [config.run_name for config in configs]
    spoil_once(monkeypatch, 7, run=1)
    lines = reported(sweep_runs(configs, options(), pack=3))
    assert [line.partition(":")[0] for line in lines if "finished" in line] == [names[0], names[2], names[1]]
    assert [manifest(name).status for name in names] == ["finished"] * 3


def test_a_run_from_a_named_checkpoint_goes_back_to_it(
    train: Train, tiny_config: TinyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tiny_config(), names=["a"], stop_after=6, checkpoint_every=3)
    # its own checkpoint is older
    named = checkpoint.path_of(RUNS / "a" / "checkpoints", 6).rename("named")
    spoil_once(monkeypatch, 7)
    chosen = replace(options(), resume=named, checkpoint_every=100)
    list(train_runs([tiny_config()], chosen, names=["a"]))
    stored = manifest("a")
    assert (stored.status, [rollback.resumed_from for rollback in stored.rollbacks]) == ("finished", [6])


def test_rollbacks_are_bounded(tiny_config: TinyConfig) -> None:
    config, said = tiny_config(**ABSURD), list[str]()
    events = list(train_runs([config], options(said), names=["a"]))
    stored = manifest("a")
    assert stored.status == "diverged"
    assert len(stored.rollbacks) == MAX_ROLLBACKS
    assert sum("half the learning rate" in text for text in said) == MAX_ROLLBACKS
    assert sum(isinstance(event, Diverged) for event in events) == 1


def test_a_sweep_resumes_a_rolled_back_run(tiny_config: TinyConfig) -> None:
    configs = [tiny_config(), tiny_config(seed=1, **ABSURD), tiny_config(seed=2)]
    events = list(sweep_runs(configs, options(), pack=3))
    statuses = [manifest(config.run_name).status for config in configs]
    assert statuses == ["finished", "diverged", "finished"]
    assert len(manifest(configs[1].run_name).rollbacks) == MAX_ROLLBACKS
    assert any(isinstance(event, Saved) for event in events)


def test_the_command_line_rolls_back(tiny_text: Path) -> None:
    arguments = ["train", "--recipe", "quick", "--steps", "6", "--name", "a", "--checkpoint-every", "2"]
    settings = {
        "data.source": f"file:{tiny_text}",
        "data.tokenizer": "bpe:300",
        "model.hidden_size": 32,
        "probe.positions": 128,
        "schedule.peak_learning_rate": "1e38",
        "schedule.warmup_steps": 0,
        "optimizer.max_norm": "none",
    }
    for name, value in settings.items():
        arguments += ["--set", f"{name}={value}"]
    done = call(*arguments, "--on-divergence", "rollback")
    assert done.code == ExitCode.REFUTED
    assert done.err.count("half the learning rate") == MAX_ROLLBACKS
    assert manifest("a").status == "diverged"
    again = call(*arguments, "--on-divergence", "rollback")
    assert again.code == ExitCode.REFUTED
    assert again.err == "a: already diverged, nothing to train; remove runs/a and runs/a.csv to train it anew\n"
    refused = call(*arguments, "--on-divergence", "ignore")
    assert refused.code == ExitCode.USAGE
    assert "take stop or rollback" in refused.err
