"""`bitnetctl sweep --search`: rungs, the ranking that follows from the CSVs, and how a search ends."""

import re
import shlex
import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from calling import Done, assert_refused, call, smallest_run
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from bitnetctl.cli import searching
from bitnetctl.cli.training import train_missing
from bitnetctl.errors import ExitCode
from bitnetctl.locks import Lock
from bitnetctl.records import read
from bitnetctl.signals import StopRequest
from bitnetctl.trainer.resolved import ResolvedRun

RUNS = Path("runs")
pytestmark = pytest.mark.usefixtures("wide_terminal", "known_speed")
DIVERGES = "reduced-lr:factor=1e30"


def write(text: Path, arms: list[str], **fields: object) -> Path:
    """Write a search over arms of the smallest run, on 128 tokens in the first rung (4 steps) and 256 in the second."""
    overrides = [part for part in smallest_run(text) if "=" in part]
    tree = {"recipe": "quick", "size": 16, "min_tokens": 128, "max_tokens": 256, "trials": 4, **fields}
    lines = [f"{name} = {value!r}" for name, value in tree.items()]
    lines += [f"overrides = {overrides!r}", "[choices]", f"arm = {arms!r}"]
    file = Path("mine.toml")
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


def search(file: Path, *more: str) -> Done:
    return call("sweep", "--search", file, "--device", "cpu", *more)


def final_values(steps: int) -> dict[str, float]:
    """Return the bits per byte at the end of the runs of so many steps, by arm."""
    csvs = [path for path in RUNS.glob("*.csv") if path.name.startswith(f"h16-{steps}-")]
    return {
        path.stem.split("-", 2)[2][: -len("-s0-abcdef")]: float(read(path).frame["HeldOutBitsPerByte"].iloc[-1])
        for path in csvs
    }


def test_the_better_half_goes_on_and_the_csvs_say_which(tiny_text: Path) -> None:
    file = write(tiny_text, ["no-decay", "reduced-lr", "higher-rate"])
    done = search(file, "--json")
    assert done.code == ExitCode.SUPPORTED
    found = done.json
    assert [(rung["trials"], rung["tokens"]) for rung in found["rungs"]] == [(4, 128), (2, 256)]
    first, second = final_values(4), final_values(8)
    ranked = sorted(first, key=lambda arm: first[arm])
    assert set(ranked) == {"baseline", "no-decay", "reduced-lr", "higher-rate"}
    assert set(second) == set(ranked[:2])
    arms = [row["settings"].get("arm", "baseline") for row in found["trials"]]
    assert arms == [*sorted(second, key=lambda arm: second[arm]), *ranked[2:]]
    for row, arm in zip(found["trials"], arms, strict=True):
        assert row["values"] == [first[arm], *([second[arm]] if arm in second else [])]
    best = "as the recipe" if arms[0] == "baseline" else f"arm={arms[0]}"
    assert f", {best}\n" in done.err
    assert done.err.splitlines()[-1].startswith(
        "next: train it with seeds that the search has not seen: bitnetctl sweep"
    )
    # everything is there: nothing trains, and the ranking is the same
    again = search(file)
    assert again.code == ExitCode.SUPPORTED
    assert "all 4 runs are there already" in again.err
    lines = [line.split() for line in again.out.splitlines()[1:]]
    assert [line[:3] for line in lines] == [
        [str(row["trial"]), "256" if len(row["values"]) == 2 else "128", f"{row['values'][-1]:.4f}"]
        for row in found["trials"]
    ]


def test_a_trial_that_diverges_is_the_last_and_does_not_go_on(tiny_text: Path) -> None:
    done = search(write(tiny_text, [DIVERGES], trials=2, seeds=2), "--json")
    assert done.code == ExitCode.SUPPORTED
    assert [(row["trial"], len(row["values"])) for row in done.json["trials"]] == [(0, 2), (1, 1)]
    assert done.json["trials"][1]["values"] == [None]
    assert "not finished" in search(Path("mine.toml")).out


def test_without_a_trial_that_finishes_there_is_no_best(tiny_text: Path) -> None:
    file = write(tiny_text, [DIVERGES], trials=2)
    overrides = "--set", "schedule.peak_learning_rate=1e30"
    done = search(file, *overrides)
    assert done.code == ExitCode.REFUTED
    assert done.err.splitlines()[-1] == "error: no trial of rung 1 has finished"
    assert "best:" not in done.err


@pytest.mark.usefixtures("third_party")
def test_plug_ins_at_fault_are_wrong_usage(tiny_text: Path) -> None:
    file = write(tiny_text, ["fails:at=1"], trials=2)
    done = search(file, "--set", "schedule.peak_learning_rate=1e30")
    assert done.code == ExitCode.USAGE


@pytest.mark.usefixtures("third_party")
def test_a_run_that_another_process_tries_again_is_waited_for(tiny_text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []
    locks: list[Lock] = []

    def train(runs: Sequence[ResolvedRun], *arguments: Any, **options: Any) -> bool:
        for lock in locks:
            lock.release()
        stopped = before(runs, *arguments, **options)
        tried.append(len(runs))
        if len(tried) == 1:
            [file] = RUNS.glob("h16-4-fails-*/run.lock")
            locks.append(Lock(file))
            locks[0].acquire()
        return stopped

    before = train_missing
    monkeypatch.setattr(searching, "train_missing", train)
    done = search(write(tiny_text, ["fails:at=1"], trials=2), "--json")
    assert done.code == ExitCode.SUPPORTED
    assert tried == [2, 2, 1]
    assert [row["values"][-1] is None for row in done.json["trials"]] == [False, True]


def test_a_stop_ends_the_search_and_the_same_command_goes_on(tiny_text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tiny_text, ["no-decay"], trials=2)
    asked = []

    def stops(self: StopRequest) -> bool:
        asked.append(1)
        # in the second rung
        if len(asked) == 25:
            signal.raise_signal(signal.SIGTERM)
        return before(self)

    before = StopRequest.__call__
    with monkeypatch.context() as patched:
        patched.setattr(StopRequest, "__call__", stops)
        stopped = search(file, "--json")
    assert stopped.code == ExitCode.STOPPED
    assert [len(row["values"]) for row in stopped.json["trials"]] == [1, 1]
    done = search(file, "--json")
    assert done.code == ExitCode.SUPPORTED
    assert len(done.json["trials"]) == 2


def test_the_command_that_is_printed_trains_the_run_of_the_best_trial(tiny_text: Path) -> None:
    file = write(tiny_text, ["no-decay"], trials=2, seeds=[1, 2])
    done = call("sweep", "--search", file, "--runs-dir", "my runs", "--device", "cpu")
    assert done.code == ExitCode.SUPPORTED
    command = shlex.split(done.err.splitlines()[-1].partition("not seen: ")[2])
    assert command[-4:] == ["--seeds", "0,3,4,5,6,7", "--runs-dir", "my runs"]
    before = set(Path("my runs").iterdir())
    # with its seeds it trains nothing new
    assert call(*command[1:-4], "--runs-dir", "my runs", "--seeds", "1,2", "--device", "cpu").code == ExitCode.SUPPORTED
    assert set(Path("my runs").iterdir()) == before


def test_quiet_prints_the_result_only(tiny_text: Path) -> None:
    file = write(tiny_text, ["no-decay"], trials=2)
    assert "rung 1 of 2: 2 trials of 128 tokens" in search(file).err
    assert "rung" not in search(file, "--quiet").err


@pytest.mark.parametrize(
    ("damage", "code", "why"),
    [
        (lambda csv: csv.write_text("", encoding="utf-8"), ExitCode.USAGE, "damaged or edited since the run ended"),
        (Path.unlink, ExitCode.INTERNAL, "its checkpoints are gone"),
    ],
    ids=["emptied", "deleted"],
)
def test_a_trial_whose_files_are_damaged_is_not_the_last(
    tiny_text: Path, damage: Callable[[Path], None], code: int, why: str
) -> None:
    file = write(tiny_text, ["no-decay", "reduced-lr"], trials=3)
    assert search(file).code == ExitCode.SUPPORTED
    before = set(RUNS.glob("*.csv"))
    [csv] = RUNS.glob("h16-4-baseline-*.csv")
    damage(csv)
    done = search(file, "--json")
    assert done.code == code
    assert done.out == ""
    last = done.err.splitlines()[-1]
    assert last.startswith("error: rung 1 cannot be ranked: ")
    assert why in last
    # no other trial has gone on in its place
    assert set(RUNS.glob("*.csv")) <= before


def test_an_unknown_measure_is_named(tiny_text: Path) -> None:
    characters = {character: number for number, character in enumerate(sorted(set(tiny_text.read_text()) | {"<end>"}))}
    tokenizer = Tokenizer(models.WordLevel(characters, unk_token="<end>"))
    tokenizer.normalizer = normalizers.Replace("e", "a")
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(["<end>"])
    tokenizer.save("lossy.json")
    file = write(tiny_text, ["no-decay"], trials=2)
    lossy = "--set", "data.tokenizer=file:lossy.json"
    done = search(file, *lossy)
    assert done.code == ExitCode.USAGE
    last = done.err.splitlines()[-1]
    assert last.startswith("error: rung 1 cannot be ranked: h16-4-baseline-s0-")
    assert last.endswith(': HeldOutBitsPerByte is unknown; take measure = "HeldOutLoss"')
    assert search(write(tiny_text, ["no-decay"], trials=2, measure="HeldOutLoss"), *lossy).code == ExitCode.SUPPORTED


def test_a_dry_run_shows_the_rungs_and_their_time(tiny_text: Path) -> None:
    file = write(tiny_text, ["no-decay"], trials=2)
    done = search(file, "--dry-run")
    assert done.code == ExitCode.SUPPORTED
    first, second, empty, title = done.out.splitlines()[:4]
    assert re.fullmatch(r"rung 1: 2 trials of 128 tokens, about \d+ s", first)
    assert re.fullmatch(r"rung 2: 1 trial of 256 tokens, about \d+ s", second)
    assert (empty, title) == ("", "rung 1:")
    assert "2 runs, 0 there already" in done.out
    assert not RUNS.exists()
    assert search(file, "--dry-run", "--device", "cuda:99").out == ""


def test_a_warm_up_of_most_of_a_training_is_noted(tiny_text: Path) -> None:
    file = write(tiny_text, ["no-decay"], trials=2)
    # the warm-up of two steps is half of the four of the first rung
    assert "note: " not in search(file, "--dry-run").err
    noted = search(file, "--dry-run", "--set", "schedule.warmup_steps=3").err.splitlines()
    assert [line for line in noted if line.startswith("note: ")] == [
        "note: rung 1: trial 0 (as the recipe) and 1 more warm up for 3 of 4 steps; a share follows the steps: "
        'overrides = ["schedule.warmup_steps=2%"]'
    ]


def test_a_dry_run_follows_what_is_there(tiny_text: Path) -> None:
    file = write(tiny_text, ["no-decay"], trials=2)
    before = search(file, "--dry-run", "--json").json
    assert (before["rung"], before["done"]) == (1, 0)
    assert [(rung["trials"], rung["tokens"]) for rung in before["rungs"]] == [(2, 128), (1, 256)]
    assert before["shapes"]
    assert search(file).code == ExitCode.SUPPORTED
    assert [rung["seconds"] for rung in search(file, "--dry-run", "--json").json["rungs"]] == [0, 0]
    # the best one of the first rung, whichever it is, is to be trained again
    for csv in RUNS.glob("h16-8-*.csv"):
        csv.unlink()
        shutil.rmtree(csv.with_suffix(""))
    after = search(file, "--dry-run", "--json").json
    assert (after["rung"], after["done"], after["rungs"][0]["seconds"]) == (2, 0, 0)
    assert after["shapes"]


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (["--plan", "root-cause"], "--plan"),
        (["--sizes", "16"], "--sizes"),
        (["-i", "no-decay"], "--intervention"),
        (["--steps", "5"], "--steps"),
        (["--grid", "data.batch_size=2,4"], "--grid"),
        (["--no-baseline"], "--no-baseline"),
    ],
)
def test_what_the_file_says_is_no_option(options: list[str], name: str) -> None:
    assert_refused(f"{name} does not go with --search", "sweep", "--search", "small", *options)


def test_an_unknown_search_says_what_there_is() -> None:
    assert_refused("unknown search 'smal'; did you mean 'small'?", "sweep", "--search", "smal")
