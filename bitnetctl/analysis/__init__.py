"""Summaries of runs, paired effects of arms, ANOVA of factors, rank agreement of metrics; no torch here."""
