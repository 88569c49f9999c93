"""Several devices: one worker process each, all sweeping the same folder.

A worker is `bitnetctl sweep` itself on one device with the plan written to a file; the claims in the runs folder
divide the work, so a worker that dies leaves its runs to the others.
"""

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bitnetctl.config import RunConfig
from bitnetctl.errors import ConfigError
from bitnetctl.hardware import resolve_device

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


def work_on_devices(
    devices: Sequence[str],
    configs: Sequence[RunConfig],
    arguments: Sequence[str],
    should_stop: Callable[[], bool],
    log: Callable[[str], None],
) -> bool:
    """Run one worker process for each device until all have ended; True if a stop was asked for.

    `arguments` are those of `bitnetctl sweep` besides runs and device. A stop is passed on to the workers, which save
    and leave. The output of a worker is kept until it fails.
    """
    with tempfile.TemporaryDirectory(prefix="bitnetctl-") as folder:
        runs = Path(folder) / "runs.json"
        work = {"workers": len(devices), "configs": [config.model_dump(mode="json") for config in configs]}
        runs.write_text(json.dumps(work), encoding="utf-8")
        logs = [Path(folder) / f"worker-{index}.log" for index in range(len(devices))]
        workers: list[subprocess.Popen[bytes]] = []
        stop_sent = False
        try:
            for device, log_file in zip(devices, logs, strict=True):
                workers.append(_start(runs, device, arguments, log_file))
            log(f"{len(workers)} workers on {', '.join(devices)}")
            while any(worker.poll() is None for worker in workers):
                if should_stop() and not stop_sent:
                    stop_sent = True
                    for worker in workers:
                        worker.send_signal(signal.SIGTERM)
                time.sleep(_POLL_SECONDS)
        finally:
            # only after an error or a second interrupt is one alive; in a session of its own, nothing else would end it
            for worker in workers:
                worker.kill()
                worker.wait()
        for device, worker, log_file in zip(devices, workers, logs, strict=True):
            # one that was stopped while it started had nothing to save
            if worker.returncode not in (0, 1, 75) and not (stop_sent and worker.returncode == -signal.SIGTERM):
                lines = log_file.read_text(encoding="utf-8", errors="replace").strip().splitlines()
                log(f"worker on {device} ended with exit code {worker.returncode}: {lines[-1] if lines else ''}")
        if all(worker.returncode == 2 for worker in workers):
            raise ConfigError("no worker could start; see the lines above")
        return stop_sent


def _start(runs: Path, device: str, arguments: Sequence[str], log_file: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "bitnetctl", "sweep", "--configs", str(runs), "--device", device, *arguments]
    with log_file.open("wb") as file:
        # a session of its own, so that Ctrl-C reaches the workers through us and only once
        return subprocess.Popen(command, stdout=file, stderr=file, stdin=subprocess.DEVNULL, start_new_session=True)
