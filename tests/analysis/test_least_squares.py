"""What each term of a design adds to the others, against regressions with and without it."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING
from unittest import mock

import numpy as np
import pytest

from bitnetctl.analysis import least_squares
from bitnetctl.analysis.factors import Factor
from bitnetctl.analysis.least_squares import TermKey, added_by_terms, design_columns, less_block_means, span, squares

if TYPE_CHECKING:
    from bitnetctl.records.schema import Floats


def drawn(levels: Sequence[int], runs: int, seed: int = 0) -> list[Factor]:
    """Return factors whose levels are drawn for every run."""
    generator = np.random.default_rng(seed)
    factors = []
    for number, most in enumerate(levels):
        level_of = np.unique(generator.integers(0, most, runs), return_inverse=True)[1].tolist()
        texts = tuple(map(str, range(max(level_of) + 1)))
        factors.append(Factor(fields=(f"f{number}",), levels=texts, level_of=tuple(level_of)))
    return factors


def centred(factors: Sequence[Factor]) -> "tuple[dict[TermKey, Floats], list[TermKey]]":
    """Return columns less their means, and the main effects."""
    design = {
        key: less_block_means(columns, [0] * len(factors[0].level_of))
        for key, columns in design_columns(factors).items()
    }
    return design, [key for key in design if len(key) == 1]


def regression(design: "Mapping[TermKey, Floats]", terms: Sequence[TermKey], values: "Floats") -> tuple[float, int]:
    """Return the residual sum of squares and the rank, by a singular value decomposition of all columns at once."""
    matrix = np.hstack([np.zeros((len(values), 1)), *(design[term] for term in terms)])
    solution, _, rank, _ = np.linalg.lstsq(matrix, values, rcond=1e-9)
    return float(((values - matrix @ solution) ** 2).sum()), int(rank)


def type_two(
    design: "Mapping[TermKey, Floats]", terms: Sequence[TermKey], values: "Floats"
) -> dict[TermKey, tuple[float, int]]:
    """Return sum of squares and degrees of freedom of every term, by regressions with and without it."""
    results = {}
    for term in terms:
        others = [other for other in terms if not set(term) <= set(other)]
        without, with_it = regression(design, others, values), regression(design, [*others, term], values)
        results[term] = (without[0] - with_it[0], with_it[1] - without[1])
    return results


DESIGNS = {
    "one factor": ([4], 11),
    "sparse": ([3, 3, 3, 3], 40),
    "more columns than runs": ([4, 4, 4, 4, 4], 30),
    "most combinations once": ([30, 20, 6, 3, 2], 35),
    "unequal": ([2, 5, 3], 60),
    "two runs": ([2, 2], 2),
}


@pytest.mark.parametrize("name", DESIGNS)
@pytest.mark.parametrize("seed", range(4))
def test_degrees_and_squares_are_those_of_regressions(name: str, seed: int) -> None:
    levels, runs = DESIGNS[name]
    factors = [factor for factor in drawn(levels, runs, seed) if len(factor.levels) > 1]
    if not factors:
        return
    design, mains = centred(factors)
    values = np.random.default_rng(seed + 9).standard_normal(runs)
    values -= values.mean()
    expected = type_two(design, [*design], values)
    if any(not degrees for _, degrees in expected.values()):
        expected = type_two(design, [term for term in design if term in mains or expected[term][1]], values)
    if any(not degrees for _, degrees in expected.values()):
        expected = type_two(design, mains, values)
    added = added_by_terms(design, mains)
    assert {term: columns.shape[1] for term, columns in added.items()} == {
        term: degrees for term, (_, degrees) in expected.items()
    }
    found = [squares(columns, values) for columns in added.values()]
    assert found == pytest.approx([of_term for of_term, _ in expected.values()], abs=1e-10)
    whole = span(design, [*added])
    assert whole.T @ whole == pytest.approx(np.eye(whole.shape[1]), abs=1e-12)
    residual, rank = regression(design, [*added], values)
    assert whole.shape[1] == rank
    assert values @ values - squares(whole, values) == pytest.approx(residual, abs=1e-10)


def test_a_combination_that_no_run_has_is_no_column() -> None:
    one = Factor(fields=("a",), levels=("0", "1", "2"), level_of=(0, 1, 2, 1, 2, 2))
    other = Factor(fields=("b",), levels=("0", "1", "2"), level_of=(0, 1, 2, 0, 2, 0))
    design = design_columns([one, other])
    assert design["a", "b"].T.tolist() == [[0, 1, 0, 0, 0, 0], [0, 0, 1, 0, 1, 0]]
    assert design["a",].T.tolist() == [[0, 1, 0, 1, 0, 0], [0, 0, 1, 0, 1, 1]]
    many = drawn([50] * 4, 50)
    assert all(columns.shape[1] <= 50 for columns in design_columns(many).values())


def test_the_work_grows_little_faster_than_the_number_of_terms() -> None:
    design, mains = centred(drawn([3] * 10, 300))
    with mock.patch.object(least_squares, "_beyond", wraps=least_squares._beyond) as beyond:
        added = added_by_terms(design, mains)
    assert len(added) == 55
    # each term against all others anew would be 55 × 54
    assert beyond.call_count < 55 * 12
