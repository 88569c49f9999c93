"""`bitnetctl sweep` and `verify -i`: grids and plans on the command line, exit codes, and the view of many runs."""

import contextlib
import io
import itertools
import json
import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, NamedTuple, NoReturn

import pytest
from pydantic import Field
from rich.console import Console

from bitnetctl import cli, data
from bitnetctl.config import RunConfig, build_config, parse_arm
from bitnetctl.engine import cost
from bitnetctl.engine.cost import bytes_per_replica
from bitnetctl.errors import ExitCode
from bitnetctl.intervention import Intervention, InterventionSettings
from bitnetctl.monitor import console as monitor_console, live
from bitnetctl.monitor.console import PlainReporter
from bitnetctl.monitor.live import LiveReporter
from bitnetctl.plugins import registry
from bitnetctl.plugins.registry import Plugin
from bitnetctl.records import NAMES, Manifest, Row, RunPaths, Status, read, read_manifest, utc_now, write_manifest
from bitnetctl.sweeps import packing
from bitnetctl.sweeps.executors import local
from bitnetctl.trainer import checkpoint
from bitnetctl.trainer.events import Diverged, Evaluated, Event, Finished, Progress, Saved, Started

RUNS = Path("runs")
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
DIVERGES = "reduced-lr:factor=1e30"
ALL_THERE = "all {} runs are there already, nothing to train\n"
CACHES = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}


class Done(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def call(*arguments: str) -> Done:
    """Run a command line in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.run(list(arguments))
    return Done(code, out.getvalue(), err.getvalue())


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the machine reaches a test; durability is of no concern here."""
    for name in ("BITNETCTL_RUNS_DIR", "BITNETCTL_TRACEBACK", "FORCE_COLOR", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GOMP_SPINCOUNT", "1000")
    for name in CACHES:
        # set, so that it is unset after the test, whoever set it
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    # a table is as wide as its terminal
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    monkeypatch.setattr(cost, "measure_rates", lambda device, multiply: (1e10, 1e9))


@pytest.fixture
def options(tiny_text: Path) -> list[str]:
    """Options of the smallest run: eight steps, rows at 1, 4 and 8."""
    values = {
        "data.source": f"file:{tiny_text}",
        "data.tokenizer": "bpe:300",
        "data.batch_size": 2,
        "data.sequence_length": 16,
        "model.num_layers": 1,
        "schedule.warmup_steps": 2,
        "probe.positions": 128,
        "probe.eval_every_steps": 4,
    }
    sets = [part for name, value in values.items() for part in ("--set", f"{name}={value}")]
    return ["--recipe", "quick", "--steps", "8", *sets, "--device", "cpu"]


@pytest.fixture
def sweep(options: list[str]) -> Callable[..., Done]:
    """Call `bitnetctl sweep` for the smallest runs, of size 16 if nothing else is given."""

    def run(*more: str) -> Done:
        sizes = [] if "--sizes" in more else ["--sizes", "16"]
        return call("sweep", *options, *sizes, *more)

    return run


Sweep = Callable[..., Done]


def manifest(name: str) -> Manifest:
    found = read_manifest(RUNS / name)
    assert found is not None
    return found


def told(rows: list[dict[str, Any]], *keys: str) -> list[tuple[Any, ...]]:
    return [tuple(row[key] for key in keys) for row in rows]


class Fails(Intervention):
    """Raise in the second half of a run."""

    summary = "for the tests"

    class Settings(InterventionSettings):
        """The step that goes wrong."""

        at: Annotated[int, Field(ge=1)] = 6

    settings: Settings

    def weight_decay(self, base: float, step: int, steps: int) -> float:
        """Raise at the step."""
        if step == self.settings.at:
            raise RuntimeError("two\nlines [bold]")
        return base


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plug-in `fails` beside the real ones."""
    real = registry.load
    ours = Plugin(name="fails", distribution="ours", version="1", target="-", intervention=Fails, problem=None)
    monkeypatch.setattr(registry, "load", lambda name: ours if name == "fails" else real(name))


# mistakes


MISTAKES: dict[str, tuple[list[str], str]] = {
    "pack of none": (["--pack", "0"], "--pack '0': expected auto or a whole number from 1"),
    "pack not a number": (["--pack", "many"], "--pack 'many': expected auto or a whole number from 1"),
    "negative pack": (["--pack", "-1"], "--pack '-1': expected auto"),
    "empty pack": (["--pack", ""], "--pack '': expected auto"),
    "pack of other digits": (["--pack", "２"], "--pack '２': expected auto"),
    "no seeds": (["--seeds", "0"], "--seeds '0': expected a number of seeds, or seeds such as 0,3,7"),
    "too many seeds": (["--seeds", "1000000"], "--seeds '1000000': expected a number of seeds"),
    "seeds not numbers": (["--seeds", "a,b"], "--seeds 'a,b': expected a number of seeds, or seeds such as 0,3,7"),
    "empty seeds": (["--seeds", ""], "--seeds '': expected a number of seeds"),
    "negative seed": (["--seeds", "0,-1"], "--seeds '0,-1': expected a number of seeds"),
    "seed twice": (["--seeds", "3,3"], "seed 3 is named twice"),
    "sizes not numbers": (["--sizes", "big"], "--sizes 'big': expected whole numbers such as 256,512"),
    "size of none": (["--sizes", "0"], "sizes.0: input should be greater than 0, got 0"),
    "size twice": (["--sizes", "16,16"], "size 16 is named twice"),
    "size not divisible": (["--sizes", "16,18"], "hidden_size 18 is not divisible by num_attention_heads 4"),
    "unknown plan": (["--plan", "root-cuase"], "unknown plan 'root-cuase'; did you mean 'root-cause'?"),
    "missing plan file": (["--plan", "none.toml"], "plan file none.toml: No such file"),
    "unknown recipe": (["--recipe", "quik"], "unknown recipe 'quik'; did you mean 'quick'?"),
    "unknown arm": (["-i", "reduced-rl"], "unknown intervention 'reduced-rl'; did you mean 'reduced-lr'?"),
    "unknown setting": (["-i", "reduced-lr:speed=3"], "intervention reduced-lr: unknown field 'speed'"),
    "bad setting": (["-i", "no-decay", "-i", "reduced-lr:peak=fast"], "intervention reduced-lr: peak"),
    "setting without value": (["-i", "reduced-lr:peak"], "expected NAME:key=value"),
    "arm twice": (["-i", "no-decay", "-i", "no-decay"], "arm no-decay is named twice"),
    "arm that contradicts itself": (
        ["-i", "label-smoothing+label-smoothing:epsilon=0.2"],
        "both override training_loss",
    ),
    "no runs": (["--no-baseline"], "the sweep has no runs; give an arm with -i, or leave out --no-baseline"),
    "no steps": (["--steps", "0"], "steps: input should be greater than 0, got 0"),
    "no evaluations": (["--eval-every", "0"], "eval_every_steps: input should be greater than 0"),
    "no checkpoints": (["--checkpoint-every", "0"], "--checkpoint-every"),
    "unknown field": (["--set", "model.hiden_size=3"], "did you mean 'model.hidden_size'?"),
    "missing text": (["--set", "data.source=file:none.txt"], "none.txt"),
    "unknown device": (["--device", "tpu"], "device 'tpu' is unknown"),
    "unknown device in a list": (["--device", "cpu,tpu"], "device 'tpu' is unknown"),
    "missing runs of a worker": (["--configs", "none.json"], "--configs none.json"),
    "too many runs": (["--seeds", "60000", "--sizes", "16,32"], "the plan has more than 100,000 runs"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_creates_nothing(sweep: Sweep, mistake: str) -> None:
    extra, fragment = MISTAKES[mistake]
    done = sweep(*extra)
    assert (done.code, done.out) == (ExitCode.USAGE, "")
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert fragment in done.err
    assert not RUNS.exists()


PLAN_MISTAKES: dict[str, tuple[str, str]] = {
    "not TOML": ("arms = [", "plan plan.toml: not valid TOML"),
    "unknown field": ('arm = ["no-decay"]\n', "plan plan.toml: unknown field 'arm'; did you mean 'arms'?"),
    "no seeds": ("seeds = []\n", "plan plan.toml: no seeds"),
    "no such seeds": ("seeds = 0\n", "plan plan.toml: no seeds"),
    "bad seed": ("seeds = [-1]\n", "seeds.0: input should be greater than or equal to 0, got -1"),
    "factor without levels": ("[factors.decay]\n", "a factor has no levels"),
    "unknown arm": ('arms = ["reduced-rl"]\n', "unknown intervention 'reduced-rl'"),
    "bad override": ('overrides = ["model.hiden_size=3"]\n', "did you mean 'model.hidden_size'?"),
}


@pytest.mark.parametrize("mistake", PLAN_MISTAKES)
def test_a_mistake_in_a_plan_is_one_line_and_creates_nothing(mistake: str) -> None:
    text, fragment = PLAN_MISTAKES[mistake]
    Path("plan.toml").write_text(text, encoding="utf-8")
    done = call("sweep", "--plan", "plan.toml", "--device", "cpu")
    assert (done.code, done.out) == (ExitCode.USAGE, "")
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert fragment in done.err
    assert not RUNS.exists()


# what would be done


def test_a_dry_run_shows_runs_packs_memory_and_time(sweep: Sweep, tiny_config: Callable[..., RunConfig]) -> None:
    arguments = ["--dry-run", "--sizes", "16,32", "-i", "no-decay", "--seeds", "3", "--pack", "4"]
    done = sweep(*arguments)
    assert (done.code, done.err) == (ExitCode.SUPPORTED, "")
    header, *lines, last = done.out.splitlines()
    assert header.split() == ["size", "steps", "runs", "packs", "in", "a", "pack", "memory", "time", "arms"]
    assert [line.split()[:5] for line in lines] == [["16", "8", "6", "2", "4"], ["32", "8", "6", "2", "4"]]
    assert all(line.rstrip().endswith("baseline, no-decay") for line in lines)
    assert last.startswith("12 runs, 0 there already; about ")
    assert " on cpu, " in last
    assert last.endswith(" GiB free")

    data = sweep(*arguments, "--json").json
    assert set(data) == {"shapes", "done", "seconds"}
    assert told(data["shapes"], "size", "steps", "runs", "packs", "runs_in_a_pack", "arms") == [
        (16, 8, 6, 2, 4, ["baseline", "no-decay"]),
        (32, 8, 6, 2, 4, ["baseline", "no-decay"]),
    ]
    config = tiny_config(steps=8, model__num_layers=1, model__hidden_size=32)
    assert data["shapes"][1]["memory_bytes"] == 4 * bytes_per_replica(config, 300)
    assert data["seconds"] == pytest.approx(sum(shape["seconds"] for shape in data["shapes"]), abs=0.2)
    assert data["seconds"] > 0
    assert data["done"] == 0
    assert not RUNS.exists()


def test_a_dry_run_of_two_devices_takes_half_the_time(sweep: Sweep) -> None:
    # long enough for figures that are rounded to tenths of a second
    arguments = ["--dry-run", "--json", "--pack", "1", "--seeds", "4", "--steps", "20000"]
    one, two = sweep(*arguments).json, sweep(*arguments, "--device", "cpu,cpu").json
    assert two["seconds"] == pytest.approx(one["seconds"] / 2, abs=0.1)
    assert one["seconds"] > 10
    assert two["shapes"] == one["shapes"]


@pytest.mark.parametrize(
    ("device", "pack", "packs", "together"),
    [("cpu", "auto", 1, 5), ("cpu,cpu", "auto", 2, 3), ("cpu,cpu,cpu", "auto", 3, 2), ("cpu,cpu", "5", 1, 5)],
)
def test_a_dry_run_divides_the_runs_between_devices(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch, device: str, pack: str, packs: int, together: int
) -> None:
    monkeypatch.setattr(packing, "memory_available", lambda device: 2**60)
    (shape,) = sweep("--dry-run", "--json", "--seeds", "5", "--device", device, "--pack", pack).json["shapes"]
    assert (shape["packs"], shape["runs_in_a_pack"]) == (packs, together)


@pytest.mark.parametrize(("free", "packs", "together"), [(0, 5, 1), (4.5, 3, 2), (1e6, 1, 5)])
def test_a_dry_run_knows_the_packs_that_memory_takes(
    sweep: Sweep,
    tiny_config: Callable[..., RunConfig],
    monkeypatch: pytest.MonkeyPatch,
    free: float,
    packs: int,
    together: int,
) -> None:
    one = bytes_per_replica(tiny_config(steps=8, model__num_layers=1, model__hidden_size=16), 300)
    monkeypatch.setattr(packing, "memory_available", lambda device: int(free * one))
    (shape,) = sweep("--dry-run", "--json", "--seeds", "5").json["shapes"]
    assert (shape["packs"], shape["runs_in_a_pack"]) == (packs, together)


def test_a_dry_run_counts_what_is_there(sweep: Sweep) -> None:
    assert sweep("--seeds", "2").code == ExitCode.SUPPORTED
    before = sorted(RUNS.rglob("*"))
    data = sweep("--dry-run", "--json", "--seeds", "5").json
    assert (data["done"], told(data["shapes"], "runs")) == (2, [(3,)])
    done = sweep("--dry-run", "--seeds", "2")
    assert "2 runs, 2 there already; about 0 s" in done.out
    assert sorted(RUNS.rglob("*")) == before


# grids and plans


def arms_and_seeds(done: Done) -> list[tuple[Any, ...]]:
    return told(done.json["runs"], "arm", "seed")


def planned(done: Done) -> tuple[int, list[str]]:
    (shape,) = done.json["shapes"]
    return shape["runs"], shape["arms"]


@pytest.mark.parametrize(
    ("arguments", "runs", "arms"),
    [
        ([], 1, ["baseline"]),
        (["--seeds", "3"], 3, ["baseline"]),
        (["--seeds", "0,3,7"], 3, ["baseline"]),
        (["--seeds", "5,"], 1, ["baseline"]),
        (["-i", "no-decay"], 2, ["baseline", "no-decay"]),
        (["-i", "no-decay", "--no-baseline"], 1, ["no-decay"]),
        (["-i", "no-decay", "-i", "baseline"], 2, ["no-decay", "baseline"]),
        (["-i", "no-decay", "-i", "reduced-lr", "--seeds", "2"], 6, ["baseline", "no-decay", "reduced-lr"]),
        (["-i", "no-decay+reduced-lr:peak=1e-4"], 2, ["baseline", "no-decay+reduced-lr:peak=0.0001"]),
        # the same run by another name
        (["-i", "reduced-lr", "-i", "reduced-lr:peak=5e-4"], 2, ["baseline", "reduced-lr"]),
    ],
)
def test_a_grid(sweep: Sweep, arguments: list[str], runs: int, arms: list[str]) -> None:
    assert planned(sweep("--dry-run", "--json", *arguments)) == (runs, arms)


PLAN = """
description = "a test"
recipe = "quick"
steps = 8
sizes = [16]
seeds = 2
arms = ["no-decay"]
overrides = [{overrides}]

[factors.decay]
off = ""
on = "wd-schedule"

[factors.rate]
off = ""
on = "reduced-lr"
"""
CROSSED = ["no-decay", "baseline", "reduced-lr", "wd-schedule", "wd-schedule+reduced-lr"]


@pytest.mark.parametrize(
    ("arguments", "runs", "arms"),
    [
        ([], 10, CROSSED),
        (["--seeds", "1"], 5, CROSSED),
        (["-i", "reduced-lr"], 4, ["baseline", "reduced-lr"]),
        (["-i", "reduced-lr", "--no-baseline"], 2, ["reduced-lr"]),
        # the baseline of the plan is an arm of its own
        (["--no-baseline"], 10, CROSSED),
    ],
)
def test_a_plan_and_what_the_command_line_changes(
    options: list[str], arguments: list[str], runs: int, arms: list[str]
) -> None:
    overrides = ", ".join(f'"{text}"' for option, text in itertools.pairwise(options) if option == "--set")
    Path("plan.toml").write_text(PLAN.format(overrides=overrides), encoding="utf-8")
    base = ["sweep", "--plan", "plan.toml", "--device", "cpu", "--dry-run", "--json"]
    assert planned(call(*base, *arguments)) == (runs, arms)
    (shape,) = call(*base, *arguments, "--sizes", "32", "--steps", "6").json["shapes"]
    assert (shape["size"], shape["steps"], shape["runs"]) == (32, 6, runs)
    assert not RUNS.exists()


def test_a_plan_is_trained(options: list[str]) -> None:
    overrides = ", ".join(f'"{text}"' for option, text in itertools.pairwise(options) if option == "--set")
    Path("plan.toml").write_text(PLAN.format(overrides=overrides), encoding="utf-8")
    done = call("sweep", "--plan", "plan.toml", "--seeds", "3,4", "--device", "cpu", "--json")
    assert done.code == ExitCode.SUPPORTED
    assert arms_and_seeds(done) == [(arm, seed) for arm in CROSSED for seed in (3, 4)]
    for row in done.json["runs"]:
        assert read(RUNS / f"{row['run']}.csv", partial=False).frame["Step"].to_list() == [1, 4, 8]


# trained


def test_a_sweep_is_one_object_and_one_table(sweep: Sweep) -> None:
    arguments = ["--sizes", "32,16", "-i", "no-decay", "--seeds", "2", "--pack", "4"]
    done = sweep(*arguments, "--json")
    assert done.code == ExitCode.SUPPORTED
    assert set(done.json) == {"runs"}
    rows = done.json["runs"]
    assert told(rows, "size", "arm", "seed") == [
        (size, arm, seed) for size in (32, 16) for arm in ("baseline", "no-decay") for seed in (0, 1)
    ]
    assert {(row["status"], row["message"]) for row in rows} == {("finished", None)}
    for row in rows:
        last = read(RUNS / f"{row['run']}.csv", partial=False)
        assert row["final"] == {name: last.value(name, 2) for name in NAMES}
        # figures are what a sweep is for
        assert checkpoint.steps(RunPaths(RUNS, row["run"]).checkpoints) == []
        assert len(manifest(row["run"]).pack) == 4
    lines = done.err.splitlines()
    assert [line for line in lines if line.startswith("pack of")] == [
        line for line in lines if re.fullmatch(r"pack of 4: 8 steps, [0-9,]+ parameters on cpu each", line)
    ]
    assert sum(": finished, " in line for line in lines) == 8

    # again: nothing to train, the same answer
    again = sweep(*arguments, "--json")
    assert (again.code, again.out, again.err) == (done.code, done.out, ALL_THERE.format(8))
    table = sweep(*arguments)
    header, *cells = [line.split() for line in table.out.splitlines()]
    assert header == ["size", "arm", "seed", "status", "unique", "held-out"]
    assert cells == [
        [
            str(row["size"]),
            row["arm"],
            str(row["seed"]),
            "finished",
            format(row["final"]["UniquePredictions"], ".0f"),
            format(row["final"]["HeldOutLoss"], ".3f"),
        ]
        for row in rows
    ]


@pytest.mark.parametrize("keep", [True, False])
def test_weights_are_kept_on_demand(sweep: Sweep, keep: bool) -> None:
    (row,) = sweep("--json", *(["--keep-weights"] if keep else [])).json["runs"]
    assert checkpoint.steps(RunPaths(RUNS, row["run"]).checkpoints) == ([8] if keep else [])


def test_runs_of_a_worker_come_from_a_file(sweep: Sweep, tiny_config: Callable[..., RunConfig]) -> None:
    configs = [tiny_config(steps=8, seed=seed, model__num_layers=1) for seed in (5, 6)]
    work = {"workers": 1, "configs": [config.model_dump(mode="json") for config in configs]}
    Path("runs.json").write_text(json.dumps(work), encoding="utf-8")
    done = call("sweep", "--configs", "runs.json", "--device", "cpu", "--pack", "2", "--json")
    assert done.code == ExitCode.SUPPORTED
    assert told(done.json["runs"], "run") == [(config.run_name,) for config in configs]
    assert manifest(configs[0].run_name).config_hash == configs[0].hash


def test_a_worker_leaves_runs_to_the_others(sweep: Sweep, tiny_config: Callable[..., RunConfig]) -> None:
    configs = [tiny_config(steps=8, seed=seed, model__num_layers=1) for seed in range(3)]
    work = {"workers": 2, "configs": [config.model_dump(mode="json") for config in configs]}
    Path("runs.json").write_text(json.dumps(work), encoding="utf-8")
    done = call("sweep", "--configs", "runs.json", "--device", "cpu")
    assert done.code == ExitCode.SUPPORTED
    names = [config.run_name for config in configs]
    assert [manifest(name).pack for name in names] == [names[:2], names[:2], names[2:]]


@pytest.mark.parametrize(
    "work", [[], {"workers": 0, "configs": []}, {"workers": "2", "configs": []}, {"workers": 1, "configs": {}}]
)
def test_what_is_no_work_is_refused(work: object) -> None:
    Path("runs.json").write_text(json.dumps(work), encoding="utf-8")
    done = call("sweep", "--configs", "runs.json", "--device", "cpu")
    assert (done.code, done.err) == (ExitCode.USAGE, "error: --configs runs.json: not the work of a worker\n")


def test_compiled_kernels_are_kept_beside_the_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    call("--version")
    assert {name: os.environ[name] for name in CACHES} == {
        name: str(data.cache_folder() / folder) for name, folder in CACHES.items()
    }
    # unless someone chose another place
    for name in CACHES:
        monkeypatch.setenv(name, "elsewhere")
    call("--version")
    assert [os.environ[name] for name in CACHES] == ["elsewhere"] * 2


# how it ended


def test_a_run_that_diverged_refutes(sweep: Sweep) -> None:
    arguments = ["-i", DIVERGES, "--json"]
    done = sweep(*arguments)
    assert done.code == ExitCode.REFUTED
    assert told(done.json["runs"], "status") == [("finished",), ("diverged",)]
    bad = done.json["runs"][1]
    assert bad["message"] == "the gradient of model.embed_tokens.weight not finite at step 2"
    assert bad["final"]["Step"] == 2
    assert bad["final"]["UniquePredictions"] == "nan"
    assert f"{bad['run']}: diverged at step 2" in done.err
    again = sweep(*arguments)
    assert (again.code, again.out, again.err) == (done.code, done.out, ALL_THERE.format(2))
    assert re.search(r"reduced-lr:factor=1e\+?30 +0 +diverged +nan +–", sweep(*arguments[:-1]).out)


@pytest.mark.usefixtures("failing")
def test_a_run_that_failed_is_an_error_and_the_rest_go_on(sweep: Sweep) -> None:
    arguments = ["-i", "fails", "-i", DIVERGES, "-i", "no-decay", "--json"]
    done = sweep(*arguments)
    assert done.code == ExitCode.INTERNAL
    assert told(done.json["runs"], "status") == [("finished",), ("failed",), ("diverged",), ("finished",)]
    bad = done.json["runs"][1]
    assert (bad["message"], bad["final"]) == ("RuntimeError: two lines [bold]", None)
    assert f"{bad['run']}: failed: RuntimeError: two lines [bold]\n" in done.err
    assert "a pack of 4 failed (RuntimeError: two lines [bold]); its runs continue one by one\n" in done.err
    # tried again, and nothing else
    again = sweep(*arguments)
    assert (again.code, again.out) == (done.code, done.out)
    assert [line for line in again.err.splitlines() if "parameters on cpu" in line] == [
        f"{bad['run']}: 8 steps, 12,288 parameters on cpu, resumed after step 4"
    ]


def test_a_run_that_fails_before_it_begins_is_told_by_name(sweep: Sweep) -> None:
    names = [run["run"] for run in sweep("--seeds", "2", "--json").json["runs"]]
    for path in (*RUNS.glob("*/run.json"), *RUNS.glob("*.csv")):
        path.unlink()
    theirs = RUNS / f"{names[0]}.csv"
    theirs.write_text("not ours\n", encoding="utf-8")
    done = sweep("--seeds", "2", "--pack", "1", "--json")
    assert "internal error" not in done.err
    assert done.code == ExitCode.INTERNAL
    assert told(done.json["runs"], "run", "status") == [(names[0], "failed"), (names[1], "finished")]
    failures = [line for line in done.err.splitlines() if ": failed: " in line]
    assert len(failures) == 1
    assert failures[0].startswith(f"{names[0]}: failed: RecordError: ")
    assert theirs.read_text(encoding="utf-8") == "not ours\n"


@pytest.mark.parametrize("damage", ["manifest", "csv"])
def test_a_damaged_run_is_told_and_the_rest_go_on(sweep: Sweep, damage: str) -> None:
    assert sweep("--seeds", "2").code == ExitCode.SUPPORTED
    bad = min(path.stem for path in RUNS.glob("*.csv"))
    path = RUNS / bad / "run.json" if damage == "manifest" else RUNS / f"{bad}.csv"
    path.write_bytes(path.read_bytes()[:-40])
    kept = path.read_bytes()
    for more, trained in (("4", 2), ("4", 0)):
        done = sweep("--seeds", more, "--pack", "1", "--json")
        assert done.code == ExitCode.INTERNAL
        assert f"{bad}: failed: {path}: " in done.err
        assert done.err.count(": finished, ") == trained
        rows = {row["run"]: row for row in done.json["runs"]}
        assert [row["status"] for name, row in rows.items() if name != bad] == ["finished"] * 3
        assert (rows[bad]["status"], rows[bad]["final"]) == ("damaged", None)
        assert str(path) in rows[bad]["message"]
    assert path.read_bytes() == kept


def test_a_failure_is_never_told_of_another_run(sweep: Sweep) -> None:
    names = [run["run"] for run in sweep("--seeds", "2", "--json").json["runs"]]
    for path in (*RUNS.glob("*/run.json"), *RUNS.glob("*.csv")):
        path.unlink()
    (RUNS / f"{names[1]}.csv").write_text("not ours\n", encoding="utf-8")
    done = sweep("--seeds", "2", "--pack", "1")
    assert f"{names[0]}: finished, " in done.err
    assert f"{names[1]}: failed: " in done.err
    assert f"{names[0]}: failed: " not in done.err


@pytest.mark.parametrize("at", [1, 4])
def test_a_stop_saves_and_the_same_command_goes_on(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch, figures: Callable[[Path], list[bytes]], at: int
) -> None:
    event = PlainReporter.event

    def stop(reporter: PlainReporter, happened: Event) -> None:
        event(reporter, happened)
        if isinstance(happened, Evaluated) and happened.row["Step"] == at:
            signal.raise_signal(signal.SIGTERM)

    handler = signal.getsignal(signal.SIGTERM)
    arguments = ["--seeds", "4", "--pack", "2", "--json"]
    with monkeypatch.context() as patch:
        patch.setattr(PlainReporter, "event", stop)
        done = sweep(*arguments)
    assert signal.getsignal(signal.SIGTERM) is handler
    assert done.code == ExitCode.STOPPED
    rows = done.json["runs"]
    assert told(rows, "status", "final") == [("stopped", None)] * 2 + [("missing", None)] * 2
    assert [manifest(row["run"]).steps_done for row in rows[:2]] == [at + 1] * 2
    assert done.err.endswith("the same command goes on from there\n")
    rest = sweep(*arguments)
    assert rest.code == ExitCode.SUPPORTED
    assert f"resumed after step {at + 1}" in rest.err
    assert sweep(*arguments, "--runs-dir", "undisturbed").code == ExitCode.SUPPORTED
    for row in rows:
        csv = f"{row['run']}.csv"
        assert figures(RUNS / csv) == figures(Path("undisturbed") / csv)


def test_a_full_disk_is_one_line(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> NoReturn:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "_write_files", refuse)
    done = sweep("--seeds", "2", "--pack", "1")
    assert (done.code, done.out) == (ExitCode.USAGE, "")
    last = done.err.splitlines()[-1]
    assert last.startswith("error: ")
    assert last.endswith("No space left on device")
    # nothing goes on after it
    assert len(list(RUNS.glob("*.csv"))) == 1


@pytest.mark.parametrize(
    ("program", "code", "said"),
    [
        ("import os; os.kill(os.getpid(), 9)", ExitCode.INTERNAL, "ended with exit code -9"),
        ("import sys; print('error: no GPU'); sys.exit(2)", ExitCode.USAGE, "error: no worker could start"),
        ("import sys; print('error: a bug'); sys.exit(3)", ExitCode.INTERNAL, "ended with exit code 3: error: a bug"),
    ],
)
def test_workers_that_trained_nothing_are_no_success(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch, program: str, code: ExitCode, said: str
) -> None:
    def start(runs: Path, device: str, arguments: list[str], log: Path) -> subprocess.Popen[bytes]:
        with log.open("wb") as file:
            return subprocess.Popen([sys.executable, "-S", "-c", program], stdout=file, stderr=file)

    monkeypatch.setattr(local, "_start", start)
    monkeypatch.setattr(local, "_POLL_SECONDS", 0.01)
    done = sweep("--device", "cpu,cpu")
    assert said in done.err
    assert done.code == code


# verify


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
    assert (done.code, done.out, done.err.count("\n")) == (ExitCode.USAGE, "", 1)
    assert done.err.startswith("error: ")
    assert fragment in done.err
    assert not RUNS.exists()


# the view of many runs


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A known terminal, and a clock that stands still unless it is moved."""
    for name in ("TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    clock = SimpleNamespace(now=100.0)
    for module in (monitor_console, live):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def view(height: int = 24) -> tuple[Console, Callable[[LiveReporter], list[str]]]:
    """A terminal of 80 columns, and what a reporter would draw there now."""
    file = io.StringIO()
    console = Console(file=file, width=80, height=height, force_terminal=True, color_system="standard")

    def draw(reporter: LiveReporter) -> list[str]:
        with console.capture() as capture:
            console.print(reporter._render())
        return [line.rstrip() for line in CONTROL.sub("", capture.get()).splitlines()]

    return console, draw


def plan_of(seeds: int, *arms: str) -> list[RunConfig]:
    return [
        build_config("origin", seed=seed, steps=20_000, interventions=parse_arm(arm))
        for arm in (arms or ("",))
        for seed in range(seeds)
    ]


ARMS = (
    "",
    "reduced-lr:peak=5e-4+wd-schedule:stage2=0.05",
    "label-smoothing",
    "no-decay+lr-drop",
    "fp-first",
    "init-scale",
)


def begin(configs: list[RunConfig], start_step: int = 0) -> Started:
    names = [config.run_name for config in configs]
    return Started(names=names, configs=configs, start_step=start_step, num_parameters=123_456, device="cpu")


def row(step: int, unique: float = 8192) -> Row:
    return {"Step": step, "Loss": 10.8, "UniquePredictions": unique, "LR": 1.5e-3, "WD": 0.1, "HeldOutLoss": 6.25}


def leave(config: RunConfig, runs_dir: Path, status: Status, steps_done: int) -> None:
    now = utc_now()
    write_manifest(
        runs_dir / config.run_name,
        Manifest(
            run=config.run_name,
            status=status,
            config={},
            config_hash=config.hash,
            created_at=now,
            updated_at=now,
            steps_done=steps_done,
        ),
    )


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("height", [24, 30, 60, 10])
def test_a_view_of_48_runs_fits_the_terminal(height: int) -> None:
    configs = plan_of(8, *ARMS)
    assert len(configs) == 48
    console, draw = view(height)
    reporter = LiveReporter(console, configs)
    pack = configs[8:24]
    events: list[Event] = [begin(pack)]
    events += [Evaluated(run=run, row=row(19_000 + run)) for run in range(16)]
    events += [Evaluated(run=3, row=row(19_500, math.nan)), Diverged(run=3, step=19_500)]
    events.append(Progress(step=19_999, losses=[1234.5678] * 16, memory_bytes=139 * 2**30))
    for event in events:
        reporter.event(event)
    lines = draw(reporter)
    assert max(map(len, lines)) <= 80
    # one line less than the terminal, since its last one holds the cursor
    assert len(lines) == min(height - 1, 3 + 48)
    assert "19,999/20,000 · stage 2" in lines[0]
    assert lines[1] == "48 runs: 15 training, 1 diverged, 32 waiting"
    assert lines[2].split() == ["run", "step", "loss", "unique", "history", "state"]
    shown = [line.split()[-1] for line in lines[3:]]
    if height < 51:
        assert lines[-1] == f"… and {48 - (height - 5)} more"
        shown.pop()
    # those in training come first
    assert shown == (["training"] * 15 + ["diverged"] + ["waiting"] * 32)[: height - 5]


def states(lines: list[str]) -> dict[str, str]:
    """State of the runs shown by their seed."""
    header = next(index for index, line in enumerate(lines) if line.startswith("run "))
    return {line.split()[1]: line.split()[-1] for line in lines[header + 1 :]}


def test_a_view_counts_runs_trained_elsewhere(clock: SimpleNamespace, tmp_path: Path) -> None:
    configs = plan_of(8)
    leave(configs[4], tmp_path, "running", 1234)
    leave(configs[5], tmp_path, "finished", 20_000)
    leave(configs[6], tmp_path, "diverged", 77)
    console, draw = view()
    reporter = LiveReporter(console, configs, tmp_path)
    reporter.event(begin(configs[:2]))
    lines = draw(reporter)
    assert "8 runs: 2 training, 1 diverged, 1 elsewhere, 1 finished, 3 waiting" in lines
    assert states(lines)["s4"] == "elsewhere"
    assert next(line for line in lines if line.startswith("h256 s4")).split()[3:4] == ["1,234"]

    # a moment later: our pack is done, another one began, theirs ended and another of theirs began
    reporter.event(Finished(step=20_000))
    reporter.event(begin(configs[2:4]))
    leave(configs[4], tmp_path, "finished", 20_000)
    leave(configs[7], tmp_path, "running", 1)
    clock.now += 1.0
    assert "8 runs: 2 training, 1 diverged, 1 elsewhere, 3 finished, 1 waiting" in draw(reporter)
    clock.now += 1.5
    assert "8 runs: 2 training, 1 diverged, 1 elsewhere, 4 finished" in draw(reporter)
    # what this process trains it knows itself
    leave(configs[2], tmp_path, "running", 3)
    clock.now += 3.0
    assert states(draw(reporter))["s2"] == "training"
    # a manifest that is being damaged meanwhile ends no sweep
    (tmp_path / configs[7].run_name / "run.json").write_text("{", encoding="utf-8")
    clock.now += 3.0
    assert states(draw(reporter))["s7"] == "elsewhere"


@pytest.mark.usefixtures("clock")
def test_runs_of_a_pack_that_broke_up_wait_again() -> None:
    configs = plan_of(4)
    console, draw = view()
    reporter = LiveReporter(console, configs)
    reporter.event(begin(configs[:3]))
    reporter.event(Evaluated(run=1, row=row(500)))
    reporter.event(Saved(step=500))
    # one of them raised: they go on one by one
    reporter.event(begin(configs[:1], 500))
    assert "4 runs: 1 training, 3 waiting" in draw(reporter)
    reporter.event(Finished(step=20_000))
    assert "4 runs: 1 finished, 3 waiting" in draw(reporter)


@pytest.mark.usefixtures("failing")
def test_the_live_view_follows_a_whole_sweep(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    console, draw = view()
    reporters: list[LiveReporter] = []

    @contextlib.contextmanager
    def make(ignored: Console, configs: list[RunConfig], runs_dir: Path) -> Iterator[LiveReporter]:
        with LiveReporter(console, configs, runs_dir) as reporter:
            reporters.append(reporter)
            yield reporter

    monkeypatch.setattr(monitor_console, "make_reporter", make)
    done = sweep("-i", "fails", "-i", DIVERGES, "-i", "no-decay", "--pack", "4", "--json")
    assert done.code == ExitCode.INTERNAL
    (reporter,) = reporters
    assert draw(reporter)[0] == "4 runs: 1 failed, 1 diverged, 2 finished"
