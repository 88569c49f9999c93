"""A judgement for a terminal and as the founding document's hand-off. No torch here."""

import math
from collections.abc import Mapping, Sequence

from rich.markup import escape
from rich.table import Table

from bitnetctl.analysis import Run
from bitnetctl.report.columns import UNKNOWN, printable
from bitnetctl.report.tables import OUTCOME_STYLES
from bitnetctl.verdict import Combined, Outcome, Verdict

MILESTONES = (0.05, 0.25, 0.3, 0.5, 1.0)
"""The founding document's 1k, 5k, 6k, 10k and 20k as shares of its 20,000 steps."""

_NEXT = {
    Outcome.SUPPORTED: "train longer, larger or with more seeds before relying on it; then look at the text it writes",
    Outcome.REFUTED: (
        "find the cause with `bitnetctl sweep --plan root-cause` and `bitnetctl analyze`; "
        "a cure to try: `-i decoupled-decay`"
    ),
    Outcome.INCONCLUSIVE: "finish the missing runs, or add seeds with `--seeds 6`",
    Outcome.INVALID: "change the set-up: a probe that can show the threshold, or a reference run that works",
}


def milestones(run: Run, column: str) -> list[float | None]:
    """Return a column at each milestone: at the first evaluation at or after it, None where there is none yet."""
    planned = run.planned_steps or run.final_step
    # an evaluation a little later belongs to the milestone, one beyond the next milestone does not
    nexts = [*MILESTONES[1:], math.inf]
    found: list[float | None] = []
    for share, following in zip(MILESTONES, nexts, strict=True):
        place = int(run.steps.searchsorted(planned * share))
        reached = place < len(run.steps) and run.steps[place] < planned * following
        found.append(run.records.value(column, place) if reached else None)
    return found


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


def _trajectory(run: Run) -> list[str]:
    pairs = zip(milestones(run, "UniquePredictions"), milestones(run, "HeldOutLoss"), strict=True)
    return [_whole(unique) + ("" if loss is None else f" · {loss:.2f}") for unique, loss in pairs]


def _ordered(runs: Sequence[Run]) -> list[Run]:
    return sorted(runs, key=lambda run: (run.size or 0, run.seed or 0))


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


def next_step(outcome: Outcome) -> str:
    """Say in plain words what to try after an outcome."""
    return _NEXT[outcome]


def handoff(runs: Sequence[Run], judged: Mapping[str, Combined], overall: Outcome) -> str:
    """Return the founding document's hand-off as Markdown: hardware, duration, figures, status, assessment."""
    lines = ["# Verification report", "", f"**Overall: {overall.value}**", ""]
    hardware = dict.fromkeys(run.manifest.device or UNKNOWN for run in runs if run.manifest)
    seconds = sum(run.manifest.elapsed_seconds for run in runs if run.manifest)
    versions = dict.fromkeys(
        ", ".join(f"{name} {run.manifest.versions.get(name, UNKNOWN)}" for name in ("bitnetctl", "torch"))
        for run in runs
        if run.manifest
    )
    lines += [
        f"- Hardware: {_cell('; '.join(hardware) or UNKNOWN)}",
        f"- Versions: {_cell('; '.join(versions) or UNKNOWN)}",
        f"- Duration of the runs, summed: {f'{seconds / 60:.1f} min' if seconds else UNKNOWN}",
        "",
    ]
    for arm, combined in judged.items():
        of_arm = [run for run in runs if (run.arm or "unknown") == arm]
        lines += [f"## Arm {_cell(arm)}: {combined.outcome.value}", ""]
        heads = " | ".join(f"{share:.0%}" for share in MILESTONES)
        lines += [f"| size | seed | {heads} | status |", "|---" * (len(MILESTONES) + 3) + "|"]
        for run in _ordered(of_arm):
            cells = " | ".join(_trajectory(run))
            status = run.manifest.status if run.manifest else f"ends at step {run.final_step:,}"
            lines.append(f"| {_plain(run.size)} | {_plain(run.seed)} | {cells} | {status} |")
        lines.append("")
        for verdict in combined.verdicts:
            lines.append(f"### {_cell(verdict.criteria)}: {verdict.outcome.value}")
            lines += ["", f"Confidence: {_cell(verdict.confidence or UNKNOWN)}", ""]
            if verdict.evidence:
                lines += [f"Evidence: {_cell(verdict.evidence)}", ""]
            lines += [f"- {_cell(reason)}" for reason in verdict.reasons]
            lines += [f"- note: {_cell(note)}" for note in verdict.notes]
            lines.append("")
        if combined.disagreement:
            lines += [_cell(combined.disagreement), ""]
    lines += [f"Next: {next_step(overall)}", ""]
    return "\n".join(lines)


def _coloured(outcome: Outcome) -> str:
    return f"[{OUTCOME_STYLES[outcome]}]{outcome.value}[/]"


def _cell(text: str) -> str:
    """Return text that stays one line and no markup in Markdown."""
    return printable(text).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def _plain(value: int | None) -> str:
    return UNKNOWN if value is None else str(value)


def _whole(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:,.0f}"
