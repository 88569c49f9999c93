"""Successive halving: many settings trained for a short time, the better part of them for longer, and so on.

Jamieson & Talwalkar 2016, Non-stochastic Best Arm Identification, arXiv 1502.07943. Every training is a run of a sweep,
with its whole schedule. Which trials go on follows from the CSVs alone, so a search that was stopped, or that several
processes share, goes on from them. No torch here.
"""

import itertools
import math
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from bitnetctl.config import Frozen, RunConfig, build_config, parse_arm, read_toml, validated
from bitnetctl.config.numbers import MAX_RUNS
from bitnetctl.config.schema import value_text
from bitnetctl.errors import ConfigError, RecordError
from bitnetctl.plugins import registry
from bitnetctl.records.status import final_row
from bitnetctl.sweeps.plan import expand_seeds
from bitnetctl.trainer.resolved import ResolvedRun

ARM = "arm"
"""The choice of interventions, beside fields of the config."""
_SHARE = re.compile(r"(.*=\s*)([0-9]+(?:\.[0-9]+)?)%\s*")

Point = tuple[tuple[str, str], ...]
"""A value for each choice, as (name, text)."""


@dataclass(frozen=True)
class Trial:
    """One combination of settings, `point` of the choices that differ from the recipe; number 0 is the recipe."""

    number: int
    point: Point

    @property
    def label(self) -> str:
        """Its settings as text."""
        return " ".join(f"{name}={value or 'baseline'}" for name, value in self.point) or "as the recipe"


@dataclass(frozen=True)
class Rung:
    """A stage of the search: `trials` of them train on `tokens` each."""

    number: int
    trials: int
    tokens: int


class Search(Frozen):
    """The settings among which a search chooses, and its budget.

    `choices` are values of fields of the config, and of `arm` as in `-i`. A value such as `5%`, also in `overrides`, is
    that share of the steps of a run. The tokens of a training, and with the batch its steps, are those of its rung:
    `min_tokens` in the first, `reduction_factor` times as many in the next, up to `max_tokens`. Of each rung one in
    `reduction_factor` goes on. `trials` counts the recipe as it is; the others are drawn by `draw_seed`.
    """

    description: str = ""
    recipe: str = "origin"
    size: Annotated[int | None, Field(gt=0)] = None
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**63)], ...] = Field((0,), min_length=1)
    overrides: tuple[str, ...] = Field((), description="section.field=value, for every trial")
    choices: dict[str, tuple[bool | int | float | str, ...]] = Field(min_length=1)
    trials: Annotated[int, Field(ge=2, le=MAX_RUNS)] = 16
    draw_seed: Annotated[int, Field(ge=0)] = 0
    min_tokens: Annotated[int, Field(gt=0)]
    max_tokens: Annotated[int, Field(gt=0)]
    reduction_factor: Annotated[int, Field(ge=2)] = 2
    measure: Literal["HeldOutBitsPerByte", "HeldOutLoss"] = Field(
        "HeldOutBitsPerByte", description="its mean over the seeds at the end of a training is minimised"
    )

    @field_validator("seeds", mode="before")
    @classmethod
    def _expand_seeds(cls, value: object) -> object:
        return expand_seeds(value)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.max_tokens < self.min_tokens:
            raise ValueError(f"max_tokens: {self.max_tokens:,} is less than min_tokens, {self.min_tokens:,}")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds: a seed is named twice")
        for name, values in self.choices.items():
            if not values:
                raise ValueError(f"choices: {name} has no values")
            if name in ("seed", "steps"):
                raise ValueError(f"choices: {name}: is not a setting to be found")
        return self

    def rungs(self) -> list[Rung]:
        """Return the stages, whose tokens grow by the reduction factor and end at `max_tokens`."""
        factor = self.reduction_factor
        count = 1
        while self.min_tokens * factor**count <= self.max_tokens:
            count += 1
        return [
            Rung(
                number, math.ceil(self.trials / factor**number), round(self.max_tokens / factor ** (count - 1 - number))
            )
            for number in range(count)
        ]

    def all_trials(self, folder: Path | None = None) -> list[Trial]:
        """Return the recipe as it is, then combinations drawn without replacement; fewer where there are not so many.

        Two combinations that give the same config are one. Raises ConfigError as `configs` does.
        """
        names, values = list(self.choices), [tuple(map(value_text, options)) for options in self.choices.values()]
        total = math.prod(map(len, values))
        trials: list[Trial] = []
        seen: set[str] = set()
        points: Iterator[Point] = (
            tuple(zip(names, _combination(values, index), strict=True))
            for index in random.Random(self.draw_seed).sample(range(total), min(total, MAX_RUNS))
        )
        for point in itertools.chain([()], points):
            trial = Trial(len(trials), point)
            # in the last rung, where shares of the steps differ most
            first = self.configs(trial, self.max_tokens, folder)[0]
            if first.hash not in seen:
                seen.add(first.hash)
                trials.append(trial)
            if len(trials) == self.trials:
                break
        return trials

    def configs(self, trial: Trial, tokens: int, folder: Path | None = None) -> list[RunConfig]:
        """Return the run of each seed of a trial that trains on about so many tokens; raises ConfigError.

        An arm that is a FILE.py is relative to `folder`.
        """
        arm = dict(trial.point).get(ARM)
        try:
            steps = self._steps(trial, tokens)
            config = build_config(
                self.recipe,
                size=self.size,
                steps=steps,
                overrides=self._overrides(trial, steps),
                interventions=None if arm is None else parse_arm(arm, folder),
            )
            config = registry.normalize_if_usable(config)
        except ConfigError as error:
            raise ConfigError(f"trial {trial.number} ({trial.label}): {error}") from error
        return [config.model_copy(update={"seed": seed}) for seed in self.seeds]

    def options(self, trial: Trial, tokens: int) -> list[str]:
        """Return the options of `bitnetctl sweep` with which a trial trains on about so many tokens."""
        steps, arm = self._steps(trial, tokens), dict(trial.point).get(ARM)
        size = [] if self.size is None else ["--sizes", str(self.size)]
        changes = [part for text in self._overrides(trial, steps) for part in ("--set", text)]
        arms = ["-i", arm, "--no-baseline"] if arm else []
        return ["--recipe", self.recipe, *size, "--steps", str(steps), *changes, *arms]

    def _steps(self, trial: Trial, tokens: int) -> int:
        """Return the steps whose batches have about so many tokens."""
        config = build_config(self.recipe, size=self.size, overrides=self._overrides(trial, 1000))
        return max(1, round(tokens / config.data.tokens_per_step))

    def _overrides(self, trial: Trial, steps: int) -> list[str]:
        texts = [*self.overrides, *(f"{name}={value}" for name, value in trial.point if name != ARM)]
        return [_with_share(text, steps) for text in texts]


def load_search(name: str, changes: Mapping[str, Any]) -> Search:
    """Return a built-in search or one from a `FILE.toml`, with `changes` to its fields; raises ConfigError."""
    tree, _ = read_toml(name, "search", "bitnetctl.sweeps", "searches")
    own = tree.get("overrides", [])
    # a value that is not a list is rejected with the whole search below
    tree["overrides"] = [*own, *changes.get("overrides", ())] if isinstance(own, list) else own
    return validated(Search, {**tree, **changes, "overrides": tree["overrides"]}, f"search {name}")


def _combination(values: Sequence[tuple[str, ...]], index: int) -> tuple[str, ...]:
    """Return combination number `index` of the product of lists."""
    chosen = []
    for options in values:
        index, place = divmod(index, len(options))
        chosen.append(options[place])
    return tuple(chosen)


def _with_share(text: str, steps: int) -> str:
    """Return an override with a number in place of a share of the steps such as `5%`."""
    match = _SHARE.fullmatch(text)
    return text if match is None else f"{match[1]}{round(steps * Fraction(match[2]) / 100)}"


def final_mean(runs: Sequence[ResolvedRun], measure: str) -> float:
    """Return the mean of a column at the end of the runs; infinity where one has not finished, or is not finite."""
    values = []
    for run in runs:
        try:
            manifest = run.ended()
            finished = manifest is not None and manifest.status == "finished"
            value = final_row(run.paths.csv)[measure] if finished else None
        except RecordError:
            value = None
        values.append(value if isinstance(value, int | float) else math.inf)
    return sum(values) / len(values)


def best_first(values: Mapping[Trial, float]) -> list[Trial]:
    """Return trials by their value, the least first; of equal ones the first drawn."""
    return sorted(values, key=lambda trial: (values[trial], trial.number))
