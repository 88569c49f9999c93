"""A bundle carries the runs of a set that are not judged, so that they count the same when it is judged."""

import json
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path

from sets import healthy, plan
from synthetic import bare_run, empty_run, quick, simple_run

from bitnetctl.records import Run, load_set
from bitnetctl.records.bundle import read_bundle, write_bundle
from bitnetctl.records.inventory import Inventory, take_inventory


def bundled(tmp_path: Path, given: Sequence[Path]) -> tuple[Inventory, Inventory, list[Run]]:
    """Return the inventory of a set, and that of its bundle with its runs."""
    runs, empty = load_set(given)
    inventory = take_inventory(runs, empty)
    write_bundle(tmp_path / "all.zip", runs, [], {}, inventory=inventory)
    unpacked, others = load_set(read_bundle(tmp_path / "all.zip", tmp_path / "unpacked"))
    return inventory, take_inventory(unpacked, others), unpacked


def test_every_state_counts_the_same(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    given = healthy(runs, [0, 1], planned=plan(14, "baseline", "no-decay"))
    failed = empty_run(runs, quick(seed=2), message="out of memory")
    empty_run(runs, quick(seed=3), has_csv=False)
    empty_run(runs, quick(seed=4), "running")
    empty_run(runs, quick(seed=5), "stopped", has_csv=False, steps_done=300)
    empty_run(runs, quick(seed=6), "finished", has_csv=False)
    empty_run(runs, quick(seed=7), "finished")
    simple_run(runs, quick(seed=8), unique=1, status="failed")
    bare_run(runs, size=64, steps=1000, seed=9, HeldOutLoss=4.2)
    (runs / quick(seed=10).run_name).mkdir()
    (runs / quick(seed=10).run_name / "run.lock").write_bytes(b"123")
    empty_run(runs, quick(seed=11)).with_suffix("").joinpath("run.json").write_bytes(b"{")
    simple_run(runs, quick(seed=12)).with_suffix("").joinpath("run.json").write_bytes(b"{")
    # seed 13 was never started; of what does not belong nothing is carried
    simple_run(runs, quick(seed=5, optimizer__eps="1e-6"))
    before, after, unpacked = bundled(tmp_path, [*given, failed])
    assert [run.seed for run in unpacked] == [0, 1]
    assert {one.state for one in before.absent} == {"failed", "unfinished", "missing", "left out"}
    assert [one.seed for one in before.absent] == list(range(2, 14))
    assert after == before
    with zipfile.ZipFile(tmp_path / "all.zip") as file:
        names = file.namelist()
    assert [name for name in names if name.startswith("left-out/")] == [
        f"left-out/{quick(seed=8).run_name}.csv",
        "left-out/h64-1000-baseline-s9-abcdef.csv",
        f"left-out/{quick(seed=12).run_name}.csv",
    ]
    assert not any("123" in (tmp_path / "unpacked" / name).read_text() for name in names if name.endswith(".lock"))


def test_a_bundle_of_failed_runs_alone(tmp_path: Path) -> None:
    failed = [empty_run(tmp_path / "runs", quick(seed=seed), has_csv=seed > 0) for seed in range(3)]
    before, after, unpacked = bundled(tmp_path, failed[1:])
    assert unpacked == []
    assert [one.state for one in before.absent] == ["failed"] * 3
    assert after == before


def test_a_manifest_that_this_version_cannot_read_is_no_given_run(tmp_path: Path) -> None:
    given = healthy(tmp_path / "runs", [0])
    file = empty_run(tmp_path / "runs", quick(seed=1)).with_suffix("") / "run.json"
    tree = json.loads(file.read_text(encoding="utf-8"))
    del tree["sha256"]
    tree["status"] = "asleep"
    file.write_text(json.dumps(tree), encoding="utf-8")
    before, after, unpacked = bundled(tmp_path, given)
    assert ([one.state for one in before.absent], len(unpacked)) == (["unfinished"], 1)
    assert after == before


def test_absent_runs_of_two_folders_with_one_name(tmp_path: Path) -> None:
    given = [*healthy(tmp_path / "a", [0]), *healthy(tmp_path / "b", [1])]
    empty_run(tmp_path / "a", quick(seed=2), name="x")
    empty_run(tmp_path / "b", quick(seed=3), name="x")
    before, after, _ = bundled(tmp_path, given)
    assert [(one.run, one.seed) for one in before.absent] == [("x", 2), ("x", 3)]
    assert [(one.seed, one.state) for one in after.absent] == [(2, "failed"), (3, "failed")]


def test_files_that_are_gone_by_then_are_left_out(tmp_path: Path) -> None:
    given = healthy(tmp_path / "runs", [0])
    for csv in healthy(tmp_path / "runs", [1]):
        runs, _ = load_set(given)
        inventory = take_inventory(runs)
        csv.unlink()
        shutil.rmtree(csv.with_suffix(""))
    write_bundle(tmp_path / "all.zip", runs, [], {}, inventory=inventory)
    assert len(read_bundle(tmp_path / "all.zip", tmp_path / "unpacked")) == 1


def test_without_an_inventory_the_bundle_is_as_before(tmp_path: Path) -> None:
    given = healthy(tmp_path / "runs", [0])
    healthy(tmp_path / "runs", [1])
    write_bundle(tmp_path / "all.zip", load_set(given)[0], [("origin", "{}")], {"verdict": "supported"})
    with zipfile.ZipFile(tmp_path / "all.zip") as file:
        name = quick(seed=0).run_name
        assert file.namelist() == [f"runs/{name}.csv", f"runs/{name}/run.json", "criteria/origin.json", "verdict.json"]
