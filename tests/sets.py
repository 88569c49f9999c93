"""Sets of runs that are judged, and what their inventory says of the others."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from synthetic import quick, simple_run

from bitnetctl.records import load_set
from bitnetctl.records.inventory import Inventory, take_inventory

Entry = tuple[int | None, str, str]


def plan(seeds: int | Sequence[int], *arms: str) -> dict[str, Any]:
    """Return the manifest's field of a command with these seeds, 0 to n - 1 for a number n."""
    return {"seeds": list(range(seeds) if isinstance(seeds, int) else seeds), "arms": list(arms or ("baseline",))}


def healthy(folder: Path, seeds: Sequence[int], arm: str = "", *, size: int = 64, **fields: Any) -> list[Path]:
    """Write runs with rows, a little different for every seed."""
    return [simple_run(folder, quick(arm, seed=seed, size=size), loss=5 + seed / 100, **fields) for seed in seeds]


def inventory(paths: Sequence[Path]) -> Inventory:
    return take_inventory(*load_set(paths))


def entries(paths: Sequence[Path]) -> list[Entry]:
    """Return seed, state and reason of the absent runs."""
    return [(one.seed, one.state, one.reason) for one in inventory(paths).absent]
