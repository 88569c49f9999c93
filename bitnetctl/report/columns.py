"""Columns, headers and number formats that all kinds of report share."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bitnetctl.analysis import wording
from bitnetctl.analysis.agreement import Agreement
from bitnetctl.analysis.anova import OutcomeAnalysis, Term
from bitnetctl.analysis.effects import METRICS, ArmEffect, Effect
from bitnetctl.analysis.study import Study
from bitnetctl.analysis.summary import RunSummary
from bitnetctl.records import COLUMNS
from bitnetctl.units import UNKNOWN, format_value, plural

MOST_POINTS = 600
"""Most points of a curve; a longer run is thinned evenly and keeps its first and last evaluation."""

LOGARITHMIC = frozenset(
    {"UniquePredictions", "EffectiveVocab", "RandomPromptUnique", "GradNorm", "TokensPerSecond", "ContextInformation"}
)
"""Columns that are drawn on a logarithmic scale; their means are those of the logarithm."""

_TITLES: Mapping[str, str] = {
    "Loss": "training loss",
    "UniquePredictions": "distinct predictions",
    "LR": "learning rate",
    "WD": "weight decay",
    "HeldOutLoss": "held-out loss",
    "UniqueTargets": "distinct targets",
    "ProbePositions": "probe positions",
    "TopShare": "share of the top token",
    "EffectiveVocab": "effective vocabulary",
    "ContextInformation": "context information",
    "UnigramLoss": "unigram loss",
    "BigramLoss": "bigram loss",
    "BigramUnique": "distinct, bigram predictor",
    "RandomPromptUnique": "distinct after random prompts",
    "Objective": "objective",
    "GradNorm": "gradient norm",
    "ZeroFraction": "fraction of zeros",
    "FlipRate": "flip rate",
    "HeldOutBitsPerByte": "held-out loss (bits/byte)",
    "TokensPerSecond": "tokens/s",
    "Skill": "skill",
    "DiversityRatio": "distinct / bigram's",
    "Coverage": "distinct / targets",
}

MEANS = (
    "Means over the runs that have the value; a failed run has no final value. Collapses and recoveries are counted."
)


@dataclass(frozen=True)
class RunColumn:
    """A field of RunSummary as a column of a table."""

    header: str
    importance: int
    """In a narrow terminal the column with the lowest is left out first."""
    field: str
    format_spec: str
    meaning: str
    is_event: bool = False
    """Whether it is the step of an event that need not happen: counted over several runs, not averaged."""

    def title(self, *, grouped: bool) -> str:
        """Return the header: of several runs an event is counted, so `collapse at` becomes `collapse in`."""
        return f"{self.header.removesuffix(' at')} in" if grouped and self.is_event else self.header

    def value(self, summary: RunSummary) -> float | None:
        """Return the value of a run; None is unknown."""
        value = getattr(summary, self.field)
        return None if value is None else float(value)


COLLAPSE = (
    RunColumn("lowest", 3, "stage1_min_unique", ",.0f", "fewest distinct predictions in stage 1, without step 1"),
    RunColumn("collapse at", 6, "collapsed_at", ",.0f", "first step of a collapse over three evaluations", True),
    RunColumn("recovery at", 5, "recovered_at", ",.0f", "first step of a recovery over three evaluations", True),
    RunColumn("frac.", 7, "collapsed_fraction", ".0%", "fraction of the evaluations that are collapsed"),
    RunColumn("× unique", 2, "boundary_recovery_factor", ".2f", "distinct predictions after the boundary over before"),
    RunColumn("loss drop", 1, "boundary_held_out_loss_drop", ".3f", "held-out loss before the boundary minus after"),
)
END = (
    RunColumn("held-out", 9, "final_held_out_loss", ".3f", "final held-out loss in nats"),
    RunColumn("skill", 8, "final_skill", ".3f", "0 as good as a unigram predictor, 1 as a bigram predictor"),
    RunColumn("unique", 7, "final_unique", ",.0f", "final distinct predictions"),
    RunColumn("volat.", 1, "volatility", ".2f", "mean |log2 ratio| of distinct predictions of successive evaluations"),
    RunColumn("zeros", 3, "zero_fraction", ".0%", "final fraction of zeros among the ternary weights"),
    RunColumn("flips", 2, "mean_flip_rate", ".1%", "mean fraction of ternary weights that change between evaluations"),
)
SUMMARY = (*COLLAPSE, *END)
TRAINING_LOSS = RunColumn("loss", 9, "final_training_loss", ".3f", "final training loss in nats")


@dataclass(frozen=True)
class RunRow:
    """One run, or if `grouped` the runs of one arm and size, as cells of a table."""

    summaries: tuple[RunSummary, ...]
    grouped: bool = False

    @property
    def arm(self) -> str:
        return self.summaries[0].arm

    @property
    def size(self) -> str:
        return format_value(self.summaries[0].size)

    @property
    def seed(self) -> str:
        """Seed of the run; how many runs there are where they are grouped."""
        return str(len(self.summaries)) if self.grouped else format_value(self.summaries[0].seed)

    @property
    def failed(self) -> bool:
        """Whether a run diverged or crashed."""
        return any(summary.failed for summary in self.summaries)

    @property
    def state(self) -> str:
        """Failed or unfinished, and where; empty if every run is finished or that is unknown."""
        if self.grouped:
            failed = sum(summary.failed for summary in self.summaries)
            short = sum(summary.complete is False and not summary.failed for summary in self.summaries)
            return ", ".join([f"{failed} failed"] * bool(failed) + [f"{short} unfinished"] * bool(short))
        [summary] = self.summaries
        if summary.diverged_at is not None:
            return f"diverged at {summary.diverged_at:,}"
        if summary.failed:
            return "failed"
        if summary.complete is False:
            return f"{summary.status or 'unfinished'} at {summary.final_step:,} of {summary.planned_steps:,}"
        return ""

    def value(self, column: RunColumn) -> float | None:
        """Return the mean over the runs that have a value; None where none has one."""
        known = [value for summary in self.summaries if (value := column.value(summary)) is not None]
        return sum(known) / len(known) if known else None

    def text(self, column: RunColumn) -> str:
        """Format a value; for an event of grouped runs, `runs with it/runs where that is known`."""
        if self.grouped and column.is_event:
            judged = [summary for summary in self.summaries if summary.collapsed_fraction is not None]
            happened = sum(column.value(summary) is not None for summary in judged)
            return f"{happened}/{len(judged)}" if judged else UNKNOWN
        return format_value(self.value(column), column.format_spec)


def run_rows(summaries: Sequence[RunSummary]) -> list[RunRow]:
    """Return a row for every run."""
    return [RunRow((summary,)) for summary in summaries]


def arm_rows(summaries: Sequence[RunSummary], arms: Sequence[str]) -> list[RunRow]:
    """Return a row for every arm, in that order, and size, with means over the runs that have the value."""
    ranks = {arm: rank for rank, arm in enumerate(arms)}
    groups: dict[tuple[str, int | None], list[RunSummary]] = {}
    for summary in sorted(summaries, key=lambda summary: (ranks[summary.arm], summary.size or 0)):
        groups.setdefault((summary.arm, summary.size), []).append(summary)
    return [RunRow(tuple(group), grouped=True) for group in groups.values()]


def signed(value: float | None) -> str:
    """Format a difference with its sign."""
    return UNKNOWN if value is None else wording.signed(value)


def difference(effect: Effect) -> str:
    """Format a mean difference; where a run failed, that of the seeds without a failure and their number."""
    if effect.mean is not None and math.isfinite(effect.mean):
        return signed(effect.mean)
    finite = effect.seeds - effect.infinite_seeds
    return f"{signed(effect.mean_of_finite)} ({finite} of {effect.seeds})" if finite else UNKNOWN


def interval(effect: Effect) -> str:
    """Format the interval of the mean difference; there is none where a run failed."""
    return UNKNOWN if effect.interval is None else " … ".join(map(signed, effect.interval))


def detectable_text(effect: Effect) -> str:
    """Format the smallest difference that is found with a power of 80 %."""
    if effect.smallest_effect is None:
        return UNKNOWN
    return f"±{effect.smallest_effect:.3f}" if math.isfinite(effect.smallest_effect) else "none"


def p_cells(tested: Effect | Term | OutcomeAnalysis | Agreement) -> tuple[str, str]:
    """Format p and p (Holm)."""
    return p_cell(tested.p, tested.p_floor), p_cell(tested.p_holm)


def p_cell(p: float | None, floor: float | None = None) -> str:
    """Format a p-value, marked where it is the smallest possible."""
    if p is None:
        return UNKNOWN
    text = "< 0.001" if p < 0.001 else f"{p:.3f}"
    return f"{text} {wording.FLOOR_MARK}" if wording.is_floor(p, floor) else text


def pairs_text(effect: ArmEffect) -> str:
    """Return the numbers of seeds and pairs, of failed runs and of runs that are in no pair."""
    parts = [
        plural(effect.seeds, "seed"),
        plural(effect.pairs, "pair") * (effect.pairs != effect.seeds),
        wording.failures(effect.failures, effect.baseline_failures, effect.pairs),
        f"{effect.incomparable_pairs} not comparable" * bool(effect.incomparable_pairs),
        f"{effect.unpaired_runs} without a partner" * bool(effect.unpaired_runs),
    ]
    return ", ".join(filter(None, parts))


def kept_indices(count: int, most: int = MOST_POINTS) -> list[int]:
    """Return the indices of the evaluations that a curve keeps, at most so many of `count`."""
    if count <= most:
        return list(range(count))
    return [round(index * (count - 1) / (most - 1)) for index in range(most)]


def loss_measure(study: Study) -> tuple[str, str]:
    """Return the loss by which runs are drawn, as column and title: the training loss where no other is known."""
    known = any(run.records.has_values("HeldOutLoss") for run in study.runs)
    measure = "HeldOutLoss" if known else "Loss"
    return measure, measure_title(measure)


def measure_title(measure: str) -> str:
    """Name a column or a derived measure beside an axis, a loss with its unit."""
    in_nats = any(column.name == measure and column.unit == "nats" for column in COLUMNS)
    return _TITLES[measure] + " (nats)" * in_nats


def reference_losses(summaries: Iterable[RunSummary]) -> dict[str, float]:
    """Return the losses of the unigram and the bigram predictor, where all runs have the same."""
    found = {}
    runs = list(summaries)
    for name in ("unigram", "bigram"):
        values = {getattr(summary, f"{name}_loss") for summary in runs}
        if len(values) == 1 and None not in values:
            found[name] = float(values.pop())
    return found


def hidden_text(size: object) -> str:
    """Name a size in a legend or a sentence, such as `hidden 256`."""
    return f"hidden {size}" if size else "unknown size"


def tick_label(value: float) -> str:
    """Format a value beside an axis."""
    return f"{value:,.0f}" if 100 <= abs(value) < 1e9 else f"{value:.3g}"


class Cells(NamedTuple):
    """A table as text; the first `texts` columns are words, the others numbers."""

    header: tuple[str, ...]
    rows: Sequence[Sequence[str]]
    texts: int


def effect_cells(effects: Sequence[ArmEffect], escape: Callable[[str], str]) -> Cells:
    """Return a row for each arm and metric; `escape` is applied to untrusted text."""
    header = ("arm", "baseline", "based on", "metric", "seeds", "mean difference", wording.INTERVAL)
    sized = any(len(effect.mean_by_size) > 1 for arm in effects for effect in arm.effects.values())
    rows = [
        (
            escape(arm.arm),
            escape(arm.baseline),
            pairs_text(arm),
            name,
            wording.counts(effect.better, effect.worse, effect.equal),
            difference(effect),
            interval(effect),
            *p_cells(effect),
            detectable_text(effect),
            *([", ".join(f"{size}: {signed(mean)}" for size, mean in effect.mean_by_size.items())] * sized),
        )
        for arm in effects
        for metric, (name, _) in METRICS.items()
        for effect in [arm.effects[metric]]
    ]
    return Cells((*header, "p", "p (Holm)", "found", *(["by size"] * sized)), rows, texts=5)


def factor_cells(outcomes: Sequence[OutcomeAnalysis], escape: Callable[[str], str]) -> Cells:
    """Return a row for each outcome and term, for each outcome the strongest first, then all terms and the seeds."""
    rows = []
    for outcome in outcomes:
        for term in sorted(outcome.terms, key=lambda term: -(term.eta_squared or 0.0)):
            eta_squared = format_value(term.eta_squared, ".1%")
            means = escape(outcome.means_text(term))
            rows.append((escape(outcome.outcome), escape(term.name), means, eta_squared, *p_cells(term)))
        overall = p_cells(outcome) if outcome.p is not None else ("", "")
        for name, fraction, p_values in (
            ("all terms (R²)", outcome.r_squared, overall),
            ("seeds", outcome.seed_eta_squared, ("", "")),
        ):
            if fraction is not None:
                rows.append((escape(outcome.outcome), name, "", format(fraction, ".1%"), *p_values))
    return Cells(("outcome", "term", "means", "η²", "p", "p (Holm)"), rows, texts=3)


def agreement_cells(agreements: Sequence[Agreement], escape: Callable[[str], str]) -> Cells:
    """Return a row for each metric and time."""
    rows = [
        (
            escape(one.metric),
            escape(one.when),
            f"{one.runs} in {plural(one.units, one.unit)}",
            signed(one.tau),
            *p_cells(one),
        )
        for one in agreements
    ]
    return Cells(("metric", "at", "runs", "τ-b", "p", "p (Holm)"), rows, texts=2)
