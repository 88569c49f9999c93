"""Outcomes, results of single checks, checked runs, verdicts."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from bitnetctl.errors import ExitCode
from bitnetctl.records import Run
from bitnetctl.records.metrics import json_value


class Outcome(StrEnum):
    """Outcome of a check or a verdict on a claim."""

    SUPPORTED = "supported"
    REFUTED = "refuted"
    INCONCLUSIVE = "inconclusive"
    INVALID = "invalid"

    @property
    def exit_code(self) -> ExitCode:
        return ExitCode[self.name]


def strictest(outcomes: Iterable[Outcome]) -> Outcome:
    """Return refuted if any is, else invalid, else inconclusive; supported only if all are, and there is one."""
    return _by_precedence(outcomes, (Outcome.REFUTED, Outcome.INVALID, Outcome.INCONCLUSIVE))


def outcome_of_run(outcomes: Iterable[Outcome]) -> Outcome:
    """Return the outcome of one run's checks: invalid if any is, else refuted, else inconclusive, else supported."""
    return _by_precedence(outcomes, (Outcome.INVALID, Outcome.REFUTED, Outcome.INCONCLUSIVE))


def _by_precedence(outcomes: Iterable[Outcome], order: tuple[Outcome, ...]) -> Outcome:
    present = set(outcomes)
    if not present:
        return Outcome.INCONCLUSIVE
    return next((outcome for outcome in order if outcome in present), Outcome.SUPPORTED)


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """Result of one check on one run, or on all seeds of a size where `run` is None; an unknown value is None.

    `brief` is the reason without the values of the run, so that equal ones can be counted; `of` is what a value that
    counts is out of.
    """

    check: str
    outcome: Outcome
    reason: str
    run: str | None = None
    size: int | None = None
    seed: int | None = None
    measure: str | None = None
    value: float | None = None
    supports: str | None = None
    refutes: str | None = None
    brief: str = ""
    of: int | None = None


@dataclass(frozen=True, kw_only=True)
class CheckedRun:
    """A run and the results of the checks that apply to it, those about completion apart."""

    run: Run
    completion: tuple[CheckResult, ...]
    others: tuple[CheckResult, ...]

    @property
    def results(self) -> tuple[CheckResult, ...]:
        return self.completion + self.others

    @property
    def outcome(self) -> Outcome:
        return outcome_of_run(result.outcome for result in self.results)

    def value(self, label: str) -> float | None:
        """Return the value that the check `label` compared, None where it has none."""
        return next((result.value for result in self.results if result.check == label), None)


@dataclass(frozen=True, kw_only=True)
class RunVerdict:
    """One run's outcome, why, and the values of the founding document's metric; None is unknown."""

    run: str
    size: int | None
    seed: int | None
    outcome: Outcome
    reason: str
    final_step: int
    final_unique: float | None
    ceiling: float | None
    ceiling_inferred: bool


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """How one arm's runs are judged by one set of criteria.

    `sizes` holds the outcome of every size judged or requested (None: unknown size), `reasons` those of the decisive
    checks, `evidence` the declared level that the runs reach ("scaled": other steps or sizes than the criteria require,
    "none": no finished run, None: the criteria declare no levels), `statistics` those over the seeds of each size.
    `failure_rate` says which rate of failures the seeds show or leave open, `account` and `planned` what became of
    every planned run, `rule` how the outcomes of seeds became that of the arm, with its error rate.
    """

    outcome: Outcome
    arm: str
    criteria: str
    criteria_hash: str
    sizes: Mapping[int | None, Outcome] = field(default_factory=dict)
    runs: tuple[RunVerdict, ...] = ()
    results: tuple[CheckResult, ...] = ()
    reasons: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    evidence: str | None = None
    failure_rate: str = ""
    account: str = ""
    planned: Mapping[str, Any] = field(default_factory=dict)
    rule: Mapping[str, Any] = field(default_factory=dict)
    statistics: tuple[Mapping[str, Any], ...] = ()

    @property
    def not_judged(self) -> Sequence[Mapping[str, Any]]:
        """The planned runs that are not judged: `run`, `size`, `seed`, `state` and `reason` of each."""
        runs: Sequence[Mapping[str, Any]] = self.planned.get("runs", ())
        return runs

    def to_json(self) -> dict[str, Any]:
        """Return what `--json` prints: NaN and infinity as text, unknown as null."""
        tree = {
            "verdict": self.outcome,
            "arm": self.arm,
            "criteria": {"name": self.criteria, "hash": self.criteria_hash},
            "evidence": self.evidence,
            "failure_rate": self.failure_rate,
            "account": self.account,
            "planned": self.planned,
            "rule": self.rule,
            "sizes": [{"size": size, "verdict": outcome} for size, outcome in self.sizes.items()],
            "runs": [vars(run) for run in self.runs],
            "checks": [vars(result) for result in self.results],
            "reasons": self.reasons,
            "notes": self.notes,
            "statistics": self.statistics,
        }
        return {name: json_value(value) for name, value in tree.items()}


def number_text(value: float) -> str:
    """Format a value for reasons: four significant digits, whole numbers in full."""
    if math.isfinite(value) and value == round(value) and abs(value) < 1e15:
        return f"{value:,.0f}"
    return f"{value:.4g}"


@dataclass(frozen=True, kw_only=True)
class Combined:
    """The strictest outcome of several verdicts on one arm; `disagreement` is None where all agree."""

    outcome: Outcome
    verdicts: tuple[Verdict, ...]
    disagreement: str | None


def combine(verdicts: Sequence[Verdict]) -> Combined:
    """Return the strictest of the verdicts on one arm by several criteria, and how they disagree."""
    outcome = strictest(verdict.outcome for verdict in verdicts)
    agree = all(verdict.outcome is outcome for verdict in verdicts)
    disagreement = None if agree else _disagreement(verdicts, outcome)
    return Combined(outcome=outcome, verdicts=tuple(verdicts), disagreement=disagreement)


def _disagreement(verdicts: Sequence[Verdict], outcome: Outcome) -> str:
    """Describe each verdict with its reasons, and the measures that only the strictest uses."""
    descriptions = [f"{verdict.criteria} says {verdict.outcome.value} ({verdict.reasons[0]})" for verdict in verdicts]
    strict = next(verdict for verdict in verdicts if verdict.outcome is outcome)
    unseen = unseen_measures(verdicts, outcome)
    text = f"the criteria disagree: {', '.join(descriptions)}"
    if unseen:
        others = " and ".join(verdict.criteria for verdict in verdicts if verdict.outcome is not outcome)
        return f"{text}; {strict.criteria} decides by {', '.join(unseen)}, which {others} does not look at"
    return text


def unseen_measures(verdicts: Sequence[Verdict], outcome: Outcome) -> list[str]:
    """Return the measures that decide the first verdict with an outcome and that those with another do not use."""
    strict = next(verdict for verdict in verdicts if verdict.outcome is outcome)
    of_runs = {result.outcome for result in strict.results if result.run is not None}
    # too few failed seeds leave a rate open: what they fail by is what the criteria disagree on
    decisive = Outcome.REFUTED if outcome is Outcome.INCONCLUSIVE and Outcome.REFUTED in of_runs else outcome
    ours = _measures(result for result in strict.results if result.outcome is decisive)
    seen = {measure for verdict in verdicts if verdict.outcome is not outcome for measure in _measures(verdict.results)}
    return [measure for measure in ours if measure not in seen]


def _measures(results: Iterable[CheckResult]) -> list[str]:
    return list(dict.fromkeys(result.measure for result in results if result.measure is not None))
