"""Factors of a sweep: the config fields in which the runs differ, whatever the arms are called."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from bitnetctl.config import RunConfig
from bitnetctl.config.load import flatten

NOT_FACTORS = frozenset({"recipe", "seed", "interventions"})
"""Config fields that are labels or seeds; interventions count by the fields that they change."""

Partition: TypeAlias = tuple[int, ...]
"""The level of a factor in every run, as an integer from 0."""


@dataclass(frozen=True, kw_only=True)
class Factor:
    """Config fields that always change together, as one factor.

    `levels` are texts: numbers in ascending order, other values by the alphabet after `off`. `level_of` has an index
    into `levels` for every run.
    """

    fields: tuple[str, ...]
    levels: tuple[str, ...]
    level_of: Partition

    @property
    def name(self) -> str:
        """All of its fields."""
        return ", ".join(self.fields)

    @property
    def is_size(self) -> bool:
        """Whether it is the size of the model, which is no treatment: the runs of a seed at all sizes count once."""
        return "model.hidden_size" in self.fields

    def among(self, indices: Sequence[int]) -> "Factor":
        """Return the factor over some of the runs, without levels that none of them has."""
        used = sorted({self.level_of[index] for index in indices})
        renumbered = {level: number for number, level in enumerate(used)}
        return Factor(
            fields=self.fields,
            levels=tuple(self.levels[level] for level in used),
            level_of=tuple(renumbered[self.level_of[index]] for index in indices),
        )


def find_factors(configs: Sequence[RunConfig]) -> list[Factor]:
    """Return the factors of a sweep: the fields in which the effective configs of the runs differ.

    Fields that always change together are one factor. An intervention that changes no field, for example one with
    another training loss, is a factor with the levels `off`, `on` or its settings; one that changes fields joins
    the factor of a field that changes exactly where the intervention does. The order of the runs has no influence.
    """
    trees = [dict(flatten(config.but_for_seed.model_dump(mode="json"))) for config in configs]
    factors: dict[Partition, Factor] = {}
    for name in trees[0] if trees else ():
        if name not in NOT_FACTORS:
            _add_field(factors, name, [tree[name] for tree in trees])
    of_fields = list(factors)
    cells = max(1, len(set(zip(*of_fields, strict=True))))
    for name in sorted({spec.name for config in configs for spec in config.interventions}):
        values = [
            next((str(spec).partition(":")[2] or "on" for spec in config.interventions if spec.name == name), "off")
            for config in configs
        ]
        partition = _partition(values)
        # an intervention whose settings follow from the fields adds no factor
        if partition in factors or len(set(zip(*of_fields, partition, strict=True))) > cells:
            _add_field(factors, name, values)
    return list(factors.values())


def _add_field(factors: dict[Partition, Factor], name: str, values: Sequence[Any]) -> None:
    """Add a field, if it varies, to the factor with the same partition, or as a new factor."""
    partition = _partition(values)
    if len(set(partition)) < 2:
        return
    if partition in factors:
        factors[partition] = replace(factors[partition], fields=(*factors[partition].fields, name))
        return
    distinct = sorted(dict(zip(partition, values, strict=True)).items(), key=lambda pair: _level_order(pair[1]))
    level_of = {number: level for level, (number, _) in enumerate(distinct)}
    factors[partition] = Factor(
        fields=(name,),
        levels=tuple(_level_text(value) for _, value in distinct),
        level_of=tuple(level_of[number] for number in partition),
    )


def _partition(values: Sequence[Any]) -> Partition:
    """Number the distinct values in the order of their first run: equal for fields that always change together."""
    numbers: dict[str, int] = {}
    return tuple(numbers.setdefault(json.dumps(value, sort_keys=True), len(numbers)) for value in values)


def _level_order(value: Any) -> tuple[bool, float, bool, str]:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return False, float(value), False, ""
    return True, 0.0, value not in (None, "off"), _level_text(value)


def _level_text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return ", ".join(map(_level_text, value)) or "none"
    return "unset" if value is None else str(value)


def cell_text(factors: Sequence[Factor], cell: Sequence[int]) -> str:
    """Return the levels of one combination, joined."""
    return " / ".join(factor.levels[level] for factor, level in zip(factors, cell, strict=True))
