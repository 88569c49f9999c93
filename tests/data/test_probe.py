"""The probe's rows, and its reference predictors against a naive count."""

import math
from collections import Counter
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from texts import data_config, token_data

from bitnetctl import data
from bitnetctl.data.probe import score_ngrams
from bitnetctl.errors import DataError

pytestmark = pytest.mark.usefixtures("token_cache")


def naive_references(train: list[int], inputs: list[int], targets: list[int], vocabulary: int) -> Any:
    tokens, pairs = Counter(train), Counter(pairwise(train))
    seen: Counter[int] = Counter(train[:-1])
    followers = {v: {w for u, w in pairs if u == v} for v in seen}

    def unigram(w: int) -> Fraction:
        return Fraction(tokens[w] + 1, len(train) + vocabulary)

    def bigram(v: int, w: int) -> Fraction:
        types = len(followers.get(v, ()))
        return (pairs[v, w] + types * unigram(w)) / (seen[v] + types) if types else unigram(w)

    best = {v: max(range(vocabulary), key=lambda w: (bigram(v, w), -w)) for v in set(inputs)}
    losses = [
        -sum(math.log(p) for p in probabilities) / len(targets)
        for probabilities in (
            [unigram(w) for w in targets],
            [bigram(v, w) for v, w in zip(inputs, targets, strict=True)],
        )
    ]
    return (*losses, len(set(best.values())))


@settings(deadline=None, max_examples=60)
@given(
    train=st.lists(st.integers(0, 6), min_size=1, max_size=60),
    probe=st.lists(st.integers(0, 7), min_size=2, max_size=20),
    chunk=st.integers(1, 20),
)
def test_references_agree_with_a_naive_count(train: list[int], probe: list[int], chunk: int) -> None:
    inputs_PT, targets_PT = np.array([probe[:-1]]), np.array([probe[1:]])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bitnetctl.data.ngrams._CHUNK_TOKENS", chunk)
        result = score_ngrams(np.array(train, dtype=np.uint16), inputs_PT, targets_PT, vocab_size=8)
    unigram, bigram, unique = naive_references(train, probe[:-1], probe[1:], 8)
    assert result.unigram_loss == pytest.approx(unigram, rel=1e-12)
    assert result.bigram_loss == pytest.approx(bigram, rel=1e-12)
    assert result.bigram_unique == unique


def test_bigram_probabilities_sum_to_one() -> None:
    train_N = np.array([1, 2, 1, 3, 1, 2, 0, 5, 1, 1], dtype=np.uint16)
    for context in range(6):
        targets_PT = np.arange(6)[:, None]
        total = sum(
            math.exp(-score_ngrams(train_N, np.array([[context]]), target[None], vocab_size=6).bigram_loss)
            for target in targets_PT
        )
        assert total == pytest.approx(1.0)


def test_probe_rows_are_evenly_spaced_and_rounded_up() -> None:
    tokens = token_data([0, 1, 2, 3] * 20, np.arange(1000) % 251, vocab_size=251)
    probe = data.probe_data(tokens, positions=41, sequence_length=8)
    assert probe.inputs_PT.shape == probe.targets_PT.shape == (6, 8)
    assert probe.targets_PT.size == 48
    assert probe.inputs_PT.dtype == np.int64
    assert np.array_equal(probe.inputs_PT[:, 1:], probe.targets_PT[:, :-1])
    starts = [row * 999 // 6 for row in range(6)]
    assert probe.inputs_PT[:, 0].tolist() == [start % 251 for start in starts]
    assert probe.unique_targets == len(set(probe.targets_PT.ravel().tolist()))


@given(held_out=st.integers(2, 300), length=st.integers(1, 20), positions=st.integers(1, 300))
def test_probe_rows_do_not_overlap(held_out: int, length: int, positions: int) -> None:
    tokens = token_data([0], np.arange(held_out), vocab_size=300)
    supported = (held_out - 1) // length * length
    with pytest.MonkeyPatch.context() as patch:
        scores = data.probe.NgramScores(unigram_loss=1.0, bigram_loss=1.0, bigram_unique=1)
        patch.setattr("bitnetctl.data.probe._cached_scores", lambda *_: scores)
        if positions > supported:
            with pytest.raises(DataError, match=f"support at most {supported} probe positions"):
                data.probe_data(tokens, positions=positions, sequence_length=length)
            return
        probe = data.probe_data(tokens, positions=positions, sequence_length=length)
    targets = probe.targets_PT.ravel()
    assert len(np.unique(targets)) == len(targets) >= positions
    assert targets.max() < held_out


def test_too_few_held_out_tokens_suggest_the_largest_probe(corpus: Path) -> None:
    tokens = data.prepare(data_config(corpus))
    with pytest.raises(DataError) as caught:
        data.probe_data(tokens, positions=10**6, sequence_length=32)
    message = str(caught.value)
    supported = int(message.partition("lower probe.positions to ")[2].partition(",")[0])
    assert "data.held_out_fraction" in message
    assert "\n" not in message
    assert data.probe_data(tokens, positions=supported, sequence_length=32).targets_PT.size == supported
    with pytest.raises(DataError, match=r"at most 0 probe positions.*lower data.sequence_length, give more"):
        data.probe_data(tokens, positions=1, sequence_length=10**6)


def test_references_are_cached_and_checked(corpus: Path) -> None:
    tokens = data.prepare(data_config(corpus))
    steps: list[str] = []

    def probe() -> tuple[float, float, int]:
        steps.clear()
        result = data.probe_data(
            tokens, positions=256, sequence_length=32, progress=lambda what, *_: steps.append(what)
        )
        return result.unigram_loss, result.bigram_loss, result.bigram_unique

    first = probe()
    assert "counting bigrams" in steps
    assert first[1] < first[0]
    assert probe() == first
    assert not steps
    (path,) = (data.cache_folder() / "references").iterdir()
    content = path.read_text()
    loss = f'"unigram_loss":{first[0]}'
    assert loss in content.replace(" ", "")
    for harmed in (
        "{",
        content.replace("unigram", "trigram"),
        content.replace(str(first[0]), "NaN"),
        content.replace(tokens.fingerprint, "0" * 64),
    ):
        path.write_text(harmed)
        assert probe() == first
        assert steps[0].startswith("recounting bigrams (the cached scores ")
        assert path.read_text() == content
    assert probe() == first
    assert not steps
