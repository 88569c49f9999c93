"""The batch that grows by accumulation, against Adam on the mean gradients of its windows."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from configs import TinyConfig
from packs import PackArms, compose, gradients, weights
from run_files import UNDISTURBED, Train, assert_undisturbed, start_of
from torch import Tensor

from bitnetctl.engine.pack import Pack


def raw_gradients(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Tensor]]:
    """The gradients of each step of run 0, as they are before any hook."""
    seen: list[dict[str, Tensor]] = []
    compute = pack._compute

    def recorded(*arguments: Any) -> None:
        compute(*arguments)
        seen.append(gradients(pack))

    monkeypatch.setattr(pack, "_compute", recorded)
    return seen


def adam(weight: Any, updates: list[tuple[Any, float, float]], *, is_decoupled: bool) -> Any:
    """Adam's updates (gradient, rate, decay), by the formulas of Kingma & Ba and of Loshchilov & Hutter."""
    w, m, v = weight.copy(), 0.0, 0.0
    for count, (g, rate, decay) in enumerate(updates, 1):
        if is_decoupled:
            w = w - rate * decay * w
        else:
            g = g + decay * w
        m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g**2
        w = w - rate * (m / (1 - 0.9**count)) / (np.sqrt(v / (1 - 0.95**count)) + 1e-8)
    return w


# 11 steps; (first, last) of each window that ends in an update
SINGLE = [(step, step) for step in range(1, 6)]


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(
    ("settings", "windows", "factor"),
    [
        ("factor=3,start=0.45", [*SINGLE, (6, 8), (9, 11)], 1.0),
        ("factor=4,start=0.45", [*SINGLE, (6, 9)], 1.0),
        ("factor=2,start=0,learning_rate=linear", [(1, 2), (3, 4), (5, 6), (7, 8), (9, 10)], 2.0),
        ("factor=2,start=0,learning_rate=sqrt", [(1, 2), (3, 4), (5, 6), (7, 8), (9, 10)], math.sqrt(2)),
        ("factor=1,start=0", [(step, step) for step in range(1, 12)], 1.0),
        ("start=1", [(step, step) for step in range(1, 12)], 1.0),
    ],
)
@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_an_update_is_that_of_the_mean_of_its_window(
    settings: str,
    windows: list[tuple[int, int]],
    factor: float,
    name: str,
    tiny_config: TinyConfig,
    pack_arms: PackArms,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = tiny_config(steps=11, optimizer__max_norm="none", optimizer__name=name, schedule__stage1_weight_decay=0.5)
    run, [base] = pack_arms(config, f"batch-growth:{settings}"), pack_arms(config, "").replicas
    start, seen = weights(run), raw_gradients(run, monkeypatch)
    for step in range(1, 12):
        before = weights(run)
        run.step(step)
        is_updated = any(not torch.equal(before[key], weight) for key, weight in weights(run).items())
        assert is_updated == any(last == step for _, last in windows), step
    for key, weight in weights(run).items():
        updates = [
            (
                np.mean([seen[step - 1][key].numpy() for step in range(first, last + 1)], axis=0),
                base.learning_rate(last) * factor,
                base.weight_decay(last),
            )
            for first, last in windows
        ]
        expected = adam(start[key].numpy(), updates, is_decoupled=name == "adamw")
        np.testing.assert_allclose(weight.numpy(), expected, rtol=1e-7, atol=1e-10, err_msg=key)


@pytest.mark.usefixtures("double")
def test_the_mean_is_clipped(tiny_config: TinyConfig, pack_arms: PackArms, monkeypatch: pytest.MonkeyPatch) -> None:
    run = pack_arms(tiny_config(optimizer__max_norm=0.1), "batch-growth:start=0,factor=3")
    seen = raw_gradients(run, monkeypatch)
    for step in (1, 2, 3):
        run.step(step)
    means = {key: torch.stack([each[key] for each in seen]).mean(0) for key in seen[0]}
    norm = math.sqrt(sum(float(mean.square().sum()) for mean in means.values()))
    assert norm > 0.2
    for key, gradient in gradients(run).items():
        torch.testing.assert_close(gradient, means[key] * 0.1 / norm, rtol=1e-5, atol=1e-12)


def test_until_it_grows_it_is_the_baseline(tiny_config: TinyConfig, pack_arms: PackArms) -> None:
    both = pack_arms(tiny_config(), "batch-growth", "")
    for step in range(1, 7):
        both.step(step)
    for key, weight in weights(both, 0).items():
        torch.testing.assert_close(weight, weights(both, 1)[key], rtol=1e-5, atol=1e-6)
    both.step(7)
    assert not torch.equal(weights(both, 0)["qkv"], weights(both, 1)["qkv"])


@pytest.mark.parametrize("stop", [2, 5, 6, 7, 8, 10])
def test_it_resumes_inside_of_a_window(train: Train, tiny_config: TinyConfig, stop: int) -> None:
    config = tiny_config(arm="batch-growth:start=0.25,factor=4")
    train(config, names=["a"], runs_dir=UNDISTURBED)
    train(config, names=["a"], stop_after=stop)
    assert start_of(train(config, names=["a"])) == stop
    assert_undisturbed("a")


def test_a_reset_inside_of_a_window_begins_a_new_sum(
    tiny_config: TinyConfig, pack_arms: PackArms, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state is reset before the update of step 4, and with it the sum of steps 1 to 4."""
    config = tiny_config(optimizer__max_norm="none", schedule__warmup_steps=0)
    run = pack_arms(config, "batch-growth:start=0,factor=6+momentum-reset:every=3")
    seen = raw_gradients(run, monkeypatch)
    for step in range(1, 7):
        run.step(step)
    for key, gradient in gradients(run).items():
        torch.testing.assert_close(gradient, (seen[4][key] + seen[5][key]) / 2, rtol=1e-5, atol=1e-8)


def test_a_rate_that_is_scaled_with_the_batch() -> None:
    arm = compose("batch-growth:start=0.5,factor=4,learning_rate=sqrt")
    assert [arm.learning_rate(0.1, step, 10) for step in (5, 6)] == pytest.approx([0.1, 0.2])
    assert compose("batch-growth").learning_rate(0.1, 10, 10) == 0.1
