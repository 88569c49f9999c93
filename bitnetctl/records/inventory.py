"""Stub."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from bitnetctl.records.run import Run

State = Literal["failed", "unfinished", "missing", "left out"]


@dataclass(frozen=True, kw_only=True)
class AbsentRun:
    run: str
    arm: str | None
    size: int | None
    seed: int | None
    planned_steps: int | None
    state: State
    reason: str


@dataclass(frozen=True, kw_only=True)
class Inventory:
    absent: tuple[AbsentRun, ...] = ()
    arms: tuple[str, ...] = ()
    plans: Mapping[tuple[str, int], tuple[int, ...]] = field(default_factory=dict)


def take_inventory(runs: Sequence[Run]) -> Inventory:
    return Inventory(arms=tuple(dict.fromkeys(run.arm for run in runs if run.arm)))
