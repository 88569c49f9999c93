"""Which seeds belong to a claim: those planned, those of which runs have ended, those that are gone."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from bitnetctl.records import Run
from bitnetctl.records.inventory import AbsentRun, Inventory
from bitnetctl.records.load import LoadedSet

if TYPE_CHECKING:
    from bitnetctl.claims import JudgedClaim, Looks
    from bitnetctl.verdict import JudgeOptions

_Cell = tuple[str, int | None, int | None]
"""Arm, size and seed."""


def inventory_of_claim(inventory: Inventory, judged: "JudgedClaim", arms: Sequence[str]) -> Inventory:
    """Return what belongs to the runs of a claim: it is a family of its own, whatever else lies beside them.

    The numbers of seeds planned over time are also those at which the claim was looked at.
    """
    kept = set(arms)
    plans = {cell: numbers for cell, numbers in inventory.plans.items() if cell[0] in kept}
    looked = _looks_at_arm(judged, arms).planned(judged.design, judged.seeds)
    for size in judged.judged_at.sizes:
        cell = (judged.arm, size)
        plans[cell] = tuple(sorted({*plans.get(cell, ()), *looked}))
    return replace(
        inventory,
        arms=tuple(arm for arm in inventory.arms if arm in kept),
        absent=tuple(one for one in inventory.absent if one.arm in kept or one.arm is None),
        others=tuple(one for one in inventory.others if one.arm in kept),
        plans=plans,
    )


def _looks_at_arm(judged: "JudgedClaim", arms: Iterable[str]) -> "Looks":
    """Return the looks that may have been at the judged arm: what others were planned with is not planned for it."""
    return judged.looks.without_arms(set(arms) - {judged.arm})


def with_earlier(inventory: Inventory, judged: "JudgedClaim", loaded: LoadedSet, arms: Iterable[str]) -> Inventory:
    """Return the inventory with the seeds that were there at an earlier look and of which nothing is left."""
    looks = _looks_at_arm(judged, arms).at(judged.design)
    seen = {seed for look in looks for seed in look.seeds_present}
    reason = f"was there at an earlier look, kept in {judged.file}"
    gone = [
        _missing(judged.arm, size, seed, reason)
        for size in judged.judged_at.sizes
        for seed in sorted(seen.difference(judged.seeds, _seeds_of(judged.arm, size, loaded.runs, inventory)))
    ]
    return replace(inventory, absent=(*inventory.absent, *gone))


def with_lacking(
    inventory: Inventory, runs: Sequence[Run], arm: str, sizes: Iterable[int], planned: Sequence[int]
) -> Inventory:
    """Return the inventory with seeds of the claim's plan as missing where fewer are given or known than it has.

    Which seeds are given does not matter, their number does: whoever stops at six of eight could have looked.
    """
    lacking = []
    for size in sizes:
        here = _seeds_of(arm, size, runs, inventory)
        unknown = sum(run.arm == arm and run.size in (None, size) and run.seed is None for run in runs)
        others = [seed for seed in planned if seed not in here][: max(0, len(planned) - len(here) - unknown)]
        lacking += [_missing(arm, size, seed, "planned by the claim; --seeds chooses others") for seed in others]
    return replace(inventory, absent=(*inventory.absent, *lacking))


def _seeds_of(arm: str, size: int, runs: Iterable[Run], inventory: Inventory) -> set[int | None]:
    """Return the seeds of an arm at one size that are given or of which the inventory knows."""
    known: tuple[Run | AbsentRun, ...] = (*runs, *inventory.absent, *inventory.others)
    return {one.seed for one in known if (one.arm, one.size) == (arm, size)} - {None}


def _missing(arm: str, size: int, seed: int, reason: str) -> AbsentRun:
    return AbsentRun(
        run=f"seed {seed}", arm=arm, size=size, seed=seed, planned_steps=None, state="missing", reason=reason
    )


def planned_seeds(arm: str, loaded: LoadedSet, inventory: Inventory, options: "JudgeOptions") -> tuple[int, ...]:
    """Return the seeds that were asked for, else those of the judged arm that are given or known to be planned."""
    if options.seeds is not None:
        return tuple(sorted(options.seeds))
    given = [run.seed for run in loaded.runs if run.arm == arm]
    absent = [one.seed for one in inventory.absent if one.arm == arm]
    return tuple(sorted({seed for seed in (*given, *absent) if seed is not None}))


def present_seeds(
    seeds: Iterable[int], arms: Iterable[str], sizes: Sequence[int], runs: Iterable[Run], inventory: Inventory
) -> tuple[int, ...]:
    """Return the seeds of which every run that is judged or compared with has ended, at every size."""
    ended: set[_Cell] = {
        (run.arm, run.size, run.seed) for run in runs if run.arm is not None and (run.is_complete or run.has_failed)
    }
    ended |= {(one.arm, one.size, one.seed) for one in inventory.absent if one.arm and one.state == "failed"}
    cells = [(arm, size) for arm in arms for size in sizes]
    return tuple(seed for seed in seeds if all((*cell, seed) in ended for cell in cells))
