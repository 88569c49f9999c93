"""Checkpoints of one run: safetensors and JSON in a folder that is written atomically.

    checkpoints/step-00001000/model.safetensors      weights, named as in `transformers`
                              optimizer.safetensors  moments, `parameter/key`
                              codes.safetensors      ternary values at the last evaluation, for the flip rate
                              records.csv            the run's rows up to here
                              state.json             step, λ, hashes, states of interventions, SHA-256 of other files

The checkpoint of a finished run holds model, records and state only.
"""

import contextlib
import hashlib
import json
import os
import re
import stat
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from bitnetctl.config import canonical_hash
from bitnetctl.errors import CheckpointError
from bitnetctl.files import discard, remove, replacing, storage_errors, sync_folder, write_synced
from bitnetctl.records.encoding import plain_lines
from bitnetctl.records.paths import STEP_PREFIX, WEIGHTS_NAME

SCHEMA_VERSION = 1
KEPT = 2
_STEP = re.compile(rf"{STEP_PREFIX}([0-9]{{8,}})")
_TENSOR_FILES = ("model", "optimizer", "codes")
_RECORDS = "records.csv"
# temporary folders of killed processes, as earlier versions named them
_OLD_LEFTOVERS = ".aside-*"
_FILES = {_RECORDS, *(f"{name}.safetensors" for name in _TENSOR_FILES)}


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The whole state of a run after `step`: tensors by name, `records` the content of its CSV.

    `quantization` is λ at `step`; None where it is not known, in an older file.
    """

    step: int
    config_hash: str
    data_fingerprint: str
    model: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor] = field(default_factory=dict)
    codes: Mapping[str, Tensor] = field(default_factory=dict)
    interventions: list[dict[str, Any]] = field(default_factory=list)
    records: bytes = b""
    quantization: float | None = None


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The weights of a run after `step`, by their names in `transformers`, and λ there, None in an older checkpoint."""

    step: int
    config_hash: str
    model: Mapping[str, Tensor]
    quantization: float | None


def save(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint below `folder` and drop all but the last two; raises StorageError, leaving the old ones.

    An intact checkpoint with the same content is kept: it may be the only one.
    """
    target = path_of(folder, checkpoint.step)
    with storage_errors(target):
        for leftover in (*folder.glob(f".{STEP_PREFIX}*"), *folder.glob(_OLD_LEFTOVERS)):
            remove(leftover)
        with replacing(target) as temporary:
            temporary.mkdir()
            state = _write_files(temporary, checkpoint)
            with contextlib.suppress(CheckpointError):
                if verify(target) == state:
                    remove(temporary)
    for step in steps(folder)[:-KEPT]:
        _drop_if_possible(path_of(folder, step))
    return target


def keep_only(folder: Path, step: int) -> None:
    """Drop every checkpoint but the one of `step`; one that cannot be dropped stays."""
    for other in steps(folder):
        if other != step:
            _drop_if_possible(path_of(folder, other))


def drop_after(folder: Path, step: int) -> None:
    """Drop the checkpoints after `step`, since their rows are cut from the CSV; raises StorageError.

    Left there, they would displace the good ones: only the last two are kept.
    """
    for other in reversed(steps(folder)):
        if other > step:
            with storage_errors(path_of(folder, other)):
                discard(path_of(folder, other))


def steps(folder: Path) -> list[int]:
    """Steps of the checkpoints below `folder`, ascending."""
    if not folder.is_dir():
        return []
    matches = (_STEP.fullmatch(entry.name) for entry in folder.iterdir())
    return sorted(int(match[1]) for match in matches if match)


def path_of(folder: Path, step: int) -> Path:
    """Folder of the checkpoint of `step`."""
    return folder / f"{STEP_PREFIX}{step:08d}"


def verify(path: Path, only: Collection[str] = _FILES) -> dict[str, Any]:
    """Return `state.json` of a checkpoint whose files, `only` these, match their checksums; raises CheckpointError."""
    _require_plain(path, "state.json")
    try:
        state: dict[str, Any] = json.loads((path / "state.json").read_text(encoding="utf-8"))
        version, sums, own_sum = state["schema_version"], state["sha256"], state.pop("state_sha256")
        # no file but these is opened, whatever the list names
        if not isinstance(version, int) or not isinstance(sums, dict) or not sums.keys() <= _FILES:
            raise ValueError("another shape")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"checkpoint {path}: state.json is missing or damaged") from error
    if canonical_hash(state) != own_sum:
        raise CheckpointError(f"checkpoint {path}: state.json is damaged (checksum differs)")
    if version > SCHEMA_VERSION:
        raise CheckpointError(f"checkpoint {path}: written by a newer bitnetctl (schema {version}); update it")
    named = _STEP.fullmatch(path.name)
    if named and int(named[1]) != state.get("step"):
        raise CheckpointError(f"checkpoint {path}: is of step {state.get('step')}; rename it back")
    for name, expected in sums.items():
        if name not in only:
            continue
        _require_plain(path, name)
        try:
            with (path / name).open("rb") as file:
                actual = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise CheckpointError(f"checkpoint {path}: {name} cannot be read: {error.strerror}") from error
        if actual != expected:
            raise CheckpointError(f"checkpoint {path}: {name} is damaged (checksum differs)")
    return state


def load(path: Path, csv: Path | None = None) -> Checkpoint:
    """Read a checkpoint to resume from; `csv` is the run's, by default that of the run whose folder it is in.

    Raises CheckpointError if it is missing, damaged or too new, or if the CSV exists and does not begin with its rows.
    """
    state = verify(path)
    if not _has_valid_fields(state):
        raise CheckpointError(f"checkpoint {path}: state.json is missing or damaged")
    try:
        records = (path / _RECORDS).read_bytes() if _RECORDS in state["sha256"] else b""
        _check_records(path, records, csv or _csv_beside(path))
        tensors = {
            name: load_file(path / f"{name}.safetensors") if f"{name}.safetensors" in state["sha256"] else {}
            for name in _TENSOR_FILES
        }
        _check_finite(path, tensors)
        return Checkpoint(
            step=state["step"],
            config_hash=state["config_hash"],
            data_fingerprint=state["data_fingerprint"],
            interventions=state["interventions"],
            records=records,
            quantization=state.get("quantization"),
            **tensors,
        )
    except (OSError, SafetensorError, KeyError, TypeError) as error:
        raise CheckpointError(f"checkpoint {path}: cannot be read: {error}") from error


def load_weights(path: Path) -> Weights:
    """Read the weights of a checkpoint, whatever became of its other files and of the CSV; raises CheckpointError."""
    state = verify(path, {WEIGHTS_NAME})
    if not _has_valid_fields(state):
        raise CheckpointError(f"checkpoint {path}: state.json is missing or damaged")
    if WEIGHTS_NAME not in state["sha256"]:
        raise CheckpointError(f"checkpoint {path}: has no weights")
    try:
        tensors = load_file(path / WEIGHTS_NAME)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"checkpoint {path}: cannot be read: {error}") from error
    _check_finite(path, {"model": tensors})
    return Weights(
        step=state["step"], config_hash=state["config_hash"], model=tensors, quantization=state.get("quantization")
    )


def _require_plain(path: Path, name: str) -> None:
    """Raise CheckpointError for a link, pipe or device: it may lead out of the folder, or reading it may never end."""
    with contextlib.suppress(OSError):
        if not stat.S_ISREG((path / name).lstat().st_mode):
            raise CheckpointError(f"checkpoint {path}: {name} is no plain file")


def _check_finite(path: Path, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
    # runs that diverged are never saved
    for kind, by_name in tensors.items():
        for name, tensor in by_name.items():
            if not tensor.isfinite().all():
                raise CheckpointError(f"checkpoint {path}: {name} in {kind}.safetensors is not finite")


def _csv_beside(path: Path) -> Path:
    run = path.absolute().parents[1]
    return run.with_name(f"{run.name}.csv")


def _check_records(path: Path, records: bytes, csv: Path) -> None:
    if not csv.exists():
        return
    with csv.open("rb") as file:
        is_start = file.read(len(records)) == records
        # another program may have changed line ends
        if not is_start and not plain_lines(csv.read_bytes()).startswith(records):
            raise CheckpointError(
                f"checkpoint {path}: the rows of {csv} are not those that were saved with it, which "
                f"{path / _RECORDS} holds"
            )


def _drop_if_possible(path: Path) -> None:
    with contextlib.suppress(OSError):
        discard(path)


def _has_valid_fields(state: Mapping[str, Any]) -> bool:
    quantization = state.get("quantization")
    if quantization is not None and not (isinstance(quantization, float) and 0.0 <= quantization <= 1.0):
        return False
    match state:
        case {"step": int(step), "config_hash": str(), "data_fingerprint": str(), "interventions": list(states)}:
            return step >= 1 and all(isinstance(one, dict) for one in states)
    return False


def _save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a safetensors file; raises OSError where the system refused."""
    try:
        save_file(tensors, path)
    except SafetensorError as error:
        # the library gives the system's error number in its text only
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error


def _write_files(folder: Path, checkpoint: Checkpoint) -> dict[str, Any]:
    """Write and sync all files; returns what `verify` will return."""
    sums = {}
    for name in _TENSOR_FILES:
        tensors = dict(getattr(checkpoint, name))
        if tensors:
            path = folder / f"{name}.safetensors"
            _save_tensors(tensors, path)
            with path.open("rb") as file:
                sums[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
                os.fsync(file.fileno())
    if checkpoint.records:
        sums[_RECORDS] = hashlib.sha256(checkpoint.records).hexdigest()
        write_synced(folder / _RECORDS, checkpoint.records)
    state: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "step": checkpoint.step,
        "config_hash": checkpoint.config_hash,
        "data_fingerprint": checkpoint.data_fingerprint,
        "interventions": checkpoint.interventions,
        "sha256": sums,
    }
    if checkpoint.quantization is not None:
        state["quantization"] = checkpoint.quantization
    sealed = {**state, "state_sha256": canonical_hash(state)}
    write_synced(folder / "state.json", json.dumps(sealed, indent=1, sort_keys=True, allow_nan=False).encode())
    sync_folder(folder)
    return state
