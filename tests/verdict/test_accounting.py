"""What is judged is what was planned: every run is accounted for in every verdict."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from synthetic import healthy_run

from bitnetctl.records import Run
from bitnetctl.records.inventory import AbsentRun, Inventory, State
from bitnetctl.report import junit_xml, verdict_lines, verification_report
from bitnetctl.verdict import JudgeOptions, Outcome, Verdict, combine, judge, judge_arms, load_criteria, summarize

ORIGIN, SOUND = load_criteria("origin"), load_criteria("sound")
SUPPORTED, REFUTED, INCONCLUSIVE, INVALID = Outcome


def absent(seed: int, state: State, reason: str = "its reason", *, size: int = 256, arm: str = "baseline") -> AbsentRun:
    return AbsentRun(
        run=f"h{size}-{arm}-s{seed}", arm=arm, size=size, seed=seed, planned_steps=20_000, state=state, reason=reason
    )


def healthy(folder: Path, count: int) -> list[Run]:
    return [healthy_run(folder, seed) for seed in range(count)]


def sound(
    runs: list[Run],
    *others: AbsentRun,
    arms: tuple[str, ...] = (),
    plans: Mapping[tuple[str, int], tuple[int, ...]] | None = None,
    **options: Any,
) -> Verdict:
    inventory = Inventory(absent=others, arms=arms, plans=plans or {})
    return judge(runs, SOUND, JudgeOptions(**options), inventory=inventory)


def test_a_run_that_failed_without_rows_is_a_failed_run(tmp_path: Path) -> None:
    """Three healthy seeds and three that crashed before their first evaluation used to be supported."""
    runs = healthy(tmp_path, 3)
    crashed = [absent(seed, "failed", "crashed before its first evaluation: out of memory") for seed in range(3, 6)]
    verdict = sound(runs, *crashed)
    assert verdict.outcome is INCONCLUSIVE
    assert [verdict.statistics[0][name] for name in ("seeds", "healthy", "unhealthy")] == [6, 3, 3]
    assert verdict.account == "baseline: 3 judged, 3 failed without rows"
    (run,) = {result.reason for result in verdict.results if result.run == "h256-baseline-s4"}
    assert run == "crashed before its first evaluation: out of memory"
    # by the founding document one failing run refutes
    assert judge(runs, ORIGIN, inventory=Inventory(absent=tuple(crashed))).outcome is REFUTED
    failed = Inventory(absent=tuple(absent(seed, "failed") for seed in range(5)))
    assert judge([], SOUND, arm="baseline", inventory=failed).outcome is REFUTED
    assert judge_arms([], SOUND, inventory=failed)["baseline"].outcome is REFUTED
    # one failed run of eight is one failed seed, not a missing one
    assert sound(healthy(tmp_path, 7), absent(7, "failed")).outcome is SUPPORTED


@pytest.mark.parametrize("state", ["unfinished", "missing", "left out"])
def test_a_planned_seed_that_is_not_judged_makes_support_impossible(tmp_path: Path, state: State) -> None:
    runs = healthy(tmp_path, 12)
    verdict = sound(runs, absent(12, state))
    assert verdict.outcome is INCONCLUSIVE
    assert verdict.reasons[0] == (
        f"hidden 256: not judged 1 of 13 planned seeds, so that nothing can be supported: {state} seed 12"
    )
    assert judge(runs, ORIGIN, inventory=Inventory(absent=(absent(12, state),))).outcome is not SUPPORTED


def test_refutation_is_what_the_missing_runs_cannot_overturn(tmp_path: Path) -> None:
    bad = [healthy_run(tmp_path, seed, HeldOutLoss=7 + seed / 100) for seed in range(9)]
    assert sound(bad[:5], absent(9, "missing")).outcome is INCONCLUSIVE
    assert sound(bad, absent(9, "missing"), absent(10, "missing")).outcome is REFUTED


def test_cherry_picking_says_so(tmp_path: Path) -> None:
    """Of six seeds with 2 and 3 failed, the CSVs of 0, 1, 4 alone were supported in silence."""
    runs = [healthy_run(tmp_path, seed) for seed in (0, 1, 4, 6, 7, 8)]
    others = [absent(seed, "left out", "in the same folder, not given (failed)") for seed in (2, 3)]
    verdict = sound(runs, *others, absent(5, "left out", "in the same folder, not given (finished)"))
    assert verdict.outcome is INCONCLUSIVE
    assert "left out seed 2, seed 3, seed 5" in verdict.reasons[0]
    assert "h256-baseline-s2 (hidden 256, seed 2), left out: in the same folder, not given (failed)" in verdict.notes
    chosen = sound(healthy(tmp_path, 9), seeds=[0, 1, 2, 3, 4, 5])
    assert chosen.outcome is INCONCLUSIVE
    assert "left out seed 6, seed 7, seed 8" in chosen.reasons[0]


def test_sizes_and_arms_that_were_not_requested_do_not_stand_in_the_way(tmp_path: Path) -> None:
    runs = healthy(tmp_path, 5)
    assert sound(runs, absent(0, "missing", size=512), sizes=[256]).outcome is SUPPORTED
    assert sound(runs, absent(7, "missing", arm="other")).outcome is SUPPORTED
    assert sound(runs, absent(0, "missing", size=512)).sizes == {256: SUPPORTED, 512: INCONCLUSIVE}


def test_arms_left_out_of_the_call_share_the_error_rate(tmp_path: Path) -> None:
    runs = healthy(tmp_path, 5)
    assert sound(runs, arms=("baseline",)).outcome is SUPPORTED
    verdict = sound(runs, arms=("baseline", "other"))
    assert verdict.outcome is INCONCLUSIVE
    assert verdict.rule["arms"] == 2
    assert "6 could support it" in verdict.reasons[0]


def test_looks_are_counted_and_shown(tmp_path: Path) -> None:
    runs = healthy(tmp_path, 10)
    verdict = sound(runs, plans={("baseline", 256): (3, 6, 10)})
    assert verdict.rule["looks"] == 2
    (note,) = (note for note in verdict.notes if "grew" in note)
    # three seeds could not decide, so that a look at them costs nothing
    assert note == (
        "hidden 256: the number of seeds grew: 6, then 10; if the verdict was looked at before each, the error rate is "
        "up to 10 % instead of 5 %"
    )
    assert verdict.planned["seeds_planned_over_time"] == [{"size": 256, "seeds": [3, 6, 10]}]
    for once in ((10,), (3, 10)):
        verdict = sound(runs, plans={("baseline", 256): once})
        assert verdict.rule["looks"] == 1
        assert "grew" not in " ".join(verdict.notes)


def test_a_seed_that_also_failed_elsewhere_helps_neither_side(tmp_path: Path) -> None:
    verdict = sound(healthy(tmp_path, 5), absent(4, "failed", "crashed"))
    assert [verdict.statistics[0][name] for name in ("seeds", "healthy", "undecided", "absent")] == [5, 4, 1, 0]
    assert verdict.outcome is INCONCLUSIVE
    # another run of a seed that is judged could have been chosen away
    beside = sound(healthy(tmp_path, 5), absent(4, "left out", "in the same folder, not given (failed)"))
    assert beside.outcome is INCONCLUSIVE
    assert (beside.statistics[0]["seeds"], beside.statistics[0]["absent"]) == (5, 0)


def test_runs_of_other_steps_stand_in_the_way_unless_steps_are_requested(tmp_path: Path) -> None:
    trial = replace(absent(4, "left out", "in the same folder, not given (finished, 200 steps)"), planned_steps=200)
    assert sound(healthy(tmp_path, 5), trial).outcome is INCONCLUSIVE
    # a seed that was trained at another length only may have been left out for its result
    other_seed = replace(trial, seed=9)
    assert sound(healthy(tmp_path, 5), other_seed, requested_steps=20_000).outcome is INCONCLUSIVE
    requested = sound(healthy(tmp_path, 5), trial, requested_steps=20_000)
    assert requested.outcome is SUPPORTED
    assert "1 left out" in requested.account


def test_every_form_of_a_verdict_carries_the_account(tmp_path: Path) -> None:
    runs = [*healthy(tmp_path, 5), healthy_run(tmp_path, 0, name="copy.csv")]
    verdict = sound(
        runs, absent(5, "failed", "crashed"), absent(6, "missing", "no file"), absent(7, "unfinished", "stopped")
    )
    account = "baseline: 5 judged, 1 failed without rows, 1 unfinished, 1 missing, 1 doubled"
    assert verdict.account == account
    tree = verdict.to_json()
    assert tree["account"] == account
    assert {
        name: tree["planned"][name] for name in ("judged", "failed", "unfinished", "missing", "left_out", "doubled")
    } == {
        "judged": 5,
        "failed": 1,
        "unfinished": 1,
        "missing": 1,
        "left_out": 0,
        "doubled": 1,
    }
    assert [run["state"] for run in tree["planned"]["runs"]] == ["doubled", "failed", "missing", "unfinished"]
    assert account in verdict_lines(verdict)
    judged = {"baseline": combine([verdict])}
    summary = summarize(
        judged, ["baseline"], [SOUND if verdict.criteria == "sound" else ORIGIN], runs, JudgeOptions(), requested=False
    )
    report = verification_report(runs, judged, summary)
    assert f"Runs: {account}" in report
    assert "- not judged: h256-baseline-s6 (hidden 256, seed 6), missing: no file" in report
    xml = junit_xml([verdict])
    assert account in xml
    assert 'message="missing: no file"' in xml
    assert '<failure message="crashed" />' in xml


def test_what_lies_beside_the_given_runs_is_mentioned(tmp_path: Path) -> None:
    runs = healthy(tmp_path, 5)
    larger = [replace(absent(seed, "left out"), size=512) for seed in range(6)]
    verdict = judge(runs, SOUND, inventory=Inventory(others=tuple(larger)))
    assert verdict.outcome is SUPPORTED
    note = "baseline was trained at other sizes, too, about which nothing is said: hidden 512 (6 runs)"
    assert note in verdict.notes
    foreign = [replace(run, seed=None) for run in runs]
    options = JudgeOptions(distinct_seeds=True)
    unnamed = judge(foreign, SOUND, options, inventory=Inventory(unnamed=2)).notes
    assert any(
        note.startswith("2 other CSVs without a manifest or a run's name lie beside those given") for note in unnamed
    )
    assert not any("beside" in note for note in judge(runs, SOUND, inventory=Inventory(unnamed=2)).notes)
