"""What was judged and analysed as tables, plots, Markdown and one HTML page; no torch here."""

from bitnetctl.report.handoff import handoff
from bitnetctl.report.html.page import html_page
from bitnetctl.report.junit import junit_xml
from bitnetctl.report.markdown import markdown_report
from bitnetctl.report.plots import plots
from bitnetctl.report.summary_csv import summaries_csv
from bitnetctl.report.terminal import (
    agreement_table,
    checks_table,
    collapse_table,
    effects_table,
    end_table,
    factors_table,
    packs_table,
    sweep_table,
    trajectory_table,
)
from bitnetctl.report.trajectory import next_step

__all__ = [
    "agreement_table",
    "checks_table",
    "collapse_table",
    "effects_table",
    "end_table",
    "factors_table",
    "handoff",
    "html_page",
    "junit_xml",
    "markdown_report",
    "next_step",
    "packs_table",
    "plots",
    "summaries_csv",
    "sweep_table",
    "trajectory_table",
]
