"""Which runs belong to a set that is judged beside those given: runs that failed, are missing or were left out.

A set that was chosen after looking at its runs proves nothing, so whatever the files tell of further runs counts: what
the commands planned, and what lies beside the given CSVs. No torch here.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, TypeAlias

from bitnetctl.errors import RecordError, one_line
from bitnetctl.records.distinct import distinct_runs
from bitnetctl.records.find import LEFT_OUT_FOLDER, is_bundle_folder
from bitnetctl.records.load import load_run
from bitnetctl.records.manifest import Manifest
from bitnetctl.records.membership import Cell, Group, Known
from bitnetctl.records.naming import names_only
from bitnetctl.records.planned import Plan, PlannedSeeds, read_plans
from bitnetctl.records.run import EmptyRun, Run, UnreadRun
from bitnetctl.records.siblings import Identity, Sibling, siblings_in

State: TypeAlias = Literal["failed", "unreadable", "unfinished", "missing", "left out"]
# of several runs of one arm, size and seed the first of these is listed
_WEIGHT: Sequence[State] = ("failed", "unreadable", "left out", "unfinished", "missing")


@dataclass(frozen=True, kw_only=True)
class AbsentRun:
    """A run of the set that is not among those judged.

    `run` is its name, or `seed 5` for one without files. `reason` is one clause. `path` is where its CSV is or would
    be, with its `run.json` beside it as for any run; None without files. One that is unreadable may be of unknown arm,
    size or seed.
    """

    run: str
    arm: str | None
    size: int | None
    seed: int | None
    planned_steps: int | None
    state: State
    reason: str
    path: Path | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, kw_only=True)
class Inventory:
    """What belongs to a set of runs beside those given.

    `arms` are all arms planned or trained with these runs, at any size; those given come first. `plans` are, for every
    arm and size, the numbers of seeds planned over time: (3, 6) where a plan of three seeds became one of six. `others`
    are the siblings of arms and sizes that are not among those given. `unnamed` counts the CSVs beside given runs of
    unknown arm or seed that neither a manifest nor their name tells about.
    """

    absent: tuple[AbsentRun, ...] = ()
    arms: tuple[str, ...] = ()
    plans: Mapping[Cell, tuple[int, ...]] = field(default_factory=dict)
    others: tuple[AbsentRun, ...] = field(default=(), compare=False)
    unnamed: int = 0


def take_inventory(runs: Sequence[Run], empty: Sequence[EmptyRun] = (), unread: Sequence[UnreadRun] = ()) -> Inventory:
    """Return what belongs to the given runs beside them.

    `empty` are those given that have no evaluation, `unread` those given that cannot be read.

    A sibling, a run in the folder of a given one, belongs to them if its requested config equals theirs apart from
    `MAY_DIFFER`; where no manifest tells, its name decides. Of arms and sizes that are not among those given no run is
    listed. Files that cannot be read raise nothing.
    """
    known = Known()
    for run in runs:
        external = Identity.of_manifest(run.manifest) if run.external is not None else None
        known.add(run.arm, run.size, run.planned_steps, run.config, seed=run.seed, external=external)
    for one in empty:
        identity = _identity_of(one)
        if identity is not None:
            external = identity if one.config is None else None
            known.add(identity.arm, identity.size, identity.steps, one.config, external=external)
    for bad in unread:
        known.add(bad.arm, bad.size, bad.planned_steps, bad.config)
    given = [run.path for run in runs] + [one.path for one in empty] + [bad.path for bad in unread]
    found = [
        one if one.identity is None else replace(one, identity=known.told_apart(one.identity))
        for folder in _folders(given)
        for one in siblings_in(folder)
    ]
    # without a group nothing can be said of the other files
    siblings = [one for one in found if known.groups and known.includes(one)]
    absent = _Absent()
    unnamed = list(_add_unread(absent, known, unread))
    _add_siblings(absent, known, runs, siblings)
    names = {name for run in runs for name in (run.name, run.path.stem)} | {one.name for one in found}
    _add_never_started(absent, known, [one for one in empty if one.name not in names])
    # arms as commands named them, before settings told them apart
    manifests = [*(run.manifest for run in runs), *(one.manifest for one in empty)]
    short = set(map(_recorded_arm, manifests)) - known.arms.keys()
    plans = [(source, plan.without_arms(short)) for source, plan in read_plans(runs, empty, siblings)]
    planned = PlannedSeeds(known, names)
    for source, plan in plans:
        planned.add(source, plan)
    absent.add_missing(planned.seeds.values())
    return Inventory(
        absent=(*absent.in_order(known), *unnamed),
        arms=_all_arms(known, siblings, [plan for _, plan in plans], planned.other_arms),
        plans=planned.growth(),
        others=tuple(_others(known, siblings)),
        unnamed=_count_unnamed(runs, found, unread),
    )


def _recorded_arm(manifest: Manifest | None) -> str | None:
    identity = Identity.of_manifest(manifest)
    return None if identity is None else identity.arm


def _identity_of(one: EmptyRun) -> Identity | None:
    return Identity.of_manifest(one.manifest) if one.config is None else Identity.of_config(one.config)


def _count_unnamed(runs: Sequence[Run], found: Iterable[Sibling], unread: Iterable[UnreadRun]) -> int:
    """Count the CSVs beside the given ones of which nothing is known, if that holds for a given one, too."""
    folders = {os.path.realpath(run.path.parent) for run in runs if run.arm is None or run.seed is None}
    given = {os.path.realpath(path) for path in (*(run.path for run in runs), *(bad.path for bad in unread))}
    return sum(
        one.identity is None and bool(one.csvs) and not one.real_csvs & given
        for one in found
        if os.path.realpath(one.csv.parent) in folders
    )


class _Absent:
    """The absent runs, one for every arm, size and seed."""

    def __init__(self) -> None:
        self._entries: dict[tuple[str, int, int], tuple[tuple[int, bool, str], AbsentRun]] = {}

    def add(
        self, group: Group, identity: Identity, state: State, reason: str, name: str, path: Path | None = None
    ) -> None:
        """Add a run, unless one that weighs more is there already."""
        entry = AbsentRun(
            run=name,
            arm=group.arm,
            size=group.size,
            seed=identity.seed,
            planned_steps=identity.steps,
            state=state,
            reason=reason,
            path=path,
        )
        rank = (_WEIGHT.index(state), identity.steps not in group.steps, name)
        key = (group.arm, group.size, identity.seed)
        if key not in self._entries or rank < self._entries[key][0]:
            self._entries[key] = (rank, entry)

    def add_missing(self, planned: Iterable[tuple[Group, Identity, str]]) -> None:
        """Add the planned seeds of which there is no run."""
        for group, identity, source in planned:
            if identity.seed not in group.seeds and (group.arm, group.size, identity.seed) not in self._entries:
                self.add(group, identity, "missing", f"planned with {source}, no file", f"seed {identity.seed}")

    def in_order(self, known: Known) -> tuple[AbsentRun, ...]:
        """Return the runs, the groups in the order of the given runs, seeds ascending."""
        order = {cell: index for index, cell in enumerate(known.groups)}
        keys = sorted(self._entries, key=lambda key: (order[key[:2]], key[2]))
        return tuple(self._entries[key][1] for key in keys)


def _folders(given: Iterable[Path]) -> list[Path]:
    """Return the folders of the given CSVs, and those that hold what they link to, each once.

    Beside the runs of an unpacked bundle lie those that were left out.
    """
    folders: dict[str, Path] = {}
    for path in dict.fromkeys(given):
        for folder in (path.parent, Path(os.path.realpath(path)).parent):
            places = [folder, folder.parent / LEFT_OUT_FOLDER] if is_bundle_folder(folder.parent) else [folder]
            for place in places:
                folders.setdefault(os.path.realpath(place), place)
    return list(folders.values())


def _add_unread(absent: _Absent, known: Known, unread: Iterable[UnreadRun]) -> Iterator[AbsentRun]:
    """Add the given runs that cannot be read, and yield those of which it is not known what run they are."""
    for one in unread:
        group = None
        if one.arm is not None and one.size is not None:
            group = known.groups[one.arm, one.size]
        name = one.path.stem
        if group is not None and one.seed is not None and one.planned_steps is not None:
            identity = Identity(size=group.size, arm=group.arm, seed=one.seed, steps=one.planned_steps)
            absent.add(group, identity, "unreadable", one.problem, name, one.path)
            continue
        yield AbsentRun(
            run=name,
            arm=one.arm,
            size=one.size,
            seed=one.seed,
            planned_steps=one.planned_steps,
            state="unreadable",
            reason=one.problem,
            path=one.path,
        )


def _add_siblings(absent: _Absent, known: Known, runs: Sequence[Run], siblings: Iterable[Sibling]) -> None:
    """Add the siblings that are not given, unless they are copies of given runs."""
    given = {os.path.realpath(run.path) for run in runs}
    candidates: list[tuple[Sibling, Group, Identity]] = []
    for sibling in siblings:
        identity = sibling.identity
        group = None if identity is None else known.group_of(identity, sibling.name)
        if identity is None or group is None or sibling.real_csvs & given:
            continue
        # it may have been named before its plug-in could be asked for its settings
        if sibling.is_fault_of_plugin and not sibling.has_rows and identity.seed in group.seeds:
            continue
        # a run of another length, and of another seed with its manifest, is no copy
        may_be_copy = identity.steps in group.steps and (identity.settings is None or identity.seed in group.seeds)
        if sibling.has_rows and may_be_copy:
            candidates.append((sibling, group, identity))
        else:
            absent.add(group, identity, *_state(sibling, group), sibling.name, sibling.csv)
    copies = _copies(runs, [sibling for sibling, _, _ in candidates])
    for sibling, group, identity in candidates:
        copy, original = copies.get(sibling.csv, (None, None))
        if copy is None or original is None:
            absent.add(group, identity, *_state(sibling, group), sibling.name, sibling.csv)
        elif len(copy.steps) > len(original.steps):
            reason = f"in the same folder, not given, with more rows than {original.path.name}"
            absent.add(group, identity, "left out", reason, sibling.name, sibling.csv)


def _copies(runs: Sequence[Run], siblings: Iterable[Sibling]) -> dict[Path, tuple[Run, Run]]:
    """Return the siblings that hold the values of a given run by their CSV, each with the longest such run."""
    loaded: dict[Path, Run] = {}
    for sibling in siblings:
        # a copy of a spreadsheet may have decimal commas, whatever holds for the given files
        for decimal in (".", ","):
            with contextlib.suppress(RecordError):
                loaded[sibling.csv] = load_run(sibling.csv, decimal=decimal)
                break
    if not loaded:
        return {}
    kept, doubles = distinct_runs([*runs, *loaded.values()])
    same = {id(run): [run] for run in kept}
    for double in doubles:
        same[id(double.same_as)].append(double.run)
    copies: dict[Path, tuple[Run, Run]] = {}
    for of_one in same.values():
        given = max((run for run in of_one if run.path not in loaded), key=lambda run: len(run.steps), default=None)
        if given is not None:
            copies |= {run.path: (run, given) for run in of_one if run.path in loaded}
    return copies


def _state(sibling: Sibling, group: Group) -> tuple[State, str]:
    """Return the state of a run that is not given, and the reason as one clause."""
    status = sibling.status
    if sibling.has_rows:
        details = ["its run.json is damaged" if sibling.is_damaged else status or ""]
        if sibling.identity is not None and sibling.identity.steps not in group.steps:
            details.append(f"{sibling.identity.steps:,} steps")
        text = ", ".join(filter(None, details))
        return "left out", "in the same folder, not given" + (f" ({text})" if text else "")
    if sibling.is_damaged:
        return "missing", "its run.json is damaged"
    is_gone = not sibling.csvs and sibling.steps_done > 0
    when = f"after {sibling.steps_done:,} steps, its CSV was deleted" if is_gone else "before its first evaluation"
    if sibling.is_fault_of_plugin:
        # says nothing about the arm
        message = f": {one_line(sibling.message)}" if sibling.message else ""
        return "unfinished", f"its plug-in failed {when}{message}"
    if status in ("failed", "diverged"):
        message = f": {one_line(sibling.message)}" if sibling.message else ""
        return "failed", f"{status} {when}{message}"
    if status == "finished":
        return "missing", f"its CSV {'holds no rows' if sibling.csvs else 'was deleted'} (finished)"
    if status is None:
        return "unfinished", f"no run.json, {'a CSV without rows' if sibling.csvs else 'only a lock'}"
    return "unfinished", f"{status} {when}" if is_gone or status == "stopped" else f"{status}, no evaluation yet"


def _others(known: Known, siblings: Iterable[Sibling]) -> Iterator[AbsentRun]:
    """Yield the siblings of arms and sizes that are not among those given."""
    for sibling in siblings:
        one = sibling.identity
        if one is not None and known.group_of(one, sibling.name) is None:
            yield AbsentRun(
                run=sibling.name,
                arm=one.arm,
                size=one.size,
                seed=one.seed,
                planned_steps=one.steps,
                state="left out",
                reason="in the same folder, not given",
                path=sibling.csv,
            )


def _add_never_started(absent: _Absent, known: Known, empty: Iterable[EmptyRun]) -> None:
    """Add the given runs of which there is no file."""
    for one in empty:
        identity = _identity_of(one)
        if identity is None:
            continue
        group = known.groups[identity.arm, identity.size]
        if identity.seed not in group.seeds:
            absent.add(group, identity, "missing", "no file", f"seed {identity.seed}")


def _all_arms(
    known: Known, siblings: Iterable[Sibling], plans: Sequence[Plan], of_packs: Iterable[str]
) -> tuple[str, ...]:
    """Return every arm, the given ones first; where only the names of interventions are known, known arms have them."""
    arms = dict(known.arms)
    for plan in plans:
        arms |= dict.fromkeys(plan.arms)
    by_name: dict[str, None] = dict.fromkeys(of_packs)
    for sibling in siblings:
        if sibling.identity is not None:
            (by_name if sibling.identity.settings is None else arms).setdefault(sibling.identity.arm)
    for labels in ([[name] for name in by_name], [plan.typed_arms for plan in plans]):
        for of_one in labels:
            for name in dict.fromkeys(map(names_only, of_one)):
                named = [label for label in of_one if names_only(label) == name]
                there = [arm for arm in arms if names_only(arm) == name]
                new = [label for label in named if label not in there]
                arms |= dict.fromkeys(new[: max(0, len(set(named)) - len(there))])
    return tuple(arms)
