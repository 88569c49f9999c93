"""Estimated times against those measured on an H100, memory against what packs were seen to take."""

from types import SimpleNamespace

import pytest
import torch

from bitnetctl.config import RunConfig, build_config
from bitnetctl.engine import cost
from bitnetctl.engine.cost import bytes_per_replica, estimate, gpu_seconds, pack_bytes, probe_chunk_bytes, step_nodes
from bitnetctl.model.matmul import Precision
from bitnetctl.model.parameters import num_parameters

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
VOCAB = 50257
GIB = 2**30


def origin(hidden_size: int = 256, **model: object) -> RunConfig:
    overrides = {"hidden_size": hidden_size, **model}
    return build_config("origin", overrides=[f"model.{key}={str(value).lower()}" for key, value in overrides.items()])


@pytest.mark.parametrize(("total", "free", "chunk"), [(80, 79, 5), (80, 8, 1.25), (80, 0, 0.01953125)])
def test_chunks_on_a_gpu_follow_its_memory(
    monkeypatch: pytest.MonkeyPatch, total: float, free: float, chunk: float
) -> None:
    properties = SimpleNamespace(total_memory=total * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(cost, "memory_available", lambda device: int(free * 2**30))
    assert probe_chunk_bytes(torch.device("cuda", 0)) == chunk * 2**30
    assert probe_chunk_bytes(CPU) == 32 * 2**20


@pytest.mark.parametrize("rates", [(1e14, 2.6e12), (4e14, 3.0e12)], ids=["measured", "at best"])
@pytest.mark.parametrize(
    ("engine", "hidden_size", "runs", "measured_ms"),
    [
        ("graph", 256, 1, 2.32),
        ("graph", 256, 16, 12.94),
        ("graph", 512, 1, 3.42),
        ("compile", 256, 1, 1.17),
        ("compile", 256, 16, 9.99),
        ("compile", 512, 1, 1.96),
        ("compile", 512, 12, 16.2),
        ("eager", 256, 1, 13.0),
    ],
)
def test_steps_take_what_they_took_on_an_h100(
    engine: str, hidden_size: int, runs: int, measured_ms: float, rates: tuple[float, float]
) -> None:
    step_seconds, _ = gpu_seconds(origin(hidden_size), VOCAB, runs, rates, engine)
    assert step_seconds == pytest.approx(measured_ms / 1000, rel=0.3)


def test_a_whole_run_has_a_start_and_evaluations() -> None:
    """`verify --sizes 256,512 --steps 4000 --seeds 1` took 38.1 s on an H100, with two packs of one run."""
    seconds = 0.0
    for hidden_size in (256, 512):
        config = origin(hidden_size).model_copy(update={"steps": 4000})
        step_seconds, other_seconds = gpu_seconds(config, VOCAB, 1, (1e14, 2.6e12), "graph")
        seconds += 4000 * step_seconds + other_seconds
    assert seconds == pytest.approx(38.1, rel=0.3)


@pytest.mark.parametrize(
    ("engine", "runs", "nodes"),
    [
        ("graph", 1, 793),
        ("graph", 16, 871),
        ("compile", 1, 273),
        ("compile", 16, 349),
        ("fused", 1, 147),
        ("fused", 16, 160),
    ],
)
def test_nodes_are_about_those_that_were_counted(engine: str, runs: int, nodes: int) -> None:
    """The values are those of `python -m benchmarks.kernels --runs 1,16 model.hidden_size=256`."""
    assert step_nodes(origin(), engine, runs) == pytest.approx(nodes, rel=0.13)
    deeper = step_nodes(origin(num_layers=8), engine, runs)
    assert 1.5 < deeper / step_nodes(origin(), engine, runs) < 2.0
    assert step_nodes(origin(), "eager", runs) == step_nodes(origin(), "graph", runs)


@pytest.fixture
def h100(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=85_520_809_984)
    )
    monkeypatch.setattr(cost, "memory_available", lambda device: 80 * GIB)


@pytest.mark.usefixtures("h100")
@pytest.mark.parametrize(
    ("hidden_size", "runs", "precision", "smoothed", "measured_gb"),
    [
        (256, 1, "bf16", False, 1.81),
        (256, 4, "bf16", False, 6.09),
        (256, 16, "bf16", False, 13.17),
        (256, 1, "bf16", True, 1.90),
        (256, 16, "bf16", True, 13.17),
        (512, 1, "bf16", False, 2.85),
        (512, 4, "bf16", True, 9.89),
        (512, 16, "bf16", True, 25.27),
        (256, 1, "fp32", False, 2.74),
        (256, 16, "fp32", False, 15.28),
    ],
)
def test_memory_is_what_captured_packs_reserved(
    hidden_size: int, runs: int, precision: Precision, smoothed: bool, measured_gb: float
) -> None:
    """With torch's allocator on a device of the size of an H100, after six steps and a probe."""
    counted = pack_bytes(origin(hidden_size), VOCAB, GPU, runs, precision, overrides_loss=smoothed)
    assert counted / 1e9 == pytest.approx(measured_gb, rel=0.1)


def test_memory_on_the_cpu_is_that_of_the_runs() -> None:
    assert pack_bytes(origin(), VOCAB, CPU, 3) == 3 * bytes_per_replica(origin(), VOCAB)


def test_micro_batches_take_time_but_the_memory_of_one() -> None:
    def accumulating(micro_batches: int, rows: int) -> RunConfig:
        config = origin()
        data = config.data.model_copy(update={"batch_size": rows, "gradient_accumulation": micro_batches})
        return config.model_copy(update={"data": data})

    whole, split, small = accumulating(1, 64), accumulating(8, 8), accumulating(1, 8)
    rates = (1e14, 2.6e12)
    seconds = [gpu_seconds(config, VOCAB, 1, rates, "graph")[0] for config in (whole, split, small)]
    assert seconds[1] > seconds[0]
    assert seconds[1] < 8.1 * seconds[2]
    assert step_nodes(split, "graph") == 8 * step_nodes(small, "graph")
    # and the sums of the gradients
    parameters = num_parameters(small.model, VOCAB)
    assert bytes_per_replica(split, VOCAB) == bytes_per_replica(small, VOCAB) + 4 * parameters
    assert bytes_per_replica(split, VOCAB) < bytes_per_replica(whole, VOCAB)


@pytest.mark.usefixtures("h100")
def test_an_estimate_for_a_gpu_takes_its_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "measure_rates", lambda device, multiply: (1e14, 2.6e12))
    monkeypatch.setattr(cost, "has_bf16_matmul", lambda device: True)
    config = origin()
    step_seconds, other_seconds = gpu_seconds(config, VOCAB, 16, (1e14, 2.6e12), "fused")
    estimated = estimate(config, VOCAB, GPU, 16, engine="fused")
    assert estimated.step_seconds == step_seconds
    assert estimated.total_seconds == pytest.approx(20000 * step_seconds + other_seconds)
    assert estimated.memory_bytes == pack_bytes(config, VOCAB, GPU, 16, "bf16")
    assert estimate(config, VOCAB, GPU, 16, "fp32").memory_bytes == pack_bytes(config, VOCAB, GPU, 16, "fp32")
