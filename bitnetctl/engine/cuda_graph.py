"""A pack whose whole step runs on the device, recorded once as a CUDA graph and replayed.

A small model's step is a thousand short kernels; launched one by one they wait for the host. Here everything that
changes from step to step is read from tables on the device at the place of a counter that lives there too: where the
rows of the batch start, learning rates, quantization strengths. The host fills the tables for the steps ahead, starts
replays, and reads a figure only at a log point.

What the recording bakes in (weight decay, and whether anything is quantized or blended) is its key: a stage that
changes it is recorded anew.
"""

import contextlib
import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from bitnetctl.config import RunConfig
from bitnetctl.data import TokenData
from bitnetctl.engine.optim import clip_divisor
from bitnetctl.engine.pack import Pack
from bitnetctl.errors import CaptureError
from bitnetctl.model.matmul import Quantization
from bitnetctl.plugins.composition import Composition

# steps whose tables are made at once
_BLOCK = 256
# real steps before a recording, in which libraries choose their kernels and take their workspaces
_WARM_UP = 3
# a recording holds memory, and a stage that is over does not come back as a rule
_MOST_GRAPHS = 8

_Key = tuple[bool, bool, tuple[float, ...]]


def can_be_captured(compositions: Sequence[Composition]) -> bool:
    """Whether no intervention needs the host between forward pass and update."""
    return all(
        not composition.overrides_gradients and (not composition.overrides_loss or composition.capturable)
        for composition in compositions
    )


class CapturedPack(Pack):
    """R runs of one shape in training, the step on the device; without a GPU the same program runs uncaptured."""

    def __init__(
        self,
        configs: Sequence[RunConfig],
        compositions: Sequence[Composition],
        data: TokenData,
        device: torch.device,
        **options: Any,
    ) -> None:
        with _on(device):
            super().__init__(configs, compositions, data, device, **options)
            self._make_tables(data, device)
        self.graphs = GraphCache(device) if device.type == "cuda" else None
        self._guards_on_device = True
        self._first, self._next = 0, 1
        self._keys: list[_Key] = []

    def _make_tables(self, data: TokenData, device: torch.device) -> None:
        runs, batch = len(self.replicas), self.replicas[0].config.data
        self._tokens_N = torch.from_numpy(data.train_N.astype("int32")).to(device)
        self._offsets_T1 = torch.arange(batch.sequence_length + 1, device=device)
        self._starts_SRB = torch.zeros(_BLOCK, runs, batch.batch_size, dtype=torch.long, device=device)
        self._rates_SR = torch.zeros(_BLOCK, runs, device=device)
        self._quant_lambdas_SR = torch.ones(_BLOCK, runs, device=device)
        self._steps_S = torch.zeros(_BLOCK, dtype=torch.long, device=device)
        self._ring_S3R = torch.full((_BLOCK, 3, runs), torch.nan, device=device)
        self._slot_1 = torch.zeros(1, dtype=torch.long, device=device)
        # an optimizer keeps the tensor that it was given
        self._rates_R = torch.zeros(runs, device=device)
        limits = [replica.config.optimizer.max_norm for replica in self.replicas]
        self._limits_R = torch.tensor([torch.inf if limit is None else limit for limit in limits], device=device)

    def step(self, step: int) -> None:
        """Train one step; the host does not wait for it."""
        with _on(self.device):
            if not self._keys or step != self._next or step - self._first >= len(self._keys):
                self._fill(step)
            for replica in self.replicas:
                if replica.resets_moments(step):
                    replica.optimizer.reset_moments()
            key = self._keys[step - self._first]
            if self.graphs is None:
                self._program(key)
            else:
                self.graphs.run(key, lambda: self._program(key))
        self._next = step + 1

    def _last_metrics(self) -> Tensor:
        return self._ring_S3R[self._next - 1 - self._first]

    def _fill(self, first: int) -> None:
        """Make the tables of the steps from `first` on."""
        steps = range(first, min(first + _BLOCK, self.steps + 1))
        count = len(steps)
        quant_lambdas = [self.quant_lambdas(step) for step in steps]
        rates = [[replica.learning_rate(step) for replica in self.replicas] for step in steps]
        starts = [[batches.starts_B(step).tolist() for batches in self._batches] for step in steps]
        self._starts_SRB[:count] = torch.tensor(starts)
        self._rates_SR[:count] = torch.tensor(rates)
        self._quant_lambdas_SR[:count] = torch.tensor(quant_lambdas)
        self._steps_S[:count] = torch.arange(first, first + count)
        self._slot_1.zero_()
        self._first = first
        self._keys = [
            (
                all(quant_lambda == 0.0 for quant_lambda in of_step),
                any(quant_lambda != 1.0 for quant_lambda in of_step),
                tuple(replica.weight_decay(step) for replica in self.replicas),
            )
            for step, of_step in zip(steps, quant_lambdas, strict=True)
        ]

    def _program(self, key: _Key) -> None:
        """Train the step at the counter, and count."""
        off, blended, decays = key
        starts_RB = self._at_slot(self._starts_SRB)
        rows_RBT1 = self._tokens_N[starts_RB.unsqueeze(-1) + self._offsets_T1].long()
        quant_lambda_R = self._at_slot(self._quant_lambdas_SR) if blended and not off else None
        self._compute(rows_RBT1, Quantization(off=off, quant_lambda_R=quant_lambda_R))
        self._guard(self._at_slot(self._steps_S))
        divisor_R = clip_divisor(self._metrics_3R[2], self._limits_R)
        self._rates_R.copy_(self._at_slot(self._rates_SR))
        for run, replica in enumerate(self.replicas):
            # without a limit there is nothing to divide by, and a pass that writes gradients back is saved
            divisor = None if replica.config.optimizer.max_norm is None else divisor_R[run]
            replica.optimizer.step(self._rates_R[run], decays[run], divisor=divisor, skip=self._skip_R[run])
        self._ring_S3R.index_copy_(0, self._slot_1, self._metrics_3R.unsqueeze(0))
        self._slot_1.add_(1)

    def _at_slot(self, table: Tensor) -> Tensor:
        return table.index_select(0, self._slot_1)[0]


class GraphCache:
    """Runs programs by their key: a few times as they are, then recorded as a CUDA graph and replayed.

    A step in which the host waits for the device cannot be recorded. The last of those before a recording is watched
    for that: then `error` says where, `on_error` is told, and nothing is recorded any more.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # one for all: memory that was used on a stream is used again on that stream only
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()
        self._warm: Counter[Hashable] = Counter()
        # the one used last is the last
        self._graphs: dict[Hashable, torch.cuda.CUDAGraph] = {}
        self.error: str | None = None
        self.on_error: Callable[[str], None] = lambda error: None

    def run(self, key: Hashable, program: Callable[[], None]) -> None:
        """Run the program that belongs to `key`, recorded once it may be; raises CaptureError."""
        graph = self._graphs.pop(key, None)
        if graph is None and self._is_due(key):
            graph = self._record(program)
        if graph is None:
            self._run_unrecorded(key, program)
            return
        self._graphs[key] = graph
        if len(self._graphs) > _MOST_GRAPHS:
            # only now, since the pool of memory lives as long as one of its graphs
            self._drop(next(iter(self._graphs)))
        graph.replay()

    def _is_due(self, key: Hashable) -> bool:
        return self.error is None and self._warm[key] >= _WARM_UP

    def _drop(self, key: Hashable) -> None:
        del self._graphs[key], self._warm[key]

    def _record(self, program: Callable[[], None]) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("error", message="The CUDA Graph is empty")
                with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
                    program()
        except torch.OutOfMemoryError:
            # ends the recording only
            raise
        except (RuntimeError, UserWarning) as error:
            # torch does not leave the stream of a recording that failed, so there is no going on unrecorded
            reason = str(error).partition("\n")[0]
            message = f"the step cannot be recorded as a CUDA graph ({reason}); take --engine eager"
            raise CaptureError(message) from error
        return graph

    def _run_unrecorded(self, key: Hashable, program: Callable[[], None]) -> None:
        self._warm[key] += 1
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            if self.error is None and self._warm[key] == _WARM_UP:
                self.error = _run_watched(program)
                if self.error is not None:
                    self.on_error(self.error)
            else:
                program()
        current.wait_stream(self._stream)


def _run_watched(program: Callable[[], None]) -> str | None:
    """Run a program and say where in it the host waited for the device."""
    before = torch.cuda.get_sync_debug_mode()
    # what else is warned of was said in the steps before
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        # with "error" the step would end halfway
        torch.cuda.set_sync_debug_mode("warn")
        try:
            program()
        finally:
            torch.cuda.set_sync_debug_mode(before)
    places = [f"{each.filename}:{each.lineno}" for each in caught if "called a synchronizing" in str(each.message)]
    return f"the host waits for the device in {places[0]}" if places else None


def _on(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Return a context in which a GPU is the current one: streams and recordings are made there."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
