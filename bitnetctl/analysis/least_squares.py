"""Least squares of the terms of a design, within blocks."""

import itertools
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self, TypeAlias

from bitnetctl.analysis.factors import Factor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from bitnetctl.records.schema import Floats

    Indices: TypeAlias = NDArray[np.int64]

TermKey: TypeAlias = tuple[str, ...]
"""Names of the factors of a term."""

_ROUNDING = 1e-9
"""Length up to which what is left of a column is rounding; columns of a design are dummies of 0 and 1, less means."""


@dataclass(frozen=True)
class LeastSquares:
    """The split of the variance of any outcome: orthonormal columns of what each term adds, and of all together.

    `seed_of` has the blocks, None where seeds are none.
    """

    added: "Mapping[TermKey, Floats]"
    together_NR: "Floats"
    seed_of: Sequence[int] | None

    @classmethod
    def of(cls, factors: Sequence[Factor], seed_of: Sequence[int]) -> Self:
        """Return the split within seeds, where all main effects can be estimated within them, else over all runs."""
        of_term = design_columns(factors)
        mains = [key for key in of_term if len(key) == 1]
        plain = {key: less_block_means(columns_NC, [0] * len(seed_of)) for key, columns_NC in of_term.items()}
        within = {key: less_block_means(columns_NC, seed_of) for key, columns_NC in of_term.items()}
        ranks = [span(design, mains).shape[1] for design in (within, plain)]
        is_blocked = len(set(seed_of)) > 1 and ranks[0] == ranks[1] > 0
        design = within if is_blocked else plain
        added = added_by_terms(design, mains)
        return cls(added, span(design, [*added]), seed_of if is_blocked else None)


def design_columns(factors: Sequence[Factor]) -> "dict[TermKey, Floats]":
    """Return the columns of every term in the design matrix: dummies, and their products for interactions.

    Of a combination of levels that no run has there is no column.
    """
    import numpy as np

    level_of = {factor.name: np.array(factor.level_of) for factor in factors}
    columns: dict[TermKey, Floats] = {(name,): _dummies(level_N, level_N > 0) for name, level_N in level_of.items()}
    for (one, one_N), (other, other_N) in itertools.combinations(level_of.items(), 2):
        cell_N = one_N * (other_N.max() + 1) + other_N
        columns[one, other] = _dummies(cell_N, (one_N > 0) & (other_N > 0))
    return columns


def _dummies(cell_N: "Indices", has_column_N: "NDArray[np.bool_]") -> "Floats":
    """Return the columns of cells: 1 in the runs of the cell, 0 in all others."""
    import numpy as np

    of_cells_NC: Floats = (cell_N[:, None] == np.unique(cell_N[has_column_N])).astype(np.float64)
    return of_cells_NC


def number(keys: Sequence[Hashable]) -> "Indices":
    """Return equal numbers for equal keys, from 0 in the order of their first."""
    import numpy as np

    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)


def less_block_means(values_NC: "Floats", block_of: Sequence[Hashable]) -> "Floats":
    """Return the values less the mean of their block."""
    import numpy as np

    blocks_N = number(block_of)
    sums_BC = np.zeros((blocks_N.max() + 1, values_NC.shape[1]))
    np.add.at(sums_BC, blocks_N, values_NC)
    less_NC: Floats = values_NC - (sums_BC / np.bincount(blocks_N)[:, None])[blocks_N]
    return less_NC


def added_by_terms(design: "Mapping[TermKey, Floats]", mains: Sequence[TermKey]) -> "dict[TermKey, Floats]":
    """Return what each main effect adds, and each interaction, as far as all of them are estimable together.

    That is orthonormal columns, (N, degrees of freedom): the squares of values on them are the sum of squares of type
    II. A term without columns is not estimable.
    """
    added = _added(design, [*design])
    if not all(map(_degrees, added.values())):
        added = _added(design, [term for term in design if len(term) == 1 or _degrees(added[term])])
    if not all(map(_degrees, added.values())):
        added = _added(design, mains)
    return added


def span(design: "Mapping[TermKey, Floats]", terms: Sequence[TermKey], columns_NR: "Floats | None" = None) -> "Floats":
    """Return orthonormal columns that span those of terms, (N, rank), after others."""
    import numpy as np

    if columns_NR is None:
        columns_NR = np.empty((len(next(iter(design.values()))), 0))
    for term in terms:
        columns_NR = np.hstack([columns_NR, _beyond(columns_NR, design[term])])
    return columns_NR


def squares(columns_NR: "Floats", values_N: "Floats") -> float:
    """Return the sum of squares of values on orthonormal columns."""
    on_columns_R = columns_NR.T @ values_N
    return float(on_columns_R @ on_columns_R)


def _degrees(columns_ND: "Floats") -> int:
    return int(columns_ND.shape[1])


def _added(design: "Mapping[TermKey, Floats]", terms: Sequence[TermKey]) -> "dict[TermKey, Floats]":
    """Return what every term adds to those that do not contain it."""
    added = dict(_added_each(design, terms, terms, span(design, ())))
    return {term: added[term] for term in terms}


def _added_each(
    design: "Mapping[TermKey, Floats]", asked: Sequence[TermKey], terms: Sequence[TermKey], columns_NR: "Floats"
) -> "Iterator[tuple[TermKey, Floats]]":
    """Yield what each asked term adds to the columns and to those terms that do not contain it.

    What contains none of the asked terms is made orthogonal once for all of them, then for either half.
    """
    # a main effect is not adjusted for the interactions that contain it
    beside = [term for term in terms if not any(set(one) <= set(term) for one in asked)]
    columns_NR = span(design, beside, columns_NR)
    if len(asked) == 1:
        yield asked[0], _beyond(columns_NR, design[asked[0]])
        return
    left, half = [term for term in terms if term not in beside], len(asked) // 2
    yield from _added_each(design, asked[:half], left, columns_NR)
    yield from _added_each(design, asked[half:], left, columns_NR)


def _beyond(columns_NR: "Floats", more_NC: "Floats") -> "Floats":
    """Return orthonormal columns of what columns of a design have beyond the span of orthonormal ones."""
    import numpy as np

    rest_NC = more_NC - columns_NR @ (columns_NR.T @ more_NC)
    if np.abs(rest_NC).max(initial=0.0) <= _ROUNDING:
        return rest_NC[:, :0]
    basis, lengths, _ = np.linalg.svd(rest_NC, full_matrices=False)
    basis = basis[:, lengths > _ROUNDING]
    # orthogonal once more: in a small rest, rounding is large
    beyond_ND: Floats = np.linalg.qr(basis - columns_NR @ (columns_NR.T @ basis))[0]
    return beyond_ND
