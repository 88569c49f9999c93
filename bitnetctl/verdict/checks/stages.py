"""The values of a measure in one stage of training: parts, running medians and shares, all in steps.

A part is a stated share of the stage in steps, so that what is measured in it does not depend on how often the run is
evaluated. Where evaluations are so rare that a part has fewer than three, it takes its nearest neighbours too.
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

SMOOTHING_SHARE = 0.15
"""Width of the running median that separates swings from noise. Medians of three in ten evaluations of stage 2, and in
200 still narrow enough for swings that ten would show."""
MIN_SMOOTHED = 7
"""Fewer evaluations are not smoothed: 2, 10, 3, 15, 2 in all would be three medians of three."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """The evaluations of one stage, which begins after step `start` and ends with step `end`; None is unknown."""

    start: int
    end: int
    steps: Sequence[int]
    values: Sequence[float | None]

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def fewest(self) -> int:
        """The least number of evaluations of a part: three, but no more than half of them."""
        return min(3, max(1, len(self) // 2))

    def opening(self, share: float) -> Sequence[float | None]:
        """Return the values in the first `share` of the stage."""
        return self.values[: max(self.fewest, bisect_right(self.steps, self.start + self._width(share)))]

    def closing(self, share: float) -> Sequence[float | None]:
        """Return the values in the last `share` of the stage."""
        return self.values[min(len(self) - self.fewest, bisect_right(self.steps, self.end - self._width(share))) :]

    def levels(self, share: float) -> list[float]:
        """Return the median over the last `share` of the stage before each evaluation, where there is as much.

        The last one is the level at the end. Every value must be known.
        """
        width, bounds = self._width(share), []
        for index, step in enumerate(self.steps):
            first = min(index + 1 - self.fewest, bisect_right(self.steps, step - width))
            if first >= 0 and step - width >= self.start:
                bounds.append((first, index + 1))
        return _sliding_medians(self._known(), bounds)

    def smoothed(self) -> list[float]:
        """Return the running medians over SMOOTHING_SHARE of the stage, where the whole width lies in it.

        Every value must be known; fewer than MIN_SMOOTHED are returned as they are.
        """
        values = self._known()
        if len(values) < MIN_SMOOTHED:
            return values
        half, bounds = self._width(SMOOTHING_SHARE) / 2, []
        for index in range(1, len(values) - 1):
            low, high = self.steps[index] - half, self.steps[index] + half
            if low >= self.start and high <= self.end:
                first, last = bisect_left(self.steps, low), bisect_right(self.steps, high)
                bounds.append((min(first, index - 1), max(last, index + 2)))
        return _sliding_medians(values, bounds)

    def share_below(self, threshold: float, *, after: float) -> float:
        """Return the share of steps at which the value is below a threshold, without the first `after` of the stage.

        An evaluation stands for the steps nearer to it than to any other. Every value must be known.
        """
        start = self.start + self._width(after)
        middles = [(left + right) / 2 for left, right in zip(self.steps, self.steps[1:], strict=False)]
        borders = [max(start, border) for border in (self.start, *middles, self.end)]
        below = sum(
            right - left
            for left, right, value in zip(borders, borders[1:], self._known(), strict=False)
            if value < threshold
        )
        return below / (self.end - start)

    def _known(self) -> list[float]:
        return [value for value in self.values if value is not None]

    def _width(self, share: float) -> float:
        # rounded, so that a part ends exactly at the evaluation that it ends at
        return round(share * (self.end - self.start), 6)


def split_at(steps: Sequence[int], values: Sequence[float | None], boundary: int) -> tuple[Stage, Stage]:
    """Return both stages of a run, the first without the untrained model at step 1."""
    begin, middle = bisect_right(steps, 1), bisect_right(steps, boundary)
    return (
        Stage(start=0, end=boundary, steps=steps[begin:middle], values=values[begin:middle]),
        Stage(start=boundary, end=steps[-1], steps=steps[middle:], values=values[middle:]),
    )


def alternating_extremes(values: Sequence[float], factor: float) -> list[float]:
    """Return successive extremes, alternately low and high, that differ by at least `factor`; empty if none do.

    2, 10, 3, 15, 2 with a factor of 2 gives all five, hence three reversals.
    """

    def differ(low: float, high: float) -> bool:
        return high > low and high >= factor * low

    if not values:
        return []
    # the first direction is known once minimum and maximum so far differ by the factor
    low = high = values[0]
    extremes: list[float] = []
    for value in values[1:]:
        if not extremes:
            low, high = min(low, value), max(high, value)
            if differ(low, high):
                extremes = [low, high] if value == high else [high, low]
            continue
        last = extremes[-1]
        rising = last > extremes[-2]
        if value > last if rising else value < last:
            extremes[-1] = value
        elif differ(*((value, last) if rising else (last, value))):
            extremes.append(value)
    return extremes


def _sliding_medians(values: Sequence[float], bounds: Iterable[tuple[int, int]]) -> list[float]:
    """Return the median of each window [first, last); both bounds ascend."""
    window: list[float] = []
    begin = end = 0
    medians = []
    for first, last in bounds:
        for value in values[end:last]:
            insort(window, value)
        for value in values[begin:first]:
            del window[bisect_left(window, value)]
        begin, end = first, last
        middle = len(window) // 2
        medians.append(window[middle] if len(window) % 2 else (window[middle - 1] + window[middle]) / 2)
    return medians
