"""Declared criteria → supported, refuted, inconclusive or invalid; no torch here."""

from bitnetctl.verdict.criteria import Criteria, criteria_names, load_criteria, parse_criteria
from bitnetctl.verdict.judge import UNKNOWN_ARM, judge, judge_arms
from bitnetctl.verdict.outcome import CheckResult, Combined, Outcome, RunVerdict, Verdict, combine, strictest

__all__ = [
    "UNKNOWN_ARM",
    "CheckResult",
    "Combined",
    "Criteria",
    "Outcome",
    "RunVerdict",
    "Verdict",
    "combine",
    "criteria_names",
    "judge",
    "judge_arms",
    "load_criteria",
    "parse_criteria",
    "strictest",
]
