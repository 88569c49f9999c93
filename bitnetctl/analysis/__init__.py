"""From CSVs to facts about runs, arms and factors; no torch here."""

from bitnetctl.analysis.collapse import COLLAPSED_BELOW, collapse, known
from bitnetctl.analysis.runs import Run, load_begun_runs, load_run, load_runs

__all__ = ["COLLAPSED_BELOW", "Run", "collapse", "known", "load_begun_runs", "load_run", "load_runs"]
