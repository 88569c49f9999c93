"""The settings of interventions as manifests record them, and runs found by what they are, not only by name.

Up to version 0.1 the name of a run and its config hash left out the settings at their default, which another version
of a plug-in may have changed; the manifest has them under `plugins`. No torch here.
"""

import bisect
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from bitnetctl.config import InterventionSpec, RunConfig, join_arm, parse_config
from bitnetctl.config.load import flatten
from bitnetctl.errors import ConfigError, RecordError
from bitnetctl.records.manifest import read_tree
from bitnetctl.records.paths import MANIFEST_NAME, RunPaths
from bitnetctl.units import listed

_ABSENT = "no such setting"
_MOST_FIELDS = 4


def complete_specs(specs: Iterable[Any], plugins: Iterable[Any]) -> list[dict[str, Any]]:
    """Return interventions as JSON with every setting that the `plugins` of their manifest tell.

    `defaults` is None for an intervention of which they tell nothing. Raises TypeError or AttributeError for JSON of
    another shape.
    """
    found = []
    infos = list(plugins)
    specs = list(specs)
    for index, spec in enumerate(specs):
        known = spec.get("defaults")
        info = infos[index] if len(infos) == len(specs) else {}
        if known is None and info.get("name") == spec["name"]:
            settings = spec.get("settings", {})
            known = {name: value for name, value in info.get("settings", {}).items() if name not in settings}
        found.append({**spec, "defaults": known})
    return found


def completed(config: RunConfig, plugins: Sequence[Mapping[str, Any]]) -> RunConfig:
    """Return a recorded config with every setting of its interventions that the manifest's `plugins` tell."""
    if not config.interventions:
        return config
    trees = complete_specs([spec.model_dump(mode="json") for spec in config.interventions], plugins)
    specs = tuple(
        spec.model_copy(update={"defaults": tree["defaults"]})
        for spec, tree in zip(config.interventions, trees, strict=True)
    )
    return config.model_copy(update={"interventions": specs})


def settings_key(specs: Iterable[Mapping[str, Any]]) -> str | None:
    """Return what two arms of equal settings share, of interventions as JSON; None where a setting may be unknown."""
    every = []
    for spec in specs:
        if spec.get("defaults") is None:
            return None
        every.append([spec["name"], {**spec["defaults"], **spec.get("settings", {})}])
    return json.dumps(every, sort_keys=True)


def key_of(config: RunConfig) -> str | None:
    """Return the `settings_key` of a config."""
    return settings_key(spec.model_dump(mode="json") for spec in config.interventions)


def tell_apart(configs: Sequence[RunConfig | None]) -> list[RunConfig | None]:
    """Return the configs, with the settings in their arms by which arms of one label and other settings differ.

    So `half-rate` of two versions, whose default differs, becomes `half-rate:factor=0.5` and `half-rate:factor=0.25`.
    """
    by_label: dict[str, dict[str, RunConfig]] = {}
    for config in configs:
        key = None if config is None else key_of(config)
        if config is not None and key is not None:
            by_label.setdefault(config.arm, {})[key] = config
    shown = {
        label: [_differing(specs) for specs in zip(*(config.interventions for config in by_key.values()), strict=True)]
        for label, by_key in by_label.items()
        if len(by_key) > 1
    }
    return [
        config
        if config is None or config.arm not in shown or key_of(config) is None
        else _showing(config, shown[config.arm])
        for config in configs
    ]


def full_label(config: RunConfig) -> str:
    """Return the label of an arm with all its settings."""
    return _showing(config, [set(spec.all_settings) for spec in config.interventions]).arm


def _differing(specs: Sequence[InterventionSpec]) -> set[str]:
    """Return the settings in which specs of one intervention differ."""
    names = {name for spec in specs for name in spec.all_settings}
    return {name for name in names if len({json.dumps(_value(spec, name)) for spec in specs}) > 1}


def _value(spec: InterventionSpec, name: str) -> Any:
    return [spec.all_settings[name]] if name in spec.all_settings else None


def _showing(config: RunConfig, names: Sequence[set[str]]) -> RunConfig:
    """Return the config with these settings of its interventions in its arm; its hash stays."""
    specs = []
    for spec, shown in zip(config.interventions, names, strict=True):
        moved = {name: value for name, value in (spec.defaults or {}).items() if name in shown}
        others = {name: value for name, value in (spec.defaults or {}).items() if name not in shown}
        settings = dict(sorted({**spec.settings, **moved}.items()))
        specs.append(spec.model_copy(update={"settings": settings, "defaults": others}))
    return config.model_copy(update={"interventions": tuple(specs)})


@dataclass(frozen=True, kw_only=True)
class FoundRun:
    """The files of a run and its hash there; `differing` says what another run has that it would be taken for."""

    paths: RunPaths
    config_hash: str
    differing: str | None = None
    other: str | None = None


class RunsFolder:
    """The runs in a folder, listed once."""

    def __init__(self, runs_dir: Path) -> None:
        self._runs_dir = runs_dir

    @cached_property
    def _names(self) -> list[str]:
        try:
            return sorted(os.listdir(self._runs_dir))  # noqa: PTH208 - names only, for thousands of runs
        except OSError:
            return []

    def find(self, config: RunConfig, name: str | None = None) -> FoundRun:
        """Return the files of a run: those of its name, else of a run that an earlier version named.

        With a `name` that was given to the run, only those. Raises ConfigError for a name that cannot be a file.
        """
        paths = RunPaths(self._runs_dir, name or config.run_name)
        if name is not None:
            recorded, config_hash = self._read(name)
            same = recorded is not None and not differences(recorded, config)
            return FoundRun(paths=paths, config_hash=config_hash if same else config.hash)
        if not any(spec.all_settings for spec in config.interventions) or paths.folder.exists() or paths.csv.exists():
            return FoundRun(paths=paths, config_hash=config.hash)
        differing = other = None
        for candidate in self._named_alike(config.run_name):
            recorded, config_hash = self._read(candidate)
            if recorded is None:
                continue
            if key_of(recorded) is None:
                # it tells nothing of its plug-ins, as it never trained a step: its name and hash decide
                if candidate in config.run_names:
                    return FoundRun(paths=RunPaths(self._runs_dir, candidate), config_hash=config_hash)
                continue
            texts = differences(recorded, config)
            if not texts:
                return FoundRun(paths=RunPaths(self._runs_dir, candidate), config_hash=config_hash)
            # with other settings given, it is another arm that was meant
            if differing is None and recorded.arm == config.arm and not _differ_elsewhere(recorded, config):
                differing, other = listed(texts), candidate
        return FoundRun(paths=paths, config_hash=config.hash, differing=differing, other=other)

    def _named_alike(self, name: str) -> Iterator[str]:
        """Yield the names that differ in the hash at their end only."""
        prefix = name[:-6]
        for index in range(bisect.bisect_left(self._names, prefix), len(self._names)):
            if not self._names[index].startswith(prefix):
                return
            if len(self._names[index]) == len(name):
                yield self._names[index]

    def _read(self, name: str) -> tuple[RunConfig | None, str]:
        try:
            tree = read_tree(self._runs_dir / name / MANIFEST_NAME)
            if tree is None:
                return None, ""
            config = parse_config(tree["config"])
            if config.hash != tree["config_hash"]:
                return None, ""
            return completed(config, tree.get("plugins") or []), config.hash
        except (RecordError, ConfigError, KeyError, TypeError, AttributeError):
            return None, ""


def differences(recorded: RunConfig, requested: RunConfig) -> list[str]:
    """Return what a requested config has other than a recorded one, such as `steps is 40 now, was 20`."""
    texts = []
    one, other = (dict(_fields(config)) for config in (recorded, requested))
    for name in dict.fromkeys([*one, *other]):
        before, now = (fields.get(name, _ABSENT) for fields in (one, other))
        if before != now:
            texts.append(f"{name} is {now} now, was {before}")
    more = len(texts) - _MOST_FIELDS
    return [*texts[:_MOST_FIELDS], *([f"{more} more fields"] if more > 0 else [])]


def _differ_elsewhere(recorded: RunConfig, requested: RunConfig) -> bool:
    """Whether configs differ in more than the settings of the same interventions."""
    names = [[spec.name for spec in config.interventions] for config in (recorded, requested)]
    plain = [config.model_copy(update={"interventions": ()}).hash for config in (recorded, requested)]
    return names[0] != names[1] or plain[0] != plain[1]


def _fields(config: RunConfig) -> Iterator[tuple[str, str]]:
    """Yield every field of a config and every setting of its interventions as text."""
    for name, value in flatten(config.model_dump(mode="json", exclude={"recipe", "interventions"})):
        yield name, _text(value)
    yield "the arm", join_arm(spec.name for spec in config.interventions)
    for spec in config.interventions:
        for name, value in sorted(spec.all_settings.items()):
            yield f"{spec.name}:{name}", _text(value)


def _text(value: Any) -> str:
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
