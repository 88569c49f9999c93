"""Scores of any text: as the probe's, every token once, every byte."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from configs import TinyConfig
from run_files import RUNS, Train
from tokenizers import Tokenizer, normalizers
from torch.nn.functional import cross_entropy

from bitnetctl.data import ProbeData, TokenData, probe
from bitnetctl.errors import ConfigError, DataError
from bitnetctl.inference.evaluation import TextTokens, _windows, score, score_ngrams, tokenize
from bitnetctl.inference.trained import TrainedRun, open_run
from bitnetctl.records import load_run

TEXT = "Ba gu.\n\nÄöü €🙂 fo!" * 9


@pytest.fixture
def run(train: Train, tiny_config: TinyConfig) -> TrainedRun:
    train(tiny_config(), names=["a"])
    return open_run("a", RUNS)


def test_the_probe_is_scored_as_in_the_csv(run: TrainedRun, tiny_probe: ProbeData) -> None:
    nats = []
    for inputs_T, targets_T in zip(tiny_probe.inputs_PT, tiny_probe.targets_PT, strict=True):
        ids_N = np.concatenate([inputs_T[:1], targets_T])
        nats.append(score(run, TextTokens(ids_N=ids_N, num_bytes=None)).nats)
    last = load_run(RUNS / "a.csv").frame.iloc[-1]
    assert np.mean(nats) == pytest.approx(last["HeldOutLoss"], rel=1e-5)
    bits = np.mean(nats) / math.log(2) * tiny_probe.targets_PT.size / (tiny_probe.target_bytes or 0)
    assert bits == pytest.approx(last["HeldOutBitsPerByte"], rel=1e-5)


def test_held_out_text_as_a_file_scores_about_as_in_the_csv(
    train: Train, tiny_config: TinyConfig, tiny_tokens: TokenData
) -> None:
    rows = (len(tiny_tokens.held_out_N) - 1) // 16
    train(tiny_config(probe__positions=16 * rows), names=["a"])
    run = open_run("a", RUNS)
    text = run.tokenizer.decode(np.asarray(tiny_tokens.held_out_N).tolist(), skip_special_tokens=True)
    result = score(run, tokenize(run, text, "held-out"))
    assert result.num_bytes == len(text.encode())
    assert result.bits_per_byte == pytest.approx(
        load_run(RUNS / "a.csv").frame["HeldOutBitsPerByte"].iloc[-1], rel=5e-3
    )


@pytest.mark.parametrize("count", [1, 3, 4, 5, 8, 9, 30])
@pytest.mark.parametrize("stride", [1, 3, 4])
@pytest.mark.parametrize("batch", [1, 2, 99])
def test_every_token_is_scored_once_with_the_context_that_is_promised(count: int, stride: int, batch: int) -> None:
    context, ids_N = 4, np.arange(100, 101 + count)
    scored: dict[int, int] = {}
    for inputs_WT, targets_WT, last in _windows(ids_N, context, stride, batch):
        assert (inputs_WT[:, 1:] == targets_WT[:, :-1]).all()
        assert inputs_WT.shape[1] <= context
        for targets_T in targets_WT:
            for index in range(len(targets_T) - last, len(targets_T)):
                assert targets_T[index] not in scored
                scored[int(targets_T[index])] = index + 1
    assert sorted(scored) == ids_N[1:].tolist()
    # tokens seen before each token; at the beginning there are no more
    for token, seen in scored.items():
        assert seen >= min(token - 100, context - stride if stride < context else 1)
    if stride == context:
        assert [scored[101 + index] for index in range(count)] == [index % context + 1 for index in range(count)]


def test_loss_is_that_of_the_model_on_each_row(run: TrainedRun) -> None:
    tokens = tokenize(run, TEXT, "text")
    ids = torch.from_numpy(tokens.ids_N)
    with torch.no_grad():
        plain = [
            cross_entropy(run.logits(ids[None, start:end])[0], ids[start + 1 : end + 1], reduction="sum").item()
            for start in range(0, len(ids) - 1, 16)
            for end in [min(start + 16, len(ids) - 1)]
        ]
        sliding = [
            cross_entropy(run.logits(ids[None, max(0, end - 16) : end])[0, -1:], ids[end : end + 1]).item()
            for end in range(1, len(ids))
        ]
    assert score(run, tokens).nats == pytest.approx(sum(plain) / (len(ids) - 1), rel=1e-5)
    assert score(run, tokens, 1).nats == pytest.approx(sum(sliding) / (len(ids) - 1), rel=1e-5)
    assert score(run, tokens).perplexity == pytest.approx(math.exp(sum(plain) / (len(ids) - 1)), rel=1e-4)


def test_every_byte_counts_and_a_separator_has_none(run: TrainedRun) -> None:
    tokens = tokenize(run, TEXT, "text")
    assert tokens.num_bytes == len(TEXT.encode())
    assert tokens.ids_N[0] == run.end_of_text
    two = tokenize(run, f"{TEXT}<|endoftext|>{TEXT}", "text")
    assert two.num_bytes == 2 * len(TEXT.encode())
    assert len(two.ids_N) == 2 * len(tokens.ids_N)


def test_without_an_end_of_text_the_first_token_is_context_only(run: TrainedRun) -> None:
    tokens = tokenize(replace(run, end_of_text=None), "Ba gu.", "text")
    first = run.tokenizer.decode([int(tokens.ids_N[0])])
    assert tokens.first_unscored
    assert tokens.num_bytes == len(b"Ba gu.") - len(first.encode())


def test_bytes_are_unknown_where_tokens_do_not_give_the_text_back(run: TrainedRun) -> None:
    lossy = Tokenizer.from_str(run.tokenizer.to_str())
    lossy.normalizer = normalizers.Lowercase()
    tokens = tokenize(replace(run, tokenizer=lossy), "Ba gu.", "text")
    assert tokens.num_bytes is None
    assert "byte for byte" in (tokens.no_bytes or "")
    result = score(run, tokens)
    assert result.bits_per_byte is None
    assert result.nats > 0


def test_ngrams_are_scored_on_the_same_tokens(run: TrainedRun, tiny_tokens: TokenData, tiny_probe: ProbeData) -> None:
    tokens = tokenize(run, TEXT, "text")
    scores = score_ngrams(tiny_tokens.train_N, tokens, 300)
    rows = tokens.ids_N[None]
    expected = probe.score_ngrams(tiny_tokens.train_N, rows[:, :-1], rows[:, 1:], vocab_size=300)
    assert scores["unigram"].nats == pytest.approx(expected.unigram_loss)
    assert scores["bigram"].nats == pytest.approx(expected.bigram_loss)
    assert scores["bigram"].tokens == len(tokens.ids_N) - 1


def test_mistakes_are_refused(run: TrainedRun, tmp_path: Path) -> None:
    tokens = tokenize(run, TEXT, "text")
    for stride in (0, 17):
        with pytest.raises(ConfigError, match="was trained with 16 tokens; take 1 to 16"):
            score(run, tokens, stride)
    with pytest.raises(DataError, match="0 tokens are too few"):
        tokenize(run, "", "text")
