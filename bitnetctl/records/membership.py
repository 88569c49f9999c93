"""Which runs belong to those given: the same settings, and an arm and a size that are among them. No torch here."""

from dataclasses import dataclass, field, replace
from typing import TypeAlias

from bitnetctl.config import RunConfig
from bitnetctl.records.naming import names_only
from bitnetctl.records.siblings import Identity, Sibling

Cell: TypeAlias = tuple[str, int]
"""Arm and size."""


@dataclass(kw_only=True)
class Group:
    """The given runs of one arm and size; `configs` has one config for every setting of theirs.

    `interventions` is the `settings_key` of the arm, None where unknown. `is_recorded`: a manifest tells of the arm.
    """

    arm: str
    size: int
    seeds: set[int] = field(default_factory=set)
    steps: set[int] = field(default_factory=set)
    configs: dict[str | None, RunConfig] = field(default_factory=dict)
    interventions: str | None = None
    is_recorded: bool = False


class Known:
    """What is known of the given runs, and which others belong to them."""

    def __init__(self) -> None:
        self.groups: dict[Cell, Group] = {}
        self.arms: dict[str, None] = {}
        self.settings: set[str | None] = set()

    def add(
        self,
        arm: str | None,
        size: int | None,
        steps: int | None,
        config: RunConfig | None,
        seed: int | None = None,
        external: Identity | None = None,
    ) -> None:
        """Add a given run, `external` if another program trained it; one of unknown arm or size tells of no other."""
        if arm is not None:
            self.arms.setdefault(arm)
        if arm is None or size is None:
            return
        group = self.groups.setdefault((arm, size), Group(arm=arm, size=size))
        group.seeds |= set() if seed is None else {seed}
        group.steps |= set() if steps is None else {steps}
        if external is not None:
            group.is_recorded = True
            self.settings.add(external.settings)
        if config is not None:
            identity = Identity.of_config(config)
            group.is_recorded = True
            group.configs.setdefault(identity.settings, config)
            group.interventions = group.interventions or identity.interventions
            self.settings.add(identity.settings)

    def includes(self, sibling: Sibling) -> bool:
        """Whether a sibling has the settings of the given runs, apart from its arm and as far as is known."""
        if sibling.identity is None:
            return False
        settings = sibling.identity.settings
        return settings is None or not self.settings or settings in self.settings

    def group_of(self, identity: Identity, name: str) -> Group | None:
        """Return the group that a run belongs to; where settings are unknown, the interventions' names decide."""
        if identity.settings is not None and (identity.arm, identity.size) in self.groups:
            return self.groups[identity.arm, identity.size]
        similar = [
            group
            for group in self.similar(identity)
            # an arm whose settings are known is another one
            if identity.settings is None or not group.is_recorded
        ]
        if len(similar) > 1:
            similar.sort(key=lambda group: not _would_be_named(group, identity, name))
        return similar[0] if similar else None

    def told_apart(self, identity: Identity) -> Identity:
        """Return an identity with the label of the given arm of its settings, or with all of them where that is taken.

        A run of another version of a plug-in, whose default differs, is of another arm.
        """
        key = identity.interventions
        known = {group.interventions: group.arm for group in self.groups.values() if group.interventions is not None}
        if key is None or not known:
            return identity
        if key in known:
            return replace(identity, arm=known[key])
        if identity.arm not in known.values():
            return identity
        label = identity.full_arm or identity.arm
        # of a version that had no settings
        return replace(identity, arm=f"{label} (other settings)" if label in known.values() else label)

    def similar(self, identity: Identity) -> list[Group]:
        """Return the groups of this size whose interventions have the same names."""
        arm = names_only(identity.arm)
        return [one for one in self.groups.values() if one.size == identity.size and names_only(one.arm) == arm]


def _would_be_named(group: Group, identity: Identity, name: str) -> bool:
    """Whether a run of a group with this seed and length would have the name, which ends with a hash of its config."""
    changes = {"seed": identity.seed, "steps": identity.steps}
    return any(name in config.model_copy(update=changes).run_names for config in group.configs.values())
