"""Verdicts and analyses as tables and plots, Markdown, JUnit XML, CSV, one HTML page and figures; no torch here."""

from bitnetctl.report.claim import ClaimPage as ClaimPage, claim_page as claim_page
from bitnetctl.report.figure import (
    figure_data as figure_data,
    figure_data_hash as figure_data_hash,
    parse_columns as parse_columns,
)
from bitnetctl.report.figure_drawing import draw_figure as draw_figure, figure_format as figure_format
from bitnetctl.report.html.page import html_page as html_page
from bitnetctl.report.junit import junit_xml as junit_xml
from bitnetctl.report.markdown import markdown_report as markdown_report
from bitnetctl.report.overview import print_study as print_study
from bitnetctl.report.plots import plots as plots
from bitnetctl.report.screen import summary_lines as summary_lines
from bitnetctl.report.summary_csv import summaries_csv as summaries_csv
from bitnetctl.report.terminal import (
    agreement_table as agreement_table,
    checks_table as checks_table,
    collapse_table as collapse_table,
    effects_table as effects_table,
    end_table as end_table,
    factors_table as factors_table,
    packs_table as packs_table,
    search_table as search_table,
    sweep_table as sweep_table,
    trajectory_table as trajectory_table,
    verdict_lines as verdict_lines,
)
from bitnetctl.report.verification import verification_report as verification_report
