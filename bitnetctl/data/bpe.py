"""Train byte-level BPE; run as a program it does so apart, where it can be ended at any time.

The program takes the size and the file to write. It reads texts from stdin, each behind its length in 8 bytes, then the
length −1; without that, whoever sends is gone and nothing is written.
"""

import struct
import sys
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

END_OF_TEXT = "<|endoftext|>"
_LENGTH = struct.Struct("<q")
_LAST = -1


def train_bpe(size: int, texts: Iterable[str]) -> Tokenizer:
    """Return a tokenizer of `size` tokens, or as many as the texts support."""
    tokenizer = Tokenizer(models.BPE())
    byte_level(tokenizer)
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    # the marker may stand in the text; it must not be learnt as letters
    tokenizer.train_from_iterator((part for text in texts for part in text.split(END_OF_TEXT)), trainer)
    return tokenizer


def byte_level(tokenizer: Tokenizer) -> None:
    """Make a tokenizer cut text into bytes."""
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()


def send(texts: Iterable[str], file: BinaryIO) -> None:
    """Write texts for the program to read."""
    for text in texts:
        content = text.encode()
        file.write(_LENGTH.pack(len(content)) + content)
    file.write(_LENGTH.pack(_LAST))
    file.flush()


def receive(file: BinaryIO) -> Iterator[str]:
    """Read what `send` wrote; raises EOFError where its end is missing."""
    while True:
        head = file.read(_LENGTH.size)
        if len(head) < _LENGTH.size:
            raise EOFError
        length = _LENGTH.unpack(head)[0]
        if length == _LAST:
            return
        yield file.read(length).decode()


if __name__ == "__main__":
    train_bpe(int(sys.argv[1]), receive(sys.stdin.buffer)).save(sys.argv[2])
