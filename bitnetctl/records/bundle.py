"""A zip of a verdict and its inputs: CSVs, manifests, criteria. No torch here."""

import contextlib
import itertools
import json
import lzma
import re
import shutil
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from bitnetctl.config import parse_config
from bitnetctl.errors import ConfigError, RecordError
from bitnetctl.files import RESERVED_NAME, replacing, storage_errors
from bitnetctl.records.inventory import AbsentRun, Inventory
from bitnetctl.records.manifest import read_manifest
from bitnetctl.records.paths import LOCK_NAME, MANIFEST_NAME
from bitnetctl.records.run import Run
from bitnetctl.records.schema import HEADER

_LEFT_OUT = "left-out"
"""Folder of the CSVs that were not given, so that they are not given when the bundle is read."""

MAX_FILES = 10_000
MAX_BYTES = 2**30

# characters that some file system does not allow in a name
_FORBIDDEN = re.compile(r'[\\/:*?"<>|]')


def write_bundle(
    path: Path,
    runs: Sequence[Run],
    criteria: Iterable[tuple[str, str]],
    verdict: dict[str, Any],
    *,
    inventory: Inventory | None = None,
) -> None:
    """Write `runs/<run>.csv`, `runs/<run>/run.json`, `criteria/<name>.json` and `verdict.json`; raises StorageError.

    `criteria` are (name, JSON text) pairs. Of the absent runs of `inventory` the bundle has what is needed to count
    them again: manifests and locks, and the CSV of a run that was left out as `left-out/<run>.csv`; of the runs of
    other arms, which share the error rate, the manifests or locks. An existing file is replaced only by a complete one.
    """
    with (
        storage_errors(path),
        replacing(path) as temporary,
        zipfile.ZipFile(temporary, "x", zipfile.ZIP_DEFLATED, strict_timestamps=False) as bundle,
    ):
        taken: set[str] = set()
        for run in runs:
            stem = _unused(_portable(run.path.stem), taken)
            bundle.write(run.path, f"runs/{stem}.csv")
            manifest = run.path.with_suffix("") / MANIFEST_NAME
            if manifest.is_file():
                bundle.write(manifest, f"runs/{stem}/{MANIFEST_NAME}")
        for absent in inventory.absent if inventory is not None else ():
            if absent.path is not None:
                _write_absent(bundle, absent, absent.path, _unused(_portable(absent.path.stem), taken))
        places = {(run.size, run.seed, run.planned_steps) for run in runs}
        arms: set[str | None] = set()
        for other in inventory.others if inventory is not None else ():
            # what could be a twin of a given run, and one run of every other arm
            is_wanted = other.arm not in arms or (other.size, other.seed, other.planned_steps) in places
            arms.add(other.arm)
            if other.path is not None and is_wanted:
                stem = _unused(_portable(other.path.stem), taken)
                _write_trace(bundle, other.path.with_name(other.path.stem), stem, or_lock=True)
        for name, text in criteria:
            bundle.writestr(f"criteria/{name}.json", text)
        bundle.writestr("verdict.json", json.dumps(verdict, indent=2, allow_nan=False))


def read_bundle(path: Path, folder: Path) -> list[Path]:
    """Unpack the CSVs and manifests of a bundle below `folder` and return the CSVs; raises RecordError.

    Those of runs that were left out lie beside them and are not returned. Everything else is ignored: symlinks, other
    paths, unportable names. MAX_FILES and MAX_BYTES (unpacked) are limits.
    """
    try:
        with zipfile.ZipFile(path) as bundle:
            entries = [entry for entry in bundle.infolist() if _is_wanted(entry)]
            if len(entries) > MAX_FILES or sum(entry.file_size for entry in entries) > MAX_BYTES:
                raise RecordError(
                    f"{path}: larger than a bundle may be ({MAX_FILES:,} files, {MAX_BYTES / 2**30:.0f} GiB)"
                )
            csvs = []
            for entry in entries:
                above, *parts = PurePosixPath(entry.filename).parts
                target = folder.joinpath("runs", *parts)
                target.parent.mkdir(parents=True, exist_ok=True)
                with bundle.open(entry) as source, target.open("xb") as file:
                    shutil.copyfileobj(source, file)
                if target.suffix == ".csv" and above == "runs":
                    csvs.append(target)
    except (OSError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, RuntimeError, EOFError, ValueError) as error:
        raise RecordError(f"{path}: not a bundle that can be read: {error}") from error
    if not csvs:
        raise RecordError(f"{path}: holds no CSV under runs/")
    return csvs


def _write_absent(bundle: zipfile.ZipFile, absent: AbsentRun, csv: Path, stem: str) -> None:
    """Write what tells of a run that is not judged; files that cannot be read are left out."""
    folder = csv.with_name(csv.stem)
    _write_trace(bundle, folder, stem, or_lock=absent.state == "unfinished")
    if absent.state == "left out":
        with contextlib.suppress(OSError):
            bundle.writestr(f"{_LEFT_OUT}/{stem}.csv", csv.read_bytes())
        return
    # the CSV is given when the bundle is read, so its manifest must be one that can be read
    with contextlib.suppress(ConfigError):
        manifest = read_manifest(folder)
        if manifest is not None and parse_config(manifest.config):
            never_evaluated = absent.state in ("failed", "unfinished") and manifest.steps_done == 0
            if csv.is_file() or never_evaluated:
                bundle.writestr(f"runs/{stem}.csv", HEADER)


def _write_trace(bundle: zipfile.ZipFile, folder: Path, stem: str, *, or_lock: bool) -> None:
    """Write the manifest of a run; of one without, with `or_lock`, a lock, so that its name still tells of it."""
    try:
        bundle.writestr(f"runs/{stem}/{MANIFEST_NAME}", (folder / MANIFEST_NAME).read_bytes())
    except OSError:
        if or_lock:
            bundle.writestr(f"runs/{stem}/{LOCK_NAME}", b"")


def _unused(stem: str, taken: set[str]) -> str:
    """Return the stem, with a number appended if `taken` has it in any letter case, and add it to `taken`."""
    names = itertools.chain((stem,), (f"{stem}~{number}" for number in itertools.count(2)))
    name = next(name for name in names if name.casefold() not in taken)
    taken.add(name.casefold())
    return name


def _portable(stem: str) -> str:
    """Return the first 200 characters of the stem, replacing those that some file system refuses."""
    characters = (character if character.isprintable() else "_" for character in stem[:200])
    stem = _FORBIDDEN.sub("_", "".join(characters)).rstrip(". ") or "_"
    return f"_{stem}" if RESERVED_NAME.fullmatch(stem) else stem


def _is_portable(part: str) -> bool:
    # Windows drops dots and spaces at the end of a name
    refused = part.endswith((".", " ")) or _FORBIDDEN.search(part) or RESERVED_NAME.fullmatch(part)
    return part.isprintable() and not refused


def _is_wanted(entry: zipfile.ZipInfo) -> bool:
    parts = PurePosixPath(entry.filename).parts
    is_link = (entry.external_attr >> 16) & 0o170000 == 0o120000
    if is_link or not parts or not all(map(_is_portable, parts)):
        return False
    if parts[0] == "runs" and len(parts) == 3:
        return parts[2] in (MANIFEST_NAME, LOCK_NAME)
    return parts[0] in ("runs", _LEFT_OUT) and len(parts) == 2 and parts[1].endswith(".csv")
