"""Quantities and lists as text for people."""

from collections.abc import Sequence

UNKNOWN = "–"
"""What stands for an unknown value."""


def duration(seconds: float) -> str:
    """Return seconds as seconds, minutes or hours."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def format_value(value: float | str | None, format_spec: str = "") -> str:
    """Format a number; unknown is a dash, text (NaN or infinity as JSON has it) stays unchanged."""
    if value is None:
        return UNKNOWN
    return value if isinstance(value, str) else with_minus(format(value, format_spec))


def with_minus(number: str) -> str:
    """Return a formatted number with a minus sign, not a hyphen, in front; that of an exponent stays as it is."""
    return f"−{number[1:]}" if number.startswith("-") else number


def plural(count: int, noun: str) -> str:
    """Return a count and its noun, with an s unless it is one."""
    return f"{count} {noun}{'s' * (count != 1)}"


def listed(names: Sequence[str], most: int | None = None) -> str:
    """Join names as `a, b and c`; where there are more than `most`, as `a, b and 7 more`."""
    if most is not None and len(names) > most:
        return shortened(names, most)
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def shortened(names: Sequence[str], most: int) -> str:
    """Join names as `a, b, c`; where there are more than `most`, as `a, b and 7 more`."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def gibibytes(count: float, digits: int = 2) -> str:
    """Return bytes in GiB."""
    return f"{count / 2**30:.{digits}f} GiB"
