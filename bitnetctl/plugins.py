"""Interventions by name: discover → load → check. Built-ins come in through the same door as everybody's."""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from typing import Any

from pydantic import ValidationError

from bitnetctl.config import InterventionSpec, RunConfig, near_miss, validation_line
from bitnetctl.errors import ConfigError
from bitnetctl.intervention import API_VERSION, Composition, Intervention, InterventionSettings
from bitnetctl.records import PluginRecord

GROUP = "bitnetctl.interventions"
OWN_DISTRIBUTION = "bitnetctl"
SEAMS = (
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


@dataclass(frozen=True, kw_only=True)
class Plugin:
    """A loaded and checked intervention class, or the one line that says why it cannot be used."""

    name: str
    distribution: str
    version: str
    target: str
    intervention: type[Intervention] | None
    problem: str | None

    @property
    def refusal(self) -> str:
        """One line that says why it cannot be used."""
        return f"intervention {self.name!r} of {self.distribution} {self.version} cannot be used: {self.problem}"

    @property
    def seams(self) -> list[str]:
        """Names of the seams it changes."""
        return [] if self.intervention is None else changed_seams(self.intervention)


@cache
def discover() -> tuple[Found, ...]:
    """Return every registered entry point, sorted by name and distribution.

    With BITNETCTL_DISABLE_PLUGINS=1 only those of this distribution.
    """
    own_only = os.environ.get("BITNETCTL_DISABLE_PLUGINS", "") not in ("", "0")
    found = [
        Found(name=entry.name, distribution=dist.name, version=dist.version, target=entry.value, entry_point=entry)
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
        normal = re.sub(r"[-_.]+", "-", name or "").lower()
        if normal and normal not in seen:
            seen.add(normal)
            yield dist, entries


def load_all() -> list[Plugin]:
    """Load every plug-in; the broken ones carry their problem and kill nothing."""
    return [load(name) for name in sorted({found.name for found in discover()})]


@cache
def load(name: str) -> Plugin:
    """Load one plug-in by name; what is wrong with it stands in `problem`. Raises ConfigError if there is none."""
    claims = [found for found in discover() if found.name == name]
    if not claims:
        known = sorted({found.name for found in discover()})
        hint = near_miss(name, known) or f"; there are: {', '.join(known)}"
        raise ConfigError(f"unknown intervention {name!r}{hint}")
    intervention, problem = None, None
    if len(claims) > 1:
        problem = "claimed by " + " and ".join(f"{found.distribution} {found.version}" for found in claims)
    else:
        try:
            intervention = check_class(claims[0].entry_point.load())
        # a plug-in may fail to import in any way, and must not take the command down with it
        except (Exception, SystemExit) as error:
            problem = f"{type(error).__name__}: {' '.join(str(error).split())}"
    first = claims[0]
    return Plugin(
        name=name,
        distribution=first.distribution,
        version=first.version,
        target=first.target,
        intervention=intervention,
        problem=problem,
    )


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


def changed_seams(intervention: type[Intervention]) -> list[str]:
    """Return the names of the seams that a class overrides."""
    return [seam for seam in SEAMS if getattr(intervention, seam) is not getattr(Intervention, seam)]


def normalize(config: RunConfig) -> RunConfig:
    """Return the config with its interventions checked and settings at their default left out.

    So `reduced-lr` and `reduced-lr:peak=5e-4` are the same run. Raises ConfigError.
    """
    specs = tuple(_normal_spec(spec) for spec in config.interventions)
    return config.model_copy(update={"interventions": specs})


def compose(specs: Sequence[InterventionSpec]) -> Composition:
    """Build the interventions of one run, each with its validated settings; raises ConfigError."""
    return Composition([_class_of(spec)(_settings_of(spec)) for spec in specs])


def plugin_records(specs: Iterable[InterventionSpec]) -> list[PluginRecord]:
    """Say which code ran with which settings, for the manifest."""
    return [
        PluginRecord(
            name=spec.name,
            version=load(spec.name).version,
            distribution=load(spec.name).distribution,
            settings=_settings_of(spec).model_dump(mode="json"),
        )
        for spec in specs
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
