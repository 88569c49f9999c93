"""`bitnetctl analyze` from the command line: what it reads, prints, writes and refuses."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
from calling import Done, call
from synthetic import curve, quick, simple_run, write_csv, write_run

from bitnetctl.errors import ConfigError
from bitnetctl.records.find import find_csvs
from bitnetctl.records.schema import HEADER

ORIGIN = "Hidden 256, 10k steps\nStep,Loss,UniquePredictions,LR,WD\n1,10.9,20,4e-06,0.1\n1000,10.1,16,0.0014,0.1\n"


pytestmark = pytest.mark.usefixtures("plain_environment")


def analyze(*arguments: str | Path) -> Done:
    return call("analyze", *arguments)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A folder of two arms with three seeds."""
    for arm, seed in itertools.product(("", "decoupled-decay:decayed=all"), range(3)):
        config = quick(arm, seed=seed, optimizer__name="adam")
        simple_run(tmp_path / "runs", config, loss=(5.0 if arm else 7.0) + seed / 100, prompt=12 - seed)
    return tmp_path / "runs"


def test_a_folder_a_pattern_and_files_are_the_same(runs: Path) -> None:
    files = sorted(runs.glob("*.csv"))
    by_folder = analyze(runs, "--json").json
    assert len(by_folder["runs"]) == 6
    assert analyze(f"{runs}/*.csv", "--json").json == by_folder
    assert analyze(*files, "--json").json["agreement"] == by_folder["agreement"]
    assert len(analyze(files[0], runs, files[0], "--json").json["runs"]) == 6


def test_json_has_every_part(runs: Path) -> None:
    tree = analyze(runs, "--json").json
    assert set(tree) == {"findings", "runs", "arms", "factors", "agreement", "texts", "notes"}
    assert tree["texts"] is None
    [arm] = tree["arms"]
    assert (arm["arm"], arm["baseline"]) == ("decoupled-decay:decayed=all", "baseline")
    assert (arm["seeds"], arm["pairs"], arm["tests"], arm["incomparable_pairs"]) == (3, 3, 3, 0)
    assert arm["effects"]["final_held_out_loss"]["mean"] == pytest.approx(-2.0)
    loss = arm["effects"]["final_held_out_loss"]
    assert (loss["better"], loss["worse"], loss["p"], loss["p_floor"], loss["p_holm"]) == (3, 0, 0.25, 0.25, 0.75)
    assert loss["sentence"].startswith("held-out loss: better in 3 of 3 seeds; mean difference −2.000")
    assert tree["factors"]["fields"][0]["fields"][0] == "optimizer.name"
    [fraction, *_] = tree["factors"]["outcomes"]
    assert fraction["terms"][0]["fields"] == [["optimizer.name", "decoupled-decay"]]
    # three pairs of seeds that agree: 2 of 8 arrangements
    assert (fraction["terms"][0]["eta_squared"], fraction["terms"][0]["p"]) == (pytest.approx(1), 0.25)
    assert fraction["sentence"].startswith(
        "The fraction of collapsed evaluations: no single term is told from chance; "
    )
    assert {"units", "unit", "p_floor", "p_holm"} <= tree["agreement"][0].keys()
    assert tree["runs"][0]["collapsed_at"] == 200


def test_details_are_tables_plots_and_sentences(runs: Path) -> None:
    done = analyze(runs, "--details")
    assert (done.code, done.err) == (0, "")
    for text in (
        "Stage 1 and the boundary",
        "frac.: fraction of the evaluations that are collapsed",
        "The end",
        "volat.: mean |log2 ratio| of distinct predictions of successive evaluations",
        "Arm minus baseline, by seed",
        "Factors: η²",
        "optimizer.name and decoupled-decay, which changed together, go with 100% of its ",
        "Agreement with held-out loss",
        "held-out loss (nats)",
        "distinct predictions",
        "boundary at step 500",
        "order not told from chance",
        "note: with 3 seeds and 3 p-values p (Holm) of an effect cannot fall below 0.75;",
    ):
        assert " ".join(text.split()) in " ".join(done.out.split())
    assert "explain" not in done.out
    assert "\x1b" not in done.out
    assert max(map(len, done.out.splitlines())) <= 80


def test_many_runs_are_shown_by_arm(runs: Path) -> None:
    for seed in range(3, 28):
        simple_run(runs, quick(seed=seed, optimizer__name="adam"), loss=7 + seed / 100)
    done = analyze(runs, "--details")
    assert done.out.startswith("31 runs: 2 arms, 1 size, 28 seeds, 1,000 steps\n")
    assert "means by arm and size, every run with --json or --html" in done.out
    assert "28/28" in done.out
    assert len(analyze(runs, "--json").json["runs"]) == 31


def test_files_are_written(runs: Path, tmp_path: Path) -> None:
    page, text = tmp_path / "out" / "page.html", tmp_path / "report.md"
    done = analyze(runs, "--html", page, "--markdown", text, "--json")
    assert done.json["runs"]
    assert done.err == f"written: {text}\nwritten: {page}\n"
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert text.read_text(encoding="utf-8").startswith("# bitnetctl analysis")


@pytest.mark.parametrize(
    ("option", "start"),
    [("--csv", "name,path,arm,"), ("--markdown", "# bitnetctl analysis\n"), ("--html", "<!doctype html>")],
)
def test_a_dash_is_stdout(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str, start: str) -> None:
    monkeypatch.chdir(tmp_path)
    done = analyze(runs, option, "-")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(start)
    assert "more: --details" not in done.out
    assert not Path("-").exists()
    both = analyze(runs, option, "-", "--json")
    assert (both.code, both.out) == (2, "")
    assert both.err == f"error: {option} and --json would share stdout; give all but one of them a file\n"


def test_verdicts_reach_the_page(runs: Path, tmp_path: Path) -> None:
    judged = tmp_path / "verdict.json"
    verdict = {"verdict": "refuted", "arm": "baseline", "criteria": {"name": "sound"}, "reasons": ["fell at 200"]}
    judged.write_text(json.dumps({"verdict": "refuted", "verdicts": [verdict]}), encoding="utf-8")
    page = tmp_path / "page.html"
    assert analyze(runs, "--html", page, "--verdict", judged).code == 0
    assert "baseline · sound" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("content", ["", "[1]", '{"a": 1}', "NaN", '"x"', '{"verdicts": 3}', "[" * 100_000])
def test_a_malformed_verdict_is_refused(runs: Path, tmp_path: Path, content: str) -> None:
    judged = tmp_path / "verdict.json"
    judged.write_text(content, encoding="utf-8")
    done = analyze(runs, "--verdict", judged)
    assert done.code == 2
    assert done.err.startswith(f"error: --verdict {judged}: not ")
    assert done.err.count("\n") == 1


def test_a_file_of_another_program(tmp_path: Path) -> None:
    path = tmp_path / "hidden256.csv"
    path.write_text(ORIGIN + "10000,7.2,11,1e-6,0.0\n", encoding="utf-8")
    done = analyze(path)
    assert done.code == 0
    assert done.out.startswith("1 run: 1 size, 10,000 steps\n")
    assert "training loss (nats)" in analyze(path, "--details").out
    [summary] = analyze(path, "--json").json["runs"]
    assert summary["final_held_out_loss"] is None
    assert summary["stage1_min_unique"] == 16


def test_a_bundle_is_analysed(runs: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "all.zip"
    call("verify", runs, "--bundle", bundle)
    packed, unpacked = analyze(bundle, "--json"), analyze(runs, "--json")
    names = [[run["name"] for run in done.json["runs"]] for done in (packed, unpacked)]
    assert names[0] == names[1]
    assert (packed.code, packed.json["arms"]) == (0, unpacked.json["arms"])
    assert "is one of the files given" in analyze(bundle, "--csv", bundle).err
    missing = analyze(tmp_path / "none.zip")
    assert (missing.code, missing.err.count("\n")) == (2, 1)


def test_a_torn_last_row_is_noted(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text(ORIGIN + "2000,7.", encoding="utf-8")
    assert "data      x: line 5: torn last row dropped" in analyze(path).out
    assert "note: x: line 5: torn last row dropped" in analyze(path, "--details").out


def test_a_run_without_an_evaluation_is_noted_and_left_out(runs: Path, tmp_path: Path) -> None:
    config = quick(seed=9)
    path = write_run(tmp_path / "new", config, [], status="running")
    path.write_bytes(HEADER)
    done = analyze(runs, path, "--json")
    assert len(done.json["runs"]) == 6
    assert f"{config.run_name}: running, no evaluation yet; left out" in done.json["notes"]
    alone = analyze(path)
    assert (alone.code, alone.err) == (2, "error: no evaluation in any of 1 runs yet\n")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "x.csv:1: the file is empty"),
        (b"Step,Loss,UniquePredictions,LR,WD\n1,a,3,4,5\n", "x.csv:2: Loss is 'a', not a number"),
        (b"a,b\n1,2\n", "x.csv:1: no header"),
        (b"\x89PNG\r\n", "x.csv:1: not UTF-8"),
    ],
)
def test_a_damaged_file_is_one_line_after_the_others(runs: Path, content: bytes, message: str) -> None:
    (runs / "x.csv").write_bytes(content)
    done = analyze(runs, "--json")
    assert (done.code, len(done.json["runs"])) == (2, 6)
    assert done.err.startswith(f"error: {runs}")
    assert message in done.err
    assert done.err.count("\n") == 1


def test_a_damaged_manifest_is_one_line(runs: Path) -> None:
    manifest = next(runs.glob("*/run.json"))
    manifest.write_text("{", encoding="utf-8")
    done = analyze(runs)
    assert done.code == 2
    assert f"{manifest}: damaged manifest" in done.err


def test_wrong_paths_and_arms(runs: Path, tmp_path: Path) -> None:
    assert "no file matches" in analyze(f"{tmp_path}/*.csv").err
    assert "cannot read: No such file" in analyze(tmp_path / "no.csv").err
    (tmp_path / "empty").mkdir()
    assert "no CSV in this folder" in analyze(tmp_path / "empty").err
    assert (
        "--baseline 'baselin': no such arm among the runs; did you mean 'baseline'?"
        in analyze(runs, "--baseline", "baselin").err
    )
    assert analyze().code == 2


def test_a_baseline_can_be_chosen(runs: Path) -> None:
    [arm] = analyze(runs, "--baseline", "decoupled-decay:decayed=all", "--json").json["arms"]
    assert arm["arm"] == "baseline"
    assert arm["effects"]["final_held_out_loss"]["mean"] == pytest.approx(2.0)


def test_files_are_sorted_with_numbers_as_numbers(tmp_path: Path) -> None:
    for name in ("h1024.csv", "h256.csv", "H512.CSV", "notes.txt"):
        write_csv(tmp_path / name, curve((1,)))
    assert [path.name for path in find_csvs([str(tmp_path)])] == ["H512.CSV", "h256.csv", "h1024.csv"]
    assert [path.name for path in find_csvs([f"{tmp_path}/h*.csv"])] == ["h256.csv", "h1024.csv"]
    with pytest.raises(ConfigError):
        find_csvs([f"{tmp_path}/*.zip"])


def test_a_name_with_brackets_is_a_file_first(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "run[1].csv", curve((1, 100)))
    assert find_csvs([str(path)]) == [path]
    assert "run[1]" in analyze(path).out


def test_analysis_loads_no_torch(runs: Path) -> None:
    code = (
        "import sys; from bitnetctl.cli import run; assert run(sys.argv[1:]) == 0; "
        "print(sorted({'torch', 'tokenizers'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "analyze", str(runs), "--html", "page.html"],
        capture_output=True,
        text=True,
        check=True,
        cwd=runs.parent,
    )
    assert done.stdout.splitlines()[-1] == "[]"
