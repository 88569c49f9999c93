"""Partners of runs: the run of another arm that a run is compared with, seed by seed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bitnetctl.config import split_arm
from bitnetctl.records import Run
from bitnetctl.records.provenance import provenance_differences


@dataclass(frozen=True, kw_only=True)
class Partner:
    """A run of the same size, seed and steps; `unequal` is what forbids the comparison, None where nothing does."""

    run: Run
    unequal: str | None
    notes: tuple[str, ...]


def find_partner(
    run: Run, candidates: Sequence[Run], is_partner: Callable[[str], bool], *, strict: bool
) -> Partner | None:
    """Return the partner of a run: the one whose arm `is_partner` accepts, None without one.

    Among several, one of equal provenance is preferred. With `strict` engine, precision, versions and device must be
    equal, too.
    """
    if run.arm is None or run.size is None or run.seed is None:
        return None
    found: Partner | None = None
    for other in candidates:
        same = (other.size, other.seed, other.planned_steps) == (run.size, run.seed, run.planned_steps)
        if not same or other.arm is None or not is_partner(other.arm):
            continue
        differences = provenance_differences([run, other], same_arm=False)
        refused = differences.breaking + (differences.minor if strict else ())
        partner = Partner(run=other, unequal="; ".join(refused) or None, notes=differences.minor)
        if partner.unequal is None:
            return partner
        found = found or partner
    return found


def is_twin_arm(arm: str, of: str, intervention: str) -> bool:
    """Whether an arm is another one with `intervention`, whatever its settings, and nothing else added."""
    ours, theirs = split_arm(of), split_arm(arm)
    rest = [part for part in theirs if part.partition(":")[0] != intervention]
    return len(rest) < len(theirs) and sorted(rest) == sorted(ours)


def has_intervention(arm: str, intervention: str) -> bool:
    """Whether an arm contains an intervention."""
    return any(part.partition(":")[0] == intervention for part in split_arm(arm))
