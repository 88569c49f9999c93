"""What was judged and analysed as tables, plots, Markdown and one HTML page; no torch here."""

from bitnetctl.report.html import html_page
from bitnetctl.report.markdown import markdown_report
from bitnetctl.report.plots import plots
from bitnetctl.report.tables import (
    agreement_table,
    collapse_table,
    effects_table,
    end_table,
    factors_table,
    packs_table,
    sweep_table,
    verdict_table,
)

__all__ = [
    "agreement_table",
    "collapse_table",
    "effects_table",
    "end_table",
    "factors_table",
    "html_page",
    "markdown_report",
    "packs_table",
    "plots",
    "sweep_table",
    "verdict_table",
]
