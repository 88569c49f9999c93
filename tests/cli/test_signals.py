"""Stop requests by signals: the flag, the second interrupt, the handlers; then real processes that receive signals."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from calling import smallest_run
from run_files import csv_without_speed

from bitnetctl import checkpoint
from bitnetctl.errors import ExitCode
from bitnetctl.records import RunPaths, read_manifest
from bitnetctl.signals import StopRequest

STOPPING = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2]


def send(number: signal.Signals) -> None:
    signal.raise_signal(number)
    # the interpreter runs handlers between two instructions
    time.sleep(0)


@pytest.fixture
def earlier() -> Callable[[int, object], None]:
    """A handler that was installed before."""

    def handler(number: int, frame: object) -> None:
        raise AssertionError("the earlier handler must not run")

    return handler


@pytest.mark.parametrize("number", STOPPING)
def test_a_signal_only_sets_the_flag(number: signal.Signals) -> None:
    with StopRequest() as stop:
        assert not stop()
        assert stop.signal_name is None
        send(number)
        assert stop()
        assert stop.signal_name == number.name
    assert stop()


def test_a_second_interrupt_raises() -> None:
    with StopRequest() as stop:
        send(signal.SIGINT)
        assert stop()
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


def test_a_repeated_sigterm_changes_nothing() -> None:
    with StopRequest() as stop:
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            send(number)
        assert stop()
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


@pytest.mark.parametrize("number", STOPPING)
def test_handlers_are_restored(number: signal.Signals, earlier: Callable[[int, object], None]) -> None:
    original = signal.signal(number, earlier)
    try:
        with StopRequest():
            assert signal.getsignal(number) is not earlier
        assert signal.getsignal(number) is earlier
        with pytest.raises(RuntimeError, match="broken"), StopRequest():
            raise RuntimeError("broken")
        assert signal.getsignal(number) is earlier
    finally:
        signal.signal(number, original)


def test_a_hangup_that_is_ignored_stays_ignored() -> None:
    original = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            send(signal.SIGHUP)
            assert not stop()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, original)


def test_what_comes_between_two_interrupts_changes_nothing() -> None:
    with StopRequest() as stop:
        send(signal.SIGINT)
        send(signal.SIGTERM)
        assert stop.signal_name == "SIGTERM"
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


# real processes

WHILE_LOADED = """
import os, signal, sys
class Finder:
    def find_spec(name, path, target=None):
        if name == "typer":
            for number in sys.argv.pop().split("+"):
                os.kill(os.getpid(), int(number))
sys.meta_path.insert(0, Finder)
from bitnetctl.__main__ import main
main()
"""


def signalled_while_loaded(numbers: list[signal.Signals], *arguments: str) -> tuple[int, str]:
    """Send signals to a command while it imports its modules; return its exit code and last line."""
    command = [sys.executable, "-c", WHILE_LOADED, *arguments, "+".join(str(int(number)) for number in numbers)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == ""
    return done.returncode, done.stderr.splitlines()[-1]


@pytest.mark.parametrize("number", STOPPING)
def test_a_signal_while_a_command_is_loaded(number: signal.Signals) -> None:
    said = f"stopped by {number.name} before it began; the same command starts again"
    assert signalled_while_loaded([number], "config", "schema") == (ExitCode.STOPPED, said)


def test_a_signal_while_a_training_is_loaded(tiny_text: Path) -> None:
    arguments = ["train", "--recipe", "quick", "--set", f"data.source=file:{tiny_text}", "--device", "cpu"]
    code, said = signalled_while_loaded([signal.SIGUSR1], *arguments)
    assert code == ExitCode.STOPPED
    assert said.startswith("stopped by SIGUSR1 while preparing: ")
    assert not Path("runs").exists()


def test_interrupts_while_a_command_is_loaded() -> None:
    twice = [signal.SIGINT, signal.SIGTERM, signal.SIGINT]
    assert signalled_while_loaded(twice, "train") == (ExitCode.INTERRUPTED, "error: interrupted")


STEPS = 12
MOMENTS = ["building", "step", "evaluation", "saving"]
NAMES = [number.name for number in STOPPING]


class Case(NamedTuple):
    """How a command line ended."""

    code: int
    out: str
    err: str
    runs_dir: Path


class Processes:
    """Command lines in processes of their own, forked from one that has imported everything."""

    def __init__(self, folder: Path, text: Path, cache: Path) -> None:
        self.folder = folder
        self.config = [*smallest_run(text), "--steps", str(STEPS), "--device", "cpu"]
        # no threads in what is forked
        environment = {"XDG_CACHE_HOME": str(cache), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).parents[1] / "signalled.py")],
            env={name: value for name, value in os.environ.items() if not name.startswith("SLURM_")} | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._send(self.case("train", "warm"))

    def case(self, command: str, name: str, **fields: Any) -> dict[str, Any]:
        """Describe a command line in the runs folder `name`."""
        size = ["--size", "16"] if command == "train" else ["--sizes", "16"]
        arguments = [command, *self.config, *size, "--runs-dir", str(self.folder / name), *fields.pop("more", [])]
        return {"arguments": arguments, "name": name, **fields}

    def run(self, cases: list[dict[str, Any]]) -> list[Case]:
        """Run the cases, one after the other."""
        done = []
        assert self.process.stdout is not None
        for case in cases:
            out, err = (self.folder / f"case.{kind}" for kind in ("out", "err"))
            for path in (out, err):
                path.unlink(missing_ok=True)
            self._send({**case, "out": str(out), "err": str(err)})
            code = int(self.process.stdout.readline())
            said = out.read_text(encoding="utf-8"), err.read_text(encoding="utf-8")
            done.append(Case(code, *said, self.folder / case["name"]))
        return done

    def _send(self, case: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        print(json.dumps(case), file=self.process.stdin, flush=True)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, tiny_text: Path, shared_cache: Path) -> Iterator[Processes]:
    server = Processes(tmp_path_factory.mktemp("warm"), tiny_text, shared_cache)
    with server.process:
        yield server
        server.process.kill()


@pytest.fixture
def processes(server: Processes, tmp_path: Path) -> Processes:
    server.folder = tmp_path
    return server


def csvs(runs_dir: Path) -> dict[str, list[bytes]]:
    return {path.name: csv_without_speed(path) for path in sorted(runs_dir.glob("*.csv"))}


def status(runs_dir: Path) -> list[tuple[str, int]]:
    manifests = [read_manifest(path) for path in sorted(runs_dir.glob("*.csv"))]
    return [(manifest.status, manifest.steps_done) for manifest in manifests if manifest is not None]


def test_every_signal_at_every_moment_of_a_training(processes: Processes) -> None:
    met = [(at, name) for at in MOMENTS for name in NAMES]
    cases = [processes.case("train", "undisturbed")]
    cases += [processes.case("train", f"{at}-{name}", at=at, signals=[name]) for at, name in met]
    undisturbed, *done = processes.run(cases)
    assert undisturbed.code == ExitCode.SUPPORTED
    expected = csvs(undisturbed.runs_dir)
    # a stop that is requested while step n is evaluated or saved takes effect after step n + 1
    stopped_after = {"step": 5, "evaluation": 5, "saving": 5}
    for (at, name), stopped in zip(met, done, strict=True):
        assert (stopped.code, stopped.out) == (ExitCode.STOPPED, ""), (at, name)
        if at == "building":
            assert stopped.err.startswith(f"stopped by {name} while preparing: choosing the number of threads; ")
            continue
        assert f"stopped at step {stopped_after[at]}, checkpoint saved\n" in stopped.err
        assert stopped.err.endswith(f"the same command resumes from step {stopped_after[at]}\n")
        assert status(stopped.runs_dir) == [("stopped", stopped_after[at])]
    # one of each moment, with different signals
    chosen = [(at, NAMES[index]) for index, at in enumerate(MOMENTS)]
    for (at, name), again in zip(
        chosen, processes.run([processes.case("train", f"{at}-{name}") for at, name in chosen]), strict=True
    ):
        assert again.code == ExitCode.SUPPORTED
        assert (f"resumed after step {stopped_after.get(at)}" in again.err) == (at in stopped_after)
        assert status(again.runs_dir) == [("finished", STEPS)]
        assert csvs(again.runs_dir) == expected, (at, name)


def test_repeated_signals(processes: Processes) -> None:
    once = ["SIGTERM", "SIGTERM"], ["SIGUSR1", "SIGTERM", "SIGTERM"], ["SIGINT", "SIGTERM"]
    twice = [(at, ["SIGINT", "SIGTERM", "SIGINT"]) for at in ("reading", *MOMENTS)]
    cases = [
        processes.case("train", "undisturbed"),
        *(processes.case("train", f"once-{i}", at="step", signals=names) for i, names in enumerate(once)),
        # a scheduler that repeats its signal while Python exits
        processes.case("train", "leaving", at="step", signals=["SIGTERM"], at_exit="SIGTERM"),
        *(processes.case("train", f"twice-{at}", at=at, signals=names) for at, names in twice),
        *(processes.case("train", f"twice-{at}") for at, _ in twice),
        # at the last step there is nothing left to stop
        processes.case("train", "last", at="finishing", signals=["SIGTERM"]),
        processes.case("train", "nohup", at="step", signals=["SIGHUP"], nohup=True),
    ]
    done = processes.run(cases)
    expected = csvs(done[0].runs_dir)
    assert [case.code for case in done[1:5]] == [ExitCode.STOPPED] * 4
    interrupted, again = done[5 : 5 + len(twice)], done[5 + len(twice) : 5 + 2 * len(twice)]
    assert [(case.code, case.out) for case in interrupted] == [(ExitCode.INTERRUPTED, "")] * len(twice)
    assert all(case.err.endswith("error: interrupted\n") for case in interrupted)
    for case in [*again, *done[-2:]]:
        assert case.code == ExitCode.SUPPORTED
        assert csvs(case.runs_dir) == expected
    for case in again:
        (csv,) = case.runs_dir.glob("*.csv")
        assert checkpoint.steps(RunPaths(case.runs_dir, csv.stem).checkpoints) == [STEPS]


def test_a_stop_between_two_runs_and_in_verify(processes: Processes) -> None:
    sweep = ["--seeds", "2", "--pack", "1"]
    both = [("sweep", [*sweep, "--json"]), ("verify", sweep)]
    cases = []
    for command, more in both:
        cases += [
            processes.case(command, f"{command}-undisturbed", more=more),
            processes.case(command, command, more=more, at="finishing", signals=["SIGUSR1"]),
            processes.case(command, command, more=more, at="step", signals=["SIGUSR2"]),
            processes.case(command, command, more=more, at="finishing", signals=["SIGTERM"]),
        ]
    done = processes.run(cases)
    for undisturbed, between, within, last in (done[:4], done[4:]):
        assert [between.code, within.code] == [ExitCode.STOPPED] * 2
        assert between.err.endswith("stopped by SIGUSR1; the same command resumes from there\n")
        assert within.err.endswith("checkpoint saved\nstopped by SIGUSR2; the same command resumes from there\n")
        # requested when everything was trained already
        assert last.code == undisturbed.code
        assert len(last.out.splitlines()) == len(undisturbed.out.splitlines())
        assert csvs(last.runs_dir) == csvs(undisturbed.runs_dir)
        assert len(csvs(last.runs_dir)) == 2
    assert [run["status"] for run in json.loads(done[1].out)["runs"]] == ["finished", "missing"]


def test_a_stop_while_the_config_is_read(processes: Processes) -> None:
    done = processes.run([processes.case("train", name, at="reading", signals=[name]) for name in NAMES])
    for name, case in zip(NAMES, done, strict=True):
        assert case.code == ExitCode.STOPPED
        assert case.err.startswith(f"stopped by {name} while preparing: ")
        assert not case.runs_dir.exists()


def test_a_stop_while_text_is_prepared(processes: Processes, tmp_path: Path) -> None:
    met = [("train", name) for name in NAMES] + [("sweep", "SIGTERM"), ("verify", "SIGUSR1")]
    cold = {"XDG_CACHE_HOME": str(tmp_path / "cold")}
    cases = [
        processes.case(command, f"{command}-{name}", at="encoding", signals=[name], environment=cold)
        for command, name in met
    ]
    done = processes.run([*cases, processes.case("train", "again", environment=cold)])
    for case, sent in zip(done, cases, strict=False):
        (name,) = sent["signals"]
        assert case.code == ExitCode.STOPPED
        assert f"stopped by {name} while preparing: encoding text; the same command resumes" in case.err
        assert not list(case.runs_dir.glob("*.csv"))
    assert done[-1].code == ExitCode.SUPPORTED
    assert len(list((tmp_path / "cold" / "bitnetctl" / "tokens").iterdir())) == 1


def test_a_closed_stderr_ends_no_training(processes: Processes) -> None:
    kinds = ["pipe", "terminal", "closed"]
    cases = [processes.case("train", "undisturbed"), *(processes.case("train", kind, stderr=kind) for kind in kinds)]
    # a terminal that closes sends SIGHUP to its processes
    cases.append(processes.case("sweep", "hangup", stderr="terminal", at="evaluation", signals=["SIGHUP"]))
    *done, hangup = processes.run(cases)
    for case in done:
        assert case.code == ExitCode.SUPPORTED
        assert case.out.endswith(".csv\n")
        assert csvs(case.runs_dir) == csvs(done[0].runs_dir)
    assert hangup.code == ExitCode.STOPPED
    assert status(hangup.runs_dir) == [("stopped", 5)]


# Ctrl-C reaches the compiler, too
COMPILER = """#!/bin/sh
[ "$1" = --version ] || kill -s INT 0
exec g++ "$@"
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_a_stop_while_kernels_are_compiled(server: Processes, shared_cache: Path, tmp_path: Path) -> None:
    compiler = tmp_path / "compiler"
    compiler.write_text(COMPILER, encoding="utf-8")
    compiler.chmod(0o755)
    environment = {
        "CXX": str(compiler),
        "TORCHDYNAMO_DISABLE": "0",
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "kernels"),
        # no compilation to detect the instruction set, nor of headers in advance
        "TORCHINDUCTOR_VEC_ISA_OK": "0",
        "TORCHINDUCTOR_CPP_CACHE_PRECOMPILE_HEADERS": "0",
        "XDG_CACHE_HOME": str(shared_cache),
    }
    command = ["train", *server.config, "--size", "16", "--engine", "compile", "--runs-dir", "runs"]
    done = subprocess.run(
        [sys.executable, "-m", "bitnetctl", *command],
        env=os.environ | environment,
        start_new_session=True,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert (done.returncode, done.stdout) == (ExitCode.STOPPED, ""), done.stderr
    said = done.stderr.splitlines()[-1]
    assert said.startswith("stopped by a signal (InductorError: CppCompileError: C++ compile error")
    assert said.endswith("; the same command resumes from what is saved")


SCONTROL = """#!/bin/sh
echo "$@" >> "$CALLS"
[ -z "$REFUSED" ] || { echo "$REFUSED" >&2; exit 1; }
"""


def test_a_job_requeues_itself(processes: Processes, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.write_text(SCONTROL, encoding="utf-8")
    scontrol.chmod(0o755)
    calls = tmp_path / "calls"
    path = {"PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}", "CALLS": str(calls)}
    job = {**path, "SLURM_JOB_ID": "41"}
    array = {**job, "SLURM_ARRAY_JOB_ID": "40", "SLURM_ARRAY_TASK_ID": "7"}
    refused = {**job, "REFUSED": "Requested operation\nis presently disabled"}
    missing = {**job, "PATH": str(tmp_path / "runs")}
    stop: dict[str, Any] = {"at": "step", "signals": ["SIGUSR1"], "more": ["--requeue"]}
    cases = [
        processes.case("train", "job", environment=job, **stop),
        processes.case("sweep", "array", environment=array, **stop),
        processes.case("verify", "refused", environment=refused, **stop),
        processes.case("train", "missing", environment=missing, **stop),
        # not stopped
        processes.case("train", "whole", environment=job, more=["--requeue"]),
        # not requested
        processes.case("train", "plain", environment=job, at="step", signals=["SIGUSR1"]),
        # not a Slurm job
        processes.case("train", "none", **stop),
    ]
    done = processes.run(cases)
    codes = [ExitCode.STOPPED] * 4 + [ExitCode.SUPPORTED, ExitCode.STOPPED, ExitCode.USAGE]
    assert [case.code for case in done] == codes
    said = [case.err.splitlines()[-1] for case in done[:4]]
    assert said[:3] == [
        "job 41 is requeued and resumes by itself",
        "job 40_7 is requeued and resumes by itself",
        "job 41 could not be requeued: Requested operation is presently disabled; submit it again to resume",
    ]
    assert said[3].startswith("job 41 could not be requeued: [Errno 2] No such file or directory")
    assert calls.read_text(encoding="utf-8").splitlines() == ["requeue 41", "requeue 40_7", "requeue 41"]
    assert done[6].err.splitlines() == [
        "error: --requeue needs a Slurm job, and SLURM_JOB_ID is not set; leave it out, or use sbatch"
    ]
    assert not done[6].runs_dir.exists()


@pytest.fixture
def slow_text(tmp_path: Path) -> Path:
    """Words that hardly repeat, so that training a tokenizer takes long."""
    letters = random.Random(0).randbytes(4_000_000).hex()
    path = tmp_path / "slow.txt"
    path.write_text("\n".join(letters[start : start + 9] for start in range(0, len(letters), 9)), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_interrupts_the_training_of_a_tokenizer(tmp_path: Path, slow_text: Path, name: str) -> None:
    arguments = ["train", "--recipe", "quick", "--set", f"data.source=file:{slow_text}", "--runs-dir", "runs"]
    arguments += ["--set", "data.tokenizer=bpe:20000"]
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cold"), "OMP_NUM_THREADS": "1"}
    tokens = tmp_path / "cold" / "bitnetctl" / "tokens"
    with subprocess.Popen(
        [sys.executable, "-m", "bitnetctl", *arguments], env=environment, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            while not list(tokens.glob(".*")):
                assert process.poll() is None
                time.sleep(0.02)
            time.sleep(1.0)
            start = time.monotonic()
            process.send_signal(getattr(signal, name))
            assert process.wait(60) == ExitCode.STOPPED
            assert time.monotonic() - start < 5.0
        finally:
            process.kill()
        assert process.stderr is not None
        said = process.stderr.read().splitlines()
    assert said[-1].startswith(f"stopped by {name} while preparing: training tokenizer; the same command resumes")
    assert not list(tokens.iterdir())
    assert not (tmp_path / "runs").exists()
