"""The head of the page: the verdict in a few lines, with a row for each arm and size."""

from collections.abc import Collection

from bitnetctl.escape import html_cell, html_text
from bitnetctl.report.head import for_arms, head_columns, other_arms, paragraphs
from bitnetctl.verdict import Summary


def summary_section(summary: Summary) -> str:
    """Return claim, verdict, table, reasons and the next step as one section."""
    outcome = summary.outcome.value
    beside = [other_arms(summary), summary.criteria, f"horizon: {summary.horizon}" if summary.horizon else ""]
    return (
        f'<section id="summary" class="card {outcome}"><p class="claim"><b>Claim</b> {html_text(summary.claim)}</p>'
        f'<h2><span class="badge">{outcome}</span>{html_text(for_arms(summary))}</h2>'
        f"<p>{html_text(summary.headline)}</p>"
        f"{''.join(f'<p class=hint>{html_text(text)}</p>' for text in beside if text)}"
        f"{_table(summary)}{_terms(summary)}</section>"
    )


def summary_details(summary: Summary) -> str:
    """Return table, reasons and notes of a verdict whose claim and conclusion stand above."""
    shown_above = {"so", "scale", "next"}
    body = f"<p>{html_text(summary.criteria)}</p>{_table(summary)}{_terms(summary, shown_above)}"
    return f'<section id="summary" class="details"><h2>The verdict in numbers</h2>{body}</section>'


def _terms(summary: Summary, left_out: Collection[str] = ()) -> str:
    terms = "".join(
        f"<dt>{name}</dt>{''.join(f'<dd>{html_text(text)}</dd>' for text in texts)}"
        for name, texts in paragraphs(summary)
        if texts and name not in left_out
    )
    return f"<dl>{terms}</dl>"


def _table(summary: Summary) -> str:
    columns = head_columns(summary, summary.rows)
    kinds = ["" if one.is_number else ' class="t"' for one in columns]
    heads = "".join(
        f'<th scope="col"{kind}>{html_text(one.header)}</th>' for one, kind in zip(columns, kinds, strict=True)
    )
    lines = []
    for row in summary.rows:
        # a number is no formula
        cells = [(html_text if one.is_number else html_cell)(one.text(row)) for one in columns]
        cells = [
            f'<span class="badge {row.verdict.value}">{cell}</span>' if one.header == "verdict" else cell
            for one, cell in zip(columns, cells, strict=True)
        ]
        asked = ' class="asked"' if row.is_asked and summary.other_arms else ""
        lines.append(
            f"<tr{asked}>{''.join(f'<td{kind}>{cell}</td>' for kind, cell in zip(kinds, cells, strict=True))}</tr>"
        )
    needed = "".join(f"<td{kind}>{html_text(one.needed)}</td>" for one, kind in zip(columns, kinds, strict=True))
    body = f'{"".join(lines)}<tr class="needed">{needed}</tr>'
    table = f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll fit" tabindex="0">{table}</div>'
