"""The self-check of our own kernels against torch's operations on this card."""

import dataclasses
import importlib
from typing import Any

from benchmarks.gpu_parts.commands import TINY
from benchmarks.gpu_parts.report import NotMeasuredError, Options, Report
from bitnetctl.config import build_config
from bitnetctl.hardware import resolve_device


def run(report: Report, options: Options) -> None:
    """Run every check at the shapes of `origin`, and report each."""
    try:
        selfcheck = importlib.import_module("bitnetctl.engine.selfcheck")
    except ModuleNotFoundError as error:
        raise NotMeasuredError(f"this version has no self-check ({error})") from error
    overrides = [f"{name}={value}" for name, value in TINY.items()] if options.quick else []
    config = build_config("origin", overrides=overrides)
    for check in selfcheck.run_checks(resolve_device(options.device), config):
        row = _row(check)
        report.row("checks", row)
        if row.get("passed") is False:
            report.failed(f"check failed: {row}")


def _row(check: Any) -> dict[str, Any]:
    """Return the fields of a check as a row."""
    if dataclasses.is_dataclass(check) and not isinstance(check, type):
        return dataclasses.asdict(check)
    return dict(check._asdict())
