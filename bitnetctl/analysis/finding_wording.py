"""The sentences of findings: shorter than those of the tables, with the same limits on what they may say.

Where most seeds point is a count and no test; what the test shows or cannot show stands beside it.
"""

from collections.abc import Iterator, Mapping, Sequence

from bitnetctl.analysis.stats import is_significant
from bitnetctl.analysis.wording import counts, p_equals, signed
from bitnetctl.units import listed, plural

# arms


def seeds_compared(better: int, worse: int, equal: int) -> str:
    """Return in how many seeds an arm is better or worse."""
    seeds = better + worse + equal
    for word, count in (("better", better), ("worse", worse), ("equal", equal)):
        if count == seeds > 1:
            return f"{'both' if seeds == 2 else f'all {seeds}'} seeds {word}"
    return counts(better, worse, equal)


def arm_finding(
    arm: str,
    against: str,
    metric: str,
    *,
    better: int,
    worse: int,
    equal: int,
    mean: float | None,
    finite_seeds: int,
    failures: str,
    steps_to_baseline: Mapping[int, int],
    sizes: int,
) -> str:
    """Return a difference: its size, the seeds, the failures; `mean` is that of the seeds without a failure.

    No help is visible where no more seeds are better than worse; where all are worse, that is said instead.
    """
    seeds = better + worse + equal
    size = "" if mean is None else f" {signed(mean)}"
    if mean is not None and finite_seeds < seeds:
        size += f" over the {plural(finite_seeds, 'seed')} without a failure"
    no_help = "no visible help, " if better <= worse < seeds and equal < seeds else ""
    reached = at_final_loss(against or "the baseline", steps_to_baseline, sizes, seeds)
    parts = [f"{metric}{size}", seeds_compared(better, worse, equal), failures, reached]
    return f"{named(arm, against)}: {no_help}{', '.join(filter(None, parts))}"


def at_final_loss(of: str, steps: Mapping[int, int], sizes: int, seeds: int) -> str:
    """Return when an arm has the loss at which another ends, of the sizes at which it does before its end."""
    if not steps:
        return ""
    texts = [f"{step:,}" + f" at h{size}" * (sizes > 1) for size, step in steps.items()]
    return f"at the final loss of {of} by step {listed(texts)}" + " in the median" * (seeds > 1)


def no_effect(arm: str, against: str) -> str:
    return f"{named(arm, against)}: nothing to compare, no pair of equal size, seed and steps has a known value"


def named(arm: str, against: str) -> str:
    """Return an arm, with its baseline where that is not the usual one."""
    return f"{arm} against {against}" if against else arm


def sign_test(p_holm: float, tests: int) -> str:
    """Return whether the sign test tells a difference from chance."""
    told = "told" if is_significant(p_holm) else "not told"
    return f"{told} from chance: {p_equals(p_holm)} over {plural(tests, 'test')} (sign test, Holm)"


def cannot_show(seeds: int, tests: int, needed: int) -> str:
    """Return that no difference could be told from chance, however large."""
    return (
        f"{plural(seeds, 'seed')} cannot show p < 0.05 over {plural(tests, 'test')}: "
        f"{needed} could, if their number is fixed before looking"
    )


ONE_SEED = "one seed: no test, and how others would come out is unknown"
MEAN_AGAINST_SEEDS = "the mean points the other way than most seeds"


def other_metric(metric: str, better: int, worse: int, equal: int, mean: float | None) -> str:
    """Return that another metric points the other way."""
    return f"but {metric}{'' if mean is None else f' {signed(mean)}'}, {seeds_compared(better, worse, equal)}"


def sizes_disagree(by_size: Mapping[str, float]) -> str:
    means = ", ".join(f"{size}: {signed(value)}" for size, value in by_size.items())
    return f"the sizes disagree ({means})"


def unpaired(runs: int) -> str:
    return f"{plural(runs, 'run')} without a partner"


# collapse


def collapses(arm: str, runs: int, collapsed: int, median: int | None, recovered: int) -> str:
    """Return how many runs of an arm collapsed and recovered; `median` is that of the steps at which they did."""
    if not runs:
        return f"{arm}: collapse unknown"
    if runs == 1:
        ending = "" if median is None else f" at step {median:,}, {'recovered' if recovered else 'not recovered'}"
        return f"{arm}: {'no collapse' if median is None else 'collapsed'}{ending}"
    if median is None:
        return f"{arm}: none of {plural(runs, 'run')} collapsed"
    at = f"at step {median:,}" if collapsed == 1 else f"first at step {median:,} in the median"
    return f"{arm}: {collapsed} of {plural(runs, 'run')} collapsed ({at}), {recovered or 'none'} recovered"


def about_collapses(
    *, seeds: int | None, sizes: int, brief: int, unknown: int, unfinished: int, below: str
) -> Iterator[str]:
    """Yield what the counts rest on; `below` is what `below_unigram` says."""
    if seeds:
        at_sizes = f" at {sizes} sizes" if sizes > 1 else ""
        yield f"a count over {plural(seeds, 'seed')}{at_sizes}, not a test"
    if brief:
        yield f"{brief} more for fewer than three evaluations in a row, which does not count"
    if below:
        yield below
    if unfinished:
        yield f"{unfinished} not finished"
    if unknown:
        yield f"unknown in {plural(unknown, 'run')}"


def below_unigram(below: int, known: int) -> str:
    """Return how many runs end at or above the loss of a unigram predictor; empty for none."""
    return (
        f"{below} of {plural(known, 'run')} end{'s' * (known == 1)} no better than a unigram predictor" if below else ""
    )


def collapse_unknown(runs: int) -> str:
    return (
        f"collapse is unknown in {'the run' if runs == 1 else f'all {runs} runs'}: no evaluation after step 1 and the "
        "warm-up tells it"
    )


# factors


def factor_finding(subject: str, fraction: float, outcome: str, means: str, *, told: bool) -> str:
    """Return the clause on a term; `subject` has its verb."""
    text = f"{subject} with {fraction:.0%} of the variance of the {outcome} ({means})"
    return text if told else f"no single factor is told from chance; as the largest, {text}"


ONE_SEED_OF_FACTORS = "all runs have one seed: how others would come out is unknown"


# data


def several_lengths(steps: Sequence[int]) -> str:
    return f"runs of {listed([f'{count:,}' for count in steps], 4)} steps: only runs of equal length are compared"
