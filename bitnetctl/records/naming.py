"""What the name of a run or of its file tells of it: size, arm, seed, planned steps."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from bitnetctl.config import join_arm, split_arm

_RUN_NAME = re.compile(r"h(?P<size>\d+)-(?P<steps>\d+)-(?P<arm>.+)-s(?P<seed>\d+)-[0-9a-f]{6}")
_LONGEST_NAME = 255
_SIZE_HINT = re.compile(
    r"(?:hidden|h|size|dim)[ _=-]*(\d{2,5})(?!\d)|(?<!\d)(\d{2,5})[ _-]*(?:hidden|dim)", re.IGNORECASE
)
# in the names of other programs' runs "h100" is a GPU
_PLAIN_SIZE_HINT = re.compile(r"(?:hidden(?:[_ -]?size)?|d[_-]?model|n[_-]?embd)[ _=-]*(\d{2,5})(?!\d)", re.IGNORECASE)
# not within a word: "reseed1", "runs2"
_SEED_HINT = re.compile(r"(?<![^\W\d_])seed[ _=-]*(\d{1,18})(?!\d)", re.IGNORECASE)
# a longer number may be one of steps
_SHORT_SEED_HINT = re.compile(r"(?<![^\W_])s(\d{1,3})(?![^\W_])")
_COPY = re.compile(
    r"(?:copy of )?(?P<stem>.+?)"
    r"(?: ?\([0-9]{1,3}\)| \((?:copy(?: [0-9]+)?|another copy|[0-9]+[a-z]{2} copy)\)"
    r"| - copy(?: \([0-9]{1,3}\))?| copy(?: [0-9]{1,3})?| [0-9]{1,2}|~[0-9]+)?",
    re.IGNORECASE,
)


class NamedRun(NamedTuple):
    """What the name of a run tells of it; `arm` is without settings."""

    size: int
    arm: str
    seed: int
    steps: int


def parse_run_name(name: str) -> NamedRun | None:
    """Return what the name of a run tells; None for any other name."""
    # int() refuses thousands of digits
    named = _RUN_NAME.fullmatch(name) if len(name) <= _LONGEST_NAME else None
    if named is None:
        return None
    return NamedRun(int(named["size"]), named["arm"], int(named["seed"]), int(named["steps"]))


def printable_name(stem: str) -> str:
    """Return a file's name as text that can be encoded; a name that is not UTF-8 holds surrogates."""
    return stem.encode("utf-8", "backslashreplace").decode()


def original_stem(stem: str) -> str:
    """Return a file's name without what a file manager, a browser or a bundle adds to a second one, such as ` (1)`."""
    match = _COPY.fullmatch(stem)
    return match["stem"] if match is not None else stem


def names_only(arm: str) -> str:
    """Return an arm without settings, as the names of runs have it, which end after 120 characters."""
    return join_arm(part.partition(":")[0] for part in split_arm(arm))[:120]


def size_hint(name: str, title: str | None, *, of_log: bool = False) -> int | None:
    """Return the size that the name or the title of a CSV without a manifest tells, or the name of a log."""
    for text in (name, title or ""):
        match = (_PLAIN_SIZE_HINT if of_log else _SIZE_HINT).search(text)
        if match:
            return int(next(filter(None, match.groups())))
    return None


def seed_hint(name: str, title: str | None) -> int | None:
    """Return the one seed that the name or the title of a foreign CSV tells; None where it is not clear."""
    for pattern, text in ((_SEED_HINT, name), (_SHORT_SEED_HINT, name), (_SEED_HINT, title or "")):
        found = {int(match[1]) for match in pattern.finditer(text)}
        if found:
            return found.pop() if len(found) == 1 else None
    return None


def told_apart(runs: Sequence[tuple[str, Path, bool]]) -> list[str]:
    """Return the names of runs, given as name, file and whether that is a log; equal names of logs get their files."""
    names = Counter(name for name, _, _ in runs)
    files = Counter(file for _, file, _ in runs)

    def name(run: tuple[str, Path, bool]) -> str:
        own, file, is_log = run
        if not is_log or names[own] == 1:
            return own
        text = printable_name(str(file))
        return text if files[file] == 1 else f"{text}: {own}"

    return [name(run) for run in runs]
