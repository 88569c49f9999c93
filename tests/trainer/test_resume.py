"""A run that was stopped and resumed is the undisturbed run, bit for bit."""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from configs import TinyConfig
from run_files import (
    RUNS,
    UNDISTURBED,
    Train,
    assert_equal,
    assert_same_state,
    assert_undisturbed,
    saved,
    start_of,
)
from torch import Tensor
from training import open_trainer

from bitnetctl import checkpoint
from bitnetctl.config import InterventionSpec
from bitnetctl.errors import CheckpointError, ConfigError, RunEndedError
from bitnetctl.intervention import Intervention, InterventionSettings
from bitnetctl.plugins import registry
from bitnetctl.plugins.composition import Composition
from bitnetctl.records import read
from bitnetctl.trainer.events import Stopped
from bitnetctl.trainer.options import TrainOptions


@pytest.mark.parametrize("stop", range(1, 12))
def test_a_stop_after_any_step_changes_nothing(train: Train, tiny_config: TinyConfig, stop: int) -> None:
    config = tiny_config(data__order="shuffled", seed=4)
    train(config, names=["a"], runs_dir=UNDISTURBED)
    events = train(config, names=["a"], stop_after=stop)
    assert events[-1] == Stopped(step=stop)
    assert start_of(train(config, names=["a"])) == stop
    assert_undisturbed("a")


@pytest.mark.parametrize("stop", [1, 4, 7, 11])
def test_a_pack_of_two_resumes_alike(train: Train, tiny_config: TinyConfig, stop: int) -> None:
    configs = [tiny_config(seed=4), tiny_config(seed=5, data__order="shuffled", optimizer__name="adamw")]
    train(configs, names=["a", "b"], runs_dir=UNDISTURBED)
    train(configs, names=["a", "b"], stop_after=stop)
    assert start_of(train(configs, names=["a", "b"])) == stop
    assert_undisturbed("a", "b")


def test_a_run_stopped_at_every_step_finishes(train: Train, tiny_config: TinyConfig) -> None:
    config = tiny_config(arm="adaptive-clipping+momentum-reset:every=5+label-smoothing")
    train(config, names=["a"], runs_dir=UNDISTURBED)
    for step in range(12):
        assert start_of(train(config, names=["a"], stop_after=1)) == step
    assert_undisturbed("a")


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_moments_and_codes_in_a_checkpoint_are_the_same(train: Train, tiny_config: TinyConfig, name: str) -> None:
    config = tiny_config(optimizer__name=name)
    train(config, names=["a"], runs_dir=UNDISTURBED, stop_after=9)
    for steps in (2, 4, 3):
        train(config, names=["a"], stop_after=steps)
    ours, theirs = saved(RUNS, "a", 9), saved(UNDISTURBED, "a", 9)
    assert {path.rpartition("/")[2] for path in theirs.optimizer} == {"step", "exp_avg", "exp_avg_sq"}
    assert theirs.optimizer["head/step"] == 9
    assert_equal(ours.optimizer, theirs.optimizer)
    assert_equal(ours.model, theirs.model)
    assert_equal(ours.codes, theirs.codes)


class Tiring(Intervention):
    """Shrink gradients with every call: state that does not follow from the step."""

    def __init__(self, settings: InterventionSettings) -> None:
        super().__init__(settings)
        self.calls = 0

    def transform_gradients(self, parameters: Mapping[str, Tensor]) -> None:
        self.calls += 1
        for parameter in parameters.values():
            assert parameter.grad is not None
            parameter.grad.div_(self.calls)

    def state_dict(self) -> dict[str, Any]:
        return {"calls": self.calls}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.calls = state["calls"]


def test_the_state_of_interventions_is_restored(
    train: Train, tiny_config: TinyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compose(specs: object) -> Composition:
        return Composition([Tiring(InterventionSettings()), Intervention(InterventionSettings())])

    monkeypatch.setattr(registry, "compose", compose)
    train(tiny_config(), names=["a"], runs_dir=UNDISTURBED)
    train(tiny_config(), names=["a"], stop_after=5)
    assert saved(RUNS, "a", 5).interventions == [{"calls": 5}, {}]
    train(tiny_config(), names=["a"])
    assert_undisturbed("a")


# every optimizer and order, interventions with and without state
ARMS = ("", "adaptive-clipping+momentum-reset:every=5+label-smoothing", "fp-first+wd-schedule:stage2=0.05")


# in the warm-up (1, 2), at a row (4), at the boundary of the stages (6) and around it, before the last step
@pytest.mark.parametrize("cut", range(1, 11))
def test_the_whole_state_after_a_stop_is_that_without_one(
    train: Train, tiny_config: TinyConfig, monkeypatch: pytest.MonkeyPatch, cut: int
) -> None:
    """A pack with state of every kind: moments, codes, an intervention that counts, the position in shuffled data."""
    compose = registry.compose

    def with_counter(specs: Sequence[InterventionSpec]) -> Composition:
        return compose(specs) if specs else Composition([Tiring(InterventionSettings())])

    monkeypatch.setattr(registry, "compose", with_counter)
    orders, optimizers = ("shuffled", "sequential", "shuffled"), ("adamw", "adam", "adam")
    configs = [
        tiny_config(arm=arm, seed=seed, data__order=order, optimizer__name=name)
        for seed, (arm, order, name) in enumerate(zip(ARMS, orders, optimizers, strict=True))
    ]
    assert configs[0].boundary_step == 6
    names = ["a", "b", "c"]
    train(configs, names=names, runs_dir=UNDISTURBED, stop_after=11)
    train(configs, names=names, stop_after=cut)
    # draws of others from the global generators must not change the run
    for seed in (torch.manual_seed, random.seed, np.random.seed):
        seed(cut)
    assert start_of(train(configs, names=names, stop_after=11 - cut)) == cut
    for name in names:
        assert_same_state(saved(RUNS, name, 11), saved(UNDISTURBED, name, 11))
    assert saved(RUNS, "a", 11).interventions == [{"calls": 11}]


# between single precision in different packs: int8 roundings may differ
OTHER_PACK = 1e-2


@pytest.mark.parametrize("cut", [2, 6, 9])
def test_another_pack_agrees_within_a_tolerance(train: Train, tiny_config: TinyConfig, cut: int) -> None:
    configs = [tiny_config(seed=seed, data__order="shuffled") for seed in (4, 5, 6)]
    names = ["a", "b", "c"]
    train(configs, names=names, runs_dir=UNDISTURBED)
    train(configs, names=names, stop_after=cut)
    train(configs[:1], names=["a"])
    train(configs[1:], names=["b", "c"])
    for name in names:
        ours, theirs = (read(folder / f"{name}.csv").frame for folder in (RUNS, UNDISTURBED))
        assert ours["Step"].tolist() == theirs["Step"].tolist() == [1, 4, 8, 12]
        for column in ("Loss", "HeldOutLoss", "GradNorm"):
            assert np.abs(ours[column] - theirs[column]).max() < OTHER_PACK
        weights = saved(RUNS, name, 12).model
        for key, weight in saved(UNDISTURBED, name, 12).model.items():
            assert (weights[key] - weight).abs().max() < OTHER_PACK


def test_a_finished_run_is_left_as_it_is(train: Train, tiny_config: TinyConfig) -> None:
    for folder in (RUNS, UNDISTURBED):
        train(tiny_config(), names=["a"], runs_dir=folder)
    csv = (RUNS / "a.csv").read_bytes()
    with pytest.raises(RunEndedError, match="a: already finished, nothing to train"):
        train(tiny_config(), names=["a"])
    assert (RUNS / "a.csv").read_bytes() == csv
    assert_undisturbed("a")


# given checkpoints, and what is refused


def test_a_changed_text_is_refused(train: Train, tiny_config: TinyConfig, tiny_text: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    words = tiny_text.read_text(encoding="utf-8")[:40_000]
    text.write_text(words, encoding="utf-8")
    config = tiny_config(data__source=f"file:{text}")
    train(config, names=["a"], stop_after=5)
    csv = (RUNS / "a.csv").read_bytes()
    text.write_text(words[:20_000] + "X" + words[20_001:], encoding="utf-8")
    with pytest.raises(CheckpointError, match="text or tokenizer changed"):
        train(config, names=["a"])
    assert (RUNS / "a.csv").read_bytes() == csv
    # restored, it resumes
    text.write_text(words, encoding="utf-8")
    assert start_of(train(config, names=["a"])) == 5


def test_a_run_resumes_from_a_given_checkpoint(train: Train, tiny_config: TinyConfig) -> None:
    train(tiny_config(), names=["a"], runs_dir=UNDISTURBED)
    train(tiny_config(), names=["a"], stop_after=7, checkpoint_every=3)
    path = checkpoint.path_of(RUNS / "a" / "checkpoints", 6)
    assert start_of(train(tiny_config(), names=["a"], resume=path)) == 6
    assert_undisturbed("a")


def test_a_run_under_another_name_begins_with_the_rows_of_a_given_checkpoint(
    train: Train, tiny_config: TinyConfig
) -> None:
    train(tiny_config(), names=["b"], runs_dir=UNDISTURBED)
    train(tiny_config(), names=["a"], stop_after=7, checkpoint_every=3)
    before = (RUNS / "a.csv").read_bytes()
    path = checkpoint.path_of(RUNS / "a" / "checkpoints", 7)
    assert start_of(train(tiny_config(), names=["b"], resume=path)) == 7
    assert (RUNS / "b.csv").read_bytes().startswith(before)
    assert (RUNS / "a.csv").read_bytes() == before
    assert_undisturbed("b")


def test_a_checkpoint_of_another_config_is_refused(train: Train, tiny_config: TinyConfig) -> None:
    train(tiny_config(), names=["a"], stop_after=4)
    path = checkpoint.path_of(RUNS / "a" / "checkpoints", 4)
    with pytest.raises(CheckpointError, match="belongs to another config"):
        train(tiny_config(seed=1), names=["b"], resume=path)
    assert not (RUNS / "b.csv").exists()


def test_a_checkpoint_of_a_finished_run_is_refused(train: Train, tiny_config: TinyConfig) -> None:
    train(tiny_config(), names=["a"])
    path = checkpoint.path_of(RUNS / "a" / "checkpoints", 12)
    with pytest.raises(CheckpointError, match="nothing to resume"):
        train(tiny_config(), names=["b"], resume=path)


def test_a_checkpoint_that_is_not_there_is_refused(train: Train, tiny_config: TinyConfig, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere: state\.json is missing"):
        train(tiny_config(), names=["a"], resume=tmp_path / "nowhere")


def test_never_resume_refuses_what_is_there(train: Train, tiny_config: TinyConfig) -> None:
    train(tiny_config(), names=["a"], stop_after=4, resume="never")
    csv = (RUNS / "a.csv").read_bytes()
    with pytest.raises(ConfigError, match="run a exists"):
        train(tiny_config(), names=["a"], resume="never")
    # either half of it is enough
    for away in (RUNS / "a.csv", RUNS / "a" / "checkpoints"):
        away.rename("elsewhere")
        with pytest.raises(ConfigError, match="run a exists"):
            train(tiny_config(), names=["a"], resume="never")
        Path("elsewhere").rename(away)
    assert (RUNS / "a.csv").read_bytes() == csv


def test_a_failed_preparation_creates_nothing(tiny_config: TinyConfig, tmp_path: Path) -> None:
    config = tiny_config(data__source=f"file:{tmp_path / 'none.txt'}")
    with pytest.raises(ConfigError), open_trainer([config], TrainOptions(runs_dir=RUNS), names=["a"]):
        pass
    assert not RUNS.exists()
