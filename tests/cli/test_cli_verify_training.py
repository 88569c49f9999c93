"""`bitnetctl verify` on a folder of runs: train what is missing, then judge."""

import itertools
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from calling import Done, call, judged, listing, names_in, outcomes, quick_run, verify
from run_files import manifest
from synthetic import CURED, LEVELS, STAGE_1, origin_run, two_stages, write_run

from bitnetctl.config import build_config, parse_arm
from bitnetctl.errors import ExitCode
from bitnetctl.records import read

ALL_THERE = "all {} runs are there already, nothing to train\n"
RUNS = Path("runs")
pytestmark = pytest.mark.usefixtures("wide_terminal")


# runs that exist


def judged_folder(folder: Path, **unique: int) -> Path:
    """Write finished runs of the quick recipe with 20 steps: `h64=60` is size 64 with 60 unique predictions."""
    folder.mkdir(exist_ok=True)
    for size, value in unique.items():
        config = build_config("quick", size=int(size[1:]), steps=20)
        rows = "1,7.6,80,0.1,0.1,8192\n", "10,6.5,70,0.1,0.1,8192\n", f"20,6.0,{value},0.1,0,8192\n"
        text = "Step,Loss,UniquePredictions,LR,WD,ProbePositions\n" + "".join(rows)
        (folder / f"{config.run_name}.csv").write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("unique", "code"),
    [
        ({"h32": 60, "h64": 51}, ExitCode.SUPPORTED),
        ({"h32": 60, "h64": 9}, ExitCode.REFUTED),
        ({"h32": 60, "h64": 30}, ExitCode.INCONCLUSIVE),
        ({"h32": 60}, ExitCode.INCONCLUSIVE),
        ({"h32": 9}, ExitCode.REFUTED),
    ],
)
def test_verify_judges_what_is_there(tmp_path: Path, unique: dict[str, int], code: ExitCode) -> None:
    runs_dir = judged_folder(tmp_path / "runs", **unique)
    before = listing(tmp_path)
    arguments = ["verify", "--recipe", "quick", "--sizes", "32,64", "--steps", "20", "--no-train"]
    arguments += ["--criteria", "origin"]
    done = call(*arguments, "--runs-dir", runs_dir)
    assert (done.code, done.err) == (code, "")
    assert done.out.splitlines()[-1] == f"verdict: {code.name.lower()}"
    as_json = call(*arguments, "--runs-dir", runs_dir, "--json")
    assert (as_json.code, as_json.err, as_json.json["verdict"]) == (code, "", code.name.lower())
    assert as_json.json["arms"] == {"baseline": {"verdict": code.name.lower()}}
    assert as_json.json["decided_by"] == ["baseline"]
    assert as_json.json["disagreements"] == {}
    (verdict,) = as_json.json["verdicts"]
    assert (verdict["criteria"]["name"], verdict["arm"]) == ("origin", "baseline")
    assert [size["size"] for size in verdict["sizes"]] == [32, 64]
    assert {f"h{run['size']}": run["final_unique"] for run in verdict["runs"]} == unique
    assert listing(tmp_path) == before


def test_verify_finds_an_unreachable_threshold(tmp_path: Path) -> None:
    runs_dir = judged_folder(tmp_path / "runs", h64=60)
    (csv,) = runs_dir.iterdir()
    csv.write_text("the origin\nStep,Loss,UniquePredictions,LR,WD\n1,10.9,20,0,0.1\n20,6.8,13,0,0\n", encoding="utf-8")
    done = call("verify", "--recipe", "quick", "--steps", "20", "--no-train", "--runs-dir", runs_dir, "--json")
    assert (done.code, done.json["verdict"]) == (ExitCode.INVALID, "invalid")
    origin, sound = done.json["verdicts"]
    assert (origin["verdict"], sound["verdict"]) == ("invalid", "inconclusive")
    (run,) = origin["runs"]
    assert (run["ceiling"], run["ceiling_inferred"], run["final_unique"]) == (20.0, True, 13.0)
    assert run["reason"] == "UniquePredictions > 50 of at most 20 (inferred from step 1) cannot be met"
    assert list(done.json["disagreements"]) == ["baseline"]


def test_verify_without_runs_is_inconclusive_and_creates_nothing(tmp_path: Path) -> None:
    short = call("verify", "--recipe", "quick", "--no-train")
    assert (short.code, short.err) == (ExitCode.INCONCLUSIVE, "")
    assert "VERDICT  INCONCLUSIVE (exit 5): origin, sound: 1 missing of 1 planned seed" in short.out
    done = call("verify", "--recipe", "quick", "--no-train", "--details")
    missing = "not judged 1 of 1 planned seed"
    assert [line.split()[:1] for line in done.out.splitlines() if missing in line] == [["64"], ["64"]]
    assert "origin: inconclusive" in done.out
    assert "sound: inconclusive" in done.out
    assert done.out.splitlines()[-1] == "verdict: inconclusive"
    assert listing(tmp_path) == []


def test_verify_names_a_damaged_file(tmp_path: Path) -> None:
    runs_dir = judged_folder(tmp_path / "runs", h64=60)
    (csv,) = runs_dir.iterdir()
    csv.write_text(csv.read_text(encoding="utf-8").replace(",6.5,", ",six,"), encoding="utf-8")
    done = call("verify", "--recipe", "quick", "--steps", "20", "--no-train", "--runs-dir", runs_dir)
    assert done.code == ExitCode.INCONCLUSIVE
    assert "1 unreadable" in done.out
    assert done.err == f"error: {csv}:3: Loss is 'six', not a number\n"


def test_a_run_that_diverged_is_judged_in_json(tmp_path: Path) -> None:
    config = build_config("quick", steps=20)
    lines = ["Step,Loss,UniquePredictions,LR,WD,ProbePositions", "1,7.6,80,0.1,0.1,8192", "5,nan,nan,0.1,0.1,"]
    (tmp_path / f"{config.run_name}.csv").write_text("\n".join([*lines, ""]), encoding="utf-8")
    done = call("verify", "--recipe", "quick", "--steps", "20", "--no-train", "--runs-dir", tmp_path, "--json")
    assert done.code == ExitCode.REFUTED
    assert [verdict["verdict"] for verdict in done.json["verdicts"]] == ["refuted", "inconclusive"]
    for verdict in done.json["verdicts"]:
        assert verdict["runs"][0]["reason"] == "diverged at step 5"
        assert verdict["runs"][0]["final_unique"] == "nan"


def test_a_missing_seed_is_inconclusive(tmp_path: Path) -> None:
    RUNS.mkdir()
    for seed in (0, 1):
        origin_run(RUNS, [*CURED[:-1], 60 + seed], "finished", seed=seed)
    arguments = ["--sizes", "256", "--no-train"]
    assert verify(*arguments, "--seeds", "2").code == ExitCode.SUPPORTED
    before = listing(tmp_path)
    done = verify(*arguments, "--seeds", "3", "--json")
    assert judged(done) == (ExitCode.INCONCLUSIVE, "inconclusive")
    missing = "not judged 1 of 3 planned seeds, so that nothing can be supported: missing seed 2"
    assert done.json["verdicts"][0]["reasons"] == [f"hidden 256: {missing}"]
    assert verify(*arguments, "--seeds", "0,1", "--sizes", "256,512").code == ExitCode.INCONCLUSIVE
    assert listing(tmp_path) == before


def test_a_run_that_has_just_begun_is_inconclusive(tmp_path: Path) -> None:
    RUNS.mkdir()
    csv = origin_run(RUNS, CURED, "running").path
    csv.write_text(csv.read_text(encoding="utf-8").splitlines()[0] + "\n", encoding="utf-8")
    assert verify("--sizes", "256", "--no-train").code == ExitCode.INCONCLUSIVE


# runs that are trained


def test_verify_trains_what_is_missing_and_keeps_no_weights(tmp_path: Path, tiny_text: Path) -> None:
    options = [*quick_run(tiny_text), "--steps", "20", "--runs-dir", str(tmp_path / "runs")]
    arguments = ["verify", "--sizes", "32,16", *options, "--json"]
    done = call(*arguments)
    assert [verdict["criteria"]["name"] for verdict in done.json["verdicts"]] == ["origin", "sound"]
    for verdict in done.json["verdicts"]:
        assert [run["size"] for run in verdict["runs"]] == [32, 16]
        assert [run["final_step"] for run in verdict["runs"]] == [20, 20]
        assert [run["ceiling"] for run in verdict["runs"]] == [256.0, 256.0]
    assert done.code == ExitCode[done.json["verdict"].upper()]
    assert done.err.count(": finished, ") == 2
    for run in done.json["verdicts"][0]["runs"]:
        assert names_in(tmp_path / "runs" / run["run"] / "checkpoints") == []
    again = call(*arguments)
    assert (again.code, again.out) == (done.code, done.out)
    assert again.err == "all 2 runs are there already, nothing to train\n"


def test_verify_dry_run_creates_nothing(tmp_path: Path) -> None:
    arguments = ["verify", "--recipe", "quick", "--sizes", "32,64", "--dry-run"]
    done = call(*arguments)
    assert (done.code, done.err) == (ExitCode.SUPPORTED, "1 seed cannot support by sound; 5 could: --seeds 5\n")
    assert [line.split()[0] for line in done.out.splitlines()[:3]] == ["size", "32", "64"]
    assert "2 runs, 0 there already" in done.out
    shapes = call(*arguments, "--json").json["shapes"]
    assert [(shape["size"], shape["steps"], shape["runs"]) for shape in shapes] == [(32, 2000, 1), (64, 2000, 1)]
    assert not (tmp_path / "runs").exists()


def test_verify_dry_run_counts_no_damaged_run(tiny_text: Path) -> None:
    arguments = ["verify", *quick_run(tiny_text), "--sizes", "32", "--steps", "20", "--seeds", "5", "--dry-run"]
    arguments += ["--set", "schedule.warmup_steps=10"]
    sets = [value for option, value in itertools.pairwise(arguments) if option == "--set"]
    bad = build_config("quick", size=32, steps=20, seed=1, overrides=sets).run_name
    path = RUNS / bad / "run.json"
    path.parent.mkdir(parents=True)
    path.write_text("{", encoding="utf-8")
    done = call(*arguments)
    assert done.code == ExitCode.SUPPORTED
    [line] = done.err.splitlines()
    assert line.startswith(f"{bad}: left out: {path}: ")
    assert "5 runs, 0 there already" in done.out
    [shape] = call(*arguments, "--json").json["shapes"]
    assert shape["runs"] == 4


def run_names(options: Sequence[str], arm: str, seeds: Sequence[int]) -> list[str]:
    sets = [value for option, value in itertools.pairwise(options) if option == "--set"]
    return [
        build_config("quick", size=16, steps=8, seed=seed, overrides=sets, interventions=parse_arm(arm)).run_name
        for seed in seeds
    ]


def trained() -> list[str]:
    return sorted(path.stem for path in RUNS.glob("*.csv"))


def test_an_arm_is_trained_beside_its_baseline(options: list[str]) -> None:
    grid = [*options, "--sizes", "16"]
    arguments = [*grid, "-i", "no-decay", "--seeds", "2"]
    untrained = verify(*arguments, "--no-train", "--json")
    assert judged(untrained) == (ExitCode.INCONCLUSIVE, "inconclusive")
    assert outcomes(untrained) == {"baseline": "inconclusive", "no-decay": "inconclusive"}
    assert not RUNS.exists()

    done = verify(*arguments, "--json", "--bundle", "all.zip", "--report", "report.md")
    assert trained() == sorted(run_names(options, "", [0, 1]) + run_names(options, "no-decay", [0, 1]))
    assert list(outcomes(done)) == ["baseline", "no-decay"]
    assert done.json["decided_by"] == ["no-decay"]
    assert done.json["verdict"] == outcomes(done)["no-decay"]
    assert done.code == ExitCode[done.json["verdict"].upper()]
    for verdict, arm in zip(done.json["verdicts"], ("", "no-decay"), strict=True):
        assert [run["run"] for run in verdict["runs"]] == run_names(options, arm, [0, 1])
        assert [run["final_step"] for run in verdict["runs"]] == [8, 8]
    assert done.err.count(" parameters on cpu") == 1
    assert done.err.splitlines()[-2:] == ["written: report.md", "written: all.zip"]

    # again: nothing is trained, and the verdict is the same
    before = {path: path.stat().st_mtime_ns for path in RUNS.rglob("*")}
    again = verify(*arguments, "--json")
    assert (again.code, again.out) == (done.code, done.out)
    assert again.err == "all 4 runs are there already, nothing to train\n"
    assert verify(*arguments, "--json", "--no-train") == Done(done.code, done.out, "")
    assert {path: path.stat().st_mtime_ns for path in RUNS.rglob("*")} == before
    shown = verify(*arguments, "--no-train")
    assert shown.last_line == f"verdict (no-decay): {done.json['verdict']}"

    # another seed is trained in addition
    more = verify(*grid, "-i", "no-decay", "--seeds", "3,", "--no-baseline", "--json")
    assert set(trained()) - {path.stem for path in before} == set(run_names(options, "no-decay", [3]))
    assert list(outcomes(more)) == more.json["decided_by"] == ["no-decay"]

    # the report of trained runs, and the bundle
    report = Path("report.md").read_text(encoding="utf-8")
    assert f"- Hardware: {manifest(run_names(options, '', [0])[0]).device}" in report
    assert report.count("| finished |") == 4
    bundled = verify("all.zip", "-i", "no-decay", "--sizes", "16", "--seeds", "2", "--steps", "8", "--json")
    (verdict,) = [verdict for verdict in bundled.json["verdicts"] if verdict["arm"] == "no-decay"]
    assert verdict == done.json["verdicts"][1]
    assert bundled.code == done.code


@pytest.mark.parametrize(("more", "arms"), [([], ["baseline", "{}"]), (["--no-baseline"], ["{}"])])
def test_verify_trains_and_judges_an_arm(options: list[str], more: list[str], arms: list[str]) -> None:
    arm = "no-decay+reduced-lr"
    arms = [text.format(arm) for text in arms]
    grid = [*options, "--sizes", "16,32", "-i", arm, "--seeds", "3,", *more]
    untrained = call("verify", *grid, "--no-train", "--json")
    assert untrained.code == ExitCode.INCONCLUSIVE
    assert not RUNS.exists()
    done = call("verify", *grid, "--json")
    # the exit code follows the arm, not the baseline beside it
    assert (done.json["decided_by"], list(done.json["arms"])) == ([arm], arms)
    assert done.json["verdict"] == done.json["arms"][arm]["verdict"]
    assert done.code == ExitCode[done.json["verdict"].upper()]
    names = [re.sub("-[0-9a-f]{6}$", "", path.stem) for path in RUNS.glob("*.csv")]
    assert sorted(names) == sorted(f"h{size}-8-{text}-s3" for size in (16, 32) for text in arms)
    for path in RUNS.glob("*.csv"):
        assert read(path, partial=False).frame["Step"].to_list() == [1, 4, 8]
        expected = ["no-decay", "reduced-lr"] if arm in path.stem else []
        assert [plugin.name for plugin in manifest(path.stem).plugins] == expected
    # the runs of a sweep are the runs of verify
    again = call("sweep", *grid)
    assert (again.code, again.err) == (ExitCode.SUPPORTED, ALL_THERE.format(2 * len(arms)))


@pytest.mark.parametrize(
    ("arm", "fragment"),
    [
        ("reduced-rl", "unknown intervention 'reduced-rl'; did you mean 'reduced-lr'?"),
        ("reduced-lr:speed=3", "intervention reduced-lr: unknown field 'speed'"),
        ("no-decay+", "no-decay+"),
    ],
)
def test_verify_refuses_an_unknown_arm(options: list[str], arm: str, fragment: str) -> None:
    done = call("verify", *options, "-i", arm)
    assert done.code == ExitCode.USAGE
    assert fragment in done.error
    assert not RUNS.exists()


def test_the_dry_run_names_both_arms_and_trains_none(options: list[str]) -> None:
    arguments = [*options, "--sizes", "16", "-i", "no-decay", "--dry-run", "--json"]
    done = verify(*arguments, "--seeds", "2")
    assert (done.code, done.err) == (ExitCode.SUPPORTED, "")
    assert [(shape["runs"], shape["arms"]) for shape in done.json["shapes"]] == [(4, ["baseline", "no-decay"])]
    alone = verify(*arguments, "--no-baseline")
    assert [(shape["runs"], shape["arms"]) for shape in alone.json["shapes"]] == [(1, ["no-decay"])]
    assert not RUNS.exists()


def test_a_trial_of_another_length_in_the_folder_does_not_stand_in_the_way(tmp_path: Path) -> None:
    for seed in (0, 1):
        origin_run(RUNS, [*CURED[:-1], 60 + seed], seed=seed)
    trial = build_config("origin", size=256, seed=7, steps=2_000)
    write_run(RUNS, trial, two_stages([4000, *[60] * 10], 2_000, **LEVELS))
    arguments = ["--sizes", "256", "--no-train", "--seeds", "2"]
    assert verify(*arguments).code == ExitCode.SUPPORTED
    # one of the same length does: it could have been left out for its result
    origin_run(RUNS, [*STAGE_1, 10, 8, 7, 6, 6], seed=8)
    assert verify(*arguments).code == ExitCode.INCONCLUSIVE


@pytest.mark.parametrize(
    ("seeds", "arms", "said"),
    [
        ("1", [], "1 seed cannot support by sound; 5 could: --seeds 5\n"),
        ("5", ["-i", "no-decay"], "6 could"),
        ("6", ["-i", "no-decay"], ""),
    ],
)
def test_too_few_seeds_are_said_before_they_are_trained(seeds: str, arms: list[str], said: str) -> None:
    options = ["--recipe", "quick", "--steps", "20", "--set", "schedule.warmup_steps=10", "--seeds", seeds]
    done = call("verify", *options, *arms, "--dry-run")
    assert done.code == ExitCode.SUPPORTED
    assert said in done.err if said else done.err == ""


def test_a_long_warm_up_of_runs_to_train_is_said(tiny_text: Path) -> None:
    arguments = ["verify", *quick_run(tiny_text), "--criteria", "origin", "--sizes", "32", "--steps", "20"]
    [note] = call(*arguments, "--dry-run").err.splitlines()
    assert re.fullmatch(
        r"note: h32-20-baseline-s0-\w+ warms up for 100 of 20 steps; lower schedule\.warmup_steps", note
    )
    assert "note: " not in call(*arguments, "--no-train").err
    assert call(*arguments).err.splitlines()[0] == note
    assert call(*arguments).err == ALL_THERE.format(1)
