"""The inventory of odd, damaged, older, foreign and very full folders."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from sets import entries, healthy, inventory, plan
from synthetic import bare_run, empty_run, quick, simple_run

from bitnetctl.config import RunConfig
from bitnetctl.records import load_run
from bitnetctl.records.inventory import Inventory, take_inventory


def test_runs_of_several_folders(tmp_path: Path) -> None:
    given = healthy(tmp_path / "a", [0], planned=plan(4)) + healthy(tmp_path / "b", [1], planned=plan(4))
    empty_run(tmp_path / "b", quick(seed=2))
    assert [(one.seed, one.state) for one in inventory(given).absent] == [(2, "failed"), (3, "missing")]
    # one file is not given twice as two siblings
    assert [one.seed for one in inventory(given[:1]).absent] == [1, 2, 3]


def test_a_failed_run_without_a_csv_as_a_bundle_unpacks_it(tmp_path: Path) -> None:
    given = healthy(tmp_path / "0" / "runs", [0, 1])
    empty_run(tmp_path / "0" / "runs", quick(seed=2), has_csv=False)
    assert [(one.seed, one.state) for one in inventory(given).absent] == [(2, "failed")]


def test_links_lead_to_the_folder_of_the_runs(tmp_path: Path) -> None:
    csvs = healthy(tmp_path / "runs", [0, 1, 2])
    picked = tmp_path / "picked"
    picked.mkdir()
    for csv in csvs[:2]:
        (picked / csv.name).symlink_to(csv)
    found = inventory([picked / csv.name for csv in csvs[:2]])
    assert [(one.seed, one.state) for one in found.absent] == [(2, "left out")]
    # a link to a given run is no sibling
    (tmp_path / "runs" / f"{quick(seed=7).run_name}.csv").symlink_to(csvs[0])
    assert [one.seed for one in inventory(csvs).absent] == []


def test_loops_and_broken_links_are_no_runs(tmp_path: Path) -> None:
    given = healthy(tmp_path, [0])
    names = [quick(seed=seed).run_name for seed in (1, 2)]
    (tmp_path / f"{names[0]}.csv").symlink_to(tmp_path / f"{names[0]}.csv")
    (tmp_path / names[1]).symlink_to(tmp_path / "nowhere")
    assert entries(given) == []


DAMAGE = {
    "cut short": b'{"run": "x"',
    "no JSON": b"\xff",
    "null": b"null",
    "list": b"[]",
    "no config": b"{}",
    "another config": b'{"config": {"model": 5}}',
    "config of text": b'{"config": {"model": {"hidden_size": "64"}, "seed": 1, "steps": 1, "interventions": []}}',
    "wrong checksum": b'{"sha256": "abc", "status": "finished"}',
    "deep": b"[" * 100_000,
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_manifest_of_a_sibling_stops_nothing(tmp_path: Path, kind: str) -> None:
    given = healthy(tmp_path, [0])
    for seed in (1, 2):
        empty_run(tmp_path, quick(seed=seed), has_csv=False)
        (tmp_path / quick(seed=seed).run_name / "run.json").write_bytes(DAMAGE[kind])
    simple_run(tmp_path, quick(seed=2))
    (tmp_path / quick(seed=2).run_name / "run.json").write_bytes(DAMAGE[kind])
    empty_run(tmp_path, quick(seed=3), name="no pattern")
    (tmp_path / "no pattern" / "run.json").write_bytes(DAMAGE[kind])
    assert entries(given) == [
        (1, "missing", "its run.json is damaged"),
        (2, "left out", "in the same folder, not given (its run.json is damaged)"),
    ]


def test_an_edited_manifest_is_damaged(tmp_path: Path) -> None:
    given = healthy(tmp_path, [0])
    file = empty_run(tmp_path, quick(seed=1)).with_suffix("") / "run.json"
    file.write_text(file.read_text(encoding="utf-8").replace("failed", "running"), encoding="utf-8")
    assert entries(given) == [(1, "missing", "its run.json is damaged")]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read anything")
def test_a_sibling_that_may_not_be_read_stops_nothing(tmp_path: Path) -> None:
    given = healthy(tmp_path, [0])
    (csv,) = healthy(tmp_path, [1])
    csv.chmod(0)
    assert [(one.seed, one.state) for one in inventory(given).absent] == [(1, "left out")]


ODD_FIELDS: dict[str, Any] = {
    "planned": [{"seeds": "all", "arms": 3}, {"seeds": [True, "1", None], "arms": [5]}, 5, []],
    "pack": ["x", [None, 3, "h64-1000-baseline-s²-abcdef", "h9-9-x-s" + "9" * 300 + "-abcdef"], {}],
    "command": [{}, [3], "sweep --seeds 6", ["sweep", "--seeds"]],
    "sessions": [3, [None, [], {"command": 3, "pack": 4}]],
    "steps_done": ["many", None, -1.5],
    "message": [[], 3],
    "status": [None, 3, "asleep"],
}


@pytest.mark.parametrize("field", ODD_FIELDS)
def test_odd_fields_of_a_sibling_tell_nothing(tmp_path: Path, field: str) -> None:
    given = healthy(tmp_path, [0])
    file = empty_run(tmp_path, quick(seed=1), has_csv=False).with_suffix("") / "run.json"
    tree = json.loads(file.read_text(encoding="utf-8"))
    del tree["sha256"], tree["planned"]
    for value in ODD_FIELDS[field]:
        file.write_text(json.dumps(tree | {field: value}), encoding="utf-8")
        (one,) = inventory(given).absent
        assert (one.seed, one.state) == (1, "unfinished" if field == "status" else "failed")


def test_an_older_sibling_lacks_newer_fields(tmp_path: Path) -> None:
    given = healthy(tmp_path, [0])
    file = empty_run(tmp_path, quick(seed=1)).with_suffix("") / "run.json"
    tree = json.loads(file.read_text(encoding="utf-8"))
    del tree["sha256"], tree["config"]["optimizer"]["reset_moments_every_steps"]
    file.write_text(json.dumps(tree), encoding="utf-8")
    assert [(one.seed, one.state) for one in inventory(given).absent] == [(1, "failed")]


def test_foreign_files_say_nothing_of_each_other(tmp_path: Path) -> None:
    for name in ("a.csv", "h64 seed 1.csv", "baseline-s2.csv"):
        bare_run(tmp_path, name=name)
    bare_run(tmp_path, arm="no-decay", seed=3)
    empty_run(tmp_path, quick(seed=4))
    assert inventory([tmp_path / "a.csv", tmp_path / "h64 seed 1.csv"]) == Inventory(unnamed=1)
    assert take_inventory([]) == Inventory()


def test_a_given_csv_by_its_name_alone(tmp_path: Path) -> None:
    given = bare_run(tmp_path, size=64, steps=1000, arm="reduced-lr", seed=0)
    simple_run(tmp_path, quick("reduced-lr:peak=1e-4", seed=1))
    bare_run(tmp_path, size=64, steps=1000, arm="reduced-lr", seed=2, HeldOutLoss=4.5)
    found = take_inventory([given])
    assert [(one.arm, one.seed, one.state) for one in found.absent] == [
        ("reduced-lr", 1, "left out"),
        ("reduced-lr", 2, "left out"),
    ]


def test_two_arms_of_one_name_are_told_apart_by_the_hash(tmp_path: Path) -> None:
    arms = ("reduced-lr:peak=1e-4", "reduced-lr:peak=1e-3")
    given = [*healthy(tmp_path, [0], arms[0]), *healthy(tmp_path, [0], arms[1])]
    csv = simple_run(tmp_path, quick(arms[1], seed=1), loss=4)
    shutil.rmtree(csv.with_suffix(""))
    assert [(one.arm, one.seed) for one in inventory(given).absent] == [("reduced-lr:peak=0.001", 1)]


def test_a_given_run_twice_or_without_its_folder(tmp_path: Path) -> None:
    (csv,) = healthy(tmp_path, [0], planned=plan(2))
    run = load_run(csv)
    shutil.rmtree(tmp_path / csv.stem)
    csv.unlink()
    assert [one.seed for one in take_inventory([run, run]).absent] == [1]


def many(folder: Path, count: int, **fields: Any) -> list[RunConfig]:
    """Write the manifests of many runs at once, each with a CSV of two rows."""
    first = simple_run(folder, quick(seed=0), **fields)
    file = first.with_suffix("") / "run.json"
    tree = json.loads(file.read_text(encoding="utf-8"))
    del tree["sha256"]
    configs = [quick(seed=0).model_copy(update={"seed": seed}) for seed in range(count)]
    for config in configs:
        of_run = folder / config.run_name
        of_run.mkdir(exist_ok=True)
        tree |= {"run": config.run_name, "config_hash": config.hash}
        tree["config"]["seed"] = config.seed
        (of_run / "run.json").write_text(json.dumps(tree), encoding="utf-8")
        shutil.copy(first, folder / f"{config.run_name}.csv") if config.seed else None
    return configs


def test_a_thousand_siblings(tmp_path: Path) -> None:
    pack = [quick(seed=0).model_copy(update={"seed": seed}).run_name for seed in range(50)]
    configs = many(tmp_path, 1000, planned=plan(1000), pack=pack)
    runs = [load_run(tmp_path / f"{configs[0].run_name}.csv")]
    found = take_inventory(runs)
    assert len(found.absent) == 999
