"""Several devices: one worker process each, all sweeping the same folder.

A worker is `bitnetctl sweep` itself on one device, with the runs written to a file; the run queue divides the work, so
a worker that dies leaves its runs to the others.
"""

import contextlib
import itertools
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bitnetctl.config import parse_config
from bitnetctl.errors import ConfigError, ExitCode, RecordError, WorkersError
from bitnetctl.files import temporary_folder, write_atomic
from bitnetctl.hardware import resolve_device
from bitnetctl.records import PlannedRuns, read_manifest
from bitnetctl.trainer.options import TrainOptions
from bitnetctl.trainer.resolved import ResolvedRun, resolve

_POLL_SECONDS = 0.5


def split_devices(text: str) -> list[str]:
    """Return the devices of a `--device` text; `auto` is every GPU, or the CPU. Raises ConfigError."""
    if text in ("auto", "cuda"):
        import torch

        if torch.cuda.device_count() > 1:
            return [f"cuda:{index}" for index in range(torch.cuda.device_count())]
        return [text]
    devices = [part.strip() for part in text.split(",")]
    for device in devices:
        resolve_device(device)
    return devices


def run_workers(
    devices: Sequence[str], runs: Sequence[ResolvedRun], options: TrainOptions, pack: int | None = None
) -> bool:
    """Run a worker process for each device until all have ended; True if a stop request was passed on to them.

    Workers that are stopped save and exit. Runs that failed are logged, and the last output line of a worker that ended
    with an error of its own. Raises ConfigError where all of them did and runs are left, WorkersError if one of these
    was taken before.
    """
    before = _versions(runs)
    with temporary_folder() as folder:
        file = folder / "runs.json"
        write_atomic(file, json.dumps(_work(runs, len(devices))).encode())
        logs = [folder / f"worker-{index}.log" for index in range(len(devices))]
        workers: list[subprocess.Popen[bytes]] = []
        try:
            for device, log_file in zip(devices, logs, strict=True):
                workers.append(_start(file, device, _arguments(options, pack), log_file))
            options.log(f"{len(workers)} workers on {', '.join(devices)}")
            stop_sent = _wait(workers, options.should_stop)
        finally:
            # alive only after an error or a second Ctrl-C, which does not reach their own process session
            for worker in workers:
                worker.kill()
                worker.wait()
        for device, worker, log_file in zip(devices, workers, logs, strict=True):
            # a worker that was stopped before it handled signals had nothing to save
            if worker.returncode not in (0, ExitCode.STOPPED) and not (
                stop_sent and worker.returncode == -signal.SIGTERM
            ):
                lines = log_file.read_text(encoding="utf-8", errors="replace").strip().splitlines()
                killed = " (killed, perhaps out of memory)" if worker.returncode in (-9, 137) else ""
                options.log(
                    f"worker on {device} ended with exit code {worker.returncode}{killed}: {lines[-1] if lines else ''}"
                )
    after = _versions(runs)
    _log_failures(runs, {name for name in after if after[name] != before[name]}, options.log)
    if all(worker.returncode == ExitCode.USAGE for worker in workers) and not all(run.has_ended() for run in runs):
        if after == before:
            raise ConfigError("no worker could start a run; see the lines above")
        raise WorkersError("every worker ended with an error; see the lines above")
    return stop_sent


def _versions(runs: Sequence[ResolvedRun]) -> dict[str, tuple[int, int] | None]:
    """Return what tells versions of the manifest of each run apart, None without one."""
    versions: dict[str, tuple[int, int] | None] = dict.fromkeys(run.name for run in runs)
    for run in runs:
        with contextlib.suppress(OSError):
            status = run.paths.manifest.stat()
            versions[run.name] = (status.st_ino, status.st_mtime_ns)
    return versions


def _log_failures(runs: Sequence[ResolvedRun], taken: Collection[str], log: Callable[[str], None]) -> None:
    """Log the runs that are damaged, and of those that workers took the failed ones: only a worker has said so."""
    for run in runs:
        try:
            manifest = None if run.ended() is not None else read_manifest(run.paths.folder)
        except RecordError as error:
            log(f"{run.name}: failed: {error}")
        else:
            if manifest is not None and manifest.status == "failed" and run.name in taken:
                log(f"{run.name}: failed: {manifest.message}")


def _work(runs: Sequence[ResolvedRun], workers: int) -> dict[str, Any]:
    """Return what a worker is told: how many share the runs, and the configs, in parts of which each has one plan."""
    parts = itertools.groupby(runs, key=lambda run: run.planned)
    return {
        "workers": workers,
        "parts": [
            {
                "planned": planned.model_dump(mode="json"),
                "configs": [run.config.model_dump(mode="json") for run in part],
            }
            for planned, part in parts
        ],
    }


def read_work(path: Path, runs_dir: Path) -> tuple[list[ResolvedRun], int]:
    """Return the runs in the file of a worker, and how many workers share them; raises ConfigError."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"--configs {path}: {error}") from error
    match tree:
        case {"workers": int(workers), "parts": list(parts)} if workers > 0:
            return [run for part in parts for run in _read_part(part, path, runs_dir)], workers
    raise ConfigError(f"--configs {path}: not the work of a worker")


def _read_part(part: object, path: Path, runs_dir: Path) -> list[ResolvedRun]:
    match part:
        case {"planned": dict(tree), "configs": list(configs)}:
            try:
                planned = PlannedRuns.model_validate(tree)
            except ValidationError:
                pass
            else:
                resolved = (resolve(parse_config(config, source=str(path)), runs_dir) for config in configs)
                return [replace(run, planned=planned) for run in resolved]
    raise ConfigError(f"--configs {path}: not the work of a worker")


def _wait(workers: Sequence[subprocess.Popen[bytes]], should_stop: Callable[[], bool]) -> bool:
    """Wait until all workers have ended; True if a stop request was passed on to them."""
    stop_sent = False
    while any(worker.poll() is None for worker in workers):
        if should_stop() and not stop_sent:
            stop_sent = True
            for worker in workers:
                worker.send_signal(signal.SIGTERM)
        time.sleep(_POLL_SECONDS)
    return stop_sent


def _arguments(options: TrainOptions, pack: int | None) -> list[str]:
    """Return the options of `bitnetctl sweep` that are the same for all workers."""
    return [
        *("--runs-dir", str(options.runs_dir), "--pack", str(pack or "auto")),
        *("--engine", options.engine, "--precision", options.precision),
        *("--on-divergence", options.on_divergence),
        "--keep-weights" if options.keep_weights else "--no-keep-weights",
        *(() if options.samples is None else ("--samples" if options.samples else "--no-samples",)),
        *(("--checkpoint-every", str(options.checkpoint_every)) if options.checkpoint_every else ()),
    ]


def _start(runs: Path, device: str, arguments: Sequence[str], log_file: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "bitnetctl", "sweep", "--configs", str(runs), "--device", device, *arguments]
    with log_file.open("wb") as file:
        # a process session of its own: Ctrl-C reaches the workers through this process, and only once
        return subprocess.Popen(command, stdout=file, stderr=file, stdin=subprocess.DEVNULL, start_new_session=True)
