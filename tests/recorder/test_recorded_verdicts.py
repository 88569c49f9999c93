"""What the commands and the inventory say of recorded runs: as of runs of bitnetctl itself."""

import os
from pathlib import Path
from typing import Any

import pytest
from calling import call, outcomes
from sets import entries, inventory

from bitnetctl import load_runs
from bitnetctl.errors import ExitCode
from bitnetctl.records.provenance import provenance_differences
from runs import STEPS, dead, healthy, make_probe, write

CRITERIA = """
title = "Many tokens are predicted"
[seeds]
rule = "rate"
max_failure_rate = 0.5
[[checks]]
kind = "finite"
[[checks]]
kind = "finished"
[[checks]]
kind = "level"
measure = "UniquePredictions"
last = 3
supported_above = 20
refuted_below = 10
"""


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def criteria(tmp_path: Path) -> str:
    path = tmp_path / "many.toml"
    path.write_text(CRITERIA, encoding="utf-8")
    return str(path)


def test_a_healthy_arm_is_supported_and_a_collapsed_one_refuted(tmp_path: Path, criteria: str) -> None:
    write(tmp_path / "runs", "decoupled", range(6), healthy, planned_arms=["coupled"])
    write(tmp_path / "runs", "coupled", range(6), dead, planned_arms=["decoupled"])
    done = call("verify", tmp_path / "runs", "--criteria", criteria, "--json")
    assert outcomes(done) == {"coupled": "refuted", "decoupled": "supported"}
    text = call("analyze", tmp_path / "runs", "--details").out
    assert "coupled: 6 of 6 runs collapsed (first at step 2" in text


def test_a_bundle_gives_the_same_verdict(tmp_path: Path, criteria: str) -> None:
    write(tmp_path / "runs", "coupled", range(6), dead, planned_seeds=range(7))
    write(tmp_path / "runs", "coupled", [7], dead, done=0, error=ValueError("out of memory"))
    bundle = tmp_path / "all.zip"
    whole = call("verify", tmp_path / "runs", "--criteria", criteria, "--bundle", bundle, "--json")
    again = call("verify", bundle, "--criteria", criteria, "--json")
    assert again.code == whole.code == ExitCode.REFUTED
    for tree in (whole.json, again.json):
        assert "seed 6" in str(tree)
        assert "out of memory" in str(tree)


def test_seeds_that_failed_or_never_came_to_be_count(tmp_path: Path) -> None:
    given = write(tmp_path, "muon", [0, 1], healthy, planned_seeds=range(5))
    write(tmp_path, "muon", [2], healthy, done=0, error=ValueError("out of\nmemory"))
    write(tmp_path, "muon", [3], healthy, done=3)
    missing = (4, "missing", "planned with muon-s0, no file")
    assert entries(given) == [
        (2, "failed", "failed before its first evaluation: ValueError: out of memory"),
        (3, "left out", "in the same folder, not given (stopped)"),
        missing,
    ]
    # given with the others
    every = [*given, tmp_path / "muon-s2.csv", tmp_path / "muon-s3.csv"]
    assert [one[:2] for one in entries(every)] == [(2, "failed"), missing[:2]]


def test_only_a_run_that_failed_at_once(tmp_path: Path) -> None:
    found = inventory(write(tmp_path, "muon", [0], healthy, done=0, error=ValueError("no")))
    assert [(one.arm, one.seed, one.state, one.planned_steps) for one in found.absent] == [("muon", 0, "failed", STEPS)]


def test_runs_of_other_arms_sizes_and_probes_are_no_seeds_of_an_arm(tmp_path: Path) -> None:
    given = write(tmp_path, "muon", [0, 1], healthy)
    write(tmp_path, "adam", [2], healthy)
    write(tmp_path, "muon:lr=0.1", [3], healthy)
    write(tmp_path, "muon", [4], healthy, size=128)
    write(tmp_path, "muon", [5], healthy, probe=make_probe(1))
    found = inventory(given)
    assert [one.seed for one in found.absent] == []
    assert {(one.arm, one.size) for one in found.others} == {("adam", 64), ("muon:lr=0.1", 64), ("muon", 128)}
    assert set(found.arms) == {"muon", "adam", "muon:lr=0.1"}


def test_runs_of_unknown_arm_and_seed(tmp_path: Path, criteria: str) -> None:
    write(tmp_path / "runs", None, [0, 1], healthy, seed=None)
    done = call("verify", tmp_path / "runs", "--criteria", criteria)
    assert done.code == ExitCode.INCONCLUSIVE


DIFFERENT: dict[str, tuple[dict[str, Any], str]] = {
    "probe": ({"probe": make_probe(1)}, "probe fingerprint"),
    "setting": ({"settings": {"lr": 0.2}}, "lr 0.1 (seeds 0, 1) and 0.2 (seed 2)"),
    "no setting": ({"settings": {}}, "lr 0.1 (seeds 0, 1) and no such setting (seed 2)"),
    "trainer": ({"trainer": "other 2", "settings": {"rate": 1}}, "trainer loop (seeds 0, 1) and other (seed 2)"),
    "boundary": ({"boundary_step": 3}, "boundary step of 8 steps 4 (seeds 0, 1) and 3 (seed 2)"),
    "warm-up": ({"warmup_steps": 1}, "warm-up steps of 8 steps 0 (seeds 0, 1) and 1 (seed 2)"),
}


@pytest.mark.parametrize("aspect", DIFFERENT)
def test_what_differs_between_seeds_breaks_the_comparison(tmp_path: Path, aspect: str) -> None:
    changes, text = DIFFERENT[aspect]
    known: dict[str, Any] = {"settings": {"lr": 0.1}, "trainer": "loop 1", "boundary_step": 4}
    write(tmp_path, "muon", [0, 1], healthy, **known)
    runs = load_runs(tmp_path)
    assert provenance_differences(runs, same_arm=True).breaking == ()
    write(tmp_path, "muon", [2], healthy, **{**known, **changes})
    (found,) = provenance_differences(load_runs(tmp_path), same_arm=True).breaking
    assert found.startswith(text)
    # arms may differ in what they are; the probe may not
    assert len(provenance_differences(load_runs(tmp_path), same_arm=False).breaking) == (aspect == "probe")


def test_another_version_of_the_trainer_is_noted(tmp_path: Path) -> None:
    write(tmp_path, "muon", [0, 1], healthy, trainer="loop 1")
    write(tmp_path, "muon", [2], healthy, trainer="loop 2")
    found = provenance_differences(load_runs(tmp_path), same_arm=True)
    assert found.breaking == ()
    assert found.minor == ("version of the trainer loop 1 (seeds 0, 1) and loop 2 (seed 2)",)


def test_other_probes_are_not_compared(tmp_path: Path, criteria: str) -> None:
    write(tmp_path / "runs", "muon", range(3), healthy)
    write(tmp_path / "runs", "muon", range(3, 6), healthy, probe=make_probe(1))
    done = call("verify", tmp_path / "runs", "--criteria", criteria)
    assert done.code == ExitCode.INVALID
    assert "probe fingerprint" in done.out
