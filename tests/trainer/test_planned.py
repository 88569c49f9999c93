"""What a command plans is written into the manifest of every run that it trains."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from configs import TinyConfig
from run_files import manifest

import bitnetctl
from bitnetctl.config import RunConfig
from bitnetctl.errors import StoppedBySignal
from bitnetctl.records import PlannedRuns
from bitnetctl.trainer.options import TrainOptions
from bitnetctl.trainer.resolved import resolve, resolve_all

RUNS = Path("runs")
OPTIONS = TrainOptions(runs_dir=RUNS, device="cpu")


def plans(configs: Sequence[RunConfig]) -> list[tuple[list[int], list[str]]]:
    """Return seeds and arms that the manifests name."""
    planned = [manifest(config).planned for config in configs]
    assert all(planned)
    return [(one.seeds, one.arms) for one in planned if one is not None]


def test_every_run_names_the_seeds_of_its_config_and_all_arms(tiny_config: TinyConfig) -> None:
    configs = [tiny_config(seed=seed) for seed in (5, 0)]
    configs += [tiny_config(arm="no-decay", seed=seed) for seed in (3,)]
    configs += [tiny_config(seed=7, optimizer__eps=1e-6)]
    planned = [run.planned for run in resolve_all(configs, RUNS)]
    arms = ["baseline", "no-decay"]
    assert planned == [PlannedRuns(seeds=seeds, arms=arms) for seeds in ([0, 5], [0, 5], [3], [7])]


def test_the_recipe_is_a_label_without_effect(tiny_config: TinyConfig) -> None:
    configs = [tiny_config(seed=0), tiny_config(seed=1).model_copy(update={"recipe": "mine"})]
    assert [run.planned.seeds for run in resolve_all(configs, RUNS)] == [[0, 1], [0, 1]]


def test_a_run_of_its_own_plans_itself(tiny_config: TinyConfig) -> None:
    config = tiny_config(arm="no-decay", seed=4)
    assert resolve(config, RUNS).planned == PlannedRuns(seeds=[4], arms=["no-decay"])
    bitnetctl.train(config, OPTIONS)
    assert plans([config]) == [([4], ["no-decay"])]


def test_runs_that_have_ended_keep_their_plan_and_new_ones_have_the_newer(tiny_config: TinyConfig) -> None:
    configs = [tiny_config(seed=seed) for seed in range(3)]
    bitnetctl.sweep(configs[:2], OPTIONS)
    # the plan has the runs that are there already, too
    bitnetctl.sweep(configs, OPTIONS)
    assert plans(configs) == [([0, 1], ["baseline"]), ([0, 1], ["baseline"]), ([0, 1, 2], ["baseline"])]


def test_a_resumed_run_has_the_plan_of_the_command_that_resumed_it(tiny_config: TinyConfig) -> None:
    configs = [tiny_config(seed=seed) for seed in range(3)]
    calls = iter(range(100))
    stopping = TrainOptions(runs_dir=RUNS, device="cpu", checkpoint_every=4, should_stop=lambda: next(calls) == 8)
    with pytest.raises(StoppedBySignal):
        bitnetctl.sweep(configs[:2], stopping, pack=2)
    assert (manifest(configs[0]).status, plans(configs[:2])) == ("stopped", [([0, 1], ["baseline"])] * 2)
    bitnetctl.sweep(configs, OPTIONS)
    assert (manifest(configs[0]).status, plans(configs)) == ("finished", [([0, 1, 2], ["baseline"])] * 3)


def test_a_run_that_fails_names_what_was_planned(tiny_config: TinyConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    from bitnetctl.trainer import factory

    def fail(*_: object) -> None:
        raise RuntimeError("out of luck")

    monkeypatch.setattr(factory, "make_pack", fail)
    configs = [tiny_config(seed=seed) for seed in range(2)]
    with pytest.warns(UserWarning, match="no rows"):
        bitnetctl.sweep(configs, OPTIONS)
    assert (manifest(configs[1]).status, plans(configs)) == ("failed", [([0, 1], ["baseline"])] * 2)
