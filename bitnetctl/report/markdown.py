"""The analysis as Markdown that GitHub renders; names of runs stay text."""

import re
from collections.abc import Iterable, Sequence

from bitnetctl.analysis.study import Study
from bitnetctl.report.columns import (
    COLLAPSE,
    EFFECT_HEADER,
    END,
    FACTOR_HEADER,
    MEANS,
    SummaryColumn,
    SummaryRow,
    arm_rows,
    effect_cells,
    factor_cells,
    p_text,
    run_rows,
    signed,
)
from bitnetctl.report.escape import defused, printable

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~!&])")


def markdown_report(study: Study) -> str:
    """Return the whole analysis: arms, effects, factors, agreement of metrics, runs, notes."""
    count = len(study.runs)
    lines = ["# bitnetctl analysis", "", f"{count} run{'s' * (count != 1)}.", ""]
    rows = run_rows(study.summaries)
    grouped = arm_rows(study.summaries, study.arms)
    if len(grouped) < len(rows):
        lines += [
            "## Arms",
            "",
            MEANS,
            "",
        ]
        lines += _summary_table(grouped, (*COLLAPSE, *END), seed="runs")
    lines += _effects(study) + _factors(study) + _agreement(study)
    lines += ["## Runs", "", *_summary_table(rows, (*COLLAPSE, *END), seed="seed")]
    lines += [f"- {column.header}: {column.meaning}" for column in (*COLLAPSE, *END)] + [""]
    if study.notes:
        lines += ["## Notes", "", *(f"- {escape(note)}" for note in study.notes), ""]
    return "\n".join(lines)


def escape(text: str) -> str:
    """Return text that Markdown shows as it is, in a table cell too."""
    return _SPECIAL.sub(r"\\\1", printable(text))


def _cell(text: str) -> str:
    """Return text for a cell, which may be pasted into a spreadsheet."""
    return escape(defused(text))


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], *, texts: int = 1) -> list[str]:
    """Return a table whose first `texts` columns are left-aligned."""
    rule = [":--"] * texts + ["--:"] * (len(header) - texts)
    return ["| " + " | ".join(cells) + " |" for cells in (header, rule, *rows)] + [""]


def _summary_table(rows: Sequence[SummaryRow], columns: Sequence[SummaryColumn], *, seed: str) -> list[str]:
    header = ("arm", "size", seed, *(column.header for column in columns), "state")
    return _table(
        header,
        [
            (_cell(row.arm), row.size, row.seed, *(row.text(column) for column in columns), _cell(row.state))
            for row in rows
        ],
    )


def _effects(study: Study) -> list[str]:
    if not study.effects:
        return []
    rows = effect_cells(study.effects, _cell)
    return ["## Effects", "", "Arm minus baseline, paired by size and seed.", "", *_table(EFFECT_HEADER, rows, texts=4)]


def _factors(study: Study) -> list[str]:
    if not study.outcomes:
        return []
    lines = ["## Factors", "", *(f"- {escape(outcome.sentence)}" for outcome in study.outcomes), ""]
    return lines + _table(FACTOR_HEADER, factor_cells(study.outcomes, _cell), texts=3)


def _agreement(study: Study) -> list[str]:
    if not study.agreements:
        return []
    rows = [
        (found.metric, found.when, str(found.runs), signed(found.tau), p_text(found.p)) for found in study.agreements
    ]
    lines = ["## Agreement with held-out loss", "", *_table(("metric", "at", "runs", "τ-b", "p"), rows, texts=2)]
    return [*lines, *(f"- {escape(found.sentence)}" for found in study.agreements), ""]
