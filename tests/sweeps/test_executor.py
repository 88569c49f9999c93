"""Sweeps: every run is trained once, in packs that do not change its values."""

import gc
import itertools
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from configs import TinyConfig
from run_files import RUNS, UNDISTURBED, manifest
from sweeping import (
    COMPARED,
    DOUBLE,
    SINGLE,
    Grid,
    Sweep,
    assert_same,
    largest_difference,
    names,
    packs,
    row_steps,
)

from bitnetctl import checkpoint
from bitnetctl.config import RunConfig
from bitnetctl.engine import select
from bitnetctl.engine.cuda_graph import CapturedPack
from bitnetctl.engine.pack import Pack
from bitnetctl.engine.select import Engine, Execution
from bitnetctl.errors import ConfigError, DataError
from bitnetctl.records import RunPaths, read
from bitnetctl.sweeps import executor, packing
from bitnetctl.trainer import factory
from bitnetctl.trainer.events import Diverged, Event, Failed, Finished, Planned, Started, Stopped

# packs


@pytest.mark.parametrize(
    ("pack", "sizes"), [(1, [1] * 5), (2, [2, 2, 1]), (3, [3, 2]), (5, [5]), (100, [5])], ids=lambda value: str(value)
)
def test_every_run_is_trained_once_in_packs(sweep: Sweep, grid: Grid, pack: int, sizes: list[int]) -> None:
    configs = [*grid(3), *grid(2, "no-decay")]
    events = sweep(configs, pack=pack)
    assert [len(replicas) for replicas in packs(events)] == sizes
    assert list(itertools.chain(*packs(events))) == names(configs)
    kinds = [type(event) for event in events if isinstance(event, Started | Finished | Failed | Diverged | Stopped)]
    assert kinds == [Started, Finished] * len(sizes)
    for config in configs:
        stored = manifest(config)
        assert (stored.status, stored.steps_done) == ("finished", 8)
        assert [stored.pack] == [replicas for replicas in packs(events) if config.run_name in replicas]
        assert row_steps(config) == [1, 4, 8]

    # finished runs are left alone
    before = {path: path.stat().st_mtime_ns for path in RUNS.rglob("*") if path.is_file()}
    assert sweep(configs, pack=pack) == []
    after = {path: path.stat().st_mtime_ns for path in RUNS.rglob("*") if path.is_file()}
    assert {path: time for path, time in after.items() if path.name != ".claims.lock"} == {
        path: time for path, time in before.items() if path.name != ".claims.lock"
    }


def test_missing_runs_are_trained(sweep: Sweep, grid: Grid) -> None:
    configs = grid(4)
    sweep([configs[1], configs[3]], pack=2)
    assert packs(sweep(configs, pack=4)) == [[configs[0].run_name, configs[2].run_name]]
    assert [manifest(config).status for config in configs] == ["finished"] * 4


def test_a_run_named_twice_is_trained_once(sweep: Sweep, grid: Grid) -> None:
    (config,) = grid(1)
    assert packs(sweep([config, config], pack=2)) == [[config.run_name]]
    assert row_steps(config) == [1, 4, 8]


@pytest.mark.parametrize(
    ("free", "sizes"), [(0, [1] * 5), (1.9, [1] * 5), (4.5, [2, 2, 1]), (6, [3, 2]), (1e6, [5])], ids=str
)
def test_memory_decides_how_many_train_together(
    sweep: Sweep, grid: Grid, monkeypatch: pytest.MonkeyPatch, free: float, sizes: list[int]
) -> None:
    replica_bytes = 10**13
    # half of the free memory is left to others
    monkeypatch.setattr(packing, "memory_available", lambda device: int(free * replica_bytes))
    monkeypatch.setattr(packing, "bytes_per_replica", lambda config, vocab_size, precision: replica_bytes)
    assert [len(replicas) for replicas in packs(sweep(grid(5)))] == sizes


def test_a_pack_on_the_cpu_has_at_most_sixteen_replicas(
    sweep: Sweep, grid: Grid, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "memory_available", lambda device: 2**60)
    events = sweep(grid(18, steps=2, probe__eval_every_steps=2))
    assert [len(replicas) for replicas in packs(events)] == [16, 2]


def test_the_memory_of_every_shape_is_estimated(sweep: Sweep, grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "memory_available", lambda device: 10**13)
    monkeypatch.setattr(
        packing,
        "bytes_per_replica",
        lambda config, vocab_size, precision: 10**12 if config.model.hidden_size > 16 else 10**10,
    )
    small, large = grid(6), grid(6, model__hidden_size=24)
    assert [len(replicas) for replicas in packs(sweep([*large, *small]))] == [5, 1, 6]


@pytest.mark.parametrize(
    ("workers", "pack", "sizes"), [(1, None, [5, 2]), (2, None, [3, 2, 1, 1]), (9, None, [1] * 7), (2, 5, [5, 2])]
)
def test_every_worker_gets_runs(
    sweep: Sweep, grid: Grid, monkeypatch: pytest.MonkeyPatch, workers: int, pack: int | None, sizes: list[int]
) -> None:
    monkeypatch.setattr(packing, "memory_available", lambda device: 2**60)
    configs = [*grid(5), *grid(2, model__hidden_size=24)]
    # the other workers have not begun
    assert [len(replicas) for replicas in packs(sweep(configs, pack=pack, workers=workers))] == sizes


class MadePacks:
    """Count the packs that are alive whenever memory is measured or a pack is made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.alive: weakref.WeakSet[Pack] = weakref.WeakSet()
        self.counted: list[int] = []
        self.engines: list[str] = []
        make = select.make_pack

        def counting(*arguments: Any) -> Pack:
            self.count()
            self.engines.append(arguments[-1].engine)
            pack = make(*arguments)
            self.alive.add(pack)
            return pack

        monkeypatch.setattr(packing, "make_pack", counting)
        monkeypatch.setattr(factory, "make_pack", counting)
        monkeypatch.setattr(packing, "memory_available", lambda device: self.count() + 2**60)

    def count(self) -> int:
        """Return how many are alive, and append it to `counted`."""
        self.counted.append(len(self.alive))
        return self.counted[-1]


@pytest.mark.usefixtures("third_party")
@pytest.mark.parametrize("arm", ["", "fails:at=2"])
def test_a_pack_is_freed_before_memory_is_measured_again(
    sweep: Sweep, grid: Grid, monkeypatch: pytest.MonkeyPatch, arm: str
) -> None:
    made = MadePacks(monkeypatch)
    gc.disable()
    try:
        sweep([*grid(2, arm), *grid(2, model__hidden_size=24)])
    finally:
        gc.enable()
    assert made.counted == [0] * len(made.counted)
    # two shapes are measured, two packs trained
    assert len(made.engines) == 4


def test_the_estimate_neither_captures_nor_compiles(sweep: Sweep, grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(select, "_missing_to_compile", lambda device: None)
    made = MadePacks(monkeypatch)
    configs = grid(2)
    sweep(configs, engine="compile")
    assert made.engines == ["eager", "compile"]
    assert [manifest(config).engine for config in configs] == ["compile"] * 2


SHAPES: dict[str, dict[str, object]] = {
    "size": {"model__hidden_size": 24},
    "layers": {"model__num_layers": 2},
    "heads": {"model__num_key_value_heads": 2},
    "steps": {"steps": 10},
    "batch": {"data__batch_size": 3},
    "sequence": {"data__sequence_length": 8},
    "tokenizer": {"data__tokenizer": "bpe:310"},
    "probe": {"probe__positions": 64},
    "evaluations": {"probe__eval_every_steps": 2},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_runs_of_different_shape_are_in_different_packs(sweep: Sweep, grid: Grid, shape: str) -> None:
    ours, theirs = grid(2), grid(2, **SHAPES[shape])
    mixed = [ours[0], theirs[0], ours[1], theirs[1]]
    assert packs(sweep(mixed, pack=4)) == [names(ours), names(theirs)]


def test_runs_of_one_shape_share_a_pack(sweep: Sweep, grid: Grid) -> None:
    configs = [
        *grid(2, "", "no-decay", "reduced-lr", "label-smoothing", "adaptive-clipping", "full-precision", "init-scale"),
        *grid(1, data__order="shuffled"),
        *grid(1, optimizer__name="adamw"),
    ]
    assert packs(sweep(configs, pack=16)) == [names(configs)]


def test_on_a_gpu_runs_that_need_the_host_are_in_packs_of_their_own(
    sweep: Sweep, grid: Grid, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = torch.device("cuda", 0)
    shape_of = packing.shape_of
    for module in (packing, executor):
        monkeypatch.setattr(module, "shape_of", lambda run, device: shape_of(run, gpu))
    captured, hosted = grid(2, "", "label-smoothing"), grid(2, "adaptive-clipping")
    events = sweep([*captured[:2], *hosted, *captured[2:]], pack=16)
    assert packs(events) == [names(captured), names(hosted)]


@pytest.mark.usefixtures("third_party")
def test_the_shape_is_that_after_the_interventions(sweep: Sweep, grid: Grid) -> None:
    plain, treated, deep = grid(1), grid(1, "deeper"), grid(1, model__num_layers=2)
    assert packs(sweep([*plain, *treated, *deep], pack=3)) == [names(plain), names([*treated, *deep])]


@pytest.mark.parametrize("keep", [True, False])
def test_weights_are_kept_if_requested(sweep: Sweep, grid: Grid, keep: bool) -> None:
    configs = grid(2)
    sweep(configs, pack=2, keep_weights=keep)
    for config in configs:
        assert checkpoint.steps(RunPaths(RUNS, config.run_name).checkpoints) == ([8] if keep else [])


def test_a_text_that_cannot_be_used_creates_nothing(sweep: Sweep, grid: Grid) -> None:
    with pytest.raises(DataError, match=r"none\.txt"):
        sweep([*grid(1), *grid(1, data__source="file:none.txt")], pack=1)
    assert not RUNS.exists()


def test_interventions_that_exclude_each_other_create_nothing(sweep: Sweep, grid: Grid) -> None:
    with pytest.raises(ConfigError, match="both override training_loss"):
        sweep([*grid(1), *grid(1, "label-smoothing+label-smoothing:epsilon=0.2")], pack=1)
    assert not RUNS.exists()


# packs change no value


def pack_and_solo(sweep: Sweep, configs: Sequence[RunConfig]) -> None:
    assert [len(replicas) for replicas in packs(sweep(configs, pack=4))] == [4]
    assert [len(replicas) for replicas in packs(sweep(configs, pack=1, runs_dir=UNDISTURBED))] == [1] * 4
    # four runs, not one four times
    assert len({read(RUNS / f"{config.run_name}.csv").value("Loss", 0) for config in configs}) == 4


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("arm", ["", "label-smoothing+adaptive-clipping+wd-schedule"])
def test_each_seed_of_a_pack_is_the_run_alone(sweep: Sweep, tiny_config: TinyConfig, arm: str) -> None:
    configs = [tiny_config(arm=arm, seed=seed, steps=40, data__order="shuffled") for seed in range(4)]
    pack_and_solo(sweep, configs)
    assert_same(configs, DOUBLE)


def test_each_seed_of_a_pack_is_the_run_alone_in_single_precision(
    sweep: Sweep, tiny_config: TinyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    # chosen by timing, and sums depend on the number of threads in the last bit
    monkeypatch.setattr(factory, "choose_threads", lambda pack, limit: 1)
    configs = [tiny_config(seed=seed) for seed in range(4)]
    pack_and_solo(sweep, configs)
    # what is counted over predictions changes by one of them where two logits are close
    counts = {"UniquePredictions", "RandomPromptUnique", "TopShare", "EffectiveVocab"}
    for config in configs:
        worst = largest_difference(config, RUNS, UNDISTURBED)
        assert all(worst[name] <= (0.1 if name in counts else SINGLE) for name in COMPARED), worst


# the engine


class Uncapturable:
    """A CUDA graph whose capture fails in the third step, since the host waits."""

    def __init__(self) -> None:
        self.steps = 0
        self.on_error: Callable[[str], None] = lambda error: None

    def run(self, key: object, program: Callable[[], None]) -> None:
        self.steps += 1
        program()
        if self.steps == 3:
            self.on_error("the host waits in plugin.py:7")


@pytest.mark.parametrize(
    ("is_captured", "engine", "in_the_end"),
    [(True, "graph", "eager"), (False, "graph", "eager"), (True, "fused", "fused"), (True, "compile", "compile")],
)
def test_the_manifest_names_the_engine_that_ran(
    sweep: Sweep, grid: Grid, monkeypatch: pytest.MonkeyPatch, is_captured: bool, engine: Engine, in_the_end: str
) -> None:
    def make(*arguments: Any) -> Pack:
        if not is_captured:
            # a pack that needs the host steps eagerly
            return Pack(*arguments[:-1])
        pack = CapturedPack(*arguments[:-1])
        pack.graphs = Uncapturable()  # type: ignore[assignment]
        return pack

    monkeypatch.setattr(factory, "make_pack", make)
    chosen = Execution(engine=engine, precision="fp32")
    monkeypatch.setattr(factory.TrainerFactory, "execution", lambda factory, config, before=None, **named: chosen)
    configs, engines, messages = grid(2), [], list[str]()

    def look(event: Event) -> bool:
        if not isinstance(event, Planned):
            engines.append([manifest(config).engine for config in configs])
        return False

    sweep(configs, pack=2, stop_when=look, log=messages.append)
    assert engines[0] == [engine if is_captured else "eager"] * 2
    assert [manifest(config).engine for config in configs] == [in_the_end] * 2
    reason = "the host waits in plugin.py:7" if is_captured else None
    assert [manifest(config).not_captured for config in configs] == [reason] * 2
    message = (
        f"{configs[0].run_name}: its pack continues without a CUDA graph, which is slower: "
        "the host waits in plugin.py:7"
    )
    assert [line for line in messages if "compiling" not in line] == ([message] if is_captured else [])
