"""Train a byte-level BPE tokenizer; run as a program, in a process of its own that can be killed at any time.

The arguments of the program are the vocabulary size and the file to write. Its stdin is a sequence of texts, each
preceded by its length in 8 bytes, and ends with the length −1. Without that end the sender has died, and the program
fails without writing the file.
"""

import struct
import sys
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

END_OF_TEXT = "<|endoftext|>"
_LENGTH = struct.Struct("<q")
_END = -1


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
    # a marker in the text is the token itself; its characters must not be learned
    tokenizer.train_from_iterator((part for text in texts for part in text.split(END_OF_TEXT)), trainer)
    return tokenizer


def byte_level(tokenizer: Tokenizer) -> None:
    """Make a tokenizer work on bytes."""
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()


def send(texts: Iterable[str], file: BinaryIO) -> None:
    """Write texts to the stdin of the program."""
    for text in texts:
        content = text.encode()
        file.write(_LENGTH.pack(len(content)) + content)
    file.write(_LENGTH.pack(_END))
    file.flush()


def receive(file: BinaryIO) -> Iterator[str]:
    """Read texts that `send` wrote; raises EOFError when the end is missing."""
    while True:
        head = file.read(_LENGTH.size)
        if len(head) < _LENGTH.size:
            raise EOFError
        length = _LENGTH.unpack(head)[0]
        if length == _END:
            return
        yield file.read(length).decode()


if __name__ == "__main__":
    train_bpe(int(sys.argv[1]), receive(sys.stdin.buffer)).save(sys.argv[2])
