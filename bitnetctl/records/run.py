"""One run: its CSV and, where there is one, the manifest beside it."""

import contextlib
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitnetctl.config import RunConfig, parse_config, split_arm
from bitnetctl.errors import ConfigError, RecordError
from bitnetctl.records.logs import read_logs, recognise
from bitnetctl.records.manifest import Manifest, check_csv, read_manifest
from bitnetctl.records.paths import MANIFEST_NAME, RunPaths
from bitnetctl.records.reader import NoRowsError, Records, read
from bitnetctl.records.schema import NAMES, Row

if TYPE_CHECKING:
    import pandas as pd

    from bitnetctl.records.schema import Floats, Integers

RUN_NAME = re.compile(r"h(?P<size>\d+)-(?P<steps>\d+)-(?P<arm>.+)-s(?P<seed>\d+)-[0-9a-f]{6}")
_SIZE_HINT = re.compile(
    r"(?:hidden|h|size|dim)[ _=-]*(\d{2,5})(?!\d)|(?<!\d)(\d{2,5})[ _-]*(?:hidden|dim)", re.IGNORECASE
)
# of the log of another program: "h100" is a GPU
_LOG_SIZE_HINT = re.compile(r"(?:hidden(?:[_ -]?size)?|d[_-]?model|n[_-]?embd)[ _=-]*(\d{2,5})(?!\d)", re.IGNORECASE)
# not within a word: "reseed1", "runs2"
_SEED_HINT = re.compile(r"(?<![^\W\d_])seed[ _=-]*(\d{1,18})(?!\d)", re.IGNORECASE)
# a longer number may be one of steps
_SHORT_SEED_HINT = re.compile(r"(?<![^\W_])s(\d{1,3})(?![^\W_])")


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """A run to be analysed or judged; None is unknown throughout.

    `config` is the requested config, `effective` that after interventions; both come from the manifest. Without a
    manifest, `size`, `arm`, `seed` and `planned_steps` come from the run's name, `size` and `seed` from the title too.
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
        """Results of `column`; lists of all columns at once would take too much memory for a long run."""
        return {}

    @cached_property
    def _values(self) -> "dict[str, Floats]":
        """Results of `values`; reading them from the frame each time would take seconds for a thousand runs."""
        return {}

    @cached_property
    def steps(self) -> "Integers":
        """Steps of the evaluations, ascending."""
        return self.records.frame["Step"].to_numpy()

    @property
    def frame(self) -> "pd.DataFrame":
        """The rows as a pandas frame with the CSV's columns; `records.unknown` tells unknown cells from NaN."""
        return self.records.frame

    @property
    def final_step(self) -> int:
        """Step of the last row."""
        return int(self.steps[-1])

    @cached_property
    def boundary_interval(self) -> tuple[int, int] | None:
        """The first and the last step that can be the last of stage 1; equal where it is known.

        It is known from the config or, where WD is constant, as half of the planned steps. The WD column tells only
        that it lies between two logged steps.
        """
        if self.effective is not None:
            return self.effective.boundary_step, self.effective.boundary_step
        decay, known = self.values("WD"), ~self.records.unknown["WD"]
        changed = (known & (decay != decay[0]) & known[0]).nonzero()[0]
        if len(changed):
            before = known[: changed[0]].nonzero()[0][-1]
            return int(self.steps[before]), int(self.steps[changed[0]]) - 1
        return (self.planned_steps // 2, self.planned_steps // 2) if self.planned_steps else None

    @property
    def boundary_step(self) -> int | None:
        """Last step of stage 1; of an interval, the step with the most trailing zeros, as boundaries have as a rule."""
        return None if self.boundary_interval is None else self._roundest(*self.boundary_interval)

    @cached_property
    def diverged_at(self) -> int | None:
        """First step with a value that is not finite, by the manifest or the rows."""
        import numpy as np

        if self.manifest is not None and self.manifest.rollbacks:
            # a rollback halved the learning rate: with that of its config the run diverged
            return self.manifest.rollbacks[0].diverged_at
        if self.manifest is not None and self.manifest.diverged_at is not None:
            return self.manifest.diverged_at
        by_loss = self.records.diverged_at()
        if by_loss is not None:
            return by_loss
        diverged = ~np.isfinite(self.values("UniquePredictions")) & ~self.records.unknown["UniquePredictions"]
        return int(self.steps[diverged.argmax()]) if diverged.any() else None

    @property
    def is_complete(self) -> bool | None:
        """Whether the last row is at the planned steps; None where these are unknown."""
        return None if self.planned_steps is None else self.final_step >= self.planned_steps

    @property
    def ceiling(self) -> tuple[float, bool] | None:
        """Largest possible UniquePredictions, and whether it is inferred.

        It is ProbePositions or, where that is unknown, the value at step 1: an untrained model predicts almost as many
        tokens as there are prompts.
        """
        positions = self.values("ProbePositions")[~self.records.unknown["ProbePositions"]]
        if len(positions):
            return float(positions.min()), False
        first = self.records.value("UniquePredictions", 0)
        return (first, True) if first is not None and math.isfinite(first) and self.steps[0] == 1 else None

    def values(self, name: str) -> "Floats":
        """Return a column as an array; `records.unknown` tells unknown cells from NaN."""
        import numpy as np

        if name not in self._values:
            frame = self.records.frame
            self._values[name] = frame[name].to_numpy(np.float64) if name in frame else np.full(len(frame), np.nan)
        return self._values[name]

    def finite(self, name: str) -> "Floats":
        """Return a column as an array, with NaN where it is unknown or not finite."""
        import numpy as np

        values = self.values(name)
        return np.where(np.isfinite(values), values, np.nan)

    def column(self, name: str) -> list[float | None]:
        """Return a column as a list: None is unknown, NaN and infinity are known."""
        if name not in self._columns:
            unknown = self.records.unknown[name].tolist()
            self._columns[name] = [
                None if missing else value for value, missing in zip(self.values(name).tolist(), unknown, strict=True)
            ]
        return self._columns[name]

    def row(self, index: int) -> Row:
        """Return one row by column name."""
        return {name: self.column(name)[index] for name in NAMES}

    @staticmethod
    def _roundest(low: int, high: int) -> int:
        for exponent in range(9, -1, -1):
            unit: int = 10**exponent
            candidate = -(-low // unit) * unit
            if candidate <= high:
                return candidate
        return low


@dataclass(frozen=True, kw_only=True, eq=False)
class EmptyRun:
    """A run without an evaluation: its CSV has no rows or is missing, or it was planned and never started.

    `config` is the requested config, from the manifest or from the command that planned the run.
    """

    path: Path
    name: str
    manifest: Manifest | None
    config: RunConfig


def load_run(path: Path) -> Run:
    """Read a CSV and the manifest beside it.

    Raises RecordError where either is malformed or damaged, and where the CSV was changed after the run ended.
    """
    records = read(path)
    manifest = read_manifest(path)
    if manifest is not None:
        check_csv(path, manifest)
    config = _config(manifest.config, path) if manifest else None
    effective = _config(manifest.effective_config or manifest.config, path) if manifest else None
    named = RUN_NAME.fullmatch(path.stem)
    return Run(
        path=path,
        name=manifest.run if manifest else path.stem,
        records=records,
        manifest=manifest,
        config=config,
        effective=effective,
        size=config.model.hidden_size if config else int(named["size"]) if named else _size_hint(path, records.title),
        arm=config.arm if config else named["arm"] if named else None,
        seed=config.seed if config else int(named["seed"]) if named else _seed_hint(path.stem, records.title),
        planned_steps=config.steps if config else int(named["steps"]) if named else None,
    )


def load_logs(paths: Iterable[Path], columns: Mapping[str, str] | None = None) -> list[Run]:
    """Read logs of other programs, of which one may hold several runs; raises RecordError for one that is damaged.

    `columns` are names in the log by column of the schema. Runs of one name are told apart by the paths of their files.
    """
    known = [(path, one) for path in paths if (one := recognise(path, columns)) is not None]
    logs = read_logs(known, columns)
    names = Counter(log.name for log in logs)
    runs = []
    for log in logs:
        name = log.name
        if names[name] > 1:
            name = str(log.path) if sum(other.path == log.path for other in logs) == 1 else f"{log.path}: {name}"
        named, size = RUN_NAME.fullmatch(log.name), _LOG_SIZE_HINT.search(log.name)
        run = Run(
            path=log.path,
            name=name,
            records=log.records,
            manifest=None,
            config=None,
            effective=None,
            size=int(named["size"]) if named else int(size[1]) if size else None,
            arm=named["arm"] if named else None,
            seed=int(named["seed"]) if named else _seed_hint(log.name, None),
            planned_steps=int(named["steps"]) if named else log.planned_steps,
        )
        runs.append(run)
    return runs


def load_set(paths: Iterable[Path], columns: Mapping[str, str] | None = None) -> tuple[list[Run], list[EmptyRun]]:
    """Read CSVs and return the runs that have an evaluation, and those that have a manifest and no evaluation.

    Logs of other programs are recognised by their content; `columns` are the names in them by column of the schema.
    Raises RecordError as `load_run` and `load_logs` do.
    """
    runs: list[Run] = []
    empty: list[EmptyRun] = []
    logs: list[Path] = []
    for path in paths:
        if recognise(path, columns) is not None:
            logs.append(path)
            continue
        try:
            runs.append(load_run(path))
        except NoRowsError:
            manifest = read_manifest(path)
            if manifest is None:
                raise
            config = _config(manifest.config, path)
            empty.append(EmptyRun(path=path, name=manifest.run, manifest=manifest, config=config))
    return runs + load_logs(logs, columns), empty


def load_planned(configs: Iterable[RunConfig], runs_dir: Path) -> tuple[list[Run], list[EmptyRun]]:
    """Return those runs of the configs in `runs_dir` that have an evaluation, and the others.

    Raises RecordError as `load_run` does for a CSV that is there.
    """
    runs: list[Run] = []
    empty: list[EmptyRun] = []
    for config in configs:
        paths = RunPaths(runs_dir, config.run_name)
        if paths.csv.exists():
            with contextlib.suppress(NoRowsError):
                runs.append(load_run(paths.csv))
                continue
        manifest = None
        # the inventory says of a damaged one that it is
        with contextlib.suppress(RecordError):
            manifest = read_manifest(paths.folder)
        empty.append(EmptyRun(path=paths.csv, name=paths.name, manifest=manifest, config=config))
    return runs, empty


def load_begun_runs(paths: Iterable[Path], columns: Mapping[str, str] | None = None) -> tuple[list[Run], list[str]]:
    """Read CSVs and return the runs that have an evaluation, and a note on each of the others.

    Raises RecordError as `load_run` does.
    """
    runs, empty = load_set(paths, columns)
    return runs, [f"{one.name}: {one.manifest.status}, no evaluation yet; left out" for one in empty if one.manifest]


def names_only(arm: str) -> str:
    """Return an arm without settings, as the names of runs have it, which end after 120 characters."""
    return ("+".join(part.partition(":")[0] for part in split_arm(arm)) or "baseline")[:120]


def _config(tree: dict[str, Any], path: Path) -> RunConfig:
    try:
        return parse_config(tree, source="its config")
    except ConfigError as error:
        raise RecordError(f"{path.with_suffix('') / MANIFEST_NAME}: damaged manifest: {error}") from error


def _size_hint(path: Path, title: str | None) -> int | None:
    for text in (path.stem, title or ""):
        match = _SIZE_HINT.search(text)
        if match:
            return int(match[1] or match[2])
    return None


def _seed_hint(name: str, title: str | None) -> int | None:
    """Return the one seed that the name or the title of a foreign CSV tells; None where it is not clear."""
    for pattern, text in ((_SEED_HINT, name), (_SHORT_SEED_HINT, name), (_SEED_HINT, title or "")):
        found = {int(match[1]) for match in pattern.finditer(text)}
        if found:
            return found.pop() if len(found) == 1 else None
    return None
