"""The built-in criteria `sound`: diversity and skill of every run, full-precision twins; combined verdicts."""

import json
import math
from collections.abc import Iterable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from synthetic import CURED, LEVELS, bare_run, healthy_run, origin_run

from bitnetctl.records import Run
from bitnetctl.records.metrics import json_value
from bitnetctl.verdict import (
    Criteria,
    JudgeOptions,
    Outcome,
    Verdict,
    combine,
    judge,
    judge_arms,
    load_criteria,
    parse_criteria,
)
from bitnetctl.verdict.outcome import number_text, outcome_of_run, strictest

ORIGIN, SOUND = load_criteria("origin"), load_criteria("sound")
SUPPORTED, REFUTED, INCONCLUSIVE, INVALID = Outcome


SEEDS = 5
"""The least number that can support or refute, for one arm at 5 %."""


def sound(*runs: Run, **options: Any) -> Verdict:
    return judge(runs, SOUND, JudgeOptions(**options))


def healthy(folder: Path, seeds: Iterable[int] = range(SEEDS)) -> list[Run]:
    return [healthy_run(folder, seed) for seed in seeds]


def test_five_healthy_seeds_are_supported(tmp_path: Path) -> None:
    verdict = sound(*healthy(tmp_path))
    assert verdict.outcome is SUPPORTED
    assert verdict.reasons == (
        "hidden 256: none of 5 seeds failed: a failure rate of up to 45 % stays open (one-sided 95 % bound), "
        "less than 50 %",
    )
    assert "a failure rate of up to 45 %" in verdict.failure_rate
    (statistics,) = verdict.statistics
    assert (statistics["seeds"], statistics["healthy"], statistics["unhealthy"]) == (5, 5, 0)
    assert statistics["failure_rate_at_most"] == pytest.approx(1 - 0.05 ** (1 / 5))
    assert statistics["p_of_support"] == pytest.approx(1 / 32)
    assert statistics["levels"]["skill"]["student_bound_of_mean"] < statistics["levels"]["skill"]["mean"]


def test_four_seeds_are_too_few_and_the_verdict_says_how_many_could_decide(tmp_path: Path) -> None:
    verdict = sound(*healthy(tmp_path, range(4)))
    assert verdict.outcome is INCONCLUSIVE
    assert verdict.reasons == (
        "hidden 256: none of 4 seeds failed: the failure rate may be anywhere from 0 % to 53 %, which does not decide "
        "whether it is less than 50 %; fix the number of seeds before looking: 5 could support it, if all further ones "
        "are healthy, 16 could refute it, if all further ones fail",
    )


def test_unfinished_seeds_count_as_still_to_come_where_the_verdict_says_how_many_could_decide(tmp_path: Path) -> None:
    unfinished = [replace(run, planned_steps=40_000) for run in healthy(tmp_path, range(2))]
    reason = sound(*unfinished).reasons[0]
    assert "none of 2 seeds failed and 2 are undecided" in reason
    assert reason.endswith(
        "5 could support it, if all missing, unfinished and further ones are healthy, 5 could refute it, if all "
        "missing, unfinished and further ones fail"
    )


def test_several_runs_of_one_seed_are_one_seed(tmp_path: Path) -> None:
    again = healthy_run(tmp_path, 1, Loss=6.5, HeldOutLoss=7.0, name="again-h256-20000-baseline-s1.csv")
    twice = replace(again, seed=1, arm="baseline", size=256, planned_steps=20_000)
    verdict = sound(*healthy(tmp_path), twice)
    assert verdict.outcome is INCONCLUSIVE
    # one of its runs failed and one did not, so it helps neither side
    assert [verdict.statistics[0][name] for name in ("runs", "seeds", "healthy", "undecided")] == [6, 5, 4, 1]


def test_runs_of_unknown_seed_are_one_seed_unless_told_otherwise(tmp_path: Path) -> None:
    runs = [replace(run, seed=None) for run in healthy(tmp_path)]
    assert sound(*runs).statistics[0]["seeds"] == 1
    assert sound(*runs).outcome is INCONCLUSIVE
    told = sound(*runs, distinct_seeds=True)
    assert (told.outcome, told.statistics[0]["seeds"]) == (SUPPORTED, 5)


@pytest.mark.parametrize(
    ("changes", "outcome", "reason"),
    [
        ({"unique": [8000, *[15] * 10]}, REFUTED, "DiversityRatio 0.03807 < 0.05"),
        ({"unique": [8000, *[40] * 10]}, INCONCLUSIVE, "DiversityRatio 0.1015 is between 0.05 and 0.15"),
        ({"TopShare": 0.6}, REFUTED, "TopShare 0.6 > 0.5"),
        ({"TopShare": 0.3}, INCONCLUSIVE, "TopShare 0.3 is between 0.25 and 0.5"),
        ({"TopShare": -1}, INCONCLUSIVE, "TopShare -1 is impossible: the file is damaged"),
        ({"TopShare": 1.5}, INCONCLUSIVE, "TopShare 1.5 is impossible: the file is damaged"),
        ({"TopShare": "nan"}, REFUTED, "TopShare is nan at step 1"),
        ({"TopShare": None}, INCONCLUSIVE, "TopShare is unknown in 11 of 11 rows"),
        ({"HeldOutLoss": 6.5}, REFUTED, "Skill -0.06009 < 0"),
        ({"HeldOutLoss": 6.0}, INCONCLUSIVE, "Skill 0.1545 is between 0 and 0.5"),
        ({"HeldOutLoss": [9.0] * 6 + [4.7] * 5}, REFUTED, "Skill at the boundary -1.133 < -0.25"),
        ({"HeldOutLoss": [6.5] * 6 + [4.7] * 5}, INCONCLUSIVE, "Skill at the boundary -0.06009 is between -0.25 and 0"),
        ({"HeldOutLoss": [9.0] + [4.7] * 10}, SUPPORTED, ""),
        # one bad evaluation of three is noise, two are not
        ({"HeldOutLoss": [4.7] * 10 + [7.0]}, SUPPORTED, ""),
        ({"HeldOutLoss": [4.7] * 9 + [7.0] * 2}, REFUTED, "Skill -0.2747 < 0"),
        ({"HeldOutLoss": [4.7] * 10 + ["nan"]}, REFUTED, "diverged at step 20,000"),
        # an impossible value is no noise that a median may pass over
        ({"HeldOutLoss": [4.7] * 10 + [-5]}, INCONCLUSIVE, "Skill 4.876 is impossible: the file is damaged"),
        ({"HeldOutLoss": None}, INCONCLUSIVE, "HeldOutLoss is unknown in 11 of 11 rows"),
        ({"ContextInformation": 0.05}, REFUTED, "ContextInformation 0.05 < 0.1"),
        ({"ContextInformation": 0.3}, INCONCLUSIVE, "ContextInformation 0.3 is between 0.1 and 0.5"),
        ({"UnigramLoss": None}, INCONCLUSIVE, "Skill is unknown in the last 3 evaluations"),
        ({"UnigramLoss": "nan"}, INCONCLUSIVE, "UnigramLoss is nan, BigramLoss 4.03"),
        ({"BigramLoss": [4.03] * 10 + [""]}, INCONCLUSIVE, "Skill is unknown in the last 3 evaluations"),
        (
            {"BigramLoss": 6.36},
            INVALID,
            "the bigram predictor (6.36 nats) is no better than the unigram predictor (6.36)",
        ),
        ({"BigramUnique": None}, INCONCLUSIVE, "BigramUnique is unknown"),
        ({"BigramUnique": "inf"}, INCONCLUSIVE, "BigramUnique is unknown"),
        ({"BigramUnique": 99}, INVALID, "BigramUnique 99 is less than 100: too small a probe to tell"),
        ({"BigramUnique": 9000}, INCONCLUSIVE, "BigramUnique is 9,000 of 8,192 ProbePositions"),
        ({"ProbePositions": 1023}, INVALID, "ProbePositions 1,023 is less than 1,024: too small a probe to tell"),
        ({"ProbePositions": None}, INCONCLUSIVE, "ProbePositions is unknown"),
    ],
)
def test_sound_by_the_values_of_a_run(tmp_path: Path, changes: dict[str, Any], outcome: Outcome, reason: str) -> None:
    verdict = sound(*(healthy_run(tmp_path, seed, Loss=6 + seed, **changes) for seed in range(SEEDS)))
    assert verdict.outcome is outcome
    assert not reason or f"hidden 256, seed 0: {reason}" in " ".join(verdict.reasons)


def test_failed_seeds_among_healthy_ones(tmp_path: Path) -> None:
    """The counts are the exact binomial ones: 5 of 5, 7 of 8 and 9 of 11 support, and the same failures refute."""
    bad = [healthy_run(tmp_path, seed, HeldOutLoss=7 + seed) for seed in range(9)]
    good = healthy(tmp_path, range(10, 20))
    for failed, of, outcome in (
        (1, 5, INCONCLUSIVE),
        (1, 7, INCONCLUSIVE),
        (1, 8, SUPPORTED),
        (2, 10, INCONCLUSIVE),
        (2, 11, SUPPORTED),
        (4, 5, INCONCLUSIVE),
        (5, 5, REFUTED),
        (7, 8, REFUTED),
        (6, 8, INCONCLUSIVE),
        (9, 11, REFUTED),
    ):
        assert sound(*bad[:failed], *good[: of - failed]).outcome is outcome, (failed, of)


def test_undecided_seeds_help_neither_side(tmp_path: Path) -> None:
    undecided = [healthy_run(tmp_path, seed, TopShare=0.3) for seed in range(6)]
    bad = [healthy_run(tmp_path, seed, HeldOutLoss=7 + seed) for seed in range(10, 15)]
    good = healthy(tmp_path, range(20, 31))
    assert sound(*undecided).outcome is INCONCLUSIVE
    assert sound(*undecided[:1], *good[:4]).outcome is INCONCLUSIVE
    assert sound(*undecided[:1], *good[:7]).outcome is SUPPORTED
    assert sound(*undecided[:1], *bad).outcome is INCONCLUSIVE
    assert "1 is undecided" in sound(*undecided[:1], *good[:4]).reasons[0]


def test_more_seeds_never_take_support_from_an_arm_without_failures(tmp_path: Path) -> None:
    runs = healthy(tmp_path, range(24))
    assert [sound(*runs[:count]).outcome is SUPPORTED for count in range(1, 25)] == [False] * 4 + [True] * 20


def test_a_stricter_rate_takes_more_seeds(tmp_path: Path) -> None:
    strict = SOUND.model_copy(update={"seeds": SOUND.seeds.model_copy(update={"max_failure_rate": 0.1})})
    runs = healthy(tmp_path, range(29))
    assert judge(runs[:28], strict).outcome is INCONCLUSIVE
    assert "29 could support it" in judge(runs[:28], strict).reasons[0]
    assert judge(runs, strict).outcome is SUPPORTED


def test_shorter_runs_of_the_arm_count(tmp_path: Path) -> None:
    """Audit B: three refuted seeds of 1,000 steps and good ones of more were supported."""

    def dead(seed: int) -> Run:
        return bare_run(tmp_path, [8000, *[2] * 10], steps=2_000, seed=seed, **LEVELS | {"HeldOutLoss": 5 + seed / 100})

    short = [dead(seed) for seed in range(7, 10)]
    verdict = sound(*healthy(tmp_path), *short)
    assert verdict.outcome is INCONCLUSIVE
    assert verdict.statistics[0]["unhealthy"] == 3
    both = sound(*healthy(tmp_path), *map(dead, range(5)))
    assert (both.outcome, both.statistics[0]["undecided"]) == (INCONCLUSIVE, 5)
    # only where the length is requested, and the seed has it, the other one is only mentioned
    requested = sound(*healthy(tmp_path), *map(dead, range(5)), requested_steps=20_000)
    assert (requested.outcome, requested.planned["left_out"]) == (SUPPORTED, 5)
    assert "of 2,000 steps, and its seed has a run of the requested ones" in " ".join(requested.notes)
    assert sound(*healthy(tmp_path), *short, requested_steps=20_000).outcome is INCONCLUSIVE


def test_unknown_planned_steps_must_be_requested(tmp_path: Path) -> None:
    runs = [healthy_run(tmp_path, seed, name=f"mine-{seed}.csv") for seed in range(SEEDS)]
    assert "mine-0: the planned steps are unknown: give --steps" in " ".join(sound(*runs).reasons)
    told = {"distinct_seeds": True}
    assert sound(*runs, requested_steps=20_000, **told).outcome is SUPPORTED
    assert sound(*runs, requested_steps=20_001, **told).outcome is INCONCLUSIVE


# twins


def with_twins(tmp_path: Path, loss: float = 4.6, arm: str = "full-precision", **changes: Any) -> list[Run]:
    """Six runs and, at a held-out loss of their own, six twins."""
    return [
        *healthy(tmp_path, range(6)),
        *(healthy_run(tmp_path, seed, arm=arm, **{"HeldOutLoss": loss + seed / 1000} | changes) for seed in range(6)),
    ]


@pytest.mark.parametrize(
    ("loss", "changes", "outcome", "reason"),
    [
        (4.6, {}, SUPPORTED, ""),
        (4.3, {}, INCONCLUSIVE, "HeldOutLoss minus that of the twin with full-precision 0.4 is between 0.3 and 1"),
        (3.6, {}, REFUTED, "HeldOutLoss minus that of the twin with full-precision 1.1 > 1"),
        # a twin that is worse shows no loss through quantization
        (4.9, {}, SUPPORTED, ""),
        (7.0, {}, INVALID, "the twin with full-precision fails as well (Skill -0.2747 < 0): the setup is at fault"),
        (4.6, {"TopShare": 0.9}, INVALID, "the twin with full-precision fails as well (TopShare 0.9 > 0.5)"),
        (4.6, {"Loss": "nan"}, INVALID, "the twin with full-precision fails as well (diverged at step 1)"),
        (4.6, {"Loss": ""}, INCONCLUSIVE, "the twin with full-precision: Loss is unknown in 11 of 11 rows"),
        (4.6, {"HeldOutLoss": [4.6] * 10 + [""]}, INCONCLUSIVE, "HeldOutLoss of the run or its twin with"),
        # a twin that is merely not good enough still serves as a reference
        (4.6, {"TopShare": 0.3}, SUPPORTED, ""),
    ],
)
def test_twins_measure_the_cost_of_quantization(
    tmp_path: Path, loss: float, changes: dict[str, Any], outcome: Outcome, reason: str
) -> None:
    runs = with_twins(tmp_path, loss, **changes)
    verdict = judge_arms(runs, SOUND)["baseline"]
    assert verdict.outcome is outcome
    assert not reason or reason in " ".join(verdict.reasons)
    without = sound(*runs[:6])
    assert without.outcome is SUPPORTED
    assert not any(result.check == "gap to full precision" for result in without.results)


def test_an_unfinished_twin_is_inconclusive(tmp_path: Path) -> None:
    runs = healthy(tmp_path)
    short = bare_run(
        tmp_path, [8000, *[200] * 5], steps=10_000, name="h256-20000-full-precision-s0-abcdef.csv", **LEVELS
    )
    verdict = judge_arms([*runs, short], SOUND)["baseline"]
    assert verdict.outcome is INCONCLUSIVE
    assert "hidden 256, seed 0: the twin with full-precision: ends at step 10,000 of 20,000" in verdict.reasons
    # the other seeds have none, and a gap of one seed says nothing about the arm
    assert "hidden 256, seed 1: the twin with full-precision is missing, and other seeds have theirs" in verdict.reasons


def twin_gaps(verdict: Verdict) -> list[str | None]:
    return [result.run for result in verdict.results if result.check == "gap to full precision"]


@pytest.mark.parametrize(
    ("arm", "twin", "is_twin"),
    [
        ("reduced-lr", "full-precision+reduced-lr", True),
        ("reduced-lr", "reduced-lr+full-precision", True),
        ("reduced-lr:peak=5e-4", "reduced-lr:peak=5e-4+full-precision", True),
        ("reduced-lr", "full-precision", False),
        ("baseline", "full-precision+reduced-lr", False),
        ("baseline", "full-precision-ish", False),
        ("full-precision", "full-precision", False),
    ],
)
def test_a_twin_differs_in_nothing_else(tmp_path: Path, arm: str, twin: str, is_twin: bool) -> None:
    run, other = healthy_run(tmp_path, 0, arm=arm), healthy_run(tmp_path, 0, arm=twin, HeldOutLoss=4.6)
    assert bool(twin_gaps(judge_arms([run, other], SOUND)[arm])) == is_twin


@pytest.mark.parametrize("changes", [{"size": 512}, {"seed": 1}, {"steps": 10_000}, {"name": "twin.csv"}])
def test_a_twin_has_the_same_size_seed_and_steps(tmp_path: Path, changes: dict[str, Any]) -> None:
    options: dict[str, Any] = {"seed": 0, "arm": "full-precision", "HeldOutLoss": 4.6}
    run, other = healthy_run(tmp_path, 0), healthy_run(tmp_path, **options | changes)
    assert not twin_gaps(judge_arms([run, other], SOUND)["baseline"])


def test_a_twin_of_other_settings_is_invalid_unless_there_is_an_equal_one(tmp_path: Path) -> None:
    run = origin_run(tmp_path, CURED, "finished")
    twins = [
        origin_run(tmp_path, [*CURED[:-1], last], arm="full-precision", overrides=[f"optimizer.name={name}"])
        for last, name in ((70, "adamw"), (71, "adam"))
    ]
    other = judge_arms([run, twins[0]], SOUND)["baseline"]
    assert other.outcome is INVALID
    assert "cannot be compared: optimizer.name adam (baseline) and adamw (full-precision)" in other.reasons[0]
    (gap,) = [
        result
        for result in judge_arms([run, *twins], SOUND)["baseline"].results
        if result.check == "gap to full precision"
    ]
    assert "cannot be compared" not in gap.reason


# custom criteria

FLOOR = {"checks": [{"kind": "finite"}, {"kind": "finished"}]}


def own(**level: Any) -> Criteria:
    return parse_criteria({"checks": [*FLOOR["checks"], {"kind": "level", **level}]})


@pytest.mark.parametrize(
    ("measure", "direction", "supporting", "reason"),
    [
        ("EffectiveVocab", "above", 8192, "> 8,192 of at most 8,192 (8,192 probe positions)"),
        ("TopShare", "below", 0.0001, "< 0.0001 of at least 0.0001221 (8,192 probe positions)"),
        ("TopShare", "above", 1, "> 1 of at most 1 (8,192 probe positions)"),
        ("ContextInformation", "above", 9.1, "> 9.1 of at most 9.011 (ln of 8,192 probe positions)"),
        ("DiversityRatio", "above", 21, "> 21 of at most 20.79 (8,192 probe positions over BigramUnique)"),
        ("Coverage", "above", 7, "> 7 of at most 6.311 (8,192 probe positions over UniqueTargets)"),
        ("Skill", "above", 2.8, "> 2.8 of at most 2.73 (at a loss of 0)"),
        ("HeldOutLoss", "below", 0, "< 0 of at least 0 (a loss is never below 0)"),
    ],
)
def test_every_measure_has_a_range(
    tmp_path: Path, measure: str, direction: str, supporting: float, reason: str
) -> None:
    other = {"refuted_below": -9} if direction == "above" else {"refuted_above": 9}
    verdict = judge([healthy_run(tmp_path, 0)], own(measure=measure, **{f"supported_{direction}": supporting}, **other))
    assert (verdict.outcome, verdict.reasons) == (INVALID, (f"{measure} {reason} cannot be met",))


def test_random_prompts_have_a_ceiling_too(tmp_path: Path) -> None:
    run = origin_run(tmp_path, CURED, "finished", columns={"RandomPromptUnique": 20})
    verdict = judge([run], own(measure="RandomPromptUnique", supported_above=50, refuted_below=10))
    assert verdict.reasons == ("RandomPromptUnique > 50 of at most 20 (20 prompts) cannot be met",)
    assert judge([run], own(measure="RandomPromptUnique", supported_above=19, refuted_below=10)).outcome is SUPPORTED
    other = judge([run], own(measure="ContextInformation", supported_above=9.1, refuted_below=0))
    assert "of at most 9.011" in other.reasons[0]


@pytest.mark.parametrize(
    ("kind", "unique", "outcome", "reason"),
    [
        ("lasting", [60, "", 60, 60, 60], INCONCLUSIVE, "UniquePredictions is unknown in 1 of 5 rows of stage 2"),
        ("lasting", [60, 60, 60, 60, 60], SUPPORTED, "Skill 0.7124 > 0"),
        ("steady", [60, "", 60, 60, 60], INCONCLUSIVE, "UniquePredictions is unknown in 1 of 5 rows of stage 2"),
        ("steady", [60, 20, 60, "", 20], INCONCLUSIVE, "UniquePredictions is unknown in 1 of 5 rows of stage 2"),
        ("steady", [20, 60, "", 20, 60], INCONCLUSIVE, "UniquePredictions is unknown in 1 of 5 rows of stage 2"),
        ("steady", [60, 20, 60, 20, ""], INCONCLUSIVE, "UniquePredictions is unknown in 1 of 5 rows of stage 2"),
        ("recovery", ["", 60, 60, 60, 60], INCONCLUSIVE, "UniquePredictions around the boundary is unknown"),
    ],
)
def test_trajectory_checks_need_every_row_of_stage_2(
    tmp_path: Path, kind: str, unique: list[Any], outcome: Outcome, reason: str
) -> None:
    extra: dict[str, dict[str, Any]] = {
        "recovery": {"collapsed_below": 10, "within": 0.5},
        "lasting": {"collapsed_below": 10, "healthy_above": 100},
        "steady": {"healthy_above": 100},
    }
    checks = [
        {"kind": "finite", "columns": ["Loss"]},
        {"kind": "finished"},
        {"kind": "level", "measure": "Skill", "supported_above": 0, "refuted_below": 0},
        {"kind": kind, "measure": "UniquePredictions", **extra[kind]},
    ]
    run = healthy_run(tmp_path, 0, unique=[8000, 60, 60, 60, 60, 60, *unique])
    verdict = judge([run], parse_criteria({"checks": checks}))
    assert (verdict.outcome, verdict.reasons) == (outcome, (reason,))


def test_a_mean_over_seeds_needs_all_of_them_and_decides_nothing(tmp_path: Path) -> None:
    runs = [healthy_run(tmp_path, 0), healthy_run(tmp_path, 1), healthy_run(tmp_path, 2, BigramLoss=None)]
    verdict = sound(*runs)
    levels = verdict.statistics[0]["levels"]
    assert levels["skill"]["values"][2] is None
    assert (levels["skill"]["mean"], levels["skill"]["student_bound_of_mean"]) == (None, None)
    assert levels["context"]["mean"] == pytest.approx(1.3)


def test_every_run_has_an_outcome_and_a_reason(tmp_path: Path) -> None:
    good, bad = sound(healthy_run(tmp_path, 0), healthy_run(tmp_path, 1, TopShare=0.6, ContextInformation=0.05)).runs
    assert (good.outcome, bad.outcome) == (SUPPORTED, REFUTED)
    assert good.reason.startswith("DiversityRatio 0.5076 > 0.15; TopShare 0.08 < 0.25; Skill ")
    assert bad.reason == "TopShare 0.6 > 0.5; ContextInformation 0.05 < 0.1"
    assert (bad.run, bad.size, bad.seed, bad.final_step) == ("h256-20000-baseline-s1-abcdef", 256, 1, 20_000)


def test_the_least_number_of_seeds_holds_for_either_rule(tmp_path: Path) -> None:
    tree = {**FLOOR, "seeds": {"min_seeds": 2}}
    tree["checks"] = [*FLOOR["checks"], {"kind": "level", "measure": "Skill", "supported_above": 0, "refuted_below": 0}]
    criteria = parse_criteria(tree)
    assert judge([healthy_run(tmp_path, 0)], criteria).reasons == ("hidden 256: 1 of at least 2 seeds",)
    assert judge([healthy_run(tmp_path, 0), healthy_run(tmp_path, 1)], criteria).outcome is SUPPORTED


# several verdicts, and JSON


def test_the_strictest_outcome_decides() -> None:
    order = [REFUTED, INVALID, INCONCLUSIVE, SUPPORTED]
    for count in (1, 2, 3):
        for outcomes in product(Outcome, repeat=count):
            assert strictest(outcomes) is min(outcomes, key=order.index)
            of_run = [INVALID, REFUTED, INCONCLUSIVE, SUPPORTED]
            assert outcome_of_run(outcomes) is min(outcomes, key=of_run.index)
    assert strictest([]) is INCONCLUSIVE
    assert {outcome.value: int(outcome.exit_code) for outcome in Outcome} == {
        "supported": 0,
        "refuted": 1,
        "inconclusive": 5,
        "invalid": 4,
    }


def test_a_dead_model_that_passes_the_count(tmp_path: Path) -> None:
    dead = [
        healthy_run(
            tmp_path,
            seed,
            unique=[8000, *[60, 70] * 5],
            HeldOutLoss=7.62 + seed / 1000,
            ContextInformation=1e-7,
            TopShare=0.2,
        )
        for seed in range(SEEDS)
    ]
    by_count, by_both = judge(dead, ORIGIN), judge(dead, SOUND)
    combined = combine([by_count, by_both])
    assert (by_count.outcome, by_both.outcome, combined.outcome) == (SUPPORTED, REFUTED, REFUTED)
    assert combined.disagreement is not None
    assert "origin says supported (hidden 256, seed 0: UniquePredictions 70 > 50" in combined.disagreement
    assert "sound says refuted (hidden 256: 5 of 5 seeds failed" in combined.disagreement
    assert combined.disagreement.endswith("sound decides by Skill, ContextInformation, which origin does not look at")
    assert combine([by_both, by_both]).disagreement is None
    # too few seeds decide nothing, and yet it is clear what the criteria disagree on
    few = combine([judge(dead[:3], ORIGIN), judge(dead[:3], SOUND)])
    assert (few.outcome, few.disagreement is not None) == (INCONCLUSIVE, True)
    assert str(few.disagreement).endswith("sound decides by Skill, ContextInformation, which origin does not look at")
    assert combine([]).outcome is INCONCLUSIVE


def test_arms_disagree_with_themselves_only(tmp_path: Path) -> None:
    bad = [healthy_run(tmp_path, seed, arm="no-decay", HeldOutLoss=7.0 + seed / 100) for seed in range(6)]
    runs = [healthy_run(tmp_path, 0), *bad]
    by_count, by_both = (judge_arms(runs, criteria) for criteria in (ORIGIN, SOUND))
    for arm, outcome in (("baseline", INCONCLUSIVE), ("no-decay", REFUTED)):
        combined = combine([by_count[arm], by_both[arm]])
        assert combined.outcome is outcome
        assert combined.disagreement is not None
        assert combined.disagreement.startswith("the criteria disagree: origin says supported")


def test_json_keeps_nan_and_unknown_apart(tmp_path: Path) -> None:
    runs = [
        healthy_run(tmp_path, 0, HeldOutLoss=[4.7] * 10 + ["nan"]),
        healthy_run(tmp_path, 1, TopShare=None, unique=[8000, *[200] * 9, ""]),
    ]
    for criteria in (ORIGIN, SOUND):
        tree = json.loads(json.dumps(judge(runs, criteria).to_json(), allow_nan=False))
        assert tree["verdict"] == ("refuted" if criteria is ORIGIN else "inconclusive")
        assert tree["runs"][0]["outcome"] == "refuted"
        assert tree["criteria"] == {"name": criteria.name, "hash": criteria.hash}
        assert tree["runs"][1]["final_unique"] is None
        assert {
            "arm",
            "evidence",
            "failure_rate",
            "planned",
            "rule",
            "account",
            "sizes",
            "checks",
            "reasons",
            "notes",
            "statistics",
        } < set(tree)
    assert json_value({"a": (math.nan, None, math.inf)}) == {"a": ["nan", None, "inf"]}


@pytest.mark.parametrize(
    ("value", "text"),
    [(8192.0, "8,192"), (0.123456, "0.1235"), (math.nan, "nan"), (-math.inf, "-inf")],
)
def test_values_in_reasons(value: float, text: str) -> None:
    assert number_text(value) == text
