"""Paths of the files of a run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from bitnetctl.errors import ConfigError, one_line
from bitnetctl.files import expand_user, safe_name

MANIFEST_NAME = "run.json"
LOCK_NAME = "run.lock"
TOKENIZER_NAME = "tokenizer.json"
SAMPLES_NAME = "samples.json"
CHECKPOINTS_NAME = "checkpoints"
STEP_PREFIX = "step-"
WEIGHTS_NAME = "model.safetensors"


@dataclass(frozen=True)
class RunPaths:
    """Paths of the files of one run.

    Raises ConfigError where `name` is not a plain file name or a symlink leads out of `runs_dir`.
    """

    runs_dir: Path
    name: str

    def __post_init__(self) -> None:
        safe_name(self.name)
        if self.name.lower().endswith(".csv"):
            raise ConfigError(f"run name {self.name!r} ends in .csv: its folder would have the name of a CSV")
        runs_dir = _resolve(self.runs_dir)
        files = (self.manifest, self.checkpoints, self.lock, self.tokenizer, self.samples)
        for path in (self.csv, self.folder, *files):
            if not _resolve(path).is_relative_to(runs_dir):
                raise ConfigError(f"{path}: leads out of {self.runs_dir} through a link")

    @classmethod
    def of(cls, text: str, runs_dir: Path) -> Self:
        """Return the paths of a run given by its name in `runs_dir`, or by its folder or CSV; raises ConfigError."""
        path = Path(expand_user(text))
        if path.suffix.lower() == ".csv":
            path = path.with_suffix("")
        # a folder of that name here may be anything, such as the model that was imported under its name
        is_folder = (path / MANIFEST_NAME).is_file() and not (runs_dir / path / MANIFEST_NAME).is_file()
        return cls(runs_dir if path.parent == Path() and not is_folder else path.parent, path.name)

    @property
    def csv(self) -> Path:
        """The rows of the run: `runs/<name>.csv`."""
        return self.runs_dir / f"{self.name}.csv"

    @property
    def folder(self) -> Path:
        """The folder of its other files: `runs/<name>`."""
        return self.runs_dir / self.name

    @property
    def manifest(self) -> Path:
        """`runs/<name>/run.json`."""
        return self.folder / MANIFEST_NAME

    @property
    def checkpoints(self) -> Path:
        """The folder `runs/<name>/checkpoints`."""
        return self.folder / CHECKPOINTS_NAME

    @property
    def tokenizer(self) -> Path:
        """`runs/<name>/tokenizer.json`, written where the run keeps its weights."""
        return self.folder / TOKENIZER_NAME

    @property
    def samples(self) -> Path:
        """`runs/<name>/samples.json`, text that the run wrote."""
        return self.folder / SAMPLES_NAME

    @property
    def lock(self) -> Path:
        """`runs/<name>/run.lock`, held by the process that trains the run."""
        return self.folder / LOCK_NAME


def _resolve(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError) as error:
        raise ConfigError(f"{path}: cannot be resolved: {one_line(error)}") from error
