"""A zip that holds all a verdict needs: CSVs, manifests, criteria, the verdict itself. No torch here."""

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

from bitnetctl.errors import RecordError
from bitnetctl.files import replacing, storage_errors
from bitnetctl.records.run import Run

MAX_FILES = 10_000
MAX_BYTES = 2**30

# what some system takes for more than a letter of a name, and names that it takes for a device
_ODD = re.compile(r'[\\/:*?"<>|]')
_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d) *(\..*)?", re.IGNORECASE)


def write_bundle(path: Path, runs: Sequence[Run], criteria: Iterable[tuple[str, str]], verdict: dict[str, Any]) -> None:
    """Write `runs/<run>.csv`, `runs/<run>/run.json`, `criteria/<name>.json` and `verdict.json`; raises StorageError.

    `criteria` are names and JSON texts. The old file stays until the new one is whole.
    """
    with (
        storage_errors(path),
        replacing(path) as temporary,
        zipfile.ZipFile(temporary, "x", zipfile.ZIP_DEFLATED, strict_timestamps=False) as bundle,
    ):
        taken: set[str] = set()
        for run in runs:
            stem = _free(_plain(run.path.stem), taken)
            bundle.write(run.path, f"runs/{stem}.csv")
            manifest = run.path.with_suffix("") / "run.json"
            if manifest.is_file():
                bundle.write(manifest, f"runs/{stem}/run.json")
        for name, text in criteria:
            bundle.writestr(f"criteria/{name}.json", text)
        bundle.writestr("verdict.json", json.dumps(verdict, indent=2, allow_nan=False))


def read_bundle(path: Path, folder: Path) -> list[Path]:
    """Unpack the CSVs and manifests of a bundle below `folder` and return the CSVs; raises RecordError.

    Only the files that a bundle holds are taken, by plain names and with bounded size, whatever else the zip says.
    """
    try:
        with zipfile.ZipFile(path) as bundle:
            members = [member for member in bundle.infolist() if _is_wanted(member)]
            if len(members) > MAX_FILES or sum(member.file_size for member in members) > MAX_BYTES:
                raise RecordError(
                    f"{path}: larger than a bundle may be ({MAX_FILES:,} files, {MAX_BYTES / 2**30:.0f} GiB)"
                )
            csvs = []
            for member in members:
                target = folder.joinpath(*PurePosixPath(member.filename).parts)
                target.parent.mkdir(parents=True, exist_ok=True)
                with bundle.open(member) as source, target.open("xb") as file:
                    shutil.copyfileobj(source, file)
                if target.suffix == ".csv":
                    csvs.append(target)
    except (OSError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, RuntimeError, EOFError, ValueError) as error:
        raise RecordError(f"{path}: not a bundle that can be read: {error}") from error
    if not csvs:
        raise RecordError(f"{path}: holds no CSV under runs/")
    return csvs


def _free(stem: str, taken: set[str]) -> str:
    """Return the stem, or for files of one name in several folders one with a number; adds it to `taken`."""
    names = itertools.chain((stem,), (f"{stem}~{number}" for number in itertools.count(2)))
    name = next(name for name in names if name.casefold() not in taken)
    taken.add(name.casefold())
    return name


def _plain(stem: str) -> str:
    """Return a file's stem with what a plain name cannot hold replaced, so that it can be unpacked anywhere."""
    letters = (letter if letter.isprintable() else "_" for letter in stem[:200])
    stem = _ODD.sub("_", "".join(letters)).rstrip(". ") or "_"
    return f"_{stem}" if _DEVICE.fullmatch(stem) else stem


def _is_plain(part: str) -> bool:
    cut_off = part.endswith((".", " "))
    return part.isprintable() and not (cut_off or _ODD.search(part) or _DEVICE.fullmatch(part))


def _is_wanted(member: zipfile.ZipInfo) -> bool:
    parts = PurePosixPath(member.filename).parts
    is_link = (member.external_attr >> 16) & 0o170000 == 0o120000
    if is_link or not parts or parts[0] != "runs" or not all(map(_is_plain, parts)):
        return False
    return (len(parts) == 2 and parts[1].endswith(".csv")) or (len(parts) == 3 and parts[2] == "run.json")
