"""Tables for a terminal of any width."""

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.text import Text

from bitnetctl.analysis import wording
from bitnetctl.analysis.agreement import Agreement
from bitnetctl.analysis.anova import OutcomeAnalysis, Term
from bitnetctl.analysis.effects import METRICS, ArmEffect
from bitnetctl.analysis.stats import is_significant
from bitnetctl.config import BASELINE
from bitnetctl.escape import printable
from bitnetctl.records import Run
from bitnetctl.report.columns import (
    COLLAPSE,
    END,
    RunColumn,
    RunRow,
    difference,
    interval,
    p_cells,
    pairs_text,
)
from bitnetctl.report.fitted import Cell, Column, FittedTable, Row, Span, rows_of
from bitnetctl.report.screen import OUTCOME_STYLES
from bitnetctl.report.trajectory import MILESTONES, seed_cell, trajectory_rows
from bitnetctl.units import UNKNOWN, format_value, gibibytes, plural
from bitnetctl.verdict import Outcome, Verdict, arm_label

MOST_TERMS = 10
MOST_LEVELS = 8
_MEASURES = {"HeldOutBitsPerByte": "bits/byte", "HeldOutLoss": "held-out"}


def key_value_table(title: str, values: Mapping[str, str]) -> FittedTable:
    """Return a row for each name and its value, without a header."""
    columns = (Column("name"), Column("value", note=True))
    return FittedTable(columns, rows_of(values.items()), title=title, title_style="italic", show_header=False)


def sweep_table(rows: Sequence[Mapping[str, Any]]) -> FittedTable:
    """Return a row for every run of a sweep; `rows` are those of `bitnetctl sweep --json`."""
    varied = list(rows[0].get("varied", ())) if rows else []
    columns = (
        Column("arm"),
        Column("size", number=True),
        Column("seed", number=True),
        *(Column(field.rpartition(".")[2].replace("_", " "), number=True) for field in varied),
        Column("status", 3),
        Column("unique", 1, number=True),
        Column("held-out", 2, number=True),
    )
    lines = []
    for row in rows:
        final = row["final"] or {}
        failed = row["status"] in ("failed", "damaged", "diverged")
        cells: tuple[Cell, ...] = (
            row["arm"],
            str(row["size"]),
            str(row["seed"]),
            *(format_value(row["varied"][field]) for field in varied),
            Text(row["status"], style="red" if failed else ""),
            format_value(final.get("UniquePredictions"), ",.0f"),
            format_value(final.get("HeldOutLoss"), ".3f"),
        )
        lines.append(Row(cells))
    return FittedTable(columns, lines)


def search_table(found: Mapping[str, Any]) -> FittedTable:
    """Return a row for every trial of a search, the best first; `found` is what `sweep --search --json` prints."""
    columns = (
        Column("trial", number=True),
        Column("tokens", 1, number=True),
        Column(_MEASURES[found["measure"]], number=True),
        Column("settings", note=True),
    )
    rows = []
    for row in found["trials"]:
        named = (f"{name.rpartition('.')[2]}={value or BASELINE}" for name, value in row["settings"].items())
        value = row["values"][-1]
        rows.append(
            (
                str(row["trial"]),
                f"{found['rungs'][len(row['values']) - 1]['tokens']:,}",
                "not finished" if value is None else f"{value:.4f}",
                " ".join(named) or "as the recipe",
            )
        )
    return FittedTable(columns, rows_of(rows))


def packs_table(rows: Sequence[Mapping[str, Any]]) -> FittedTable:
    """Return a row for every model shape of a planned sweep; `rows` are those of `sweep --dry-run --json`."""
    columns = (
        Column("size", number=True),
        Column("steps", number=True),
        Column("runs", 4, number=True),
        Column("packs", 2, number=True),
        Column("in a pack", 1, number=True),
        Column("memory", 3, number=True),
        Column("time", 5, number=True),
        Column("arms", note=True),
    )
    cells = (
        (
            str(row["size"]),
            f"{row['steps']:,}",
            str(row["runs"]),
            str(row["packs"]),
            str(row["runs_in_a_pack"]),
            gibibytes(row["memory_bytes"]),
            f"{row['seconds'] / 60:.1f} min",
            ", ".join(row["arms"]),
        )
        for row in rows
    )
    return FittedTable(columns, rows_of(cells))


def collapse_table(rows: Sequence[RunRow]) -> FittedTable:
    """Return collapse and recovery of every run, or of the runs of each arm."""
    return _summary_table("Stage 1 and the boundary", rows, COLLAPSE)


def end_table(rows: Sequence[RunRow]) -> FittedTable:
    """Return the final metrics of every run and its ternary weights, or their means over the runs of each arm."""
    return _summary_table("The end", rows, END)


def _summary_table(title: str, rows: Sequence[RunRow], columns: Sequence[RunColumn]) -> FittedTable:
    lines: list[Row | Span] = []
    for row in rows:
        lines.append(Row((row.arm, row.size, row.seed, *(row.text(column) for column in columns))))
        if row.state:
            lines.append(Span(row.state, "red" if row.failed else "dim", indent=2))
    keys = (Column("arm"), Column("size", number=True), Column("runs" if rows[0].grouped else "seed", number=True))
    values = (Column(column.title(grouped=rows[0].grouped), column.importance, number=True) for column in columns)
    return _analysis_table(title, (*keys, *values), lines)


def effects_table(effects: Sequence[ArmEffect]) -> FittedTable:
    """Return every arm's differences from its baseline: in how many seeds, how large, and the tests."""
    columns = (
        Column("metric"),
        Column("better: worse", 4, number=True),
        Column("mean diff.", 5, number=True),
        Column("95 % Student interval", 2, number=True),
        Column("p", 1, number=True),
        Column("p (Holm)", 3, number=True),
    )
    lines: list[Row | Span] = []
    for arm in effects:
        lines += [Span(arm.arm, "bold"), Span(f"− {arm.baseline}: {pairs_text(arm)}", "dim")]
        for metric, (name, _) in METRICS.items():
            effect = arm.effects[metric]
            missing = f" ({effect.unknown_pairs} unknown)" if effect.unknown_pairs else ""
            seeds = f"{effect.better} : {effect.worse}" if effect.seeds else UNKNOWN
            cells = (seeds, difference(effect), interval(effect), *p_cells(effect))
            lines.append(Row((Text(f"  {name}").append(missing, "dim"), *cells)))
    return _analysis_table(wording.EFFECTS_TITLE, columns, lines)


def factors_table(outcomes: Sequence[OutcomeAnalysis]) -> FittedTable:
    """Return terms by descending eta squared, with the mean of each level, then all terms together and the seeds."""
    columns = (
        Column("term"),
        Column("collapsed fraction", 2, number=True),
        Column("stage 1 loss", 1, number=True),
        Column("final loss", 3, number=True),
    )
    by_outcome = [{term.name: term for term in outcome.terms} for outcome in outcomes]
    terms = {name: [of_outcome.get(name) for of_outcome in by_outcome] for name in itertools.chain(*by_outcome)}
    largest = {
        name: max((term.eta_squared or 0.0 for term in of_name if term), default=0.0) for name, of_name in terms.items()
    }
    lines: list[Row | Span] = []
    for name in sorted(terms, key=lambda name: -largest[name])[:MOST_TERMS]:
        lines.append(Row((Text(printable(name), "bold"), *map(_eta_squared, terms[name]))))
        if all(term is None or len(term.factors) == 1 for term in terms[name]):
            lines += _levels(outcomes, terms[name])
    if len(terms) > MOST_TERMS:
        lines.append(Span(f"… and {len(terms) - MOST_TERMS} weaker ones"))
    if len(terms) > 1:
        lines.append(Row(("all terms (R²)", *map(_r_squared, outcomes))))
    if any(outcome.seed_eta_squared is not None for outcome in outcomes):
        lines.append(Row(("seeds", *(format_value(outcome.seed_eta_squared, ".0%") for outcome in outcomes))))
    return _analysis_table("Factors: η² (* p < 0.05 after Holm) and means", columns, lines)


def _levels(outcomes: Sequence[OutcomeAnalysis], terms: Sequence[Term | None]) -> Iterator[Row | Span]:
    """Yield a row for each level of one factor; `terms` has its term in every outcome, in the order of `outcomes`."""
    levels = dict.fromkeys(level for term in terms if term for level in term.means)
    for level in list(levels)[:MOST_LEVELS]:
        means = (term.means.get(level) if term else None for term in terms)
        cells = (format_value(mean, outcome.format_spec) for mean, outcome in zip(means, outcomes, strict=True))
        yield Row((f"  {level}", *cells), "dim")
    if len(levels) > MOST_LEVELS:
        yield Span(f"… and {plural(len(levels) - MOST_LEVELS, 'more level')}", "dim", indent=2)


def _eta_squared(term: Term | None) -> Text:
    if term is None or term.eta_squared is None:
        return Text()
    return Text(f"{term.eta_squared:.0%}{'*' * term.is_significant}", "bold")


def _r_squared(outcome: OutcomeAnalysis) -> str:
    return format_value(outcome.r_squared, ".0%") + "*" * is_significant(outcome.p_holm)


def agreement_table(agreements: Sequence[Agreement]) -> FittedTable:
    """Return how each metric ranks the runs against the held-out loss."""
    columns = (
        Column("metric"),
        Column("at"),
        Column("runs", 2, number=True),
        Column("τ-b", 4, number=True),
        Column("p", 1, number=True),
        Column("p (Holm)", 3, number=True),
    )
    lines = []
    for one in agreements:
        cells = (one.metric, one.when, str(one.runs), format_value(one.tau, "+.2f"), *p_cells(one))
        lines.append(Row(cells, "yellow" if one.tau is not None and one.tau < 0 else ""))
    return _analysis_table("Agreement with held-out loss (Kendall τ-b)", columns, lines)


def trajectory_table(arm: str, runs: Sequence[Run]) -> FittedTable:
    """Return unique predictions and, where known, held-out loss of every run of an arm at the milestones."""
    cells = []
    for run, of_run in trajectory_rows(runs):
        ceiling, inferred = run.ceiling or (None, False)
        cells.append((*of_run, format_value(ceiling, ",.0f") + "?" * inferred))
    # the end, then the boundary, then the others, the latest first
    importance = dict(zip(MILESTONES, (2, 3, 4, 5, 6), strict=True))
    columns = (
        *_size_and_seed([of_run[1] for of_run in cells]),
        *(Column(f"{fraction:.0%}", importance[fraction], number=True) for fraction in MILESTONES),
        Column("of", 1, number=True),
    )
    return FittedTable(columns, rows_of(cells), title=f"{arm_label(arm)}: unique predictions · held-out loss")


_OUTCOMES_OF_SEEDS = {
    Outcome.SUPPORTED: "healthy",
    Outcome.REFUTED: "failed",
    Outcome.INCONCLUSIVE: "undecided",
    Outcome.INVALID: "invalid",
}


def checks_table(verdict: Verdict) -> FittedTable:
    """Return what is said over seeds, then every run with its decisive checks; the decisive runs first."""
    judged = {run.run for run in verdict.runs}
    over_seeds = [result for result in verdict.results if result.run not in judged]
    rows: list[tuple[str, str, Text, str]] = []
    for result in sorted(over_seeds, key=lambda result: result.outcome is not verdict.outcome):
        seed = "all" if result.run is None else format_value(result.seed)
        rows.append((format_value(result.size), seed, _coloured(result.outcome), result.reason))
    by_rate = verdict.rule.get("rule") == "rate"
    places = Counter((run.size, run.seed) for run in verdict.runs)
    for run in sorted(verdict.runs, key=lambda run: (run.outcome is not verdict.outcome, run.size or 0)):
        name = _OUTCOMES_OF_SEEDS[run.outcome] if by_rate else run.outcome.value
        seed = seed_cell(run.size, run.seed, run.run, places)
        rows.append((format_value(run.size), seed, _coloured(run.outcome, name), run.reason))
    columns = (*_size_and_seed([row[1] for row in rows]), Column("outcome"), Column("because", note=True))
    title = Text(f"{printable(verdict.criteria)}: ").append_text(_coloured(verdict.outcome))
    return FittedTable(columns, rows_of(rows), title=title, title_style="italic")


def verdict_lines(verdict: Verdict) -> list[str]:
    """Return the lines below the checks of a verdict: the runs by state, and what they say of the failure rate."""
    return [text for text in (verdict.account, verdict.failure_rate) if text]


def _size_and_seed(seeds: Sequence[str]) -> tuple[Column, Column]:
    """Return the columns of what identifies a run of an arm; the name of a run stands in for an unknown seed."""
    numbers = all(seed.isdigit() or seed in (UNKNOWN, "all") for seed in seeds)
    return Column("size", number=True), Column("seed", number=numbers)


def _coloured(outcome: Outcome, text: str = "") -> Text:
    return Text(text or outcome.value, OUTCOME_STYLES[outcome])


def _analysis_table(title: str, columns: Sequence[Column], rows: Sequence[Row | Span]) -> FittedTable:
    return FittedTable(columns, rows, title=title, header_style="dim")
