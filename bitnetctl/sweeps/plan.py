"""Grids and named plans: from arms, sizes and seeds to the configs of runs. No torch here."""

import itertools
import math
from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import Field, field_validator, model_validator

from bitnetctl.config import Frozen, RunConfig, build_config, parse_arm, read_toml, validated
from bitnetctl.config.numbers import MAX_RUNS
from bitnetctl.errors import ConfigError
from bitnetctl.plugins import registry


class Plan(Frozen):
    """The arms, sizes, seeds and steps of a sweep; an unset one is the recipe's.

    `factors` is a factorial design, {factor: {level: interventions, "" for none}}: an arm for every combination of
    levels. `arms` come before them.
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

    @field_validator("seeds", mode="before")
    @classmethod
    def _expand_seeds(cls, value: object) -> object:
        if not isinstance(value, int) or isinstance(value, bool):
            return value
        if value > MAX_RUNS:
            raise ValueError(f"{value} seeds are more than {MAX_RUNS:,}")
        return tuple(range(value))

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
        return self

    def all_arms(self) -> list[str]:
        """Return every arm as text, the baseline first if it is wanted."""
        crossed = [
            "+".join(level for level in levels if level)
            for levels in itertools.product(*(factor.values() for factor in self.factors.values()))
        ]
        arms = [*self.arms, *(crossed if self.factors else [])]
        texts = ["" if arm.strip() == "baseline" else arm.strip() for arm in arms]
        if self.baseline and "" not in texts:
            texts.insert(0, "")
        return texts

    def configs(self) -> list[RunConfig]:
        """Return a config for every size, arm and seed, without duplicates.

        An arm whose plug-in is at fault is among them, as it was asked for; raises ConfigError for anything else.
        """
        arms, sizes = self.all_arms(), self.sizes or (None,)
        if len(arms) * len(sizes) * len(self.seeds) > MAX_RUNS:
            raise ConfigError(f"the plan has more than {MAX_RUNS:,} runs")
        configs: dict[str, RunConfig] = {}
        for size, arm in itertools.product(sizes, arms):
            base = registry.normalize_if_usable(
                build_config(
                    self.recipe,
                    size=size,
                    steps=self.steps,
                    overrides=self.overrides,
                    interventions=parse_arm(arm),
                )
            )
            for seed in self.seeds:
                config = base.model_copy(update={"seed": seed})
                configs.setdefault(config.hash, config)
        return list(configs.values())


def load_plan(name: str, changes: Mapping[str, Any]) -> Plan:
    """Return a built-in plan or one from a `FILE.toml`, with `changes` to its fields; raises ConfigError."""
    tree, _ = read_toml(name, "plan", "bitnetctl.sweeps", "plans")
    own = tree.get("overrides", [])
    # a value that is not a list is rejected with the whole plan below
    tree["overrides"] = [*own, *changes.get("overrides", ())] if isinstance(own, list) else own
    return make_plan({**tree, **{key: value for key, value in changes.items() if key != "overrides"}}, f"plan {name}")


def make_plan(tree: Mapping[str, Any], source: str = "sweep") -> Plan:
    """Validate a dictionary as a Plan; raises ConfigError with one line."""
    return validated(Plan, tree, source)
