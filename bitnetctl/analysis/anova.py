"""Analysis of variance of a sweep: with which config fields an outcome goes, seeds being blocks.

The variance is split by least squares, each term against the model of all terms that do not contain it (sums of
squares of type II), so that a design need not be balanced. P-values are those of permutations within blocks.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

from bitnetctl.analysis import wording
from bitnetctl.analysis.factors import Factor, cell_text
from bitnetctl.analysis.interaction import interaction_test
from bitnetctl.analysis.least_squares import LeastSquares, TermKey, less_block_means, number, squares
from bitnetctl.analysis.odd_cell import OddCell, find_odd_cell
from bitnetctl.analysis.permutation import Block, Permuted, factor_test
from bitnetctl.analysis.stats import holm, is_significant, mean

if TYPE_CHECKING:
    from bitnetctl.records.schema import Floats

_CONSTANT = 1e-9
_DIGITS = 12
"""Digits of a fraction of the variance; what is beyond them is rounding."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A value of every run, None where unknown, its name in a sentence and the format spec of its means."""

    name: str
    values: tuple[float | None, ...]
    format_spec: str = ".3g"

    @property
    def known_in(self) -> tuple[int, ...]:
        """Indices of the runs in which it is known."""
        return tuple(index for index, value in enumerate(self.values) if value is not None)


@dataclass(frozen=True, kw_only=True)
class Term:
    """A main effect or a two-way interaction on one outcome.

    `fields` has those of each factor, `means` the mean outcome of every level, or pair of levels. `eta_squared` is the
    fraction of the total sum of squares by which the term lowers the residual of the model; it and
    `degrees_of_freedom` are None where the runs cannot tell the term from others. `p` is that of permutations within
    blocks, `p_floor` the smallest that the design can give, `p_holm` is adjusted over all terms of all outcomes. They
    are None where no permutation is possible.
    """

    fields: tuple[tuple[str, ...], ...]
    means: dict[str, float]
    degrees_of_freedom: int | None = None
    sum_of_squares: float | None = None
    eta_squared: float | None = None
    p: float | None = None
    p_floor: float | None = None
    p_holm: float | None = None

    @property
    def factors(self) -> tuple[str, ...]:
        """Names of its factors: all fields of each."""
        return tuple(map(", ".join, self.fields))

    @property
    def name(self) -> str:
        """Names of its factors, joined."""
        if len(self.factors) == 1:
            return self.factors[0]
        return " × ".join(f"({name})" if ", " in name else name for name in self.factors)

    @property
    def is_significant(self) -> bool:
        """Whether it is told from chance, among all terms of all outcomes."""
        return is_significant(self.p_holm)

    def to_json(self) -> dict[str, Any]:
        """Return every field by name, but for the sum of squares."""
        tree = {name: value for name, value in vars(self).items() if name != "sum_of_squares"}
        return {"term": self.name, **tree, "fields": [list(fields) for fields in self.fields]}


@dataclass(frozen=True, kw_only=True)
class OutcomeAnalysis:
    """The analysis of one outcome over the runs in which it is known; `format_spec` is that of its values.

    `r_squared` is the fraction of the variance that all terms hold together, `p` the p-value of the hypothesis that no
    factor but the size changes anything; for one factor it is that of its term, and None here. `seed_eta_squared` is
    the fraction of the seeds, where they are blocks; `not_estimable` names terms that the runs cannot tell from others;
    `tests` counts the p-values of all outcomes together.
    """

    outcome: str
    runs: int
    unknown_runs: int
    seeds: int
    terms: tuple[Term, ...]
    format_spec: str
    not_estimable: tuple[str, ...] = ()
    r_squared: float | None = None
    seed_eta_squared: float | None = None
    residual_degrees_of_freedom: int | None = None
    p: float | None = None
    p_floor: float | None = None
    p_holm: float | None = None
    odd_cell: OddCell | None = None
    tests: int = 0
    sentence: str = ""

    def means_text(self, term: Term) -> str:
        """Format the means of a term."""
        return wording.means(term.means, self.format_spec)

    def to_json(self) -> dict[str, Any]:
        """Return every field by name, but for the format spec."""
        tree = {name: value for name, value in vars(self).items() if name != "format_spec"}
        odd = vars(self.odd_cell) | {"factors": list(self.odd_cell.factors)} if self.odd_cell else None
        tree["not_estimable"] = list(self.not_estimable)
        return {**tree, "odd_cell": odd, "terms": [term.to_json() for term in self.terms]}


def analyze_outcomes(
    outcomes: Sequence[Outcome], factors: Sequence[Factor], seeds: Sequence[int]
) -> list[OutcomeAnalysis]:
    """Return the analysis of every outcome: main effects and two-way interactions of the factors of the runs.

    Interactions that the runs cannot tell from other terms are left out. Seeds are blocks where every
    factor changes within them. Runs with an unknown value are left out of that outcome.
    """
    alike: dict[tuple[int, ...], list[Outcome]] = {}
    for outcome in outcomes:
        alike.setdefault(outcome.known_in, []).append(outcome)
    by_outcome = {}
    for indices, of_runs in alike.items():
        runs = _Runs.among(indices, factors, seeds)
        for outcome, tests_of_outcome in zip(of_runs, runs.tests(of_runs), strict=True):
            by_outcome[outcome.name] = _analyze(outcome, runs, tests_of_outcome)
    analyses = [by_outcome[outcome.name] for outcome in outcomes]
    p_values = [p for analysis in analyses for p in (analysis.p, *(term.p for term in analysis.terms))]
    tests = sum(p is not None for p in p_values)
    adjusted = iter(holm(p_values))
    results = []
    for analysis in analyses:
        p_holm = next(adjusted)
        terms = tuple(replace(term, p_holm=next(adjusted)) for term in analysis.terms)
        tested = replace(analysis, terms=terms, p_holm=p_holm, tests=tests)
        results.append(replace(tested, sentence=tested.sentence or _sentence(tested)))
    return results


ALL_TERMS: TermKey = ()
"""Stands for all factors but the size together."""

_Tests: TypeAlias = Mapping[TermKey, tuple[float, float]]
"""P-value and the smallest possible one, of every term of an outcome that can be tested."""
_UNTESTED = None, None


@dataclass(frozen=True)
class _Runs:
    """The runs in which an outcome is known: the factors that differ among them, and their seeds."""

    indices: tuple[int, ...]
    factors: tuple[Factor, ...]
    seed_of: tuple[int, ...]

    @classmethod
    def among(cls, indices: tuple[int, ...], factors: Sequence[Factor], seeds: Sequence[int]) -> "_Runs":
        kept = (factor.among(indices) for factor in factors)
        return cls(
            indices,
            tuple(factor for factor in kept if len(factor.levels) > 1),
            tuple(seeds[index] for index in indices),
        )

    @cached_property
    def least_squares(self) -> LeastSquares:
        """Least squares on these runs, the same for all outcomes."""
        return LeastSquares.of(self.factors, self.seed_of)

    def scaled(self, outcome: Outcome) -> "Floats":
        """Return the values over the largest: nothing but means depends on the scale, and a square could overflow."""
        import numpy as np

        values_N = np.array([outcome.values[index] for index in self.indices], dtype=np.float64)
        scaled_N: Floats = values_N / (np.abs(values_N).max() or 1.0)
        return scaled_N

    def tests(self, outcomes: Sequence[Outcome]) -> list[_Tests]:
        """Return the tests of every outcome; permutations are the same for all of them."""
        import numpy as np

        if not self.factors:
            return [{}] * len(outcomes)
        values_NS = np.stack([self.scaled(outcome) for outcome in outcomes], axis=1)
        permuted = permutation_tests(self.factors, self.seed_of, values_NS)
        return [
            {term: (float(test.p_S[column]), test.floor) for term, test in permuted.items()}
            for column in range(len(outcomes))
        ]


def _analyze(outcome: Outcome, runs: _Runs, tests: _Tests) -> OutcomeAnalysis:
    """Analyse one outcome, without the adjustment of p; the sentence is empty unless there is nothing to analyse."""
    known = [value for value in outcome.values if value is not None]
    result = OutcomeAnalysis(
        outcome=outcome.name,
        runs=len(known),
        unknown_runs=len(outcome.values) - len(known),
        seeds=len(set(runs.seed_of)),
        terms=tuple(_terms(runs.factors, known)),
        format_spec=outcome.format_spec,
    )
    if not known:
        return replace(result, sentence=wording.outcome_unknown(outcome.name))
    if not runs.factors:
        return replace(result, sentence=wording.no_factor(outcome.name))
    if max(known) - min(known) <= _CONSTANT * max(1.0, abs(max(known))):
        return replace(result, sentence=wording.constant(outcome.name, format(known[0], outcome.format_spec)))
    return _split(result, known, runs.scaled(outcome), runs, tests)


def _terms(factors: Sequence[Factor], values: Sequence[float]) -> list[Term]:
    """Return main effects and two-way interactions with their means."""
    chosen = [(factor,) for factor in factors] + list(itertools.combinations(factors, 2))
    return [
        Term(fields=tuple(factor.fields for factor in of_term), means=_means(of_term, values)) for of_term in chosen
    ]


def _means(factors: Sequence[Factor], values: Sequence[float]) -> dict[str, float]:
    groups: dict[tuple[int, ...], list[float]] = {}
    for cell, value in zip(zip(*(factor.level_of for factor in factors), strict=True), values, strict=True):
        groups.setdefault(cell, []).append(value)
    return {cell_text(factors, cell): mean(group) for cell, group in sorted(groups.items())}


def _split(
    result: OutcomeAnalysis, known: Sequence[float], scaled_N: "Floats", runs: _Runs, tests: _Tests
) -> OutcomeAnalysis:
    """Return the analysis with the variance split between its terms, their tests and the odd cell."""
    centred_N = scaled_N - scaled_N.mean()
    total = float(centred_N @ centred_N)
    split = runs.least_squares
    blocked = split.seed_of is not None
    rest_N = centred_N if split.seed_of is None else less_block_means(scaled_N[:, None], split.seed_of)[:, 0]
    terms = [
        _fitted(term, split.added[term.factors], rest_N, total, tests)
        for term in result.terms
        if term.factors in split.added
    ]
    estimable = {term.name for term in terms if term.degrees_of_freedom}
    p, floor = tests.get(ALL_TERMS, _UNTESTED)
    return replace(
        result,
        terms=tuple(terms),
        not_estimable=tuple(term.name for term in result.terms if term.name not in estimable),
        r_squared=_fraction(squares(split.together_NR, rest_N), total),
        seed_eta_squared=_fraction(total - float(rest_N @ rest_N), total) if blocked else None,
        residual_degrees_of_freedom=len(known) - split.together_NR.shape[1] - (result.seeds if blocked else 1),
        odd_cell=find_odd_cell(runs.factors, rest_N, known, total),
        p=p,
        p_floor=floor,
    )


def _fitted(term: Term, columns_ND: "Floats", rest_N: "Floats", total: float, tests: _Tests) -> Term:
    """Return a term with its part of the variance and its test, as it is where the runs cannot tell it from others."""
    degrees = columns_ND.shape[1]
    if not degrees:
        return term
    of_term = squares(columns_ND, rest_N)
    p, floor = tests.get(term.factors, _UNTESTED)
    return replace(
        term,
        degrees_of_freedom=degrees,
        sum_of_squares=of_term,
        eta_squared=_fraction(of_term, total),
        p=p,
        p_floor=floor,
    )


def _fraction(squares_of_part: float, total: float) -> float:
    """Return a fraction of the variance, rounded so that equal terms are equal, and in one order, on every machine."""
    return min(1.0, max(0.0, round(squares_of_part / total, _DIGITS)))


def permutation_tests(
    factors: Sequence[Factor], seed_of: Sequence[int], values_NS: "Floats"
) -> dict[TermKey, Permuted]:
    """Return the tests of main effects, of interactions of two and of ALL_TERMS, on outcomes in columns.

    What cannot be tested is left out.
    """
    by_name = {factor.name: factor for factor in factors}
    results: dict[TermKey, Permuted | None] = {}
    for term in (*((name,) for name in by_name), *itertools.combinations(by_name, 2)):
        block_of = _blocks([factor for factor in factors if factor.name not in term], seed_of)
        one, *more = (by_name[name].level_of for name in term)
        if more:
            results[term] = interaction_test(one, more[0], block_of, values_NS)
        else:
            results[term] = factor_test(one, block_of, values_NS)
    results[ALL_TERMS] = _overall_test(factors, seed_of, values_NS)
    return {term: test for term, test in results.items() if test is not None}


def _overall_test(factors: Sequence[Factor], seed_of: Sequence[int], values_NS: "Floats") -> Permuted | None:
    """Return the test of all factors but the size together; None for one, or if no two runs have equal levels."""
    all_of = _cells(factors, len(seed_of))
    tested = [factor for factor in factors if not factor.is_size]
    if len(tested) < 2 or len(set(all_of)) == len(all_of):
        return None
    combinations = number(_cells(tested, len(seed_of))).tolist()
    return factor_test(combinations, _blocks([factor for factor in factors if factor.is_size], seed_of), values_NS)


def _blocks(factors: Sequence[Factor], seed_of: Sequence[int]) -> list[Block]:
    """Return the block of every run by its levels of these factors, and its seed."""
    sizes = _cells([factor for factor in factors if factor.is_size], len(seed_of))
    others = _cells([factor for factor in factors if not factor.is_size], len(seed_of))
    return [Block(*block) for block in zip(seed_of, sizes, others, strict=True)]


def _cells(factors: Sequence[Factor], runs: int) -> list[tuple[int, ...]]:
    """Return the levels of the factors in every run."""
    return [*zip(*(factor.level_of for factor in factors), strict=True)] if factors else [()] * runs


def _sentence(analysis: OutcomeAnalysis) -> str:
    """Return what the terms of an outcome show."""
    terms = sorted(analysis.terms, key=lambda term: -(term.eta_squared or 0.0))
    told = [_clause(term, analysis) for term in terms if term.is_significant]
    parts = [
        wording.goes_with(analysis.outcome, told)
        if told
        else wording.none_told(analysis.outcome, _clause(terms[0], analysis))
    ]
    overall = wording.tested(analysis.p_holm, analysis.p, analysis.p_floor, analysis.tests)
    parts.append(
        wording.together(
            analysis.r_squared or 0.0,
            analysis.seed_eta_squared,
            terms[0].eta_squared or 0.0,
            residual=analysis.residual_degrees_of_freedom or 0,
            terms=len(terms),
            tested=overall if analysis.p is not None else None,
        )
    )
    odd = analysis.odd_cell
    if odd is not None:
        inside, outside = (format(value, analysis.format_spec) for value in (odd.mean, odd.mean_of_rest))
        of_cell = any(term.is_significant and set(term.factors) <= set(odd.factors) for term in terms)
        parts.append(
            wording.odd_cell(
                odd.factors, odd.cell, inside, outside, odd.eta_squared, told=of_cell or is_significant(analysis.p_holm)
            )
        )
    if analysis.not_estimable:
        parts.append(wording.not_estimable(analysis.not_estimable))
    if analysis.seeds == 1:
        parts.append(wording.ONE_SEED)
    return " ".join(filter(None, parts))


def _clause(term: Term, analysis: OutcomeAnalysis) -> str:
    """Return what a sentence says of a term."""
    return wording.term(
        wording.subject(term.fields, term.name),
        term.eta_squared or 0.0,
        wording.tested(term.p_holm, term.p, term.p_floor, analysis.tests),
        wording.means(term.means, analysis.format_spec, wording.MOST_MEANS),
    )
