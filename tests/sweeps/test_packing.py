"""How many runs train together: what a run is measured to take, and what its pack needs once."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from configs import TinyConfig

from bitnetctl.engine.select import Execution
from bitnetctl.errors import PluginError
from bitnetctl.plugins.composition import Composition
from bitnetctl.sweeps import packing
from bitnetctl.sweeps.packing import largest_pack, measured_largest_pack, shape_of
from bitnetctl.trainer.factory import TrainerFactory
from bitnetctl.trainer.options import TrainOptions

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("device", "once_bytes", "workers", "runs"),
    [(GPU, 0, 1, 8), (GPU, 250, 1, 5), (GPU, 250, 3, 5), (GPU, 900, 1, 1), (CPU, 0, 1, 5), (CPU, 0, 2, 2)],
)
def test_room_is_left_for_what_a_pack_needs_once(
    monkeypatch: pytest.MonkeyPatch, device: torch.device, once_bytes: int, workers: int, runs: int
) -> None:
    monkeypatch.setattr(packing, "memory_available", lambda device: 1000)
    assert largest_pack(device, 100, workers, once_bytes=once_bytes) == runs


def test_on_a_gpu_runs_with_other_updates_are_in_packs_of_their_own(tiny_config: TinyConfig) -> None:
    factor = tiny_config(optimizer__learning_rate_factors__head=0.5)
    kinds = [(tiny_config(), None), (tiny_config(), "muon"), (tiny_config(), "lion"), (factor, None)]
    runs: list[Any] = [
        SimpleNamespace(effective=config, capturable_step=True, optimizer_plugin=plugin, quantizer_key=())
        for config, plugin in [*kinds, *kinds]
    ]
    shapes = [shape_of(run, GPU) for run in runs]
    assert shapes[:4] == shapes[4:]
    assert len(set(shapes)) == 4
    # the CPU steps each run by itself
    assert len({shape_of(run, CPU) for run in runs}) == 1
    accumulated = SimpleNamespace(effective=tiny_config(data__gradient_accumulation=2), quantizer_key=())
    assert shape_of(accumulated, CPU) != shape_of(runs[0], CPU)  # type: ignore[arg-type]


class FakeGpu:
    """A factory whose packs take the bytes of `in_use`, one for each time that memory is measured."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, in_use: Sequence[int], error: Exception | None = None) -> None:
        self.done: list[object] = []
        self.device, self._error = GPU, error
        left = iter(in_use)
        monkeypatch.setattr(packing, "memory_in_use", lambda device: next(left))
        monkeypatch.setattr(packing, "memory_available", lambda device: 2000)
        monkeypatch.setattr(packing, "release_unused", lambda device: self.done.append("release"))
        monkeypatch.setattr(packing, "bytes_per_replica", lambda *arguments: 100)
        monkeypatch.setattr(packing, "fixed_bytes", lambda *arguments: 40)
        monkeypatch.setattr(packing, "make_pack", self._pack)

    def prepare(self, config: object) -> tuple[Any, Any]:
        return SimpleNamespace(vocab_size=7), SimpleNamespace(measure=lambda model, lambdas: self.done.append("probe"))

    def execution(self, config: object, *, custom: object) -> Execution:
        return Execution(engine="graph", precision="bf16")

    def _pack(
        self, configs: Any, compositions: Sequence[Composition], tokens: Any, device: Any, execution: Execution
    ) -> Any:
        self.done += [execution.engine, [type(each).__name__ for each in compositions[0].interventions]]
        return SimpleNamespace(step=self._step, steps=configs[0].steps, model=None, quant_lambdas=lambda step: [1.0])

    def _step(self, step: int) -> None:
        self.done.append(step)
        if self._error is not None:
            error, self._error = self._error, None
            raise error


@pytest.mark.parametrize(
    # 1,600 of 2,000 bytes, the probe's taken off
    ("in_use", "runs"),
    [((50, 250, 550), (1600 - 300) // 200), ((50, 250, 260), (1600 - 40) // 200), ((50, 60, 260), (1600 - 200) // 100)],
)
def test_a_gpu_is_measured_with_hook_and_probe(
    monkeypatch: pytest.MonkeyPatch, tiny_config: TinyConfig, in_use: tuple[int, ...], runs: int
) -> None:
    """At least what is counted: 100 bytes a run and 40 once."""
    gpu = FakeGpu(monkeypatch, in_use)
    assert measured_largest_pack(gpu, tiny_config(arm="label-smoothing")) == runs  # type: ignore[arg-type]
    assert gpu.done == ["release", "eager", ["LabelSmoothing"], 1, 2, "probe", "release"]


@pytest.mark.parametrize(
    ("error", "done", "runs"),
    [
        (PluginError("broken"), ["release", "eager", [], 1, 2, "probe", "release"], 6),
        (torch.OutOfMemoryError("of 80 GiB"), ["release"], 1),
    ],
    ids=["plug-in", "memory"],
)
def test_an_error_while_measuring_is_left_for_the_training(
    monkeypatch: pytest.MonkeyPatch, tiny_config: TinyConfig, error: Exception, done: list[object], runs: int
) -> None:
    gpu = FakeGpu(monkeypatch, (0, 50, 250, 550), error)
    assert measured_largest_pack(gpu, tiny_config(arm="label-smoothing")) == runs  # type: ignore[arg-type]
    assert gpu.done == ["release", "eager", ["LabelSmoothing"], 1, *done]


@pytest.fixture
def factory(tmp_path: Path) -> Iterator[TrainerFactory]:
    threads = torch.get_num_threads()
    yield TrainerFactory(TrainOptions(runs_dir=tmp_path, device="cpu"))
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("third_party")
@pytest.mark.parametrize("arm", ["", "label-smoothing", "fails:at=1", "fails:at=0", "no-such-plug-in"])
def test_a_cpu_is_measured_whatever_the_interventions_do(
    factory: TrainerFactory,
    tiny_config: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    arm: str,
) -> None:
    monkeypatch.setattr(packing, "memory_available", lambda device: 2**60)
    assert measured_largest_pack(factory, tiny_config(arm=arm)) == 16


@pytest.mark.usefixtures("third_party")
@pytest.mark.parametrize(
    ("arms", "measured"),
    [(["", "no-decay", "label-smoothing"], 2), (["no-decay", ""], 0), (["fails:at=0", "label-smoothing"], 1)],
)
def test_a_run_with_a_loss_hook_is_measured_for_its_shape(
    tiny_config: TinyConfig, arms: list[str], measured: int
) -> None:
    configs = [tiny_config(arm=arm) for arm in arms]
    runs: Any = [SimpleNamespace(effective=config) for config in configs]
    assert packing.most_demanding(runs) is configs[measured]
