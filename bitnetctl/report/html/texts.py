"""The section of the page on text that runs wrote."""

from bitnetctl.analysis.text_quality import INFORMATION_ONLY, MEASURES, ArmTexts
from bitnetctl.escape import html_cell, html_text
from bitnetctl.report.texts import LINE_END, TextReport, continuations_of, title_of

_NAMES = {"greedy": "greedy", "sampled": "sampled", "human": "human text"}


def text_section(report: TextReport | None) -> str:
    """Return the measures and a continuation of each arm; empty where no run wrote text."""
    if report is None:
        return ""
    figures = "".join(_figure(one) for one in report.shown if one.samples.texts)
    more = f'<p class="hint">{html_text(report.more)}</p>' if report.more else ""
    return (
        f'<section id="texts"><h2>What they write</h2>{_table(report)}'
        f'<p class="hint">Median (lowest–highest) over the runs. {html_text(report.settings)}.</p>'
        f'<p class="hint">{html_text(INFORMATION_ONLY)}.</p>{figures}{more}</section>'
    )


def _table(report: TextReport) -> str:
    heads = ['<th class="t" scope="col">text of</th>', '<th scope="col">size</th>', '<th scope="col">runs</th>']
    heads += [
        f'<th scope="col"{"" if one.separates_collapse else _ASIDE} title="{html_text(one.meaning)}">{one.header}</th>'
        for one in MEASURES
    ]
    lines = []
    for arm, size, runs, cells in report.rows():
        values = [
            f"<td{'' if one.separates_collapse else _ASIDE}>{html_text(cell)}</td>"
            for one, cell in zip(MEASURES, cells, strict=True)
        ]
        lines.append(f'<tr><td class="t">{html_cell(arm)}</td><td>{size}</td><td>{runs}</td>{"".join(values)}</tr>')
    table = f"<table><thead><tr>{''.join(heads)}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    return f'<div class="scroll fit" tabindex="0">{table}</div>'


_ASIDE = ' class="aside"'


def _figure(one: ArmTexts) -> str:
    (_, prompt), *texts = continuations_of(one.samples.texts[0], f"{LINE_END}\n")
    caption = f'{html_text(one.arm)} <span class="hint">{html_text(title_of(one))}</span>'
    columns = "".join(
        f'<div><h4>{_NAMES[name]}</h4><pre tabindex="0"><span>{_block(prompt)}</span>{_block(text)}</pre></div>'
        for name, text in texts
    )
    return f'<figure><figcaption>{caption}</figcaption><div class="texts">{columns}</div></figure>'


def _block(text: str) -> str:
    """Return text whose line ends stay; nothing else in it is a control character."""
    return "\n".join(map(html_text, text.split("\n")))
