"""Permutation test of the interaction of two factors, on tables of the means by the levels of both."""

import itertools
import math
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from typing import TYPE_CHECKING

from bitnetctl.analysis.permutation import CHUNK, DRAWS, ROUNDING, Block, Permuted, compare

if TYPE_CHECKING:
    from bitnetctl.records.schema import Floats


def interaction_test(
    level_of: Sequence[int], second_of: Sequence[int], block_of: Sequence[Block], values_NS: "Floats"
) -> Permuted | None:
    """Test that two factors do not interact, given the levels of both and the block of every run.

    The means of the combinations of levels are one table for every seed and levels of the other factors, the mean of
    those of its sizes; where no table is complete, runs of several seeds make one, in the order of their seeds. Without
    an interaction, and with exchangeable noise, a table less its row and column means has the same law after a
    permutation of rows and of columns (Pesarin & Salmaso 2010, synchronized permutations). None for fewer than two
    complete tables.
    """
    import numpy as np

    table_of: list[tuple[Hashable, Hashable]] = [((block.seed, block.others), block.size) for block in block_of]
    tables = _tables(level_of, second_of, table_of, values_NS)
    if not tables:
        tables = _tables(level_of, second_of, _matched(level_of, second_of, block_of), values_NS)
    if len(tables) < 2:
        return None
    table_KRCS = np.stack(tables)
    table_KRCS = table_KRCS - table_KRCS.mean(1, keepdims=True)
    table_KRCS = table_KRCS - table_KRCS.mean(2, keepdims=True)
    count, rows, columns = table_KRCS.shape[:3]
    # in a table of 2 × 2 both permutations reverse the sign
    orders = 2 if rows == columns == 2 else math.factorial(rows) * math.factorial(columns)
    is_exact = orders**count <= DRAWS + 1
    seen_S = (table_KRCS.sum(0) ** 2).sum((0, 1))
    slack_S = ROUNDING * (table_KRCS**2).sum((0, 1, 2)) * count
    chunk = max(1, CHUNK // table_KRCS.size)
    sums = (_every_sum if is_exact else _random_sums)(table_KRCS, chunk)
    statistics = ((sums_PRCS**2).sum((1, 2)) for sums_PRCS in sums)
    return compare(statistics, seen_S - slack_S, float(orders) ** (1 - count) if is_exact else None)


def _every_sum(table_KRCS: "Floats", chunk: int) -> "Iterator[Floats]":
    """Yield the sum over tables after every combination of permutations of their rows and columns, (P, R, C, S)."""
    import numpy as np

    count, rows, columns = table_KRCS.shape[:3]
    row_orders = [*itertools.permutations(range(rows))]
    column_orders = [*itertools.permutations(range(columns))] if rows > 2 or columns > 2 else [tuple(range(columns))]
    pairs = [*itertools.product(row_orders, column_orders)]
    row_order_GR, column_order_GC = (np.array(orders) for orders in zip(*pairs, strict=True))
    for start in range(0, len(pairs) ** count, chunk):
        numbers = np.arange(start, min(start + chunk, len(pairs) ** count))
        total = 0.0
        for table_RCS in table_KRCS:
            numbers, index = np.divmod(numbers, len(pairs))
            total = total + table_RCS[row_order_GR[index][:, :, None], column_order_GC[index][:, None, :]]
        yield np.asarray(total)


def _random_sums(table_KRCS: "Floats", chunk: int) -> "Iterator[Floats]":
    """Yield DRAWS sums over tables, each with its rows and columns permuted at random, (P, R, C, S) at a time."""
    import numpy as np

    generator = np.random.default_rng(0)
    count, rows, columns = table_KRCS.shape[:3]
    for start in range(0, DRAWS, chunk):
        size = min(chunk, DRAWS - start)
        if rows == columns == 2:
            # both permutations reverse the sign
            signs_PK = 1.0 - 2 * generator.integers(0, 2, (size, count))
            yield np.tensordot(signs_PK, table_KRCS, 1)
            continue
        total = 0.0
        for table_RCS in table_KRCS:
            row_order_PR = np.argsort(generator.random((size, rows)), axis=1)
            column_order_PC = np.argsort(generator.random((size, columns)), axis=1)
            total = total + table_RCS[row_order_PR[:, :, None], column_order_PC[:, None, :]]
        yield np.asarray(total)


def _tables(
    level_of: Sequence[int],
    second_of: Sequence[int],
    table_of: Sequence[tuple[Hashable, Hashable]],
    values_NS: "Floats",
) -> "list[Floats]":
    """Return the tables (R, C, S) of mean values by both levels, averaged over sizes where they are complete.

    `table_of` has for every run what its table stands for, and its size.
    """
    import numpy as np

    cells: dict[tuple[Hashable, Hashable], dict[tuple[int, int], list[int]]] = {}
    for index, table in enumerate(table_of):
        cells.setdefault(table, {}).setdefault((level_of[index], second_of[index]), []).append(index)
    rows, columns = sorted(set(level_of)), sorted(set(second_of))
    whole = [*itertools.product(rows, columns)]
    tables: dict[Hashable, list[Floats]] = {}
    for (unit, _), of_block in cells.items():
        if len(of_block) == len(whole):
            table_RCS = np.stack([values_NS[of_block[cell]].mean(0) for cell in whole])
            tables.setdefault(unit, []).append(table_RCS.reshape(len(rows), len(columns), -1))
    return [np.mean(of_sizes, axis=0) for of_sizes in tables.values()]


def _matched(
    level_of: Sequence[int], second_of: Sequence[int], block_of: Sequence[Block]
) -> list[tuple[Hashable, Hashable]]:
    """Return tables of the first run of every combination, of the second one, and so on, in the order of seeds."""
    turns: Counter[Hashable] = Counter()
    table_of: list[tuple[Hashable, Hashable]] = [((), ())] * len(level_of)
    for index in sorted(range(len(level_of)), key=lambda index: block_of[index].seed):
        _, size, others = block_of[index]
        cell = (level_of[index], second_of[index], others, size)
        table_of[index] = ((others, turns[cell]), size)
        turns[cell] += 1
    return table_of
