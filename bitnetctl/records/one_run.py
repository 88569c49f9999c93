"""Columns that name the run of a row, such as `seed`: where they change, a file holds several runs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_NAMES = frozenset(
    (
        *("seed", "randomseed", "run", "runid", "runname", "trial", "trialid", "replica", "replicate", "fold"),
        *("experiment", "experimentid", "experimentname", "expname", "arm", "model", "modelname", "rank", "globalrank"),
        *("size", "modelsize", "hidden", "hiddensize", "nembd", "dmodel"),
    )
)


def names_runs(name: str) -> bool:
    """Whether a column names the run that a row is of."""
    return re.sub(r"[\s_-]+", "", name.rpartition("/")[2]).casefold() in _NAMES


class OneRun:
    """What the columns that name runs said so far."""

    def __init__(self) -> None:
        self._said: dict[str, str] = {}

    def contradiction(self, values: Mapping[str, Any]) -> str | None:
        """Return what is wrong with a row, given as values by column, that is of another run than those before."""
        for name, value in values.items():
            text = "" if value is None else str(value).strip()
            if text and names_runs(name):
                before = self._said.setdefault(name, text)
                if text != before:
                    return (
                        f"{name!r} changes from {before[:40]!r} to {text[:40]!r}: several runs in one file; "
                        "give every run a file of its own"
                    )
        return None
