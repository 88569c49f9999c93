"""The arm that `-i` names, among runs that exist: its plug-in may have changed since, or be gone."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from bitnetctl.analysis.arms import MOST_ARMS
from bitnetctl.config import InterventionSpec, RunConfig, join_arm, parse_arm
from bitnetctl.errors import ConfigError, PluginError, RecordError
from bitnetctl.plugins import registry
from bitnetctl.records import Run, read_manifest
from bitnetctl.records.inventory import Inventory
from bitnetctl.records.recorded import differences, key_of
from bitnetctl.records.siblings import siblings_in
from bitnetctl.trainer.resolved import ResolvedRun
from bitnetctl.units import listed, shortened


def find_arm(text: str, runs: Sequence[Run], inventory: Inventory) -> str:
    """Return the label of the arm that a text names among runs; of an arm without a run, the label it would have.

    Of a plug-in that is not installed the runs tell the settings. Raises ConfigError where several arms or, of an
    unknown plug-in, none could be meant, and where the runs of that label have other settings than the plug-in now.
    """
    specs = parse_arm(text)
    by_label = {run.arm: run.config for run in runs if run.arm is not None}
    try:
        requested = registry.normalize(RunConfig(interventions=specs))
    except ConfigError as error:
        return _of_recorded(text, specs, by_label, inventory, error)
    known = {key_of(config): label for label, config in by_label.items() if config is not None}
    if key_of(requested) in known:
        return known[key_of(requested)]
    recorded = by_label.get(requested.arm)
    if recorded is not None and key_of(recorded) is not None:
        interventions = recorded.interventions
        there = requested.model_copy(update={"interventions": interventions})
        raise ConfigError(
            f"-i {text}: the runs of {requested.arm} have other settings: {listed(differences(there, requested))}; "
            f"take -i {_with_all_settings(there)} for them"
        )
    return requested.arm


def _with_all_settings(config: RunConfig) -> str:
    specs = (spec.model_copy(update={"settings": spec.all_settings}) for spec in config.interventions)
    return join_arm(specs)


def _of_recorded(
    text: str,
    specs: Sequence[InterventionSpec],
    by_label: "dict[str, RunConfig | None]",
    inventory: Inventory,
    error: ConfigError,
) -> str:
    """Return the one arm whose label is the text, or whose interventions have the settings in it."""
    label = join_arm(specs)
    if label in by_label or label in inventory.arms:
        return label
    matching = sorted(name for name, config in by_label.items() if config is not None and _has(config, specs))
    if len(matching) == 1:
        return matching[0]
    if matching:
        raise ConfigError(f"-i {text}: could be any of {shortened(matching, MOST_ARMS)}")
    raise ConfigError(f"{error}; arms of these runs: {shortened(sorted(by_label), MOST_ARMS) or 'none'}") from error


def _has(config: RunConfig, specs: Sequence[InterventionSpec]) -> bool:
    """Whether the interventions of a config are these, with these settings among theirs."""
    if [spec.name for spec in config.interventions] != [spec.name for spec in specs]:
        return False
    return all(
        recorded.all_settings.items() >= requested.settings.items()
        for recorded, requested in zip(config.interventions, specs, strict=True)
    )


@contextlib.contextmanager
def runs_of_arm_hinted(text: str, runs_dir: Path) -> Iterator[None]:
    """Add to a ConfigError how existing runs of an arm are judged whose plug-in is not installed."""
    try:
        yield
    except ConfigError as error:
        registered = {each.name for each in registry.discover()}
        gone = [spec.name for spec in parse_arm(text) if spec.file is None and spec.name not in registered]
        names = {one.identity.arm for one in siblings_in(runs_dir) if one.identity is not None}
        if gone and any(_names(label) == _names(text) for label in names):
            raise ConfigError(
                f"intervention {gone[0]!r} is not installed, so nothing of it can be trained; its runs can still be "
                f"judged: bitnetctl verify {runs_dir} -i {text}"
            ) from error
        raise


def _names(text: str) -> list[str]:
    with contextlib.suppress(ConfigError):
        return [spec.name for spec in parse_arm(text)]
    return []


def refuse_faults_of_plugins(runs: Iterable[ResolvedRun], arm: str) -> None:
    """Raise PluginError where a run of an arm could not be trained through a fault of its plug-in: it shows nothing."""
    for run in runs:
        if run.config.arm != arm:
            continue
        with contextlib.suppress(RecordError):
            manifest = read_manifest(run.paths.folder)
            if manifest is not None and manifest.status == "failed" and manifest.is_fault_of_plugin:
                raise PluginError(manifest.message or f"{run.name}: its plug-in failed")
