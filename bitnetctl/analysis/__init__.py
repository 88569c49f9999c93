"""Summaries of runs, effects of arms and factors, agreement of metrics; no torch here."""
