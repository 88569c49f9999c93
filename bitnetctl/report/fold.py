"""Lines of a given width that stay readable: arms break between interventions, numbers never break."""

import itertools
import re
from collections.abc import Iterable

from rich.cells import cell_len
from rich.text import Text

from bitnetctl.escape import printable

# where a line may end, the best places first: after a blank, but not in `p < 0.05` or `45 %`; before the + of an
# intervention, not that of 1e+3; after punctuation that is not part of a number; after hyphens and inside CamelCase
_PLACES = (
    re.compile(r"(?<=\s)(?<![<>=≤≥]\s)(?=[^\s%<>=≤≥])"),
    re.compile(r"(?<=[^\s+])(?=\+[A-Za-z])"),
    re.compile(r"(?<=[:/])(?=\S)|(?<=,)(?=\D)|(?<=\.)(?=[A-Za-z])"),
    re.compile(r"(?<==)(?=\S)|(?<=[-_])(?=[A-Za-z])|(?<=[a-z])(?=[A-Z])"),
)
_NUMBER = re.compile(r"[+\-−±<]?\d[\d.,]*(?:e[+-]?\d+)?(?:\s?%)?", re.IGNORECASE)


def fold(text: str | Text, width: int, *, indent: int = 0) -> list[Text]:
    """Return lines of at most `width` columns; nothing is cut or inserted.

    Lines after the first are indented by `indent`, and by the blanks with which the text begins. Only a number that is
    longer than the width makes a longer line. A string is shown as it is, without markup.
    """
    whole = Text(printable(text)) if isinstance(text, str) else text
    folded: list[Text] = []
    for line in whole.split("\n", allow_blank=True):
        leading = leading_blanks(line.plain)
        first = leading + indent * bool(folded)
        parts = _packed(line.plain[leading:], max(1, width - first), max(1, width - leading - indent))
        start = line[leading:] if leading else line
        for part in start.divide(itertools.accumulate(map(len, parts[:-1]))):
            part.rstrip()
            folded.append(Text(" " * (leading + indent * bool(folded))).append_text(part))
    return folded


def leading_blanks(line: str) -> int:
    """Return with how many blanks a line begins."""
    return len(line) - len(line.lstrip(" "))


def longest_piece(text: str | Text, *, hyphens: bool = False) -> int:
    """Return the columns of the longest word or intervention; with `hyphens`, of the longest part of one."""
    pieces = plain(text).split("\n")
    for level in range(len(_PLACES) if hyphens else 2):
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
