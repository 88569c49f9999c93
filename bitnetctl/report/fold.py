"""Lines of a given width that stay readable: arms break between interventions, numbers never break."""

import itertools
import re
from collections.abc import Iterable

from rich.cells import cell_len
from rich.text import Text

from bitnetctl.report.escape import printable

# where a line may end, the best places first: after a blank; before the + of an intervention, not that of 1e+3; after
# punctuation that is not part of a number, and inside CamelCase
_PLACES = (
    re.compile(r"(?<=\s)(?=[^\s%])"),
    re.compile(r"(?<=[^\s+])(?=\+[A-Za-z])"),
    re.compile(r"(?<=[:=/\[(])(?=\S)|(?<=,)(?=\D)|(?<=[-_])(?=[A-Za-z])|(?<=[a-z])(?=[A-Z])"),
)
_NUMBER = re.compile(r"[+\-−±<]?\d[\d.,]*(?:e[+-]?\d+)?(?:\s?%)?", re.IGNORECASE)


def fold(text: str | Text, width: int, *, indent: int = 0) -> list[Text]:
    """Return lines of at most `width` columns, those after the first indented; nothing is cut or inserted.

    Only a number that is longer than the width makes a longer line. A string is shown as it is, without markup.
    """
    whole = Text(printable(text)) if isinstance(text, str) else text
    folded: list[Text] = []
    for line in whole.split("\n", allow_blank=True):
        texts = _packed(line.plain, width - (indent if folded else 0), max(1, width - indent))
        ends = itertools.accumulate(map(len, texts[:-1]))
        folded += line.divide(ends)
    for line in folded:
        line.rstrip()
    return [folded[0], *(Text(" " * indent).append_text(line) for line in folded[1:])]


def longest_piece(text: str | Text, *, hyphens: bool = False) -> int:
    """Return the columns of the longest word or intervention; with `hyphens`, of the longest part of one."""
    pieces = plain(text).split("\n")
    for level in range(3 if hyphens else 2):
        pieces = list(itertools.chain.from_iterable(_split(piece, level) for piece in pieces))
    return _longest(pieces)


def longest_number(text: str | Text) -> int:
    """Return the columns of the longest number, which no line may break."""
    return _longest(match[0] for match in _NUMBER.finditer(plain(text)))


def plain(text: str | Text) -> str:
    """Return what is shown of a text."""
    return printable(text) if isinstance(text, str) else text.plain


def _longest(texts: Iterable[str]) -> int:
    return max((cell_len(text.strip()) for text in texts), default=0)


def _packed(text: str, first: int, width: int, level: int = 0) -> list[str]:
    """Return a line in parts: one of `first` columns and others of `width`, not counting blanks at their ends."""
    lines = [""]
    for piece in _split(text, level):
        columns = cell_len(piece.rstrip())
        if cell_len(lines[-1]) + columns <= (width if len(lines) > 1 else first):
            lines[-1] += piece
            continue
        # a piece that is too long begins a line of its own, and what follows goes on behind it
        fits = columns <= width or level == len(_PLACES)
        lines += [piece] if fits else _packed(piece, width, width, level + 1)
        if not lines[0]:
            del lines[0]
    return lines


def _split(text: str, level: int) -> list[str]:
    """Split at the places of a level; at the last level anywhere but inside a number."""
    if level < len(_PLACES):
        return _PLACES[level].split(text)
    parts: list[str] = []
    end = 0
    for match in _NUMBER.finditer(text):
        parts += [*text[end : match.start()], match[0]]
        end = match.end()
    return [*parts, *text[end:]]
