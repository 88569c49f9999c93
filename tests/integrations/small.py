"""A tiny text, its probe, and what the callbacks' rows must hold."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from bitnetctl.recorder import HeldOutProbe
from bitnetctl.records import Run, load_run

VOCAB, LENGTH = 40, 8


def tokens(seed: int, count: int) -> Any:
    return np.random.default_rng(seed).integers(0, VOCAB, count)


def make_probe() -> HeldOutProbe:
    return HeldOutProbe.from_tokens(
        tokens(0, 2000), tokens(1, 400), vocab_size=VOCAB, positions=64, sequence_length=LENGTH
    )


def recorded(path: str = "runs/a.csv") -> Run:
    return load_run(Path(path))


def manifest(path: str = "runs/a") -> dict[str, Any]:
    tree = json.loads(Path(path, "run.json").read_text(encoding="utf-8"))
    assert isinstance(tree, dict)
    return tree
