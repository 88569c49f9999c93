"""What belongs to a set of runs beside those given: planned, failed, deleted and left-out runs, and other arms."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from sets import entries, healthy, inventory, plan
from synthetic import TIME, bare_run, curve, empty_run, quick, simple_run, write_csv, write_run

from bitnetctl.errors import RecordError
from bitnetctl.records import load_planned, load_set
from bitnetctl.records.inventory import AbsentRun, Inventory, take_inventory

# failed runs


def test_three_healthy_seeds_and_three_that_failed_before_their_first_evaluation(tmp_path: Path) -> None:
    given = healthy(tmp_path, [0, 1, 2])
    failed = [empty_run(tmp_path, quick(seed=seed), message="out of\nmemory") for seed in (3, 4, 5)]
    expected = [(seed, "failed", "failed before its first evaluation: out of memory") for seed in (3, 4, 5)]
    # given with the others, or beside them
    assert entries([*given, *failed]) == entries(given) == expected


def test_only_failed_runs(tmp_path: Path) -> None:
    failed = [empty_run(tmp_path, quick("no-decay", seed=seed), message=None) for seed in range(3)]
    found = inventory(failed)
    assert found.arms == ("no-decay",)
    assert found.absent[1] == AbsentRun(
        run=quick("no-decay", seed=1).run_name,
        arm="no-decay",
        size=64,
        seed=1,
        planned_steps=1000,
        state="failed",
        reason="failed before its first evaluation",
    )
    assert [one.path for one in found.absent] == failed


@pytest.mark.parametrize("content", [b"", b"\n", b"Step,Loss,UniquePredictions,LR,WD\n1,2"], ids=["0", "blank", "torn"])
def test_a_failed_run_with_a_csv_without_a_whole_row(tmp_path: Path, content: bytes) -> None:
    given = healthy(tmp_path, [0])
    failed = empty_run(tmp_path, quick(seed=1), message="x")
    failed.write_bytes(content)
    assert entries([*given, failed]) == entries(given) == [(1, "failed", "failed before its first evaluation: x")]


def test_a_csv_without_rows_or_a_manifest_is_an_error_as_before(tmp_path: Path) -> None:
    csv = empty_run(tmp_path, quick())
    shutil.rmtree(csv.with_suffix(""))
    with pytest.raises(RecordError, match="a header and no rows"):
        load_set([csv])


STATES: dict[str, tuple[str, bool, int, str, str]] = {
    "failed, no CSV": ("failed", False, 0, "failed", "failed before its first evaluation"),
    "failed, CSV deleted": ("failed", False, 300, "failed", "failed after 300 steps, its CSV was deleted"),
    "diverged": ("diverged", True, 0, "failed", "diverged before its first evaluation"),
    "diverged, CSV deleted": ("diverged", False, 7, "failed", "diverged after 7 steps, its CSV was deleted"),
    "running": ("running", True, 0, "unfinished", "running, no evaluation yet"),
    "running, no CSV": ("running", False, 0, "unfinished", "running, no evaluation yet"),
    "stopped": ("stopped", True, 0, "unfinished", "stopped before its first evaluation"),
    "stopped, CSV deleted": ("stopped", False, 500, "unfinished", "stopped after 500 steps, its CSV was deleted"),
    "finished, CSV deleted": ("finished", False, 1000, "missing", "its CSV was deleted (finished)"),
    "finished, CSV emptied": ("finished", True, 1000, "missing", "its CSV holds no rows (finished)"),
}


@pytest.mark.parametrize("kind", STATES)
def test_states_of_a_sibling_without_rows(tmp_path: Path, kind: str) -> None:
    status, has_csv, done, state, reason = STATES[kind]
    given = healthy(tmp_path, [0])
    empty_run(tmp_path, quick(seed=1), status, has_csv=has_csv, steps_done=done)
    assert entries(given) == [(1, state, reason)]


# left out


def test_of_six_seeds_with_two_failed_ones_three_are_given(tmp_path: Path) -> None:
    healthy(tmp_path, range(6), planned=plan(6))
    for seed in (2, 3):
        simple_run(tmp_path, quick(seed=seed), unique=1, status="failed", planned=plan(6))
    given = [tmp_path / f"{quick(seed=seed).run_name}.csv" for seed in (0, 1, 4)]
    here = "in the same folder, not given"
    assert entries(given) == [
        (2, "left out", f"{here} (failed)"),
        (3, "left out", f"{here} (failed)"),
        (5, "left out", f"{here} (finished)"),
    ]


def test_a_lock_alone_is_a_run_that_has_not_finished(tmp_path: Path) -> None:
    given = healthy(tmp_path, [0])
    folder = tmp_path / quick(seed=1).run_name
    folder.mkdir()
    assert entries(given) == []
    (folder / "run.lock").touch()
    assert entries(given) == [(1, "unfinished", "no run.json, only a lock")]


def test_a_csv_without_a_manifest_belongs_by_its_name(tmp_path: Path) -> None:
    given = healthy(tmp_path, [0])
    for seed in (1, 2):
        bare_run(tmp_path, size=64, steps=1000, seed=seed, HeldOutLoss=4 + seed / 10)
    bare_run(tmp_path, size=128, steps=1000, seed=3)
    bare_run(tmp_path, size=64, steps=1000, arm="no-decay", seed=4)
    bare_run(tmp_path, name="my run s5.csv")
    found = inventory(given)
    assert [(one.seed, one.reason) for one in found.absent] == [
        (seed, "in the same folder, not given") for seed in (1, 2)
    ]
    assert found.arms == ("baseline", "no-decay")


def test_an_upper_case_suffix_is_a_csv(tmp_path: Path) -> None:
    given = healthy(tmp_path, [0])
    for csv in healthy(tmp_path, [1]):
        csv.rename(csv.with_suffix(".CSV"))
    assert entries(given) == [(1, "left out", "in the same folder, not given (finished)")]
    assert entries([*given, *tmp_path.glob("*.CSV")]) == []


def test_a_run_of_a_chosen_name_belongs_by_its_config(tmp_path: Path) -> None:
    given = healthy(tmp_path, [0], name="first")
    healthy(tmp_path, [1], name="second")
    (one,) = inventory(given).absent
    assert (one.run, one.seed, one.path) == ("second", 1, tmp_path / "second.csv")


def test_runs_of_other_settings_or_sizes_are_no_siblings(tmp_path: Path) -> None:
    given = healthy(tmp_path, [0])
    simple_run(tmp_path, quick(seed=1, optimizer__eps="1e-6"))
    simple_run(tmp_path, quick("no-decay", seed=1, optimizer__eps="1e-6"))
    healthy(tmp_path, [2], size=128)
    assert inventory(given) == Inventory(arms=("baseline",))


def test_recipe_and_intervals_may_differ_and_another_length_is_named(tmp_path: Path) -> None:
    given = healthy(tmp_path, [0])
    simple_run(tmp_path, quick(seed=1, probe__eval_every_steps=50).model_copy(update={"recipe": "mine"}))
    simple_run(tmp_path, quick(seed=2, steps=500))
    # of a seed that is given: another run, which may have turned out otherwise
    simple_run(tmp_path, quick(seed=0, steps=2000))
    here = "in the same folder, not given"
    assert entries(given) == [
        (0, "left out", f"{here} (finished, 2,000 steps)"),
        (1, "left out", f"{here} (finished)"),
        (2, "left out", f"{here} (finished, 500 steps)"),
    ]


def test_the_weightiest_of_several_siblings_of_a_seed_is_listed(tmp_path: Path) -> None:
    given = healthy(tmp_path, [0])
    healthy(tmp_path, [1])
    empty_run(tmp_path, quick(seed=1), name="again")
    empty_run(tmp_path, quick(seed=1), "running", name="once more")
    assert [(one.run, one.state) for one in inventory(given).absent] == [("again", "failed")]


def test_copies_of_given_runs_are_not_left_out(tmp_path: Path) -> None:
    (given,) = healthy(tmp_path, [0])
    text = given.read_text(encoding="utf-8")
    (tmp_path / f"{quick(seed=5).run_name}.csv").write_text(text, encoding="utf-8")
    shutil.copy(given, tmp_path / f"{given.stem} (1).csv")
    shutil.copytree(given.with_suffix(""), tmp_path / "backup")
    shutil.copy(given, tmp_path / "backup.csv")
    german = text.replace(",", ";").replace(".", ",")
    (tmp_path / f"{given.stem} copy.csv").write_text(german, encoding="utf-8")
    assert entries([given]) == []


def test_copies_of_each_other_and_of_a_rounded_given_run(tmp_path: Path) -> None:
    rows = curve(range(100, 1001, 100), HeldOutLoss=[5 - 0.01234567 * step for step in range(10)])
    config = quick(seed=0)
    for name in (config.run_name, "again", "and again"):
        write_run(tmp_path, config, rows, name=name)
    rounded = [row | {"HeldOutLoss": round(row["HeldOutLoss"], 4)} for row in rows]
    given = write_csv(tmp_path / f"{config.run_name[:-6]}abcdef.csv", rounded)
    assert entries([given]) == []


def test_a_sibling_with_more_rows_than_the_given_copy_is_left_out(tmp_path: Path) -> None:
    rows = curve(range(100, 1001, 100), HeldOutLoss=[5 - 0.01234567 * step for step in range(10)])
    whole = write_run(tmp_path, quick(seed=0), rows)
    cut = write_csv(tmp_path / f"{quick(seed=0).run_name[:-6]}abcdef.csv", rows[:6])
    assert entries([cut]) == [(0, "left out", f"in the same folder, not given, with more rows than {cut.name}")]
    assert entries([whole]) == []


# what was planned


def test_a_deleted_seed_of_the_plan_is_missing(tmp_path: Path) -> None:
    given = healthy(tmp_path, [0, 1, 2], planned=plan(4))
    source = quick(seed=0).run_name
    assert inventory(given).absent == (
        AbsentRun(
            run="seed 3",
            arm="baseline",
            size=64,
            seed=3,
            planned_steps=1000,
            state="missing",
            reason=f"planned with {source}, no file",
        ),
    )


COMMANDS: dict[str, tuple[list[str], list[int]]] = {
    "number": (["verify", "--seeds", "4"], [2, 3]),
    "with an equals sign": (["sweep", "--seeds=4", "--device", "cpu"], [2, 3]),
    "list": (["sweep", "--seeds", "0,1,7"], [7]),
    "list of one": (["sweep", "--seeds=9,"], [9]),
    "the last counts": (["sweep", "--seeds", "9", "--seeds", "3"], [2]),
    "as a module": (["-m", "bitnetctl", "sweep", "--seeds", "3"], [2]),
    "without": (["sweep", "--pack", "4"], []),
    "malformed": (["sweep", "--seeds", "many"], []),
    "cut short": (["sweep", "--seeds"], []),
    "no command of this program": (["--seeds", "6"], []),
    "worker": (["sweep", "--configs", "/tmp/x/runs.json"], []),
    "one run": (["train", "--seed", "1"], []),
}


@pytest.mark.parametrize("kind", COMMANDS)
def test_an_older_manifest_tells_its_plan_by_its_command(tmp_path: Path, kind: str) -> None:
    arguments, missing = COMMANDS[kind]
    given = healthy(tmp_path, [0, 1], command=["/usr/bin/bitnetctl", *arguments])
    assert [(one.seed, one.state) for one in inventory(given).absent] == [(seed, "missing") for seed in missing]


def test_the_plan_of_a_manifest_comes_before_its_command(tmp_path: Path) -> None:
    given = healthy(tmp_path, [0, 1], planned=plan(2), command=["bitnetctl", "sweep", "--seeds", "6"])
    assert entries(given) == []


def test_commands_of_all_sessions_count(tmp_path: Path) -> None:
    sessions = [{"command": ["bitnetctl", "sweep", "--seeds", "3"]}, {"command": ["bitnetctl", "sweep"]}]
    given = healthy(tmp_path, [0, 1], command=["bitnetctl", "sweep"], sessions=sessions)
    assert [one.seed for one in inventory(given).absent] == [2]


@pytest.mark.parametrize("real", [True, False], ids=["real names", "other hashes"])
def test_the_pack_names_seeds_of_which_there_is_no_file(tmp_path: Path, real: bool) -> None:
    names = [quick(seed=seed).run_name if real else f"h64-1000-baseline-s{seed}-abcdef" for seed in range(6)]
    given = healthy(tmp_path, [0, 1, 4], pack=names)
    source = quick(seed=0).run_name
    assert entries(given) == [(seed, "missing", f"planned with {source}, no file") for seed in (2, 3, 5)]


def test_pack_and_command_name_six(tmp_path: Path) -> None:
    fields: dict[str, Any] = {
        "pack": [quick(seed=seed).run_name for seed in range(4)],
        "command": ["bitnetctl", "verify", "--seeds", "6"],
    }
    given = healthy(tmp_path, [0, 1, 4], **fields)
    assert [one.seed for one in inventory(given).absent] == [2, 3, 5]


def test_runs_of_other_settings_in_a_pack_are_not_missing(tmp_path: Path) -> None:
    other = [quick(seed=seed, optimizer__eps="1e-6").run_name for seed in range(6)]
    arm = [quick("no-decay", seed=seed).run_name for seed in range(2)]
    given = healthy(tmp_path, [0, 1], pack=[quick(seed=0).run_name, quick(seed=1).run_name, *other, *arm])
    # an arm that was trained at the same time is one more comparison
    assert inventory(given) == Inventory(arms=("baseline", "no-decay"))


def test_a_pack_of_two_given_arms(tmp_path: Path) -> None:
    pack = [quick(arm, seed=seed).run_name for arm in ("", "no-decay") for seed in range(3)]
    given = healthy(tmp_path, [0, 1, 2], pack=pack) + healthy(tmp_path, [0, 1], "no-decay", pack=pack)
    assert [(one.arm, one.seed, one.state) for one in inventory(given).absent] == [("no-decay", 2, "missing")]


def test_the_plan_of_a_sibling_counts(tmp_path: Path) -> None:
    given = healthy(tmp_path, [0], planned=plan(1))
    empty_run(tmp_path, quick(seed=1), planned=plan(4))
    found = inventory(given)
    assert [(one.seed, one.state) for one in found.absent] == [(1, "failed"), (2, "missing"), (3, "missing")]


def test_what_was_planned_at_another_length_or_size_is_not_missing(tmp_path: Path) -> None:
    given = healthy(tmp_path, [0], planned=plan(1))
    simple_run(tmp_path, quick(seed=0, steps=200), planned=plan(8))
    healthy(tmp_path, [0], size=128, planned=plan(9))
    found = inventory(given)
    assert [(one.seed, one.planned_steps) for one in found.absent] == [(0, 200)]
    assert found.plans == {("baseline", 64): (1,)}


def test_every_arm_and_size_has_its_own_seeds(tmp_path: Path) -> None:
    given = [
        *healthy(tmp_path, [0, 1], planned=plan(2)),
        *healthy(tmp_path, [0], "no-decay", planned=plan(2)),
        *healthy(tmp_path, [0], size=128, planned=plan(3)),
    ]
    absent = [(one.arm, one.size, one.seed) for one in inventory(given).absent]
    assert absent == [("no-decay", 64, 1), ("baseline", 128, 1), ("baseline", 128, 2)]


def test_runs_that_a_command_planned_and_never_started(tmp_path: Path) -> None:
    configs = [quick(seed=seed) for seed in range(4)]
    simple_run(tmp_path, configs[0])
    empty_run(tmp_path, configs[1], has_csv=False)
    empty_run(tmp_path, configs[2], "running")
    loaded = load_planned(configs, tmp_path)
    runs, empty = loaded.runs, loaded.empty
    assert ([run.seed for run in runs], [one.config and one.config.seed for one in empty]) == ([0], [1, 2, 3])
    found = take_inventory(runs, empty)
    assert [(one.seed, one.state) for one in found.absent] == [(1, "failed"), (2, "unfinished"), (3, "missing")]
    assert found.absent[2].reason == "no file"
    # the one that is given above was left out here
    assert [one.seed for one in take_inventory([], empty).absent] == [0, 1, 2, 3]


# arms and plans over time


def test_arms_are_those_planned_named_or_trained(tmp_path: Path) -> None:
    given = healthy(tmp_path, [0], "no-decay", planned=plan(1, "baseline", "no-decay", "lr-drop"))
    # other sizes count as well
    healthy(tmp_path, [0], "full-precision", size=128)
    assert inventory(given).arms == ("no-decay", "baseline", "lr-drop", "full-precision")


def test_arms_of_a_command_line_are_matched_by_their_interventions(tmp_path: Path) -> None:
    # as typed, a setting may be the default, which a label leaves out
    arms = ["-i", "reduced-lr:peak=5e-4", "--intervention=no-decay+lr-drop", "-ilabel-smoothing"]
    given = healthy(tmp_path, [0], "reduced-lr", command=["bitnetctl", "sweep", *arms])
    assert inventory(given).arms == ("reduced-lr", "baseline", "no-decay+lr-drop", "label-smoothing")


def test_a_command_with_two_strengths_has_two_arms(tmp_path: Path) -> None:
    arms = ["-i", "reduced-lr", "-i", "reduced-lr:peak=1e-4", "--no-baseline"]
    given = healthy(tmp_path, [0], "reduced-lr:peak=1e-4", command=["bitnetctl", "sweep", *arms])
    assert inventory(given).arms == ("reduced-lr:peak=0.0001", "reduced-lr")


def dated(folder: Path, seeds: Sequence[int], day: int, planned: dict[str, Any]) -> list[Path]:
    return healthy(folder, seeds, planned=planned, created_at=TIME.replace("01T", f"{day:02}T"))


GROWTH: dict[str, tuple[list[tuple[list[int], int, dict[str, Any]]], tuple[int, ...]]] = {
    "one plan": ([([0, 1, 2], 1, plan(3))], (3,)),
    "grown": ([([0, 1, 2], 1, plan(3)), ([3, 4, 5], 2, plan(6))], (3, 6)),
    "grown by a list of its own": ([([0, 1, 2], 1, plan(3)), ([3, 4], 2, plan([3, 4]))], (3, 5)),
    "one by one": ([([seed], 1 + seed, plan([seed])) for seed in range(3)], (1, 2, 3)),
    "one tried again": ([([0, 1], 1, plan(3)), ([2], 2, plan([2]))], (3,)),
    "fewer later": ([([1, 2], 1, plan(3)), ([0], 2, plan(1))], (3,)),
}


@pytest.mark.parametrize("kind", GROWTH)
def test_numbers_of_seeds_planned_over_time(tmp_path: Path, kind: str) -> None:
    steps, expected = GROWTH[kind]
    given = [csv for seeds, day, planned in steps for csv in dated(tmp_path, seeds, day, planned)]
    assert inventory(given).plans == {("baseline", 64): expected}
    assert entries(given) == []


def test_without_plans_nothing_is_known_of_them(tmp_path: Path) -> None:
    assert inventory(healthy(tmp_path, [0])).plans == {}
