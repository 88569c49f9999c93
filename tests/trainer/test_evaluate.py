"""The probe against a naive implementation in numpy, and at points whose values are known."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from bitnetctl.config import ModelConfig, ProbeConfig
from bitnetctl.data import ProbeData
from bitnetctl.engine import cost, predictions
from bitnetctl.engine.predictions import PredictionSums
from bitnetctl.model.packed import PackedModel
from bitnetctl.trainer.evaluate import Probe, ternary_health

CPU = torch.device("cpu")
VOCAB = 61
ROWS, LENGTH = 10, 12
CONFIG = ProbeConfig(random_prompts=15, random_prompt_tokens=6, seed=3)
DEPENDENT = ("UniquePredictions", "HeldOutLoss", "TopShare", "EffectiveVocab", "ContextInformation")


def build(*seeds: int) -> PackedModel:
    config = ModelConfig(hidden_size=32, num_layers=1, initialization="default")
    return PackedModel([config] * len(seeds), VOCAB, seeds, CPU)


def probe_data(target_bytes: int | None = 400) -> ProbeData:
    windows = np.random.default_rng(0).integers(0, VOCAB // 2, (ROWS, LENGTH + 1))
    return ProbeData(
        inputs_PT=windows[:, :-1].copy(),
        targets_PT=windows[:, 1:].copy(),
        unique_targets=29,
        unigram_loss=3.5,
        bigram_loss=2.5,
        bigram_unique=17,
        target_bytes=target_bytes,
    )


def measure(model: PackedModel, *quant_lambdas: float) -> list[dict[str, Any]]:
    return Probe(CONFIG, probe_data(), VOCAB, CPU).measure(model, quant_lambdas or [1.0] * model.num_runs)


def test_bits_per_byte_follow_from_the_loss_and_the_bytes() -> None:
    model = build(0)
    with torch.no_grad():
        model.packed["head"][0].zero_()
    (row,) = measure(model)
    # a uniform guess takes log2(V) bits for each of the 120 tokens
    assert row["HeldOutBitsPerByte"] == pytest.approx(math.log2(VOCAB) * 120 / 400, rel=1e-6)
    for unknown in (None, 0):
        (row,) = Probe(CONFIG, probe_data(unknown), VOCAB, CPU).measure(model, [1.0])
        assert row["HeldOutBitsPerByte"] is None
    with torch.no_grad():
        model.packed["final_norm"][0, 0] = math.nan
    (row,) = measure(model)
    assert math.isnan(row["HeldOutBitsPerByte"])


def spy(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Return the list that will hold the tokens of every forward pass."""
    prepared, seen = PackedModel.prepared, []

    def watched(model: PackedModel, quant_lambdas: Sequence[float]) -> Callable[[torch.Tensor], torch.Tensor]:
        logits = prepared(model, quant_lambdas)

        def forward(tokens_RBT: torch.Tensor) -> torch.Tensor:
            seen.append(tokens_RBT)
            return logits(tokens_RBT)

        return forward

    monkeypatch.setattr(PackedModel, "prepared", watched)
    return seen


def softmax(logits: Any) -> Any:
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def entropy(p: Any) -> float:
    return -sum(float(x) * math.log(float(x)) for x in np.ravel(p) if x > 0)


def naive(model: PackedModel, run: int, quant_lambdas: list[float]) -> dict[str, float]:
    """One position after the other, in double precision."""
    data = probe_data()

    def logits(inputs_PT: Any) -> Any:
        with torch.no_grad():
            tokens = torch.from_numpy(inputs_PT).expand(model.num_runs, -1, -1)
            return model.forward(tokens, quant_lambdas)[run].double().numpy().reshape(*inputs_PT.shape, VOCAB)

    probabilities = softmax(logits(data.inputs_PT))
    losses, entropies, predicted = [], [], []
    for p, target in zip(probabilities.reshape(-1, VOCAB), data.targets_PT.ravel(), strict=True):
        losses.append(-math.log(p[target]))
        entropies.append(entropy(p))
        predicted.append(int(p.argmax()))
    fractions = [count / len(predicted) for count in Counter(predicted).values()]
    prompts = np.random.default_rng(CONFIG.seed).integers(0, VOCAB, (15, 6))
    return {
        "UniquePredictions": len(set(predicted)),
        "HeldOutLoss": float(np.mean(losses)),
        "TopShare": max(fractions),
        "EffectiveVocab": math.exp(entropy(fractions)),
        "ContextInformation": entropy(probabilities.reshape(-1, VOCAB).mean(0)) - float(np.mean(entropies)),
        "RandomPromptUnique": len({int(rows[-1].argmax()) for rows in logits(prompts)}),
    }


@pytest.mark.parametrize("quant_lambdas", [[1.0, 1.0], [1.0, 0.0]])
def test_values_are_those_of_a_naive_implementation(quant_lambdas: list[float]) -> None:
    model = build(0, 1)
    measured = measure(model, *quant_lambdas)
    for run in range(2):
        expected = naive(model, run, quant_lambdas)
        # a model that always predicts one token would pass with many mistakes
        assert 5 < expected["UniquePredictions"] < 60
        assert expected["ContextInformation"] > 0.01
        assert 3 < expected["RandomPromptUnique"] <= 15
        assert {name: measured[run][name] for name in expected} == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert measured[0]["HeldOutLoss"] != measured[1]["HeldOutLoss"]


def test_columns_of_the_probe_are_passed_on() -> None:
    (row,) = measure(build(0))
    columns = {"UniqueTargets": 29, "ProbePositions": 120, "UnigramLoss": 3.5, "BigramLoss": 2.5, "BigramUnique": 17}
    assert {name: row[name] for name in columns} == columns
    for name in ("UniquePredictions", "UniqueTargets", "ProbePositions", "BigramUnique", "RandomPromptUnique"):
        assert type(row[name]) is int


@pytest.mark.parametrize("rows_per_chunk", [1, 3])
def test_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch, rows_per_chunk: int) -> None:
    model = build(0, 1)
    whole = measure(model)
    calls = spy(monkeypatch)
    token_bytes = 4 * 2 * VOCAB
    monkeypatch.setattr(cost, "_CPU_CHUNK_BYTES", rows_per_chunk * LENGTH * token_bytes)
    # a number of tokens a pass that does not divide them all
    monkeypatch.setitem(predictions._PASS_BYTES, "cpu", (LENGTH - 1) * token_bytes)
    for chunked, expected in zip(measure(model), whole, strict=True):
        assert chunked == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert [tokens.shape[1] for tokens in calls[:-1]] == {1: [1] * 10, 3: [3, 3, 3, 1]}[rows_per_chunk]


def test_a_constant_model_has_the_values_of_a_uniform_guess() -> None:
    model = build(0, 1)
    with torch.no_grad():
        model.packed["head"][0].zero_()
    row, other = measure(model)
    assert row["HeldOutLoss"] == pytest.approx(math.log(VOCAB), rel=1e-6)
    assert row["ContextInformation"] == pytest.approx(0.0, abs=1e-6)
    assert (row["UniquePredictions"], row["TopShare"], row["EffectiveVocab"]) == (1, 1.0, 1.0)
    assert row["RandomPromptUnique"] == 1
    assert other["UniquePredictions"] > 5


def test_a_certain_model_has_the_largest_context_information() -> None:
    """It copies its input with certainty: the predictions are as diverse as the inputs, with zero entropy each."""
    model = build(0)
    with torch.no_grad():
        for key in ("o", "down"):
            model.packed[key].zero_()
        model.packed["embed"].copy_(torch.eye(VOCAB, 32))
        model.packed["head"].copy_(1000 * torch.eye(VOCAB, 32))
    inputs = probe_data().inputs_PT.ravel()
    counts = np.bincount(inputs)
    (row,) = measure(model)
    assert row["UniquePredictions"] == len(np.unique(inputs))
    assert row["TopShare"] == pytest.approx(counts.max() / counts.sum())
    assert row["ContextInformation"] == pytest.approx(entropy(counts / counts.sum()), rel=1e-5)
    assert row["EffectiveVocab"] == pytest.approx(math.exp(entropy(counts / counts.sum())), rel=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_model_that_is_not_finite_has_no_values(bad: float) -> None:
    model = build(0, 1)
    (_, healthy) = measure(model)
    with torch.no_grad():
        model.packed["final_norm"][0, 0] = bad
    broken, neighbour = measure(model)
    for name in (*DEPENDENT, "RandomPromptUnique"):
        assert math.isnan(broken[name]), name
    assert broken["UniqueTargets"] == 29
    assert neighbour == healthy


def test_measuring_leaves_no_gradient_behind() -> None:
    model = build(0)
    measure(model)
    assert all(gradient.count_nonzero() == 0 for gradient in model.gradients.values())


def test_random_prompts_follow_the_probe_seed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(0)
    seen = spy(monkeypatch)

    def prompts(seed: int) -> Any:
        probe = Probe(ProbeConfig(seed=seed, random_prompts=15, random_prompt_tokens=6), probe_data(), VOCAB, CPU)
        probe.measure(model, [1.0])
        return seen[-1].tolist()

    assert prompts(3) == prompts(3)
    assert prompts(3) != prompts(4)


def test_ternary_health_counts_zeros_and_changes() -> None:
    generator = np.random.default_rng(0)
    shapes = {"qkv": (2, 3, 4, 5), "down": (2, 3, 2, 7)}
    now, before = ({key: generator.integers(-1, 2, shape) for key, shape in shapes.items()} for _ in range(2))
    now["qkv"][1] = before["qkv"][1]
    as_tensors = [
        {key: torch.from_numpy(code).to(torch.int8) for key, code in codes.items()} for codes in (now, before)
    ]
    health = ternary_health(as_tensors[0], as_tensors[1])
    for run in range(2):
        total = zeros = flips = 0
        for key in shapes:
            for a, b in zip(now[key][run].ravel().tolist(), before[key][run].ravel().tolist(), strict=True):
                total, zeros, flips = total + 1, zeros + (a == 0), flips + (a != b)
        assert health[run] == pytest.approx({"ZeroFraction": zeros / total, "FlipRate": flips / total})
    assert health[0]["FlipRate"] != health[1]["FlipRate"]


def test_flips_are_unknown_at_first() -> None:
    codes = {"o": torch.zeros(2, 1, 3, 3, dtype=torch.int8)}
    assert ternary_health(codes, None) == [{"ZeroFraction": 1.0, "FlipRate": None}] * 2
    assert ternary_health(codes, codes) == [{"ZeroFraction": 1.0, "FlipRate": 0.0}] * 2


def test_kernels_measure_what_plain_operations_do(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    model = build(0, 1)
    plain = measure(model)
    added: list[int] = []
    add = PredictionSums._add_by_kernels

    def watched(sums: PredictionSums, logits_RNV: torch.Tensor, targets_N: torch.Tensor) -> None:
        added.append(logits_RNV.shape[1])
        add(sums, logits_RNV, targets_N)

    monkeypatch.setattr(PredictionSums, "_add_by_kernels", watched)
    model.parts = frozenset({"probe"})
    for row, expected in zip(measure(model), plain, strict=True):
        assert row == pytest.approx(expected, rel=1e-6, abs=1e-6)
    assert added == [ROWS * LENGTH]
