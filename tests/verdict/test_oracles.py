"""Inputs whose verdict is known: predictors of known quality, null data and damaged files."""

import re
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given, strategies as st
from synthetic import CURED, LEVELS, csv_text, two_stages, write_csv

from bitnetctl.errors import RecordError
from bitnetctl.records import Run, load_run
from bitnetctl.verdict import Outcome, combine, judge, load_criteria

ORIGIN, SOUND = load_criteria("origin"), load_criteria("sound")

SEEDS = 5
"""The least number of seeds that `sound` can decide by."""

Probabilities = npt.NDArray[np.float64]

# in this text every token has a most likely successor; V: vocabulary, N: probe positions
VOCABULARY, TRAINING, PROBE = 300, 120_000, 4096


@cache
def text() -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Training and probe tokens."""
    generator = np.random.default_rng(0)
    frequencies = 1 / (10 + np.arange(VOCABULARY))
    frequencies /= frequencies.sum()
    favourite = generator.permutation(VOCABULARY)
    fresh = generator.choice(VOCABULARY, TRAINING + PROBE + 1, p=frequencies)
    follows = generator.random(len(fresh)) < 0.5
    tokens = fresh.copy()
    for index in range(1, len(tokens)):
        if follows[index]:
            tokens[index] = favourite[tokens[index - 1]]
    return tokens[:TRAINING], tokens[TRAINING:]


@cache
def references() -> tuple[Probabilities, Probabilities]:
    """Unigram (V,) and bigram (V, V) probabilities, counted on the training tokens and smoothed."""
    training, _ = text()
    unigram = np.bincount(training, minlength=VOCABULARY) + 0.5
    pairs = np.zeros((VOCABULARY, VOCABULARY))
    np.add.at(pairs, (training[:-1], training[1:]), 1)
    unigram = unigram / unigram.sum()
    bigram = pairs + 5 * unigram
    return unigram, bigram / bigram.sum(axis=1, keepdims=True)


def oracle(name: str, generator: np.random.Generator) -> Probabilities:
    """A predictor's probabilities at the probe positions (N, V); noise of a millionth stands for a seed."""
    unigram, bigram = references()
    contexts, targets = text()[1][:-1], text()[1][1:]
    flat = np.ones((PROBE, VOCABULARY)) / VOCABULARY
    if name == "uniform":
        probabilities = flat
    elif name == "unigram":
        probabilities = np.tile(unigram, (PROBE, 1))
    elif name == "two-token":
        # predicts one of two tokens depending on the context, with low confidence
        probabilities = np.tile(unigram, (PROBE, 1))
        probabilities[np.arange(PROBE), contexts % 2] += 0.1
    elif name == "bigram":
        probabilities = bigram[contexts]
    else:
        probabilities = flat * 0.01
        probabilities[np.arange(PROBE), targets] += 0.99
    probabilities = probabilities * (1 + 1e-6 * generator.random(probabilities.shape))
    return np.asarray(probabilities / probabilities.sum(axis=1, keepdims=True))


def entropy(probabilities: Probabilities) -> Probabilities:
    logs = np.log(np.where(probabilities > 0, probabilities, 1))
    return np.asarray(-(probabilities * logs).sum(axis=-1))


def loss(probabilities: Probabilities) -> float:
    return float(-np.log(probabilities[np.arange(PROBE), text()[1][1:]]).mean())


def oracle_run(folder: Path, name: str, seed: int) -> Run:
    """A run whose CSV ends with the metrics of this predictor."""
    generator = np.random.default_rng(seed)
    _, bigram = references()
    probabilities = oracle(name, generator)
    chosen = probabilities.argmax(axis=1)
    histogram = np.bincount(chosen, minlength=VOCABULARY) / PROBE
    information = entropy(probabilities.mean(axis=0)) - entropy(probabilities).mean()
    columns = {
        "Loss": loss(probabilities) + 0.001 * generator.random(),
        "HeldOutLoss": loss(probabilities),
        "UniqueTargets": len(np.unique(text()[1][1:])),
        "ProbePositions": PROBE,
        "TopShare": histogram.max(),
        "EffectiveVocab": float(np.exp(entropy(histogram))),
        "ContextInformation": float(information),
        "UnigramLoss": loss(oracle("unigram", np.random.default_rng(9))),
        "BigramLoss": loss(oracle("bigram", np.random.default_rng(9))),
        "BigramUnique": len(np.unique(bigram[text()[1][:-1]].argmax(axis=1))),
    }
    path = folder / f"h256-20000-{name}-s{seed}-abcdef.csv"
    return load_run(write_csv(path, two_stages([len(np.unique(chosen))] * 11, **columns)))


@pytest.mark.parametrize(
    ("name", "by_count", "by_both", "why"),
    [
        # the arg-max of equal logits is noise over all tokens: a count passes it
        ("uniform", Outcome.SUPPORTED, Outcome.REFUTED, "Skill"),
        ("unigram", Outcome.REFUTED, Outcome.REFUTED, "DiversityRatio"),
        ("two-token", Outcome.REFUTED, Outcome.REFUTED, "DiversityRatio"),
        ("bigram", Outcome.SUPPORTED, Outcome.SUPPORTED, "none of 5 seeds failed"),
        ("perfect", Outcome.SUPPORTED, Outcome.SUPPORTED, "none of 5 seeds failed"),
    ],
)
def test_predictors_of_known_quality_get_the_right_verdict(
    tmp_path: Path, name: str, by_count: Outcome, by_both: Outcome, why: str
) -> None:
    runs = [oracle_run(tmp_path, name, seed) for seed in range(SEEDS)]
    assert judge(runs, ORIGIN).outcome is by_count
    verdict = judge(runs, SOUND)
    assert verdict.outcome is by_both
    assert why in " ".join(verdict.reasons)
    assert (combine([judge(runs, ORIGIN), verdict]).disagreement is not None) == (by_count is not by_both)


# damaged files

WHOLE = {
    "origin": csv_text(two_stages(CURED, ProbePositions=8192)),
    "sound": csv_text(two_stages([8000, *[200] * 10], **LEVELS)),
}
DECIDING = {
    "origin": ("Loss", "UniquePredictions"),
    "sound": ("Loss", "UniquePredictions", "HeldOutLoss", "TopShare", "ContextInformation"),
}
REFERENCES = ("ProbePositions", "UnigramLoss", "BigramLoss", "BigramUnique")


def outcome(folder: Path, name: str, damaged: str) -> Outcome | None:
    """The outcome for the least number of runs that can decide, one of them damaged; None where its file is refused."""
    criteria = {"origin": ORIGIN, "sound": SOUND}[name]
    runs = []
    for seed in range(SEEDS if name == "sound" else 1):
        text = damaged if seed == 0 else WHOLE[name].replace(",7.0,", f",{5 + seed}.5,")
        path = folder / f"h256-20000-baseline-s{seed}-abcdef.csv"
        path.write_text(text, encoding="utf-8")
        try:
            runs.append(load_run(path))
        except RecordError:
            return None
    return judge(runs, criteria).outcome


def with_cell(text: str, row: int, column: str, value: str) -> str:
    lines = text.splitlines()
    cells = lines[1 + row].split(",")
    cells[lines[0].split(",").index(column)] = value
    lines[1 + row] = ",".join(cells)
    return "\n".join([*lines, ""])


@pytest.mark.parametrize("name", WHOLE)
def test_whole_files_are_supported(tmp_path: Path, name: str) -> None:
    assert outcome(tmp_path, name, WHOLE[name]) is Outcome.SUPPORTED


@pytest.mark.parametrize("name", WHOLE)
@given(data=st.data())
def test_a_missing_cell_or_a_nan_supports_nothing(
    tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject
) -> None:
    row, value = data.draw(st.integers(0, 10)), data.draw(st.sampled_from(["", "nan", "inf", "-inf"]))
    column = data.draw(st.sampled_from(DECIDING[name]))
    result = outcome(tmp_path_factory.getbasetemp(), name, with_cell(WHOLE[name], row, column, value))
    assert result in (Outcome.REFUTED, Outcome.INCONCLUSIVE)
    # one failed seed of five is too few to refute
    assert name == "sound" or (result is Outcome.REFUTED) == (value != "")


@given(row=st.integers(8, 10), column=st.sampled_from(REFERENCES), value=st.sampled_from(["", "nan", "inf", "-inf"]))
def test_without_references_nothing_is_supported(
    tmp_path_factory: pytest.TempPathFactory, row: int, column: str, value: str
) -> None:
    # the size of a probe is one number, known from any row
    assume(not (column == "ProbePositions" and value == ""))
    damaged = with_cell(WHOLE["sound"], row, column, value)
    assert outcome(tmp_path_factory.getbasetemp(), "sound", damaged) is Outcome.INCONCLUSIVE


@pytest.mark.parametrize("name", WHOLE)
@given(data=st.data())
def test_a_truncated_file_supports_nothing(
    tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject
) -> None:
    text = WHOLE[name]
    cut = data.draw(st.integers(0, len(text) - 1))
    assert outcome(tmp_path_factory.getbasetemp(), name, text[:cut]) in (None, Outcome.INCONCLUSIVE)


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("column", sorted({*DECIDING["sound"], *REFERENCES}))
def test_a_missing_column_supports_nothing(tmp_path: Path, name: str, column: str) -> None:
    if column not in WHOLE[name].splitlines()[0] or (name, column) == ("origin", "ProbePositions"):
        return
    renamed = re.sub(rf"\b{column}\b", "Other", WHOLE[name], count=1)
    assert outcome(tmp_path, name, renamed) in (None, Outcome.INCONCLUSIVE)


@pytest.mark.parametrize("name", WHOLE)
@given(data=st.data())
def test_any_value_is_judged_and_none_raises(
    tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject
) -> None:
    text = WHOLE[name]
    columns = text.splitlines()[0].split(",")
    for _ in range(data.draw(st.integers(1, 12))):
        column = data.draw(st.sampled_from(columns[1:]))
        value = data.draw(st.floats().map(repr) | st.sampled_from(["0", "-0.0", "1e308", "-1e308", "5e-324", ""]))
        text = with_cell(text, data.draw(st.integers(0, 10)), column, value)
    assert outcome(tmp_path_factory.getbasetemp(), name, text) in (None, *Outcome)
