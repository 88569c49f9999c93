"""Steps of `origin` by engine, size and number of runs: their start, their time by CUDA events, their kernels.

Every contender is a process of its own, `benchmarks.gpu_parts.timed`. A start is from that process's start to the end
of its first step; caches of kernels are empty for the first and filled for the second process of the same shape.
"""

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks import harness
from benchmarks.gpu_parts.commands import TINY, new_folder
from benchmarks.gpu_parts.report import Options, Report, markdown_table
from benchmarks.step import VOCABULARIES
from benchmarks.worker import Job
from bitnetctl.hardware import resolve_device


class Case(NamedTuple):
    """What one process measures; `starts_again`: a second one starts with the caches that it has filled."""

    hidden: int
    runs: int
    engine: str
    profiled: bool = False
    starts_again: bool = False


# the first answers first: narrow, one run; then what takes a compiler
CASES = (
    Case(256, 1, "graph", profiled=True),
    Case(256, 1, "fused", profiled=True, starts_again=True),
    Case(256, 16, "fused", profiled=True),
    Case(256, 16, "graph"),
    Case(512, 1, "fused"),
    Case(512, 1, "graph"),
    Case(256, 1, "compile", profiled=True, starts_again=True),
    Case(512, 1, "compile"),
    Case(256, 16, "compile"),
)


def run(report: Report, options: Options) -> None:
    """Measure one case after the other; an engine that is not there is a row that says so."""
    device, caches = resolve_device(options.device), new_folder(options, "kernels")
    cases = list(CASES)
    if options.quick:
        cases = [Case(32, 2, engine, profiled=True) for engine in dict.fromkeys(case.engine for case in CASES)]
    for case in cases:
        turn = _measure(case, device, caches, rounds=1 if options.quick else 4)
        row: dict[str, Any] = {"hidden": case.hidden, "runs": case.runs, "engine": case.engine}
        for column in ("ms a step", "fastest, ms", "slowest, ms", "launches a step", "start, s", "GiB"):
            row[column] = turn.get(column)
        if case.starts_again and "error" not in turn and "missing" not in turn:
            row["start again, s"] = _measure(case, device, caches, rounds=0).get("start, s")
        row["note"] = turn.get("missing") or turn.get("error") or ""
        report.row("steps", row)
        if kernels := turn.get("kernels"):
            title = f"## {case.engine}, hidden {case.hidden}, {case.runs} runs: kernels of a step"
            report.text(f"{title}\n\n{markdown_table(kernels)}")
        if "error" in turn:
            report.failed(f"{case.engine}, hidden {case.hidden}, {case.runs} runs: {turn['error']}")


def _measure(case: Case, device: torch.device, caches: Path, rounds: int) -> dict[str, Any]:
    """Start a process and return what it measured."""
    shape = f"{case.engine}-{case.hidden}-{case.runs}"
    tiny = tuple(f"{name}={value}" for name, value in TINY.items()) if case.hidden < 256 else ()
    job = Job(
        kind="ours",
        recipe="origin",
        overrides=(*tiny, f"model.hidden_size={case.hidden}"),
        vocab_size=512 if tiny else VOCABULARIES["origin"],
        device=str(device),
        runs=case.runs,
        precision="bf16" if device.type == "cuda" else "fp32",
        engine=case.engine,
    )
    environment = {
        **harness.cli_environment(),
        "TORCHINDUCTOR_CACHE_DIR": str(caches / shape / "inductor"),
        "TRITON_CACHE_DIR": str(caches / shape / "triton"),
    }
    order = {"job": dataclasses.asdict(job), "rounds": rounds, "profiled": case.profiled and rounds > 0}
    command = [sys.executable, "-m", "benchmarks.gpu_parts.timed", json.dumps({**order, "started": time.time()})]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env={**os.environ, **environment})
    lines = done.stdout.strip().splitlines()
    if not lines:
        return {"error": f"its process ended with {done.returncode}"}
    turn: dict[str, Any] = json.loads(lines[-1])
    return turn
