"""Interventions by name, from the entry points of installed distributions: discover → load → check.

Built-in interventions are registered in the same way as those of other distributions.
"""

import hashlib
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bitnetctl.config import InterventionSpec, RunConfig, hint_at, kebab_case, validated
from bitnetctl.errors import BitnetctlError, ConfigError, PluginError
from bitnetctl.intervention import Intervention, InterventionSettings
from bitnetctl.plugins.blame import described, errors_blamed, location
from bitnetctl.plugins.checked_class import check_class
from bitnetctl.plugins.composition import Composition, overridden_hooks
from bitnetctl.plugins.isolation import intrusions_of, isolated
from bitnetctl.plugins.project import intervention_classes
from bitnetctl.records import PluginInfo
from bitnetctl.units import listed

GROUP = "bitnetctl.interventions"
OWN_DISTRIBUTION = "bitnetctl"
ALLOWED_VARIABLE = "BITNETCTL_ALLOWED_PLUGINS"


@dataclass(frozen=True, kw_only=True)
class Registration:
    """An entry point of the group, not yet loaded. Several distributions may register the same name."""

    name: str
    distribution: str
    version: str
    target: str
    entry_point: metadata.EntryPoint
    allowed: bool


@dataclass(frozen=True, kw_only=True)
class Plugin(Registration):
    """A registration with its class, loaded and checked, or with the `problem`, one line, why it cannot be used.

    `module` is where the class is defined and `source_sha256` the hash of that module's file, both None if nothing was
    imported. A plug-in that is not `allowed` is never imported. The problem `is_fault` of its code where that raised
    an error or breaks a rule, not of how it is installed or asked for.
    """

    intervention: type[Intervention] | None
    problem: str | None
    module: str | None
    source_sha256: str | None
    is_fault: bool = False

    @property
    def error_message(self) -> str:
        """Message for a run that requests it although it has a `problem`."""
        source = f"{self.distribution} {self.version}".strip()
        return f"intervention {self.name!r} of {source} cannot be used: {self.problem}"

    @property
    def hooks(self) -> list[str]:
        """Names of the hooks that it overrides."""
        return [] if self.intervention is None else overridden_hooks(self.intervention)


@cache
def discover() -> tuple[Registration, ...]:
    """Return every registered entry point, sorted by name and distribution.

    With BITNETCTL_DISABLE_PLUGINS=1 only those of this distribution. With BITNETCTL_ALLOWED_PLUGINS, a comma-separated
    list of distributions or interventions, the others are marked as not allowed.
    """
    own_only = os.environ.get("BITNETCTL_DISABLE_PLUGINS", "") not in ("", "0")
    registrations = [
        Registration(
            name=entry.name,
            distribution=dist.name,
            version=dist.version,
            target=entry.value,
            entry_point=entry,
            allowed=_is_allowed(entry.name, dist.name),
        )
        for dist, entries in _distributions()
        for entry in entries
        if dist.name == OWN_DISTRIBUTION or not own_only
    ]
    return tuple(sorted(registrations, key=lambda each: (each.name, each.distribution, each.target)))


def _distributions() -> Iterator[tuple[metadata.Distribution, metadata.EntryPoints]]:
    """Yield every readable distribution with its entry points of the group.

    Of several versions of one distribution only the first on sys.path counts: Python imports that one.
    """
    seen: set[str] = set()
    for dist in metadata.distributions():
        try:
            name, entries = dist.name, dist.entry_points.select(group=GROUP)
        # reading damaged metadata may raise anything
        except Exception:
            continue
        normalized = _normalized(name or "")
        if normalized and normalized not in seen:
            seen.add(normalized)
            yield dist, entries


def _normalized(distribution: str) -> str:
    """Return a distribution's normalized name (PEP 503)."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def _is_allowed(name: str, distribution: str) -> bool:
    """Whether BITNETCTL_ALLOWED_PLUGINS allows an intervention: unset it allows all, empty the built-in ones only."""
    text = os.environ.get(ALLOWED_VARIABLE)
    if text is None or distribution == OWN_DISTRIBUTION:
        return True
    names = {each.strip() for each in text.split(",")} - {""}
    return not {name, _normalized(distribution)}.isdisjoint(names | {_normalized(each) for each in names})


def load_all() -> list[Plugin]:
    """Load every plug-in, those with a `problem` too."""
    return [load(name) for name in sorted({registration.name for registration in discover()})]


@cache
def load(name: str) -> Plugin:
    """Load one plug-in by name; raises ConfigError for an unknown name only, see `Plugin.problem`."""
    registrations = [each for each in discover() if each.name == name]
    if not registrations:
        known = sorted({each.name for each in discover() if _is_valid_name(each.name)})
        raise ConfigError(f"unknown intervention {name!r}{hint_at(name, known)}")
    # a plug-in that is not allowed cannot conflict with one that is
    allowed = [each for each in registrations if each.allowed]
    first = (allowed or registrations)[0]
    intervention, problem, module, digest = None, None, None, None
    is_fault = False
    if not _is_valid_name(name):
        problem = "its name is not one that -i takes: lower-case letters, digits and '-', at most 64"
    elif not allowed:
        problem = f"not allowed; {_how_to_allow(first)}"
    elif len(allowed) > 1:
        problem = f"name conflict: registered by {listed([f'{each.distribution} {each.version}' for each in allowed])}"
    else:
        try:
            with isolated(name, "at import", at_import=True):
                loaded = check_class(first.entry_point.load())
            module, digest = loaded.__module__, _source_hash(loaded.__module__)
            intervention = loaded
        # the import of a plug-in may raise anything; other plug-ins stay usable
        except (Exception, SystemExit) as error:
            where = None if isinstance(error, BitnetctlError) else location(error)
            problem, is_fault = described(error) + (f" ({where})" if where else ""), True
    return Plugin(
        **vars(first),
        intervention=intervention,
        problem=problem,
        module=module,
        source_sha256=digest,
        is_fault=is_fault,
    )


@cache
def load_file(file: str) -> Plugin:
    """Load an intervention from `FILE.py` or `FILE.py:Class`; raises ConfigError for a file that has not just one.

    Its name is that of the class in kebab-case. Raises ConfigError, too, where another intervention of that name is
    installed: their runs could not be told apart.
    """
    path, _, wanted = file.partition(".py:")
    path = path if path.endswith(".py") else f"{path}.py"
    classes = intervention_classes(Path(path))
    if wanted:
        classes = [each for each in classes if each.__name__ == wanted]
    if len(classes) != 1:
        names = ", ".join(each.__name__ for each in intervention_classes(Path(path)))
        raise ConfigError(f"{path}: expected one intervention; take one of its classes, as in FILE.py:CLASS: {names}")
    [intervention] = classes
    name = kebab_case(intervention.__name__) or kebab_case(Path(path).stem)
    digest = _source_hash(intervention.__module__)
    installed = [each for each in discover() if each.name == name and each.allowed]
    if installed and load(name).source_sha256 != digest:
        source = f"{installed[0].distribution} {installed[0].version}"
        raise ConfigError(f"{path}: its intervention has the name of {name!r} of {source}; rename the class")
    entry_point = metadata.EntryPoint(name, f"{path}:{intervention.__name__}", GROUP)
    registration = Registration(
        name=name, distribution=path, version="", target=entry_point.value, entry_point=entry_point, allowed=True
    )
    problem = None
    try:
        check_class(intervention)
    except ConfigError as error:
        problem = str(error)
    return Plugin(
        **vars(registration),
        intervention=None if problem else intervention,
        problem=problem,
        module=intervention.__module__,
        source_sha256=digest,
        is_fault=problem is not None,
    )


def load_spec(spec: InterventionSpec) -> Plugin:
    """Load the plug-in of a requested intervention; raises ConfigError as `load` and `load_file` do."""
    return load(spec.name) if spec.file is None else load_file(spec.file)


def _is_valid_name(name: str) -> bool:
    try:
        InterventionSpec(name=name)
    except ValidationError:
        return False
    return True


def _how_to_allow(registration: Registration) -> str:
    name, distribution = registration.name, _normalized(registration.distribution)
    alone = "" if name == distribution else f", or {name} for this one alone,"
    return f"add {distribution}{alone} to {ALLOWED_VARIABLE}"


def _source_hash(module: str) -> str | None:
    """Return the SHA-256 of the file of a loaded module, None if it has no file."""
    spec = getattr(sys.modules.get(module), "__spec__", None)
    read = getattr(getattr(spec, "loader", None), "get_data", None)
    if spec is None or spec.origin is None or read is None:
        return None
    try:
        return hashlib.sha256(read(spec.origin)).hexdigest()
    except OSError:
        return None


def normalize(config: RunConfig) -> RunConfig:
    """Return the config with its interventions validated and every setting known, those at their default apart.

    So `reduced-lr` and `reduced-lr:peak=5e-4` are the same run. Raises ConfigError.
    """
    refuse_shared_names(config.interventions)
    return config.model_copy(update={"interventions": tuple(map(_normalized_spec, config.interventions))})


def normalize_if_usable(config: RunConfig) -> RunConfig:
    """Return the normalized config, or the config as it is where a plug-in cannot be used through a fault of its own.

    Raises ConfigError as `normalize` does for anything else.
    """
    try:
        return normalize(config)
    except PluginError:
        return config


def refuse_shared_names(specs: Iterable[InterventionSpec]) -> None:
    """Raise ConfigError where two interventions of one name have other code: their runs could not be told apart."""
    seen: dict[str, tuple[tuple[str | None, str], str]] = {}
    for requested, file in dict.fromkeys((spec.name, spec.file) for spec in specs):
        name, code, source = _code_of(requested, file)
        other_code, other = seen.setdefault(name, (code, source))
        if code != other_code:
            raise ConfigError(f"{source}: its intervention has the name of {name!r} of {other}; rename the class")


def _code_of(name: str, file: str | None) -> tuple[str, tuple[str | None, str], str]:
    """Return the name that runs show, what tells the code from other code, and the source for messages."""
    try:
        plugin = load(name) if file is None else load_file(file)
    except PluginError:
        # it cannot be imported
        return name, (file, name), file or name
    is_usable = plugin.intervention is not None
    code = plugin.source_sha256, plugin.target.rpartition(":")[2]
    return plugin.name if is_usable else name, code, plugin.distribution


def _normalized_spec(spec: InterventionSpec) -> InterventionSpec:
    plugin, _, settings = _resolve(spec)
    everything, changed = _as_json(plugin.name, settings), _as_json(plugin.name, settings, exclude_defaults=True)
    return InterventionSpec(
        name=plugin.name,
        settings=changed,
        defaults={name: value for name, value in everything.items() if name not in changed},
        file=None if spec.file is None else plugin.target,
    )


def _as_json(plugin: str, settings: InterventionSettings, *, exclude_defaults: bool = False) -> dict[str, Any]:
    """Return settings as JSON values; raises PluginError for those that have none, such as bytes that are no text."""
    with errors_blamed(plugin, "the JSON of its Settings"):
        tree: dict[str, Any] = settings.model_dump(mode="json", exclude_defaults=exclude_defaults)
        json.dumps(tree, allow_nan=False)
    return tree


def compose(specs: Sequence[InterventionSpec]) -> Composition:
    """Build the interventions of one run, each with its validated settings; raises ConfigError."""
    built, names = [], []
    for plugin, intervention, settings in map(_resolve, specs):
        with (
            isolated(plugin.name, "in __init__"),
            errors_blamed(plugin.name, "__init__", intervention.__init__),
        ):
            built.append(intervention(settings))
        names.append(plugin.name)
    return Composition(built, names)


def plugin_infos(specs: Iterable[InterventionSpec]) -> list[PluginInfo]:
    """Return version, settings and source hash of the interventions, for `run.json`; raises ConfigError."""
    return [
        PluginInfo(
            name=plugin.name,
            version=plugin.version or None,
            distribution=plugin.distribution,
            settings=_as_json(plugin.name, settings),
            module=plugin.module,
            source_sha256=plugin.source_sha256,
            put_back=intrusions_of(plugin.name),
        )
        for plugin, _, settings in map(_resolve, specs)
    ]


def _resolve(spec: InterventionSpec) -> tuple[Plugin, type[Intervention], InterventionSettings]:
    """Return the plug-in, its class and the validated settings of a spec; raises ConfigError."""
    plugin = load_spec(spec)
    if plugin.intervention is None:
        raise (PluginError if plugin.is_fault else ConfigError)(plugin.error_message)
    with errors_blamed(plugin.name, "Settings"):
        settings = validated(plugin.intervention.Settings, spec.all_settings, f"intervention {plugin.name}")
    return plugin, plugin.intervention, settings
