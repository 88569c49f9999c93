"""What a process may use: control groups of both versions, limits, affinity, a batch job, and systems without them."""

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from bitnetctl import allowance, hardware
from bitnetctl.allowance import available_memory, usable_cpus

GIB = 2**30
Groups = Callable[[str, Mapping[str, str]], None]


class Machine:
    """A process on a host of 64 CPUs and 256 GiB; on a system without affinity psutil has no such method."""

    def memory_info(self) -> Any:
        return SimpleNamespace(rss=1 * GIB, vms=3 * GIB)

    def cpu_affinity(self) -> list[int]:
        return list(range(64))


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A large host without any limit."""
    for name in ("CPUS_PER_TASK", "MEM_PER_NODE", "MEM_PER_CPU", "CPUS_ON_NODE"):
        monkeypatch.delenv(f"SLURM_{name}", raising=False)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=256 * GIB))
    monkeypatch.setattr(psutil, "Process", Machine)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(allowance, "_CONTROL_GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(allowance, "_OWN_GROUPS", tmp_path / "own")
    monkeypatch.setitem(sys.modules, "resource", None)
    return tmp_path


@pytest.fixture
def groups(host: Path) -> Groups:
    """Write the list of the process's control groups, and files of groups."""

    def write(own: str, files: Mapping[str, str]) -> None:
        (host / "own").write_text(own, encoding="utf-8")
        for name, content in files.items():
            path = host / "cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content + "\n", encoding="utf-8")

    return write


@pytest.mark.usefixtures("host")
def test_without_limits_it_is_the_machine() -> None:
    assert (available_memory(), usable_cpus()) == (256 * GIB, 64)
    assert hardware.memory_available(torch.device("cpu")) == 256 * GIB
    assert hardware.memory_in_use(torch.device("cpu")) == GIB


UNLIMITED = str(2**63 - 4096)
MEMORY = {
    "own group": ({"job/memory.max": str(8 * GIB), "job/memory.current": str(3 * GIB)}, "0::/job", 5),
    "file cache is free": (
        {
            "job/memory.max": str(8 * GIB),
            "job/memory.current": str(7 * GIB),
            "job/memory.stat": f"anon 1\ninactive_file {4 * GIB}",
        },
        "0::/job",
        5,
    ),
    "group above": (
        {
            "a/memory.max": str(4 * GIB),
            "a/memory.current": str(GIB),
            "a/b/c/memory.max": "max",
            "a/b/c/memory.current": str(GIB),
        },
        "0::/a/b/c",
        3,
    ),
    "throttled": ({"memory.high": str(2 * GIB), "memory.max": "max", "memory.current": "0"}, "0::/", 2),
    "container": ({"memory.max": str(2 * GIB), "memory.current": str(GIB)}, "0::/docker/1a2b", 1),
    "other root": ({"memory.max": str(2 * GIB), "memory.current": str(GIB)}, "0::/../../x", 256),
    "version 1": (
        {
            "memory/job/memory.limit_in_bytes": str(6 * GIB),
            "memory/job/memory.usage_in_bytes": str(3 * GIB),
            "memory/job/memory.stat": f"total_inactive_file {GIB}",
            "memory/memory.limit_in_bytes": UNLIMITED,
            "memory/memory.usage_in_bytes": str(9 * GIB),
        },
        "5:memory:/job\n3:cpu,cpuacct:/job\n1:name=systemd:/x",
        4,
    ),
    "more used than allowed": ({"memory.max": "100", "memory.current": "200"}, "0::/", 0),
}


@pytest.mark.parametrize("name", MEMORY)
def test_memory_of_control_groups(groups: Groups, name: str) -> None:
    files, own, gibibytes = MEMORY[name]
    groups(own, files)
    assert available_memory() == gibibytes * GIB


CPUS = {
    "quota": ({"job/cpu.max": "400000 100000"}, "0::/job", 4),
    "part of a CPU": ({"job/cpu.max": "150000 100000"}, "0::/job", 2),
    "less than a CPU": ({"job/cpu.max": "20000 100000"}, "0::/job", 1),
    "no quota": ({"job/cpu.max": "max 100000"}, "0::/job", 64),
    "group above": ({"cpu.max": "300000 100000", "a/cpu.max": "max 100000"}, "0::/a", 3),
    "version 1": (
        {"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"},
        "3:cpu,cpuacct:/job",
        2,
    ),
    "version 1 without": ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, "3:cpu:/", 64),
}


@pytest.mark.parametrize("name", CPUS)
def test_cpus_of_control_groups(groups: Groups, name: str) -> None:
    files, own, cpus = CPUS[name]
    groups(own, files)
    assert usable_cpus() == cpus


@pytest.mark.usefixtures("host")
def test_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Machine, "cpu_affinity", lambda self: [3, 5, 7])
    assert usable_cpus() == 3


@pytest.mark.usefixtures("host")
def test_a_batch_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "8")
    monkeypatch.setenv("SLURM_MEM_PER_CPU", "1024")
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "16")
    assert (available_memory(), usable_cpus()) == (15 * GIB, 8)
    # all of the node
    monkeypatch.setenv("SLURM_MEM_PER_CPU", "0")
    assert available_memory() == 256 * GIB
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "4096")
    assert available_memory() == 3 * GIB


@pytest.mark.usefixtures("host")
def test_a_limit_of_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = SimpleNamespace(RLIMIT_AS=9, RLIM_INFINITY=-1, getrlimit=lambda kind: (5 * GIB, 9 * GIB))
    monkeypatch.setitem(sys.modules, "resource", limits)
    assert available_memory() == 2 * GIB
    limits.getrlimit = lambda kind: (-1, -1)
    assert available_memory() == 256 * GIB


@pytest.mark.usefixtures("host")
def test_a_system_without_affinity_and_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Machine, "cpu_affinity")
    assert (available_memory(), usable_cpus()) == (256 * GIB, 64)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cpus() == 1


def test_this_process() -> None:
    assert 1 <= usable_cpus() <= (os.cpu_count() or 1)
    assert 2**20 < allowance.resident_memory() < 2**50
    assert 2**20 < available_memory() <= psutil.virtual_memory().total
