"""Claim files and the runs of their plans, written by hand."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from synthetic import quick, simple_run

CLAIM = """
title = "Training without decay gives a lower loss"
source = "a paper"
claimed = "Without weight decay the loss is lower."
scale = "hidden 1024, 1B tokens"
arm = "no-decay"
limits = ["that any decay is harmful"]

[plan]
recipe = "quick"
sizes = [64]
steps = 1000
seeds = 6
arms = ["no-decay"]
overrides = ["probe.eval_every_steps=100"]

[criteria]
seeds = { rule = "rate" }
checks = [
  { kind = "finite", columns = ["Loss", "HeldOutLoss"] },
  { kind = "finished" },
  { kind = "paired", measure = "HeldOutLoss", better = "lower", margin = 0.1 },
]

[conclusions]
supported = "Leave the decay out."
refuted = "Keep the decay."
inconclusive = "The decay may matter or not."
"""


def write_claim(path: Path, **changes: str) -> Path:
    """Write the claim, with texts replaced: `no_decay="reduced-lr"` replaces no-decay."""
    text = CLAIM
    for old, new in changes.items():
        assert old.replace("_", "-") in text
        text = text.replace(old.replace("_", "-"), new)
    path.write_text(text, encoding="utf-8")
    return path


def write_arms(folder: Path, losses: Mapping[str, float], seeds: Iterable[int] = range(6), **fields: Any) -> list[Path]:
    """Write finished runs of the claim's plan: `{"": 5.0, "no-decay": 4.8}` are held-out losses by arm."""
    return [
        simple_run(folder, quick(arm, seed=seed), loss=loss + seed / 1000, **fields)
        for arm, loss in losses.items()
        for seed in seeds
    ]
