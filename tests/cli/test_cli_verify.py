"""`bitnetctl verify` of CSVs, folders and bundles: verdicts, arms and the trajectory table."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from calling import Done, call, judged, listing, outcomes, verify
from synthetic import CURED, STAGE_1, bare_run, healthy_run, origin_run

from bitnetctl.errors import ExitCode
from bitnetctl.records import load_run
from bitnetctl.report.trajectory import milestones

FAILED = [*STAGE_1, 10, 8, 7, 6, 6]
OPEN = [*STAGE_1, 10, 20, 30, 30, 30]
RUNS = Path("runs")
pytestmark = pytest.mark.usefixtures("wide_terminal")


def cells(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


# judging what is given


@pytest.mark.parametrize(
    ("unique", "code"),
    [(CURED, ExitCode.SUPPORTED), (FAILED, ExitCode.REFUTED), (OPEN, ExitCode.INCONCLUSIVE)],
    ids=["cured", "failed", "open"],
)
def test_a_csv_and_its_folder_give_the_same_verdict(tmp_path: Path, unique: Sequence[int], code: ExitCode) -> None:
    csv = bare_run(tmp_path, unique).path
    before = listing(tmp_path)
    done = verify(csv)
    assert (done.code, done.err, done.last_line) == (code, "", f"verdict: {code.name.lower()}")
    assert verify(tmp_path) == done
    # the same file by two names is one run
    assert verify(csv, tmp_path) == done
    assert judged(verify(csv, "--json")) == (code, code.name.lower())
    assert listing(tmp_path) == before


def test_a_bundle_gives_the_verdict_of_its_runs(tmp_path: Path) -> None:
    origin_run(tmp_path, FAILED, "finished", arm="decoupled-decay")
    origin_run(tmp_path, CURED, "finished")
    bundle = tmp_path / "out" / "all.zip"
    made = verify(tmp_path, "--bundle", bundle, "--json")
    assert judged(made) == (ExitCode.REFUTED, "refuted")
    assert made.err == f"written: {bundle}\n"
    assert verify(bundle, "--json") == Done(made.code, made.out, "")
    assert verify(bundle).out == verify(tmp_path).out


def test_criteria_are_all_built_in_or_those_named(tmp_path: Path) -> None:
    csv = healthy_run(tmp_path).path
    done = call("verify", csv, "--json")
    assert [verdict["criteria"]["name"] for verdict in done.json["verdicts"]] == ["origin", "sound"]
    # `sound` needs three seeds
    assert [verdict["verdict"] for verdict in done.json["verdicts"]] == ["supported", "inconclusive"]
    assert judged(done) == (ExitCode.INCONCLUSIVE, "inconclusive")
    assert "origin says supported" in done.json["disagreements"]["baseline"]
    assert done.json["disagreements"]["baseline"] in " ".join(call("verify", csv, "--details").out.split())
    own = tmp_path / "own.toml"
    own.write_text(
        '[seeds]\nrule = "every"\nmin_seeds = 1\n[[checks]]\nkind = "finite"\n[[checks]]\nkind = "finished"\n'
        '[[checks]]\nkind = "level"\nmeasure = "UniquePredictions"\nsupported_above = 300\nrefuted_below = 250\n',
        encoding="utf-8",
    )
    done = call("verify", csv, "--criteria", "origin", "--criteria", own, "--json")
    assert [verdict["criteria"]["name"] for verdict in done.json["verdicts"]] == ["origin", "own"]
    assert judged(done) == (ExitCode.REFUTED, "refuted")


def test_five_sound_seeds_are_supported_by_both(tmp_path: Path) -> None:
    for seed in range(5):
        healthy_run(tmp_path, seed)
    done = call("verify", tmp_path, "--json")
    assert judged(done) == (ExitCode.SUPPORTED, "supported")
    assert done.json["disagreements"] == {}
    shown = call("verify", tmp_path, "--details")
    assert shown.last_line == "verdict: supported"
    # beside every support stands what it leaves open
    assert shown.out.count("leaves open a failure rate of up to 45 %") == 2


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["none.csv"], "none.csv"),
        (["none.zip"], "none.zip"),
        (["."], "no CSV in this folder"),
        (["run-*.csv"], "no file matches"),
        (["--criteria", "orign", "--no-train"], "unknown criteria 'orign'; did you mean 'origin'?"),
        (["--criteria", "none.toml", "--no-train"], "criteria file none.toml: cannot read: No such file"),
        (["--seeds", "x", "--no-train"], "--seeds 'x': expected a number of seeds"),
        (["--pack", "0"], "--pack '0'"),
        (["--dry-run", "--device", "tpu"], "device 'tpu' is unknown"),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, arguments: list[str], fragment: str) -> None:
    done = call("verify", *arguments)
    assert (done.code, done.out, done.err.count("\n")) == (ExitCode.USAGE, "", 1)
    assert done.err.startswith("error: ")
    assert fragment in done.err
    assert listing(tmp_path) == []


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--recipe", "b158", "--set", "model.num_layers=9"], "--recipe and --set"),
        (["--dry-run"], "--dry-run"),
        (["--requeue"], "--requeue"),
        (["--device", "cuda:7", "--engine", "nonsense"], "--device and --engine"),
        (["--precision", "fp32", "--pack", "2", "--no-samples"], "--precision, --pack and --samples"),
        (["--no-baseline", "--runs-dir", "elsewhere"], "--no-baseline and --runs-dir"),
        # also where it says what is the default
        (["--device", "auto"], "--device"),
    ],
)
def test_options_of_a_training_are_refused_beside_paths(tmp_path: Path, options: list[str], named: str) -> None:
    bare_run(tmp_path, CURED)
    done = verify(tmp_path, *options)
    assert done.code == ExitCode.USAGE
    assert done.error == (f"error: {named} beside paths: given runs are judged as they are; leave out one or the other")


def test_options_that_hold_of_given_runs_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bare_run(tmp_path, CURED)
    monkeypatch.setenv("BITNETCTL_RUNS_DIR", str(tmp_path / "elsewhere"))
    assert verify(tmp_path, "--no-train", "--quiet") == verify(tmp_path)


# several arms


@pytest.fixture
def arms(tmp_path: Path) -> Path:
    """A folder of three arms: the baseline failed, one is cured, one is between."""
    bare_run(tmp_path, FAILED)
    bare_run(tmp_path, CURED, arm="decoupled-decay")
    bare_run(tmp_path, OPEN, arm="no-decay")
    return tmp_path


def test_runs_of_unknown_seed_are_told_apart_and_noted(tmp_path: Path) -> None:
    for letter, unique in zip("abc", (60, 61, 62), strict=True):
        bare_run(tmp_path, [45, *CURED[1:-1], unique], name=f"log_{letter}.csv", ProbePositions=None)
    shown = verify(tmp_path, "--steps", "20000", "--details").out
    note = (
        "note: 3 runs of unknown seed count as one seed; name them like run-seed3.csv or, if their seeds differ, give"
    )
    assert f"{note} --distinct-seeds" in shown
    assert shown.count("log_b") == 3
    assert "note: log_a, log_b, log_c: the ceiling of UniquePredictions is unknown" in shown
    assert "count as one seed" in verify(tmp_path, "--steps", "20000").out
    assert "count as one seed" not in verify(tmp_path, "--steps", "20000", "--distinct-seeds", "--details").out


def test_every_arm_is_shown_and_the_strictest_decides(arms: Path) -> None:
    done = verify(arms, "--json")
    assert outcomes(done) == {"baseline": "refuted", "decoupled-decay": "supported", "no-decay": "inconclusive"}
    assert [verdict["arm"] for verdict in done.json["verdicts"]] == done.json["decided_by"] == list(outcomes(done))
    assert judged(done) == (ExitCode.REFUTED, "refuted")
    shown = verify(arms, "--details")
    lines = shown.out.splitlines()
    assert lines[-4:-1] == [f"{arm}: {outcome}" for arm, outcome in outcomes(done).items()]
    assert lines[-1] == "verdict: refuted"
    for arm in outcomes(done):
        assert f"{arm}: unique predictions · held-out loss" in " ".join(shown.out.split())
    # what is shown without it comes first
    short = verify(arms).out.splitlines()
    assert short[-1] == lines[-1]
    assert short[:-1] == lines[: len(short) - 1]
    assert "unique predictions" not in " ".join(short)


@pytest.mark.parametrize(
    ("arm", "code"),
    [
        ("decoupled-decay", ExitCode.SUPPORTED),
        ("no-decay", ExitCode.INCONCLUSIVE),
        ("baseline", ExitCode.REFUTED),
        # no run of it
        ("reduced-lr", ExitCode.INCONCLUSIVE),
    ],
)
def test_the_requested_arm_decides(arms: Path, arm: str, code: ExitCode) -> None:
    done = verify(arms, "-i", arm, "--json")
    assert judged(done) == (code, code.name.lower())
    assert done.json["decided_by"] == [arm]
    assert outcomes(done)[arm] == code.name.lower()
    shown = verify(arms, "-i", arm)
    assert shown.code == code
    assert shown.last_line.startswith("verdict")
    assert shown.last_line.endswith(f": {code.name.lower()}")


def test_an_arm_is_recognized_however_it_is_written(tmp_path: Path) -> None:
    origin_run(tmp_path, CURED, "finished", arm="reduced-lr:peak=0.0004")
    origin_run(tmp_path, OPEN, "finished", arm="reduced-lr")
    origin_run(tmp_path, FAILED, "finished")
    assert verify(tmp_path, "-i", "reduced-lr:peak=4e-4").code == ExitCode.SUPPORTED
    for arm, shown, reason in (
        ("reduced-lr:peak=5e-4", "reduced-lr", "UniquePredictions 30 is between 10 and 50"),
        ("reduced-lr:peak=6e-4", "reduced-lr:peak=0.0006", "no run to judge"),
    ):
        done = verify(tmp_path, "-i", arm, "--json")
        assert judged(done) == (ExitCode.INCONCLUSIVE, "inconclusive")
        (verdict,) = [verdict for verdict in done.json["verdicts"] if verdict["arm"] == shown]
        assert verdict["reasons"] == [reason]


def test_arms_beside_the_requested_one_are_shown(arms: Path) -> None:
    done = verify(arms, "-i", "decoupled-decay", "--json")
    assert done.json["decided_by"] == ["decoupled-decay"]
    assert outcomes(done) == {"baseline": "refuted", "decoupled-decay": "supported", "no-decay": "inconclusive"}


def test_arms_are_shown_in_the_order_of_their_files(arms: Path) -> None:
    assert verify(arms, "--json").json["decided_by"] == ["baseline", "decoupled-decay", "no-decay"]


def test_the_last_line_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    RUNS.mkdir()
    arm = "wd-schedule:stage2=0.05+reduced-lr:peak=0.0004"
    origin_run(RUNS, CURED, "finished", arm=arm)
    done = verify("--sizes", "256", "-i", arm, "--no-train")
    assert (done.code, done.last_line) == (ExitCode.SUPPORTED, f"verdict ({arm}): supported")


def test_missing_requested_sizes_and_seeds_are_inconclusive(tmp_path: Path) -> None:
    for seed in range(2):
        bare_run(tmp_path, [*CURED[:-1], 60 + seed], seed=seed)
    assert verify(tmp_path, "--sizes", "256", "--seeds", "2").code == ExitCode.SUPPORTED
    missing_seed = verify(tmp_path, "--seeds", "3", "--json")
    assert judged(missing_seed) == (ExitCode.INCONCLUSIVE, "inconclusive")
    missing = "not judged 1 of 3 planned seeds, so that nothing can be supported: missing seed 2"
    assert missing_seed.json["verdicts"][0]["reasons"] == [f"hidden 256: {missing}"]
    missing_size = verify(tmp_path, "--sizes", "256,512", "--json")
    assert judged(missing_size) == (ExitCode.INCONCLUSIVE, "inconclusive")
    assert missing_size.json["verdicts"][0]["reasons"] == ["hidden 512: no run"]
    # a chosen subset supports nothing: a failed run could have been left out
    bare_run(tmp_path, FAILED, seed=7)
    assert verify(tmp_path, "--seeds", "0,1").code == ExitCode.INCONCLUSIVE
    assert verify(tmp_path).code == ExitCode.REFUTED


# the founding document

REPORTED = {
    256: [20, 16, 8, 2, 2, 2, 10, 14, 13],
    512: [20, 14, 8, 4, 2, 2, 10, 12, 11],
    768: [20, 18, 14, 4, 2, 2, 8, 11, 12],
    1024: [20, 13, 8, 5, 2, 2, 11, 11, 11],
}


def test_the_reported_trajectories_are_an_invalid_setup(tmp_path: Path) -> None:
    steps = [1, 1000, 2000, 3000, 4000, 5000, 6000, 7000, 10_000]
    losses = [10.98, 10.3, 10.5, 10.6, 10.7, 10.8, 7.2, 7.0, 6.8]
    for size, unique in REPORTED.items():
        decay = [0.1 if step <= 5000 else 0.0 for step in steps]
        rows = [",".join(map(str, row)) for row in zip(steps, losses, unique, [0.001] * 9, decay, strict=True)]
        text = "\n".join([f"BitNet b1.58, hidden {size}", "Step,Loss,UniquePredictions,LR,WD", *rows, ""])
        (tmp_path / f"results_{size}.csv").write_text(text, encoding="utf-8")
    done = verify(tmp_path, "--details")
    assert (done.code, done.err, done.last_line) == (ExitCode.INVALID, "", "verdict: invalid")
    arithmetic = "UniquePredictions > 50 of at most 20 (inferred from step 1) cannot be met"
    assert [row[0] for row in cells(done.out) if " ".join(row).endswith(arithmetic)] == ["256", "512", "768", "1024"]
    # the evaluations at 1,000, 3,000, 5,000 and 10,000 of the 10,000 steps that the files hold; none is in 2,500…2,999
    assert ["256", "–", "16", "–", "2", "2", "13", "20?"] in cells(done.out)
    assert ["1024", "–", "13", "–", "5", "2", "11", "20?"] in cells(done.out)
    # no other request makes it decidable
    for more in ([], ["--steps", "10000"], ["--sizes", "256,512,768,1024"], ["--seeds", "1"]):
        assert call("verify", tmp_path, *more).code == ExitCode.INVALID


# the trajectory table


def test_a_milestone_is_the_first_evaluation_from_it_to_the_next(tmp_path: Path) -> None:
    # 1k, 5k, 6k, 10k and 20k of 20,000 steps, with an evaluation every 2,000 or every 1,000
    sparse = bare_run(tmp_path, CURED)
    assert milestones(sparse, "UniquePredictions") == [40, None, 8, 2, 60]
    assert milestones(sparse, "HeldOutLoss") == [None] * 5
    assert ["256", "0", "40", "–", "8", "2", "60", "8,192"] in cells(verify(sparse.path, "--details").out)
    dense = bare_run(tmp_path, [*range(100, 121)], seed=1, HeldOutLoss=[round(7 - row / 10, 1) for row in range(21)])
    assert milestones(dense, "UniquePredictions") == [101, 105, 106, 110, 120]
    assert milestones(dense, "HeldOutLoss") == [6.9, 6.5, 6.4, 6.0, 5.0]
    shown = " ".join(verify(dense.path, "--details").out.split())
    assert "256 1 101 · 6.90 105 · 6.50 106 · 6.40 110 · 6.00 120 · 5.00 8,192" in shown


@pytest.mark.parametrize("steps", [40, 60, 100, 140, 300, 1100, 2000, 4600, 30_000, 70_000])
def test_milestones_fall_on_their_steps_at_every_scale(tmp_path: Path, steps: int) -> None:
    run = bare_run(tmp_path, [*range(21)], steps=steps)
    assert milestones(run, "UniquePredictions")[1:] == [5, 6, 10, 20]


def test_a_milestone_not_reached_is_a_dash(tmp_path: Path) -> None:
    csv = bare_run(tmp_path, CURED).path
    lines = csv.read_text(encoding="utf-8").splitlines()[:6]
    csv.write_text("\n".join([*lines, ""]), encoding="utf-8")
    assert milestones(load_run(csv), "UniquePredictions") == [40, None, 8, None, None]
    done = verify(csv, "--details")
    assert done.code == ExitCode.INCONCLUSIVE
    assert ["256", "0", "40", "–", "8", "–", "–", "8,192"] in cells(done.out)
    assert "ends at step 8,000 of 20,000" in done.out


def test_rows_of_the_table_are_sorted_by_size_and_seed(tmp_path: Path) -> None:
    csvs = [bare_run(tmp_path, CURED, size=size, seed=seed).path for size in (1024, 256) for seed in (1, 0)]
    rows = [row[:2] for row in cells(verify(*csvs, "--details").out) if row[-1:] == ["8,192"]]
    assert rows == [["256", "0"], ["256", "1"], ["1024", "0"], ["1024", "1"]]


@pytest.mark.parametrize("arm", ["reduced-lr:peak=[bold]", "no-decay\x1b[31m"])
def test_names_cannot_send_terminal_escapes(tmp_path: Path, arm: str) -> None:
    bare_run(tmp_path, CURED, arm=arm)
    done = verify(tmp_path, "--details")
    assert done.code == ExitCode.SUPPORTED
    assert "\x1b" not in done.out
    assert arm.replace("\x1b", "�") + ": unique predictions · held-out loss" in " ".join(done.out.split())


def test_a_bundle_is_judged_as_it_was_unless_told_otherwise(tmp_path: Path) -> None:
    """A trial of another length, and a requested seed that is missing, keep their part in the verdict."""
    runs = tmp_path / "runs"
    for seed in range(5):
        healthy_run(runs, seed)
    healthy_run(runs, 0, steps=2_000, HeldOutLoss=4.6)
    first = call("verify", runs, "--steps", "20000", "--bundle", tmp_path / "a.zip", "--json")
    assert judged(first) == judged(call("verify", tmp_path / "a.zip", "--json")) == (ExitCode.SUPPORTED, "supported")
    assert judged(call("verify", tmp_path / "a.zip", "--steps", "30000", "--json"))[1] == "inconclusive"
    missing = call("verify", runs, "--steps", "20000", "--seeds", "6", "--bundle", tmp_path / "b.zip", "--json")
    again = call("verify", tmp_path / "b.zip", "--json")
    assert judged(missing) == judged(again) == (ExitCode.INCONCLUSIVE, "inconclusive")
    assert [one["account"] for one in again.json["verdicts"]] == [one["account"] for one in missing.json["verdicts"]]


def test_a_bundle_keeps_how_unknown_seeds_were_counted(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    for index in range(5):
        healthy_run(runs, index, name=f"{'abcde'[index]}.csv")
    arguments: list[str | Path] = ["--steps", "20000", "--distinct-seeds", "--bundle", tmp_path / "a.zip", "--json"]
    assert judged(call("verify", runs, *arguments)) == (ExitCode.SUPPORTED, "supported")
    assert judged(call("verify", tmp_path / "a.zip", "--json")) == (ExitCode.SUPPORTED, "supported")
