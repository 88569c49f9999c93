"""What is compared seed by seed as plain data: a dot for each seed, the margin or band, the median and its bounds."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from bitnetctl.records import COLUMNS, Run
from bitnetctl.units import UNKNOWN, plural
from bitnetctl.verdict import Criteria, Outcome, Verdict, strictest, wording
from bitnetctl.verdict.checks.base import ThresholdCheck
from bitnetctl.verdict.checks.compared import ComparedCheck
from bitnetctl.verdict.checks.equivalent import EquivalentCheck
from bitnetctl.verdict.checks.interaction import InteractionCheck
from bitnetctl.verdict.checks.level import LevelCheck
from bitnetctl.verdict.checks.paired import ImprovementCheck
from bitnetctl.verdict.outcome import CheckResult, number_text

_MISSING, _UNFINISHED = "missing", "unfinished"
_UNITS = {column.name: column.unit for column in COLUMNS if column.unit != "1"}


@dataclass(frozen=True, kw_only=True)
class SeedRow:
    """One planned seed: the values of its runs as text, and what is compared, from `low` to `high`.

    Both are equal unless a run was repeated or its value cannot be told; infinite where a run failed, None without a
    value, and `note` says why. `holds`: as claimed.
    """

    seed: str
    values: tuple[str, ...]
    low: float | None
    high: float | None
    holds: bool
    note: str = ""

    @property
    def is_drawn(self) -> bool:
        """Whether it has a place on the axis."""
        return self.low is not None and self.high is not None and math.isfinite(self.low) and math.isfinite(self.high)


@dataclass(frozen=True, kw_only=True)
class SeedPlot:
    """A check over the seeds of one size.

    `columns` name the runs of a seed where several are compared, else there are none. `what` is what is compared,
    `left` and `right` say what it means to lie there.
    `lines` are labelled places on the axis, `claimed` is the region that is claimed, to infinity on an open side.
    `lower` and `upper` are one-sided bounds of the median, `bounds` is their text.
    """

    title: str
    outcome: Outcome
    columns: tuple[str, ...]
    what: str
    unit: str
    left: str
    right: str
    rows: tuple[SeedRow, ...]
    lines: tuple[tuple[str, float], ...] = ()
    claimed: tuple[float, float]
    middle: float | None = None
    lower: float | None = None
    upper: float | None = None
    bounds: str = ""
    sentence: str = ""

    def number(self, value: float) -> str:
        """Format a value: a difference with its sign."""
        return signed_text(value) if self.columns else number_text(value).replace("-", "−")

    def text(self, row: SeedRow) -> str:
        """Format what is compared of a seed."""
        if row.low is None or row.high is None:
            return UNKNOWN
        return " to ".join(self.number(value) for value in dict.fromkeys((row.low, row.high)))

    @property
    def caption(self) -> str:
        """What is compared, with its unit."""
        return f"{self.what} ({self.unit})" if self.unit else self.what

    @property
    def is_shown_by_dots(self) -> bool:
        """Whether a table would only repeat the numbers beside the dots."""
        return not self.columns and not any(row.note for row in self.rows)

    @property
    def count(self) -> str:
        """How many of the seeds are as claimed."""
        return f"{sum(row.holds for row in self.rows)} of {plural(len(self.rows), 'seed')} as claimed"

    @property
    def summary(self) -> str:
        """The plot in a sentence."""
        middle = "" if self.middle is None else f", median {self.number(self.middle)}"
        return f"{self.what}, {self.count}{middle}; {self.bounds}" if self.bounds else f"{self.what}, {self.count}"


@dataclass(frozen=True, kw_only=True)
class Axis:
    """The part of the number line that a plot shows, and its ticks."""

    low: float
    high: float
    ticks: tuple[float, ...]

    @classmethod
    def of(cls, plot: SeedPlot, most: int = 5) -> "Axis":
        """Return an axis that holds all finite values, lines, bounds and, where runs are compared, 0."""
        drawn = [value for row in plot.rows if row.is_drawn for value in (row.low, row.high) if value is not None]
        marks = [*(value for _, value in plot.lines), *([0.0] if plot.columns else [])]
        marks += [value for value in (plot.lower, plot.upper, plot.middle) if value is not None]
        every = [value for value in (*drawn, *marks) if math.isfinite(value)] or [0.0]
        low, high = min(every), max(every)
        room = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
        low, high = low - room, high + room
        return cls(low=low, high=high, ticks=_ticks(low, high, most))

    def share(self, value: float) -> float:
        """Return where a value lies: 0 at the left end, 1 at the right end."""
        return (value - self.low) / (self.high - self.low)


def _ticks(low: float, high: float, most: int) -> tuple[float, ...]:
    """Return round numbers between two ends."""
    unit = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(factor * unit for factor in (1, 2, 5, 10) if (high - low) / (factor * unit) <= most)
    return tuple(index * step for index in range(math.ceil(low / step), math.floor(high / step) + 1))


def signed_text(value: float) -> str:
    """Format a difference with its sign in three significant digits."""
    if not math.isfinite(value):
        return "+∞" if value > 0 else "−∞"
    text = f"{value:+,.0f}" if abs(value) >= 1000 else f"{value:+.3g}"
    return text.replace("-", "−") if value else "0"


def seed_plots(criteria: Criteria, verdict: Verdict, runs: Sequence[Run], seeds: Sequence[int]) -> tuple[SeedPlot, ...]:
    """Return a plot for each size and each check that compares runs or has thresholds; `seeds` are those planned."""
    plots = []
    for size in verdict.sizes:
        statistics = next((one for one in verdict.statistics if one["size"] == size), {})
        results = [result for result in verdict.results if result.size == size]
        of_size = [run for run in runs if run.size == size]
        for check in criteria.comparisons:
            pairs = statistics.get("pairs", {}).get(check.label)
            if pairs is not None:
                plots.append(_of_pairs(check, verdict.arm, size, pairs, results, of_size, seeds))
        levels = [check for check in criteria.checks if isinstance(check, ThresholdCheck)]
        plots += [_of_values(check, size, results, seeds) for check in levels]
    return tuple(plots)


def _at(size: int | None) -> str:
    return f", hidden {size}" if size is not None else ""


def _unit(check: Any) -> str:
    return "" if getattr(check, "over", "end") == "share" else _UNITS.get(check.measure, "")


def _of_pairs(
    check: ComparedCheck,
    arm: str,
    size: int | None,
    pairs: Mapping[str, Any],
    results: Sequence[CheckResult],
    runs: Sequence[Run],
    seeds: Sequence[int],
) -> SeedPlot:
    result = next(one for one in results if one.run is None and one.check == check.label)
    arms = [arm, *_partner_names(check, arm, runs)]
    # the values of improvements are those beyond the margin
    margin = check.margin if isinstance(check, ImprovementCheck) else 0.0
    known = [(pairs["values"][seed], pairs["greatest"].get(seed, pairs["values"][seed])) for seed in pairs["values"]]
    by_seed = {seed: (low + margin, high + margin) for seed, (low, high) in zip(pairs["values"], known, strict=True)}
    names = [*dict.fromkeys([*map(str, seeds), *by_seed])]
    rows = [_row_of_pair(check, seed, arms, by_seed.get(seed), runs, margin) for seed in names]
    certain = [low for low, high in by_seed.values() if low == high]
    middle = median(certain) if certain and len(certain) == len(by_seed) else math.nan
    lower, upper = _bounds(pairs, margin)
    left, right = _sides(check)
    lines, claimed = _region(check, margin)
    return SeedPlot(
        title=f"{check.aggregate.name(check.measure)}{_at(size)}",
        outcome=result.outcome,
        columns=tuple(arms),
        what=_what(check, arm),
        unit=_unit(check),
        left=left,
        right=right,
        rows=tuple(rows),
        lines=lines,
        claimed=claimed,
        middle=None if math.isnan(middle) else middle,
        lower=lower,
        upper=upper,
        bounds=_bounds_text(pairs, margin, is_complete=len(by_seed) == pairs["planned"]),
        sentence=result.reason,
    )


def _partner_names(check: ComparedCheck, arm: str, runs: Sequence[Run]) -> Iterator[str]:
    """Yield the arms that an arm is compared with, as its runs have them."""
    present = dict.fromkeys(run.arm for run in runs if run.arm)
    planned = [check.against]
    if isinstance(check, InteractionCheck):
        planned += [f"{arm}+{check.modifier}", f"{check.against}+{check.modifier}"]
    for name, is_partner in zip(planned, check.partner_arms(arm), strict=True):
        yield next((one for one in present if is_partner(one)), name)


def _what(check: ComparedCheck, arm: str) -> str:
    """Say what is compared, so that larger is better."""
    name = check.aggregate.name(check.measure)
    if isinstance(check, InteractionCheck):
        return f"gain in {name} over {check.against}, less the gain with {check.modifier} added to both"
    if isinstance(check, EquivalentCheck):
        return f"difference in {name}, {arm} less {check.against}"
    return f"improvement in {name} over {check.against}"


def _sides(check: ComparedCheck) -> tuple[str, str]:
    """Say what it means to lie to the left and to the right."""
    if isinstance(check, InteractionCheck):
        return "smaller gain", "larger gain"
    return ("lower", "higher") if isinstance(check, EquivalentCheck) else ("worse", "better")


def _row_of_pair(
    check: ComparedCheck,
    seed: str,
    arms: Sequence[str],
    value: tuple[float, float] | None,
    runs: Sequence[Run],
    margin: float,
) -> SeedRow:
    cells = [_cell(check, [run for run in runs if run.arm == arm and str(run.seed) == seed]) for arm in arms]
    if value is None:
        is_missing = any(cell == _MISSING or cell.startswith(_UNFINISHED) for cell in cells)
        note = "no value: a run is missing" if is_missing else "no value: the runs cannot be compared"
        return SeedRow(seed=seed, values=tuple(cells), low=None, high=None, holds=False, note=note)
    low, high = value
    if isinstance(check, EquivalentCheck):
        holds = -check.within < low and high < check.within
    else:
        holds = low > margin
    return SeedRow(seed=seed, values=tuple(cells), low=low, high=high, holds=holds, note=_note(check, low, high))


def _note(check: ComparedCheck, low: float, high: float) -> str:
    if math.isfinite(low) and math.isfinite(high):
        return "" if low == high else "a run was repeated"
    if low != high:
        return "cannot be told: runs failed on both sides"
    if isinstance(check, InteractionCheck):
        return "a run failed"
    return "the arm's run failed" if low < 0 else f"the run of {check.against} failed"


def _cell(check: Any, runs: Sequence[Run]) -> str:
    """Return the value of a run as text, with those of its repetitions, or what became of it."""
    return ", ".join(dict.fromkeys(_value_text(check, run) for run in runs)) or _MISSING


def _value_text(check: Any, run: Run) -> str:
    if run.diverged_at is not None:
        return f"diverged at step {run.diverged_at:,}"
    if run.manifest is not None and run.manifest.status == "failed":
        return "failed"
    if run.is_complete is False:
        return f"{_UNFINISHED} at step {run.final_step:,}"
    value = check.value_of(run)
    return UNKNOWN if value is None else number_text(value)


def _bounds(pairs: Mapping[str, Any], margin: float) -> tuple[float | None, float | None]:
    """Return the finite one-sided bounds of the median; None without one, as where too many runs failed."""
    found = (pairs.get("lower_bound_of_median", pairs.get("bound_of_median")), pairs.get("upper_bound_of_median"))
    lower, upper = (None if bound is None or not math.isfinite(bound) else bound + margin for bound in found)
    return lower, upper


def _region(check: ComparedCheck, margin: float) -> tuple[tuple[tuple[str, float], ...], tuple[float, float]]:
    """Return the ends of what is claimed with their names, and what is claimed."""
    if isinstance(check, EquivalentCheck):
        return (("limit", -check.within), ("limit", check.within)), (-check.within, check.within)
    return (("margin", margin),) if margin else (), (margin, math.inf)


def _bounds_text(pairs: Mapping[str, Any], margin: float, *, is_complete: bool) -> str:
    """Say between which bounds the median lies, each at its own level."""
    lower, upper = _bounds(pairs, margin)
    if lower is None and upper is None:
        if not is_complete:
            return "no bound of the median: a planned pair is missing"
        if any(math.isinf(value) for value in pairs["values"].values()):
            return "no finite bound of the median: too many runs failed for the number of pairs"
        return f"no bound of the median: {plural(pairs['planned'], 'pair')} cannot give one at this level"
    texts: list[str] = []
    both = pairs["kind"] == "equivalent" or pairs["level_of_support"] == pairs["level_of_refutation"]
    for value, side, level in ((lower, "above", "level_of_support"), (upper, "below", "level_of_refutation")):
        if value is not None:
            own = "" if both and texts else f" ({wording.bound(pairs[level])}{' each' * (both and upper is not None)})"
            texts.append(f"{side} {signed_text(value)}{own}")
    return f"the median is {' and '.join(texts)}"


def _of_values(
    check: ThresholdCheck, size: int | None, results: Sequence[CheckResult], seeds: Sequence[int]
) -> SeedPlot:
    """Return a plot of the values of the runs themselves, against the thresholds."""
    of_runs = [one for one in results if one.check == check.label and one.run is not None]
    over_seeds = next((one for one in results if one.check == check.label and one.run is None), None)
    rows: list[SeedRow] = []
    for seed in dict.fromkeys([*seeds, *(one.seed for one in of_runs)]):
        of_seed: list[CheckResult | None] = [one for one in of_runs if one.seed == seed]
        rows += [_row_of_value(seed, one) for one in of_seed or [None]]
    lines = [("supported", check.supporting)]
    lines += [("refuted", check.refuting)] if check.refuting != check.supporting else []
    values = [row.low for row in rows if row.low is not None]
    claimed = (check.supporting, math.inf) if check.higher_is_better else (-math.inf, check.supporting)
    better = ("worse", "better") if check.higher_is_better else ("better", "worse")
    return SeedPlot(
        title=f"{check.label}{_at(size)}",
        outcome=over_seeds.outcome if over_seeds else _strictest(of_runs),
        columns=(),
        what=check.aggregate.name(check.measure) if isinstance(check, LevelCheck) else check.short,
        unit=_unit(check),
        left=better[0],
        right=better[1],
        rows=tuple(rows),
        lines=tuple(lines),
        claimed=claimed,
        middle=median(values) if len(values) == len(rows) and all(map(math.isfinite, values)) and values else None,
        sentence=over_seeds.reason if over_seeds else "",
    )


def _strictest(results: Sequence[CheckResult]) -> Outcome:
    return strictest(one.outcome for one in results)


def _row_of_value(seed: int | None, result: CheckResult | None) -> SeedRow:
    name = UNKNOWN if seed is None else str(seed)
    if result is None:
        return SeedRow(seed=name, values=(), low=None, high=None, holds=False, note="no run")
    value = None if result.value is None or math.isnan(result.value) else result.value
    holds = result.outcome is Outcome.SUPPORTED
    note = result.reason if value is None or not math.isfinite(value) else ""
    return SeedRow(seed=name, values=(), low=value, high=value, holds=holds, note=note)
