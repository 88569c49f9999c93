"""The one combination of levels that differs from all others, such as a collapse of one optimizer at one rate."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bitnetctl.analysis.factors import Factor, cell_text
from bitnetctl.analysis.stats import mean

if TYPE_CHECKING:
    from bitnetctl.records.schema import Floats

ODD = 0.9
"""Fraction of the variance between combinations that one of them must hold to be called the odd one."""


@dataclass(frozen=True, kw_only=True)
class OddCell:
    """The one combination of levels that differs from the others, and the fraction of the variance that it holds."""

    factors: tuple[str, ...]
    cell: str
    mean: float
    mean_of_rest: float
    eta_squared: float


def find_odd_cell(factors: Sequence[Factor], rest_N: "Floats", known: Sequence[float], total: float) -> OddCell | None:
    """Return the combination of levels of two or three factors that alone differs from all others, if one does.

    It holds at least ODD of the variance between the combinations, and these at least half of that within blocks.
    """
    import numpy as np

    runs, most, odd_one = len(known), 0.0, None
    for chosen in (*itertools.combinations(factors, 2), *itertools.combinations(factors, 3)):
        of_run = [*zip(*(factor.level_of for factor in chosen), strict=True)]
        cells = sorted(set(of_run))
        if len(cells) < math.prod(len(factor.levels) for factor in chosen):
            continue
        number_of = {cell: number for number, cell in enumerate(cells)}
        cells_N = np.array([number_of[cell] for cell in of_run])
        counts_C = np.bincount(cells_N)
        means_C = np.bincount(cells_N, rest_N) / counts_C
        between = float(counts_C @ means_C**2)
        alone_C = counts_C * runs / (runs - counts_C) * means_C**2
        odd = int(alone_C.argmax())
        alone = float(alone_C[odd])
        if alone < ODD * between or between < 0.5 * float(rest_N @ rest_N) or alone <= most:
            continue
        inside = [value for value, cell in zip(known, cells_N.tolist(), strict=True) if cell == odd]
        outside = [value for value, cell in zip(known, cells_N.tolist(), strict=True) if cell != odd]
        most = alone
        odd_one = OddCell(
            factors=tuple(factor.name for factor in chosen),
            cell=cell_text(chosen, cells[odd]),
            mean=mean(inside),
            mean_of_rest=mean(outside),
            eta_squared=min(1.0, alone / total),
        )
    return odd_one
