"""What a set of runs shows, in one sentence each: a direction, its size, the seeds behind it, and what it cannot show.

A finding on an arm is that on its held-out loss, the first metric that is known, whichever shows the most; one on
factors or metrics that is not told from chance says so.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median_low
from typing import Any, Literal

from bitnetctl.analysis import finding_wording, wording
from bitnetctl.analysis.agreement import Agreement
from bitnetctl.analysis.anova import OutcomeAnalysis, Term
from bitnetctl.analysis.effects import METRICS, ArmEffect, Effect
from bitnetctl.analysis.stats import SIGNIFICANT, is_significant, seeds_needed, sign_test_floor
from bitnetctl.analysis.steps_to_loss import StepsBySize
from bitnetctl.analysis.summary import Metric, RunSummary
from bitnetctl.config import BASELINE

Kind = Literal["arm", "collapse", "factor", "metric", "data"]
Direction = Literal["better", "worse", "mixed", "equal"]

MOST_TERMS = 2
"""Most factors in the finding on one outcome."""
_RANDOM_PROMPTS = "RandomPromptUnique"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One finding; None is unknown, or nothing that this kind has.

    `subject` is the arm, outcome or metric; `measure` what is compared, `value` the difference, fraction of the
    variance or rank correlation. `direction` says where most seeds point: `better` or `worse`, `mixed` where neither
    is more frequent. `told` is whether it is told from chance after the adjustment for everything shown with it.
    `collapsed` counts those of the `runs` in which it is known that collapsed.
    """

    kind: Kind
    subject: str
    statement: str
    cautions: tuple[str, ...] = ()
    baseline: str | None = None
    measure: str | None = None
    direction: Direction | None = None
    value: float | None = None
    seeds: int | None = None
    better: int | None = None
    worse: int | None = None
    told: bool | None = None
    runs: int | None = None
    collapsed: int | None = None

    @property
    def sentence(self) -> str:
        """The statement with its cautions."""
        return f"{self.statement} ({'; '.join(self.cautions)})" if self.cautions else self.statement

    def to_json(self) -> dict[str, Any]:
        """Return every field by name; no value is NaN or infinite."""
        return {**vars(self), "cautions": list(self.cautions)}


def find(
    summaries: Sequence[RunSummary],
    arms: Sequence[str],
    effects: Sequence[ArmEffect],
    steps_to_baseline: Mapping[str, StepsBySize],
    outcomes: Sequence[OutcomeAnalysis],
    agreements: Sequence[Agreement],
    problems: Sequence[str],
) -> list[Finding]:
    """Return the findings: on arms, collapse, factors, metrics, then `problems` of the data."""
    most_seeds = max((arm.seeds for arm in effects), default=0)
    return [
        *(_on_arm(arm, steps_to_baseline[arm.arm], most_seeds) for arm in effects),
        *_on_collapse(summaries, arms),
        *_on_factors(outcomes),
        *_on_metrics(agreements),
        *(Finding(kind="data", subject="data", statement=problem) for problem in problems),
    ]


# arms


def _on_arm(arm: ArmEffect, steps_to_baseline: StepsBySize, most_seeds: int) -> Finding:
    metric = next((metric for metric in METRICS if arm.effects[metric].seeds), next(iter(METRICS)))
    effect = arm.effects[metric]
    against = "" if arm.baseline == BASELINE else arm.baseline
    if not effect.seeds:
        statement = finding_wording.no_effect(arm.arm, against)
    else:
        statement = finding_wording.arm_finding(
            arm.arm,
            against,
            METRICS[metric][0],
            better=effect.better,
            worse=effect.worse,
            equal=effect.equal,
            mean=effect.mean_of_finite,
            finite_seeds=effect.seeds - effect.infinite_seeds,
            failures=wording.failures(arm.failures, arm.baseline_failures, arm.pairs),
            steps_to_baseline=steps_to_baseline if effect.better > effect.worse else {},
            sizes=len(effect.mean_by_size),
        )
    return Finding(
        kind="arm",
        subject=arm.arm,
        statement=statement,
        cautions=tuple(_cautions(arm, metric, effect, most_seeds)),
        baseline=arm.baseline,
        measure=metric if effect.seeds else None,
        direction=_direction(effect),
        value=effect.mean_of_finite,
        seeds=effect.seeds,
        better=effect.better,
        worse=effect.worse,
        told=is_significant(effect.p_holm),
    )


def _direction(effect: Effect) -> Direction | None:
    if not effect.seeds:
        return None
    if effect.better == effect.worse:
        return "mixed" if effect.better else "equal"
    return "better" if effect.better > effect.worse else "worse"


def _cautions(arm: ArmEffect, metric: Metric, effect: Effect, most_seeds: int) -> Iterator[str]:
    """Yield what the comparison cannot show: metrics that differ, the test, sizes, pairs."""
    direction = _direction(effect)
    opposite = {"better": "worse", "worse": "better"}.get(direction or "")
    for other, (name, _) in METRICS.items():
        one = arm.effects[other]
        if other != metric and opposite and _direction(one) == opposite:
            yield finding_wording.other_metric(name, one.better, one.worse, one.equal, one.mean_of_finite)
    if effect.seeds:
        yield _on_test(arm, effect, most_seeds)
    falls_if_better = METRICS[metric][1] == "lower"
    if opposite and effect.mean_of_finite:
        mean_is_better = (effect.mean_of_finite < 0) == falls_if_better
        if mean_is_better != (direction == "better"):
            yield finding_wording.MEAN_AGAINST_SEEDS
    by_size = {size: value for size, value in effect.mean_by_size.items() if value is not None and math.isfinite(value)}
    if min(by_size.values(), default=0.0) < 0 < max(by_size.values(), default=0.0):
        yield finding_wording.sizes_disagree(by_size)
    if arm.uneven_sizes:
        yield wording.UNEVEN_SIZES
    if arm.unpaired_runs:
        yield finding_wording.unpaired(arm.unpaired_runs)
    for note in arm.notes:
        yield note.removeprefix(f"{arm.arm} and {arm.baseline}: ")


def _on_test(arm: ArmEffect, effect: Effect, most_seeds: int) -> str:
    if effect.p_holm is None:
        return finding_wording.ONE_SEED
    none_can = sign_test_floor(most_seeds) * arm.tests > SIGNIFICANT
    can_show = not none_can and (effect.p_floor is None or effect.p_floor <= SIGNIFICANT)
    if can_show or is_significant(effect.p_holm):
        return finding_wording.sign_test(effect.p_holm, arm.tests)
    return finding_wording.cannot_show(effect.seeds, arm.tests, seeds_needed(arm.tests))


# collapse


def _on_collapse(summaries: Sequence[RunSummary], arms: Sequence[str]) -> Iterator[Finding]:
    if all(run.collapsed_fraction is None for run in summaries):
        statement = finding_wording.collapse_unknown(len(summaries))
        below = _below_unigram(summaries)
        cautions = (below,) if below else ()
        yield Finding(
            kind="collapse", subject="all arms", statement=statement, cautions=cautions, measure="collapsed_at"
        )
        return
    by_arm: dict[str, list[RunSummary]] = {arm: [] for arm in arms}
    for run in summaries:
        by_arm[run.arm].append(run)
    for arm, runs in by_arm.items():
        judged = [run for run in runs if run.collapsed_fraction is not None]
        steps = [run.collapsed_at for run in judged if run.collapsed_at is not None]
        seeds = {run.seed for run in judged}
        yield Finding(
            kind="collapse",
            subject=arm,
            statement=finding_wording.collapses(
                arm,
                len(judged),
                len(steps),
                median_low(steps) if steps else None,
                sum(run.recovered_at is not None for run in judged),
            ),
            cautions=tuple(
                finding_wording.about_collapses(
                    seeds=None if None in seeds else len(seeds),
                    sizes=len({run.size for run in judged}),
                    brief=sum(run.collapsed_at is None and bool(run.collapsed_fraction) for run in judged),
                    below="" if steps else _below_unigram(runs),
                    unknown=len(runs) - len(judged),
                    unfinished=sum(run.complete is False and not run.failed for run in judged),
                )
            ),
            measure="collapsed_at",
            value=len(steps) / len(judged) if judged else None,
            seeds=None if None in seeds else len(seeds),
            runs=len(judged),
            collapsed=len(steps),
        )


def _below_unigram(runs: Sequence[RunSummary]) -> str:
    known = [run.final_skill for run in runs if run.final_skill is not None]
    return finding_wording.below_unigram(sum(skill <= 0 for skill in known), len(known))


# factors and metrics


def _on_factors(outcomes: Sequence[OutcomeAnalysis]) -> Iterator[Finding]:
    """Yield a finding for every outcome with a factor that is told from chance; one for all where none is."""
    told = False
    largest: tuple[OutcomeAnalysis, Term] | None = None
    for outcome in outcomes:
        terms = sorted((term for term in outcome.terms if term.eta_squared), key=lambda term: -(term.eta_squared or 0))
        significant = [term for term in terms if term.is_significant]
        for term in significant[:MOST_TERMS]:
            told = True
            yield _on_term(outcome, term)
        if terms and (largest is None or (terms[0].eta_squared or 0.0) > (largest[1].eta_squared or 0.0)):
            largest = outcome, terms[0]
    if largest is not None and not told:
        yield _on_term(*largest)


def _on_term(outcome: OutcomeAnalysis, term: Term) -> Finding:
    told, fraction = term.is_significant, term.eta_squared or 0.0
    subject = wording.subject(term.fields, term.name)
    means = wording.means(term.means, outcome.format_spec, wording.MOST_MEANS)
    return Finding(
        kind="factor",
        subject=term.name,
        statement=finding_wording.factor_finding(subject, fraction, outcome.outcome, means, told=told),
        cautions=(
            wording.tested(term.p_holm, term.p, term.p_floor, outcome.tests),
            *([finding_wording.ONE_SEED_OF_FACTORS] if outcome.seeds == 1 else []),
        ),
        measure=outcome.outcome,
        value=fraction,
        seeds=outcome.seeds,
        told=told,
    )


def _on_metrics(agreements: Sequence[Agreement]) -> Iterator[Finding]:
    """Yield the metrics that are told to rank the runs backwards, and the random-prompt metric whatever it shows."""
    last = next((one for one in reversed(agreements) if one.metric == _RANDOM_PROMPTS and one.tau is not None), None)
    for one in agreements:
        told = is_significant(one.p_holm)
        if one.tau is not None and (one is last or (told and one.tau <= -wording.AGREES)):
            yield Finding(
                kind="metric",
                subject=one.metric,
                statement=one.ranking,
                cautions=(one.support,),
                measure="HeldOutLoss",
                value=one.tau,
                told=told,
            )
