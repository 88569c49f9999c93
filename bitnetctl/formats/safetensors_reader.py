"""The tensors of safetensors files, one or several shards, read one by one; nothing else is ever opened.

A file may come from anyone: names and shapes are compared before a tensor is read.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from bitnetctl.errors import DataError, cannot_read, one_line

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_FLOATS = ("F32", "BF16", "F16", "F64")
_MOST_BYTES = 1 << 26


class TensorInfo(NamedTuple):
    """Where a tensor is stored, and as what."""

    path: Path
    dtype: str
    shape: tuple[int, ...]

    @property
    def is_float(self) -> bool:
        """Whether it holds floating-point numbers that are read."""
        return self.dtype in _FLOATS


class SafetensorsReader:
    """Tensors by name, of one safetensors file or of the shards of a folder; raises DataError."""

    def __init__(self, paths: list[Path]) -> None:
        self.entries: dict[str, TensorInfo] = {}
        self.metadata: dict[str, str] = {}
        for path in paths:
            try:
                with safe_open(path, framework="pt") as file:
                    self.metadata |= file.metadata() or {}
                    for name in file.keys():  # noqa: SIM118 - not a mapping
                        part = file.get_slice(name)
                        if name in self.entries:
                            raise DataError(f"{path}: {name} is in {self.entries[name].path.name}, too")
                        self.entries[name] = TensorInfo(path, part.get_dtype(), tuple(part.get_shape()))
            except OSError as error:
                raise DataError(cannot_read(path, error)) from error
            except SafetensorError as error:
                raise DataError(f"{path}: not a safetensors file, or damaged: {one_line(error)}") from error

    def floats(self, name: str) -> Tensor:
        """Return a tensor of floating-point numbers as fp32; raises DataError for others, NaN and infinity."""
        entry = self.entries[name]
        if not entry.is_float:
            raise DataError(f"{entry.path}: {name} is {entry.dtype}, not floating-point")
        values = self.raw(name).to(torch.float32).contiguous()
        if not values.isfinite().all():
            raise DataError(f"{entry.path}: {name} holds values that are not finite")
        return values

    def raw(self, name: str) -> Tensor:
        """Return a tensor as it is stored; raises DataError."""
        path = self.entries[name].path
        try:
            with safe_open(path, framework="pt") as file:
                tensor: Tensor = file.get_tensor(name)
        except (OSError, SafetensorError, ValueError, RuntimeError) as error:
            raise DataError(f"{path}: {name} cannot be read: {one_line(error)}") from error
        return tensor


def open_folder(folder: Path) -> SafetensorsReader:
    """Open the weights of a folder as `transformers` saves them; raises DataError, also for other kinds of files."""
    if (folder / INDEX).is_file():
        return SafetensorsReader(_shards(folder))
    if (folder / SINGLE).is_file():
        return SafetensorsReader([folder / SINGLE])
    others = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
    if others:
        raise DataError(
            f"{folder}: its weights are in {others[0]}, a pickle, which may run any code and is not read; load it "
            "where you trust it, and save it with save_pretrained, which writes safetensors"
        )
    raise DataError(f"{folder}: there is no {SINGLE} and no {INDEX}")


def _shards(folder: Path) -> list[Path]:
    names = read_json(folder / INDEX).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise DataError(f"{folder / INDEX}: has no weight_map")
    # a name must not lead out of the folder
    if strange := [name for name in names.values() if not isinstance(name, str) or not _is_plain(name)]:
        raise DataError(f"{folder / INDEX}: {str(strange[0])[:80]!r} is no name of a file in the folder")
    return [folder / name for name in sorted(set(names.values()))]


def _is_plain(name: str) -> bool:
    return Path(name).name == name and name not in ("", "..")


def read_json(path: Path) -> Mapping[str, Any]:
    """Read a JSON object; raises DataError."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise DataError(f"{path}: is too large")
        tree = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(cannot_read(path, error)) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON: {one_line(error)}") from error
    if not isinstance(tree, dict):
        raise DataError(f"{path}: not a JSON object")
    return tree
