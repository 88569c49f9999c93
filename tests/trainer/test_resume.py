"""A run that was stopped or killed and goes on is the run that was left alone, bit for bit."""

import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from training import open_trainer, sweep_runs

from bitnetctl.config import InterventionSpec, RunConfig
from bitnetctl.errors import CheckpointError, ConfigError, RecordError, RunEndedError, StorageError
from bitnetctl.intervention import Intervention, InterventionSettings
from bitnetctl.plugins import registry
from bitnetctl.plugins.composition import Composition
from bitnetctl.records import RecordWriter, read, read_manifest, write_manifest
from bitnetctl.trainer import checkpoint
from bitnetctl.trainer.checkpoint import Checkpoint
from bitnetctl.trainer.events import Event, Failed, Started, Stopped
from bitnetctl.trainer.options import TrainOptions
from bitnetctl.trainer.resolved import resolve

TinyConfig = Callable[..., RunConfig]
Train = Callable[..., list[Event]]
Figures = Callable[[Path], list[bytes]]

RUNS, UNDISTURBED = Path("runs"), Path("undisturbed")


def saved(folder: Path, name: str, step: int) -> Checkpoint:
    return checkpoint.load(checkpoint.path_of(folder / name / "checkpoints", step))


def assert_equal(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert ours
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name


@pytest.fixture
def assert_undisturbed(figures: Figures) -> Callable[..., None]:
    """Compare finished runs with the undisturbed ones: every byte of the figures, every bit of the weights."""

    def check(*names: str, steps: int = 12) -> None:
        for name in names:
            assert figures(RUNS / f"{name}.csv") == figures(UNDISTURBED / f"{name}.csv")
            assert_equal(saved(RUNS, name, steps).model, saved(UNDISTURBED, name, steps).model)
            found = read_manifest(RUNS / name)
            assert found is not None
            assert (found.status, found.steps_done) == ("finished", steps)

    return check


def assert_same_state(ours: Checkpoint, theirs: Checkpoint) -> None:
    """Compare all that a run goes on from; of the rows, all but the measured speed."""
    assert_equal(ours.model, theirs.model)
    assert_equal(ours.optimizer, theirs.optimizer)
    assert_equal(ours.codes, theirs.codes)
    assert (ours.step, ours.interventions) == (theirs.step, theirs.interventions)
    rows = [[line.rpartition(b",")[0] for line in state.records.splitlines()] for state in (ours, theirs)]
    assert rows[0] == rows[1]
    assert len(rows[0]) > 1


def start_of(events: list[Event]) -> int:
    assert isinstance(events[0], Started)
    return events[0].start_step


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


# stopped and resumed


@pytest.mark.parametrize("stop", range(1, 12))
def test_a_stop_after_any_step_changes_nothing(
    train: Train, tiny_config: TinyConfig, assert_undisturbed: Callable[..., None], stop: int
) -> None:
    config = tiny_config(data__order="shuffled", seed=4)
    train(config, names=["a"], runs_dir=UNDISTURBED)
    events = train(config, names=["a"], stop_after=stop)
    assert events[-1] == Stopped(step=stop)
    assert start_of(train(config, names=["a"])) == stop
    assert_undisturbed("a")


@pytest.mark.parametrize("stop", [1, 4, 7, 11])
def test_a_pack_of_two_resumes_alike(
    train: Train, tiny_config: TinyConfig, assert_undisturbed: Callable[..., None], stop: int
) -> None:
    configs = [tiny_config(seed=4), tiny_config(seed=5, data__order="shuffled", optimizer__name="adamw")]
    train(configs, names=["a", "b"], runs_dir=UNDISTURBED)
    train(configs, names=["a", "b"], stop_after=stop)
    assert start_of(train(configs, names=["a", "b"])) == stop
    assert_undisturbed("a", "b")


def test_a_run_stopped_at_every_step_arrives(
    train: Train, tiny_config: TinyConfig, assert_undisturbed: Callable[..., None]
) -> None:
    config = tiny_config(arm="adaptive-clipping+momentum-reset:every=5+label-smoothing")
    train(config, names=["a"], runs_dir=UNDISTURBED)
    for step in range(12):
        assert start_of(train(config, names=["a"], stop_after=1)) == step
    assert_undisturbed("a")


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_moments_and_codes_in_between_are_the_same(train: Train, tiny_config: TinyConfig, name: str) -> None:
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
    """Gradients that shrink with every call: state that the step alone does not tell."""

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
    train: Train, tiny_config: TinyConfig, assert_undisturbed: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def compose(specs: object) -> Composition:
        return Composition([Tiring(InterventionSettings()), Intervention(InterventionSettings())])

    monkeypatch.setattr(registry, "compose", compose)
    train(tiny_config(), names=["a"], runs_dir=UNDISTURBED)
    train(tiny_config(), names=["a"], stop_after=5)
    assert saved(RUNS, "a", 5).interventions == [{"calls": 5}, {}]
    train(tiny_config(), names=["a"])
    assert_undisturbed("a")


# what a run may be made of: every optimizer and order, interventions with and without state
ARMS = ("", "adaptive-clipping+momentum-reset:every=5+label-smoothing", "fp-first+wd-schedule:stage2=0.05")


# in the warm-up (1, 2), at a row (4), at the boundary of the stages (6) and around it, before the last step
@pytest.mark.parametrize("cut", range(1, 11))
def test_the_whole_state_after_a_cut_is_that_without_one(
    train: Train, tiny_config: TinyConfig, monkeypatch: pytest.MonkeyPatch, cut: int
) -> None:
    """A pack with state of every kind: moments, codes, an intervention that counts, the place in shuffled data."""
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
    # what others draw from the global generators in between is nothing to the run
    for seed in (torch.manual_seed, random.seed, np.random.seed):
        seed(cut)
    assert start_of(train(configs, names=names, stop_after=11 - cut)) == cut
    for name in names:
        assert_same_state(saved(RUNS, name, 11), saved(UNDISTURBED, name, 11))
    assert saved(RUNS, "a", 11).interventions == [{"calls": 11}]


# figures of single precision, in another pack or none: int8 roundings may fall differently
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


def test_a_finished_run_is_left_as_it_is(
    train: Train, tiny_config: TinyConfig, assert_undisturbed: Callable[..., None]
) -> None:
    for folder in (RUNS, UNDISTURBED):
        train(tiny_config(), names=["a"], runs_dir=folder)
    csv = (RUNS / "a.csv").read_bytes()
    with pytest.raises(RunEndedError, match="a: already finished, nothing to train"):
        train(tiny_config(), names=["a"])
    assert (RUNS / "a.csv").read_bytes() == csv
    assert_undisturbed("a")


# killed and resumed


@pytest.mark.parametrize(
    "torn", [b"", b"9", b"9,3.5,17,0.001", b"9,3.5,17,0.001,0.1,\xff"], ids=["none", "step", "half", "bytes"]
)
def test_rows_after_the_checkpoint_are_made_again(
    train: Train, tiny_config: TinyConfig, assert_undisturbed: Callable[..., None], figures: Figures, torn: bytes
) -> None:
    config = tiny_config(probe__eval_every_steps=2)
    train(config, names=["a"], runs_dir=UNDISTURBED, checkpoint_every=5)
    with pytest.raises(SystemError):
        train(config, names=["a"], crash_after=9, checkpoint_every=5)
    # rows at 6 and 8, the last checkpoint at 5
    assert len(figures(RUNS / "a.csv")) == 1 + 5
    with (RUNS / "a.csv").open("ab") as file:
        file.write(torn)
    events = train(config, names=["a"], stop_after=1, checkpoint_every=5)
    assert start_of(events) == 5
    assert figures(RUNS / "a.csv") == figures(UNDISTURBED / "a.csv")[: 1 + 4]
    train(config, names=["a"], checkpoint_every=5)
    assert_undisturbed("a")


def test_a_kill_before_the_first_checkpoint_starts_over(
    train: Train, tiny_config: TinyConfig, assert_undisturbed: Callable[..., None]
) -> None:
    train(tiny_config(), names=["a"], runs_dir=UNDISTURBED)
    with pytest.raises(SystemError):
        train(tiny_config(), names=["a"], crash_after=3)
    assert (RUNS / "a.csv").read_bytes().count(b"\n") == 2
    assert start_of(train(tiny_config(), names=["a"])) == 0
    assert_undisturbed("a")


def test_a_pack_resumes_where_all_its_runs_can(
    train: Train, tiny_config: TinyConfig, assert_undisturbed: Callable[..., None]
) -> None:
    configs = [tiny_config(seed=4), tiny_config(seed=5)]
    train(configs, names=["a", "b"], runs_dir=UNDISTURBED)
    with pytest.raises(SystemError):
        train(configs, names=["a", "b"], crash_after=11, checkpoint_every=3)
    # killed between the saves of its members
    shutil.rmtree(checkpoint.path_of(RUNS / "b" / "checkpoints", 9))
    notices: list[str] = []
    assert start_of(train(configs, names=["a", "b"], log=notices.append)) == 6
    assert notices == []
    assert_undisturbed("a", "b")


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "codes.safetensors"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    train: Train, tiny_config: TinyConfig, assert_undisturbed: Callable[..., None], file: str
) -> None:
    train(tiny_config(), names=["a"], runs_dir=UNDISTURBED)
    train(tiny_config(), names=["a"], stop_after=7, checkpoint_every=3)
    damage(checkpoint.path_of(RUNS / "a" / "checkpoints", 7) / file)
    notices: list[str] = []
    assert start_of(train(tiny_config(), names=["a"], log=notices.append)) == 6
    (log,) = notices
    assert "step-00000007" in log
    assert file in log
    assert_undisturbed("a")


def test_what_a_run_went_back_behind_does_not_outlive_good_checkpoints(
    train: Train, tiny_config: TinyConfig, assert_undisturbed: Callable[..., None]
) -> None:
    train(tiny_config(), names=["a"], runs_dir=UNDISTURBED)
    train(tiny_config(), names=["a"], stop_after=9, checkpoint_every=3)
    folder = RUNS / "a" / "checkpoints"
    damage(checkpoint.path_of(folder, 9) / "model.safetensors")
    # two more saves before the damaged step: it must not push out the good ones
    assert start_of(train(tiny_config(), names=["a"], stop_after=1)) == 6
    assert checkpoint.steps(folder) == [6, 7]
    assert start_of(train(tiny_config(), names=["a"], stop_after=1)) == 7
    assert checkpoint.steps(folder) == [7, 8]
    train(tiny_config(), names=["a"])
    assert_undisturbed("a")


def test_a_run_set_back_with_its_pack_misses_no_row_alone(
    train: Train, tiny_config: TinyConfig, figures: Figures
) -> None:
    configs = [tiny_config(seed=seed, probe__eval_every_steps=2) for seed in (4, 5)]
    with pytest.raises(SystemError):
        train(configs, names=["a", "b"], crash_after=11, checkpoint_every=3)
    shutil.rmtree(checkpoint.path_of(RUNS / "b" / "checkpoints", 9))
    # the pack goes on from 6, and dies before it saves again
    with pytest.raises(SystemError):
        train(configs, names=["a", "b"], crash_after=1, checkpoint_every=3)
    assert start_of(train(configs[:1], names=["a"])) == 6
    steps = [int(row.partition(b",")[0]) for row in figures(RUNS / "a.csv")[1:]]
    assert steps == [1, 2, 4, 6, 8, 10, 12]


def change(csv: Path, step: int, bit: int = 1) -> None:
    """Change a digit of a row's loss: with the lowest bit to another one, which no reader can see."""
    lines = csv.read_bytes().splitlines(keepends=True)
    (place,) = [place for place, line in enumerate(lines) if line.startswith(b"%d," % step)]
    line = bytearray(lines[place])
    line[line.index(b".") + 1] ^= bit
    csv.write_bytes(b"".join([*lines[:place], line, *lines[place + 1 :]]))


@pytest.mark.parametrize("bit", [1, 64], ids=["digit", "letter"])
def test_a_changed_row_gives_way_to_the_checkpoint_before_it(
    train: Train, tiny_config: TinyConfig, assert_undisturbed: Callable[..., None], bit: int
) -> None:
    train(tiny_config(), names=["a"], runs_dir=UNDISTURBED)
    train(tiny_config(), names=["a"], stop_after=9, checkpoint_every=3)
    change(RUNS / "a.csv", 8, bit)
    notices: list[str] = []
    assert start_of(train(tiny_config(), names=["a"], log=notices.append)) == 6
    (log,) = notices
    assert "step-00000009: the rows of " in log
    assert_undisturbed("a")


def test_a_changed_row_that_all_checkpoints_count_on_is_not_trained_over(
    train: Train, tiny_config: TinyConfig, assert_undisturbed: Callable[..., None]
) -> None:
    train(tiny_config(), names=["a"], runs_dir=UNDISTURBED)
    train(tiny_config(), names=["a"], stop_after=9, checkpoint_every=3)
    change(RUNS / "a.csv", 1)
    csv = (RUNS / "a.csv").read_bytes()
    notices: list[str] = []
    with pytest.raises(CheckpointError, match="no checkpoint of run a can be used"):
        train(tiny_config(), names=["a"], log=notices.append)
    assert (RUNS / "a.csv").read_bytes() == csv
    # the copy that the notice names makes it good
    copy = checkpoint.path_of(RUNS / "a" / "checkpoints", 9) / "records.csv"
    assert str(copy) in notices[0]
    shutil.copy(copy, RUNS / "a.csv")
    assert start_of(train(tiny_config(), names=["a"])) == 9
    assert_undisturbed("a")


def test_a_missing_row_is_missed_beside_a_checkpoint_from_elsewhere(
    train: Train, tiny_config: TinyConfig, tmp_path: Path
) -> None:
    train(tiny_config(), names=["a"], stop_after=9, checkpoint_every=3)
    elsewhere = tmp_path / "backup" / "a" / "step-00000009"
    shutil.copytree(checkpoint.path_of(RUNS / "a" / "checkpoints", 9), elsewhere)
    csv = RUNS / "a.csv"
    rows = csv.read_bytes()
    csv.write_bytes(b"".join(rows.splitlines(keepends=True)[:-1]))
    with pytest.raises(CheckpointError, match=r"the rows of .* are not those that were saved with it"):
        train(tiny_config(), names=["a"], resume=elsewhere)
    csv.write_bytes(rows)
    assert start_of(train(tiny_config(), names=["a"], resume=elsewhere)) == 9


def test_figures_that_changed_after_the_end_are_told(train: Train, tiny_config: TinyConfig) -> None:
    config = tiny_config()
    train(config, names=["a"])
    assert resolve(config, RUNS, "a").ended() is not None
    change(RUNS / "a.csv", 8)
    with pytest.raises(RecordError, match=r"a\.csv: damaged or edited since the run ended"):
        resolve(config, RUNS, "a").ended()


def test_no_flipped_bit_of_a_manifest_goes_unnoticed(train: Train, tiny_config: TinyConfig) -> None:
    train(tiny_config(), names=["a"])
    sound, path = read_manifest(RUNS / "a"), RUNS / "a" / "run.json"
    content = path.read_bytes()
    refusals = 0
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            # white space between the tokens of JSON means nothing
            assert read_manifest(RUNS / "a") == sound
        except RecordError:
            refusals += 1
    assert refusals > 0.7 * len(content)


def test_leftovers_of_a_kill_are_swept(
    train: Train, tiny_config: TinyConfig, assert_undisturbed: Callable[..., None]
) -> None:
    train(tiny_config(), names=["a"], runs_dir=UNDISTURBED)
    train(tiny_config(), names=["a"], stop_after=5)
    leftovers = [RUNS / ".a.csv.0123abcd", RUNS / "a" / ".run.json.0123abcd", RUNS / "a" / "checkpoints" / ".aside-1"]
    for leftover in leftovers[:2]:
        leftover.write_bytes(b"half")
    leftovers[2].mkdir()
    theirs = RUNS / ".ab.csv.0123abcd"
    theirs.write_bytes(b"of another run")
    train(tiny_config(), names=["a"])
    assert not any(leftover.exists() for leftover in leftovers)
    assert theirs.exists()
    assert_undisturbed("a")


def test_a_run_is_let_go_even_if_its_csv_cannot_be_closed(
    train: Train, tiny_config: TinyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(writer: RecordWriter) -> None:
        raise StorageError("the disk is gone")

    with monkeypatch.context() as patch:
        patch.setattr(RecordWriter, "close", refuse)
        with pytest.raises(StorageError, match="the disk is gone"):
            train(tiny_config(), names=["a"], stop_after=4)
    assert start_of(train(tiny_config(), names=["a"])) == 4


def test_without_a_sound_checkpoint_nothing_is_overwritten(train: Train, tiny_config: TinyConfig) -> None:
    train(tiny_config(), names=["a"], stop_after=7, checkpoint_every=3)
    for step in (6, 7):
        damage(checkpoint.path_of(RUNS / "a" / "checkpoints", step) / "model.safetensors")
    csv = (RUNS / "a.csv").read_bytes()
    notices: list[str] = []
    with pytest.raises(CheckpointError, match="no checkpoint of run a can be used"):
        train(tiny_config(), names=["a"], log=notices.append)
    assert len(notices) == 2
    assert (RUNS / "a.csv").read_bytes() == csv
    assert checkpoint.steps(RUNS / "a" / "checkpoints") == [6, 7]


def test_rows_that_are_gone_are_missed(train: Train, tiny_config: TinyConfig) -> None:
    train(tiny_config(), names=["a"], stop_after=7)
    (RUNS / "a.csv").unlink()
    with pytest.raises(RecordError, match="rows up to step 7 are gone"):
        train(tiny_config(), names=["a"])


# refused


def test_another_text_is_refused(train: Train, tiny_config: TinyConfig, tiny_text: Path, tmp_path: Path) -> None:
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
    # restored, it goes on
    text.write_text(words, encoding="utf-8")
    assert start_of(train(config, names=["a"])) == 5


def test_a_given_checkpoint_is_where_the_run_goes_on(
    train: Train, tiny_config: TinyConfig, assert_undisturbed: Callable[..., None]
) -> None:
    train(tiny_config(), names=["a"], runs_dir=UNDISTURBED)
    train(tiny_config(), names=["a"], stop_after=7, checkpoint_every=3)
    path = checkpoint.path_of(RUNS / "a" / "checkpoints", 6)
    assert start_of(train(tiny_config(), names=["a"], resume=path)) == 6
    assert_undisturbed("a")


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


def test_an_interrupted_preparation_claims_nothing(tiny_config: TinyConfig, tmp_path: Path) -> None:
    config = tiny_config(data__source=f"file:{tmp_path / 'none.txt'}")
    with pytest.raises(ConfigError), open_trainer([config], TrainOptions(runs_dir=RUNS), names=["a"]):
        pass
    assert not RUNS.exists()


def test_a_sweep_that_cannot_resume_keeps_what_is_there(
    train: Train, tiny_config: TinyConfig, assert_undisturbed: Callable[..., None]
) -> None:
    config = tiny_config()
    name = config.run_name
    train(config, runs_dir=UNDISTURBED)
    train(config, stop_after=5)
    csv = (RUNS / f"{name}.csv").read_bytes()
    before = read_manifest(RUNS / name)
    assert before is not None
    write_manifest(RUNS / name, before.model_copy(update={"elapsed_seconds": 1000.0}))
    folder = checkpoint.path_of(RUNS / name / "checkpoints", 4)
    for step in (4, 5):
        checkpoint.path_of(RUNS / name / "checkpoints", step).rename(RUNS / name / f"away-{step}")
    # a checkpoint that is there and cannot be used
    folder.mkdir()
    events = list(sweep_runs([config], TrainOptions(runs_dir=RUNS, device="cpu"), pack=1))
    assert isinstance(events[-1], Failed)
    found = read_manifest(RUNS / name)
    assert found is not None
    assert found.status == "failed"
    assert "no checkpoint" in (found.message or "")
    assert 1000 <= found.elapsed_seconds < 1600
    assert (RUNS / f"{name}.csv").read_bytes() == csv

    # mended, it goes on
    folder.rmdir()
    (RUNS / name / "away-5").rename(checkpoint.path_of(RUNS / name / "checkpoints", 5))
    list(sweep_runs([config], TrainOptions(runs_dir=RUNS, device="cpu"), pack=1))
    assert_undisturbed(name)
