"""Text sources: the standard library, files and Hugging Face datasets, read document by document."""

import importlib
import os
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from bitnetctl.config import did_you_mean
from bitnetctl.data.copies import SeenFiles, mark_of
from bitnetctl.data.documents import Piece as Piece, Reading, column_of, file_pieces, row_piece
from bitnetctl.data.inspection import Format, Mark, inspect
from bitnetctl.data.listing import BadDocumentError, expand, is_file, is_folder, named_files, real_first
from bitnetctl.errors import DataError, one_line
from bitnetctl.units import shortened

Progress = Callable[[str, int, int | None], None]
"""Called with the name of a stage, the work done, and the total work where it is known."""

_SPECS = "stdlib, file:GLOB or hf:DATASET[/CONFIG]"
_MOST_NAMES = 3
_MOST_REASONS = 5
# tests, and files that differ between builds of one Python version
_STDLIB_SKIPPED = {
    *("test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"),
    *("lib2to3", "ensurepip", "lib-dynload"),
}


def no_progress(stage: str, done: int, total: int | None) -> None:
    """A progress callback that does nothing."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A text; each call of `pieces` reads it from the start. `files` is empty for a Hugging Face dataset.

    `links` and `copies` count files that were named once more, as another name or a copy of a real file, `trained` the
    files that belong to the training text; none of these is in `files`. `skipped` counts bad files and rows, by reason.
    """

    spec: str
    files: tuple[Path, ...]
    pieces: Callable[[], Iterator[Piece]]
    links: int = 0
    copies: int = 0
    trained: int = 0
    skipped: dict[str, int] = field(default_factory=dict)


class ProgressMeter:
    """Count characters and report them to a progress callback, about once per million."""

    def __init__(self, progress: Progress, stage: str, total: int | None) -> None:
        self._progress, self._stage, self._total = progress, stage, total
        self._done = 0
        self._next = 0

    def add(self, characters: int) -> None:
        """Count `characters` more."""
        self._done += characters
        if self._done >= self._next:
            self._progress(self._stage, self._done, self._total)
            self._next = self._done + (1 << 20)

    def repeat(self) -> None:
        """Report the current count, so that the callback is called although nothing was added."""
        self._progress(self._stage, self._done, self._total)

    def finish(self) -> None:
        """Report that the stage is complete."""
        self._progress(self._stage, self._done, self._done)


def open_source(
    spec: str,
    reading: Reading | None = None,
    *,
    trained: Source | None = None,
    progress: Progress = no_progress,
) -> Source:
    """Open the source that a spec names; raises DataError.

    `stdlib` is the installed Python standard library without its tests. `file:GLOB` are plain text, `.jsonl` or
    `.parquet` files, the first two also compressed (gzip, bzip2, xz, zstd); each real file is read once. `hf:NAME` is
    the train split of a Hugging Face dataset: `hf:A/B` is dataset B of organization A if there is one, else config B of
    dataset A; `hf:A/B/C` is config C of A/B. Files of `trained`, and copies of them, are left out.
    """
    scheme, colon, rest = spec.partition(":")
    reading = Reading() if reading is None else reading
    if spec == "stdlib":
        return _stdlib(trained)
    if scheme == "file" and rest:
        return _files(spec, rest, reading, trained, ProgressMeter(progress, "checking text", None))
    if scheme == "hf" and rest:
        return _hub(spec, rest, reading, ProgressMeter(progress, "checking text", None))
    if colon and scheme in ("file", "hf"):
        raise DataError(f"data source {spec!r} names nothing after the colon: expected {_SPECS}")
    if not colon and (is_file(expand(spec)) or is_folder(expand(spec))):
        raise DataError(f"unknown data source {spec!r}; did you mean 'file:{spec}'?")
    hint = did_you_mean(scheme, ["stdlib", "file", "hf"])
    raise DataError(f"unknown data source {spec!r}{hint or ':'} expected {_SPECS}")


def _stdlib(trained: Source | None) -> Source:
    root = Path(sysconfig.get_path("stdlib"))
    paths: list[Path] = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in _STDLIB_SKIPPED]
        scripts = (name for name in names if name.endswith(".py") and not name.startswith("_sysconfigdata"))
        paths += [Path(folder, name) for name in scripts]
    if not paths:
        raise DataError(f"data source stdlib: no Python source under {root}; use file:GLOB")
    files = tuple(sorted(paths, key=Path.as_posix))
    if (known := _seen(trained)) is not None:
        files = tuple(path for path in files if known.same_text(path, mark_of(path)) is None)
    if not files:
        raise DataError("data.held_out_source stdlib: every file of it is also in data.source; give other text")

    def pieces() -> Iterator[Piece]:
        for path in files:
            try:
                text = path.read_bytes().decode()
            except (OSError, UnicodeDecodeError):
                continue
            yield Piece(text, True)

    return Source(spec="stdlib", files=files, pieces=pieces, trained=len(paths) - len(files), skipped={})


def _files(spec: str, pattern: str, reading: Reading, trained: Source | None, meter: ProgressMeter) -> Source:
    chosen = _Chosen(_seen(trained), reading, meter)
    for path in real_first(named_files(spec, pattern)):
        chosen.add(path)
    if chosen.faults and not reading.skip:
        raise _all_faults(chosen.faults)
    formats = sorted(chosen.files.items(), key=lambda item: item[0].as_posix())
    files = tuple(path for path, _ in formats)
    if not files and chosen.trained:
        path, other = chosen.trained[0]
        what = f"a copy of {other}, which is in" if path != other else "also in"
        raise DataError(
            f"data.held_out_source {spec}: {path} is {what} data.source {trained.spec if trained else ''}; "
            "held-out text must not be trained on, give other text"
        )
    if not files:
        raise DataError(f"data source {spec}: no usable file is left ({counted(reading.skipped)})")

    def pieces() -> Iterator[Piece]:
        again = reading.again()
        return chain.from_iterable(file_pieces(path, again, form) for path, form in formats)

    return Source(
        spec=spec,
        files=files,
        pieces=pieces,
        links=chosen.links,
        copies=chosen.copies,
        trained=len(chosen.trained),
        skipped=dict(reading.skipped),
    )


class _Chosen:
    """The files of a source that are read: each real file once, no copies, no bad ones."""

    def __init__(self, known: SeenFiles | None, reading: Reading, meter: ProgressMeter) -> None:
        self.files: dict[Path, Format] = {}
        self.links = self.copies = 0
        self.trained: list[tuple[Path, Path]] = []
        self.faults: list[BadDocumentError] = []
        self._seen, self._known = SeenFiles(), known
        self._reading, self._meter = reading, meter

    def add(self, path: Path) -> None:
        """Take a file, or count why it is not taken."""
        try:
            form = inspect(path)
            if self._is_counted(path, form.mark):
                return
            if self._reading.skip:
                # a fault may stand at the end of a file, of which nothing must be read then
                trial = self._reading.again()
                for piece in file_pieces(path, trial, form):
                    self._meter.add(len(piece.text))
                self._reading.skipped.update(trial.skipped)
        except BadDocumentError as error:
            self.faults.append(error)
            self._reading.skipped[error.reason] += 1
        else:
            self.files[path] = form

    def _is_counted(self, path: Path, mark: Mark) -> bool:
        if self._seen.same_file(mark):
            self.links += 1
            return True
        if self._known is not None and (other := self._known.same_text(path, mark)) is not None:
            self.trained.append((path, other))
            return True
        if self._seen.same_text(path, mark) is not None:
            self.copies += 1
            return True
        self._seen.add(path, mark)
        return False


def _seen(source: Source | None) -> SeenFiles | None:
    if source is None:
        return None
    seen = SeenFiles()
    for path in source.files:
        seen.add(path, mark_of(path))
    return seen


def _all_faults(faults: list[BadDocumentError]) -> DataError:
    if len(faults) == 1:
        return faults[0]
    others = shortened([f"{fault.where} ({fault.reason})" for fault in faults[1:]], _MOST_NAMES)
    return DataError(f"{faults[0]}; also bad: {others}")


def counted(reasons: dict[str, int]) -> str:
    """Return reasons with their counts as text, the most frequent first."""
    ordered = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    return shortened([f"{count} × {reason}" for reason, count in ordered], _MOST_REASONS)


def _hub(spec: str, name: str, reading: Reading, meter: ProgressMeter) -> Source:
    parts = name.split("/")
    if len(parts) > 3 or not all(parts):
        raise DataError(f"data source {spec}: expected hf:NAME, hf:ORG/NAME, hf:NAME/CONFIG or hf:ORG/NAME/CONFIG")
    whole, with_config = [name], name.rsplit("/", 1)
    dataset = _load_hub(spec, {1: [whole], 2: [whole, with_config], 3: [with_config]}[len(parts)])
    column = column_of(dataset.column_names, f"data source {spec}", reading)
    rows = dataset.select_columns([column])

    def read(reading: Reading) -> Iterator[Piece]:
        values: Iterable[Any] = chain.from_iterable(batch[column] for batch in rows.iter(batch_size=1000))
        for row, value in enumerate(values, 1):
            yield from row_piece({column: value}, f"data source {spec}: row {row}", reading)

    if reading.skip:
        for piece in read(reading):
            meter.add(len(piece.text))
    return Source(spec=spec, files=(), pieces=lambda: read(reading.again()), skipped=dict(reading.skipped))


def _load_hub(spec: str, candidates: list[list[str]]) -> Any:
    """Load the first candidate, [name] or [name, config], that can be loaded."""
    try:
        datasets = importlib.import_module("datasets")
    except ImportError as error:
        raise DataError(f"data source {spec}: needs the datasets library: pip install 'bitnetctl[hf]'") from error
    datasets.disable_progress_bars()
    errors: list[Exception] = []
    for candidate in candidates:
        try:
            return datasets.load_dataset(*candidate, split="train")
        except Exception as error:  # the hub, the network or a dataset's own reader may raise anything
            errors.append(error)
    # "not found" for one of two candidates is the least informative error
    cause = next((error for error in errors if not isinstance(error, FileNotFoundError)), errors[0])
    raise DataError(
        f"data source {spec}: {one_line(cause)}; check the name and the network, or use file:GLOB"
    ) from cause
