"""The process of one case of the part `step`: a line of JSON with what it measured."""

import contextlib
import json
import statistics
import sys
import time
import traceback
from typing import Any

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.worker import Job, MissingError, Train, build
from bitnetctl.errors import one_line

# the step is captured by then
_WARM_UP, _STEPS, _PROFILED = 8, 60, 20
_KERNELS = 20


def main() -> None:
    """Measure and answer."""
    order = json.loads(sys.argv[1])
    job = Job(**{**order["job"], "overrides": tuple(order["job"]["overrides"])})
    # what libraries print is no answer
    with contextlib.redirect_stdout(sys.stderr):
        try:
            answer = _measure(job, order["started"], order["rounds"], profiled=order["profiled"])
        except MissingError as missing:
            answer = {"missing": str(missing)}
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {one_line(error, 300)}"}
    print(json.dumps(answer))


def _measure(job: Job, started: float, rounds: int, *, profiled: bool) -> dict[str, Any]:
    device = torch.device(job.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    train = build(job, device)
    train(1)
    _wait(device)
    answer: dict[str, Any] = {"start, s": time.time() - started}
    if not rounds:
        return answer
    for step in range(2, _WARM_UP + 1):
        train(step)
    first = _WARM_UP + 1
    taken = [_milliseconds(train, range(first, first + _STEPS), device) for _ in range(rounds)]
    answer |= {"ms a step": statistics.median(taken), "fastest, ms": min(taken), "slowest, ms": max(taken)}
    if device.type == "cuda":
        answer["GiB"] = torch.cuda.max_memory_reserved(device) / 2**30
    if profiled and device.type == "cuda":
        answer |= _profiled(train, first + _STEPS)
    return answer


def _milliseconds(train: Train, steps: range, device: torch.device) -> float:
    """Return the mean time of steps, by CUDA events on a GPU."""
    _wait(device)
    if device.type == "cpu":
        start = time.perf_counter()
        for step in steps:
            train(step)
        return 1000 * (time.perf_counter() - start) / len(steps)
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    before.record()
    for step in steps:
        train(step)
    after.record()
    _wait(device)
    return float(before.elapsed_time(after)) / len(steps)


def _profiled(train: Train, first: int) -> dict[str, Any]:
    """Return the kernels of some replays, those that take longest; one copy of the loss a step is among them."""
    # else the events of the last cycle alone are kept, and torch warns
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiler:
        for step in range(first, first + _PROFILED):
            train(step)
        torch.cuda.synchronize()
    events = [each for each in profiler.key_averages() if each.device_type == DeviceType.CUDA]
    if not events:
        return {}
    rows = [
        {
            "ms a step": each.self_device_time_total / 1000 / _PROFILED,
            "launches a step": each.count / _PROFILED,
            "kernel": f"`{each.key[:110]}`",
        }
        for each in sorted(events, key=lambda each: -each.self_device_time_total)
    ]
    return {"launches a step": sum(each.count for each in events) / _PROFILED, "kernels": rows[:_KERNELS]}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
