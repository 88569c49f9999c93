"""Find held-out text that is trained on as well: equal documents, and long equal passages of longer ones.

Blocks are cut into units at lines that their content chooses, so that equal text gives equal units wherever it stands
(content-defined chunking: Muthitacharoen et al. 2001); units are compared by hash. Equal means equal but for white
space. What differs in a few words is not found, and neither is what is shorter than a passage.
"""

import hashlib
import re
import zlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import NamedTuple

import numpy as np

from bitnetctl.data.bpe import END_OF_TEXT

_BLANK = 0
_PART_WORDS = 16
_WORDS = re.compile(r"(?<=\W)")
_MUCH = 0.01  # of the held-out text


class Span(NamedTuple):
    """Characters `start` to `end` of a block."""

    start: int
    end: int


@dataclass(frozen=True, kw_only=True)
class Repeats:
    """Spans of held-out blocks that are also training text; `spans` has the number of each such block, from 0."""

    spans: dict[int, list[Span]] = field(default_factory=dict)
    held_out_characters: int = 0

    @property
    def passages(self) -> int:
        """Number of spans: documents, or parts of longer ones."""
        return sum(map(len, self.spans.values()))

    @property
    def characters(self) -> int:
        """Length of all spans."""
        return sum(span.end - span.start for spans in self.spans.values() for span in spans)

    def parts(self, block: int, length: int) -> Iterator[tuple[Span, bool]]:
        """Yield the parts of a held-out block in order, and whether each is left out."""
        position = 0
        for span in self.spans.get(block, []):
            if position < span.start:
                yield Span(position, span.start), False
            yield span, True
            position = span.end
        if position < length:
            yield Span(position, length), False


@dataclass
class _Units:
    """Units of all blocks of one side: hash, end within the block, whether a document ends there; units of a block."""

    keys: "array[int]" = field(default_factory=lambda: array("Q"))
    ends: "array[int]" = field(default_factory=lambda: array("I"))
    closing: bytearray = field(default_factory=bytearray)
    counts: "array[int]" = field(default_factory=lambda: array("I"))

    def add(self, text: str, shortest: int) -> None:
        """Add the units of a block."""
        start = count = 0
        for end, closes in units(text, shortest):
            self.keys.append(_key(text[start:end]))
            self.ends.append(end)
            self.closing.append(closes)
            start, count = end, count + 1
        self.counts.append(count)


def find_repeats(blocks: Iterable[tuple[str, bool]], *, scale: int) -> Repeats:
    """Return what of the held-out blocks also is training text; a block is its text and whether it is held out.

    Left out is every document of a block all of whose units are training text, short or long, and every block of a
    longer document of which that holds. Of other documents a run of such units is left out that has `scale` / 4
    characters or more, `scale` / 16 where more than a hundredth of the held-out text is left out without that. Takes 8
    bytes a unit; a unit is a document, or of a longer one about `scale` / 64 characters and a few lines.
    """
    shortest = max(16, scale // 64)
    trained, held_out = array("Q"), _Units()
    for text, is_held_out in blocks:
        if is_held_out:
            held_out.add(text, shortest)
            continue
        start = 0
        for end, _ in units(text, shortest):
            trained.append(_key(text[start:end]))
            start = end
    keys = np.frombuffer(held_out.keys, np.uint64)
    is_blank = keys == _BLANK
    is_repeated = np.isin(keys, np.frombuffer(trained, np.uint64)) & ~is_blank
    known = bytearray(is_repeated), bytearray(is_blank)
    repeats = _repeats(held_out, *known, long=scale // 4, near=scale // 8)
    if repeats.characters > _MUCH * repeats.held_out_characters:
        # a text that is repeated at length: also what is left of that at the edges of blocks
        return _repeats(held_out, *known, long=scale // 16, near=scale // 8)
    return repeats


def _repeats(held_out: _Units, is_repeated: bytearray, is_blank: bytearray, *, long: int, near: int) -> Repeats:
    """Return the spans of every block by the flags of its units."""
    spans: dict[int, list[Span]] = {}
    first = characters = 0
    for number, count in enumerate(held_out.counts):
        ends = held_out.ends[first : first + count]
        characters += ends[-1]
        start = begin = 0
        for unit in range(count):
            if held_out.closing[first + unit]:
                document = slice(first + begin, first + unit + 1)
                if any(is_repeated[document]):
                    bounds = [start, *ends[begin : unit + 1]]
                    found = _spans(bounds, is_repeated[document], is_blank[document], long=long, near=near)
                    spans.setdefault(number, []).extend(found)
                start, begin = ends[unit], unit + 1
        first += count
    return Repeats(spans={number: found for number, found in spans.items() if found}, held_out_characters=characters)


def units(text: str, shortest: int) -> Iterator[tuple[int, bool]]:
    """Yield where the units of a block end, and whether a document does.

    A unit ends after a line whose hash says so, when it has `shortest` characters, and 16 times as many at most. In a
    plain text the end-of-text token closes a document.
    """
    start = 0
    while (found := text.find(END_OF_TEXT, start)) >= 0:
        end = found + len(END_OF_TEXT)
        yield from _line_units(text[start:end], start, shortest)
        start = end
    if start < len(text):
        yield from _line_units(text[start:], start, shortest)


def _line_units(text: str, start: int, shortest: int) -> Iterator[tuple[int, bool]]:
    length = position = 0
    last = len(text)
    for line in _lines(text, 16 * shortest):
        position += len(line)
        # line ends and white space around lines do not count, so that their kinds are cut alike
        content = line.strip()
        if not content:
            continue
        length += len(content) + 1
        if position < last and length >= shortest:
            is_chosen = zlib.crc32(content.encode()) % 4 == 0
            if is_chosen or length >= 16 * shortest:
                yield start + position, False
                length = 0
    yield start + last, True


def _lines(text: str, longest: int) -> Iterator[str]:
    """Yield lines with their ends; those that are longer than `longest` in parts that end after words of some hashes.

    The hash of one word alone decides, so that equal text is cut alike from its second part on.
    """
    for line in text.splitlines(keepends=True):
        if len(line) <= longest:
            yield line
            continue
        part = ""
        for word in _WORDS.split(line):
            part += word
            if zlib.crc32(word.encode()) % _PART_WORDS == 0:
                yield part
                part = ""
        if part:
            yield part


def _key(unit: str) -> int:
    content = " ".join(unit.removesuffix(END_OF_TEXT).split())
    if not content:
        return _BLANK
    return int.from_bytes(hashlib.blake2b(content.encode(), digest_size=8).digest(), "little")


def _spans(bounds: Sequence[int], is_repeated: bytearray, is_blank: bytearray, *, long: int, near: int) -> list[Span]:
    """Return the spans of one document, or its part in a block: all of it, or runs of at least `long` characters.

    `bounds` are the start of the first unit and the ends of all. At the edges of blocks, of either side, equal text
    gives other units: a run takes a unit more at each end, and what is no longer than `near` up to the next run, or to
    the edge.
    """
    if all(map(max, is_repeated, is_blank)):
        return [Span(bounds[0], bounds[-1])]
    spans: list[Span] = []
    for repeated, indices in groupby(range(len(is_repeated)), key=is_repeated.__getitem__):
        run = list(indices)
        if not repeated or bounds[run[-1] + 1] - bounds[run[0]] < long:
            continue
        start, end = bounds[max(0, run[0] - 1)], bounds[min(len(is_repeated), run[-1] + 2)]
        previous = spans[-1].end if spans else bounds[0]
        if start - previous <= near:
            start = spans.pop().start if spans else bounds[0]
        spans.append(Span(start, bounds[-1] if bounds[-1] - end <= near else end))
    return spans
