"""Facts about the machine: device, memory, and how fast it multiplies and copies."""

import contextlib
import ctypes
import functools
import gc
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from bitnetctl.errors import ConfigError


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
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                cpu = line.partition(":")[2].strip()
                break
    return f"cpu ({cpu}, {os.cpu_count()} cores)"


def memory_in_use(device: torch.device) -> int:
    """Return bytes allocated on the GPU, or resident in this process; 0 where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    with contextlib.suppress(OSError):
        resident = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
        return int(resident) * os.sysconf("SC_PAGE_SIZE")
    return 0


def memory_available(device: torch.device) -> int:
    """Return free bytes on the GPU, or in the machine without swapping; 0 where the system does not tell."""
    if device.type == "cuda":
        # what torch keeps for itself it hands to the next who asks
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 0


def release_unused(device: torch.device) -> None:
    """Give a GPU back the memory of what nobody uses any more, recorded graphs with it."""
    if device.type == "cuda":
        # objects that only hold each other hold their memory too
        gc.collect()
        torch.cuda.empty_cache()


def prepare_cpu() -> None:
    """Set what makes this process compute faster: freed memory is kept, figures below 1.2e-38 are zero.

    Arithmetic with denormals takes many times as long, and a confident softmax is full of them. Threads inherit the
    setting, so it must come before the first parallel operation.
    """
    keep_freed_memory()
    torch.set_flush_denormal(True)


def keep_freed_memory() -> bool:
    """Make glibc keep freed memory for the next step instead of returning it; True where it could be set.

    A step frees and takes the same hundreds of megabytes; given back, every page of them faults anew. Measured on
    2 cores, origin recipe: 219 to 134 ms a step.
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
def cpu_info() -> tuple[str, frozenset[str]]:
    """Return maker and instruction sets of the CPU as Linux names them; empty where it does not tell."""
    facts: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines():
            name, _, value = line.partition(":")
            facts[name.strip()] = value.strip()
    return facts.get("vendor_id", ""), frozenset(facts.get("flags", "").split())


def has_bf16_matmul(device: torch.device) -> bool:
    """Whether bf16 matrix products are faster than fp32 ones there; on other CPUs they are many times slower."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(cpu_info()[1] & {"avx512_bf16", "amx_bf16"})


@functools.cache
def onednn_keeps_fp32() -> bool:
    """Whether oneDNN, allowed bf16 inside fp32 products, multiplies in fp32 all the same, and is worth it.

    True on CPUs of another maker than Intel with AVX-512 and without AMX, if a check on four shapes agrees with
    double precision as fp32 must. Measured on an AMD EPYC with 2 cores: 345 against MKL's 160 GFLOP/s.
    """
    maker, flags = cpu_info()
    if maker != "AuthenticAMD" or "avx512f" not in flags or any(flag.startswith("amx") for flag in flags):
        return False
    matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = matmul.fp32_precision
    generator = torch.Generator().manual_seed(0)
    try:
        matmul.fp32_precision = "bf16"
        for rows, inner, outputs in ((128, 256, 2048), (128, 64, 192), (17, 33, 65), (1024, 512, 256)):
            a = torch.randn(2, rows, inner, generator=generator, dtype=torch.float)
            b = torch.randn(2, outputs, inner, generator=generator, dtype=torch.float)
            error = (torch.bmm(a, b.mT).double() - torch.bmm(a.double(), b.double().mT)).abs().max()
            # bf16 keeps 8 bits: its error here is above 1e-1
            if error > 1e-3:
                return False
    finally:
        matmul.fp32_precision = before
    return True


def measure_rates(device: torch.device, multiply: Callable[[torch.Tensor], object]) -> tuple[float, float]:
    """Return throughput of `multiply(a)`, a · a, in FLOP/s and memory traffic in bytes/s, measured in about 0.2 s."""
    a = torch.randn(1, 1024, 1024, device=device)
    big = torch.zeros(32 * 2**20, device=device)
    flops = 2 * 1024**3 / _best_seconds(lambda: multiply(a), device)
    traffic = 2 * big.numel() * big.element_size() / _best_seconds(lambda: big.add_(1.0), device)
    return flops, traffic


def _best_seconds(work: Callable[[], object], device: torch.device) -> float:
    best = float("inf")
    for _ in range(4):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return best
