"""How a `bitnetctl sweep` ends where runs diverge, fail, are damaged or stopped: exit code, table and messages."""

import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
from calling import Done, call
from run_files import csv_without_speed, manifest
from sweeping import pick

from bitnetctl import checkpoint
from bitnetctl.errors import ExitCode, RunRefusedError
from bitnetctl.monitor.console import PlainReporter
from bitnetctl.sweeps.executors import local
from bitnetctl.trainer.artifacts import RunArtifacts
from bitnetctl.trainer.events import Evaluated, Event

RUNS = Path("runs")
Sweep = Callable[..., Done]
DIVERGES = "reduced-lr:factor=1e30"
ALL_THERE = "all {} runs are there already, nothing to train\n"
pytestmark = pytest.mark.usefixtures("wide_terminal", "known_speed")


def test_a_run_that_diverged_refutes(sweep_command: Sweep) -> None:
    arguments = ["-i", DIVERGES, "--json"]
    done = sweep_command(*arguments)
    assert done.code == ExitCode.REFUTED
    assert pick(done.json["runs"], "status") == [("finished",), ("diverged",)]
    bad = done.json["runs"][1]
    assert bad["message"] == "the gradient of model.embed_tokens.weight not finite at step 2"
    assert bad["final"]["Step"] == 2
    assert bad["final"]["UniquePredictions"] == "nan"
    assert f"{bad['run']}: diverged at step 2" in done.err
    again = sweep_command(*arguments)
    assert (again.code, again.out, again.err) == (done.code, done.out, ALL_THERE.format(2))
    assert re.search(r"reduced-lr:factor=1e\+?30 +\d+ +0 +diverged +nan +–", sweep_command(*arguments[:-1]).out)


@pytest.mark.usefixtures("third_party")
def test_a_run_that_failed_is_an_error_and_the_rest_continue(sweep_command: Sweep) -> None:
    arguments = ["-i", "fails", "-i", DIVERGES, "-i", "no-decay", "--json"]
    done = sweep_command(*arguments)
    # a fault of a plug-in, not of bitnetctl
    assert done.code == ExitCode.USAGE
    assert pick(done.json["runs"], "status") == [("finished",), ("failed",), ("diverged",), ("finished",)]
    bad = done.json["runs"][1]
    assert (bad["is_fault_of_plugin"], bad["final"]) == (True, None)
    assert bad["message"].startswith("fails: transform_gradients raised RuntimeError: two lines [bold] (")
    assert f"{bad['run']}: failed: {bad['message']}\n" in done.err
    assert done.err.splitlines()[-1] == f"error: {bad['message']}"
    assert f"{bad['run']}: finished" not in done.err
    # tried again, and nothing else
    again = sweep_command(*arguments)
    assert (again.code, again.out) == (done.code, done.out)
    assert [line for line in again.err.splitlines() if "parameters on cpu" in line] == [
        f"{bad['run']}: 8 steps, 12,288 parameters on cpu, resumed after step 4"
    ]


def test_a_run_that_fails_before_it_begins_is_reported_by_name(sweep_command: Sweep) -> None:
    names = [run["run"] for run in sweep_command("--seeds", "2", "--json").json["runs"]]
    for path in (*RUNS.glob("*/run.json"), *RUNS.glob("*.csv")):
        path.unlink()
    theirs = RUNS / f"{names[0]}.csv"
    theirs.write_text("not ours\n", encoding="utf-8")
    done = sweep_command("--seeds", "2", "--pack", "1", "--json")
    assert "internal error" not in done.err
    assert done.code == ExitCode.INTERNAL
    assert pick(done.json["runs"], "run", "status") == [(names[0], "failed"), (names[1], "finished")]
    failures = [line for line in done.err.splitlines() if ": failed: " in line]
    assert len(failures) == 1
    assert failures[0].startswith(f"{names[0]}: failed: RecordError: ")
    assert theirs.read_text(encoding="utf-8") == "not ours\n"


@pytest.mark.parametrize("damage", ["manifest", "csv"])
def test_a_damaged_run_is_reported_and_the_rest_continue(sweep_command: Sweep, damage: str) -> None:
    assert sweep_command("--seeds", "2").code == ExitCode.SUPPORTED
    bad = min(path.stem for path in RUNS.glob("*.csv"))
    path = RUNS / bad / "run.json" if damage == "manifest" else RUNS / f"{bad}.csv"
    path.write_bytes(path.read_bytes()[:-40])
    kept = path.read_bytes()
    planned = sweep_command("--seeds", "4", "--dry-run", "--json")
    assert (planned.code, planned.json["done"]) == (ExitCode.SUPPORTED, 1)
    assert pick(planned.json["shapes"], "runs") == [(2,)]
    [line] = planned.err.splitlines()
    assert line.startswith(f"{bad}: left out: {path}: ")
    for more, trained in (("4", 2), ("4", 0)):
        done = sweep_command("--seeds", more, "--pack", "1", "--json")
        assert done.code == ExitCode.INTERNAL
        assert f"{bad}: failed: {path}: " in done.err
        assert done.err.count(": finished, ") == trained
        rows = {row["run"]: row for row in done.json["runs"]}
        assert [row["status"] for name, row in rows.items() if name != bad] == ["finished"] * 3
        assert (rows[bad]["status"], rows[bad]["final"]) == ("damaged", None)
        assert str(path) in rows[bad]["message"]
    assert path.read_bytes() == kept


def test_a_failure_is_never_reported_of_another_run(sweep_command: Sweep) -> None:
    names = [run["run"] for run in sweep_command("--seeds", "2", "--json").json["runs"]]
    for path in (*RUNS.glob("*/run.json"), *RUNS.glob("*.csv")):
        path.unlink()
    (RUNS / f"{names[1]}.csv").write_text("not ours\n", encoding="utf-8")
    done = sweep_command("--seeds", "2", "--pack", "1")
    assert f"{names[0]}: finished, " in done.err
    assert f"{names[1]}: failed: " in done.err
    assert f"{names[0]}: failed: " not in done.err


@pytest.mark.parametrize("at", [1, 4])
def test_a_stop_saves_and_the_same_command_resumes(
    sweep_command: Sweep, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    event = PlainReporter.event

    def stop(reporter: PlainReporter, happened: Event) -> None:
        event(reporter, happened)
        if isinstance(happened, Evaluated) and happened.row["Step"] == at:
            signal.raise_signal(signal.SIGTERM)

    handler = signal.getsignal(signal.SIGTERM)
    arguments = ["--seeds", "4", "--pack", "2", "--json"]
    with monkeypatch.context() as patch:
        patch.setattr(PlainReporter, "event", stop)
        done = sweep_command(*arguments)
    assert signal.getsignal(signal.SIGTERM) is handler
    assert done.code == ExitCode.STOPPED
    rows = done.json["runs"]
    assert pick(rows, "status", "final") == [("stopped", None)] * 2 + [("missing", None)] * 2
    assert [manifest(row["run"]).steps_done for row in rows[:2]] == [at + 1] * 2
    assert done.err.endswith("the same command resumes from there\n")
    rest = sweep_command(*arguments)
    assert rest.code == ExitCode.SUPPORTED
    assert f"resumed after step {at + 1}" in rest.err
    assert sweep_command(*arguments, "--runs-dir", "undisturbed").code == ExitCode.SUPPORTED
    for row in rows:
        csv = f"{row['run']}.csv"
        assert csv_without_speed(RUNS / csv) == csv_without_speed(Path("undisturbed") / csv)


def test_a_full_disk_is_one_line(sweep_command: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> NoReturn:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "_write_files", refuse)
    done = sweep_command("--seeds", "2", "--pack", "1")
    assert (done.code, done.out) == (ExitCode.USAGE, "")
    last = done.err.splitlines()[-1]
    assert last.startswith("error: ")
    assert last.endswith("No space left on device")
    # the sweep ends there
    assert len(list(RUNS.glob("*.csv"))) == 1


@pytest.mark.parametrize(
    ("program", "code", "said"),
    [
        ("import os; os.kill(os.getpid(), 9)", ExitCode.INTERNAL, "ended with exit code -9"),
        ("import sys; print('error: no GPU'); sys.exit(2)", ExitCode.USAGE, "error: no worker could start a run"),
        ("import sys; print('error: a bug'); sys.exit(3)", ExitCode.INTERNAL, "ended with exit code 3: error: a bug"),
    ],
)
def test_workers_that_trained_nothing_are_no_success(
    sweep_command: Sweep, monkeypatch: pytest.MonkeyPatch, program: str, code: ExitCode, said: str
) -> None:
    def start(runs: Path, device: str, arguments: list[str], log: Path) -> subprocess.Popen[bytes]:
        with log.open("wb") as file:
            return subprocess.Popen([sys.executable, "-S", "-c", program], stdout=file, stderr=file)

    monkeypatch.setattr(local, "_start", start)
    monkeypatch.setattr(local, "_POLL_SECONDS", 0.01)
    done = sweep_command("--device", "cpu,cpu")
    assert said in done.err
    assert done.code == code


class Ended:
    """A worker that has ended."""

    def __init__(self, code: int) -> None:
        self.returncode = code

    def poll(self) -> int:
        return self.returncode

    def wait(self) -> int:
        return self.returncode

    def kill(self) -> None:
        pass


@pytest.fixture
def two_workers(sweep_command: Sweep, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    """Sweep on two devices whose workers run in this process, one after the other."""

    def start(runs: Path, device: str, arguments: list[str], log: Path) -> Ended:
        done = call("sweep", "--configs", runs, "--device", device, *arguments)
        log.write_text(done.err, encoding="utf-8")
        return Ended(done.code)

    monkeypatch.setattr(local, "_start", start)

    def run(*more: str) -> Done:
        return sweep_command("--device", "cpu,cpu", "--pack", "1", *more)

    return run


STARTED = "2 workers on cpu, cpu"
ENDED = "error: every worker ended with an error; see the lines above"


@pytest.mark.usefixtures("third_party")
def test_workers_report_runs_that_failed_as_one_process_does(two_workers: Sweep, sweep_command: Sweep) -> None:
    arguments = ["-i", "fails", "-i", DIVERGES, "--json"]
    done = two_workers(*arguments)
    assert done.code == ExitCode.USAGE
    assert pick(done.json["runs"], "status") == [("finished",), ("failed",), ("diverged",)]
    bad = done.json["runs"][1]
    message = f"{bad['run']}: failed: {bad['message']}"
    assert done.err.splitlines() == [STARTED, message, f"error: {bad['message']}"]
    alone = sweep_command(*arguments, "--runs-dir", "alone")
    assert (alone.code, pick(alone.json["runs"], "status")) == (done.code, pick(done.json["runs"], "status"))
    assert alone.json["runs"][1]["message"] == bad["message"]
    assert message in alone.err


def test_workers_whose_runs_diverge_refute(two_workers: Sweep) -> None:
    done = two_workers("-i", DIVERGES, "--json")
    assert (done.code, done.err) == (ExitCode.REFUTED, f"{STARTED}\n")
    assert pick(done.json["runs"], "status") == [("finished",), ("diverged",)]


def test_a_damaged_run_of_workers_is_reported(two_workers: Sweep, sweep_command: Sweep) -> None:
    [row] = sweep_command("--json").json["runs"]
    path = RUNS / row["run"] / "run.json"
    path.write_text("{", encoding="utf-8")
    done = two_workers("--seeds", "3", "--json")
    assert done.code == ExitCode.INTERNAL
    assert pick(done.json["runs"], "status") == [("damaged",), ("finished",), ("finished",)]
    [started, failure] = done.err.splitlines()
    assert started == STARTED
    assert failure.startswith(f"{row['run']}: failed: {path}: ")


def test_workers_that_meet_a_full_disk_show_what_is_there(two_workers: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> NoReturn:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "_write_files", refuse)
    done = two_workers("--seeds", "2", "--json")
    assert done.code == ExitCode.USAGE
    assert pick(done.json["runs"], "status") == [("running",), ("missing",)]
    started, *errors, last = done.err.splitlines()
    assert (started, last) == (STARTED, ENDED)
    assert len(errors) == 2
    for line in errors:
        assert line.startswith("worker on cpu ended with exit code 2: error: ")
        assert line.endswith("No space left on device")


@pytest.mark.parametrize("seeds", [1, 3])
def test_workers_leave_out_a_run_of_another_user(
    two_workers: Sweep, monkeypatch: pytest.MonkeyPatch, seeds: int
) -> None:
    acquire = RunArtifacts.acquire

    def acquire_ours(artifacts: RunArtifacts) -> None:
        if artifacts.run.config.seed == 0:
            raise RunRefusedError("it belongs to another user")
        acquire(artifacts)

    monkeypatch.setattr(RunArtifacts, "acquire", acquire_ours)
    done = two_workers("--seeds", str(seeds), "--json")
    assert done.code == ExitCode.USAGE
    assert done.err.count("cannot be trained: it belongs to another user") == 2
    if seeds == 1:
        assert done.out == ""
        assert done.err.splitlines()[-1] == "error: no worker could start a run; see the lines above"
    else:
        assert pick(done.json["runs"], "status") == [("missing",), ("finished",), ("finished",)]
        assert done.err.splitlines()[-1] == ENDED
