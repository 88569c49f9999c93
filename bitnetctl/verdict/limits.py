"""Values of measures in a run, and the range that each can reach."""

import math
from dataclasses import dataclass
from statistics import median
from typing import Literal

from bitnetctl.records import Run
from bitnetctl.records.metrics import DERIVED, ratio, skill
from bitnetctl.verdict.outcome import number_text


@dataclass(frozen=True)
class Limits:
    """The range of a measure in one run; None is unknown, `why` is the origin of the bounds.

    `undefined` says why the measure has no meaning in this setup, `damaged` why its range cannot be trusted.
    """

    low: float | None = None
    high: float | None = None
    why: str = ""
    inferred: bool = False
    undefined: str | None = None
    damaged: str | None = None


def value_at(run: Run, measure: str, index: int) -> float | None:
    """Return a measure in one row: None is unknown, NaN and infinity are known."""
    if measure in DERIVED:
        return DERIVED[measure][1](run.row(index))
    return run.column(measure)[index]


def last_values(run: Run, measure: str, last: int, stage: Literal["run", 1, 2] = "run") -> list[float]:
    """Return the known values in the `last` evaluations of the run or of a stage, without the one at step 1.

    Fewer than `last` where some are unknown, there are not so many or the boundary is unknown.
    """
    after, until = 1, run.final_step
    if stage != "run":
        if run.boundary_interval is None:
            return []
        # only evaluations that certainly belong to the stage
        low, high = run.boundary_interval
        after, until = (1, low) if stage == 1 else (high, run.final_step)
    indices = [index for index, step in enumerate(run.steps.tolist()) if after < step <= until][-last:]
    return [value for index in indices if (value := value_at(run, measure, index)) is not None]


def last_median(run: Run, measure: str, last: int, stage: Literal["run", 1, 2] = "run") -> float | None:
    """Return the median of `last_values`; None where fewer are known, and one that is not finite where there is one."""
    known = last_values(run, measure, last, stage)
    if len(known) < last:
        return None
    broken = [value for value in known if not math.isfinite(value)]
    return broken[0] if broken else float(median(known))


def limits(run: Run, measure: str) -> Limits:
    """Return the range that a measure can reach in this run."""
    positions = constant_value(run, "ProbePositions")
    if positions is not None and not (math.isfinite(positions) and positions >= 1):
        return Limits(damaged=f"ProbePositions is {number_text(positions)}")
    if measure == "UniquePredictions":
        return _unique_limits(run)
    if measure == "Skill":
        return _skill_limits(run)
    if measure in ("DiversityRatio", "Coverage"):
        return _ratio_limits(run, "BigramUnique" if measure == "DiversityRatio" else "UniqueTargets", positions)
    if measure == "RandomPromptUnique" and run.effective is not None:
        prompts = run.effective.probe.random_prompts
        return Limits(0, prompts, f"{prompts} prompts")
    if measure in ("Loss", "HeldOutLoss"):
        return Limits(low=0, why="a loss is never below 0")
    if measure == "HeldOutBitsPerByte":
        return Limits(low=0, why="bits per byte are never below 0")
    if positions is None:
        return Limits()
    probe = f"{number_text(positions)} probe positions"
    by_positions = {
        "TopShare": Limits(1 / positions, 1, probe),
        "EffectiveVocab": Limits(1, positions, probe),
        "ContextInformation": Limits(0, math.log(positions), f"ln of {probe}"),
    }
    return by_positions.get(measure, Limits())


def constant_value(run: Run, column: str) -> float | None:
    """Return the value of a constant column; where it varies, the first that is not finite, else the least."""
    known = [value for value in run.column(column) if value is not None]
    broken = [value for value in known if not math.isfinite(value)]
    return broken[0] if broken else min(known, default=None)


def _unique_limits(run: Run) -> Limits:
    if run.ceiling is None:
        return Limits()
    ceiling, inferred = run.ceiling
    seen = [value for value in run.column("UniquePredictions") if value is not None and math.isfinite(value)]
    most = max(seen, default=0)
    if inferred:
        # a larger value later disproves the inferred ceiling
        return Limits() if most > ceiling else Limits(0, ceiling, "inferred from step 1", inferred=True)
    damaged = f"{number_text(most)} distinct of {number_text(ceiling)} ProbePositions" if most > ceiling else None
    return Limits(0, ceiling, "ProbePositions", damaged=damaged)


def _skill_limits(run: Run) -> Limits:
    unigram, bigram = constant_value(run, "UnigramLoss"), constant_value(run, "BigramLoss")
    if unigram is None or bigram is None:
        return Limits()
    if not (math.isfinite(unigram) and math.isfinite(bigram)):
        return Limits(damaged=f"UnigramLoss is {number_text(unigram)}, BigramLoss {number_text(bigram)}")
    if unigram <= bigram:
        return Limits(
            undefined=f"the bigram predictor ({number_text(bigram)} nats) is no better than the unigram predictor "
            f"({number_text(unigram)}) on this probe, so Skill has no scale"
        )
    return Limits(high=skill(0.0, unigram, bigram), why="at a loss of 0")


def _ratio_limits(run: Run, over: str, positions: float | None) -> Limits:
    reference = constant_value(run, over)
    if reference is None or positions is None:
        return Limits()
    if not (math.isfinite(reference) and 0 < reference <= positions):
        return Limits(damaged=f"{over} is {number_text(reference)} of {number_text(positions)} ProbePositions")
    return Limits(0, ratio(positions, reference), f"{number_text(positions)} probe positions over {over}")
