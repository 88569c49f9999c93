"""Checks, on this very device, that a fast path computes what the plain operations compute, before a run takes it.

A small pack, with the layers' shapes of the runs to be trained, is trained with each part of the own kernels alone,
with all of them together, or compiled, and with the plain operations; see `agreement`. The outcome is kept in the cache
for each device, driver, version of torch and Triton, code of the kernels and shape: a part that does not agree is left
to the plain operations, and stderr names it.

The checks run in a process of their own: a kernel that is wrong may make the GPU unusable for the one that started it.
"""

import functools
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bitnetctl.config import ModelConfig, OptimizerConfig, RunConfig, ScheduleConfig, parse_config
from bitnetctl.engine.agreement import STEPS, Check, run_check
from bitnetctl.engine.select import Execution, without_kernels
from bitnetctl.errors import BitnetctlError, one_line
from bitnetctl.files import cache_folder, write_atomic
from bitnetctl.hardware import device_name, driver_version, release_unused
from bitnetctl.model.parts import PARTS, Part

Log = Callable[[str], None]
_MAX_LAYERS = 2
# more than a block of the loss
_MAX_VOCABULARY = 10_007
_MAX_TOKENS = 4096
# the number of runs decides how many tokens a block of the norms' backward takes, up to so many
_MAX_RUNS = 16
_LIMIT_SECONDS = 180
_TOO_LONG = f"the check took more than {_LIMIT_SECONDS} s"
# problems that may be gone the next time: not kept
_TRANSIENT = ("OutOfMemoryError", _TOO_LONG)
# problems of the machine that its user may fix (no compiler, no Python headers, a full disk): kept for this process
_FIXABLE = (
    "CalledProcessError",
    "FileNotFoundError",
    "OSError",
    "PermissionError",
    "RuntimeError: Failed to find C compiler",
)
# at the head of what the process answers: an empty line when it is ready, then one for each check
_ANSWER = "bitnetctl-check "

# outcomes that cannot be written, or that its user may change, by digest: for the next pack of this process
_unsaved: dict[str, dict[str, Any]] = {}


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
    lambdas = {config.model.quantization for config in configs}
    check = Check(
        part="compile",
        config=small_config(configs[0], 0.0 if lambdas == {0.0} else 1.0),
        vocab_size=small_vocabulary(vocab_size),
        precision=execution.precision,
        # λ of a step is a tensor where runs differ
        interpolates=interpolates or len(lambdas) > 1 or not lambdas <= {0.0, 1.0},
        runs=len(configs),
    )
    if execution.engine == "compile":
        problem = _outcomes([check], device, log)["compile"]
        _log_problems({"compile": problem}, device, log)
        return execution if problem is None else replace(execution, engine="graph")
    agreeing = _agreeing(execution.kernels, replace(check, runs=_runs(len(configs))), device, log)
    if agreeing:
        return replace(execution, kernels=agreeing)
    plain = without_kernels(execution, configs[0], device)
    return proven(plain, configs, vocab_size, device, interpolates=interpolates, log=log)


def _agreeing(kernels: frozenset[Part], shape: Check, device: torch.device, log: Log) -> frozenset[Part]:
    """Return those of the parts that agree, each alone and all together; none if they do not agree together."""
    parts = [part for part in PARTS if part in kernels]
    together = replace(shape, part="together", kernels=parts)
    problems = _outcomes([*(replace(shape, part=part) for part in parts), together], device, log)
    agreeing = [part for part in parts if problems[part] is None]
    if agreeing and agreeing != parts:
        problems |= _outcomes([replace(together, kernels=agreeing)], device, log)
    _log_problems({part: problem for part, problem in problems.items() if agreeing or part != "together"}, device, log)
    return frozenset(agreeing if problems["together"] is None else ())


def _log_problems(problems: Mapping[str, str | None], device: torch.device, log: Log) -> None:
    """Log what is not used, and why."""
    names = {"compile": "compiled layers are", "together": "own kernels together are"}
    for part, problem in problems.items():
        if problem is not None:
            what = names.get(part, f"own kernels for {part} are")
            log(f"{what} not used on {device_name(device)}: {problem}")


def small_config(config: RunConfig, quantization: float = 1.0) -> RunConfig:
    """Return the config of a check: the same layers, but few of them, and few tokens and steps.

    Fields that do not change a kernel are the same for every run, so that an outcome depends on the shape alone.
    """
    positions, model, data = config.data.sequence_length, ModelConfig(), config.data
    return config.model_copy(
        update={
            "model": config.model.model_copy(
                update={
                    "num_layers": min(config.model.num_layers, _MAX_LAYERS),
                    "quantization": quantization,
                    "initialization": model.initialization,
                    "init_std": model.init_std,
                }
            ),
            "data": data.model_copy(
                update={
                    "batch_size": max(1, min(data.batch_size, _MAX_TOKENS // positions)),
                    "gradient_accumulation": 1,
                }
            ),
            "optimizer": OptimizerConfig(name="adam", max_norm=0.05),
            "schedule": ScheduleConfig(kind="constant", peak_learning_rate=1e-3, warmup_steps=0),
            # one more, that a diverged run skips
            "steps": STEPS + 1,
        }
    )


def small_vocabulary(size: int) -> int:
    """Return the vocabulary of a check: at most about 10,000, with the same padding, on which kernels depend."""
    return size if size <= _MAX_VOCABULARY else -(-_MAX_VOCABULARY // 64) * 64 - -size % 64


def _runs(count: int) -> int:
    """Return the number of runs of a check: the next power of two has kernels of the same blocks."""
    return min(1 << (count - 1).bit_length(), _MAX_RUNS)


def _outcomes(checks: Sequence[Check], device: torch.device, log: Log) -> dict[str, str | None]:
    """Return of every part what is wrong with it, from the cache or by checking; None: it agrees."""
    known = {check.part: _unsaved.get(_digest(check, device)) or _read_outcome(check, device) for check in checks}
    missing = [check for check in checks if known[check.part] is None]
    if missing:
        log(f"checking fast kernels on {device_name(device)}, once for this shape and these versions")
        for check, problem in zip(missing, _in_a_process(missing, device), strict=True):
            known[check.part] = {"problem": problem}
            if problem is not None and problem.startswith(_TRANSIENT):
                continue
            content = {"problem": problem, **_identity(check, device)}
            if problem is not None and problem.startswith(_FIXABLE):
                _unsaved[_digest(check, device)] = content
                continue
            try:
                record = _outcome_path(check, device)
                record.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(record, json.dumps(content, indent=1).encode())
            except (OSError, BitnetctlError):
                _unsaved[_digest(check, device)] = content
    return {part: outcome["problem"] for part, outcome in known.items() if outcome is not None}


def _outcome_path(check: Check, device: torch.device) -> Path:
    """Return the file of a check's outcome."""
    return cache_folder() / "checks" / f"{check.part}-{_digest(check, device)[:16]}.json"


def _digest(check: Check, device: torch.device) -> str:
    return hashlib.sha256(json.dumps(_identity(check, device), sort_keys=True).encode()).hexdigest()


def _identity(check: Check, device: torch.device) -> dict[str, Any]:
    """Return all that an outcome depends on."""
    data, model = check.config.data, check.config.model
    return {
        "part": check.part,
        "device": device_name(device),
        "driver": driver_version(),
        "torch": torch.__version__,
        "triton": _triton_version(),
        "code": _code_digest(),
        "model": model.model_dump(mode="json", exclude={"num_layers", "initialization", "init_std"}),
        "tokens": [data.batch_size, data.sequence_length],
        "vocabulary": check.vocab_size,
        "precision": check.precision,
        "interpolates": check.interpolates,
        "runs": check.runs,
        "kernels": list(check.kernels),
    }


@functools.cache
def _triton_version() -> str:
    """Return the version of Triton, which nightly builds of torch have under another name than `triton`."""
    import triton

    return str(triton.__version__)


@functools.cache
def _code_digest() -> str:
    """Return a hash of the code of the fast paths and of what they are compared with."""
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for folder in ("kernels", "model", "engine"):
        for path in sorted((package / folder).glob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _read_outcome(check: Check, device: torch.device) -> dict[str, Any] | None:
    """Return a kept outcome; None where there is none that can be read."""
    try:
        content = json.loads(_outcome_path(check, device).read_bytes())
        return content if content["problem"] is None or isinstance(content["problem"], str) else None
    except (OSError, ValueError, KeyError, TypeError, BitnetctlError):
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
            timeout=_LIMIT_SECONDS,
            check=False,
        )
        lines, ended = done.stdout, None
        if done.returncode != 0:
            ended = f"the check ended with {done.returncode}: {one_line(done.stderr[-200:])}"
    except subprocess.TimeoutExpired as expired:
        lines, ended = _text(expired.stdout), _TOO_LONG
    # libraries may print, too
    answers = [line for line in lines.splitlines() if line.startswith(_ANSWER)]
    if not answers:
        # a GPU may be reserved for a single process: this one
        here = [run_check(check, device) for check in checks]
        release_unused(device)
        return here
    problems: list[str | None] = [json.loads(answer.removeprefix(_ANSWER))["problem"] for answer in answers[1:]]
    # the one that was at work; it ends by itself where the GPU is lost to it
    if len(problems) < len(checks) and (ended is not None or not problems):
        problems.append(ended or "the check ended without an answer")
    # those after it may be right, and are checked again
    return problems if len(problems) == len(checks) else problems + _in_a_process(checks[len(problems) :], device)


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
    torch.zeros(1, device=device)
    print(_ANSWER, flush=True)  # noqa: T201
    for fields in job["checks"]:
        check = Check(**{**fields, "config": parse_config(fields["config"])})
        print(_ANSWER + json.dumps({"problem": run_check(check, device)}), flush=True)  # noqa: T201
        if not _is_usable(device):
            # no check of another kernel can tell anything now
            return


def _is_usable(device: torch.device) -> bool:
    """Whether a GPU still computes for this process: not after an illegal memory access."""
    try:
        return float(torch.ones(2, device=device).sum()) == 2.0
    except RuntimeError:
        return False


if __name__ == "__main__":
    main()
