"""The run queue: who trains which runs, and what happens when the owner fails or is killed."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from configs import TinyConfig
from filelock import FileLock, Timeout
from training import resolved

from bitnetctl import checkpoint
from bitnetctl.config import RunConfig
from bitnetctl.errors import ConfigError, RunBusyError, StorageError
from bitnetctl.records import Manifest, RunPaths, Status, utc_now, write_manifest
from bitnetctl.sweeps.queue import RunQueue
from bitnetctl.trainer.artifacts import RunArtifacts
from bitnetctl.trainer.resolved import ResolvedRun

Claim = Callable[..., list[int]]

RUNS = Path("runs")


def size_of(run: ResolvedRun) -> int:
    return run.config.model.hidden_size


@pytest.fixture
def runs(tiny_config: TinyConfig) -> list[RunConfig]:
    """Five runs of one shape."""
    return [tiny_config(seed=seed) for seed in range(5)]


@pytest.fixture
def touched(monkeypatch: pytest.MonkeyPatch) -> list[RunArtifacts]:
    """All artifacts that were locked, so that none is released by garbage collection."""
    outputs: list[RunArtifacts] = []
    take = RunArtifacts.acquire

    def keep(output: RunArtifacts) -> None:
        outputs.append(output)
        take(output)

    monkeypatch.setattr(RunArtifacts, "acquire", keep)
    return outputs


@pytest.fixture
def claim(touched: list[RunArtifacts]) -> Iterator[Claim]:
    """Claim from a run queue of its own, as another process would; return the indices of the configs that it got.

    The locks are held until `let_go`, at the latest until the end of the test.
    """
    held: list[RunArtifacts] = []

    def take(
        configs: Sequence[RunConfig], limit: int | Callable[[RunConfig], int] = 100, *, let_go: bool = False
    ) -> list[int]:
        limit_of = (lambda run: limit(run.config)) if callable(limit) else (lambda run: limit)
        outputs = RunQueue(RUNS, size_of).acquire(resolved(configs, RUNS), limit_of)
        held.extend(outputs)
        if let_go:
            release(held)
        return [configs.index(output.run.config) for output in outputs]

    yield take
    release(held)


def release(held: list[RunArtifacts]) -> None:
    while held:
        held.pop().release()


def record(config: RunConfig, status: Status, *, csv: bool = True, config_hash: str | None = None) -> None:
    """Write the manifest of a run, and an empty CSV."""
    paths = RunPaths(RUNS, config.run_name)
    now = utc_now()
    manifest = Manifest(
        run=paths.name,
        status=status,
        config=config.model_dump(mode="json"),
        config_hash=config_hash or config.hash,
        created_at=now,
        updated_at=now,
    )
    write_manifest(paths.folder, manifest)
    if csv:
        paths.csv.touch()


def is_free(path: Path) -> bool:
    lock = FileLock(path, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    lock.release()
    return True


def lock_of(config: RunConfig) -> Path:
    return RunPaths(RUNS, config.run_name).lock


# which runs are handed out


def test_runs_are_handed_out_in_their_order(runs: list[RunConfig], claim: Claim) -> None:
    assert [claim(runs, 2) for _ in range(4)] == [[0, 1], [2, 3], [4], []]


@pytest.mark.parametrize(
    ("limit", "expected"), [(1, [0]), (4, [0, 1, 2, 3]), (5, [0, 1, 2, 3, 4]), (9, [0, 1, 2, 3, 4])]
)
def test_a_claim_has_at_most_its_limit(runs: list[RunConfig], claim: Claim, limit: int, expected: list[int]) -> None:
    assert claim(runs, limit) == expected


def test_the_first_free_run_decides_shape_and_limit(tiny_config: TinyConfig, claim: Claim) -> None:
    sizes = [32, 16, 32, 16, 32, 16]
    configs = [tiny_config(seed=seed, model__hidden_size=size) for seed, size in enumerate(sizes)]
    requested: list[int] = []

    def limit(config: RunConfig) -> int:
        requested.append(config.model.hidden_size)
        return 2 if config.model.hidden_size == 32 else 3

    assert [claim(configs, limit) for _ in range(4)] == [[0, 2], [1, 3, 5], [4], []]
    assert set(requested[:2]) == {32}
    assert set(requested[2:5]) == {16}


@pytest.mark.parametrize(
    ("status", "csv", "is_open"),
    [
        ("finished", True, False),
        ("diverged", True, False),
        ("finished", False, True),
        ("running", True, True),
        ("stopped", True, True),
        ("failed", True, True),
    ],
)
def test_runs_that_ended_are_not_handed_out(
    runs: list[RunConfig], claim: Claim, status: Status, csv: bool, is_open: bool
) -> None:
    record(runs[1], status, csv=csv)
    expected = [0, 1, 2, 3, 4] if is_open else [0, 2, 3, 4]
    assert [runs.index(run.config) for run in RunQueue(RUNS, size_of).unfinished(resolved(runs, RUNS))] == expected
    assert claim(runs) == expected


def test_locked_runs_are_skipped(runs: list[RunConfig], claim: Claim) -> None:
    lock_of(runs[0]).parent.mkdir(parents=True)
    with FileLock(lock_of(runs[0])):
        assert claim(runs, 2) == [1, 2]
        # skipped, and still to be waited for
        assert [run.config for run in RunQueue(RUNS, size_of).unfinished(resolved(runs, RUNS))] == runs
    assert claim(runs, 2) == [0, 3]


def test_released_runs_are_handed_out_again(runs: list[RunConfig], claim: Claim) -> None:
    assert claim(runs, 3, let_go=True) == [0, 1, 2]
    assert claim(runs, 2) == [0, 1]


def test_without_runs_there_is_nothing_to_claim(claim: Claim) -> None:
    assert claim([]) == []


def test_a_run_that_ends_between_look_and_claim_is_not_handed_out(
    runs: list[RunConfig], claim: Claim, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process trains run 1: unfinished when the statuses are read, finished when it would be locked."""
    take = RunArtifacts.acquire

    def finish_elsewhere(output: RunArtifacts) -> None:
        if output.run.config == runs[1]:
            record(runs[1], "finished")
        take(output)

    monkeypatch.setattr(RunArtifacts, "acquire", finish_elsewhere)
    assert claim(runs, 3) == [0, 2, 3]
    assert is_free(lock_of(runs[1]))


# the checkpoints from which runs resume

# checkpoints of each run → claims, each held while the next is made
AVAILABLE: list[tuple[list[list[int]], list[list[int]]]] = [
    ([[], [], []], [[0, 1, 2]]),
    ([[4, 8], [4, 8]], [[0, 1]]),
    ([[4, 8], [4], [4, 8]], [[0, 1, 2]]),
    ([[4], [8], [8]], [[1, 2], [0]]),
    # two have 4 and two have 8: the later step
    ([[4, 8], [8], [4]], [[0, 1], [2]]),
    # a run without checkpoints starts over, but no run with checkpoints does so with it
    ([[], [4], [4]], [[1, 2], [0]]),
    ([[4], [], []], [[1, 2], [0]]),
    ([[4], []], [[0], [1]]),
    ([[4], [8], [12]], [[2], [1], [0]]),
]


@pytest.mark.parametrize(("available", "claims"), AVAILABLE)
def test_a_claim_resumes_from_one_step(
    runs: list[RunConfig], claim: Claim, available: list[list[int]], claims: list[list[int]]
) -> None:
    configs = runs[: len(available)]
    for config, steps in zip(configs, available, strict=True):
        for step in steps:
            checkpoint.path_of(RunPaths(RUNS, config.run_name).checkpoints, step).mkdir(parents=True)
    assert [claim(configs) for _ in claims] == claims
    assert claim(configs) == []


def test_runs_that_resume_elsewhere_are_left_to_others(runs: list[RunConfig], claim: Claim) -> None:
    for config, step in zip(runs, (4, 8, 8, 8, 4), strict=True):
        checkpoint.path_of(RunPaths(RUNS, config.run_name).checkpoints, step).mkdir(parents=True)
    assert claim(runs) == [1, 2, 3]
    assert [is_free(lock_of(config)) for config in runs] == [True, False, False, False, True]


# errors and other processes


def fails(config: RunConfig) -> int:
    raise RuntimeError("no limit")


def test_an_error_releases_every_lock(runs: list[RunConfig], claim: Claim) -> None:
    with pytest.raises(RuntimeError, match="no limit"):
        claim(runs, fails)
    assert is_free(RUNS / ".claims.lock")
    assert all(is_free(lock_of(config)) for config in runs if lock_of(config).exists())
    assert lock_of(runs[0]).exists()
    assert claim(runs, 2) == [0, 1]


def test_the_lock_of_the_folder_is_released_after_a_claim(runs: list[RunConfig], claim: Claim) -> None:
    claim(runs, 2)
    assert is_free(RUNS / ".claims.lock")
    assert not is_free(lock_of(runs[1]))


def test_a_name_of_another_config_is_refused(runs: list[RunConfig], claim: Claim) -> None:
    record(runs[2], "running", config_hash="0" * 64)
    with pytest.raises(ConfigError, match="holds another run"):
        claim(runs)
    assert is_free(RUNS / ".claims.lock")
    assert all(is_free(lock_of(config)) for config in runs if lock_of(config).exists())


def test_a_claim_waits_while_another_process_makes_one(runs: list[RunConfig], claim: Claim) -> None:
    claims: list[list[int]] = []
    RUNS.mkdir()
    guard = FileLock(RUNS / ".claims.lock", thread_local=False)
    guard.acquire(timeout=0)
    thread = threading.Thread(target=lambda: claims.append(claim(runs, 2)))
    thread.start()
    thread.join(0.2)
    assert thread.is_alive()
    assert not any(lock_of(config).exists() for config in runs)
    guard.release()
    thread.join(30)
    assert claims == [[0, 1]]


def test_a_file_in_place_of_the_folder_is_an_error(runs: list[RunConfig], claim: Claim) -> None:
    RUNS.write_text("", encoding="utf-8")
    with pytest.raises(StorageError, match="runs: cannot write"):
        claim(runs)


def test_a_folder_in_place_of_the_lock_is_an_error(runs: list[RunConfig], claim: Claim) -> None:
    (RUNS / ".claims.lock").mkdir(parents=True)
    with pytest.raises(StorageError, match="cannot write"):
        claim(runs)


HOLD = """
import sys, time
from pathlib import Path
from bitnetctl.config import parse_config
from bitnetctl.sweeps.queue import RunQueue
from bitnetctl.trainer.resolved import resolve
import json
runs = [resolve(parse_config(tree), Path("runs")) for tree in json.load(sys.stdin)]
held = RunQueue(Path("runs"), lambda run: 0).acquire(runs, lambda run: 2)
print(*(output.paths.name for output in held), flush=True)
time.sleep(600)
"""


def test_claims_end_with_their_owner(runs: list[RunConfig], claim: Claim) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as owner:
        try:
            assert owner.stdin is not None
            assert owner.stdout is not None
            owner.stdin.write(json.dumps([config.model_dump(mode="json") for config in runs]))
            owner.stdin.close()
            assert owner.stdout.readline().split() == [config.run_name for config in runs[:2]]
            assert claim(runs, 2, let_go=True) == [2, 3]
        finally:
            owner.kill()
    assert claim(runs, 2) == [0, 1]


def test_a_held_run_is_busy_whatever_comes_and_goes_in_its_folder(
    runs: list[RunConfig], touched: list[RunArtifacts]
) -> None:
    first, second = (RunArtifacts(*resolved(runs[:1], RUNS)) for _ in range(2))
    first.acquire()
    step = first.paths.checkpoints / "step-00000004"
    ended = threading.Event()

    def rotate() -> None:
        while not ended.is_set():
            (step / "a").mkdir(parents=True)
            (step / "a").rmdir()
            step.rmdir()

    rotation = threading.Thread(target=rotate)
    rotation.start()
    try:
        for _ in range(500):
            with pytest.raises(RunBusyError):
                second.acquire()
    finally:
        ended.set()
        rotation.join()
