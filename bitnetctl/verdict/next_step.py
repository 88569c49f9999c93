"""What to do after a verdict: never what was asked for, nor what was done already."""

import shlex
from collections.abc import Iterator
from pathlib import Path

from bitnetctl.config import split_arm
from bitnetctl.records import REQUIRED
from bitnetctl.records.naming import printable_name
from bitnetctl.units import plural, shortened
from bitnetctl.verdict.facts import Facts, compares_only
from bitnetctl.verdict.judge import UNKNOWN_ARM
from bitnetctl.verdict.outcome import CheckResult, Outcome, Verdict
from bitnetctl.verdict.reasons import rate_is_open_at

SUGGESTED = ("decoupled-decay", "no-decay", "reduced-lr", "wd-schedule")
"""Interventions against the collapse, the most effective first."""
_SEARCHED = frozenset({"decoupled-decay", "full-precision", "wd-schedule", "reduced-lr"})
"""The interventions of the plan `root-cause`."""


def next_step(facts: Facts) -> str:
    """Return what to do after these verdicts."""
    match facts.outcome:
        case Outcome.SUPPORTED:
            return _repeated(facts) or f"before relying on it: longer, larger, more seeds{_read_text(facts)}"
        case Outcome.INVALID:
            return _made_valid(facts)
        case Outcome.REFUTED:
            if _only_crashed(facts):
                return "find out why it crashed: --details shows the message; then train it again"
            if all(compares_only(one) for one in facts.criteria):
                return _repeated(facts) or "the claim fails at this size and length: test it at the ones that you need"
            return "; ".join(filter(None, (_repeated(facts), _other_arm(facts)))) or _cause(facts)
    return _decide(facts)


def _read_text(facts: Facts) -> str:
    """Return how to read what the runs write: by their weights, by text that they have written, or by training."""
    runs = facts.deciding_runs
    with_weights = next((run for run in runs if run.keeps_weights), None)
    if with_weights is not None:
        return f"; read what it writes: `bitnetctl generate {_quoted(with_weights.path.with_suffix(''))}`"
    texts = [run for run in runs if run.samples is not None]
    if texts:
        places = dict.fromkeys(_quoted(Path(run.bundle) if run.bundle else run.path.parent) for run in texts)
        return f"; read what it writes: `bitnetctl analyze {' '.join(places)} --text --details`"
    if any(run.config is not None for run in runs):
        return ", with --samples to read what it writes"
    return "; read what it writes"


def _quoted(path: Path) -> str:
    """Return a path as a shell takes it."""
    return shlex.quote(printable_name(str(path)))


def _made_valid(facts: Facts) -> str:
    """Return how to remove what makes a verdict invalid."""
    kinds = {
        getattr(facts.checks_of(verdict).get(result.check), "kind", "provenance")
        for verdict in facts.decisive
        for result in verdict.results
        if result.outcome is Outcome.INVALID
    }
    ways = {
        "provenance": "judge runs of one text and one set of settings only, or train all of them alike",
        "probe": "train with a larger probe (probe.positions), or on a text with more distinct tokens",
        "level": "take a probe or a measure that can reach the threshold",
        **dict.fromkeys(
            ("paired", "equivalent", "interaction"), "train the arms that are compared alike, evaluated at equal steps"
        ),
        "twin": "make the reference run work first: the setup is at fault",
    }
    return "; ".join(text for kind, text in ways.items() if kind in kinds) or "look at every check with --details"


def _only_crashed(facts: Facts) -> bool:
    """Whether nothing else refutes."""
    failed = {
        (result.check == facts.criteria_of(verdict).finite.label and result.brief == "crashed")
        or result.brief == "failed before the first evaluation"
        for verdict in facts.decisive
        for result in verdict.results
        if result.outcome is Outcome.REFUTED
    }
    return failed == {True}


def _repeated(facts: Facts) -> str:
    """Advise the recipe's own length where the runs were shorter."""
    horizon = facts.horizon
    if not horizon.is_short:
        return ""
    drop = f" (drop --steps {horizon.requested})" if horizon.requested is not None else ""
    return f"repeat at the recipe's {horizon.recipe:,} steps{drop}"


def _tried(facts: Facts) -> set[str]:
    """Return the interventions of all arms that are judged, asked for or lie among the runs."""
    arms = {*facts.judged, *facts.deciding, *(run.arm or UNKNOWN_ARM for run in facts.runs)}
    return {part.partition(":")[0] for arm in arms for part in split_arm(arm)}


def _cause(facts: Facts) -> str:
    if _tried(facts) >= _SEARCHED:
        return "find the cause: `bitnetctl analyze` of these runs"
    return "find the cause: `bitnetctl sweep --plan root-cause`, then `bitnetctl analyze`"


def _other_arm(facts: Facts) -> str:
    """Suggest an intervention that none of the runs has and that would change them."""
    tried = _tried(facts)
    helped = [arm for arm, combined in facts.judged.items() if combined.outcome is Outcome.SUPPORTED]
    if helped:
        return f"supported here: {shortened(helped, 2)}; cause: `bitnetctl analyze`"
    optimizers = {run.effective.optimizer.name for run in facts.deciding_runs if run.effective is not None}
    # decay is decoupled there already
    without = {"decoupled-decay"} if optimizers == {"adamw"} else set()
    name = next((name for name in SUGGESTED if name not in tried | without), None)
    if name and _tried(facts) >= _SEARCHED - {name}:
        return f"try `-i {name}`"
    return f"try `-i {name}`; cause: `bitnetctl sweep --plan root-cause`" if name else ""


def _decide(facts: Facts) -> str:
    """Return how an open claim can be decided."""
    return next(_ways(facts), "look at every check with --details")


def _ways(facts: Facts) -> Iterator[str]:
    undecided = facts.decisive
    runs = facts.deciding_runs
    plain = bool(runs) and all(set(run.records.frame.columns) == set(REQUIRED) for run in runs)
    if plain and len(undecided) < len(facts.verdicts):
        yield (
            "these logs have five columns, by which only `--criteria origin` or a file of your own can judge: give "
            "`--criteria`"
        )
    if lacking := _lacking(facts):
        yield f"these files lack {lacking}: judge by criteria that need what they have (--criteria FILE.toml)"
    if any(verdict.planned.get("unreadable") for verdict in undecided):
        yield "mend the files that cannot be read, or remove those that are no runs"
    if any(verdict.planned.get("left_out") for verdict in undecided):
        yield "judge the runs that were left out, too"
    unfinished = any(run.is_complete is False and run.diverged_at is None for run in runs)
    missing = any(verdict.planned.get("missing") for verdict in undecided)
    if unfinished or any(verdict.planned.get("unfinished") for verdict in undecided) or (missing and runs):
        yield "finish the missing and unfinished runs: the command that started them does"
    if not runs:
        yield "give runs of the arm that was asked for, or train them: leave out the paths and --no-train"
    yield from _other_length(facts)
    unknown = sum(run.seed is None for run in runs)
    if unknown > 1 and not facts.options.distinct_seeds:
        yield (
            f"say whose seed is whose: {plural(unknown, 'run')} of unknown seed count as one; name them like "
            "run-seed3.csv, or give --distinct-seeds"
        )
    if lost := _lost_pairs(facts):
        yield f"some pairs lack a finished run of {lost}: give it, too, or train it"
    yield from _more_seeds(facts)
    if any(one["pairs"] for verdict in facts.decisive for one in facts.statistics_of(verdict, Outcome.INCONCLUSIVE)):
        yield "plan more seeds, before looking: `bitnetctl power` says how many"
    if any(result.supports is not None and result.value is not None for result in _open_results(facts)):
        yield "no threshold is passed in some runs: train longer, or judge by more seeds"


def _lost_pairs(facts: Facts) -> str:
    """Name the arms of which runs may lack that those judged are compared with; empty where no pair was lost."""
    for verdict in facts.decisive:
        for one in facts.statistics_of(verdict, Outcome.INCONCLUSIVE):
            for pairs in one["pairs"].values():
                if len(pairs["values"]) < pairs["planned"]:
                    modified = f" or of an arm with {pairs['modifier']}" if "modifier" in pairs else ""
                    return f"{pairs['against']}{modified}"
    return ""


def _lacking(facts: Facts) -> str:
    """Name the values that the runs lack and without which no criteria decide; empty where some could."""
    lacking = []
    for verdict in facts.decisive:
        finite = facts.criteria_of(verdict).finite.label
        unknown = [result.brief for result in verdict.results if result.check == finite and result.run is not None]
        if not unknown or not all(brief.endswith(" unknown") for brief in unknown):
            return ""
        lacking.append(unknown[0].removesuffix(" unknown"))
    return min(lacking, key=len, default="")


def _other_length(facts: Facts) -> Iterator[str]:
    horizon = facts.horizon
    if horizon.requested is not None:
        return
    for name, steps in horizon.required.items():
        if horizon.planned and horizon.planned[-1] < steps and any(one.criteria == name for one in facts.decisive):
            if horizon.judged is None:
                yield f"train all runs for the {steps:,} steps that {name} asks for"
            elif not _more_seeds_needed(facts):
                yield f"judge by the planned steps with --steps {horizon.judged}, or train for {name}'s {steps:,}"
    if not horizon.planned and any(result.brief == "the planned steps are unknown" for result in _open_results(facts)):
        yield f"give the planned steps: --steps {horizon.reached}, if these runs are whole"


def _open_results(facts: Facts) -> Iterator[CheckResult]:
    for verdict in facts.decisive:
        yield from (result for result in verdict.results if result.outcome is facts.outcome)


def _more_seeds_needed(facts: Facts) -> bool:
    return next(_more_seeds(facts), None) is not None


def _more_seeds(facts: Facts) -> Iterator[str]:
    numbers = [_seeds_for(verdict, facts) for verdict in facts.decisive]
    known = [number for number in numbers if number is not None]
    if known:
        yield f"fix the number of seeds before looking, then train them: --seeds {max(known)}"


def _seeds_for(verdict: Verdict, facts: Facts) -> int | None:
    """Return with how many seeds the rate could be decided in the direction in which it points."""
    wanted, open_sizes = [], rate_is_open_at(verdict)
    for one in facts.statistics_of(verdict, Outcome.INCONCLUSIVE):
        if one["size"] not in open_sizes:
            continue
        fails = one["unhealthy"] > one["healthy"]
        number = one.get("seeds_to_refute" if fails else "seeds_to_support")
        if number is None:
            return None
        wanted.append(number)
    return max(wanted, default=None)
