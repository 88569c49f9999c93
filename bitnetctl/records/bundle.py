"""A zip of a verdict and its inputs: CSVs, manifests, criteria. No torch here."""

import contextlib
import itertools
import json
import lzma
import os
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
from bitnetctl.records.find import (
    LEFT_OUT_FOLDER,
    RUNS_FOLDER,
    VERDICT_NAME,
    is_bundle_folder,
    is_litter,
)
from bitnetctl.records.inventory import AbsentRun, Inventory
from bitnetctl.records.logs.converted import ORIGIN_NAME, Origin, to_csv
from bitnetctl.records.manifest import read_manifest
from bitnetctl.records.paths import LOCK_NAME, MANIFEST_NAME, SAMPLES_NAME
from bitnetctl.records.run import Run
from bitnetctl.records.schema import HEADER
from bitnetctl.units import listed

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

    A run that wrote text has its `samples.json`, too.

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
            if run.records.origin is not None:
                _write_log(bundle, run, _unused(_portable(run.name), taken))
                continue
            stem = _unused(_portable(run.path.stem), taken)
            bundle.write(run.path, f"runs/{stem}.csv")
            manifest = run.path.with_suffix("") / MANIFEST_NAME
            if manifest.is_file():
                bundle.write(manifest, f"runs/{stem}/{MANIFEST_NAME}")
            if run.samples is not None:
                bundle.writestr(f"runs/{stem}/{SAMPLES_NAME}", run.samples.model_dump_json(indent=1))
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
        bundle.writestr(VERDICT_NAME, json.dumps(verdict, indent=2, allow_nan=False))


def read_bundle(path: Path, folder: Path) -> list[Path]:
    """Unpack the CSVs, manifests and samples of a bundle below `folder` and return the CSVs; raises RecordError.

    Those of runs that were left out lie beside them and are not returned. A file manager may have put all into a folder
    and added files of its own. Everything else is ignored: symlinks, other paths, unportable names. MAX_FILES and
    MAX_BYTES (unpacked) are limits.
    """
    try:
        with zipfile.ZipFile(path) as bundle:
            entries = _wanted(path, bundle)
            if len(entries) > MAX_FILES or sum(entry.file_size for entry, _ in entries) > MAX_BYTES:
                raise RecordError(
                    f"{path}: larger than a bundle may be ({MAX_FILES:,} files, {MAX_BYTES / 2**30:.0f} GiB)"
                )
            csvs = []
            for entry, (above, *parts) in entries:
                target = folder.joinpath("runs", *parts)
                target.parent.mkdir(parents=True, exist_ok=True)
                # Path.exists raises for a long name
                if os.path.lexists(target):
                    raise RecordError(
                        f"{path}: holds {'/'.join((above, *parts))} twice; unpack it and pack one of them"
                    )
                with bundle.open(entry) as source, target.open("xb") as file:
                    shutil.copyfileobj(source, file)
                if target.suffix == ".csv" and above == RUNS_FOLDER:
                    csvs.append(target)
    except (OSError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, RuntimeError, EOFError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise RecordError(f"{path}: not a bundle that can be read: {reason}; copy or download it again") from error
    if not csvs:
        raise RecordError(
            f"{path}: no bundle, as it holds no CSV under runs/; unpack it and give the folder of the CSVs"
        )
    return csvs


def bundle_options(path: Path) -> dict[str, Any]:
    """Return the options with which the runs of a bundle, packed or not, were judged; empty where it does not tell."""
    try:
        if path.is_dir():
            folder = path if is_bundle_folder(path) else path.parent
            is_bundle = is_bundle_folder(folder) and path.name in (folder.name, RUNS_FOLDER)
            tree = json.loads((folder / VERDICT_NAME).read_bytes()) if is_bundle else None
        else:
            tree = _packed_verdict(path)
    except (OSError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, RuntimeError, EOFError, ValueError, KeyError):
        return {}
    options = tree.get("options") if isinstance(tree, dict) else None
    return options if isinstance(options, dict) else {}


def _packed_verdict(path: Path) -> Any:
    with zipfile.ZipFile(path) as bundle:
        found = [(_parts(entry), entry) for entry in bundle.infolist() if entry.file_size <= MAX_BYTES]
        # the bundle's own, which may be in folders
        own = min((one for one in found if one[0][-1:] == (VERDICT_NAME,)), key=lambda one: len(one[0]), default=None)
        if own is not None:
            return json.loads(bundle.read(own[1]))
    return None


def _write_log(bundle: zipfile.ZipFile, run: Run, stem: str) -> None:
    """Write the run of another program's log as a CSV of the schema, and what is known of it beside that."""
    origin = Origin(
        origin=run.records.origin or "",
        run=run.name,
        size=run.size,
        arm=run.arm,
        seed=run.seed,
        planned_steps=run.planned_steps,
        notes=run.records.notes,
        torn=run.records.torn,
    )
    bundle.writestr(f"{RUNS_FOLDER}/{stem}.csv", to_csv(run.records))
    bundle.writestr(f"{RUNS_FOLDER}/{stem}/{ORIGIN_NAME}", origin.model_dump_json(indent=2))


def _write_absent(bundle: zipfile.ZipFile, absent: AbsentRun, csv: Path, stem: str) -> None:
    """Write what tells of a run that is not judged; files that cannot be read are left out."""
    folder = csv.with_name(csv.stem)
    _write_trace(bundle, folder, stem, or_lock=absent.state == "unfinished")
    if absent.state == "unreadable":
        # given again, and unreadable again
        with contextlib.suppress(OSError):
            bundle.writestr(f"{RUNS_FOLDER}/{stem}.csv", csv.read_bytes())
        return
    if absent.state == "left out":
        with contextlib.suppress(OSError):
            bundle.writestr(f"{LEFT_OUT_FOLDER}/{stem}.csv", csv.read_bytes())
        return
    # the CSV is given when the bundle is read, so its manifest must be one that can be read
    with contextlib.suppress(ConfigError):
        manifest = read_manifest(folder)
        if manifest is not None and (manifest.external or parse_config(manifest.requested())):
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


def _parts(entry: zipfile.ZipInfo) -> tuple[str, ...]:
    """Return the parts of an entry's path; some programs separate them by backslashes. Empty for an unsafe path."""
    name = entry.filename.replace("\\", "/")
    parts = PurePosixPath(name).parts
    is_link = (entry.external_attr >> 16) & 0o170000 == 0o120000
    return parts if not is_link and not entry.is_dir() and all(map(_is_portable, parts)) else ()


def _wanted(path: Path, bundle: zipfile.ZipFile) -> list[tuple[zipfile.ZipInfo, tuple[str, ...]]]:
    """Return the entries to unpack, each with its path in the bundle; raises RecordError for several bundles."""
    wanted: dict[tuple[str, ...], list[tuple[zipfile.ZipInfo, tuple[str, ...]]]] = {}
    for entry in bundle.infolist():
        parts = _parts(entry)
        # a packer may keep the whole path, in which a folder may have such a name, too
        start = next((index for index in range(len(parts)) if _is_wanted(parts[index:])), None)
        if start is not None and parts[0] != "__MACOSX":
            wanted.setdefault(parts[:start], []).append((entry, parts[start:]))
    if len(wanted) > 1:
        raise RecordError(f"{path}: holds several bundles, in {listed(['/'.join(top) or '.' for top in wanted], 3)}")
    return next(iter(wanted.values()), [])


def _is_wanted(parts: tuple[str, ...]) -> bool:
    if is_litter(parts[-1]) or parts[0] not in (RUNS_FOLDER, LEFT_OUT_FOLDER):
        return False
    if parts[0] == RUNS_FOLDER and len(parts) == 3:
        return parts[2] in (MANIFEST_NAME, LOCK_NAME, ORIGIN_NAME, SAMPLES_NAME)
    return len(parts) == 2 and parts[1].endswith(".csv")
