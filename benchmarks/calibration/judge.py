"""The simulations against the judge: runs made in memory are judged, and the outcomes are those of the simulation."""

import dataclasses
import functools
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from benchmarks.calibration.compared import signs, two_sided
from benchmarks.calibration.counts import LIMIT, p_by_count
from benchmarks.calibration.draws import Floats, Integers, decisions
from benchmarks.calibration.means import betting_p
from benchmarks.calibration.paired import both_gates, p_by_wins
from benchmarks.calibration.tables import Table
from bitnetctl.records import Run, load_run
from bitnetctl.records.inventory import AbsentRun, Inventory
from bitnetctl.verdict import Criteria, Outcome, judge_arms, parse_criteria

SIZE, STEPS = 64, 2_000
ARMS = ("no-decay", "reduced-lr", "label-smoothing")
BASELINE = "baseline"
JUDGINGS, QUICK_JUDGINGS = 120, 3
CODES = {Outcome.SUPPORTED: 1, Outcome.REFUTED: -1, Outcome.INCONCLUSIVE: 0}
BELOW, ABOVE = 0.25, 0.5
MEAN_BELOW, MEAN_ABOVE = 0.6, 0.65
WITHIN = 0.2
MODIFIER = "full-precision"
_POSITIONS = 8192
_CHECKS = ({"kind": "finite", "columns": ["Loss"]}, {"kind": "finished"})


def tables(*, quick: bool = False) -> list[Table]:
    """Return the table; a quick run judges less."""
    with tempfile.TemporaryDirectory() as folder:
        fleet = Fleet(Path(folder))
        return [judge_table(fleet, QUICK_JUDGINGS if quick else JUDGINGS)]


class Fleet:
    """Makes runs in memory from one that is read."""

    def __init__(self, folder: Path) -> None:
        path = folder / f"h{SIZE}-{STEPS}-{BASELINE}-s0-abcdef.csv"
        rows = ["Step,Loss,UniquePredictions,LR,WD,HeldOutLoss,ProbePositions,TopShare"]
        rows += [f"{step},5.0,100,0.001,0.1,5.0,{_POSITIONS},0.2" for step in (1, STEPS // 2, STEPS)]
        path.write_text("\n".join([*rows, ""]), encoding="utf-8")
        self._template = load_run(path)
        self._made = 0

    def run(self, arm: str, seed: int, **columns: float | Sequence[float]) -> Run:
        """Return a run with these values, of every evaluation or of each."""
        # a loss of its own tells it from all others
        self._made += 1
        records = self._template.records
        frame = records.frame.assign(**{"Loss": 4.0 + self._made / 1e6} | columns)
        name = f"h{SIZE}-{STEPS}-{arm}-s{seed}-abcdef"
        return dataclasses.replace(
            self._template,
            path=self._template.path.with_name(f"{name}.csv"),
            name=name,
            arm=arm,
            seed=seed,
            records=dataclasses.replace(records, frame=frame),
        )


Outcomes: TypeAlias = tuple[list[int], list[int]]
"""CODES of the outcomes of all arms, by the judge and by the simulation."""


@dataclass(frozen=True)
class Case:
    """A kind of criteria, and the function that draws runs, judges them and decides by the simulation."""

    name: str
    criteria: Criteria
    seeds: int
    judge: Callable[[Fleet, "Case", np.random.Generator], Outcomes]


def judge_table(fleet: Fleet, judgings: int) -> Table:
    """Judge many draws of every case and count the outcomes, and those in which the simulation differs."""
    rows, faults = [], []
    for case in _cases():
        counted: Counter[int] = Counter()
        differing = []
        for index in range(judgings):
            judged, simulated = case.judge(fleet, case, np.random.default_rng([13, index]))
            counted.update(judged)
            if judged != simulated:
                differing.append(f"draw {index}: judged {judged}, simulated {simulated}")
        faults += [f"{case.name}, {case.seeds} seeds, {one}" for one in differing[:1]]
        outcomes = [str(counted[code]) for code in CODES.values()]
        rows.append([case.name, str(case.seeds), str(judgings), *outcomes, str(len(differing))])
    return Table(
        "The judge against the simulations",
        f"{len(ARMS)} arms of runs made in memory; outcomes are those of the judge.",
        ["case", "seeds", "judgings", "supported", "refuted", "inconclusive", "judgings that differ"],
        rows,
        faults,
    )


def _cases() -> list[Case]:
    level = {"kind": "level", "measure": "TopShare", "supported_below": BELOW, "refuted_above": ABOVE}
    mean = level | {"claim": "mean", "supported_below": MEAN_BELOW, "refuted_above": MEAN_ABOVE}
    pairs = {"kind": "paired", "measure": "HeldOutLoss", "against": BASELINE, "better": "lower", "margin": 0.1}
    equal = {"kind": "equivalent", "measure": "HeldOutLoss", "against": BASELINE, "within": WITHIN}
    gains = pairs | {"kind": "interaction", "modifier": MODIFIER, "margin": 0.0}
    shares = equal | {"measure": "TopShare", "over": "share", "below": 0.5}
    kinds = (
        ("failure rate", level, _failure_rates),
        ('level, claim = "mean"', mean, _means),
        ('paired, claim = "median"', pairs, functools.partial(_pairs, _by_sign)),
        ('paired, claim = "mean"', pairs | {"claim": "mean"}, functools.partial(_pairs, both_gates)),
        ('paired, over = "area"', pairs | {"over": "area"}, functools.partial(_pairs, _by_sign)),
        ("equivalent", equal, _equivalents),
        ('equivalent, over = "share"', shares, _equal_shares),
        ("interaction", gains, _interactions),
    )
    return [Case(name, _criteria(check), seeds, judge) for seeds in (6, 8, 16) for name, check, judge in kinds]


def _criteria(check: dict[str, Any]) -> Criteria:
    return parse_criteria({"seeds": {"rule": "rate"}, "checks": [*_CHECKS, check]})


def _failure_rates(fleet: Fleet, case: Case, generator: np.random.Generator) -> Outcomes:
    """Runs around both thresholds, some failed without rows, some missing."""
    centers = generator.choice([0.1, 0.2, 0.4, 0.6, 0.7], (len(ARMS), 1))
    values_KN = np.clip(centers + 0.1 * generator.standard_normal((len(ARMS), case.seeds)), 0.001, 1.0)
    states_KN = generator.choice(["here", "failed", "missing"], values_KN.shape, p=[0.93, 0.05, 0.02])
    runs, absent, p = [], [], []
    for arm, values, states in zip(ARMS, values_KN.tolist(), states_KN.tolist(), strict=True):
        unhealthy = not_healthy = 0
        for seed, (value, state) in enumerate(zip(values, states, strict=True)):
            if state == "here":
                runs.append(fleet.run(arm, seed, TopShare=value))
            else:
                absent.append(_absent(arm, seed, state))
            unhealthy += state == "failed" or (state == "here" and value > ABOVE)
            not_healthy += state == "failed" or (state == "here" and value >= BELOW)
        supporting, refuting = p_by_count(case.seeds, LIMIT, states.count("missing"))
        p.append((supporting[not_healthy], refuting[unhealthy]))
    return _outcomes(case, runs, np.array(p), Inventory(absent=tuple(absent), arms=ARMS))


def _means(fleet: Fleet, case: Case, generator: np.random.Generator) -> Outcomes:
    """Means below, between and above the thresholds."""
    centers = generator.choice([0.02, 0.1, 0.2, 0.4, 0.8, 0.95], (len(ARMS), 1))
    values_KN = np.clip(centers + 0.03 * generator.standard_normal((len(ARMS), case.seeds)), 0.001, 1.0)
    runs = [
        fleet.run(arm, seed, TopShare=value)
        for arm, values in zip(ARMS, values_KN.tolist(), strict=True)
        for seed, value in enumerate(values)
    ]
    clean_supporting, clean_refuting = (p[0] for p in p_by_count(case.seeds, LIMIT))
    supporting = np.maximum(betting_p(values_KN, MEAN_BELOW, 1.0)[:, -1], clean_supporting)
    refuting = np.minimum(betting_p(values_KN, MEAN_ABOVE, 1 / _POSITIONS)[:, -1], clean_refuting)
    return _outcomes(case, runs, np.stack([supporting, np.minimum(1.0, 2 * refuting)], axis=1))


def _pairs(
    test: Callable[[Floats], tuple[Floats, Floats]], fleet: Fleet, case: Case, generator: np.random.Generator
) -> Outcomes:
    """Arms that lose, are equal to the margin on average, or win; the baseline gets no verdict."""
    theirs_N = 5 + 0.3 * generator.standard_normal(case.seeds)
    effects = generator.choice([-0.2, 0.1, 0.3, 0.5], (len(ARMS), 1))
    ours_KN = theirs_N - effects + 0.1 * generator.standard_normal((len(ARMS), case.seeds))
    rising = bool(case.criteria.comparisons[0].over == "area")
    runs = [
        # with a time average of the loss: it weighs 3/4 at step 1,000 and 1/4 at step 2,000
        fleet.run(arm, seed, HeldOutLoss=[9.0, loss - 0.5, loss + 1.5] if rising else loss)
        for arm, losses in zip((BASELINE, *ARMS), [theirs_N.tolist(), *ours_KN.tolist()], strict=True)
        for seed, loss in enumerate(losses)
    ]
    return _outcomes(case, runs, np.stack(test((theirs_N - ours_KN - 0.1)[:, None, :]), axis=2)[:, 0])


def _equivalents(fleet: Fleet, case: Case, generator: np.random.Generator) -> Outcomes:
    """Arms that differ by less than the limit, by as much, or by more, to both sides."""
    theirs_N = 5 + 0.3 * generator.standard_normal(case.seeds)
    effects = generator.choice([0.0, 0.05, WITHIN, -0.5, 0.5], (len(ARMS), 1))
    ours_KN = theirs_N + effects + 0.08 * generator.standard_normal((len(ARMS), case.seeds))
    runs = [
        fleet.run(arm, seed, HeldOutLoss=loss)
        for arm, losses in zip((BASELINE, *ARMS), [theirs_N.tolist(), *ours_KN.tolist()], strict=True)
        for seed, loss in enumerate(losses)
    ]
    return _outcomes(case, runs, _beside_a_failure_rate(two_sided(ours_KN - theirs_N, WITHIN), case.seeds))


def _equal_shares(fleet: Fleet, case: Case, generator: np.random.Generator) -> Outcomes:
    """Runs that are healthy never, up to step 1,000, after it, or always: shares of 0, 3/4, 1/4 and 1."""
    chances = generator.choice([0.05, 0.5, 0.95], (len(ARMS) + 1, 1, 1))
    healthy_KNE = generator.random((len(ARMS) + 1, case.seeds, 2)) < chances
    shares_KN = healthy_KNE @ np.array([0.75, 0.25])
    runs = [
        fleet.run(arm, seed, TopShare=[0.01, *(0.1 if healthy else 0.9 for healthy in of_run)])
        for arm, of_arm in zip((BASELINE, *ARMS), healthy_KNE.tolist(), strict=True)
        for seed, of_run in enumerate(of_arm)
    ]
    return _outcomes(case, runs, _beside_a_failure_rate(two_sided(shares_KN[1:] - shares_KN[0], WITHIN), case.seeds))


def _interactions(fleet: Fleet, case: Case, generator: np.random.Generator) -> Outcomes:
    """Gains that are larger, equal or smaller with the modifier; only the arms without it get a verdict."""
    arms = (BASELINE, *ARMS)
    losses_KN, modified_KN = 5 + 0.1 * generator.standard_normal((2, len(arms), case.seeds))
    losses_KN[1:] -= generator.choice([-0.4, 0.0, 0.4], (len(ARMS), 1))
    runs = [
        fleet.run(arm, seed, HeldOutLoss=loss)
        for arm, of_arm in [
            *zip(arms, losses_KN.tolist(), strict=True),
            *zip((MODIFIER, *(f"{MODIFIER}+{arm}" for arm in ARMS)), modified_KN.tolist(), strict=True),
        ]
        for seed, loss in enumerate(of_arm)
    ]
    values_KN = (losses_KN[0] - losses_KN[1:]) - (modified_KN[0] - modified_KN[1:])
    return _outcomes(case, runs, _beside_a_failure_rate(signs(values_KN), case.seeds))


def _beside_a_failure_rate(p: tuple[Floats, Floats], seeds: int) -> Floats:
    """Return the p-values (arms × 2) of a statement beside that of seeds of which none failed."""
    supporting, refuting = p
    clean_supporting, clean_refuting = (of_count[0] for of_count in p_by_count(seeds, LIMIT))
    return np.stack(
        [np.maximum(supporting, clean_supporting), np.minimum(1.0, 2 * np.minimum(refuting, clean_refuting))], axis=1
    )


def _by_sign(improvements_SKN: Floats) -> tuple[Floats, Floats]:
    wins: Integers = (improvements_SKN > 0).sum(axis=2)
    supporting, refuting = p_by_wins(improvements_SKN.shape[2])
    return supporting[wins], refuting[wins]


def _outcomes(case: Case, runs: Sequence[Run], p: Floats, inventory: Inventory | None = None) -> Outcomes:
    """Judge the runs, and decide by the p-values (arms × 2)."""
    verdicts = judge_arms(runs, case.criteria, inventory=inventory)
    judged = [CODES[verdicts[arm].outcome] for arm in ARMS]
    return judged, decisions(p[None, :, 0], p[None, :, 1])[0].tolist()


def _absent(arm: str, seed: int, state: Any) -> AbsentRun:
    return AbsentRun(
        run=f"h{SIZE}-{STEPS}-{arm}-s{seed}-abcdef",
        arm=arm,
        size=SIZE,
        seed=seed,
        planned_steps=STEPS,
        state=state,
        reason="made up",
    )
