"""Estimated time and memory of training: counted operations and bytes, divided by the measured rates of the device."""

import math
from dataclasses import dataclass

import torch

from bitnetctl.config import RunConfig
from bitnetctl.data import vocab_size_of
from bitnetctl.errors import ConfigError
from bitnetctl.hardware import measure_rates
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
NODE_SECONDS = 2.2e-6
"""Time of a small kernel in a replayed CUDA graph."""
# a layer's small operations: on the CPU measured at hidden size 64; on a GPU 60 kernels of a replayed graph at 4 µs
_LAYER_SECONDS = {"cpu": 0.9e-3, "cuda": 0.25e-3}


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Parameters of one run; memory in bytes and time in seconds of the whole pack."""

    parameters: int
    memory_bytes: int
    step_seconds: float
    total_seconds: float


def estimate(
    config: RunConfig, vocab_size: int, device: torch.device, runs: int = 1, precision: Precision = "fp32"
) -> Estimate:
    """Estimate a pack of `runs` runs of one shape; measures the rates of the device for 0.2 s."""
    parameters = num_parameters(config.model, vocab_size)
    matmul = Matmul(precision, device)
    with matmul.fastest_blas(2**30):
        flops_rate, bytes_rate = measure_rates(device, lambda a: torch.bmm(matmul.cast(a), matmul.cast(a)))
    multiplied = parameters if config.model.tie_word_embeddings else parameters - vocab_size * config.model.hidden_size
    tokens = config.data.batch_size * config.data.sequence_length
    training_flops = 6 * multiplied * tokens
    logits_bytes = 4 * tokens * vocab_size
    step_seconds = (
        runs * training_flops / flops_rate
        + runs * (_OPTIMIZER_BYTES * parameters + 8 * logits_bytes) / bytes_rate
        + config.model.num_layers * _LAYER_SECONDS[device.type]
    )
    evaluations = config.steps // config.eval_every_steps + 2
    probe_seconds = runs * config.probe.positions * (2 * multiplied / flops_rate + 8 * 4 * vocab_size / bytes_rate)
    return Estimate(
        parameters=parameters,
        memory_bytes=runs * bytes_per_replica(config, vocab_size),
        step_seconds=step_seconds,
        total_seconds=config.steps * step_seconds + evaluations * probe_seconds,
    )


def bytes_per_replica(config: RunConfig, vocab_size: int) -> int:
    """Return the bytes of a run in its pack: weights, gradients, moments, quantized copies and activations."""
    model = config.model
    parameters = num_parameters(model, vocab_size)
    matrices = sum(math.prod(spec.shape) for spec in parameter_specs(model, vocab_size).values() if spec.is_matrix)
    tokens = config.data.batch_size * config.data.sequence_length
    layer_values = 16 * model.hidden_size + 8 * model.intermediate_size
    activations = tokens * (model.num_layers * layer_values + 3 * vocab_size)
    return 4 * (4 * parameters + 2 * matrices + activations)


def step_nodes(config: RunConfig, engine: str) -> int:
    """Return about how many kernels a captured step has."""
    return {"graph": 790, "compile": 273, "fused": 140}[engine] * config.model.num_layers // 4
