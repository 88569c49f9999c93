"""Processes: two sweeps of one folder, sweeps that are killed, a worker for each device.

The runs wait at a gate, so that every process is at a known step, on a slow machine too.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from calling import smallest_run
from run_files import csv_without_speed, manifest

from bitnetctl import checkpoint
from bitnetctl.errors import ExitCode
from bitnetctl.records import RunPaths, read

SEEDS, STEPS = 4, 12
RUNS = Path("runs")
PATIENCE_SECONDS = 120.0

# an intervention of another distribution that changes nothing: seed k waits before step n of its training for
# as long as the file `k-n` is in the folder of gates, and writes its process number there
GATE = """
import os
import signal
import time
from pathlib import Path

from bitnetctl.intervention import Intervention


class Gate(Intervention):
    summary = "wait while a file exists"

    def configure(self, config):
        self.seed = config.seed
        return config

    def __init__(self, settings):
        super().__init__(settings)
        self.step = 0

    def state_dict(self):
        return {"step": self.step}

    def load_state_dict(self, state):
        self.step = state["step"]

    def transform_gradients(self, parameters):
        self.step += 1
        hold = Path(os.environ["GATES"]) / f"{self.seed}-{self.step}"
        stop = getattr(signal.getsignal(signal.SIGTERM), "__self__", lambda: False)
        while hold.exists() and not stop():
            hold.with_name(f"{hold.name}-reached").write_text(str(os.getpid()))
            time.sleep(0.01)
"""


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PYTHONPATH with the plug-in `gate`, that Python finds as an installed distribution."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "gate_plugin.py").write_text(GATE, encoding="utf-8")
    info = folder / "gate_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: gate-plugin\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text("[bitnetctl.interventions]\ngate = gate_plugin:Gate\n", encoding="utf-8")
    return folder


class Commands:
    """Start `bitnetctl sweep` of four runs in packs of two; its output goes to files."""

    def __init__(self, folder: Path, gate: Path, text: Path, cache: Path) -> None:
        self.folder = folder
        self.gates = folder / "gates"
        self.gates.mkdir()
        self.processes: list[subprocess.Popen[bytes]] = []
        path = os.pathsep.join(filter(None, (str(gate), os.environ.get("PYTHONPATH"))))
        self.environment = {
            **os.environ,
            "PYTHONPATH": path,
            "GATES": str(self.gates),
            "XDG_CACHE_HOME": str(cache),
            "OMP_NUM_THREADS": "1",
            # a table is as wide as its terminal
            "COLUMNS": "200",
        }
        self.arguments = [*smallest_run(text), "--sizes", "16", "--steps", str(STEPS), "--seeds", str(SEEDS)]
        self.arguments += ["-i", "gate", "--no-baseline", "--pack", "2"]

    def start(self, *more: str) -> subprocess.Popen[bytes]:
        number = len(self.processes)
        command = [sys.executable, "-m", "bitnetctl", "sweep", *self.arguments, *more]
        with (self.folder / f"{number}.out").open("wb") as out, (self.folder / f"{number}.err").open("wb") as err:
            process = subprocess.Popen(
                command, cwd=self.folder, env=self.environment, stdin=subprocess.DEVNULL, stdout=out, stderr=err
            )
        self.processes.append(process)
        return process

    def said(self, process: subprocess.Popen[bytes]) -> str:
        """Return what it has written to stderr."""
        return (self.folder / f"{self.processes.index(process)}.err").read_text(encoding="utf-8")

    def end(self, process: subprocess.Popen[bytes]) -> int:
        return process.wait(PATIENCE_SECONDS)

    def hold(self, seed: int, step: int) -> None:
        (self.gates / f"{seed}-{step}").touch()

    def let_go(self, seed: int, step: int) -> None:
        (self.gates / f"{seed}-{step}").unlink()

    def reached(self, seed: int, step: int) -> int:
        """Wait until a run is at a gate; return the number of the process that trains it."""
        file = self.gates / f"{seed}-{step}-reached"
        seen: list[str] = []

        def is_written() -> bool:
            # read once: the gate may be writing it again
            text = file.read_text(encoding="utf-8") if file.exists() else ""
            seen[:] = [text] if text else []
            return bool(seen)

        self.wait_until(is_written)
        return int(seen[0])

    def wait_until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            alive = [process for process in self.processes if process.poll() is None]
            assert alive or condition(), [self.said(process) for process in self.processes]
            assert time.monotonic() < deadline, [self.said(process) for process in self.processes]
            time.sleep(0.02)

    def close(self) -> None:
        for file in self.gates.iterdir():
            file.unlink()
        for process in self.processes:
            if process.poll() is None:
                process.terminate()
        for process in self.processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()
            process.wait()


@pytest.fixture
def commands(tmp_path: Path, gate: Path, tiny_text: Path, shared_cache: Path) -> Iterator[Commands]:
    commands = Commands(tmp_path, gate, tiny_text, shared_cache)
    yield commands
    commands.close()


class Undisturbed:
    """The same four runs, trained by one undisturbed process."""

    def __init__(self, runs_dir: Path) -> None:
        self.runs_dir = runs_dir
        self.names = sorted((path.stem for path in runs_dir.glob("*.csv")), key=self.seed)

    def seed(self, name: str) -> int:
        return int(name.split("-s")[-1].split("-")[0])

    def check(self, runs_dir: Path) -> None:
        """Compare all four: the rows, every byte of the CSV but the speed, the status."""
        assert sorted(path.stem for path in runs_dir.glob("*.csv")) == sorted(self.names)
        for name in self.names:
            assert read(runs_dir / f"{name}.csv", partial=False).frame["Step"].to_list() == [1, 4, 8, 12]
            assert csv_without_speed(runs_dir / f"{name}.csv") == csv_without_speed(self.runs_dir / f"{name}.csv")
            assert (manifest(name).status, manifest(name).steps_done) == ("finished", STEPS)


@pytest.fixture(scope="module")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, gate: Path, tiny_text: Path, shared_cache: Path
) -> Undisturbed:
    folder = tmp_path_factory.mktemp("undisturbed")
    commands = Commands(folder, gate, tiny_text, shared_cache)
    process = commands.start()
    assert commands.end(process) == ExitCode.SUPPORTED, commands.said(process)
    undisturbed = Undisturbed(folder / "runs")
    assert [undisturbed.seed(name) for name in undisturbed.names] == [0, 1, 2, 3]
    return undisturbed


def reported_rows(said: str, name: str) -> list[int]:
    """Return the steps of the rows that a process reported."""
    lines = [line.split() for line in said.splitlines() if line.startswith(f"{name}  step ")]
    return [int(line[2].split("/")[0]) for line in lines]


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


# two sweeps, and sweeps that are killed


def test_two_sweeps_share_a_folder(commands: Commands, undisturbed: Undisturbed) -> None:
    commands.hold(0, 2)
    first = commands.start()
    assert commands.reached(0, 2) == first.pid
    second = commands.start()
    # out of work, the second waits for the first
    waiting = "waiting for runs that another process trains"
    commands.wait_until(lambda: waiting in commands.said(second))
    assert second.poll() is None
    commands.let_go(0, 2)
    assert [commands.end(first), commands.end(second)] == [ExitCode.SUPPORTED] * 2
    rows = [[reported_rows(commands.said(process), name) for name in undisturbed.names] for process in (first, second)]
    everything: list[int] = [1, 4, 8, 12]
    assert rows == [[everything, everything, [], []], [[], [], everything, everything]]
    assert commands.said(second).count(waiting) == 1
    assert waiting not in commands.said(first)
    undisturbed.check(RUNS)


def test_runs_of_a_sweep_that_is_killed_are_taken_over(commands: Commands, undisturbed: Undisturbed) -> None:
    commands.hold(0, 6)
    first = commands.start()
    commands.reached(0, 6)
    second = commands.start()
    commands.wait_until(lambda: "waiting for runs" in commands.said(second))
    first.kill()
    commands.end(first)
    # time stamps that are wrong by decades: locks end with their owner, not with time
    for path in RUNS.rglob("*"):
        os.utime(path, (1 << 33, 1 << 33) if path.is_dir() else (0, 0))
    commands.let_go(0, 6)
    assert commands.end(second) == ExitCode.SUPPORTED
    rows = [reported_rows(commands.said(second), name) for name in undisturbed.names]
    # from the checkpoint of step 4
    assert rows == [[8, 12], [8, 12], [1, 4, 8, 12], [1, 4, 8, 12]]
    undisturbed.check(RUNS)


def test_another_name_of_the_folder_is_the_same_folder(commands: Commands, undisturbed: Undisturbed) -> None:
    commands.hold(0, 2)
    first = commands.start()
    commands.reached(0, 2)
    (commands.folder / "mount").symlink_to(RUNS)
    second = commands.start("--runs-dir", "mount")
    commands.wait_until(lambda: "waiting for runs that another process trains" in commands.said(second))
    commands.let_go(0, 2)
    assert [commands.end(first), commands.end(second)] == [ExitCode.SUPPORTED] * 2
    rows = [[reported_rows(commands.said(process), name) for process in (first, second)] for name in undisturbed.names]
    everything = [1, 4, 8, 12]
    assert rows == [[everything, []]] * 2 + [[[], everything]] * 2
    undisturbed.check(RUNS)


@pytest.mark.slow
def test_a_sweep_killed_twice_finishes(commands: Commands, undisturbed: Undisturbed) -> None:
    # between two checkpoints of the first pack, then before the first checkpoint of the second
    processes = []
    for seed, step in ((0, 6), (2, 3)):
        commands.hold(seed, step)
        processes.append(commands.start())
        commands.reached(seed, step)
        assert {manifest(name).status for name in undisturbed.names[seed : seed + 2]} == {"running"}
        processes[-1].send_signal(signal.SIGKILL)
        assert commands.end(processes[-1]) == -signal.SIGKILL
        commands.let_go(seed, step)
    processes.append(commands.start())
    assert commands.end(processes[-1]) == ExitCode.SUPPORTED
    rows = [[reported_rows(commands.said(process), name) for process in processes] for name in undisturbed.names]
    assert rows[0] == rows[1] == [[1, 4], [8, 12], []]
    assert rows[2] == rows[3] == [[], [1], [1, 4, 8, 12]]
    undisturbed.check(RUNS)


# a worker for each device


# all four would fit into memory at once
@pytest.mark.parametrize("pack", ["2", "auto"])
def test_workers_divide_the_runs(commands: Commands, undisturbed: Undisturbed, pack: str) -> None:
    for seed in (0, 2):
        commands.hold(seed, 2)
    parent = commands.start("--device", "cpu,cpu", "--pack", pack)
    owners = {commands.reached(0, 2), commands.reached(2, 2)}
    assert len(owners - {parent.pid}) == 2
    for seed in (0, 2):
        commands.let_go(seed, 2)
    assert commands.end(parent) == ExitCode.SUPPORTED
    assert commands.said(parent) == "2 workers on cpu, cpu\n"
    undisturbed.check(RUNS)
    # the parent prints the results of its workers
    table = (commands.folder / "0.out").read_text(encoding="utf-8").splitlines()
    assert len(table) == 1 + SEEDS
    assert all("finished" in line for line in table[1:])


@pytest.mark.slow
def test_a_stop_reaches_every_worker(commands: Commands, undisturbed: Undisturbed) -> None:
    for seed in (0, 2):
        commands.hold(seed, 6)
    parent = commands.start("--device", "cpu,cpu")
    owners = [commands.reached(0, 6), commands.reached(2, 6)]
    parent.send_signal(signal.SIGTERM)
    assert commands.end(parent) == ExitCode.STOPPED
    assert not any(map(is_alive, owners))
    for name in undisturbed.names:
        assert (manifest(name).status, manifest(name).steps_done) == ("stopped", 6)
        assert checkpoint.steps(RunPaths(RUNS, name).checkpoints) == [4, 6]
    for seed in (0, 2):
        commands.let_go(seed, 6)
    again = commands.start("--device", "cpu,cpu")
    assert commands.end(again) == ExitCode.SUPPORTED
    undisturbed.check(RUNS)
