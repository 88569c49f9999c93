"""The parts of torch's state that code can change by accident; imported only once torch is loaded."""

from typing import Any

import torch

from bitnetctl.plugins.aspects import Aspect

_CUDNN = torch.backends.cudnn


def _flags() -> tuple[Any, ...]:
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        _CUDNN.enabled,
        _CUDNN.benchmark,
        _CUDNN.deterministic,
    )


def _set_flags(value: tuple[Any, ...]) -> None:
    torch.use_deterministic_algorithms(value[0], warn_only=value[1])
    _CUDNN.enabled, _CUDNN.benchmark, _CUDNN.deterministic = value[2:]


def _device() -> str:
    return str(torch.get_default_device())


def _set_device(value: str) -> None:
    torch.set_default_device(None if value == "cpu" else value)


def _generator() -> bytes:
    return bytes(torch.get_rng_state().numpy())


def _set_generator(value: bytes) -> None:
    torch.set_rng_state(_state(value))


def _state(value: bytes) -> torch.Tensor:
    # on the CPU, whatever the default device
    return torch.frombuffer(bytearray(value), dtype=torch.uint8)


def _generators_of_gpus() -> list[bytes] | None:
    if not torch.cuda.is_initialized() or torch.cuda.is_current_stream_capturing():
        return None
    return [bytes(state.numpy()) for state in torch.cuda.get_rng_state_all()]


def _set_generators_of_gpus(value: list[bytes] | None) -> None:
    if value is not None:
        torch.cuda.set_rng_state_all([_state(state) for state in value])


def _gpu() -> int | None:
    return torch.cuda.current_device() if torch.cuda.is_initialized() else None


def _set_gpu(value: int | None) -> None:
    if value is not None:
        torch.cuda.set_device(value)


def _set_grad_mode(value: bool) -> None:
    torch.set_grad_enabled(value)


def _set_anomaly_detection(value: bool) -> None:
    torch.autograd.set_detect_anomaly(value)


TORCH = (
    Aspect("torch's default dtype", torch.get_default_dtype, torch.set_default_dtype, shows=True),
    Aspect("torch's default device", _device, _set_device, shows=True),
    Aspect("torch's number of threads", torch.get_num_threads, torch.set_num_threads, shows=True),
    Aspect("torch's grad mode", torch.is_grad_enabled, _set_grad_mode, shows=True),
    Aspect("torch's deterministic or cuDNN flags", _flags, _set_flags),
    Aspect(
        "torch's matmul precision",
        torch.get_float32_matmul_precision,
        torch.set_float32_matmul_precision,
        shows=True,
    ),
    Aspect("torch's anomaly detection", torch.is_anomaly_enabled, _set_anomaly_detection, shows=True),
    Aspect("torch's current GPU", _gpu, _set_gpu, shows=True),
    Aspect("torch's global generator", _generator, _set_generator, is_generator=True),
    Aspect("torch's global generators of GPUs", _generators_of_gpus, _set_generators_of_gpus, is_generator=True),
)
