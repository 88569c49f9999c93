"""What a summary says of criteria that only compare arms: what is shown, the bound, and what to do next."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from summaries import summary_of
from synthetic import healthy_run

from bitnetctl.verdict import Criteria, Outcome, Summary, parse_criteria

SUPPORTED, REFUTED, INCONCLUSIVE, INVALID = Outcome
EQUIVALENT = {"kind": "equivalent", "measure": "HeldOutLoss", "within": 0.1}
PAIRED = {"kind": "paired", "measure": "HeldOutLoss", "better": "lower", "margin": 0.1}


def criteria(*checks: dict[str, Any]) -> Criteria:
    return parse_criteria(
        {
            "seeds": {"rule": "rate"},
            "checks": [{"kind": "finite", "columns": ["Loss"]}, {"kind": "finished"}, *checks],
        }
    )


def summary(
    folder: Path, differences: Sequence[float], *checks: dict[str, Any], sizes: Sequence[int] = (256,)
) -> Summary:
    """Summarize pairs whose held-out loss differs by so much; inf is a failed run of the arm."""
    runs = []
    for size in sizes:
        for seed, difference in enumerate(differences):
            fails = math.isinf(difference)
            loss = 5.0 + seed / 1000 + size / 10_000
            runs += [
                healthy_run(folder, seed, size=size, HeldOutLoss=loss, Loss=6.0 + seed / 100),
                healthy_run(
                    folder,
                    seed,
                    size=size,
                    arm="cure",
                    HeldOutLoss=loss if fails else loss + difference,
                    Loss="nan" if fails else 6.1 + seed / 100,
                ),
            ]
    return summary_of(runs, arm="cure", criteria=[criteria(*checks)])


@pytest.mark.parametrize(
    ("check", "differences", "outcome", "headline", "effect"),
    [
        (
            EQUIVALENT,
            [0.05] * 4 + [-0.03] * 4,
            SUPPORTED,
            "HeldOutLoss within 0.1 of baseline in 8 of 8 pairs (confidence 95 %)",
            "HeldOutLoss: median difference 0.01, in size at most 0.05 (one-sided 95 % bound)",
        ),
        (
            EQUIVALENT,
            [0.25, 0.3, 0.35, 0.4] * 2,
            REFUTED,
            "HeldOutLoss within 0.1 of baseline in 0 of 8 pairs (confidence 95 %)",
            "HeldOutLoss: median difference 0.325, at least 0.25 (one-sided 97.5 % bound)",
        ),
        (
            EQUIVALENT,
            [0.05, 0.3] * 4,
            INCONCLUSIVE,
            "HeldOutLoss within 0.1 of baseline in 4 of 8 pairs, neither shown nor excluded",
            "HeldOutLoss: median difference 0.175, in size at most 0.3 (one-sided 95 % bound)",
        ),
        (
            PAIRED,
            [-0.25, -0.3, -0.35, -0.4] * 2,
            SUPPORTED,
            "HeldOutLoss lower than baseline by more than 0.1 in 8 of 8 pairs (confidence 95 %)",
            "HeldOutLoss: median improvement 0.325, at least 0.25 (one-sided 95 % bound)",
        ),
        (
            PAIRED,
            [0.25, 0.3, 0.35, 0.4] * 2,
            REFUTED,
            "HeldOutLoss lower than baseline by more than 0.1 in 0 of 8 pairs (confidence 95 %)",
            "HeldOutLoss: median improvement -0.325, at most -0.25 (one-sided 97.5 % bound)",
        ),
    ],
)
def test_what_is_shown_and_at_which_error_rate(
    tmp_path: Path,
    check: dict[str, Any],
    differences: Sequence[float],
    outcome: Outcome,
    headline: str,
    effect: str,
) -> None:
    found = summary(tmp_path, differences, check)
    assert (found.outcome, found.headline, found.effect) == (outcome, headline, (effect,))
    assert "no difference" not in " ".join((found.claim, found.headline, *found.effect, found.next))


def test_too_few_pairs_and_failed_runs_have_no_bound(tmp_path: Path) -> None:
    few = summary(tmp_path / "few", [0.0] * 4, EQUIVALENT)
    assert few.effect == ("HeldOutLoss: median difference 0; too few pairs for a bound",)
    failed = summary(tmp_path / "failed", [*[-0.3] * 5, math.inf], PAIRED)
    assert failed.effect == ("HeldOutLoss: median improvement 0.3; failed runs leave no bound",)


def test_several_sizes_are_told_apart(tmp_path: Path) -> None:
    found = summary(tmp_path, [0.01] * 6, EQUIVALENT, sizes=(256, 512))
    [effect] = found.effect
    assert effect.startswith("h256 HeldOutLoss: median difference 0.01, in size at most 0.01 (")
    assert "; h512 HeldOutLoss: median difference 0.01" in effect


def test_open_pairs_are_not_blamed_on_a_failure_rate_that_is_decided(tmp_path: Path) -> None:
    found = summary(tmp_path / "pairs", [0.05, 0.3] * 4, EQUIVALENT)
    assert found.further_reasons == ()
    assert found.next == "plan more seeds, before looking: `bitnetctl power` says how many"
    few = summary(tmp_path / "few", [0.05] * 4, EQUIVALENT)
    assert "4 seeds cannot decide at a failure rate of 50 %: 6 needed" in [reason.text() for reason in few.why]
    assert few.next == "fix the number of seeds before looking, then train them: --seeds 6"


def test_nothing_is_advised_against_a_collapse_that_was_not_claimed(tmp_path: Path) -> None:
    found = summary(tmp_path, [0.3] * 8, EQUIVALENT)
    assert found.next == "the claim fails at this size and length: test it at the ones that you need"


def test_several_claims_are_all_named(tmp_path: Path) -> None:
    found = summary(tmp_path, [-0.3] * 8, PAIRED, EQUIVALENT | {"measure": "TopShare", "within": 0.01})
    assert found.claim.startswith(
        "h256 trained with `cure` has a lower HeldOutLoss than `baseline` and differs from `baseline` in TopShare by "
        "less than 0.01 ("
    )
    assert found.outcome is SUPPORTED
