"""Where an export may write: never over anything but what an export wrote."""

import json
import os
from collections.abc import Callable, Collection
from pathlib import Path

from bitnetctl.errors import ConfigError


def require_free_file(file: Path, is_own: Callable[[Path], bool], *, replace: bool) -> None:
    """Raise ConfigError for what is in the way of a file; `replace` allows a file of which `is_own` is true."""
    if not file.name or file.is_dir():
        raise ConfigError(f"{file}: is a folder; give a file")
    # a link that leads nowhere is in the way, too
    if not os.path.lexists(file):
        return
    if not replace:
        raise ConfigError(f"{file}: exists; --force replaces what an earlier export wrote")
    if file.is_symlink() or not file.is_file():
        raise ConfigError(f"{file}: is a link or a device, and would be replaced by a file; take another name")
    if not is_own(file):
        raise ConfigError(f"{file}: is nothing that such an export wrote; take another name, or remove it")


def require_free_folder(folder: Path, files: Collection[str], *, replace: bool) -> None:
    """Raise ConfigError for what is in the way of a folder; `replace` allows an earlier export of these files."""
    if not folder.name:
        raise ConfigError(f"{folder}: is the current folder; give the name of a new one")
    if not os.path.lexists(folder):
        return
    if folder.is_symlink() or not folder.is_dir():
        raise ConfigError(f"{folder}: is a file, not a folder; take another name")
    held = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    if not held:
        return
    if not replace:
        raise ConfigError(f"{folder}: is not empty; --force replaces what an earlier export wrote")
    expected = {*files, *(parent.as_posix() for name in files for parent in Path(name).parents)}
    others = held - expected
    if others or not _is_exported(folder):
        what = f" ({min(others)})" if others else ""
        raise ConfigError(f"{folder}: holds what no export wrote{what}; take another folder, or empty it")


def _is_exported(folder: Path) -> bool:
    """Whether config.json names a run of this product: a model of somebody else has files of the same names."""
    try:
        tree = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    own = tree.get("bitnetctl") if isinstance(tree, dict) else None
    return isinstance(own, dict) and "run" in own
