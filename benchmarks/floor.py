"""The floor of a step: the least time for its matmuls and memory traffic, at the rates measured on this machine.

Counted are the three matmuls of every matrix and of the head (6 FLOPs per multiplied parameter and token), the causal
half of attention, 28 bytes per parameter for Adam in fp32, and one read and one write of the logits between their
matmuls. Left out are norms, quantization, activations and the host: a lower bound, not an estimate. Rates are those of
`torch.bmm` on the same shapes, with operands in the cache if they fit; on a GPU as a CUDA graph, since the launch of a
small matmul takes longer than the matmul.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bitnetctl.config import RunConfig
from bitnetctl.hardware import has_bf16_matmul, measure_rates
from bitnetctl.model.matmul import Matmul, Precision
from bitnetctl.model.parameters import num_parameters, parameter_specs

ADAM_BYTES = 28
LOGITS_BYTES = 8
_SECONDS = 0.02
# calls of a CUDA graph
_CAPTURED = 20


@dataclass(frozen=True)
class WeightMatmul:
    """`count` matmuls of [N, I] with [height, width] = [O, I], and the two of their backward; N tokens of a step."""

    name: str
    count: int
    height: int
    width: int

    def flops(self, tokens: int) -> int:
        """Return the operations of all three, over all layers."""
        return 6 * self.count * tokens * self.height * self.width


def weight_matmuls(config: RunConfig, vocab_size: int) -> list[WeightMatmul]:
    """Return every weight matmul of a step of one run, the head's last."""
    model = config.model
    layers = [
        WeightMatmul(key, spec.shape[0], spec.shape[1], spec.shape[2])
        for key, spec in parameter_specs(model, vocab_size).items()
        if spec.is_matrix
    ]
    return [*layers, WeightMatmul("head", 1, vocab_size, model.hidden_size)]


def attention_flops(config: RunConfig) -> int:
    """Return the operations of the causal half of attention, forward and backward."""
    positions, width = config.data.sequence_length, config.model.num_attention_heads * config.model.head_size
    return 6 * config.model.num_layers * config.data.batch_size * positions * positions * width


class Floor:
    """Measures the floor of a step of `runs` runs in the given precisions, as far as the device has them."""

    def __init__(
        self,
        config: RunConfig,
        vocab_size: int,
        device: torch.device,
        *,
        runs: int = 1,
        precisions: Sequence[Precision] = ("fp32", "bf16"),
    ) -> None:
        self._config = config
        self._matmuls = weight_matmuls(config, vocab_size)
        self._vocab_size = vocab_size
        self._runs = runs
        self._device = device
        self._precisions = [one for one in precisions if one == "fp32" or has_bf16_matmul(device)]
        self._tokens = config.data.batch_size * config.data.sequence_length
        self._parameters = num_parameters(config.model, vocab_size)

    @property
    def flops(self) -> int:
        """Operations of one step of all runs."""
        one = sum(matmul.flops(self._tokens) for matmul in self._matmuls) + attention_flops(self._config)
        return self._runs * one

    def measure(self) -> dict[str, Any]:
        """Return the seconds of a step in each precision and of Adam's traffic alone, and the rates behind them."""
        adam_bytes = ADAM_BYTES * self._parameters * self._runs
        logits_bytes = LOGITS_BYTES * self._tokens * self._vocab_size * self._runs
        adam_rate = self._traffic_rate(16 * self._parameters * self._runs)
        logits_rate = self._traffic_rate(logits_bytes)
        traffic = adam_bytes / adam_rate + logits_bytes / logits_rate
        default_flops, memory_rate = measure_rates(self._device, lambda a: torch.bmm(a, a))
        rates = {
            "GFLOP a step": self.flops / 1e9,
            "GB a step": (adam_bytes + logits_bytes) / 1e9,
            "GB/s at the size of the parameters": adam_rate / 1e9,
            "GB/s at the size of the logits": logits_rate / 1e9,
            "GB/s of memory": memory_rate / 1e9,
            "GFLOP/s, fp32 1024 x 1024 x 1024, default library": default_flops / 1e9,
        }
        seconds: dict[str, float] = {}
        for precision in self._precisions:
            taken = {matmul: self._seconds(matmul, precision) for matmul in self._matmuls}
            flops = sum(matmul.flops(self._tokens) for matmul in taken) * self._runs
            rate = flops / sum(taken.values())
            seconds[precision] = self.flops / rate + traffic
            rates[f"GFLOP/s, {precision}, all matmuls"] = rate / 1e9
            for matmul, spent in taken.items():
                label = f"GFLOP/s, {precision}, {matmul.name} {self._tokens} x {matmul.width} x {matmul.height}"
                rates[label] = self._runs * matmul.flops(self._tokens) / spent / 1e9
        return {**seconds, "adam": adam_bytes / adam_rate, "rates": rates}

    def _seconds(self, matmul: WeightMatmul, precision: Precision) -> float:
        """Return the time of a matmul, forward and backward over all layers, in the faster BLAS."""
        arithmetic = Matmul(precision, self._device)
        x, weight, grad = (
            arithmetic.cast(torch.randn(self._runs, *shape, device=self._device))
            for shape in (
                (self._tokens, matmul.width),
                (matmul.height, matmul.width),
                (self._tokens, matmul.height),
            )
        )

        def forward_backward() -> None:
            torch.bmm(x, weight.mT)
            torch.bmm(grad, weight)
            torch.bmm(grad.mT, x)

        plain = self.seconds_of(forward_backward)
        with arithmetic.fastest_blas(2**30):
            return matmul.count * min(plain, self.seconds_of(forward_backward))

    def _traffic_rate(self, footprint: int) -> float:
        """Return the bytes/s of reading two arrays that have `footprint` bytes together, and writing one of them."""
        count = max(1, footprint // 8)
        a, b = (torch.zeros(count, device=self._device) for _ in range(2))
        return 12 * count / self.seconds_of(lambda: a.add_(b))

    def seconds_of(self, work: Callable[[], object]) -> float:
        """Return the shortest of five mean times of a call."""
        if self._device.type == "cuda":
            return self._mean(_captured(work)) / _CAPTURED
        return self._mean(work)

    def _mean(self, work: Callable[[], object]) -> float:
        once = self._total(work, 1)
        times = max(1, int(_SECONDS / 5 / max(once, 1e-9)))
        return min(self._total(work, times) / times for _ in range(5))

    def _total(self, work: Callable[[], object], times: int) -> float:
        self._wait()
        start = time.perf_counter()
        for _ in range(times):
            work()
        self._wait()
        return time.perf_counter() - start

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def _captured(work: Callable[[], object]) -> Callable[[], object]:
    """Return the replay of a CUDA graph of `_CAPTURED` calls."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        # libraries choose their kernels and allocate workspaces
        work()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(_CAPTURED):
            work()
    return graph.replay


def median_rates(turns: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the median of every rate over the turns of a floor contender."""
    return {name: statistics.median(turn["rates"][name] for turn in turns) for name in turns[0]["rates"]}
