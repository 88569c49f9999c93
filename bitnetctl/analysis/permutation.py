"""Permutation test of a factor of a design, within blocks of runs that are alike in all else.

Runs are rows; a test takes several outcomes at once, as columns: values_NS. Blocks are runs of one size and seed:
labels are exchanged between runs of a block, in all sizes of a seed together, or, where a factor changes from seed to
seed only, between whole seeds. So a p-value is exact for the hypothesis that the factor changes nothing, whatever the
law of the noise and the effects of other factors.
"""

import itertools
import math
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from bitnetctl.analysis.least_squares import less_block_means, number

if TYPE_CHECKING:
    from bitnetctl.analysis.least_squares import Indices
    from bitnetctl.records.schema import Floats

DRAWS = 9_999
"""Random arrangements of labels where there are more than that many; all of them otherwise."""

_MOST_LEVELS = 6
"""Most levels whose exchanges are counted for the floor of a p-value."""

CHUNK = 1 << 21
"""Numbers held at once; it does not change the result."""

ROUNDING = 1e-10
"""Statistics closer than this, as a fraction of the sum of squares, are equal."""


@dataclass(frozen=True, kw_only=True)
class Permuted:
    """P-values of the outcomes, (S,), and the smallest that the design can give."""

    p_S: "Floats"
    floor: float


class Block(NamedTuple):
    """What runs whose labels are exchanged have in common: seed, size, and the levels of the factors not tested."""

    seed: int
    size: Hashable
    others: Hashable


def compare(statistics: Iterable["Floats"], least_S: "Floats", floor: float | None) -> Permuted:
    """Return how often the statistics of arrangements, (P, S) at a time, are as large as those of the actual one.

    `floor` is that of all arrangements, None for random ones: the actual one is added to these.
    """
    import numpy as np

    extreme_S, count = np.zeros(len(least_S)), 0
    for statistics_PS in statistics:
        extreme_S += (statistics_PS >= least_S).sum(0)
        count += len(statistics_PS)
    if floor is None:
        return Permuted(p_S=(extreme_S + 1) / (count + 1), floor=1 / (count + 1))
    return Permuted(p_S=extreme_S / count, floor=floor)


def factor_test(level_of: Sequence[int], block_of: Sequence[Block], values_NS: "Floats") -> Permuted | None:
    """Test that a factor changes nothing, given its level and the block of every run.

    Its labels are permuted among runs of equal size, seed and other factors, in all sizes of a seed alike. Where it
    changes from seed to seed only, they are permuted among seeds with runs of the same sizes and other factors, and p
    is the larger of that and of Welch's test, which holds for normal values with a different variance at each level.
    The statistic is the sum of squares between levels of the values less the mean of their block. None where no
    arrangement differs from the actual one.
    """
    import numpy as np

    kept = _mixed(level_of, block_of)
    if not kept:
        return _test_seeds(level_of, block_of, values_NS)
    values_KS = less_block_means(values_NS[kept], [block_of[index] for index in kept])
    levels_in: dict[Block, set[int]] = {}
    for index in kept:
        levels_in.setdefault(block_of[index], set()).add(level_of[index])
    # a unit is the mean over the sizes of a seed that have the same levels
    units: dict[tuple[Hashable, int], list[int]] = {}
    for row, index in enumerate(kept):
        block = block_of[index]
        of_sizes = (block.seed, block.others, frozenset(levels_in[block]))
        units.setdefault((of_sizes, level_of[index]), []).append(row)
    unit_US = np.stack([values_KS[rows].mean(0) for rows in units.values()])
    return _test_labels([level for _, level in units], [block for block, _ in units], unit_US)


def _mixed(level_of: Sequence[int], block_of: Sequence[Hashable]) -> list[int]:
    """Return the indices of the runs whose block has more than one level."""
    levels: dict[Hashable, set[int]] = {}
    for block, level in zip(block_of, level_of, strict=True):
        levels.setdefault(block, set()).add(level)
    return [index for index, block in enumerate(block_of) if len(levels[block]) > 1]


def _test_seeds(level_of: Sequence[int], block_of: Sequence[Block], values_NS: "Floats") -> Permuted | None:
    """Test a factor that is constant within every seed; None where it is not."""
    import numpy as np

    runs_of: dict[int, list[int]] = {}
    for index, block in enumerate(block_of):
        runs_of.setdefault(block.seed, []).append(index)
    if any(len({level_of[index] for index in runs}) > 1 for runs in runs_of.values()):
        return None
    levels = [level_of[runs[0]] for runs in runs_of.values()]
    other_of = [(block.others, block.size) for block in block_of]
    alike = [tuple(sorted(map(repr, (other_of[index] for index in runs)))) for runs in runs_of.values()]
    kept = _mixed(levels, alike)
    if not kept:
        return None
    centred_NS = less_block_means(values_NS, other_of)
    unit_US = np.stack([centred_NS[runs].mean(0) for runs in runs_of.values()])[kept]
    levels, alike = [levels[index] for index in kept], [alike[index] for index in kept]
    unit_US = less_block_means(unit_US, alike)
    exchanged = _test_labels(levels, alike, unit_US)
    welch_S = _welch(levels, unit_US, lost=len(set(alike)) - 1)
    if exchanged is None or welch_S is None:
        return None
    return Permuted(p_S=np.maximum(exchanged.p_S, welch_S), floor=exchanged.floor)


def _test_labels(level_of: Sequence[int], block_of: Sequence[Hashable], values_NS: "Floats") -> Permuted | None:
    """Permute labels within blocks; the values are centred in them."""
    import numpy as np

    labels_N = np.unique(level_of, return_inverse=True)[1]
    floor, arrangements = _floor(labels_N.tolist(), block_of)
    if floor >= 1:
        return None
    is_exact = arrangements <= DRAWS + 1
    counts_L, blocks_N = np.bincount(labels_N), number(block_of)
    seen_S = _between(labels_N[None], counts_L, values_NS)[0]
    chunk = max(1, CHUNK // max(values_NS.shape))
    arranged = (_every_arrangement if is_exact else _random_arrangements)(labels_N, blocks_N, chunk)
    statistics = (_between(labels_PN, counts_L, values_NS) for labels_PN in arranged)
    return compare(statistics, seen_S - ROUNDING * (values_NS**2).sum(0), floor if is_exact else None)


def _between(labels_PN: "Indices", counts_L: "Indices", values_NS: "Floats") -> "Floats":
    """Return the sum of squares between levels for every arrangement of labels, (P, S); the values have mean 0."""
    import numpy as np

    arrangements, levels = len(labels_PN), len(counts_L)
    if levels <= _MOST_LEVELS:
        squares_PS: Floats = sum(
            ((labels_PN == level) @ values_NS) ** 2 / count for level, count in enumerate(counts_L)
        )
        return squares_PS
    places = (labels_PN + np.arange(arrangements)[:, None] * levels).ravel()
    sums = [np.bincount(places, np.tile(column, arrangements), arrangements * levels) for column in values_NS.T]
    return np.stack([(of_column.reshape(-1, levels) ** 2 / counts_L).sum(1) for of_column in sums], axis=1)


def _floor(labels: Sequence[int], block_of: Sequence[Hashable]) -> tuple[float, int]:
    """Return the smallest possible p-value of all arrangements of labels within blocks, and their number.

    Exchanging whole levels changes no statistic, where every block has as many runs of one as of the other.
    """
    counts: dict[Hashable, Counter[int]] = {}
    for block, label in zip(block_of, labels, strict=True):
        counts.setdefault(block, Counter())[label] += 1
    arrangements = math.prod(
        math.factorial(count.total()) // math.prod(map(math.factorial, count.values())) for count in counts.values()
    )
    levels = sorted(set(labels))
    alike = 1
    if len(levels) <= _MOST_LEVELS:
        alike = sum(
            all(
                count[one] == count[other]
                for count in counts.values()
                for one, other in zip(levels, order, strict=True)
            )
            for order in itertools.permutations(levels)
        )
    return alike / arrangements, arrangements


def _every_arrangement(labels_N: "Indices", blocks_N: "Indices", chunk: int) -> "Iterator[Indices]":
    """Yield all distinct arrangements of labels within blocks, (P, N) at a time."""
    import numpy as np

    members = [np.flatnonzero(blocks_N == block) for block in range(blocks_N.max() + 1)]
    orders = [np.array(list(_arrangements(labels_N[one].tolist()))) for one in members]
    shape = [len(order) for order in orders]
    for start in range(0, math.prod(shape), chunk):
        numbers = np.arange(start, min(start + chunk, math.prod(shape)))
        labels_PN = np.empty((len(numbers), len(labels_N)), dtype=np.int64)
        for one, order in zip(reversed(members), reversed(orders), strict=True):
            numbers, index = np.divmod(numbers, len(order))
            labels_PN[:, one] = order[index]
        yield labels_PN


def _arrangements(labels: list[int]) -> Iterator[tuple[int, ...]]:
    """Yield the distinct arrangements of labels, in ascending order (Knuth, algorithm L)."""
    labels = sorted(labels)
    while True:
        yield tuple(labels)
        pivot = next((index for index in range(len(labels) - 2, -1, -1) if labels[index] < labels[index + 1]), None)
        if pivot is None:
            return
        swap = next(index for index in range(len(labels) - 1, pivot, -1) if labels[pivot] < labels[index])
        labels[pivot], labels[swap] = labels[swap], labels[pivot]
        labels[pivot + 1 :] = reversed(labels[pivot + 1 :])


def _random_arrangements(labels_N: "Indices", blocks_N: "Indices", chunk: int) -> "Iterator[Indices]":
    """Yield DRAWS random arrangements of labels within blocks, (P, N) at a time."""
    import numpy as np

    generator = np.random.default_rng(0)
    in_order_N = np.argsort(blocks_N, kind="stable")
    pairs = bool((np.bincount(blocks_N) == 2).all())
    for start in range(0, DRAWS, chunk):
        size = min(chunk, DRAWS - start)
        labels_PN = np.empty((size, len(labels_N)), dtype=np.int64)
        if pairs:
            swapped_PB = generator.integers(0, 2, (size, len(labels_N) // 2), dtype=np.int8)
            first_B, second_B = labels_N[in_order_N[::2]], labels_N[in_order_N[1::2]]
            labels_PN[:, in_order_N[::2]] = np.where(swapped_PB, second_B, first_B)
            labels_PN[:, in_order_N[1::2]] = np.where(swapped_PB, first_B, second_B)
        else:
            # sorted by block, at random within it
            shuffled_PN = np.argsort(blocks_N + generator.random(labels_PN.shape), axis=1)
            labels_PN[:, in_order_N] = labels_N[shuffled_PN]
        yield labels_PN


def _welch(level_of: Sequence[int], values_US: "Floats", *, lost: int) -> "Floats | None":
    """Return p-values of Welch's test (1951) of equal means at unequal variances; None without a residual.

    `lost` are the degrees of freedom that the values have lost by centring: variances are raised accordingly. A level
    with one value has the pooled variance.
    """
    import numpy as np
    from scipy.special import fdtrc

    groups = [values_US[np.asarray(level_of) == level] for level in sorted(set(level_of))]
    sizes_L1 = np.array([len(group) for group in groups])[:, None]
    apart = len(level_of) - len(groups)
    residual = apart - lost
    if residual < 1:
        return None
    squares_LS = np.stack([((group - group.mean(0)) ** 2).sum(0) for group in groups]) * (apart / residual)
    pooled_S = squares_LS.sum(0) / apart
    degrees_L1 = np.where(sizes_L1 > 1, sizes_L1 - 1, apart) * (residual / apart)
    variance_LS = np.where(sizes_L1 > 1, squares_LS / np.maximum(sizes_L1 - 1, 1), pooled_S)
    means_LS = np.stack([group.mean(0) for group in groups])
    between_S = ((means_LS - means_LS.mean(0)) ** 2).sum(0)
    weight_LS = sizes_L1 / np.maximum(variance_LS, 1e-12 * pooled_S + 1e-12 * between_S + 1e-300)
    total_S = weight_LS.sum(0)
    centre_S = (weight_LS * means_LS).sum(0) / total_S
    levels = len(groups)
    spread_S = (weight_LS * (means_LS - centre_S) ** 2).sum(0) / (levels - 1)
    penalty_S = ((1 - weight_LS / total_S) ** 2 / degrees_L1).sum(0)
    ratio_S = spread_S / (1 + 2 * (levels - 2) / (levels**2 - 1) * penalty_S)
    p_S: Floats = fdtrc(levels - 1, (levels**2 - 1) / (3 * penalty_S), ratio_S)
    return p_S
