"""Tables of what was judged; no torch here."""

from collections.abc import Sequence

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
