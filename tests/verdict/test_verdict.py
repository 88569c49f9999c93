"""Verdicts: each kind of check on CSVs, seeds and sizes together, and what cannot be supported."""

from itertools import pairwise, product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st
from synthetic import CURED, STAGE_1, bare_run, csv_text, healthy_run, origin_run, two_stages

from bitnetctl.errors import ConfigError
from bitnetctl.records import Run, load_run
from bitnetctl.units import plural
from bitnetctl.verdict import JudgeOptions, Outcome, Verdict, judge, judge_arms, load_criteria
from bitnetctl.verdict.checks.stages import alternating_extremes
from bitnetctl.verdict.wording import NO_RATE

ORIGIN, SOUND = load_criteria("origin"), load_criteria("sound")
SUPPORTED, REFUTED, INCONCLUSIVE, INVALID = Outcome


def origin(*runs: Run, **options: Any) -> Verdict:
    return judge(runs, ORIGIN, JudgeOptions(**options))


def sound(*runs: Run, **options: Any) -> Verdict:
    return judge(runs, SOUND, JudgeOptions(**options))


# the values that the founding document reports

REPORTED = {
    256: [20, 16, 8, 2, 2, 2, 10, 14, 13],
    512: [20, 14, 8, 4, 2, 2, 10, 12, 11],
    768: [20, 18, 14, 4, 2, 2, 8, 11, 12],
    1024: [20, 13, 8, 5, 2, 2, 11, 11, 11],
}
REPORTED_STEPS = [1, 1000, 2000, 3000, 4000, 5000, 6000, 7000, 10_000]


def reported(folder: Path, size: int, final: int | None = None, first: int = 20) -> Run:
    unique = [first, *REPORTED[size][1:-1], REPORTED[size][-1] if final is None else final]
    losses = [10.98, 10.3, 10.5, 10.6, 10.7, 10.8, 7.2, 7.0, 6.8]
    rows = [
        f"{step},{loss},{count},0.001,{0.1 if step <= 5000 else 0.0}"
        for step, loss, count in zip(REPORTED_STEPS, losses, unique, strict=True)
    ]
    path = folder / f"results_{size}.csv"
    title = f"BitNet b1.58, hidden {size}, 10k steps, WD 0.1 -> 0.0"
    path.write_text("\n".join([title, "Step,Loss,UniquePredictions,LR,WD", *rows, ""]), encoding="utf-8")
    return load_run(path)


@pytest.mark.parametrize("size", REPORTED)
def test_the_reported_trajectories_are_invalid(tmp_path: Path, size: int) -> None:
    run = reported(tmp_path, size)
    assert (run.size, run.arm) == (size, None)
    for options in ({}, {"requested_steps": 10_000}, {"sizes": [size]}):
        verdict = origin(run, **options)
        assert (verdict.outcome, int(verdict.outcome.exit_code)) == (INVALID, 4)
        assert verdict.reasons == ("UniquePredictions > 50 of at most 20 (inferred from step 1) cannot be met",)
        assert verdict.arm == "unknown"
        (row,) = verdict.runs
        assert (row.final_unique, row.ceiling, row.ceiling_inferred) == (REPORTED[size][-1], 20, True)


def test_all_four_together_are_invalid(tmp_path: Path) -> None:
    verdict = origin(*(reported(tmp_path, size) for size in REPORTED), requested_steps=10_000)
    assert verdict.sizes == dict.fromkeys(REPORTED, INVALID)
    assert len(verdict.reasons) == 4


@pytest.mark.parametrize(
    ("final", "outcome", "code"), [(55, SUPPORTED, 0), (5, REFUTED, 1), (13, INCONCLUSIVE, 5), (50, INCONCLUSIVE, 5)]
)
def test_a_larger_probe_makes_them_decidable(tmp_path: Path, final: int, outcome: Outcome, code: int) -> None:
    verdict = origin(reported(tmp_path, 256, final, first=500), requested_steps=10_000)
    assert (verdict.outcome, verdict.outcome.exit_code) == (outcome, code)
    assert verdict.evidence == "scaled"
    assert "judged at 10,000 steps instead of origin's 20,000: a scaled-down replication" in verdict.notes
    assert origin(reported(tmp_path, 256, final, first=500)).outcome is INCONCLUSIVE


# origin, one run after another


def test_a_cure_is_supported(tmp_path: Path) -> None:
    verdict = origin(bare_run(tmp_path))
    assert verdict.outcome is SUPPORTED
    assert verdict.reasons == ("UniquePredictions 60 > 50",)
    assert (verdict.evidence, verdict.sizes) == ("minimum", {256: SUPPORTED})
    assert verdict.failure_rate.startswith("none of 1 seed failed, which leaves open a failure rate of up to 95 %")
    assert verdict.criteria_hash == ORIGIN.hash


@pytest.mark.parametrize(
    ("unique", "outcome", "reason"),
    [
        ([*STAGE_1, 10, 30, 60, 62, 51], SUPPORTED, "UniquePredictions 51 > 50"),
        ([*STAGE_1, 10, 30, 60, 62, 50], INCONCLUSIVE, "UniquePredictions 50 is between 10 and 50"),
        ([*STAGE_1, 10, 10, 11, 12, 10], INCONCLUSIVE, "UniquePredictions 10 is between 10 and 50"),
        ([*STAGE_1, 10, 10, 11, 12, 9], REFUTED, "UniquePredictions 9 < 10"),
        # 99 is healthy: what was higher before does not matter, and one evaluation is no relapse
        ([*STAGE_1, 100, 200, 200, 200, 99], SUPPORTED, "UniquePredictions 99 > 50"),
        ([*STAGE_1, 100, 200, 200, 200, 45], INCONCLUSIVE, "UniquePredictions 45 is between 10 and 50"),
        (
            [*STAGE_1, 100, 200, 200, 45, 40],
            REFUTED,
            "temporary recovery: UniquePredictions 42.5 in the last quarter of stage 2, at best 200",
        ),
        (
            [*STAGE_1, 60, 3, 60, 60, 60],
            INCONCLUSIVE,
            "UniquePredictions below 10 for 27% of stage 2 after its first quarter",
        ),
        (
            [*STAGE_1, 30, 30, 30, 30, 60],
            INCONCLUSIVE,
            "a peak at the end: UniquePredictions 60 after 30 in the last quarter of stage 2",
        ),
        ([*STAGE_1, 100, 200, 200, 200, 100], SUPPORTED, "UniquePredictions 100 > 50"),
        (
            [*STAGE_1, 60, 25, 60, 25, 60],
            REFUTED,
            "erratic: 3 reversals by a factor of 2 or more in stage 2 (60→25→60→25→60)",
        ),
        (
            [*STAGE_1, 60, 115, 60, 115, 60],
            INCONCLUSIVE,
            "unsteady: 3 reversals by a factor of 1.5 or more in stage 2 (60→100→60→100→60)",
        ),
        # swings above 100 do not matter
        ([*STAGE_1, 60, 180, 80, 170, 81], SUPPORTED, "UniquePredictions 81 > 50"),
        ([*STAGE_1, 60, 180, 80, 170, 86], SUPPORTED, "UniquePredictions 86 > 50"),
        ([*STAGE_1, 60, 180, 91, 170, 80], SUPPORTED, "UniquePredictions 80 > 50"),
        (
            [*STAGE_1, 2, 3, 60, 62, 60],
            INCONCLUSIVE,
            "UniquePredictions 2 → 2.5 at step 10,000 (medians): no recovery, less than 2 times",
        ),
        # recovery from the second evaluation on
        ([*STAGE_1, 3, 30, 60, 62, 60], SUPPORTED, "UniquePredictions 60 > 50"),
        ([*STAGE_1, 4, 30, 60, 62, 60], SUPPORTED, "UniquePredictions 60 > 50"),
        # one evaluation of 9 is no collapse
        ([4000, 40, 40, 40, 40, 9, 10, 30, 60, 62, 60], SUPPORTED, "UniquePredictions 60 > 50"),
        ([4000, 40, 40, 40, 40, 10, 10, 30, 60, 62, 60], SUPPORTED, "UniquePredictions 60 > 50"),
        ([4000, 0, 0, 0, 0, 0, 0, 30, 60, 62, 60], SUPPORTED, "UniquePredictions 60 > 50"),
        ([4000, 0, 0, 0, 0, 0, 0, 0, 60, 62, 60], INCONCLUSIVE, "UniquePredictions 0 → 0 at step 10,000 (medians): no"),
        ([*STAGE_1, 10, 30, 60, "nan", 60], REFUTED, "diverged at step 18,000"),
        ([*STAGE_1, 10, 30, 60, 62, "inf"], REFUTED, "diverged at step 20,000"),
        ([*STAGE_1, 10, 30, 60, 62, ""], INCONCLUSIVE, "UniquePredictions is unknown in 1 of 11 rows"),
        ([*STAGE_1, 10, "", 60, 62, 60], INCONCLUSIVE, "UniquePredictions is unknown in 1 of 11 rows"),
    ],
)
def test_origin_by_the_values_of_a_run(tmp_path: Path, unique: list[Any], outcome: Outcome, reason: str) -> None:
    verdict = origin(bare_run(tmp_path, unique))
    assert verdict.outcome is outcome
    assert verdict.reasons[0].startswith(reason)


@pytest.mark.parametrize("loss", ["nan", "inf", "-inf"])
def test_a_loss_that_is_not_finite_refutes_even_where_it_recovers(tmp_path: Path, loss: str) -> None:
    verdict = origin(bare_run(tmp_path, Loss=[7.0] * 4 + [loss] + [7.0] * 6))
    assert (verdict.outcome, verdict.reasons) == (REFUTED, ("diverged at step 8,000",))


def test_an_unknown_loss_may_hide_a_divergence(tmp_path: Path) -> None:
    verdict = origin(bare_run(tmp_path, Loss=[7.0] * 10 + [""]))
    assert (verdict.outcome, verdict.reasons) == (INCONCLUSIVE, ("Loss is unknown in 1 of 11 rows",))


@pytest.mark.parametrize("final", [60, 2])
def test_an_unfinished_run_decides_nothing(tmp_path: Path, final: int) -> None:
    short = bare_run(tmp_path, [4000, 40, 20, final], steps=6_000, name="h256-20000-baseline-s0-abcdef.csv")
    for options, steps in (
        ({}, "20,000"),
        ({"requested_steps": 6_000}, "20,000"),
        ({"requested_steps": 30_000}, "30,000"),
    ):
        verdict = origin(short, **options)
        assert (verdict.outcome, verdict.reasons) == (INCONCLUSIVE, (f"ends at step 6,000 of {steps}",))
        assert verdict.evidence == "none"


def test_a_finished_run_of_too_few_steps_is_judged_only_on_request(tmp_path: Path) -> None:
    run = bare_run(tmp_path, steps=2_000)
    assert origin(run).reasons == (
        "ends at step 2,000 of 20,000; no more were planned: `--steps 2000` judges it by these",
    )
    scaled = origin(run, requested_steps=2_000)
    assert (scaled.outcome, scaled.evidence) == (SUPPORTED, "scaled")
    assert scaled.notes == ("judged at 2,000 steps instead of origin's 20,000: a scaled-down replication",)
    assert origin(bare_run(tmp_path), requested_steps=20_000).notes == ()


@pytest.mark.parametrize(
    ("positions", "first", "outcome", "reason"),
    [
        (50, 40, INVALID, "UniquePredictions > 50 of at most 50 (ProbePositions) cannot be met"),
        (51, 40, INCONCLUSIVE, "62 distinct of 51 ProbePositions"),
        (62, 40, SUPPORTED, "UniquePredictions 60 > 50"),
        (None, 62, SUPPORTED, "UniquePredictions 60 > 50"),
        # a value above it shows that the first row was no ceiling
        (None, 45, SUPPORTED, "UniquePredictions 60 > 50"),
        ("nan", 4000, INCONCLUSIVE, "ProbePositions is nan"),
        (0, 4000, INCONCLUSIVE, "ProbePositions is 0"),
    ],
)
def test_the_ceiling_comes_first(tmp_path: Path, positions: Any, first: int, outcome: Outcome, reason: str) -> None:
    verdict = origin(bare_run(tmp_path, [first, *CURED[1:]], ProbePositions=positions))
    assert (verdict.outcome, verdict.reasons[0]) == (outcome, reason)
    unknown = "the ceiling of UniquePredictions is unknown, and so is whether its threshold can be met"
    assert any(unknown in note for note in verdict.notes) == (positions is None and first == 45)


def test_an_unreachable_threshold_comes_before_what_a_run_shows(tmp_path: Path) -> None:
    low = [20, 16, 8, 2, 2, 2, 10, 14, 13, 12, 2]
    for changes in ({}, {"Loss": "nan"}, {"unique": [*low[:-1], "nan"]}):
        columns: dict[str, Any] = {"unique": low, "ProbePositions": 20} | changes
        assert origin(bare_run(tmp_path, columns.pop("unique"), **columns)).outcome is INVALID


def test_without_a_boundary_recovery_is_unknown(tmp_path: Path) -> None:
    verdict = origin(bare_run(tmp_path, WD=0.1, name="mine.csv"))
    assert verdict.outcome is INCONCLUSIVE
    assert verdict.reasons == ("the boundary of the stages is unknown: WD is constant, the planned steps are unknown",)


def test_a_stage_without_evaluations_is_unknown(tmp_path: Path) -> None:
    verdict = origin(bare_run(tmp_path, [4000, 60], Step=[1, 20_000], WD=[0.1, 0.0]))
    assert "UniquePredictions around the boundary is unknown" in verdict.reasons


@pytest.mark.parametrize(
    ("values", "extremes"),
    [
        ([2, 10, 3, 15, 2], [2, 10, 3, 15, 2]),
        ([2, 10, 6, 15, 8], [2, 15]),
        ([10, 9, 8, 11, 9], []),
        ([10, 6, 12, 5], [6, 12, 5]),
        ([8, 4, 2, 1, 3], [8, 1, 3]),
        ([0, 0, 5, 0, 5], [0, 5, 0, 5]),
        ([10, 20, 10], [10, 20, 10]),
        ([10, 19, 10], []),
        ([7], []),
        ([], []),
    ],
)
def test_alternating_extremes_by_hand(values: list[float], extremes: list[float]) -> None:
    assert alternating_extremes(values, 2.0) == extremes


@given(values=st.lists(st.integers(0, 100), max_size=12))
def test_extremes_alternate_by_the_factor(values: list[float]) -> None:
    extremes = alternating_extremes(values, 2.0)
    changes = [after - before for before, after in pairwise(extremes)]
    assert all(max(pair) >= 2 * min(pair) for pair in pairwise(extremes))
    assert all(before * after < 0 for before, after in pairwise(changes))
    assert len(extremes) != 1


# torn files


def test_a_torn_end_supports_nothing(tmp_path: Path) -> None:
    path = tmp_path / "h256-20000-baseline-s0-abcdef.csv"
    whole = csv_text(two_stages(CURED, ProbePositions=8192))
    path.write_text(whole.removesuffix("\n"), encoding="utf-8")
    verdict = origin(load_run(path))
    assert verdict.outcome is INCONCLUSIVE
    assert "its last cell may have been cut short; end a whole file with a newline" in verdict.reasons[0]
    path.write_text(whole + "22000,7", encoding="utf-8")
    assert "torn last row" in origin(load_run(path)).reasons[0]


def test_the_documents_format_may_lack_its_last_newline(tmp_path: Path) -> None:
    path = tmp_path / "h256-20000-baseline-s0-abcdef.csv"
    path.write_text(csv_text(two_stages(CURED)).removesuffix("\n"), encoding="utf-8")
    verdict = origin(load_run(path))
    assert verdict.outcome is SUPPORTED
    assert any("no newline" in note for note in verdict.notes)


# manifests


@pytest.mark.parametrize(
    ("status", "fields", "outcome", "reason"),
    [
        ("finished", {}, SUPPORTED, "UniquePredictions 60 > 50"),
        ("failed", {"message": "out of memory", "steps_done": 900}, REFUTED, "crashed after step 900: out of memory"),
        ("failed", {"steps_done": 0}, REFUTED, "crashed after step 0"),
        ("diverged", {"diverged_at": 17}, REFUTED, "diverged at step 17"),
        ("diverged", {}, REFUTED, "diverged at step 20,000"),
    ],
)
def test_the_manifest_reports_crashes_and_divergence(
    tmp_path: Path, status: str, fields: dict[str, Any], outcome: Outcome, reason: str
) -> None:
    for criteria in (ORIGIN, SOUND):
        folder = tmp_path / criteria.name
        folder.mkdir()
        verdict = judge([origin_run(folder, CURED, status, **fields)], criteria)
        (run,) = verdict.runs
        if criteria is ORIGIN or outcome is REFUTED:
            assert (run.outcome, run.reason.partition(";")[0]) == (outcome, reason)
        # one failing run refutes by the founding document's rule; it says little about the rate of failures
        assert verdict.outcome is (outcome if criteria is ORIGIN else INCONCLUSIVE)


def test_runs_of_different_settings_are_no_seeds(tmp_path: Path) -> None:
    runs = [
        origin_run(tmp_path, [*CURED[:-1], 60 + seed], "finished", seed=seed, overrides=[f"optimizer.name={name}"])
        for seed, name in enumerate(("adam", "adamw"))
    ]
    for criteria in (ORIGIN, SOUND):
        verdict = judge(runs, criteria)
        assert verdict.outcome is INVALID
        assert "are no seeds of one arm: optimizer.name adam (seed 0) and adamw (seed 1)" in verdict.reasons[-1]
    assert origin(runs[0]).outcome is origin(runs[1]).outcome is SUPPORTED


# sizes and seeds


def test_evidence_grows_with_sizes_and_steps(tmp_path: Path) -> None:
    h256, h512 = bare_run(tmp_path), bare_run(tmp_path, size=512)
    h768 = bare_run(tmp_path, size=768, steps=30_000, Loss=6.5)
    assert origin(h256).evidence == "minimum"
    assert origin(h256, h512).evidence == "strong"
    assert origin(h256, h512, bare_run(tmp_path, size=768, Loss=6.4)).evidence == "strong"
    assert origin(h256, h512, h768).evidence == "comprehensive"
    assert origin(h512).evidence == "scaled"
    other = origin(bare_run(tmp_path, size=64))
    assert other.notes[0] == "none of the sizes that origin names (256, 512, 768) is judged"
    assert sound(h256).evidence is None


def test_one_failing_size_refutes_and_a_missing_one_decides_nothing(tmp_path: Path) -> None:
    good, bad = bare_run(tmp_path), bare_run(tmp_path, [*STAGE_1, 4, 4, 4, 4, 4], size=512)
    assert origin(good, sizes=[256]).outcome is SUPPORTED
    both = origin(good, bad)
    assert (both.outcome, both.sizes) == (REFUTED, {256: SUPPORTED, 512: REFUTED})
    assert both.reasons == ("hidden 512, seed 0: UniquePredictions 4 < 10",)
    missing = origin(good, sizes=[256, 768])
    assert (missing.outcome, missing.sizes) == (INCONCLUSIVE, {256: SUPPORTED, 768: INCONCLUSIVE})
    assert missing.reasons == ("hidden 768: no run",)
    left_out = origin(good, bad, sizes=[256])
    assert left_out.outcome is SUPPORTED
    assert left_out.notes[0] == (
        "h512-20000-baseline-s0-abcdef (hidden 512, seed 0), left out: hidden 512 was not requested"
    )


def test_an_unknown_size_counts_only_where_no_size_is_requested(tmp_path: Path) -> None:
    run = bare_run(tmp_path, name="mine.csv")
    assert (run.size, origin(run).sizes) == (None, {None: SUPPORTED})
    requested = origin(run, sizes=[256])
    assert (requested.outcome, requested.sizes) == (INCONCLUSIVE, {256: INCONCLUSIVE})
    assert "its size is unknown" in requested.notes[0]
    assert "h256-run.csv" in requested.notes[0]


def test_reasons_name_the_run_as_far_as_it_is_known(tmp_path: Path) -> None:
    low = [*STAGE_1, 4, 4, 4, 4, 4]
    names = ("hidden-256", "mine", "hidden-512")
    runs = [bare_run(tmp_path, low, name=f"{name}.csv", Loss=7 + index / 10) for index, name in enumerate(names)]
    assert origin(*runs, requested_steps=20_000).reasons == (
        "hidden 256: UniquePredictions 4 < 10",
        "mine: UniquePredictions 4 < 10",
        "hidden 512: UniquePredictions 4 < 10",
    )


@pytest.mark.parametrize(("seeds", "rate"), [(1, "95 %"), (3, "63 %"), (5, "45 %"), (9, "28 %")])
def test_every_verdict_says_which_failure_rate_its_seeds_leave_open(tmp_path: Path, seeds: int, rate: str) -> None:
    runs = [bare_run(tmp_path, seed=seed, Loss=6.5 + seed) for seed in range(seeds)]
    open_rate = f"leaves open a failure rate of up to {rate} (one-sided 95 % bound)"
    verdict = origin(*runs)
    assert verdict.failure_rate == f"none of {plural(seeds, 'seed')} failed, which {open_rate}; {NO_RATE}"


def test_one_failing_seed_refutes_by_origin(tmp_path: Path) -> None:
    good = [bare_run(tmp_path, seed=seed, Loss=6 + seed) for seed in range(2)]
    bad = bare_run(tmp_path, [*STAGE_1, 4, 4, 4, 4, 4], seed=2)
    assert origin(*good).outcome is SUPPORTED
    verdict = origin(*good, bad)
    assert verdict.outcome is REFUTED
    assert verdict.statistics[0]["failure_rate_at_least"] == pytest.approx(1 - 0.95 ** (1 / 3))


def test_requested_seeds_must_be_present(tmp_path: Path) -> None:
    runs = [bare_run(tmp_path, seed=seed, Loss=6 + seed) for seed in range(3)]
    assert origin(*runs, seeds=[0, 1, 2]).outcome is SUPPORTED
    verdict = origin(*runs[:2], seeds=[0, 1, 2, 3])
    assert verdict.outcome is INCONCLUSIVE
    assert verdict.reasons == (
        "hidden 256: not judged 2 of 4 planned seeds, so that nothing can be supported: missing seed 2, seed 3",
    )
    chosen = origin(*runs, seeds=[0, 1])
    assert chosen.outcome is INCONCLUSIVE
    assert "left out seed 2" in chosen.reasons[0]
    assert chosen.notes[0].endswith("seed 2 was not requested")


def test_the_same_run_twice_is_no_second_seed(tmp_path: Path) -> None:
    once, again = healthy_run(tmp_path, 0), healthy_run(tmp_path, 1, unique=[8000, *[200] * 10], HeldOutLoss=4.7)
    verdict = sound(once, again, once)
    assert len(verdict.runs) == 1
    assert verdict.planned["doubled"] == sum("doubled: the same" in note for note in verdict.notes) == 2
    assert verdict.statistics[0]["seeds"] == 1
    assert [row.size for row in origin(bare_run(tmp_path), bare_run(tmp_path, size=512)).runs] == [256, 512]


def test_no_run_decides_nothing() -> None:
    choices: list[dict[str, Any]] = [{}, {"sizes": [256]}, {"arm": "x"}]
    for criteria, options in product((ORIGIN, SOUND), choices):
        sizes = options.get("sizes")
        verdict = judge([], criteria, JudgeOptions(sizes=sizes), arm=options.get("arm"))
        assert verdict.outcome is INCONCLUSIVE
        assert verdict.reasons
        assert verdict.failure_rate == ""


def test_a_verdict_is_of_one_arm(tmp_path: Path) -> None:
    runs = [
        bare_run(tmp_path),
        bare_run(tmp_path, arm="reduced-lr", Loss=6.0),
        bare_run(tmp_path, name="mine.csv", Loss=5.0),
    ]
    with pytest.raises(ConfigError, match="several arms cannot share a verdict: baseline, reduced-lr, unknown"):
        judge(runs, ORIGIN)
    by_arm = judge_arms(runs, ORIGIN)
    assert {arm: verdict.outcome for arm, verdict in by_arm.items()} == dict.fromkeys(
        ("baseline", "reduced-lr", "unknown"), SUPPORTED
    )
    chosen = judge_arms(runs, ORIGIN, arms=["reduced-lr", "no-decay"])
    assert {arm: verdict.outcome for arm, verdict in chosen.items()} == {
        "reduced-lr": SUPPORTED,
        "no-decay": INCONCLUSIVE,
    }
    assert [verdict.arm for verdict in chosen.values()] == ["reduced-lr", "no-decay"]
