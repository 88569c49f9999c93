"""The page of a claim as plain data: what was said, how it was tested, what came out, what that does not say."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bitnetctl.claims import JudgedClaim
from bitnetctl.records import Run
from bitnetctl.report.seed_plot import SeedPlot, seed_plots
from bitnetctl.units import listed, plural, shortened
from bitnetctl.verdict import Outcome, Summary, Verdict, wording
from bitnetctl.verdict.checks.base import ThresholdCheck
from bitnetctl.verdict.checks.compared import ComparedCheck
from bitnetctl.verdict.checks.equivalent import EquivalentCheck
from bitnetctl.verdict.checks.interaction import InteractionCheck
from bitnetctl.verdict.checks.paired import ImprovementCheck
from bitnetctl.verdict.headline import error_rate
from bitnetctl.verdict.outcome import number_text

_MOST_LOOKS = 6
_MOST_NAMES = 8
_HASH_DIGITS = 16

Terms = tuple[tuple[str, tuple[str, ...]], ...]
"""Names, each with its texts."""


@dataclass(frozen=True, kw_only=True)
class ClaimPage:
    """All that the page of a claim says, unescaped; `said` and `design` are terms with their texts."""

    title: str
    outcome: Outcome
    conclusion: str
    headline: str
    error: str
    said: Terms
    design: Terms
    plots: tuple[SeedPlot, ...]
    limits: tuple[str, ...]
    looks: tuple[str, ...]
    next: str


def claim_page(claim: JudgedClaim, verdict: Verdict, summary: Summary, runs: Sequence[Run]) -> ClaimPage:
    """Return the page of a claim from the verdict on its arm and the runs that were judged or compared with."""
    plots = seed_plots(claim.claim.criteria, verdict, runs, claim.seeds)
    return ClaimPage(
        title=claim.claim.title,
        outcome=summary.outcome,
        conclusion=claim.claim.conclusions.of(summary.outcome),
        headline=summary.headline,
        error=_error_text(verdict),
        said=_terms(
            ("claimed", [claim.claim.claimed]),
            ("source", [claim.claim.source]),
            ("made at", [claim.claimed_at]),
            ("judged at", [_judged_at(claim, runs)]),
        ),
        design=_terms(*_design(claim, verdict, runs, plots)),
        plots=plots,
        limits=(*claim.claim.limits, *_limits(claim, summary, runs, plots)),
        looks=tuple(_looks(claim, verdict)),
        next=summary.next,
    )


def _terms(*terms: tuple[str, Sequence[str]]) -> Terms:
    kept = ((name, tuple(text for text in texts if text)) for name, texts in terms)
    return tuple((name, texts) for name, texts in kept if texts)


def _judged_at(claim: JudgedClaim, runs: Sequence[Run]) -> str:
    text = _text_of(runs)
    return ", ".join(filter(None, (str(claim.judged_at), text, plural(len(claim.seeds), "seed"))))


def _text_of(runs: Sequence[Run]) -> str:
    """Name the texts and tokenizers of runs; empty where they are unknown."""
    configs = [run.config for run in runs if run.config is not None]
    texts = dict.fromkeys(f"{config.data.source} ({config.data.tokenizer})" for config in configs)
    return f"text {listed(list(texts), _MOST_NAMES)}" if texts else ""


def _error_text(verdict: Verdict) -> str:
    """Say how often such a verdict is wrong."""
    if verdict.rule.get("rule") != "rate":
        return "The strictest seed decides, so no error rate is promised."
    error, looks = error_rate([verdict]), int(verdict.rule.get("looks", 1))
    if error >= 1:
        return f"No error rate is left after {plural(looks, 'planned number')} of seeds."
    adds_up = f", added up over {looks} planned numbers of seeds ({_numbers_text(verdict)})" if looks > 1 else ""
    return (
        f"Error rate: a claim that does not hold is called supported with a probability of at most "
        f"{wording.percent(error)}, and one that holds is called refuted with at most as much{adds_up}."
    )


def _design(
    claim: JudgedClaim, verdict: Verdict, runs: Sequence[Run], plots: Sequence[SeedPlot]
) -> Iterator[tuple[str, list[str]]]:
    criteria = claim.claim.criteria
    arms = dict.fromkeys(name for plot in plots for name in plot.columns if name != claim.arm)
    sizes = ", ".join(f"hidden {size}" for size in claim.judged_at.sizes)
    ends = dict.fromkeys((*claim.judged_at.steps[:1], *claim.judged_at.steps[-1:]))
    yield "recipe", [claim.judged_at.recipe or ""]
    yield "arm", [claim.arm]
    yield "compared with", list(arms)
    yield "sizes", [sizes]
    yield "steps", [" to ".join(f"{step:,}" for step in ends)]
    yield "seeds", [_seeds_text(claim.seeds)]
    yield "text", [_text_of(runs).removeprefix("text ")]
    yield "measure", [_measure_text(check) for check in criteria.checks if isinstance(check, ComparedCheck)]
    yield "levels", [_level_text(check) for check in criteria.checks if isinstance(check, ThresholdCheck)]
    yield "test", list(dict.fromkeys(_test_text(check) for check in criteria.comparisons))
    yield "rule", [_rule_text(verdict)]
    hashes = {"claim": claim.claim.hash, "criteria": verdict.criteria_hash}
    yield "hashes", [f"{name} {digits[:_HASH_DIGITS]}" for name, digits in hashes.items()]


def _seeds_text(seeds: Sequence[int]) -> str:
    if not seeds:
        return ""
    first, last = min(seeds), max(seeds)
    if len(seeds) > 1 and last - first == len(seeds) - 1:
        return f"{len(seeds)}: {first} to {last}"
    return f"{len(seeds)}: {shortened([str(seed) for seed in seeds], 12)}"


def _measure_text(check: ComparedCheck) -> str:
    """Say what is compared, in which direction and by how much."""
    name = check.aggregate.name(check.measure)
    if check.over == "end" and check.last > 1:
        name += f", median of the last {check.last} evaluations"
    if isinstance(check, EquivalentCheck):
        return f"{name}: differs by less than {number_text(check.within)}"
    if isinstance(check, InteractionCheck):
        return f"{name}, {check.better} is better: gains{check.by_margin or ' more'} than with {check.modifier}"
    better = check.better if isinstance(check, ImprovementCheck) else "higher"
    by_margin = check.by_margin if isinstance(check, ImprovementCheck) else ""
    return f"{name}: {better}{by_margin}"


def _level_text(check: ThresholdCheck) -> str:
    return f"{check.short} {check.supports} supports, {check.refutes} refutes"


def _test_text(check: ComparedCheck) -> str:
    pairs = "runs of the same size, seed and steps"
    signs = "two one-sided exact sign tests" if isinstance(check, EquivalentCheck) else "exact sign test"
    if check.claim == "median":
        return f"{signs} of the median over {pairs}, for any noise"
    if check.range is None:
        return f"{signs} and Student's test of the mean over {pairs}, for nearly normal noise"
    low, high = map(number_text, check.range)
    return f"{signs} and a bet on the mean over {pairs}, for any noise from {low} to {high}"


def _rule_text(verdict: Verdict) -> str:
    rule = verdict.rule
    if rule.get("rule") != "rate":
        return f"every seed, at least {rule.get('min_seeds', 1)}"
    failures = f"fewer than {wording.percent(rule['max_failure_rate'])} of all seeds fail"
    confidence, looks = wording.percent(rule["confidence"]), int(rule.get("looks", 1))
    if looks == 1:
        return f"{failures}, confidence {confidence}"
    error = error_rate([verdict])
    left = "none is left" if error >= 1 else wording.percent(1 - error)
    return f"{failures}, confidence {left}: {confidence} for each of {looks} planned numbers of seeds"


def _numbers_text(verdict: Verdict) -> str:
    """Return the planned numbers of seeds that count as looks, such as `6, then 9`."""
    return ", then ".join(map(str, verdict.rule["planned_numbers"]))


def _limits(claim: JudgedClaim, summary: Summary, runs: Sequence[Run], plots: Sequence[SeedPlot]) -> Iterator[str]:
    """Yield what no verdict says; each text follows "This does not say"."""
    yield f"what happens at another scale than {claim.judged_at}"
    text = _text_of(runs).removeprefix("text ")
    yield f"what happens on another text than {text}" if text else "what happens on another text"
    yield "what happens with other settings: all but those of the arm are the recipe's, tuned for neither side"
    tested = "the median" if any(plot.columns for plot in plots) else "the rate of failures"
    yield f"that it is so for every seed: {tested} is tested, by {plural(len(claim.seeds), 'seed')}"
    if any(isinstance(check, EquivalentCheck) for check in claim.claim.criteria.checks):
        yield "that no seed differs by more: the median pair is tested, and nearly half of the pairs may lie beyond it"
    if summary.outcome is Outcome.INCONCLUSIVE:
        yield "that there is no difference: a test that does not decide is no evidence of equality"
    if summary.outcome in (Outcome.SUPPORTED, Outcome.REFUTED) and any(plot.columns for plot in plots):
        yield "why: a difference between arms names no cause beyond what differs between them"


def _looks(claim: JudgedClaim, verdict: Verdict) -> Iterator[str]:
    """Yield how often the claim was looked at before, and what that does to the error rate."""
    looks = claim.looks.at(claim.design)
    if not looks:
        yield "not judged before" if claim.file is not None else "earlier looks are not known: none are kept here"
    if verdict.rule.get("looks", 1) > 1:
        yield (
            f"planned with {_numbers_text(verdict)} seeds, by a sweep in the folder or for a look: the runs of each "
            "plan could be looked at before the next one, so that each of these numbers counts as a look"
        )
    if len(looks) > _MOST_LOOKS:
        yield f"… {plural(len(looks) - _MOST_LOOKS, 'earlier look')}"
    for look in looks[-_MOST_LOOKS:]:
        there = f"{len(look.seeds_present)} of {plural(len(look.seeds_planned), 'seed')}"
        yield f"{look.time.replace('T', ' ')}: {there}, {look.outcome}"
    yield from claim.notes
