"""`samples.json`: written, read back, in bundles; damaged ones are named and cost no run."""

import json
from pathlib import Path
from typing import Any

import pytest
from samples import SAMPLES, with_samples
from synthetic import CURED, origin_run

from bitnetctl.errors import RecordError
from bitnetctl.records import load_run
from bitnetctl.records.bundle import read_bundle, write_bundle
from bitnetctl.records.samples import MAX_BYTES, read_samples, write_samples


def test_samples_are_read_back(tmp_path: Path) -> None:
    write_samples(tmp_path / "samples.json", SAMPLES)
    assert read_samples(tmp_path) == SAMPLES


def test_a_run_without_samples_has_none(tmp_path: Path) -> None:
    assert read_samples(tmp_path) is None
    assert read_samples(tmp_path / "nowhere") is None
    assert load_run(origin_run(tmp_path, CURED).path).samples is None


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"step": -1}, "damaged: step"),
        ({"temperature": 1e300}, "damaged: temperature"),
        ({"sampled": {}}, r"damaged: sampled\.repetition"),
        ({"texts": [{"prompt": 1}]}, r"damaged: texts\.0\.prompt"),
        ({"schema_version": 2}, "written by a newer bitnetctl"),
        ({"human": {**json.loads(SAMPLES.human.model_dump_json()), "zipf": float("nan")}}, "damaged"),
    ],
)
def test_a_damaged_file_is_refused_and_its_run_is_not(tmp_path: Path, change: dict[str, Any], problem: str) -> None:
    run = origin_run(tmp_path, CURED)
    folder = run.path.with_suffix("")
    folder.mkdir(exist_ok=True)
    tree = json.loads(SAMPLES.model_dump_json())
    (folder / "samples.json").write_text(json.dumps({**tree, **change}), encoding="utf-8")
    with pytest.raises(RecordError, match=problem) as caught:
        read_samples(folder)
    assert "\n" not in str(caught.value)
    loaded = load_run(run.path)
    assert loaded.samples is None
    assert loaded.records.notes[-1] == f"{caught.value}; its text is left out"


def test_a_field_of_a_newer_version_is_ignored(tmp_path: Path) -> None:
    tree = {**json.loads(SAMPLES.model_dump_json()), "judge": 1}
    (tmp_path / "samples.json").write_text(json.dumps(tree), encoding="utf-8")
    assert read_samples(tmp_path) == SAMPLES


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[]", b" " * (MAX_BYTES + 1)])
def test_what_is_no_such_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "samples.json").write_bytes(content)
    with pytest.raises(RecordError, match=r"damaged|larger than samples may be"):
        read_samples(tmp_path)


def test_a_bundle_carries_text(tmp_path: Path) -> None:
    runs = [with_samples(origin_run(tmp_path, CURED, seed=seed)) for seed in (0, 1)]
    write_bundle(tmp_path / "b.zip", runs[:1], [], {})
    [csv] = read_bundle(tmp_path / "b.zip", tmp_path / "unpacked")
    assert load_run(csv).samples == SAMPLES
