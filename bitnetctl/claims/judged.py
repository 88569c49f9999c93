"""A claim beside the verdict on it: what follows, at which scale, how often it was looked at."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from bitnetctl.claims.claim import Claim
from bitnetctl.claims.looks import (
    Look,
    Looks,
    add_look,
    early_text,
    elsewhere_text,
    otherwise_text,
)
from bitnetctl.config import RunConfig, canonical_hash
from bitnetctl.config.load import flatten
from bitnetctl.records.provenance import MAY_DIFFER
from bitnetctl.units import plural, shortened
from bitnetctl.verdict import Outcome, Summary, Verdict

_MOST_SIZES = 3
_MOST_FIELDS = 6


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Where a claim is tested; what is not known is empty or None. `steps` are the lengths, one as a rule."""

    recipe: str | None
    sizes: tuple[int, ...]
    steps: tuple[int, ...]

    @classmethod
    def of(cls, configs: Iterable[RunConfig]) -> "Scale":
        """Return the scale of runs."""
        configs = list(configs)
        recipes = {config.recipe for config in configs}
        return cls(
            recipe=recipes.pop() if len(recipes) == 1 else None,
            sizes=tuple(sorted({config.model.hidden_size for config in configs})),
            steps=tuple(sorted({config.steps for config in configs})),
        )

    def __str__(self) -> str:
        sizes = shortened([f"h{size}" for size in self.sizes], _MOST_SIZES)
        steps = " to ".join(f"{steps:,}" for steps in dict.fromkeys((*self.steps[:1], *self.steps[-1:])))
        return ", ".join(filter(None, (self.recipe, sizes, f"{steps} steps" if steps else "")))


def design_hash(configs: Iterable[RunConfig]) -> str:
    """Return a hash of what runs are planned to be, their seeds apart."""
    return canonical_hash(sorted({config.but_for_seed.hash for config in configs}))


def departures(given: Iterable[RunConfig], planned: Iterable[RunConfig], arm: str) -> tuple[str, ...]:
    """Say in which fields given runs differ from those planned for their arm, size and length, and `arm` in its seeds.

    Of an arm, size or length that is not planned nothing is said.
    """
    given, planned = list(given), list(planned)
    plans = {_cell(config): config for config in planned}
    seeds, of_plan = ({one.seed for one in configs if one.arm == arm} for configs in (given, planned))
    lacking = shortened([str(seed) for seed in sorted(of_plan - seeds)], _MOST_FIELDS)
    differing = dict.fromkeys([f"without seeds {lacking}"] if lacking else [])
    if len(seeds) > len(of_plan) > 0:
        differing[f"{len(seeds)} seeds, planned {len(of_plan)}"] = None
    for config in given:
        if (plan := plans.get(_cell(config))) is not None:
            wanted = dict(flatten(plan.but_for_seed.model_dump(mode="json")))
            for name, value in flatten(config.but_for_seed.model_dump(mode="json")):
                if name not in MAY_DIFFER and value != wanted[name]:
                    differing[f"{name} {value}, planned {wanted[name]}"] = None
    return (f"not the claim's plan: {shortened(list(differing), _MOST_FIELDS)}",) if differing else ()


def _cell(config: RunConfig) -> tuple[str, str, int, int]:
    return config.recipe, config.arm, config.model.hidden_size, config.steps


@dataclass(frozen=True, kw_only=True)
class JudgedClaim:
    """A claim and what is known of its test beside the verdict.

    `name_or_file` is how it was requested, `arm` the judged arm as runs have it, `judged_at` the scale of these runs,
    `plan_scale` that of the claim's plan. `seeds` are those planned, `present` those whose runs have all ended.
    `looks` are those before this one, kept in `file`; None where none are kept. `elsewhere` counts the other claims
    about the arm that were judged on its runs. `departures` say in what given runs are other than the plan's.
    """

    claim: Claim
    name_or_file: str
    arm: str
    judged_at: Scale
    plan_scale: Scale
    design: str
    seeds: tuple[int, ...]
    present: tuple[int, ...]
    looks: Looks
    file: Path | None
    elsewhere: int = 0
    departures: tuple[str, ...] = ()

    @property
    def claimed_at(self) -> str:
        """Where the claim was made, without its own text the scale of its plan."""
        return self.claim.scale or str(self.plan_scale)

    @property
    def scale(self) -> str:
        """Where the claim is judged, and where it was made unless that is the same."""
        judged = f"judged at {self.judged_at}, {plural(len(self.seeds), 'seed')}"
        return judged if self.claimed_at == str(self.judged_at) else f"claimed at {self.claimed_at}; {judged}"

    @property
    def notes(self) -> list[str]:
        """In what the runs are not the plan's, and what earlier looks do to the error rate."""
        early = self.looks.early(self.claim.hash, self.design)
        others = self.looks.otherwise(self.claim.hash, self.design)
        texts = early_text(early, len(self.seeds)), otherwise_text(others), elsewhere_text(self.elsewhere)
        return [*self.departures, *filter(None, texts)]

    def complete(self, summary: Summary, verdicts: Iterable[Verdict]) -> Summary:
        """Return the summary of the verdicts on the arm, completed with what is known of the claim."""
        differences = [text for verdict in verdicts for text in difference_texts(verdict)]
        return summary.model_copy(
            update={
                "claim": self.claim.title,
                "conclusion": self.claim.conclusions.of(summary.outcome),
                "scale": self.scale,
                # the scale has the steps; what criteria ask for is not in it
                "horizon": summary.horizon if self.claim.criteria.finished.min_steps else "",
                "effect": ("; ".join(differences),) if differences else summary.effect,
                "notes": (*self.notes, *summary.notes),
                "next": self._next(summary),
            }
        )

    def _next(self, summary: Summary) -> str:
        """Return what to do next; the summary knows it where runs are missing or the verdict is invalid."""
        if summary.outcome is Outcome.INCONCLUSIVE and self.present == self.seeds:
            if _is_between_thresholds(summary):
                return f"runs lie between two thresholds: train longer; the plan of the claim has {self.plan_scale}"
            return (
                f"seeds that could tell: bitnetctl power --claim {self.name_or_file} --effect 1; fix their number first"
            )
        if summary.outcome not in (Outcome.SUPPORTED, Outcome.REFUTED):
            return summary.next
        if self.judged_at != self.plan_scale:
            return f"before relying on it: at the scale of its plan ({self.plan_scale}), and on other data"
        return "before relying on it: larger models, other data"

    def keep_look(self, outcome: Outcome) -> None:
        """Keep this look beside the runs; raises StorageError."""
        if self.file is not None:
            look = Look.now(
                claim=self.claim.hash,
                arm=self.arm,
                design=self.design,
                seeds_planned=self.seeds,
                seeds_present=self.present,
                outcome=outcome.value,
            )
            add_look(self.file, look)

    def to_json(self, outcome: Outcome) -> dict[str, Any]:
        """Return what `verify --json` has of the claim."""
        return {
            "name": self.claim.name,
            "hash": self.claim.hash,
            "title": self.claim.title,
            "source": self.claim.source,
            "claimed": self.claim.claimed,
            "arm": self.arm,
            "conclusion": self.claim.conclusions.of(outcome),
            "limits": self.claim.limits,
            "scale": {
                "claimed": self.claimed_at,
                "judged": str(self.judged_at),
                "recipe": self.judged_at.recipe,
                "sizes": self.judged_at.sizes,
                "steps": self.judged_at.steps,
                "seeds": self.seeds,
            },
            "looks": [look.model_dump(mode="json") for look in self.looks.at(self.design)],
            "notes": self.notes,
        }


def _is_between_thresholds(summary: Summary) -> bool:
    """Whether a value of runs is open, which further seeds would not change."""
    return any(
        cell is not None and cell.undecided and not column.is_count
        for row in summary.rows
        for column, cell in zip(summary.columns, row.cells, strict=True)
    )


def difference_texts(verdict: Verdict) -> Iterator[str]:
    """Say by how much the arm differs from those it is compared with, in the median pair of every size."""
    for one in verdict.statistics:
        size = "" if one["size"] is None or len(verdict.statistics) == 1 else f" at h{one['size']}"
        for compared in one.get("pairs", {}).values():
            text = _difference(compared)
            if text:
                yield f"{text}{size}"


def _difference(compared: Mapping[str, Any]) -> str:
    """Return the median difference with its bounds, and what it has to exceed; empty where no pair could be formed."""
    margin = compared.get("margin", 0.0)
    values = [value + margin for value in compared["values"].values()]
    if not values or math.isnan(median(values)):
        return ""
    middle = median(values)
    low = compared.get("lower_bound_of_median", compared["bound_of_median"])
    bounds = [None if bound is None else bound + margin for bound in (low, compared["upper_bound_of_median"])]
    if "within" in compared:
        return f"median difference {_number(middle)}{_bounded(bounds)}, limit {_number(compared['within'])}"
    what, unit = compared["better"], "pair"
    if "modifier" in compared:
        what, unit = "gain larger", "seed"
    if min([middle, *(bound for bound in bounds if bound is not None)]) < 0:
        sign = -1 if what == "lower" else 1
        ends = [None if bound is None else sign * bound for bound in bounds[::sign]]
        name = "gain " * ("modifier" in compared)
        claimed = f"{'a larger one' if name else what} was claimed, margin {_number(margin)}"
        return f"{name}{_signed(sign * middle)} in the median {unit}{_between(ends)}; {claimed}"
    return f"{what} by {_number(middle)} in the median {unit}{_bounded(bounds)}, margin {_number(margin)}"


def _bounded(bounds: Sequence[float | None]) -> str:
    """Return the bounds of a median, as far as there are some."""
    sides = zip(("least", "most"), bounds, strict=True)
    known = [f"at {side} {_number(bound)}" for side, bound in sides if bound is not None]
    return f" ({', '.join(known)})" if known else ""


def _between(ends: Sequence[float | None]) -> str:
    """Return the bounds of a median with their signs, as far as there are some."""
    low, high = ends
    if low is not None and high is not None:
        return f", between {_signed(low)} and {_signed(high)}"
    known = [f"at {side} {_signed(end)}" for side, end in zip(("least", "most"), ends, strict=True) if end is not None]
    return "".join(f", {text}" for text in known)


def _signed(value: float) -> str:
    return f"{value:+.3g}".replace("-", "−") if value else "0"


def _number(value: float) -> str:
    return f"{value:.3g}".replace("-", "−")
