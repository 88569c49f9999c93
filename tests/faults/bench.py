"""A tiny run and a tiny sweep, trained by the command line in forked children, and what must be true of their files."""

import contextlib
import importlib
import json
import os
import random
import select
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from bitnetctl import checkpoint, cli
from bitnetctl.errors import CheckpointError, ExitCode
from bitnetctl.hardware import onednn_keeps_fp32
from bitnetctl.plugins import registry
from bitnetctl.records import Rollback, read_manifest

from .hook import NONE, Call, Fault, Hook

_Case = TypeVar("_Case")

STEPS, EVERY, SAVED_EVERY = 12, 4, 3
RUN = "run"
SEEDS = 3


@dataclass(frozen=True)
class Ended:
    """How a child ended: exit code (minus the signal), all of its output, the write calls, what it has imported."""

    code: int
    said: str
    calls: list[Call]
    modules: list[str]
    seconds: float

    @property
    def errors(self) -> list[str]:
        """The error messages."""
        return [line for line in self.said.splitlines() if line.startswith("error: ")]


@dataclass
class Tally:
    """One row of the table: the number of cases, and what was lost in which."""

    fault: str
    tried: int = 0
    lost: list[str] = field(default_factory=list)

    def count(self, case: str, loss: str | None) -> None:
        """Count a case; `loss` says what was lost, None if nothing was."""
        self.tried += 1
        if loss is not None:
            self.lost.append(f"{case}: {loss}")


class Bench:
    """Children of this process train below `folder`, with the preloaded library armed as each case wants it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.disk = folder / "disk"
        self.runs = self.disk / "runs"
        self._hook = Hook()
        self._text = folder / "text.txt"
        self._text.write_text(_words(60_000), encoding="utf-8")
        self.disk.mkdir()
        registry.load_all()
        onednn_keeps_fp32()
        self._preload()

    def arguments(self, command: str, *more: str) -> list[str]:
        """Return the command line of the tiny run or sweep."""
        settings = {
            "steps": STEPS,
            "model.hidden_size": 16,
            "model.num_layers": 1,
            "data.source": f"file:{self._text}",
            "data.tokenizer": "bpe:300",
            "data.batch_size": 2,
            "data.sequence_length": 16,
            "schedule.warmup_steps": 2,
            "probe.positions": 64,
            "probe.eval_every_steps": EVERY,
        }
        texts = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
        common = ["--recipe", "quick", "--device", "cpu", "--checkpoint-every", str(SAVED_EVERY), *texts, *more]
        return [command, *common, "--runs-dir", str(self.runs)]

    @cached_property
    def train(self) -> list[str]:
        """The command line of the tiny run: shuffled order, an intervention of each kind."""
        arm = "adaptive-clipping+momentum-reset:every=5+label-smoothing"
        return self.arguments("train", "--name", RUN, "--set", "data.order=shuffled", "-i", arm)

    @cached_property
    def rolled_back(self) -> list[str]:
        """The command line of a run that its decay makes diverge in stage 2 until its learning rate is a quarter."""
        arm = "decoupled-decay+wd-schedule:stage2=1.5e6"
        return self.arguments("train", "--name", RUN, "-i", arm, "--on-divergence", "rollback")

    def sweep(self, pack: int) -> list[str]:
        """Return the command line of the tiny sweep."""
        return self.arguments("sweep", "--seeds", str(SEEDS), "--pack", str(pack), "--keep-weights")

    def call(self, arguments: Sequence[str], fault: Fault = NONE, kill_after: float | None = None) -> Ended:
        """Run a command line in a child and wait for it; kill it after so many seconds if it is still there."""
        return self.start(arguments, fault).wait(kill_after)

    def undisturbed(self, arguments: Sequence[str]) -> Ended:
        """Run a command line without a fault; raises RuntimeError where it fails all the same."""
        ended = self.call(arguments)
        if ended.code:
            raise RuntimeError(f"the undisturbed training failed:\n{ended.said}")
        return ended

    def start(self, arguments: Sequence[str], fault: Fault = NONE, name: str = "child") -> "Child":
        """Start a command line in a child."""
        files = self.folder / f"{name}.txt", self.folder / f"{name}.json"
        for file in files:
            file.unlink(missing_ok=True)
        # locks that other threads hold at a fork stay locked in the child, so nothing is trained in this process
        if len(list(Path("/proc/self/task").iterdir())) > 1:
            raise RuntimeError("a process with threads cannot be forked")
        pid = os.fork()
        if pid == 0:
            self._be_child(arguments, fault, *files)
        return Child(pid, *files)

    def _be_child(self, arguments: Sequence[str], fault: Fault, said: Path, counts: Path) -> None:
        code: int = ExitCode.INTERNAL
        try:
            with said.open("wb", buffering=0) as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            self._hook.arm(self.runs, fault)
            code = cli.run(list(arguments))
            counted = [(call.name, call.path) for call in self._hook.disarm()]
            # whole or absent, whenever the child is killed
            temporary = counts.with_suffix(".temporary")
            temporary.write_text(json.dumps({"calls": counted, "modules": list(sys.modules)}), encoding="utf-8")
            temporary.rename(counts)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    def _preload(self) -> None:
        """Import what an undisturbed training imports, so that its children take only a fifth of a second.

        A sweep imports pandas besides, and so pyarrow, whose thread forbids a fork.
        """
        for module in self.undisturbed(self.train).modules:
            # some extensions put names into sys.modules that cannot be imported
            with contextlib.suppress(ImportError):
                importlib.import_module(module)
        self.clear()

    def clear(self) -> None:
        """Remove all runs."""
        shutil.rmtree(self.runs, ignore_errors=True)

    def keep(self, name: str) -> Path:
        """Move all runs to a folder of that name."""
        kept = self.folder / name
        self.runs.rename(kept)
        return kept

    def put(self, kept: Path) -> None:
        """Copy runs that were kept to where they are trained."""
        self.clear()
        shutil.copytree(kept, self.runs)


class Child:
    """A command line that runs in a process of its own."""

    def __init__(self, pid: int, said: Path, counts: Path) -> None:
        self.pid = pid
        self._said = said
        self._counts = counts
        self._started = time.monotonic()

    def wait(self, kill_after: float | None = None) -> Ended:
        """Wait for its end; kill it after `kill_after` seconds."""
        if kill_after is not None:
            handle = os.pidfd_open(self.pid)
            if not select.select([handle], [], [], kill_after)[0]:
                os.kill(self.pid, signal.SIGKILL)
            os.close(handle)
        _, status = os.waitpid(self.pid, 0)
        seconds = time.monotonic() - self._started
        said = ""
        counts: dict[str, Any] = {"calls": [], "modules": []}
        # a child that was killed early has written neither file
        with contextlib.suppress(FileNotFoundError):
            said = self._said.read_text(encoding="utf-8")
            counts = json.loads(self._counts.read_text(encoding="utf-8"))
        calls = [Call(*call) for call in counts["calls"]]
        return Ended(os.waitstatus_to_exitcode(status), said, calls, counts["modules"], seconds)


@dataclass(frozen=True)
class Truth:
    """The files of undisturbed runs, with which those of disturbed ones are compared."""

    folder: Path
    calls: list[Call]
    seconds: float
    command: Sequence[str] = ()

    @classmethod
    def of(cls, bench: Bench, arguments: Sequence[str], name: str, times: int = 1) -> "Truth":
        """Train undisturbed `times` times; `seconds` is that of the fastest."""
        seconds = []
        for _ in range(times):
            bench.clear()
            ended = bench.undisturbed(arguments)
            seconds.append(ended.seconds)
        return cls(bench.keep(name), ended.calls, min(seconds), arguments)

    @cached_property
    def names(self) -> list[str]:
        """Names of the runs."""
        return sorted(path.stem for path in self.folder.glob("*.csv"))

    def put_in_place(self, step: int) -> int:
        """Return the number of the call that puts the checkpoint of `step` in place."""
        path = f"/{RUN}/checkpoints/step-{step:08d}"
        return next(at for at, call in enumerate(self.calls, 1) if call.name == "rename" and call.path == path)

    def saved(self, name: str, at: int) -> list[int]:
        """Steps of the checkpoints of a run that were in place before call `at`."""
        start = f"/{name}/checkpoints/step-"
        renames = [call.path for call in self.calls[: at - 1] if call.name == "rename" and call.path.startswith(start)]
        return [int(path.removeprefix(start)) for path in renames]

    def finished(self, runs: Path, *, leftovers: bool = False) -> str | None:
        """Say how finished runs differ from the undisturbed ones; `leftovers`: other files may be there as well."""
        for name in self.names:
            if csv_without_speed(runs / f"{name}.csv") != csv_without_speed(self.folder / f"{name}.csv"):
                return f"{name}: the CSV differs"
            weights = Path(name, "checkpoints", f"step-{STEPS:08d}", "model.safetensors")
            if (runs / weights).read_bytes() != (self.folder / weights).read_bytes():
                return f"{name}: the weights differ"
            if not is_finished(runs, name):
                return f"{name}: run.json does not say finished"
            if _rollbacks(runs, name) != _rollbacks(self.folder, name):
                return f"{name}: run.json has other rollbacks"
        ours, theirs = files_below(runs), files_below(self.folder)
        if ours == theirs or (leftovers and ours > theirs):
            return None
        return f"other files are there: {sorted(ours ^ theirs)}"

    def intact(self, runs: Path, name: str, at: int | None = None) -> str | None:
        """Say which guarantee is broken for a run that was interrupted, at call `at` if that is known."""
        csv = runs / f"{name}.csv"
        if csv.exists():
            # what follows the last newline is a row that was being written
            rows = [line.rpartition(b",")[0] for line in csv.read_bytes().split(b"\n")[:-1]]
            if rows != csv_without_speed(self.folder / f"{name}.csv")[: len(rows)]:
                return f"{name}: rows in the CSV are not those of the undisturbed run"
        there = checkpoint.steps(runs / name / "checkpoints")
        for step in there:
            try:
                checkpoint.load(checkpoint.path_of(runs / name / "checkpoints", step))
            except CheckpointError as error:
                return f"{name}: {error}"
        if at is not None:
            saved = self.saved(name, at)
            # a finished run keeps only the last
            needed = saved[-1:] if STEPS in saved else saved[-checkpoint.KEPT :]
            if not set(needed) <= set(there):
                return f"{name}: of the checkpoints {needed}, {there} are left"
        return None


def csv_without_speed(csv: Path) -> list[bytes]:
    """Return the lines of a CSV without the last column, the measured speed."""
    return [line.rpartition(b",")[0] for line in csv.read_bytes().splitlines()]


def files_below(folder: Path) -> set[str]:
    """Return the paths of all files below a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def usable_steps(folder: Path) -> list[int]:
    """Return the steps of the checkpoints that can be used."""
    usable = []
    for step in checkpoint.steps(folder):
        with contextlib.suppress(CheckpointError):
            checkpoint.load(checkpoint.path_of(folder, step))
            usable.append(step)
    return usable


def is_finished(runs: Path, name: str) -> bool:
    """Whether a run's manifest says so."""
    manifest = read_manifest(runs / name)
    return manifest is not None and manifest.status == "finished"


def _rollbacks(runs: Path, name: str) -> list[Rollback]:
    manifest = read_manifest(runs / name)
    return [] if manifest is None else manifest.rollbacks


def resumes(bench: Bench, truth: Truth) -> str | None:
    """Train again after a fault: say what was lost unless the run resumes from its last good state to the same end."""
    there = usable_steps(bench.runs / RUN / "checkpoints")
    expected = f"resumed after step {there[-1]}\n" if there else "parameters on cpu\n"
    if is_finished(bench.runs, RUN):
        expected = "already finished"
    ended = bench.call(truth.command)
    if ended.code:
        return f"started again, it ends with {ended.code}: {ended.said[-300:]}"
    if expected not in ended.said:
        return f"it did not resume from {there}: {ended.said[:300]}"
    return truth.finished(bench.runs)


def _file_of(call: Call) -> str:
    """Return the kind of file that a write call concerns."""
    if "/checkpoints" in call.path:
        return "a checkpoint"
    return "the CSV" if ".csv" in call.path else "run.json, lock, folders"


def by_file(calls: Sequence[Call]) -> dict[str, list[int]]:
    """Return the numbers of the calls by the kind of file."""
    files: dict[str, list[int]] = {}
    for at, call in enumerate(calls, 1):
        files.setdefault(_file_of(call), []).append(at)
    return files


def each(cases: Sequence[_Case], stride: int, seed: int = 0, least: int = 2) -> Sequence[_Case]:
    """Return every `stride`-th of the cases, or more of them to have at least so many, from one that `seed` draws."""
    stride = max(1, min(stride, len(cases) // least))
    return cases[random.Random(seed).randrange(stride) :: stride]


def _words(characters: int) -> str:
    generator = random.Random(0)
    words = ["".join(generator.choices("abcdefghiklmnorstu", k=generator.randint(2, 8))) for _ in range(500)]
    weights = [1 / rank for rank in range(1, len(words) + 1)]
    lines: list[str] = []
    while sum(map(len, lines)) < characters:
        lines.append(" ".join(generator.choices(words, weights, k=12)).capitalize() + ".\n")
    return "".join(lines)
