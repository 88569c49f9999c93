"""What this process may use of its machine: memory and CPUs, by control groups, limits, affinity and batch job."""

import importlib
import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import psutil

_CONTROL_GROUPS = Path("/sys/fs/cgroup")
_OWN_GROUPS = Path("/proc/self/cgroup")
# limit, use, and the part of the use that is given back when memory is short: in version 2 and 1 of control groups
_MEMORY_FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.high", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def available_memory() -> int:
    """Return the bytes that this process can still take without swapping."""
    free = [psutil.virtual_memory().available, *_left_in_groups(), *_left_of_limit(), *_left_of_job()]
    return max(0, min(free))


def resident_memory() -> int:
    """Return the bytes of memory that this process takes."""
    return int(psutil.Process().memory_info().rss)


def usable_cpus() -> int:
    """Return how many CPUs this process may keep busy, at least 1; a part of a CPU counts as one."""
    affinity = psutil.Process().cpu_affinity() if hasattr(psutil.Process, "cpu_affinity") else None
    counts = [os.cpu_count(), len(affinity or ()), _number_in(os.environ.get("SLURM_CPUS_PER_TASK", ""))]
    quotas = [math.ceil(quota) for quota in _cpu_quotas()]
    return min((count for count in (*counts, *quotas) if count), default=1)


def _left_in_groups() -> Iterator[int]:
    for folder in _groups("memory"):
        for limit, use, reclaimable in _MEMORY_FILES:
            most, now = _number_in(_read(folder / limit)), _read(folder / use)
            if most is not None and now:
                fields = dict(line.split(maxsplit=1) for line in _read(folder / "memory.stat").splitlines())
                yield most - int(now) + int(fields.get(reclaimable, 0))


def _left_of_limit() -> Iterator[int]:
    """Yield what `ulimit -v` leaves."""
    try:
        resource = importlib.import_module("resource")
        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    except (ImportError, AttributeError):
        # not on Windows
        return
    if limit != resource.RLIM_INFINITY:
        yield limit - psutil.Process().memory_info().vms


def _left_of_job() -> Iterator[int]:
    """Yield what a Slurm job that is not in a control group of its own has left, if this process is all of it."""
    megabytes = _number_in(os.environ.get("SLURM_MEM_PER_NODE", ""))
    if not megabytes:
        per_cpu, cpus = (_number_in(os.environ.get(f"SLURM_{name}", "")) for name in ("MEM_PER_CPU", "CPUS_ON_NODE"))
        megabytes = (per_cpu or 0) * (cpus or 0)
    if megabytes:
        yield megabytes * 2**20 - resident_memory()


def _cpu_quotas() -> Iterator[float]:
    """Yield the CPUs of each control group that has a quota."""
    for folder in _groups("cpu"):
        # microseconds of all CPUs together in a period: version 2, version 1
        both = _read(folder / "cpu.max").split() or [
            _read(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period")
        ]
        quota, period = map(_number_in, both)
        if quota and period:
            yield quota / period


def _groups(controller: str) -> Iterator[Path]:
    """Yield the folders of the control groups that this process is in, and of those above them.

    In a container a path may be that of the host, which is not there; the uppermost group is then the container's.
    """
    for line in _read(_OWN_GROUPS).splitlines():
        _, names, path = line.split(":", 2)
        if names and controller not in names.split(","):
            continue
        root = _CONTROL_GROUPS / controller if names else _CONTROL_GROUPS
        own = PurePosixPath(path.lstrip("/"))
        if ".." not in own.parts:
            yield from (root / group for group in (own, *own.parents))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _number_in(text: str) -> int | None:
    """Return a whole number; None for `max`, `-1` and the like, which are no limit."""
    return int(text) if text.isascii() and text.isdigit() else None
