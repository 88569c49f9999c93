"""A pack whose whole step runs on the device, captured once as a CUDA graph and replayed.

A small model's step is a thousand short kernels; launched one by one they wait for the host. Here everything that
changes from step to step (batches, learning rates, quantization λ) is read from tables on the device, at the index of
a counter that is there too. The host fills the tables for the steps ahead, starts replays, and reads metrics only at
log points. The text stays in the memory of the host.

What capture makes constant (whether anything is quantized or interpolated and, with stock optimizers, weight decay)
is the graph's key: a stage that changes it gets a graph of its own.

Shapes: R runs, B rows, T positions, S steps of a block.
"""

import contextlib
import functools
import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bitnetctl.config import RunConfig
from bitnetctl.data import TokenData
from bitnetctl.engine.optim import RunMoments, clip_divisor
from bitnetctl.engine.pack import Pack
from bitnetctl.engine.plugin_optimizer import PluginOptimizer
from bitnetctl.errors import CaptureError
from bitnetctl.model.matmul import Precision, Quantization
from bitnetctl.plugins.composition import Composition

# steps whose tables are filled at once: at most so many, and so many tokens
_BLOCK = 256
_BLOCK_TOKENS = 2**22
# uncaptured steps before a capture, in which libraries choose their kernels and allocate their workspaces
_WARM_UP = 3
# a graph holds memory, and a stage that has ended rarely returns
_MAX_GRAPHS = 8
# keys that differ at so many steps are new at every step
_MAX_KEYS = 64


class StepKey(NamedTuple):
    """What a captured step holds as constants: nothing is quantized, some λ is not 1, the weight decay of every run."""

    off: bool
    interpolates: bool
    decays_R: tuple[float, ...]


class CapturedPack(Pack):
    """R runs of one shape in training, whose steps are replayed; without a GPU the same operations run uncaptured.

    So they do where the optimizer of a plug-in cannot be captured; `not_captured` then says why.
    """

    def __init__(
        self,
        configs: Sequence[RunConfig],
        compositions: Sequence[Composition],
        data: TokenData,
        device: torch.device,
        *,
        precision: Precision = "fp32",
        compiled: bool = False,
    ) -> None:
        with _on(device):
            super().__init__(configs, compositions, data, device, precision=precision, compiled=compiled)
            self._make_tables(device)
        self.graphs = GraphCache(device) if device.type == "cuda" else None
        self.not_captured: str | None = None
        self._checks_on_device = True
        self._block_start, self._step, self._next_step = 0, 0, 1
        self._keys: list[StepKey] = []

    def _make_tables(self, device: torch.device) -> None:
        """Allocate the tables of a block of steps, its metrics and the counter."""
        runs, batch = len(self.replicas), self.replicas[0].config.data
        row_tokens = runs * batch.rows_per_step * (batch.sequence_length + 1)
        self._block = block = max(1, min(_BLOCK, _BLOCK_TOKENS // row_tokens))
        self._rows_SRBT1 = torch.zeros(
            block, runs, batch.rows_per_step, batch.sequence_length + 1, dtype=torch.long, device=device
        )
        self._rates_SR = torch.zeros(block, runs, device=device)
        self._decays_SR = torch.zeros(block, runs, device=device)
        self._quant_lambdas_SR = torch.ones(block, runs, device=device)
        self._steps_S = torch.zeros(block, dtype=torch.long, device=device)
        self._block_metrics_S3R = torch.full((block, 3, runs), torch.nan, device=device)
        self._index_1 = torch.zeros(1, dtype=torch.long, device=device)
        # captured optimizer kernels read the rates from this memory, so every step writes them into it
        self._rates_R = torch.zeros(runs, device=device)
        norms = [replica.config.optimizer.max_norm for replica in self.replicas]
        self._max_norm_R = torch.tensor([torch.inf if norm is None else norm for norm in norms], device=device)

    def make_optimizers(self) -> None:
        """Make the optimizers of plug-ins, unless they are; an error of one ends its run."""
        if self._has_optimizers:
            return
        super().make_optimizers()
        own = [each.optimizer for _, each in self.alive if isinstance(each.optimizer, PluginOptimizer)]
        reasons = [reason for reason in (each.not_capturable() for each in own) if reason is not None]
        if reasons and self.graphs is not None:
            self.graphs, self.not_captured = None, reasons[0]

    def step(self, step: int) -> None:
        """Train one step; the host does not wait for the device, except for an optimizer that is not captured."""
        self.make_optimizers()
        self._step = step
        with _on(self.device):
            for replica in self.replicas:
                replica.composition.step = step
            if not self._keys or step != self._next_step or step - self._block_start >= len(self._keys):
                self._fill(step)
            for run, replica in enumerate(self.replicas):
                if replica.resets_moments(step):
                    with self.failing_alone(run):
                        replica.optimizer.reset_moments()
            key = self._keys[step - self._block_start]
            if self.graphs is None:
                self._step_on_device(key)
            else:
                self.graphs.run(key, lambda: self._step_on_device(key))
        self._next_step = step + 1

    def _last_metrics(self) -> Tensor:
        return self._block_metrics_S3R[self._next_step - 1 - self._block_start]

    def _fill(self, first: int) -> None:
        """Fill the tables for a block of steps from `first` on, and reset the counter."""
        steps = range(first, min(first + self._block, self.steps + 1))
        count = len(steps)
        quant_lambdas = [self.quant_lambdas(step) for step in steps]
        rates = [[replica.learning_rate(step) for replica in self.replicas] for step in steps]
        decays = [tuple(replica.weight_decay(step) for replica in self.replicas) for step in steps]
        rows = np.stack([batches.rows_BT1(step) for step in steps for batches in self._batches])
        self._rows_SRBT1[:count] = torch.from_numpy(rows).view(count, *self._rows_SRBT1.shape[1:])
        self._rates_SR[:count] = torch.tensor(rates)
        self._decays_SR[:count] = torch.tensor(decays)
        self._quant_lambdas_SR[:count] = torch.tensor(quant_lambdas)
        self._steps_S[:count] = torch.arange(first, first + count)
        self._index_1.zero_()
        self._block_start = first
        self._keys = [
            StepKey(set(lambdas_R) == {0.0}, set(lambdas_R) != {1.0}, self._captured_decays(decays_R))
            for lambdas_R, decays_R in zip(quant_lambdas, decays, strict=True)
        ]

    def _captured_decays(self, decays_R: tuple[float, ...]) -> tuple[float, ...]:
        """Return those weight decays of a step that its graph holds as constants: all, with stock optimizers."""
        return decays_R

    def _step_on_device(self, key: StepKey) -> None:
        """Train the step at the counter and increment it, without a synchronization."""
        self._compute(self._at_index(self._rows_SRBT1), self._quantization(key))
        self._check_finite(self._at_index(self._steps_S))
        divisor_R = clip_divisor(self._metrics_3R[2], self._max_norm_R)
        self._rates_R.copy_(self._at_index(self._rates_SR))
        for run, replica in enumerate(self.replicas):
            # a divisor, even of 1, makes the fused kernel write the gradients back
            divisor = None if replica.config.optimizer.max_norm is None else divisor_R[run]
            optimizer = replica.optimizer
            assert not isinstance(optimizer, RunMoments)
            if not isinstance(optimizer, PluginOptimizer):
                optimizer.step(self._rates_R[run], key.decays_R[run], divisor=divisor, skip=self._skip_R[run])
            elif replica.failure is None:
                rate = self._rates_R[run] if optimizer.is_capturable else replica.learning_rate(self._step)
                with self.failing_alone(run):
                    optimizer.step(rate, key.decays_R[run], divisor=divisor, skip=self._skip_R[run])
        self._block_metrics_S3R.index_copy_(0, self._index_1, self._metrics_3R.unsqueeze(0))
        self._index_1.add_(1)

    def _quantization(self, key: StepKey) -> Quantization:
        interpolates = key.interpolates and not key.off
        return Quantization(
            off=key.off, quant_lambda_R=self._at_index(self._quant_lambdas_SR) if interpolates else None
        )

    def _at_index(self, table: Tensor) -> Tensor:
        """Return the row of a table at the counter."""
        return table.index_select(0, self._index_1)[0]


class GraphCache:
    """Runs functions by their key: the first times uncaptured, then captured as a CUDA graph and replayed.

    A function that synchronizes with the device cannot be captured. The last uncaptured run of each key is checked for
    that: if it synchronizes, `error` says where, `on_error` is called with it, and nothing more is captured.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = _capture_stream(device)
        self._pool = torch.cuda.graph_pool_handle()
        self._warm_up_runs: Counter[Hashable] = Counter()
        # in order of use, the most recent last
        self._graphs: dict[Hashable, torch.cuda.CUDAGraph] = {}
        self.error: str | None = None
        self.on_error: Callable[[str], None] = lambda error: None

    def run(self, key: Hashable, function: Callable[[], None]) -> None:
        """Run the function of `key`, captured once it is warmed up; raises CaptureError if the capture fails."""
        graph = self._graphs.pop(key, None)
        if graph is None and self.error is None and self._warm_up_runs[key] >= _WARM_UP:
            graph = self._capture(function)
        if graph is None:
            if len(self._warm_up_runs) > _MAX_KEYS and self.error is None:
                self.error = "weight decay, which a graph holds, changes from step to step"
                self.on_error(self.error)
            self._run_uncaptured(key, function)
            return
        self._graphs[key] = graph
        if len(self._graphs) > _MAX_GRAPHS:
            # only after the capture: dropping the last graph would free the memory pool
            oldest = next(iter(self._graphs))
            del self._graphs[oldest], self._warm_up_runs[oldest]
        graph.replay()

    def _capture(self, function: Callable[[], None]) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("error", message="The CUDA Graph is empty")
                with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
                    function()
        except torch.OutOfMemoryError:
            # ends the capture only: the GPU stays usable, the stream perhaps not
            _capture_stream.cache_clear()
            raise
        except (RuntimeError, UserWarning) as error:
            # torch leaves the stream in capture mode, so the step cannot run uncaptured instead
            reason = str(error).partition("\n")[0]
            message = f"the step cannot be captured as a CUDA graph ({reason}); take --engine eager"
            raise CaptureError(message) from error
        return graph

    def _run_uncaptured(self, key: Hashable, function: Callable[[], None]) -> None:
        self._warm_up_runs[key] += 1
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            if self.error is None and self._warm_up_runs[key] == _WARM_UP:
                self.error = _run_checked(function)
                if self.error is not None:
                    self.on_error(self.error)
            else:
                function()
        current.wait_stream(self._stream)


@functools.cache
def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the stream of all captures and warm-ups on a device.

    One for all graphs of a pack, since memory freed on a stream is reused on that stream only, and for all packs of the
    process, since cuBLAS keeps a workspace for every stream it has run on: 32 MiB on an H100.
    """
    return torch.cuda.Stream(device)


def _run_checked(function: Callable[[], None]) -> str | None:
    """Run a function; return where in it the host synchronized with the device, None if nowhere."""
    before = torch.cuda.get_sync_debug_mode()
    # other warnings were shown in the steps before
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        # "error" would end the step halfway
        torch.cuda.set_sync_debug_mode("warn")
        try:
            function()
        finally:
            torch.cuda.set_sync_debug_mode(before)
    lines = [f"{each.filename}:{each.lineno}" for each in caught if "called a synchronizing" in str(each.message)]
    return f"the host waits for the device in {lines[0]}" if lines else None


def _on(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Return a context in which a GPU is the current one, where streams and graphs are created."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
