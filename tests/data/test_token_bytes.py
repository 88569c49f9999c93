"""The bytes of the probe's targets, against the held-out text itself."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from texts import END, data_config
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from bitnetctl import data
from bitnetctl.data.token_bytes import Pieces

pytestmark = pytest.mark.usefixtures("token_cache")

WORDS = ["naïve", "Straße", "日本語", "😀", "plain", "e", "don't", "Ωmega", "…"]
SEEN = ["naïve", "plain", "e", "don't", "…"]


def text(lines: int, seed: int, words: list[str] = WORDS) -> str:
    """Lines of words in which a character takes one to four bytes."""
    generator = random.Random(seed)
    return "".join(" ".join(generator.choices(words, k=6)) + "\n" for _ in range(lines))


def byte_level(prefix_space: bool = False, *, normalizer: normalizers.Normalizer | None = None) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=[END], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([text(200, 5, SEEN)], trainer)
    return tokenizer


def split_byte_level() -> Tokenizer:
    """As Llama 3's: words are cut by an expression first."""
    tokenizer = byte_level()
    cut = pre_tokenizers.Split(" ", "merged_with_next")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    return tokenizer


def sentence_piece() -> Tokenizer:
    """As Llama 2's: a space before the text, and bytes for characters without a token."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += [chr(code) for code in range(ord("a"), ord("z") + 1)] + ["\u2581", "\u00ef", "'"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


def unigram() -> Tokenizer:
    letters = sorted(set(text(100, 5).replace(" ", "\u2581")))
    tokenizer = Tokenizer(models.Unigram([("</s>", 0.0), ("<?>", -9.0), *((each, -3.0) for each in letters)], unk_id=1))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(["</s>"])
    return tokenizer


def word_piece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=["[UNK]", "[SEP]"], show_progress=False)
    tokenizer.train_from_iterator([text(200, 5)], trainer)
    return tokenizer


EXACT: dict[str, Callable[[], Tokenizer]] = {
    "byte-level": byte_level,
    "space before the text": lambda: byte_level(prefix_space=True),
    "normalized text": lambda: byte_level(normalizer=normalizers.NFC()),
    "cut first": split_byte_level,
    "SentencePiece with bytes": sentence_piece,
    "unigram": unigram,
}
LOSSY: dict[str, Callable[[], Tokenizer]] = {
    "lower case": lambda: byte_level(normalizer=normalizers.Lowercase()),
    "another normal form": lambda: byte_level(normalizer=normalizers.NFKC()),
    "words": word_piece,
}


def prepared(tmp_path: Path, tokenizer: Tokenizer | str, held_out: str, **fields: str) -> data.TokenData:
    """Tokens whose held-out side is one text alone."""
    if isinstance(tokenizer, Tokenizer):
        tokenizer.save(str(tmp_path / "tokenizer.json"))
    for name, content in {"train": text(120, 1), "held": held_out}.items():
        (tmp_path / f"{name}.txt").write_text(content, encoding="utf-8", newline="")
    spec = f"file:{tmp_path / 'tokenizer.json'}" if isinstance(tokenizer, Tokenizer) else tokenizer
    fields = {"held_out_source": f"file:{tmp_path / 'held.txt'}", "tokenizer": spec, **fields}
    return data.prepare(data_config(tmp_path / "train.txt", **fields))


def probe(tokens: data.TokenData, positions: int = 10**9, length: int = 1) -> data.ProbeData:
    supported = (len(tokens.held_out_N) - 1) // length * length
    return data.probe_data(tokens, positions=min(positions, supported), sequence_length=length)


@pytest.mark.parametrize("kind", EXACT)
def test_all_targets_together_have_the_bytes_of_the_text(tmp_path: Path, kind: str) -> None:
    held_out = "plain " + text(40, 2)
    tokens = prepared(tmp_path, EXACT[kind](), held_out)
    first = tokens.held_out_N[:1]
    found = probe(tokens)
    assert found.targets_PT.size == len(tokens.held_out_N) - 1
    # the first token is no target: a space, or some of the first letters
    known = load(tokens).decode(first.tolist()).strip()
    assert found.no_bytes is None
    assert found.target_bytes == len(held_out.encode()) - len(known)
    assert tokens.held_out_N[-1] == tokens.end_of_text


def load(tokens: data.TokenData) -> Tokenizer:
    return data.load_tokenizer(tokens.tokenizer_path)


@pytest.mark.parametrize("kind", EXACT)
def test_rows_have_the_bytes_between_their_ends(tmp_path: Path, kind: str) -> None:
    held_out = text(40, 2)
    tokens = prepared(tmp_path, EXACT[kind](), held_out)
    tokenizer, ids = load(tokens), tokens.held_out_N.tolist()

    def whole(count: int) -> int:
        """The tokens up to the last that ends a character; after it each is one byte."""
        while tokenizer.decode(ids[:count]).endswith("\ufffd"):
            count -= 1
        return count

    def bytes_before(count: int) -> int:
        known = tokenizer.decode(ids[: whole(count)]).removeprefix(" ")
        assert held_out.startswith(known)
        return len(known.encode()) + count - whole(count)

    rows = 6
    found = probe(tokens, positions=11 * rows, length=11)
    starts = [row * (len(ids) - 1) // rows for row in range(rows)]
    assert found.inputs_PT[:, 0].tolist() == [ids[start] for start in starts]
    if kind in ("byte-level", "SentencePiece with bytes"):
        assert any(whole(start + 1) < start + 1 for start in starts)
    expected = sum(bytes_before(start + 12) - bytes_before(start + 1) for start in starts)
    assert found.target_bytes == expected


def test_a_character_that_is_cut_counts_its_bytes_one_by_one(tmp_path: Path) -> None:
    held_out = "".join(random.Random(3).choices("😀😁🎉", k=80))
    tokens = prepared(tmp_path, "bpe:257", held_out)
    assert len(tokens.held_out_N) == 4 * 80 + 1
    for length in (1, 3, 5, 6):
        found = probe(tokens, positions=4 * length, length=length)
        assert found.target_bytes == 4 * length - int((found.targets_PT == tokens.end_of_text).sum())


def test_the_end_of_a_text_counts_no_bytes(tmp_path: Path) -> None:
    lines = text(40, 2).splitlines()
    held_out = END.join(lines)
    for tokenizer in (byte_level(), split_byte_level()):
        tokens = prepared(tmp_path, tokenizer, "x" + held_out)
        assert np.count_nonzero(tokens.held_out_N == tokens.end_of_text) == len(lines)
        assert probe(tokens).target_bytes == sum(len(line.encode()) for line in lines)


@pytest.mark.parametrize("kind", LOSSY)
def test_tokens_that_do_not_give_the_text_back_have_no_bytes(tmp_path: Path, kind: str) -> None:
    found = probe(prepared(tmp_path, LOSSY[kind](), text(40, 2)))
    assert found.target_bytes is None
    assert found.no_bytes == "its tokens do not give the text of the probe back byte for byte"


def test_an_unknown_word_is_no_text(tmp_path: Path) -> None:
    tokenizer = unigram()
    held_out = text(40, 2)
    assert probe(prepared(tmp_path, tokenizer, held_out)).target_bytes is not None
    assert probe(prepared(tmp_path, tokenizer, held_out + "Ж")).target_bytes is None


def test_the_bytes_of_an_older_or_a_damaged_cache_are_unknown(tmp_path: Path) -> None:
    arguments = (tmp_path, split_byte_level(), text(40, 2))
    tokens = prepared(*arguments)
    folder = tokens.tokenizer_path.parent
    content = (folder / "held_out_bytes.bin").read_bytes()
    sums = json.loads((folder / "held_out_bytes.json").read_bytes())
    assert (len(content), sums["bytes"]) == (2 * len(tokens.held_out_N),) * 2
    assert probe(tokens).target_bytes is not None
    for harmed in (b"", content[:-2], content[:-1] + b"\1"):
        (folder / "held_out_bytes.bin").write_bytes(harmed)
        found = probe(prepared(*arguments))
        assert found.target_bytes is None
        assert str(found.no_bytes).endswith(f"remove {folder}")
    for name in ("bin", "json"):
        (folder / f"held_out_bytes.{name}").unlink()
    assert probe(prepared(*arguments)).target_bytes is None


def test_byte_level_tokens_need_no_further_file(tmp_path: Path) -> None:
    for tokenizer in ("bpe:300", byte_level()):
        tokens = prepared(tmp_path, tokenizer, text(40, 2))
        assert tokens.held_out_bytes_N is None
        assert {path.name for path in tokens.tokenizer_path.parent.iterdir()} == {
            "train.bin",
            "held_out.bin",
            "tokenizer.json",
            "meta.json",
        }


def test_only_byte_level_bpe_alone_keeps_all_bytes() -> None:
    assert Pieces(byte_level(), None).are_bytes
    padded, swallowing = byte_level(), byte_level()
    padded.add_tokens([AddedToken("<word>")])
    swallowing.add_tokens([AddedToken("<word>", lstrip=True)])
    assert Pieces(padded, None).are_bytes
    assert Pieces(padded, None).length(padded.get_vocab_size() - 1) == len("<word>")
    few = Tokenizer(models.BPE(vocab={"a": 0}, merges=[]))
    few.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    lossy = [build() for kind, build in EXACT.items() if kind != "byte-level"] + [build() for build in LOSSY.values()]
    for tokenizer in (swallowing, few, *lossy):
        assert not Pieces(tokenizer, None).are_bytes
