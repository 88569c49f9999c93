"""Tables for a terminal, readable at 80 columns."""

import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from bitnetctl.analysis import wording
from bitnetctl.analysis.agreement import Agreement
from bitnetctl.analysis.anova import OutcomeAnalysis, Term
from bitnetctl.analysis.effects import METRICS, ArmEffect
from bitnetctl.analysis.stats import is_significant
from bitnetctl.records import Run
from bitnetctl.report.columns import (
    COLLAPSE,
    END,
    UNKNOWN,
    SummaryColumn,
    SummaryRow,
    difference,
    format_value,
    interval,
    p_cells,
    pairs_text,
)
from bitnetctl.report.escape import printable
from bitnetctl.report.trajectory import MILESTONES, seed_cell, trajectory_rows
from bitnetctl.units import gibibytes
from bitnetctl.verdict import Outcome, Verdict

OUTCOME_STYLES = {
    Outcome.SUPPORTED: "green",
    Outcome.REFUTED: "red",
    Outcome.INCONCLUSIVE: "yellow",
    Outcome.INVALID: "magenta",
}
MOST_TERMS = 10
MOST_LEVELS = 8
# the + between two interventions of an arm, not that of a number such as 1e+3
_PLUS = re.compile(r"\+(?=[A-Za-z])")


def key_value_table(title: str, values: Mapping[str, str]) -> Table:
    table = _table(title)
    table.show_header = False
    for name, value in values.items():
        table.add_row(name, escape(value))
    return table


def sweep_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return a row for every run of a sweep; `rows` are those of `bitnetctl sweep --json`."""
    table = _table()
    _add_numbers(table, "size")
    table.add_column("arm")
    _add_numbers(table, "seed")
    table.add_column("status", no_wrap=True)
    _add_numbers(table, "unique", "held-out")
    for row in rows:
        final = row["final"] or {}
        failed = row["status"] in ("failed", "damaged", "diverged")
        table.add_row(
            str(row["size"]),
            escape(row["arm"]),
            str(row["seed"]),
            f"[red]{row['status']}[/]" if failed else row["status"],
            format_value(final.get("UniquePredictions"), ",.0f"),
            format_value(final.get("HeldOutLoss"), ".3f"),
        )
    return table


def packs_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return a row for every model shape of a planned sweep; `rows` are those of `sweep --dry-run --json`."""
    table = _table()
    _add_numbers(table, "size", "steps", "runs", "packs", "in a pack", "memory", "time")
    table.add_column("arms")
    for row in rows:
        table.add_row(
            str(row["size"]),
            f"{row['steps']:,}",
            str(row["runs"]),
            str(row["packs"]),
            str(row["runs_in_a_pack"]),
            gibibytes(row["memory_bytes"]),
            f"{row['seconds'] / 60:.1f} min",
            escape(", ".join(row["arms"])),
        )
    return table


def collapse_table(rows: Sequence[SummaryRow]) -> Table:
    """Return collapse and recovery of every run, or of the runs of each arm."""
    return _summary_table("Stage 1 and the boundary", rows, COLLAPSE)


def end_table(rows: Sequence[SummaryRow]) -> Table:
    """Return the final metrics of every run and its ternary weights, or their means over the runs of each arm."""
    return _summary_table("The end", rows, END)


def _summary_table(title: str, rows: Sequence[SummaryRow], columns: Sequence[SummaryColumn]) -> Table:
    table = _analysis_table(title)
    table.add_column("arm", overflow="fold")
    _add_numbers(table, "size", "runs" if rows[0].grouped else "seed")
    # headers wrap at every word to leave room for the arm
    _add_numbers(table, *(column.header.replace(" ", "\n").replace("-", "-\n") for column in columns))
    for row in rows:
        state = f"\n[{'red' if row.failed else 'dim'}]{escape(row.state)}[/]" if row.state else ""
        table.add_row(_label(row.arm) + state, row.size, row.seed, *(row.text(column) for column in columns))
    return table


def effects_table(effects: Sequence[ArmEffect]) -> Table:
    """Return every arm's differences from its baseline: in how many seeds, how large, and the tests."""
    table = _analysis_table(wording.EFFECTS_TITLE)
    table.add_column("metric", overflow="fold")
    _add_numbers(table, "better\n: worse", "mean\ndiff.", "95 % Student\ninterval", "p", "p\n(Holm)")
    for arm in effects:
        table.add_row(f"[bold]{_label(arm.arm)}[/]\n[dim]− {_label(arm.baseline)}: {pairs_text(arm)}[/]")
        for metric, (name, _) in METRICS.items():
            effect = arm.effects[metric]
            missing = f" [dim]({effect.unknown_pairs} unknown)[/]" if effect.unknown_pairs else ""
            seeds = f"{effect.better} : {effect.worse}" if effect.seeds else UNKNOWN
            table.add_row(f"  {name}{missing}", seeds, difference(effect), interval(effect), *p_cells(effect))
    return table


def factors_table(outcomes: Sequence[OutcomeAnalysis]) -> Table:
    """Return terms by descending eta squared, with the mean of each level, then all terms together and the seeds."""
    table = _analysis_table("Factors: η² (* p < 0.05 after Holm) and means")
    table.add_column("term", overflow="fold")
    _add_numbers(table, "collapsed\nfraction", "stage 1\nloss", "final\nloss")
    by_outcome = [{term.name: term for term in outcome.terms} for outcome in outcomes]
    terms = {name: [of_outcome.get(name) for of_outcome in by_outcome] for name in itertools.chain(*by_outcome)}
    largest = {
        name: max((term.eta_squared or 0.0 for term in of_name if term), default=0.0) for name, of_name in terms.items()
    }
    for name in sorted(terms, key=lambda name: -largest[name])[:MOST_TERMS]:
        table.add_row(f"[bold]{_label(name)}[/]", *map(_eta_squared, terms[name]))
        if all(term is None or len(term.factors) == 1 for term in terms[name]):
            _add_levels(table, outcomes, terms[name])
    if len(terms) > MOST_TERMS:
        table.add_row(f"… and {len(terms) - MOST_TERMS} weaker ones")
    if len(terms) > 1:
        table.add_row("all terms (R²)", *map(_r_squared, outcomes))
    if any(outcome.seed_eta_squared is not None for outcome in outcomes):
        table.add_row("seeds", *(format_value(outcome.seed_eta_squared, ".0%") for outcome in outcomes))
    return table


def _add_levels(table: Table, outcomes: Sequence[OutcomeAnalysis], terms: Sequence[Term | None]) -> None:
    """Add a row for each level of one factor; `terms` has its term in every outcome, in the order of `outcomes`."""
    levels = dict.fromkeys(level for term in terms if term for level in term.means)
    for level in list(levels)[:MOST_LEVELS]:
        means = (term.means.get(level) if term else None for term in terms)
        cells = (format_value(mean, outcome.format_spec) for mean, outcome in zip(means, outcomes, strict=True))
        table.add_row(f"  {_label(level)}", *cells, style="dim")
    if len(levels) > MOST_LEVELS:
        table.add_row(f"  … and {len(levels) - MOST_LEVELS} more levels", style="dim")


def _eta_squared(term: Term | None) -> str:
    if term is None or term.eta_squared is None:
        return ""
    return f"[bold]{term.eta_squared:.0%}{'*' * term.is_significant}[/]"


def _r_squared(outcome: OutcomeAnalysis) -> str:
    return format_value(outcome.r_squared, ".0%") + "*" * is_significant(outcome.p_holm)


def agreement_table(agreements: Sequence[Agreement]) -> Table:
    """Return how each metric ranks the runs against the held-out loss."""
    table = _analysis_table("Agreement with held-out loss (Kendall τ-b)")
    table.add_column("metric", no_wrap=True)
    table.add_column("at", no_wrap=True)
    _add_numbers(table, "runs", "τ-b", "p", "p\n(Holm)")
    for agreement in agreements:
        tau = agreement.tau
        cells = (agreement.metric, agreement.when, str(agreement.runs), format_value(tau, "+.2f"))
        table.add_row(*cells, *p_cells(agreement), style="yellow" if tau is not None and tau < 0 else "")
    return table


def trajectory_table(arm: str, runs: Sequence[Run]) -> Table:
    """Return unique predictions and, where known, held-out loss of every run of an arm at the milestones."""
    table = _table(escape(f"{printable(arm)}: unique predictions · held-out loss"), title_style="bold")
    table.add_column("size", justify="right")
    table.add_column("seed", justify="right")
    _add_numbers(table, *(f"{fraction:.0%}" for fraction in MILESTONES))
    table.add_column("of", justify="right")
    for run, cells in trajectory_rows(runs):
        ceiling, inferred = run.ceiling or (None, False)
        limit = format_value(ceiling, ",.0f") + "?" * inferred
        table.add_row(*(escape(printable(cell)) for cell in cells), limit)
    return table


_OUTCOMES_OF_SEEDS = {
    Outcome.SUPPORTED: "healthy",
    Outcome.REFUTED: "failed",
    Outcome.INCONCLUSIVE: "undecided",
    Outcome.INVALID: "invalid",
}


def checks_table(verdict: Verdict) -> Table:
    """Return what is said over seeds, then every run with its decisive checks; the decisive runs first."""
    table = _table(f"{escape(verdict.criteria)}: {_coloured(verdict.outcome)}")
    table.add_column("size", justify="right")
    table.add_column("seed", justify="right")
    table.add_column("outcome", no_wrap=True)
    table.add_column("because", ratio=1)
    judged = {run.run for run in verdict.runs}
    over_seeds = [result for result in verdict.results if result.run not in judged]
    for result in sorted(over_seeds, key=lambda result: result.outcome is not verdict.outcome):
        seed = "all" if result.run is None else format_value(result.seed)
        because = escape(printable(result.reason))
        table.add_row(format_value(result.size), seed, _coloured(result.outcome), because)
    by_rate = verdict.rule.get("rule") == "rate"
    places = Counter((run.size, run.seed) for run in verdict.runs)
    for run in sorted(verdict.runs, key=lambda run: (run.outcome is not verdict.outcome, run.size or 0)):
        name = _OUTCOMES_OF_SEEDS[run.outcome] if by_rate else run.outcome.value
        outcome = _coloured(run.outcome, name)
        seed = escape(printable(seed_cell(run.size, run.seed, run.run, places)))
        table.add_row(format_value(run.size), seed, outcome, escape(printable(run.reason)))
    return table


def verdict_lines(verdict: Verdict) -> list[str]:
    """Return the lines below the checks of a verdict: the runs by state, and what they say of the failure rate."""
    return [text for text in (verdict.account, verdict.failure_rate) if text]


def _coloured(outcome: Outcome, text: str = "") -> str:
    return f"[{OUTCOME_STYLES[outcome]}]{text or outcome.value}[/]"


def _label(text: str) -> str:
    """Escape the name of an arm, with a space before each `+` so that it wraps between interventions."""
    return escape(_PLUS.sub(" +", printable(text)))


def _table(title: str | None = None, *, title_style: str | None = None, header_style: str = "bold") -> Table:
    return Table(
        title=title,
        title_justify="left",
        title_style=title_style,
        box=None,
        padding=(0, 2, 0, 0),
        header_style=header_style,
    )


def _analysis_table(title: str) -> Table:
    return _table(title, title_style="bold", header_style="dim")


def _add_numbers(table: Table, *headers: str) -> None:
    """Add columns of numbers: aligned right and never wrapped."""
    for header in headers:
        table.add_column(header, justify="right", no_wrap=True)
