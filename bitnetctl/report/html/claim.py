"""The head of a claim's page: verdict and conclusion, what was said, how it was tested, dots by seed, limits, looks."""

from collections.abc import Iterable

from bitnetctl.escape import html_cell, html_text
from bitnetctl.report.claim import ClaimPage, Terms
from bitnetctl.report.html.dots import MOST_NUMBERS, dots_figure
from bitnetctl.report.seed_plot import SeedPlot

_KEY = (
    "● as claimed",
    "○ not as claimed",
    "× a run failed",
    "◆ median between its one-sided bounds",
    "shaded: what is claimed",
)


def claim_sections(page: ClaimPage) -> str:
    """Return the sections of the page up to its limits and looks."""
    design = _section("design", "How it was tested", _list_of_terms(page.design))
    return "".join(
        (
            _verdict(page),
            _section("said", "What was said", _list_of_terms(page.said)),
            f'<div class="beside">{_plots(page)}{design}</div>',
            _section("limits", "What this does not say", _list(page.limits)),
            _section("looks", "Looks before this one", _list(page.looks)),
        )
    )


def _verdict(page: ClaimPage) -> str:
    outcome = page.outcome.value
    return (
        f'<section id="verdict" class="card {outcome}"><p class="badge">{outcome}</p>'
        f'<p class="conclusion">{html_text(page.conclusion)}</p><p>{html_text(page.headline)}</p>'
        f'<p class="hint">{html_text(page.error)}</p><dl><dt>next</dt><dd>{html_text(page.next)}</dd></dl></section>'
    )


def _plots(page: ClaimPage) -> str:
    if not page.plots:
        return ""
    figures = "".join(_figure(plot, number) for number, plot in enumerate(page.plots))
    return f'<section id="seeds"><h2>Seed by seed</h2>{_key()}{figures}</section>'


def _key() -> str:
    return f'<p class="key hint">{"".join(f"<span>{text}</span>" for text in _KEY)}</p>'


def _figure(plot: SeedPlot, number: int) -> str:
    outcome = plot.outcome.value
    caption = (
        f'<figcaption>{html_text(plot.title)} <span class="badge {outcome}">{outcome}</span>'
        f'<span class="hint">{html_text(plot.caption)}</span></figcaption>'
    )
    below = "".join(f"<p>{html_text(_sentence(text))}</p>" for text in (plot.sentence, plot.bounds) if text)
    # many seeds are drawn without their numbers
    table = "" if plot.is_shown_by_dots and len(plot.rows) <= MOST_NUMBERS else _table(plot)
    return f"<figure>{caption}{dots_figure(plot, number)}{below}{table}</figure>"


def _sentence(text: str) -> str:
    """Begin with a capital, unless it begins with a name."""
    first = text.split(maxsplit=1)[0] if text else ""
    return text[:1].upper() + text[1:] if first.islower() else text


def _table(plot: SeedPlot) -> str:
    heads = ["seed", "difference" if plot.columns else "value", "as claimed", *plot.columns, "note"]
    rows = [[row.seed, plot.text(row), "yes" if row.holds else "no", *row.values, row.note] for row in plot.rows]
    if not any(row.note for row in plot.rows):
        heads, rows = heads[:-1], [row[:-1] for row in rows]
    kinds = [' class="arm"' if name in plot.columns else "" for name in heads]
    head = "".join(f'<th scope="col"{kind}>{html_text(name)}</th>' for kind, name in zip(kinds, heads, strict=True))
    cells = ("".join(f"<td>{html_cell(cell)}</td>" for cell in row) for row in rows)
    body = "".join(f"<tr>{line}</tr>" for line in cells)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll fit" tabindex="0">{table}</div>'


def _section(name: str, title: str, body: str) -> str:
    return f'<section id="{name}"><h2>{title}</h2>{body}</section>' if body else ""


def _list_of_terms(terms: Terms) -> str:
    lines = (
        f"<dt>{html_text(name)}</dt>{''.join(f'<dd>{html_text(text)}</dd>' for text in texts)}" for name, texts in terms
    )
    body = "".join(lines)
    return f"<dl>{body}</dl>" if body else ""


def _list(texts: Iterable[str]) -> str:
    body = "".join(f"<li>{html_text(text)}</li>" for text in texts)
    return f"<ul>{body}</ul>" if body else ""
