"""Several verdicts as one, and why they disagree."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bitnetctl.verdict.outcome import Outcome, Verdict, strictest


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
