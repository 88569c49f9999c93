"""Kill, damage and starve a training at every write call, and see whether anything is lost.

    python -m tests.faults [--quick] [--json FILE] [--seed 0]

A tiny run and a tiny sweep are trained by the command line over and over, each time with one fault; then they are
started again, and must end with the CSV (but for the measured speed), the weights and the files of an undisturbed
training. Write calls are those that Python and the safetensors library make below the runs folder: open for writing,
mkdir, write, fsync, ftruncate, rename, unlink, rmdir. Needs Linux and a C compiler; exits 1 if anything is lost, 2
where it cannot run. Moments drawn for kills depend on the machine's speed, all else on the seed alone.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from . import hook

if TYPE_CHECKING:
    from .bench import Tally

_FOLDER = "FAULTS_FOLDER"


@dataclass(frozen=True)
class Extent:
    """How much is tried: every `stride`-th write call, damage or byte; how many kills and offsets; the step in KiB."""

    stride: int = 1
    disk_stride: int = 1
    random_kills: int = 300
    side_by_side: int = 24
    offsets: int = 12
    damage_stride: int = 1
    bytes_stride: int = 1
    tmpfs_kib: int = 16


QUICK = Extent(
    stride=166,
    disk_stride=166,
    random_kills=3,
    side_by_side=2,
    offsets=2,
    damage_stride=40,
    bytes_stride=997,
    tmpfs_kib=400,
)


def tallies(folder: Path, extent: Extent, seed: int) -> "Iterator[Tally]":
    """Try every fault and yield the rows of the table."""
    # torch is imported in the process that tries the faults, not in the one that starts it
    from . import damage, disk, kills
    from .bench import Bench, Truth

    bench = Bench(folder)
    run = Truth.of(bench, bench.train, "run", times=5)
    runs = Truth.of(bench, bench.sweep(1), "sweep")
    rolled_back = Truth.of(bench, bench.rolled_back, "rolled back")
    late = damage.stopped_late(bench, run)
    yield from kills.at_every_call(bench, run, extent.stride)
    yield from kills.while_rolled_back(bench, rolled_back, extent.stride)
    yield from kills.at_random(bench, run, extent.random_kills, seed)
    yield from kills.sweeps(bench, runs, 3 * extent.stride)
    yield from kills.packs(bench, runs, 6 * extent.stride, seed)
    yield from kills.side_by_side(bench, runs, extent.side_by_side, seed)
    yield from damage.of_checkpoints(bench, run, late, extent.offsets, extent.damage_stride, seed)
    yield from damage.of_csv_and_manifest(bench, run, late, extent.offsets, extent.damage_stride, seed)
    yield from damage.when_read(late, extent.bytes_stride)
    yield from damage.killed_while_falling_back(bench, run, late, extent.stride)
    yield from disk.at_every_call(bench, run, extent.disk_stride)
    yield from disk.real(bench, run, extent.tmpfs_kib)


def main() -> None:
    """Start this module again with the library preloaded; there, try the faults and count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few of the cases, in half a minute")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows and every loss to a file")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if _FOLDER in os.environ:
        raise SystemExit(_try_all(Path(os.environ[_FOLDER]), arguments))
    if not sys.platform.startswith("linux") or hook.compiler() is None:
        print("error: needs Linux and a C compiler (cc)", file=sys.stderr)
        raise SystemExit(2)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment = hook.environment(hook.build(folder)) | {_FOLDER: name, "XDG_CACHE_HOME": str(folder / "cache")}
        command = [sys.executable, "-m", "tests.faults", *sys.argv[1:]]
        raise SystemExit(subprocess.run(command, env=environment, check=False).returncode)


def _try_all(folder: Path, arguments: argparse.Namespace) -> int:
    started = time.monotonic()
    rows = []
    print(f"{'fault':<64}{'cases':>8}{'survived':>10}{'lost':>6}", flush=True)
    for row in tallies(folder, QUICK if arguments.quick else Extent(), arguments.seed):
        rows.append(row)
        print(f"{row.fault:<64}{row.tried:>8,}{row.tried - len(row.lost):>10,}{len(row.lost):>6,}", flush=True)
        for loss in row.lost[:5]:
            print(f"  {loss}", file=sys.stderr, flush=True)
    tried, lost = sum(row.tried for row in rows), sum(len(row.lost) for row in rows)
    print(f"{'all':<64}{tried:>8,}{tried - lost:>10,}{lost:>6,}")
    print(f"{time.monotonic() - started:.0f} s")
    if arguments.json is not None:
        table = [{"fault": row.fault, "cases": row.tried, "lost": row.lost} for row in rows]
        arguments.json.write_text(json.dumps(table, indent=1), encoding="utf-8")
    return int(lost > 0)


if __name__ == "__main__":
    main()
