"""Runs with quantizers of their own in sweeps: packs, estimates, rows, resume, and a broken one."""

import re
from pathlib import Path

import pytest
import torch
from configs import TinyConfig
from run_files import RUNS, UNDISTURBED, Train, assert_undisturbed, manifest, start_of
from sweeping import Grid, Sweep, names, packs
from torch import Tensor
from training import resolved

from bitnetctl.config import RunConfig
from bitnetctl.records import read
from bitnetctl.sweeps.packing import plan_costs, shape_of
from bitnetctl.trainer.events import Evaluated, Event, Failed
from bitnetctl.trainer.loop import Trainer

CPU, GPU = torch.device("cpu"), torch.device("cuda")

BROKEN = """
from bitnetctl.intervention import Intervention

class Unclamped(Intervention):
    summary = "forgets to clamp"

    def quantize_weights(self, weight_LOI):
        scale = weight_LOI.abs().mean((1, 2), keepdim=True)
        return (weight_LOI / scale).round(), scale
"""


@pytest.mark.parametrize("device", [CPU, GPU])
def test_the_shape_of_a_run_names_its_quantizer(device: torch.device, grid: Grid, tmp_path: Path) -> None:
    arms = ("", "no-decay", "median-scale", "median-scale+reduced-lr", "group-scale:size=8", "group-scale:size=16")
    runs = resolved(grid(1, *arms), tmp_path)
    shapes = [shape_of(run, device) for run in runs]
    assert [shapes.index(shape) for shape in shapes] == [0, 0, 2, 2, 4, 5]
    assert all(run.capturable_step for run in runs)
    assert [run.custom_quantizers for run in runs] == [frozenset()] * 2 + [frozenset({"weights"})] * 4


def test_estimates_count_the_packs(grid: Grid, tmp_path: Path) -> None:
    runs = resolved(grid(2, "", "no-decay", "median-scale"), tmp_path)
    costs = plan_costs(runs, CPU, None, lambda effective: 300)
    assert [(cost.runs, cost.packs, cost.arms) for cost in costs] == [
        (4, 1, ["baseline", "no-decay"]),
        (2, 1, ["median-scale"]),
    ]


def test_runs_with_different_quantizers_train_in_packs_of_their_own(sweep: Sweep, grid: Grid) -> None:
    configs = grid(2, "", "median-scale", "group-scale:size=8")
    events = sweep(configs, pack=6)
    assert packs(events) == [names(configs[:2]), names(configs[2:4]), names(configs[4:])]
    losses = {config.arm: read(RUNS / f"{config.run_name}.csv").value("Loss", 2) for config in configs[::2]}
    assert len(set(losses.values())) == 3


def test_a_broken_quantizer_ends_its_own_runs_only(sweep: Sweep, grid: Grid, tmp_path: Path) -> None:
    path = tmp_path / "unclamped.py"
    path.write_text(BROKEN)
    configs = [*grid(2, ""), *grid(2, str(path)), *grid(1, "median-scale")]
    messages: list[str] = []
    events = sweep(configs, pack=8, log=messages.append)
    assert [manifest(config).status for config in configs] == ["finished"] * 2 + ["failed"] * 2 + ["finished"]
    failed = [event.message for event in events if isinstance(event, Failed)]
    wanted = (
        rf"unclamped: quantize_weights returned codes other than -1, 0 and 1, such as -?\d \({re.escape(str(path))}:7\)"
    )
    assert len(failed) == 2
    assert all(re.fullmatch(wanted, message) for message in failed)
    assert all(manifest(config).is_fault_of_plugin for config in configs[2:4])


def test_zeros_and_flips_are_those_of_its_codes(train: Train, tiny_config: TinyConfig) -> None:
    config = tiny_config(arm="median-scale")
    zeros: list[float] = []
    flips: list[float | None] = []
    before: Tensor | None = None

    def watch(trainer: Trainer, event: Event) -> None:
        nonlocal before
        if not isinstance(event, Evaluated):
            return
        codes = []
        for key in ("qkv", "o", "gate_up", "down"):
            # the recipe has one scale for fused matrices
            for weight_OI in trainer.pack.model.packed[key][0]:
                scale = weight_OI.abs().flatten().sort().values[(weight_OI.numel() - 1) // 2]
                codes.append((weight_OI / scale).round().clamp(-1, 1).flatten())
        now = torch.cat(codes)
        zeros.append((now == 0).float().mean().item())
        flips.append(None if before is None else (now != before).float().mean().item())
        before = now

    train(config, names=["a"], watch=watch)
    frame = read(RUNS / "a.csv").frame
    assert frame["ZeroFraction"].tolist() == pytest.approx(zeros)
    assert frame["FlipRate"].tolist()[1:] == pytest.approx(flips[1:])
    # a half of the median of normal magnitudes cuts 26 % of them, of uniform ones 25 %; of the mean 31 and 25
    assert 0.2 < zeros[0] < 0.3


@pytest.mark.parametrize("stop", [3, 8])
@pytest.mark.parametrize("arm", ["median-scale", "group-scale:size=8+fp-first:fraction=0.3"])
def test_a_resumed_run_is_the_undisturbed_one(train: Train, tiny_config: TinyConfig, arm: str, stop: int) -> None:
    configs: list[RunConfig] = [tiny_config(arm=arm), tiny_config(arm=arm, seed=3)]
    train(configs, names=["a", "b"], runs_dir=UNDISTURBED)
    train(configs, names=["a", "b"], stop_after=stop)
    assert start_of(train(configs, names=["a", "b"])) == stop
    assert_undisturbed("a", "b")
