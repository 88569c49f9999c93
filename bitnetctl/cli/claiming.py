"""Test a claim that has a file: the runs of its plan, and the verdict on its arm by its criteria."""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitnetctl.cli import judging
from bitnetctl.cli.claim_runs import configs_of, design_of_runs, runs_folder, runs_of_claim, scale_of_runs
from bitnetctl.cli.inputs import Given
from bitnetctl.cli.judging import PlanRequest
from bitnetctl.cli.options import print_message
from bitnetctl.config import RunConfig, arm_beside, parse_arm, recipe_id, recipe_label
from bitnetctl.errors import ConfigError
from bitnetctl.plugins import registry
from bitnetctl.records import Run
from bitnetctl.records.inventory import AbsentRun, Inventory, take_inventory
from bitnetctl.records.load import LoadedSet, load_planned
from bitnetctl.sweeps.plan import Plan, in_field, make_plan, with_changes
from bitnetctl.trainer.resolved import ResolvedRun
from bitnetctl.units import listed, plural

if TYPE_CHECKING:
    from bitnetctl.claims import Claim, JudgedClaim, Looks, Scale
    from bitnetctl.verdict import JudgeOptions

_Cell = tuple[str, int | None, int | None]
"""Arm, size and seed."""


def refuse_beside_claim(arms: Sequence[str] | None, criteria: Sequence[str] | None, *, no_baseline: bool) -> None:
    """Raise ConfigError for options that a claim's file decides."""
    given = [name for name, value in (("-i", arms), ("--criteria", criteria), ("--no-baseline", no_baseline)) if value]
    if given:
        raise ConfigError(
            f"{listed(given)} beside --claim: arms and criteria are the claim's; to change them, start a file of your "
            "own: bitnetctl claims new FILE.toml --from NAME"
        )


@dataclass(frozen=True, kw_only=True)
class ClaimTest:
    """A requested claim, by name or file, with changes to its plan."""

    name_or_file: str
    request: PlanRequest = field(default_factory=PlanRequest)

    @cached_property
    def claim(self) -> "Claim":
        """The claim; raises ConfigError."""
        from bitnetctl.claims import load_claim

        return load_claim(self.name_or_file)

    @cached_property
    def plan_recipe(self) -> str:
        """The recipe of the claim's own plan; raises ConfigError."""
        return self._plan({}).recipe

    @cached_property
    def own_configs(self) -> list[RunConfig]:
        """The runs of the claim's own plan; raises ConfigError."""
        plan = self._plan({})
        plan.check(f"{self._source}.")
        with in_field(self._source):
            return plan.configs()

    @cached_property
    def configs(self) -> list[RunConfig]:
        """The runs of the plan as asked for: another recipe drops its sizes and steps. Raises ConfigError."""
        return self.at(self.request.recipe, sizes=self.request.sizes, steps=self.request.steps)

    def at(
        self, recipe: str | None, *, sizes: tuple[int, ...] | None = None, steps: int | None = None
    ) -> list[RunConfig]:
        """Return the runs of the plan at another scale; raises ConfigError."""
        changes = {"recipe": recipe, "sizes": sizes, "steps": steps, "seeds": self.request.seeds}
        given = {name: value for name, value in changes.items() if value is not None}
        if recipe is not None and recipe_id(recipe) != recipe_id(self.plan_recipe):
            given = {"sizes": (), "steps": "none", **given}
        # mistakes of the claim itself are named by its file and field
        self.own_configs  # noqa: B018 - cached
        configs = self._plan({**given, "overrides": self.request.overrides}).configs()
        self._check_arms(list(dict.fromkeys(config.arm for config in configs)))
        return configs

    def planned_like(self, given: Iterable[RunConfig]) -> list[RunConfig]:
        """Return the plan's runs at the scales of given runs that were requested; raises ConfigError."""
        recipes = {recipe_label(name): name for name in (self.plan_recipe, self.request.recipe) if name is not None}
        requested = filter(self._is_requested, given)
        scales = {(config.recipe, config.model.hidden_size, config.steps) for config in requested}
        planned: list[RunConfig] = []
        for label, size, steps in scales:
            # a recipe that is a file elsewhere
            with contextlib.suppress(ConfigError):
                planned += self.at(recipes.get(label, label), sizes=(size,), steps=steps)
        return planned

    def _is_requested(self, config: RunConfig) -> bool:
        """Whether a run is at the scale that was asked for."""
        request = self.request
        return (
            (request.recipe is None or config.recipe == recipe_label(request.recipe))
            and (request.sizes is None or config.model.hidden_size in request.sizes)
            and request.steps in (None, config.steps)
        )

    @cached_property
    def arm(self) -> str:
        """The label of the judged arm, as runs have it."""
        if self.claim.arm in self.arms:
            return self.claim.arm
        with in_field(f"claim {self.name_or_file}: arm"):
            specs = parse_arm(arm_beside(self.name_or_file, self.claim.arm))
            return registry.normalize_if_usable(RunConfig(interventions=specs)).arm

    @cached_property
    def arms(self) -> list[str]:
        """The labels of the arms of the plan."""
        return list(dict.fromkeys(config.arm for config in self.own_configs))

    @property
    def _source(self) -> str:
        return f"claim {self.name_or_file}: plan"

    def _plan(self, changes: Mapping[str, Any]) -> Plan:
        plan = make_plan(with_changes(self.claim.plan, changes, self.name_or_file, f"{self._source}."), self._source)
        if plan.grid:
            raise ConfigError(
                f"{self._source}: grid: gives runs of one arm that differ; take arms, factors or overrides"
            )
        return plan

    def _check_arms(self, planned: Sequence[str]) -> None:
        compared = [
            (f"criteria: {check.label}", f"the plan lacks an arm to compare with ({check.supports})", is_partner)
            for check in self.claim.criteria.comparisons
            for is_partner in check.partner_arms(self.arm)
        ]
        for place, what, is_wanted in (("arm", f"{self.arm} is no arm of the plan", self.arm.__eq__), *compared):
            if not any(map(is_wanted, planned)):
                raise ConfigError(f"claim {self.name_or_file}: {place}: {what}; its arms are: {', '.join(planned)}")

    def read_files(self) -> None:
        """Read the claim and check its plan; raises ConfigError, before runs are read or trained."""
        self.configs  # noqa: B018 - cached

    def planned_configs(self, runs_dir: Path) -> list[RunConfig]:
        """Return the runs to train; raises ConfigError."""
        return self.configs

    def arm_of(self, planned: Sequence[ResolvedRun]) -> str:
        """Return the label of the judged arm."""
        return self.arm

    def note_too_few_seeds(self, planned: Sequence[ResolvedRun]) -> None:
        """Say of runs to be trained that so few seeds cannot support the claim, whatever comes out."""
        from bitnetctl.verdict.decidable import fewest_to_decide

        rule = self.claim.criteria.seeds
        seeds = len({run.config.seed for run in planned})
        arms = sum(not self.claim.criteria.is_reference(arm) for arm in self.arms)
        least, _ = fewest_to_decide(self.claim.criteria, rule.error_rate / arms) if rule.rule == "rate" else (0, 0)
        if least is not None and seeds < least and not all(run.has_ended() for run in planned):
            print_message(f"{plural(seeds, 'seed')} cannot support {self.claim.name}; {least} could: --seeds {least}")

    def judge_trained(self, planned: Sequence[ResolvedRun], runs_dir: Path, outputs: judging.Outputs) -> int:
        """Judge the planned runs, print and write the verdict; return the exit code."""
        from bitnetctl.claims import Scale, design_hash, looks_file

        configs = [run.config for run in planned]
        loaded = load_planned(configs, runs_dir)
        return self._judge(
            loaded,
            judging.planned_inventory(loaded.runs, loaded.empty, loaded.unread, configs),
            judging.options_of_plan(configs, self.request),
            outputs,
            scale=Scale.of(configs),
            design=design_hash(configs),
            file=looks_file(runs_dir, self.claim.name),
        )

    def judge_given(self, given: Given, outputs: judging.Outputs) -> int:
        """Judge the claim's runs among given ones, print and write the verdict; return the exit code."""
        from bitnetctl.claims import departures, looks_file

        every = configs_of(given.loaded.runs, given.loaded.empty)
        of_claim = runs_of_claim(given.loaded, self.planned_like(every), self.arms, self._is_requested)
        runs, empty = of_claim.runs, of_claim.empty
        if not runs and not empty:
            raise ConfigError(f"claim {self.name_or_file}: none of these runs is {self._wanted_of(every)}")
        known = configs_of(runs, empty)
        is_known = len(known) == len(runs) + len(empty)
        folder = runs_folder(given, [run for run in runs if run.arm == self.arm]) if is_known else None
        scale = scale_of_runs(runs, known if is_known else ())
        inventory = take_inventory(runs, empty, of_claim.unread)
        if self.request.seeds is None:
            planned = sorted({config.seed for config in self.own_configs})
            inventory = _with_lacking(inventory, runs, self.arm, scale.sizes, planned)
        return self._judge(
            of_claim,
            inventory,
            judging.options_of_given(self.request),
            outputs,
            scale=scale,
            design=design_of_runs(runs, known if is_known else ()),
            file=None if folder is None else looks_file(folder, self.claim.name),
            differing=departures(known, self.planned_like(known), self.arm),
        )

    def _wanted_of(self, given: Iterable[RunConfig]) -> str:
        """Say which runs were wanted of given ones, none of which is."""
        from bitnetctl.claims import Scale

        scales = sorted({str(Scale.of([config])) for config in given if config.arm in self.arms})
        if scales:
            return f"at the scale that was asked for; those of its arms are at {'; '.join(scales)}"
        return f"of its arms: {', '.join(self.arms)}; leave out the paths to train them"

    def _judge(
        self,
        loaded: LoadedSet,
        inventory: Inventory,
        options: "JudgeOptions",
        outputs: judging.Outputs,
        *,
        scale: "Scale",
        design: str,
        file: Path | None,
        differing: tuple[str, ...] = (),
    ) -> int:
        from bitnetctl.claims import JudgedClaim, Looks, Scale, count_elsewhere, read_looks

        arms = [arm for arm in self.arms if arm == self.arm or self.claim.criteria.is_reference(arm)]
        seeds = _planned_seeds(self.arm, loaded, inventory, options)
        looks, elsewhere = Looks(), 0
        if file is not None:
            looks = read_looks(file)
            elsewhere = count_elsewhere(file, claim=self.claim.hash, arm=self.arm, design=design)
        judged = JudgedClaim(
            claim=self.claim,
            name_or_file=self.name_or_file,
            arm=self.arm,
            judged_at=scale,
            plan_scale=Scale.of(self.own_configs),
            design=design,
            seeds=seeds,
            present=_present_seeds(seeds, arms, scale.sizes, loaded.runs, inventory),
            looks=looks,
            file=file,
            elsewhere=elsewhere,
            departures=differing,
        )
        return judging.judge_and_show(
            loaded.runs,
            _of_claim(_with_earlier(inventory, judged, loaded, self.arms), judged, self.arms),
            loaded.unread,
            criteria=[self.claim.criteria],
            options=options,
            outputs=outputs,
            requested_arms=[self.arm],
            arms=[self.arm],
            claim=judged,
        )


def _of_claim(inventory: Inventory, judged: "JudgedClaim", arms: Sequence[str]) -> Inventory:
    """Return what belongs to the runs of a claim: it is a family of its own, whatever else lies beside them.

    The numbers of seeds planned over time are also those at which the claim was looked at.
    """
    kept = set(arms)
    plans = {cell: numbers for cell, numbers in inventory.plans.items() if cell[0] in kept}
    looked = _looks_at_arm(judged, arms).planned(judged.design, judged.seeds)
    for size in judged.judged_at.sizes:
        cell = (judged.arm, size)
        plans[cell] = tuple(sorted({*plans.get(cell, ()), *looked}))
    return replace(
        inventory,
        arms=tuple(arm for arm in inventory.arms if arm in kept),
        absent=tuple(one for one in inventory.absent if one.arm in kept or one.arm is None),
        others=tuple(one for one in inventory.others if one.arm in kept),
        plans=plans,
    )


def _looks_at_arm(judged: "JudgedClaim", arms: Iterable[str]) -> "Looks":
    """Return the looks that may have been at the judged arm: what others were planned with is not planned for it."""
    return judged.looks.without_arms(set(arms) - {judged.arm})


def _with_earlier(inventory: Inventory, judged: "JudgedClaim", loaded: LoadedSet, arms: Iterable[str]) -> Inventory:
    """Return the inventory with the seeds that were there at an earlier look and of which nothing is left."""
    looks = _looks_at_arm(judged, arms).at(judged.design)
    seen = {seed for look in looks for seed in look.seeds_present}
    reason = f"was there at an earlier look, kept in {judged.file}"
    gone = [
        _missing(judged.arm, size, seed, reason)
        for size in judged.judged_at.sizes
        for seed in sorted(seen.difference(judged.seeds, _seeds_of(judged.arm, size, loaded.runs, inventory)))
    ]
    return replace(inventory, absent=(*inventory.absent, *gone))


def _with_lacking(
    inventory: Inventory, runs: Sequence[Run], arm: str, sizes: Iterable[int], planned: Sequence[int]
) -> Inventory:
    """Return the inventory with seeds of the claim's plan as missing where fewer are given or known than it has.

    Which seeds are given does not matter, their number does: whoever stops at six of eight could have looked.
    """
    lacking = []
    for size in sizes:
        here = _seeds_of(arm, size, runs, inventory)
        unknown = sum(run.arm == arm and run.size in (None, size) and run.seed is None for run in runs)
        others = [seed for seed in planned if seed not in here][: max(0, len(planned) - len(here) - unknown)]
        lacking += [_missing(arm, size, seed, "planned by the claim; --seeds chooses others") for seed in others]
    return replace(inventory, absent=(*inventory.absent, *lacking))


def _seeds_of(arm: str, size: int, runs: Iterable[Run], inventory: Inventory) -> set[int | None]:
    """Return the seeds of an arm at one size that are given or of which the inventory knows."""
    known: tuple[Run | AbsentRun, ...] = (*runs, *inventory.absent, *inventory.others)
    return {one.seed for one in known if (one.arm, one.size) == (arm, size)} - {None}


def _missing(arm: str, size: int, seed: int, reason: str) -> AbsentRun:
    return AbsentRun(
        run=f"seed {seed}", arm=arm, size=size, seed=seed, planned_steps=None, state="missing", reason=reason
    )


def _planned_seeds(arm: str, loaded: LoadedSet, inventory: Inventory, options: "JudgeOptions") -> tuple[int, ...]:
    """Return the seeds that were asked for, else those of the judged arm that are given or known to be planned."""
    if options.seeds is not None:
        return tuple(sorted(options.seeds))
    given = [run.seed for run in loaded.runs if run.arm == arm]
    absent = [one.seed for one in inventory.absent if one.arm == arm]
    return tuple(sorted({seed for seed in (*given, *absent) if seed is not None}))


def _present_seeds(
    seeds: Iterable[int], arms: Iterable[str], sizes: Sequence[int], runs: Iterable[Run], inventory: Inventory
) -> tuple[int, ...]:
    """Return the seeds of which every run that is judged or compared with has ended, at every size."""
    ended: set[_Cell] = {
        (run.arm, run.size, run.seed) for run in runs if run.arm is not None and (run.is_complete or run.has_failed)
    }
    ended |= {(one.arm, one.size, one.seed) for one in inventory.absent if one.arm and one.state == "failed"}
    cells = [(arm, size) for arm in arms for size in sizes]
    return tuple(seed for seed in seeds if all((*cell, seed) in ended for cell in cells))
