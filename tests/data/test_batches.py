"""Batches: every epoch covers the text once, in an order that depends on seed and epoch only."""

import random

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from texts import data_config, token_data

from bitnetctl import data
from bitnetctl.errors import DataError


def test_sequential_batches_by_hand() -> None:
    fields = data_config("stdlib", batch_size=2, sequence_length=3)
    batches = data.Batches(token_data(range(100, 120)), fields, seed=1)
    # 19 targets make 6 windows of 3, three batches of 2
    assert batches.steps_per_epoch == 3
    assert batches.rows_BT1(1).tolist() == [[100, 101, 102, 103], [103, 104, 105, 106]]
    assert batches.rows_BT1(3).tolist() == [[112, 113, 114, 115], [115, 116, 117, 118]]
    assert batches.rows_BT1(4).tolist() == batches.rows_BT1(1).tolist()
    assert batches.starts_B(3).tolist() == [12, 15]
    assert batches.rows_BT1(1).dtype == batches.starts_B(1).dtype == np.int64
    with pytest.raises(ValueError, match="steps count from 1, got 0"):
        batches.rows_BT1(0)


@settings(deadline=None)
@given(
    tokens=st.integers(2, 400),
    rows=st.integers(1, 5),
    length=st.integers(1, 9),
    order=st.sampled_from(["sequential", "shuffled"]),
    seed=st.integers(0, 2**63 - 1),
    epoch=st.integers(0, 1000),
)
def test_an_epoch_covers_the_text_once(tokens: int, rows: int, length: int, order: str, seed: int, epoch: int) -> None:
    fields = data_config("stdlib", batch_size=rows, sequence_length=length, order=order)
    # the token at index n is n, so rows show where they come from
    tokens_data = token_data(range(tokens))
    if tokens - 1 < rows * length:
        with pytest.raises(DataError, match=f"{tokens} training tokens are too few for one batch of {rows} x"):
            data.Batches(tokens_data, fields, seed)
        return
    batches = data.Batches(tokens_data, fields, seed)
    assert batches.steps_per_epoch == (tokens - 1) // length // rows
    steps = range(epoch * batches.steps_per_epoch + 1, (epoch + 1) * batches.steps_per_epoch + 1)
    starts = np.concatenate([batches.starts_B(step) for step in steps])
    assert len(set(starts.tolist())) == len(starts)
    assert not np.any(starts % length)
    assert starts.min() >= 0
    assert starts.max() + length < tokens
    for step in random.Random(0).sample(steps, 1):
        rows_BT1 = batches.rows_BT1(step)
        assert rows_BT1.tolist() == [list(range(start, start + length + 1)) for start in batches.starts_B(step)]
        other = data.Batches(tokens_data, fields, seed)
        assert np.array_equal(other.rows_BT1(step), rows_BT1)


def test_shuffled_batches_depend_on_seed_and_epoch_alone() -> None:
    fields = data_config("stdlib", batch_size=2, sequence_length=4, order="shuffled")
    tokens = token_data(range(801))

    def epoch(seed: int, number: int) -> list[int]:
        batches = data.Batches(tokens, fields, seed)
        steps = range(1 + number * batches.steps_per_epoch, 1 + (number + 1) * batches.steps_per_epoch)
        return [int(start) for step in reversed(steps) for start in batches.starts_B(step)]

    epochs = [epoch(seed, number) for seed in (0, 1) for number in (0, 1)]
    assert len({tuple(starts) for starts in epochs}) == 4
    assert [set(starts) for starts in epochs] == [set(range(0, 800, 4))] * 4
    first = data.Batches(tokens, fields, 3).starts_B(1)
    assert (first // 4).tolist() == np.random.default_rng((3, 0)).permutation(200)[:2].tolist()
