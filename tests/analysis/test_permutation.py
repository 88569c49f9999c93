"""Permutation tests against every arrangement written out, Welch's test against scipy, and what blocks forbid."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from scipy.stats import ttest_ind

from bitnetctl.analysis import interaction as interactions, permutation
from bitnetctl.analysis.interaction import interaction_test
from bitnetctl.analysis.permutation import Block, Permuted, factor_test


def blocks(
    seeds: Sequence[int], sizes: Sequence[object] | None = None, others: Sequence[object] | None = None
) -> list[Block]:
    nothing = [()] * len(seeds)
    return [Block(*block) for block in zip(seeds, sizes or nothing, others or nothing, strict=True)]


def exchanged(
    levels: Sequence[int],
    values: Sequence[float],
    *,
    seeds: Sequence[int] | None = None,
    others: Sequence[object] | None = None,
    sizes: Sequence[object] | None = None,
) -> Permuted | None:
    block_of = blocks(seeds if seeds is not None else range(len(levels)), sizes, others)
    return factor_test(levels, block_of, np.array(values, dtype=np.float64)[:, None])


def p_of(result: Permuted | None) -> float:
    assert result is not None
    return float(result.p_S[0])


@pytest.mark.parametrize(("values", "p"), [([1, 1, 9], 1 / 3), ([1, 1, 9, 9], 2 / 6), ([1, 1.1, 9, 9.2], 2 / 6)])
def test_three_or_four_runs_are_never_significant(values: list[float], p: float) -> None:
    # with nothing varying within the levels, an F test would give 0
    levels = [int(value > 5) for value in values]
    result = exchanged(levels, values)
    assert p_of(result) == pytest.approx(p)
    assert result is not None
    assert result.floor == pytest.approx(p)


def test_two_runs_cannot_be_tested() -> None:
    assert exchanged([0, 1], [1, 9]) is None
    assert exchanged([0, 1], [1, 9], seeds=[0, 0]) is None
    assert exchanged([0, 1, 2], [1, 9, 5], seeds=[0, 0, 0]) is None


def test_pairs_of_a_seed_are_exchanged_within_it() -> None:
    # differences 1, 2, 3, -0.5: sums 6.5 and 5.5 of 16, in both directions
    seeds, levels = [0, 0, 1, 1, 2, 2, 3, 3], [0, 1] * 4
    result = exchanged(levels, [50, 51, 0, 2, -70, -67, 9, 8.5], seeds=seeds)
    assert p_of(result) == pytest.approx(4 / 16)
    assert result is not None
    assert result.floor == 2 / 16


@pytest.mark.parametrize("seed", range(3))
def test_three_levels_in_blocks_against_every_arrangement(seed: int) -> None:
    generator = np.random.default_rng(seed)
    values = generator.standard_normal((3, 3))
    centred = values - values.mean(axis=1, keepdims=True)
    sums = [
        sum((centred[block][list(order)] for block, order in enumerate(orders)), np.zeros(3))
        for orders in itertools.product(itertools.permutations(range(3)), repeat=3)
    ]
    squares = np.array([(one**2).sum() for one in sums])
    expected = np.mean(squares >= (centred.sum(axis=0) ** 2).sum() - 1e-9)
    result = exchanged([0, 1, 2] * 3, values.ravel().tolist(), seeds=[0, 0, 0, 1, 1, 1, 2, 2, 2])
    assert p_of(result) == pytest.approx(float(expected))
    assert result is not None
    assert result.floor == 6 / 6**3


def test_effects_of_other_factors_do_not_matter() -> None:
    # one seed, two factors: labels of the first are exchanged between runs with the same level of the second
    levels, others = [0, 1] * 6, [number // 2 for number in range(12)]
    values = [0.0, 1.0, 5.0, 6.1, 100.0, 101.2, -50.0, -48.9, 7.0, 8.3, 3.0, 4.4]
    assert p_of(exchanged(levels, values, seeds=[0] * 12, others=others)) == 2 / 2**6
    assert exchanged([0, 0, 1, 1], [1, 2, 8, 9], seeds=[0] * 4) is None, "repeats of a run are one run"


def test_one_seed_at_six_sizes_is_one_pair() -> None:
    levels, sizes = [0, 1] * 6, [number // 2 for number in range(12)]
    values = [number // 2 * 10 + number % 2 for number in range(12)]
    assert exchanged(levels, values, seeds=[0] * 12, sizes=sizes) is None
    two_seeds = exchanged(levels * 2, values * 2, seeds=[0] * 12 + [1] * 12, sizes=sizes * 2)
    assert two_seeds is not None
    assert two_seeds.floor == 2 / 4


def test_sizes_with_other_levels_are_exchanged_apart() -> None:
    # at size 1 only one of the levels was trained: it says nothing and takes nothing away
    values = [0, 1, 5, 0, 2, 5, 0, 3, 5]
    result = exchanged([0, 1, 1] * 3, values, seeds=[0, 0, 0, 1, 1, 1, 2, 2, 2], sizes=[0, 0, 1] * 3)
    assert p_of(result) == 2 / 8


def test_a_factor_that_changes_from_seed_to_seed_exchanges_seeds() -> None:
    # two runs of each of six seeds are six units, not twelve
    seeds = [number // 2 for number in range(12)]
    levels = [int(seed > 2) for seed in seeds]
    result = exchanged(
        levels, [seed + number % 2 / 10 for number, seed in enumerate(seeds)], seeds=seeds, others=[0, 1] * 6
    )
    assert result is not None
    assert result.floor == 2 / math.comb(6, 3)


def test_factors_mixed_between_and_within_seeds_cannot_be_tested() -> None:
    assert exchanged([0, 1, 0, 1], [1, 2, 3, 4], seeds=[0, 0, 1, 1], others=[0, 1, 0, 1]) is None


def test_the_larger_of_permutation_and_welch_counts() -> None:
    generator = np.random.default_rng(2)
    many, few = generator.standard_normal(10), np.array([8.0, 17.0])
    result = exchanged([0] * 10 + [1] * 2, [*many, *few])
    welch = float(ttest_ind(many, few, equal_var=False).pvalue)
    assert result is not None
    assert result.floor == pytest.approx(1 / 66)
    assert p_of(result) == pytest.approx(welch)
    assert welch > 1 / 66
    same = exchanged([0] * 5 + [1] * 5, [0, 1, 2, 3, 4, 1, 2, 3, 4, 5])
    assert p_of(same) > float(ttest_ind([0, 1, 2, 3, 4], [1, 2, 3, 4, 5], equal_var=False).pvalue)


def test_random_arrangements_agree_with_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    pairs = (generator.standard_normal(24) + np.tile([0, 0.5], 12)).tolist()
    threes = (generator.standard_normal(15) + np.tile([0, 0, 0.8], 5)).tolist()
    two_by_two = generator.standard_normal(40)
    two_by_two[3::4] += 0.8

    def all_tests() -> list[Permuted | None]:
        levels = [number % 4 for number in range(40)]
        seeds = [number // 4 for number in range(40)]
        return [
            exchanged([0, 1] * 12, pairs, seeds=[number // 2 for number in range(24)]),
            exchanged([0, 1, 2] * 5, threes, seeds=[number // 3 for number in range(15)]),
            interaction_test(
                [level // 2 for level in levels],
                [level % 2 for level in levels],
                blocks(seeds),
                two_by_two[:, None],
            ),
        ]

    exact = [p_of(one) for one in all_tests()]
    for module in (permutation, interactions):
        monkeypatch.setattr(module, "DRAWS", 3_000)
    drawn = all_tests()
    assert [p_of(one) for one in drawn] == pytest.approx(exact, abs=0.04)
    assert [one.floor for one in drawn if one] == [1 / 3_001] * 2 + [2 / 2**10]
    assert [p_of(one) for one in all_tests()] == [p_of(one) for one in drawn]


def interaction(values: Sequence[float], seeds: int, rows: int = 2, columns: int = 2) -> Permuted | None:
    runs = [*itertools.product(range(seeds), range(rows), range(columns))]
    seed_of, one, other = (tuple(column) for column in zip(*runs, strict=True))
    return interaction_test(one, other, blocks(seed_of), np.array(values, dtype=np.float64)[:, None])


def test_an_interaction_reverses_the_sign_of_whole_tables() -> None:
    # contrasts 1, 2, 3, -0.5, whatever the main effects
    contrasts = [1, 2, 3, -0.5]
    values = [value for contrast in contrasts for value in (0, 40, 7, 47 + contrast)]
    result = interaction(values, 4)
    assert p_of(result) == pytest.approx(4 / 16)
    assert result is not None
    assert result.floor == 2 / 16
    assert interaction(values[:4], 1) is None


def test_an_interaction_of_three_levels_against_every_permutation() -> None:
    generator = np.random.default_rng(5)
    tables = generator.standard_normal((2, 2, 3))
    centred = tables - tables.mean(1, keepdims=True)
    centred -= centred.mean(2, keepdims=True)
    orders = [*itertools.product(itertools.permutations(range(2)), itertools.permutations(range(3)))]
    sums = [
        sum((table[np.ix_(*order)] for table, order in zip(centred, chosen, strict=True)), np.zeros((2, 3)))
        for chosen in itertools.product(orders, repeat=2)
    ]
    squares = np.array([(one**2).sum() for one in sums])
    expected = np.mean(squares >= (centred.sum(0) ** 2).sum() - 1e-9)
    result = interaction(tables.ravel().tolist(), 2, columns=3)
    assert p_of(result) == pytest.approx(float(expected))
    assert result is not None
    assert result.floor == pytest.approx(1 / 12)


def test_main_effects_alone_are_no_interaction() -> None:
    generator = np.random.default_rng(1)
    noise = generator.standard_normal(24)
    plain = interaction(noise.tolist(), 6)
    shifted = interaction((noise + np.tile([0, 30, 700, 730], 6)).tolist(), 6)
    assert p_of(plain) == p_of(shifted)


def test_tables_of_runs_without_a_common_seed_are_matched() -> None:
    values = np.array([0, 4, 7, 12, 1, 5, 8, 13, 0, 4, 7, 13.5])[:, None]
    one, other = [0, 0, 1, 1] * 3, [0, 1] * 6
    result = interaction_test(one, other, blocks(range(12)), values)
    assert result is not None
    assert (p_of(result), result.floor) == (2 / 8, 2 / 8)


def test_several_outcomes_are_as_one_by_one() -> None:
    generator = np.random.default_rng(3)
    values = generator.standard_normal((18, 4))
    levels = [*range(3)] * 6
    for seeds in ([number // 3 for number in range(18)], [*range(18)]):
        together = factor_test(levels, blocks(seeds), values)
        apart = [factor_test(levels, blocks(seeds), values[:, [column]]) for column in range(4)]
        assert together is not None
        assert together.p_S.tolist() == [p_of(one) for one in apart]


def test_many_levels_have_the_same_statistic() -> None:
    # more levels than are counted one by one
    generator = np.random.default_rng(4)
    labels = np.array([generator.permutation(8) for _ in range(5)])
    values = generator.standard_normal((8, 2))
    expected = np.stack([[(values[row == level] ** 2).sum(0) for level in range(8)] for row in labels]).sum(1)
    assert permutation._between(labels, np.ones(8, dtype=np.int64), values) == pytest.approx(expected)
