"""Seconds from the start of a training to its first row, by engine, with empty caches of kernels and filled ones."""

import os
import sys
from typing import get_args

from benchmarks import harness, start
from benchmarks.gpu_parts.commands import new_folder
from benchmarks.gpu_parts.report import Options, Report
from benchmarks.step import VOCABULARIES
from bitnetctl.config import build_config
from bitnetctl.data import prepare
from bitnetctl.engine.select import Engine, choose
from bitnetctl.errors import ConfigError
from bitnetctl.hardware import resolve_device

_TARGET_SECONDS = 10


def run(report: Report, options: Options) -> None:
    """Start each engine twice."""
    device, folder = resolve_device(options.device), new_folder(options, "start")
    command = folder / "bitnetctl"
    # where it is installed is not certain
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m bitnetctl "$@"\n', encoding="utf-8")
    command.chmod(0o755)
    harness.cli_path = lambda: command
    # in the cache that the trainings below use
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    config = build_config("quick")
    prepare(config.data)
    report.values(recipe="quick, text tokenized before", target_seconds=_TARGET_SECONDS)
    for engine in ("auto", *(each for each in ("graph", "fused", "compile") if each in get_args(Engine))):
        try:
            chosen = choose(config, VOCABULARIES["quick"], device, engine)
        except ConfigError as error:
            report.row("start", {"engine": engine, "note": str(error)})
            continue
        row: dict[str, object] = {"engine": engine, "taken": f"{chosen.engine}, {chosen.precision}"}
        for name in ("caches empty, s", "caches filled, s"):
            kernels = folder / f"kernels-{engine}"
            turn = start.first_row(folder, device, engine, kernels)
            row[name] = turn.get("seconds")
            if "error" in turn:
                report.failed(f"{engine}: {turn['error']}")
        report.row("start", row)
        if options.quick:
            break
