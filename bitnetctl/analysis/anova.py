"""Which factor of a factorial sweep explains an outcome: main effects, two-way interactions, variance explained.

Factors are read off the runs' effective configs, so a factor is what differed, whatever the arms are called.
"""

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from bitnetctl.analysis.stats import p_text
from bitnetctl.config import RunConfig
from bitnetctl.config.load import flatten

NOT_FACTORS = frozenset({"recipe", "seed", "interventions"})
"""Config fields that label or repeat a run; interventions count by what they change."""

EXPLAINS = 0.5
"""Share of the variance from which on a term is said to explain an outcome."""

SIGNIFICANT = 0.05

Partition: TypeAlias = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Factor:
    """Config fields that take the same side in every run, as one factor.

    `levels` are what is shown, numbers by size and the rest in the order of their first run; `level_of` is each run's.
    """

    fields: tuple[str, ...]
    levels: tuple[str, ...]
    level_of: Partition

    @property
    def name(self) -> str:
        """The field it is called by."""
        return self.fields[0]


@dataclass(frozen=True, kw_only=True)
class Term:
    """A main effect or a two-way interaction on one outcome.

    `means` has an entry for every level, or every pair of levels. `sum_of_squares`, `eta_squared` and `p` (F test
    against the rest) are None where the design does not let the factors be told apart; `p` also where nothing is left
    to test against.
    """

    factors: tuple[str, ...]
    means: dict[str, float]
    degrees_of_freedom: int
    sum_of_squares: float | None = None
    eta_squared: float | None = None
    p: float | None = None

    @property
    def name(self) -> str:
        """Names of its factors."""
        return " × ".join(self.factors)

    def to_json(self) -> dict[str, Any]:
        """Return the term by name."""
        return {
            "term": self.name,
            "means": self.means,
            "degrees_of_freedom": self.degrees_of_freedom,
            "eta_squared": self.eta_squared,
            "p": self.p,
        }


@dataclass(frozen=True, kw_only=True)
class OutcomeAnalysis:
    """What explains one outcome over the runs where it is known."""

    outcome: str
    runs: int
    unknown_runs: int
    balanced: bool
    terms: tuple[Term, ...]
    sentence: str
    form: str

    def means_text(self, term: Term) -> str:
        """Write the means of a term."""
        return _means_text(term.means, self.form)

    def to_json(self) -> dict[str, Any]:
        """Return everything by name."""
        return {
            "outcome": self.outcome,
            "runs": self.runs,
            "unknown_runs": self.unknown_runs,
            "balanced": self.balanced,
            "sentence": self.sentence,
            "terms": [term.to_json() for term in self.terms],
        }


def find_factors(configs: Sequence[RunConfig]) -> list[Factor]:
    """Return what differs between effective configs, fields that always change together as one factor.

    Interventions that leave no trace in the config, such as another training loss, are fields of their own, `off` or
    their settings; those that do leave one are named beside the fields that follow them.
    """
    trees = [dict(flatten(config.model_dump(mode="json"))) for config in configs]
    factors: dict[Partition, Factor] = {}
    for name in trees[0] if trees else ():
        if name not in NOT_FACTORS:
            _add(factors, name, [tree[name] for tree in trees])
    for name in dict.fromkeys(spec.name for config in configs for spec in config.interventions):
        values = [
            next((str(spec).partition(":")[2] or "on" for spec in config.interventions if spec.name == name), "off")
            for config in configs
        ]
        sides = _sides(values)
        told_apart = max(1, len(set(zip(*factors, strict=True))))
        if sides in factors or len(set(zip(*factors, sides, strict=True))) > told_apart:
            _add(factors, name, values)
    return list(factors.values())


def _add(factors: dict[Partition, Factor], name: str, values: Sequence[Any]) -> None:
    """Make a factor of a field that takes more than one value, or name it beside the one with the same sides."""
    sides = _sides(values)
    if len(set(sides)) < 2:
        return
    if sides in factors:
        factors[sides] = replace(factors[sides], fields=(*factors[sides].fields, name))
        return
    # numbers stand by size, other values in the order of their first run
    distinct = sorted(dict(zip(sides, values, strict=True)).items(), key=lambda pair: pair[0])
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        distinct.sort(key=lambda pair: float(pair[1]))
    places = {side: place for place, (side, _) in enumerate(distinct)}
    factors[sides] = Factor(
        fields=(name,),
        levels=tuple(_text(value) for _, value in distinct),
        level_of=tuple(places[side] for side in sides),
    )


def _sides(values: Sequence[Any]) -> Partition:
    """Number the distinct values in the order of their first run: equal for fields that always change together."""
    places: dict[str, int] = {}
    return tuple(places.setdefault(json.dumps(value, sort_keys=True), len(places)) for value in values)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return ", ".join(map(_text, value)) or "none"
    return "unset" if value is None else str(value)


def analyze_outcome(
    outcome: str, factors: Sequence[Factor], values: Sequence[float | None], *, form: str = ".3g"
) -> OutcomeAnalysis:
    """Split the variance of an outcome, one value for every run, over factors and pairs of factors.

    The sums of squares are exact where every combination of levels has the same number of runs; with one factor any
    numbers will do. Elsewhere only the means of the levels are given. `form` formats a mean.
    """
    places = [place for place, value in enumerate(values) if value is not None]
    known = [value for value in values if value is not None]
    kept = [_restrict(factor, places) for factor in factors]
    used = [factor for factor in kept if len(set(factor.level_of)) > 1]
    counts = _cell_counts(used)
    balanced = len(used) == 1 or (
        bool(used) and len(set(counts)) == 1 and len(counts) == math.prod(len(factor.levels) for factor in used)
    )
    terms = _terms(used, known, interactions=balanced)
    if balanced:
        terms = _split_variance(terms, used, known)
    sentence = _sentence(outcome, used, known, counts, terms, balanced=balanced, form=form)
    return OutcomeAnalysis(
        outcome=outcome,
        runs=len(known),
        unknown_runs=len(values) - len(known),
        balanced=balanced,
        terms=tuple(terms),
        sentence=sentence,
        form=form,
    )


def _restrict(factor: Factor, places: Sequence[int]) -> Factor:
    """Return the factor over some of its runs, without the levels that they do not take."""
    taken = sorted({factor.level_of[place] for place in places})
    renumbered = {level: index for index, level in enumerate(taken)}
    return Factor(
        fields=factor.fields,
        levels=tuple(factor.levels[level] for level in taken),
        level_of=tuple(renumbered[factor.level_of[place]] for place in places),
    )


def _cell_counts(factors: Sequence[Factor]) -> list[int]:
    counts: dict[tuple[int, ...], int] = {}
    for cell in zip(*(factor.level_of for factor in factors), strict=True):
        counts[cell] = counts.get(cell, 0) + 1
    return list(counts.values())


def _terms(factors: Sequence[Factor], values: Sequence[float], *, interactions: bool) -> list[Term]:
    """Return main effects, and two-way interactions where they can be told from them, with their means."""
    terms = [
        Term(factors=(factor.name,), means=_means([factor], values), degrees_of_freedom=len(factor.levels) - 1)
        for factor in factors
    ]
    pairs = itertools.combinations(factors, 2) if interactions else ()
    return terms + [
        Term(
            factors=(one.name, other.name),
            means=_means([one, other], values),
            degrees_of_freedom=(len(one.levels) - 1) * (len(other.levels) - 1),
        )
        for one, other in pairs
    ]


def _means(factors: Sequence[Factor], values: Sequence[float]) -> dict[str, float]:
    return {
        " / ".join(factor.levels[level] for factor, level in zip(factors, cell, strict=True)): sum(group) / len(group)
        for cell, group in sorted(_groups(factors, values).items())
    }


def _groups(factors: Sequence[Factor], values: Sequence[float]) -> dict[tuple[int, ...], list[float]]:
    groups: dict[tuple[int, ...], list[float]] = {}
    for cell, value in zip(zip(*(factor.level_of for factor in factors), strict=True), values, strict=True):
        groups.setdefault(cell, []).append(value)
    return groups


def _split_variance(terms: Sequence[Term], factors: Sequence[Factor], values: Sequence[float]) -> list[Term]:
    """Fill in sums of squares, variance explained and the F test."""
    by_name = {factor.name: factor for factor in factors}
    grand = sum(values) / len(values)
    total = sum((value - grand) ** 2 for value in values)
    squares: dict[tuple[str, ...], float] = {}
    for term in terms:
        groups = _groups([by_name[name] for name in term.factors], values)
        between = sum(len(group) * (sum(group) / len(group) - grand) ** 2 for group in groups.values())
        inner = sum(squares[(name,)] for name in term.factors) if len(term.factors) > 1 else 0.0
        squares[term.factors] = max(0.0, between - inner)
    rest_squares = max(0.0, total - sum(squares.values()))
    rest_freedom = len(values) - 1 - sum(term.degrees_of_freedom for term in terms)
    # sums of rounded squares: what is below this is nothing
    dust = 1e-12 * sum(value * value for value in values)
    filled = []
    for term in terms:
        own = squares[term.factors]
        filled.append(
            Term(
                factors=term.factors,
                means=term.means,
                degrees_of_freedom=term.degrees_of_freedom,
                sum_of_squares=own,
                eta_squared=min(1.0, own / total) if total > dust else None,
                p=_f_test(own, term.degrees_of_freedom, rest_squares, rest_freedom, dust),
            )
        )
    return filled


def _f_test(squares: float, freedom: int, rest_squares: float, rest_freedom: int, dust: float) -> float | None:
    if rest_freedom < 1:
        return None
    if squares <= dust:
        return 1.0
    if rest_squares <= dust:
        return 0.0
    from scipy.special import fdtrc

    return float(fdtrc(freedom, rest_freedom, (squares / freedom) / (rest_squares / rest_freedom)))


def _sentence(
    outcome: str,
    factors: Sequence[Factor],
    values: Sequence[float],
    counts: Sequence[int],
    terms: Sequence[Term],
    *,
    balanced: bool,
    form: str,
) -> str:
    """Say in words what explains the outcome."""
    if not values:
        return f"The {outcome} is unknown in every run."
    if not factors:
        return f"Nothing differs between the configs of these runs: no factor can explain the {outcome}."
    if max(values) - min(values) <= 1e-9 * max(1.0, abs(max(values))):
        return f"The {outcome} is {format(values[0], form)} in every run: there is nothing to explain."
    if not balanced:
        cells = math.prod(len(factor.levels) for factor in factors)
        return (
            f"The design is not balanced: {len(counts)} of {cells:,} combinations of {len(factors)} factors have runs "
            f"({_range(counts)} each), so no factor can be said to explain anything."
        )
    best = max(terms, key=lambda term: term.eta_squared or 0.0)
    means = _means_text(best.means, form)
    if len(factors) == 1 and max(counts) == 1:
        return (
            f"Nothing but {best.name} differs, and there is one run of each level, so chance may explain the {outcome} "
            f"as well ({means})."
        )
    share, p = best.eta_squared or 0.0, best.p
    tested = "" if p is None else f", p {p_text(p)}"
    if share < EXPLAINS or (p is not None and p >= SIGNIFICANT):
        return (
            f"No factor explains the {outcome}: the strongest, {best.name}, accounts for {share:.0%} of its "
            f"variance{tested} ({means})."
        )
    caution = "; nothing is left to test it against, more seeds would tell it from chance" if p is None else ""
    return f"{best.name} explains {share:.0%} of the variance of the {outcome}{tested} ({means}){caution}."


def _means_text(means: Mapping[str, float], form: str) -> str:
    return ", ".join(f"{level}: {format(mean, form)}" for level, mean in means.items())


def _range(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low}" if low == high else f"{low} to {high}"
