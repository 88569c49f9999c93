"""One self-contained HTML page without external resources: interactive curves, tables, verdicts, manifests.

All untrusted text is escaped by `html_text` or, in a cell of a table, by `html_cell`.
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from typing import Any

from bitnetctl import __version__
from bitnetctl.analysis import wording
from bitnetctl.analysis.study import Study
from bitnetctl.config.load import flatten
from bitnetctl.escape import html_cell, html_text
from bitnetctl.records import Run
from bitnetctl.report.claim import ClaimPage
from bitnetctl.report.columns import (
    MEANS,
    SUMMARY,
    RunRow,
    agreement_cells,
    arm_rows,
    effect_cells,
    factor_cells,
    hidden_text,
    run_rows,
)
from bitnetctl.report.html.claim import claim_sections
from bitnetctl.report.html.curves import embed, page_data
from bitnetctl.report.html.head import summary_details, summary_section
from bitnetctl.report.html.panels import panels_section
from bitnetctl.report.html.texts import text_section
from bitnetctl.report.texts import TextReport
from bitnetctl.units import UNKNOWN, plural
from bitnetctl.verdict import Summary

MOST_REASONS = 5
"""Most reasons of a verdict shown above its table of checks."""

_MARK = re.compile(r"@@([A-Z_]+)@@")
_LONGEST_VALUE = 400


def html_page(
    study: Study,
    verdicts: Sequence[Mapping[str, Any]] = (),
    summaries: Sequence[Summary] = (),
    claim: ClaimPage | None = None,
) -> str:
    """Return the page, which opens with a claim, then the summaries of verdicts.

    `verdicts` are from `Verdict.to_json`; with a claim the summary is that of the verdict on it.
    """
    style, script = _file("page.css"), _file("page.js")
    runs = plural(len(study.runs), "run")
    rows = run_rows(study.summaries)
    outcomes = [summary.outcome.value for summary in summaries]
    parts = {
        "STYLE": style,
        "STYLE_HASH": _hash(style),
        "SCRIPT": script,
        "SCRIPT_HASH": _hash(script),
        "TITLE": ", ".join([*outcomes, html_text(claim.title) if claim else runs]),
        "HEADING": html_text(claim.title) if claim else f"bitnetctl {'verdict' if summaries else 'analysis'}",
        "COUNTS": f"{'a claim tested by bitnetctl: ' * bool(claim)}{runs}, {plural(len(study.arms), 'arm')}",
        "CLAIM": claim_sections(claim) if claim else "",
        "SUMMARY": "".join(map(summary_details if claim else summary_section, summaries)),
        "PANELS": panels_section(study),
        "FINDINGS": _findings(study),
        "TEXTS": text_section(TextReport.of(study.runs, [summary.arm for summary in study.summaries])),
        "VERDICTS": _verdicts(verdicts),
        "ARMS": _arms(study, rows),
        "EFFECTS": _effects(study),
        "FACTORS": _factors(study),
        "AGREEMENT": _agreement(study),
        "RUNS": _runs(rows),
        "MEANINGS": _list(f"{column.header}: {column.meaning}" for column in SUMMARY),
        "MANIFESTS": _manifests(study.runs),
        "VERSION": html_text(__version__),
        "DATA": embed(page_data(study)),
    }
    # one pass, so that a placeholder in a run's name is not replaced
    return _MARK.sub(lambda match: parts[match[1]], _file("page.html"))


def _findings(study: Study) -> str:
    ranked = [one for one in study.agreements if one.metric == "RandomPromptUnique" and one.tau is not None]
    found = [finding.sentence for finding in study.findings if finding.kind != "data"]
    sentences = dict.fromkeys([*found, *(one.sentence for one in study.outcomes), *(one.sentence for one in ranked)])
    shown = f"<section><h2>Findings</h2>{_list(sentences)}</section>" if sentences else ""
    return shown + (f'<section class="notes"><h2>Notes</h2>{_list(study.notes)}</section>' if study.notes else "")


def _verdicts(verdicts: Sequence[Mapping[str, Any]]) -> str:
    if not verdicts:
        return ""
    return f'<section id="verdicts"><h2>Verdicts</h2>{"".join(map(_verdict, verdicts))}</section>'


def _verdict(verdict: Mapping[str, Any]) -> str:
    outcome = str(verdict.get("verdict", "unknown"))
    kind = outcome if outcome in ("supported", "refuted", "inconclusive", "invalid") else ""
    criteria = verdict.get("criteria")
    by = criteria.get("name") if isinstance(criteria, Mapping) else criteria
    title = " · ".join(str(part) for part in (verdict.get("arm"), by) if part)
    sizes = ", ".join(f"{hidden_text(one['size'])}: {one['verdict']}" for one in verdict.get("sizes", ()))
    reasons = list(verdict.get("reasons", ()))
    lines = [*([sizes] if sizes else []), *reasons[:MOST_REASONS]]
    if len(reasons) > MOST_REASONS:
        lines.append(f"… and {plural(len(reasons) - MOST_REASONS, 'more reason')}: see the checks")
    lines += [text for text in (verdict.get("failure_rate"), verdict.get("account"), *verdict.get("notes", ())) if text]
    return (
        f'<article class="card {kind}"><h3><span class="badge">{html_text(outcome)}</span> {html_text(title)}</h3>'
        f"{_list(lines)}{_checks(verdict.get('checks') or verdict.get('runs') or ())}{_not_judged(verdict)}</article>"
    )


def _not_judged(verdict: Mapping[str, Any]) -> str:
    """Return the planned runs that are not judged; a file of an earlier version has none."""
    planned = verdict.get("planned")
    runs = planned.get("runs") if isinstance(planned, Mapping) else None
    known = [run for run in runs if isinstance(run, Mapping)] if isinstance(runs, list) else []
    if not known:
        return ""
    names = ("run", "size", "seed", "state", "reason")
    cells = [
        [html_cell(str(run.get(name) if run.get(name) is not None else UNKNOWN)) for name in names] for run in known
    ]
    return _details(plural(len(known), "planned run") + " not judged", _table(names, cells, texts=5))


def _checks(checks: Sequence[Mapping[str, Any]]) -> str:
    if not checks:
        return ""
    rows = [
        (
            check.get("run") or f"size {check.get('size')}",
            check.get("check", ""),
            check.get("outcome", check.get("verdict", "")),
            check.get("reason", ""),
        )
        for check in checks
    ]
    table = _table(("run", "check", "outcome", "because"), [list(map(html_cell, row)) for row in rows], texts=4)
    return _details(plural(len(rows), "check"), table)


def _arms(study: Study, rows: Sequence[RunRow]) -> str:
    grouped = arm_rows(study.summaries, study.arms)
    header = ("arm", "state", "size", "runs", *(column.header for column in SUMMARY))
    cells = [[html_cell(row.arm), html_cell(row.state), row.size, row.seed, *map(row.text, SUMMARY)] for row in grouped]
    return _section("Arms", MEANS, header, cells if len(grouped) < len(rows) else (), texts=2)


def _effects(study: Study) -> str:
    hint = wording.effects_hint(study.effects[0].tests) if study.effects else ""
    return _section("Effects", hint, *effect_cells(study.effects, html_cell))


def _factors(study: Study) -> str:
    hint = wording.factors_hint(study.outcomes[0].tests) if study.outcomes else ""
    return _section("Factors", hint, *factor_cells(study.outcomes, html_cell))


def _agreement(study: Study) -> str:
    cells = agreement_cells(study.agreements, html_cell)
    return _section("Agreement with held-out loss", wording.AGREEMENT_HINT, *cells)


def _runs(rows: Sequence[RunRow]) -> str:
    """Return the table of runs; page.js sorts it by `data-v`, `data-run` is the index of a run in its data."""
    texts = ["run", "arm", *(["state"] if any(row.state for row in rows) else [])]
    titles = {"size": "", "seed": "", **{column.header: column.meaning for column in SUMMARY}}
    heads = [f'<th scope="col" data-kind="text" class="t" title="">{name}</th>' for name in texts]
    heads += [
        f'<th scope="col" data-kind="number" title="{html_text(title)}">{html_text(name)}</th>'
        for name, title in titles.items()
    ]
    lines = []
    for index, row in enumerate(rows):
        [summary] = row.summaries
        values: list[tuple[float | None, str]] = [(summary.size, row.size), (summary.seed, row.seed)]
        values += [(row.value(column), row.text(column)) for column in SUMMARY]
        words = (summary.name, row.arm, row.state)[: len(texts)]
        cells = [f'<td class="t" data-v="{html_text(word)}">{html_cell(word)}</td>' for word in words]
        cells += [f'<td data-v="{"" if value is None else value}">{html_text(text)}</td>' for value, text in values]
        kind = ' class="failed"' if row.failed else ""
        lines.append(f'<tr data-run="{index}"{kind}>{"".join(cells)}</tr>')
    return _scroll(f"<table><thead><tr>{''.join(heads)}</tr></thead><tbody>{''.join(lines)}</tbody></table>")


def _manifests(runs: Sequence[Run]) -> str:
    """Return the fields with one value in all manifests, then the other fields of each run."""
    manifests = [
        (run.name, {name: _value(value) for name, value in flatten(run.manifest.model_dump(mode="json"))})
        for run in runs
        if run.manifest is not None
    ]
    if not manifests:
        return ""
    shared: dict[str, str] = {}
    parts = []
    if len(manifests) > 1:
        first = manifests[0][1]
        shared = {name: value for name, value in first.items() if all(one.get(name) == value for _, one in manifests)}
        parts.append(_fields(f"what all {len(manifests)} share", shared))
    for run, fields in manifests:
        parts.append(_fields(run, {name: value for name, value in fields.items() if name not in shared}))
    return f'<section id="manifests"><h2>Manifests</h2>{"".join(parts)}</section>'


def _fields(title: str, fields: Mapping[str, str]) -> str:
    rows = (
        f'<tr><th scope="row">{html_cell(name)}</th><td>{html_cell(value)}</td></tr>' for name, value in fields.items()
    )
    return _details(title, _scroll(f'<table class="kv">{"".join(rows)}</table>'))


def _value(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST_VALUE else text[:_LONGEST_VALUE] + " …"


def _section(title: str, hint: str, header: Sequence[str], rows: Sequence[Sequence[str]], texts: int) -> str:
    """Return a section with a table, see `_table`; an empty text if it has no rows."""
    if not rows:
        return ""
    heading = f'<h2>{html_text(title)}</h2><p class="hint">{html_text(hint)}</p>'
    return f"<section>{heading}{_table(header, rows, texts=texts)}</section>"


def _details(title: str, body: str) -> str:
    return f"<details><summary>{html_text(title)}</summary>{body}</details>"


def _list(texts: Iterable[object]) -> str:
    return f"<ul>{''.join(f'<li>{html_text(text)}</li>' for text in texts)}</ul>"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], *, texts: int) -> str:
    """Return a table of HTML cells, the first `texts` columns aligned left, without a `state` column if it is empty."""
    shown = [index for index, name in enumerate(header) if name != "state" or any(cells[index] for cells in rows)]
    kinds = [' class="t"' if index < texts else "" for index in range(len(header))]

    def line(tag: str, cells: Sequence[str]) -> str:
        return "".join(f"<{tag}{kinds[index]}>{cells[index]}</{tag}>" for index in shown)

    heads = line("th", [html_text(name) for name in header])
    body = "".join(f"<tr>{line('td', cells)}</tr>" for cells in rows)
    return _scroll(f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>")


def _scroll(table: str) -> str:
    return f'<div class="scroll fit" tabindex="0">{table}</div>'


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _file(name: str) -> str:
    return (resources.files("bitnetctl.report.html") / name).read_text(encoding="utf-8").strip()
