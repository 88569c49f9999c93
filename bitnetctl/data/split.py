"""Split a text into training and held-out blocks, and hash it."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from bitnetctl.config import DataConfig
from bitnetctl.data.sources import Piece, Progress, ProgressMeter, Source, open_source
from bitnetctl.errors import DataError

_BLOCK_CHARACTERS = 1 << 16


class Block(NamedTuple):
    """A non-empty part of a document, either trained on or held out; `ends` is True for its last part."""

    text: str
    held_out: bool
    ends: bool


class TextHash:
    """BLAKE2b of documents in order, the same however their text is cut into pieces."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=32)
        self._in_document = False
        self.characters = 0

    def update(self, text: str, ends: bool) -> None:
        """Add a piece of the current document."""
        self._hash.update(text.encode())
        self.characters += len(text)
        self._in_document = self._in_document or bool(text)
        if ends and self._in_document:
            # 0xff never occurs in UTF-8, so the end of a document cannot be mistaken for text
            self._hash.update(b"\xff")
            self._in_document = False

    @property
    def digest(self) -> str:
        """Hex digest of the text added so far."""
        return self._hash.hexdigest()


def hash_text(source: Source, progress: Progress) -> TextHash:
    """Read the whole text and return its hash and length; raises DataError when it is empty."""
    meter = ProgressMeter(progress, "reading text", None)
    content = TextHash()
    for piece in source.pieces():
        content.update(*piece)
        meter.add(len(piece.text))
    meter.finish()
    if not content.characters:
        raise DataError(f"data source {source.spec}: the text is empty")
    return content


def block_size(characters: int, fraction: float) -> int:
    """Return the `size` for `split_blocks`: 64 Ki characters, less for a short text so that both sides get several."""
    if fraction in (0.0, 1.0):
        return _BLOCK_CHARACTERS
    smaller_side = min(fraction, 1.0 - fraction)
    return max(16, min(_BLOCK_CHARACTERS, int(characters * smaller_side / 4)))


def split_blocks(pieces: Iterable[Piece], *, fraction: float, size: int) -> Iterator[Block]:
    """Cut documents at line boundaries into blocks of `size` to twice `size` characters, and hold some of them out.

    A block is held out when that brings the held-out fraction of the characters so far closer to `fraction`, which
    spreads the held-out blocks evenly. The result does not depend on how the documents are cut into pieces.
    """
    seen = held = 0
    for text, ends in _cut(pieces, size):
        seen += len(text)
        is_held = held + len(text) / 2 <= fraction * seen
        held += len(text) if is_held else 0
        yield Block(text, is_held, ends)


def _cut(pieces: Iterable[Piece], size: int) -> Iterator[Piece]:
    buffer = ""
    for text, ends in pieces:
        buffer += text
        start = 0
        while len(buffer) - start > 2 * size:
            end = _boundary(buffer, start + size, start + 2 * size)
            yield Piece(buffer[start:end], False)
            start = end
        buffer = buffer[start:]
        if ends:
            if buffer:
                yield Piece(buffer, True)
            buffer = ""


def _boundary(text: str, low: int, high: int) -> int:
    line_end = text.find("\n", low - 1, high)
    if line_end >= 0:
        return line_end + 1
    # a line longer than a block is cut before a space, where byte-level BPE begins a token, or anywhere
    space = text.find(" ", low, high)
    return space if space >= 0 else low


@dataclass(frozen=True)
class _HashedSource:
    """A source, the hash of its text, and the fraction of it that is held out."""

    source: Source
    hash: TextHash
    fraction: float

    def blocks(self) -> Iterator[Block]:
        again = TextHash()
        size = block_size(self.hash.characters, self.fraction)
        for block in split_blocks(self.source.pieces(), fraction=self.fraction, size=size):
            again.update(block.text, block.ends)
            yield block
        if again.digest != self.hash.digest:
            raise DataError(f"data source {self.source.spec}: the text changed while it was being read; try again")


@dataclass(frozen=True)
class SplitText:
    """The training and held-out text of a config: one source that is split, or two; hashed when opened."""

    sources: tuple[_HashedSource, ...]

    @classmethod
    def open(cls, config: DataConfig, progress: Progress) -> "SplitText":
        """Open and hash the sources; raises DataError, also when held-out text would be trained on."""
        train = open_source(config.source)
        if config.held_out_source is None:
            return cls((_HashedSource(train, hash_text(train, progress), config.held_out_fraction),))
        held_out = open_source(config.held_out_source)
        if shared := train.files & held_out.files:
            raise DataError(
                f"data.held_out_source {held_out.spec}: {min(shared)} is also in data.source {train.spec}; "
                "held-out text must not be trained on"
            )
        train_hash, held_out_hash = hash_text(train, progress), hash_text(held_out, progress)
        if held_out_hash.digest == train_hash.digest:
            raise DataError(
                f"data.held_out_source {held_out.spec} is the same text as data.source {train.spec}; "
                "held-out text must not be trained on"
            )
        return cls((_HashedSource(train, train_hash, 0.0), _HashedSource(held_out, held_out_hash, 1.0)))

    @property
    def identity(self) -> dict[str, str | float]:
        """What the tokens depend on: the hashes of the text and, for one source, the fraction held out."""
        train, *others = self.sources
        if others:
            return {"train": train.hash.digest, "held_out": others[0].hash.digest}
        return {"train": train.hash.digest, "held_out_fraction": train.fraction}

    @property
    def characters(self) -> int:
        """Length of training and held-out text together."""
        return sum(each.hash.characters for each in self.sources)

    def blocks(self) -> Iterator[Block]:
        """Read the text again as blocks; raises DataError if it has changed since it was hashed."""
        for each in self.sources:
            yield from each.blocks()

    def training_blocks(self, meter: ProgressMeter) -> Iterator[str]:
        """Read the training text, which a tokenizer may be trained on; the meter counts all text."""
        for block in self.blocks():
            meter.add(len(block.text))
            if not block.held_out:
                yield block.text
