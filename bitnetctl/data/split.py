"""Split a text into training and held-out blocks, and hash it."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from bitnetctl.config import DataConfig
from bitnetctl.data.documents import Reading
from bitnetctl.data.duplicates import Repeats, find_repeats
from bitnetctl.data.sources import Piece, Progress, ProgressMeter, Source, counted, open_source
from bitnetctl.errors import DataError

_BLOCK_CHARACTERS = 1 << 16


class Block(NamedTuple):
    """A non-empty part of a document, either trained on or held out; `ends` is True for its last part.

    `left_out` is True for held-out text that is not used because it is trained on as well.
    """

    text: str
    held_out: bool
    ends: bool
    left_out: bool = False


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
        left_out = f" (left out: {counted(source.skipped)})" if source.skipped else ""
        raise DataError(f"data source {source.spec}: the text is empty{left_out}; give a source with text")
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
        """Open and hash the sources; files of the training text are no files of the held-out text. Raises DataError."""

        def reading() -> Reading:
            return Reading(text_field=config.text_field, skip=config.on_bad_document == "skip")

        train = open_source(config.source, reading(), progress=progress)
        if config.held_out_source is None:
            return cls((_HashedSource(train, hash_text(train, progress), config.held_out_fraction),))
        held_out = open_source(config.held_out_source, reading(), trained=train, progress=progress)
        train_hash, held_out_hash = hash_text(train, progress), hash_text(held_out, progress)
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

    @property
    def counts(self) -> dict[str, Any]:
        """What was read and what was not, for the manifest of a run: files, links, copies, bad files and rows."""
        skipped: dict[str, int] = {}
        for source in self._opened:
            for reason, count in source.skipped.items():
                skipped[reason] = skipped.get(reason, 0) + count
        return {
            "files": sum(len(source.files) for source in self._opened),
            "links_not_read": sum(source.links for source in self._opened),
            "copies_not_read": sum(source.copies for source in self._opened),
            "held_out_files_trained_on": sum(source.trained for source in self._opened),
            "skipped": skipped,
        }

    @property
    def _opened(self) -> list[Source]:
        return [each.source for each in self.sources]

    def blocks(self) -> Iterator[Block]:
        """Read the text again as blocks; raises DataError if it has changed since it was hashed."""
        for each in self.sources:
            yield from each.blocks()

    def repeats(self, progress: Progress) -> Repeats:
        """Read the text again and return what of its held-out text is trained on; raises DataError if that is all."""
        held_out = self.sources[-1]
        meter = ProgressMeter(progress, "comparing held-out text", self.characters)

        def texts() -> Iterator[tuple[str, bool]]:
            for block in self.blocks():
                yield block.text, block.held_out
                meter.add(len(block.text))

        repeats = find_repeats(texts(), scale=block_size(held_out.hash.characters, min(held_out.fraction, 0.5)))
        meter.finish()
        if repeats.held_out_characters and repeats.characters == repeats.held_out_characters:
            raise DataError(
                f"data source {held_out.source.spec}: all of the held-out text is also training text; held-out text "
                "must not be trained on: give data.held_out_source other text, or a source without duplicates"
            )
        return repeats

    def used_blocks(self, repeats: Repeats) -> Iterator[Block]:
        """Read the text again as blocks, with those parts marked as left out that `repeats` names."""
        number = 0
        for block in self.blocks():
            if not block.held_out:
                yield block
                continue
            for (start, end), left_out in repeats.parts(number, len(block.text)):
                yield Block(block.text[start:end], True, block.ends and end == len(block.text), left_out)
            number += 1

    def training_blocks(self, meter: ProgressMeter) -> Iterator[str]:
        """Read the training text, which a tokenizer may be trained on; the meter counts all text."""
        for block in self.blocks():
            meter.add(len(block.text))
            if not block.held_out:
                yield block.text
