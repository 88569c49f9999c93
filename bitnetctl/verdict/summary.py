"""A verdict in a few lines, as data: what was claimed, what came out, one row for each arm and size, why, what next.

Terminal, Markdown, HTML and `--json` show the same summary.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from bitnetctl.config import BASELINE
from bitnetctl.records import Run
from bitnetctl.records.naming import printable_name
from bitnetctl.records.provenance import provenance_differences
from bitnetctl.units import plural, shortened
from bitnetctl.verdict import headline, wording
from bitnetctl.verdict.checks.base import Check, ThresholdCheck
from bitnetctl.verdict.criteria import Criteria
from bitnetctl.verdict.facts import Facts, SizeOfArm, compares_only
from bitnetctl.verdict.limits import last_median
from bitnetctl.verdict.next_step import next_step
from bitnetctl.verdict.options import JudgeOptions
from bitnetctl.verdict.outcome import CheckResult, Combined, Outcome, strictest
from bitnetctl.verdict.reasons import Reason, reasons

MOST_COLUMNS = 4
"""Most measures that are columns, the most decisive first."""


class _Model(BaseModel):
    # a file of another version may have more fields
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class SummaryColumn(_Model):
    """A measure that decides; `needed` is the condition that supports, such as `> 0.5`.

    With `is_count` its values are numbers of pairs that fulfil it, out of `runs`.
    """

    name: str
    measure: str
    needed: str
    threshold: float | None = None
    is_count: bool = False


class SummaryCell(_Model):
    """The mean of a measure over the runs of a row where it is finite, and how many of `runs` fail or are open."""

    mean: float | None
    failed: int = 0
    undecided: int = 0
    runs: int = 0


class SummaryRow(_Model):
    """One arm at one size; `cells` are those of the columns, None where no run has a value.

    `seeds_needed` is of how many seeds how many have to be healthy for support. `held_out_loss` and `unique` are means
    over the runs; `versus_baseline` is the mean difference in held-out loss to the baseline's runs of the same seeds.
    """

    arm: str
    size: int | None
    verdict: Outcome
    is_asked: bool
    seeds_ok: int
    seeds: int
    seeds_needed: tuple[int, int] | None
    held_out_loss: float | None
    versus_baseline: float | None
    unique: float | None
    cells: tuple[SummaryCell | None, ...]


class Summary(_Model):
    """What was judged and what came out; `why`, `effect` and `notes` begin with the most important.

    `all_notes` is the number of notes beside the verdicts. `conclusion` and `scale` are those of a claim with a file.
    """

    claim: str
    outcome: Outcome
    exit_code: int
    arms: tuple[str, ...]
    is_requested: bool
    headline: str
    other_arms: dict[str, Outcome]
    criteria: str
    horizon: str
    columns: tuple[SummaryColumn, ...]
    rows: tuple[SummaryRow, ...]
    why: tuple[Reason, ...]
    effect: tuple[str, ...]
    notes: tuple[str, ...]
    all_notes: int
    next: str
    conclusion: str = ""
    scale: str = ""

    @property
    def further_reasons(self) -> tuple[Reason, ...]:
        """The reasons without the one with which the headline begins."""
        return tuple(reason for reason in self.why if not self.headline.startswith(reason.text()))

    @property
    def last_line(self) -> str:
        """The verdict in one line, for scripts and for the end of a screen."""
        of_arms = f" ({', '.join(self.arms)})" if self.other_arms else ""
        return f"verdict{of_arms}: {self.outcome.value}"


def summarize(
    judged: Mapping[str, Combined],
    deciding: Sequence[str],
    criteria: Sequence[Criteria],
    runs: Sequence[Run],
    options: JudgeOptions,
    *,
    requested: bool,
) -> Summary:
    """Summarize the verdicts on all arms by these criteria.

    `deciding` are the arms, at least one, whose strictest verdict counts; `requested` is whether they were asked for.
    """
    facts = Facts(judged=judged, deciding=deciding, requested=requested, criteria=criteria, options=options, runs=runs)
    why = reasons(facts)
    columns = _columns(facts)
    return Summary(
        claim=headline.claim(facts),
        outcome=facts.outcome,
        exit_code=facts.outcome.exit_code,
        arms=tuple(deciding),
        is_requested=requested,
        headline=headline.headline(facts, [reason.text() for reason in why]),
        other_arms={arm: one.outcome for arm, one in judged.items() if arm not in deciding},
        criteria=headline.criteria_line(facts),
        horizon=headline.horizon(facts),
        columns=columns,
        rows=tuple(_row(facts, cell, columns) for cell in facts.cells),
        why=tuple(why),
        effect=tuple(_effects(facts)),
        notes=tuple(_notes(facts)),
        all_notes=len(
            {note for combined in judged.values() for verdict in combined.verdicts for note in verdict.notes}
        ),
        next=next_step(facts),
    )


def _columns(facts: Facts) -> tuple[SummaryColumn, ...]:
    """Return the measures with a threshold: those that decide most runs first, then those by which other arms fail."""
    decided: dict[SummaryColumn, list[int]] = {}
    for arm in facts.judged:
        for verdict in facts.judged[arm].verdicts:
            checks = facts.checks_of(verdict)
            for result in verdict.results:
                column = _column(result, checks.get(result.check))
                if column is not None:
                    counts = decided.setdefault(column, [0, 0, 0])
                    refutes = result.outcome is Outcome.REFUTED
                    counts[0] += refutes and arm in facts.deciding
                    counts[1] += result.outcome is facts.outcome is not Outcome.SUPPORTED and arm in facts.deciding
                    counts[2] += refutes
    ranked = sorted(decided, key=lambda column: decided[column], reverse=True)
    return tuple(ranked[:MOST_COLUMNS])


def _column(result: CheckResult, check: Check | None) -> SummaryColumn | None:
    if result.measure is None or result.supports is None:
        return None
    if isinstance(check, ThresholdCheck) and result.run is not None:
        return SummaryColumn(
            name=check.short, measure=check.measure, needed=result.supports, threshold=check.supporting
        )
    if result.of is not None:
        return SummaryColumn(name="pairs", measure=result.measure, needed=result.supports, is_count=True)
    return None


def _row(facts: Facts, cell: SizeOfArm, columns: Sequence[SummaryColumn]) -> SummaryRow:
    arm, size = cell
    verdicts = facts.judged[arm].verdicts
    runs = facts.runs_of.get(cell, ())
    statistics = [one for verdict in verdicts for one in verdict.statistics if one["size"] == size]
    return SummaryRow(
        arm=arm,
        size=size,
        verdict=strictest(verdict.sizes.get(size, verdict.outcome) for verdict in verdicts),
        is_asked=arm in facts.deciding,
        seeds_ok=_healthy_seeds(facts, cell),
        seeds=max((one["seeds"] for one in statistics), default=0),
        seeds_needed=max(map(_needed, statistics), default=None),
        held_out_loss=_mean([_final(run, "HeldOutLoss") for run in runs]),
        versus_baseline=_mean(list(_differences(facts, cell))),
        unique=_mean([_final(run, "UniquePredictions") for run in runs]),
        cells=tuple(_cell(facts, cell, column) for column in columns),
    )


def _needed(statistics: Mapping[str, Any]) -> tuple[int, int]:
    """Return how many of how many seeds have to be healthy for support: of those planned or, if too few, of more."""
    seeds = statistics["seeds"]
    healthy = statistics.get("healthy_needed", seeds)
    least = statistics.get("fewest_seeds") or seeds
    return (least, least) if healthy is None else (seeds, healthy)


def _healthy_seeds(facts: Facts, cell: SizeOfArm) -> int:
    """Count the seeds of which every run is healthy by every criterion."""
    arm, size = cell
    outcomes: dict[object, set[Outcome]] = {}
    for verdict in facts.judged[arm].verdicts:
        for run in verdict.runs:
            if run.size == size:
                distinct = run.seed is None and facts.options.distinct_seeds
                outcomes.setdefault(("run", run.run) if distinct else run.seed, set()).add(run.outcome)
        for one in verdict.not_judged:
            if one["state"] == "failed" and one["size"] == size:
                outcomes.setdefault(one["seed"], set()).add(Outcome.REFUTED)
    return sum(of_seed == {Outcome.SUPPORTED} for of_seed in outcomes.values())


def _cell(facts: Facts, cell: SizeOfArm, column: SummaryColumn) -> SummaryCell | None:
    results = list(_results(facts, cell, column))
    if column.is_count:
        return next(map(_count_cell, results), None)
    of_runs = [result for result in results if result.run is not None]
    values = [result.value for result in of_runs]
    if not any(value is not None for value in values):
        return None
    # a claim about the mean is one about all runs
    over_seeds = {result.outcome for result in results if result.run is None}
    outcomes = [result.outcome for result in of_runs]
    return SummaryCell(
        mean=_mean(values),
        failed=len(of_runs) if Outcome.REFUTED in over_seeds else outcomes.count(Outcome.REFUTED),
        undecided=outcomes.count(Outcome.INCONCLUSIVE),
        runs=len(of_runs),
    )


def _count_cell(result: CheckResult) -> SummaryCell:
    count = result.of or 0
    return SummaryCell(
        mean=result.value,
        failed=count if result.outcome is Outcome.REFUTED else 0,
        undecided=count if result.outcome is Outcome.INCONCLUSIVE else 0,
        runs=count,
    )


def _results(facts: Facts, cell: SizeOfArm, column: SummaryColumn) -> Iterator[CheckResult]:
    """Yield the results of the first check that is this column, for the runs of a cell and over its seeds."""
    arm, size = cell
    for verdict in facts.judged[arm].verdicts:
        checks = facts.checks_of(verdict)
        found = [
            result
            for result in verdict.results
            if result.size == size
            and result.supports == column.needed
            and result.measure == column.measure
            and (result.of is not None if column.is_count else checks[result.check].short == column.name)
        ]
        if found:
            yield from found
            return


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None and math.isfinite(value)]
    # divided first: a sum of large values can overflow
    mean = sum(value / len(known) for value in known)
    return mean if known and math.isfinite(mean) else None


def _final(run: Run, measure: str) -> float | None:
    return last_median(run, measure, 1)


def _differences(facts: Facts, cell: SizeOfArm) -> Iterator[float]:
    """Yield the held-out loss of every seed less that of the baseline, if they were trained alike."""
    arm, size = cell
    ours, theirs = facts.runs_of.get(cell, ()), facts.runs_of.get((BASELINE, size), ())
    if arm == BASELINE or not theirs or provenance_differences([*ours, *theirs], same_arm=False).breaking:
        return
    by_place = {(run.seed, run.final_step): _final(run, "HeldOutLoss") for run in theirs}
    for run in ours:
        own, other = _final(run, "HeldOutLoss"), by_place.get((run.seed, run.final_step))
        if run.seed is not None and own is not None and other is not None:
            yield own - other


def _effects(facts: Facts) -> Iterator[str]:
    """Say how the deciding arms differ from the baseline in held-out loss; this describes and tests nothing.

    Where the criteria only compare, say what is known of the median pair.
    """
    if all(compares_only(one) for one in facts.criteria):
        yield from _medians(facts)
        return
    for arm in facts.deciding:
        by_size = {
            size: [value for value in _differences(facts, (arm, size)) if math.isfinite(value)]
            for of_arm, size in facts.cells
            if of_arm == arm
        }
        values = [value for of_size in by_size.values() for value in of_size]
        mean_of = {size: mean for size, of_size in by_size.items() if (mean := _mean(of_size)) is not None}
        if not mean_of:
            continue
        means = [f"{signed(mean)} at {wording.size_name(size)}" for size, mean in mean_of.items()]
        if len(means) > headline.MOST_NAMES:
            means = [f"{signed(min(mean_of.values()))} to {signed(max(mean_of.values()))} at {len(means)} sizes"]
        lower = sum(value < 0 for value in values)
        of_arm = f"{arm}: " if len(facts.deciding) > 1 else ""
        yield f"{of_arm}held-out loss {', '.join(means)} (lower in {lower} of {plural(len(values), 'pair')})"


def _medians(facts: Facts) -> Iterator[str]:
    """Yield what is known of the median pairs of every deciding arm, with its size where there are several."""
    for arm in facts.deciding:
        sizes = [one for verdict in facts.judged[arm].verdicts for one in verdict.statistics]
        several = len({one["size"] for one in sizes}) > 1
        texts = [
            f"{wording.size_name(one['size'])} {pairs['text']}" if several else pairs["text"]
            for one in sizes
            for pairs in one["pairs"].values()
            if pairs["text"]
        ]
        if texts:
            yield f"{f'{arm}: ' if len(facts.deciding) > 1 else ''}{'; '.join(texts)}"


def signed(value: float) -> str:
    """Format a difference with its sign in two decimals, in more where they would be zeros."""
    if abs(value) >= 1e6:
        return f"{value:+.3g}".replace("-", "−")
    digits = 2 if abs(value) >= 0.005 or value == 0 else 2 - math.floor(math.log10(abs(value)) + 1)
    return f"{value:+.{min(digits, 6)}f}".replace("-", "−")


def _left_out(facts: Facts) -> Iterator[str]:
    """Yield which files count no further: copies of runs, and those that cannot be read."""
    counted = {"doubled": "left out as a copy", "unreadable": "cannot be read"}
    every = [run for verdict in facts.verdicts for run in verdict.planned.get("runs", ())]
    for state, what in counted.items():
        names = [printable_name(Path(run["run"]).name) for run in every if run["state"] == state]
        if names:
            yield f"{what}: {shortened(list(dict.fromkeys(names)), 2)}"


def _notes(facts: Facts) -> Iterator[str]:
    """Yield what bounds the verdict, in a few words each."""
    yield from _left_out(facts)
    unknown = sum(run.seed is None for run in facts.deciding_runs)
    if unknown > 1 and not facts.options.distinct_seeds:
        yield f"{unknown} runs of unknown seed count as one seed (else --distinct-seeds)"
    evidence = {verdict.criteria: verdict.evidence for verdict in facts.verdicts if verdict.evidence is not None}
    for name, level in evidence.items():
        if level == "scaled":
            yield f"scaled replica of {name}: other sizes or steps"
    by_rate = [verdict for verdict in facts.verdicts if verdict.rule.get("rule") == "rate"]
    looks = max((verdict.rule["looks"] for verdict in by_rate), default=1)
    if looks > 1:
        error = wording.percent(min(1, headline.error_rate(by_rate)))
        yield f"the number of seeds grew {plural(looks - 1, 'time')}: error rate up to {error}"
    arms = max((verdict.rule["arms"] for verdict in by_rate), default=1)
    if arms > 1:
        yield f"{arms} arms share the error rate"
