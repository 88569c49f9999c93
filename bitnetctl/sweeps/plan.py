"""Grids and named plans: from arms, sizes and seeds to the configs of runs. No torch here."""

import contextlib
import itertools
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Self

from pydantic import Field, field_validator, model_validator

from bitnetctl.config import (
    BASELINE,
    Frozen,
    RunConfig,
    apply_override,
    arm_beside,
    beside,
    build_config,
    load_recipe,
    parse_arm,
    parse_value,
    read_toml,
    validated,
)
from bitnetctl.config.load import flatten
from bitnetctl.config.numbers import MAX_RUNS
from bitnetctl.config.schema import value_text
from bitnetctl.errors import ConfigError
from bitnetctl.plugins import registry

_NAMED = {"steps": "steps", "model.hidden_size": "sizes", "seed": "seeds"}
"""The field of a plan, and option of that name, for a field of the config."""

ARM = "arm"
"""The choice of interventions in a search, beside fields of the config."""


class Plan(Frozen):
    """The arms, sizes, seeds and steps of a sweep; an unset one is the recipe's.

    `factors` is a factorial design, {factor: {level: interventions, "" for none}}: an arm for every combination of
    levels. `arms` come before them. `grid` has values of fields of the config: every arm trains with every combination.
    Where one of these fields decides a field of the config, other values of that in `overrides` or `grid` are refused.
    """

    description: str = ""
    recipe: str = "origin"
    steps: Annotated[int | None, Field(gt=0)] = None
    sizes: tuple[Annotated[int, Field(gt=0)], ...] = ()
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**63)], ...] = (0,)
    arms: tuple[str, ...] = ()
    factors: dict[str, dict[str, str]] = Field(default_factory=dict)
    baseline: bool = Field(True, description="add the baseline arm unless it is among the arms")
    overrides: tuple[str, ...] = Field((), description="section.field=value, for every run")
    grid: dict[str, tuple[bool | int | float | str, ...]] = Field(
        default_factory=dict, description="values of section.field, a run with each"
    )

    @field_validator("seeds", mode="before")
    @classmethod
    def _expand_seeds(cls, value: object) -> object:
        return expand_seeds(value)

    @field_validator("grid", mode="before")
    @classmethod
    def _flatten_grid(cls, value: object) -> object:
        return flatten_fields(value)

    @model_validator(mode="after")
    def _check_lists(self) -> Self:
        if not self.seeds:
            raise ValueError("no seeds")
        for kind, values in (("size", self.sizes), ("seed", self.seeds), ("arm", self.arms)):
            for value, count in Counter[int | str](values).items():
                if count > 1:
                    raise ValueError(f"{kind} {value} is named twice")
        if any(not levels for levels in self.factors.values()):
            raise ValueError("a factor has no levels")
        if math.prod(len(levels) for levels in self.factors.values()) > MAX_RUNS:
            raise ValueError(f"the factors span more than {MAX_RUNS:,} arms")
        if math.prod(len(values) for values in self.grid.values()) > MAX_RUNS:
            raise ValueError(f"the grid has more than {MAX_RUNS:,} points")
        for field, points in self.grid.items():
            if field in ("seed", "interventions"):
                raise ValueError(f"grid: {field}: take {'seeds' if field == 'seed' else 'arms or factors'} for that")
            if not points:
                raise ValueError(f"grid: {field} has no values")
        return self

    @model_validator(mode="after")
    def _refuse_values_without_effect(self) -> Self:
        own = {"steps": self.steps and (self.steps,), "model.hidden_size": self.sizes, "seed": self.seeds}
        asked: list[tuple[str, str, Sequence[object]]] = []
        for text in self.overrides:
            field, _, value = (part.strip() for part in text.partition("="))
            if field in self.grid:
                raise ValueError(f"overrides: {text}: no effect beside the values in the grid; take one of them")
            asked.append((f"overrides: {text}", field, (parse_value(value),)))
        asked += [(f"grid: {field}", field, values) for field, values in self.grid.items()]
        for place, field, values in asked:
            decided = own.get(field)
            if decided and any(value != one for value in values for one in decided):
                name = _NAMED[field]
                remedy = "one of them" if place == "grid: steps" else f"--{name}"
                raise ValueError(f"{place}: no effect beside {name} (--{name}); take {remedy}")
        return self

    def points(self) -> list[tuple[str, ...]]:
        """Return every combination of the values of the grid as overrides; one without any where there is no grid."""
        axes = ([f"{field}={value_text(value)}" for value in values] for field, values in self.grid.items())
        return list(itertools.product(*axes))

    def all_arms(self) -> list[str]:
        """Return every arm as text, the baseline first if it is wanted."""
        crossed = [
            "+".join(level for level in levels if level)
            for levels in itertools.product(*(factor.values() for factor in self.factors.values()))
        ]
        arms = [*self.arms, *(crossed if self.factors else [])]
        texts = ["" if arm.strip() == BASELINE else arm.strip() for arm in arms]
        if self.baseline and "" not in texts:
            texts.insert(0, "")
        return texts

    def configs(self) -> list[RunConfig]:
        """Return a config for every size, arm and seed, without duplicates.

        One whose plug-in is at fault is among them, as it was asked for; raises ConfigError for anything else.
        """
        arms, sizes = self.all_arms(), self.sizes or (None,)
        points = self.points()
        if len(arms) * len(sizes) * len(points) * len(self.seeds) > MAX_RUNS:
            raise ConfigError(f"the plan has more than {MAX_RUNS:,} runs")
        # those of one name and other code have one hash
        registry.refuse_shared_names(spec for arm in arms for spec in parse_arm(arm))
        configs: dict[str, RunConfig] = {}
        for size, point, arm in itertools.product(sizes, points, arms):
            base = registry.normalize_if_usable(
                build_config(
                    self.recipe,
                    size=size,
                    steps=self.steps,
                    overrides=(*self.overrides, *point),
                    interventions=parse_arm(arm),
                )
            )
            for seed in self.seeds:
                config = base.model_copy(update={"seed": seed})
                configs.setdefault(config.hash, config)
        return list(configs.values())

    def check(self, source: str) -> None:
        """Raise ConfigError that begins with `source` and the field: recipe, overrides, arms or factors."""
        with in_field(f"{source}recipe"):
            tree = load_recipe(self.recipe)
        for text in self.overrides:
            apply_override(tree, text, f"{source}overrides:")
        levels = [level for factor in self.factors.values() for level in factor.values()]
        for field, arms in (("arms", self.arms), ("factors", levels)):
            for arm in arms:
                with in_field(f"{source}{field}"):
                    registry.normalize_if_usable(RunConfig(interventions=parse_arm(arm)))


def expand_seeds(value: object) -> object:
    """Return the seeds below a number, and anything else as it is; raises ValueError for too many."""
    if not isinstance(value, int) or isinstance(value, bool):
        return value
    if value > MAX_RUNS:
        raise ValueError(f"{value} seeds are more than {MAX_RUNS:,}")
    return tuple(range(value))


def flatten_fields(value: object) -> object:
    """Return values of fields by their dotted names, which are tables in tables where TOML has them without quotes."""
    return dict(flatten(value)) if isinstance(value, dict) else value


@contextlib.contextmanager
def in_field(field: str) -> Iterator[None]:
    """Name a field in front of a ConfigError."""
    try:
        yield
    except ConfigError as error:
        raise type(error)(f"{field}: {error}") from error


def plan_configs(name: str, changes: Mapping[str, Any]) -> list[RunConfig]:
    """Return the runs of a plan as `load_plan` reads it; raises ConfigError."""
    load_plan(name, {}).check(f"plan {name}: ")
    return load_plan(name, changes).configs()


def load_plan(name: str, changes: Mapping[str, Any]) -> Plan:
    """Return a built-in plan or one from a `FILE.toml`, with `changes` to its fields; raises ConfigError."""
    tree, _ = read_toml(name, "plan", "bitnetctl.sweeps", "plans")
    source = f"plan {name}"
    return make_plan(with_changes(tree, changes, name, f"{source}: "), source)


def with_changes(tree: Mapping[str, Any], changes: Mapping[str, Any], file: str, source: str) -> dict[str, Any]:
    """Return the fields of a plan or search with changes, after its own overrides; what it names is beside its file.

    Steps, sizes, seeds and a grid among the changes replace its own values of the same fields, wherever it has them.
    Values of a wrong type are left to the validation. Raises ConfigError that begins with `source` and the field.
    """
    result = dict(tree)
    for field, value in tree.items():
        with in_field(f"{source}{field}"):
            if field == "recipe" and isinstance(value, str):
                result[field] = beside(file, value)
            elif field in ("arms", "factors", "choices"):
                result[field] = _arms_beside(file, value, is_arm=field != "choices")
    replaced = {field for field, name in _NAMED.items() if changes.get(name, "none") not in ("none", ())}
    replaced |= set(changes.get("grid", ()))
    if isinstance(grid := flatten_fields(tree.get("grid")), dict):
        result["grid"] = {field: values for field, values in grid.items() if field not in replaced}
    own = tree.get("overrides", [])
    if isinstance(own, list):
        kept = (text for text in own if str(text).partition("=")[0].strip() not in replaced)
        own = [*kept, *changes.get("overrides", ())]
    return {**result, **changes, "overrides": own}


def _arms_beside(file: str, value: object, *, is_arm: bool) -> object:
    """Return arms in lists and tables as `arm_beside` does; where texts are not arms, those of the entry `arm` are."""
    if isinstance(value, dict):
        return {name: _arms_beside(file, entry, is_arm=is_arm or name == ARM) for name, entry in value.items()}
    if isinstance(value, list):
        return [_arms_beside(file, entry, is_arm=is_arm) for entry in value]
    return arm_beside(file, value) if is_arm and isinstance(value, str) else value


def make_plan(tree: Mapping[str, Any], source: str = "sweep") -> Plan:
    """Validate a dictionary as a Plan; raises ConfigError with one line."""
    return validated(Plan, tree, source)


def parse_grid(texts: Iterable[str]) -> dict[str, tuple[Any, ...]]:
    """Read texts such as `schedule.warmup_steps=100,200` as the grid of a plan; raises ConfigError."""
    grid: dict[str, tuple[Any, ...]] = {}
    for text in texts:
        field, equals, values = (part.strip() for part in text.partition("="))
        parts = [part.strip() for part in values.split(",")]
        if not equals or not field or not all(parts):
            raise ConfigError(f"--grid {text!r}: expected SECTION.FIELD=VALUES, such as schedule.warmup_steps=100,200")
        if field in grid:
            raise ConfigError(f"--grid {text!r}: {field} is given twice; list all its values in one --grid")
        grid[field] = tuple(map(parse_value, parts))
    return grid


def varied_fields(configs: Sequence[RunConfig]) -> list[dict[str, Any]]:
    """Return for each config the fields that tell it from others of its size, arm and seed; none where these do."""
    if len({(config.model.hidden_size, config.arm, config.seed) for config in configs}) == len(configs):
        return [{} for _ in configs]
    trees = [
        dict(flatten(config.model_dump(mode="json", exclude={"recipe", "seed", "interventions"}))) for config in configs
    ]
    seen: dict[tuple[int, str, str], set[str]] = {}
    for config, tree in zip(configs, trees, strict=True):
        for field, value in tree.items():
            seen.setdefault((config.model.hidden_size, config.arm, field), set()).add(json.dumps(value))
    varied = {field: None for (_, _, field), values in seen.items() if len(values) > 1}
    return [{field: tree[field] for field in varied} for tree in trees]
