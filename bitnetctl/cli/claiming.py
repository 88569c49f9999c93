"""Test a claim that has a file: the runs of its plan, and the verdict on its arm by its criteria."""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitnetctl.cli import judging
from bitnetctl.cli.claim_runs import configs_of, design_of_runs, runs_folder, runs_of_claim, scale_of_runs
from bitnetctl.cli.claim_seeds import inventory_of_claim, planned_seeds, present_seeds, with_earlier, with_lacking
from bitnetctl.cli.inputs import Given
from bitnetctl.cli.judging import PlanRequest
from bitnetctl.cli.options import print_message
from bitnetctl.config import RunConfig, arm_beside, parse_arm, recipe_id, recipe_label
from bitnetctl.errors import ConfigError
from bitnetctl.plugins import registry
from bitnetctl.records.inventory import Inventory, take_inventory
from bitnetctl.records.load import LoadedSet, load_planned
from bitnetctl.sweeps.plan import Plan, in_field, make_plan, with_changes
from bitnetctl.trainer.resolved import ResolvedRun
from bitnetctl.units import listed, plural

if TYPE_CHECKING:
    from bitnetctl.claims import Claim, Scale
    from bitnetctl.verdict import JudgeOptions


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

    def _is_requested(self, config: RunConfig | None) -> bool:
        """Whether a run is at the scale that was asked for, as far as its config is known."""
        request = self.request
        return config is None or (
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
            inventory = with_lacking(inventory, runs, self.arm, scale.sizes, planned)
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
        seeds = planned_seeds(self.arm, loaded, inventory, options)
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
            present=present_seeds(seeds, arms, scale.sizes, loaded.runs, inventory),
            looks=looks,
            file=file,
            elsewhere=elsewhere,
            departures=differing,
        )
        return judging.judge_and_show(
            loaded.runs,
            inventory_of_claim(with_earlier(inventory, judged, loaded, self.arms), judged, self.arms),
            loaded.unread,
            criteria=[self.claim.criteria],
            options=options,
            outputs=outputs,
            requested_arms=[self.arm],
            arms=[self.arm],
            claim=judged,
        )
