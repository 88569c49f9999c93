"""What the GPU can do: the traffic of Adam, additions, copies, the head's matmuls and softmax, empty kernels.

Every row is a CUDA graph of repeated calls (`benchmarks.floor`), at the sizes of 16 runs of `origin`, hidden 256.
"""

from collections.abc import Callable

import torch

from benchmarks.floor import ADAM_BYTES, Floor
from benchmarks.gpu_parts.commands import TINY
from benchmarks.gpu_parts.report import Options, Report
from benchmarks.step import VOCABULARIES
from bitnetctl.config import build_config
from bitnetctl.engine.optim import RunOptimizer
from bitnetctl.hardware import release_unused, resolve_device
from bitnetctl.model.parameters import num_parameters

_RUNS = 16
_NODES = 50


def run(report: Report, options: Options) -> None:
    """Measure row by row, then the floors of a step."""
    device, overrides = resolve_device(options.device), [f"{name}={value}" for name, value in TINY.items()]
    overrides = [*overrides, "model.hidden_size=32"] if options.quick else []
    config = build_config("origin", overrides=overrides)
    vocab_size, runs = (512, 2) if options.quick else (VOCABULARIES["origin"], _RUNS)
    floor = Floor(config, vocab_size, device, runs=runs)
    parameters = num_parameters(config.model, vocab_size)
    report.values(runs=runs, parameters=parameters)

    def row(name: str, work: Callable[[], object], *, size: float = 0, flops: float = 0, calls: int = 1) -> None:
        seconds = floor.seconds_of(work) / calls
        rates = {"GB/s": size / seconds / 1e9 if size else None, "TFLOP/s": flops / seconds / 1e12 if flops else None}
        report.row("rates", {"what": name, "MB": size / 1e6 or None, "µs": 1e6 * seconds, **rates})
        release_unused(device)

    one = torch.zeros(1, device=device)

    def empty() -> None:
        for _ in range(_NODES):
            one.add_(1.0)

    row("a node of a graph that does nothing", empty, calls=_NODES)
    _memory(row, runs * parameters, device)
    _adam(row, parameters, runs, device)
    _head(row, config.model.hidden_size, config.data.batch_size * config.data.sequence_length, vocab_size, runs, device)
    for count in (1, runs):
        measured = Floor(config, vocab_size, device, runs=count).measure()
        for name in ("fp32", "bf16", "adam"):
            if name in measured:
                report.row("floors of a step", {"runs": count, "what": name, "ms": 1000 * measured[name]})


def _memory(row: Callable[..., None], count: int, device: torch.device) -> None:
    a, b = (torch.zeros(count, device=device) for _ in range(2))
    row("a += b, fp32", lambda: a.add_(b), size=12 * count)
    row("a = b, fp32", lambda: a.copy_(b), size=8 * count)
    c = torch.zeros(count, device=device, dtype=torch.bfloat16)
    row("a = b, fp32 to bf16", lambda: c.copy_(b), size=6 * count)


def _adam(row: Callable[..., None], parameters: int, runs: int, device: torch.device) -> None:
    """Adam over the flat parameters of all runs, without a divisor and with one, which writes the gradients back."""
    config = build_config("origin").optimizer
    flat_R = [torch.zeros(parameters, device=device).requires_grad_() for _ in range(runs)]
    for flat in flat_R:
        flat.grad = torch.zeros_like(flat)
    optimizers = [RunOptimizer(config, {"matrices": flat}, {"matrices": None}) for flat in flat_R]
    rate, one = torch.zeros((), device=device), torch.ones((), device=device)
    for name, size, divisor in (("Adam", ADAM_BYTES, None), ("Adam with a divisor", ADAM_BYTES + 4, one)):

        def step(divisor: torch.Tensor | None = divisor) -> None:
            for optimizer in optimizers:
                optimizer.step(rate, 0.1, divisor=divisor)

        row(f"{name}, {size} bytes a parameter", step, size=size * parameters * runs)


def _head(row: Callable[..., None], hidden: int, tokens: int, vocab_size: int, runs: int, device: torch.device) -> None:
    padded = -(-vocab_size // 64) * 64
    x, head, grad = (
        torch.zeros(runs, *shape, device=device, dtype=torch.bfloat16)
        for shape in ((tokens, hidden), (padded, hidden), (tokens, padded))
    )
    flops = 2 * runs * tokens * hidden * padded
    row("bmm of the head, bf16", lambda: torch.bmm(x, head.mT), flops=flops, size=2 * (head.numel() + grad.numel()))
    row("its gradient of the input", lambda: torch.bmm(grad, head), flops=flops)
    row("its gradient of the weight", lambda: torch.bmm(grad.mT, x), flops=flops)
    logits = torch.zeros(runs, tokens, padded, device=device)
    row("softmax of the logits, fp32", lambda: torch.softmax(logits, -1), size=8 * logits.numel())
