"""Engine, precision and number of threads for a device, chosen automatically unless requested."""

import os
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, get_args

import torch
from torch.utils._triton import has_triton

from bitnetctl.config import LearningRateFactors, RunConfig
from bitnetctl.data import TokenData
from bitnetctl.engine.cost import NODE_SECONDS, step_nodes
from bitnetctl.engine.cuda_graph import CapturedPack
from bitnetctl.engine.pack import Pack
from bitnetctl.errors import ConfigError
from bitnetctl.hardware import has_bf16_matmul
from bitnetctl.model.matmul import Precision, int8_sum_is_exact
from bitnetctl.model.parameters import num_parameters, parameter_specs
from bitnetctl.model.parts import Part, Quantized, supported_parts
from bitnetctl.plugins.composition import Composition

Engine: TypeAlias = Literal["eager", "graph", "compile", "fused"]

# below this many parameters the matmuls are too small to make up for the casts to bf16
_BF16_FROM_PARAMETERS = 2_000_000
# timed steps with each number of threads: as many as fit into this time, within these bounds
_TRIAL_SECONDS = 1.0
_MIN_TRIALS, _MAX_TRIALS = 3, 9
# so many times the time of the fastest: not tried again
_HOPELESS = 4.0
# on an H100, beyond what a captured step needs: compiling with an empty cache
_COMPILE_SECONDS = 20.0
# `torch._int_mm` on a GPU: widths in multiples of this, and at least so many tokens
_INT8_MULTIPLE, _INT8_TOKENS = 8, 17


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How a run is computed, as `run.json` names it; `kernels` are the parts of a step that own kernels compute."""

    engine: Engine
    precision: Precision
    kernels: frozenset[Part] = frozenset()


def choose(
    config: RunConfig,
    vocab_size: int,
    device: torch.device,
    engine: str = "auto",
    precision: str = "auto",
    *,
    custom: frozenset[Quantized] = frozenset(),
) -> Execution:
    """Return engine and precision for a run's effective config; raises ConfigError for what the device cannot do.

    `custom` is what its interventions quantize, which has neither own kernels nor int8 matmuls.

    `auto` is, on the CPU, eager, in bf16 from 2 M parameters on if the CPU has bf16 matmuls. On a GPU it is bf16 if the
    GPU has it, in a CUDA graph: of own kernels if Triton and a C compiler are there and the layers have kernels, else
    of compiled layers if that saves more time than it takes. `proven` checks what is not plain before it is taken.
    """
    chosen = _precision(precision, config, vocab_size, device)
    if chosen == "int8" and custom:
        raise ConfigError(
            "--precision int8: an intervention has a quantizer of its own, which needs matmuls in bf16; "
            "take --precision bf16 or auto"
        )
    parts = supported_parts(config.model, chosen, custom)
    chosen_engine = _engine(engine, config, device, parts, custom)
    kernels = parts if chosen_engine == "fused" else frozenset[Part]()
    return Execution(engine=chosen_engine, precision=chosen, kernels=kernels)


def without_kernels(execution: Execution, config: RunConfig, device: torch.device) -> Execution:
    """Return what `auto` takes on a GPU where no own kernel can be used."""
    return replace(execution, engine=_plain_engine(config, device), kernels=frozenset())


def has_stock_update(config: RunConfig, composition: Composition) -> bool:
    """Whether own kernels can update a run: not for a plug-in's optimizer, learning-rate factors or micro-batches."""
    has_one_rate = config.optimizer.learning_rate_factors == LearningRateFactors()
    return composition.optimizer_plugin is None and has_one_rate and config.data.gradient_accumulation == 1


def without_update_if_needed(
    execution: Execution, configs: Sequence[RunConfig], compositions: Sequence[Composition]
) -> Execution:
    """Return how a pack is computed: its update without own kernels if these cannot update one of its runs."""
    if all(map(has_stock_update, configs, compositions)):
        return execution
    return replace(execution, kernels=execution.kernels - {"update"})


def _engine(
    requested: str, config: RunConfig, device: torch.device, parts: frozenset[Part], custom: frozenset[Quantized]
) -> Engine:
    missing = _missing_to_compile(device)
    match requested:
        case "auto" if device.type == "cpu":
            return "eager"
        case "auto":
            if "activations" in custom:
                # nor are its layers compiled
                return "graph"
            fused = missing is None and "layers" in parts
            return "fused" if fused else _plain_engine(config, device)
        case "graph" | "fused" if device.type == "cpu":
            raise ConfigError(f"--engine {requested} captures CUDA kernels; on the CPU take eager or compile")
        case "compile" | "fused" if missing:
            plain = "eager" if device.type == "cpu" else "graph"
            raise ConfigError(f"--engine {requested}: {device} needs {missing} for it; take --engine {plain}")
        case "eager" | "graph" | "compile" | "fused":
            return requested
    raise ConfigError(f"--engine {requested!r} is unknown; take auto, {', '.join(get_args(Engine))}")


def _plain_engine(config: RunConfig, device: torch.device) -> Engine:
    """Return compile where the nodes that it saves in all steps of a run take longer than compiling, else graph."""
    saved = (step_nodes(config, "graph") - step_nodes(config, "compile")) * NODE_SECONDS
    pays = config.steps * saved > _COMPILE_SECONDS
    return "compile" if pays and _missing_to_compile(device) is None else "graph"


def _missing_to_compile(device: torch.device) -> str | None:
    """Return what torch.compile needs and does not find: Triton, or the compiler named by CXX or CC, or a usual one."""
    if device.type == "cpu":
        compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
        return None if shutil.which(compiler) else f"a C++ compiler, {compiler} or another in CXX,"
    if not has_triton():
        return "Triton"
    compilers = [os.environ["CC"]] if "CC" in os.environ else ["gcc", "clang"]
    return None if any(map(shutil.which, compilers)) else f"a C compiler, {' or '.join(compilers)} or another in CC,"


def _precision(requested: str, config: RunConfig, vocab_size: int, device: torch.device) -> Precision:
    has_bf16 = has_bf16_matmul(device)
    match requested:
        case "auto":
            large = device.type == "cuda" or num_parameters(config.model, vocab_size) >= _BF16_FROM_PARAMETERS
            return "bf16" if has_bf16 and large else "fp32"
        case "bf16" | "int8" if not has_bf16:
            raise ConfigError(f"--precision {requested}: {device} has no bf16 matmuls; take --precision fp32")
        case "int8" if device.type == "cpu":
            raise ConfigError("--precision int8 is for the int8 tensor cores of a GPU; take fp32 or bf16")
        case "int8" if not int8_sum_is_exact(max(config.model.hidden_size, config.model.intermediate_size)):
            raise ConfigError("--precision int8: the model is too wide for exact sums; take bf16")
        case "int8" if refusal := _int8_refusal(config, vocab_size):
            raise ConfigError(f"--precision int8: {refusal}; take bf16")
        case "fp32" | "bf16" | "int8":
            return requested
    raise ConfigError(f"--precision {requested!r} is unknown; take auto, {', '.join(get_args(Precision))}")


def _int8_refusal(config: RunConfig, vocab_size: int) -> str | None:
    """Return why `torch._int_mm` refuses the shapes of a run on a GPU; None if it takes them."""
    matrices = [spec.shape[1:] for spec in parameter_specs(config.model, vocab_size).values() if spec.is_matrix]
    odd = [f"{rows}×{columns}" for rows, columns in matrices if rows % _INT8_MULTIPLE or columns % _INT8_MULTIPLE]
    if odd:
        return f"a matrix of {odd[0]} is not made of multiples of {_INT8_MULTIPLE}"
    # the probe may evaluate a single row
    fewest = min(config.data.sequence_length, config.probe.random_prompts * config.probe.random_prompt_tokens)
    return f"{fewest} tokens at once are fewer than {_INT8_TOKENS}" if fewest < _INT8_TOKENS else None


def uncaptured_engine(engine: Engine) -> Engine:
    """Return the engine used when capture is impossible: all but compile → eager."""
    return "compile" if engine == "compile" else "eager"


def make_pack(
    configs: Sequence[RunConfig],
    compositions: Sequence[Composition],
    data: TokenData,
    device: torch.device,
    execution: Execution,
) -> Pack:
    """Return a pack with this engine and precision; captured on a GPU unless eager or an intervention prevents it."""
    if device.type == "cuda" and execution.engine != "eager" and all(each.capturable_step for each in compositions):
        return captured_pack(configs, compositions, data, device, execution)
    compiled = execution.engine == "compile"
    return Pack(configs, compositions, data, device, precision=execution.precision, compiled=compiled)


def captured_pack(
    configs: Sequence[RunConfig],
    compositions: Sequence[Composition],
    data: TokenData,
    device: torch.device,
    execution: Execution,
) -> CapturedPack:
    """Return a pack whose step runs on the device, with own kernels where the execution names some."""
    precision = execution.precision
    execution = without_update_if_needed(execution, configs, compositions)
    if execution.kernels:
        # with Triton, which few machines without a GPU have
        from bitnetctl.engine.fused import FusedPack

        return FusedPack(configs, compositions, data, device, precision=precision, parts=execution.kernels)
    compiled = execution.engine == "compile"
    return CapturedPack(configs, compositions, data, device, precision=precision, compiled=compiled)


def choose_threads(pack: Pack, limit: int) -> int:
    """Return which of 1, 2, 4, … and `limit` threads are the fastest for a step's forward and backward now.

    Small matmuls gain little from a second thread and lose much when its core is shared: beside one busy process, two
    threads were measured to take 40 ms for a step that takes 7 ms in one. Two CPUs of a virtual machine may be one
    core, or be used by its neighbours, and then large steps lose too.
    """
    if limit == 1 or pack.device.type != "cpu":
        return limit
    timings: dict[int, list[float]] = {threads: [] for threads in thread_counts(limit)}

    def has_time() -> bool:
        rounds = max(map(len, timings.values()))
        return rounds < _MIN_TRIALS or (rounds < _MAX_TRIALS and sum(map(sum, timings.values())) < _TRIAL_SECONDS)

    try:
        # alternating, as the load of the machine changes
        while has_time():
            for threads, seconds in timings.items():
                torch.set_num_threads(threads)
                seconds.append(_step_seconds(pack))
            # a large step takes long with few threads: no more of those that are far behind after warming up
            best = min(seconds[-1] for seconds in timings.values())
            timings = {
                threads: seconds
                for threads, seconds in timings.items()
                if len(seconds) == 1 or seconds[-1] <= _HOPELESS * best
            }
    finally:
        torch.set_num_threads(limit)
    # the first of each warms up: it page-faults new memory
    median = {threads: statistics.median(seconds[1:]) for threads, seconds in timings.items()}
    chosen = min(median)
    for threads in sorted(median):
        # few gain little, and lose it again when a neighbour takes their core
        if median[threads] < 0.9 * median[chosen]:
            chosen = threads
    return chosen


def thread_counts(limit: int) -> list[int]:
    """Return `limit`, and the powers of two below it in descending order."""
    return [limit, *(2**power for power in reversed(range((limit - 1).bit_length())))]


def _step_seconds(pack: Pack) -> float:
    """Time one forward and backward, after a forward that wakes the threads up.

    Of a compiled model only the uncompiled forward: compiled code is specialised to a number of threads.
    """
    model, data = pack.model, pack.replicas[0].config.data
    tokens_RBT = torch.zeros(model.num_runs, data.batch_size, data.sequence_length, dtype=torch.long)
    quant_lambdas = pack.quant_lambdas(1)
    model.forward(tokens_RBT, quant_lambdas)
    start = time.perf_counter()
    if model.compiled:
        model.forward(tokens_RBT, quant_lambdas)
    else:
        activations = model.forward_for_backward(tokens_RBT, model.quantization(quant_lambdas))
        model.backward(activations, model.head_loss(activations.hidden_RNH, tokens_RBT.flatten(1))[1])
    return time.perf_counter() - start
