"""How many seeds to plan: what the rule needs, how often it decides, and what looking in between does."""

import math
from collections.abc import Sequence

import numpy as np

from benchmarks.calibration.counts import LIMIT, former_rule, p_by_count, p_values
from benchmarks.calibration.draws import ALPHA, DRAWS, QUICK_DRAWS, Booleans, Floats, Integers, decisions, exceeds
from benchmarks.calibration.tables import Table, rate_text, rates_text
from bitnetctl.verdict.rule import Tally, fewest_seeds, seeds_to_decide

SEEDS = (3, 5, 6, 8, 10, 12, 20)
NUMBERS_OF_ARMS = (1, 2, 8)
HEALTHY = {"0": 0.0, "0.02": 0.02, "0.05": 0.05, "0.1": 0.1, "values 2 sd above": 0.02275, "values 1 sd above": 0.15866}
FAILING = {"0.9": 0.9, "1": 1.0}
PLANNED_ARMS = (1, 2, 3, 4, 8)
LIMITS = (0.5, 0.25, 0.1)
EXACT_SEEDS = range(5, 14)
SCHEDULES = ((3, 6, 10), tuple(range(3, 11)), tuple(range(5, 21)))
SCALE = 0.25


def tables(*, quick: bool = False) -> list[Table]:
    """Return the tables; a quick run has fewer draws."""
    draws = QUICK_DRAWS if quick else DRAWS
    return [seeds_table(), efficient_table(), power_table(draws), looks_table(draws)]


def seeds_table() -> Table:
    """Return the fewest seeds with which the rule can support, by failures among them, and refute."""
    rows = []
    for limit in LIMITS:
        cells = []
        for arms in PLANNED_ARMS:
            fewest = [seeds_to_decide(Tally(unhealthy=failed), limit, ALPHA / arms)[0] for failed in range(4)]
            refuting = seeds_to_decide(Tally(), limit, ALPHA / arms)[1]
            cells.append(f"{', '.join(map(str, fewest))}; {refuting}")
        rows.append([f"{limit:g}", *cells])
    return Table(
        "Fewest seeds that decide",
        "Cells: seeds that support with 0, 1, 2, 3 failures among them; seeds that refute if all fail. An arm has its "
        "own level, 5 % over the number of arms; beside arms that are decided, fewer may do.",
        ["max_failure_rate", *(f"{arms} arm{'s' * (arms > 1)}" for arms in PLANNED_ARMS)],
        rows,
    )


def efficient_table() -> Table:
    """Return the exact probability of support for one arm, and which numbers of seeds are worth planning."""
    rates = (0.0, 0.02, 0.05, 0.1)
    rows, faults = [], []
    best = [0.0] * len(rates)
    for seeds in EXACT_SEEDS:
        supporting, _ = p_by_count(seeds, LIMIT)
        most = int((supporting < ALPHA).sum()) - 1
        power = [sum(_binomial(seeds, failed, rate) for failed in range(most + 1)) for rate in rates]
        if power[0] < best[0]:
            faults.append(f"{seeds} seeds: more seeds take support from an arm without failures")
        falls = any(now < before for now, before in zip(power, best, strict=True))
        best = [max(pair) for pair in zip(power, best, strict=True)]
        worth = "less power than fewer seeds" if falls else "yes"
        rows.append([str(seeds), str(most), *map(rate_text, power), worth])
    return Table(
        "Probability that one arm is supported, exact (max_failure_rate 0.5)",
        "By the true failure rate. Support takes a whole number of failures, so that one seed more can need a run "
        "more without allowing a failure more: power falls, except for an arm that never fails.",
        ["seeds", "failures allowed", *(f"rate {rate:g}" for rate in rates), "worth planning"],
        rows,
        faults,
    )


def power_table(draws: int) -> Table:
    """Return how often true claims are supported and false ones refuted, for arms beside others like them."""
    rows, faults = [], []
    for arms in NUMBERS_OF_ARMS:
        for verdict, rates in ((1, HEALTHY), (-1, FAILING)):
            for name, rate in rates.items():
                generator = np.random.default_rng(5)
                power = []
                for seeds in SEEDS:
                    count = generator.binomial(seeds, rate, (draws, arms))
                    decided = decisions(*p_values(count, count, seeds))
                    power.append(float((decided == verdict).mean()))
                if rate == 0.0 and power != sorted(power):
                    faults.append(f"{arms} arms: more seeds take support from arms without failures")
                rows.append([str(arms), "supported" if verdict == 1 else "refuted", name, *map(rate_text, power)])
    rows += _former_power(draws)
    return Table(
        f"Power: how often an arm is decided rightly, max_failure_rate 0.5 ({draws:,} draws)",
        "By the true failure rate, or with normal values whose mean is 1 or 2 standard deviations above the "
        "threshold; all arms alike.",
        ["arms", "verdict", "failing", *(f"n = {seeds}" for seeds in SEEDS)],
        rows,
        faults,
    )


def _former_power(draws: int) -> list[list[str]]:
    values_SN = np.random.default_rng(7).standard_normal((draws, max(SEEDS)))
    rows = []
    for above in (2, 1):
        power = [float(former_rule(values_SN[:, :seeds], -above, -math.inf)[0].mean()) for seeds in SEEDS]
        rows.append(["1", "supported by version 0.1.0", f"values {above} sd above", *map(rate_text, power)])
    return rows


def looks_table(draws: int) -> Table:
    """Return the real error rate of a plan that grows until a decision, and of looking before all runs have ended."""
    most = max(map(max, SCHEDULES))
    generator = np.random.default_rng(6)
    values_SN = SCALE * generator.standard_normal((draws, most))
    below = values_SN < 0
    rows, faults = [], []
    for schedule in SCHEDULES:
        supported, refuted = _first_decisions([_decided(below, seeds) for seeds in schedule])
        looks = sum(number >= fewest_seeds(LIMIT, ALPHA) for number in schedule)
        bound = min(1.0, looks * ALPHA)
        former = [_former(values_SN[:, :seeds]) for seeds in schedule]
        ours = [float(rate.mean()) for rate in (supported, refuted)]
        theirs = [float(np.any([look[side] for look in former], axis=0).mean()) for side in (0, 1)]
        faults += [f"looks at {schedule}: {rate:.4f}" for rate in ours if exceeds(rate, draws, bound)]
        grown = f"every n from {schedule[0]} to {schedule[-1]}"
        name = grown if len(schedule) > 3 else " → ".join(map(str, schedule))
        rows.append([name, str(looks), rate_text(bound), rates_text(*ours), rates_text(*theirs)])
    for planned, seen in ((10, (3, 6)), (20, (5, 10, 15))):
        early = [_decided(below[:, :look], planned, absent=planned - look) for look in seen]
        final = _decided(below, planned)
        supported, refuted = _first_decisions([*early, final])
        if any((decided * final < decided * decided).any() for decided in early):
            faults.append(f"plan of {planned}: a decision before the end was overturned")
        ours = [float(rate.mean()) for rate in (supported, refuted)]
        faults += [f"plan of {planned}: {rate:.4f}" for rate in ours if exceeds(rate, draws)]
        name = f"plan of {planned}, judged after {', '.join(map(str, seen))} too"
        rows.append([name, "1", rate_text(ALPHA), rates_text(*ours), "–"])
    return Table(
        f"Looking more than once, with a stop at the first decision, one arm at the limit ({draws:,} draws)",
        "Cells: supported / refuted wrongly. `bound` is looks × 5 %, as the verdict notes it; 3 and 4 seeds cannot "
        "decide and are no look. Version 0.1.0: its rule, with normal values whose mean is at the threshold.",
        ["seeds", "looks", "bound", "this rule", "version 0.1.0"],
        rows,
        faults,
    )


def _former(values_SN: Floats) -> tuple[Booleans, Booleans]:
    return former_rule(values_SN, 0.0, -math.inf)[0], former_rule(values_SN, math.inf, 0.0)[1]


def _decided(below: Booleans, planned: int, absent: int = 0) -> Integers:
    """Return the decisions on a plan of which all but `absent` runs are there."""
    count = below[:, : planned - absent].sum(axis=1)
    supporting, refuting = p_values(count, count, planned, absent=absent)
    return decisions(supporting[:, None], refuting[:, None])[:, 0]


def _first_decisions(looks: Sequence[Integers]) -> tuple[Booleans, Booleans]:
    """Return where the first decision is support, and where it is refutation."""
    first = looks[0]
    for decided in looks[1:]:
        first = np.where(first == 0, decided, first)
    return first == 1, first == -1


def _binomial(seeds: int, failed: int, rate: float) -> float:
    return math.comb(seeds, failed) * rate**failed * (1 - rate) ** (seeds - failed)
