"""Tokenizers in GGUF files: byte-level BPE with the pre-tokenizer of GPT-2, and which tokenizers are that."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from bitnetctl.errors import ConfigError, DataError, one_line

MODEL, PRE = "gpt2", "gpt-2"
"""`tokenizer.ggml.model` and `tokenizer.ggml.pre` of such a tokenizer in llama.cpp."""

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
"""Values of `tokenizer.ggml.token_type`."""


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Tokens by id with the type of each, and merges in the order of their rank, as `left right`."""

    tokens: Sequence[str]
    types: Sequence[int]
    merges: Sequence[str]


def vocabulary(tokenizer: Tokenizer, size: int) -> Vocabulary:
    """Return the vocabulary of `size` ids; raises ConfigError for a tokenizer that llama.cpp would split otherwise."""
    tree = json.loads(tokenizer.to_str())
    problem = _difference(tree)
    if problem is not None:
        raise ConfigError(
            f"its tokenizer is not the byte-level BPE of GPT-2 that llama.cpp computes: {problem}; train with "
            "data.tokenizer=bpe:SIZE or gpt2-files:DIR, or export --to hf or safetensors, which keep tokenizer.json"
        )
    added = {token["id"]: token for token in tree["added_tokens"]}
    known = {number: token for token, number in tokenizer.get_vocab(with_added_tokens=True).items()}
    tokens, types = [], []
    for number in range(size):
        token = known.get(number)
        tokens.append(f"[UNUSED{number}]" if token is None else token)
        if token is None:
            types.append(UNUSED)
        elif number in added:
            types.append(CONTROL if added[number]["special"] else USER_DEFINED)
        else:
            types.append(NORMAL)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in tree["model"]["merges"]]
    return Vocabulary(tokens=tokens, types=types, merges=merges)


def tokenizer_json(read: Vocabulary) -> str:
    """Return the tokenizer.json of a vocabulary, the inverse of `vocabulary`; raises DataError for a broken one."""
    vocab = {token: number for number, token in enumerate(read.tokens) if read.types[number] == NORMAL}
    added = [number for number, kind in enumerate(read.types) if kind in (CONTROL, USER_DEFINED)]
    try:
        # a token of the end of text may be in the vocabulary of the model, too: its id then stays
        every = vocab | {read.tokens[number]: number for number in added}
        merges = [(left, right) for left, right in (merge.split(" ") for merge in read.merges)]
        tokenizer = Tokenizer(models.BPE(vocab=every, merges=merges))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        for number in added:
            special = read.types[number] == CONTROL
            token = AddedToken(read.tokens[number], special=special, normalized=False)
            (tokenizer.add_special_tokens if special else tokenizer.add_tokens)([token])
    except Exception as error:  # the tokenizers library raises bare Exception
        raise DataError(f"its tokenizer is broken: {one_line(error)}") from error
    return str(tokenizer.to_str())


def _difference(tree: Mapping[str, Any]) -> str | None:
    """Return in what a tokenizer.json differs from the byte-level BPE of GPT-2, None where its tokens are the same."""
    model, pre = tree["model"], tree["pre_tokenizer"] or {}
    if model.get("type") != "BPE":
        return f"its model is {model.get('type')}"
    for key in ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges"):
        if model.get(key):
            return f"{key} is {model[key]}"
    absent = sum(symbol not in model["vocab"] for symbol in pre_tokenizers.ByteLevel.alphabet())
    if absent:
        return f"{absent} of the 256 byte symbols are missing"
    if pre.get("type") != "ByteLevel":
        return f"its pre-tokenizer is {pre.get('type', 'none')}"
    if not pre.get("use_regex", True):
        return "its pre-tokenizer has not the pattern of GPT-2"
    if pre.get("add_prefix_space"):
        return "a space is put in front of a text"
    if tree["normalizer"] is not None:
        return f"text is normalized ({tree['normalizer'].get('type')})"
    for token in tree["added_tokens"]:
        if token["lstrip"] or token["rstrip"] or token["single_word"]:
            return f"its token {token['content']!r} takes the space beside it"
    return None
