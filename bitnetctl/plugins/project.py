"""Import the intervention classes of a Python file or a plug-in project that is not installed."""

import importlib.util
import os
import sys
import tomllib
from pathlib import Path
from types import ModuleType

from bitnetctl.errors import ConfigError, PluginError
from bitnetctl.intervention import Intervention
from bitnetctl.plugins.blame import described, location
from bitnetctl.plugins.isolation import isolated


def intervention_classes(path: Path) -> list[type[Intervention]]:
    """Return the intervention classes of a Python file, or those of a project's entry points; raises ConfigError."""
    # Path.is_file raises for a long name
    if not os.path.isfile(path):  # noqa: PTH113
        return [_load_target(path, target) for target in _targets(path)]
    # a prefixed name, so that the file cannot replace a module such as `random`
    module = _import(f"bitnetctl_checked_{path.stem}", path)
    classes = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Intervention) and value.__module__ == module.__name__
    ]
    if not classes:
        raise ConfigError(f"{path}: no subclass of bitnetctl.intervention.Intervention in it")
    return classes


def _import(name: str, file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{file}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with isolated(file.stem, "at import", at_import=True):
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        where = location(error)
        raise PluginError(f"{file}: cannot be imported: {described(error)}{f' ({where})' if where else ''}") from error
    return module


def _targets(path: Path) -> list[str]:
    """Return the targets of a project's entry points, such as `module:Class`."""
    if path.suffix == ".py":
        raise ConfigError(f"{path}: no such file")
    project = path / "pyproject.toml"
    try:
        tree = tomllib.loads(project.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{path}: neither a Python file nor a project with a pyproject.toml") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{project}: not valid TOML: {error}") from error
    points = tree.get("project", {}).get("entry-points", {}).get("bitnetctl.interventions", {})
    if not points:
        raise ConfigError(f"{project}: no entry points of the group bitnetctl.interventions")
    return [str(target) for target in points.values()]


def _load_target(path: Path, target: str) -> type[Intervention]:
    """Import one target from the files of a project, which may be packages and import each other."""
    name, _, attribute = target.partition(":")
    stem = Path(*name.strip().split("."))
    roots = [path.resolve(), path.resolve() / "src"]
    files = [(root, root / file) for root in roots for file in (stem.with_suffix(".py"), stem / "__init__.py")]
    existing = [(root, file) for root, file in files if file.is_file()]
    if not existing:
        raise ConfigError(f"{path}: entry point {target!r}: {stem.with_suffix('.py')} is not there")
    root, file = existing[0]
    sys.path.insert(0, str(root))
    value = getattr(_import(name.strip(), file), attribute.strip(), None)
    if not isinstance(value, type):
        raise ConfigError(f"{path}: entry point {target!r}: no such class")
    return value
