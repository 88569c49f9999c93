"""What was judged and analysed as tables, plots, Markdown and one HTML page; no torch here."""

from bitnetctl.report.html import html_page
from bitnetctl.report.junit import junit_xml
from bitnetctl.report.markdown import markdown_report
from bitnetctl.report.plots import plots
from bitnetctl.report.table import facts_csv
from bitnetctl.report.tables import (
    agreement_table,
    collapse_table,
    effects_table,
    end_table,
    factors_table,
    packs_table,
    sweep_table,
)
from bitnetctl.report.verdicts import checks_table, handoff, next_step, trajectory_table

__all__ = [
    "agreement_table",
    "checks_table",
    "collapse_table",
    "effects_table",
    "end_table",
    "factors_table",
    "facts_csv",
    "handoff",
    "html_page",
    "junit_xml",
    "markdown_report",
    "next_step",
    "packs_table",
    "plots",
    "sweep_table",
    "trajectory_table",
]
