"""Checks `paired`: an arm against another, seed by seed."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from synthetic import LEVELS, bare_run, healthy_run, quick, simple_run

from bitnetctl.errors import ConfigError
from bitnetctl.records import Run, load_run
from bitnetctl.verdict import Criteria, JudgeOptions, Outcome, Verdict, judge, judge_arms, parse_criteria
from bitnetctl.verdict.checks.pair_tests import Pairs, sign_test, student_test
from bitnetctl.verdict.rule import PValues

SUPPORTED, REFUTED, INCONCLUSIVE, INVALID = Outcome


def criteria(**fields: Any) -> Criteria:
    check = {"kind": "paired", "measure": "HeldOutLoss", "better": "lower", "margin": 0.1, "last": 3} | fields
    return parse_criteria(
        {
            "seeds": {"rule": "rate"},
            "checks": [{"kind": "finite", "columns": ["Loss"]}, {"kind": "finished"}, check],
        }
    )


def pairs_of(folder: Path, improvements: Sequence[float | None], arm: str = "cure", size: int = 256) -> list[Run]:
    """Write pairs whose held-out loss improves by so much; None is a seed without a baseline, inf a failed baseline."""
    runs = []
    for seed, improvement in enumerate(improvements):
        base = 5.0 + seed / 1000
        if improvement is not None:
            loss = "nan" if improvement == math.inf else 6.0
            runs.append(healthy_run(folder, seed, size=size, HeldOutLoss=base, Loss=loss))
        own = base - (improvement if improvement is not None and math.isfinite(improvement) else 1.0)
        bad = improvement == -math.inf
        runs.append(healthy_run(folder, seed, size=size, arm=arm, HeldOutLoss=own, Loss="nan" if bad else 6.5))
    return runs


def judged(runs: list[Run], arm: str = "cure", options: JudgeOptions | None = None, **fields: Any) -> Verdict:
    return judge_arms(runs, criteria(**fields), options)[arm]


def claim(verdict: Verdict) -> str:
    (reason,) = (
        result.reason for result in verdict.results if result.run is None and result.check.startswith("paired")
    )
    return reason


def test_every_seed_wins(tmp_path: Path) -> None:
    verdict = judged(pairs_of(tmp_path, [0.3] * 5))
    assert verdict.outcome is SUPPORTED
    assert claim(verdict) == (
        "HeldOutLoss is lower than baseline by more than 0.1 in 5 of 5 planned pairs, median improvement 0.3: so is "
        "the median pair (p = 0.0312, below 0.05)"
    )


@pytest.mark.parametrize(
    ("improvements", "outcome"),
    [
        ([0.3] * 4, INCONCLUSIVE),
        ([0.3] * 7 + [0.0], SUPPORTED),
        ([0.3] * 6 + [0.0] * 2, INCONCLUSIVE),
        # wins by less than the margin are losses
        ([0.05] * 6, REFUTED),
        ([-0.3] * 6, REFUTED),
        ([0.3, -0.3] * 4, INCONCLUSIVE),
        # as much as the margin helps neither side, whatever the rounding
        ([0.1] * 8, INCONCLUSIVE),
        # a lost pair makes support impossible
        ([0.3] * 7 + [None], INCONCLUSIVE),
        # failed runs are infinitely worse, and the sign test takes that
        ([0.3] * 5 + [math.inf], SUPPORTED),
    ],
)
def test_the_sign_gate(tmp_path: Path, improvements: Sequence[float | None], outcome: Outcome) -> None:
    assert judged(pairs_of(tmp_path, improvements)).outcome is outcome


def test_failures_are_said_apart(tmp_path: Path) -> None:
    verdict = judged(pairs_of(tmp_path, [0.3] * 5 + [math.inf] * 2))
    assert claim(verdict).endswith("; 0 of the arm's and 2 of baseline's runs failed")
    own = judged(pairs_of(tmp_path / "own", [0.3] * 4 + [-math.inf] * 2))
    assert "2 of the arm's and 0 of baseline's runs failed" in claim(own)
    assert own.outcome is INCONCLUSIVE


def runs_that_end(folder: Path, status: str, arm: str, other: str) -> list[Run]:
    """Write six pairs of which the runs of `arm` have ended so before their last step, and those of `other` well."""
    runs = []
    for seed in range(6):
        ended = simple_run(folder, quick(arm, seed=seed), loss=4.0, status=status, diverged_at=900)
        ended.write_text("".join(ended.read_text().splitlines(keepends=True)[:-2]))
        runs += [load_run(ended), load_run(simple_run(folder, quick(other, seed=seed), loss=4.0))]
    return runs


def test_a_crash_of_the_arm_compared_with_is_no_win(tmp_path: Path) -> None:
    crashed = judged(runs_that_end(tmp_path, "failed", "", "no-decay"), "no-decay")
    assert crashed.outcome is INCONCLUSIVE
    assert "none of 6 planned pairs" in claim(crashed)
    assert "baseline, seed 0, crashed, which is no win of another arm" in claim(crashed)
    # one that diverges has failed by what was tested
    diverged = judged(runs_that_end(tmp_path / "diverged", "diverged", "", "no-decay"), "no-decay")
    assert diverged.outcome is SUPPORTED
    # and a crash of the arm itself counts against it
    own = judged(runs_that_end(tmp_path / "own", "failed", "no-decay", ""), "no-decay")
    assert own.outcome is REFUTED


def test_the_arm_compared_with_gets_no_verdict(tmp_path: Path) -> None:
    runs = pairs_of(tmp_path, [0.3] * 5)
    assert list(judge_arms(runs, criteria())) == ["cure"]
    with pytest.raises(ConfigError, match="compare others with the arm baseline and claim nothing about it"):
        judge([run for run in runs if run.arm == "baseline"], criteria())


def test_arms_share_the_error_rate_and_the_reference_takes_no_part(tmp_path: Path) -> None:
    runs = [*pairs_of(tmp_path, [0.3] * 5), *pairs_of(tmp_path, [0.35] * 5, arm="other")]
    verdicts = judge_arms(runs, criteria())
    assert {arm: verdict.outcome for arm, verdict in verdicts.items()} == {"cure": INCONCLUSIVE, "other": INCONCLUSIVE}
    assert verdicts["cure"].rule["arms"] == 2


def test_pairs_are_formed_at_one_size_by_seed(tmp_path: Path) -> None:
    runs = [*pairs_of(tmp_path, [0.3] * 3), *pairs_of(tmp_path, [0.3] * 3, size=512)]
    verdict = judged(runs)
    # six pairs, but three of each size: no size is decided
    assert (verdict.outcome, set(verdict.sizes.values())) == (INCONCLUSIVE, {INCONCLUSIVE})


def test_a_seed_is_one_pair_however_many_runs_it_has(tmp_path: Path) -> None:
    runs = pairs_of(tmp_path, [0.3] * 4)
    again = bare_run(
        tmp_path / "again", [8000, *[209] * 10], arm="cure", seed=0, **LEVELS | {"HeldOutLoss": 4.65, "Loss": 6.7}
    )
    verdict = judged([*runs, again])
    assert "in 4 of 4 planned pairs" in claim(verdict)
    assert verdict.outcome is INCONCLUSIVE


def test_the_declared_number_of_pairs_binds(tmp_path: Path) -> None:
    runs = pairs_of(tmp_path, [0.3] * 8)
    assert judged(runs, pairs=8).outcome is SUPPORTED
    few = judged(runs, pairs=10)
    assert few.outcome is INCONCLUSIVE
    assert "in 8 of 10 planned pairs, of which 8 could be formed" in claim(few)
    many = judged(runs, pairs=6)
    assert many.outcome is INCONCLUSIVE
    assert "8 were trained" in claim(many)


def test_a_claim_about_the_mean_needs_both_gates(tmp_path: Path) -> None:
    assert judged(pairs_of(tmp_path, [0.3, 0.31, 0.29, 0.32, 0.28]), claim="mean").outcome is SUPPORTED
    # every pair wins, but one so much that the mean could be anything
    wide = judged(pairs_of(tmp_path / "wide", [0.11, 0.12, 0.11, 0.12, 3.0]), claim="mean")
    assert wide.outcome is INCONCLUSIVE
    assert judged(pairs_of(tmp_path / "wide", [0.11, 0.12, 0.11, 0.12, 3.0])).outcome is SUPPORTED
    failed = judged(pairs_of(tmp_path / "failed", [0.3] * 6 + [math.inf]), claim="mean")
    assert failed.outcome is INCONCLUSIVE


def test_a_claim_about_the_mean_says_for_which_noise_it_holds(tmp_path: Path) -> None:
    runs = pairs_of(tmp_path, [0.5, 0.52, 0.49, 0.51, 0.53, 0.5, 0.48, 0.5])
    by_student = judged(runs, claim="mean")
    assert "so is the mean pair, for nearly normal differences only, (p = " in claim(by_student)
    by_bet = judged(runs, claim="mean", range=[-0.3, 2.0])
    assert by_bet.outcome is SUPPORTED
    assert "so is the mean pair, for any noise within the range, (p = " in claim(by_bet)
    # with a range of this width a rare loss could outweigh eight wins
    assert judged(runs, claim="mean", range=[-5, 5]).outcome is INCONCLUSIVE
    outside = judged(runs, claim="mean", range=[-0.3, 0.51])
    assert outside.outcome is INCONCLUSIVE
    worse = judged(
        pairs_of(tmp_path / "worse", [-0.5 - seed / 100 for seed in range(12)]), claim="mean", range=[-2, 0.5]
    )
    assert worse.outcome is REFUTED


def test_an_arm_that_has_no_runs_gives_no_pair(tmp_path: Path) -> None:
    verdict = judged(pairs_of(tmp_path, [0.3] * 5), against="no-decay")
    assert verdict.outcome is INCONCLUSIVE
    assert claim(verdict) == (
        "HeldOutLoss: none of 5 planned pairs with no-decay could be formed: a pair takes two finished runs of equal "
        "size, seed and steps"
    )


def test_runs_of_other_settings_are_not_compared(tmp_path: Path) -> None:
    runs = []
    for seed in range(5):
        base = quick(seed=seed)
        other = quick("decoupled-decay", seed=seed, data__batch_size=8)
        runs += [
            load_run(simple_run(tmp_path, base, loss=5.0 + seed / 1000)),
            load_run(simple_run(tmp_path, other, loss=4.0 + seed / 1000)),
        ]
    verdict = judged(runs, arm="decoupled-decay")
    assert verdict.outcome is INVALID
    assert "cannot be compared with baseline: data.batch_size" in " ".join(verdict.reasons)


def test_the_tests_by_hand() -> None:
    def pairs(*improvements: float, planned: int | None = None) -> Pairs:
        return Pairs(
            values=improvements,
            planned=len(improvements) if planned is None else planned,
        )

    def signs(*improvements: float, planned: int | None = None) -> list[float]:
        p = sign_test(pairs(*improvements, planned=planned))
        return [p.supporting * 8, p.refuting * 8]

    assert signs(1, 1, 1) == pytest.approx([1, 8])
    assert signs(1, 1, -1) == pytest.approx([4, 7])
    assert signs(1, 1, 0) == pytest.approx([4, 8])
    assert signs(-1, -1, planned=3) == pytest.approx([8, 4])
    assert signs(math.inf, math.inf, -math.inf) == pytest.approx([4, 7])
    # t = 2 / (1 / sqrt 3) with two degrees of freedom
    student = student_test(pairs(1.0, 2.0, 3.0))
    t = 2 / (1 / math.sqrt(3))
    assert student.supporting == pytest.approx(0.5 - t / (2 * math.sqrt(2 + t * t)))
    assert student.supporting + student.refuting == pytest.approx(1)
    for unknown in (pairs(1.0), pairs(1.0, 1.0), pairs(1.0, math.inf), pairs(1.0, 2.0, planned=3)):
        assert student_test(unknown) == PValues(1.0, 1.0)


def test_other_software_in_the_arm_compared_with_is_noted(tmp_path: Path) -> None:
    runs = []
    for seed in range(5):
        for arm, loss, version in (("", 5.0, "2.9.0"), ("decoupled-decay", 4.0, "2.13.0")):
            config = quick(arm, seed=seed)
            versions = {"torch": version}
            runs.append(load_run(simple_run(tmp_path, config, loss=loss + seed / 1000, versions=versions)))
    verdict = judged(runs, arm="decoupled-decay")
    assert verdict.outcome is SUPPORTED
    assert any("torch 2.13.0 (decoupled-decay) and 2.9.0 (baseline)" in note for note in verdict.notes)
    strict = judged(runs, arm="decoupled-decay", options=JudgeOptions(strict=True))
    assert strict.outcome is INVALID
