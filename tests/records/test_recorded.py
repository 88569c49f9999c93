"""Settings of plug-ins that another version has other defaults of: runs are found, told apart and never pooled."""

import json
from pathlib import Path
from typing import Any

import pytest

from bitnetctl.config import InterventionSpec, RunConfig, build_config
from bitnetctl.records.recorded import RunsFolder, completed, differences, key_of, tell_apart


def config(settings: dict[str, Any], defaults: dict[str, Any] | None, **fields: Any) -> RunConfig:
    spec = InterventionSpec(name="half-rate", settings=settings, defaults=defaults)
    return build_config("quick", interventions=()).model_copy(update={"interventions": (spec,), **fields})


OLD = config({}, None)
HALF = config({}, {"factor": 0.5})
QUARTER = config({}, {"factor": 0.25})


def record(runs: Path, recorded: RunConfig, settings: dict[str, Any] | None, *, defaults: bool = False) -> str:
    """Write a manifest as version 0.1 did."""
    tree = recorded.model_dump(mode="json")
    if not defaults:
        for spec in tree["interventions"]:
            del spec["defaults"], spec["file"]
    plugins = [] if settings is None else [{"name": "half-rate", "settings": settings}]
    folder = runs / recorded.run_name
    folder.mkdir(parents=True)
    manifest = {"config": tree, "config_hash": recorded.hash, "plugins": plugins}
    (folder / "run.json").write_text(json.dumps(manifest), encoding="utf-8")
    return folder.name


def test_settings_at_their_default_are_part_of_the_hash_and_not_of_the_label() -> None:
    assert {one.arm for one in (OLD, HALF, QUARTER)} == {"half-rate"}
    assert len({one.hash for one in (OLD, HALF, QUARTER)}) == 3
    # said or not, the same settings are the same run
    assert config({"factor": 0.5}, {}).hash == HALF.hash
    assert OLD.run_name in HALF.run_names


def test_a_new_setting_makes_another_run() -> None:
    assert config({}, {}).hash == OLD.hash
    assert config({}, {"factor": 0.5, "warm": 0}).hash != HALF.hash


def test_a_run_of_an_earlier_version_is_found_by_its_settings(tmp_path: Path) -> None:
    name = record(tmp_path, OLD, {"factor": 0.5})
    for same in (HALF, config({"factor": 0.5}, {})):
        found = RunsFolder(tmp_path).find(same)
        assert (found.paths.name, found.config_hash, found.other) == (name, OLD.hash, None)
    found = RunsFolder(tmp_path).find(QUARTER)
    assert (found.paths.name, found.config_hash) == (QUARTER.run_name, QUARTER.hash)
    assert (found.other, found.differing) == (name, "half-rate:factor is 0.25 now, was 0.5")
    # another seed is no other version of it
    assert RunsFolder(tmp_path).find(config({}, {"factor": 0.25}, seed=1)).other is None


@pytest.mark.parametrize("settings", [{"scale": 0.5}, {"factor": 0.5, "warm": 0}])
def test_a_run_of_other_settings_is_not_found(settings: dict[str, Any], tmp_path: Path) -> None:
    record(tmp_path, OLD, settings)
    assert RunsFolder(tmp_path).find(HALF).paths.name == HALF.run_name


def test_of_a_run_that_tells_no_settings_the_name_decides(tmp_path: Path) -> None:
    name = record(tmp_path, OLD, None)
    assert RunsFolder(tmp_path).find(HALF).paths.name == name
    assert RunsFolder(tmp_path).find(config({"factor": 0.5}, {})).paths.name == HALF.run_name


def test_a_run_with_a_given_name_is_the_same_by_its_settings(tmp_path: Path) -> None:
    (tmp_path / record(tmp_path, OLD, {"factor": 0.5})).rename(tmp_path / "mine")
    assert RunsFolder(tmp_path).find(HALF, "mine").config_hash == OLD.hash
    assert RunsFolder(tmp_path).find(QUARTER, "mine").config_hash == QUARTER.hash


def test_a_damaged_manifest_is_no_run_of_an_earlier_version(tmp_path: Path) -> None:
    name = record(tmp_path, OLD, {"factor": 0.5})
    manifest = tmp_path / name / "run.json"
    for text in ("{", "[]", "{}", manifest.read_text(encoding="utf-8").replace(OLD.hash, "0" * 64)):
        manifest.write_text(text, encoding="utf-8")
        assert RunsFolder(tmp_path).find(HALF).paths.name == HALF.run_name
    assert RunsFolder(tmp_path / "nowhere").find(HALF).paths.name == HALF.run_name


def test_arms_of_one_label_are_told_apart_by_what_differs() -> None:
    more = config({"label": "x"}, {"factor": 0.5})
    told = tell_apart([HALF, QUARTER, None, OLD, more, RunConfig()])
    labels = [None if one is None else one.arm for one in told]
    # of unknown settings nothing can be said
    assert labels == [
        "half-rate:factor=0.5",
        "half-rate:factor=0.25",
        None,
        "half-rate",
        "half-rate:label=x",
        "baseline",
    ]
    for before, after in zip([HALF, QUARTER], told[:2], strict=True):
        assert after is not None
        assert (after.hash, key_of(after)) == (before.hash, key_of(before))
    assert [one.arm for one in tell_apart([HALF, HALF]) if one] == ["half-rate", "half-rate"]


def test_a_setting_that_only_one_version_has_tells_them_apart() -> None:
    told = tell_apart([HALF, config({}, {"factor": 0.5, "warm": 0}), config({}, {"scale": 0.5})])
    assert [one.arm for one in told if one] == [
        "half-rate:factor=0.5",
        "half-rate:factor=0.5,warm=0",
        "half-rate:scale=0.5",
    ]
    plain = tell_apart([config({}, {}), config({}, {"x": 0})])
    assert [one.arm for one in plain if one] == ["half-rate", "half-rate:x=0"]


def test_differences_name_fields_and_settings() -> None:
    other = config({}, {"factor": 0.25}, steps=7)
    texts = differences(HALF, other)
    assert texts == [f"steps is 7 now, was {HALF.steps}", "half-rate:factor is 0.25 now, was 0.5"]
    assert differences(HALF, HALF) == []
    assert completed(OLD, [{"name": "half-rate", "settings": {"factor": 0.5}}]) == HALF
    assert completed(OLD, [{"name": "other", "settings": {"factor": 0.5}}]) == OLD
