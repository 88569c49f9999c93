"""Interventions by name: discover → load → check. Built-ins come in through the same door as everybody's."""

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

from bitnetctl.config import InterventionSpec, RunConfig, near_miss, validation_line
from bitnetctl.errors import ConfigError
from bitnetctl.intervention import API_VERSION, Intervention, InterventionSettings
from bitnetctl.plugins.composition import Composition
from bitnetctl.records import PluginInfo

GROUP = "bitnetctl.interventions"
OWN_DISTRIBUTION = "bitnetctl"
ALLOWED = "BITNETCTL_ALLOWED_PLUGINS"
HOOKS = (
    "configure",
    "quantization",
    "learning_rate",
    "weight_decay",
    "training_loss",
    "transform_gradients",
)


@dataclass(frozen=True, kw_only=True)
class Found:
    """An entry point of the group, not loaded yet; one name may be claimed by several distributions."""

    name: str
    distribution: str
    version: str
    target: str
    entry_point: metadata.EntryPoint
    allowed: bool


@dataclass(frozen=True, kw_only=True)
class Plugin:
    """A loaded and checked intervention class, or the one line that says why it cannot be used.

    `module` is where the class was defined and `source_sha256` the hash of that module's file, for what was imported;
    nothing of a `refused` one was.
    """

    name: str
    distribution: str
    version: str
    target: str
    intervention: type[Intervention] | None
    problem: str | None
    module: str | None = None
    source_sha256: str | None = None
    refused: bool = False

    @property
    def refusal(self) -> str:
        """One line that says why it cannot be used."""
        return f"intervention {self.name!r} of {self.distribution} {self.version} cannot be used: {self.problem}"

    @property
    def hooks(self) -> list[str]:
        """Names of the hooks it changes."""
        return [] if self.intervention is None else changed_hooks(self.intervention)


@cache
def discover() -> tuple[Found, ...]:
    """Return every registered entry point, sorted by name and distribution.

    With BITNETCTL_DISABLE_PLUGINS=1 only those of this distribution; with BITNETCTL_ALLOWED_PLUGINS, names of
    distributions or interventions with commas between them, the others are marked as not allowed.
    """
    own_only = os.environ.get("BITNETCTL_DISABLE_PLUGINS", "") not in ("", "0")
    allowed = _allowed()
    found = [
        Found(
            name=entry.name,
            distribution=dist.name,
            version=dist.version,
            target=entry.value,
            entry_point=entry,
            allowed=allowed is None
            or dist.name == OWN_DISTRIBUTION
            or bool({entry.name, _normal(dist.name)} & allowed),
        )
        for dist, entries in _distributions()
        for entry in entries
        if dist.name == OWN_DISTRIBUTION or not own_only
    ]
    return tuple(sorted(found, key=lambda each: (each.name, each.distribution, each.target)))


def _distributions() -> Iterator[tuple[metadata.Distribution, metadata.EntryPoints]]:
    """Yield every readable distribution with its entry points of the group.

    Of several versions of one distribution only the first on sys.path, which is the one that is imported.
    """
    seen: set[str] = set()
    for dist in metadata.distributions():
        try:
            name, entries = dist.name, dist.entry_points.select(group=GROUP)
        # the metadata of others may be damaged in any way
        except Exception:
            continue
        normal = _normal(name or "")
        if normal and normal not in seen:
            seen.add(normal)
            yield dist, entries


def _normal(distribution: str) -> str:
    """Return a distribution's name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def _allowed() -> set[str] | None:
    """Return the names in BITNETCTL_ALLOWED_PLUGINS, None where it is unset; where it is empty, none is allowed."""
    text = os.environ.get(ALLOWED)
    if text is None:
        return None
    names = {name.strip() for name in text.split(",")} - {""}
    return names | {_normal(name) for name in names}


def load_all() -> list[Plugin]:
    """Load every plug-in; the broken ones carry their problem and kill nothing."""
    return [load(name) for name in sorted({found.name for found in discover()})]


@cache
def load(name: str) -> Plugin:
    """Load one plug-in by name; what is wrong with it stands in `problem`. Raises ConfigError if there is none."""
    claims = [found for found in discover() if found.name == name]
    if not claims:
        known = sorted({found.name for found in discover() if _is_usable(found.name)})
        hint = near_miss(name, known) or f"; there are: {', '.join(known)}"
        raise ConfigError(f"unknown intervention {name!r}{hint}")
    # what is not allowed must not take a name away either
    allowed = [found for found in claims if found.allowed]
    first = (allowed or claims)[0]
    intervention, problem, module, digest = None, None, None, None
    if not _is_usable(name):
        problem = "its name is not one that -i takes: lower-case letters, digits and '-', at most 64"
    elif not allowed:
        problem = f"not allowed; {_how_to_allow(first)}"
    elif len(allowed) > 1:
        problem = "claimed by " + " and ".join(f"{found.distribution} {found.version}" for found in allowed)
    else:
        try:
            intervention = check_class(first.entry_point.load())
            module, digest = intervention.__module__, _source_hash(intervention.__module__)
        # a plug-in may fail to import in any way, and must not take the command down with it
        except (Exception, SystemExit) as error:
            problem = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return Plugin(
        name=name,
        distribution=first.distribution,
        version=first.version,
        target=first.target,
        intervention=intervention,
        problem=problem,
        module=module,
        source_sha256=digest,
        refused=not allowed,
    )


def _is_usable(name: str) -> bool:
    try:
        InterventionSpec(name=name)
    except ValidationError:
        return False
    return True


def _how_to_allow(found: Found) -> str:
    alone = "" if found.name == _normal(found.distribution) else f", or {found.name} for this one alone,"
    return f"add {_normal(found.distribution)}{alone} to {ALLOWED}"


def _source_hash(module: str) -> str | None:
    """Return the SHA-256 of the file that a loaded module came from, None where it came from no file."""
    spec = getattr(sys.modules.get(module), "__spec__", None)
    read = getattr(getattr(spec, "loader", None), "get_data", None)
    if spec is None or spec.origin is None or read is None:
        return None
    try:
        return hashlib.sha256(read(spec.origin)).hexdigest()
    except OSError:
        return None


def check_class(candidate: Any) -> type[Intervention]:
    """Return `candidate` if it is an intervention class of this API; raises ConfigError that says what it lacks."""
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


def changed_hooks(intervention: type[Intervention]) -> list[str]:
    """Return the names of the hooks that a class overrides."""
    return [hook for hook in HOOKS if getattr(intervention, hook) is not getattr(Intervention, hook)]


def normalize(config: RunConfig) -> RunConfig:
    """Return the config with its interventions checked and settings at their default left out.

    So `reduced-lr` and `reduced-lr:peak=5e-4` are the same run. Raises ConfigError.
    """
    specs = tuple(_normal_spec(spec) for spec in config.interventions)
    return config.model_copy(update={"interventions": specs})


def compose(specs: Sequence[InterventionSpec]) -> Composition:
    """Build the interventions of one run, each with its validated settings; raises ConfigError."""
    return Composition([_class_of(spec)(_settings_of(spec)) for spec in specs])


def plugin_infos(specs: Iterable[InterventionSpec]) -> list[PluginInfo]:
    """Say which code ran with which settings, for the manifest."""
    plugins = [(load(spec.name), _settings_of(spec)) for spec in specs]
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


def _class_of(spec: InterventionSpec) -> type[Intervention]:
    plugin = load(spec.name)
    if plugin.intervention is None:
        raise ConfigError(plugin.refusal)
    return plugin.intervention


def _settings_of(spec: InterventionSpec) -> InterventionSettings:
    model = _class_of(spec).Settings
    try:
        return model.model_validate(spec.settings)
    except ValidationError as error:
        raise ConfigError(f"intervention {spec.name}: {validation_line(error, model)}") from error


def _normal_spec(spec: InterventionSpec) -> InterventionSpec:
    settings = _settings_of(spec).model_dump(mode="json", exclude_defaults=True)
    return InterventionSpec(name=spec.name, settings=settings)


def effective_config(config: RunConfig) -> RunConfig:
    """Return the config after its interventions; raises ConfigError."""
    return compose(config.interventions).configure(config)
