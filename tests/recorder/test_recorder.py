"""The recorder's rows, manifest, warnings and resume, and what the judging commands say of its runs."""

import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from torch import Tensor

from bitnetctl.errors import ConfigError, RecordError, RunBusyError
from bitnetctl.recorder import HealthChange, HeldOutProbe, Recorder
from bitnetctl.records import NAMES, read_manifest
from bitnetctl.records.collapse import Health
from bitnetctl.records.load import load_run
from runs import VOCAB, Model, make_probe


def healthy(x: Tensor) -> Tensor:
    """Predict the token that was read, a little."""
    return torch.nn.functional.one_hot(x, VOCAB).float() * 0.1 + torch.arange(VOCAB).lt(40) * 1.0


def dead(x: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(x * 0 + 7, VOCAB).float()


def broken(x: Tensor) -> Tensor:
    return torch.full((*x.shape, VOCAB), math.nan)


def recorder(path: Path | str = "runs/a.csv", probe: HeldOutProbe | None = None, **settings: Any) -> Recorder:
    known: dict[str, Any] = {"arm": "muon", "seed": 3, "size": 64, "steps": 6} | settings
    return Recorder(path, probe=probe or make_probe(), **known)


def rows(recording: Recorder, *models: Model, start: int = 1) -> None:
    for step, model in enumerate(models, start):
        recording.record(step, model, loss=3.0, learning_rate=0.1, weight_decay=0.01)


def manifest(path: str = "runs/a") -> dict[str, Any]:
    tree = json.loads(Path(path, "run.json").read_text(encoding="utf-8"))
    assert isinstance(tree, dict)
    return tree


def test_a_row_has_what_was_given_and_measured() -> None:
    codes = {"up": torch.tensor([[0, 1], [-1, 1]]), "down": torch.tensor([1, 1, 0, 0])}
    with recorder(steps=2, boundary_step=1, settings={"lr": 0.1}, trainer="loop 1") as recording:
        first = recording.record(
            1,
            healthy,
            loss=torch.tensor(3.5, requires_grad=True),
            learning_rate=np.float32(0.5),
            weight_decay=0,
            gradient_norm=2.0,
            objective=4.0,
            tokens_per_second=100,
            ternary_codes=lambda: codes,
        )
        codes = {"up": torch.tensor([[0, 1], [1, 1]]), "down": torch.tensor([0, 1, 0, 0])}
        second = recording.record(2, healthy, ternary_codes=codes)
    assert (first["Loss"], first["LR"], first["WD"], first["GradNorm"], first["Objective"]) == (3.5, 0.5, 0, 2.0, 4.0)
    assert (first["ZeroFraction"], first["FlipRate"]) == (3 / 8, None)
    assert (second["ZeroFraction"], second["FlipRate"]) == (4 / 8, 2 / 8)
    assert (second["Loss"], second["GradNorm"]) == (None, None)
    assert first["ProbePositions"] == 96
    run = load_run(Path("runs/a.csv"))
    assert run.row(0) == pytest.approx({name: first.get(name) for name in NAMES}, nan_ok=True)
    assert run.row(1) == pytest.approx({name: second.get(name) for name in NAMES}, nan_ok=True)
    assert (run.arm, run.seed, run.size, run.planned_steps, run.boundary_step) == ("muon", 3, 64, 2, 1)
    assert (run.config, run.is_complete, run.diverged_at) == (None, True, None)
    tree = manifest()
    assert (tree["status"], tree["steps_done"], tree["config"]) == ("finished", 2, None)
    assert tree["external"]["trainer"] == "loop 1"
    assert tree["external"]["settings"] == {"lr": 0.1}
    assert tree["data"]["probe_fingerprint"] == make_probe().fingerprint
    assert tree["versions"]["torch"] == torch.__version__
    assert tree["device"].startswith("cpu (")
    assert tree["sessions"][0]["device"] == tree["device"]
    assert tree["planned"] == {"seeds": [3], "arms": ["muon"]}


def test_what_is_not_told_is_unknown() -> None:
    with Recorder("b.csv", probe=make_probe()) as recording:
        rows(recording, healthy, healthy)
    run = load_run(Path("b.csv"))
    # the training ended, so that it had planned as many steps
    assert (run.arm, run.seed, run.size, run.planned_steps) == (None, None, None, 2)


STATES: dict[str, tuple[Callable[[Recorder], None], str, str | None]] = {
    "all steps": (lambda one: rows(one, *[healthy] * 6), "finished", None),
    "fewer steps": (lambda one: rows(one, healthy), "stopped", None),
    "not finite": (lambda one: rows(one, *[healthy] * 3, broken), "diverged", None),
}


@pytest.mark.parametrize("state", STATES)
def test_how_a_run_ended(state: str) -> None:
    act, status, message = STATES[state]
    with recorder() as recording:
        act(recording)
        assert manifest()["status"] == "running"
    tree = manifest()
    assert (tree["status"], tree["message"]) == (status, message)
    assert tree["diverged_at"] == (4 if status == "diverged" else None)
    assert (tree["csv_sha256"] is None) == (status == "stopped")
    recording.finish()
    assert manifest() == tree
    with pytest.raises(ConfigError, match="the recorder is closed"):
        recording.record(7, healthy)


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (ValueError("no\nmemory"), "failed", "ValueError: no memory"),
        (KeyboardInterrupt(), "stopped", "KeyboardInterrupt"),
    ],
)
def test_an_error_is_noted(error: BaseException, status: str, message: str) -> None:
    recording = recorder()
    rows(recording, healthy)
    with pytest.raises(type(error)), recording:
        raise error
    assert (manifest()["status"], manifest()["message"]) == (status, message)
    assert manifest()["steps_done"] == 1


def test_a_changed_csv_of_a_finished_run_is_refused() -> None:
    with recorder(steps=1) as recording:
        rows(recording, healthy)
    csv = Path("runs/a.csv")
    csv.write_text(csv.read_text(encoding="utf-8").replace("3.0", "2.0", 1), encoding="utf-8")
    with pytest.raises(RecordError, match="checksum differs"):
        load_run(csv)


def test_changes_of_health_are_logged_once_and_given_to_the_callable(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[HealthChange] = []
    with caplog.at_level(logging.WARNING, "bitnetctl"), recorder(steps=12, on_warning=seen.append) as recording:
        rows(recording, healthy, healthy, dead, dead, dead, dead, healthy, healthy, healthy, healthy, dead, healthy)
        assert recording.health is Health.RECOVERED
    reason = "1 distinct predictions"
    assert seen[:3] == [
        ("a", 3, Health.POSSIBLE, 3, reason),
        ("a", 5, Health.COLLAPSED, 3, reason),
        ("a", 9, Health.RECOVERED, 7, None),
    ]
    assert [(one.step, one.health) for one in seen[3:]] == [(11, Health.POSSIBLE), (12, Health.RECOVERED)]
    assert [record.getMessage() for record in caplog.records] == [str(one) for one in seen]
    assert str(seen[1]) == f"a: collapsed since step 3: {reason}"


def test_the_warm_up_does_not_count(caplog: pytest.LogCaptureFixture) -> None:
    with recorder(warmup_steps=4) as recording:
        rows(recording, *[dead] * 4, healthy, healthy)
        assert recording.collapse.collapsed == 0
    assert not caplog.records
    assert load_run(Path("runs/a.csv")).warmup_steps == 4


def test_a_resumed_run_goes_on_after_the_checkpoint(caplog: pytest.LogCaptureFixture) -> None:
    whole = Path("whole.csv")
    with recorder(whole) as recording:
        rows(recording, healthy, dead, dead, dead, dead, healthy)
    first = recorder()
    rows(first, healthy, dead, dead, healthy)
    first.finish()
    assert manifest()["status"] == "stopped"
    caplog.clear()
    with recorder(resume_step=3) as recording:
        assert recording.last_step == 3
        assert recording.health is Health.POSSIBLE
        rows(recording, dead, dead, healthy, start=4)
    # the collapse that began before is told of when it is one
    assert [record.getMessage().partition(":")[2] for record in caplog.records] == [
        " collapsed since step 2: 1 distinct predictions"
    ]
    assert Path("runs/a.csv").read_bytes() == whole.read_bytes()
    tree = manifest()
    assert (tree["status"], tree["steps_done"]) == ("finished", 6)
    assert [session["from_step"] for session in tree["sessions"]] == [0, 3]


def test_a_row_that_was_cut_short_is_written_again() -> None:
    recording = recorder()
    rows(recording, healthy, healthy)
    recording.finish()
    csv = Path("runs/a.csv")
    csv.write_bytes(csv.read_bytes()[:-5])
    with recorder(resume_step=2) as again:
        assert again.last_step == 1
        rows(again, healthy, start=2)
    assert load_run(csv).steps.tolist() == [1, 2]


def test_a_run_that_diverged_after_the_checkpoint_may_end_well() -> None:
    with recorder() as recording:
        rows(recording, healthy, healthy, broken)
    with recorder(resume_step=2) as recording:
        rows(recording, *[healthy] * 4, start=3)
    assert (manifest()["status"], manifest()["diverged_at"]) == ("finished", None)
    with recorder("runs/b.csv") as recording:
        rows(recording, healthy, broken, healthy)
    with recorder("runs/b.csv", resume_step=3) as recording:
        rows(recording, *[healthy] * 3, start=4)
    assert (manifest("runs/b")["status"], manifest("runs/b")["diverged_at"]) == ("diverged", 2)


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "without resume_step": ({}, "has rows of a run; give resume_step"),
    "arm": ({"arm": "adam", "resume_step": 2}, "is another run .arm is adam, was muon."),
    "seed": ({"seed": 4, "resume_step": 2}, "seed is 4, was 3"),
    "steps": ({"steps": 7, "resume_step": 2}, "steps is 7, was 6"),
    "settings": ({"settings": {"lr": 0.2}, "resume_step": 2}, "lr is 0.2, was 0.1"),
    "probe": ({"probe": make_probe(1), "resume_step": 2}, "probe is .{12}, was "),
}


@pytest.mark.parametrize("other", OTHERS)
def test_another_run_is_not_written_over(other: str) -> None:
    settings, message = OTHERS[other]
    with recorder(settings={"lr": 0.1}) as recording:
        rows(recording, healthy, healthy)
    before = (Path("runs/a.csv").read_bytes(), manifest())
    with pytest.raises(ConfigError, match=message):
        recorder(**{"settings": {"lr": 0.1}, **settings})
    assert (Path("runs/a.csv").read_bytes(), manifest()) == before


def test_a_run_without_its_manifest_is_refused() -> None:
    with recorder() as recording:
        rows(recording, healthy, healthy)
    Path("runs/a/run.json").unlink()
    with pytest.raises(RecordError, match=r"run\.json is gone"):
        recorder(resume_step=1)


def test_a_run_that_failed_before_its_first_row_starts_over() -> None:
    with pytest.raises(ValueError, match="early"), recorder():
        raise ValueError("early")
    with recorder(steps=2) as recording:
        rows(recording, healthy, healthy)
    assert manifest()["status"] == "finished"


def test_two_recorders_do_not_write_one_run() -> None:
    with recorder() as recording:
        with pytest.raises(RunBusyError):
            recorder(resume_step=0)
        rows(recording, healthy)
    # and the lock is free again, even after a refusal
    with pytest.raises(ConfigError, match="has rows"):
        recorder()
    with FileLock("runs/a/run.lock", timeout=0):
        pass


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"path": "runs/a"}, r"ends in \.csv"),
        ({"path": "runs/a b.csv"}, "not usable"),
        ({"vocab_size": 60}, "vocab_size is 60, that of the probe 61"),
        ({"steps": 0}, "steps is 0"),
        ({"rows_per_chunk": 0}, "rows_per_chunk is 0"),
        ({"steps": -1}, "steps"),
        ({"boundary_step": 7}, "boundary_step 7 is after the last of 6 steps"),
        ({"resume_step": -1}, "resume_step is -1"),
        ({"arm": " "}, "arm ' ' is not a name"),
        ({"arm": "a\nb"}, "is not a name"),
        ({"seed": -1}, "seed"),
        ({"planned_seeds": [0, -1]}, "planned_seeds has -1"),
        ({"planned_seeds": 6}, "planned_seeds: .*give a list of whole numbers"),
        ({"planned_seeds": ["0"]}, "planned_seeds: .*give a list of whole numbers"),
        ({"planned_arms": "muon"}, "planned_arms is 'muon'; give a list of arms"),
        ({"planned_arms": [1]}, "planned: arms"),
        ({"settings": {"lr": math.nan}}, "settings hold what JSON cannot"),
        ({"settings": {"lr": torch.tensor(1.0)}}, "settings hold what JSON cannot"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        recorder(**settings)
    assert not Path("runs").exists()


def test_steps_increase() -> None:
    with recorder() as recording:
        rows(recording, healthy, healthy)
        with pytest.raises(RecordError, match="Step 2 after 2"):
            rows(recording, healthy, start=2)
        rows(recording, healthy, start=3)
    assert load_run(Path("runs/a.csv")).steps.tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        ({"up": torch.tensor([0.5])}, "'up' has other values than -1, 0 and 1"),
        ({"up": torch.tensor([2])}, "weights, not codes"),
        ({"up": torch.zeros(0)}, "'up' is no tensor with values"),
        ({"up": [1, 0]}, "'up' is no tensor with values"),
        ({"down": torch.tensor([1])}, "other ternary weights than"),
    ],
)
def test_codes_are_ternary_and_the_same_at_every_evaluation(codes: dict[str, Tensor], message: str) -> None:
    with recorder() as recording:
        recording.record(1, healthy, ternary_codes={"up": torch.tensor([1])})
        with pytest.raises(ConfigError, match=message):
            recording.record(2, healthy, ternary_codes=codes)


def test_the_manifest_can_be_read_back_as_it_was_written() -> None:
    with recorder() as recording:
        rows(recording, healthy)
    found = read_manifest(Path("runs/a"))
    assert found is not None
    assert found.external is not None
    with pytest.raises(ConfigError, match="another program trained it"):
        found.requested()
