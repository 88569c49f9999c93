"""The runs that are given to a command as CSVs, folders, patterns and bundles."""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bitnetctl.cli.options import print_message
from bitnetctl.errors import ConfigError, RecordError, one_line
from bitnetctl.files import temporary_folder
from bitnetctl.records.bundle import read_bundle
from bitnetctl.records.find import find_files
from bitnetctl.records.load import MOST_UNREAD, LoadedSet, load_files
from bitnetctl.records.run import Run, UnreadRun
from bitnetctl.units import plural


@dataclass(frozen=True, kw_only=True)
class Given:
    """What was given: the files, bundles included, and what they hold."""

    files: list[Path]
    loaded: LoadedSet


@contextlib.contextmanager
def given_runs(
    paths: Sequence[str], *, columns: Mapping[str, str] | None = None, decimal: str = "."
) -> Iterator[Given]:
    """Yield the given runs, read as `load_files` does; what was unpacked of a bundle is deleted afterwards.

    Raises ConfigError for a path without CSVs and RecordError where no file can be read.
    """
    if decimal not in (".", ","):
        raise ConfigError(f"--decimal {decimal!r}: take a point or a comma")
    bundles = [path for path in paths if path.lower().endswith(".zip")]
    found = find_files([path for path in paths if path not in bundles])
    for hidden in found.skipped:
        print_message(f"note: {hidden}: left out, a hidden file that another program put there")
    with temporary_folder() if bundles else contextlib.nullcontext(Path()) as folder:
        csvs = list(found.csvs)
        names = {}
        for index, path in enumerate(bundles):
            place = folder / str(index)
            csvs += read_bundle(Path(path), place)
            names[str(place)] = path

        def named(text: str) -> str:
            """Name the bundle instead of where it was unpacked."""
            for place, bundle in names.items():
                text = text.replace(place, bundle)
            return text

        try:
            loaded = load_files(csvs, columns=columns, decimal=decimal)
        except RecordError as error:
            raise RecordError(named(str(error))) from error
        unread = [replace(one, reason=named(one.reason)) for one in loaded.unread]
        runs = [replace(run, bundle=_bundle_of(run, names)) for run in loaded.runs] if names else loaded.runs
        yield Given(files=[*csvs, *map(Path, bundles)], loaded=replace(loaded, runs=runs, unread=unread))


def _bundle_of(run: Run, names: Mapping[str, str]) -> str | None:
    """Return the bundle that a run was unpacked from; `names` has the bundle of each folder."""
    return next((bundle for folder, bundle in names.items() if run.path.is_relative_to(folder)), None)


def refuse_overwriting(outputs: Sequence[Path], inputs: Sequence[Path]) -> None:
    """Raise ConfigError where a file to write is one that was given, or is to be written twice."""
    known = {os.path.realpath(path) for path in inputs}
    written: set[str] = set()
    for path in outputs:
        file = os.path.realpath(path)
        if file in known:
            raise ConfigError(f"{path}: is one of the files given; write to another")
        if file in written:
            raise ConfigError(f"{path}: is to be written twice; give each output a file of its own")
        # a device takes more than one
        if not path.exists() or path.is_file():
            written.add(file)


def print_unread(unread: Sequence[UnreadRun]) -> None:
    """Name the files that cannot be read, one line each, on stderr."""
    for one in unread[:MOST_UNREAD]:
        print_message(f"error: {one_line(one.reason, None)}")
    if len(unread) > MOST_UNREAD:
        print_message(f"error: and {plural(len(unread) - MOST_UNREAD, 'more file')} cannot be read")
