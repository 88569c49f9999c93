"""Checks, on this very device, that what is faster computes what the plain operations compute, before `auto` takes it.

A pack of two small runs, with the layers' shapes of the run to be trained, is trained with each part of the own kernels
alone, or compiled, and with the plain operations. The outcome is kept in the cache for each device, driver, version of
torch and Triton, code of the kernels and shape: a part that does not agree is left to the plain operations, and said.

The checks run in a process of their own: a kernel that is wrong may make the GPU unusable for the one that started it.
"""

import contextlib
import functools
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bitnetctl.config import RunConfig, parse_config
from bitnetctl.data import TokenData
from bitnetctl.engine.cuda_graph import CapturedPack
from bitnetctl.engine.pack import Pack
from bitnetctl.engine.select import Execution, captured_pack, without_kernels
from bitnetctl.errors import BitnetctlError, one_line
from bitnetctl.files import cache_folder, write_atomic
from bitnetctl.hardware import device_name, driver_version
from bitnetctl.model.matmul import Precision
from bitnetctl.model.parts import PARTS, Part
from bitnetctl.plugins.composition import Composition

Log = Callable[[str], None]
_LAYERS, _STEPS = 2, 3
# no multiple of 64, so that padding is checked, and more than a block of the loss
_MAX_VOCABULARY = 10_007
_MAX_TOKENS = 4096
_SECONDS = 180


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """Largest differences: of a loss, relative; of a gradient and of a weight's change, relative in Frobenius norm."""

    loss: float
    gradient: float
    change: float | None = None


# sums in another order move a value across a rounding boundary now and then: one code in 127, or a ternary value
TOLERANCES: dict[str, Tolerance] = {
    "weights": Tolerance(loss=2e-3, gradient=3e-2),
    "layers": Tolerance(loss=2e-3, gradient=3e-2),
    "gradients": Tolerance(loss=1e-6, gradient=1e-2),
    "loss": Tolerance(loss=1e-5, gradient=1e-2),
    "update": Tolerance(loss=1e-3, gradient=1e-5, change=2e-3),
    "compile": Tolerance(loss=2e-3, gradient=3e-2),
}


@dataclass(frozen=True, kw_only=True)
class Check:
    """What is compared: one of `PARTS` or "compile", for the shape of a config, interpolating quantization or not."""

    part: str
    config: RunConfig
    vocab_size: int
    precision: Precision
    interpolates: bool
    runs: int = 2


def proven(
    execution: Execution,
    configs: Sequence[RunConfig],
    vocab_size: int,
    device: torch.device,
    *,
    interpolates: bool,
    log: Log,
) -> Execution:
    """Return how runs are computed with those fast paths only that agree with the plain ones on this device.

    `interpolates`: whether some λ is neither 0 nor 1. A part that fails is named by `log`, once.
    """
    if device.type != "cuda" or execution.engine not in ("fused", "compile"):
        return execution
    if execution.engine == "compile":
        parts: Sequence[str] = ("compile",)
    else:
        parts = [part for part in PARTS if part in execution.kernels]
    checks = [
        Check(
            part=part,
            config=_small(configs[0]),
            vocab_size=min(vocab_size, _MAX_VOCABULARY),
            precision=execution.precision,
            interpolates=interpolates,
            runs=len(configs) if part == "compile" else 2,
        )
        for part in parts
    ]
    problems = _outcomes(checks, device, log)
    for part, problem in problems.items():
        if problem is not None:
            what = "compiled layers are" if part == "compile" else f"own kernels for {part} are"
            log(f"{what} not used on {device_name(device)}: {problem}")
    if execution.engine == "compile":
        return execution if problems["compile"] is None else replace(execution, engine="graph")
    agreeing = frozenset[Part](part for part in execution.kernels if problems[part] is None)
    if agreeing:
        return replace(execution, kernels=agreeing)
    plain = without_kernels(execution, configs[0], device)
    return proven(plain, configs, vocab_size, device, interpolates=interpolates, log=log)


def _small(config: RunConfig) -> RunConfig:
    """Return a config of the same layers with few of them, and few tokens and steps."""
    positions = config.data.sequence_length
    return config.model_copy(
        update={
            "model": config.model.model_copy(update={"num_layers": min(config.model.num_layers, _LAYERS)}),
            "data": config.data.model_copy(
                update={"batch_size": max(1, min(config.data.batch_size, _MAX_TOKENS // positions))}
            ),
            "schedule": config.schedule.model_copy(update={"warmup_steps": 0}),
            "steps": _STEPS,
        }
    )


def _outcomes(checks: Sequence[Check], device: torch.device, log: Log) -> dict[str, str | None]:
    """Return of every part what is wrong with it, from the cache or by checking; None: it agrees."""
    known = {check.part: _read(_record(check, device)) for check in checks}
    missing = [check for check in checks if known[check.part] is None]
    if missing:
        log(f"checking fast kernels on {device_name(device)}, once for this shape and these versions")
        for check, problem in zip(missing, _in_a_process(missing, device), strict=True):
            known[check.part] = {"problem": problem}
            with contextlib.suppress(OSError, BitnetctlError):
                record = _record(check, device)
                record.parent.mkdir(parents=True, exist_ok=True)
                content = {"problem": problem, **_identity(check, device)}
                write_atomic(record, json.dumps(content, indent=1).encode())
    return {part: outcome["problem"] for part, outcome in known.items() if outcome is not None}


def _record(check: Check, device: torch.device) -> Path:
    """Return the file of a check's outcome."""
    digest = hashlib.sha256(json.dumps(_identity(check, device), sort_keys=True).encode()).hexdigest()
    return cache_folder() / "checks" / f"{check.part}-{digest[:16]}.json"


def _identity(check: Check, device: torch.device) -> dict[str, Any]:
    """Return all that an outcome depends on."""
    data, model = check.config.data, check.config.model
    return {
        "device": device_name(device),
        "driver": driver_version(),
        "torch": torch.__version__,
        "triton": metadata.version("triton"),
        "code": _code_digest(),
        "model": model.model_dump(mode="json", exclude={"num_layers", "quantization", "initialization", "init_std"}),
        "tokens": [data.batch_size, data.sequence_length],
        "vocabulary": check.vocab_size,
        "precision": check.precision,
        "interpolates": check.interpolates,
        "runs": check.runs,
    }


@functools.cache
def _code_digest() -> str:
    """Return a hash of the code of the fast paths and of what they are compared with."""
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for folder in ("kernels", "model", "engine"):
        for path in sorted((package / folder).glob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _read(record: Path) -> dict[str, Any] | None:
    """Return a kept outcome; None where there is none that can be read."""
    try:
        content = json.loads(record.read_bytes())
        return content if content["problem"] is None or isinstance(content["problem"], str) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _in_a_process(checks: Sequence[Check], device: torch.device) -> list[str | None]:
    """Run checks in a process of their own; a part whose check ends it or takes too long fails."""
    job = {"device": str(device), "checks": [_as_json(check) for check in checks]}
    try:
        done = subprocess.run(
            [sys.executable, "-m", __name__],
            input=json.dumps(job),
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
        lines, ended = done.stdout, f"the check ended with {done.returncode}: {one_line(done.stderr[-200:])}"
    except subprocess.TimeoutExpired as expired:
        lines, ended = _text(expired.stdout), f"the check took more than {_SECONDS} s"
    problems: list[str | None] = [json.loads(line)["problem"] for line in lines.splitlines()]
    # the one that was at work; those after it may be right, and are checked again
    if len(problems) < len(checks):
        problems.append(ended)
        if len(problems) < len(checks):
            problems += _in_a_process(checks[len(problems) :], device)
    return problems


def _text(output: bytes | str | None) -> str:
    return output.decode(errors="replace") if isinstance(output, bytes) else output or ""


def _as_json(check: Check) -> dict[str, Any]:
    return {**vars(check), "config": check.config.model_dump(mode="json")}


def main() -> None:
    """Run the checks that stdin names; print a line of JSON for each."""
    job = json.load(sys.stdin)
    device = torch.device(job["device"])
    if device.type == "cuda":
        torch.cuda.set_device(device)
    for fields in job["checks"]:
        check = Check(**{**fields, "config": parse_config(fields["config"])})
        print(json.dumps({"problem": run_check(check, device)}), flush=True)  # noqa: T201


def run_check(check: Check, device: torch.device) -> str | None:
    """Train a few steps both ways; return what does not agree, None if all does."""
    tolerance = TOLERANCES[check.part]
    try:
        plain, fast = (_pack(check, device, is_fast=is_fast) for is_fast in (False, True))
        before = {key: packed.clone() for key, packed in plain.model.packed.items()}
        plain.step(1)
        fast.step(1)
        problem = _disagreement(plain, fast, tolerance)
        if problem is not None or tolerance.change is None:
            return problem
        for step in range(2, _STEPS + 1):
            plain.step(step)
            fast.step(step)
        for key, weight in plain.model.packed.items():
            difference = _relative(fast.model.packed[key] - before[key], weight - before[key])
            if not difference <= tolerance.change:
                return f"the updates of {key} differ by {difference:.2g} (at most {tolerance.change:g})"
    except Exception as error:
        return f"{type(error).__name__}: {one_line(error, 160)}"
    return None


def _pack(check: Check, device: torch.device, *, is_fast: bool) -> CapturedPack:
    """Return runs that differ in all that a pack may: seed, optimizer, clipping, exempt parameters, λ."""
    config = check.config
    second = config.model_copy(
        update={
            "seed": config.seed + 1,
            "optimizer": config.optimizer.model_copy(
                update={"name": "adamw", "max_norm": 0.05, "exempt": ("norms", "embeddings")}
            ),
        }
    )
    if check.interpolates:
        second = second.model_copy(update={"model": second.model.model_copy(update={"quantization": 0.5})})
    configs = [config if run % 2 == 0 else second for run in range(check.runs)]
    execution = Execution(engine="graph", precision=check.precision)
    if is_fast:
        is_part = check.part != "compile"
        execution = replace(
            execution,
            engine="fused" if is_part else "compile",
            kernels=frozenset[Part](part for part in PARTS if part == check.part),
        )
    pack = captured_pack(configs, [Composition() for _ in configs], _tokens(check), device, execution)
    # nothing is captured: each step is compared
    pack.graphs = None
    return pack


def _tokens(check: Check) -> TokenData:
    """Return random tokens, among them many of a kind."""
    data = check.config.data
    count = 2 * _STEPS * data.batch_size * data.sequence_length + 1
    tokens_N = np.random.default_rng(0).zipf(1.3, count) % check.vocab_size
    return TokenData(
        train_N=tokens_N.astype(np.uint32),
        held_out_N=tokens_N[:1].astype(np.uint32),
        vocab_size=check.vocab_size,
        fingerprint="",
        tokenizer_fingerprint="",
        source="random",
        tokenizer="none",
        tokenizer_path=Path(),
        end_of_text=None,
    )


def _disagreement(plain: Pack, fast: Pack, tolerance: Tolerance) -> str | None:
    """Compare loss, gradient norm and gradients of a step from equal weights."""
    for name, ours, theirs in (("loss", fast.loss_R, plain.loss_R), ("norm", fast.grad_norm_R, plain.grad_norm_R)):
        limit = tolerance.loss if name == "loss" else tolerance.gradient
        if not (difference := ((ours - theirs).abs() / theirs.abs()).max().item()) <= limit:
            return f"the {name} differs by {difference:.2g} (at most {limit:g})"
    # stock optimizers clip gradients in place, so where only one pack has them its updates are compared
    for key, gradient in plain.model.gradients.items() if tolerance.change is None else ():
        if not (difference := _relative(fast.model.gradients[key], gradient)) <= tolerance.gradient:
            return f"the gradient of {key} differs by {difference:.2g} (at most {tolerance.gradient:g})"
    return None


def _relative(ours: Tensor, theirs: Tensor) -> float:
    """Return the difference of two tensors in Frobenius norm, relative to the second."""
    return float((ours - theirs).norm() / theirs.norm().clamp(min=1e-30))


if __name__ == "__main__":
    main()
