"""Which sets of runs a claim is judged by: none that was trained for other steps, is mixed, or has lost seeds."""

import shutil
from pathlib import Path

import pytest
from calling import Done, call, judged
from claim_files import write_arms, write_claim
from synthetic import quick, simple_run, write_run

from bitnetctl.claims.looks import elsewhere_text, looks_file, read_looks
from bitnetctl.errors import ExitCode

pytestmark = pytest.mark.usefixtures("plain_environment")

PAIRED = '{ kind = "paired", measure = "HeldOutLoss", better = "lower", margin = 0.1 }'
INTERACTION = PAIRED.replace('"paired"', '"interaction", modifier = "full-precision"')
ARMS = {"": 5.0, "no-decay": 4.5, "full-precision": 4.0, "no-decay+full-precision": 3.9}


def judge(claim: Path, runs: Path, *more: str | Path) -> Done:
    return call("verify", "--claim", claim, "--runs-dir", runs, "--no-train", "--json", *more)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    folder = tmp_path / "runs"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("check", [PAIRED, PAIRED.replace("margin = 0.1", 'over = "area"')])
def test_runs_that_were_trained_for_longer_are_not_compared(tmp_path: Path, runs: Path, check: str) -> None:
    claim = write_claim(tmp_path / "mine.toml", **{PAIRED: check})
    write_arms(runs, {"": 5.0})
    for seed in range(6):
        longer = simple_run(runs, quick("no-decay", seed=seed, steps=1500), loss=4.5)
        rows = longer.read_text(encoding="utf-8")
        shutil.rmtree(longer.with_suffix(""))
        longer.unlink()
        # a manifest of 1,000 steps beside 1,500 steps of rows
        write_run(runs, quick("no-decay", seed=seed), []).write_text(rows, encoding="utf-8")
    done = judge(claim, runs)
    assert judged(done) == (ExitCode.INVALID, "invalid")
    assert "cannot be compared with baseline: trained for 1,500 and 1,000 steps" in str(done.json["verdicts"])


def test_runs_of_different_data_are_told_where_those_of_the_arm_are_unknown(tmp_path: Path, runs: Path) -> None:
    arms = 'arms = ["no-decay", "full-precision", "no-decay+full-precision"]'
    claim = write_claim(tmp_path / "mine.toml", **{PAIRED: INTERACTION, 'arms = ["no-decay"]': arms})
    write_arms(runs, {"no-decay": ARMS["no-decay"]})
    for arm in ("", "full-precision"):
        write_arms(runs, {arm: ARMS[arm]}, data={"fingerprint": "one"})
    last = "no-decay+full-precision"
    for fingerprint, outcome in (("one", "supported"), ("other", "invalid")):
        write_arms(runs, {last: ARMS[last]}, data={"fingerprint": fingerprint})
        done = judge(claim, runs)
        assert done.json["verdict"] == outcome
    assert "the runs that it is compared with differ: data fingerprint" in str(done.json["verdicts"])


def test_seeds_that_were_deleted_after_a_look_are_missing(tmp_path: Path, runs: Path) -> None:
    claim = write_claim(tmp_path / "mine.toml")
    write_arms(runs, {"": 5.0, "no-decay": 4.5})
    assert judge(claim, runs).json["verdict"] == "supported"
    write_arms(runs, {"": 5.0, "no-decay": 9.0}, (6, 7))
    assert judge(claim, runs, "--seeds", "8").json["verdict"] == "inconclusive"
    for path in [*runs.glob("*-s6-*"), *runs.glob("*-s7-*")]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for done in (judge(claim, runs), call("verify", runs, "--claim", claim, "--json")):
        assert done.json["verdict"] == "inconclusive"
        gone = [one for one in done.json["verdicts"][0]["planned"]["runs"] if one["seed"] in (6, 7)]
        assert [one["seed"] for one in gone] == [6, 7]
        assert all("was there at an earlier look" in one["reason"] for one in gone)


def two_arms(folder: Path, arm: str, **changes: str) -> Path:
    """A claim about one of two arms of one plan, under one name."""
    arms = {'arms = ["no-decay"]': 'arms = ["no-decay", "muon"]', 'arm = "no-decay"': f'arm = "{arm}"'}
    return write_claim(folder / "mine.toml", **arms, **changes)


def planned_of(done: Done) -> tuple[int, int]:
    """Seeds that are missing, and numbers of planned seeds that count as looks."""
    verdict = done.json["verdicts"][0]
    return verdict["planned"]["missing"], verdict["rule"]["looks"]


def test_seeds_of_another_arm_at_an_earlier_look_are_not_planned_for_this_one(tmp_path: Path, runs: Path) -> None:
    write_arms(runs, {"": 5.0, "no-decay": 4.5})
    write_arms(runs, {"muon": 4.5}, range(3))
    given = ("verify", runs, "--claim")
    assert planned_of(call(*given, two_arms(tmp_path, "no-decay"), "--json")) == (0, 1)
    assert planned_of(call(*given, two_arms(tmp_path, "muon"), "--seeds", "3", "--json")) == (0, 1)
    # the plan of no-decay had six seeds, that of muon has grown from three to eight
    write_arms(runs, {"": 5.0}, range(6, 8))
    write_arms(runs, {"muon": 4.5}, range(3, 8))
    grown = call(*given, two_arms(tmp_path, "muon"), "--json").json["verdicts"][0]["rule"]
    assert grown["planned_numbers"] == [8]
    looks = read_looks(looks_file(runs, "mine")).looks
    assert [one.seeds_planned for one in looks] == [(*range(6),), (*range(3),), (*range(8),)]


@pytest.mark.parametrize("label", ["muon", "", "muon:before=1"])
def test_seeds_of_this_arm_at_an_earlier_look_stay_planned_whatever_was_judged_since(
    tmp_path: Path, runs: Path, label: str
) -> None:
    write_arms(runs, {"": 5.0, "no-decay": 4.5})
    write_arms(runs, {"muon": 4.9}, range(5))
    given, four = ("verify", runs, "--claim"), {"seeds = 6": "seeds = 4"}
    call(*given, two_arms(tmp_path, "muon", **four), "--json")
    file = looks_file(runs, "mine")
    # as early files have it, or with the label of another version of the plug-in
    file.write_text(file.read_text(encoding="utf-8").replace('"muon"', f'"{label}"'), encoding="utf-8")
    for path in runs.glob("*-muon-s4-*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    call(*given, two_arms(tmp_path, "no-decay", **four), "--json")
    changed = call(*given, two_arms(tmp_path, "muon", **four, **{"margin = 0.1": "margin = 0.01"}), "--json")
    assert planned_of(changed) == (1, 1)
    assert "judged before by 2 other versions of its plan or criteria" in str(changed.json["claim"]["notes"])
    write_arms(runs, {"muon": 4.5}, range(4, 6))
    assert planned_of(call(*given, two_arms(tmp_path, "muon", **four), "--json")) == (0, 2)


@pytest.mark.parametrize("option", ["--html", "--report", "--junit", "--bundle"])
def test_the_claim_and_its_looks_are_not_written_over(tmp_path: Path, runs: Path, option: str) -> None:
    claim = write_claim(tmp_path / "mine.toml")
    write_arms(runs, {"": 5.0, "no-decay": 4.5})
    judge(claim, runs)
    for path in (claim, runs / "claims" / "mine.json"):
        before = path.read_bytes()
        done = judge(claim, runs, option, path)
        assert done.code == ExitCode.USAGE
        assert "is one of the files given" in done.error
        assert path.read_bytes() == before


def test_given_runs_of_other_settings_than_the_plan_are_told(tmp_path: Path, runs: Path) -> None:
    claim = write_claim(tmp_path / "mine.toml")
    for seed in range(6):
        for arm in ("", "no-decay"):
            config = quick(arm, seed=seed, optimizer__name="adamw", optimizer__eps=1e-6)
            simple_run(runs, config, loss=ARMS[arm])
    tree = call("verify", runs, "--claim", claim, "--json").json
    note = "not the claim's plan: optimizer.name adamw, planned adam, optimizer.eps 1e-06, planned 1e-08"
    assert tree["verdict"] == "supported"
    assert tree["claim"]["notes"] == [note]
    assert note in tree["summary"]["notes"]
    # as they are if this is what was asked for
    changes = ("--set", "optimizer.name=adamw", "--set", "optimizer.eps=1e-6", "--set", "schedule.warmup_steps=100")
    asked = call("verify", runs, "--claim", claim, *changes, "--json").json
    assert (asked["verdict"], note in asked["claim"]["notes"]) == ("supported", False)
    assert (
        "--device beside paths" in call("verify", runs, "--claim", claim, "--recipe", "quick", "--device", "cpu").error
    )
    # with them as a part of the plan they are those of the plan, at any scale
    changed = write_claim(
        tmp_path / "changed.toml",
        **{'=100"]': '=100", "optimizer.name=adamw", "optimizer.eps=1e-6", "schedule.warmup_steps=100"]'},
    )
    assert call("verify", runs, "--claim", changed, "--json").json["claim"]["notes"] == [elsewhere_text(1)]
    for seed in range(6):
        for arm in ("", "no-decay"):
            simple_run(runs, quick(arm, seed=seed, size=32, steps=500), loss=ARMS[arm])
    other_scale = call("verify", runs, "--claim", claim, "--sizes", "32", "--json").json
    assert (other_scale["verdict"], other_scale["claim"]["notes"]) == ("supported", [])


def test_given_runs_of_other_seeds_than_the_plan_are_told(tmp_path: Path, runs: Path) -> None:
    claim = write_claim(tmp_path / "mine.toml")
    write_arms(runs, {"": 5.0, "no-decay": 4.5}, (0, 3, 5, 8, 9, 11))
    notes = call("verify", runs, "--claim", claim, "--json").json["claim"]["notes"]
    assert notes == ["not the claim's plan: without seeds 1, 2, 4"]
    chosen = call("verify", runs, "--claim", claim, "--seeds", "0,3,5,8,9,11", "--json").json["claim"]
    assert chosen["notes"] == []
    write_arms(runs, {"": 5.0, "no-decay": 4.5}, (1, 2, 4))
    more = call("verify", runs, "--claim", claim, "--json").json["claim"]["notes"]
    assert "not the claim's plan: 9 seeds, planned 6" in more


def test_fewer_seeds_than_the_claim_plans_cannot_support_it(tmp_path: Path, runs: Path) -> None:
    claim = write_claim(tmp_path / "mine.toml", **{"seeds = 6": "seeds = 8"})
    write_arms(runs, {"": 5.0, "no-decay": 4.5})
    stopped = call("verify", runs, "--claim", claim)
    assert stopped.code == ExitCode.INCONCLUSIVE
    assert "2 missing of 8 planned seeds" in stopped.out
    assert "not the claim's plan: without seeds 6, 7" in stopped.out
    assert call("verify", runs, "--claim", claim, "--seeds", "6").code == ExitCode.SUPPORTED
    write_arms(runs, {"": 5.0, "no-decay": 4.5}, (8, 9))
    assert call("verify", runs, "--claim", claim).code == ExitCode.SUPPORTED


def test_runs_at_another_scale_than_was_asked_for_are_not_judged(tmp_path: Path, runs: Path) -> None:
    claim = write_claim(tmp_path / "mine.toml")
    write_arms(runs, {"": 5.0, "no-decay": 4.5})
    for option in (("--recipe", "origin"), ("--steps", "500"), ("--sizes", "32")):
        refused = call("verify", runs, "--claim", claim, *option)
        assert refused.code == ExitCode.USAGE
        assert (
            "none of these runs is at the scale that was asked for; those of its arms are at quick, h64, 1,000 steps"
            in refused.error
        )


def test_pairs_that_lack_a_run_are_told_with_its_arm(tmp_path: Path, runs: Path) -> None:
    claim = write_claim(tmp_path / "mine.toml")
    write_arms(runs, {"": 5.0}, range(5))
    write_arms(runs, {"no-decay": 4.5})
    done = call("verify", runs, "--claim", claim)
    assert done.code == ExitCode.INCONCLUSIVE
    assert "in 5 of 6 pairs, of which 5 could be formed" in " ".join(done.out.split())
    assert "next     some pairs lack a finished run of baseline: give it, too, or train it" in done.out


def test_pairs_that_lack_a_run_with_the_modifier_are_told_so(tmp_path: Path, runs: Path) -> None:
    arms = 'arms = ["no-decay", "full-precision", "no-decay+full-precision"]'
    claim = write_claim(tmp_path / "mine.toml", **{PAIRED: INTERACTION, 'arms = ["no-decay"]': arms})
    write_arms(runs, {arm: loss for arm, loss in ARMS.items() if arm != "full-precision"})
    out = " ".join(call("verify", runs, "--claim", claim).out.split())
    assert "some pairs lack a finished run of baseline or of an arm with full-precision: give it, too" in out


def test_a_look_is_kept_beside_the_runs_of_the_judged_arm(tmp_path: Path, runs: Path) -> None:
    claim = write_claim(tmp_path / "mine.toml")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    write_arms(elsewhere, {"": 5.0})
    nothing = call("verify", elsewhere, "--claim", claim)
    assert nothing.code == ExitCode.INCONCLUSIVE
    assert "6 missing of 6 planned seeds" in nothing.out
    write_arms(runs, {"no-decay": 4.5})
    assert call("verify", runs, elsewhere, "--claim", claim).code == ExitCode.SUPPORTED
    assert len(read_looks(looks_file(runs, "mine")).looks) == 1
    assert not (elsewhere / "claims").exists()
