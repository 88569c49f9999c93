"""What the manifest of a run tells of the runs that were planned with it. No torch here."""

import os
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

from bitnetctl.config import BASELINE, RunConfig, canonical_arm, join_arm, parse_arm, parse_config
from bitnetctl.config.numbers import parse_seeds
from bitnetctl.errors import ConfigError
from bitnetctl.records.membership import Cell, Group, Known
from bitnetctl.records.run import EmptyRun, Run
from bitnetctl.records.siblings import Identity, Sibling

_COMMANDS = ("train", "sweep", "verify")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What was planned with one run.

    `source` is the name of that run. `seeds` are those of its arm and size; empty where no plan is known. `arms` are
    labels as in `Run.arm`, `typed_arms` those of a command line, which may leave settings out. `pack` are names of runs
    that were trained together with it.
    """

    source: str
    created_at: str
    seeds: frozenset[int]
    arms: tuple[str, ...]
    typed_arms: tuple[str, ...]
    pack: tuple[str, ...]

    @classmethod
    def of_manifest(cls, source: str, tree: dict[str, Any], seed: int) -> "Plan":
        """Read a manifest given as JSON; a field of another shape than expected tells nothing.

        An older one has no plan: it is read from the command line.
        """
        sessions = [*(one for one in _items(tree.get("sessions")) if isinstance(one, dict)), tree]
        planned = tree.get("planned")
        seeds: frozenset[int] = frozenset()
        arms: tuple[str, ...] = ()
        similar: dict[str, None] = {}
        if isinstance(planned, dict):
            seeds = frozenset(one for one in _items(planned.get("seeds")) if type(one) is int)
            # earlier versions wrote settings in the order in which they were typed
            arms = tuple(dict.fromkeys(map(canonical_arm, _texts(planned.get("arms")))))
        else:
            for session in sessions:
                of_command, typed = _of_command(list(_texts(session.get("command"))), seed)
                seeds |= of_command
                similar |= dict.fromkeys(typed)
        pack = dict.fromkeys(name for session in sessions for name in _texts(session.get("pack")))
        return cls(
            source=source,
            created_at=str(tree.get("created_at")),
            seeds=seeds,
            arms=arms,
            typed_arms=tuple(similar),
            pack=tuple(pack),
        )

    def without_arms(self, labels: Set[str | None]) -> "Plan":
        """Return the plan without some arms."""
        return replace(self, arms=tuple(arm for arm in self.arms if arm not in labels))


@dataclass(frozen=True, kw_only=True)
class Source:
    """A run whose manifest tells of a plan; its config is parsed where it is needed only, an external run has none."""

    identity: Identity
    tree: dict[str, Any] | None = None
    known: RunConfig | None = None

    def config(self) -> RunConfig | None:
        """Return the requested config, None where it is damaged or there is none."""
        if self.known is None and self.tree is not None and self.tree.get("config") is not None:
            try:
                return parse_config(self.tree["config"])
            except ConfigError:
                return None
        return self.known


def read_plans(
    runs: Iterable[Run], empty: Iterable[EmptyRun], siblings: Iterable[Sibling]
) -> Iterator[tuple[Source, Plan]]:
    """Yield the plans in the manifests of the given runs and of their siblings, each with its source."""
    fields = {"planned", "pack", "command", "created_at", "sessions"}
    seen: set[str] = set()
    given: list[Run | EmptyRun] = [*runs, *empty]
    for one in given:
        identity = Identity.of_manifest(one.manifest) if one.config is None else Identity.of_config(one.config)
        if one.manifest is not None and identity is not None:
            seen.add(os.path.realpath(one.path))
            tree = one.manifest.model_dump(mode="json", include=fields)
            yield Source(identity=identity, known=one.config), Plan.of_manifest(one.name, tree, identity.seed)
    for sibling in siblings:
        if sibling.tree is not None and sibling.identity is not None and not sibling.real_csvs & seen:
            source = Source(identity=sibling.identity, tree=sibling.tree)
            yield source, Plan.of_manifest(sibling.name, sibling.tree, sibling.identity.seed)


class PlannedSeeds:
    """The seeds that the plans name, by arm, size and seed: `seeds` has the group, the run, and the plan's source.

    `names` are those of runs of which there are files. `other_arms` are the arms, without settings, that packs name.
    """

    def __init__(self, known: Known, names: set[str]) -> None:
        self._known = known
        self._names = set(names)
        self.seeds: dict[tuple[str, int, int], tuple[Group, Identity, str]] = {}
        # when the plan was made first
        self._plans: dict[tuple[Cell, frozenset[int]], str] = {}
        self.other_arms: dict[str, None] = {}

    def add(self, source: Source, plan: Plan) -> None:
        """Add what one manifest tells."""
        own = source.identity
        group = self._known.group_of(own, plan.source)
        # what was planned at another length is not missing at this one
        if group is not None and own.steps in group.steps and plan.seeds:
            key = ((group.arm, group.size), plan.seeds)
            if key not in self._plans:
                for seed in plan.seeds:
                    self._add(group, Identity(size=own.size, arm=own.arm, seed=seed, steps=own.steps), plan.source)
            self._plans[key] = min(plan.created_at, self._plans.get(key, plan.created_at))
        new = [name for name in plan.pack if name not in self._names]
        if new:
            self._names |= set(new)
            # a name ends with a hash of the config, unless names were given
            config = source.config() if plan.source in plan.pack else None
            for name in new:
                member = Identity.of_name(name)
                if member is not None:
                    self._add_of_pack(member, name, config, plan.source)

    def _add(self, group: Group, identity: Identity, source: str) -> None:
        self.seeds.setdefault((group.arm, group.size, identity.seed), (group, identity, source))

    def _add_of_pack(self, member: Identity, name: str, config: RunConfig | None, source: str) -> None:
        """Add a run of the pack of a run with this config, None where the hash in its name tells nothing."""
        similar = self._known.similar(member)
        if not similar:
            self.other_arms.setdefault(member.arm)
        if config is not None and source in config.run_names:
            similar = [group for group in similar if self._is_of(group, member, name, config)]
        if similar and member.steps in similar[0].steps:
            self._add(similar[0], member, source)

    @staticmethod
    def _is_of(group: Group, member: Identity, name: str, config: RunConfig) -> bool:
        """Whether the name is that of a run of the group with the settings of another run of its pack."""
        if not group.configs:
            return True
        changes = {
            "seed": member.seed,
            "steps": member.steps,
            "interventions": next(iter(group.configs.values())).interventions,
        }
        return name in config.model_copy(update=changes).run_names

    def growth(self) -> dict[Cell, tuple[int, ...]]:
        """Return the numbers of seeds planned over time: those after every plan that adds a seed to earlier ones."""
        planned: dict[Cell, set[int]] = {}
        numbers: dict[Cell, list[int]] = {}
        for cell, seeds in sorted(self._plans, key=lambda key: (self._plans[key], len(key[1]), sorted(key[1]))):
            before = planned.setdefault(cell, set())
            if not seeds <= before:
                before |= seeds
                numbers.setdefault(cell, []).append(len(before))
        return {cell: tuple(of_cell) for cell, of_cell in numbers.items()}


def _of_command(command: Sequence[str], own_seed: int) -> tuple[frozenset[int], list[str]]:
    """Return the seeds and the arms that a command line names; of a program that only calls the library, none."""
    # after `python -m bitnetctl` or the name of the program
    start = next((index for index, text in enumerate(command[:4]) if text in _COMMANDS), None)
    if start is None:
        return frozenset(), []
    if command[start] == "train":
        return frozenset({own_seed}), []
    seeds: frozenset[int] = frozenset()
    arms: list[str] = []
    options = command[start + 1 :]
    for name, value in _options(options):
        try:
            if name == "--seeds":
                seeds = frozenset(parse_seeds(value))
            elif name in ("-i", "--intervention"):
                arms.append(join_arm(parse_arm(value)))
        except ConfigError:
            continue
    # both commands train it unless told otherwise; a worker's command line names neither arms nor seeds
    if "--no-baseline" not in options and not any(text.startswith(("--configs", "--plan")) for text in options):
        arms.insert(0, BASELINE)
    return seeds, arms


def _options(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield options with their values, in any of the forms `--seeds 6`, `--seeds=6`, `-i ARM` and `-iARM`."""
    for index, text in enumerate(arguments):
        name, equals, value = text.partition("=")
        if text in ("--seeds", "--intervention", "-i"):
            if index + 1 < len(arguments):
                yield text, arguments[index + 1]
        elif name in ("--seeds", "--intervention") and equals:
            yield name, value
        elif text.startswith("-i") and not text.startswith("--"):
            yield "-i", text[2:]


def _items(value: object) -> Sequence[object]:
    return value if isinstance(value, list | tuple) else ()


def _texts(value: object) -> Iterator[str]:
    return (item for item in _items(value) if isinstance(item, str))
