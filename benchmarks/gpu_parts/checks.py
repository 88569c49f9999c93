"""The self-check of what is faster than torch's plain operations, on this card: each part of our own kernels, compiled.

Here a check that fails stops nothing; training leaves such a part to the plain operations. With TRITON_INTERPRET=1,
`--device cpu --quick` runs them in Triton's interpreter, in fp32: it does not round to bf16 as a GPU does.
"""

import os
import time
from collections.abc import Iterator
from dataclasses import replace

from benchmarks.gpu_parts.commands import TINY
from benchmarks.gpu_parts.report import NotMeasuredError, Options, Report
from benchmarks.step import VOCABULARIES
from bitnetctl.config import RunConfig, build_config
from bitnetctl.engine.agreement import Check, run_check
from bitnetctl.engine.selfcheck import small_config, small_vocabulary
from bitnetctl.hardware import has_bf16_matmul, resolve_device
from bitnetctl.model.matmul import Precision
from bitnetctl.model.parts import PARTS, supported_parts

_HIDDEN = (256, 512)
_RUNS = (1, 16)
_PRECISIONS: tuple[Precision, ...] = ("bf16", "fp32", "int8")


def run(report: Report, options: Options) -> None:
    """Run every check at the shapes of `origin`, and report each."""
    device = resolve_device(options.device)
    on_gpu = device.type == "cuda"
    if not on_gpu and not (options.quick and os.environ.get("TRITON_INTERPRET") == "1"):
        raise NotMeasuredError("the checks are for a GPU")
    for check in checks(options.quick, has_bf16=on_gpu and has_bf16_matmul(device)):
        start = time.perf_counter()
        problem = run_check(check, device)
        row = {"part": check.part, "precision": check.precision, "hidden": check.config.model.hidden_size}
        row |= {"runs": check.runs, "interpolates": check.interpolates}
        row |= {"seconds": time.perf_counter() - start, "problem": problem or ""}
        report.row("checks", row)
        if problem is not None:
            report.failed(f"{check.part}, {check.precision}, hidden {check.config.model.hidden_size}: {problem}")


def checks(quick: bool, *, has_bf16: bool) -> Iterator[Check]:
    """Yield the checks in order of worth; compiling, which takes longest, comes last."""
    for hidden in _HIDDEN[:1] if quick else _HIDDEN:
        config = _config(hidden, quick)
        for precision in _PRECISIONS:
            if precision != "fp32" and not has_bf16:
                continue
            parts = supported_parts(config.model, precision)
            # 16 runs in the precision that they have by default
            for runs in (2,) if quick else _RUNS if precision == "bf16" else _RUNS[:1]:
                shape = Check(
                    part="together",
                    config=config,
                    vocab_size=small_vocabulary(VOCABULARIES["origin"]),
                    precision=precision,
                    interpolates=False,
                    runs=runs,
                    kernels=[part for part in PARTS if part in parts],
                )
                for part in (*shape.kernels, "together"):
                    for interpolates in (False, True) if part in ("weights", "layers") else (False,):
                        yield replace(shape, part=part, interpolates=interpolates)
    if not quick:
        precision = "bf16" if has_bf16 else "fp32"
        yield replace(shape, part="compile", config=_config(_HIDDEN[0], quick), precision=precision, kernels=(), runs=1)


def _config(hidden: int, quick: bool) -> RunConfig:
    tiny = [f"{name}={value}" for name, value in TINY.items()] if quick else []
    return small_config(build_config("origin", overrides=[*tiny, f"model.hidden_size={32 if quick else hidden}"]))
