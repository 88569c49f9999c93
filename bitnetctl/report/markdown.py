"""The analysis as GitHub-flavoured Markdown; names of runs are escaped."""

from collections.abc import Iterable, Sequence

from bitnetctl.analysis import wording
from bitnetctl.analysis.study import Study
from bitnetctl.analysis.text_quality import INFORMATION_ONLY, MEASURES
from bitnetctl.escape import markdown_cell, markdown_line, markdown_text
from bitnetctl.report.columns import (
    MEANS,
    SUMMARY,
    RunRow,
    agreement_cells,
    arm_rows,
    effect_cells,
    factor_cells,
    run_rows,
)
from bitnetctl.report.texts import TextReport, continuations_of, meanings, title_of
from bitnetctl.units import plural


def markdown_report(study: Study) -> str:
    """Return the whole analysis: findings, arms, effects, factors, agreement of metrics, runs, notes."""
    lines = ["# bitnetctl analysis", "", f"{plural(len(study.runs), 'run')}.", ""]
    if study.findings:
        lines += ["## Findings", "", *(f"- {markdown_text(finding.sentence)}" for finding in study.findings), ""]
    rows = run_rows(study.summaries)
    grouped = arm_rows(study.summaries, study.arms)
    if len(grouped) < len(rows):
        lines += ["## Arms", "", MEANS, "", *_summary_table(grouped, seed="runs")]
    lines += _effects(study) + _factors(study) + _agreement(study)
    lines += ["## Runs", "", *_summary_table(rows, seed="seed")]
    lines += [f"- {column.header}: {column.meaning}" for column in SUMMARY] + [""]
    texts = TextReport.of(study.runs, [summary.arm for summary in study.summaries])
    lines += text_section(texts)
    if study.notes:
        lines += ["## Notes", "", *(f"- {markdown_text(note)}" for note in study.notes), ""]
    return "\n".join(lines)


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], texts: int | None = None) -> list[str]:
    """Return a table and a blank line; its first `texts` columns align left, the others right (None: unspecified)."""
    head, *body = ("| " + " | ".join(cells) + " |" for cells in (header, *rows))
    rule = ["---"] * len(header)
    if texts is not None:
        rule = [" :-- "] * texts + [" --: "] * (len(header) - texts)
    return [head, f"|{'|'.join(rule)}|", *body, ""]


def text_section(report: TextReport | None) -> list[str]:
    """Return the section on text that runs wrote; empty where none did."""
    if report is None:
        return []
    cells = [(markdown_cell(arm), size, runs, *values) for arm, size, runs, values in report.rows()]
    header = ("text of", "size", "runs", *(one.header for one in MEASURES))
    lines = ["## What they write", "", f"Median (lowest to highest) over the runs. {report.settings}.", ""]
    lines += markdown_table(header, cells, texts=1)
    lines += [*(f"- {text}" for text in (*meanings(), INFORMATION_ONLY)), ""]
    for one in report.shown:
        if one.samples.texts:
            lines += [f"**{markdown_line(one.arm)}** ({title_of(one)})", "", "```text"]
            # a line that begins with a name closes no fence, and nothing in it is a link
            lines += [f"{name:<8}{text}" for name, text in continuations_of(one.samples.texts[0])]
            lines += ["```", ""]
    return [*lines, *([report.more, ""] if report.more else [])]


def _summary_table(rows: Sequence[RunRow], *, seed: str) -> list[str]:
    header = ("arm", "size", seed, *(column.header for column in SUMMARY), "state")
    cells = [
        (markdown_cell(row.arm), row.size, row.seed, *map(row.text, SUMMARY), markdown_cell(row.state)) for row in rows
    ]
    return markdown_table(header, cells, texts=1)


def _effects(study: Study) -> list[str]:
    if not study.effects:
        return []
    hint = wording.effects_hint(study.effects[0].tests)
    return ["## Effects", "", hint, "", *markdown_table(*effect_cells(study.effects, markdown_cell))]


def _factors(study: Study) -> list[str]:
    if not study.outcomes:
        return []
    sentences = [f"- {markdown_text(outcome.sentence)}" for outcome in study.outcomes]
    hint = wording.factors_hint(study.outcomes[0].tests)
    return ["## Factors", "", *sentences, "", hint, "", *markdown_table(*factor_cells(study.outcomes, markdown_cell))]


def _agreement(study: Study) -> list[str]:
    if not study.agreements:
        return []
    table = markdown_table(*agreement_cells(study.agreements, markdown_cell))
    sentences = [f"- {markdown_text(agreement.sentence)}" for agreement in study.agreements]
    return ["## Agreement with held-out loss", "", wording.AGREEMENT_HINT, "", *table, *sentences, ""]
