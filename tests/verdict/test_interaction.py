"""Checks `interaction`: a gain that is larger without a modifier than with it."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from synthetic import healthy_run

from bitnetctl.errors import ConfigError
from bitnetctl.records import Run
from bitnetctl.verdict import Criteria, Outcome, Verdict, judge_arms, parse_criteria

SUPPORTED, REFUTED, INCONCLUSIVE, INVALID = Outcome
FAILED = math.nan


def criteria(**fields: Any) -> Criteria:
    check = {"kind": "interaction", "measure": "HeldOutLoss", "better": "lower", "modifier": "full-precision"} | fields
    return parse_criteria(
        {
            "seeds": {"rule": "rate"},
            "checks": [{"kind": "finite", "columns": ["Loss"]}, {"kind": "finished"}, check],
        }
    )


def quadruples(
    folder: Path,
    losses: Sequence[tuple[float, float, float, float]],
    arms: Sequence[str] = ("rate", "baseline", "full-precision+rate", "full-precision"),
) -> list[Run]:
    """Write four runs a seed: the arm, the baseline, and both with the modifier; nan is a failed run."""
    runs = []
    for seed, of_seed in enumerate(losses):
        for index, (arm, loss) in enumerate(zip(arms, of_seed, strict=True)):
            failed = math.isnan(loss)
            runs.append(
                healthy_run(
                    folder,
                    seed,
                    arm=arm,
                    HeldOutLoss=5.0 if failed else loss + seed / 1000,
                    Loss="nan" if failed else 6.0 + index / 10 + seed / 1000,
                )
            )
    return runs


def judged(runs: list[Run], **fields: Any) -> Verdict:
    return judge_arms(runs, criteria(**fields))["rate"]


def claim(verdict: Verdict) -> str:
    (reason,) = (result.reason for result in verdict.results if result.check.startswith("interaction"))
    return reason


def values(verdict: Verdict) -> dict[str, float]:
    [of_check] = verdict.statistics[0]["pairs"].values()
    return dict(of_check["values"])


# a gain of 0.5, and of 0.2 with the modifier
LARGER = (4.5, 5.0, 4.8, 5.0)
SMALLER = (4.8, 5.0, 4.5, 5.0)


def test_a_larger_gain_in_every_seed(tmp_path: Path) -> None:
    runs = quadruples(tmp_path, [LARGER] * 5)
    verdict = judged(runs, margin=0.1)
    assert verdict.outcome is SUPPORTED
    assert claim(verdict) == (
        "HeldOutLoss is improved over baseline by over 0.1 more than with full-precision in 5 of 5 planned seeds, "
        "median difference of the gains 0.3: so is the median seed (p = 0.0312, below 0.05)"
    )
    assert values(verdict) == {str(seed): pytest.approx(0.2) for seed in range(5)}
    # the three arms that it is compared with get no verdict and take no part of the error rate
    assert list(judge_arms(runs, criteria())) == ["rate"]
    assert verdict.rule["arms"] == 1


@pytest.mark.parametrize(
    ("losses", "outcome"),
    [
        ([LARGER] * 4, INCONCLUSIVE),
        ([LARGER] * 7 + [SMALLER], SUPPORTED),
        ([SMALLER] * 6, REFUTED),
        ([LARGER, SMALLER] * 5, INCONCLUSIVE),
        # equal gains help neither side
        ([(4.5, 5.0, 4.5, 5.0)] * 8, INCONCLUSIVE),
    ],
)
def test_the_sign_gate(tmp_path: Path, losses: Any, outcome: Outcome) -> None:
    assert judged(quadruples(tmp_path, losses)).outcome is outcome


@pytest.mark.parametrize(
    ("losses", "value"),
    [
        # an infinite gain against a finite one
        ((4.5, FAILED, 4.8, 5.0), math.inf),
        ((FAILED, 5.0, 4.8, 5.0), -math.inf),
        ((4.5, 5.0, 4.8, FAILED), -math.inf),
        ((4.5, 5.0, FAILED, 5.0), math.inf),
        # cured without the modifier, broken with it
        ((4.5, FAILED, FAILED, 5.0), math.inf),
        # two failed runs are equal: no gain
        ((FAILED, FAILED, 4.5, 5.0), -0.5),
        ((4.5, 5.0, FAILED, FAILED), 0.5),
        ((FAILED, FAILED, FAILED, FAILED), 0.0),
    ],
)
def test_failed_runs(tmp_path: Path, losses: tuple[float, float, float, float], value: float) -> None:
    verdict = judged(quadruples(tmp_path, [losses, LARGER]))
    assert values(verdict)["0"] == pytest.approx(value)
    assert " runs failed" not in claim(verdict)
    assert claim(verdict).endswith(" failed")


def test_two_infinite_gains_help_neither_side(tmp_path: Path) -> None:
    cured = (4.5, FAILED, 4.8, FAILED)
    verdict = judged(quadruples(tmp_path, [LARGER] * 5 + [cured]))
    [of_check] = verdict.statistics[0]["pairs"].values()
    assert (of_check["values"]["5"], of_check["greatest"]) == (-math.inf, {"5": math.inf})
    # five of six: neither a win nor a loss
    assert (verdict.outcome, of_check["count"]) == (INCONCLUSIVE, 5)
    assert (of_check["p_of_support"], of_check["p_of_refutation"]) == pytest.approx((7 / 64, 1.0))
    assert "0 of the arm's, 1 of baseline's, 0 of the arm's with full-precision and 1 of baseline's with" in claim(
        verdict
    )


def test_a_seed_without_one_of_its_four_runs_is_lost(tmp_path: Path) -> None:
    runs = quadruples(tmp_path, [LARGER] * 8)
    for arm in ("baseline", "full-precision", "full-precision+rate"):
        some = [run for run in runs if (run.arm, run.seed) != (arm, 3)]
        verdict = judged(some)
        assert verdict.outcome is INCONCLUSIVE
        assert "in 7 of 8 planned seeds, of which 7 could be formed" in claim(verdict)
    nothing = judged([run for run in runs if run.arm != "full-precision"])
    assert claim(nothing) == (
        "HeldOutLoss: none of 8 planned seeds with baseline could be formed: a seed takes four finished runs of equal "
        "size and steps, two of them with full-precision"
    )


def test_arms_are_found_with_their_interventions_in_any_order(tmp_path: Path) -> None:
    arms = ("a+rate", "a", "full-precision+a+rate", "a+full-precision")
    runs = quadruples(tmp_path, [LARGER] * 5, arms)
    assert judge_arms(runs, criteria(against="a"))["a+rate"].outcome is SUPPORTED


def test_the_settings_of_the_modifier_count(tmp_path: Path) -> None:
    arms = ("rate", "baseline", "slow:peak=1+rate", "slow:peak=1")
    runs = quadruples(tmp_path, [LARGER] * 5, arms)
    assert judged(runs, modifier="slow:peak=1").outcome is SUPPORTED
    assert "none of 5 planned seeds" in claim(judged(runs, modifier="slow:peak=2"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"modifier": "baseline"}, "modifier: name the intervention that is added to both arms"),
        ({"against": "full-precision+a"}, "against 'full-precision+a' has the modifier 'full-precision' already"),
        ({"range": [-1, 1]}, 'range is for claim = "mean"'),
    ],
)
def test_a_mistake_is_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        criteria(**fields)
    assert message in str(caught.value)


def test_a_claim_about_the_mean(tmp_path: Path) -> None:
    losses = [(4.5 - seed / 100, 5.0, 4.8, 5.0) for seed in range(6)]
    assert judged(quadruples(tmp_path / "alike", losses), claim="mean").outcome is SUPPORTED
    rare = [*losses, *losses[:1], (4.5, 5.0, 1.0, 5.0)]
    runs = quadruples(tmp_path / "rare", rare)
    assert judged(runs).outcome is SUPPORTED
    assert judged(runs, claim="mean").outcome is INCONCLUSIVE
