"""Runs that a recorder writes of models that never trained."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bitnetctl.recorder import HeldOutProbe, Recorder

VOCAB = 61
STEPS = 8
Model = Callable[[Tensor], Tensor]


def make_probe(seed: int = 0) -> HeldOutProbe:
    generator = np.random.default_rng(seed)
    train, held_out = generator.integers(0, VOCAB, 3000), generator.integers(0, 40, 400)
    return HeldOutProbe.from_tokens(train, held_out, vocab_size=VOCAB, positions=96, sequence_length=12)


def healthy(seed: int) -> Model:
    """Return a model that knows which tokens there are, and guesses."""
    noise_V = torch.randn(VOCAB, generator=torch.Generator().manual_seed(seed)) * 0.01
    return lambda x: torch.nn.functional.one_hot(x, VOCAB) * 0.1 + torch.arange(VOCAB).lt(40) + noise_V


def dead(seed: int) -> Model:
    """Return a model that predicts one token."""
    return lambda x: torch.nn.functional.one_hot(x * 0 + 7, VOCAB).float() * (1 + seed / 10)


def write(
    folder: Path,
    arm: str | None,
    seeds: Iterable[int],
    model: Callable[[int], Model],
    *,
    probe: HeldOutProbe | None = None,
    done: int = STEPS,
    error: BaseException | None = None,
    **settings: Any,
) -> list[Path]:
    """Record `done` evaluations of runs of an arm; returns their CSVs."""
    paths = []
    for seed in seeds:
        path = folder / f"{str(arm).replace(':', '-')}-s{seed}.csv"
        known: dict[str, Any] = {"arm": arm, "seed": seed, "size": 64, "steps": STEPS} | settings
        recording = Recorder(path, probe=probe or make_probe(), **known)
        for step in range(1, done + 1):
            recording.record(step, model(seed), loss=4 + seed / 10, learning_rate=0.1, weight_decay=0.0)
        if error is None:
            recording.finish()
        else:
            recording.fail(error)
        paths.append(path)
    return paths
