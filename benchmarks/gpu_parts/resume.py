"""A run stopped by SIGTERM at a checkpoint and resumed, against the same run undisturbed: every column bit for bit."""

import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu_parts.commands import (
    BITNETCTL,
    Run,
    data_options,
    failed_command,
    new_folder,
    remove,
    run_command,
    runs_in,
)
from benchmarks.gpu_parts.report import Options, Report

# exit code of a command that a signal has stopped
_STOPPED = 75
# the only column that time decides
_TIMED = ("TokensPerSecond",)


def run(report: Report, options: Options) -> None:
    """Train undisturbed, train until the first checkpoint, resume, and compare the CSVs."""
    size, steps, every = ("32", 400, 50) if options.quick else ("256", 3000, 500)
    whole, parted = new_folder(options, "undisturbed"), new_folder(options, "resumed")
    command = [*BITNETCTL, "train", "--recipe", "origin", "--size", size, "--steps", str(steps)]
    command += ["--eval-every", str(every), "--checkpoint-every", str(every), "--device", options.device]
    command += data_options(options)
    if failed_command(report, "undisturbed", run_command([*command, "--runs-dir", whole])):
        return
    code = _stop([*command, "--runs-dir", str(parted)], parted)
    report.values(exit_code_when_stopped=code)
    if code != _STOPPED:
        report.failed(f"the stopped run ended with {code}, not {_STOPPED}: it was not stopped within its steps")
        return
    (stopped,) = runs_in(parted)
    report.values(steps_when_stopped=stopped.manifest["steps_done"])
    if failed_command(report, "resumed", run_command([*command, "--runs-dir", parted])):
        return
    (undisturbed,), (resumed,) = runs_in(whole), runs_in(parted)
    compare(report, undisturbed, resumed)
    remove(whole)
    remove(parted)


def _stop(command: Sequence[str], folder: Path) -> int:
    """Start a training, send SIGTERM at its first checkpoint, and return its exit code."""
    process = subprocess.Popen(command)
    while process.poll() is None and not any(folder.glob("*/checkpoints/step-*")):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    return process.wait()


def compare(report: Report, undisturbed: Run, resumed: Run) -> None:
    """Write a row for every column, with the largest difference; columns that differ are failures."""
    report.values(rows=len(undisturbed.rows), engine=undisturbed.manifest["engine"])
    if [row["Step"] for row in undisturbed.rows] != [row["Step"] for row in resumed.rows]:
        report.failed(f"{len(undisturbed.rows)} rows undisturbed, {len(resumed.rows)} resumed, or other steps")
        return
    different = []
    for column in undisturbed.rows[0]:
        pairs = [(a[column], b[column]) for a, b in zip(undisturbed.rows, resumed.rows, strict=True)]
        unequal = [(a, b) for a, b in pairs if a != b]
        if column in _TIMED:
            continue
        report.row("columns", {"column": column, "rows that differ": len(unequal), "first": unequal[:1] or "–"})
        if unequal:
            different.append(column)
    if different:
        report.failed(f"resumed differs from undisturbed in {', '.join(different)}")
