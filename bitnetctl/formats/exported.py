"""What an export wrote and how it was checked."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A file or folder in a public format; `checks` has a line for everything that was compared, with its gate."""

    path: Path
    form: str
    checks: tuple[str, ...] = ()
