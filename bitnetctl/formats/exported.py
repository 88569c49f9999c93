"""What an export wrote and how it was checked."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A file or folder in a public format; `checks` has a line for everything that was compared, with its gate.

    `is_checked` says whether a program that is to read it did so; `read_back` is a line about the file alone.
    """

    path: Path
    form: str
    is_checked: bool
    read_back: str | None = None
    checks: tuple[str, ...] = ()
