"""The step on the device, uncaptured or captured and replayed, trains what the step from the host does."""

import contextlib
import functools
import warnings
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from configs import TinyConfig
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bitnetctl.config import RunConfig, parse_arm
from bitnetctl.data import TokenData
from bitnetctl.engine import cuda_graph
from bitnetctl.engine.cuda_graph import CapturedPack, GraphCache
from bitnetctl.engine.optim import RunOptimizer
from bitnetctl.engine.pack import Pack
from bitnetctl.errors import CaptureError
from bitnetctl.intervention import Intervention
from bitnetctl.plugins.composition import Composition
from bitnetctl.plugins.registry import compose

CPU = torch.device("cpu")


def both(
    configs: Sequence[RunConfig],
    tokens: TokenData,
    arms: Sequence[str] = (),
    device: torch.device = CPU,
    **options: Any,
) -> tuple[Pack, CapturedPack]:
    """Return packs of the same runs, the second with its step on the device."""

    def built(kind: type[Pack]) -> Pack:
        compositions = [compose(parse_arm(arm)) for arm in arms or [""] * len(configs)]
        effective = [each.configure(config) for each, config in zip(compositions, configs, strict=True)]
        return kind(effective, compositions, tokens, device, **options)

    captured = built(CapturedPack)
    assert isinstance(captured, CapturedPack)
    return built(Pack), captured


def assert_alike(host: Pack, captured: Pack, tolerance: float = 1e-6) -> None:
    for key, packed in host.model.packed.items():
        torch.testing.assert_close(captured.model.packed[key], packed, rtol=0, atol=tolerance, msg=key)


@pytest.mark.usefixtures("double")
def test_steps_on_the_device_train_as_steps_from_the_host(tiny_config: TinyConfig, tiny_tokens: TokenData) -> None:
    configs = [
        tiny_config(seed=0, optimizer__max_norm=0.1),
        tiny_config(seed=1, data__order="shuffled", optimizer__name="adamw", optimizer__max_norm="none"),
        tiny_config(seed=2, schedule__kind="cosine", optimizer__exempt="norms,head"),
    ]
    host, captured = both(configs, tiny_tokens, ["", "label-smoothing", "fp-first:fraction=0.25,ramp=0.25"])
    # over the stage boundary at step 6, where the weight decay changes, and the graph with it
    for step in range(1, 13):
        host.step(step)
        captured.step(step)
        for metric in ("loss_R", "objective_R", "grad_norm_R"):
            torch.testing.assert_close(getattr(captured, metric), getattr(host, metric), rtol=1e-9, atol=1e-9)
    assert_alike(host, captured, 1e-8)
    assert len(set(captured._keys)) > 2


# a last bit may otherwise flip the rounding of a weight
@pytest.mark.usefixtures("double")
def test_tables_are_filled_again_where_they_end(
    tiny_config: TinyConfig, tiny_tokens: TokenData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_graph, "_BLOCK", 5)
    host, captured = both([tiny_config()], tiny_tokens)
    for step in range(1, 13):
        host.step(step)
        captured.step(step)
        torch.testing.assert_close(captured.loss_R, host.loss_R, rtol=1e-5, atol=1e-5)
    # as after a resume: a step that does not follow the last
    again = both([tiny_config()], tiny_tokens)[1]
    again.step(7)
    fresh = both([tiny_config()], tiny_tokens)[0]
    fresh.step(7)
    assert_alike(fresh, again)


@pytest.mark.usefixtures("double")
def test_moments_are_reset_on_time(tiny_config: TinyConfig, tiny_tokens: TokenData) -> None:
    host, captured = both([tiny_config(optimizer__reset_moments_every_steps=3)], tiny_tokens)
    for step in range(1, 9):
        host.step(step)
        captured.step(step)
    ours, theirs = captured.replicas[0].optimizer.state(), host.replicas[0].optimizer.state()
    assert {key: value.item() for key, value in ours.items() if key.endswith("/step")} == {
        key: 2.0 for key in ours if key.endswith("/step")
    }
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, rtol=1e-4, atol=1e-6)


class Broken(Intervention):
    """A loss that is not finite once it is low enough; it depends on the batch alone."""

    capturable = True

    def training_loss(self, logits_TV: Tensor, targets_T: Tensor) -> Tensor:
        loss = torch.nn.functional.cross_entropy(logits_TV, targets_T)
        return torch.where(loss < 5.9, torch.full_like(loss, torch.nan), loss)


def test_a_diverged_run_keeps_its_weights_without_a_synchronization(
    tiny_config: TinyConfig, tiny_tokens: TokenData
) -> None:
    absurd = tiny_config(seed=1, schedule__peak_learning_rate=1e38, schedule__warmup_steps=0)
    _, captured = both([tiny_config(), absurd, tiny_config(seed=2)], tiny_tokens)
    calm = both([tiny_config(), tiny_config(seed=1), tiny_config(seed=2)], tiny_tokens)[1]
    kept: Tensor | None = None
    for step in range(1, 7):
        captured.step(step)
        calm.step(step)
        if kept is None and captured._diverged_at_R[1]:
            failed_at, kept = step, captured.model.packed["qkv"][1].clone()
    # not read in between: the first step that failed is known all the same, and nothing was updated since
    captured.mark_diverged(6)
    assert kept is not None
    assert captured.replicas[1].diverged_at == failed_at
    assert torch.equal(captured.model.packed["qkv"][1], kept)
    for run in (0, 2):
        assert captured.replicas[run].diverged_at is None
        assert torch.equal(captured.model.packed["qkv"][run], calm.model.packed["qkv"][run])


def test_what_needs_the_host_is_not_captured() -> None:
    assert Composition().capturable_step
    assert compose(parse_arm("label-smoothing+reduced-lr")).capturable_step
    assert not compose(parse_arm("adaptive-clipping")).capturable_step

    class Plain(Intervention):
        def training_loss(self, logits_TV: Tensor, targets_T: Tensor) -> Tensor:
            return logits_TV.sum()

    assert not Composition([Plain(Plain.Settings())]).capturable_step
    assert Composition([Broken(Broken.Settings())]).capturable_step


def test_gradients_without_a_limit_are_not_divided(
    tiny_config: TinyConfig, tiny_tokens: TokenData, monkeypatch: pytest.MonkeyPatch
) -> None:
    divided: list[bool] = []
    monkeypatch.setattr(
        RunOptimizer, "step", lambda optimizer, *rates, divisor, skip: divided.append(divisor is not None)
    )
    configs = [tiny_config(optimizer__max_norm="none"), tiny_config(optimizer__max_norm=1.0)]
    both(configs, tiny_tokens)[1].step(1)
    assert divided == [False, True]


def test_everything_is_done_on_the_gpu_of_the_pack(
    tiny_config: TinyConfig, tiny_tokens: TokenData, monkeypatch: pytest.MonkeyPatch
) -> None:
    current: list[torch.device] = []

    @contextlib.contextmanager
    def device(device: torch.device) -> Iterator[None]:
        current.append(device)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "device", device)
    second = torch.device("cuda", 1)
    with cuda_graph._on(second):
        assert current == [second]
    with cuda_graph._on(CPU):
        assert current == []

    monkeypatch.setattr(cuda_graph, "_on", device)
    compute = Pack._compute
    seen: list[torch.device] = []

    def watched(pack: Pack, *arguments: Any) -> None:
        seen.extend(current)
        compute(pack, *arguments)

    monkeypatch.setattr(Pack, "_compute", watched)
    both([tiny_config()], tiny_tokens)[1].step(1)
    assert (seen, current) == ([CPU], [])


# capture, with torch.cuda faked on the CPU


class FakeGraph(TorchDispatchMode):
    """A fake CUDA graph: the operations of a program with their memory, to be replayed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: list[tuple[Any, tuple[Any, ...], Mapping[str, Any], Any]] = []
        self._before: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        values = {**dict(zip((each.name for each in func._schema.arguments), args, strict=False)), **kwargs}
        for argument in func._schema.arguments:
            if argument.alias_info is not None and argument.alias_info.is_write:
                for tensor in tree_leaves(values[argument.name]):
                    spec = tensor.untyped_storage()
                    self._before.setdefault(spec.data_ptr(), (spec, spec.clone()))
        out = func(*args, **kwargs)
        self.operations.append((func, args, kwargs, out))
        return out

    def undo(self) -> None:
        """Restore what was written: a GPU executes nothing during capture."""
        for spec, before in self._before.values():
            spec.copy_(before)

    @torch.no_grad()
    def replay(self) -> None:
        """Repeat the operations on the same memory."""
        for func, args, kwargs, out in self.operations:
            again = func(*args, **kwargs)
            for kept, new in zip(tree_leaves(out), tree_leaves(again), strict=True):
                if isinstance(kept, Tensor) and kept.data_ptr() != new.data_ptr():
                    kept.copy_(new)


class Stream:
    """A fake CUDA stream."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def wait_stream(self, other: "Stream") -> None:
        pass


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Fake torch.cuda: streams made, graphs alive now and at each capture, the debug mode, an error to raise."""
    gpu = SimpleNamespace(streams=[], alive=weakref.WeakSet(), captures=[], mode=0, error=None)

    def make_stream(device: torch.device) -> Stream:
        stream = Stream(device)
        gpu.streams.append(stream)
        return stream

    def make_graph() -> FakeGraph:
        made = FakeGraph()
        gpu.alive.add(made)
        return made

    @contextlib.contextmanager
    def graph(captured: FakeGraph, *, pool: object, stream: Stream) -> Iterator[None]:
        assert (pool, stream) == ("the pool", gpu.streams[0])
        gpu.captures.append(len(gpu.alive))
        with captured:
            yield
        captured.undo()
        if isinstance(gpu.error, Warning):
            warnings.warn(gpu.error, stacklevel=1)
        elif gpu.error is not None:
            raise gpu.error

    fakes = {
        "Stream": make_stream,
        "current_stream": Stream,
        "stream": contextlib.nullcontext,
        "graph_pool_handle": lambda: "the pool",
        "CUDAGraph": make_graph,
        "graph": graph,
        "get_sync_debug_mode": lambda: gpu.mode,
        "set_sync_debug_mode": lambda mode: setattr(gpu, "mode", mode),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    # as in a new process, and without a fake stream for later tests
    monkeypatch.setattr(cuda_graph, "_capture_stream", functools.cache(cuda_graph._capture_stream.__wrapped__))
    return gpu


class Program:
    """Counts its executions on the device, and its calls from the host."""

    def __init__(self) -> None:
        self.done = torch.zeros(())
        self.calls = 0

    def __call__(self) -> None:
        self.calls += 1
        self.done.add_(1)


def test_a_program_is_captured_after_three_runs(gpu: SimpleNamespace) -> None:
    graphs, program = GraphCache(CPU), Program()
    calls = []
    for _ in range(6):
        graphs.run("a", program)
        calls.append(program.calls)
    # the fourth run captures it, and executes it by a replay
    assert calls == [1, 2, 3, 4, 4, 4]
    assert program.done == 6
    assert len(gpu.streams) == 1
    # each key is warmed up and captured by itself
    other = Program()
    for _ in range(5):
        graphs.run("b", other)
        graphs.run("a", program)
    assert (other.calls, int(other.done)) == (4, 5)
    assert (program.calls, int(program.done)) == (4, 11)
    # the next pack of the process shares the stream, and with it the workspaces of cuBLAS
    GraphCache(CPU)
    assert len(gpu.streams) == 1


def test_the_least_recently_used_graph_is_dropped(gpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graph, "_MAX_GRAPHS", 2)
    graphs, programs = GraphCache(CPU), {key: Program() for key in "abc"}
    for key in "aaaabbbbacccc":
        graphs.run(key, programs[key])
    assert list(graphs._graphs) == ["a", "c"]
    # a dropped graph is warmed up again before it is captured
    for key in "bbba":
        graphs.run(key, programs[key])
    assert list(graphs._graphs) == ["c", "a"]
    graphs.run("b", programs["b"])
    assert list(graphs._graphs) == ["a", "b"]
    assert {key: (program.calls, int(program.done)) for key, program in programs.items()} == {
        "a": (4, 6),
        "b": (8, 8),
        "c": (4, 4),
    }


def test_the_memory_pool_is_never_without_a_graph(gpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graph, "_MAX_GRAPHS", 1)
    graphs = GraphCache(CPU)
    for key in "aaaabbbbaaaa":
        graphs.run(key, Program())
    # the new graph is captured before the old one is dropped
    assert (gpu.captures, len(gpu.alive)) == ([1, 2, 2], 1)


def test_a_step_that_synchronizes_is_never_captured(gpu: SimpleNamespace) -> None:
    class Waiting(Program):
        def __call__(self) -> None:
            super().__call__()
            warnings.warn("something else", stacklevel=1)
            if gpu.mode == "warn":
                warnings.warn("called a synchronizing CUDA operation", stacklevel=1)

    graphs, program = GraphCache(CPU), Waiting()
    errors: list[str] = []
    graphs.on_error = errors.append
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="something else")
        for _ in range(8):
            graphs.run("a", program)
        for _ in range(8):
            graphs.run("b", program)
    assert (program.calls, int(program.done)) == (16, 16)
    assert errors == [graphs.error]
    assert errors[0].startswith(f"the host waits for the device in {__file__}:")
    assert (gpu.captures, gpu.mode) == ([], 0)


def test_a_step_that_raises_while_it_is_checked_restores_the_debug_mode(gpu: SimpleNamespace) -> None:
    def fail() -> None:
        if gpu.mode:
            raise ValueError("a plug-in's own")

    graphs = GraphCache(CPU)
    graphs.run("a", fail)
    graphs.run("a", fail)
    with pytest.raises(ValueError, match="own"):
        graphs.run("a", fail)
    assert gpu.mode == 0


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: operation not permitted\nCompile with TORCH_USE_CUDA_DSA"),
        UserWarning("The CUDA Graph is empty. This usually means that the graph was attempted on a wrong device"),
    ],
)
def test_a_capture_that_fails_ends_in_one_line(gpu: SimpleNamespace, error: Exception) -> None:
    graphs = GraphCache(CPU)
    for _ in range(3):
        graphs.run("a", Program())
    gpu.error = error
    with pytest.raises(CaptureError) as caught:
        graphs.run("a", Program())
    assert str(error).splitlines()[0] in str(caught.value)
    assert str(caught.value).endswith("; take --engine eager")
    assert "\n" not in str(caught.value)


def test_out_of_memory_is_not_reported_as_a_failed_capture(gpu: SimpleNamespace) -> None:
    graphs = GraphCache(CPU)
    for _ in range(3):
        graphs.run("a", Program())
    gpu.error = torch.OutOfMemoryError("full")
    with pytest.raises(torch.OutOfMemoryError):
        graphs.run("a", Program())


@pytest.mark.usefixtures("double", "gpu")
def test_captured_steps_train_as_steps_from_the_host(
    tiny_config: TinyConfig, tiny_tokens: TokenData, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = [
        tiny_config(seed=0, steps=24, optimizer__max_norm=0.1, optimizer__reset_moments_every_steps=10),
        tiny_config(seed=1, steps=24, data__order="shuffled", optimizer__name="adamw", optimizer__max_norm="none"),
        tiny_config(seed=2, steps=24, schedule__kind="cosine", schedule__peak_learning_rate=1e-2),
    ]
    host, captured = both(configs, tiny_tokens, ["", "label-smoothing", "fp-first:fraction=0.25,ramp=0.25"])
    captured.graphs = graphs = GraphCache(CPU)
    passes: Counter[object] = Counter()
    step_on_device = captured._step_on_device

    def counted(key: Any) -> None:
        passes[key] += 1
        step_on_device(key)

    monkeypatch.setattr(captured, "_step_on_device", counted)
    for step in range(1, 25):
        host.step(step)
        captured.step(step)
        for metric in ("loss_R", "objective_R", "grad_norm_R"):
            torch.testing.assert_close(getattr(captured, metric), getattr(host, metric), rtol=1e-9, atol=1e-9)
    assert_alike(host, captured, 1e-8)
    # two stages of eleven and twelve steps with one step between them; learning rates and λ change within a stage
    assert list(passes.values()) == [4, 1, 4]
    assert list(graphs._graphs) == [key for key, count in passes.items() if count == 4]


def waits(func: Any, args: tuple[Any, ...]) -> bool:
    """Whether an operation needs its result on the host, or data from there."""
    if func is torch.ops.aten.index.Tensor:
        return any(index is not None and index.dtype == torch.bool for index in args[1])
    needs = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
    return bool(needs & set(func.tags)) or func is torch.ops.aten.lift_fresh.default


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_nothing_in_a_step_synchronizes_with_the_host(
    tiny_config: TinyConfig, tiny_tokens: TokenData, gpu: SimpleNamespace, precision: str
) -> None:
    sizes = {"model__hidden_size": 64, "data__batch_size": 4}
    configs = [tiny_config(**sizes), tiny_config(optimizer__max_norm="none", optimizer__name="adamw", **sizes)]
    _, captured = both(configs, tiny_tokens, ["", "label-smoothing"], precision=precision)
    captured.graphs = graphs = GraphCache(CPU)
    for step in range(1, 5):
        captured.step(step)
    (graph,) = graphs._graphs.values()
    assert isinstance(graph, FakeGraph)
    assert len(graph.operations) > 100
    assert [str(func) for func, args, _, _ in graph.operations if waits(func, args)] == []
    # the check detects such operations
    with (other := FakeGraph()):
        torch.ones(2)[torch.tensor([True, False])].sum().item()
    assert sum(waits(func, args) for func, args, _, _ in other.operations) == 3


@pytest.mark.gpu
def test_a_captured_step_on_a_gpu_trains_as_one_from_the_host(tiny_config: TinyConfig, tiny_tokens: TokenData) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    configs = [tiny_config(seed=seed, steps=24) for seed in range(3)]
    host, captured = both(configs, tiny_tokens, device=torch.device("cuda"))
    for step in range(1, 25):
        host.step(step)
        captured.step(step)
    assert captured.graphs is not None
    assert captured.graphs.error is None
    assert captured.graphs._graphs
    torch.testing.assert_close(captured.loss_R, host.loss_R, rtol=1e-3, atol=1e-3)
