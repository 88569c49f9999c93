"""Successive halving: many settings trained for a short time, the better part of them for longer, and so on.

Jamieson & Talwalkar 2016, Non-stochastic Best Arm Identification, arXiv 1502.07943. Every training is a run of a sweep,
with its whole schedule. Which trials go on follows from the CSVs alone, so a search that was stopped, or that several
processes share, goes on from them. No torch here.
"""

import contextlib
import itertools
import math
import random
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from bitnetctl.config import (
    Frozen,
    InterventionSpec,
    RunConfig,
    apply_override,
    build_config,
    join_arm,
    load_recipe,
    parse_arm,
    read_toml,
    validated,
)
from bitnetctl.config.numbers import MAX_RUNS
from bitnetctl.config.schema import value_text
from bitnetctl.errors import BitnetctlError, ConfigError, PluginError
from bitnetctl.plugins import registry
from bitnetctl.records import read_manifest
from bitnetctl.records.status import final_row
from bitnetctl.sweeps.plan import ARM, expand_seeds, flatten_fields, in_field, with_changes
from bitnetctl.trainer.resolved import ResolvedRun

_SIZE = "model.hidden_size"
_SHARE = re.compile(r"\s*([0-9]{1,18}(?:\.[0-9]{1,18})?)\s*%\s*")
_NO_SETTINGS = {
    "steps": "the tokens of a rung decide the steps",
    "seed": "take the field seeds",
    "recipe": "is a label without effect; take the field recipe",
    "interventions": f"take {ARM}",
}

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

    `choices` are values of fields of the config, and of `arm` as in `-i`; they take precedence over `overrides`, and
    these over `size`. A value such as `5%` of a field of steps, also in `overrides`, is that share of the steps of a
    run, and at least one. The tokens of a training, and with the batch its steps, are those of its rung:
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
    min_tokens: Annotated[int, Field(gt=0, lt=2**63)]
    max_tokens: Annotated[int, Field(gt=0, lt=2**63)]
    reduction_factor: Annotated[int, Field(ge=2)] = 2
    measure: Literal["HeldOutBitsPerByte", "HeldOutLoss"] = Field(
        "HeldOutBitsPerByte", description="its mean over the seeds at the end of a training is minimised"
    )

    @field_validator("seeds", mode="before")
    @classmethod
    def _expand_seeds(cls, value: object) -> object:
        return expand_seeds(value)

    @field_validator("choices", mode="before")
    @classmethod
    def _flatten_choices(cls, value: object) -> object:
        return flatten_fields(value)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.max_tokens < self.min_tokens:
            raise ValueError(f"max_tokens: {self.max_tokens:,} is less than min_tokens, {self.min_tokens:,}")
        if self.trials * len(self.seeds) > MAX_RUNS:
            raise ValueError(f"trials: {self.trials:,} with {len(self.seeds):,} seeds are more than {MAX_RUNS:,} runs")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds: a seed is named twice")
        for name, values in self.choices.items():
            if not values:
                raise ValueError(f"choices: {name} has no values")
            if name.strip() in _NO_SETTINGS:
                raise ValueError(f"choices: {name}: {_NO_SETTINGS[name.strip()]}")
        for text in self.overrides:
            if _name(text) in _NO_SETTINGS:
                raise ValueError(f"overrides: {text}: {_NO_SETTINGS[_name(text)]}")
        return self

    def rungs(self, trials: int) -> list[Rung]:
        """Return the stages of so many trials; their tokens grow by the reduction factor and end at `max_tokens`."""
        factor = self.reduction_factor
        count = 1
        while self.min_tokens * factor**count <= self.max_tokens:
            count += 1
        return [
            Rung(
                number,
                math.ceil(Fraction(trials, factor**number)),
                round(Fraction(self.max_tokens, factor ** (count - 1 - number))),
            )
            for number in range(count)
        ]

    def all_trials(self) -> list[Trial]:
        """Return the recipe as it is, then combinations drawn without replacement; fewer where there are not so many.

        Two combinations that give the same config are one. Raises ConfigError as `configs` does, and for a trial whose
        measure is taken on other text than that of the recipe.
        """
        names = list(self.choices)
        values = [tuple(dict.fromkeys(map(value_text, options))) for options in self.choices.values()]
        first_rung = self.rungs(self.trials)[0]
        trials: list[Trial] = []
        seen: set[str] = set()
        points: Iterator[Point] = (
            tuple(zip(names, _combination(values, index), strict=True))
            for index in _drawn(math.prod(map(len, values)), self.draw_seed)
        )
        measured: set[tuple[object, ...]] = set()
        for point in itertools.chain([()], points):
            trial = Trial(len(trials), point)
            # in the last rung, where shares of the steps differ most
            last = self._config(trial, self.max_tokens)
            if last.hash not in seen:
                self._config(trial, first_rung.tokens)
                measured.add(self._measured_on(last))
                if len(measured) > 1:
                    raise ConfigError(
                        f"trial {trial.number} ({trial.label}): {self.measure} of this and of the recipe cannot be "
                        "compared: source, tokenizer or positions of the held-out text differ"
                    )
                seen.add(last.hash)
                trials.append(trial)
            if len(trials) == self.trials:
                break
        return trials

    def configs(self, trial: Trial, tokens: int) -> list[RunConfig]:
        """Return the run of each seed of a trial that trains on about so many tokens; raises ConfigError."""
        config = self._config(trial, tokens)
        return [config.model_copy(update={"seed": seed}) for seed in self.seeds]

    def _config(self, trial: Trial, tokens: int) -> RunConfig:
        """Return the run of a trial with the recipe's seed."""
        arm = dict(trial.point).get(ARM, "")
        try:
            steps = self._steps(trial, tokens)
            config = build_config(
                self.recipe,
                steps=steps,
                overrides=self._overrides(trial, steps),
                interventions=parse_arm(arm),
            )
            config = registry.normalize_if_usable(config)
            # one at fault trains no trial but its own; interventions that exclude each other are a mistake of the file
            with contextlib.suppress(PluginError):
                registry.compose(config.interventions).configure(config)
        except ConfigError as error:
            raise ConfigError(f"trial {trial.number} ({trial.label}): {error}") from error
        return config

    def options(self, trial: Trial, tokens: int) -> list[str]:
        """Return the options of `bitnetctl sweep` with which a trial trains on about so many tokens."""
        config = self._config(trial, tokens)
        last = {_name(text): text for text in self._overrides(trial, config.steps)}
        changes = [part for name, text in last.items() if name != _SIZE for part in ("--set", text)]
        arms = ["-i", _arm_text(config.interventions), "--no-baseline"] if config.interventions else []
        sizes = ["--sizes", str(config.model.hidden_size)]
        return ["--recipe", self.recipe, *sizes, "--steps", str(config.steps), *changes, *arms]

    def unseen_seeds(self, count: int) -> list[int]:
        """Return the first seeds with which the search trains nothing."""
        return list(itertools.islice((seed for seed in itertools.count() if seed not in self.seeds), count))

    def _steps(self, trial: Trial, tokens: int) -> int:
        """Return the steps whose batches have about so many tokens; raises ConfigError where not one is that small."""
        data = build_config(self.recipe, overrides=self._overrides(trial, 1000)).data
        if tokens < data.tokens_per_step:
            raise ConfigError(
                f"{tokens:,} tokens are less than the {data.tokens_per_step:,} of a step; "
                "take more min_tokens or smaller batches"
            )
        return round(Fraction(tokens, data.tokens_per_step))

    def _measured_on(self, config: RunConfig) -> tuple[object, ...]:
        """Return what must be equal for the measures of two runs to be comparable."""
        data = config.data
        text = (data.source, data.held_out_fraction) if data.held_out_source is None else data.held_out_source
        # the loss is one of tokens
        tokenizer = data.tokenizer if self.measure == "HeldOutLoss" else None
        return text, data.text_field, tokenizer, config.probe.positions

    def _overrides(self, trial: Trial, steps: int) -> list[str]:
        size = [] if self.size is None else [f"{_SIZE}={self.size}"]
        texts = [*size, *self.overrides, *(f"{name}={value}" for name, value in trial.point if name != ARM)]
        return [_with_share(text, steps) for text in texts]


def load_search(name: str, changes: Mapping[str, Any]) -> Search:
    """Return a built-in search or one from a `FILE.toml`, with `changes` to its fields; raises ConfigError."""
    tree, _ = read_toml(name, "search", "bitnetctl.sweeps", "searches")
    source = f"search {name}"
    own = tree.get("overrides", [])
    for text in own if isinstance(own, list) else ():
        apply_override({}, str(text), f"{source}: overrides:")
    search = validated(Search, with_changes(tree, changes, name, f"{source}: "), source)
    with in_field(f"{source}: recipe"):
        load_recipe(search.recipe)
    return search


def _combination(values: Sequence[tuple[str, ...]], index: int) -> tuple[str, ...]:
    """Return combination number `index` of the product of lists."""
    chosen = []
    for options in values:
        index, place = divmod(index, len(options))
        chosen.append(options[place])
    return tuple(chosen)


def _drawn(total: int, seed: int) -> Iterable[int]:
    """Return numbers below `total` in random order, each once, as many as a search can have trials."""
    generator = random.Random(seed)
    if total <= sys.maxsize:
        return generator.sample(range(total), min(total, MAX_RUNS))
    # a range of more has no length
    return dict.fromkeys(generator.randrange(total) for _ in range(MAX_RUNS))


def _name(text: str) -> str:
    """Return the field that an override sets."""
    return text.partition("=")[0].strip()


def _with_share(text: str, steps: int) -> str:
    """Return an override of a field of steps with a number in place of a share of the steps such as `5%`."""
    match = _SHARE.fullmatch(text.partition("=")[2])
    if match is None or not _name(text).endswith("_steps"):
        return text
    share = Fraction(match[1]) / 100
    return f"{_name(text)}={max(1, round(steps * share)) if share else 0}"


def _arm_text(interventions: Iterable[InterventionSpec]) -> str:
    """Return an arm as text that `parse_arm` reads back in any folder."""
    return join_arm(
        spec if spec.file is None else f"{spec.file}{str(spec).removeprefix(spec.name)}" for spec in interventions
    )


def final_mean(runs: Sequence[ResolvedRun], measure: str) -> float:
    """Return the mean of a column at the end of the runs; infinity where one diverged or is at fault by its plug-in.

    Raises RecordError, ConfigError or BitnetctlError where a run says nothing of its settings: its files are damaged,
    it failed in another way, or the column is unknown.
    """
    values = []
    for run in runs:
        manifest = run.ended()
        if manifest is None:
            failed = read_manifest(run.paths.folder)
            if failed is None or not failed.is_fault_of_plugin:
                message = failed.message if failed is not None else None
                raise BitnetctlError(f"{run.name}: {message or 'is not trained yet; the same command goes on'}")
        # a rollback halved the learning rate: with that of its config the run diverged
        finished = manifest is not None and manifest.status == "finished" and not manifest.rollbacks
        value = final_row(run.paths.csv)[measure] if finished else math.inf
        if value is None:
            raise ConfigError(f'{run.name}: {measure} is unknown; take measure = "HeldOutLoss"')
        values.append(value if isinstance(value, int | float) else math.inf)
    return sum(values) / len(values)


def best_first(values: Mapping[Trial, float]) -> list[Trial]:
    """Return trials by their value, the least first; of equal ones the first drawn."""
    return sorted(values, key=lambda trial: (values[trial], trial.number))
