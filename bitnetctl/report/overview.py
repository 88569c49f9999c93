"""What `bitnetctl analyze` prints: the findings and one table of arms, or every table and plot."""

import math
from collections.abc import Iterable, Iterator, Sequence

from rich.console import Console
from rich.text import Text

from bitnetctl.analysis import wording
from bitnetctl.analysis.effects import ArmEffect
from bitnetctl.analysis.findings import Finding, Kind
from bitnetctl.analysis.study import Study
from bitnetctl.records.metrics import finite
from bitnetctl.report.columns import (
    COLLAPSE,
    END,
    TRAINING_LOSS,
    RunRow,
    arm_rows,
    run_rows,
    signed,
)
from bitnetctl.report.fitted import Column, FittedTable, Row, Span
from bitnetctl.report.fold import fold
from bitnetctl.report.plots import plots
from bitnetctl.report.terminal import agreement_table, collapse_table, effects_table, end_table, factors_table
from bitnetctl.report.texts import TextReport, notes_of, text_lines, text_table
from bitnetctl.units import UNKNOWN, plural

MOST_RUNS = 24
"""Above it the details have a row for each arm and size, not for each run."""
MOST_ROWS = 24
"""Most rows of the table of arms without details."""
MOST_FINDINGS: dict[Kind, int] = {"arm": 8, "collapse": 8, "factor": 4, "metric": 3, "data": 4}
"""Most findings of a kind without details."""

_PLOT_WIDTHS = (30, 120)
# below this width there is no room for the kind of a finding beside it
_NARROW = 60
_LABEL = 10
_COLLAPSES = (COLLAPSE[1], COLLAPSE[2], COLLAPSE[3])


def print_study(study: Study, console: Console, *, details: bool) -> None:
    """Print the findings, then the table of arms or, with `details`, everything."""
    width = console.width
    _print(console, _folded(_headline(study), width, "bold"))
    console.print()
    _print(console, finding_lines(study.findings, width, shortened=not details))
    console.print()
    if details:
        _details(study, console)
    else:
        console.print(_arms_table(study))
        _texts(study, console)
        more = "more: --details (every run, effects, factors, metrics, curves, notes) · --json · --html FILE"
        console.print()
        _print(console, _folded(more, width, "dim"))


def finding_lines(findings: Sequence[Finding], width: int, *, shortened: bool = True) -> list[Text]:
    """Return the findings by kind, each with its cautions below it; one that a whole kind shares stands once."""
    lines: list[Text] = []
    for kind, most in MOST_FINDINGS.items():
        of_kind = [finding for finding in findings if finding.kind == kind]
        if shortened and len(of_kind) > most:
            # what is told from chance and the worst first, else in the order of the arms
            of_kind.sort(key=lambda finding: (not finding.told, -(finding.collapsed or 0)))
            if kind == "collapse":
                # arms that did not collapse are counted
                most = min(most, sum(bool(finding.collapsed) for finding in of_kind))
        shown = of_kind[:most] if shortened else of_kind
        shared = _shared(of_kind)
        parts: list[tuple[str, str]] = []
        for finding in shown:
            own = [caution for caution in finding.cautions if caution not in shared]
            parts += [(finding.statement, "")] + [("; ".join(own), "dim")] * bool(own)
        rest = of_kind[len(shown) :]
        if rest:
            parts.append((_not_shown(kind, rest, among_others=bool(shown)), "dim"))
        if shared:
            parts.append((f"{'each' if len(shown) > 1 else ''}: {'; '.join(shared)}".removeprefix(": "), "dim"))
        lines += _labelled(kind, parts, width)
    return lines


def _not_shown(kind: Kind, findings: Sequence[Finding], *, among_others: bool) -> str:
    """Return how many more findings there are, and what they come to."""
    more = f"… and {len(findings)} more (--details)" if among_others else f"{len(findings)} arms (--details)"
    if kind == "arm":
        return f"{more}, {sum(bool(finding.told) for finding in findings) or 'none'} told from chance"
    if kind == "collapse":
        runs = sum(one.runs or 0 for one in findings)
        return f"{more}: {sum(one.collapsed or 0 for one in findings)} of {plural(runs, 'run')} collapsed"
    return more


def _shared(findings: Sequence[Finding]) -> list[str]:
    """Return the cautions that several findings have in common."""
    if len(findings) < 2:
        return []
    return [caution for caution in findings[0].cautions if all(caution in finding.cautions for finding in findings)]


def _labelled(kind: str, parts: Iterable[tuple[str, str]], width: int) -> Iterator[Text]:
    indent = 2 if width < _NARROW else _LABEL
    label = "•" if width < _NARROW else kind
    for text, style in parts:
        for line in fold(text, width - indent):
            start = label.ljust(indent)
            if width < _NARROW and style:
                start = " " * indent
            yield Text.assemble((start, "bold"), (line.plain, style))
            label = ""
        if width < _NARROW:
            label = "•"


def _headline(study: Study) -> str:
    """Return the numbers of runs, arms, sizes and seeds, and the steps."""
    runs = study.summaries
    # a run without an arm is shown as one of its own
    arms = {summary.arm for run, summary in zip(study.runs, runs, strict=True) if run.arm is not None}
    counts = (
        (len(arms), "arm"),
        (len({run.size for run in runs} - {None}), "size"),
        (len({run.seed for run in runs} - {None}), "seed"),
    )
    known = [count for count in counts if count[0]]
    is_grid = len(known) == len(counts) and math.prod(count for count, _ in counts) == len(runs)
    parts = (" × " if is_grid else ", ").join(plural(*count) for count in known)
    lengths = sorted({run.planned_steps if run.planned_steps is not None else run.final_step for run in runs})
    steps = f"{lengths[0]:,}" if len(lengths) == 1 else f"{lengths[0]:,} to {lengths[-1]:,}"
    return f"{plural(len(runs), 'run')}{': ' if parts else ''}{parts}, {steps} steps"


def _arms_table(study: Study) -> FittedTable:
    """Return a row for every arm and size: means, the difference from the baseline, collapses."""
    rows = arm_rows(study.summaries, study.arms)
    losses = any(run.final_held_out_loss is not None for run in study.summaries)
    level = END[:3] if losses else (TRAINING_LOSS, END[2])
    columns = [column for column in (*level, *_COLLAPSES) if any(row.text(column) != UNKNOWN for row in rows)]
    by_arm = {arm.arm: arm for arm in study.effects}
    heads = [Column("arm"), Column("size", number=True), Column("runs", number=True)]
    heads += [Column(column.title(grouped=True), column.importance, number=True) for column in columns]
    if by_arm and losses:
        heads.insert(4, Column("vs base", 8, number=True))
    lines: list[Row | Span] = []
    for row in rows[:MOST_ROWS]:
        cells = [row.arm, row.size, row.seed, *(row.text(column) for column in columns)]
        if by_arm and losses:
            cells.insert(4, _against_baseline(by_arm.get(row.arm), row))
        lines.append(Row(cells))
        if row.state:
            lines.append(Span(row.state, "red" if row.failed else "dim", indent=2))
    if len(rows) > MOST_ROWS:
        lines.append(Span(f"… and {plural(len(rows) - MOST_ROWS, 'more row')} (--details)", "dim"))
    return FittedTable(heads, lines, header_style="dim", elsewhere="wider terminal, --details or --json")


def _against_baseline(arm: ArmEffect | None, row: RunRow) -> str:
    """Return the mean difference in held-out loss at one size; there is none for the baseline or if a run failed."""
    return "" if arm is None else signed(finite(arm.effects["final_held_out_loss"].mean_by_size.get(row.size)))


def _details(study: Study, console: Console) -> None:
    """Print every table with its meaning, the curves and the notes."""
    width = console.width

    for table, hints in _tables(study, width):
        console.print(table)
        for text, style in hints:
            _print(console, _folded(text, width, style))
        console.print()
    low, high = _PLOT_WIDTHS
    for plot in plots(study, width=max(low, min(high, width - 2)), color=console.color_system is not None):
        console.print(plot, no_wrap=True, overflow="crop")
        console.print()
    _texts(study, console, details=True)
    for note in study.notes:
        _print(console, _folded(f"note: {note}", width, "dim"))


def _texts(study: Study, console: Console, *, details: bool = False) -> None:
    """Print the measures of text that runs wrote and, with `details`, a continuation of each run."""
    arms = [summary.arm for summary in study.summaries]
    report = TextReport.of(study.runs, arms)
    if report is None:
        return
    if not details:
        console.print()
    console.print(text_table(report))
    for note in notes_of(report):
        _print(console, _folded(note, console.width, "dim"))
    for run, arm in zip(study.runs, arms, strict=True) if details else ():
        for line in text_lines(run, arm):
            _print(console, fold(line, console.width, indent=_LABEL))
    if details:
        console.print()


def _tables(study: Study, width: int) -> Iterator[tuple[FittedTable, list[tuple[str, str]]]]:
    """Yield every table with the lines below it and their styles."""
    grouped = len(study.summaries) > MOST_RUNS
    rows = arm_rows(study.summaries, study.arms) if grouped else run_rows(study.summaries)
    means = "means by arm and size, every run with --json or --html"
    for table, columns in ((collapse_table(rows), COLLAPSE), (end_table(rows), END)):
        left_out = table.left_out(width)
        shown = [(one.title(grouped=grouped), one.meaning) for one in columns]
        meanings = "; ".join(f"{title}: {meaning}" for title, meaning in shown if title not in left_out)
        yield table, [(means, "dim")] * grouped + [(meanings, "dim")]
    if study.effects:
        yield effects_table(study.effects), [(wording.effects_line(study.effects[0].tests), "dim")]
    if study.outcomes:
        sentences = dict.fromkeys(outcome.sentence for outcome in study.outcomes)
        yield factors_table(study.outcomes), [(f"• {sentence}", "") for sentence in sentences]
    known = [one for one in study.agreements if one.tau is not None]
    if known:
        sentences = dict.fromkeys(one.sentence for one in known if one.metric == "RandomPromptUnique")
        yield agreement_table(study.agreements), [(f"• {sentence}", "") for sentence in sentences]


def _folded(text: str, width: int, style: str) -> list[Text]:
    return [Text(line.plain, style) for line in fold(text, width)]


def _print(console: Console, lines: Iterable[Text]) -> None:
    for line in lines:
        console.print(line, no_wrap=True, overflow="ignore", crop=False)
