"""Command lines run in this process, and what their tests share; loaded as a pytest plugin by conftest.py."""

import contextlib
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import pytest

from bitnetctl import cli
from bitnetctl.errors import ExitCode

KERNEL_CACHES = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}
READ_BY_CLI = ("BITNETCTL_RUNS_DIR", "BITNETCTL_TRACEBACK", "FORCE_COLOR", "NO_COLOR", "COLUMNS")
SET_BY_CLI = ("GOMP_SPINCOUNT", *KERNEL_CACHES)


class Done(NamedTuple):
    """The exit code and the output of a command."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The object on stdout; NaN and infinity, which JSON does not have, raise ValueError."""

        def refuse(name: str) -> NoReturn:
            raise ValueError(name)

        return json.loads(self.out, parse_constant=refuse)

    @property
    def error(self) -> str:
        """The error message, the only line of all output."""
        assert self.out == ""
        [line] = self.err.splitlines()
        assert line.startswith("error: ")
        return line

    @property
    def last_line(self) -> str:
        return self.out.splitlines()[-1]


def call(*arguments: str | Path) -> Done:
    """Run a command line."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.run([str(argument) for argument in arguments])
    return Done(code, out.getvalue(), err.getvalue())


def verify(*arguments: str | Path) -> Done:
    """Judge by the founding document's criteria."""
    return call("verify", *arguments, "--criteria", "origin")


def assert_refused(fragment: str, *arguments: str | Path) -> None:
    """Check that a command line is refused as wrong usage, in one line, and no run is created."""
    done = call(*arguments)
    assert done.code == ExitCode.USAGE
    assert fragment in done.error
    assert done.err.endswith("\n")
    assert not Path("runs").exists()


def set_options(fields: Mapping[str, object]) -> list[str]:
    """Return a `--set` option for each field, such as `model.num_layers`."""
    return [part for name, value in fields.items() for part in ("--set", f"{name}={value}")]


def smallest_run(text: Path) -> list[str]:
    """Return the options of the smallest run, without size and steps: evaluations at steps 1, 4, 8, …"""
    fields = {
        "data.source": f"file:{text}",
        "data.tokenizer": "bpe:300",
        "data.batch_size": 2,
        "data.sequence_length": 16,
        "model.num_layers": 1,
        "schedule.warmup_steps": 2,
        "probe.positions": 128,
        "probe.eval_every_steps": 4,
    }
    return ["--recipe", "quick", *set_options(fields)]


def quick_run(text: Path | str, **fields: object) -> list[str]:
    """Return the options of a small run, without size and steps; `model__num_layers=2` sets `model.num_layers`."""
    chosen = {
        "data.source": f"file:{text}",
        "data.tokenizer": "bpe:300",
        "model.num_layers": 1,
        "probe.positions": 256,
        "probe.eval_every_steps": 10,
        **{name.replace("__", "."): value for name, value in fields.items()},
    }
    return ["--recipe", "quick", *set_options(chosen), "--device", "cpu"]


def training(text: Path | str, *more: str | Path, **fields: object) -> list[str]:
    """Return a command that trains 20 steps of hidden size 32, with rows at 1, 10 and 20; later options win."""
    return ["train", *quick_run(text, **fields), "--size", "32", "--steps", "20", *map(str, more)]


def listing(folder: Path) -> list[str]:
    """Return the paths of everything below a folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def names_in(folder: Path) -> list[str]:
    """Return the names of what is in a folder."""
    return sorted(path.name for path in folder.iterdir())


def outcomes(done: Done) -> dict[str, str]:
    """Return the verdict on each arm."""
    return {arm: tree["verdict"] for arm, tree in done.json["arms"].items()}


def judged(done: Done) -> tuple[int, str]:
    """Return the exit code and the verdict."""
    return done.code, done.json["verdict"]


def unset_environment(patch: pytest.MonkeyPatch) -> None:
    """Unset the variables that a command line reads, and those that it sets."""
    for name in (*READ_BY_CLI, *SET_BY_CLI):
        # set first, so that what a command line sets is unset after the test
        patch.setenv(name, "")
        patch.delenv(name)


@pytest.fixture
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of the machine reaches a command line; fsync is skipped, since no test needs durability."""
    unset_environment(monkeypatch)
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


@pytest.fixture
def wide_terminal(plain_environment: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal in which no table is wrapped."""
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def known_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the measurement of the device behind the estimates of `--dry-run`."""
    monkeypatch.setattr("bitnetctl.engine.cost.measure_rates", lambda device, multiply: (1e10, 1e9))


@pytest.fixture
def options(tiny_text: Path) -> list[str]:
    """Options of the smallest run with eight steps: rows at 1, 4 and 8."""
    return [*smallest_run(tiny_text), "--steps", "8", "--device", "cpu"]


@pytest.fixture
def sweep_command(options: list[str]) -> Callable[..., Done]:
    """Run `bitnetctl sweep` of the smallest runs, of size 16 unless `--sizes` is given."""

    def run(*more: str) -> Done:
        sizes = [] if "--sizes" in more else ["--sizes", "16"]
        return call("sweep", *options, *sizes, *more)

    return run
