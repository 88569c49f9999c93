"""What a summary is made from: the verdicts, the arms that decide, their runs, and at which length they are judged."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from bitnetctl.config import builtin_names, read_toml
from bitnetctl.records import Run
from bitnetctl.verdict.checks.base import Check
from bitnetctl.verdict.checks.compared import ComparedCheck
from bitnetctl.verdict.criteria import Criteria
from bitnetctl.verdict.judge import UNKNOWN_ARM
from bitnetctl.verdict.options import JudgeOptions
from bitnetctl.verdict.outcome import CheckResult, Combined, Outcome, Verdict, strictest

SizeOfArm = tuple[str, int | None]


@dataclass(frozen=True, kw_only=True)
class Horizon:
    """Lengths in steps: `requested` by the user, `planned` for the runs, of their recipe, and required by criteria.

    `planned` is empty where none is known; `recipe` is None where the runs tell none, or several.
    """

    requested: int | None
    planned: tuple[int, ...]
    reached: int
    recipe: int | None
    required: Mapping[str, int]

    @property
    def judged(self) -> int | None:
        """The length at which all runs are judged, None where there is no single one."""
        if self.requested is not None:
            return self.requested
        return self.planned[0] if len(self.planned) == 1 else None

    @property
    def is_short(self) -> bool:
        """Whether the runs were planned, as far as is known, for fewer steps than their recipe plans."""
        return self.judged is not None and self.recipe is not None and self.judged < self.recipe


@dataclass(frozen=True, kw_only=True)
class Facts:
    """All that a summary says; `deciding` are the arms whose strictest outcome is that of the whole.

    `requested` is whether these arms were asked for, so that others stand beside them.
    """

    judged: Mapping[str, Combined]
    deciding: Sequence[str]
    requested: bool
    criteria: Sequence[Criteria]
    options: JudgeOptions
    runs: Sequence[Run]

    @cached_property
    def outcome(self) -> Outcome:
        """The outcome of the whole."""
        return strictest(self.judged[arm].outcome for arm in self.deciding)

    @cached_property
    def verdicts(self) -> list[Verdict]:
        """The verdicts on the deciding arms."""
        return [verdict for arm in self.deciding for verdict in self.judged[arm].verdicts]

    @cached_property
    def decisive(self) -> list[Verdict]:
        """Those of them with the outcome of the whole."""
        return [verdict for verdict in self.verdicts if verdict.outcome is self.outcome]

    @cached_property
    def cells(self) -> list[SizeOfArm]:
        """Every arm and size that is judged; sizes ascend, and an arm without a run has one that is unknown."""
        sizes_of: dict[str, set[int | None]] = {
            arm: {size for verdict in combined.verdicts for size in verdict.sizes} or {None}
            for arm, combined in self.judged.items()
        }
        return [(arm, size) for arm, sizes in sizes_of.items() for size in sorted(sizes, key=lambda size: size or 0)]

    @cached_property
    def deciding_cells(self) -> list[SizeOfArm]:
        """Those of the arms that decide."""
        return [cell for cell in self.cells if cell[0] in self.deciding]

    @cached_property
    def runs_of(self) -> Mapping[SizeOfArm, Sequence[Run]]:
        """The runs of every arm and size that are judged or compared with, copies left out."""
        left_out = {
            one["run"]
            for combined in self.judged.values()
            for verdict in combined.verdicts
            for one in verdict.not_judged
        }
        grouped: dict[SizeOfArm, list[Run]] = {}
        for run in self.runs:
            # a copy is named by its file
            if not {run.name, str(run.path)} & left_out:
                grouped.setdefault((run.arm or UNKNOWN_ARM, run.size), []).append(run)
        return grouped

    @cached_property
    def deciding_runs(self) -> list[Run]:
        """The judged runs of the arms that decide."""
        return [run for cell in self.deciding_cells for run in self.runs_of.get(cell, ())]

    @cached_property
    def horizon(self) -> Horizon:
        """The lengths at which the deciding arms are judged."""
        planned = {run.planned_steps for run in self.deciding_runs}
        recipes = {run.config.recipe if run.config is not None else "" for run in self.deciding_runs}
        return Horizon(
            requested=self.options.requested_steps,
            planned=() if None in planned else tuple(sorted(steps for steps in planned if steps is not None)),
            reached=max((run.final_step for run in self.deciding_runs), default=0),
            recipe=recipe_steps(recipes.pop()) if len(recipes) == 1 else None,
            required={one.name: one.finished.min_steps for one in self.criteria if one.finished.min_steps is not None},
        )

    @cached_property
    def shortened_for(self) -> set[str]:
        """The criteria that are judged at more steps than were planned for any run, which is told once."""
        judged = self.horizon.judged
        unfinished = any(run.is_complete is False for run in self.deciding_runs)
        if judged is None or self.horizon.requested is not None or unfinished:
            return set()
        return {name for name, steps in self.horizon.required.items() if steps > judged}

    @cached_property
    def _by_name(self) -> Mapping[tuple[str, str], tuple[Criteria, Mapping[str, Check]]]:
        return {(one.name, one.hash): (one, {check.label: check for check in one.checks}) for one in self.criteria}

    def criteria_of(self, verdict: Verdict) -> Criteria:
        """Return the criteria of a verdict."""
        return self._by_name[verdict.criteria, verdict.criteria_hash][0]

    def checks_of(self, verdict: Verdict) -> Mapping[str, Check]:
        """Return the checks of a verdict's criteria by label."""
        return self._by_name[verdict.criteria, verdict.criteria_hash][1]

    def statistics_of(self, verdict: Verdict, outcome: Outcome | None = None) -> Iterator[Mapping[str, Any]]:
        """Yield the statistics of every size of a verdict, or of those with one outcome."""
        for one in verdict.statistics:
            if outcome is None or verdict.sizes[one["size"]] is outcome:
                yield one

    def results_of(self, verdict: Verdict, outcome: Outcome) -> Iterator[CheckResult]:
        """Yield the results of the sizes of a verdict that have an outcome, whatever that of the result."""
        for result in verdict.results:
            if verdict.sizes.get(result.size, verdict.outcome) is outcome:
                yield result


def compares_only(criteria: Criteria) -> bool:
    """Whether criteria say nothing about the runs of an arm by themselves."""
    return all(check.about_completion or isinstance(check, ComparedCheck) for check in criteria.checks)


def recipe_steps(name: str) -> int | None:
    """Return the steps of a built-in recipe; None for any other."""
    if name not in builtin_names("bitnetctl.config", "recipes"):
        return None
    tree, _ = read_toml(name, "recipe", "bitnetctl.config", "recipes")
    steps = tree.get("steps")
    return steps if isinstance(steps, int) else None
