"""Every sentence of the analysis: what it may say, and no more.

A difference is only told from chance by a p-value adjusted over everything that is shown with it; a factor goes with
an outcome and does not explain it; an interval is named by what it is.
"""

import math
from collections.abc import Mapping, Sequence

from bitnetctl.analysis.stats import is_significant
from bitnetctl.units import listed, plural, with_minus

MOST_NAMES = 4
"""Most names of a list in a sentence."""
MOST_MEANS = 8
"""Most means of a term in a sentence."""
AGREES = 0.3
"""Smallest absolute tau-b at which two rankings are said to agree, or to be reversed."""

INTERVAL = "95 % Student interval"
HALF = 0.5
FLOOR_MARK = "min"
"""Beside a p-value that is the smallest that the design can give."""

EFFECTS_TITLE = "Arm minus baseline, by seed"
AGREEMENT_HINT = (
    "Kendall τ-b over runs: +1 ranks them as the held-out loss does, −1 backwards. Runs of an arm are not independent: "
    "p is that of exchanging whole arms, of seeds where there is one arm, under the hypothesis that the arms' values "
    f"have nothing to do with their losses; {FLOOR_MARK} marks the smallest p that so few can give. p (Holm) is "
    "adjusted over all rows."
)


def p_equals(p: float) -> str:
    """Format a p-value, as `p = 0.034`."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def is_floor(p: float | None, floor: float | None) -> bool:
    """Whether a p-value is the smallest possible, that being below 1."""
    return p is not None and floor is not None and floor < 1 and p <= floor * (1 + 1e-9)


def signed(value: float) -> str:
    """Format a difference with its sign."""
    return with_minus(f"{value:+.3f}") if math.isfinite(value) else "+∞" if value > 0 else "−∞"


# paired effects


def effects_hint(tests: int) -> str:
    """Return what the table of effects shows, with its p-values adjusted over `tests`."""
    return (
        "Arm minus baseline at equal size, seed and length. A seed counts once, with its mean over sizes; where "
        "a run failed, the mean difference is that of the seeds without a failure, (5 of 6). The "
        f"{INTERVAL} is that of the mean difference: it covers it in 95 % of cases for nearly normal differences, and "
        "in far fewer where a rare seed collapses. p is that of the exact sign test: the hypothesis is that a seed is "
        "as likely to be better as to be worse, which is true of an arm that changes nothing; it says nothing of the "
        f"mean. p (Holm) is adjusted over the {plural(tests, 'p-value')} of this table, and {FLOOR_MARK} marks the "
        "smallest p that so many seeds can give. Found is the mean difference that this test finds, so adjusted, with "
        "a power of 80 % in as many new seeds, for normal differences with the spread of these."
    )


def effects_line(tests: int) -> str:
    """Return the same in short, for a terminal."""
    if not tests:
        return "better and worse count seeds; with one seed there is no test and no interval"
    return (
        "better and worse count seeds; p: exact sign test of as many better as worse, "
        f"{FLOOR_MARK}: the smallest possible; Holm over {plural(tests, 'p-value')}; the interval is for nearly normal "
        "differences; a mean followed by (5 of 6) is that of the seeds without a failure"
    )


def counts(better: int, worse: int, equal: int) -> str:
    """Return in how many seeds an arm is better or worse, the largest number first."""
    seeds = better + worse + equal
    if not seeds:
        return "no seed to compare"
    ordered = sorted((("better", better), ("worse", worse), ("equal", equal)), key=lambda part: -part[1])
    [(first, most), *others] = ordered
    parts = [
        f"{first} in {most} of {plural(seeds, 'seed')}",
        *(f"{name} in {count}" for name, count in others if count),
    ]
    return ", ".join(parts)


def failures(failed: int, baseline_failed: int, pairs: int) -> str:
    """Return in how many pairs a run failed, on either side; empty without any."""
    sides = (("the arm", failed), ("the baseline", baseline_failed))
    return ", ".join(f"{side} failed in {count} of {plural(pairs, 'pair')}" for side, count in sides if count)


def effect(
    metric: str,
    *,
    better: int,
    worse: int,
    equal: int,
    failed: int,
    baseline_failed: int,
    pairs: int,
    mean: float | None,
    mean_of_finite: float | None,
    interval: tuple[float, float] | None,
    p_holm: float | None,
    tests: int,
) -> str:
    """Return an effect: first in how many seeds, then failures, then how large, then whether it is told from chance."""
    if not better + worse + equal:
        return f"{metric}: no seed to compare."
    parts = [counts(better, worse, equal)]
    parts += filter(None, [failures(failed, baseline_failed, pairs)])
    if mean is not None and math.isfinite(mean):
        spread = f" ({INTERVAL} {signed(interval[0])} to {signed(interval[1])})" if interval else ""
        parts.append(f"mean difference {signed(mean)}{spread}")
    elif mean_of_finite is not None:
        parts.append(f"no mean difference; that of the seeds without a failure is {signed(mean_of_finite)}")
    if p_holm is None:
        parts.append("not tested")
    else:
        told = "" if is_significant(p_holm) else ", not told from chance"
        parts.append(f"{p_equals(p_holm)} over {plural(tests, 'test')} (sign test, Holm){told}")
    return f"{metric}: {'; '.join(parts)}."


# factors


def factors_hint(tests: int) -> str:
    """Return what the table of factors shows, with its p-values adjusted over `tests`."""
    return (
        "η² is the fraction of the variance between runs that goes with a factor or an interaction of two (sums of "
        "squares of type II); fields that changed together are one factor. p is that of permutations among runs with "
        "equal seed and other factors: the hypothesis is that the factor changes nothing. p (Holm) is adjusted over "
        f"the {plural(tests, 'p-value')} of this table, and {FLOOR_MARK} marks the smallest p that the design can give."
    )


def means(by_level: Mapping[str, float], format_spec: str, most: int | None = None) -> str:
    """Format means by level, the first `most`."""
    texts = [f"{level}: {format(mean, format_spec)}" for level, mean in by_level.items()]
    shown = texts[:most]
    return ", ".join(shown) + (f", … {len(texts) - len(shown)} more" if len(shown) < len(texts) else "")


def outcome_unknown(outcome: str) -> str:
    return f"The {outcome} is unknown in every run."


def no_factor(outcome: str) -> str:
    return f"Nothing differs between the configs of these runs that the {outcome} could go with."


def constant(outcome: str, value: str) -> str:
    return f"The {outcome} is {value} in every run: there is no variance to split."


def subject(factors: Sequence[Sequence[str]], name: str) -> str:
    """Return a term with its verb; `factors` are the fields of each of its factors."""
    if len(factors) > 1:
        return f"the interaction {name} goes"
    [fields] = factors
    if len(fields) == 1:
        return f"{name} goes"
    return f"{listed(fields)}, which changed together, go"


def tested(p_holm: float | None, p: float | None, p_floor: float | None, tests: int) -> str:
    """Return the p-value of a term, or why there is none."""
    if p_holm is None or p is None:
        return "not tested, as too few runs differ in it alone"
    floor = f", {p:.2g} alone being the smallest possible" if is_floor(p, p_floor) else ""
    return f"{p_equals(p_holm)} over {plural(tests, 'test')}{floor}"


def term(subject: str, eta_squared: float, tested: str, means: str) -> str:
    """Return the clause on one term."""
    return f"{subject} with {eta_squared:.0%} of its variance ({tested}; {means})"


def goes_with(outcome: str, terms: Sequence[str]) -> str:
    """Return the sentence on the terms that are told from chance, a clause for each."""
    return f"The {outcome}: {'; '.join(terms)}."


def none_told(outcome: str, largest: str) -> str:
    """Return the sentence where no single term is told from chance, with the clause on the largest."""
    return f"The {outcome}: no single term is told from chance; as the largest, {largest}."


def together(
    r_squared: float,
    seed_eta_squared: float | None,
    largest: float,
    *,
    residual: int,
    terms: int,
    tested: str | None,
) -> str:
    """Return how much of the variance all terms hold together; of one term only what the seeds hold."""
    if residual < 1:
        return "The model has as many terms as runs, so that it would hold all of the variance of any values."
    if terms == 1:
        return f"The seeds hold {seed_eta_squared:.0%} of it." if seed_eta_squared is not None else ""
    seeds = "" if seed_eta_squared is None else f", the seeds {seed_eta_squared:.0%}"
    start = "No single term holds half of the variance; together they" if largest < HALF else "Together the terms"
    return f"{start} hold {r_squared:.0%} (R²{f'; {tested}' if tested else ''}){seeds}."


def odd_cell(factors: Sequence[str], cell: str, mean: str, mean_of_rest: str, eta_squared: float, *, told: bool) -> str:
    """Return that one combination of levels differs from the others; `told` if one of its factors is significant."""
    chance = "" if told else "; this is not told from chance"
    return (
        f"Of the combinations of {listed(factors)} one differs from the others: {cell} has {mean}, "
        f"the others have {mean_of_rest} on average, and it alone holds {eta_squared:.0%} of the variance{chance}."
    )


def not_estimable(names: Sequence[str]) -> str:
    return f"These runs cannot tell from other terms: {listed(names, MOST_NAMES)}."


ONE_SEED = "All runs have the same seed: how other seeds would come out is unknown."


# agreement of metrics


def agreement_unknown(when: str, metric: str, reason: str) -> str:
    return f"At the {when}, {metric}: unknown: {reason}."


def too_few_runs(known: int, needed: int) -> str:
    return f"{known} of at least {needed} runs have both"


SAME_VALUE = "every run has the same value"


def agreement(ranking: str, support: str) -> str:
    """Return how a metric ranks the runs, and what that rests on."""
    return f"{ranking} ({support})."


def support_of_ranking(
    tau: float, *, runs: int, units: str, independent: bool, p_holm: float | None, p_floor: float | None
) -> str:
    """Return what a ranking rests on; `units` are what was permuted, as `4 arms`."""
    if p_holm is None:
        about = f"{units} cannot be tested"
    else:
        floor = f", for {units} not below {p_floor:.2g}" if p_floor is not None and p_floor >= 0.01 else ""
        about = f"{p_equals(p_holm)} after Holm{floor}"
    among = f"{plural(runs, 'run')} {'of' if independent else 'in'} {units}{'' if independent else ', not independent'}"
    return f"τ-b {with_minus(f'{tau:+.2f}')} over {among}; {about}"


def ranking(when: str, metric: str, tau: float, p_holm: float | None) -> str:
    """Return how a metric ranks the runs compared with the held-out loss."""
    if not is_significant(p_holm):
        return f"At the {when}, {metric}: order not told from chance"
    if tau <= -AGREES:
        said = "tends to rank the runs backwards: the healthier a run by its held-out loss, the lower it scores"
    elif tau < AGREES:
        said = "says little about which run is healthier by its held-out loss"
    else:
        said = "tends to rank the runs as the held-out loss does"
    return f"At the {when}, {metric} {said}"


# notes


def no_baseline() -> str:
    return "no arm is the baseline of the others; name one with --baseline to see what the others change"


def few_seeds(seeds: int, tests: int, floor: float, needed: int) -> str:
    """Return that no difference can be told from chance, however large."""
    return (
        f"with {plural(seeds, 'seed')} and {plural(tests, 'p-value')} p (Holm) of an effect cannot fall below "
        f"{min(1.0, floor * tests):.2g}; from {needed} seeds on it can reach 0.05, if their number is fixed before "
        "looking"
    )


UNEVEN_SIZES = "its seeds cover different sizes; the mean over seeds mixes seeds with sizes"


def uneven_sizes(arm: str) -> str:
    return f"{arm}: {UNEVEN_SIZES}"


def not_comparable(arm: str, baseline: str, pairs: int, reasons: Sequence[str]) -> str:
    return f"{arm} and {baseline}: {plural(pairs, 'pair')} left out, whose runs differ in {listed(reasons, MOST_NAMES)}"


def differ_slightly(arm: str, baseline: str, pairs: int, reasons: Sequence[str]) -> str:
    return f"{arm} and {baseline}: {plural(pairs, 'pair')} compared, whose runs differ in {listed(reasons, MOST_NAMES)}"


def unfinished(count: int, runs: int) -> str:
    return f"{count} of {runs} runs are unfinished; their final values enter no comparison"


def failed_runs(count: int, runs: int) -> str:
    return (
        f"{count} of {runs} runs failed (diverged or crashed) and are not left out: compared with a baseline "
        "they are infinitely worse, and in the factors their value is that of their worst held-out loss"
    )


def several_probes(probes: int) -> str:
    return (
        f"the runs were measured on {probes} different probes; their losses are not comparable, and metrics are "
        "ranked over the runs with the most common probe only"
    )


def several_codes(arm: str, difference: str) -> str:
    return f"{arm}: its runs are not of one plug-in, though they count as seeds of one arm: {difference}"


def without_config(count: int, runs: int) -> str:
    return f"{count} of {runs} runs have no config and are left out of the factors"


def repeated(run: str, other: str) -> str:
    return f"{run} repeats {other} in arm, size and seed; effects use their mean"
