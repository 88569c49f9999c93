"""Which of given runs a claim is judged by, and at which scale they are."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bitnetctl.cli.inputs import Given
from bitnetctl.config import RunConfig, canonical_arm, canonical_hash
from bitnetctl.errors import ConfigError
from bitnetctl.records import Run
from bitnetctl.records.find import is_bundle_folder
from bitnetctl.records.load import LoadedSet
from bitnetctl.records.run import EmptyRun

if TYPE_CHECKING:
    from bitnetctl.claims import Scale


def runs_of_claim(
    loaded: LoadedSet,
    planned: Iterable[RunConfig],
    arms: Sequence[str],
    is_requested: Callable[[RunConfig | None], bool],
) -> LoadedSet:
    """Return the given runs that are among those planned, seeds apart, or, where none is, those of the arms.

    The latter are at the requested scale as far as theirs is known. Raises ConfigError where they are of several
    recipes or lengths.
    """
    unread = [one for one in loaded.unread if one.arm in arms or one.arm is None]
    wanted = {config.but_for_seed.hash for config in planned}
    runs = [run for run in loaded.runs if run.config is not None and run.config.but_for_seed.hash in wanted]
    empty = [one for one in loaded.empty if one.config is not None and one.config.but_for_seed.hash in wanted]
    if not runs and not empty:
        runs = [run for run in loaded.runs if run.arm in arms and is_requested(run.config)]
        empty = [one for one in loaded.empty if _arm_of(one) in arms and is_requested(one.config)]
    _refuse_several(runs, empty)
    return LoadedSet(runs=runs, empty=empty, unread=unread)


def configs_of(runs: Sequence[Run], empty: Sequence[EmptyRun]) -> list[RunConfig]:
    """Return the configs of runs, as far as they are known."""
    configs = [*(run.config for run in runs), *(one.config for one in empty)]
    return [config for config in configs if config is not None]


def _arm_of(one: EmptyRun) -> str | None:
    """Return the arm of a run without rows, which another program may train."""
    if one.config is not None:
        return one.config.arm
    external = one.manifest.external if one.manifest is not None else None
    return None if external is None or external.arm is None else canonical_arm(external.arm)


def _refuse_several(runs: Sequence[Run], empty: Sequence[EmptyRun]) -> None:
    configs = configs_of(runs, empty)
    recipes = sorted({config.recipe for config in configs})
    if len(recipes) > 1:
        raise ConfigError(f"these runs are of {len(recipes)} recipes; judge one: --recipe {' or '.join(recipes)}")
    lengths = sorted({config.steps for config in configs})
    if len(lengths) > 1:
        choices = " or ".join(map(str, lengths))
        raise ConfigError(f"these runs are of {len(lengths)} lengths; judge one: --steps {choices}")


def runs_folder(given: Given, runs: Sequence[Run]) -> Path | None:
    """Return the one folder of runs that have manifests, None where that is a bundle or there are several."""
    folders = {run.path.parent for run in runs}
    is_packed = any(file.suffix.lower() == ".zip" for file in given.files)
    folder = folders.pop() if len(folders) == 1 else None
    return None if folder is None or is_packed or is_bundle_folder(folder.parent) else folder


def scale_of_runs(runs: Sequence[Run], known: Sequence[RunConfig]) -> "Scale":
    """Return the scale of runs, by their configs where all are known."""
    from bitnetctl.claims import Scale

    if known:
        return Scale.of(known)
    sizes = {run.size for run in runs if run.size is not None}
    steps = {run.planned_steps or run.final_step for run in runs}
    return Scale(recipe=None, sizes=tuple(sorted(sizes)), steps=tuple(sorted(steps)))


def design_of_runs(runs: Sequence[Run], known: Sequence[RunConfig]) -> str:
    """Return a hash of what runs are, their seeds apart, by their configs where all are known."""
    from bitnetctl.claims import design_hash

    if known:
        return design_hash(known)
    return canonical_hash(sorted({f"{run.arm} {run.size} {run.planned_steps}" for run in runs}))
