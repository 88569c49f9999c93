"""Tables for a terminal, readable at 80 columns."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from bitnetctl.analysis.agreement import Agreement
from bitnetctl.analysis.anova import SIGNIFICANT, OutcomeAnalysis, Term
from bitnetctl.analysis.effects import METRICS, ArmEffect
from bitnetctl.records import Run
from bitnetctl.report.columns import (
    COLLAPSE,
    END,
    UNKNOWN,
    SummaryColumn,
    SummaryRow,
    interval,
    p_text,
    pairs_text,
    signed,
)
from bitnetctl.report.escape import printable
from bitnetctl.report.trajectory import MILESTONES, _ordered, _plain, _trajectory
from bitnetctl.verdict import Outcome, Verdict


def key_value_table(title: str, facts: Mapping[str, str]) -> Table:
    """Return names and values in two columns."""
    table = Table(title=title, title_justify="left", box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, value in facts.items():
        table.add_row(name, escape(value))
    return table


OUTCOME_STYLES = {
    Outcome.SUPPORTED: "green",
    Outcome.REFUTED: "red",
    Outcome.INCONCLUSIVE: "yellow",
    Outcome.INVALID: "magenta",
}
_JOINT = re.compile(r"\+(?=[A-Za-z])")
MOST_TERMS = 10
MOST_LEVELS = 8


def sweep_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return a table with a line for every run of a sweep, as `bitnetctl sweep --json` describes it."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("size", "arm", "seed", "status", "unique", "held-out"):
        table.add_column(name, justify="left" if name in ("arm", "status") else "right", no_wrap=name != "arm")
    for row in rows:
        final = row["final"] or {}
        failed = row["status"] in ("failed", "damaged", "diverged")
        table.add_row(
            str(row["size"]),
            escape(row["arm"]),
            str(row["seed"]),
            f"[red]{row['status']}[/]" if failed else row["status"],
            _figure(final.get("UniquePredictions"), ",.0f"),
            _figure(final.get("HeldOutLoss"), ".3f"),
        )
    return table


def packs_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return a table with a line for every shape of a planned sweep, as `sweep --dry-run --json` describes it."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("size", "steps", "runs", "packs", "in a pack", "memory", "time"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("arms")
    for row in rows:
        table.add_row(
            str(row["size"]),
            f"{row['steps']:,}",
            str(row["runs"]),
            str(row["packs"]),
            str(row["runs_in_a_pack"]),
            f"{row['memory_bytes'] / 2**30:.2f} GiB",
            f"{row['seconds'] / 60:.1f} min",
            escape(", ".join(row["arms"])),
        )
    return table


def _figure(value: float | str | None, form: str) -> str:
    """Format a figure; unknown is a dash, and what is not finite arrives as text."""
    if value is None:
        return "–"
    return value if isinstance(value, str) else format(value, form)


def collapse_table(rows: Sequence[SummaryRow], *, grouped: bool = False) -> Table:
    """Return how deep every run fell in stage 1 and whether it came back; `grouped` for rows of whole arms."""
    return _summary_table("Stage 1 and the boundary", rows, COLLAPSE, grouped=grouped)


def end_table(rows: Sequence[SummaryRow], *, grouped: bool = False) -> Table:
    """Return where every run ended and how its ternary weights fare."""
    return _summary_table("The end", rows, END, grouped=grouped)


def _summary_table(title: str, rows: Sequence[SummaryRow], columns: Sequence[SummaryColumn], *, grouped: bool) -> Table:
    table = _table(title)
    table.add_column("arm", overflow="fold")
    for name in ("size", "runs" if grouped else "seed"):
        table.add_column(name, justify="right", no_wrap=True)
    for column in columns:
        # two words stand above each other, so that the arm has room
        table.add_column(column.header.replace(" ", "\n").replace("-", "-\n"), justify="right", no_wrap=True)
    for row in rows:
        state = f"\n[{'red' if row.failed else 'dim'}]{escape(row.state)}[/]" if row.state else ""
        table.add_row(_label(row.arm) + state, row.size, row.seed, *(row.text(column) for column in columns))
    return table


def effects_table(effects: Sequence[ArmEffect]) -> Table:
    """Return every arm's differences from its baseline."""
    table = _table("Arm minus baseline, paired by size and seed")
    table.add_column("figure", overflow="fold")
    for name in ("difference", "95 % interval", "p", "p (Holm)"):
        table.add_column(name, justify="right", no_wrap=True)
    for arm in effects:
        table.add_row(f"[bold]{_label(arm.arm)}[/]\n[dim]− {_label(arm.baseline)}: {pairs_text(arm)}[/]")
        for metric, (name, _) in METRICS.items():
            effect = arm.effects[metric]
            missing = f" [dim]({effect.unknown_pairs} unknown)[/]" if effect.unknown_pairs else ""
            table.add_row(
                f"  {name}{missing}", signed(effect.mean), interval(effect), p_text(effect.p), p_text(effect.p_holm)
            )
    return table


def factors_table(outcomes: Sequence[OutcomeAnalysis]) -> Table:
    """Return factors, the strongest first, with the variance that each explains and the mean of each of its levels."""
    table = _table("Factors: η² (* p < 0.05) and means")
    table.add_column("factor", overflow="fold")
    for name in ("collapsed\nshare", "stage 1\nloss", "final\nloss"):
        table.add_column(name, justify="right", no_wrap=True)
    names = dict.fromkeys(term.name for outcome in outcomes for term in outcome.terms)
    terms = {name: [_term(outcome, name) for outcome in outcomes] for name in names}
    strength = {
        name: max((term.eta_squared or 0.0 for term in found if term), default=0.0) for name, found in terms.items()
    }
    for name in sorted(names, key=lambda name: -strength[name])[:MOST_TERMS]:
        found = terms[name]
        table.add_row(f"[bold]{_label(name)}[/]", *(_explained(term) for term in found))
        if " × " in name:
            continue
        levels = dict.fromkeys(level for term in found if term for level in term.means)
        for level in list(levels)[:MOST_LEVELS]:
            means = (term.means.get(level) if term else None for term in found)
            cells = (_figure(mean, outcome.format_spec) for mean, outcome in zip(means, outcomes, strict=True))
            table.add_row(f"  {_label(level)}", *cells, style="dim")
        if len(levels) > MOST_LEVELS:
            table.add_row(f"  … and {len(levels) - MOST_LEVELS} more levels", style="dim")
    if len(names) > MOST_TERMS:
        table.add_row(f"… and {len(names) - MOST_TERMS} weaker ones")
    return table


def _term(outcome: OutcomeAnalysis, name: str) -> Term | None:
    return next((term for term in outcome.terms if term.name == name), None)


def _explained(term: Term | None) -> str:
    if term is None or term.eta_squared is None:
        return ""
    return f"[bold]{term.eta_squared:.0%}{'*' if term.p is not None and term.p < SIGNIFICANT else ''}[/]"


def agreement_table(agreements: Sequence[Agreement]) -> Table:
    """Return how each metric ranks the runs against the held-out loss."""
    table = _table("Agreement with held-out loss (Kendall τ-b)")
    table.add_column("metric", no_wrap=True)
    table.add_column("at", no_wrap=True)
    for name in ("runs", "τ-b", "p"):
        table.add_column(name, justify="right", no_wrap=True)
    for found in agreements:
        tau = UNKNOWN if found.tau is None else f"{found.tau:+.2f}"
        style = "yellow" if found.tau is not None and found.tau < 0 else ""
        table.add_row(found.metric, found.when, str(found.runs), tau, p_text(found.p), style=style)
    return table


def _table(title: str) -> Table:
    return Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=None,
        padding=(0, 2, 0, 0),
        header_style="dim",
    )


def _label(text: str) -> str:
    """Write an arm so that it breaks between its interventions."""
    return escape(_JOINT.sub(" +", printable(text)))


def trajectory_table(arm: str, runs: Sequence[Run]) -> Table:
    """Return unique predictions and, where known, held-out loss of every run of an arm at the milestones."""
    table = Table(title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0))
    table.title = escape(f"{printable(arm)}: unique predictions · held-out loss")
    table.add_column("size", justify="right")
    table.add_column("seed", justify="right")
    for share in MILESTONES:
        table.add_column(f"{share:.0%}", justify="right", no_wrap=True)
    table.add_column("of", justify="right")
    for run in _ordered(runs):
        ceiling = run.ceiling
        limit = UNKNOWN if ceiling is None else f"{ceiling[0]:,.0f}{'?' if ceiling[1] else ''}"
        table.add_row(_plain(run.size), _plain(run.seed), *_trajectory(run), limit)
    return table


def checks_table(verdict: Verdict) -> Table:
    """Return every check of a verdict with figure and threshold, the deciding ones first."""
    table = Table(title=f"{escape(verdict.criteria)}: {_coloured(verdict.outcome)}", title_justify="left", box=None)
    table.padding = (0, 2, 0, 0)
    table.add_column("size", justify="right")
    table.add_column("seed", justify="right")
    table.add_column("outcome", no_wrap=True)
    table.add_column("because", ratio=1)
    shown = sorted(verdict.results, key=lambda result: (result.outcome is not verdict.outcome, result.size or 0))
    for result in shown:
        if result.outcome is Outcome.SUPPORTED and result.supports is None:
            continue
        seed = "all" if result.run is None else _plain(result.seed)
        table.add_row(_plain(result.size), seed, _coloured(result.outcome), escape(printable(result.reason)))
    return table


def _coloured(outcome: Outcome) -> str:
    return f"[{OUTCOME_STYLES[outcome]}]{outcome.value}[/]"
