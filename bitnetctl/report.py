"""Tables of what was judged; no torch here."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from bitnetctl.config import RunConfig
from bitnetctl.verdict import Outcome, Verdict

OUTCOME_STYLES = {
    Outcome.SUPPORTED: "green",
    Outcome.REFUTED: "red",
    Outcome.INCONCLUSIVE: "yellow",
    Outcome.INVALID: "magenta",
}


def verdict_table(rows: Sequence[tuple[RunConfig, Verdict]]) -> Table:
    """Return a table with a line for every judged run."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("size", "step", "unique", "of", "verdict"):
        table.add_column(name, justify="left" if name == "verdict" else "right", no_wrap=True)
    table.add_column("because")
    for config, judged in rows:
        table.add_row(
            str(config.model.hidden_size),
            _whole(judged.final_step),
            _whole(judged.final_unique),
            _whole(judged.ceiling),
            f"[{OUTCOME_STYLES[judged.outcome]}]{judged.outcome.value}[/]",
            judged.reason,
        )
    return table


def _whole(value: float | None) -> str:
    return "unknown" if value is None else f"{value:,.0f}"


def sweep_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return a table with a line for every run of a sweep, as `bitnetctl sweep --json` describes it."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("size", "arm", "seed", "status", "unique", "held-out"):
        table.add_column(name, justify="left" if name in ("arm", "status") else "right", no_wrap=name != "arm")
    for row in rows:
        final = row["final"] or {}
        failed = row["status"] in ("failed", "diverged")
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
