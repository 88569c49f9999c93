"""The machine: card, driver, memory, clocks, versions. `card` and `torch` say which results belong to it."""

import importlib.metadata
import os
import platform
import shutil
import subprocess

from benchmarks.gpu_parts.report import Options, Report

_PACKAGES = ("triton", "torchao", "transformers", "numpy", "pandas", "scipy", "tokenizers", "pydantic", "plotext")
_CARD_FIELDS = ("driver_version", "memory.total", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.limit")


def run(report: Report, options: Options) -> None:
    """Write what is known without torch first."""
    report.values(python=platform.python_version(), system=platform.platform(), cpus=os.cpu_count())
    report.values(**{name: _version(name) for name in _PACKAGES})
    if shutil.which("nvidia-smi"):
        report.values(**_card_fields())
    import torch

    report.values(torch=torch.__version__, cuda=torch.version.cuda)
    if options.device == "cpu":
        report.values(card=f"cpu ({platform.processor() or platform.machine()})")
        return
    card = torch.cuda.get_device_properties(0)
    free, total = torch.cuda.mem_get_info()
    report.values(
        card=card.name,
        capability=f"{card.major}.{card.minor}",
        multiprocessors=card.multi_processor_count,
        gib=total / 2**30,
        gib_free=free / 2**30,
        cudnn=torch.backends.cudnn.version(),
    )


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _card_fields() -> dict[str, str]:
    """Return the driver and the clocks as nvidia-smi prints them."""
    command = ["nvidia-smi", f"--query-gpu={','.join(_CARD_FIELDS)}", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    values = [value.strip() for value in done.stdout.partition("\n")[0].split(",")]
    return {name.partition("_version")[0]: value for name, value in zip(_CARD_FIELDS, values, strict=False)}
