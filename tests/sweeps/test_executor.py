"""Sweeps: every run once, in packs that change no figure, whatever stops, fails, diverges or is held elsewhere."""

import errno
import gc
import itertools
import math
import os
import shutil
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import pytest
import torch
from filelock import FileLock
from pydantic import Field
from training import sweep_runs

from bitnetctl.config import RunConfig
from bitnetctl.engine import select
from bitnetctl.engine.cuda_graph import CapturedPack
from bitnetctl.engine.pack import Pack
from bitnetctl.engine.select import Execution
from bitnetctl.errors import CaptureError, ConfigError, DataError, StorageError
from bitnetctl.intervention import Intervention, InterventionSettings
from bitnetctl.plugins import registry
from bitnetctl.plugins.registry import Plugin
from bitnetctl.records import NAMES, Manifest, RunPaths, read, read_manifest
from bitnetctl.sweeps import executor, packing
from bitnetctl.trainer import checkpoint, factory
from bitnetctl.trainer.artifacts import RunArtifacts
from bitnetctl.trainer.events import Diverged, Evaluated, Event, Failed, Finished, Saved, Started, Stopped
from bitnetctl.trainer.options import TrainOptions

TinyConfig = Callable[..., RunConfig]
Sweep = Callable[..., list[Event]]
Figures = Callable[[Path], list[bytes]]

RUNS, UNDISTURBED = Path("runs"), Path("undisturbed")
DIVERGES = "reduced-lr:factor=1e300"
# largest relative difference between a run in a pack and the same run alone, in every column but TokensPerSecond.
# Measured: double 2e-14 (ContextInformation, a difference of entropies), single 0. Noise that another CPU may
# add in single precision flips roundings to int8, so only double precision can be held to much.
DOUBLE, SINGLE = 1e-9, 1e-2
COMPARED = [name for name in NAMES if name != "TokensPerSecond"]


@pytest.fixture
def sweep(monkeypatch: pytest.MonkeyPatch) -> Sweep:
    """Sweep `runs/` and return the events; a stop is asked for once `stop_when` is true of an event."""
    # half of a tiny run's time, and no test pulls the plug
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(executor, "_WAIT_SECONDS", 0.01)

    def run(
        configs: Sequence[RunConfig],
        *,
        pack: int | None = None,
        workers: int = 1,
        runs_dir: Path = RUNS,
        stop_when: Callable[[Event], bool] = lambda event: False,
        **options: object,
    ) -> list[Event]:
        events: list[Event] = []
        named = {"should_stop": lambda: any(map(stop_when, events)), **options}
        named.setdefault("checkpoint_every", configs[0].eval_every_steps)
        chosen = TrainOptions(runs_dir=runs_dir, device="cpu", **named)  # type: ignore[arg-type]
        # one by one: `stop_when` looks at them while the sweep goes on
        events.extend(sweep_runs(configs, chosen, pack=pack, workers=workers))
        return events

    return run


@pytest.fixture
def grid(tiny_config: TinyConfig) -> Callable[..., list[RunConfig]]:
    """The smallest runs, one for every arm and seed: eight steps, rows at 1, 4 and 8."""

    def build(seeds: int, *arms: str, **overrides: object) -> list[RunConfig]:
        smallest = {"steps": 8, "model__hidden_size": 16, "model__num_layers": 1}
        return [
            tiny_config(arm=arm, **smallest | {"seed": seed} | overrides)
            for arm in (arms or ("",))
            for seed in range(seeds)
        ]

    return build


Grid = Callable[..., list[RunConfig]]


def names(configs: Sequence[RunConfig]) -> list[str]:
    return [config.run_name for config in configs]


def packs(events: Sequence[Event]) -> list[list[str]]:
    return [list(event.names) for event in events if isinstance(event, Started)]


def starts(events: Sequence[Event]) -> list[int]:
    return [event.start_step for event in events if isinstance(event, Started)]


def manifest(config: RunConfig, runs_dir: Path = RUNS) -> Manifest:
    found = read_manifest(runs_dir / config.run_name)
    assert found is not None
    return found


def row_steps(config: RunConfig, runs_dir: Path = RUNS) -> list[int]:
    steps: list[int] = read(runs_dir / f"{config.run_name}.csv", partial=False).frame["Step"].to_list()
    return steps


def largest_difference(config: RunConfig, ours: Path, theirs: Path) -> dict[str, float]:
    """Return the largest relative difference of every compared column; unknown and NaN equal themselves only."""
    one, other = (read(folder / f"{config.run_name}.csv", partial=False) for folder in (ours, theirs))
    assert one.frame["Step"].to_list() == other.frame["Step"].to_list()
    worst = dict.fromkeys(COMPARED, 0.0)
    for name in COMPARED:
        for place in range(len(one.frame)):
            a, b = one.value(name, place), other.value(name, place)
            if a is None or b is None or math.isnan(a) or math.isnan(b):
                assert (a is None, a is not None and math.isnan(a)) == (b is None, b is not None and math.isnan(b)), (
                    name
                )
            elif a != b:
                # some figures are zero but for rounding
                worst[name] = max(worst[name], abs(a - b) / max(abs(a), abs(b), 1e-3))
    return worst


def assert_same(configs: Sequence[RunConfig], tolerance: float, theirs: Path = UNDISTURBED) -> None:
    for config in configs:
        worst = largest_difference(config, RUNS, theirs)
        assert max(worst.values()) <= tolerance, (config.run_name, worst)


# plug-ins of a third party


class Fails(Intervention):
    """Raise at a step, unless it was mended meanwhile."""

    summary = "for the tests"
    broken = True

    class Settings(InterventionSettings):
        """The step that goes wrong."""

        at: Annotated[int, Field(ge=1)] = 6

    settings: Settings

    def weight_decay(self, base: float, step: int, steps: int) -> float:
        """Raise at the step."""
        if self.broken and step == self.settings.at:
            raise RuntimeError("two\nlines [bold]")
        return base


class Fuller(Intervention):
    """Raise what a full disk raises."""

    summary = "for the tests"
    error: BaseException | None = None

    def weight_decay(self, base: float, step: int, steps: int) -> float:
        """Raise at step 6."""
        if step == 6 and self.error is not None:
            raise self.error
        return base


class Deeper(Intervention):
    """Change the shape of a run."""

    summary = "for the tests"

    def configure(self, config: RunConfig) -> RunConfig:
        """Add a layer."""
        model = config.model.model_copy(update={"num_layers": config.model.num_layers + 1})
        return config.model_copy(update={"model": model})


@pytest.fixture
def third_party(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plug-ins `fails`, `fuller` and `deeper` beside the real ones."""
    real = registry.load
    classes: dict[str, type[Intervention]] = {"fails": Fails, "fuller": Fuller, "deeper": Deeper}

    def load(name: str) -> Plugin:
        if name not in classes:
            return real(name)
        target = f"test_sweep:{name}"
        return Plugin(
            name=name, distribution="theirs", version="1", target=target, intervention=classes[name], problem=None
        )

    monkeypatch.setattr(registry, "load", load)
    monkeypatch.setattr(Fails, "broken", True)
    monkeypatch.setattr(Fuller, "error", None)


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
        found = manifest(config)
        assert (found.status, found.steps_done) == ("finished", 8)
        assert [found.pack] == [replicas for replicas in packs(events) if config.run_name in replicas]
        assert row_steps(config) == [1, 4, 8]

    # what is finished is left alone
    before = {path: path.stat().st_mtime_ns for path in RUNS.rglob("*") if path.is_file()}
    assert sweep(configs, pack=pack) == []
    after = {path: path.stat().st_mtime_ns for path in RUNS.rglob("*") if path.is_file()}
    assert {path: time for path, time in after.items() if path.name != ".claims.lock"} == {
        path: time for path, time in before.items() if path.name != ".claims.lock"
    }


def test_what_is_missing_is_trained(sweep: Sweep, grid: Grid) -> None:
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
    monkeypatch.setattr(packing, "bytes_per_replica", lambda config, vocab_size: replica_bytes)
    assert [len(replicas) for replicas in packs(sweep(grid(5)))] == sizes


def test_a_pack_on_the_processor_has_at_most_sixteen(sweep: Sweep, grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "memory_available", lambda device: 2**60)
    events = sweep(grid(18, steps=2, probe__eval_every_steps=2))
    assert [len(replicas) for replicas in packs(events)] == [16, 2]


def test_every_shape_is_measured_by_itself(sweep: Sweep, grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "memory_available", lambda device: 10**13)
    monkeypatch.setattr(
        packing, "bytes_per_replica", lambda config, vocab_size: 10**12 if config.model.hidden_size > 16 else 10**10
    )
    small, large = grid(6), grid(6, model__hidden_size=24)
    assert [len(replicas) for replicas in packs(sweep([*large, *small]))] == [5, 1, 6]


@pytest.mark.parametrize(
    ("workers", "pack", "sizes"), [(1, None, [5, 2]), (2, None, [3, 2, 1, 1]), (9, None, [1] * 7), (2, 5, [5, 2])]
)
def test_each_worker_finds_runs(
    sweep: Sweep, grid: Grid, monkeypatch: pytest.MonkeyPatch, workers: int, pack: int | None, sizes: list[int]
) -> None:
    monkeypatch.setattr(packing, "memory_available", lambda device: 2**60)
    configs = [*grid(5), *grid(2, model__hidden_size=24)]
    # the others have not begun yet
    assert [len(replicas) for replicas in packs(sweep(configs, pack=pack, workers=workers))] == sizes


class MadePacks:
    """Makes packs, and counts those that are alive at every moment that memory matters."""

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
        """Return how many are alive, and remember it."""
        self.counted.append(len(self.alive))
        return self.counted[-1]


@pytest.mark.usefixtures("third_party")
@pytest.mark.parametrize("arm", ["", "fails:at=2"])
def test_a_pack_is_gone_before_memory_is_counted_again(
    sweep: Sweep, grid: Grid, monkeypatch: pytest.MonkeyPatch, arm: str
) -> None:
    made = MadePacks(monkeypatch)
    gc.disable()
    try:
        sweep([*grid(2, arm), *grid(2, model__hidden_size=24)])
    finally:
        gc.enable()
    assert made.counted == [0] * len(made.counted)
    # two shapes are measured, two packs trained, and what failed once more alone
    assert len(made.engines) == (6 if arm else 4)


def test_a_run_is_measured_without_recording_or_compiling(
    sweep: Sweep, grid: Grid, monkeypatch: pytest.MonkeyPatch
) -> None:
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
def test_runs_of_different_shape_are_apart(sweep: Sweep, grid: Grid, shape: str) -> None:
    ours, theirs = grid(2), grid(2, **SHAPES[shape])
    mixed = [ours[0], theirs[0], ours[1], theirs[1]]
    assert packs(sweep(mixed, pack=4)) == [names(ours), names(theirs)]


def test_what_is_no_shape_trains_together(sweep: Sweep, grid: Grid) -> None:
    configs = [
        *grid(2, "", "no-decay", "reduced-lr", "label-smoothing", "adaptive-clipping", "full-precision", "init-scale"),
        *grid(1, data__order="shuffled"),
        *grid(1, optimizer__name="adamw"),
    ]
    assert packs(sweep(configs, pack=16)) == [names(configs)]


def test_on_a_card_runs_that_need_the_host_are_apart(sweep: Sweep, grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda", 0)
    shape_of = packing.shape_of
    for module in (packing, executor):
        monkeypatch.setattr(module, "shape_of", lambda run, device: shape_of(run, gpu))
    recorded, hosted = grid(2, "", "label-smoothing"), grid(2, "adaptive-clipping")
    events = sweep([*recorded[:2], *hosted, *recorded[2:]], pack=16)
    assert packs(events) == [names(recorded), names(hosted)]


@pytest.mark.usefixtures("third_party")
def test_the_shape_is_that_after_the_interventions(sweep: Sweep, grid: Grid) -> None:
    plain, treated, deep = grid(1), grid(1, "deeper"), grid(1, model__num_layers=2)
    assert packs(sweep([*plain, *treated, *deep], pack=3)) == [names(plain), names([*treated, *deep])]


@pytest.mark.parametrize("keep", [True, False])
def test_weights_are_kept_if_they_are_wanted(sweep: Sweep, grid: Grid, keep: bool) -> None:
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


# packs change no figure


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


def test_each_seed_of_a_pack_is_the_run_alone_in_single_precision(sweep: Sweep, tiny_config: TinyConfig) -> None:
    configs = [tiny_config(seed=seed) for seed in range(4)]
    pack_and_solo(sweep, configs)
    # whole numbers move by one where two logits are close
    counts = {"UniquePredictions", "RandomPromptUnique"}
    for config in configs:
        worst = largest_difference(config, RUNS, UNDISTURBED)
        assert all(worst[name] <= (0.1 if name in counts else SINGLE) for name in COMPARED), worst


# how it was computed


class Unrecordable:
    """A recorder that finds the host waiting in the third step."""

    def __init__(self) -> None:
        self.steps = 0
        self.on_error: Callable[[str], None] = lambda error: None

    def run(self, key: object, program: Callable[[], None]) -> None:
        self.steps += 1
        program()
        if self.steps == 3:
            self.on_error("the host waits in plugin.py:7")


@pytest.mark.parametrize("is_recorder", [True, False])
def test_the_manifest_names_the_engine_that_ran(
    sweep: Sweep, grid: Grid, monkeypatch: pytest.MonkeyPatch, is_recorder: bool
) -> None:
    def make(*arguments: Any) -> Pack:
        if not is_recorder:
            # what needs the host is stepped by it
            return Pack(*arguments[:-1])
        pack = CapturedPack(*arguments[:-1])
        pack.graphs = Unrecordable()  # type: ignore[assignment]
        return pack

    monkeypatch.setattr(factory, "make_pack", make)
    chosen = Execution(engine="graph", precision="fp32")
    monkeypatch.setattr(factory.TrainerFactory, "execution", lambda factory, config, before=None: chosen)
    configs, engines, notices = grid(2), [], list[str]()

    def look(event: Event) -> bool:
        engines.append([manifest(config).engine for config in configs])
        return False

    sweep(configs, pack=2, stop_when=look, log=notices.append)
    assert engines[0] == (["graph"] * 2 if is_recorder else ["eager"] * 2)
    assert [manifest(config).engine for config in configs] == ["eager"] * 2
    name = configs[0].run_name
    told = f"{name}: its pack continues without a CUDA graph, which is slower: the host waits in plugin.py:7"
    assert notices[1:] == ([told] if is_recorder else [])


# divergence


@pytest.mark.usefixtures("double")
def test_neighbours_of_a_run_that_diverges_do_not_notice(sweep: Sweep, tiny_config: TinyConfig) -> None:
    diverging = tiny_config(arm=DIVERGES)
    neighbours = [tiny_config(), tiny_config(seed=1), tiny_config(arm="no-decay")]
    configs = [neighbours[0], diverging, *neighbours[1:]]
    events = sweep(configs, pack=4)
    assert packs(events) == [names(configs)]
    assert [event for event in events if isinstance(event, Diverged | Failed)] == [Diverged(run=1, step=2)]
    assert [manifest(config).status for config in configs] == ["finished", "diverged", "finished", "finished"]
    assert (manifest(diverging).diverged_at, manifest(diverging).steps_done) == (2, 2)
    assert row_steps(diverging) == [1, 2]
    assert math.isnan(read(RUNS / f"{diverging.run_name}.csv").value("UniquePredictions", 1) or 0.0)

    assert packs(sweep(neighbours, pack=3, runs_dir=UNDISTURBED)) == [names(neighbours)]
    assert_same(neighbours, DOUBLE)
    # a run that diverged has ended: it is not tried again
    assert sweep(configs, pack=4) == []


def test_a_sweep_goes_on_after_a_run_that_diverges(sweep: Sweep, grid: Grid) -> None:
    configs = [*grid(1, DIVERGES), *grid(2)]
    events = sweep(configs, pack=1)
    assert packs(events) == [[config.run_name] for config in configs]
    assert [manifest(config).status for config in configs] == ["diverged", "finished", "finished"]
    # the last of what was said about the diverged run is that it ended
    first_pack = events[: [type(event) for event in events].index(Finished) + 1]
    assert [type(event) for event in first_pack] == [Started, Evaluated, Diverged, Finished]


# failures


@pytest.mark.usefixtures("third_party", "double")
@pytest.mark.parametrize(("at", "resumed"), [(1, 0), (6, 4)])
def test_a_run_that_raises_fails_alone(
    sweep: Sweep, grid: Grid, monkeypatch: pytest.MonkeyPatch, at: int, resumed: int
) -> None:
    good = grid(2)
    (bad,) = grid(1, f"fails:at={at}")
    configs = [good[0], bad, good[1]]
    notices: list[str] = []
    events = sweep(configs, pack=3, log=notices.append)
    assert packs(events) == [names(configs), *([config.run_name] for config in configs)]
    # what the pack had saved is not trained again
    assert starts(events) == [0, resumed, resumed, resumed]
    message = "RuntimeError: two lines [bold]"
    assert [event.message for event in events if isinstance(event, Failed)] == [message]
    _, log = notices
    assert log == f"a pack of 3 failed ({message}); its runs continue one by one"
    assert [manifest(config).status for config in configs] == ["finished", "failed", "finished"]
    assert manifest(bad).message == message

    # it is tried again once by every sweep, alone among the finished
    again = sweep(configs, pack=3)
    assert (packs(again), starts(again)) == ([[bad.run_name]], [resumed])
    assert isinstance(again[-1], Failed)
    assert manifest(bad).status == "failed"

    monkeypatch.setattr(Fails, "broken", False)
    assert starts(sweep(configs, pack=3)) == [resumed]
    assert (manifest(bad).status, manifest(bad).message) == ("finished", None)
    assert [row_steps(config) for config in configs] == [[1, 4, 8]] * 3
    sweep(configs, pack=3, runs_dir=UNDISTURBED)
    assert_same(configs, DOUBLE)


@pytest.mark.usefixtures("third_party")
def test_every_run_of_a_pack_may_fail(sweep: Sweep, grid: Grid) -> None:
    configs = grid(2, "fails:at=2")
    events = sweep(configs, pack=2)
    assert packs(events) == [names(configs), *([config.run_name] for config in configs)]
    assert len([event for event in events if isinstance(event, Failed)]) == 2
    assert [manifest(config).status for config in configs] == ["failed", "failed"]


def test_a_file_of_someone_else_fails_its_run_and_stays(sweep: Sweep, grid: Grid) -> None:
    configs = grid(3)
    RUNS.mkdir()
    theirs = RUNS / f"{configs[1].run_name}.csv"
    theirs.write_text("not ours\n", encoding="utf-8")
    events = sweep(configs, pack=1)
    assert packs(events) == [[configs[0].run_name], [configs[2].run_name]]
    assert [manifest(config).status for config in configs] == ["finished", "failed", "finished"]
    assert "not a file that this version writes" in (manifest(configs[1]).message or "")
    assert theirs.read_text(encoding="utf-8") == "not ours\n"


@pytest.mark.usefixtures("third_party")
def test_a_failed_run_that_another_process_takes_at_once_is_left_to_it(
    sweep: Sweep, grid: Grid, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good = *grid(1, "fails"), *grid(1)
    theirs = FileLock(RunPaths(RUNS, bad.run_name).lock, thread_local=False)
    release = RunArtifacts.release

    def release_to_another(output: RunArtifacts) -> None:
        release(output)
        if output.run.config == bad:
            theirs.acquire(timeout=0)

    monkeypatch.setattr(RunArtifacts, "release", release_to_another)
    try:
        events = sweep([bad, good], pack=1)
    finally:
        theirs.release()
    assert packs(events) == [[bad.run_name], [good.run_name]]
    assert manifest(good).status == "finished"


@pytest.mark.usefixtures("third_party")
@pytest.mark.parametrize(
    "error",
    [StorageError("disk full", errno.ENOSPC), KeyboardInterrupt(), CaptureError("take --engine eager")],
    ids=["disk", "key", "GPU"],
)
@pytest.mark.parametrize("pack", [1, 2])
def test_a_full_disk_a_keyboard_and_a_spoiled_card_end_the_sweep(
    sweep: Sweep, grid: Grid, monkeypatch: pytest.MonkeyPatch, error: BaseException, pack: int
) -> None:
    configs = [*grid(1, "fuller"), *grid(2)]
    sweep(configs, pack=pack, runs_dir=UNDISTURBED)
    monkeypatch.setattr(Fuller, "error", error)
    with pytest.raises(type(error)):
        sweep(configs, pack=pack)
    assert [config for config in configs if (RUNS / f"{config.run_name}.csv").exists()] == configs[:pack]
    assert manifest(configs[0]).status == "running"
    # every claim is gone, and nothing that was saved
    monkeypatch.setattr(Fuller, "error", None)
    events = sweep(configs, pack=pack)
    assert packs(events)[0] == names(configs[:pack])
    assert starts(events)[0] == 4
    assert [manifest(config).status for config in configs] == ["finished"] * 3
    assert_same(configs, 0.0)


# stopped and resumed


@pytest.mark.parametrize(("pack", "step"), [(0, 1), (0, 4), (1, 4)])
def test_a_stopped_sweep_goes_on_where_it_was(sweep: Sweep, grid: Grid, figures: Figures, pack: int, step: int) -> None:
    configs = [*grid(2), *grid(2, "wd-schedule+momentum-reset:every=3")]
    sweep(configs, pack=2, runs_dir=UNDISTURBED)
    first = configs[2 * pack].run_name
    began: list[str] = []

    def is_there(event: Event) -> bool:
        if isinstance(event, Started):
            began.append(event.names[0])
        return isinstance(event, Evaluated) and began[-1:] == [first] and event.row["Step"] == step

    events = sweep(configs, pack=2, stop_when=is_there)
    # the stop is seen at the end of the step after
    assert events[-1] == Stopped(step=step + 1)
    ended = ["finished"] * 2 * pack + ["stopped"] * 2
    assert [manifest(config).status for config in configs[: 2 * pack + 2]] == ended
    assert all(not (RUNS / config.run_name).exists() for config in configs[2 * pack + 2 :])

    rest = sweep(configs, pack=2)
    assert packs(rest) == [names(configs[start : start + 2]) for start in range(2 * pack, 4, 2)]
    assert starts(rest)[0] == step + 1
    for config in configs:
        assert figures(RUNS / f"{config.run_name}.csv") == figures(UNDISTURBED / f"{config.run_name}.csv")
        assert row_steps(config) == [1, 4, 8]


def test_a_stop_before_the_first_run_creates_none(sweep: Sweep, grid: Grid) -> None:
    assert sweep(grid(1), should_stop=lambda: True) == []
    assert not RUNS.exists()


@pytest.mark.usefixtures("double")
def test_a_stopped_sweep_goes_on_in_other_packs(sweep: Sweep, grid: Grid) -> None:
    configs = grid(4)
    sweep(configs, pack=4, runs_dir=UNDISTURBED)
    sweep(configs, pack=3, stop_when=lambda event: isinstance(event, Saved))
    events = sweep(configs, pack=2)
    # the fourth was not begun, so that it does not go with the third
    assert packs(events) == [names(configs[:2]), names(configs[2:3]), names(configs[3:])]
    assert starts(events) == [5, 5, 0]
    assert [row_steps(config) for config in configs] == [[1, 4, 8]] * 4
    assert_same(configs, DOUBLE)


def lose(config: RunConfig, *lost: int) -> None:
    for step in lost:
        shutil.rmtree(checkpoint.path_of(RunPaths(RUNS, config.run_name).checkpoints, step))


# every run has checkpoints of 6 and 9; (those lost, packs and their first step); a run that lost all goes no further
LOST: dict[str, tuple[list[tuple[int, ...]], list[tuple[list[int], int]]]] = {
    "none": ([(), (), ()], [([0, 1, 2], 9)]),
    "the newest of one": ([(), (9,), ()], [([0, 1, 2], 6)]),
    "the newest of all": ([(9,), (9,), (9,)], [([0, 1, 2], 6)]),
    "nothing in common": ([(6,), (9,), (6,)], [([0, 2], 9), ([1], 6)]),
    "everything of one": ([(), (6, 9), ()], [([0, 2], 9)]),
    "everything of most": ([(6, 9), (), (6, 9)], [([1], 9)]),
}


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("case", LOST)
def test_runs_go_on_from_where_they_can(sweep: Sweep, grid: Grid, case: str) -> None:
    lost, expected = LOST[case]
    configs = grid(3, steps=12)
    sweep(configs, pack=3, runs_dir=UNDISTURBED)
    at_eight = sweep(
        configs,
        pack=3,
        checkpoint_every=3,
        stop_when=lambda event: isinstance(event, Evaluated) and event.row["Step"] == 8,
    )
    assert at_eight[-1] == Stopped(step=9)
    for config, steps in zip(configs, lost, strict=True):
        assert checkpoint.steps(RunPaths(RUNS, config.run_name).checkpoints) == [6, 9]
        lose(config, *steps)
    events = sweep(configs, pack=3)
    assert packs(events) == [names([configs[run] for run in runs]) for runs, _ in expected]
    assert starts(events) == [step for _, step in expected]
    gone = [config for config, steps in zip(configs, lost, strict=True) if len(steps) == 2]
    assert [event.name for event in events if isinstance(event, Failed)] == names(gone)
    for config in gone:
        assert row_steps(config) == [1, 4, 8]
        assert "9 steps were done, but its checkpoints are gone" in (manifest(config).message or "")
    rest = [config for config in configs if config not in gone]
    for config in rest:
        assert row_steps(config) == [1, 4, 8, 12]
        assert manifest(config).status == "finished"
    assert_same(rest, DOUBLE)


# other processes


def test_what_another_process_holds_is_waited_for(sweep: Sweep, grid: Grid) -> None:
    configs = grid(3)
    (RUNS / configs[1].run_name).mkdir(parents=True)
    theirs = FileLock(RunPaths(RUNS, configs[1].run_name).lock)
    notices: list[str] = []
    polls: list[None] = []

    def leave_it_after_a_while() -> bool:
        if "waiting for runs that another process trains" in notices:
            polls.append(None)
        if len(polls) == 5:
            theirs.release()
        return False

    theirs.acquire(timeout=0)
    events = sweep(configs, pack=3, log=notices.append, should_stop=leave_it_after_a_while)
    # its owner left it: taken over
    assert packs(events) == [[configs[0].run_name, configs[2].run_name], [configs[1].run_name]]
    assert notices == ["3 runs to train on cpu, about 0 s", "waiting for runs that another process trains"]
    assert [manifest(config).status for config in configs] == ["finished"] * 3


def test_what_another_process_finishes_is_not_trained_again(sweep: Sweep, grid: Grid) -> None:
    configs = grid(2)
    (RUNS / configs[0].run_name).mkdir(parents=True)
    theirs = FileLock(RunPaths(RUNS, configs[0].run_name).lock)

    def finish_it(text: str) -> None:
        sweep(configs[:1], pack=1, runs_dir=UNDISTURBED)
        shutil.copy(UNDISTURBED / f"{configs[0].run_name}.csv", RUNS)
        shutil.copy(UNDISTURBED / configs[0].run_name / "run.json", RUNS / configs[0].run_name)
        theirs.release()

    theirs.acquire(timeout=0)
    assert packs(sweep(configs, pack=2, log=finish_it)) == [[configs[1].run_name]]
    assert manifest(configs[0]).status == "finished"


def test_a_stop_ends_the_waiting(sweep: Sweep, grid: Grid) -> None:
    (config,) = grid(1)
    (RUNS / config.run_name).mkdir(parents=True)
    notices: list[str] = []
    with FileLock(RunPaths(RUNS, config.run_name).lock):
        assert sweep([config], log=notices.append, should_stop=lambda: len(notices) > 0) == []
    assert len(notices) == 1
