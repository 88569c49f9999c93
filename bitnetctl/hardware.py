"""The machine: devices, memory, CPU features, throughput of matmuls and of memory."""

import contextlib
import ctypes
import functools
import gc
import os
import platform
import sys
import timeit
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from bitnetctl.allowance import available_memory, resident_memory
from bitnetctl.errors import ConfigError

# of torch's allocator; a CUDA graph has one of its own
_DEFAULT_POOL = (0, 0)


def resolve_device(name: str) -> torch.device:
    """Return the device for `auto`, `cpu`, `cuda` or `cuda:N`; raises ConfigError where there is none."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device {name!r} is unknown; take auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device {name!r} is not supported; take auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and not (torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()):
        raise ConfigError(f"device {name!r} is not available on this machine; take --device cpu")
    # torch.cuda.set_device wants a number
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


def device_name(device: torch.device) -> str:
    """Return the name of the GPU, or of the CPU with its core count."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpu = cpu_info().get("model name") or platform.processor() or platform.machine()
    return f"cpu ({cpu}, {os.cpu_count()} cores)"


@functools.cache
def driver_version() -> str:
    """Return the version of NVIDIA's driver; empty where it is not known."""
    with contextlib.suppress(OSError):
        words = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8", errors="replace").split()
        return next((word for word in words if word[0].isdigit() and "." in word), "")
    return ""


def memory_in_use(device: torch.device) -> int:
    """Return bytes held on the GPU, or resident in this process.

    On a GPU with those cached by torch's allocator, as the memory of a CUDA graph is between its replays.
    """
    if device.type == "cuda":
        return torch.cuda.memory_reserved(device)
    return resident_memory()


def memory_available(device: torch.device) -> int:
    """Return free bytes on the GPU, or what this process can still take of the machine's memory without swapping.

    Memory cached by torch's allocator is free where none of a segment is used: it is returned when an allocation
    fails. That of a CUDA graph, its memory between replays, is free to the graph only.
    """
    if device.type == "cuda":
        unused: list[int] = [
            segment["total_size"]
            for segment in torch.cuda.memory_snapshot()
            if segment["device"] == device.index
            and segment["active_size"] == 0
            and tuple(segment.get("segment_pool_id", _DEFAULT_POOL)) == _DEFAULT_POOL
        ]
        return torch.cuda.mem_get_info(device)[0] + sum(unused)
    return available_memory()


def release_unused(device: torch.device) -> None:
    """Free unused GPU memory, that of dropped CUDA graphs included: `gc.collect()`, then `empty_cache()`."""
    if device.type == "cuda":
        # objects in reference cycles hold GPU memory until they are collected
        gc.collect()
        torch.cuda.empty_cache()


def prepare_cpu() -> None:
    """Speed this process up: keep freed memory, and flush denormals (below 1.2e-38) to zero.

    Arithmetic with denormals is many times slower, and a confident softmax is full of them. Threads inherit the
    setting, so call this before the first parallel operation.
    """
    keep_freed_memory()
    torch.set_flush_denormal(True)


def keep_freed_memory() -> bool:
    """Make glibc keep freed memory instead of returning it to the system; return whether that succeeded.

    Every step frees and allocates the same hundreds of megabytes; memory that was returned has to be paged in again.
    Measured on 2 cores, origin recipe: 219 to 134 ms a step.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    m_trim_threshold, m_top_pad, m_mmap_max = -1, -2, -4
    return all(
        mallopt(option, value) == 1
        for option, value in ((m_mmap_max, 0), (m_trim_threshold, 2**31 - 1), (m_top_pad, 64 * 2**20))
    )


@functools.cache
def cpu_info() -> dict[str, str]:
    """Return the fields of the first CPU in /proc/cpuinfo, such as `flags`; empty where there is no such file."""
    fields: dict[str, str] = {}
    with contextlib.suppress(OSError):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        for line in text.split("\n\n")[0].splitlines():
            name, _, value = line.partition(":")
            fields[name.strip()] = value.strip()
    return fields


def has_bf16_matmul(device: torch.device) -> bool:
    """Whether the device has bf16 matmul instructions; on CPUs without them bf16 is many times slower than fp32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return not {"avx512_bf16", "amx_bf16"}.isdisjoint(cpu_info().get("flags", "").split())


@contextlib.contextmanager
def mkldnn_fp32_precision(precision: str) -> Iterator[None]:
    """Set the internal precision of fp32 matmuls on the CPU, "ieee" or "bf16"; with "bf16" oneDNN computes them."""
    settings = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = settings.fp32_precision
    settings.fp32_precision = precision
    try:
        yield
    finally:
        settings.fp32_precision = before


@functools.cache
def onednn_keeps_fp32() -> bool:
    """Whether oneDNN, allowed bf16 inside fp32 matmuls, still computes in fp32, and is faster than MKL.

    True on AMD CPUs with AVX-512 and without AMX, if four shapes agree with double precision as fp32 must.
    Measured on an AMD EPYC with 2 cores: 345 against MKL's 160 GFLOP/s.
    """
    flags, is_amd = cpu_info().get("flags", "").split(), cpu_info().get("vendor_id") == "AuthenticAMD"
    if not is_amd or "avx512f" not in flags or any(flag.startswith("amx") for flag in flags):
        return False
    generator = torch.Generator().manual_seed(0)
    with mkldnn_fp32_precision("bf16"):
        for rows, inner, outputs in ((128, 256, 2048), (128, 64, 192), (17, 33, 65), (1024, 512, 256)):
            a = torch.randn(2, rows, inner, generator=generator, dtype=torch.float)
            b = torch.randn(2, outputs, inner, generator=generator, dtype=torch.float)
            error = (torch.bmm(a, b.mT).double() - torch.bmm(a.double(), b.double().mT)).abs().max()
            # bf16 keeps 8 bits: its error here is above 1e-1
            if error > 1e-3:
                return False
    return True


def measure_rates(device: torch.device, multiply: Callable[[torch.Tensor], object]) -> tuple[float, float]:
    """Measure matmul throughput in FLOP/s and memory bandwidth in bytes/s; `multiply(a)` returns a @ a. Takes 0.2 s."""
    a = torch.randn(1, 1024, 1024, device=device)
    big = torch.zeros(32 * 2**20, device=device)
    flops = 2 * 1024**3 / _best_seconds(lambda: multiply(a), device)
    bandwidth = 2 * big.numel() * big.element_size() / _best_seconds(lambda: big.add_(1.0), device)
    return flops, bandwidth


def _best_seconds(work: Callable[[], object], device: torch.device) -> float:
    def finish() -> None:
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return min(timeit.repeat(finish, number=1, repeat=4))
