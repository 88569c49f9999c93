"""The manifest of a run: round trips, damaged files, and values that JSON cannot hold."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from rows import FIVE, csv_file

from bitnetctl import records
from bitnetctl.errors import RecordError
from bitnetctl.records import Manifest, PluginInfo, RunPaths


def manifest(**changes: Any) -> Manifest:
    fields: dict[str, Any] = {
        "run": "x",
        "status": "running",
        "config": {"steps": 20, "optimizer": {"betas": [0.9, 0.95]}},
        "config_hash": "1a2b3c",
        "created_at": "2025-11-22T17:00:00+00:00",
        "updated_at": "2025-11-22T17:00:01Z",
    }
    return Manifest.model_validate(fields | changes)


def test_a_manifest_reads_back_equal(tmp_path: Path) -> None:
    full = manifest(
        status="diverged",
        effective_config={"steps": 20},
        steps_done=12,
        diverged_at=10,
        message="loss is not finite",
        versions={"torch": "2.10"},
        git={"commit": "abc", "dirty": False},
        device="cpu",
        threads=2,
        data={"fingerprint": "f", "train_tokens": 10**9, "unigram_loss": 6.37},
        plugins=[PluginInfo(name="reduced-lr", version="1", distribution="d", settings={"peak": 5e-4})],
        command=["bitnetctl", "train", "größer"],
        elapsed_seconds=1.5,
        pack=["x", "y"],
        planned={"seeds": [0, 1], "arms": ["baseline"]},
    )
    records.write_manifest(tmp_path / "x", full)
    text = (tmp_path / "x" / "run.json").read_text()
    assert records.read_manifest(tmp_path / "x") == full
    assert text.endswith("}\n")
    assert list(json.loads(text)) == sorted(Manifest.model_fields)
    assert text.startswith('{\n  "command": [')
    assert [entry.name for entry in (tmp_path / "x").iterdir()] == ["run.json"]


def test_a_manifest_is_read_by_folder_or_csv(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path, "h256-a.b+c-s0")
    records.write_manifest(paths.folder, manifest())
    assert records.read_manifest(paths.csv) == manifest()
    assert records.read_manifest(str(paths.csv)) == manifest()
    assert records.read_manifest(tmp_path / "other file.csv") is None
    assert records.read_manifest(tmp_path / "other") is None
    csv_file(tmp_path, FIVE, "plain")
    assert records.read_manifest(tmp_path / "plain") is None


def test_an_older_manifest_says_nothing_of_what_was_planned(tmp_path: Path) -> None:
    tree = manifest().model_dump(mode="json", exclude={"planned"})
    (tmp_path / "run.json").write_text(json.dumps(tree))
    assert records.read_manifest(tmp_path) == manifest(planned=None)


def test_a_newer_manifest_stays_readable(tmp_path: Path) -> None:
    tree = manifest().model_dump(mode="json") | {"schema_version": 2, "mood": "good"}
    (tmp_path / "run.json").write_text(json.dumps(tree))
    read_back = records.read_manifest(tmp_path)
    assert read_back is not None
    assert read_back.schema_version == 2
    assert not hasattr(read_back, "mood")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "Expecting value"),
        (b'{"run": "x"', "Expecting"),
        (b"[]", "the whole: "),
        (b"{}", "run: Field required"),
        (b"\xff", "not UTF-8"),
        (b'{"elapsed_seconds": NaN}', "NaN is not JSON"),
        (b"[" * 100_000, "recursion"),
        (json.dumps(manifest().model_dump() | {"status": "asleep"}).encode(), "status: Input should be"),
        (json.dumps(manifest().model_dump() | {"created_at": "soon"}).encode(), "created_at: "),
        (json.dumps(manifest().model_dump() | {"updated_at": "2025-01-01T00:00:00"}).encode(), "in UTC"),
    ],
)
def test_damaged_manifests(tmp_path: Path, content: bytes, complaint: str) -> None:
    path = tmp_path / "run.json"
    path.write_bytes(content)
    with pytest.raises(RecordError) as caught:
        records.read_manifest(tmp_path)
    assert str(caught.value).startswith(f"{path}: damaged manifest: ")
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [math.nan, -math.inf, object(), {"deep": [math.inf]}])
def test_a_manifest_that_json_cannot_hold_is_not_written(tmp_path: Path, value: Any) -> None:
    records.write_manifest(tmp_path, manifest())
    before = (tmp_path / "run.json").read_bytes()
    with pytest.raises(RecordError, match=r"run\.json: the manifest holds what JSON cannot"):
        records.write_manifest(tmp_path, manifest(data={"value": value}))
    assert (tmp_path / "run.json").read_bytes() == before


def test_manifest_fields_are_checked_and_frozen() -> None:
    with pytest.raises(ValidationError):
        manifest(elapsed_seconds=math.nan)
    with pytest.raises(ValidationError):
        manifest(steps_done=-1)
    with pytest.raises(ValidationError):
        manifest().status = "failed"  # type: ignore[misc]
    assert manifest(created_at=records.utc_now()).created_at.endswith("+00:00")


def test_a_message_that_is_not_utf8_does_not_stop_an_update(tmp_path: Path) -> None:
    updated = manifest().model_copy(update={"status": "failed", "message": "caf\udce9.txt: gone"})
    records.write_manifest(tmp_path, updated)
    read_back = records.read_manifest(tmp_path)
    assert read_back is not None
    assert read_back.message == "caf\\udce9.txt: gone"


def test_an_argument_that_is_not_utf8_does_not_stop_the_manifest(tmp_path: Path) -> None:
    records.write_manifest(tmp_path, manifest(command=["file:caf\udce9.txt"]))
    read_back = records.read_manifest(tmp_path)
    assert read_back is not None
    assert read_back.command == ["file:caf\\udce9.txt"]
