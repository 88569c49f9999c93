"""Declared criteria → supported, refuted, inconclusive or invalid; no torch here."""

from bitnetctl.verdict.criteria import (
    Criteria as Criteria,
    criteria_names as criteria_names,
    load_criteria as load_criteria,
    parse_criteria as parse_criteria,
)
from bitnetctl.verdict.judge import (
    UNKNOWN_ARM as UNKNOWN_ARM,
    arm_label as arm_label,
    judge as judge,
    judge_arms as judge_arms,
)
from bitnetctl.verdict.options import JudgeOptions as JudgeOptions
from bitnetctl.verdict.outcome import (
    CheckResult as CheckResult,
    Combined as Combined,
    Outcome as Outcome,
    Verdict as Verdict,
    combine as combine,
    strictest as strictest,
)
from bitnetctl.verdict.summary import Summary as Summary, summarize as summarize
