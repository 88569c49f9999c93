"""Commands of `bitnetctl` that parts run, and what they left: manifests and CSVs."""

import csv
import itertools
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.gpu_parts.report import Options, Report

BITNETCTL = (sys.executable, "-m", "bitnetctl")
# exit codes of a command that did its work, whatever its verdict
WORKED = (0, 1, 4, 5)
_TOLD = ("kernels", "CUDA graph", "compil", "engine", "one by one", "continue", "not used")
# what --quick trains
TINY = {
    "data.tokenizer": "bpe:300",
    "data.batch_size": 2,
    "data.sequence_length": 32,
    "model.num_layers": 1,
    "schedule.warmup_steps": 2,
    "probe.positions": 128,
}


class Done(NamedTuple):
    """A command that has ended, and its wall time."""

    code: int
    out: str
    err: str
    seconds: float


class Run(NamedTuple):
    """A run on disk: manifest and rows of its CSV."""

    name: str
    manifest: dict[str, Any]
    rows: list[dict[str, str]]

    @property
    def step_ms(self) -> float | None:
        """The median of its time a step, of the later half of its rows."""
        data = (self.manifest.get("effective_config") or self.manifest["config"])["data"]
        speeds = [float(row["TokensPerSecond"] or "nan") for row in self.rows[len(self.rows) // 2 :]]
        known = [speed for speed in speeds if speed > 0]
        tokens = data["batch_size"] * data["sequence_length"]
        return 1000 * tokens / statistics.median(known) if known else None


def run_command(command: Sequence[str | Path], environment: Mapping[str, str] | None = None) -> Done:
    """Run a command to its end."""
    start = time.perf_counter()
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, env=environment)
    # the part's own output keeps everything
    print(f"$ {' '.join(map(str, command))}\n{done.stdout}{done.stderr}", flush=True)
    return Done(done.returncode, done.stdout, done.stderr, time.perf_counter() - start)


def told(done: Done) -> str:
    """Return what a command told about its engine, its packs and its kernels, as a block of Markdown."""
    lines = [line[:300] for line in done.err.splitlines() if any(part in line for part in _TOLD)]
    return "\n".join(["told about engines, packs and kernels:", "", "```", *lines, "```"])


def failed_command(report: Report, what: str, done: Done) -> bool:
    """Whether a command failed; if so the report says with what."""
    if done.code in WORKED:
        return False
    last = (done.err.strip().splitlines() or done.out.strip().splitlines() or ["no message"])[-1]
    report.failed(f"{what}: exit code {done.code}: {last}")
    return True


def data_options(options: Options) -> list[str]:
    """Return the `--set` options of the text, and of everything tiny with --quick."""
    fields: dict[str, Any] = dict(TINY) if options.quick else {}
    if options.quick or options.text is not None:
        fields["data.source"] = f"file:{options.text or tiny_text(options)}"
    if options.tokenizer is not None:
        fields["data.tokenizer"] = options.tokenizer
    return [part for name, value in fields.items() for part in ("--set", f"{name}={value}")]


def tiny_text(options: Options) -> Path:
    """Return the source of this program as one file."""
    path = Path(options.work) / "tiny.txt"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        sources = sorted((Path(__file__).parents[2] / "benchmarks").rglob("*.py"))
        path.write_text("\n".join(source.read_text(encoding="utf-8") for source in sources), encoding="utf-8")
    return path


def new_folder(options: Options, name: str) -> Path:
    """Return a new folder below that of runs and caches."""
    for count in itertools.count():
        path = Path(options.work) / f"{name}-{count}"
        if not path.exists():
            path.mkdir(parents=True)
            return path
    raise AssertionError


def remove(folder: Path) -> None:
    """Remove a folder of runs."""
    shutil.rmtree(folder, ignore_errors=True)


def runs_in(folder: Path) -> list[Run]:
    """Return the runs of a folder by name."""
    runs = []
    for path in sorted(folder.glob("*/run.json")):
        name = path.parent.name
        rows: list[dict[str, str]] = []
        if (table := folder / f"{name}.csv").exists():
            with table.open(encoding="utf-8", newline="") as file:
                rows = list(csv.DictReader(file))
        runs.append(Run(name, json.loads(path.read_text(encoding="utf-8")), rows))
    return runs
