"""Start-up time of commands, and the total time of those that do little.

    python -m benchmarks.start [--rounds N] [--device cpu] [--quick] [--json FILE]

Every start is a process of its own; they take turns, and the result is the median. The floor of all is Python itself,
and that of training is Python with torch. Training is timed until its first row is printed: step 1 is trained and
evaluated by then. The text has been tokenized before. Compiled training is started with an empty compiler cache and
with a filled one, fewer times than the others.
"""

import itertools
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from benchmarks import harness
from benchmarks.load import write_runs
from benchmarks.step import VOCABULARIES
from bitnetctl.config import build_config
from bitnetctl.engine.select import choose
from bitnetctl.errors import ConfigError

_CSVS = 6
_COMPILED_ROUNDS = 3
_TRAIN = "bitnetctl train --recipe quick, to its first row"
_GRAPH = f"{_TRAIN}, --engine graph"
_COMPILED, _COMPILED_ANEW = f"{_TRAIN}, --engine compile", f"{_TRAIN}, --engine compile, nothing cached"
_FUSED, _FUSED_ANEW = f"{_TRAIN}, --engine fused", f"{_TRAIN}, --engine fused, nothing cached"
_LIMITS = {"bitnetctl --help": 0.5, "bitnetctl verify on CSVs": 1.5, _GRAPH: 10.0, _COMPILED: 10.0, _FUSED: 10.0}


def main() -> int:
    """Measure and print; 1 if a command broke."""
    parser = harness.argument_parser(__doc__)
    harness.add_device(parser)
    parser.add_argument("--rounds", type=int, help="starts of every command")
    arguments = parser.parse_args()
    rounds = arguments.rounds or (1 if arguments.quick else 7)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_runs(folder / "runs", _CSVS, random.Random(0))
        csvs = sorted((folder / "runs").glob("*.csv"))
        commands: dict[str, Sequence[str | Path]] = {
            "python -c pass": [sys.executable, "-c", "pass"],
            "python -c 'import torch'": [sys.executable, "-c", "import torch"],
            "bitnetctl --help": [harness.cli_path(), "--help"],
            "bitnetctl train --help": [harness.cli_path(), "train", "--help"],
            "bitnetctl interventions list": [harness.cli_path(), "interventions", "list"],
            "bitnetctl config show": [harness.cli_path(), "config", "show"],
            "bitnetctl analyze on CSVs": [harness.cli_path(), "analyze", *csvs],
            "bitnetctl verify on CSVs": [harness.cli_path(), "verify", *csvs],
        }
        racing = [
            harness.command(what, partial(tuple, command), cache=lambda: folder / "cache")
            for what, command in commands.items()
        ]
        plain, compiled = trainings(folder, arguments.device)
        racing += plain
        harness.alternate(racing, rounds=rounds)
        harness.alternate(compiled, rounds=min(rounds, _COMPILED_ROUNDS))
        racing += compiled
    python = racing[0].median("seconds")
    rows = [
        {
            "start": one.name,
            "seconds": seconds,
            "times python's": harness.ratio(seconds, python),
            "limit, seconds": _LIMITS.get(one.name),
            "fraction of the limit": harness.ratio(seconds, _LIMITS.get(one.name)),
        }
        for one in racing
        for seconds in [one.median("seconds")]
    ]
    metadata = {
        **harness.machine(arguments.device),
        "measured": f"median of {rounds} starts after one to warm up, {min(rounds, _COMPILED_ROUNDS)} of what is "
        f"compiled; {_CSVS} CSVs",
        **harness.notes(racing),
    }
    harness.report("start", rows, metadata, arguments.json)
    return int(any(one.failed for one in racing))


def trainings(folder: Path, device: torch.device) -> tuple[list[harness.Contender], list[harness.Contender]]:
    """Return trainings up to their first row: those with an uncompiled engine, and those that compile."""
    kept, count = folder / "compiled", itertools.count()

    def train(name: str, engine: str, compiler_cache: Callable[[], Path]) -> harness.Contender:
        note = ""
        try:
            choose(build_config("quick"), VOCABULARIES["quick"], device, engine)
        except ConfigError as error:
            note = str(error)
        return harness.Contender(name, lambda steps: first_row(folder, device, engine, compiler_cache()), note=note)

    plain = {_TRAIN: "auto"} if device.type == "cpu" else {_TRAIN: "auto", _GRAPH: "graph"}
    compiled = {"compile": (_COMPILED_ANEW, _COMPILED)}
    if device.type == "cuda":
        compiled["fused"] = (_FUSED_ANEW, _FUSED)
    return [train(name, engine, lambda: kept) for name, engine in plain.items()], [
        train(name, engine, cache)
        for engine, names in compiled.items()
        for name, cache in zip(names, (lambda: folder / f"compiled-{next(count)}", lambda: kept), strict=True)
    ]


def first_row(folder: Path, device: torch.device, engine: str, compiler_cache: Path) -> harness.Turn:
    """Start a training, wait for its first row and end it."""
    command = [str(harness.cli_path()), "train", "--recipe", "quick", "--device", str(device), "--engine", engine]
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache")}
    environment |= {
        "TORCHINDUCTOR_CACHE_DIR": str(compiler_cache / "inductor"),
        "TRITON_CACHE_DIR": str(compiler_cache / "triton"),
    }
    with tempfile.TemporaryDirectory(dir=folder) as runs:
        start = time.perf_counter()
        process = subprocess.Popen(
            [*command, "--runs-dir", runs],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert process.stderr is not None
        try:
            seen = any("  step " in line for line in process.stderr)
            seconds = time.perf_counter() - start
        finally:
            process.kill()
            process.communicate()
    return {"steps": 1, "seconds": seconds} if seen else {"error": "it ended without a row"}


if __name__ == "__main__":
    raise SystemExit(main())
