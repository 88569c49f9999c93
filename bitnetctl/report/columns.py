"""Which facts are shown, what they are called and how they are written, the same in every kind of report."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bitnetctl.analysis.anova import OutcomeAnalysis
from bitnetctl.analysis.effects import METRICS, ArmEffect, Effect
from bitnetctl.analysis.summary import RunSummary

UNKNOWN = "–"
MOST_POINTS = 600
"""Points of a curve; a longer run is thinned evenly, its first and last evaluation stay."""

MEANS = "Means over the runs that have the figure; a failed run has no final one. Falls and recoveries are counted."


@dataclass(frozen=True)
class SummaryColumn:
    """A fact of a run as a column."""

    header: str
    fact: str
    form: str
    meaning: str
    is_event: bool = False
    """Whether it is the step of something that need not happen: several runs are then counted, not averaged."""

    def value(self, facts: RunSummary) -> float | None:
        """Return the figure; None is unknown."""
        value = getattr(facts, self.fact)
        return None if value is None else float(value)

    def text(self, value: float | None) -> str:
        """Write a figure, a dash where it is unknown."""
        return UNKNOWN if value is None else format(value, self.form)


COLLAPSE = (
    SummaryColumn("lowest", "stage1_min_unique", ",.0f", "fewest distinct predictions in stage 1, step 1 left out"),
    SummaryColumn("fell at", "collapsed_at", ",.0f", "first step of a collapse that lasted three evaluations", True),
    SummaryColumn("back at", "recovered_at", ",.0f", "first step of a recovery that lasted three evaluations", True),
    SummaryColumn("share", "collapsed_fraction", ".0%", "share of the evaluations that are collapsed"),
    SummaryColumn("× unique", "boundary_recovery_factor", ".2f", "distinct predictions after the boundary over before"),
    SummaryColumn("loss drop", "boundary_held_out_loss_drop", ".3f", "held-out loss before the boundary less after"),
)
END = (
    SummaryColumn("held-out", "final_held_out_loss", ".3f", "final held-out loss in nats"),
    SummaryColumn("skill", "final_skill", ".3f", "0 as good as a unigram predictor, 1 as a bigram predictor"),
    SummaryColumn("unique", "final_unique", ",.0f", "final distinct predictions"),
    SummaryColumn("volat.", "volatility", ".2f", "mean |log2 ratio| of distinct predictions from one to the next"),
    SummaryColumn("zeros", "zero_fraction", ".0%", "share of zeros among the ternary weights, at the end"),
    SummaryColumn("flips", "mean_flip_rate", ".1%", "mean share of ternary weights that change between evaluations"),
)


@dataclass(frozen=True)
class SummaryRow:
    """One run, or the runs of one arm and size, as cells of a table."""

    arm: str
    size: str
    seed: str
    state: str
    failed: bool
    facts: tuple[RunSummary, ...]
    grouped: bool = False

    def value(self, column: SummaryColumn) -> float | None:
        """Return a figure, the mean where there are several runs that have it."""
        known = [value for facts in self.facts if (value := column.value(facts)) is not None]
        return sum(known) / len(known) if known else None

    def text(self, column: SummaryColumn) -> str:
        """Write a figure; of several runs, in how many of those that tell an event happened."""
        if self.grouped and column.is_event:
            telling = [facts for facts in self.facts if facts.collapsed_fraction is not None]
            happened = sum(column.value(facts) is not None for facts in telling)
            return f"{happened}/{len(telling)}" if telling else UNKNOWN
        return column.text(self.value(column))


def state_of(facts: RunSummary) -> str:
    """Say how a run stands where that is not simply finished."""
    if facts.diverged_at is not None:
        return f"diverged at {facts.diverged_at:,}"
    if facts.failed:
        return "failed"
    if facts.complete is False:
        return f"{facts.status or 'unfinished'} at {facts.final_step:,} of {facts.planned_steps:,}"
    return ""


def run_rows(facts: Sequence[RunSummary]) -> list[SummaryRow]:
    """Return a row for every run."""
    return [
        SummaryRow(
            arm=fact.arm,
            size=_whole(fact.size),
            seed=_whole(fact.seed),
            state=state_of(fact),
            failed=fact.failed,
            facts=(fact,),
        )
        for fact in facts
    ]


def arm_rows(facts: Sequence[RunSummary], arms: Sequence[str]) -> list[SummaryRow]:
    """Return a row for every arm, in that order, and size, with means over the runs that have the figure."""
    places = {arm: place for place, arm in enumerate(arms)}
    groups: dict[tuple[str, int | None], list[RunSummary]] = {}
    for fact in sorted(facts, key=lambda fact: (places[fact.arm], fact.size or 0)):
        groups.setdefault((fact.arm, fact.size), []).append(fact)
    rows = []
    for (arm, size), group in groups.items():
        failed = sum(fact.failed for fact in group)
        short = sum(fact.complete is False and not fact.failed for fact in group)
        parts = [f"{failed} failed"] * bool(failed) + [f"{short} unfinished"] * bool(short)
        rows.append(
            SummaryRow(
                arm=arm,
                size=_whole(size),
                seed=str(len(group)),
                state=", ".join(parts),
                failed=failed > 0,
                facts=tuple(group),
                grouped=True,
            )
        )
    return rows


def _whole(value: int | None) -> str:
    return UNKNOWN if value is None else str(value)


def signed(value: float | None) -> str:
    """Write a difference with its sign."""
    if value is None:
        return UNKNOWN
    return f"{value:+.3f}" if math.isfinite(value) else "+∞" if value > 0 else "−∞"


def interval(effect: Effect) -> str:
    """Write a 95 % interval; with a failed run there is none, and the mean of the pairs that ended stands there."""
    if effect.failed_pairs and effect.mean is not None and not math.isfinite(effect.mean):
        return f"ended: {signed(effect.mean_of_finite)}"
    return UNKNOWN if effect.low is None or effect.high is None else f"{signed(effect.low)} … {signed(effect.high)}"


def reach_text(effect: Effect) -> str:
    """Write the smallest difference that so many pairs could show."""
    if effect.smallest_effect is None:
        return UNKNOWN
    return f"±{effect.smallest_effect:.3f}" if math.isfinite(effect.smallest_effect) else "none"


def p_text(p: float | None) -> str:
    """Write a p value."""
    return UNKNOWN if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def pairs_text(effect: ArmEffect) -> str:
    """Say what a comparison stands on."""
    parts = [f"{effect.pairs} pair{'s' * (effect.pairs != 1)}"]
    if effect.failures:
        parts.append(f"{effect.failures} failed")
    if effect.baseline_failures:
        parts.append(f"{effect.baseline_failures} of the baseline failed")
    if effect.unpaired_runs:
        parts.append(f"{effect.unpaired_runs} without a partner")
    return ", ".join(parts)


def kept_places(count: int) -> list[int]:
    """Return which of a run's evaluations are points of its curve."""
    if count <= MOST_POINTS:
        return list(range(count))
    return [round(place * (count - 1) / (MOST_POINTS - 1)) for place in range(MOST_POINTS)]


EFFECT_HEADER = ("arm", "baseline", "stands on", "figure", "difference", "95 % interval", "p", "p (Holm)", "could show")
FACTOR_HEADER = ("outcome", "factor", "means", "η²", "p")


def effect_cells(effects: Sequence[ArmEffect], escape: Callable[[str], str]) -> list[tuple[str, ...]]:
    """Return the cells under EFFECT_HEADER, a row for each arm and figure; `escape` makes a foreign text harmless."""
    return [
        (
            escape(arm.arm),
            escape(arm.baseline),
            pairs_text(arm),
            name,
            signed(arm.effects[metric].mean),
            interval(arm.effects[metric]),
            p_text(arm.effects[metric].p),
            p_text(arm.effects[metric].p_holm),
            reach_text(arm.effects[metric]),
        )
        for arm in effects
        for metric, (name, _) in METRICS.items()
    ]


def factor_cells(outcomes: Sequence[OutcomeAnalysis], escape: Callable[[str], str]) -> list[tuple[str, ...]]:
    """Return the cells under FACTOR_HEADER, for each outcome the strongest factor first."""
    return [
        (
            escape(outcome.outcome),
            escape(term.name),
            escape(outcome.means_text(term)),
            UNKNOWN if term.eta_squared is None else f"{term.eta_squared:.1%}",
            p_text(term.p),
        )
        for outcome in outcomes
        for term in sorted(outcome.terms, key=lambda term: -(term.eta_squared or 0.0))
    ]
