"""A pack whose whole step runs on the device, recorded once as a CUDA graph and replayed.

A small model's step is a thousand short kernels; launched one by one they wait for the host. Here everything that
changes from step to step is read from tables on the device at the place of a counter that lives there too: where the
rows of the batch start, learning rates, quantization strengths. The host fills the tables for the steps ahead, starts
replays, and reads a figure only at a log point.

What the recording bakes in (weight decay, and whether anything is quantized or blended) is its key: a stage that
changes it is recorded anew.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bitnetctl.config import RunConfig
from bitnetctl.data import TokenData
from bitnetctl.intervention import Composition
from bitnetctl.optim import clip_divisor
from bitnetctl.products import Quantization
from bitnetctl.step import Pack

# steps whose tables are made at once
_BLOCK = 256
# real steps before a recording, in which libraries choose their kernels and take their workspaces
_WARM_UP = 3
# a weight decay that changes at every step is not worth recording
_MOST_GRAPHS = 8

_Key = tuple[bool, bool, tuple[float, ...]]


def can_be_captured(compositions: Sequence[Composition]) -> bool:
    """Whether no intervention needs the host between forward pass and update."""
    return all(
        not composition.claims_gradients and (not composition.claims_loss or composition.capturable)
        for composition in compositions
    )


class CapturedPack(Pack):
    """R runs of one shape in training, the step on the device; without a card the same program runs uncaptured."""

    def __init__(
        self,
        configs: Sequence[RunConfig],
        compositions: Sequence[Composition],
        data: TokenData,
        device: torch.device,
        **options: Any,
    ) -> None:
        super().__init__(configs, compositions, data, device, **options)
        runs, batch = len(configs), configs[0].data
        self._tokens_N = torch.from_numpy(data.train_N.astype("int32")).to(device)
        self._offsets_T1 = torch.arange(batch.sequence_length + 1, device=device)
        self._starts_SRB = torch.zeros(_BLOCK, runs, batch.batch_size, dtype=torch.long, device=device)
        self._rates_SR = torch.zeros(_BLOCK, runs, device=device)
        self._strengths_SR = torch.ones(_BLOCK, runs, device=device)
        self._steps_S = torch.zeros(_BLOCK, dtype=torch.long, device=device)
        self._ring_S3R = torch.full((_BLOCK, 3, runs), torch.nan, device=device)
        self._slot_1 = torch.zeros(1, dtype=torch.long, device=device)
        # one tensor for each run, since an optimizer keeps the one it was given
        self._rates = [torch.zeros((), device=device) for _ in range(runs)]
        limits = [member.config.optimizer.max_norm for member in self.members]
        self._limits_R = torch.tensor([torch.inf if limit is None else limit for limit in limits], device=device)
        self._guards_on_device = True
        self._first, self._next = 0, 1
        self._keys: list[_Key] = []
        self._warm: dict[_Key, int] = {}
        self._graphs: dict[_Key, torch.cuda.CUDAGraph] = {}
        self._pool: Any = torch.cuda.graph_pool_handle() if device.type == "cuda" else None
        self.capture_error: str | None = None

    def step(self, step: int) -> None:
        """Train one step; the host does not wait for it."""
        if not self._keys or step != self._next or step - self._first >= len(self._keys):
            self._fill(step)
        for member in self.members:
            if member.resets_moments(step):
                member.optimizer.reset_moments()
        slot = step - self._first
        self._run(self._keys[slot])
        self._next = step + 1

    def _last_figures(self) -> Tensor:
        return self._ring_S3R[self._next - 1 - self._first]

    def _fill(self, first: int) -> None:
        """Make the tables of the steps from `first` on."""
        steps = range(first, min(first + _BLOCK, self.steps + 1))
        count = len(steps)
        strengths = [self.strengths(step) for step in steps]
        rates = [[member.learning_rate(step) for member in self.members] for step in steps]
        starts = [[batches.starts_B(step).tolist() for batches in self._batches] for step in steps]
        self._starts_SRB[:count] = torch.tensor(starts)
        self._rates_SR[:count] = torch.tensor(rates)
        self._strengths_SR[:count] = torch.tensor(strengths)
        self._steps_S[:count] = torch.arange(first, first + count)
        self._slot_1.zero_()
        self._first = first
        self._keys = [
            (
                all(strength == 0.0 for strength in of_step),
                any(strength != 1.0 for strength in of_step),
                tuple(member.weight_decay(step) for member in self.members),
            )
            for step, of_step in zip(steps, strengths, strict=True)
        ]

    def _run(self, key: _Key) -> None:
        graph = self._graphs.get(key)
        if graph is None and self._is_due(key):
            graph = self._capture(key)
        if graph is not None:
            graph.replay()
            return
        self._warm[key] = self._warm.get(key, 0) + 1
        if self._pool is None:
            self._program(key)
            return
        stream, side = torch.cuda.current_stream(self.device), torch.cuda.Stream(self.device)
        side.wait_stream(stream)
        with torch.cuda.stream(side):
            self._program(key)
        stream.wait_stream(side)

    def _is_due(self, key: _Key) -> bool:
        may = self._pool is not None and self.capture_error is None and len(self._graphs) < _MOST_GRAPHS
        return may and self._warm.get(key, 0) >= _WARM_UP

    def _capture(self, key: _Key) -> torch.cuda.CUDAGraph | None:
        """Record the program; None where something in it cannot be recorded, and the steps go on unrecorded."""
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool):
                self._program(key)
        except RuntimeError as error:
            self.capture_error = str(error).splitlines()[0]
            return None
        self._graphs[key] = graph
        return graph

    def _program(self, key: _Key) -> None:
        """Train the step at the counter, and count."""
        off, blended, decays = key
        starts_RB = self._at_slot(self._starts_SRB)
        rows_RBT1 = self._tokens_N[starts_RB.unsqueeze(-1) + self._offsets_T1].long()
        strength_R = self._at_slot(self._strengths_SR) if blended and not off else None
        self._compute(rows_RBT1, Quantization(off=off, strength_R=strength_R))
        self._guard(self._at_slot(self._steps_S))
        divisor_R = clip_divisor(self._figures_3R[2], self._limits_R)
        rates_R = self._at_slot(self._rates_SR)
        for run, (member, rate) in enumerate(zip(self.members, self._rates, strict=True)):
            rate.copy_(rates_R[run])
            member.optimizer.step(rate, decays[run], divisor=divisor_R[run], skip=self._skip_R[run])
        self._ring_S3R.index_copy_(0, self._slot_1, self._figures_3R.unsqueeze(0))
        self._slot_1.add_(1)

    def _at_slot(self, table: Tensor) -> Tensor:
        return table.index_select(0, self._slot_1)[0]
