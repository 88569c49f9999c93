"""What a judgement is made of: outcomes, results of single checks, verdicts."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from bitnetctl.errors import ExitCode


class Outcome(StrEnum):
    """What a claim is worth after judging."""

    SUPPORTED = "supported"
    REFUTED = "refuted"
    INCONCLUSIVE = "inconclusive"
    INVALID = "invalid"

    @property
    def exit_code(self) -> ExitCode:
        """Exit code of the process."""
        return ExitCode[self.name]


def strictest(outcomes: Iterable[Outcome]) -> Outcome:
    """Return refuted if any is, else invalid, else inconclusive; supported only if all are, and there is one."""
    return _first(outcomes, (Outcome.REFUTED, Outcome.INVALID, Outcome.INCONCLUSIVE))


def outcome_of_run(outcomes: Iterable[Outcome]) -> Outcome:
    """Return the outcome of one run's checks: a set-up that could not have shown it comes before all it shows."""
    return _first(outcomes, (Outcome.INVALID, Outcome.REFUTED, Outcome.INCONCLUSIVE))


def _first(outcomes: Iterable[Outcome], order: tuple[Outcome, ...]) -> Outcome:
    found = set(outcomes)
    if not found:
        return Outcome.INCONCLUSIVE
    return next((outcome for outcome in order if outcome in found), Outcome.SUPPORTED)


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """One check on one run, or on all seeds of a size where `run` is None; an unknown figure is None."""

    check: str
    outcome: Outcome
    reason: str
    run: str | None = None
    size: int | None = None
    seed: int | None = None
    measure: str | None = None
    figure: float | None = None
    supports: str | None = None
    refutes: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        return {**{name: plain(value) for name, value in vars(self).items()}, "outcome": self.outcome.value}


@dataclass(frozen=True, kw_only=True)
class RunVerdict:
    """One run's outcome, why, and the figures of the founding document's metric; None is unknown."""

    run: str
    size: int | None
    seed: int | None
    outcome: Outcome
    reason: str
    final_step: int
    final_unique: float | None
    ceiling: float | None
    ceiling_inferred: bool

    def to_json(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        return {**{name: plain(value) for name, value in vars(self).items()}, "outcome": self.outcome.value}


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What one arm's runs say by one set of criteria.

    `sizes` holds the outcome of every size judged or asked for (None: a size nobody knows), `reasons` what decided,
    `evidence` the declared level that the runs reach ("scaled": other steps or sizes than the criteria ask for,
    "none": no finished run, None: the criteria declare no levels), `figures` one tree per size.
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
    confidence: str = ""
    figures: tuple[Mapping[str, Any], ...] = ()

    @property
    def decisive(self) -> tuple[CheckResult, ...]:
        """Results that share the verdict's outcome."""
        return tuple(result for result in self.results if result.outcome is self.outcome)

    def to_json(self) -> dict[str, Any]:
        """Return what `--json` prints: NaN and infinity as text, unknown as null."""
        return {
            "verdict": self.outcome.value,
            "arm": self.arm,
            "criteria": {"name": self.criteria, "hash": self.criteria_hash},
            "evidence": self.evidence,
            "confidence": self.confidence,
            "sizes": [{"size": size, "verdict": outcome.value} for size, outcome in self.sizes.items()],
            "runs": [run.to_json() for run in self.runs],
            "checks": [result.to_json() for result in self.results],
            "reasons": list(self.reasons),
            "notes": list(self.notes),
            "figures": plain(self.figures),
        }


def plain(value: Any) -> Any:
    """Return a tree that strict JSON can hold."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def format_value(value: float | None) -> str:
    """Write a figure as reasons show it: four significant digits, whole numbers in full."""
    if value is None:
        return "unknown"
    if math.isfinite(value) and value == round(value) and abs(value) < 1e15:
        return f"{value:,.0f}"
    return f"{value:.4g}"


@dataclass(frozen=True, kw_only=True)
class Combined:
    """The strictest outcome of several verdicts; `disagreement` is None where all agree."""

    outcome: Outcome
    verdicts: tuple[Verdict, ...]
    disagreement: str | None

    def to_json(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        return {
            "verdict": self.outcome.value,
            "disagreement": self.disagreement,
            "verdicts": [verdict.to_json() for verdict in self.verdicts],
        }


def combine(verdicts: Sequence[Verdict]) -> Combined:
    """Return the strictest: any refuted, else any invalid, else any inconclusive; supported only if all are."""
    by_arm: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        by_arm.setdefault(verdict.arm, []).append(verdict)
    texts = []
    for arm, of_arm in by_arm.items():
        if len({verdict.outcome for verdict in of_arm}) > 1:
            texts.append((f"arm {arm}: " if len(by_arm) > 1 else "") + _disagreement(of_arm))
    return Combined(
        outcome=strictest(verdict.outcome for verdict in verdicts),
        verdicts=tuple(verdicts),
        disagreement="; ".join(texts) or None,
    )


def _disagreement(verdicts: Sequence[Verdict]) -> str:
    """Say what each criteria found, with figures, and which measures the strictest looks at and the others do not."""
    told = [
        f"{verdict.criteria} says {verdict.outcome.value} ({'; '.join(verdict.reasons[:3])})" for verdict in verdicts
    ]
    outcome = strictest(verdict.outcome for verdict in verdicts)
    strict = next(verdict for verdict in verdicts if verdict.outcome is outcome)
    ours = _measures(strict.decisive)
    seen = {measure for verdict in verdicts if verdict.outcome is not outcome for measure in _measures(verdict.results)}
    unseen = [measure for measure in ours if measure not in seen]
    text = f"the criteria disagree: {', '.join(told)}"
    if unseen:
        others = " and ".join(verdict.criteria for verdict in verdicts if verdict.outcome is not outcome)
        return f"{text}; {strict.criteria} decides by {', '.join(unseen)}, which {others} does not look at"
    return text


def _measures(results: Sequence[Any]) -> list[str]:
    return list(dict.fromkeys(result.measure for result in results if result.measure is not None))
