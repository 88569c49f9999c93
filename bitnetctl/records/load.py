"""Reading runs: one CSV with its manifest, the files given to a command, the runs of a plan."""

import contextlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bitnetctl.config import RunConfig, canonical_arm, parse_config
from bitnetctl.errors import ConfigError, RecordError
from bitnetctl.records.checksum import check_csv
from bitnetctl.records.logs import Format, group_logs, mapped_columns, read_log
from bitnetctl.records.logs.converted import Origin, read_origin
from bitnetctl.records.manifest import Manifest, read_manifest
from bitnetctl.records.naming import original_stem, parse_run_name, printable_name, seed_hint, size_hint, told_apart
from bitnetctl.records.paths import MANIFEST_NAME
from bitnetctl.records.plausible import check_plausible
from bitnetctl.records.reader import NoRowsError, Records, read
from bitnetctl.records.recorded import RunsFolder, completed, tell_apart
from bitnetctl.records.run import EmptyRun, Run, UnreadRun
from bitnetctl.records.samples import read_samples
from bitnetctl.units import plural, shortened

MOST_UNREAD = 5
"""Most files that cannot be read which are named with their reasons."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LoadedSet:
    """What given CSVs hold: runs with an evaluation, runs with a manifest and none, and what cannot be read."""

    runs: list[Run]
    empty: list[EmptyRun]
    unread: list[UnreadRun]

    @property
    def notes(self) -> list[str]:
        """A note on each run without an evaluation, and one on the files that cannot be read."""
        notes = [
            f"{one.name}: {one.manifest.status}, no evaluation yet; left out" for one in self.empty if one.manifest
        ]
        names = [one.path.name for one in self.unread]
        if names:
            notes.append(f"{plural(len(names), 'file')} left out that cannot be read: {shortened(names, MOST_UNREAD)}")
        return notes


def load_run(path: Path, *, columns: Mapping[str, str] | None = None, decimal: str = ".") -> Run:
    """Read a CSV, as `reader.read` does, and the manifest beside it.

    Raises RecordError where either is malformed or damaged, and where the CSV was changed after the run ended.
    """
    records = read(path, columns=columns, decimal=decimal)
    manifest = read_manifest(path)
    if manifest is not None:
        records = check_csv(path, manifest, records) or records
    origin = read_origin(path) if manifest is None else None
    if origin is not None:
        return _of_log(path, records, origin)
    config = _recorded(manifest, path) if manifest else None
    effective = _recorded(manifest, path, effective=True) if manifest else None
    size, arm, seed, steps = _identity(path, config, records.title, manifest)
    samples = None
    try:
        samples = read_samples(path.with_suffix(""))
    except RecordError as error:
        records = replace(records, notes=(*records.notes, f"{error}; its text is left out"))
    return Run(
        path=path,
        name=manifest.run if manifest else path.stem,
        records=records,
        manifest=manifest,
        config=config,
        effective=effective,
        size=size,
        arm=arm,
        seed=seed,
        planned_steps=steps,
        samples=samples,
    )


def load_files(paths: Iterable[Path], *, columns: Mapping[str, str] | None = None, decimal: str = ".") -> LoadedSet:
    """Read CSVs, as `load_run` does, and logs of other programs; one that cannot be read stops no other.

    Logs are recognised by their content. Arms whose label is the same and whose plug-ins had other settings have these
    in their labels, such as `half-rate:factor=0.5` and `half-rate:factor=0.25`. Raises RecordError where no file can
    be read.
    """
    loaded = LoadedSet(runs=[], empty=[], unread=[])
    for log, files in group_logs(paths, columns):
        try:
            _load_into(loaded, log, files, columns, decimal)
        except RecordError as error:
            loaded.unread.append(_unread(files[0], str(error)))
    if loaded.unread and not loaded.runs and not loaded.empty:
        reasons = [one.reason for one in loaded.unread]
        if len(reasons) == 1:
            raise RecordError(reasons[0])
        # without line and values
        problems = {re.sub(r"'[^']*'|[-0-9.]+", "", one.problem) for one in loaded.unread}
        most = MOST_UNREAD if len(problems) > 1 else 1
        raise RecordError(f"none of {len(reasons)} files can be read: {shortened(reasons, most)}")
    return _told_apart(loaded)


def load_set(
    paths: Iterable[Path], *, columns: Mapping[str, str] | None = None, decimal: str = "."
) -> tuple[list[Run], list[EmptyRun]]:
    """Read files as `load_files` does; return the runs with an evaluation, and those with a manifest and none.

    Raises RecordError for any that cannot be read.
    """
    loaded = LoadedSet(runs=[], empty=[], unread=[])
    for log, files in group_logs(paths, columns):
        _load_into(loaded, log, files, columns, decimal)
    told = _told_apart(loaded)
    return told.runs, told.empty


def load_planned(configs: Iterable[RunConfig], runs_dir: Path) -> LoadedSet:
    """Return those runs of the configs in `runs_dir` that have an evaluation, the others, and what cannot be read."""
    loaded = LoadedSet(runs=[], empty=[], unread=[])
    folder = RunsFolder(runs_dir)
    for config in configs:
        paths = folder.find(config).paths
        if paths.csv.exists():
            try:
                loaded.runs.append(_load_plausible(paths.csv))
                continue
            except NoRowsError:
                pass
            except RecordError as error:
                loaded.unread.append(_unread(paths.csv, str(error), config))
                continue
        manifest = None
        # the inventory says of a damaged one that it is
        with contextlib.suppress(RecordError):
            manifest = read_manifest(paths.folder)
        loaded.empty.append(EmptyRun(path=paths.csv, name=paths.name, manifest=manifest, config=config))
    return loaded


def load_begun_runs(
    paths: Iterable[Path], *, columns: Mapping[str, str] | None = None, decimal: str = "."
) -> tuple[list[Run], list[str]]:
    """Read CSVs and return the runs that have an evaluation, and a note on each of the others.

    Raises RecordError as `load_run` does.
    """
    runs, empty = load_set(paths, columns=columns, decimal=decimal)
    return runs, LoadedSet(runs=runs, empty=empty, unread=[]).notes


def _load_into(
    loaded: LoadedSet, log: Format | None, files: Sequence[Path], columns: Mapping[str, str] | None, decimal: str
) -> None:
    """Load a CSV, or the files of a log, which may hold several runs."""
    if log is not None:
        runs = [_of_log(path, records, origin) for path, records, origin in read_log(log, files, columns)]
        for run in runs:
            check_plausible(run.records, run.source)
        loaded.runs.extend(runs)
        return
    path = files[0]
    try:
        loaded.runs.append(_load_plausible(path, columns=mapped_columns(path, columns), decimal=decimal))
    except NoRowsError:
        manifest = read_manifest(path)
        if manifest is None:
            raise
        config = _recorded(manifest, path)
        loaded.empty.append(EmptyRun(path=path, name=manifest.run, manifest=manifest, config=config))


def _load_plausible(path: Path, *, columns: Mapping[str, str] | None = None, decimal: str = ".") -> Run:
    """Load a run that is to be judged; raises RecordError, too, for values that its columns cannot have."""
    run = load_run(path, columns=columns, decimal=decimal)
    check_plausible(run.records, str(path))
    return run


def _of_log(path: Path, records: Records, origin: Origin) -> Run:
    """Return the run of a log of another program."""
    return Run(
        path=path,
        name=printable_name(origin.run),
        records=replace(records, notes=origin.notes, torn=origin.torn, origin=origin.origin),
        manifest=None,
        config=None,
        effective=None,
        size=origin.size,
        arm=origin.arm,
        seed=origin.seed,
        planned_steps=origin.planned_steps,
    )


def _told_apart(loaded: LoadedSet) -> LoadedSet:
    """Tell arms of one label by their settings, and runs of logs of one name by their files."""
    every = [one.config for of_kind in (loaded.runs, loaded.empty, loaded.unread) for one in of_kind]
    told = iter(tell_apart(every))
    runs = [_with_arm_of(run, next(told)) for run in loaded.runs]
    empty = [replace(one, config=next(told) or one.config) for one in loaded.empty]
    unread = []
    for one in loaded.unread:
        config = next(told)
        unread.append(one if config is None else replace(one, config=config, arm=config.arm))
    names = told_apart([(run.name, run.path, run.records.origin is not None) for run in runs])
    runs = [run if run.name == name else replace(run, name=name) for run, name in zip(runs, names, strict=True)]
    return LoadedSet(runs=runs, empty=empty, unread=unread)


def _with_arm_of(run: Run, config: RunConfig | None) -> Run:
    """Return the run with the arm of a config that shows more settings than its own."""
    if config is None or config is run.config:
        return run
    effective = None
    if run.effective is not None:
        effective = run.effective.model_copy(update={"interventions": config.interventions})
    return replace(run, config=config, effective=effective, arm=config.arm)


def _unread(path: Path, reason: str, config: RunConfig | None = None) -> UnreadRun:
    manifest = None
    with contextlib.suppress(RecordError):
        manifest = read_manifest(path) if config is None else None
        config = config if manifest is None else _recorded(manifest, path)
    size, arm, seed, steps = _identity(path, config, None, manifest)
    located = re.fullmatch(r":([0-9]+): (.*)", reason.removeprefix(str(path)))
    return UnreadRun(
        path=path,
        reason=reason,
        problem=f"line {located[1]}: {located[2]}" if located else reason.removeprefix(f"{path}: "),
        config=config,
        size=size,
        arm=arm,
        seed=seed,
        planned_steps=steps,
    )


def _identity(
    path: Path, config: RunConfig | None, title: str | None, manifest: Manifest | None
) -> tuple[int | None, str | None, int | None, int | None]:
    """Return size, arm, seed and planned steps by the manifest, else by the name; size and seed by a title, too."""
    if config is not None:
        return config.model.hidden_size, config.arm, config.seed, config.steps
    if manifest is not None and manifest.external is not None:
        external = manifest.external
        arm = None if external.arm is None else canonical_arm(external.arm)
        return external.size, arm, external.seed, external.steps
    named = parse_run_name(original_stem(path.stem))
    if named is not None:
        return named
    return size_hint(path.stem, title), None, seed_hint(path.stem, title), None


def _recorded(manifest: Manifest, path: Path, *, effective: bool = False) -> RunConfig | None:
    """Return the requested config of a manifest, or that after interventions, with every setting that it tells.

    Returns None for a run that another program trained.
    """
    tree = manifest.effective_config if effective and manifest.effective_config else manifest.config
    if tree is None:
        return None
    return completed(_config(tree, path), [plugin.model_dump() for plugin in manifest.plugins])


def _config(tree: dict[str, Any], path: Path) -> RunConfig:
    try:
        return parse_config(tree, source="its config")
    except ConfigError as error:
        raise RecordError(f"{path.with_suffix('') / MANIFEST_NAME}: damaged manifest: {error}") from error
