"""The sentences of verdicts: what the outcomes of a rule say, and no more than that."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from bitnetctl.units import plural, shortened
from bitnetctl.verdict.outcome import Outcome, number_text
from bitnetctl.verdict.rule import PValues, Tally

UNKNOWN_SIZE = (
    "its size is unknown, so it counts for none of those requested; name it like h256-run.csv, or give it a title "
    "line such as 'hidden 256'"
)
MOST_SEEDS = 8
"""Most seeds of one state that are listed."""
NO_RATE = "by this rule one failing run refutes, and no error rate is promised"


def size_name(size: int | None) -> str:
    """Name a size, such as `h256`."""
    return "unknown size" if size is None else f"h{size}"


def _at_size(size: int | None) -> str:
    """Return what a note on the runs of one size begins with."""
    return "" if size is None else f"hidden {size}: "


def not_requested(what: str) -> str:
    """Say that a run was left out by the options of the call."""
    return f"{what} was not requested"


def other_length(steps: int) -> str:
    """Say that a run was left out because its seed has a run of the requested length."""
    return f"of {steps:,} steps, and its seed has a run of the requested ones"


def other_sizes(arm: str, sizes: Mapping[int | None, int]) -> str:
    """Say which sizes of an arm were trained and are not judged."""
    listed = ", ".join(f"hidden {size} ({plural(count, 'run')})" for size, count in sorted(sizes.items(), key=str))
    return f"{arm} was trained at other sizes, too, about which nothing is said: {listed}"


def unnamed_files(count: int) -> str:
    """Say that files that could be further seeds lie beside those given."""
    return (
        f"{plural(count, 'other CSV')} without a manifest or a run's name lie{'s' * (count == 1)} beside those given; "
        "if they are further seeds, they were left out"
    )


def percent(rate: float, unlike: float = math.nan) -> str:
    """Format a rate with so many digits that it does not look like 0, 1 or `unlike`, unless it is equal to them."""
    for digits in range(10):
        text = f"{100 * rate:.{digits}f}"
        if all(float(text) != 100 * other or rate == other for other in (0, 1, round(unlike, 12))):
            break
    return f"{text} %"


def bound(level: float) -> str:
    """Name a one-sided bound by its confidence, such as `one-sided 97.5 % bound`."""
    text = f"{100 * (1 - level):.4g}"
    return f"one-sided {f'{text} %' if text != '100' else percent(1 - level)} bound"


def tally_text(tally: Tally, *, undecided: bool = True) -> str:
    """Count seeds by state, such as `1 of 6 seeds failed and 2 are undecided, 1 more is not judged`."""
    if tally.absent == tally.total:
        return f"none of {plural(tally.total, 'planned seed')} is judged"
    text = f"{tally.unhealthy or 'none'} of {plural(tally.total - tally.absent, 'seed')} failed"
    if tally.undecided and undecided:
        text += f" and {tally.undecided} {_are(tally.undecided)} undecided"
    return f"{text}, {tally.absent} more {_are(tally.absent)} not judged" if tally.absent else text


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def rate_supported(tally: Tally, upper: float, level: float, limit: float) -> str:
    """Say which failure rate the seeds leave open, where it is below the limit."""
    counted = {0: "", 1: ", which counts as failed here"}.get(tally.undecided, ", which count as failed here")
    rate = f"a failure rate of up to {percent(upper, limit)} stays open ({bound(level)})"
    return f"{tally_text(tally)}{counted}: {rate}, less than {percent(limit)}"


def rate_refuted(tally: Tally, lower: float, level: float, limit: float) -> str:
    """Say which failure rate is at least there, where it is above the limit."""
    rate = f"a failure rate of at least {percent(lower, limit)} ({bound(level)})"
    return f"{tally_text(tally, undecided=False)}: {rate}, more than {percent(limit)}"


def rate_open(
    tally: Tally, lower: float, upper: float, limit: float, *, support: int, refute: int, unfinished: int = 0
) -> str:
    """Say between which failure rates the seeds do not decide, and with how many seeds they could.

    `support` and `refute` are the least numbers of seeds, 0 where there is none; `unfinished` of the undecided ones may
    still be decided, as may those that are absent.
    """
    further = "missing, unfinished and further ones" if tally.absent or unfinished else "further ones"
    text = (
        f"{tally_text(tally)}: the failure rate may be anywhere from {percent(lower, limit)} to "
        f"{percent(upper, limit)}, which does not decide whether it is less than {percent(limit)}"
    )
    earliest = [
        f"{seeds:,} could {what}, if all {further} {do}"
        for seeds, what, do in ((support, "support it", "are healthy"), (refute, "refute it", "fail"))
        if seeds
    ]
    return f"{text}; fix the number of seeds before looking: {', '.join(earliest)}" if earliest else text


def rate_left_open(tally: Tally, upper: float, level: float, least: str = "") -> str:
    """Say which failure rate the seeds leave open, whatever the rule of the verdict; `least` is the other end."""
    rate = f"a failure rate of {f'at least {least}, ' if least else ''}up to {percent(upper)} ({bound(level)})"
    return f"{tally_text(tally)}, which leaves open {rate}"


def rate_shown(tally: Tally, lower: float, level: float) -> str:
    """Say which failure rate the failed seeds show."""
    rate = f"a failure rate of at least {percent(lower)} ({bound(level)})"
    return f"{tally_text(tally, undecided=False)}, {rate}"


def absent(counts: Sequence[tuple[str, Sequence[str]]], total: int) -> str:
    """Say which of the planned seeds are not judged, such as `2 of 6 planned seeds: missing 3; left out 5`."""
    missing = sum(len(names) for _, names in counts)
    listed = "; ".join(f"{state} {shortened(names, MOST_SEEDS)}" for state, names in counts)
    return f"not judged {missing} of {plural(total, 'planned seed')}, so that nothing can be supported: {listed}"


def looks(size: int | None, numbers: Sequence[int], alpha: float) -> str:
    """Say that the number of planned seeds grew, and what several looks do to the error rate."""
    grown = ", then ".join(map(str, numbers))
    most = percent(min(1.0, len(numbers) * alpha))
    return (
        f"{_at_size(size)}the number of seeds grew: {grown}; if the verdict was looked at before each, the error rate "
        f"is up to {most} instead of {percent(alpha)}"
    )


def shared_alpha(arms: int, alpha: float) -> str:
    """Say that arms that are decided together share the error rate."""
    return (
        f"{arms} arms were trained together and share an error rate of {percent(alpha)} (Holm), for support and for "
        f"refutation each: the clearest has to be told at {100 * alpha / arms:.3g} %, the next at more, so their "
        "bounds differ"
    )


def mean_claim(
    label: str,
    outcome: Outcome,
    mean: float | None,
    count: int,
    planned: int,
    claims: tuple[str, str],
    p: PValues,
    unlimited: Sequence[str],
) -> str:
    """Say what the test of a mean over seeds shows; `claims` are the supporting and the refuting condition."""
    if mean is None or count < planned:
        return f"{label}: known for {count} of {plural(planned, 'planned seed')}, so nothing is said about the mean"
    text = f"{label}: mean {number_text(mean)} over {plural(count, 'seed')}"
    supporting, refuting = claims
    if outcome is Outcome.SUPPORTED:
        return f"{text}: the mean is {supporting} ({p_text(p.supporting)}, for any noise within the range)"
    if outcome is Outcome.REFUTED:
        return f"{text}: the mean is {refuting} ({p_text(p.refuting)}, for any noise within the range)"
    if unlimited:
        return (
            f"{text}: the measure has no limit on the side that could {' or '.join(unlimited)} a mean; give `range` in "
            "the check"
        )
    return (
        f"{text}: neither {supporting} ({p_text(p.supporting)}) nor {refuting} ({p_text(p.refuting)}) can be told from "
        "chance"
    )


def mean_briefly(name: str, outcome: Outcome, mean: float | None, claims: tuple[str, str]) -> str:
    """Say what the test of a mean shows in a few words; `claims` are the supporting and the refuting condition."""
    if mean is None:
        return f"mean {name} unknown"
    match outcome:
        case Outcome.SUPPORTED:
            return f"mean {name} {claims[0]}"
        case Outcome.REFUTED:
            return f"mean {name} {claims[1]}"
    return f"mean {name} {number_text(mean)}, not told from chance"


def pairs_briefly(
    claim: str, outcome: Outcome, count: int, planned: int, unit: str = "pair", undecided: str = ""
) -> str:
    """Say in how many pairs a claim holds, and that this decides nothing where it does not."""
    text = f"{claim} in {count} of {plural(planned, unit)}"
    return f"{text}, {undecided or 'not told from chance'}" if outcome is Outcome.INCONCLUSIVE else text


def median_known(what: str, side: str, limit: float | None, level: float) -> str:
    """Say what is known of the median of the pairs: an order statistic, None where so few pairs have no such bound."""
    if limit is None:
        return f"{what}; too few pairs for a bound"
    if not math.isfinite(limit):
        return f"{what}; failed runs leave no bound"
    return f"{what}, {side} {number_text(limit)} ({bound(level)})"


def mean_of_repeats(label: str) -> str:
    """Say that a mean over seeds is not tested where a seed has several runs."""
    return f"{label}: a seed has several runs, so nothing is said about the mean over seeds"


def p_text(p: float) -> str:
    """Format a p-value; the levels of few seeds need three digits."""
    return "p < 0.0001" if p < 0.0001 else f"p = {p:.3g}"


def one_unknown_seed(size: int | None, count: int) -> str:
    """Say that runs of unknown seed are one seed."""
    return (
        f"{_at_size(size)}{count} runs of unknown seed count as one seed; name them like run-seed3.csv or, if their "
        "seeds differ, give --distinct-seeds"
    )


def mixed(difference: str) -> str:
    """Say that runs of one arm are no seeds of one arm."""
    return f"runs that differ in more than the seed are no seeds of one arm: {difference}"


def mixed_briefly(difference: str) -> str:
    """Say the same in a few words."""
    return f"the seeds differ in more than the seed: {difference}"


def minor_difference(size: int | None, difference: str) -> str:
    """Say that runs of one arm differ in software or hardware."""
    return f"{_at_size(size)}the runs differ in {difference}; with --strict that makes the verdict invalid"


def unequal_arms(difference: str) -> str:
    """Say that the arms that were judged side by side were not trained alike."""
    return f"the arms were not trained alike, so do not compare them with each other: {difference}"


def not_judged(run: Mapping[str, Any]) -> str:
    """Say what became of a planned run that is not judged."""
    where = [f"hidden {run['size']}"] if run.get("size") is not None else []
    where += [f"seed {run['seed']}"] if run.get("seed") is not None else []
    place = f" ({', '.join(where)})" if where else ""
    return f"{run['run']}{place}, {run['state']}: {run['reason']}"


def account(counts: Sequence[tuple[str, int]], arm: str) -> str:
    """Count the runs of an arm by what became of them, such as `6 judged, 1 failed without rows`."""
    names = {"failed": "failed without rows"}
    listed = ", ".join(f"{count:,} {names.get(state, state)}" for state, count in counts if count)
    return f"{arm}: {listed or 'no run'}"
