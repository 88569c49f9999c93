"""Checkpoints of one run: safetensors and JSON in a folder that appears whole or not at all.

    checkpoints/step-00001000/model.safetensors      weights, named as in `transformers`
                              optimizer.safetensors  moments, `parameter/key`
                              codes.safetensors      ternary values at the last evaluation, for the flip rate
                              state.json             step, hashes, states of interventions, SHA-256 of the others

The checkpoint of a finished run holds model and state only.
"""

import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from bitnetctl.config import canonical_hash
from bitnetctl.errors import CheckpointError
from bitnetctl.files import storage_errors, sync_folder

SCHEMA_VERSION = 1
KEPT = 2
_STEP = re.compile(r"step-(\d{8,})")
_TENSOR_FILES = ("model", "optimizer", "codes")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The whole state of a run after `step`; tensors by name."""

    step: int
    config_hash: str
    data_fingerprint: str
    model: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor] = field(default_factory=dict)
    codes: Mapping[str, Tensor] = field(default_factory=dict)
    interventions: list[dict[str, Any]] = field(default_factory=list)


def save(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint below `folder` and drop all but the last two; raises StorageError, leaving the old ones."""
    target = folder / f"step-{checkpoint.step:08d}"
    with storage_errors(target):
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(".aside-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        aside = folder / f".aside-{secrets.token_hex(4)}"
        aside.mkdir()
        try:
            _write_files(aside, checkpoint)
            if target.exists():
                shutil.rmtree(target)
            aside.rename(target)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        sync_folder(folder)
        for step in steps(folder)[:-KEPT]:
            shutil.rmtree(folder / f"step-{step:08d}", ignore_errors=True)
    return target


def keep_only(folder: Path, step: int) -> None:
    """Drop every checkpoint but the one of `step`."""
    for other in steps(folder):
        if other != step:
            shutil.rmtree(folder / f"step-{other:08d}", ignore_errors=True)


def steps(folder: Path) -> list[int]:
    """Steps of the checkpoints below `folder`, ascending."""
    if not folder.is_dir():
        return []
    matches = (_STEP.fullmatch(entry.name) for entry in folder.iterdir())
    return sorted(int(match[1]) for match in matches if match)


def path_of(folder: Path, step: int) -> Path:
    """Folder of the checkpoint of `step`."""
    return folder / f"step-{step:08d}"


def verify(path: Path) -> dict[str, Any]:
    """Return `state.json` of a checkpoint whose files match their checksums; raises CheckpointError."""
    try:
        state: dict[str, Any] = json.loads((path / "state.json").read_text(encoding="utf-8"))
        version, sums, own_sum = state["schema_version"], state["sha256"], state.pop("state_sha256")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"checkpoint {path}: state.json is missing or damaged") from error
    if canonical_hash(state) != own_sum:
        raise CheckpointError(f"checkpoint {path}: state.json is damaged (checksum differs)")
    if version > SCHEMA_VERSION:
        raise CheckpointError(f"checkpoint {path}: written by a newer bitnetctl (schema {version}); update it")
    for name, expected in sums.items():
        try:
            with (path / name).open("rb") as file:
                actual = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise CheckpointError(f"checkpoint {path}: {name} cannot be read: {error.strerror}") from error
        if actual != expected:
            raise CheckpointError(f"checkpoint {path}: {name} is damaged (checksum differs)")
    return state


def load(path: Path) -> Checkpoint:
    """Read a checkpoint; raises CheckpointError if it is missing, damaged or too new."""
    state = verify(path)
    try:
        tensors = {
            name: load_file(path / f"{name}.safetensors") if f"{name}.safetensors" in state["sha256"] else {}
            for name in _TENSOR_FILES
        }
        return Checkpoint(
            step=state["step"],
            config_hash=state["config_hash"],
            data_fingerprint=state["data_fingerprint"],
            interventions=state["interventions"],
            **tensors,
        )
    except (OSError, SafetensorError, KeyError, TypeError) as error:
        raise CheckpointError(f"checkpoint {path}: cannot be read: {error}") from error


def _save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a safetensors file; raises OSError where the system refused."""
    try:
        save_file(tensors, path)
    except SafetensorError as error:
        # the library tells the system's error number in its text only
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error


def _write_files(folder: Path, checkpoint: Checkpoint) -> None:
    sums = {}
    for name in _TENSOR_FILES:
        tensors = dict(getattr(checkpoint, name))
        if tensors:
            path = folder / f"{name}.safetensors"
            _save_tensors(tensors, path)
            with path.open("rb") as file:
                sums[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
                os.fsync(file.fileno())
    state = {
        "schema_version": SCHEMA_VERSION,
        "step": checkpoint.step,
        "config_hash": checkpoint.config_hash,
        "data_fingerprint": checkpoint.data_fingerprint,
        "interventions": checkpoint.interventions,
        "sha256": sums,
    }
    with (folder / "state.json").open("w", encoding="utf-8") as file:
        json.dump({**state, "state_sha256": canonical_hash(state)}, file, indent=1, sort_keys=True, allow_nan=False)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(folder)
