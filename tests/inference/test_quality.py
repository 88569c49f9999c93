"""Measures of text against values worked out by hand."""

import math
import zlib

import numpy as np
import pytest

from bitnetctl.data.ngrams import Int64s, Ngrams
from bitnetctl.data.probe import score_ngrams
from bitnetctl.inference import quality

TRAIN_N = np.array([1, 2, 1, 3, 1, 2, 0, 5, 1, 1], dtype=np.uint16)


def tokens(*rows: list[int]) -> Int64s:
    return np.array(rows, dtype=np.int64)


def test_text_is_scored_by_the_predictor_of_the_probe() -> None:
    prompts_BP, tokens_BN = tokens([4, 1], [0, 2]), tokens([2, 1, 3], [5, 5, 0])
    contexts_BN = tokens([1, 2, 1], [2, 5, 5])
    ngrams = Ngrams.count(TRAIN_N, np.arange(6), vocab_size=6)
    expected = score_ngrams(TRAIN_N, contexts_BN, tokens_BN, vocab_size=6).bigram_loss
    assert quality.bigram_nats(prompts_BP, tokens_BN, ngrams) == pytest.approx(expected, rel=1e-12)


def test_one_pair_is_scored_as_worked_out_by_hand() -> None:
    ngrams = Ngrams.count(TRAIN_N, np.array([1, 4]), vocab_size=6)
    # 1 is followed by 2, 3, 2, 1: four bigrams of three kinds; P(2) = (2 + 1) / (10 + 6)
    [seen] = ngrams.bigram_nats(np.array([1]), np.array([2]))
    assert seen == pytest.approx(-math.log((2 + 3 * 3 / 16) / (4 + 3)))
    # 4 is never followed: the unigram alone
    [unseen] = ngrams.bigram_nats(np.array([4]), np.array([5]))
    assert unseen == pytest.approx(-math.log(2 / 16))
    assert ngrams.unigram_nats(np.array([5])) == pytest.approx(unseen)


def test_repetition_is_the_share_of_ngrams_that_repeat_in_their_text() -> None:
    # five 4-grams, of which the last is the first again; none; a loop of one token
    assert quality.repetition(tokens([1, 2, 3, 4, 1, 2, 3, 4])) == pytest.approx(1 / 5)
    assert quality.repetition(tokens([1, 2, 3, 4, 5, 6, 7, 8])) == 0
    assert quality.repetition(tokens([7] * 8)) == pytest.approx(4 / 5)
    assert quality.repetition(tokens([1, 2, 3, 4, 1, 2, 3, 4], [7] * 8)) == pytest.approx(1 / 2)
    # what one text shares with another is no repetition
    assert quality.repetition(tokens([1, 2, 3, 4], [1, 2, 3, 4])) == 0
    assert quality.repetition(tokens([1, 2, 3])) == 0


def test_distinct_ngrams_are_counted_over_all_texts() -> None:
    assert quality.distinct(tokens([1, 2, 1, 2], [1, 2, 3, 3])) == pytest.approx(4 / 6)
    assert quality.distinct(tokens([1], [2])) == 0


def test_zipf_exponent_of_frequencies_that_follow_the_law() -> None:
    def of(*counts: int) -> float | None:
        return quality.zipf_exponent(tokens([token for token, count in enumerate(counts) for _ in range(count)]))

    assert of(12, 6, 4, 3) == pytest.approx(1)
    assert of(36, 9, 4) == pytest.approx(2)
    assert of(3, 3, 3) == pytest.approx(0)
    assert of(5) is None


def test_compression_counts_bytes() -> None:
    text = "é" * 500
    assert quality.compression_ratio(text) == 1000 / len(zlib.compress(text.encode(), 9))
    assert quality.compression_ratio(text) > 20 > 2 > quality.compression_ratio("Sphinx of black quartz")


def test_perplexity_of_a_hopeless_model_is_infinite() -> None:
    assert quality.perplexity(math.log(50)) == pytest.approx(50)
    assert quality.perplexity(1e4) == math.inf
