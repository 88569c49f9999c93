"""`bitnetctl sweep`: grids and plans, `--dry-run`, the table and the object that it prints."""

import itertools
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from calling import KERNEL_CACHES, Done, call
from run_files import manifest
from sweeping import pick

from bitnetctl import checkpoint, data
from bitnetctl.config import RunConfig
from bitnetctl.engine.cost import bytes_per_replica
from bitnetctl.errors import ExitCode
from bitnetctl.records import NAMES, PlannedRuns, RunPaths, read
from bitnetctl.sweeps import packing

RUNS = Path("runs")
Sweep = Callable[..., Done]
ALL_THERE = "all {} runs are there already, nothing to train\n"
pytestmark = pytest.mark.usefixtures("wide_terminal", "known_speed")


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
    "missing plan file": (["--plan", "none.toml"], "plan file none.toml: cannot read: No such file"),
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
    "no steps": (["--steps", "0"], "'--steps': Input should be greater than or equal to 1"),
    "no evaluations": (["--eval-every", "0"], "--eval-every': Input should be greater than or equal to 1"),
    "no checkpoints": (["--checkpoint-every", "0"], "--checkpoint-every"),
    "unknown field": (["--set", "model.hiden_size=3"], "did you mean 'model.hidden_size'?"),
    "missing text": (["--set", "data.source=file:none.txt"], "none.txt"),
    "unknown device": (["--device", "tpu"], "device 'tpu' is unknown"),
    "unknown device in a list": (["--device", "cpu,tpu"], "device 'tpu' is unknown"),
    "missing runs of a worker": (["--configs", "none.json"], "--configs none.json"),
    "steps twice": (["--grid", "steps=8,16"], "sweep: grid: steps: no effect beside steps (--steps); take one of them"),
    "sizes twice": (["--grid", "model.hidden_size=16,32"], "no effect beside sizes (--sizes); take --sizes"),
    "evaluations twice": (
        ["--eval-every", "2"],
        "--set 'probe.eval_every_steps=4': no effect beside --eval-every 2; take one of them",
    ),
    "steps set twice": (["--set", "steps=16"], "overrides: steps=16: no effect beside steps (--steps); take --steps"),
    "seed set": (["--set", "seed=3"], "overrides: seed=3: no effect beside seeds (--seeds); take --seeds"),
    "too many runs": (["--seeds", "60000", "--sizes", "16,32"], "the plan has more than 100,000 runs"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_creates_nothing(sweep_command: Sweep, mistake: str) -> None:
    extra, fragment = MISTAKES[mistake]
    done = sweep_command(*extra)
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


def test_eval_every_beside_a_grid_of_it_is_named() -> None:
    Path("plan.toml").write_text('recipe = "quick"\n[grid.probe]\neval_every_steps = [10, 5]\n', encoding="utf-8")
    message = "error: --eval-every 5: no effect beside {} probe.eval_every_steps; take one of them\n"
    done = call("sweep", "--recipe", "quick", "--eval-every", "5", "--grid", "probe.eval_every_steps=10,5", "--dry-run")
    assert (done.code, done.err) == (ExitCode.USAGE, message.format("--grid"))
    done = call("sweep", "--plan", "plan.toml", "--eval-every", "5", "--dry-run")
    assert (done.code, done.err) == (ExitCode.USAGE, message.format("the grid of plan plan.toml:"))
    # an override is named as one
    sets = ["--set", "probe.eval_every_steps=5"]
    done = call("sweep", "--plan", "plan.toml", *sets, "--dry-run")
    assert done.err.startswith(
        "error: plan plan.toml: overrides: probe.eval_every_steps=5: no effect beside the values"
    )


# what would be done


def test_a_dry_run_shows_runs_packs_memory_and_time(
    sweep_command: Sweep, tiny_config: Callable[..., RunConfig]
) -> None:
    arguments = ["--dry-run", "--sizes", "16,32", "-i", "no-decay", "--seeds", "3", "--pack", "4"]
    done = sweep_command(*arguments)
    assert (done.code, done.err) == (ExitCode.SUPPORTED, "")
    header, *lines, last = done.out.splitlines()
    assert header.split() == ["size", "steps", "runs", "packs", "in", "a", "pack", "memory", "time", "arms"]
    assert [line.split()[:5] for line in lines] == [["16", "8", "6", "2", "4"], ["32", "8", "6", "2", "4"]]
    assert all(line.rstrip().endswith("baseline, no-decay") for line in lines)
    assert last.startswith("12 runs, 0 there already; about ")
    assert " on cpu, " in last
    assert last.endswith(" GiB free")

    data = sweep_command(*arguments, "--json").json
    assert set(data) == {"shapes", "done", "seconds"}
    assert pick(data["shapes"], "size", "steps", "runs", "packs", "runs_in_a_pack", "arms") == [
        (16, 8, 6, 2, 4, ["baseline", "no-decay"]),
        (32, 8, 6, 2, 4, ["baseline", "no-decay"]),
    ]
    config = tiny_config(steps=8, model__num_layers=1, model__hidden_size=32)
    assert data["shapes"][1]["memory_bytes"] == 4 * bytes_per_replica(config, 300)
    assert data["seconds"] == pytest.approx(sum(shape["seconds"] for shape in data["shapes"]), abs=0.2)
    assert data["seconds"] > 0
    assert data["done"] == 0
    assert not RUNS.exists()


def test_a_dry_run_of_two_devices_takes_half_the_time(sweep_command: Sweep) -> None:
    # long enough for values that are rounded to tenths of a second
    arguments = ["--dry-run", "--json", "--pack", "1", "--seeds", "4", "--steps", "20000"]
    one, two = sweep_command(*arguments).json, sweep_command(*arguments, "--device", "cpu,cpu").json
    assert two["seconds"] == pytest.approx(one["seconds"] / 2, abs=0.1)
    assert one["seconds"] > 10
    assert two["shapes"] == one["shapes"]


@pytest.mark.parametrize(
    ("device", "pack", "packs", "together"),
    [("cpu", "auto", 1, 5), ("cpu,cpu", "auto", 2, 3), ("cpu,cpu,cpu", "auto", 3, 2), ("cpu,cpu", "5", 1, 5)],
)
def test_a_dry_run_divides_the_runs_between_devices(
    sweep_command: Sweep, monkeypatch: pytest.MonkeyPatch, device: str, pack: str, packs: int, together: int
) -> None:
    monkeypatch.setattr(packing, "memory_available", lambda device: 2**60)
    (shape,) = sweep_command("--dry-run", "--json", "--seeds", "5", "--device", device, "--pack", pack).json["shapes"]
    assert (shape["packs"], shape["runs_in_a_pack"]) == (packs, together)


@pytest.mark.parametrize(("free", "pack", "is_said"), [(0, "auto", True), (2**60, "auto", False), (0, "1", False)])
def test_a_dry_run_says_that_memory_allows_one_run_only(
    sweep_command: Sweep, monkeypatch: pytest.MonkeyPatch, free: int, pack: str, is_said: bool
) -> None:
    monkeypatch.setattr(packing, "memory_available", lambda device: free)
    done = sweep_command("--dry-run", "--seeds", "3", "--pack", pack)
    assert (done.out.splitlines()[-1] == "free memory is enough for one run at a time only") is is_said


@pytest.mark.parametrize(("free", "packs", "together"), [(0, 5, 1), (4.5, 3, 2), (1e6, 1, 5)])
def test_a_dry_run_makes_packs_that_fit_the_memory(
    sweep_command: Sweep,
    tiny_config: Callable[..., RunConfig],
    monkeypatch: pytest.MonkeyPatch,
    free: float,
    packs: int,
    together: int,
) -> None:
    one = bytes_per_replica(tiny_config(steps=8, model__num_layers=1, model__hidden_size=16), 300)
    monkeypatch.setattr(packing, "memory_available", lambda device: int(free * one))
    (shape,) = sweep_command("--dry-run", "--json", "--seeds", "5").json["shapes"]
    assert (shape["packs"], shape["runs_in_a_pack"]) == (packs, together)


def test_a_long_warm_up_is_noted_once(sweep_command: Sweep) -> None:
    arguments = ["--seeds", "2", "--set", "schedule.warmup_steps=5"]
    [note] = sweep_command(*arguments, "--dry-run").err.splitlines()
    rest = r"and 1 more warm up for 5 of 8 steps; lower schedule\.warmup_steps"
    assert re.fullmatch(rf"note: h16-8-baseline-s0-\w+ {rest}", note)
    assert [line for line in sweep_command(*arguments).err.splitlines() if "warm" in line] == [note]
    assert sweep_command(*arguments).err == ALL_THERE.format(2)


def test_a_dry_run_counts_finished_runs(sweep_command: Sweep) -> None:
    assert sweep_command("--seeds", "2").code == ExitCode.SUPPORTED
    before = sorted(RUNS.rglob("*"))
    data = sweep_command("--dry-run", "--json", "--seeds", "5").json
    assert (data["done"], pick(data["shapes"], "runs")) == (2, [(3,)])
    done = sweep_command("--dry-run", "--seeds", "2")
    assert "2 runs, 2 there already; about 0 s" in done.out
    assert sorted(RUNS.rglob("*")) == before


# grids and plans


def arms_and_seeds(done: Done) -> list[tuple[Any, ...]]:
    return pick(done.json["runs"], "arm", "seed")


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
def test_a_grid(sweep_command: Sweep, arguments: list[str], runs: int, arms: list[str]) -> None:
    assert planned(sweep_command("--dry-run", "--json", *arguments)) == (runs, arms)


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


def test_a_sweep_is_one_object_and_one_table(sweep_command: Sweep) -> None:
    arguments = ["--sizes", "32,16", "-i", "no-decay", "--seeds", "2", "--pack", "4"]
    done = sweep_command(*arguments, "--json")
    assert done.code == ExitCode.SUPPORTED
    assert set(done.json) == {"runs"}
    rows = done.json["runs"]
    assert pick(rows, "size", "arm", "seed") == [
        (size, arm, seed) for size in (32, 16) for arm in ("baseline", "no-decay") for seed in (0, 1)
    ]
    assert {(row["status"], row["message"]) for row in rows} == {("finished", None)}
    for row in rows:
        last = read(RUNS / f"{row['run']}.csv", partial=False)
        assert row["final"] == {name: last.value(name, 2) for name in NAMES}
        # weights are not kept by default
        assert checkpoint.steps(RunPaths(RUNS, row["run"]).checkpoints) == []
        assert len(manifest(row["run"]).pack) == 4
    lines = done.err.splitlines()
    assert [line for line in lines if line.startswith("pack of")] == [
        line for line in lines if re.fullmatch(r"pack of 4: 8 steps, [0-9,]+ parameters on cpu each", line)
    ]
    assert sum(": finished, " in line for line in lines) == 8

    # again: nothing to train, the same answer
    again = sweep_command(*arguments, "--json")
    assert (again.code, again.out, again.err) == (done.code, done.out, ALL_THERE.format(8))
    table = sweep_command(*arguments)
    header, *cells = [line.split() for line in table.out.splitlines()]
    assert header == ["arm", "size", "seed", "status", "unique", "held-out"]
    assert cells == [
        [
            row["arm"],
            str(row["size"]),
            str(row["seed"]),
            "finished",
            format(row["final"]["UniquePredictions"], ".0f"),
            format(row["final"]["HeldOutLoss"], ".3f"),
        ]
        for row in rows
    ]


@pytest.mark.parametrize("keep", [True, False])
def test_weights_are_kept_with_keep_weights(sweep_command: Sweep, keep: bool) -> None:
    (row,) = sweep_command("--json", *(["--keep-weights"] if keep else [])).json["runs"]
    assert checkpoint.steps(RunPaths(RUNS, row["run"]).checkpoints) == ([8] if keep else [])


def write_work(workers: int, configs: list[RunConfig], *, seeds: list[int]) -> None:
    """Write the file of a worker, `runs.json`."""
    part = {
        "planned": {"seeds": seeds, "arms": ["baseline"]},
        "configs": [config.model_dump(mode="json") for config in configs],
    }
    Path("runs.json").write_text(json.dumps({"workers": workers, "parts": [part]}), encoding="utf-8")


def test_runs_of_a_worker_come_from_a_file(sweep_command: Sweep, tiny_config: Callable[..., RunConfig]) -> None:
    configs = [tiny_config(steps=8, seed=seed, model__num_layers=1) for seed in (5, 6)]
    write_work(1, configs, seeds=[5, 6, 7])
    done = call("sweep", "--configs", "runs.json", "--device", "cpu", "--pack", "2", "--json")
    assert done.code == ExitCode.SUPPORTED
    assert pick(done.json["runs"], "run") == [(config.run_name,) for config in configs]
    assert manifest(configs[0].run_name).config_hash == configs[0].hash
    # what the whole command plans, the runs of other workers and those that have ended included
    assert manifest(configs[1].run_name).planned == PlannedRuns(seeds=[5, 6, 7], arms=["baseline"])


def test_a_worker_leaves_runs_to_the_others(sweep_command: Sweep, tiny_config: Callable[..., RunConfig]) -> None:
    configs = [tiny_config(steps=8, seed=seed, model__num_layers=1) for seed in range(3)]
    write_work(2, configs, seeds=[0, 1, 2])
    done = call("sweep", "--configs", "runs.json", "--device", "cpu")
    assert done.code == ExitCode.SUPPORTED
    names = [config.run_name for config in configs]
    assert [manifest(name).pack for name in names] == [names[:2], names[:2], names[2:]]


@pytest.mark.parametrize(
    "work",
    [
        [],
        {"workers": 0, "parts": []},
        {"workers": "2", "parts": []},
        {"workers": 1, "parts": {}},
        {"workers": 1, "parts": [{"configs": []}]},
        {"workers": 1, "parts": [{"planned": {"seeds": 3}, "configs": []}]},
    ],
)
def test_a_malformed_work_file_is_refused(work: object) -> None:
    Path("runs.json").write_text(json.dumps(work), encoding="utf-8")
    done = call("sweep", "--configs", "runs.json", "--device", "cpu")
    assert (done.code, done.err) == (ExitCode.USAGE, "error: --configs runs.json: not the work of a worker\n")


def test_compiled_kernels_are_kept_beside_the_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    call("--version")
    assert {name: os.environ[name] for name in KERNEL_CACHES} == {
        name: str(data.cache_folder() / folder) for name, folder in KERNEL_CACHES.items()
    }
    # unless another folder was chosen
    for name in KERNEL_CACHES:
        monkeypatch.setenv(name, "elsewhere")
    call("--version")
    assert [os.environ[name] for name in KERNEL_CACHES] == ["elsewhere"] * 2
