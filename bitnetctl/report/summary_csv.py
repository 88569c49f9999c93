"""The summary of every run as CSV, for a spreadsheet or a script."""

import csv
import io
from dataclasses import fields
from typing import Any

from bitnetctl.analysis.study import Study
from bitnetctl.analysis.summary import RunSummary
from bitnetctl.escape import escape_formula, printable


def summaries_csv(study: Study) -> str:
    """Return a row for every run, with the field names of `analyze --json`, in full precision; unknown is empty."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(field.name for field in fields(RunSummary))
    writer.writerows(map(_cell, summary.to_json().values()) for summary in study.summaries)
    return file.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    return printable(escape_formula(value)) if isinstance(value, str) else value
