"""Interventions by name, from the entry points of installed distributions: discover → load → check.

Built-in interventions are registered in the same way as those of other distributions.
"""

import hashlib
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from typing import Any

from pydantic import ValidationError

from bitnetctl.config import InterventionSpec, RunConfig, did_you_mean, validated
from bitnetctl.errors import ConfigError, one_line
from bitnetctl.intervention import API_VERSION, Intervention, InterventionSettings
from bitnetctl.plugins.composition import Composition, overridden_hooks
from bitnetctl.records import PluginInfo

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
    imported. A plug-in that is not `allowed` is never imported.
    """

    intervention: type[Intervention] | None
    problem: str | None
    module: str | None
    source_sha256: str | None

    @property
    def error_message(self) -> str:
        """Message for a run that requests it although it has a `problem`."""
        return f"intervention {self.name!r} of {self.distribution} {self.version} cannot be used: {self.problem}"

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
        hint = did_you_mean(name, known) or f"; there are: {', '.join(known)}"
        raise ConfigError(f"unknown intervention {name!r}{hint}")
    # a plug-in that is not allowed cannot conflict with one that is
    allowed = [each for each in registrations if each.allowed]
    first = (allowed or registrations)[0]
    intervention, problem, module, digest = None, None, None, None
    if not _is_valid_name(name):
        problem = "its name is not one that -i takes: lower-case letters, digits and '-', at most 64"
    elif not allowed:
        problem = f"not allowed; {_how_to_allow(first)}"
    elif len(allowed) > 1:
        problem = "name conflict: registered by " + " and ".join(
            f"{each.distribution} {each.version}" for each in allowed
        )
    else:
        try:
            loaded = check_class(first.entry_point.load())
            module, digest = loaded.__module__, _source_hash(loaded.__module__)
            intervention = loaded
        # the import of a plug-in may raise anything; other plug-ins stay usable
        except (Exception, SystemExit) as error:
            problem = f"{type(error).__name__}: {one_line(error)}"
    return Plugin(**vars(first), intervention=intervention, problem=problem, module=module, source_sha256=digest)


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


def check_class(candidate: Any) -> type[Intervention]:
    """Return `candidate` if it is an intervention class of this API; raises ConfigError that says what is wrong."""
    if not (isinstance(candidate, type) and issubclass(candidate, Intervention)) or candidate is Intervention:
        raise ConfigError(f"{candidate!r} is not a subclass of bitnetctl.intervention.Intervention")
    if candidate.api_version != API_VERSION:
        raise ConfigError(f"made for intervention API {candidate.api_version}; this bitnetctl has {API_VERSION}")
    settings = getattr(candidate, "Settings", None)
    if not (isinstance(settings, type) and issubclass(settings, InterventionSettings)):
        raise ConfigError("its Settings is not a subclass of bitnetctl.intervention.InterventionSettings")
    required = [name for name, field in settings.model_fields.items() if field.is_required()]
    if required:
        raise ConfigError(f"its settings have no default: {', '.join(required)}")
    if not candidate.summary:
        raise ConfigError("it has no summary")
    return candidate


def normalize(config: RunConfig) -> RunConfig:
    """Return the config with its interventions validated and settings at their default left out.

    So `reduced-lr` and `reduced-lr:peak=5e-4` are the same run. Raises ConfigError.
    """
    specs = tuple(
        InterventionSpec(name=spec.name, settings=_resolve(spec)[1].model_dump(mode="json", exclude_defaults=True))
        for spec in config.interventions
    )
    return config.model_copy(update={"interventions": specs})


def compose(specs: Sequence[InterventionSpec]) -> Composition:
    """Build the interventions of one run, each with its validated settings; raises ConfigError."""
    return Composition([intervention(settings) for intervention, settings in map(_resolve, specs)])


def plugin_infos(specs: Iterable[InterventionSpec]) -> list[PluginInfo]:
    """Return version, settings and source hash of the interventions, for `run.json`; raises ConfigError."""
    plugins = [(load(spec.name), _resolve(spec)[1]) for spec in specs]
    return [
        PluginInfo(
            name=plugin.name,
            version=plugin.version,
            distribution=plugin.distribution,
            settings=settings.model_dump(mode="json"),
            module=plugin.module,
            source_sha256=plugin.source_sha256,
        )
        for plugin, settings in plugins
    ]


def _resolve(spec: InterventionSpec) -> tuple[type[Intervention], InterventionSettings]:
    """Return the class and the validated settings of a spec; raises ConfigError."""
    plugin = load(spec.name)
    if plugin.intervention is None:
        raise ConfigError(plugin.error_message)
    return plugin.intervention, validated(plugin.intervention.Settings, spec.settings, f"intervention {spec.name}")
