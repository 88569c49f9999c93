"""Short texts of the live view: numbers, clocks, sparklines, arms that fit; and their ASCII forms."""

import itertools
import re
from collections.abc import Sequence

_SPARKS = "▁▂▃▄▅▆▇█"
# unlike those of `streams`, each takes one column, so that a frame keeps its widths
_ASCII = str.maketrans("▁▂▃▄▅▆▇█━╸─·…⚠✗×−–│┊┈┌┐└┘├┤┬┴┼", "_.,-=+*#=>-|~!xx--||.+++++++++")
# before a plug-in, not in 1e+3; after what separates settings
_BREAKS = re.compile(r"(?<=[:,=])|(?=\+[A-Za-z])")
_NUMBER_END = re.compile(r"\d[\d.eE+-]*$")
_NUMBER_REST = re.compile(r"[.eE+-]*\d")


def ascii_text(text: str) -> str:
    """Return text of the same length for an encoding without Unicode."""
    return text.translate(_ASCII)


def sparkline(values: Sequence[float], low: float, high: float, width: int) -> str:
    """Return all values as at most `width` block characters from `low` to `high`, neighbours averaged where needed."""
    count = len(values)
    columns = min(width, count)
    bounds = [index * count // columns for index in range(columns)] + [count] if columns else []
    means = [sum(values[start:end]) / (end - start) for start, end in itertools.pairwise(bounds)]
    scale = len(_SPARKS) / (high - low) if high > low else 0.0
    levels = (int((min(max(mean, low), high) - low) * scale) for mean in means)
    return "".join(_SPARKS[min(level, len(_SPARKS) - 1)] for level in levels)


def bar(fraction: float, width: int) -> str:
    """Return a bar of `width` columns."""
    filled = min(max(fraction, 0.0), 1.0) * width
    whole = int(filled)
    half = "╸" if whole < width and filled - whole >= 0.5 else ""
    return ("━" * whole + half).ljust(width, "─")


def format_clock(seconds: float | None) -> str:
    """Format seconds as h:mm:ss or m:ss; None is unknown."""
    if seconds is None:
        return "–:––"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def format_difference(value: float) -> str:
    """Format a difference with its sign, if it has one."""
    text = f"{value:+.2f}".replace("-", "−")
    return text if any(digit in text for digit in "123456789") else text[1:]


def preparation_line(what: str, done: int, total: int | None) -> str:
    """Return the progress of preparing text as one line; `total` is None where it is unknown."""
    if total is not None:
        return f"{what}: {done:,} of {total:,}"
    return f"{what}: {done:,}" if done else what


def shorten_arms(arms: Sequence[str], width: int) -> dict[str, str]:
    """Return each arm in at most `width` columns and no two alike; no number is cut."""
    labels: dict[str, str] = {}
    used: dict[str, str] = {}
    for arm in arms:
        label = shorten_arm(arm, width)
        number = 1
        while used.get(label, arm) != arm:
            number += 1
            mark = f"~{number}"
            label = shorten_arm(arm, width - len(mark)) + mark
        used[label] = arm
        labels[arm] = label
    return labels


def shorten_arm(arm: str, width: int) -> str:
    """Return an arm in at most `width` columns: its beginning, `…`, and the last parts that fit."""
    if len(arm) <= width:
        return arm
    parts = [part for part in _BREAKS.split(arm) if part]
    tail = ""
    # the end tells settings of one plug-in apart; the beginning gets at least half
    while parts and len(parts[-1]) + len(tail) <= (width - 1) // 2:
        tail = parts.pop() + tail
    text = "".join(parts)
    cut = max(0, width - 1 - len(tail))
    if _NUMBER_REST.match(text, cut) and (number := _NUMBER_END.search(text[:cut])):
        cut = number.start()
    return f"{text[:cut]}…{tail}"
