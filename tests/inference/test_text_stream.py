"""Text that is shown as its tokens arrive: whole characters, every kind of tokenizer, bytes that are no text."""

import random
from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from bitnetctl.data.bpe import END_OF_TEXT, train_bpe
from bitnetctl.inference.text_stream import TextStream

TEXT = "Ünïcode – 日本語 text, 🙂👩‍👩‍👧 and é; two  spaces\n\tand a line. " * 3


def byte_level() -> Any:
    return train_bpe(280, [TEXT])


def pieces_with_bytes() -> Tokenizer:
    """A tokenizer as of Llama: spaces as ▁, unknown characters as their bytes."""
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)}
    for word in ("▁text", "▁and", "▁a", "▁", "t", "e", "x", "a", "n", "d", "te", "xt", "an"):
        vocabulary.setdefault(word, len(vocabulary))
    merges = [("t", "e"), ("x", "t"), ("a", "n")]
    vocabulary["▁te"] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True, unk_token="<0x00>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def word_pieces() -> Tokenizer:
    words = ["[UNK]", "text", "and", "a", "line", "two", "spaces", "##s", "##and", "t", "##e", ".", ","]
    tokenizer = Tokenizer(models.WordPiece({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


KINDS = [byte_level, pieces_with_bytes, word_pieces]


def streamed(tokenizer: Tokenizer, tokens: list[int], prompt: int) -> list[str]:
    stream = TextStream(tokenizer, tokens[:prompt])
    return [*map(stream.feed, tokens[prompt:]), stream.finish()]


@pytest.mark.parametrize("prompt", [0, 1, 9, 40])
@pytest.mark.parametrize("kind", KINDS)
def test_the_parts_are_the_whole_text(kind: Callable[[], Any], prompt: int) -> None:
    tokenizer = kind()
    text = "two spaces, a line." * 20 if kind is word_pieces else TEXT
    tokens = tokenizer.encode(text).ids
    while prompt and "\ufffd" in tokenizer.decode(tokens[:prompt]):
        prompt += 1
    parts = streamed(tokenizer, tokens, prompt)
    assert tokenizer.decode(tokens[:prompt]) + "".join(parts) == tokenizer.decode(tokens)
    # no character is shown in parts, and text is shown as it comes
    assert not any("\ufffd" in part for part in parts)
    assert sum(map(bool, parts)) > len(tokens[prompt:]) / 5


@pytest.mark.parametrize("seed", range(20))
def test_bytes_that_are_no_text_are_shown_as_the_tokenizer_decodes_them(seed: int) -> None:
    tokenizer, rng = byte_level(), random.Random(seed)
    # half of them high bytes, of which few sequences are characters
    tokens = [rng.choice([rng.randrange(1, 280), rng.randrange(130, 257)]) for _ in range(300)]
    assert "".join(streamed(tokenizer, tokens, 0)) == tokenizer.decode(tokens)


def test_a_character_waits_for_its_last_byte() -> None:
    tokenizer = byte_level()
    symbols = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str("🙂!")[0][0]
    stream = TextStream(tokenizer, [])
    assert [stream.feed(tokenizer.token_to_id(symbol)) for symbol in symbols] == ["", "", "", "🙂", "!"]
    assert stream.finish() == ""
    # one that is never completed
    assert [stream.feed(tokenizer.token_to_id(symbol)) for symbol in symbols[:2]] == ["", ""]
    assert stream.finish() == "\ufffd"


def test_a_broken_character_does_not_hold_back_what_follows() -> None:
    tokenizer = byte_level()
    half, letter = tokenizer.token_to_id("ð"), tokenizer.token_to_id("a")
    stream = TextStream(tokenizer, [])
    parts = [stream.feed(token) for token in [half] * 200 + [letter]]
    # at most three characters wait
    assert ["".join(parts[:count]) for count in (100, 200)] == ["\ufffd" * 97, "\ufffd" * 197]
    assert parts[-1] == "\ufffd\ufffd\ufffda"


def test_special_tokens_have_no_text() -> None:
    tokenizer = byte_level()
    tokenizer.add_special_tokens([AddedToken("<|special|>", special=True)])
    tokens = tokenizer.encode(f"a{END_OF_TEXT} b<|special|>c").ids
    assert "".join(streamed(tokenizer, tokens, 1)) == " bc"
