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
        torch._C._get_mkldnn_enabled(),
    )


def _set_flags(value: tuple[Any, ...]) -> None:
    torch.use_deterministic_algorithms(value[0], warn_only=value[1])
    _CUDNN.enabled, _CUDNN.benchmark, _CUDNN.deterministic = value[2:5]
    torch._C._set_mkldnn_enabled(value[5])


# torch has an older and a newer way to set these, and refuses to read by the older one what was set by the newer
_PRECISIONS = (
    ("generic", "all"),
    *((backend, kind) for backend in ("cuda", "mkldnn") for kind in ("all", "matmul", "conv", "rnn")),
)


def _precisions() -> tuple[Any, ...]:
    try:
        older = torch.get_float32_matmul_precision(), torch._C._get_cudnn_allow_tf32()
    except RuntimeError:
        older = None
    return older, *(torch._C._get_fp32_precision_getter(*one) for one in _PRECISIONS)


def _set_precisions(value: tuple[Any, ...]) -> None:
    older, *newer = value
    if older is not None:
        torch.set_float32_matmul_precision(older[0])
        torch._C._set_cudnn_allow_tf32(older[1])
    for one, precision in zip(_PRECISIONS, newer, strict=True):
        torch._C._set_fp32_precision_setter(*one, precision)


# the smallest number that is not zero
_SMALLEST = 5e-324


def _keeps_denormals() -> bool:
    # a flag of the CPU, which Python's own arithmetic obeys, too; a capture forbids to read a tensor's value
    return _SMALLEST * 1.0 != 0.0


def _set_denormals(value: bool) -> None:
    torch.set_flush_denormal(not value)


def _autocast() -> tuple[Any, ...]:
    return (
        torch.is_autocast_cache_enabled(),
        *(torch.is_autocast_enabled(device) for device in ("cpu", "cuda")),
        *(torch.get_autocast_dtype(device) for device in ("cpu", "cuda")),
    )


def _set_autocast(value: tuple[Any, ...]) -> None:
    torch.set_autocast_cache_enabled(value[0])
    for device, is_enabled, dtype in zip(("cpu", "cuda"), value[1:3], value[3:5], strict=True):
        torch.set_autocast_enabled(device, is_enabled)
        torch.set_autocast_dtype(device, dtype)
    torch.clear_autocast_cache()


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
    Aspect("torch's deterministic, cuDNN or oneDNN flags", _flags, _set_flags),
    Aspect("torch's precision of float32 matmuls", _precisions, _set_precisions),
    Aspect("torch's autocast", _autocast, _set_autocast),
    Aspect("how torch treats denormal numbers", _keeps_denormals, _set_denormals),
    Aspect("torch's anomaly detection", torch.is_anomaly_enabled, _set_anomaly_detection, shows=True),
    Aspect("torch's current GPU", _gpu, _set_gpu, shows=True),
    Aspect("torch's global generator", _generator, _set_generator, is_generator=True),
    Aspect("torch's global generators of GPUs", _generators_of_gpus, _set_generators_of_gpus, is_generator=True),
)
