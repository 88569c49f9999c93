"""Contenders side by side: each in a process of its own, taking turns; medians, a table, JSON.

A process each, since allocator thresholds, thread settings and compiler caches belong to a process; in turns, since
the speed of a shared machine changes. The others sleep while one works.
"""

import argparse
import contextlib
import functools
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.worker import Job
from bitnetctl.errors import ConfigError
from bitnetctl.hardware import device_name, resolve_device

Turn = dict[str, Any]
_CLI_ENVIRONMENT = """
import json, os
from bitnetctl.cli import run
run(["--version"])
print(json.dumps(dict(os.environ)))
"""


class Contender:
    """An implementation or command that is timed in turns; `note` says why it cannot run, and is empty where it can."""

    def __init__(self, name: str, take: Callable[[int], Turn], *, note: str = "", failed: bool = False) -> None:
        self.name = name
        self.note = note
        self.failed = failed
        self.turns: list[Turn] = []
        self._take = take

    def take_turn(self, steps: int) -> None:
        """Run `steps` steps and keep the times; after an error it takes no more turns."""
        if self.note:
            return
        answer = self._take(steps)
        if "error" in answer:
            self.note, self.failed = answer["error"], True
        else:
            self.turns.append(answer)

    def median(self, metric: str, skip: int = 1) -> float | None:
        """Return the median of a metric per step, without the first `skip` turns (warm-up); None if unknown."""
        values = [turn[metric] / turn["steps"] for turn in self.turns[skip:]]
        return None if self.note or not values else statistics.median(values)

    def milliseconds(self, skip: int = 1) -> float | None:
        """Return the median time of a step."""
        seconds = self.median("seconds", skip)
        return None if seconds is None else 1000 * seconds

    def losses(self) -> list[float]:
        """Return the loss of every step of the first run, in order."""
        return [loss for turn in self.turns for loss in turn["losses"]]

    def threads(self) -> int | None:
        """Return the number of threads that it computes with."""
        return None if self.note or not self.turns else self.turns[-1]["threads"]

    def peak_bytes(self) -> int | None:
        """Return the peak memory, the largest of its turns."""
        return max((turn["peak_bytes"] for turn in self.turns), default=None)


@contextlib.contextmanager
def contenders(jobs: Mapping[str, Job]) -> Iterator[list[Contender]]:
    """Start a process for every job, one after the other; end them all on exit."""
    with contextlib.ExitStack() as stack:
        yield [_start(name, job, stack) for name, job in jobs.items()]


def one_by_one(jobs: Mapping[str, Job], *, rounds: int, steps: int) -> list[Contender]:
    """Start and end every contender before the next: a GPU does not have the memory for all of them."""
    ended: list[Contender] = []
    for name, job in jobs.items():
        with contenders({name: job}) as alone:
            alternate(alone, rounds=rounds, steps=steps)
        ended += alone
    return ended


def _start(name: str, job: Job, stack: contextlib.ExitStack) -> Contender:
    environment = cli_environment() if job.as_command_line else dict(os.environ)
    if job.kind == "transformers" and job.device == "cpu":
        # its quantizers are decorated with torch.compile, which takes a minute and a compiler on a CPU
        environment["TORCHDYNAMO_DISABLE"] = "1"
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.worker", json.dumps(asdict(job))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=Path(__file__).parents[1],
    )
    stack.callback(process.communicate)
    stack.callback(process.kill)

    def answer() -> Turn:
        assert process.stdout is not None
        line = process.stdout.readline()
        turn: Turn = json.loads(line) if line else {"error": f"its process ended with {process.wait()}"}
        return turn

    def take(steps: int) -> Turn:
        assert process.stdin is not None
        process.stdin.write(f"{steps}\n")
        process.stdin.flush()
        return answer()

    ready = answer()
    note = ready.get("missing") or ready.get("error") or ""
    return Contender(name, take, note=note, failed="error" in ready)


def command(name: str, make: Callable[[], Sequence[str | Path]], *, cache: Callable[[], Path]) -> Contender:
    """Return a contender that runs a command of `bitnetctl` from start to end, whatever its verdict.

    `make` returns the arguments and `cache` the folder of the token cache; both are called for each run.
    """

    def take(steps: int) -> Turn:
        arguments = [str(argument) for argument in make()]
        environment = {**os.environ, "XDG_CACHE_HOME": str(cache()), "COLUMNS": "120"}
        start = time.perf_counter()
        done = subprocess.run(arguments, capture_output=True, text=True, env=environment, check=False)
        seconds = time.perf_counter() - start
        if done.returncode in (0, 1, 4, 5):
            return {"steps": 1, "seconds": seconds}
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return {"error": f"ended with {done.returncode}: {last}"}

    return Contender(name, take)


def cli_path() -> Path:
    """Return the path of the `bitnetctl` command of this Python."""
    return Path(sys.executable).with_name("bitnetctl")


def alternate(racing: Sequence[Contender], *, rounds: int, steps: int = 1, warm_up: int = 1) -> None:
    """Let the contenders take turns of `steps` steps, after `warm_up` additional rounds."""
    for _ in range(rounds + warm_up):
        for contender in racing:
            contender.take_turn(steps)


def ratio(reference: float | None, value: float | None) -> float | None:
    """Return `reference` / `value`; None where either is unknown."""
    return None if reference is None or value is None else reference / value


@functools.cache
def cli_environment() -> dict[str, str]:
    """Return the environment that the command line trains in, thread settings included, by starting it once."""
    printed = subprocess.run([sys.executable, "-c", _CLI_ENVIRONMENT], capture_output=True, text=True, check=True)
    environment: dict[str, str] = json.loads(printed.stdout.splitlines()[-1])
    return environment


def enter_cli_environment() -> None:
    """Restart this process in the environment of the command line, unless it has it already."""
    environment = cli_environment()
    if any(os.environ.get(name) != value for name, value in environment.items()):
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def argument_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options of every benchmark."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results as JSON too")
    parser.add_argument("--quick", action="store_true", help="a smoke test: too short to measure")
    return parser


def add_device(parser: argparse.ArgumentParser, default: str = "cpu") -> None:
    """Add `--device`, resolved."""

    def known(name: str) -> torch.device:
        try:
            return resolve_device(name)
        except ConfigError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    parser.add_argument("--device", type=known, default=default, help=f"auto, cpu, cuda or cuda:N; unset: {default}")


def machine(device: torch.device) -> dict[str, Any]:
    """Return the machine and command that the results belong to."""
    return {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "command": " ".join(["python -m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]]),
    }


def report(title: str, rows: Sequence[Mapping[str, Any]], metadata: Mapping[str, Any], json_path: Path | None) -> None:
    """Print the rows as a table with the metadata below it; write both as JSON if `json_path` is given."""
    console = Console(width=140)
    if rows:
        table = Table(title=title, title_justify="left")
        for index, column in enumerate(rows[0]):
            table.add_column(column, justify="left" if index == 0 else "right")
        for row in rows:
            table.add_row(*(cell(value) for value in row.values()))
        console.print(table)
    for name, value in metadata.items():
        console.print(f"{name}: {cell(value)}", highlight=False, markup=False)
    if json_path is not None:
        content = {"title": title, "rows": list(rows), **metadata}
        json_path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def notes(racing: Sequence[Contender]) -> dict[str, str]:
    """Return why contenders could not run or broke, by name."""
    return {one.name: one.note for one in racing if one.note}


def cell(value: Any) -> str:
    """Return a value as text for a table; – is unknown."""
    if value is None:
        return "–"
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
