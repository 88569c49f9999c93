"""Least squares of the terms of a design, within blocks."""

import itertools
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

from bitnetctl.analysis.factors import Factor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from bitnetctl.records.schema import Floats

    Indices: TypeAlias = NDArray[np.int64]

TermKey: TypeAlias = tuple[str, ...]
"""Names of the factors of a term."""

_RANK = 1e-9
"""Smallest singular value, as a fraction of the largest, that counts for the rank."""


def design_columns(factors: Sequence[Factor]) -> "dict[TermKey, Floats]":
    """Return the columns of every term in the design matrix: dummies, and their products for interactions."""
    import numpy as np

    dummies = {factor.name: np.eye(len(factor.levels))[list(factor.level_of)][:, 1:] for factor in factors}
    columns: dict[TermKey, Floats] = {(name,): column for name, column in dummies.items()}
    for one, other in itertools.combinations(dummies, 2):
        products = dummies[one][:, :, None] * dummies[other][:, None, :]
        columns[one, other] = products.reshape(len(products), -1)
    return columns


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


def estimable(
    design: "Mapping[TermKey, Floats]",
    values_N: "Floats",
    mains: Sequence[TermKey],
) -> dict[TermKey, tuple[float, int]]:
    """Return `fit_terms` of the main effects and of those interactions with which all of them can be told apart."""
    fits = fit_terms(design, values_N, [*design])
    if any(degrees == 0 for _, degrees in fits.values()):
        fits = fit_terms(design, values_N, [term for term in design if len(term) == 1 or fits[term][1]])
    if any(degrees == 0 for _, degrees in fits.values()):
        fits = fit_terms(design, values_N, mains)
    return fits


def fit_terms(
    design: "Mapping[TermKey, Floats]", values_N: "Floats", terms: Sequence[TermKey]
) -> dict[TermKey, tuple[float, int]]:
    """Return the sum of squares of type II and the degrees of freedom of every term."""
    fits = {}
    for term in terms:
        # a main effect is not adjusted for the interactions that contain it
        others = [other for other in terms if not set(term) <= set(other)]
        residual_without, rank_without = fit(design, values_N, others)
        residual_with, rank_with = fit(design, values_N, [*others, term])
        fits[term] = (max(0.0, residual_without - residual_with), rank_with - rank_without)
    return fits


def fit(design: "Mapping[TermKey, Floats]", values_N: "Floats", terms: Sequence[TermKey]) -> tuple[float, int]:
    """Return the residual sum of squares of a model and its rank."""
    import numpy as np

    if not terms:
        return float(values_N @ values_N), 0
    matrix = np.hstack([design[term] for term in terms])
    solution, _, rank, _ = np.linalg.lstsq(matrix, values_N, rcond=_RANK)
    residual_N = values_N - matrix @ solution
    return float(residual_N @ residual_N), int(rank)


def rank(design: "Mapping[TermKey, Floats]", terms: Sequence[TermKey]) -> int:
    """Return the rank of a model."""
    import numpy as np

    return int(np.linalg.matrix_rank(np.hstack([design[term] for term in terms]), rtol=_RANK))
