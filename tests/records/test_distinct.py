"""The same run is recognised whatever was done to its file, and different runs are not taken for one."""

import math
import random
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from synthetic import (
    CURED,
    STAGE_1,
    bare_run,
    csv_text,
    curve,
    healthy_run,
    origin_run,
    quick,
    simple_run,
    two_stages,
    write_run,
)

from bitnetctl.config import RunConfig
from bitnetctl.records import Run, load_run
from bitnetctl.records.distinct import Double, distinct_runs

Row = dict[str, Any]
Rows = Sequence[Mapping[str, Any]]
FLOATS = ("Loss", "HeldOutLoss", "TopShare", "EffectiveVocab", "ContextInformation", "GradNorm", "LR")


def learning(seed: int, steps: int = 1000, rows: int = 21) -> list[Row]:
    """Return rows of a run as training gives them: a falling loss with the noise of its seed."""
    rng = random.Random(seed)
    at = [1, *(round(steps * row / (rows - 1)) for row in range(1, rows))]
    falling = [7.5 * math.exp(-step / steps) + 3 for step in at]
    return curve(
        at,
        Loss=[value + rng.gauss(0, 0.05) for value in falling],
        HeldOutLoss=[value + rng.gauss(0, 0.02) for value in falling],
        UniquePredictions=[rng.randint(100, 400) for _ in at],
        LR=[1.5e-3 * (1 - step / (steps + 1)) for step in at],
        WD=[0.1 if step <= steps // 2 else 0.0 for step in at],
        TopShare=[rng.random() / 10 for _ in at],
        EffectiveVocab=[rng.uniform(50, 200) for _ in at],
        ContextInformation=[rng.uniform(1, 2) for _ in at],
        GradNorm=[rng.uniform(0.5, 20) for _ in at],
        ProbePositions=4096,
        TokensPerSecond=[rng.uniform(1e4, 1e5) for _ in at],
    )


def original(folder: Path, seed: int = 0, **fields: Any) -> Run:
    return load_run(write_run(folder, quick(seed=seed), learning(seed), **fields))


def write(path: Path, rows: Rows) -> Run:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(csv_text(rows), encoding="utf-8")
    return load_run(path)


def each_cell(change: Callable[[float], float]) -> Callable[[list[Row]], list[Row]]:
    return lambda rows: [row | {name: change(row[name]) for name in FLOATS} for row in rows]


def single(value: float) -> float:
    """Round to single precision."""
    (rounded,) = struct.unpack("f", struct.pack("f", value))
    return float(rounded)


def without(*names: str) -> Callable[[list[Row]], list[Row]]:
    return lambda rows: [{name: value for name, value in row.items() if name not in names} for row in rows]


def blank(*names: str) -> Callable[[list[Row]], list[Row]]:
    return lambda rows: [row | dict.fromkeys(names) for row in rows]


SAME, ROWS, COLUMNS, DIGITS = "the same values as", "fewer rows", "fewer columns", "fewer digits"
CHANGES: dict[str, tuple[Callable[[list[Row]], list[Row]], str]] = {
    "four significant digits of a small number": (
        lambda rows: [row | {"LR": float(f"{row['LR']:.4g}")} for row in rows],
        DIGITS,
    ),
    "nothing": (lambda rows: rows, SAME),
    "another speed": (lambda rows: [row | {"TokensPerSecond": 1.0} for row in rows], SAME),
    "without the speed": (without("TokensPerSecond"), SAME),
    "four decimals": (each_cell(lambda value: round(value, 4)), DIGITS),
    "two decimals": (each_cell(lambda value: round(value, 2)), DIGITS),
    "one decimal": (each_cell(lambda value: round(value, 1)), DIGITS),
    "five significant digits": (each_cell(lambda value: float(f"{value:.5g}")), DIGITS),
    "three significant digits": (each_cell(lambda value: float(f"{value:.3g}")), DIGITS),
    "cut to three decimals": (each_cell(lambda value: math.trunc(value * 1000) / 1000), DIGITS),
    "single precision": (each_cell(single), DIGITS),
    "some columns rounded": (lambda rows: [row | {"Loss": round(row["Loss"], 3)} for row in rows], DIGITS),
    "tail cut": (lambda rows: rows[:9], ROWS),
    "head cut": (lambda rows: rows[13:], ROWS),
    "middle": (lambda rows: rows[8:12], ROWS),
    "thinned": (lambda rows: rows[::2], ROWS),
    "thinned much": (lambda rows: rows[::7], ROWS),
    "two rows": (lambda rows: rows[10:12], ROWS),
    "first row": (lambda rows: rows[:1], ROWS),
    "five columns": (without("HeldOutLoss", "TopShare", "EffectiveVocab", "ContextInformation", "GradNorm"), COLUMNS),
    "blank cells": (blank("Loss", "UniquePredictions", "WD"), COLUMNS),
    "all of it": (
        lambda rows: without("GradNorm", "TopShare")(each_cell(lambda value: round(value, 3))(rows[3::3])),
        "fewer rows, fewer columns and fewer digits",
    ),
}
NAMES: dict[str, Callable[[Path, RunConfig], Path]] = {
    "copy": lambda folder, config: folder / f"{config.run_name} (1).csv",
    "another folder": lambda folder, config: folder / "other" / f"{config.run_name}.csv",
    "another seed": lambda folder, config: folder / f"{config.run_name.replace('-s0-', '-s7-')}.csv",
    "another length": lambda folder, config: folder / f"{config.run_name.replace('-1000-', '-500-')}.csv",
    "no name": lambda folder, config: folder / "x.csv",
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("change", CHANGES)
def test_a_run_is_recognised_whatever_was_done_to_its_file(tmp_path: Path, change: str, name: str) -> None:
    changed, reason = CHANGES[change]
    first = original(tmp_path)
    others = [original(tmp_path, seed) for seed in (1, 2)]
    copy = write(NAMES[name](tmp_path, quick()), changed(learning(0)))
    for runs in ([first, *others, copy], [copy, *others, first]):
        kept, (double,) = distinct_runs(runs)
        assert kept == [run for run in runs if run is not copy]
        assert (double.run, double.same_as) == (copy, first)
        assert reason in double.reason
        assert str(first.path) in double.reason
        assert "\n" not in double.reason


@pytest.mark.parametrize(
    "rewrite",
    [
        lambda text: text.replace("\n", "\r\n"),
        lambda text: "\ufeff" + text,
        lambda text: "a title\n" + text,
        lambda text: text.replace(",", " , "),
        lambda text: text.rstrip("\n"),
        lambda text: "\n".join('"' + line.replace(",", '","') + '"' for line in text.splitlines()) + "\n",
    ],
    ids=["CRLF", "BOM", "title", "spaces", "no last newline", "quotes"],
)
def test_another_way_to_write_the_same(tmp_path: Path, rewrite: Callable[[str], str]) -> None:
    first = original(tmp_path)
    path = tmp_path / "x.csv"
    path.write_bytes(rewrite(first.path.read_text(encoding="utf-8")).encode())
    copy = load_run(path)
    assert distinct_runs([copy, first]) == (
        [first],
        [Double(run=copy, same_as=first, reason=f"the same values as {first.path}")],
    )


def test_which_copy_is_kept(tmp_path: Path) -> None:
    rows = learning(0)
    rounded = write(tmp_path / "rounded.csv", each_cell(lambda value: round(value, 3))(rows))
    cut = write(tmp_path / "cut.csv", rows[:15])
    bare, again = write(tmp_path / "bare.csv", rows), write(tmp_path / "again.csv", rows)
    whole = original(tmp_path)

    def kept(*runs: Run) -> Run:
        (one,), doubles = distinct_runs(runs)
        assert [double.run for double in doubles] == [run for run in runs if run is not one]
        return one

    # most rows, then most digits, then with a manifest, then the first
    assert kept(cut, rounded) is rounded
    assert kept(rounded, bare, cut) is bare
    assert kept(bare, whole, rounded) is whole
    assert kept(again, bare) is again


def test_two_cut_copies_are_one_run(tmp_path: Path) -> None:
    rows = learning(0)
    tail, head = write(tmp_path / "a.csv", rows[:14]), write(tmp_path / "b.csv", rows[10:])
    assert [double.run for double in distinct_runs([head, tail])[1]] == [head]
    # nothing tells that these are parts of one run
    apart = write(tmp_path / "c.csv", rows[14:])
    assert distinct_runs([tail, apart])[1] == []


def test_the_same_run_given_twice(tmp_path: Path) -> None:
    run = original(tmp_path)
    kept, (double,) = distinct_runs([run, run])
    assert (kept, double.reason) == ([run], f"the same values as {run.path}")


def test_order_is_kept_and_nothing_is_needed(tmp_path: Path) -> None:
    runs = [original(tmp_path, seed) for seed in (3, 1, 2)]
    assert distinct_runs(runs) == (runs, [])
    assert distinct_runs([]) == ([], [])


# equal values


def test_equal_values_under_another_seed_are_a_copy(tmp_path: Path) -> None:
    runs = [simple_run(tmp_path, quick(seed=seed)) for seed in range(3)]
    for other in runs[1:]:
        other.write_bytes(runs[0].read_bytes())
    kept, doubles = distinct_runs([load_run(csv) for csv in runs])
    assert ([run.seed for run in kept], [double.run.seed for double in doubles]) == ([0], [1, 2])
    assert {double.reason for double in doubles} == {f"the same values as {runs[0]}"}


def test_equal_values_of_other_sizes_or_arms_are_results_of_their_own(tmp_path: Path) -> None:
    configs = [quick(), quick(size=128), quick("no-decay"), quick("reduced-lr"), quick("reduced-lr:peak=1e-4")]
    runs = [load_run(simple_run(tmp_path, config)) for config in configs]
    assert distinct_runs(runs) == (runs, [])
    bare = [bare_run(tmp_path, arm=arm) for arm in ("baseline", "no-decay")]
    assert distinct_runs(bare) == (bare, [])


def test_an_arm_without_settings_may_be_the_one_with_settings(tmp_path: Path) -> None:
    whole = load_run(simple_run(tmp_path, quick("reduced-lr:peak=1e-4")))
    copy = tmp_path / "h64-1000-reduced-lr-s9-abcdef.csv"
    copy.write_bytes(whole.path.read_bytes())
    assert [double.run.path for double in distinct_runs([load_run(copy), whole])[1]] == [copy]


# different runs


def test_seeds_that_agree_when_rounded_are_different_by_their_manifests(tmp_path: Path) -> None:
    rows = learning(0)
    rounded = each_cell(lambda value: round(value, 2))(rows)
    runs = [load_run(write_run(tmp_path, quick(seed=seed), of)) for seed, of in ((0, rows), (1, rounded))]
    assert distinct_runs(runs) == (runs, [])
    shorter = load_run(write_run(tmp_path, quick(seed=2), rows[:15]))
    assert distinct_runs([runs[0], shorter])[1] == []


def test_one_config_trained_twice_agrees_up_to_its_digits(tmp_path: Path) -> None:
    rows = learning(0)
    first = load_run(write_run(tmp_path / "a", quick(), rows))
    stopped = load_run(write_run(tmp_path / "b", quick(), rows[:11], status="stopped"))
    assert [double.run for double in distinct_runs([stopped, first])[1]] == [stopped]
    # in another precision it is another run of the seed
    other = [row | {"Loss": row["Loss"] * 1.001} for row in rows]
    again = load_run(write_run(tmp_path / "c", quick(), other))
    assert distinct_runs([first, again])[1] == []


def test_too_few_rows_in_common(tmp_path: Path) -> None:
    rows = learning(0)
    whole = original(tmp_path)
    # two exact rows of the run, and one of its own
    stranger = [*rows[:2], learning(5, steps=990)[2]]
    assert distinct_runs([whole, write(tmp_path / "x.csv", stranger)])[1] == []
    two_rounded = each_cell(lambda value: round(value, 3))(rows[:2])
    assert distinct_runs([whole, write(tmp_path / "y.csv", two_rounded)])[1] == []
    shifted = [row | {"Step": row["Step"] + 1} for row in rows]
    assert distinct_runs([whole, write(tmp_path / "z.csv", shifted)])[1] == []


@pytest.mark.parametrize("column", ["Loss", "HeldOutLoss", "UniquePredictions", "TopShare", "GradNorm", "LR"])
def test_one_other_value_makes_another_run(tmp_path: Path, column: str) -> None:
    whole = original(tmp_path)
    rows = learning(0)
    rows[13][column] = rows[13][column] + (1 if column == "UniquePredictions" else 0.02)
    assert distinct_runs([whole, write(tmp_path / "x.csv", rows)])[1] == []
    rounded = each_cell(lambda value: round(value, 3))(rows)
    assert distinct_runs([whole, write(tmp_path / "y.csv", rounded)])[1] == []


def test_seeds_of_a_healthy_arm_are_different(tmp_path: Path) -> None:
    runs = [healthy_run(tmp_path, seed) for seed in range(12)]
    assert distinct_runs(runs) == (runs, [])


def test_a_prefix_of_few_digits_is_no_copy_of_another_seed(tmp_path: Path) -> None:
    # equal up to the step at which one was stopped, but for the seed in the name
    run = bare_run(tmp_path, CURED, seed=0)
    rows = two_stages(CURED, ProbePositions=8192)[: len(STAGE_1)]
    cut = write(tmp_path / "h256-20000-baseline-s1-abcdef.csv", rows)
    assert distinct_runs([run, cut]) == ([run, cut], [])
    of_same_seed = write(tmp_path / "b" / run.path.name, rows)
    assert [double.run for double in distinct_runs([of_same_seed, run])[1]] == [of_same_seed]


def test_constant_runs_of_different_lengths_are_different(tmp_path: Path) -> None:
    runs = [write(tmp_path / f"{rows}.csv", curve(range(1, rows), Loss=math.log(257))) for rows in (12, 8, 5)]
    assert distinct_runs(runs) == (runs, [])


def test_diverged_runs_are_different(tmp_path: Path) -> None:
    def diverged(seed: int) -> list[Row]:
        nothing = dict.fromkeys(("Loss", "HeldOutLoss", "GradNorm"), math.nan)
        return [
            row if index < 4 else row | nothing | {"UniquePredictions": 1} for index, row in enumerate(learning(seed))
        ]

    runs = [write(tmp_path / f"{seed}.csv", diverged(seed)) for seed in range(3)]
    assert distinct_runs(runs) == (runs, [])
    nan = curve(range(100, 1001, 100), Loss=math.nan, HeldOutLoss=math.inf, UniquePredictions=1)
    tails = [write(tmp_path / f"tail-{rows}.csv", nan[:rows]) for rows in (10, 6)]
    assert distinct_runs(tails) == (tails, [])
    copy = write(tmp_path / "copy.csv", diverged(1)[:9])
    assert [(double.run, double.same_as) for double in distinct_runs([*runs, copy])[1]] == [(copy, runs[1])]


def test_nan_and_unknown_are_not_the_same(tmp_path: Path) -> None:
    rows = learning(0)
    runs = [write(tmp_path / f"{value}.csv", [row | {"Loss": value} for row in rows[:4]]) for value in (math.nan, 5.0)]
    assert distinct_runs(runs)[1] == []


def test_runs_with_a_manifest_of_the_same_recipe_are_different(tmp_path: Path) -> None:
    runs = [origin_run(tmp_path, [*CURED[:-1], 60 + seed], seed=seed) for seed in range(3)]
    runs += [origin_run(tmp_path / "arm", CURED, arm="no-decay")]
    assert distinct_runs(runs) == (runs, [])


# hints of a seed


@pytest.mark.parametrize(
    ("name", "seed"),
    {
        "seed0": 0,
        "run-seed=1": 1,
        "hidden256_seed_2": 2,
        "Seed 3 of h256": 3,
        "origin_s4": 4,
        "s5.final": 5,
        "h256-s6-again": 6,
        "a s7 (1)": 7,
        "seed8_s9": 8,
        "h256-20000-baseline-s0-abcdef (1)": 0,
        "runs2": None,
        "steps1000": None,
        "seeds3": None,
        "reseed1": None,
        "s1000": None,
        "loss3": None,
        "s1-s2": None,
        "seed1 and seed 2": None,
        "seed": None,
        "bits2.5": None,
    }.items(),
)
def test_the_seed_in_a_name(tmp_path: Path, name: str, seed: int | None) -> None:
    assert bare_run(tmp_path, name=f"{name}.csv").seed == seed


def test_the_seed_in_a_title(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text(csv_text(learning(0), "hidden 256, seed 3, s4\n"), encoding="utf-8")
    assert load_run(path).seed == 3


def test_many_runs_of_nearly_equal_values(tmp_path: Path) -> None:
    """A thousand runs with 200 rows each; values differ in the last digits only, so that every index is of use."""
    runs = [write(tmp_path / f"{seed}.csv", learning(seed, steps=20_000, rows=200)) for seed in range(100)]
    clones = [run for run in runs for _ in range(5)]
    close = [curve(range(1, 201), HeldOutLoss=4.7 + seed / 1e5) for seed in range(400)]
    near = [write(tmp_path / f"near-{seed}.csv", rows) for seed, rows in enumerate(close)]
    kept, doubles = distinct_runs([*clones, *near])
    assert (len(kept), len(doubles)) == (500, 400)


@pytest.mark.parametrize("value", ["1e308", "-1e308", "5e-324", "2.2e-308", "inf", "nan", "9007199254740993"])
def test_any_double_can_be_compared(tmp_path: Path, value: str) -> None:
    first, second = (learning(seed) for seed in range(2))
    first[2]["Loss"] = second[2]["Loss"] = value
    kept, _ = distinct_runs([write(tmp_path / "a.csv", first), write(tmp_path / "b.csv", second)])
    assert len(kept) == 2
