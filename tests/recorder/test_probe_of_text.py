"""A probe made of texts, by a tokenizer or a function."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer

from bitnetctl.data import TokenData
from bitnetctl.errors import DataError
from bitnetctl.recorder import HeldOutProbe

SIZES = {"positions": 64, "sequence_length": 16}


@pytest.fixture
def tokenizer(tiny_tokens: TokenData) -> Tokenizer:
    return Tokenizer.from_file(str(tiny_tokens.tokenizer_path))


def test_a_tokenizer_and_a_function_give_the_same_probe(tokenizer: Tokenizer, tiny_text: Path) -> None:
    text = tiny_text.read_text(encoding="utf-8")
    train, held_out = text[:50_000], text[50_000:60_000]
    probe = HeldOutProbe.from_text(train, held_out, tokenizer, **SIZES)
    assert probe.vocab_size == tokenizer.get_vocab_size() == 300
    assert probe.data.inputs_PT.shape == (4, 16)
    by_function = HeldOutProbe.from_text(
        train, held_out, lambda one: tokenizer.encode(one).ids, vocab_size=300, **SIZES
    )
    assert by_function.fingerprint == probe.fingerprint
    assert by_function.data.target_bytes is None
    # whole rows of another text: their bytes are those of what they decode to, the first token of a row left out
    decoded = [tokenizer.decode(row) for row in probe.data.targets_PT.tolist()]
    assert probe.data.target_bytes == sum(len(one.encode()) for one in decoded)
    assert "tokenizer_fingerprint" not in by_function.metadata()
    assert len(probe.metadata()["tokenizer_fingerprint"]) == 64


def test_limits_of_a_tokenizer_cut_nothing(tokenizer: Tokenizer, tiny_text: Path) -> None:
    text = tiny_text.read_text(encoding="utf-8")[:20_000]
    probe = HeldOutProbe.from_text(text, text, tokenizer, **SIZES)
    tokenizer.enable_truncation(10)
    assert HeldOutProbe.from_text(text, text, tokenizer, **SIZES).fingerprint == probe.fingerprint
    # and the tokenizer keeps them
    assert len(tokenizer.encode(text).ids) == 10


def test_an_end_of_text_follows_every_document(tokenizer: Tokenizer, tiny_text: Path) -> None:
    lines = tiny_text.read_text(encoding="utf-8").splitlines()[:40]
    probe = HeldOutProbe.from_text(lines, lines, tokenizer, end_of_text=256, positions=64, sequence_length=16)
    ids = [number for line in lines for number in [*tokenizer.encode(line).ids, 256]]
    expected = HeldOutProbe.from_tokens(ids, ids, vocab_size=300, **SIZES)
    assert probe.fingerprint == expected.fingerprint
    assert 256 in probe.data.targets_PT
    decoded = [tokenizer.decode([one for one in row if one != 256]) for row in probe.data.targets_PT.tolist()]
    assert probe.data.target_bytes == sum(len(one.encode()) for one in decoded)


def test_a_function_needs_a_vocabulary() -> None:
    with pytest.raises(DataError, match="give vocab_size"):
        HeldOutProbe.from_text("abc", "abc", lambda text: [1])
