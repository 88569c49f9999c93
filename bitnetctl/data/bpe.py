"""Train a byte-level BPE tokenizer; run as a program, in a process of its own that can be killed at any time.

The arguments of the program are the vocabulary size, a file with a text as JSON on every line, and the file to write.
"""

import json
import sys
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

END_OF_TEXT = "<|endoftext|>"


def train_bpe(size: int, texts: Iterable[str]) -> Tokenizer:
    """Return a tokenizer of `size` tokens, or of fewer where the texts have no more pairs to merge."""
    tokenizer = Tokenizer(models.BPE())
    byte_level(tokenizer)
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    # <|endoftext|> in a text is the special token: its characters are not training text
    tokenizer.train_from_iterator((part for text in texts for part in text.split(END_OF_TEXT)), trainer)
    return tokenizer


def byte_level(tokenizer: Tokenizer) -> None:
    """Set the byte-level pre-tokenizer and decoder of GPT-2."""
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()


if __name__ == "__main__":
    with Path(sys.argv[2]).open(encoding="utf-8") as lines:
        train_bpe(int(sys.argv[1]), map(json.loads, lines)).save(sys.argv[3])
