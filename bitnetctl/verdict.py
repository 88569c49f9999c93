"""Declared thresholds → supported, refuted, inconclusive or invalid; no torch here."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from bitnetctl.errors import ExitCode
from bitnetctl.records import Records


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


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """The founding document's: more than 50 distinct predictions at the end support, fewer than 10 refute."""

    supported_above: int = 50
    refuted_below: int = 10


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """An outcome with its reason and figures; None is unknown."""

    outcome: Outcome
    reason: str
    final_step: int | None = None
    final_unique: float | None = None
    ceiling: float | None = None


def judge(records: Records, steps: int, thresholds: Thresholds) -> Verdict:
    """Judge the final UniquePredictions of one run that should have `steps` steps.

    A threshold that the metric cannot exceed makes the set-up invalid: the ceiling is ProbePositions or, where that
    is unknown, the first row's value, since an untrained model predicts almost one token a prompt.
    """
    frame = records.frame
    final_step = int(frame["Step"].iloc[-1])
    final = records.value("UniquePredictions", len(frame) - 1)
    positions = records.value("ProbePositions", len(frame) - 1) or records.value("ProbePositions", 0)
    first = records.value("UniquePredictions", 0)
    ceiling, origin = (positions, "ProbePositions") if positions is not None else (first, "inferred from step 1")

    def verdict(outcome: Outcome, reason: str) -> Verdict:
        return Verdict(outcome=outcome, reason=reason, final_step=final_step, final_unique=final, ceiling=ceiling)

    above, below = thresholds.supported_above, thresholds.refuted_below
    diverged = records.diverged_at()
    if ceiling is not None and ceiling <= above:
        return verdict(
            Outcome.INVALID, f"the metric cannot exceed {ceiling:.0f} ({origin}), so > {above} cannot be met"
        )
    if diverged is not None or (final is not None and not math.isfinite(final)):
        return verdict(Outcome.REFUTED, f"diverged at step {diverged or final_step}")
    if final_step < steps:
        return verdict(Outcome.INCONCLUSIVE, f"ends at step {final_step} of {steps}")
    if final is None:
        return verdict(Outcome.INCONCLUSIVE, "final UniquePredictions is unknown")
    if final > above:
        return verdict(Outcome.SUPPORTED, f"{final:.0f} > {above}")
    if final < below:
        return verdict(Outcome.REFUTED, f"{final:.0f} < {below}")
    return verdict(Outcome.INCONCLUSIVE, f"{final:.0f} is between {below} and {above}")


def overall(outcomes: Sequence[Outcome]) -> Outcome:
    """Return the strictest: any refuted, else any invalid, else any inconclusive; supported only if all are."""
    for outcome in (Outcome.REFUTED, Outcome.INVALID, Outcome.INCONCLUSIVE):
        if outcome in outcomes:
            return outcome
    return Outcome.SUPPORTED if outcomes else Outcome.INCONCLUSIVE
