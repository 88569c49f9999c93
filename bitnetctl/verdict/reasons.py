"""Why an outcome is what it is: the reasons in a few words each, the most important first."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict

from bitnetctl.units import listed, plural, shortened
from bitnetctl.verdict import wording
from bitnetctl.verdict.facts import Facts, SizeOfArm
from bitnetctl.verdict.outcome import CheckResult, Outcome, Verdict
from bitnetctl.verdict.seeds import RATE

_LAST = 9
"""Rank of a reason that is told elsewhere, too."""


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


@dataclass(kw_only=True)
class _Tally:
    """A reason and what it is about; `of` is the number of runs that were looked at, 0 for what is said over seeds."""

    text: str
    rank: int
    runs: set[object] = field(default_factory=set)
    of: set[object] = field(default_factory=set)
    sizes: set[int | None] = field(default_factory=set)
    arms: dict[str, None] = field(default_factory=dict)
    criteria: dict[str, None] = field(default_factory=dict)


def reasons(facts: Facts) -> list[Reason]:
    """Return why the outcome is what it is, the most important reason first."""
    found: dict[str, _Tally] = {}
    for verdict in facts.decisive:
        for tally in _reasons(facts, verdict):
            known = found.setdefault(tally.text, tally)
            if known is not tally:
                known.runs |= tally.runs
                known.of = known.of | tally.of
                known.sizes |= tally.sizes
                known.arms |= tally.arms
                known.criteria |= tally.criteria
    ordered = sorted(found.values(), key=lambda tally: (tally.rank, -len(tally.runs)))
    several = len({verdict.criteria for verdict in facts.decisive}) > 1
    alike = itertools.groupby(
        ordered, key=lambda tally: (tally.rank, tuple(tally.criteria), len(tally.runs), len(tally.of))
    )
    return [reason for _, group in alike for reason in _together(facts, list(group), name=several)]


def _together(facts: Facts, alike: Sequence[_Tally], *, name: bool) -> list[Reason]:
    """Return one reason for all that holds in as many runs, one for each that is said over seeds."""
    groups = [list(alike)] if alike[0].of else [[tally] for tally in alike]
    return [
        Reason(
            texts=tuple(tally.text for tally in group),
            criteria=tuple(group[0].criteria) if name else (),
            runs=len(group[0].runs),
            of=len(group[0].of),
            where="" if group[0].of else _place(facts, group[0]),
        )
        for group in groups
    ]


def _place(facts: Facts, tally: _Tally) -> str:
    """Name the sizes and arms that a reason over seeds is about, where it is not about all."""
    sizes = set() < tally.sizes < {size for _, size in facts.deciding_cells}
    arms = set() < tally.arms.keys() < set(facts.deciding)
    at = f" at {sizes_text(tally.sizes)}" if sizes else ""
    return f"{at} ({shortened(list(tally.arms), 2)})" if arms else at


def _reasons(facts: Facts, verdict: Verdict) -> Iterator[_Tally]:
    criteria = facts.criteria_of(verdict)
    completion = {criteria.finite.label, criteria.finished.label}
    results = list(facts.results_of(verdict, facts.outcome))
    judged = {_identity(verdict, result) for result in results if result.run is not None}
    found: dict[str, _Tally] = {}
    for result in results:
        rank = _rank(result, facts.outcome, completion)
        if rank == 1 and result.check == criteria.finished.label and verdict.criteria in facts.shortened_for:
            # that is said of the horizon
            rank = _LAST
        if rank is not None:
            text = result.brief or result.check
            one = _Tally(text=text, rank=rank, arms={verdict.arm: None}, criteria={verdict.criteria: None})
            tally = found.setdefault(text, one)
            tally.sizes.add(result.size)
            if result.run is not None:
                tally.runs.add(_identity(verdict, result))
                tally.of = judged
    yield from found.values()
    if facts.outcome is Outcome.INCONCLUSIVE and criteria.seeds.rule == "rate":
        text = _too_few(facts, verdict, criteria.seeds.max_failure_rate)
        if text:
            yield _Tally(text=text, rank=2, arms={verdict.arm: None}, criteria={verdict.criteria: None})


def _identity(verdict: Verdict, result: CheckResult) -> object:
    return verdict.arm, result.size, result.seed, result.run


def _rank(result: CheckResult, outcome: Outcome, completion: set[str]) -> int | None:
    """Return how early a result is named among the reasons for an outcome; None where it is none of them."""
    if is_rate(result):
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
    open_sizes = rate_is_open_at(verdict)
    sizes = [one for one in sizes if one["size"] in open_sizes]
    if not sizes or any(one["absent"] or one["unfinished"] for one in sizes):
        return ""
    failed = any(one["unhealthy"] or one["undecided"] for one in sizes)
    cells = {(arm, one["size"]) for arm in facts.deciding for one in sizes}
    place = where(facts, cells) if len(facts.deciding) == 1 else ""
    text = f"{_counted(sizes)} cannot decide at a failure rate of {wording.percent(limit)}{place}"
    support = [one["seeds_to_support"] for one in sizes]
    refute = [one["seeds_to_refute"] for one in sizes]
    if not failed and None not in support:
        return f"{text}: {max(support)} needed"
    wanted = [
        f"{max(numbers)} {what}"
        for numbers, what in (
            (refute, "could refute if all further ones fail"),
            (support, "could support if none of them does"),
        )
        if None not in numbers
    ]
    return f"{text}: {', '.join(wanted)}" if wanted else text


def _counted(sizes: Sequence[Mapping[str, Any]]) -> str:
    """Return how many seeds fail at each size, such as `3 seeds, 1 to 2 of them failed,`."""
    seeds, failed = ([one[name] for one in sizes] for name in ("seeds", "unhealthy"))
    count = seeds_text(seeds)
    if not any(failed):
        return count
    if seeds == failed:
        return f"{count}, all failed,"
    return f"{count}, {span(failed)} failed,"


def where(facts: Facts, cells: set[SizeOfArm]) -> str:
    """Name the sizes of the deciding arms that a sentence is about; empty where it is about all of them."""
    if cells >= set(facts.deciding_cells):
        return ""
    if len(facts.deciding) > 1:
        return f" in {len(cells)} of {len(facts.deciding_cells)} arms and sizes"
    return f" at {sizes_text({size for _, size in cells})}"


def sizes_text(sizes: Iterable[int | None]) -> str:
    """Name sizes in ascending order."""
    return listed([wording.size_name(size) for size in sorted(sizes, key=lambda size: size or 0)])


def is_rate(result: CheckResult) -> bool:
    """Whether a result is that of the failure rate over the seeds of a size."""
    return result.run is None and result.check == RATE


def rate_is_open_at(verdict: Verdict) -> set[int | None]:
    """Return the sizes at which the seeds do not decide the failure rate, whatever claims about pairs or means are."""
    return {result.size for result in verdict.results if is_rate(result) and result.outcome is Outcome.INCONCLUSIVE}


def seeds_text(counts: Sequence[int]) -> str:
    """Return numbers of seeds, such as `2 to 3 seeds`."""
    return f"{span(counts)} seed{'s' * (set(counts) != {1})}"


def span(numbers: Sequence[int]) -> str:
    """Return the least and the largest of numbers, such as `2 to 3`, or the one that there is."""
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"
