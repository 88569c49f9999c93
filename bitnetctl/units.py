"""Quantities as text for people."""


def duration(seconds: float) -> str:
    """Return seconds as seconds, minutes or hours."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def plural(count: int, noun: str) -> str:
    """Return a count and its noun, with an s unless it is one."""
    return f"{count} {noun}{'s' * (count != 1)}"


def gibibytes(count: float) -> str:
    """Return bytes in GiB."""
    return f"{count / 2**30:.2f} GiB"
