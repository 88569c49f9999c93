"""Sweeps in which runs diverge, raise, are stopped, or are held by another process."""

import errno
import math
import re
import shutil

import pytest
from configs import TinyConfig
from filelock import FileLock
from run_files import RUNS, UNDISTURBED, csv_without_speed, manifest
from sweeping import (
    DIVERGES,
    DOUBLE,
    Fails,
    Fuller,
    Grid,
    Sweep,
    assert_same,
    names,
    packs,
    row_steps,
    starts,
)

from bitnetctl import checkpoint
from bitnetctl.config import RunConfig
from bitnetctl.errors import CaptureError, StorageError
from bitnetctl.records import RunPaths, read
from bitnetctl.trainer.artifacts import RunArtifacts
from bitnetctl.trainer.events import Diverged, Evaluated, Event, Failed, Finished, Planned, Saved, Started, Stopped

# divergence


@pytest.mark.usefixtures("double")
def test_a_run_that_diverges_does_not_change_its_pack(sweep: Sweep, tiny_config: TinyConfig) -> None:
    diverging = tiny_config(arm=DIVERGES)
    neighbours = [tiny_config(), tiny_config(seed=1), tiny_config(arm="no-decay")]
    configs = [neighbours[0], diverging, *neighbours[1:]]
    events = sweep(configs, pack=4)
    assert packs(events) == [names(configs)]
    assert [event for event in events if isinstance(event, Diverged | Failed)] == [Diverged(run=1, step=2)]
    assert [manifest(config).status for config in configs] == ["finished", "diverged", "finished", "finished"]
    assert (manifest(diverging).diverged_at, manifest(diverging).steps_done) == (2, 2)
    assert row_steps(diverging) == [1, 2]
    assert math.isnan(read(RUNS / f"{diverging.run_name}.csv").value("UniquePredictions", 1) or 0.0)

    assert packs(sweep(neighbours, pack=3, runs_dir=UNDISTURBED)) == [names(neighbours)]
    assert_same(neighbours, DOUBLE)
    # a run that diverged has ended: it is not tried again
    assert sweep(configs, pack=4) == []


def test_a_sweep_continues_after_a_run_that_diverges(sweep: Sweep, grid: Grid) -> None:
    configs = [*grid(1, DIVERGES), *grid(2)]
    events = sweep(configs, pack=1)
    assert packs(events) == [[config.run_name] for config in configs]
    assert [manifest(config).status for config in configs] == ["diverged", "finished", "finished"]
    # the last event of the diverged run is its end
    first_pack = events[: [type(event) for event in events].index(Finished) + 1]
    assert [type(event) for event in first_pack] == [Planned, Started, Evaluated, Diverged, Finished]


# failures


@pytest.mark.usefixtures("third_party", "double")
@pytest.mark.parametrize(("at", "resumed"), [(1, 0), (6, 4)])
def test_a_run_that_raises_fails_alone(
    sweep: Sweep, grid: Grid, monkeypatch: pytest.MonkeyPatch, at: int, resumed: int
) -> None:
    good = grid(2)
    (bad,) = grid(1, f"fails:at={at}")
    configs = [good[0], bad, good[1]]
    messages: list[str] = []
    events = sweep(configs, pack=3, log=messages.append)
    # its pack continues without it
    assert (packs(events), starts(events)) == ([names(configs)], [0])
    [message] = [event.message for event in events if isinstance(event, Failed)]
    assert message.startswith("fails: transform_gradients raised RuntimeError: two lines [bold] (")
    assert re.search(r"sweeping\.py:\d+\)$", message)
    assert messages == []
    assert [manifest(config).status for config in configs] == ["finished", "failed", "finished"]
    assert (manifest(bad).message, manifest(bad).is_fault_of_plugin) == (message, True)

    # every sweep tries it again once, and none of the finished
    again = sweep(configs, pack=3)
    assert (packs(again), starts(again)) == ([[bad.run_name]], [resumed])
    assert isinstance(again[-1], Failed)
    assert manifest(bad).status == "failed"

    monkeypatch.setattr(Fails, "broken", False)
    assert starts(sweep(configs, pack=3)) == [resumed]
    assert (manifest(bad).status, manifest(bad).message) == ("finished", None)
    assert not manifest(bad).is_fault_of_plugin
    assert [row_steps(config) for config in configs] == [[1, 4, 8]] * 3
    sweep(configs, pack=3, runs_dir=UNDISTURBED)
    assert_same(configs, DOUBLE)


@pytest.mark.usefixtures("third_party")
def test_every_run_of_a_pack_may_fail(sweep: Sweep, grid: Grid) -> None:
    configs = grid(2, "fails:at=2")
    events = sweep(configs, pack=2)
    assert packs(events) == [names(configs)]
    assert len([event for event in events if isinstance(event, Failed)]) == 2
    assert [manifest(config).status for config in configs] == ["failed", "failed"]


def test_a_file_of_another_program_fails_its_run_and_stays(sweep: Sweep, grid: Grid) -> None:
    configs = grid(3)
    RUNS.mkdir()
    theirs = RUNS / f"{configs[1].run_name}.csv"
    theirs.write_text("not ours\n", encoding="utf-8")
    events = sweep(configs, pack=1)
    assert packs(events) == [[configs[0].run_name], [configs[2].run_name]]
    assert [manifest(config).status for config in configs] == ["finished", "failed", "finished"]
    assert "not a file that this version writes" in (manifest(configs[1]).message or "")
    assert theirs.read_text(encoding="utf-8") == "not ours\n"


@pytest.mark.usefixtures("third_party")
def test_a_failed_run_that_another_process_locks_at_once_is_left_to_it(
    sweep: Sweep, grid: Grid, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good = *grid(1, "fails"), *grid(1)
    theirs = FileLock(RunPaths(RUNS, bad.run_name).lock, thread_local=False)
    release = RunArtifacts.release

    def release_to_another(output: RunArtifacts) -> None:
        release(output)
        if output.run.config == bad:
            theirs.acquire(timeout=0)

    monkeypatch.setattr(RunArtifacts, "release", release_to_another)
    try:
        events = sweep([bad, good], pack=1)
    finally:
        theirs.release()
    assert packs(events) == [[bad.run_name], [good.run_name]]
    assert manifest(good).status == "finished"


@pytest.mark.usefixtures("third_party")
@pytest.mark.parametrize(
    "error",
    [StorageError("disk full", errno.ENOSPC), KeyboardInterrupt(), CaptureError("take --engine eager")],
    ids=["disk", "key", "GPU"],
)
@pytest.mark.parametrize("pack", [1, 2])
def test_a_full_disk_an_interrupt_and_a_broken_gpu_end_the_sweep(
    sweep: Sweep, grid: Grid, monkeypatch: pytest.MonkeyPatch, error: BaseException, pack: int
) -> None:
    configs = [*grid(1, "fuller"), *grid(2)]
    sweep(configs, pack=pack, runs_dir=UNDISTURBED)
    monkeypatch.setattr(Fuller, "error", error)
    with pytest.raises(type(error)):
        sweep(configs, pack=pack)
    assert [config for config in configs if (RUNS / f"{config.run_name}.csv").exists()] == configs[:pack]
    assert manifest(configs[0]).status == "running"
    # every lock is released, and every checkpoint is there
    monkeypatch.setattr(Fuller, "error", None)
    events = sweep(configs, pack=pack)
    assert packs(events)[0] == names(configs[:pack])
    assert starts(events)[0] == 4
    assert [manifest(config).status for config in configs] == ["finished"] * 3
    assert_same(configs, 0.0)


# stopped and resumed


@pytest.mark.parametrize(("pack", "step"), [(0, 1), (0, 4), (1, 4)])
def test_a_stopped_sweep_resumes_where_it_was(sweep: Sweep, grid: Grid, pack: int, step: int) -> None:
    configs = [*grid(2), *grid(2, "wd-schedule+momentum-reset:every=3")]
    sweep(configs, pack=2, runs_dir=UNDISTURBED)
    first = configs[2 * pack].run_name
    began: list[str] = []

    def is_there(event: Event) -> bool:
        if isinstance(event, Started):
            began.append(event.names[0])
        return isinstance(event, Evaluated) and began[-1:] == [first] and event.row["Step"] == step

    events = sweep(configs, pack=2, stop_when=is_there)
    # the stop is seen at the end of the step after
    assert events[-1] == Stopped(step=step + 1)
    ended = ["finished"] * 2 * pack + ["stopped"] * 2
    assert [manifest(config).status for config in configs[: 2 * pack + 2]] == ended
    assert all(not (RUNS / config.run_name).exists() for config in configs[2 * pack + 2 :])

    rest = sweep(configs, pack=2)
    assert packs(rest) == [names(configs[start : start + 2]) for start in range(2 * pack, 4, 2)]
    assert starts(rest)[0] == step + 1
    for config in configs:
        assert csv_without_speed(RUNS / f"{config.run_name}.csv") == csv_without_speed(
            UNDISTURBED / f"{config.run_name}.csv"
        )
        assert row_steps(config) == [1, 4, 8]


def test_a_stop_before_the_first_run_creates_none(sweep: Sweep, grid: Grid) -> None:
    assert sweep(grid(1), should_stop=lambda: True) == []
    assert not RUNS.exists()


@pytest.mark.usefixtures("double")
def test_a_stopped_sweep_resumes_in_other_packs(sweep: Sweep, grid: Grid) -> None:
    configs = grid(4)
    sweep(configs, pack=4, runs_dir=UNDISTURBED)
    sweep(configs, pack=3, stop_when=lambda event: isinstance(event, Saved))
    events = sweep(configs, pack=2)
    # the fourth has no checkpoint, so that it does not share a pack with the third
    assert packs(events) == [names(configs[:2]), names(configs[2:3]), names(configs[3:])]
    assert starts(events) == [5, 5, 0]
    assert [row_steps(config) for config in configs] == [[1, 4, 8]] * 4
    assert_same(configs, DOUBLE)


def lose(config: RunConfig, *lost: int) -> None:
    for step in lost:
        shutil.rmtree(checkpoint.path_of(RunPaths(RUNS, config.run_name).checkpoints, step))


# every run has checkpoints of 6 and 9; (those lost, packs and their first step); a run that lost both fails
LOST: dict[str, tuple[list[tuple[int, ...]], list[tuple[list[int], int]]]] = {
    "none": ([(), (), ()], [([0, 1, 2], 9)]),
    "the newest of one": ([(), (9,), ()], [([0, 1, 2], 6)]),
    "the newest of all": ([(9,), (9,), (9,)], [([0, 1, 2], 6)]),
    "nothing in common": ([(6,), (9,), (6,)], [([0, 2], 9), ([1], 6)]),
    "everything of one": ([(), (6, 9), ()], [([0, 2], 9)]),
    "everything of most": ([(6, 9), (), (6, 9)], [([1], 9)]),
}


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("case", LOST)
def test_runs_resume_from_the_checkpoints_that_are_left(sweep: Sweep, grid: Grid, case: str) -> None:
    lost, expected = LOST[case]
    configs = grid(3, steps=12)
    sweep(configs, pack=3, runs_dir=UNDISTURBED)
    at_eight = sweep(
        configs,
        pack=3,
        checkpoint_every=3,
        stop_when=lambda event: isinstance(event, Evaluated) and event.row["Step"] == 8,
    )
    assert at_eight[-1] == Stopped(step=9)
    for config, steps in zip(configs, lost, strict=True):
        assert checkpoint.steps(RunPaths(RUNS, config.run_name).checkpoints) == [6, 9]
        lose(config, *steps)
    events = sweep(configs, pack=3)
    assert packs(events) == [names([configs[run] for run in runs]) for runs, _ in expected]
    assert starts(events) == [step for _, step in expected]
    gone = [config for config, steps in zip(configs, lost, strict=True) if len(steps) == 2]
    assert [event.name for event in events if isinstance(event, Failed)] == names(gone)
    for config in gone:
        assert row_steps(config) == [1, 4, 8]
        assert "9 steps were done, but its checkpoints are gone" in (manifest(config).message or "")
    rest = [config for config in configs if config not in gone]
    for config in rest:
        assert row_steps(config) == [1, 4, 8, 12]
        assert manifest(config).status == "finished"
    assert_same(rest, DOUBLE)


# other processes


def test_runs_that_another_process_holds_are_waited_for(sweep: Sweep, grid: Grid) -> None:
    configs = grid(3)
    (RUNS / configs[1].run_name).mkdir(parents=True)
    theirs = FileLock(RunPaths(RUNS, configs[1].run_name).lock)
    messages: list[str] = []
    polls: list[None] = []

    def leave_it_after_a_while() -> bool:
        if "waiting for runs that another process trains" in messages:
            polls.append(None)
        if len(polls) == 5:
            theirs.release()
        return False

    theirs.acquire(timeout=0)
    events = sweep(configs, pack=3, log=messages.append, should_stop=leave_it_after_a_while)
    # its owner released it: taken over
    assert packs(events) == [[configs[0].run_name, configs[2].run_name], [configs[1].run_name]]
    assert messages == ["waiting for runs that another process trains"]
    assert [manifest(config).status for config in configs] == ["finished"] * 3


def test_runs_that_another_process_finishes_are_not_trained_again(sweep: Sweep, grid: Grid) -> None:
    configs = grid(2)
    (RUNS / configs[0].run_name).mkdir(parents=True)
    theirs = FileLock(RunPaths(RUNS, configs[0].run_name).lock)

    def finish_it(text: str) -> None:
        sweep(configs[:1], pack=1, runs_dir=UNDISTURBED)
        shutil.copy(UNDISTURBED / f"{configs[0].run_name}.csv", RUNS)
        shutil.copy(UNDISTURBED / configs[0].run_name / "run.json", RUNS / configs[0].run_name)
        theirs.release()

    theirs.acquire(timeout=0)
    assert packs(sweep(configs, pack=2, log=finish_it)) == [[configs[1].run_name]]
    assert manifest(configs[0]).status == "finished"


def test_a_stop_ends_the_waiting(sweep: Sweep, grid: Grid) -> None:
    (config,) = grid(1)
    (RUNS / config.run_name).mkdir(parents=True)
    messages: list[str] = []
    with FileLock(RunPaths(RUNS, config.run_name).lock):
        events = sweep([config], log=messages.append, should_stop=lambda: len(messages) > 0)
    assert [type(event) for event in events] == [Planned]
    assert messages == ["waiting for runs that another process trains"]
