"""The values of one run in the order in which they were logged, and the rows made of them."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from bitnetctl.errors import RecordError
from bitnetctl.records.logs.columns import Columns, caution, is_perplexity, normalized
from bitnetctl.records.reader import NoRowsError, Records
from bitnetctl.records.schema import NAMES
from bitnetctl.units import shortened

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_MOST_NAMES = 40
_MOST_KEPT = 10_000
_FEW_RESTARTS = 2
_PER_RESTART = 10
_AGREES = 0.02
"""Relative deviation within which a perplexity, printed with few digits, is that of a loss."""


class _Series:
    """The values of one name; steps ascend."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.values: list[float] = []

    def cut(self, step: int) -> None:
        """Drop what was logged from `step` on."""
        first = bisect_left(self.steps, step)
        del self.steps[first:], self.values[first:]


class Curves:
    """The values of one run.

    A run that was resumed logs steps again: what was logged from there on is replaced. That is taken for certain only
    where it does not begin at the first step, which another run would, and is rare, which lines of several processes
    would not be.
    """

    def __init__(self, path: Path, columns: Columns, *, place: str = "line") -> None:
        self.path = path
        self.columns = columns
        self.names: dict[str, None] = {}
        self.remarks: list[str] = []
        self.torn: str | None = None
        self._place = place
        self._series: dict[str, _Series] = {}
        self._first: int | None = None
        self._last = -1
        self._added = 0
        self._restarts: list[tuple[int, int]] = []

    def add(self, step: int, values: Mapping[str, float | None], line: int) -> None:
        """Add what was logged at a step; raises RecordError for values that contradict what is there."""
        for name, value in values.items():
            if len(self.names) < _MOST_KEPT:
                self.names.setdefault(name)
            if value is None or not self.columns.wants(name):
                continue
            series = self._series.setdefault(name, _Series())
            if series.steps and step <= series.steps[-1]:
                if step == series.steps[-1] and _same(series.values[-1], value):
                    continue
                if step == series.steps[-1] == self._last:
                    raise self.error(
                        line,
                        f"{name!r} has two values at step {step:,} ({series.values[-1]:g} and {value:g}); "
                        "a log of several runs or processes must be split",
                    )
                self._restart(step, line)
            series.steps.append(step)
            series.values.append(value)
            self._first = step if self._first is None else min(self._first, step)
            self._last = max(self._last, step)
            self._added += 1

    def join(self, other: Curves) -> None:
        """Add the values of another file of the same run; raises RecordError where a name is in both."""
        for name, series in other._series.items():
            if name in self._series:
                raise RecordError(f"{other.path}: {name!r} of the same run is in another file, too; give one of them")
            self._series[name] = series
            self._added += len(series.steps)
        self.names |= other.names
        self.torn = self.torn or other.torn
        self._restarts += other._restarts

    def refuse_other_steps(self, names: Sequence[str]) -> None:
        """Raise RecordError where `--map` names other steps than those that every entry of a format has."""
        given = self.columns.given.get("Step")
        if given is not None and normalized(given) not in names:
            raise RecordError(f"{self.path}: --map: no {given!r} in it; its steps are named {', '.join(names)}")

    def refuse_nan_as_missing(self) -> None:
        """Raise RecordError where NaN stands again and again between numbers, as for a value that was not logged."""
        for name, series in self._series.items():
            missing = [math.isnan(value) for value in series.values]
            if sum(earlier and not later for earlier, later in itertools.pairwise(missing)) > 1:
                raise RecordError(
                    f"{self.path}: {name!r} is NaN in {sum(missing):,} rows between numbers; leave cells without "
                    "a value empty: NaN means that the training diverged"
                )

    def _restart(self, step: int, line: int) -> None:
        if self._first is not None and step <= self._first:
            raise self.error(line, f"begins again at step {step:,}: two runs in one log; split it, one file a run")
        for series in self._series.values():
            series.cut(step)
        self._restarts.append((step, line))
        self._last = max((series.steps[-1] for series in self._series.values() if series.steps), default=-1)
        if len(self._restarts) > _FEW_RESTARTS and len(self._restarts) * _PER_RESTART > self._added:
            raise self.error(line, f"goes back {len(self._restarts)} times: runs or processes are mixed in one log")

    def error(self, line: int, message: str) -> RecordError:
        """Return an error that names file and place."""
        where = f":{line}" if self._place == "line" else f": {self._place} {line}"
        return RecordError(f"{self.path}{where}: {message}")

    def records(self, title: str) -> Records:
        """Return the rows, one for every step with a value; `title` names the format.

        Raises RecordError where no loss is among the names, or a name of `--map` is not.
        """
        chosen = self._choose()
        steps = sorted({step for name in chosen.values() for step in self._series[name].steps})
        return self._collect(title, chosen, steps)

    def _choose(self) -> dict[str, str]:
        """Return the name that is taken for each column."""
        missing = [
            name
            for column, name in self.columns.given.items()
            if name not in self.names and (column != "Step" or not self._added)
        ]
        if missing:
            raise RecordError(f"{self.path}: --map: no {' and no '.join(map(repr, missing))} in it; {self._listed()}")
        if not self._added:
            raise NoRowsError(f"{self.path}: no values of training in it; {self._listed()}")
        ranked: dict[str, list[tuple[int, str]]] = {}
        for name, series in self._series.items():
            mapped = self.columns.of(name)
            if mapped is not None and mapped[0] != "Step" and series.steps:
                ranked.setdefault(mapped[0], []).append((mapped[1], name))
        chosen = {column: min(names)[1] for column, names in ranked.items()}
        if not {"Loss", "HeldOutLoss"} & chosen.keys():
            raise RecordError(f"{self.path}: no loss in it that is known by name; {self._listed()}; --map Loss=NAME")
        return {column: chosen[column] for column in NAMES if column in chosen}

    def _listed(self) -> str:
        names = [name if len(name) <= 60 else name[:60] + "…" for name in self.names]
        return f"there are {shortened(names, _MOST_NAMES)}" if names else "it has no names with values"

    def _collect(self, title: str, chosen: Mapping[str, str], steps: Sequence[int]) -> Records:
        import numpy as np
        import pandas as pd

        index = np.array(steps, np.int64)
        values: dict[str, npt.NDArray[np.float64]] = {}
        absent = np.ones(len(index), np.bool_)
        unknown = dict.fromkeys(NAMES, absent) | {"Step": np.zeros(len(index), np.bool_)}
        for column, name in chosen.items():
            series = self._series[name]
            rows = np.searchsorted(index, np.array(series.steps, np.int64))
            values[column] = np.full(len(index), np.nan)
            values[column][rows] = series.values
            unknown[column] = np.ones(len(index), np.bool_)
            unknown[column][rows] = False
        in_bits = "Loss" in chosen and self._is_in_bits(chosen["Loss"])
        if in_bits:
            values |= {column: values[column] * math.log(2) for column in ("Loss", "HeldOutLoss") if column in values}
        for mask in unknown.values():
            mask.flags.writeable = False
        return Records(
            path=self.path,
            title=None,
            frame=pd.DataFrame({"Step": index, **values}, copy=False),
            unknown=MappingProxyType(unknown),
            extra=tuple(name for name in self.names if name not in chosen.values() and self._is_no_step(name)),
            notes=(
                *self._explained(title, chosen, in_bits=in_bits),
                *self.remarks,
                *([self.torn] if self.torn else []),
            ),
            torn=self.torn,
        )

    def _is_no_step(self, name: str) -> bool:
        mapped = self.columns.of(name)
        return mapped is None or mapped[0] != "Step"

    def _is_in_bits(self, loss: str) -> bool:
        """Whether a perplexity beside the loss says that the loss is to the base 2."""
        losses = dict(zip(self._series[loss].steps, self._series[loss].values, strict=True))
        ratios = [
            math.log(value) / losses[step]
            for name, series in self._series.items()
            if is_perplexity(name)
            for step, value in zip(series.steps, series.values, strict=True)
            if value > 1 and math.isfinite(value) and math.isfinite(losses.get(step, math.nan)) and losses[step] > 0
        ]
        return bool(ratios) and all(abs(ratio / math.log(2) - 1) <= _AGREES for ratio in ratios)

    def _explained(self, title: str, chosen: Mapping[str, str], *, in_bits: bool) -> Iterable[str]:
        mapped = ", ".join(
            f"{column} = {name}" + (f" ({text})" if (text := caution(name)) else "") for column, name in chosen.items()
        )
        unit = (
            "losses, in bits by their perplexity, are converted to nats"
            if in_bits
            else "losses taken as nats per token"
        )
        yield f"{title}: {mapped}; {unit}; all other columns are unknown"
        for step, line in self._restarts[:1]:
            more = f" (and {len(self._restarts) - 1} more times)" if len(self._restarts) > 1 else ""
            yield f"{self._place} {line}: resumed at step {step:,}{more}; what was logged from there on is replaced"


def _same(one: float, other: float) -> bool:
    return one == other or (math.isnan(one) and math.isnan(other))
