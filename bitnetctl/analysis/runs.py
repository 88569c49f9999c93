"""One run as its CSV, and the manifest beside it where there is one, tell it."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitnetctl.analysis.collapse import collapse
from bitnetctl.config import RunConfig, parse_config
from bitnetctl.errors import ConfigError, RecordError
from bitnetctl.records import NAMES, Manifest, Records, Row, read, read_manifest

if TYPE_CHECKING:
    import numpy.typing as npt

_RUN_NAME = re.compile(r"h(?P<size>\d+)-(?P<steps>\d+)-(?P<arm>.+)-s(?P<seed>\d+)-[0-9a-f]{6}")
_SIZE_HINT = re.compile(
    r"(?:hidden|h|size|dim)[ _=-]*(\d{2,5})(?!\d)|(?<!\d)(\d{2,5})[ _-]*(?:hidden|dim)", re.IGNORECASE
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """A run to be judged; None is unknown throughout.

    `config` is as asked for, `effective` after interventions; both come from the manifest. `size`, `arm`, `seed` and
    `planned_steps` fall back on the run's name, `size` on the title line too.
    """

    path: Path
    name: str
    records: Records
    manifest: Manifest | None
    config: RunConfig | None
    effective: RunConfig | None
    size: int | None
    arm: str | None
    seed: int | None
    planned_steps: int | None

    @cached_property
    def _columns(self) -> dict[str, list[float | None]]:
        """Every column as a list; reading cell by cell from a frame would take a second for a hundred runs."""
        frame, count = self.records.frame, len(self.records.frame)
        columns: dict[str, list[float | None]] = {}
        for name in NAMES:
            if name not in frame:
                columns[name] = [None] * count
                continue
            unknown = self.records.unknown[name]
            columns[name] = [
                None if missing else float(value)
                for value, missing in zip(frame[name].tolist(), unknown.tolist(), strict=True)
            ]
        return columns

    @cached_property
    def steps(self) -> "npt.NDArray[Any]":
        """Steps of the evaluations, ascending, int64."""
        return self.records.frame["Step"].to_numpy()

    @property
    def final_step(self) -> int:
        """Step of the last row."""
        return int(self.steps[-1])

    @property
    def boundary_step(self) -> int | None:
        """Last step of stage 1: from the config, else where the WD column changes, else half of the plan."""
        if self.effective is not None:
            return self.effective.boundary_step
        decay = self.column("WD")
        for before, (step, value) in zip(self.steps, list(zip(self.steps, decay, strict=True))[1:], strict=False):
            if value is not None and decay[0] is not None and value != decay[0]:
                return self._round_boundary(int(before), int(step))
        return self.planned_steps // 2 if self.planned_steps else None

    @property
    def diverged_at(self) -> int | None:
        """First step known to be not finite, in the figures or by the manifest."""
        if self.manifest is not None and self.manifest.diverged_at is not None:
            return self.manifest.diverged_at
        found = self.records.diverged_at()
        if found is not None:
            return found
        for step, value in zip(self.steps, self.column("UniquePredictions"), strict=True):
            if value is not None and not math.isfinite(value):
                return int(step)
        return None

    @property
    def is_complete(self) -> bool | None:
        """Whether it reached its planned steps; None where the plan is unknown."""
        return None if self.planned_steps is None else self.final_step >= self.planned_steps

    @property
    def ceiling(self) -> tuple[float, bool] | None:
        """Largest UniquePredictions that can be shown, and whether it is inferred.

        It is ProbePositions or, where that is unknown, the value of the first row: an untrained model predicts almost
        one token for each prompt.
        """
        positions = [value for value in self.column("ProbePositions") if value is not None]
        if positions:
            return min(positions), False
        first = self.column("UniquePredictions")[0]
        return (first, True) if first is not None and math.isfinite(first) and self.steps[0] == 1 else None

    def column(self, name: str) -> list[float | None]:
        """Return a column with a value for every row: None is unknown, NaN and infinity are facts."""
        return self._columns[name]

    def row(self, index: int) -> Row:
        """Return one row by column name."""
        return {name: self._columns[name][index] for name in NAMES}

    def at(self, column: str, step: int) -> float | None:
        """Return the figure at exactly `step`."""
        places = (self.steps == step).nonzero()[0]
        return self._columns[column][int(places[0])] if len(places) else None

    def collapse_reasons(self) -> list[str | None]:
        """Return for every row why it counts as collapsed, None where it does not or, at step 1, is untrained."""
        return [None if step == 1 else collapse(self.row(index)) for index, step in enumerate(self.steps)]

    @staticmethod
    def _round_boundary(before: int, after: int) -> int:
        """Return the roundest step in [before, after): rows are sparse, boundaries are round."""
        for exponent in range(9, -1, -1):
            unit: int = 10**exponent
            candidate = -(-before // unit) * unit
            if before <= candidate < after:
                return candidate
        return before


def load_run(path: Path) -> Run:
    """Read a CSV and the manifest beside it; raises RecordError naming file and line."""
    records = read(path)
    manifest = read_manifest(path)
    config = _config(manifest.config, path) if manifest else None
    effective = _config(manifest.effective_config or manifest.config, path) if manifest else None
    named = _RUN_NAME.fullmatch(path.stem)
    return Run(
        path=path,
        name=manifest.run if manifest else path.stem,
        records=records,
        manifest=manifest,
        config=config,
        effective=effective,
        size=config.model.hidden_size if config else int(named["size"]) if named else _size_hint(path, records.title),
        arm=config.arm if config else named["arm"] if named else None,
        seed=config.seed if config else int(named["seed"]) if named else None,
        planned_steps=config.steps if config else int(named["steps"]) if named else None,
    )


def load_runs(paths: Iterable[Path]) -> list[Run]:
    """Read many CSVs; raises RecordError at the first that cannot be trusted."""
    return [load_run(path) for path in paths]


def load_begun_runs(paths: Iterable[Path]) -> tuple[list[Run], list[str]]:
    """Read many CSVs; a run whose training has written no evaluation yet is left out with a note.

    Raises RecordError at the first that cannot be trusted.
    """
    runs, notes = [], []
    for path in paths:
        manifest = read_manifest(path) if _has_only_a_header(path) else None
        if manifest is not None:
            notes.append(f"{manifest.run}: {manifest.status}, no evaluation yet; left out")
        else:
            runs.append(load_run(path))
    return runs, notes


def _has_only_a_header(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            return stream.readline().startswith(b"Step,") and not stream.read(1)
    except OSError:
        return False


def _config(tree: dict[str, Any], path: Path) -> RunConfig:
    try:
        return parse_config(tree, source="its config")
    except ConfigError as error:
        raise RecordError(f"{path.with_suffix('') / 'run.json'}: damaged manifest: {error}") from error


def _size_hint(path: Path, title: str | None) -> int | None:
    for text in (path.stem, title or ""):
        match = _SIZE_HINT.search(text)
        if match:
            return int(match[1] or match[2])
    return None
