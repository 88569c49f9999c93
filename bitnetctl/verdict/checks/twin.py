"""Check `twin`: the difference from the same run with one more intervention, such as full precision."""

import math
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from bitnetctl.config import split_arm
from bitnetctl.records import Run
from bitnetctl.records.provenance import differing_settings as differing_settings
from bitnetctl.verdict.checks.base import CheckContext, Finding, ThresholdCheck, inconclusive
from bitnetctl.verdict.limits import last_median
from bitnetctl.verdict.outcome import Outcome


class TwinCheck(ThresholdCheck):
    """The measure minus that of the twin: the run of the same size, seed and steps that also has `intervention`.

    The thresholds are for this difference. A run without a twin is not checked. A twin that is refuted or invalid makes
    the verdict invalid, since the setup is at fault.
    """

    kind: Literal["twin"] = "twin"
    measure: str = "HeldOutLoss"
    intervention: Annotated[str, Field(min_length=1)]

    def judge(self, run: Run, context: CheckContext) -> Finding | None:
        """Judge the twin by the same criteria, then compare the difference with both thresholds."""
        twin = find_twin(run, self.intervention, context.candidates)
        if twin is None:
            return None
        checked = context.check_twin(twin)
        name = f"the twin with {self.intervention}"
        if checked.outcome in (Outcome.REFUTED, Outcome.INVALID):
            why = next(result.reason for result in checked.results if result.outcome is checked.outcome)
            return Finding(Outcome.INVALID, f"{name} fails as well ({why}): the setup is at fault")
        own, other = (last_median(one, self.measure, self.last) for one in (run, twin))
        if own is None or other is None or not (math.isfinite(own) and math.isfinite(other)):
            return inconclusive(f"{self.measure} of the run or its twin with {self.intervention} is unknown")
        for result in checked.completion:
            if result.outcome is not Outcome.SUPPORTED:
                return inconclusive(f"{name}: {result.reason}")
        return self.compare(own - other, f"{self.measure} minus that of {name}")


def find_twin(run: Run, intervention: str, candidates: Sequence[Run]) -> Run | None:
    """Return the run that differs in having `intervention` and nothing else, as far as is known."""
    if run.arm is None or run.size is None or run.seed is None:
        return None
    parts = split_arm(run.arm)
    if any(_name(part) == intervention for part in parts):
        return None
    for other in candidates:
        if other.arm is None or _pairing_key(other) != _pairing_key(run):
            continue
        theirs = split_arm(other.arm)
        rest = [part for part in theirs if _name(part) != intervention]
        if len(rest) < len(theirs) and sorted(rest) == sorted(parts) and not differing_settings(run, other):
            return other
    return None


def _pairing_key(run: Run) -> tuple[int | None, ...]:
    return run.size, run.seed, run.planned_steps


def _name(part: str) -> str:
    return part.partition(":")[0]
