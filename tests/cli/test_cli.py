"""The command line: one line for every mistake, one object for every --json, the exit codes."""

import contextlib
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, NoReturn

import pytest
import torch
import typer.main
from filelock import FileLock

from bitnetctl import __version__, cli
from bitnetctl.config import build_config, field_paths
from bitnetctl.errors import ExitCode
from bitnetctl.records import NAMES, RunPaths, read, read_manifest

ROOT = Path(__file__).parents[2]


class Done(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def call(*arguments: str | Path) -> Done:
    """Run a command line in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.run([str(argument) for argument in arguments])
    return Done(code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text that supports a vocabulary of 300; never edited."""
    generator = random.Random(0)
    words = ["".join(generator.choices("abcdefghij", k=generator.randint(2, 6))) for _ in range(150)]
    path = tmp_path_factory.mktemp("text") / "corpus.txt"
    path.write_text("".join(" ".join(generator.choices(words, k=8)) + "\n" for _ in range(1500)), encoding="utf-8")
    return path


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """A tiny model gains nothing from threads that fight over a shared machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the machine reaches a test, and none of a test the machine."""
    for name in ("BITNETCTL_RUNS_DIR", "BITNETCTL_TRACEBACK", "FORCE_COLOR", "NO_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GOMP_SPINCOUNT", "1000")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.chdir(tmp_path)


def overrides(corpus: Path | str, **fields: object) -> list[str]:
    """Options of the tiny model; `model__num_layers=2` overrides `model.num_layers`."""
    values = {
        "data__source": f"file:{corpus}",
        "data__tokenizer": "bpe:300",
        "model__num_layers": 1,
        "probe__positions": 256,
        "probe__eval_every_steps": 10,
        **fields,
    }
    return [part for name, value in values.items() for part in ("--set", f"{name.replace('__', '.')}={value}")]


def training(corpus: Path | str, *more: str | Path, **fields: object) -> list[str]:
    """A command that trains the tiny model; a later option wins over an earlier one."""
    base = ["train", "--recipe", "quick", *overrides(corpus, **fields)]
    return [*base, "--size", "32", "--steps", "20", "--device", "cpu", *map(str, more)]


def name_of(arguments: list[str]) -> str:
    """Name of the run that a `train` command would make."""
    sets = [value for option, value in pairwise(arguments) if option == "--set"]
    return build_config("quick", size=32, steps=20, overrides=sets).run_name


class Trained(NamedTuple):
    """The first training of the module, and the command for it."""

    arguments: list[str]
    runs_dir: Path
    name: str
    done: Done


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, corpus: Path, cache: Path, one_thread: None) -> Trained:
    runs_dir = tmp_path_factory.mktemp("trained") / "runs"
    arguments = training(corpus, "--runs-dir", runs_dir)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        patch.setenv("GOMP_SPINCOUNT", "1000")
        return Trained(arguments, runs_dir, name_of(arguments), call(*arguments))


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# mistakes


MISTAKES: dict[str, tuple[list[str], str]] = {
    "unknown recipe": (["--recipe", "orign"], "unknown recipe 'orign'; did you mean 'origin'?"),
    "missing recipe file": (["--recipe", "none.toml"], "recipe file none.toml: No such file"),
    "unknown field": (["--set", "model.hiden_size=3"], "did you mean 'model.hidden_size'?"),
    "override without value": (["--set", "steps"], "expected section.field=value"),
    "bad value": (["--set", "model.activation=gelu"], "model.activation: input should be 'relu2' or 'silu'"),
    "size not divisible by heads": (["--size", "34"], "hidden_size 34 is not divisible by num_attention_heads 4"),
    "odd head size": (["--size", "12"], "is odd"),
    "no steps": (["--steps", "0"], "steps: input should be greater than 0, got 0"),
    "negative steps": (["--steps", "-5"], "steps: input should be greater than 0"),
    "steps not a number": (["--steps", "many"], "--steps"),
    "negative seed": (["--seed", "-1"], "seed: input should be greater than or equal to 0"),
    "no evaluation interval": (["--eval-every", "0"], "eval_every_steps: input should be greater than 0"),
    "no checkpoint interval": (["--checkpoint-every", "0"], "--checkpoint-every"),
    "missing text": (["--set", "data.source=file:none.txt"], "none.txt"),
    "unknown source": (["--set", "data.source=fil:none.txt"], "did you mean 'file'?"),
    "vocabulary too large": (["--set", "data.tokenizer=bpe:5000"], "supports only"),
    "vocabulary too small": (["--set", "data.tokenizer=bpe:10"], "expected bpe:SIZE"),
    "probe too large": (["--set", "probe.positions=1000000"], "lower probe.positions"),
    "unknown device": (["--device", "foo"], "device 'foo' is unknown"),
    "unsupported device": (["--device", "meta"], "device 'meta' is not supported"),
    "name leads out": (["--name", "../x"], "run name '../x' is not usable"),
    "name is absolute": (["--name", "/tmp/x"], "is not usable"),
    "name of a file": (["--name", "x.csv"], "ends in .csv"),
    "unknown option": (["--stepz", "3"], "No such option: --stepz"),
    "option without value": (["--steps"], "--steps"),
    "argument too many": (["extra"], "unexpected extra argument"),
    "unknown intervention": (["-i", "reduced-rl"], "unknown intervention 'reduced-rl'; did you mean 'reduced-lr'?"),
    "unknown setting": (["-i", "reduced-lr:speed=3"], "speed"),
    "setting without value": (["-i", "reduced-lr:peak"], "expected NAME:key=value"),
    "bad setting": (["-i", "reduced-lr:peak=fast"], "peak"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line(tmp_path: Path, corpus: Path, mistake: str) -> None:
    extra, fragment = MISTAKES[mistake]
    one_line_and_nothing_made(tmp_path, fragment, *training(corpus, "--runs-dir", tmp_path / "runs", *extra))


def one_line_and_nothing_made(tmp_path: Path, fragment: str, *arguments: str) -> None:
    done = call(*arguments)
    assert done.code == ExitCode.USAGE
    assert done.out == ""
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert done.err.endswith("\n")
    assert fragment in done.err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        (b"", "the text is empty"),
        (b"too short\n", "supports only"),
        (b"not utf-8 \xff\xfe\n" * 500, "UTF-8"),
    ],
)
def test_a_text_that_cannot_be_trained_on(tmp_path: Path, content: bytes, fragment: str) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    one_line_and_nothing_made(tmp_path, fragment, *training(path, "--runs-dir", tmp_path / "runs"))


def test_a_text_too_short_for_a_batch(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("a few words, but no more than that\n" * 3, encoding="utf-8")
    arguments = training(path, "--runs-dir", tmp_path / "runs", data__tokenizer="bpe:260")
    one_line_and_nothing_made(tmp_path, "too few", *arguments)


def test_a_card_that_is_not_there(tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    arguments = training(corpus, "--runs-dir", tmp_path / "runs", "--device", "cuda")
    one_line_and_nothing_made(tmp_path, "device 'cuda' is not available on this machine", *arguments)


def test_no_space_left(tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    one_line_and_nothing_made(tmp_path, "no space left", *training(corpus, "--runs-dir", tmp_path / "runs"))


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["verfy"], "No such command 'verfy'"),
        (["config", "shw"], "No such command 'shw'"),
        (["--stepz"], "No such option: --stepz"),
        (["verify", "--sizes", "big"], "--sizes 'big': expected whole numbers such as 256,512"),
        (["verify", "--sizes", "256;512"], "expected whole numbers"),
        (["verify", "--sizes", ""], "expected whole numbers"),
        (["verify", "--sizes", "64,64"], "named twice"),
        (["verify", "--sizes", "64,0"], "sizes.1: input should be greater than 0, got 0"),
        (["verify", "--sizes", "64,66"], "hidden_size 66 is not divisible"),
        (["verify", "--steps", "0", "--no-train"], "steps"),
        (["verify", "--recipe", "orign", "--no-train"], "did you mean 'origin'?"),
        (["config", "show", "--recipe", "orign"], "did you mean 'origin'?"),
        (["config", "show", "--set", "model.hiden_size=3"], "did you mean 'model.hidden_size'?"),
    ],
)
def test_a_mistake_of_another_command_is_one_line(tmp_path: Path, arguments: list[str], fragment: str) -> None:
    one_line_and_nothing_made(tmp_path, fragment, *arguments)


def test_a_checkpoint_to_resume_that_is_not_there(tmp_path: Path, corpus: Path) -> None:
    arguments = training(corpus, "--runs-dir", tmp_path / "runs", "--resume", "nowhere")
    one_line_and_nothing_made(tmp_path, "checkpoint nowhere", *arguments)


def test_two_processes_cannot_train_one_run(tmp_path: Path, corpus: Path) -> None:
    arguments = training(corpus, "--runs-dir", tmp_path / "runs", "--name", "mine")
    paths = RunPaths(tmp_path / "runs", "mine")
    paths.folder.mkdir(parents=True)
    with FileLock(paths.lock):
        before = tree(tmp_path / "runs")
        done = call(*arguments)
        assert tree(tmp_path / "runs") == before
    assert (done.code, done.out, done.err.count("\n")) == (ExitCode.USAGE, "", 1)
    assert done.err.startswith("error: run mine is being trained by another process")
    assert call(*arguments).code == ExitCode.SUPPORTED


def test_an_error_of_ours_is_one_line_too(tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **named: object) -> NoReturn:
        raise RuntimeError("two\nlines [bold]")

    monkeypatch.setattr("bitnetctl.data.prepare", fail)
    arguments = training(corpus, "--runs-dir", tmp_path / "runs")
    done = call(*arguments)
    assert (done.code, done.out) == (ExitCode.INTERNAL, "")
    assert done.err.startswith("error: internal error: RuntimeError: two lines [bold] (BITNETCTL_TRACEBACK=1 ")
    assert done.err.count("\n") == 1
    monkeypatch.setenv("BITNETCTL_TRACEBACK", "1")
    with pytest.raises(RuntimeError, match="two"):
        call(*arguments)


def test_an_interrupt_at_the_keyboard(tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: object, **named: object) -> NoReturn:
        raise KeyboardInterrupt

    handler = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr("bitnetctl.data.prepare", interrupt)
    done = call(*training(corpus, "--runs-dir", tmp_path / "runs"))
    assert done == Done(ExitCode.INTERRUPTED, "", "error: interrupted\n")
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_reader_that_left_refutes_nothing() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-c", "from bitnetctl.cli import main; main()", "config", "schema"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (ExitCode.INTERNAL, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize("arguments", [["config", "schema"], ["--help"]])
def test_a_stdout_that_is_full_is_told(arguments: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "bitnetctl", *arguments]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (
        ExitCode.USAGE,
        "error: stdout: cannot write: No space left on device\n",
    )


@pytest.mark.parametrize("code", [0, 2, None, "bye"])
def test_no_exit_of_others_is_a_success(code: object, monkeypatch: pytest.MonkeyPatch) -> None:
    def leave(*arguments: object) -> NoReturn:
        raise SystemExit(code)

    monkeypatch.setattr("bitnetctl.plugins.registry.load_all", leave)
    done = call("interventions", "list")
    assert done == Done(ExitCode.INTERNAL, "", f"error: internal error: SystemExit({code!r})\n")


# Slurm


SCRIPTS = re.findall(r"```bash\n(#!.*?)```", (ROOT / "docs" / "slurm.md").read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_scripts_for_slurm_run_and_pass_the_signal_on(tmp_path: Path, script: str) -> None:
    path = tmp_path / "job.sh"
    path.write_text(script, encoding="utf-8")
    subprocess.run(["bash", "-n", path], check=True)
    # one that plays its part: it says what it was given, and is sent the signal of the scheduler
    stand_in = tmp_path / "bitnetctl"
    stand_in.write_text(
        "#!/bin/bash\ntrap 'sleep 0.1; exit 75' USR1\nprintf '%s\\n' \"$@\"\nkill -USR1 \"$JOB\"\n"
        "while :; do sleep 0.05; done\n",
        encoding="utf-8",
    )
    stand_in.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "SLURM_SUBMIT_DIR": "there"}
    # the shell that becomes the job has its number
    done = subprocess.run(
        ["bash", "-c", f"JOB=$$ exec bash {path}"], env=environment, stdout=subprocess.PIPE, timeout=60, check=False
    )
    command, *arguments = done.stdout.decode().splitlines()
    assert done.returncode == ExitCode.STOPPED
    assert {argument for argument in arguments if argument.startswith("-")} <= set(OPTIONS[command].split())
    assert arguments[arguments.index("--runs-dir") + 1] == "there/runs"
    assert "--requeue" in arguments


def test_there_are_scripts_for_slurm() -> None:
    assert len(SCRIPTS) == 2


# train


def test_training_leaves_figures_and_weights(trained: Trained) -> None:
    csv = trained.runs_dir / f"{trained.name}.csv"
    assert (trained.done.code, trained.done.out) == (ExitCode.SUPPORTED, f"{csv}\n")
    lines = trained.done.err.splitlines()
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
    # another label is the same run; so is a field that is set to what it was
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


def test_a_name_is_taken_once(tmp_path: Path, corpus: Path) -> None:
    arguments = training(corpus, "--runs-dir", tmp_path / "runs", "--name", "mine")
    assert call(*arguments).out == f"{tmp_path / 'runs' / 'mine.csv'}\n"
    before = tree(tmp_path / "runs")
    done = call(*arguments, "--seed", "1")
    assert (done.code, done.err.count("\n")) == (ExitCode.USAGE, 1)
    assert "holds another run" in done.err
    assert "--name" in done.err
    assert tree(tmp_path / "runs") == before


def test_a_run_that_diverges_is_told_and_refuted(tmp_path: Path, corpus: Path) -> None:
    # the first update already overflows
    fields = {"schedule__peak_learning_rate": "1e38", "schedule__warmup_steps": 0}
    done = call(*training(corpus, "--runs-dir", tmp_path / "runs", "--json", **fields))
    assert done.code == ExitCode.REFUTED
    assert done.json["status"] == "diverged"
    assert done.json["final"]["UniquePredictions"] == "nan"
    assert "diverged at step 1; it is not trained any further" in done.err
    again = call(*training(corpus, "--runs-dir", tmp_path / "runs", **fields))
    assert (again.code, "already diverged" in again.err) == (ExitCode.REFUTED, True)


def test_a_run_that_diverged_is_judged_in_json(tmp_path: Path) -> None:
    config = build_config("quick", steps=20)
    lines = ["Step,Loss,UniquePredictions,LR,WD,ProbePositions", "1,7.6,80,0.1,0.1,8192", "5,nan,nan,0.1,0.1,"]
    (tmp_path / f"{config.run_name}.csv").write_text("\n".join([*lines, ""]), encoding="utf-8")
    done = call("verify", "--recipe", "quick", "--steps", "20", "--no-train", "--runs-dir", tmp_path, "--json")
    assert done.code == ExitCode.REFUTED
    for verdict in done.json["verdicts"]:
        assert verdict["verdict"] == "refuted"
        assert verdict["runs"][0]["reason"] == "diverged at step 5"
        assert verdict["runs"][0]["final_unique"] == "nan"


def test_a_dry_run_starts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    arguments = training(tmp_path / "not-yet.txt", "--runs-dir", tmp_path / "runs", "--dry-run")
    done = call(*arguments)
    assert (done.code, done.err) == (ExitCode.SUPPORTED, "")
    assert tree(tmp_path) == []
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
    assert tree(tmp_path) == []
    assert (run["run"], run["parameters"], run["vocab_size"]) == (name_of(arguments), 29_696, 300)
    assert run["config"]["model"]["hidden_size"] == 32
    # four copies of the parameters at least, and not the memory of a large model
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
        one_line_and_nothing_made(tmp_path, fragment, *arguments)


def test_the_runs_folder_of_the_environment(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITNETCTL_RUNS_DIR", str(trained.runs_dir))
    place = trained.arguments.index("--runs-dir")
    assert "already finished" in call(*trained.arguments[:place], *trained.arguments[place + 2 :]).err


def test_a_signal_stops_with_a_checkpoint_and_the_same_command_finishes(
    tmp_path: Path, corpus: Path, cache: Path
) -> None:
    arguments = training(corpus, "--runs-dir", tmp_path / "runs", "--name", "mine", probe__eval_every_steps=200)
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
    assert err.endswith("the same command goes on from there\n")
    manifest = read_manifest(tmp_path / "runs" / "mine")
    assert manifest is not None
    assert manifest.status == "stopped"
    assert 1 <= manifest.steps_done < 400
    checkpoints = tmp_path / "runs" / "mine" / "checkpoints"
    assert names_in(checkpoints) == [f"step-{manifest.steps_done:08d}"]

    # the rest in this process: that the first one was stopped early shows in what it resumes
    finished = call(*arguments)
    assert (finished.code, finished.out) == (ExitCode.SUPPORTED, f"{tmp_path / 'runs' / 'mine.csv'}\n")
    assert f"resumed after step {manifest.steps_done:,}" in finished.err
    assert read(tmp_path / "runs" / "mine.csv").frame["Step"].to_list() == [1, 200, 400]


# verify


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
    before = tree(tmp_path)
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
    assert tree(tmp_path) == before


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


def test_verify_without_runs_is_inconclusive_and_makes_nothing(tmp_path: Path) -> None:
    done = call("verify", "--recipe", "quick", "--no-train")
    assert (done.code, done.err) == (ExitCode.INCONCLUSIVE, "")
    assert [line.split()[:1] for line in done.out.splitlines() if "no run" in line] == [["64"], ["64"]]
    assert "origin: inconclusive" in done.out
    assert "sound: inconclusive" in done.out
    assert done.out.splitlines()[-1] == "verdict: inconclusive"
    assert tree(tmp_path) == []


def test_verify_refuses_a_damaged_file(tmp_path: Path) -> None:
    runs_dir = judged_folder(tmp_path / "runs", h64=60)
    (csv,) = runs_dir.iterdir()
    csv.write_text(csv.read_text(encoding="utf-8").replace(",6.5,", ",six,"), encoding="utf-8")
    done = call("verify", "--recipe", "quick", "--steps", "20", "--no-train", "--runs-dir", runs_dir)
    assert (done.code, done.out) == (ExitCode.USAGE, "")
    assert done.err == f"error: {csv}:3: Loss is 'six', not a number\n"


def test_verify_trains_what_is_missing_and_keeps_no_weights(tmp_path: Path, corpus: Path) -> None:
    options = ["--recipe", "quick", *overrides(corpus), "--steps", "20", "--runs-dir", str(tmp_path / "runs")]
    arguments = ["verify", "--sizes", "32,16", *options, "--device", "cpu", "--json"]
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


def test_verify_dry_run_makes_nothing(tmp_path: Path) -> None:
    arguments = ["verify", "--recipe", "quick", "--sizes", "32,64", "--dry-run"]
    done = call(*arguments)
    assert (done.code, done.err) == (ExitCode.SUPPORTED, "")
    assert [line.split()[0] for line in done.out.splitlines()[:3]] == ["size", "32", "64"]
    assert "2 runs, 0 there already" in done.out
    shapes = call(*arguments, "--json").json["shapes"]
    assert [(shape["size"], shape["steps"], shape["runs"]) for shape in shapes] == [(32, 2000, 1), (64, 2000, 1)]
    assert not (tmp_path / "runs").exists()


# config


def test_config_show_is_the_config_as_it_would_run() -> None:
    options = ["--recipe", "b158", "--size", "512", "--steps", "7", "--seed", "3", "--set", "optimizer.exempt=head"]
    config = build_config("b158", size=512, steps=7, seed=3, overrides=["optimizer.exempt=head"])
    assert call("config", "show", *options, "--json").json == config.model_dump(mode="json")
    shown = call("config", "show", *options).out
    for line in ("steps = 7", "seed = 3", "hidden_size = 512", 'exempt = ["head"]', "peak_learning_rate = 0.0015"):
        assert f"{line}\n" in shown


def test_config_show_is_what_interventions_make_of_it() -> None:
    options = ["config", "show", "--recipe", "origin", "-i", "reduced-lr:peak=5e-4"]
    assert "peak_learning_rate = 0.0005\n" in call(*options).out
    assert call(*options, "--json").json["schedule"]["peak_learning_rate"] == 5e-4


def test_what_config_show_prints_is_a_recipe(tmp_path: Path) -> None:
    for recipe in ("origin", "b158", "portable", "quick"):
        path = tmp_path / f"{recipe}.toml"
        path.write_text(call("config", "show", "--recipe", recipe).out, encoding="utf-8")
        assert build_config(str(path)) == build_config(recipe)


def test_config_show_tells_that_clipping_is_off(tmp_path: Path) -> None:
    off = ["--set", "optimizer.max_norm=none"]
    shown = call("config", "show", "--recipe", "quick", *off).out
    assert 'max_norm = "none"\n' in shown
    (tmp_path / "quick.toml").write_text(shown, encoding="utf-8")
    assert build_config(str(tmp_path / "quick.toml")).optimizer.max_norm is None


def test_the_schema_knows_every_field() -> None:
    done = call("config", "schema")
    assert (done.code, done.err) == (ExitCode.SUPPORTED, "")
    schema = done.json
    for path in field_paths():
        *sections, field = path.split(".")
        owner = schema
        for section in sections:
            owner = schema["$defs"][owner["properties"][section]["$ref"].rpartition("/")[2]]
        assert field in owner["properties"], path
        assert owner["additionalProperties"] is False


# the surface


def test_exit_codes_are_a_contract() -> None:
    assert {code.name: int(code) for code in ExitCode} == {
        "SUPPORTED": 0,
        "REFUTED": 1,
        "USAGE": 2,
        "INTERNAL": 3,
        "INVALID": 4,
        "INCONCLUSIVE": 5,
        "STOPPED": 75,
        "INTERRUPTED": 130,
    }


def test_version() -> None:
    assert call("--version") == Done(ExitCode.SUPPORTED, f"bitnetctl {__version__}\n", "")


@pytest.mark.parametrize("arguments", [[], ["config"], ["interventions"]])
def test_a_command_too_few_shows_the_help(arguments: list[str]) -> None:
    done = call(*arguments)
    assert done.code == ExitCode.USAGE
    assert "Usage: bitnetctl" in done.out + done.err
    assert "error" not in done.out + done.err


CONFIG_OPTIONS = "--recipe -r --size --steps --seed --set --intervention -i"

# the command line is a contract with scripts: a change here is a change for CHANGELOG.md
OPTIONS = {
    "": "--version",
    "train": f"{CONFIG_OPTIONS} --name --runs-dir --device --engine --precision --eval-every "
    "--checkpoint-every --on-divergence --resume --requeue --dry-run --json",
    "sweep": "--recipe -r --sizes --steps --seeds --set --intervention -i --plan --no-baseline --pack --keep-weights "
    "--no-keep-weights --configs --runs-dir --device --engine --precision --eval-every --checkpoint-every "
    "--on-divergence --requeue --dry-run --json",
    "verify": "paths --sizes --steps --recipe -r --intervention -i --seeds --set --no-baseline --criteria --runs-dir "
    "--device --engine --precision --pack --no-train --report --bundle --junit --requeue --dry-run --json",
    "analyze": "paths --baseline --markdown --html --csv --verdict --json",
    "interventions": "",
    "interventions list": "--json",
    "interventions show": "name --json",
    "interventions new": "name --path",
    "interventions check": "path --settings",
    "config": "",
    "config show": f"{CONFIG_OPTIONS} --json",
    "config schema": "",
}


def commands() -> dict[str, Any]:
    """Return every command of the app by its full name."""
    found: dict[str, Any] = {}

    def walk(command: Any, name: str) -> None:
        found[name] = command
        for child, below in getattr(command, "commands", {}).items():
            walk(below, f"{name} {child}".strip())

    walk(typer.main.get_command(cli.app), "")
    return found


def test_the_options_of_every_command_are_frozen() -> None:
    actual = {
        name: {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        for name, command in commands().items()
    }
    assert actual == {name: set(options.split()) for name, options in OPTIONS.items()}


@pytest.mark.parametrize("name", OPTIONS)
def test_every_command_explains_its_options(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    for flag in ("--help", "-h"):
        done = call(*name.split(), flag)
        assert (done.code, done.err) == (ExitCode.SUPPORTED, "")
        for parameter in commands()[name].params:
            if not parameter.hidden:
                assert parameter.opts[0].casefold() in done.out.casefold()
                assert parameter.help.split()[0] in done.out


@pytest.fixture
def loaded() -> Callable[..., set[str]]:
    """Run a command line in a fresh process and return the modules it has loaded."""

    def run(*arguments: str) -> set[str]:
        code = "import sys; from bitnetctl.cli import run; run(sys.argv[1:]); print(*sys.modules, file=sys.stderr)"
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
        return set(done.stderr.split())

    return run


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["train", "--help"],
        ["verify", "--help"],
        ["analyze", "--help"],
        ["train", "--recipe", "orign"],
        ["analyze", "nowhere", "--verdict", "none.json"],
    ],
)
def test_help_and_mistakes_start_light(loaded: Callable[..., set[str]], arguments: list[str]) -> None:
    modules = loaded(*arguments)
    assert "bitnetctl.cli" in modules
    assert not modules & {"torch", "pandas", "scipy", "numpy"}
