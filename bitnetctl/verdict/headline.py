"""The sentences at the head of a report: what was claimed, what came out, and why, in a few words each."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict

from bitnetctl.config import BASELINE
from bitnetctl.units import listed, plural, shortened
from bitnetctl.verdict import wording
from bitnetctl.verdict.checks.paired import PairedCheck
from bitnetctl.verdict.criteria import Criteria
from bitnetctl.verdict.facts import Facts, SizeOfArm
from bitnetctl.verdict.judge import UNKNOWN_ARM
from bitnetctl.verdict.outcome import CheckResult, Outcome, Verdict, strictest, unseen_measures
from bitnetctl.verdict.seeds import RATE

MOST_NAMES = 3
"""Most arms or sizes that a sentence lists."""
_LAST = 9


@dataclass(kw_only=True)
class Tally:
    """A reason and what it is about; `of` is the number of runs that were looked at, 0 for what is said over seeds."""

    text: str
    rank: int
    runs: set[object] = field(default_factory=set)
    of: set[object] = field(default_factory=set)
    sizes: set[int | None] = field(default_factory=set)
    criteria: dict[str, None] = field(default_factory=dict)


class Reason(BaseModel):
    """What decides, in `runs` of `of` runs, or if `of` is 0 over the seeds, `where`; by which `criteria` of several."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    texts: tuple[str, ...]
    criteria: tuple[str, ...]
    runs: int
    of: int
    where: str

    def text(self, most: int | None = None) -> str:
        """Return the sentence, with at most so many texts."""
        what = ", ".join(self.texts) if most is None else shortened(self.texts, most)
        where = f" in {self.runs} of {plural(self.of, 'run')}" if self.of else self.where
        prefix = f"{', '.join(self.criteria)}: " if self.criteria else ""
        return f"{prefix}{what}{where}"


def claim(facts: Facts) -> str:
    """Say what is claimed of which runs, such as `h256, h512 trained with `no-decay` do not collapse (2 sizes × …)`."""
    sizes = sorted({size for _, size in facts.deciding_cells if size is not None})
    names = [f"h{size}" for size in sizes]
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
    paired = [check for one in criteria for check in one.of_kind(PairedCheck)]
    if all(compares_only(one) for one in criteria):
        claims = dict.fromkeys(f"a {check.better} {check.measure} than `{check.against}`" for check in paired)
        return f"{'has' if single else 'have'} {listed(list(claims))}"
    return f"{'does' if single else 'do'} not collapse"


def compares_only(criteria: Criteria) -> bool:
    """Whether criteria say nothing about the runs of an arm by themselves."""
    return all(check.about_completion or isinstance(check, PairedCheck) for check in criteria.checks)


def _extent(facts: Facts, sizes: int) -> str:
    seeds = sorted({one["seeds"] for verdict in facts.verdicts for one in verdict.statistics})
    parts = [plural(sizes, "size")] if sizes else []
    if seeds:
        count = str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
        parts.append(f"{count} seed{'s' * (seeds != [1])}")
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
            return _refuted(facts) or (why[0] if why else "")
    return why[0] if why else "no run to judge"


def _supported(facts: Facts, why: Sequence[str]) -> str:
    by_rate = [verdict for verdict in facts.decisive if facts.criteria_of(verdict).seeds.rule == "rate"]
    if why and all(compares_only(facts.criteria_of(verdict)) for verdict in facts.decisive):
        return why[0]
    if by_rate:
        limit = min(facts.criteria_of(verdict).seeds.max_failure_rate for verdict in by_rate)
        return f"fewer than {share(limit)} of all seeds fail{confidence(by_rate)}"
    names = dict.fromkeys(verdict.criteria for verdict in facts.decisive)
    return f"every seed judged passes {listed(list(names))}, which promises no error rate"


def _refuted(facts: Facts) -> str:
    sizes_of = {
        id(verdict): {
            result.size for result in verdict.results if _is_rate(result) and result.outcome is Outcome.REFUTED
        }
        for verdict in facts.decisive
    }
    by_rate = [verdict for verdict in facts.decisive if sizes_of[id(verdict)]]
    if by_rate:
        where = _where(facts, {(verdict.arm, size) for verdict in by_rate for size in sizes_of[id(verdict)]})
        limit = max(facts.criteria_of(verdict).seeds.max_failure_rate for verdict in by_rate)
        return f"more than {share(limit)} of all seeds fail{where}{confidence(by_rate)}"
    by_every = [verdict for verdict in facts.decisive if facts.criteria_of(verdict).seeds.rule == "every"]
    if not by_every:
        return ""
    verdict = by_every[0]
    sizes = list(facts.statistics_of(verdict, Outcome.REFUTED))
    failed = sum(one["unhealthy"] for one in sizes)
    seeds = plural(sum(one["seeds"] for one in sizes), "seed")
    verb = "fails" if failed == 1 else "fail"
    where = _where(facts, {(verdict.arm, one["size"]) for one in sizes})
    return f"{failed} of {seeds} {verb} by {verdict.criteria}{where}, and one is enough"


def _where(facts: Facts, cells: set[SizeOfArm]) -> str:
    """Name the sizes of the deciding arms that a sentence is about; empty where it is about all of them."""
    if cells >= set(facts.deciding_cells):
        return ""
    if len(facts.deciding) > 1:
        return f" in {len(cells)} of {len(facts.deciding_cells)} arms and sizes"
    return f" at {_sizes({size for _, size in cells})}"


def _sizes(sizes: Iterable[int | None]) -> str:
    known = sorted(sizes, key=lambda size: size or 0)
    return listed(["unknown size" if size is None else f"h{size}" for size in known])


def _is_rate(result: CheckResult) -> bool:
    return result.run is None and result.check == RATE


def share(rate: float) -> str:
    """Name a rate."""
    return "half" if rate == 0.5 else wording.percent(rate)


def confidence(verdicts: Iterable[Verdict]) -> str:
    """Return the least confidence that verdicts by a rate promise, less for every look; empty where none is left."""
    error = max(verdict.rule["looks"] * round(1 - verdict.rule["confidence"], 12) for verdict in verdicts)
    return f" (confidence {wording.percent(1 - error)})" if error < 1 else ""


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


def reasons(facts: Facts) -> list[Reason]:
    """Return why the outcome is what it is, the most important reason first."""
    found: dict[str, Tally] = {}
    for verdict in facts.decisive:
        for tally in _reasons(facts, verdict):
            known = found.setdefault(tally.text, tally)
            if known is not tally:
                known.runs |= tally.runs
                known.of = known.of | tally.of
                known.sizes |= tally.sizes
                known.criteria |= tally.criteria
    ordered = sorted(found.values(), key=lambda tally: (tally.rank, -len(tally.runs)))
    several = len({verdict.criteria for verdict in facts.decisive}) > 1
    all_sizes = {size for _, size in facts.deciding_cells}
    alike = itertools.groupby(
        ordered, key=lambda tally: (tally.rank, tuple(tally.criteria), len(tally.runs), len(tally.of))
    )
    return [reason for _, group in alike for reason in _together(list(group), all_sizes, name=several)]


def _together(alike: Sequence[Tally], all_sizes: set[int | None], *, name: bool) -> list[Reason]:
    """Return one reason for all that holds in as many runs, one for each that is said over seeds."""
    groups = [list(alike)] if alike[0].of else [[tally] for tally in alike]
    return [
        Reason(
            texts=tuple(tally.text for tally in group),
            criteria=tuple(group[0].criteria) if name else (),
            runs=len(group[0].runs),
            of=len(group[0].of),
            where=f" at {_sizes(group[0].sizes)}" if not group[0].of and set() < group[0].sizes < all_sizes else "",
        )
        for group in groups
    ]


def _reasons(facts: Facts, verdict: Verdict) -> Iterator[Tally]:
    criteria = facts.criteria_of(verdict)
    completion = {criteria.finite.label, criteria.finished.label}
    results = list(facts.results_of(verdict, facts.outcome))
    judged = {_identity(verdict, result) for result in results if result.run is not None}
    found: dict[str, Tally] = {}
    for result in results:
        rank = _rank(result, facts.outcome, completion)
        if rank == 1 and result.check == criteria.finished.label and verdict.criteria in facts.shortened_for:
            # that is said of the horizon
            rank = _LAST
        if rank is not None:
            text = result.brief or result.check
            tally = found.setdefault(text, Tally(text=text, rank=rank, criteria={verdict.criteria: None}))
            tally.sizes.add(result.size)
            if result.run is not None:
                tally.runs.add(_identity(verdict, result))
                tally.of = judged
    yield from found.values()
    if facts.outcome is Outcome.INCONCLUSIVE and criteria.seeds.rule == "rate":
        text = _too_few(facts, verdict, criteria.seeds.max_failure_rate)
        if text:
            yield Tally(text=text, rank=2, criteria={verdict.criteria: None})


def _identity(verdict: Verdict, result: CheckResult) -> object:
    return verdict.arm, result.size, result.seed, result.run


def _rank(result: CheckResult, outcome: Outcome, completion: set[str]) -> int | None:
    """Return how early a result is named among the reasons for an outcome; None where it is none of them."""
    if _is_rate(result):
        return None
    if outcome is Outcome.INCONCLUSIVE:
        if result.outcome in (Outcome.SUPPORTED, Outcome.INVALID):
            return None
        if result.run is None:
            return 0
        if result.check in completion:
            return 1
        return 3
    if result.outcome is not outcome:
        return None
    if outcome is Outcome.SUPPORTED and result.run is not None and result.supports is None:
        return None
    return 0 if result.run is None or result.check in completion else 1


def _too_few(facts: Facts, verdict: Verdict, limit: float) -> str:
    """Say that the seeds do not decide a rate, and how many could; empty where planned ones are still to come."""
    sizes = [one for one in facts.statistics_of(verdict, Outcome.INCONCLUSIVE) if one["seeds"]]
    if not sizes or any(one["absent"] or one["unfinished"] for one in sizes):
        return ""
    failed = any(one["unhealthy"] or one["undecided"] for one in sizes)
    cells = {(arm, one["size"]) for arm in facts.deciding for one in sizes}
    where = _where(facts, cells) if len(facts.deciding) == 1 else ""
    text = f"{_counted(sizes)} cannot decide at a failure rate of {wording.percent(limit)}{where}"
    support = [one["seeds_to_support"] for one in sizes]
    refute = [one["seeds_to_refute"] for one in sizes]
    if not failed and None not in support:
        return f"{text}: {max(support)} needed"
    wanted = [
        f"{max(numbers)} {what}"
        for numbers, what in ((refute, "could refute"), (support, "could support"))
        if None not in numbers
    ]
    return f"{text}: {', '.join(wanted)}" if wanted else text


def _counted(sizes: Sequence[Mapping[str, Any]]) -> str:
    """Return how many seeds fail at each size, such as `3 seeds, 1 to 2 of them failed,`."""
    seeds, failed = ([one[name] for one in sizes] for name in ("seeds", "unhealthy"))
    count = f"{_span(seeds)} seed{'s' * (max(seeds) != 1)}"
    if not any(failed):
        return count
    if seeds == failed:
        return f"{count}, all failed,"
    return f"{count}, {_span(failed)} failed,"


def _span(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"
