"""Runs that lie beside those given and would have a say: twins, partners, repetitions, other arms."""

from pathlib import Path
from typing import Any

import pytest
from sets import healthy, plan
from synthetic import healthy_run, quick, simple_run

from bitnetctl.records import Run, load_run, load_set
from bitnetctl.records.bundle import read_bundle, write_bundle
from bitnetctl.records.inventory import AbsentRun, Inventory, take_inventory
from bitnetctl.verdict import JudgeOptions, Outcome, judge, judge_arms, load_criteria, parse_criteria

SOUND = load_criteria("sound")
SUPPORTED, REFUTED, INCONCLUSIVE, INVALID = Outcome
RATE: dict[str, Any] = {"rule": "rate"}
LOSS = {"kind": "level", "measure": "HeldOutLoss", "supported_below": 5.5, "refuted_above": 5.6}
COMPLETION = [{"kind": "finite"}, {"kind": "finished"}]


def test_a_twin_that_is_not_given_leaves_its_run_undecided(tmp_path: Path) -> None:
    """Six runs whose twins fail were supported if the CSVs of the twins were left out of the call."""
    runs = [healthy_run(tmp_path, seed) for seed in range(6)]
    twins = [healthy_run(tmp_path, seed, arm="full-precision", HeldOutLoss=3.6) for seed in range(6)]
    both = judge_arms([*runs, *twins], SOUND, inventory=take_inventory([*runs, *twins]))
    assert both["baseline"].outcome is REFUTED
    verdict = judge(runs, SOUND, inventory=take_inventory(runs))
    assert verdict.outcome is INCONCLUSIVE
    assert (
        "hidden 256, seed 3: the twin with full-precision lies in the same folder and is not given" in verdict.reasons
    )
    # of other seeds, sizes and lengths it is no twin
    others: list[dict[str, Any]] = [{"seed": 7}, {"size": 512}, {"steps": 10_000}, {"arm": "no-decay"}]
    for index, changes in enumerate(others):
        folder = tmp_path / str(index)
        alone = [healthy_run(folder, seed) for seed in range(6)]
        twin: dict[str, Any] = {"arm": "full-precision", "HeldOutLoss": 3.6} | changes
        healthy_run(folder, **twin)
        assert judge(alone, SOUND, inventory=take_inventory(alone)).outcome is SUPPORTED


def test_a_bundle_carries_the_arms_that_share_the_error_rate(tmp_path: Path) -> None:
    """Arms that were swept one by one are in no plan of one another: the bundle of one arm was judged without them."""
    runs = tmp_path / "runs"
    for arm in ("label-smoothing", "reduced-lr"):
        healthy(runs, range(6), arm, planned=plan(6, arm))
    for seed in range(6):
        healthy_run(runs, seed, size=64, arm="wd-schedule")
    given, empty = load_set(healthy(runs, range(6), "no-decay", planned=plan(6, "no-decay")))
    before = take_inventory(given, empty)
    assert set(before.arms) == {"no-decay", "label-smoothing", "reduced-lr", "wd-schedule"}
    write_bundle(tmp_path / "one.zip", given, [], {}, inventory=before)
    unpacked, others = load_set(read_bundle(tmp_path / "one.zip", tmp_path / "unpacked"))
    after = take_inventory(unpacked, others)
    assert (len(unpacked), set(after.arms), after.absent) == (6, set(before.arms), before.absent)
    # of the arm of another length one run tells enough
    assert (len(before.others), len(after.others)) == (18, 13)


def pair(folder: Path, seed: int, arm: str, loss: float, name: str | None = None) -> Run:
    return load_run(simple_run(folder, quick(arm, seed=seed), loss=loss + seed / 1000, name=name))


@pytest.mark.parametrize("claim", [{}, {"claim": "mean"}, {"claim": "mean", "range": [-1.0, 1.0]}])
def test_repetitions_of_a_partner_decide_nothing_by_their_order(tmp_path: Path, claim: dict[str, Any]) -> None:
    """Where the baseline was trained twice, the file given first decided between supported and refuted."""
    check = {"kind": "paired", "measure": "HeldOutLoss", "better": "lower", "margin": 0.1} | claim
    criteria = parse_criteria({"seeds": RATE, "checks": [*COMPLETION, check]})
    ours = [pair(tmp_path, seed, "no-decay", 4.5 + seed * seed / 1000) for seed in range(12)]
    worse = [pair(tmp_path, seed, "", 5.2) for seed in range(12)]
    assert judge_arms([*ours, *worse], criteria)["no-decay"].outcome is SUPPORTED
    better = [pair(tmp_path, seed, "", 3.8, f"again-{seed}") for seed in range(12)]
    assert judge_arms([*ours, *better], criteria)["no-decay"].outcome is REFUTED
    for runs in ([*ours, *worse, *better], [*ours, *better, *worse]):
        assert judge_arms(runs, criteria)["no-decay"].outcome is INCONCLUSIVE
    chosen = [*ours, *worse]
    assert judge_arms(chosen, criteria, inventory=take_inventory(chosen))["no-decay"].outcome is INCONCLUSIVE


def test_runs_of_unknown_seed_that_fail_in_part_refute_nothing(tmp_path: Path) -> None:
    """One failed run of twenty, as one seed, was a failure rate of at least 5 %."""
    criteria = parse_criteria({"seeds": RATE | {"max_failure_rate": 0.04}, "checks": [*COMPLETION, LOSS]})
    runs = [
        healthy_run(tmp_path, seed, name=f"{'abcdefgh'[seed]}.csv", HeldOutLoss=4.1 + seed / 7) for seed in range(8)
    ]
    assert {run.seed for run in runs} == {None}
    failed = [healthy_run(tmp_path, seed, name=f"{'klm'[seed]}.csv", HeldOutLoss=6.1 + seed / 7) for seed in range(3)]
    options = JudgeOptions(requested_steps=20_000)
    some = judge([*runs, failed[0]], parse_criteria({"seeds": RATE, "checks": [*COMPLETION, LOSS]}), options)
    assert some.statistics[0]["undecided"] == 1
    assert judge([*runs, failed[0]], criteria, options).outcome is not REFUTED
    assert judge(failed, criteria, options).outcome is REFUTED


def test_requested_seeds_are_counted_against_runs_of_unknown_seed(tmp_path: Path) -> None:
    """Five files without a seed were supported although six seeds were requested."""
    runs = [healthy_run(tmp_path, seed, name=f"{'abcdef'[seed]}.csv") for seed in range(6)]
    options = JudgeOptions(requested_steps=20_000, seeds=range(6), distinct_seeds=True)
    assert judge(runs, SOUND, options).outcome is SUPPORTED
    verdict = judge(runs[:5], SOUND, options)
    assert verdict.outcome is INCONCLUSIVE
    assert verdict.account == "arm unknown: 5 judged, 1 missing"


def test_nothing_is_said_of_seeds_that_are_not_judged(tmp_path: Path) -> None:
    """`none of 9 seeds failed` was said where three of them were left out."""
    absent = [
        AbsentRun(run=str(s), arm="baseline", size=256, seed=s, planned_steps=20_000, state="left out", reason="failed")
        for s in (6, 7, 8)
    ]
    verdict = judge([healthy_run(tmp_path, s) for s in range(6)], SOUND, inventory=Inventory(absent=tuple(absent)))
    said = "none of 6 seeds failed, 3 more are not judged"
    assert verdict.failure_rate.startswith(f"{said}, which leaves open a failure rate of up to ")
    assert any(f": {said}: the failure rate may be anywhere from " in reason for reason in verdict.reasons)


def test_a_confidence_next_to_one(tmp_path: Path) -> None:
    """No number of seeds decides at an error rate of 0: that was an internal error."""
    for confidence, said in ((1 - 1e-14, "100"), (0.999999, "99.9999")):
        criteria = parse_criteria({"seeds": RATE | {"confidence": confidence}, "checks": [*COMPLETION, LOSS]})
        verdict = judge([healthy_run(tmp_path, seed) for seed in range(3)], criteria)
        assert verdict.outcome is INCONCLUSIVE
        assert f"(one-sided {said} % bound)" in verdict.failure_rate


def test_a_thousand_runs_are_judged_in_seconds(tmp_path: Path) -> None:
    """Looking for twins took time with the third power of the number of runs."""
    runs = [healthy_run(tmp_path, seed) for seed in range(50)]
    asked: list[tuple[object, ...]] = []

    class Watched(list[Run]):
        def __iter__(self) -> Any:
            asked.append(())
            return super().__iter__()

    from bitnetctl.verdict.checks.base import CheckContext
    from bitnetctl.verdict.checks.twin import TwinCheck

    context = CheckContext(candidates=Watched(runs), check_twin=lambda run: pytest.fail(run.name))
    check = SOUND.of_kind(TwinCheck)[0]
    assert {check.judge(run, context) for run in runs} == {None}
    assert len(asked) == 2


def test_an_arm_of_unequal_runs_lends_no_other_arm_its_level(tmp_path: Path) -> None:
    """Five failed seeds of one of two arms refuted it where the other arm was failed and invalid."""
    criteria = parse_criteria({"seeds": RATE, "checks": [*COMPLETION, LOSS]})
    failed = [pair(tmp_path, seed, "", 6.0 + seed / 100) for seed in range(5)]
    fingerprints = [{"fingerprint": "x" if seed < 3 else "y"} for seed in range(10)]
    mixed = [
        load_run(simple_run(tmp_path, quick("no-decay", seed=seed), loss=6 + seed, data=data))
        for seed, data in enumerate(fingerprints)
    ]
    verdicts = judge_arms([*failed, *mixed], criteria)
    assert [verdicts[arm].outcome for arm in ("baseline", "no-decay")] == [INCONCLUSIVE, INVALID]
    alike = [pair(tmp_path / "alike", seed, "no-decay", 6.0 + seed / 10) for seed in range(10)]
    assert {one.outcome for one in judge_arms([*failed, *alike], criteria).values()} == {REFUTED}
