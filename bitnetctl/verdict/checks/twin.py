"""Check `twin`: the difference from the same run with one more intervention, such as full precision."""

import math
from typing import Annotated, Literal

from pydantic import Field

from bitnetctl.records import Run
from bitnetctl.verdict.checks.base import CheckContext, Finding, ThresholdCheck, inconclusive
from bitnetctl.verdict.checks.pairs import Partner, find_partners, has_intervention, is_twin_arm
from bitnetctl.verdict.limits import last_median
from bitnetctl.verdict.outcome import Outcome


class TwinCheck(ThresholdCheck):
    """The measure minus that of the twin: the run of the same size, seed and steps that also has `intervention`.

    The thresholds are for this difference. The check applies to an arm and size of which any run has a twin: then every
    run needs one. A run needs the twin that lies in its folder, given or not. A twin that is refuted or invalid makes
    the verdict invalid, since the setup is at fault, and so does one of other data, settings or code.
    """

    kind: Literal["twin"] = "twin"
    measure: str = "HeldOutLoss"
    intervention: Annotated[str, Field(min_length=1)]

    def judge(self, run: Run, context: CheckContext) -> Finding | None:
        """Judge the twin by the same criteria, then compare the difference with both thresholds."""
        twin = self._twin(run, context)
        name = f"the twin with {self.intervention}"
        if twin is None:
            if any(self._is_twin(run, one.arm) for one in context.not_given_beside(run)):
                return inconclusive(f"{name} lies in the same folder and is not given", brief=f"{name} is not given")
            if context.any_of_cell(run, self.label, lambda one: self._twin(one, context) is not None):
                return inconclusive(f"{name} is missing, and other seeds have theirs", brief=f"{name} is missing")
            return None
        if twin.unequal is not None:
            reason = f"{name} cannot be compared: {twin.unequal}"
            return Finding(Outcome.INVALID, reason, brief=f"{name} was not trained alike")
        checked = context.check_twin(twin.run)
        if checked.outcome in (Outcome.REFUTED, Outcome.INVALID):
            why = next(result.reason for result in checked.results if result.outcome is checked.outcome)
            reason = f"{name} fails as well ({why}): the setup is at fault"
            return Finding(Outcome.INVALID, reason, brief=f"{name} fails as well")
        own, other = (last_median(one, self.measure, self.last) for one in (run, twin.run))
        if own is None or other is None or not (math.isfinite(own) and math.isfinite(other)):
            unknown = f"{self.measure} of the run or its twin with {self.intervention} is unknown"
            return inconclusive(unknown, brief=f"{self.measure} or that of the twin unknown")
        for result in checked.completion:
            if result.outcome is not Outcome.SUPPORTED:
                return inconclusive(f"{name}: {result.reason}", brief=f"{name} is unfinished")
        return self.compare(own - other, f"{self.measure} minus that of {name}")

    def _twin(self, run: Run, context: CheckContext) -> Partner | None:
        return next(iter(find_partners(run, context, lambda other: self._is_twin(run, other))), None)

    def _is_twin(self, run: Run, other: str | None) -> bool:
        if run.arm is None or other is None or has_intervention(run.arm, self.intervention):
            return False
        return is_twin_arm(other, run.arm, self.intervention)
