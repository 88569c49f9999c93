"""Estimated time and memory of training: counted operations and bytes, divided by the measured rates of the device."""

import math
from dataclasses import dataclass

import torch

from bitnetctl.config import RunConfig
from bitnetctl.data import vocab_size_of
from bitnetctl.errors import ConfigError
from bitnetctl.hardware import has_bf16_matmul, measure_rates, memory_available
from bitnetctl.model.matmul import Matmul, Precision
from bitnetctl.model.parameters import num_parameters, parameter_specs


def known_vocabulary(config: RunConfig) -> int:
    """Return the vocabulary size of a config without reading its text; raises ConfigError if that is not possible."""
    size = vocab_size_of(config.data)
    if size is None:
        raise ConfigError(f"the vocabulary of {config.data.tokenizer} is not known without fetching it")
    return size


# per parameter: Adam reads weight, gradient and two moments, and writes all but the gradient, in fp32
_OPTIMIZER_BYTES = 28
# what a captured step of `origin` moves in all, about: counted from its operators (`python -m benchmarks.kernels`)
_STEP_BYTES = {"eager": 64.6, "graph": 64.6, "compile": 54.0, "fused": 37.7}
NODE_SECONDS = 2.2e-6
"""Time of a small kernel in a replayed CUDA graph."""
# a kernel that the host launches
_LAUNCH_SECONDS = 15e-6
# nodes of a step: outside of the layers, of a layer, of two norms more in it, and of a run more in the pack
_NODES = {"graph": (130, 140, 24, 3), "compile": (90, 40.5, 2.5, 3), "fused": (33, 29, 0, 1)}
# a new process: libraries, warm-up and capture; compiling the layers with a filled cache, and kernels in Triton
_START_SECONDS = {"eager": 4.0, "graph": 6.0, "compile": 16.0, "fused": 8.0}
# a layer's small operations on the CPU, measured at hidden size 64, and the fraction that each further run adds
_LAYER_SECONDS, _FURTHER_RUN = 0.9e-3, 0.2
# two streams of cuBLAS on an H100
_WORKSPACES_BYTES = 64 * 2**20
_CPU_CHUNK_BYTES = 32 * 2**20
# of a GPU's memory: every chunk reads all weights again
_GPU_CHUNK_FRACTION = 1 / 16


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Parameters of one run; memory in bytes and time in seconds of the whole pack."""

    parameters: int
    memory_bytes: int
    step_seconds: float
    total_seconds: float


def estimate(
    config: RunConfig,
    vocab_size: int,
    device: torch.device,
    runs: int = 1,
    precision: Precision | None = None,
    engine: str | None = None,
) -> Estimate:
    """Estimate a pack of `runs` runs of one shape; measures the rates of the device for 0.2 s.

    By default in the precision and, on a GPU, with the engine that it is likely to have.
    """
    on_gpu = device.type == "cuda"
    precision = precision or ("bf16" if on_gpu and has_bf16_matmul(device) else "fp32")
    matmul = Matmul(precision, device)
    with matmul.fastest_blas(2**30):
        rates = measure_rates(device, lambda a: torch.bmm(matmul.cast(a), matmul.cast(a)))
    seconds = gpu_seconds if on_gpu else _cpu_seconds
    step_seconds, other_seconds = seconds(config, vocab_size, runs, rates, engine or "graph")
    return Estimate(
        parameters=num_parameters(config.model, vocab_size),
        memory_bytes=pack_bytes(config, vocab_size, device, runs, precision),
        step_seconds=step_seconds,
        total_seconds=config.steps * step_seconds + other_seconds,
    )


def _cpu_seconds(
    config: RunConfig, vocab_size: int, runs: int, rates: tuple[float, float], engine: str
) -> tuple[float, float]:
    """Return the seconds of a step, and of all evaluations."""
    flops_rate, bytes_rate = rates
    parameters, multiplied, tokens = _sizes(config, vocab_size)
    step_seconds = (
        runs * 6 * multiplied * tokens / flops_rate
        + runs * (_OPTIMIZER_BYTES * parameters + 8 * 4 * tokens * vocab_size) / bytes_rate
        + config.data.gradient_accumulation * config.model.num_layers * _LAYER_SECONDS * (1 + _FURTHER_RUN * (runs - 1))
    )
    probe_seconds = runs * config.probe.positions * (2 * multiplied / flops_rate + 8 * 4 * vocab_size / bytes_rate)
    return step_seconds, _evaluations(config) * probe_seconds


def gpu_seconds(
    config: RunConfig, vocab_size: int, runs: int, rates: tuple[float, float], engine: str
) -> tuple[float, float]:
    """Return the seconds of a step, and of the start and all evaluations, on a GPU of FLOP/s and bytes/s `rates`.

    The nodes of a small step take 2.2 µs each whatever they do, those of a large one the time of its bytes.
    """
    flops_rate, bytes_rate = rates
    parameters, multiplied, tokens = _sizes(config, vocab_size)
    nodes = step_nodes(config, engine, runs)
    small = nodes * (_LAUNCH_SECONDS if engine == "eager" else NODE_SECONDS)
    large = runs * (6 * multiplied * tokens / flops_rate + _STEP_BYTES[engine] * parameters / bytes_rate)
    # head and layers, and the logits in 6 bytes
    probe_bytes = config.probe.positions * (6 * vocab_size + 250 * config.model.num_layers * config.model.hidden_size)
    probe_seconds = runs * (config.probe.positions * 2 * multiplied / flops_rate + probe_bytes / bytes_rate)
    return small + large, _START_SECONDS[engine] + _evaluations(config) * probe_seconds


def _sizes(config: RunConfig, vocab_size: int) -> tuple[int, int, int]:
    """Return the parameters of a run, those of them that are multiplied, and the tokens of a step."""
    model, data = config.model, config.data
    parameters = num_parameters(model, vocab_size)
    multiplied = parameters if model.tie_word_embeddings else parameters - vocab_size * model.hidden_size
    return parameters, multiplied, data.tokens_per_step


def _evaluations(config: RunConfig) -> int:
    return config.steps // config.eval_every_steps + 2


def step_nodes(config: RunConfig, engine: str, runs: int = 1) -> int:
    """Return about how many kernels a step has on a GPU; an uncaptured one has those of `graph`."""
    outside, layer, two_norms, run = _NODES.get(engine, _NODES["graph"])
    per_layer = layer + (two_norms if config.model.inner_norms else 0)
    # all but the last few kernels, which update, are those of each micro-batch
    return round(config.data.gradient_accumulation * (outside + config.model.num_layers * per_layer) + (runs - 1) * run)


def pack_bytes(
    config: RunConfig,
    vocab_size: int,
    device: torch.device,
    runs: int = 1,
    precision: Precision = "fp32",
    *,
    overrides_loss: bool = True,
) -> int:
    """Return the bytes of a pack in training: those of its runs and, on a GPU, those that it needs once."""
    once = fixed_bytes(config, vocab_size, device, runs, precision, overrides_loss=overrides_loss)
    return runs * bytes_per_replica(config, vocab_size, precision) + once


def bytes_per_replica(config: RunConfig, vocab_size: int, precision: Precision = "fp32") -> int:
    """Return the bytes that each run adds to a pack.

    They are weights, gradients, two moments, and the sum of gradients over micro-batches; quantized matrices, in
    training and for the probe; where the matmuls are not fp32, the head cast for both and the product that becomes its
    gradient; logits, softmax and what is cast of them; activations. The optimizer of a plug-in may keep more or less.
    """
    model = config.model
    parameters, tokens = num_parameters(model, vocab_size), config.data.batch_size * config.data.sequence_length
    state = 20 if config.data.gradient_accumulation > 1 else 16
    matrices = sum(math.prod(spec.shape) for spec in parameter_specs(model, vocab_size).values() if spec.is_matrix)
    low = 4 if precision == "fp32" else 2
    heads = 0 if precision == "fp32" else 3 * low * vocab_size * model.hidden_size
    # capped logits are fp32 in every precision
    logits = (12 if precision == "fp32" or model.logit_soft_cap is not None else 8) * tokens * vocab_size
    activations = 4 * tokens * model.num_layers * _layer_values(config)
    return state * parameters + 2 * low * matrices + heads + logits + activations


def fixed_bytes(
    config: RunConfig,
    vocab_size: int,
    device: torch.device,
    runs: int = 1,
    precision: Precision = "fp32",
    *,
    overrides_loss: bool = True,
) -> int:
    """Return the bytes on a GPU that a pack needs once: a loss hook's logits, the probe's chunk, workspaces.

    A hook gets one run after the other: its logits in fp32, what autograd keeps of them, and their gradient. 0 on the
    CPU, where all of it is small.
    """
    if device.type == "cpu":
        return 0
    low = 4 if precision == "fp32" else 2
    tokens = config.data.batch_size * config.data.sequence_length
    hook = 3 * 4 * tokens * vocab_size if overrides_loss else 0
    positions = min(runs * config.probe.positions, probe_chunk_bytes(device) // (4 * vocab_size))
    probe = positions * (low * vocab_size + 4 * _layer_values(config))
    return hook + probe + _WORKSPACES_BYTES


def _layer_values(config: RunConfig) -> int:
    """Return how many values of a token a layer keeps."""
    return 16 * config.model.hidden_size + 8 * config.model.intermediate_size


def probe_chunk_bytes(device: torch.device) -> int:
    """Return the bytes of logits, counted in fp32, that the probe computes at once.

    On a GPU a fixed part of its memory, since results may depend on the size in the last bit; halved only while it is
    more than a quarter of what is free.
    """
    if device.type == "cpu":
        return _CPU_CHUNK_BYTES
    size = int(torch.cuda.get_device_properties(device).total_memory * _GPU_CHUNK_FRACTION)
    free = memory_available(device)
    while size > max(_CPU_CHUNK_BYTES, free // 4):
        size //= 2
    return size
