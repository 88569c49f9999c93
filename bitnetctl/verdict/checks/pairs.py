"""Partners of runs: the run of another arm that a run is compared with, seed by seed."""

from collections.abc import Callable
from dataclasses import dataclass

from bitnetctl.config import split_arm
from bitnetctl.records import Run
from bitnetctl.records.provenance import provenance_differences
from bitnetctl.verdict.checks.base import CheckContext


@dataclass(frozen=True, kw_only=True)
class Partner:
    """A run of the same size, seed and steps; `unequal` is what forbids the comparison, None where nothing does."""

    run: Run
    unequal: str | None


def find_partners(run: Run, context: CheckContext, is_partner: Callable[[str], bool]) -> list[Partner]:
    """Return the partners of a run: those whose arm `is_partner` accepts, all of equal provenance if any is.

    With `context.strict` engine, precision, versions and device must be equal, too.
    """
    if run.arm is None or run.size is None or run.seed is None:
        return []
    found: list[Partner] = []
    for other in context.beside(run):
        if other.arm is None or not is_partner(other.arm):
            continue
        differences = provenance_differences([run, other], same_arm=False)
        refused = differences.breaking + (differences.minor if context.strict else ())
        found.append(Partner(run=other, unequal="; ".join(refused) or None))
    return [one for one in found if one.unequal is None] or found


def is_twin_arm(arm: str, of: str, intervention: str) -> bool:
    """Whether an arm is another one with `intervention`, whatever its settings, and nothing else added."""
    ours, theirs = split_arm(of), split_arm(arm)
    rest = [part for part in theirs if part.partition(":")[0] != intervention]
    return len(rest) < len(theirs) and sorted(rest) == sorted(ours)


def has_intervention(arm: str, intervention: str) -> bool:
    """Whether an arm contains an intervention."""
    return any(part.partition(":")[0] == intervention for part in split_arm(arm))
