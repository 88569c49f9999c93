"""`bitnetctl train`: the run that it leaves behind, `--json`, dry runs, and a stop in the middle."""

import os
import re
import signal
import subprocess
import sys
import threading
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest
from calling import Done, assert_refused, call, listing, names_in, training, unset_environment

from bitnetctl.config import build_config
from bitnetctl.errors import ExitCode
from bitnetctl.records import NAMES, read, read_manifest

pytestmark = pytest.mark.usefixtures("plain_environment")


def name_of(arguments: list[str]) -> str:
    """Return the name of the run that a `train` command makes."""
    sets = [value for option, value in pairwise(arguments) if option == "--set"]
    return build_config("quick", size=32, steps=20, overrides=sets).run_name


def long_warm_up(name: str) -> str:
    return f"note: {name} warms up for 100 of 20 steps; lower schedule.warmup_steps"


class Trained(NamedTuple):
    """The first training of the module, and the command for it."""

    arguments: list[str]
    runs_dir: Path
    name: str
    done: Done


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_text: Path, shared_cache: Path) -> Trained:
    runs_dir = tmp_path_factory.mktemp("trained") / "runs"
    arguments = training(tiny_text, "--runs-dir", runs_dir)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(shared_cache))
        unset_environment(patch)
        return Trained(arguments, runs_dir, name_of(arguments), call(*arguments))


def test_training_leaves_a_csv_a_manifest_and_weights(trained: Trained) -> None:
    csv = trained.runs_dir / f"{trained.name}.csv"
    assert (trained.done.code, trained.done.out) == (ExitCode.SUPPORTED, f"{csv}\n")
    note, *lines = trained.done.err.splitlines()
    assert note == long_warm_up(trained.name)
    assert lines[0].startswith(f"{trained.name}: 20 steps, 29,696 parameters on cpu")
    assert [line.split()[2] for line in lines[1:-1]] == ["1/20", "10/20", "20/20"]
    assert lines[-1].startswith(f"{trained.name}: finished")
    assert read(csv, partial=False).frame["Step"].to_list() == [1, 10, 20]
    manifest = read_manifest(csv)
    assert manifest is not None
    assert (manifest.run, manifest.status, manifest.steps_done) == (trained.name, "finished", 20)
    assert names_in(trained.runs_dir) == sorted([trained.name, csv.name])
    assert names_in(trained.runs_dir / trained.name / "checkpoints") == ["step-00000020"]


def test_the_same_command_finds_the_finished_run(trained: Trained) -> None:
    before = {path: path.stat().st_mtime_ns for path in trained.runs_dir.rglob("*")}
    done = call(*trained.arguments)
    assert (done.code, done.out) == (trained.done.code, trained.done.out)
    assert done.err == f"{trained.name}: already finished, nothing to train\n"
    # another label is the same run; so is a field that is set to its value
    assert call(*trained.arguments, "--set", "recipe=mine", "--seed", "0").err == done.err
    assert {path: path.stat().st_mtime_ns for path in trained.runs_dir.rglob("*")} == before


def test_json_is_one_object_and_nothing_else(trained: Trained) -> None:
    done = call(*trained.arguments, "--json")
    assert done.code == ExitCode.SUPPORTED
    assert set(done.json) == {"run", "status", "csv", "final"}
    assert (done.json["run"], done.json["status"]) == (trained.name, "finished")
    records = read(done.json["csv"])
    assert set(done.json["final"]) == set(NAMES)
    assert done.json["final"] == {name: records.value(name, 2) for name in NAMES}


def test_a_name_stands_for_one_config(tmp_path: Path, tiny_text: Path) -> None:
    # neither markup nor an emoji
    runs_dir = tmp_path / "runs[bold]:fire:"
    arguments = training(tiny_text, "--runs-dir", runs_dir, "--name", "mine")
    done = call(*arguments)
    assert done.out == f"{runs_dir / 'mine.csv'}\n"
    before = listing(runs_dir)
    done = call(*arguments, "--seed", "1")
    assert (done.code, done.err.count("\n")) == (ExitCode.USAGE, 1)
    assert f"{runs_dir / 'mine'} holds another run" in done.err
    assert "--name" in done.err
    assert listing(runs_dir) == before


def test_a_run_that_diverges_is_reported_and_refutes(tmp_path: Path, tiny_text: Path) -> None:
    # the first update overflows
    fields = {"schedule__peak_learning_rate": "1e38", "schedule__warmup_steps": 0}
    done = call(*training(tiny_text, "--runs-dir", tmp_path / "runs", "--json", **fields))
    assert done.code == ExitCode.REFUTED
    assert done.json["status"] == "diverged"
    assert done.json["final"]["UniquePredictions"] == "nan"
    assert "diverged at step 1; it is not trained any further" in done.err
    again = call(*training(tiny_text, "--runs-dir", tmp_path / "runs", **fields))
    assert (again.code, "already diverged" in again.err) == (ExitCode.REFUTED, True)


def test_a_dry_run_creates_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    arguments = training(tmp_path / "not-yet.txt", "--runs-dir", tmp_path / "runs", "--dry-run")
    done = call(*arguments)
    assert (done.code, done.err) == (ExitCode.SUPPORTED, f"{long_warm_up(name_of(arguments))}\n")
    assert call(*arguments, "--set", "schedule.warmup_steps=10").err == ""
    assert listing(tmp_path) == []
    for fragment in (
        name_of(arguments),
        # embeddings and head 2·300·32, qkv 3·32·32, o 32·32, gate, up and down 3·32·64, norms 6·32 + 64
        "29,696 (vocabulary 300)",
        "GiB free",
        " on cpu (",
        "ms a step",
        "[model]\nhidden_size = 32\nnum_layers = 1\n",
    ):
        assert fragment in done.out


def test_a_dry_run_in_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    arguments = training(tmp_path / "not-yet.txt", "--runs-dir", tmp_path / "runs", "--dry-run", "--json")
    run = call(*arguments).json
    assert listing(tmp_path) == []
    assert (run["run"], run["parameters"], run["vocab_size"]) == (name_of(arguments), 29_696, 300)
    assert run["config"]["model"]["hidden_size"] == 32
    # at least four copies of the parameters, and not the memory of a large model
    assert 4 * 4 * 29_696 < run["memory_bytes"] < 50e6
    assert 1.0 < call(*arguments, "--steps", "200000").json["seconds"] < 36_000.0


def test_a_dry_run_refuses_what_a_run_would(tmp_path: Path) -> None:
    for extra, fragment in (
        (["--name", "../x"], "not usable"),
        (["--device", "foo"], "device 'foo' is unknown"),
        (["--set", "data.tokenizer=hf:none"], "vocabulary of hf:none is not known"),
        (["--set", "data.tokenizer=bpe:1"], "expected bpe:SIZE"),
    ):
        arguments = training("none.txt", "--runs-dir", tmp_path / "runs", "--dry-run", *extra)
        assert_refused(fragment, *arguments)


def test_the_runs_folder_of_the_environment(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITNETCTL_RUNS_DIR", str(trained.runs_dir))
    index = trained.arguments.index("--runs-dir")
    assert "already finished" in call(*trained.arguments[:index], *trained.arguments[index + 2 :]).err


def test_a_signal_stops_with_a_checkpoint_and_the_same_command_finishes(tmp_path: Path, tiny_text: Path) -> None:
    arguments = training(tiny_text, "--runs-dir", tmp_path / "runs", "--name", "mine", probe__eval_every_steps=200)
    arguments[arguments.index("--steps") + 1] = "400"
    with subprocess.Popen(
        [sys.executable, "-c", "from bitnetctl.cli import main; main()", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        watchdog = threading.Timer(120.0, process.kill)
        watchdog.start()
        assert process.stderr is not None
        assert process.stdout is not None
        for line in process.stderr:
            if "step   1/400" in line:
                process.send_signal(signal.SIGTERM)
                break
        err, out = process.stderr.read(), process.stdout.read()
        code = process.wait()
        watchdog.cancel()
    assert (code, out) == (ExitCode.STOPPED, "")
    assert "mine: stopped at step " in err
    assert re.search(r"mine: the same command resumes from step \d+\n$", err)
    manifest = read_manifest(tmp_path / "runs" / "mine")
    assert manifest is not None
    assert manifest.status == "stopped"
    assert 1 <= manifest.steps_done < 400
    checkpoints = tmp_path / "runs" / "mine" / "checkpoints"
    assert names_in(checkpoints) == [f"step-{manifest.steps_done:08d}"]

    # resumed in this process
    finished = call(*arguments)
    assert (finished.code, finished.out) == (ExitCode.SUPPORTED, f"{tmp_path / 'runs' / 'mine.csv'}\n")
    assert f"resumed after step {manifest.steps_done:,}" in finished.err
    assert read(tmp_path / "runs" / "mine.csv").frame["Step"].to_list() == [1, 200, 400]
