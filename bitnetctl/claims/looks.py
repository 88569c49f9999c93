"""How often a claim was looked at: every judgement of it in a folder of runs, kept beside them."""

import contextlib
import hashlib
import re
from collections.abc import Container, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from filelock import Timeout
from pydantic import BaseModel, ConfigDict

from bitnetctl import __version__
from bitnetctl.errors import StorageError
from bitnetctl.files import make_folder, write_atomic
from bitnetctl.locks import Lock
from bitnetctl.units import plural

LOOKS_FOLDER = "claims"
"""Folder of the looks in a folder of runs."""
_LOCK_SECONDS = 5.0
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._+=-]+")


class _Model(BaseModel):
    # a file of a later version may have more fields
    model_config = ConfigDict(frozen=True, extra="ignore")


class Look(_Model):
    """One judgement of a claim.

    `claim` is the hash of the claim, `arm` the judged arm, `design` the hash of the planned runs, seeds apart.
    `seeds_present` are those of the planned seeds whose runs have all ended.
    """

    time: str
    version: str
    claim: str
    arm: str = ""
    design: str
    seeds_planned: tuple[int, ...]
    seeds_present: tuple[int, ...]
    outcome: str

    @classmethod
    def now(
        cls,
        *,
        claim: str,
        arm: str,
        design: str,
        seeds_planned: Sequence[int],
        seeds_present: Sequence[int],
        outcome: str,
    ) -> Self:
        """Return a look at this time, by this version."""
        return cls(
            time=datetime.now(UTC).isoformat(timespec="seconds"),
            version=__version__,
            claim=claim,
            arm=arm,
            design=design,
            seeds_planned=tuple(sorted(seeds_planned)),
            seeds_present=tuple(sorted(seeds_present)),
            outcome=outcome,
        )


class Looks(_Model):
    """All looks at one claim in a folder of runs, the oldest first."""

    looks: tuple[Look, ...] = ()

    def at(self, design: str) -> tuple[Look, ...]:
        """Return the looks at one design."""
        return tuple(look for look in self.looks if look.design == design)

    def without_arms(self, arms: Container[str]) -> Self:
        """Return the looks but for those at arms with these labels.

        One at no arm, as early files have it, or at a label that no arm has any more may have been at any of them.
        """
        return self.model_copy(update={"looks": tuple(look for look in self.looks if look.arm not in arms)})

    def ends_with(self, look: Look) -> bool:
        """Whether the last look of a claim at a design is the same but for its time and version."""
        alike = [one for one in self.at(look.design) if (one.claim, one.arm) == (look.claim, look.arm)]
        return bool(alike) and alike[-1].model_copy(update={"time": look.time, "version": look.version}) == look

    def early(self, claim: str, design: str) -> int:
        """Count the looks at a design before all seeds planned then were there; equal ones in a row are one."""
        states = [
            (look.seeds_planned, look.seeds_present)
            for look in self.at(design)
            if look.claim == claim and set(look.seeds_present) < set(look.seeds_planned)
        ]
        return sum(state != before for state, before in zip(states, [None, *states], strict=False))

    def otherwise(self, claim: str, design: str) -> int:
        """Count the versions of the claim, by plan, arm and criteria, by which a design was judged before."""
        return len({look.claim for look in self.at(design)} - {claim})

    def planned(self, design: str, seeds: Sequence[int]) -> tuple[int, ...]:
        """Return the numbers of seeds planned over time, those of now included, after each plan that adds a seed."""
        planned: set[int] = set()
        numbers = []
        for one in (*(look.seeds_planned for look in self.at(design)), seeds):
            if not set(one) <= planned:
                planned |= set(one)
                numbers.append(len(planned))
        return tuple(numbers)


def looks_file(runs_dir: Path, claim: str) -> Path:
    """Return where the looks at a claim, by its name, are kept."""
    name = _NOT_IN_NAMES.sub("-", claim)[:100] or "claim"
    # claims whose names differ in other characters only have files of their own
    suffix = "" if name == claim else f"-{hashlib.sha256(claim.encode()).hexdigest()[:8]}"
    return runs_dir / LOOKS_FOLDER / f"{name}{suffix}.json"


def read_looks(path: Path) -> Looks:
    """Return the looks in a file; none where it is missing or damaged."""
    try:
        return _read(path)
    except (OSError, ValueError):
        return Looks()


def count_elsewhere(path: Path, *, claim: str, arm: str, design: str) -> int:
    """Count the other claims, kept in other files of the folder, by which an arm was judged on the same runs."""
    others = (one for one in path.parent.glob("*.json") if one != path)
    looks = (look for one in others for look in read_looks(one).at(design))
    return len({look.claim for look in looks if look.arm == arm} - {claim})


def _read(path: Path) -> Looks:
    """Read a file; raises OSError, or ValueError where it is damaged."""
    return Looks.model_validate_json(path.read_bytes())


def add_look(path: Path, look: Look) -> None:
    """Append a look to a file; raises StorageError where it is damaged or cannot be written.

    A judgement of the same runs with the same outcome as the last one of the claim, such as that of a published folder,
    is no further look, and nothing is written.
    """
    if read_looks(path).ends_with(look):
        return
    lock = Lock(path.with_name(f".{path.name}.lock"))
    try:
        make_folder(path.parent)
        lock.acquire(_LOCK_SECONDS)
        # what others add meanwhile is kept
        before = _read(path) if path.exists() else Looks()
        write_atomic(path, Looks(looks=(*before.looks, look)).model_dump_json(indent=1).encode())
    except Timeout as error:
        raise StorageError(f"{path}: cannot write: another process holds its lock", None) from error
    except ValueError as error:
        raise StorageError(f"{path}: is damaged; remove it to have looks counted again", None) from error
    except OSError as error:
        raise StorageError(f"{path}: cannot write: {error.strerror or error}", error.errno) from error
    finally:
        with contextlib.suppress(OSError):
            lock.release()


def early_text(count: int, seeds: int) -> str:
    """Say what looks before all seeds were there do to the error rate; empty without any."""
    if not count:
        return ""
    return (
        f"looked at {plural(count, 'time')} before its {plural(seeds, 'seed')} were there: support needs all of them, "
        "and a refutation then would have stood, so the error rate is the same"
    )


def otherwise_text(count: int) -> str:
    """Say that other versions of a claim were judged on the same runs; empty without any."""
    if not count:
        return ""
    return f"judged before by {plural(count, 'other version')} of its plan or criteria: no error rate is promised"


def elsewhere_text(count: int) -> str:
    """Say that other claims about the arm were judged on the same runs; empty without any."""
    if not count:
        return ""
    return (
        f"{plural(count, 'other claim')} about this arm judged on the same runs: each has an error rate of its own, so "
        "report all of them"
    )
