"""The one value of a run: the end, the time average, and the share of the steps."""

import math
from pathlib import Path
from typing import Any

import pytest
from synthetic import LEVELS, bare_run, curve, healthy_run, quick, two_stages, write_csv, write_run

from bitnetctl.errors import ConfigError
from bitnetctl.records import Run, load_run
from bitnetctl.verdict import Criteria, Outcome, Verdict, judge_arms, parse_criteria
from bitnetctl.verdict.aggregate import Aggregate

SUPPORTED, REFUTED, INCONCLUSIVE, INVALID = Outcome
AREA, SHARE = Aggregate(over="area"), Aggregate(over="share", above=50.0)


def run_of(folder: Path, unique: list[Any], steps: list[int] | None = None, *, planned: int = 1000) -> Run:
    """Write a run with a manifest and these distinct predictions, by default at step 1 and every 100 of 1,000 steps."""
    steps = steps or [1, *range(100, planned + 1, 100)]
    config = quick(steps=planned)
    decay = [0.1 if step <= config.boundary_step else 0.0 for step in steps]
    return load_run(write_run(folder, config, curve(steps, UniquePredictions=unique, WD=decay)))


def test_the_time_average_by_hand(tmp_path: Path) -> None:
    run = run_of(tmp_path, [8000, 10, 30, 90], [1, 200, 400, 1000])
    # 10 up to step 200, then lines: 20 on 200 steps, 60 on 600
    assert AREA.value(run, "UniquePredictions") == pytest.approx((200 * 10 + 200 * 20 + 600 * 60) / 1000)
    # the boundary is at step 500, a sixth of the way from 30 to 90
    first, second = (Aggregate(over="area", stage=stage) for stage in (1, 2))
    assert first.value(run, "UniquePredictions") == pytest.approx((200 * 10 + 200 * 20 + 100 * 35) / 500)
    assert second.value(run, "UniquePredictions") == pytest.approx(65)


def test_the_share_of_the_steps_by_hand(tmp_path: Path) -> None:
    run = run_of(tmp_path, [8000, 60, 30, 50, 90], [1, 200, 400, 600, 1000])
    # a crossing counts as half way: 200 and half of 200, then half of the last 400; 50 is not above 50
    assert SHARE.value(run, "UniquePredictions") == pytest.approx((200 + 100 + 200) / 1000)
    below = Aggregate(over="share", below=50.0)
    assert below.value(run, "UniquePredictions") == pytest.approx((100 + 100) / 1000)
    # of stage 2 nothing but the second half of the last line, at which the last 400 of 500 steps begin
    assert Aggregate(over="share", above=50.0, stage=2).value(run, "UniquePredictions") == pytest.approx(200 / 500)


def test_a_constant_is_its_own_average_however_often_it_is_evaluated(tmp_path: Path) -> None:
    for index, steps in enumerate(([1, 1000], [1, 3, 17, 500, 501, 1000], [1, *range(10, 1001, 10)])):
        run = run_of(tmp_path / str(index), [9000, *[70] * (len(steps) - 1)], steps)
        for stage in ("run", 1, 2):
            assert Aggregate(over="area", stage=stage).value(run, "UniquePredictions") == 70
            assert Aggregate(over="share", above=50.0, stage=stage).value(run, "UniquePredictions") == 1


@pytest.mark.parametrize(
    ("at", "value", "expected"),
    [(1, None, True), (1, "nan", True), (4, None, None), (4, "nan", math.nan), (4, "inf", math.inf)],
)
def test_unknown_cells_and_values_that_are_not_finite(tmp_path: Path, at: int, value: Any, expected: Any) -> None:
    """A cell of a derived measure; step 1 counts for nothing."""
    losses: list[Any] = [7.0] * 11
    losses[at - 1] = value
    run = bare_run(tmp_path, [8000, *[60] * 10], **LEVELS | {"HeldOutLoss": losses})
    for aggregate, measure in ((AREA, "HeldOutLoss"), (Aggregate(over="share", above=6.0), "HeldOutLoss")):
        found = aggregate.value(run, measure)
        if expected is None or expected is True:
            assert (found is not None) is bool(expected)
        else:
            assert found == pytest.approx(expected, nan_ok=True)


def test_what_is_not_finite_in_the_other_stage_counts_for_nothing(tmp_path: Path) -> None:
    run = run_of(tmp_path, [8000, 60, "nan", *[60] * 8])
    values = [Aggregate(over="area", stage=stage).value(run, "UniquePredictions") for stage in ("run", 1, 2)]
    assert values == pytest.approx([math.nan, math.nan, 60], nan_ok=True)


def test_a_boundary_that_is_an_interval_makes_a_stage_unknown(tmp_path: Path) -> None:
    # decay is 0 from step 12,000 on: the boundary is anywhere from 10,000 to 11,999
    log = bare_run(tmp_path, [8000, *range(10, 110, 10)])
    assert log.boundary_interval == (10_000, 11_999)
    for aggregate in (Aggregate(over="area", stage=2), Aggregate(over="share", above=50.0, stage=1)):
        assert aggregate.value(log, "UniquePredictions") is None
        assert aggregate.why_unknown(log) == "stage 1 ends somewhere in steps 10,000 to 11,999"
    assert AREA.value(log, "UniquePredictions") is not None
    # which evaluations belong to a stage is known
    assert Aggregate(stage=1).value(log, "UniquePredictions") == 50
    assert Aggregate(stage=2, last=3).value(log, "UniquePredictions") == 90
    assert Aggregate(stage=2, last=6).value(log, "UniquePredictions") is None


def criteria(check: dict[str, Any]) -> Criteria:
    return parse_criteria(
        {
            "seeds": {"rule": "rate"},
            "checks": [{"kind": "finite", "columns": ["Loss"]}, {"kind": "finished"}, check],
        }
    )


def level(**fields: Any) -> Criteria:
    return criteria({"kind": "level", "measure": "UniquePredictions"} | fields)


def verdict_on(run: Run, chosen: Criteria) -> Verdict:
    [verdict] = judge_arms([run], chosen).values()
    return verdict


def result(verdict: Verdict) -> tuple[Outcome, str]:
    (found,) = ((one.outcome, one.reason) for one in verdict.results if one.check.startswith("level"))
    return found


def test_a_level_over_the_steps(tmp_path: Path) -> None:
    run = healthy_run(tmp_path)
    area = {"over": "area", "supported_above": 100, "refuted_below": 20}
    assert result(verdict_on(run, level(**area))) == (
        SUPPORTED,
        "UniquePredictions averaged over the run 200 > 100",
    )
    share = {"over": "share", "above": 50, "supported_above": 0.9, "refuted_below": 0.5}
    assert result(verdict_on(run, level(**share))) == (
        SUPPORTED,
        "share of the run with UniquePredictions > 50 1 > 0.9",
    )
    stage = result(verdict_on(run, level(**share, stage=2)))
    assert stage == (
        INCONCLUSIVE,
        "share of stage 2 with UniquePredictions > 50 is unknown: stage 1 ends somewhere in steps 10,000 to 11,999",
    )


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        # 8,192 positions
        ({"over": "area", "supported_above": 9000, "refuted_below": 20}, "UniquePredictions averaged over the run > 9"),
        (
            {"over": "share", "above": 9000, "supported_above": 0.9, "refuted_below": 0.5},
            "share of the run with UniquePredictions > 9,000 > 0.9 of at most 0 (UniquePredictions is never > 9,000: ",
        ),
        (
            {"over": "share", "above": -1, "supported_below": 0.5, "refuted_above": 0.9},
            "share of the run with UniquePredictions > -1 < 0.5 of at least 1 (UniquePredictions is always > -1: ",
        ),
        (
            {"over": "share", "below": 50, "supported_above": 1, "refuted_below": 0.5},
            "share of the run with UniquePredictions < 50 > 1 of at most 1 (a share) cannot be met",
        ),
    ],
)
def test_a_threshold_that_cannot_be_reached(tmp_path: Path, fields: dict[str, Any], reason: str) -> None:
    outcome, text = result(verdict_on(healthy_run(tmp_path), level(**fields)))
    assert outcome is INVALID
    assert text.startswith(reason)


def test_a_mean_of_shares_needs_no_range(tmp_path: Path) -> None:
    runs = [healthy_run(tmp_path, seed) for seed in range(12)]
    share = {"over": "share", "above": 50, "supported_above": 0.6, "refuted_below": 0.5, "claim": "mean"}
    [verdict] = judge_arms(runs, level(**share)).values()
    assert verdict.outcome is SUPPORTED


def test_an_impossible_evaluation_in_the_middle_is_damage(tmp_path: Path) -> None:
    run = bare_run(tmp_path, [8000, *[209] * 10], **LEVELS | {"TopShare": [0.1] * 5 + [1.5] + [0.1] * 5})
    area = {"kind": "level", "measure": "TopShare", "over": "area", "supported_below": 0.5, "refuted_above": 0.9}
    assert result(verdict_on(run, criteria(area))) == (
        INCONCLUSIVE,
        "TopShare 1.5 is impossible: the file is damaged",
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"over": "share"}, 'over = "share" needs above or below'),
        ({"over": "share", "above": 1, "below": 2}, 'over = "share" needs above or below'),
        ({"over": "area", "above": 1}, 'above is for over = "share"'),
        ({"below": 1}, 'below is for over = "share"'),
        ({"over": "area", "last": 3}, 'last is for over = "end"'),
        ({"over": "area", "at": "boundary"}, 'at = "boundary" is the end of stage 1'),
        ({"stage": 3}, "stage: "),
    ],
)
def test_a_mistake_is_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        level(**fields, supported_above=100, refuted_below=20)
    assert message in str(caught.value)


def test_old_criteria_keep_their_hash() -> None:
    old = level(supported_above=100, refuted_below=20, last=3)
    same = level(supported_above=100, refuted_below=20, last=3, over="end", stage="run")
    assert old.hash == same.hash
    assert old.hash != level(supported_above=100, refuted_below=20, last=3, stage=2).hash


# pairs


def pair(folder: Path, arm: str, seed: int, unique: list[int], every: int = 2000) -> Run:
    rows = two_stages(unique, every * (len(unique) - 1), **LEVELS | {"Loss": 6.0 + seed / 1000 + (arm == "cure") / 10})
    name = f"h256-20000-{arm}-s{seed}-abcdef.csv"
    return load_run(write_csv(folder / name, rows))


def test_pairs_are_compared_by_what_is_over_the_steps(tmp_path: Path) -> None:
    """The arm is ahead all the time and behind at the end."""
    runs = []
    for seed in range(5):
        runs.append(pair(tmp_path, "baseline", seed, [8000, *[20] * 9, 300]))
        runs.append(pair(tmp_path, "cure", seed, [8000, *[100] * 10]))
    check = {"kind": "paired", "measure": "UniquePredictions", "better": "higher"}
    over = {name: judge_arms(runs, criteria(check | fields))["cure"] for name, fields in OVER.items()}
    assert {name: verdict.outcome for name, verdict in over.items()} == {
        "end": INCONCLUSIVE,
        "area": SUPPORTED,
        "share": SUPPORTED,
    }
    (reason,) = (one.reason for one in over["share"].results if one.check.startswith("paired"))
    assert reason == (
        "share of the run with UniquePredictions > 50 is higher than baseline in 5 of 5 planned pairs, median "
        "improvement 0.95: so is the median pair (p = 0.0312, below 0.05)"
    )
    [figures] = over["area"].statistics[0]["pairs"].values()
    # 20 up to 18,000, then a line to 300
    assert figures["values"]["0"] == pytest.approx(100 - (18_000 * 20 + 2000 * 160) / 20_000)


OVER: dict[str, dict[str, Any]] = {"end": {}, "area": {"over": "area"}, "share": {"over": "share", "above": 50}}


def test_runs_that_were_evaluated_at_other_steps_are_not_compared_over_the_steps(tmp_path: Path) -> None:
    runs = []
    for seed in range(5):
        runs.append(pair(tmp_path, "baseline", seed, [8000, *[100] * 10]))
        runs.append(pair(tmp_path, "cure", seed, [8000, *[200] * 20], every=1000))
    check = {"kind": "paired", "measure": "UniquePredictions", "better": "higher"}
    assert judge_arms(runs, criteria(check))["cure"].outcome is SUPPORTED
    verdict = judge_arms(runs, criteria(check | OVER["area"]))["cure"]
    assert verdict.outcome is INVALID
    assert "evaluated at other steps (21 evaluations and 11 up to step 20,000)" in " ".join(verdict.reasons)


def test_pairs_that_are_lost_say_why_their_value_is_unknown(tmp_path: Path) -> None:
    runs = []
    for seed in range(6):
        runs.append(pair(tmp_path, "baseline", seed, [8000, *[100] * 10]))
        runs.append(pair(tmp_path, "cure", seed, [8000, *[200] * 10]))
    check = {"kind": "paired", "measure": "UniquePredictions", "better": "higher", "over": "area", "stage": 2}
    verdict = judge_arms(runs, criteria(check))["cure"]
    (reason,) = (one.reason for one in verdict.results if one.check.startswith("paired"))
    assert reason == (
        "UniquePredictions averaged over stage 2: none of 6 planned pairs with baseline could be formed: stage 1 ends "
        "somewhere in steps 10,000 to 11,999 (cure, seed 0)"
    )
    run = healthy_run(tmp_path / "other", 0, HeldOutLoss=[4.7] * 5 + [None] + [4.7] * 5)
    others = [run, *(healthy_run(tmp_path / "other", seed, arm="cure", HeldOutLoss=4.5) for seed in range(6))]
    others += [healthy_run(tmp_path / "other", seed) for seed in range(1, 6)]
    of_loss = check | {"measure": "HeldOutLoss", "better": "lower", "stage": "run"}
    some = judge_arms(others, criteria(of_loss))["cure"]
    (reason,) = (one.reason for one in some.results if one.check.startswith("paired"))
    assert "of which 5 could be formed (HeldOutLoss has unknown cells (baseline, seed 0))" in reason
