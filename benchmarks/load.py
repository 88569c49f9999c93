"""How time and memory scale: a sweep of tiny runs, long CSVs, many CSVs. Every command is a process of its own.

    python -m benchmarks.load [--quick] [--json FILE]

Time is wall-clock time and CPU time, which a busy machine distorts less; peak memory is the largest resident set of
the process (`ru_maxrss`). The cost of each run, row or file is the difference from the line above divided by the
additional number, which leaves out the start of the command; `growth` is that CPU time over that of the line above:
about 1 is linear.
"""

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.harness import cli_path
from bitnetctl.config import build_config, parse_arm
from bitnetctl.records import NAMES, Manifest, write_manifest

_TIME = "2026-01-01T00:00:00+00:00"
_READ = "import sys; from bitnetctl.records import read; read(sys.argv[1])"
_ARMS = ("", "reduced-lr", "no-decay", "decoupled-decay")
_SIZES = (64, 128)
_EVALUATIONS = 20
_TINY = {
    "model.hidden_size": 16,
    "model.num_layers": 1,
    "model.num_attention_heads": 2,
    "model.num_key_value_heads": 2,
    "data.tokenizer": "bpe:300",
    "data.batch_size": 1,
    "data.sequence_length": 8,
    "schedule.warmup_steps": 1,
    "probe.positions": 32,
    "probe.eval_every_steps": 4,
}


@dataclass(frozen=True)
class Measured:
    """Time and memory of one command."""

    what: str
    unit: str
    count: int
    seconds: float
    cpu_seconds: float
    peak_mib: float


def measure(what: str, unit: str, count: int, command: Sequence[str | Path], cache: Path) -> Measured:
    """Run a command in a process of its own; raises RuntimeError if it fails."""
    arguments = [os.fspath(argument) for argument in command]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(cache), "COLUMNS": "100"}
    started = time.perf_counter()
    with Path(os.devnull).open("w") as nowhere:
        actions = [(os.POSIX_SPAWN_DUP2, nowhere.fileno(), number) for number in (1, 2)]
        process = os.posix_spawn(arguments[0], arguments, environment, file_actions=actions)
        _, status, usage = os.wait4(process, 0)
    seconds = time.perf_counter() - started
    if status:
        raise RuntimeError(f"{' '.join(arguments)} ended with {os.waitstatus_to_exitcode(status)}")
    cpu_seconds = usage.ru_utime + usage.ru_stime
    measured = Measured(what, unit, count, round(seconds, 2), round(cpu_seconds, 2), round(usage.ru_maxrss / 1024, 1))
    print(f"{what}: {count:,} {unit}: {measured.seconds:.2f} s, {measured.peak_mib:,.0f} MiB", file=sys.stderr)
    return measured


def row_of(step: int, last: int, rng: random.Random) -> list[str]:
    """Return one row of a healthy run in all columns."""
    done = step / last
    row = {
        "Loss": repr(7.6 - 3.2 * done + rng.gauss(0, 0.05)),
        "UniquePredictions": str(int(60 + 150 * done + rng.randrange(10))),
        "LR": repr(1.5e-3 * (1 - done)),
        "WD": "0.1" if done <= 0.5 else "0.0",
        "HeldOutLoss": repr(7.6 - 3.1 * done + rng.gauss(0, 0.02)),
        "TopShare": repr(0.1 + 0.02 * rng.random()),
        "EffectiveVocab": repr(50 + rng.random()),
        "ContextInformation": repr(0.8 + 0.5 * done),
        "RandomPromptUnique": str(rng.randrange(3, 10)),
        "GradNorm": repr(rng.random()),
        "FlipRate": repr(0.01 * rng.random()),
        "HeldOutBitsPerByte": repr(3.1 - 1.3 * done),
        "TokensPerSecond": "15000.0",
    }
    fixed = {"UniqueTargets": "1298", "ProbePositions": "8192", "UnigramLoss": "6.36", "BigramLoss": "4.03"}
    row |= {"Step": str(step), "BigramUnique": "394", "Objective": "5.0", "ZeroFraction": "0.31", **fixed}
    return [row[name] for name in NAMES]


def write_table(path: Path, steps: Sequence[int], rng: random.Random) -> None:
    """Write a CSV with a row for every step."""
    with path.open("w", encoding="utf-8") as file:
        file.write(",".join(NAMES) + "\n")
        file.writelines(",".join(row_of(step, steps[-1], rng)) + "\n" for step in steps)


def write_runs(folder: Path, count: int, rng: random.Random) -> None:
    """Write `count` finished runs with their manifests: four arms, two sizes, as many seeds as needed."""
    folder.mkdir()
    for index in range(count):
        seed, rest = divmod(index, len(_ARMS) * len(_SIZES))
        arm, size = _ARMS[rest % len(_ARMS)], _SIZES[rest // len(_ARMS)]
        config = build_config("quick", size=size, seed=seed, interventions=parse_arm(arm))
        (folder / config.run_name).mkdir()
        every = config.steps // _EVALUATIONS
        write_table(folder / f"{config.run_name}.csv", [1, *range(every, config.steps + 1, every)], rng)
        manifest = Manifest(
            run=config.run_name,
            status="finished",
            config=config.model_dump(mode="json"),
            config_hash=config.hash,
            created_at=_TIME,
            updated_at=_TIME,
            steps_done=config.steps,
        )
        write_manifest(folder / config.run_name, manifest)


def sweep_command(home: Path, folder: str, runs: int, *options: str) -> list[str | Path]:
    """Return a sweep over seeds of the smallest run possible, on a text of random words."""
    text = home / "text.txt"
    if not text.exists():
        rng = random.Random(0)
        words = ["".join(rng.choices("abcdefghijklmnop", k=rng.randint(2, 7))) for _ in range(400)]
        text.write_text("\n".join(" ".join(rng.choices(words, k=9)) for _ in range(2000)), encoding="utf-8")
    settings = [f"--set={name}={value}" for name, value in {**_TINY, "data.source": f"file:{text}"}.items()]
    where: list[str | Path] = ["--runs-dir", home / folder, "--device", "cpu"]
    return [cli_path(), "sweep", "--recipe", "quick", "--steps", "4", "--seeds", str(runs), *settings, *where, *options]


def measure_all(home: Path, scale: int) -> list[Measured]:
    """Measure every command; `scale` divides the numbers of runs, rows and CSVs."""
    rng = random.Random(0)
    cache = home / "cache"
    results = []
    # the text is tokenized once, before anything is timed
    measure("warm-up", "runs", 1, sweep_command(home, "warm-up", 1), cache)
    for what, options in (("sweep", ()), ("sweep --pack 10", ("--pack", "10"))):
        for runs in (125 // scale, 250 // scale, 500 // scale):
            folder = f"{what}-{runs}"
            results.append(measure(what, "runs", runs, sweep_command(home, folder, runs, *options), cache))
    results.append(measure("the same sweep, all done", "runs", runs, sweep_command(home, folder, runs), cache))
    lengths = [10_000 // scale, 100_000 // scale, 1_000_000 // scale]
    paths = [home / f"h64-{rows}-baseline-s0-000000.csv" for rows in lengths]
    for path, rows in zip(paths, lengths, strict=True):
        write_table(path, range(1, rows + 1), rng)
    kinds: dict[str, Callable[[Path], list[str | Path]]] = {
        "records.read": lambda path: [sys.executable, "-c", _READ, path],
        "analyze": lambda path: [cli_path(), "analyze", path],
        "analyze --html": lambda path: [cli_path(), "analyze", path, "--html", home / "page.html"],
        "verify": lambda path: [sys.executable, "-c", _VERIFY, path],
    }
    for what, command in kinds.items():
        for path, rows in zip(paths, lengths, strict=True):
            results.append(measure(what, "rows", rows, command(path), cache))
    counts = [count // scale for count in (250, 500, 1000, 2000)]
    for count in counts:
        write_runs(home / f"runs-{count}", count, rng)
    for what, command in kinds.items():
        if what != "records.read":
            results += [measure(what, "CSVs", count, command(home / f"runs-{count}"), cache) for count in counts]
    return results


# any verdict is a success here
_VERIFY = "import sys; from bitnetctl.cli import run; sys.exit(run(['verify', sys.argv[1]]) in (2, 3))"


def table(results: Sequence[Measured]) -> list[str]:
    """Return a Markdown table."""
    names = ("what", "number", "seconds", "CPU s", "MiB", "CPU µs each", "KiB each", "growth")
    lines = [f"| {' | '.join(names)} |", "|:--|--:|--:|--:|--:|--:|--:|--:|"]
    groups: dict[tuple[str, str], list[Measured]] = {}
    for one in results:
        groups.setdefault((one.what, one.unit), []).append(one)
    for group in groups.values():
        slopes: list[tuple[float, float]] = []
        for before, one in zip([None, *group], group, strict=False):
            more = ["", "", ""]
            if before is not None:
                units = one.count - before.count
                more_seconds, more_mib = one.cpu_seconds - before.cpu_seconds, one.peak_mib - before.peak_mib
                slopes.append((more_seconds / units, more_mib / units))
                more[:2] = [f"{slopes[-1][0] * 1e6:,.1f}", f"{slopes[-1][1] * 1024:,.2f}"]
            if len(slopes) > 1 and slopes[-2][0] > 0:
                more[2] = f"{slopes[-1][0] / slopes[-2][0]:.2f}"
            taken = (f"{one.seconds:.2f}", f"{one.cpu_seconds:.2f}", f"{one.peak_mib:,.0f}")
            lines.append(f"| {' | '.join((one.what, f'{one.count:,} {one.unit}', *taken, *more))} |")
    return lines


def main() -> None:
    """Measure, print the table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of all numbers")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        results = measure_all(Path(home), 10 if arguments.quick else 1)
    print(*table(results), sep="\n")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps([asdict(one) for one in results], indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
