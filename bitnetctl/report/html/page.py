"""One self-contained page: curves to explore, tables, verdicts, manifests. No network, and every name stays text."""

import base64
import hashlib
import html
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any

from bitnetctl import __version__
from bitnetctl.analysis.study import Study
from bitnetctl.config.load import flatten
from bitnetctl.records import COLUMNS, Run
from bitnetctl.records.metrics import skill
from bitnetctl.report.columns import (
    COLLAPSE,
    EFFECT_HEADER,
    END,
    FACTOR_HEADER,
    MEANS,
    MOST_POINTS,
    SummaryRow,
    arm_rows,
    effect_cells,
    factor_cells,
    kept_places,
    p_text,
    run_rows,
    signed,
)
from bitnetctl.report.escape import defused, printable

MOST_REASONS = 5
"""Reasons of a verdict that are shown outside its checks."""

_FIRST = ("HeldOutLoss", "UniquePredictions", "Loss", "Skill")
_LOGARITHMIC = frozenset(
    {"UniquePredictions", "EffectiveVocab", "RandomPromptUnique", "GradNorm", "TokensPerSecond", "ContextInformation"}
)
_CONSTANT = frozenset({"UniqueTargets", "ProbePositions", "UnigramLoss", "BigramLoss", "BigramUnique"})
_MARK = re.compile(r"@@([A-Z_]+)@@")
_LONGEST_VALUE = 400


def html_page(study: Study, verdicts: Sequence[Mapping[str, Any]] = ()) -> str:
    """Return the page; `verdicts` are what Verdict.to_json() gives."""
    style, script = _file("page.css"), _file("page.js")
    runs = f"{len(study.runs)} run{'s' * (len(study.runs) != 1)}"
    arms = len(study.arms)
    rows = run_rows(study.summaries)
    parts = {
        "STYLE": style,
        "STYLE_HASH": _hash(style),
        "SCRIPT": script,
        "SCRIPT_HASH": _hash(script),
        "COUNT": runs,
        "SUMMARY": f"{runs}, {arms} arm{'s' * (arms != 1)}",
        "FINDINGS": _findings(study),
        "VERDICTS": _verdicts(verdicts),
        "ARMS": _arms(study, rows),
        "EFFECTS": _effects(study),
        "FACTORS": _factors(study),
        "AGREEMENT": _agreement(study),
        "RUNS": _runs(rows),
        "MEANINGS": _list(f"{column.header}: {column.meaning}" for column in (*COLLAPSE, *END)),
        "MANIFESTS": _manifests(study.runs),
        "VERSION": esc(__version__),
        "DATA": embed(page_data(study)),
    }
    # one pass over the template alone: a placeholder in a run's name stays a name
    return _MARK.sub(lambda match: parts[match[1]], _file("page.html"))


def esc(text: object) -> str:
    """Return text for an element or a quoted attribute."""
    return html.escape(printable(str(text)))


def cell(text: object) -> str:
    """Return text for a cell of a table, which a spreadsheet may open too."""
    return esc(defused(str(text)))


def embed(value: Any) -> str:
    """Return strict JSON that no markup can end."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def page_data(study: Study) -> dict[str, Any]:
    """Return what the curves are drawn from; runs with the same steps share them."""
    arms = {label: place for place, label in enumerate(study.arms)}
    grids: dict[tuple[int, ...], int] = {}
    runs, known, thinned = [], set(), False
    for run, facts in zip(study.runs, study.summaries, strict=True):
        steps = run.steps.tolist()
        kept = kept_places(len(steps))
        thinned = thinned or len(kept) < len(steps)
        values = _values(run, kept)
        known |= set(values)
        places = (("size", facts.size), ("seed", facts.seed))
        details = [f"{name} {value}" for name, value in places if value is not None]
        runs.append(
            {
                "name": printable(facts.name),
                "arm": arms[facts.arm],
                "size": facts.size,
                "detail": printable(", ".join([facts.arm, *details])),
                "grid": grids.setdefault(tuple(steps[index] for index in kept), len(grids)),
                "values": values,
            }
        )
    boundaries = sorted({facts.boundary_step for facts in study.summaries if facts.boundary_step})
    return {
        "arms": [printable(label) for label in arms],
        "runs": runs,
        "grids": list(grids),
        "metrics": _metrics(known),
        "boundaries": boundaries if len(boundaries) <= 4 else [],
        "references": _references(study),
        "hint": f"Long runs are thinned to {MOST_POINTS} points." if thinned else "",
    }


def _values(run: Run, kept: Sequence[int]) -> dict[str, list[float | None]]:
    """Return every column that has a figure, to five digits; what is not finite is a gap."""
    values = {}
    for column in COLUMNS[1:]:
        if column.name not in _CONSTANT and run.records.known(column.name):
            values[column.name] = [_short(value) for value in run.values(column.name)[kept].tolist()]
    names = ("HeldOutLoss", "UnigramLoss", "BigramLoss")
    losses = zip(*(run.values(name)[kept].tolist() for name in names), strict=True)
    skills = [_short(skill(*row)) for row in losses]
    if any(value is not None for value in skills):
        values["Skill"] = skills
    return values


def _short(value: float | None) -> float | None:
    if value is None or not math.isfinite(value):
        return None
    return int(value) if value == int(value) and abs(value) < 1e15 else float(f"{value:.5g}")


def _metrics(known: set[str]) -> list[dict[str, Any]]:
    units = {column.name: column.unit for column in COLUMNS}
    order = [*_FIRST, *(column.name for column in COLUMNS if column.name not in _FIRST)]
    return [
        {
            "id": name,
            "label": name if units.get(name, "1") == "1" else f"{name} ({units[name]})",
            "log": name in _LOGARITHMIC,
        }
        for name in order
        if name in known
    ]


def _references(study: Study) -> dict[str, list[dict[str, Any]]]:
    """Return the losses of the simple predictors where all runs share them."""
    found = []
    for name in ("unigram", "bigram"):
        values = {getattr(facts, f"{name}_loss") for facts in study.summaries}
        if len(values) == 1 and None not in values:
            found.append({"label": name, "value": _short(values.pop())})
    skills = [{"label": "unigram", "value": 0}, {"label": "bigram", "value": 1}]
    return {"HeldOutLoss": found, "Skill": skills if len(found) == 2 else []}


def _findings(study: Study) -> str:
    ranked = [found for found in study.agreements if found.metric == "RandomPromptUnique" and found.tau is not None]
    sentences = [outcome.sentence for outcome in study.outcomes] + [found.sentence for found in ranked]
    shown = f"<section><h2>Findings</h2>{_list(dict.fromkeys(sentences))}</section>" if sentences else ""
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
    sizes = ", ".join(f"{one['size'] or 'unknown size'}: {one['verdict']}" for one in verdict.get("sizes", ()))
    reasons = list(verdict.get("reasons", ()))
    lines = [*([sizes] if sizes else []), *reasons[:MOST_REASONS]]
    if len(reasons) > MOST_REASONS:
        lines.append(f"… and {len(reasons) - MOST_REASONS} more reasons: see the checks")
    lines += [text for text in (verdict.get("confidence"), *verdict.get("notes", ())) if text]
    return (
        f'<article class="card {kind}"><h3><span class="badge">{esc(outcome)}</span> {esc(title)}</h3>{_list(lines)}'
        f"{_checks(verdict.get('checks') or verdict.get('runs') or ())}</article>"
    )


def _checks(checks: Sequence[Mapping[str, Any]]) -> str:
    if not checks:
        return ""
    rows = [
        [
            cell(check.get("run") or f"size {check.get('size')}"),
            cell(check.get("check", "")),
            cell(check.get("outcome", check.get("verdict", ""))),
            cell(check.get("reason", "")),
        ]
        for check in checks
    ]
    table = _table(("run", "check", "outcome", "because"), rows, texts=4)
    return f"<details><summary>{len(rows)} check{'s' * (len(rows) != 1)}</summary>{table}</details>"


def _arms(study: Study, rows: Sequence[SummaryRow]) -> str:
    grouped = arm_rows(study.summaries, study.arms)
    if len(grouped) == len(rows):
        return ""
    columns = (*COLLAPSE, *END)
    header = ("arm", "state", "size", "runs", *(column.header for column in columns))
    cells = [
        [cell(row.arm), cell(row.state), row.size, row.seed, *(row.text(column) for column in columns)]
        for row in grouped
    ]
    return _section(
        "Arms",
        MEANS,
        _table(header, cells, texts=2),
    )


def _effects(study: Study) -> str:
    rows = effect_cells(study.effects, cell)
    hint = (
        "Arm minus baseline, paired by size and seed; sign-flip test, BCa interval, and the smallest difference that "
        "so many pairs would show four times in five."
    )
    return _section("Effects", hint, _table(EFFECT_HEADER, rows, texts=4)) if rows else ""


def _factors(study: Study) -> str:
    rows = factor_cells(study.outcomes, cell)
    hint = "η² is the share of the variance between runs that a factor, or a pair of factors, explains."
    return _section("Factors", hint, _table(FACTOR_HEADER, rows, texts=3)) if rows else ""


def _agreement(study: Study) -> str:
    rows = [
        [esc(found.metric), esc(found.when), str(found.runs), signed(found.tau), p_text(found.p)]
        for found in study.agreements
    ]
    hint = "Kendall τ-b over runs: +1 ranks them as the held-out loss does, −1 backwards."
    table = _table(("metric", "at", "runs", "τ-b", "p"), rows, texts=2)
    return _section("Agreement with held-out loss", hint, table) if rows else ""


def _runs(rows: Sequence[SummaryRow]) -> str:
    columns = (*COLLAPSE, *END)
    has_state = any(row.state for row in rows)
    header = ("run", "arm", *(("state",) if has_state else ()), "size", "seed", *(column.header for column in columns))
    numbers = {"size", "seed", *(column.header for column in columns)}
    titles = {column.header: column.meaning for column in columns}
    lines = []
    for place, row in enumerate(rows):
        fact = row.facts[0]
        figures: list[tuple[float | None, str]] = [(fact.size, row.size), (fact.seed, row.seed)]
        figures += [(row.value(column), row.text(column)) for column in columns]
        cells = [_word(text) for text in (fact.name, row.arm, *((row.state,) if has_state else ()))]
        cells += [f'<td data-v="{"" if value is None else value}">{esc(text)}</td>' for value, text in figures]
        kind = ' class="failed"' if row.failed else ""
        lines.append(f'<tr data-run="{place}"{kind}>{"".join(cells)}</tr>')
    heads = "".join(
        f'<th scope="col"{kind} title="{esc(titles.get(name, ""))}">{esc(name)}</th>'
        for name in header
        for kind in [' data-kind="number"' if name in numbers else ' data-kind="text" class="t"']
    )
    return _scroll(f"<table><thead><tr>{heads}</tr></thead><tbody>{''.join(lines)}</tbody></table>")


def _word(text: str) -> str:
    return f'<td class="t" data-v="{esc(text)}">{cell(text)}</td>'


def _scroll(table: str) -> str:
    return f'<div class="scroll fit" tabindex="0">{table}</div>'


def _manifests(runs: Sequence[Run]) -> str:
    """Return what all manifests share once, and of each what is its own."""
    found = [
        (run.name, {name: _value(value) for name, value in flatten(run.manifest.model_dump(mode="json"))})
        for run in runs
        if run.manifest is not None
    ]
    if not found:
        return ""
    first = found[0][1]
    shared = {name for name, value in first.items() if all(fields.get(name) == value for _, fields in found)}
    parts = []
    if len(found) > 1:
        parts.append(_details(f"what all {len(found)} share", {name: first[name] for name in first if name in shared}))
    for run, fields in found:
        own = {name: value for name, value in fields.items() if len(found) == 1 or name not in shared}
        parts.append(_details(run, own))
    return f'<section id="manifests"><h2>Manifests</h2>{"".join(parts)}</section>'


def _details(title: str, fields: Mapping[str, str]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{cell(name)}</th><td>{cell(value)}</td></tr>' for name, value in fields.items()
    )
    table = _scroll(f'<table class="kv">{rows}</table>')
    return f"<details><summary>{esc(title)}</summary>{table}</details>"


def _value(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST_VALUE else text[:_LONGEST_VALUE] + " …"


def _section(title: str, hint: str, body: str) -> str:
    return f'<section><h2>{esc(title)}</h2><p class="hint">{esc(hint)}</p>{body}</section>'


def _list(texts: Iterable[object]) -> str:
    return f"<ul>{''.join(f'<li>{esc(text)}</li>' for text in texts)}</ul>"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], *, texts: int = 1) -> str:
    """Return a table of cells that are HTML already; its first `texts` columns are words, empty states left out."""
    rows = list(rows)
    shown = [place for place, name in enumerate(header) if name != "state" or any(cells[place] for cells in rows)]
    kinds = [' class="t"' if place < texts else "" for place in shown]

    def line(tag: str, cells: Sequence[str]) -> str:
        return "".join(f"<{tag}{kind}>{cells[place]}</{tag}>" for kind, place in zip(kinds, shown, strict=True))

    body = "".join(f"<tr>{line('td', cells)}</tr>" for cells in rows)
    return _scroll(
        f"<table><thead><tr>{line('th', [esc(name) for name in header])}</tr></thead><tbody>{body}</tbody></table>"
    )


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


@cache
def _file(name: str) -> str:
    return (resources.files("bitnetctl.report.html") / name).read_text(encoding="utf-8").strip()
