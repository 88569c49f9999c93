"""The sentences at the head of a report: what was claimed, at which length, what came out, by which criteria."""

from collections.abc import Iterable, Sequence

from bitnetctl.config import BASELINE
from bitnetctl.units import listed, plural, shortened
from bitnetctl.verdict import wording
from bitnetctl.verdict.criteria import Criteria
from bitnetctl.verdict.facts import Facts, compares_only
from bitnetctl.verdict.judge import UNKNOWN_ARM
from bitnetctl.verdict.outcome import Outcome, Verdict, strictest, unseen_measures
from bitnetctl.verdict.reasons import is_rate, seeds_text, where

MOST_NAMES = 3
"""Most arms or sizes that a sentence lists."""


def claim(facts: Facts) -> str:
    """Say what is claimed of which runs, such as `h256, h512 trained with `no-decay` do not collapse (2 sizes × …)`."""
    sizes = sorted({size for _, size in facts.deciding_cells if size is not None})
    names = list(map(wording.size_name, sizes))
    if len(names) > MOST_NAMES:
        names = [f"{names[0]} to {names[-1]}"]
    subject = f"{', '.join(names) or 'runs of unknown size'} {_trained(facts)}"
    single = len(sizes) == 1 and len(facts.deciding) == 1
    extent = _extent(facts, len(sizes)) or "no run"
    return f"{subject} {_predicate(facts.criteria, single=single)} ({extent})"


def _trained(facts: Facts) -> str:
    if len(facts.deciding) > MOST_NAMES:
        return f"of each of {len(facts.deciding)} arms"
    if len(facts.deciding) > 1:
        return f"of {listed(facts.deciding)}"
    [arm] = facts.deciding
    if arm == UNKNOWN_ARM:
        return "and of an unknown arm" if all(size is None for _, size in facts.deciding_cells) else "of an unknown arm"
    return f"trained as the {BASELINE}" if arm == BASELINE else f"trained with `{arm}`"


def _predicate(criteria: Sequence[Criteria], *, single: bool) -> str:
    if all(compares_only(one) for one in criteria):
        claims = dict.fromkeys(check.predicate(single=single) for one in criteria for check in one.comparisons)
        return listed(list(claims))
    return f"{'does' if single else 'do'} not collapse"


def _extent(facts: Facts, sizes: int) -> str:
    seeds = [one["seeds"] for verdict in facts.verdicts for one in verdict.statistics]
    parts = [plural(sizes, "size")] if sizes else []
    if seeds:
        parts.append(seeds_text(seeds))
    return ", ".join(filter(None, (" × ".join(parts), steps_text(facts))))


def steps_text(facts: Facts) -> str:
    """Return the steps at which the runs are judged; empty where there is no run."""
    horizon = facts.horizon
    if horizon.judged is not None:
        return f"{horizon.judged:,} steps"
    if horizon.planned:
        return f"{horizon.planned[0]:,} to {horizon.planned[-1]:,} steps"
    return f"recorded to step {horizon.reached:,}" if horizon.reached else ""


def horizon(facts: Facts) -> str:
    """Say at which length the runs are judged where that is not the one of their recipe and of the criteria."""
    lengths = facts.horizon
    required = {name: steps for name, steps in lengths.required.items() if steps != lengths.judged}
    if lengths.judged is None and not lengths.planned:
        return ""
    short = lengths.recipe is not None and lengths.judged is not None and lengths.recipe != lengths.judged
    if not required and not short:
        return ""
    others = [f"recipe {lengths.recipe:,}"] if short else []
    for name, steps in required.items():
        if lengths.requested is not None:
            others.append(f"{name} {steps:,}")
        elif steps > lengths.planned[0]:
            others.append(f"{name} {steps:,} unless --steps {lengths.planned[0]}")
    how = "as recorded" if lengths.requested is None else "as requested"
    listed_others = "; ".join(others)
    return f"{steps_text(facts)} {how} ({listed_others})" if others else ""


def headline(facts: Facts, why: Sequence[str]) -> str:
    """Say in a few words what the outcome of the whole rests on; `why` are its reasons."""
    if len(facts.deciding) > 1 and len({facts.judged[arm].outcome for arm in facts.deciding}) > 1:
        outcomes = [facts.judged[arm].outcome for arm in facts.deciding]
        counts = [f"{outcomes.count(one)} {one.value}" for one in Outcome if one in outcomes]
        if len(outcomes) <= MOST_NAMES:
            counts = [f"{arm} {outcome.value}" for arm, outcome in zip(facts.deciding, outcomes, strict=True)]
        return f"the strictest of {len(outcomes)} arms: {', '.join(counts)}"
    match facts.outcome:
        case Outcome.SUPPORTED:
            return _supported(facts, why)
        case Outcome.REFUTED:
            return _refuted(facts) or (f"{why[0]}{_confidence_of_pairs(facts)}" if why else "")
    return why[0] if why else "no run to judge"


def _supported(facts: Facts, why: Sequence[str]) -> str:
    by_rate = [verdict for verdict in facts.decisive if facts.criteria_of(verdict).seeds.rule == "rate"]
    if why and all(compares_only(facts.criteria_of(verdict)) for verdict in facts.decisive):
        return f"{why[0]}{_confidence_of_pairs(facts)}"
    if by_rate:
        limit = min(facts.criteria_of(verdict).seeds.max_failure_rate for verdict in by_rate)
        return f"fewer than {share(limit)} of all seeds fail{confidence(by_rate)}"
    names = dict.fromkeys(verdict.criteria for verdict in facts.decisive)
    return f"every seed judged passes {listed(list(names))}, which promises no error rate"


def _refuted(facts: Facts) -> str:
    sizes_of = {
        id(verdict): {
            result.size for result in verdict.results if is_rate(result) and result.outcome is Outcome.REFUTED
        }
        for verdict in facts.decisive
    }
    by_rate = [verdict for verdict in facts.decisive if sizes_of[id(verdict)]]
    if by_rate:
        place = where(facts, {(verdict.arm, size) for verdict in by_rate for size in sizes_of[id(verdict)]})
        limit = max(facts.criteria_of(verdict).seeds.max_failure_rate for verdict in by_rate)
        return f"more than {share(limit)} of all seeds fail{place}{confidence(by_rate)}"
    by_every = [verdict for verdict in facts.decisive if facts.criteria_of(verdict).seeds.rule == "every"]
    if not by_every:
        return ""
    verdict = by_every[0]
    sizes = list(facts.statistics_of(verdict, Outcome.REFUTED))
    failed = sum(one["unhealthy"] for one in sizes)
    seeds = plural(sum(one["seeds"] for one in sizes), "seed")
    verb = "fails" if failed == 1 else "fail"
    place = where(facts, {(verdict.arm, one["size"]) for one in sizes})
    return f"{failed} of {seeds} {verb} by {verdict.criteria}{place}, and one is enough"


def share(rate: float) -> str:
    """Name a rate."""
    return "half" if rate == 0.5 else wording.percent(rate)


def error_rate(verdicts: Iterable[Verdict]) -> float:
    """Return the largest error rate of verdicts by a rate, which adds up over looks; it may be above 1."""
    return max(float(verdict.rule["looks"] * round(1 - verdict.rule["confidence"], 12)) for verdict in verdicts)


def confidence(verdicts: Iterable[Verdict]) -> str:
    """Return the least confidence that verdicts by a rate promise, less for every look; empty where none is left."""
    error = error_rate(verdicts)
    return f" (confidence {wording.percent(1 - error)})" if error < 1 else ""


def _confidence_of_pairs(facts: Facts) -> str:
    """Return the confidence of decisions by criteria that only compare; empty for others."""
    if not all(compares_only(facts.criteria_of(verdict)) for verdict in facts.decisive):
        return ""
    return confidence(facts.decisive)


def criteria_line(facts: Facts) -> str:
    """Say by which criteria was judged and whether they agree on the deciding arms."""
    outcomes = {
        one.name: strictest(verdict.outcome for verdict in facts.verdicts if verdict.criteria == one.name)
        for one in facts.criteria
        if any(verdict.criteria == one.name for verdict in facts.verdicts)
    }
    if len(outcomes) == 1:
        [name] = outcomes
        return f"criteria: {name}"
    if len(set(outcomes.values())) == 1:
        number = {2: "both"}.get(len(outcomes), "all")
        return f"criteria: {', '.join(outcomes)}; {number} {_verb(facts.outcome)}"
    said = ", ".join(f"{name} {outcome.value}" for name, outcome in outcomes.items())
    return f"criteria disagree: {said}{_unseen(facts, outcomes)}"


def _verb(outcome: Outcome) -> str:
    return {Outcome.SUPPORTED: "support", Outcome.REFUTED: "refute"}.get(outcome, outcome.value)


def _unseen(facts: Facts, outcomes: dict[str, Outcome]) -> str:
    """Name the measures by which only the strictest decide."""
    measures = unseen_measures(facts.verdicts, facts.outcome)
    others = [name for name, outcome in outcomes.items() if outcome is not facts.outcome]
    if not measures or not others:
        return ""
    return f" ({shortened(measures, MOST_NAMES)}, not seen by {listed(others)})"
