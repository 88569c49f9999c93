"""Devices by name, and what is read and measured of the machine."""

import sys
import weakref

import pytest
import torch

from bitnetctl import hardware
from bitnetctl.errors import ConfigError, ExitCode
from bitnetctl.hardware import resolve_device

CPU = torch.device("cpu")


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> int:
    """Pretend that there are two GPUs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    return 2


@pytest.fixture
def no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that there is no GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)


@pytest.mark.usefixtures("no_gpus")
def test_without_a_gpu_it_is_the_cpu() -> None:
    assert resolve_device("auto") == resolve_device("cpu") == CPU


@pytest.mark.usefixtures("no_gpus")
@pytest.mark.parametrize(
    ("name", "fragment"),
    [
        ("cuda", "is not available on this machine; take --device cpu"),
        ("cuda:0", "is not available"),
        ("foo", "is unknown; take auto, cpu, cuda or cuda:N"),
        ("", "is unknown"),
        ("CPU", "is unknown"),
        ("cuda:-1", "is unknown"),
        ("cuda:x", "is unknown"),
        ("meta", "is not supported; take auto, cpu, cuda or cuda:N"),
        ("mps", "is not supported"),
    ],
)
def test_a_bad_device_is_one_line(name: str, fragment: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_device(name)
    assert str(caught.value).startswith(f"device {name!r} ")
    assert fragment in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code is ExitCode.USAGE


def test_gpus_are_chosen_by_number(gpus: int) -> None:
    # numbered, as torch.cuda.set_device wants them
    assert resolve_device("auto") == resolve_device("cuda") == torch.device("cuda", 0)
    assert resolve_device("cuda:1") == torch.device("cuda", gpus - 1)
    assert resolve_device("cpu") == CPU
    with pytest.raises(ConfigError, match="'cuda:2' is not available"):
        resolve_device(f"cuda:{gpus}")


def test_name_of_the_cpu() -> None:
    assert hardware.device_name(CPU).startswith("cpu (")
    assert hardware.device_name(CPU).endswith("cores)")


@pytest.mark.skipif(sys.platform != "linux", reason="read from /proc")
def test_memory_is_known_on_linux() -> None:
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    # torch alone takes more than 50 MB
    assert 50e6 < hardware.memory_in_use(CPU) <= peak * 1.1
    assert 2**20 < hardware.memory_available(CPU) < 2**50


def test_memory_of_a_graph_between_replays_is_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 30)
    assert hardware.memory_in_use(torch.device("cuda", 0)) == 30


def test_unused_segments_of_the_default_pool_are_available(monkeypatch: pytest.MonkeyPatch) -> None:
    def segment(total_size: int, active_size: int = 0, device: int = 0, **pool: object) -> dict[str, object]:
        return {"total_size": total_size, "active_size": active_size, "device": device, **pool}

    segments = [
        segment(5, segment_pool_id=(0, 0)),
        segment(7),
        segment(30, 1, segment_pool_id=(0, 0)),
        segment(100, segment_pool_id=(0, 1)),
        segment(200, segment_pool_id=(0, 0), device=1),
    ]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10, 80))
    monkeypatch.setattr(torch.cuda, "memory_snapshot", lambda: segments)
    assert hardware.memory_available(torch.device("cuda", 0)) == 10 + 5 + 7


def test_unused_gpu_memory_is_released(monkeypatch: pytest.MonkeyPatch) -> None:
    class Holder:
        """Holds GPU memory, and is referenced by itself only."""

        def __init__(self) -> None:
            self.itself = self

    held: list[bool] = []
    holder = Holder()
    reference = weakref.ref(holder)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: held.append(reference() is not None))
    hardware.release_unused(CPU)
    assert held == []
    del holder
    hardware.release_unused(torch.device("cuda", 0))
    assert held == [False]


def test_rates_are_measured() -> None:
    flops, traffic = hardware.measure_rates(CPU, lambda a: torch.bmm(a, a))
    # between a toy and a supercomputer: the units are right
    assert 1e8 < flops < 1e15
    assert 1e8 < traffic < 1e14


def test_freed_memory_is_kept_with_glibc() -> None:
    assert hardware.keep_freed_memory() is (sys.platform == "linux")
