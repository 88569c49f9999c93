"""Base class of the checks that state what of a run is compared: its end, its time average, or a share of its steps."""

from functools import cached_property
from typing import Self

from pydantic import model_validator

from bitnetctl.config import PositiveInt
from bitnetctl.records import Run
from bitnetctl.verdict.aggregate import Aggregate, Over, Stage
from bitnetctl.verdict.checks.base import MeasuredCheck


class AggregatedCheck(MeasuredCheck):
    """A check of one value of a run (`bitnetctl.verdict.aggregate`).

    `over` is "end", the median of the `last` evaluations, "area", the time average over the steps, or "share", the
    fraction of the steps at which the measure is above `above` or below `below`; of the run or of one `stage`.
    """

    last: PositiveInt = 1
    over: Over = "end"
    stage: Stage = "run"
    above: float | None = None
    below: float | None = None

    @model_validator(mode="after")
    def _check_aggregate(self) -> Self:
        given = [name for name in ("above", "below") if getattr(self, name) is not None]
        if self.over == "share" and len(given) != 1:
            raise ValueError('over = "share" needs above or below, the value that the measure is to pass')
        if self.over != "share" and given:
            raise ValueError(f'{given[0]} is for over = "share"')
        if self.over != "end" and self.last != 1:
            raise ValueError('last is for over = "end"')
        return self

    @cached_property
    def aggregate(self) -> Aggregate:
        """How the evaluations of a run become one value."""
        return Aggregate(over=self.over, last=self.last, stage=self.stage, above=self.above, below=self.below)

    @property
    def label(self) -> str:
        whole = self.measure if self.over == "end" else self.aggregate.name(self.measure)
        return self.name or f"{self.kind} {whole}"

    @property
    def short(self) -> str:
        return self.name or self.aggregate.name(self.measure)

    def value_of(self, run: Run) -> float | None:
        """Return the value of a run; None is unknown."""
        return self.aggregate.value(run, self.measure)
