"""Analysis of variance of a factorial sweep: which config field explains an outcome.

Factors are the fields in which the runs' effective configs differ, whatever the arms are called.
"""

import itertools
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from bitnetctl.analysis.stats import p_equals
from bitnetctl.config import RunConfig
from bitnetctl.config.load import flatten

NOT_FACTORS = frozenset({"recipe", "seed", "interventions"})
"""Config fields that are labels or seeds; interventions count by the fields that they change."""

EXPLAINS = 0.5
"""Smallest eta squared at which a term is said to explain an outcome."""

SIGNIFICANT = 0.05

Partition: TypeAlias = tuple[int, ...]
"""The level of a factor in every run, as an integer from 0."""


@dataclass(frozen=True, kw_only=True)
class Factor:
    """Config fields that always change together, as one factor.

    `levels` are texts, numbers in ascending order and other values in the order of their first run; `level_of` has an
    index into `levels` for every run.
    """

    fields: tuple[str, ...]
    levels: tuple[str, ...]
    level_of: Partition

    @property
    def name(self) -> str:
        """The first of its fields."""
        return self.fields[0]


@dataclass(frozen=True, kw_only=True)
class Term:
    """A main effect or a two-way interaction on one outcome.

    `means` has the mean outcome of every level, or pair of levels. `eta_squared` is the fraction of the total sum of
    squares, `p` the p-value of the F test against the residual. `sum_of_squares`, `eta_squared` and `p` are None in an
    unbalanced design of several factors, whose effects cannot be separated; `p` also without residual degrees of
    freedom.
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
        """Return every field by name, but for the sum of squares."""
        return {
            "term": self.name,
            "means": self.means,
            "degrees_of_freedom": self.degrees_of_freedom,
            "eta_squared": self.eta_squared,
            "p": self.p,
        }


@dataclass(frozen=True, kw_only=True)
class OutcomeAnalysis:
    """ANOVA of one outcome over the runs in which it is known; `format_spec` is that of its values."""

    outcome: str
    runs: int
    unknown_runs: int
    balanced: bool
    terms: tuple[Term, ...]
    sentence: str
    format_spec: str

    def means_text(self, term: Term) -> str:
        """Format the means of a term."""
        return _means_text(term.means, self.format_spec)

    def to_json(self) -> dict[str, Any]:
        """Return every field by name, but for the format spec."""
        return {
            "outcome": self.outcome,
            "runs": self.runs,
            "unknown_runs": self.unknown_runs,
            "balanced": self.balanced,
            "sentence": self.sentence,
            "terms": [term.to_json() for term in self.terms],
        }


def find_factors(configs: Sequence[RunConfig]) -> list[Factor]:
    """Return the factors of an ANOVA: the fields in which the effective configs of the runs differ.

    Fields that always change together are one factor. An intervention that changes no field, for example one with
    another training loss, is a factor with the levels `off`, `on` or its settings; one that changes fields joins
    the factor of a field that changes exactly where the intervention does.
    """
    trees = [dict(flatten(config.model_dump(mode="json"))) for config in configs]
    factors: dict[Partition, Factor] = {}
    for name in trees[0] if trees else ():
        if name not in NOT_FACTORS:
            _add_field(factors, name, [tree[name] for tree in trees])
    for name in dict.fromkeys(spec.name for config in configs for spec in config.interventions):
        values = [
            next((str(spec).partition(":")[2] or "on" for spec in config.interventions if spec.name == name), "off")
            for config in configs
        ]
        partition = _partition(values)
        cells = max(1, len(set(zip(*factors, strict=True))))
        # an intervention whose settings follow from the other factors adds none
        if partition in factors or len(set(zip(*factors, partition, strict=True))) > cells:
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
    # in the order of their first run
    distinct = list(dict(zip(partition, values, strict=True)).items())
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        distinct.sort(key=lambda pair: float(pair[1]))
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


def _level_text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return ", ".join(map(_level_text, value)) or "none"
    return "unset" if value is None else str(value)


def analyze_outcome(
    outcome: str, factors: Sequence[Factor], values: Sequence[float | None], *, format_spec: str = ".3g"
) -> OutcomeAnalysis:
    """Return the ANOVA of an outcome, given one value for every run: main effects and two-way interactions.

    With one factor it is a one-way ANOVA of any group sizes. With several, the design has to be balanced: every
    combination of levels has the same number of runs, so that the terms are orthogonal and their sums of squares add
    up. Each term then has its eta squared and an F test against the residual. An unbalanced design gives the means
    of the levels only. Runs with an unknown value (None) are left out. `format_spec` is for means in texts.
    """
    indices = [index for index, value in enumerate(values) if value is not None]
    known = [value for value in values if value is not None]
    kept = [_restrict(factor, indices) for factor in factors]
    used = [factor for factor in kept if len(set(factor.level_of)) > 1]
    counts = _cell_counts(used)
    balanced = len(used) == 1 or (
        bool(used) and len(set(counts)) == 1 and len(counts) == math.prod(len(factor.levels) for factor in used)
    )
    terms = _terms(used, known, interactions=balanced)
    if balanced:
        terms = _split_variance(terms, used, known)
    sentence = _sentence(outcome, used, known, counts, terms, balanced=balanced, format_spec=format_spec)
    return OutcomeAnalysis(
        outcome=outcome,
        runs=len(known),
        unknown_runs=len(values) - len(known),
        balanced=balanced,
        terms=tuple(terms),
        sentence=sentence,
        format_spec=format_spec,
    )


def _restrict(factor: Factor, indices: Sequence[int]) -> Factor:
    """Return the factor over some of the runs, without levels that none of them has."""
    used = sorted({factor.level_of[index] for index in indices})
    renumbered = {level: number for number, level in enumerate(used)}
    return Factor(
        fields=factor.fields,
        levels=tuple(factor.levels[level] for level in used),
        level_of=tuple(renumbered[factor.level_of[index]] for index in indices),
    )


def _cell_counts(factors: Sequence[Factor]) -> list[int]:
    return list(Counter(zip(*(factor.level_of for factor in factors), strict=True)).values())


def _terms(factors: Sequence[Factor], values: Sequence[float], *, interactions: bool) -> list[Term]:
    """Return main effects, and two-way interactions if requested, with their means."""
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
    """Return the terms of a balanced design with sum of squares, eta squared and F test."""
    by_name = {factor.name: factor for factor in factors}
    grand = sum(values) / len(values)
    total = sum((value - grand) ** 2 for value in values)
    squares: dict[tuple[str, ...], float] = {}
    for term in terms:
        groups = _groups([by_name[name] for name in term.factors], values)
        between = sum(len(group) * (sum(group) / len(group) - grand) ** 2 for group in groups.values())
        main_effects = sum(squares[(name,)] for name in term.factors) if len(term.factors) > 1 else 0.0
        squares[term.factors] = max(0.0, between - main_effects)
    residual = max(0.0, total - sum(squares.values()))
    residual_dof = len(values) - 1 - sum(term.degrees_of_freedom for term in terms)
    # a sum of squares below this is rounding error
    noise = 1e-12 * sum(value * value for value in values)
    return [
        replace(
            term,
            sum_of_squares=squares[term.factors],
            eta_squared=min(1.0, squares[term.factors] / total) if total > noise else None,
            p=_f_test(squares[term.factors], term.degrees_of_freedom, residual, residual_dof, noise),
        )
        for term in terms
    ]


def _f_test(squares: float, dof: int, residual: float, residual_dof: int, noise: float) -> float | None:
    """Return the p-value of F = (squares / dof) / (residual / residual_dof); None for a residual_dof of 0."""
    if residual_dof < 1:
        return None
    if squares <= noise:
        return 1.0
    if residual <= noise:
        return 0.0
    from scipy.special import fdtrc

    return float(fdtrc(dof, residual_dof, (squares / dof) / (residual / residual_dof)))


def _sentence(
    outcome: str,
    factors: Sequence[Factor],
    values: Sequence[float],
    counts: Sequence[int],
    terms: Sequence[Term],
    *,
    balanced: bool,
    format_spec: str,
) -> str:
    """Return one sentence on the strongest term, or why none can be named."""
    if not values:
        return f"The {outcome} is unknown in every run."
    if not factors:
        return f"Nothing differs between the configs of these runs: no factor can explain the {outcome}."
    if max(values) - min(values) <= 1e-9 * max(1.0, abs(max(values))):
        return f"The {outcome} is {format(values[0], format_spec)} in every run: there is nothing to explain."
    if not balanced:
        cells = math.prod(len(factor.levels) for factor in factors)
        return (
            f"The design is not balanced: {len(counts)} of {cells:,} combinations of {len(factors)} factors have runs "
            f"({_range(counts)} each), so no factor can be said to explain anything."
        )
    best = max(terms, key=lambda term: term.eta_squared or 0.0)
    means = _means_text(best.means, format_spec)
    if len(factors) == 1 and max(counts) == 1:
        return (
            f"Nothing but {best.name} differs, and there is one run of each level, so chance may explain the {outcome} "
            f"as well ({means})."
        )
    explained, p = best.eta_squared or 0.0, best.p
    tested = "" if p is None else f", {p_equals(p)}"
    if explained < EXPLAINS or (p is not None and p >= SIGNIFICANT):
        return (
            f"No factor explains the {outcome}: the strongest, {best.name}, accounts for {explained:.0%} of its "
            f"variance{tested} ({means})."
        )
    caution = (
        "; there is no residual to test it against, so more seeds are needed to rule out chance" if p is None else ""
    )
    return f"{best.name} explains {explained:.0%} of the variance of the {outcome}{tested} ({means}){caution}."


def _means_text(means: Mapping[str, float], format_spec: str) -> str:
    return ", ".join(f"{level}: {format(mean, format_spec)}" for level, mean in means.items())


def _range(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low}" if low == high else f"{low} to {high}"
