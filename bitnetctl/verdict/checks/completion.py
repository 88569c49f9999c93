"""Checks of how a run ended: `finite` (no crash, no NaN) and `finished` (all of its steps)."""

import math
from typing import ClassVar, Literal

from pydantic import Field, field_validator

from bitnetctl.config import PositiveInt
from bitnetctl.records import NAMES, REQUIRED, Run
from bitnetctl.units import listed
from bitnetctl.verdict.checks.base import Check, CheckContext, Finding, inconclusive, require_known
from bitnetctl.verdict.outcome import Outcome


class FiniteCheck(Check):
    """A crash by the manifest refutes, and so do NaN and infinity in a loss, UniquePredictions or one of `columns`.

    An unknown cell of `columns` is inconclusive.
    """

    about_completion: ClassVar[bool] = True

    kind: Literal["finite"] = "finite"
    columns: tuple[str, ...] = Field(("Loss", "UniquePredictions"), min_length=1)

    @field_validator("columns")
    @classmethod
    def _check_columns(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            require_known("columns", name, NAMES[1:])
        return value

    def judge(self, run: Run, context: CheckContext) -> Finding:
        """Judge by the manifest, then by every row."""
        failure = _failure(run)
        if failure is not None:
            what, detail = failure
            return Finding(Outcome.REFUTED, f"{what} {detail}", brief=what)
        gaps, unknown = [], []
        for name in self.columns:
            column = run.column(name)
            for step, value in zip(run.steps.tolist(), column, strict=True):
                if value is not None and not math.isfinite(value):
                    return Finding(
                        Outcome.REFUTED, f"{name} is {value} at step {step:,}", value, f"{name} is not finite"
                    )
            if None in column:
                gaps.append(f"{name} is unknown in {column.count(None):,} of {len(column):,} rows")
                unknown.append(name)
        if gaps:
            return inconclusive("; ".join(gaps), brief=f"{listed(unknown)} unknown")
        return Finding(Outcome.SUPPORTED, f"finite to step {run.final_step:,}", brief="finite")


def _failure(run: Run) -> tuple[str, str] | None:
    """Return whether a run crashed or diverged, and where."""
    status = run.manifest.status if run.manifest is not None else None
    if run.manifest is not None and status == "failed":
        message = f": {run.manifest.message}" if run.manifest.message else ""
        return "crashed", f"after step {run.manifest.steps_done:,}{message}"
    step = run.diverged_at
    if step is None and status != "diverged":
        return None
    return "diverged", f"at step {run.final_step if step is None else step:,}"


class FinishedCheck(Check):
    """A run whose file is cut short, or that ends before its planned steps or `min_steps`, is inconclusive.

    Steps requested explicitly replace `min_steps`, with a note. Without either, the planned steps must be known from
    the manifest or the file's name.
    """

    about_completion: ClassVar[bool] = True

    kind: Literal["finished"] = "finished"
    min_steps: PositiveInt | None = None

    def judge(self, run: Run, context: CheckContext) -> Finding:
        """Compare the last step with the steps required or requested, and with those planned."""
        damage = torn_end(run)
        if damage is not None:
            return inconclusive(damage, run.final_step, "the last row may be cut short")
        required = self.min_steps if context.requested_steps is None else context.requested_steps
        known = [steps for steps in (required, run.planned_steps) if steps is not None]
        if not known:
            return inconclusive(
                "the planned steps are unknown: give --steps, or name the file like h256-20000-baseline-s0-1a2b3c.csv",
                run.final_step,
                "the planned steps are unknown",
            )
        outcome = Outcome.SUPPORTED if run.final_step >= max(known) else Outcome.INCONCLUSIVE
        text = f"ends at step {run.final_step:,} of {max(known):,}"
        brief = f"{'reaches' if outcome is Outcome.SUPPORTED else 'ends before'} step {max(known):,}"
        if outcome is Outcome.INCONCLUSIVE and run.is_complete and context.requested_steps is None:
            brief = f"{run.planned_steps:,} steps planned, {max(known):,} required"
            text += f"; no more were planned: `--steps {run.planned_steps}` judges it by these"
        return Finding(outcome, text, run.final_step, brief)


def torn_end(run: Run) -> str | None:
    """Return why the last row may be cut short, None where it is whole."""
    note = run.records.torn
    # without a newline, and with the five required columns only, just the last WD can be short: no check uses it
    if note and ("torn" in note or run.records.extra or set(run.records.frame.columns) != set(REQUIRED)):
        return f"{note}; end a whole file with a newline"
    return None
