"""Where the files of a run are."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from bitnetctl.errors import ConfigError, one_line
from bitnetctl.files import safe_name

_FILE = "run.json"


@dataclass(frozen=True)
class RunPaths:
    """Where the files of one run are.

    Raises ConfigError for a name that is no plain file name and for links that lead out of `runs_dir`.
    """

    runs_dir: Path
    name: str

    def __post_init__(self) -> None:
        safe_name(self.name)
        if self.name.lower().endswith(".csv"):
            raise ConfigError(f"run name {self.name!r} ends in .csv, which would mix up folders and files")
        home = _resolve(self.runs_dir)
        for path in self._all():
            if not _resolve(path).is_relative_to(home):
                raise ConfigError(f"{path}: leads out of {self.runs_dir} through a link")

    @classmethod
    def from_csv(cls, path: Path | str) -> Self:
        """Return the paths of the run that `runs/<name>.csv` belongs to; raises ConfigError."""
        path = Path(path)
        if path.suffix != ".csv":
            raise ConfigError(f"{path}: not a .csv file")
        return cls(path.parent, path.stem)

    @property
    def csv(self) -> Path:
        """The figures: `runs/<name>.csv`."""
        return self.runs_dir / f"{self.name}.csv"

    @property
    def folder(self) -> Path:
        """Everything else: `runs/<name>`."""
        return self.runs_dir / self.name

    @property
    def manifest(self) -> Path:
        """`runs/<name>/run.json`."""
        return self.folder / _FILE

    @property
    def checkpoints(self) -> Path:
        """The folder `runs/<name>/checkpoints`."""
        return self.folder / "checkpoints"

    @property
    def lock(self) -> Path:
        """`runs/<name>/run.lock`, held by the process that trains the run."""
        return self.folder / "run.lock"

    def _all(self) -> Iterator[Path]:
        yield from (self.csv, self.folder, self.manifest, self.checkpoints, self.lock)


def _resolve(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError) as error:
        raise ConfigError(f"{path}: cannot be resolved: {one_line(error)}") from error
