"""The summary of verdicts: claim, headline, reasons, horizon, rows and the next step."""

from pathlib import Path

import pytest
from summaries import summary_of
from synthetic import CURED, STAGE_1, bare_run, healthy_run, origin_run, quick, simple_run

from bitnetctl.records import Run, load_run
from bitnetctl.records.inventory import AbsentRun, Inventory
from bitnetctl.report import summary_lines
from bitnetctl.verdict import Outcome, Summary, load_criteria
from bitnetctl.verdict.criteria import parse_criteria
from bitnetctl.verdict.summary import SummaryRow

ORIGIN, SOUND = load_criteria("origin"), load_criteria("sound")
FAILED = [*STAGE_1, 10, 8, 7, 6, 6]
SICK = {"TopShare": 0.9, "ContextInformation": 0.05, "HeldOutLoss": 7.0}


def row_of(summary: Summary, arm: str, size: int = 256) -> SummaryRow:
    return next(row for row in summary.rows if (row.arm, row.size) == (arm, size))


# what is claimed


def test_the_claim_names_arm_sizes_seeds_and_steps(tmp_path: Path) -> None:
    runs = [healthy_run(tmp_path, seed, arm="no-decay", size=size) for size in (256, 512) for seed in range(3)]
    one = "h256, h512 trained with `no-decay` do not collapse (2 sizes × 3 seeds, 20,000 steps)"
    assert summary_of(runs).claim == one
    assert (
        summary_of(runs[:1]).claim == "h256 trained with `no-decay` does not collapse (1 size × 1 seed, 20,000 steps)"
    )
    baseline = [healthy_run(tmp_path, 0), *runs[:3]]
    both = "h256 of baseline and no-decay do not collapse (1 size × 1 to 3 seeds, 20,000 steps)"
    assert summary_of(baseline).claim == both
    assert summary_of(baseline[:1]).claim.startswith("h256 trained as the baseline does not collapse")
    asked = summary_of(baseline[:1], arm="no-decay").claim
    assert asked == "runs of unknown size trained with `no-decay` do not collapse (no run)"


def test_many_arms_and_sizes_are_counted_in_the_claim(tmp_path: Path) -> None:
    runs = [
        healthy_run(tmp_path, arm=f"arm{letter}", size=size) for letter in "abcd" for size in (128, 256, 512, 768, 1024)
    ]
    claim = summary_of(runs, criteria=[ORIGIN]).claim
    assert claim == "h128 to h1024 of each of 4 arms do not collapse (5 sizes × 1 seed, 20,000 steps)"


def test_a_csv_that_tells_nothing_is_of_unknown_size_and_arm(tmp_path: Path) -> None:
    runs = [bare_run(tmp_path, [45, *CURED[1:-1], last], name=f"log_{last}.csv") for last in (60, 61)]
    summary = summary_of(runs)
    assert summary.claim == (
        "runs of unknown size and of an unknown arm do not collapse (1 seed, recorded to step 20,000)"
    )
    assert summary.notes[0] == "2 runs of unknown seed count as one seed (else --distinct-seeds)"
    assert [(row.arm, row.size, row.seeds) for row in summary.rows] == [("unknown", None, 1)]
    distinct = summary_of(runs, distinct_seeds=True)
    assert [(row.seeds, distinct.notes[:1]) for row in distinct.rows] == [
        (2, ("scaled replica of origin: other sizes or steps",))
    ]


def test_criteria_that_only_compare_claim_no_absence_of_collapse(tmp_path: Path) -> None:
    paired = parse_criteria(
        {
            "seeds": {"rule": "rate"},
            "checks": [
                {"kind": "finite"},
                {"kind": "finished"},
                {"kind": "paired", "measure": "HeldOutLoss", "better": "lower"},
            ],
        }
    )
    runs = [
        healthy_run(tmp_path, seed, arm=arm, HeldOutLoss=loss + seed / 1000)
        for arm, loss in (("baseline", 5.0), ("no-decay", 4.5))
        for seed in range(6)
    ]
    summary = summary_of(runs, criteria=[paired])
    assert summary.outcome is Outcome.SUPPORTED
    assert summary.claim.startswith("h256 trained with `no-decay` has a lower HeldOutLoss than `baseline` (")
    assert summary.headline == "HeldOutLoss lower than baseline in 6 of 6 pairs (confidence 95 %)"
    assert summary.further_reasons == ()
    assert summary.effect == ("HeldOutLoss: median improvement 0.5, at least 0.5 (one-sided 95 % bound)",)
    [row] = summary.rows
    [cell] = row.cells
    assert summary.columns[0].is_count
    assert cell is not None
    assert (cell.mean, cell.runs, cell.failed) == (6, 6, 0)


# what came out


def test_support_says_which_rate_and_confidence(tmp_path: Path) -> None:
    runs = [healthy_run(tmp_path, seed) for seed in range(5)]
    assert summary_of(runs).headline == "fewer than half of all seeds fail (confidence 95 %)"
    alone = summary_of(runs, criteria=[ORIGIN])
    assert alone.headline == "every seed judged passes origin, which promises no error rate"
    # every look costs confidence
    looked = Inventory(plans={("baseline", 256): (5, 6)})
    six = [*runs, healthy_run(tmp_path, 5)]
    assert summary_of(six, inventory=looked, criteria=[SOUND]).headline.endswith("(confidence 90 %)")


def test_refutation_says_by_which_rule(tmp_path: Path) -> None:
    runs = [healthy_run(tmp_path, seed, **SICK) for seed in range(6)]
    by_rate = summary_of(runs)
    assert by_rate.outcome is Outcome.REFUTED
    assert by_rate.headline == "more than half of all seeds fail (confidence 95 %)"
    sick = "top share > 0.5, skill < 0, context < 0.1, skill at the boundary < -0.25 in 6 of 6 runs"
    assert by_rate.why[0].text() == sick
    assert by_rate.why[0].text(2) == "top share > 0.5, skill < 0 and 2 more in 6 of 6 runs"
    assert by_rate.criteria == (
        "criteria disagree: origin supported, sound refuted (TopShare, Skill, ContextInformation, not seen by origin)"
    )
    failed = [bare_run(tmp_path / "b", [*FAILED[:-1], 6 + seed], seed=seed) for seed in range(2)]
    by_every = summary_of(failed, criteria=[ORIGIN])
    assert by_every.headline == "2 of 2 seeds fail by origin, and one is enough"
    assert [reason.text() for reason in by_every.why] == ["final count < 10 in 2 of 2 runs"]


def test_a_refuted_size_among_others_is_named(tmp_path: Path) -> None:
    def run(size: int, seed: int, **changes: object) -> Run:
        return healthy_run(tmp_path, seed, size=size, **changes)

    runs = [run(256, seed) for seed in range(6)] + [run(512, seed, **SICK) for seed in range(6)]
    summary = summary_of(runs, criteria=[SOUND])
    assert summary.headline == "more than half of all seeds fail at h512 (confidence 95 %)"
    assert (summary.why[0].runs, summary.why[0].of) == (6, 6)
    bad = [bare_run(tmp_path / "b", FAILED, size=512), bare_run(tmp_path / "b", CURED, size=256)]
    assert summary_of(bad, criteria=[ORIGIN]).headline == "1 of 1 seed fails by origin at h512, and one is enough"
    few = [run(256, seed) for seed in range(6)] + [run(768, seed) for seed in range(3)]
    assert summary_of(few, criteria=[SOUND]).headline == (
        "3 seeds cannot decide at a failure rate of 50 % at h768: 6 needed"
    )


@pytest.mark.parametrize(
    ("healthy", "failed", "text"),
    [
        (3, 0, "3 seeds cannot decide at a failure rate of 50 %: 5 needed"),
        (1, 0, "1 seed cannot decide at a failure rate of 50 %: 5 needed"),
        (
            0,
            3,
            "3 seeds, all failed, cannot decide at a failure rate of 50 %: "
            "5 could refute if all further ones fail, 13 could support if none of them does",
        ),
        (
            5,
            1,
            "6 seeds, 1 failed, cannot decide at a failure rate of 50 %: "
            "18 could refute if all further ones fail, 8 could support if none of them does",
        ),
    ],
)
def test_too_few_seeds_say_how_many_are_needed(tmp_path: Path, healthy: int, failed: int, text: str) -> None:
    runs = [healthy_run(tmp_path, seed) for seed in range(healthy)]
    runs += [healthy_run(tmp_path, seed, **SICK) for seed in range(healthy, healthy + failed)]
    summary = summary_of(runs, criteria=[SOUND])
    assert summary.outcome is Outcome.INCONCLUSIVE
    assert summary.headline == text
    needed = int(text.partition(": ")[2].split()[0]) if failed in (0, 3) else 8
    assert summary.next.endswith(f"--seeds {needed}")


def test_what_is_missing_comes_first(tmp_path: Path) -> None:
    runs = [origin_run(tmp_path, [4000, *[200 + seed] * 10], seed=seed) for seed in range(5)]
    missing = AbsentRun(
        run="s5", arm="baseline", size=256, seed=5, planned_steps=20_000, state="missing", reason="no file"
    )
    summary = summary_of(runs, inventory=Inventory(absent=(missing,)))
    assert summary.headline == "origin, sound: 1 missing of 6 planned seeds"
    assert summary.next == "finish the missing and unfinished runs: the command that started them does"
    crashed = [*runs, origin_run(tmp_path, [4000, *[200] * 5], "failed", seed=6)]
    summary = summary_of(crashed, criteria=[SOUND])
    assert (summary.outcome, summary.headline) == (Outcome.INCONCLUSIVE, "crashed in 1 of 6 runs")
    assert row_of(summary, "baseline").seeds_ok == 5


def test_invalid_says_what_makes_it_so(tmp_path: Path) -> None:
    texts = [
        origin_run(tmp_path / "t", [4000, *[200 + seed] * 10], seed=seed, data={"fingerprint": letter * 64})
        for seed, letter in enumerate("aaab")
    ]
    summary = summary_of(texts)
    assert summary.outcome is Outcome.INVALID
    assert "the seeds differ in more than the seed: data fingerprint" in summary.headline
    assert summary.next == "judge runs of one text and one set of settings only, or train all of them alike"
    small = [bare_run(tmp_path / "p", [16, 9, 2, 2, 2, 2, 9, 9, 9, 9, 9], ProbePositions=16)]
    assert summary_of(small, criteria=[ORIGIN]).headline == "UniquePredictions > 50 is out of reach in 1 of 1 run"
    probe = summary_of(small, criteria=[SOUND])
    assert probe.headline == "a probe of fewer than 1,024 ProbePositions cannot tell in 1 of 1 run"
    assert "larger probe" in probe.next


def test_several_arms_are_counted_by_outcome(tmp_path: Path) -> None:
    runs = [bare_run(tmp_path, FAILED), bare_run(tmp_path, CURED, arm="decoupled-decay")]
    summary = summary_of(runs, criteria=[ORIGIN])
    assert summary.headline == "the strictest of 2 arms: baseline refuted, decoupled-decay supported"
    assert summary.next.startswith("supported here: decoupled-decay")


def test_a_stage_check_is_told_in_its_own_words(tmp_path: Path) -> None:
    runs = [bare_run(tmp_path, [*STAGE_1, 100, 50, 12, 11, 11 + seed], seed=seed) for seed in range(3)]
    [reason] = summary_of(runs, criteria=[ORIGIN]).why
    assert reason.text() == "temporary recovery in 3 of 3 runs"


def test_a_mean_or_pairs_that_decide_nothing_are_said_to(tmp_path: Path) -> None:
    level = {"kind": "level", "measure": "UniquePredictions", "supported_above": 50, "refuted_below": 10}
    checks = [{"kind": "finite"}, {"kind": "finished"}, level | {"claim": "mean"}]
    mean = parse_criteria({"seeds": {"rule": "rate"}, "checks": checks})
    runs = [bare_run(tmp_path, [4000, *[59 + seed] * 10], seed=seed) for seed in range(3)]
    assert "mean UniquePredictions 60, not told from chance" in summary_of(runs, criteria=[mean]).why[0].text()


# which length was judged


def test_the_horizon_says_what_was_judged_and_what_criteria_ask_for(tmp_path: Path) -> None:
    runs = [load_run(simple_run(tmp_path, quick(seed=seed, steps=300), loss=5 + seed / 1000)) for seed in range(2)]
    given, requested = summary_of(runs), summary_of(runs, steps=300)
    assert given.horizon == "300 steps as recorded (recipe 2,000; origin 20,000 unless --steps 300)"
    assert requested.horizon == "300 steps as requested (recipe 2,000; origin 20,000)"
    assert given.claim.endswith("(1 size × 2 seeds, 300 steps)")
    assert requested.claim == given.claim
    # of equal length, origin judges what is asked for
    origin_only = summary_of(runs, criteria=[ORIGIN])
    assert origin_only.headline == "300 steps planned, 20,000 required in 2 of 2 runs"
    assert origin_only.next == "judge by the planned steps with --steps 300, or train for origin's 20,000"


def test_the_full_length_needs_no_explanation(tmp_path: Path) -> None:
    runs = [origin_run(tmp_path, CURED, seed=seed) for seed in range(2)]
    assert summary_of(runs).horizon == ""
    assert summary_of(runs, steps=20_000).horizon == ""


# the rows


def test_rows_hold_means_and_count_what_fails(tmp_path: Path) -> None:
    runs = [
        healthy_run(tmp_path, seed, arm=arm, HeldOutLoss=loss, TopShare=share)
        for arm, loss, share in (("baseline", 5.0, 0.3), ("no-decay", 4.5, 0.08))
        for seed in range(3)
    ]
    runs[0] = healthy_run(tmp_path, 0, arm="baseline", HeldOutLoss=5.0, TopShare=0.9)
    summary = summary_of(runs, arm="no-decay", criteria=[SOUND])
    index = [column.name for column in summary.columns].index("top share")
    assert summary.columns[index].needed == "< 0.25"
    baseline, arm = row_of(summary, "baseline"), row_of(summary, "no-decay")
    cell = baseline.cells[index]
    assert cell is not None
    assert cell.mean == pytest.approx(0.5)
    assert (cell.failed, cell.undecided, cell.runs) == (1, 2, 3)
    assert (baseline.seeds_ok, baseline.seeds, baseline.is_asked) == (0, 3, False)
    assert (arm.seeds_ok, arm.seeds, arm.is_asked) == (3, 3, True)
    assert arm.held_out_loss == pytest.approx(4.5)
    assert arm.versus_baseline == pytest.approx(-0.5)
    assert baseline.versus_baseline is None
    assert summary.effect == ("held-out loss −0.50 at h256 (lower in 3 of 3 pairs)",)


def test_arms_that_were_not_trained_alike_are_not_compared(tmp_path: Path) -> None:
    runs = [
        origin_run(tmp_path, [4000, *[200] * 10], arm=arm, data={"fingerprint": letter * 64})
        for arm, letter in (("", "a"), ("no-decay", "b"))
    ]
    summary = summary_of(runs, arm="no-decay")
    assert row_of(summary, "no-decay").versus_baseline is None
    assert summary.effect == ()


def test_values_that_are_not_finite_have_no_mean_but_fail(tmp_path: Path) -> None:
    runs = [healthy_run(tmp_path, 0, HeldOutLoss=[4.7] * 10 + ["nan"])]
    summary = summary_of(runs, criteria=[SOUND])
    assert row_of(summary, "baseline").held_out_loss is None
    assert Summary.model_validate(summary.model_dump(mode="json")) == summary


def test_huge_values_stay_short(tmp_path: Path) -> None:
    runs = [
        healthy_run(tmp_path, seed, arm=arm, HeldOutLoss=value, UniquePredictions=200)
        for arm, value in (("baseline", 1.5e308), ("no-decay", -1.5e308))
        for seed in range(3)
    ]
    summary = summary_of(runs, arm="no-decay")
    assert row_of(summary, "baseline").held_out_loss == pytest.approx(1.5e308)
    assert max(len(line) for line in summary_lines(summary, 80)) <= 80


# what to do next


def test_no_step_advises_what_was_asked_for_or_done(tmp_path: Path) -> None:
    tried: list[str] = []
    for index, arm in enumerate(("baseline", "decoupled-decay", "no-decay", "reduced-lr", "wd-schedule:stage2=0.1")):
        runs = [bare_run(tmp_path / str(index), FAILED, arm=one) for one in (*tried, arm)]
        step = summary_of(runs, arm=arm, criteria=[ORIGIN]).next
        for one in (*tried, arm):
            assert one.partition(":")[0] not in step
        tried.append(arm)
    assert "try" not in step
    assert "try `-i decoupled-decay`" in summary_of([bare_run(tmp_path / "0", FAILED)], criteria=[ORIGIN]).next


def test_decay_that_is_decoupled_already_is_not_advised(tmp_path: Path) -> None:
    runs = [origin_run(tmp_path, FAILED, overrides=["optimizer.name=adamw"])]
    assert summary_of(runs, criteria=[ORIGIN]).next.startswith("try `-i no-decay`")


def test_short_runs_are_to_be_repeated_at_the_recipe_s_length(tmp_path: Path) -> None:
    runs = [
        load_run(simple_run(tmp_path, quick(seed=seed, steps=300), unique=5, loss=7 + seed / 1000)) for seed in range(6)
    ]
    assert summary_of(runs, steps=300).next.startswith("repeat at the recipe's 2,000 steps (drop --steps 300)")
    level = {"kind": "level", "measure": "UniquePredictions", "supported_above": 50, "refuted_below": 10}
    own = parse_criteria({"checks": [{"kind": "finite"}, {"kind": "finished"}, level]})
    given = summary_of(runs, criteria=[own])
    assert given.outcome is Outcome.REFUTED
    assert given.next.startswith("repeat at the recipe's 2,000 steps; try `-i")


def test_next_steps_of_open_claims(tmp_path: Path) -> None:
    cut = [bare_run(tmp_path, steps=10_000, name="h256-20000-baseline-s0-abcdef.csv")]
    assert "finish the missing and unfinished runs" in summary_of(cut).next
    plain = [bare_run(tmp_path / "plain", ProbePositions=None)]
    assert "by which only `--criteria origin`" in summary_of(plain).next
    between = [bare_run(tmp_path / "open", [*STAGE_1, 10, 20, 30, 30, 30])]
    assert summary_of(between, criteria=[ORIGIN]).next.startswith("no threshold is passed in some runs")
    crashed = [origin_run(tmp_path / "crash", [4000, *[200] * 5], "failed")]
    assert summary_of(crashed, criteria=[ORIGIN]).next.startswith("find out why it crashed")
    short = [bare_run(tmp_path / "nameless", name="hidden256.csv")]
    assert summary_of(short, criteria=[SOUND]).outcome is Outcome.INCONCLUSIVE


def test_files_that_count_no_further_are_the_first_note(tmp_path: Path) -> None:
    runs = [healthy_run(tmp_path, seed) for seed in range(3)]
    copy = tmp_path / f"{runs[0].path.stem} (1).csv"
    copy.write_bytes(runs[0].path.read_bytes())
    summary = summary_of([*runs, load_run(copy)], criteria=[SOUND])
    assert summary.notes[0] == f"left out as a copy: {copy.name}"
    assert [row.seeds for row in summary.rows] == [3]
