"""Read lists of seeds and sizes as they stand on a command line."""

import re
from collections.abc import Sequence

from bitnetctl.errors import ConfigError

MAX_RUNS = 100_000
"""Most runs, and most seeds, of one command."""


def parse_seeds(text: str) -> tuple[int, ...]:
    """Read `6` as the seeds 0 to 5, `0,3,7` as these three, `3,` as the one seed 3; raises ConfigError."""
    expected = "a number of seeds, or seeds such as 0,3,7"
    if re.fullmatch(r"\s*[0-9]{1,18}\s*", text):
        if not 0 < int(text) <= MAX_RUNS:
            raise ConfigError(
                f"--seeds {text!r}: expected {expected}; the one seed {text.strip()} is '{text.strip()},'"
            )
        return tuple(range(int(text)))
    return parse_numbers(text.rstrip().removesuffix(","), "--seeds", expected)


def parse_numbers(text: str, option: str, expected: str) -> tuple[int, ...]:
    """Read whole numbers separated by commas; raises ConfigError that names the option."""
    parts: Sequence[str] = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(r"[0-9]{1,18}", part) for part in parts):
        raise ConfigError(f"{option} {text!r}: expected {expected}")
    return tuple(int(part) for part in parts)
