"""Mistakes on the command line: one line on stderr, an exit code that is never a success, nothing created."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import pytest
import torch
from calling import Done, assert_refused, call, listing, training
from filelock import FileLock

from bitnetctl.errors import ExitCode
from bitnetctl.records import RunPaths

pytestmark = pytest.mark.usefixtures("plain_environment")


MISTAKES: dict[str, tuple[list[str], str]] = {
    "unknown recipe": (["--recipe", "orign"], "unknown recipe 'orign'; did you mean 'origin'?"),
    "missing recipe file": (["--recipe", "none.toml"], "recipe file none.toml: cannot read: No such file"),
    "unknown field": (["--set", "model.hiden_size=3"], "did you mean 'model.hidden_size'?"),
    "override without value": (["--set", "steps"], "expected section.field=value"),
    "bad value": (["--set", "model.activation=gelu"], "model.activation: input should be 'relu2' or 'silu'"),
    "size not divisible by heads": (["--size", "34"], "hidden_size 34 is not divisible by num_attention_heads 4"),
    "odd head size": (["--size", "12"], "is odd"),
    "no steps": (["--steps", "0"], "--steps': Input should be greater than or equal to 1"),
    "negative steps": (["--steps", "-5"], "greater than or equal to 1"),
    "steps not a number": (["--steps", "many"], "--steps"),
    "negative seed": (["--seed", "-1"], "seed: input should be greater than or equal to 0"),
    "steps twice": (["--set", "steps=5"], "--set 'steps=5': no effect beside --steps 20; take one of them"),
    "size twice": (["--set", "model.hidden_size=16"], "no effect beside --size 32; take one of them"),
    "no evaluation interval": (["--eval-every", "0"], "--eval-every': Input should be greater than or equal to 1"),
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
def test_a_mistake_is_one_line(tmp_path: Path, tiny_text: Path, mistake: str) -> None:
    extra, fragment = MISTAKES[mistake]
    assert_refused(fragment, *training(tiny_text, "--runs-dir", tmp_path / "runs", *extra))


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        (b"", "text.txt: an empty file (0 bytes); download it again or remove it, or leave it out"),
        (b"few words\n" * 500, "all of the held-out text is also training text"),
        (b"too short\n", "supports only"),
        (b"not utf-8 \xff\xfe\n" * 500, "UTF-8"),
    ],
)
def test_a_text_that_cannot_be_trained_on(tmp_path: Path, content: bytes, fragment: str) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    assert_refused(fragment, *training(path, "--runs-dir", tmp_path / "runs"))


def test_a_text_too_short_for_a_batch(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text(
        "a few words, but no more than that\n" + "others in the second line\n" + "the end\n", encoding="utf-8"
    )
    arguments = training(path, "--runs-dir", tmp_path / "runs", data__tokenizer="bpe:260")
    assert_refused("too few", *arguments)


def test_a_gpu_that_is_not_there(tmp_path: Path, tiny_text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    arguments = training(tiny_text, "--runs-dir", tmp_path / "runs", "--device", "cuda")
    assert_refused("device 'cuda' is not available on this machine", *arguments)


def test_no_space_left(tmp_path: Path, tiny_text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    assert_refused("no space left", *training(tiny_text, "--runs-dir", tmp_path / "runs"))


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
        # of CSVs it is what every run has to reach
        (["verify", "runs", "--steps", "-5"], "greater than or equal to 1"),
        (["verify", "--recipe", "orign", "--no-train"], "did you mean 'origin'?"),
        (["train", "-i", "no-decay", "-i", "label-smoothing"], "-i no-decay+label-smoothing; for an arm of each"),
        (["verify", "-i", "no-decay", "-i", "no-decay", "--no-train"], "-i is given 2 times"),
        (["config", "show", "-i", "a", "-i", "b"], "-i is given 2 times"),
        (["config", "show", "--recipe", "orign"], "did you mean 'origin'?"),
        (["config", "show", "--set", "model.hiden_size=3"], "did you mean 'model.hidden_size'?"),
    ],
)
def test_a_mistake_of_another_command_is_one_line(tmp_path: Path, arguments: list[str], fragment: str) -> None:
    assert_refused(fragment, *arguments)


def test_a_checkpoint_to_resume_that_is_not_there(tmp_path: Path, tiny_text: Path) -> None:
    arguments = training(tiny_text, "--runs-dir", tmp_path / "runs", "--resume", "nowhere")
    assert_refused("checkpoint nowhere", *arguments)


def test_two_processes_cannot_train_one_run(tmp_path: Path, tiny_text: Path) -> None:
    arguments = training(tiny_text, "--runs-dir", tmp_path / "runs", "--name", "mine")
    paths = RunPaths(tmp_path / "runs", "mine")
    paths.folder.mkdir(parents=True)
    with FileLock(paths.lock):
        before = listing(tmp_path / "runs")
        done = call(*arguments)
        assert listing(tmp_path / "runs") == before
    assert (done.code, done.out, done.err.count("\n")) == (ExitCode.USAGE, "", 1)
    assert done.err.startswith("error: run mine is being trained by another process")
    assert call(*arguments).code == ExitCode.SUPPORTED


def test_an_internal_error_is_one_line_too(tmp_path: Path, tiny_text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **named: object) -> NoReturn:
        raise RuntimeError("two\nlines [bold]")

    monkeypatch.setattr("bitnetctl.data.prepare", fail)
    arguments = training(tiny_text, "--runs-dir", tmp_path / "runs")
    done = call(*arguments)
    assert (done.code, done.out) == (ExitCode.INTERNAL, "")
    assert done.err.startswith("error: internal error: RuntimeError: two lines [bold] (BITNETCTL_TRACEBACK=1 ")
    assert done.err.count("\n") == 1
    monkeypatch.setenv("BITNETCTL_TRACEBACK", "1")
    done = call(*arguments)
    assert (done.code, done.out) == (ExitCode.INTERNAL, "")
    assert done.err.startswith("Traceback (most recent call last):\n")
    assert "in fail\n" in done.err
    assert done.err.splitlines()[-1].startswith("error: internal error: RuntimeError: two lines")


def test_an_interrupt_at_the_keyboard(tmp_path: Path, tiny_text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: object, **named: object) -> NoReturn:
        raise KeyboardInterrupt

    handler = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr("bitnetctl.data.prepare", interrupt)
    done = call(*training(tiny_text, "--runs-dir", tmp_path / "runs"))
    assert done == Done(ExitCode.INTERRUPTED, "", "error: interrupted\n")
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_closed_stdout_is_not_a_refutation() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-c", "from bitnetctl.cli import main; main()", "config", "schema"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (ExitCode.OUTPUT_CLOSED, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize("arguments", [["config", "schema"], ["--help"]])
def test_a_full_stdout_is_an_error(arguments: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "bitnetctl", *arguments]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (
        ExitCode.USAGE,
        "error: stdout: cannot write: No space left on device\n",
    )


@pytest.mark.parametrize("code", [0, 1, 2, None, "bye"])
def test_a_system_exit_is_never_a_success(code: object, monkeypatch: pytest.MonkeyPatch) -> None:
    def leave(*arguments: object) -> NoReturn:
        raise SystemExit(code)

    monkeypatch.setattr("bitnetctl.plugins.registry.load_all", leave)
    done = call("interventions", "list")
    assert done == Done(ExitCode.INTERNAL, "", f"error: internal error: SystemExit({code!r})\n")
